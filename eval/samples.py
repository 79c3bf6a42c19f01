"""Per-sample logs: one line an item in the harness's format, with what statistics and the report need beside it.

Added: `task`, `subject`, `category`, `correct` (the score, 0 to 1), `shots` (examples in this prompt), `scores` (every metric under
every filter), `sample_hash` (of the item and its prompt: equal for two models exactly when both were asked the same).
Left out: the prompt, where a request of the same item already shows it; MMLU alone would fill 200 MB a model with copies.

Read back, a line is what scores need of it (`Line`, about 130 bytes): a folder of twenty models holds hundreds of thousands, a
gigabyte of texts. Whoever shows a line's texts reads them again from its place in the file (`whole`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ziya.errors import UserError
from ziya.files import atomic_path, digest

if TYPE_CHECKING:
    from eval.tasks import Subject

KEPT = ("correct", "sample_hash", "subject", "category", "scores", "item")
LETTERS = "ABCDEFGHIJ"


class Line(Mapping[str, Any]):
    """What scores, tests and contamination need of a sample line; `place` is where the whole one begins in its file, in bytes.

    `item` names the item asked (`item_key`). Equal values are one object for all lines of a reading.
    """

    __slots__ = (*KEPT, "place")

    def __init__(self, values: Sequence[Any], place: int) -> None:
        for name, value in zip(KEPT, values, strict=True):
            setattr(self, name, value)
        self.place = place

    def __getitem__(self, key: str) -> Any:
        if key not in KEPT:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(KEPT)

    def __len__(self) -> int:
        return len(KEPT)


Lines = dict[str, dict[str, list[Line]]]  # model -> task -> lines


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


def asked(doc: Mapping[str, Any]) -> str:
    """The question's own text in a harness document, "" when no field is known to hold it."""
    texts = (doc.get(name) for name in ("question", "Question", "problem", "prompt", "text"))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def options(doc: Mapping[str, Any]) -> list[str]:
    """The options of a harness document, "A. ..." each."""
    choices = doc.get("choices")
    found = dict(zip(LETTERS, choices, strict=False)) if isinstance(choices, list) else doc
    return [f"{letter}. {found[letter]}" for letter in "ABCD" if isinstance(found.get(letter), str)]


def item_key(text: str) -> str:
    """What names an item by its whole text, question and all options, whatever fields its task keeps them in."""
    return digest(" ".join(text.split()).encode(errors="surrogatepass"))


def read_all(folder: Path) -> Lines:
    """All lines of `folder/<model>/<task>.jsonl`; UserError names a broken one."""
    found: Lines = {}
    shared: dict[Any, Any] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        model = str(path.parent.relative_to(folder))
        found.setdefault(model, {})[path.stem] = list(read(path, shared))
    return found


def read(path: Path, shared: dict[Any, Any]) -> Iterator[Line]:
    """The lines of one file; `shared` holds values that many lines have: every model is asked the same."""
    place = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            begin, place = place, place + len(text)
            if not text.strip():
                continue
            line = _parsed(text, f"{path}, line {number}")
            given = line.get("doc")
            doc: Mapping[str, Any] = given if isinstance(given, dict) else {}
            scores = line.get("scores") or {}
            values = (
                float(line["correct"]), str(line["sample_hash"]), line.get("subject"), line.get("category"),
                shared.setdefault(tuple(scores.items()), scores), item_key("\n".join([asked(doc), *options(doc)])),
            )  # fmt: skip
            yield Line([value if isinstance(value, dict) else shared.setdefault(value, value) for value in values], begin)


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error}): evaluate this task again") from error
    lacking = [name for name in ("correct", "sample_hash") if not isinstance(line, dict) or name not in line]
    if lacking:
        raise UserError(f"{where}: no field {' and no field '.join(lacking)}: evaluate this task again")
    return dict(line)


def whole(path: Path, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The whole lines that begin at `places` of a file, in the same order."""
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            yield _parsed(file.readline(), f"{path}, byte {place}")


__all__ = ["Line", "Lines", "asked", "item_key", "lines", "options", "read", "read_all", "whole", "write"]
