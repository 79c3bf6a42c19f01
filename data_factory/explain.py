"""`ziya-data explain`: one document's life, from the stored columns and with the settings that it was decided with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_factory import finish, run_state
from data_factory.batches import TextBatch
from data_factory.documents import read_table
from data_factory.rules import RULES, thresholds
from ziya.errors import UserError
from ziya.files import json_bytes, read_json

# Where the record came from: told in the first lines, not in the table.
_ORIGIN = ("id", "url", "file", "offset", "length", "source")


def explain(out: Path, url: str | None, document_id: str | None, as_json: bool) -> str:
    """The life of the documents with this id or URL (a URL may stand in several records)."""
    run_state.require_run(out)
    column, wanted = ("url", url) if url is not None else ("id", document_id)
    lives = []
    for path in sorted((out / "measurements").glob("*.parquet")):
        rows = pc.indices_nonzero(pc.equal(read_table(path, [column])[column], wanted)).to_pylist()
        if rows:
            decided = run_state.decided_settings(out, path.stem)
            lives += [life(decided, out, path.stem, row) for row in rows]
    if not lives:
        raise UserError(
            f"no document with {column} {wanted} in {out}: ids and URLs stand in {out}/decisions, damaged records in {out}/quarantine"
        )
    if as_json:
        return json_bytes(lives).decode().rstrip()
    return "\n\n".join(_text(item, out) for item in lives)


def life(decided: run_state.Decided, out: Path, unit: str, row: int) -> dict[str, Any]:
    """Everything that is stored about one record: measurements, decision, thresholds, spans, T1 and T2.

    Thresholds are those that the decision was made with. What depends on T2 is measured on T2 built with them, for
    keys/ may be newer than the decision.
    """
    config = decided.config
    measured = read_table(out / "measurements" / f"{unit}.parquet").slice(row, 1).to_pylist()[0]
    decisions = out / "decisions" / f"{unit}.parquet"
    decision = read_table(decisions).slice(row, 1).to_pylist()[0] if decisions.exists() else None
    found: dict[str, Any] = {"measurements": measured, "decision": decision, "text": None}
    found["settings"] = {"changed_since": decided.changes, "known": decided.known}
    place = measured["document_row"]
    values = dict(measured)
    if place >= 0:
        stored = read_table(out / "documents" / f"{unit}.parquet").slice(place, 1)
        if stored["text"].null_count:
            found["text"] = "pruned"
            keys = out / "keys" / f"{unit}.parquet"
            wanted = ["final_chars", "removed_share"]
            wanted += ["benchmark_coverage", "benchmark_item"] if config.decontaminate.against else []
            values |= read_table(keys, wanted).slice(place, 1).to_pylist()[0]
        else:
            t2, _, _, applied = finish.build(stored, config, out)
            raw = stored["text"][0].as_py().encode()
            found["text"] = {"before": raw.decode(), "after": t2.string(0)}
            found["applied"] = [
                {"rule": finish.span_rule_id(int(rule)), "value": float(value), "text": raw[start:end].decode()}
                for rule, value, start, end in zip(applied.rule, applied.value, applied.start, applied.end, strict=True)
            ]
            values |= _of_t2(stored, t2)
            if config.decontaminate.against:
                columns = finish.benchmark_columns(t2, out)
                values |= {name: column.tolist()[0] for name, column in columns.items()}
        found["measurements"] = values
        found["checks"] = list(_checks(decided, out, values, decision))
        named = {reason["rule"] for reason in decision["reasons"]} if decision else set()
        found["would_fail"] = [
            {name: check[name] for name in ("rule", "value", "threshold")}
            for check in found["checks"]
            if not check["passes"] and check["rule"] not in named
        ]
    if decision is not None:
        found["winners"] = [reason["winner"] for reason in decision["reasons"] if reason["winner"]]
    return found


def _of_t2(stored: pa.Table, t2: TextBatch) -> dict[str, float]:
    """`final_chars` and `removed_share` of one document, as keys/ holds them (float32)."""
    before, after = (int(finish.character_counts(batch)[0]) for batch in (TextBatch.from_arrow(stored["text"]), t2))
    return {
        "final_chars": float(np.float32(after)),
        "removed_share": float(np.float32(max(before - after, 0) / max(before, 1))),
    }


def _checks(
    decided: run_state.Decided, out: Path, values: dict[str, Any], decision: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Every setting that compares a measurement of this document, whether or not the document reached its stage."""
    config = decided.config
    steps = next(source.steps for source in config.sources if source.name == values["source"])
    lang = values["lang"]

    reasons = {reason["rule"] for reason in decision["reasons"]} if decision else set()

    def check(rule: str, feature: str, must: str, limit: float) -> dict[str, Any]:
        value = values[feature]
        edge = pa.scalar(limit, pa.float32()).as_py()  # measurements are float32
        passes = not (value < edge if must == ">=" else value > edge if must == "<=" else value >= edge)
        # equal perplexities are told apart by id: the reason knows
        passes &= rule not in reasons
        return {
            "rule": rule,
            "measurement": feature,
            "value": value,
            "must": must,
            "threshold": limit,
            "passes": passes,
        }

    if "language" in steps and lang in config.language.min_score:
        yield check("language.min_score", "lang_score", ">=", config.language.min_score[lang])
    for name, limit in (
        ("domain", int(config.url.domain)), ("hard_words", config.url.hard_words), ("soft_words", config.url.soft_words),
    ):  # fmt: skip
        if limit:
            yield check(f"url.{name}", f"url_{name}", "<", limit)
    if "scoring" in steps and config.scoring.enabled and values["perplexity"] == values["perplexity"]:
        summary = out / "summary.json"
        if summary.exists():  # else the cuts of this decision may be gone
            group = lang if config.scoring.ranking_group == "language" else f"{values['source']}/{lang}"
            cut = read_json(summary)["rank_cuts"].get(group) or {}
            if cut.get("medium"):
                yield check("scoring.medium", "perplexity", "<=", cut["medium"][0])
        for name, limits in (("max", config.scoring.max_perplexity), ("min", config.scoring.min_perplexity)):
            if lang in limits:
                yield check(f"scoring.{name}_perplexity", "perplexity", "<=" if name == "max" else ">=", limits[lang])
    if config.decontaminate.against:
        yield check("decontaminate.threshold", "benchmark_coverage", "<", config.decontaminate.threshold)
    if "rules" in steps:
        active = thresholds(config.rules)
        for rule in RULES:
            own = active.get(rule.id, {}).get("zh" if lang == "zh" else "en")
            if rule.effect == "drop" and own is not None:
                yield check(f"rules.{rule.id}", rule.feature, ">=" if rule.bad == "below" else "<=", own)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows of words as lines whose columns stand below each other (names and numbers are ASCII)."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "    " + "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _table(found: dict[str, Any]) -> list[str]:
    """One measurement a line; beside it the thresholds that read it, one a line, and whether the document passes."""
    readers: dict[str, list[list[str]]] = {}
    for check in found.get("checks", []):
        words = ["ok" if check["passes"] else "FAILS", f"{check['must']} {_number(check['threshold'])}", check["rule"]]
        readers.setdefault(check["measurement"], []).append(words)
    rows = []
    for name, value in found["measurements"].items():
        if name not in _ORIGIN:
            first, *more = readers.get(name, [["", "", ""]])
            rows.append([name, _number(value), *first])
            rows += [["", "", *words] for words in more]
    return ["  measurements, and what they must be:", *_aligned(rows)]


