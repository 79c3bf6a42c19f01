"""What the scorers of generated answers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop sequences: a base model goes on with questions of its own."""
    places = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def batch_filter(name: str, score: Callable[[list[str], Sequence[dict[str, Any]]], Sequence[Any]]) -> dict[str, Any]:
    """A harness filter that sees all first responses of a task at once, so that its work can be done in parallel."""

    def apply(responses: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[Any]:
        return list(score([response[0] for response in responses], docs))

    return {"name": name, "filter": [{"function": "custom", "filter_fn": apply}]}


def metrics(*names: str) -> list[dict[str, Any]]:
    """A harness `metric_list` of plain means."""
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def scores_of_filter(doc: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A harness `process_results` for filters that leave {"scores": {metric: value}, ...}."""
    return {name: float(value) for name, value in results[0]["scores"].items()}
