"""`table.md`: scores beside the base and the paper's rows, both averages with intervals, tests, categories, subjects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval import statistics
from eval.report.collect import p_value, points, title, tokens, versus_base

ORDER = ("strict", "flexible", "math", "math_verify", "string", "minerva")
COUNTED = {
    ("ziya2", "gsm8k"): "flexible", ("ziya2", "math"): "math", ("lm-eval", "gsm8k"): "strict", ("lm-eval", "math"): "minerva",
}  # fmt: skip
WIDE = 8  # more models than this: subject tables show the base, the first and the last only


def escape(text: Any) -> str:
    """A cell's text: nothing that would end the cell or start markup."""
    plain = " ".join(str(text).split())
    for character in "\\|<>*_`[]":
        plain = plain.replace(character, f"\\{character}")
    return plain


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a Markdown table; the first `left` columns are texts, the others numbers, to the right."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "".join("---|" if number < left else "---:|" for number in range(len(header))))
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def change(row: dict[str, Any] | None) -> str:
    """The difference to the other model, its verdict, and its pairs where they are not all items: `+3.10 better`,
    `-0.40 within noise, on 5 of 10 items with equal prompts`."""
    if row is None:
        return ""
    told = statistics.pairs_told(row["n"], row["of"])
    if row["difference"] is None:
        return f"not compared: {told}" if told else ""
    return f"{points(row['difference'], signed=True)} {row['verdict']}{f', {told}' if told else ''}"


def pairs(row: dict[str, Any] | None) -> str:
    """The column of pairs: `10`, `5 of 10`."""
    if not row:
        return ""
    return f"{row['n']:,}" if row["n"] == row["of"] else f"{row['n']:,} of {row['of']:,}"


PAIRS_NOTE = (
    "Differences, their intervals and p rest on pairs alone: items that both models met with the same prompt. Where these are not all "
    "items, a difference need not be that of the two scores."
)


UNSAFE_MARK = " ⚠ UNSAFE"
UNSAFE_NOTE = (
    "the programs of this score ran without a sandbox (--unsafe-code); one of them may have changed this machine or its own verdict."
)


def mark(row: dict[str, Any]) -> str:
    """What stands behind a score whose programs ran without a sandbox."""
    return UNSAFE_MARK if row.get("sandbox") == "none" else ""


