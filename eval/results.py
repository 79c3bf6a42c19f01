"""From all samples of OUT to its results: rows with intervals and tests, the spread over wordings, the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import held_out, output, samples
from eval.config import EvalConfig
from ziya.files import read_json, write_json
from ziya.progress import log

if TYPE_CHECKING:
    from eval.perplexity import Document


def finish(out: Path, config: EvalConfig, documents: Sequence[Document] = ()) -> list[dict[str, Any]]:
    """Write results.json from all samples of OUT, bits per byte of held-out `documents`, the spread over wordings, the report."""
    from eval import report
    from eval.statistics import summarise

    found = samples.read_all(out / "samples")
    models = [line for line in output.models(out) if found.get(line["model"])]
    base = next((line["model"] for line in models if line["is_base"]), None)
    rows = [
        {**row, "sandbox": sandbox(out / "samples" / row["model"] / f"{row['task']}.json")}
        for row in summarise(found, models, base, config.protocol, config.seed)
    ]
    write_json(out / "results.json", rows)
    held_out.write_table(out, models, documents, config.seed)
    spread(out, config, models, rows)
    keep_contamination_true(out, rows)
    report.write(out, found)
    return rows


def sandbox(record: Path) -> str | None:
    """Where a task's generated programs ran, by its record: `bubblewrap`, `none` (--unsafe-code), None without programs."""
    found = read_json(record).get("sandbox") if record.is_file() else None
    return None if found is None else str(found)


def keep_contamination_true(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Drop from contamination.json the scores of samples that were replaced since; the items it names stay."""
    path = out / "contamination.json"
    value = read_json(path) if path.is_file() else {}
    there = {(row["model"], row["task"], row["value"], row["n"]) for row in rows}
    before = value.get("scores", [])
    true = [row for row in before if (row["model"], row["task"], row["value"], row["n"]) in there]
    if len(true) < len(before):
        log("scores without flagged items are out of date and left out: run `ziya-eval contamination` again")
        write_json(path, {**value, "scores": true})


def spread(
    out: Path, config: EvalConfig, models: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write variants.json: for each model and task the values of all wordings, their mean, least and greatest."""
    from eval.statistics import summarise

    found: dict[tuple[str, str], list[float]] = {(row["model"], row["task"]): [row["value"]] for row in rows}
    folders = sorted(
        (path for path in (out / "variants").glob("*") if path.name.isdigit()), key=lambda path: int(path.name)
    )
    for folder in folders:
        for row in summarise(samples.read_all(folder), models, None, config.protocol, config.seed):
            found.setdefault((row["model"], row["task"]), []).append(row["value"])
    lines = [
        {
            "model": model, "task": task, "values": values, "mean": sum(values) / len(values),
            "least": min(values), "greatest": max(values),
        }
        for (model, task), values in found.items()
        if len(values) > 1
    ]  # fmt: skip
    if lines:
        write_json(out / "variants.json", lines)
    else:
        (out / "variants.json").unlink(missing_ok=True)
    return lines
