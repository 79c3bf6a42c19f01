"""OUT's files -> everything that the table, the curves and the page show, as one JSON value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval import statistics
from eval.report import paper
from eval.samples import Lines, read_all
from ziya.errors import UserError
from ziya.files import read_json

SEED = 20231103  # of the tests that the report adds to results.json; the results themselves were drawn by the run


def title(task: str) -> str:
    """How a task is called in tables: `GSM8K flexible` for `gsm8k_flexible`."""
    name = statistics.benchmark(task)
    return paper.TITLES.get(name, name) + task[len(name) :].replace("_", " ")


def _read(out: Path, name: str) -> Any:
    path = out / name
    if not path.is_file():
        raise UserError(f"{out} holds no {name}: give the --output folder of a `ziya-eval run` that reached its end")
    return read_json(path)


def collect(out: Path, samples: Lines | None = None) -> tuple[dict[str, Any], Lines]:
    """(what the report shows, samples: read here where they are not given). UserError when OUT has no results."""
    rows, models = _read(out, "results.json"), _read(out, "models.json")
    samples = read_all(out / "samples") if samples is None else samples
    base = next((model["model"] for model in models if model.get("is_base")), None)
    protocol = next((row["protocol"] for row in rows), "ziya2")
    tasks = statistics.task_order({row["task"] for row in rows})
    value: dict[str, Any] = {
        "protocol": protocol,
        "average": "macro" if protocol == "ziya2" else "micro",
        "base": base,
        "models": [
            {key: model.get(key) for key in ("model", "step", "stage", "tokens", "is_base", "run")} for model in models
        ],
        "tasks": [{"task": task, "title": title(task)} for task in tasks],
        "rows": rows,
        "breakdown": statistics.breakdown(samples, models, protocol, SEED),
        "comparisons": statistics.compare(samples, models, base, protocol, SEED),
        "paper": {"source": paper.SOURCE, "rows": paper.ROWS},
    }
    for name in ("perplexity", "contamination", "variants"):
        path = out / f"{name}.json"
        if path.is_file():
            value[name] = read_json(path)
    return value, samples


def versus_base(value: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(model, task) -> its comparison with the base."""
    return {(row["second"], row["task"]): row for row in value["comparisons"] if row["family"] == "base"}


def points(number: float | None, signed: bool = False) -> str:
    """A share as points: 0.3499 -> 34.99."""
    return "" if number is None else f"{100 * number:{'+' if signed else ''}.2f}"


def tokens(number: float | None) -> str:
    """650e9 -> 650 B; 12.5e6 -> 12.5 M."""
    if number is None:
        return ""
    for size, letter in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def p_value(number: float | None) -> str:
    """p with two figures; below 0.0001 only that."""
    if number is None:
        return ""
    return "< 0.0001" if number < 0.0001 else f"{number:.2g}"