def scorer_tables(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Tasks with more than one scorer: `{task, title, names, counted, rows: [{model, values}]}`, `counted` is the one that is the score.

    Letter tasks have none here: their other score (the harness's acc_norm) is in results.json.
    """
    tables = []
    for item in value["tasks"]:
        rows = [row for row in value["rows"] if row["task"] == item["task"] and row.get("scores")]
        if not rows or rows[0]["metric"] == "acc":
            continue
        names = list(dict.fromkeys(name for name in ORDER for row in rows if name in row["scores"]))
        names += [name for name in dict.fromkeys(name for row in rows for name in row["scores"]) if name not in names]
        cells = [{"model": row["model"], "values": [row["scores"].get(name) for name in names]} for row in rows]
        counted = COUNTED.get((value["protocol"], statistics.benchmark(item["task"])), "")
        tables.append({**item, "names": names, "counted": counted, "rows": cells})
    return tables


def render(value: dict[str, Any]) -> str:
    """The whole file."""
    base = value["base"]
    lines = ["# Evaluation", ""]
    lines.append(
        f"Protocol {value['protocol']}; scores are {value['average']} averages in per cent; base: "
        f"{escape(base) if base is not None else 'none'}. Intervals are 95 %. A difference is called better or worse "
        "below p = 0.05 after Holm's adjustment over all models and tasks, else within noise."
    )
    lines += ["", "## Scores", "", *_scores(value)]
    if scorer_tables(value):
        lines += ["## Scorers side by side", "", *_scorers(value)]
    lines += ["## Intervals and tests", "", *_tests(value)]
    if any(row["family"] == "previous" for row in value["comparisons"]):
        lines += ["## From checkpoint to checkpoint", "", *_previous(value)]
    if value["breakdown"]:
        lines += ["## Categories and subjects", "", *_subjects(value)]
    if value.get("variants"):
        lines += ["## Spread over wordings", "", *_variants(value["variants"])]
    if value.get("perplexity"):
        lines += ["## Bits per byte", "", *_perplexity(value["perplexity"])]
    if value.get("contamination"):
        lines += ["## Contamination", "", *_contamination(value["contamination"])]
    return "\n".join(lines).rstrip() + "\n"


def _scores(value: dict[str, Any]) -> list[str]:
    tasks = [item["task"] for item in value["tasks"]]
    scored = {(row["model"], row["task"]): row for row in value["rows"]}
    tested = versus_base(value)
    rows = []
    for model in value["models"]:
        name = model["model"]
        cells = [escape(name), escape(model["stage"] or ("base" if model["is_base"] else "")), tokens(model["tokens"])]
        for task in tasks:
            row = scored.get((name, task))
            told = change(tested.get((name, task)))
            cells.append("" if row is None else f"{points(row['value'])}{f' ({told})' if told else ''}{mark(row)}")
        rows.append(cells)
    for name, numbers in value["paper"]["rows"].items():
        cells = [f"*{name}*", "*paper*", ""]
        rows.append([*cells, *(f"*{numbers[task]:.2f}*" if task in numbers else "" for task in tasks)])
    header = ["model", "stage", "tokens", *(item["title"] for item in value["tasks"])]
    note = f"*Rows in italics: {value['paper']['source']}, for reference.*"
    unsafe = [f"{UNSAFE_MARK.strip()}: {UNSAFE_NOTE}", ""] if any(map(mark, value["rows"])) else []
    return [*markdown(header, rows, 2), note, "", *unsafe]


def _scorers(value: dict[str, Any]) -> list[str]:
    lines = []
    for found in scorer_tables(value):
        rows = [[escape(row["model"]), *(points(number) for number in row["values"])] for row in found["rows"]]
        header = ["model", *(f"**{name}**" if name == found["counted"] else name for name in map(escape, found["names"]))]
        lines += [f"### {found['title']}", "", *markdown(header, rows, 1)]
    return ["Means over items; in bold: the one that counts above.", "", *lines]


def _tests(value: dict[str, Any]) -> list[str]:
    tested = versus_base(value)
    rows = []
    for row in value["rows"]:
        test = tested.get((row["model"], row["task"]), {})
        difference = points(test.get("difference"), signed=True)
        if difference:
            difference += f" [{points(test['low'], signed=True)}, {points(test['high'], signed=True)}]"
        rows.append([
            title(row["task"]), escape(row["model"]), row["metric"], points(row["macro"]), points(row["micro"]) + mark(row), str(row["n"]),
            f"[{points(row['low'])}, {points(row['high'])}]", points(row["base_value"]), pairs(test), difference,
            p_value(row["p_value"]), p_value(test.get("p_adjusted")), test.get("verdict") or "",
        ])  # fmt: skip
    header = [
        "task",
        "model",
        "metric",
        "macro",
        "micro",
        "items",
        "95 % interval",
        "base",
        "pairs",
        "difference",
        "p",
        "p (Holm)",
        "verdict",
    ]
    return [*markdown(header, rows, 3), PAIRS_NOTE, ""]


def _previous(value: dict[str, Any]) -> list[str]:
    rows = [
        [title(row["task"]), escape(row["first"]), escape(row["second"]), pairs(row), change(row), p_value(row["p_value"]),
         p_value(row["p_adjusted"])]
        for row in value["comparisons"]
        if row["family"] == "previous"
    ]  # fmt: skip
    return markdown(["task", "from", "to", "pairs", "difference", "p", "p (Holm)"], rows, 3)


def shown_models(value: dict[str, Any]) -> list[str]:
    """Columns of the subject tables: all models, or base, first and last of many."""
    names = [model["model"] for model in value["models"]]
    if len(names) <= WIDE:
        return names
    others = [name for name in names if name != value["base"]]
    return [*([value["base"]] if value["base"] is not None else []), others[0], others[-1]]


def subject_rows(value: dict[str, Any], task: str) -> list[dict[str, Any]]:
    """Categories, then subjects of a task: `{category, subject, n, values}`, values beside `shown_models`."""
    cells: dict[tuple[str | None, str | None], dict[str, Any]] = {}
    for row in value["breakdown"]:
        if row["task"] == task:
            cells.setdefault((row["category"], row["subject"]), {})[row["model"]] = row
    names = shown_models(value)
    return [
        {
            "category": category,
            "subject": subject,
            "n": max(row["n"] for row in found.values()),
            "values": [found.get(name) for name in names],
        }
        for (category, subject), found in cells.items()
    ]


def _subjects(value: dict[str, Any]) -> list[str]:
    def shown(cell: dict[str, Any] | None) -> str:
        return "" if cell is None else f"{points(cell['value'])} [{points(cell['low'])}, {points(cell['high'])}]"

    lines = []
    names = shown_models(value)
    for item in value["tasks"]:
        rows = [
            [
                escape(row["category"] or ""),
                escape(row["subject"] or "(all)"),
                str(row["n"]),
                *map(shown, row["values"]),
            ]
            for row in subject_rows(value, item["task"])
        ]
        if rows:
            header = ["category", "subject", "items", *map(escape, names)]
            lines += [f"### {item['title']}", "", *markdown(header, rows, 2)]
    return lines


def _variants(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [title(row["task"]), escape(row["model"]), str(len(row["values"]))]
        + [points(row[name]) for name in ("mean", "least", "greatest")]
        for row in rows
    ]
    return markdown(["task", "model", "wordings", "mean", "least", "greatest"], cells, 2)


def _perplexity(rows: list[dict[str, Any]]) -> list[str]:
    header = ["domain", "model", "documents", "bytes", "bits per byte", "95 % interval", "base", "change", "verdict"]
    cells = []
    for row in rows:
        changed = ""
        if row.get("change") is not None:
            changed = f"{row['change']:+.4f} [{row['change_low']:+.4f}, {row['change_high']:+.4f}]"
        cells.append([
            escape(row["domain"]), escape(row["model"]), str(row["documents"]), str(row["bytes"]), f"{row['bits_per_byte']:.4f}",
            f"[{row['low']:.4f}, {row['high']:.4f}]", "" if row.get("base") is None else f"{row['base']:.4f}", changed,
            row.get("verdict") or "",
        ])  # fmt: skip
    return markdown(header, cells, 2)


def _contamination(value: dict[str, Any]) -> list[str]:
    header = ["task", "items", "checked", "flagged", "partly met"]
    rows = [
        [title(task), *(str(counts[name]) for name in ("items", "checked", "flagged", "partial"))]
        for task, counts in value["tasks"].items()
    ]
    lines = [f"Flagged: at least {value['threshold']:.0%} of an item's 10-grams stand in the training data.", ""]
    lines += markdown(header, rows, 1)
    if value.get("scores"):
        cells = [
            [
                title(row["task"]),
                escape(row["model"]),
                points(row["value"]),
                str(row["n"]),
                points(row["clean_value"]),
                str(row["clean_n"]),
            ]
            for row in value["scores"]
        ]
        lines += markdown(["task", "model", "all items", "items", "without flagged", "items"], cells, 2)
    return lines