def _settings(found: dict[str, Any], out: Path) -> list[str]:
    """Said when the settings of the decision are not those of the run's config."""
    state = found["settings"]
    if not state["known"]:
        return [
            f"  NOTE: a `decide` was interrupted while it wrote this unit, and which settings made this decision is not on "
            f"record; thresholds below are the run's config now. Finish it: ziya-data decide {out}"
        ]
    if not state["changed_since"]:
        return []
    return [
        "  NOTE: decided with earlier settings, which all below uses: a later `decide` was interrupted. Finish it: "
        f"ziya-data decide {out}",
        "  settings then -> in the run's config now:",
        *(f"    {change}" for change in state["changed_since"]),
    ]


def _text(found: dict[str, Any], out: Path) -> str:
    measured, decision = found["measurements"], found["decision"]
    lines = [
        f"{measured['id']}  {measured['url']}",
        f"  read from {measured['file']} at byte {measured['offset']} ({measured['length']} bytes), source {measured['source']}",
    ]
    if decision is None:
        lines.append("  not decided yet: the run did not reach its end")
    else:
        verdict = (
            f"KEPT, tier {decision['tier']}, stands for {decision['copies']} document(s)"
            if decision["kept"]
            else f"DROPPED at stage {decision['stage']}"
        )
        lines += [f"  {verdict}", *_settings(found, out)]
        for reason in decision["reasons"]:
            parts = [f"  because {reason['rule']}"]
            if reason["value"] is not None:
                parts.append(f"value {_number(reason['value'])}")
            if reason["threshold"] is not None:
                parts.append(f"threshold {_number(reason['threshold'])}")
            if reason["winner"]:
                parts.append(f"winner {reason['winner']}")
            lines.append(", ".join(parts))
    lines += [
        f"  would also fail {item['rule']}: value {_number(item['value'])}, threshold {_number(item['threshold'])} "
        "(stage not reached)"
        for item in found.get("would_fail", [])
    ]
    lines += _table(found)
    lines += [
        f"  cut or masked by {item['rule']} (value {_number(item['value'])}): {item['text']!r}"
        for item in found.get("applied", [])
    ]
    if found["text"] == "pruned":
        lines.append("  text: pruned")
    elif found["text"]:
        lines += [
            "  --- before (T1) ---",
            found["text"]["before"],
            "  --- after (T2) ---",
            found["text"]["after"] if found["text"]["after"] != found["text"]["before"] else "(the same)",
        ]
    return "\n".join(lines)
