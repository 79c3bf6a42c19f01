"""Per-sample logs: one line an item in the harness's format, with what statistics and the report need beside it.

Added: `task`, `subject`, `category`, `correct` (the score, 0 to 1), `shots` (examples in this prompt), `scores` (every metric under
every filter), `sample_hash` (of the item and its prompt: equal for two models exactly when both were asked the same).
Left out: the prompt, where a request of the same item already shows it; MMLU alone would fill 200 MB a model with copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ziya.files import atomic_path, digest

if TYPE_CHECKING:
    from eval.tasks import Subject

LIGHT = ("task", "subject", "category", "correct", "sample_hash", "doc_id")


def lines(subject: Subject, logged: Sequence[dict[str, Any]], shots: Sequence[int]) -> list[dict[str, Any]]:
    """The lines of a subject from the harness's log, which has one entry an item and filter."""
    metric, _, chosen = subject.metric.partition(",")
    scores: dict[int, dict[str, Any]] = {}
    for entry in logged:
        own = scores.setdefault(entry["doc_id"], {})
        own |= {f"{name},{entry['filter']}": entry[name] for name in entry["metrics"]}
    found = []
    for entry in logged:
        if entry["filter"] != chosen:
            continue
        number = entry["doc_id"]
        found.append(
            {
                **entry,
                "arguments": _once(entry["arguments"]),
                "task": subject.task,
                "subject": subject.name,
                "category": subject.category,
                "correct": float(entry[metric]),
                "shots": shots[number] if number < len(shots) else None,
                "scores": scores[number],
                "sample_hash": digest(f"{entry['doc_hash']}{entry['prompt_hash']}".encode()),
            }
        )
    return sorted(found, key=lambda line: int(line["doc_id"]))


def _once(arguments: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Arguments of an item's requests; a context that equals the first request's is "" in the later ones."""
    found = [list(one) for one in arguments]
    for one in found[1:]:
        if one[0] == found[0][0]:
            one[0] = ""
    return found


def write(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write lines as JSON, atomically."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for entry in entries:
            file.write(orjson.dumps(entry, default=str, option=options))


def read(path: Path, *, light: bool = False) -> Iterator[dict[str, Any]]:
    """The lines of a file; `light` keeps only what scores need."""
    with path.open("rb") as file:
        for text in file:
            entry = orjson.loads(text)
            yield {key: entry[key] for key in LIGHT} if light else entry


__all__ = ["lines", "read", "write"]
