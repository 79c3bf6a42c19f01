"""summary.json and timings.json: the numbers of a run, with the accounting asserted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_factory.config import DataConfig
from data_factory.report import page
from data_factory.run_state import require_finished
from ziya.files import read_json, write_json
from ziya.manifest import Markers

SCHEMA = 1


def summarise(
    config: DataConfig,
    out: Path,
    parts: dict[str, Any],
    cuts: dict[str, Any],
    evaluation: dict[str, Any] | None,
    packs: dict[str, Any],
) -> dict[str, Any]:
    """Merge the results of all steps. Asserts documents in = kept + dropped + quarantined, and each step's in and out."""
    measured, decisions, verdicts = parts["measured"], parts["decisions"], parts["verdicts"]
    quarantined = sum(item["counts"]["quarantined"] for item in measured)
    rows = sum(item["counts"]["rows"] for item in measured)
    kept = sum(item["kept"] for item in decisions)
    by_stage = _added(item["dropped_by_stage"] for item in decisions)
    dropped = sum(by_stage.values())
    assert rows == kept + dropped, f"accounting: {rows} measured, {kept} kept, {dropped} dropped"
    documents = {"in": rows + quarantined, "kept": kept, "dropped": dropped, "quarantined": quarantined}
    passed = {name: sum(item[name] for item in verdicts) for name in ("read", "preprocess", "score", "rules")}
    steps, entering = [], rows + quarantined
    for name in ("read", "preprocess", "score", "rules", "deduplicate"):
        leaving = passed.get(name, kept)
        lost = by_stage.get(name, 0) + (quarantined if name == "read" else 0)
        assert entering == leaving + lost, (
            f"accounting of step {name}: {entering} in, {leaving} out, {lost} dropped or quarantined"
        )
        steps.append({"name": name, "in": entering, "out": leaving})
        entering = leaving
    tiers: dict[str, dict[str, int]] = {}
    for item in verdicts:
        for language, counts in item["tiers"].items():
            into = tiers.setdefault(language, {"high": 0, "medium": 0, "low": 0})
            for tier, count in counts.items():
                into[tier] += count
    kept_by: dict[str, dict[str, dict[str, int]]] = {}
    for item in decisions:
        for language, by_tier in item["kept_by"].items():
            for tier, (count, size) in by_tier.items():
                into = kept_by.setdefault(language, {}).setdefault(tier, {"documents": 0, "bytes": 0})
                into["documents"] += count
                into["bytes"] += size
    return {
        "schema": SCHEMA,
        "documents": documents,
        "reasons": _added(item["reasons"] for item in decisions),
        "steps": steps,
        "tiers": dict(sorted(tiers.items())),
        "rank_cuts": cuts,
        "kept": dict(sorted(kept_by.items())),
        "changed": _added(item["cut_by"] for item in decisions),  # cut or mask rule -> kept documents that it changed
        "duplicates": parts["duplicates"],
        "evaluation": evaluation or {"unqualified_rate": None, "passed": None, "sufficient": None},
        "packs": packs,
        "other_records": _added(item["other"] for item in measured),
        "seed": config.seed,
        "sources": [source.name for source in config.sources],
        "preset": config.rules.preset,
    }


def _added(parts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))


# Sub-steps of `measure` that are steps of the paper's flow in their own right.
_SUBSTEPS = (
    "read",
    "extract",
    "normalise",
    "language",
    "characters",
    "simplify",
    "statistics",
    "spans",
    "perplexity",
    "lines",
    "tables",
    "write",
)


def write_timings(out: Path, markers: Markers) -> None:
    """timings.json: per step CPU seconds, bytes and peak memory; the one output that differs between equal runs."""
    path = out / "timings.json"
    known = read_json(path) if path.exists() else {"pieces": {}}
    for step, pieces in markers.timings().items():
        known["pieces"].setdefault(step, {}).update(pieces)
    steps = {}
    for step, pieces in known["pieces"].items():
        values = list(pieces.values())
        steps[step] = {
            "cpu_s": sum(item["cpu_s"] for item in values),
            "wall_s": sum(item["wall_s"] for item in values),
            "bytes": sum(item["bytes"] for item in values),
            "peak_rss": max(item["peak_rss"] for item in values),
        }
        inner = [item["sub"] for item in values if "sub" in item]
        for name in _SUBSTEPS:
            if any(name in item["cpu"] for item in inner):
                steps[f"{step}.{name}"] = {
                    "cpu_s": sum(item["cpu"].get(name, 0.0) for item in inner),
                    "bytes": sum(item["bytes"].get(name, 0) for item in inner),
                    "peak_rss": steps[step]["peak_rss"],
                }
    write_json(path, {"steps": steps, "pieces": known["pieces"]})
    markers.drop_timings()


def write_report(config: DataConfig, out: Path, summary: dict[str, Any]) -> None:
    """report.json and report.html."""
    page.write(config, out, summary)


def rewrite(out: Path) -> dict[str, Any]:
    """Write the report of a finished run again; returns its summary."""
    path = out / "summary.json"
    require_finished(out)
    summary: dict[str, Any] = read_json(path)
    page.rewrite(out, summary)
    return summary


def top(counts: dict[str, int], number: int) -> Sequence[tuple[str, int]]:
    """The largest counts, ties by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]
