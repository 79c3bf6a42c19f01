"""`ziya-data explain`: one document's life, from the stored columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_factory import finish, run_state
from data_factory.config import DataConfig
from data_factory.documents import read_table
from data_factory.rules import RULE, thresholds
from ziya.errors import UserError
from ziya.files import json_bytes


def explain(out: Path, url: str | None, document_id: str | None, as_json: bool) -> str:
    """The life of the documents with this id or URL (a URL may stand in several records)."""
    if not (out / "work" / "run.json").exists():
        raise UserError(f"{out} holds no run: give the --output folder of a `ziya-data run`")
    column, wanted = ("url", url) if url is not None else ("id", document_id)
    config = run_state.stored_config(out)
    lives = []
    for path in sorted((out / "measurements").glob("*.parquet")):
        names = read_table(path, [column])[column]
        for row in pc.indices_nonzero(pc.equal(names, wanted)).to_pylist():
            lives.append(life(config, out, path.stem, row))
    if not lives:
        raise UserError(
            f"no document with {column} {wanted} in {out}: ids and URLs stand in {out}/decisions, damaged records in {out}/quarantine"
        )
    if as_json:
        return json_bytes(lives).decode().rstrip()
    return "\n\n".join(_text(item) for item in lives)


def life(config: DataConfig, out: Path, unit: str, row: int) -> dict[str, Any]:
    """Everything that is stored about one record: measurements, decision, thresholds, spans, T1 and T2."""
    measured = read_table(out / "measurements" / f"{unit}.parquet").slice(row, 1).to_pylist()[0]
    decisions = out / "decisions" / f"{unit}.parquet"
    decision = read_table(decisions).slice(row, 1).to_pylist()[0] if decisions.exists() else None
    found: dict[str, Any] = {"measurements": measured, "decision": decision, "text": None}
    place = measured["document_row"]
    if place >= 0:
        stored = read_table(out / "documents" / f"{unit}.parquet").slice(place, 1)
        if stored["text"].null_count:
            found["text"] = "pruned"
        else:
            t2, _, _, applied = finish.build(stored, config, out)
            raw = stored["text"][0].as_py().encode()
            found["text"] = {"before": raw.decode(), "after": t2.string(0)}
            found["applied"] = [
                {"rule": finish.span_rule_id(int(rule)), "value": float(value), "text": raw[start:end].decode()}
                for rule, value, start, end in zip(applied.rule, applied.value, applied.start, applied.end, strict=True)
            ]
        found["would_fail"] = _would_fail(config, out, unit, place, measured)
    if decision is not None:
        found["winners"] = [reason["winner"] for reason in decision["reasons"] if reason["winner"]]
    return found


def _would_fail(config: DataConfig, out: Path, unit: str, place: int, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Document rules whose threshold the measurements miss, whether or not the document reached them."""
    keys = read_table(out / "keys" / f"{unit}.parquet", ["final_chars", "removed_share"]).slice(place, 1).to_pylist()[0]
    failing = []
    language = "zh" if measured["lang"] == "zh" else "en"
    for rule_id, limits in thresholds(config.rules).items():
        rule, limit = RULE[rule_id], limits.get(language)
        if rule.effect != "drop" or limit is None:
            continue
        value = {**measured, **keys}[rule.feature]
        edge = pa.scalar(limit, pa.float32()).as_py()
        if value < edge if rule.bad == "below" else value > edge:
            failing.append({"rule": f"rules.{rule_id}", "value": value, "threshold": limit})
    return failing


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(found: dict[str, Any]) -> str:
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
        lines.append(f"  {verdict}")
        for reason in decision["reasons"]:
            parts = [f"  because {reason['rule']}"]
            if reason["value"] is not None:
                parts.append(f"value {_number(reason['value'])}")
            if reason["threshold"] is not None:
                parts.append(f"threshold {_number(reason['threshold'])}")
            if reason["winner"]:
                parts.append(f"winner {reason['winner']}")
            lines.append(", ".join(parts))
    named = {reason["rule"] for reason in decision["reasons"]} if decision else set()
    for item in found.get("would_fail", []):
        if item["rule"] not in named:
            lines.append(
                f"  would also fail {item['rule']}: value {_number(item['value'])}, threshold "
                f"{_number(item['threshold'])} (stage not reached)"
            )
    lines.append(
        "  measurements: "
        + ", ".join(
            f"{name}={_number(value)}"
            for name, value in measured.items()
            if name not in ("id", "url", "file", "offset", "length", "source")
        )
    )
    for item in found.get("applied", []):
        lines.append(f"  cut or masked by {item['rule']} (value {_number(item['value'])}): {item['text']!r}")
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
