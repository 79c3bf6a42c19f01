"""From all samples of OUT to its results: rows with intervals and tests, the spread over wordings, the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import held_out, samples
from eval.config import EvalConfig
from ziya.files import read_json, write_json

if TYPE_CHECKING:
    from eval.perplexity import Document


def finish(out: Path, config: EvalConfig, documents: Sequence[Document] = ()) -> list[dict[str, Any]]:
    """Write results.json from all samples of OUT, bits per byte of held-out `documents`, the spread over wordings, the report."""
    from eval import report
    from eval.statistics import summarise

    models = [line for line in read_json(out / "models.json") if any((out / "samples" / line["model"]).glob("*.jsonl"))]
    base = next((line["model"] for line in models if line["is_base"]), None)
    rows = summarise(read_all(out / "samples", models), models, base, config.protocol, config.seed)
    write_json(out / "results.json", rows)
    held_out.write_table(out, models, documents, config.seed)
    spread(out, config, models, rows)
    report.write(out)
    return rows


def read_all(folder: Path, models: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """model -> task -> lines with what scores need."""
    return {
        line["model"]: {
            path.stem: list(samples.read(path, light=True)) for path in sorted((folder / line["model"]).glob("*.jsonl"))
        }
        for line in models
    }


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
        for row in summarise(read_all(folder, models), models, None, config.protocol, config.seed):
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
    return lines
