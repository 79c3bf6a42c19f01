"""Benchmark texts that training data must not hold: files -> items -> an n-gram index in OUT (`decontaminate.against`).

Read, by name: JSONL and JSON (an object or a list of objects), CSV, Parquet, plain text; all but Parquet also as .gz. An item is a
question with its options, never its answer:

- objects and CSV with a header: the first of question, problem, prompt, text, content, instruction (case does not count), then A to
  E, choices and options; an object without any of these: all its strings;
- CSV without such a header (MMLU): the first five columns;
- plain text: a paragraph (up to an empty line).

Items are normalised like documents (Traditional characters become Simplified ones where `normalize.to_simplified` says so):
texts of a source that skips that step may hold a Traditional copy unseen.

A folder stands for all such files below it, training splits included: name the splits that must stay unseen.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from data_factory import normalize
from data_factory.batches import TextBatch
from data_factory.config import Normalize
from ziya import ngrams
from ziya.errors import UserError
from ziya.files import atomic_path, digest, file_digest

SUFFIXES = (".jsonl", ".json", ".csv", ".txt", ".parquet")
QUESTIONS = ("question", "problem", "prompt", "text", "content", "instruction")
OPTIONS = ("a", "b", "c", "d", "e", "choices", "options")
_HAN = re.compile("[\u3400-\u9fff]")
CSV_COLUMNS = 5  # of a CSV without a header: question and four options


def files(place: Path) -> list[Path]:
    """The benchmark files at a place, in order."""
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.is_file() and _plain(path).endswith(SUFFIXES))


def place_digest(place: Path) -> str:
    """Identity of the content of a file, or of all benchmark files below a folder with their names in it."""
    if place.is_file():
        return file_digest(place)
    names = [f"{path.relative_to(place).as_posix()} {file_digest(path)}" for path in files(place)]
    return digest("\n".join(names).encode())


def _plain(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def read_items(place: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every item of a file or folder; names hold no path above `place`. UserError names what cannot be read."""
    found = files(place)
    if not found:
        raise UserError(f"decontaminate.against = {place} holds no benchmark: give {', '.join(SUFFIXES)} files")
    for path in found:
        label = path.name if path == place else f"{place.name}/{path.relative_to(place).as_posix()}"
        count = 0
        for number, text in _texts(path):
            if text.strip():
                count += 1
                yield f"{label}:{number}", text
        if not count:
            raise UserError(f"decontaminate.against: {path} holds no text: restore it or leave it out")


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    name = _plain(path)
    if not name.endswith(SUFFIXES):
        raise UserError(f"decontaminate.against: {path} is of no known kind: {', '.join(SUFFIXES)} can be read")
    try:
        if name.endswith(".parquet"):
            rows = pq.read_table(path, use_threads=False).to_pylist()
            yield from ((number, json_item(row)) for number, row in enumerate(rows, start=1))
            return
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")
        if name.endswith(".jsonl"):
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    yield number, json_item(orjson.loads(line))
        elif name.endswith(".json"):
            value = orjson.loads(text)
            for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
                yield number, json_item(row)
        elif name.endswith(".csv"):
            yield from enumerate(csv_items(text), start=1)
        else:
            yield from enumerate(text.replace("\r\n", "\n").split("\n\n"), start=1)
    except (OSError, EOFError, UnicodeDecodeError, orjson.JSONDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"decontaminate.against: {path} cannot be read ({error}): restore it or leave it out") from error


def json_item(value: Any) -> str:
    """The item's text of a JSON value (see the module)."""
    if isinstance(value, dict):
        fields = {str(name).lower(): item for name, item in value.items()}
        question = next((name for name in QUESTIONS if isinstance(fields.get(name), str)), None)
        if question is not None:
            value = [fields[question], *(fields[name] for name in OPTIONS if name in fields)]
    return "\n".join(_strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def csv_items(text: str) -> Iterator[str]:
    """Items of a CSV text, row by row."""
    csv.field_size_limit(1 << 27)
    reader = csv.reader(io.StringIO(text, newline=""))
    first = next(reader, [])
    header = [name.strip().lower() for name in first]
    question = next((name for name in QUESTIONS if name in header), None)
    if question is None:
        columns = list(range(CSV_COLUMNS))
        yield "\n".join(first[:CSV_COLUMNS])
    else:
        columns = [header.index(name) for name in (question, *OPTIONS) if name in header]
    for row in reader:
        yield "\n".join(row[place] for place in columns if place < len(row))


def normalised(texts: list[str], settings: Normalize) -> list[str]:
    """Texts as T1 is: cleaned, and Simplified when documents in Chinese are."""
    batch = TextBatch.from_strings([text.encode(errors="replace").decode() for text in texts])
    batch, protected = normalize.clean(batch, settings)
    if settings.to_simplified:
        zh = np.array([_HAN.search(text) is not None for text in texts], bool)
        batch, _ = normalize.simplify(batch, protected, zh)
    return batch.strings()


def write_index(places: list[str], settings: Normalize, path: Path) -> dict[str, int]:
    """Index all items of `places`, normalised like documents, and write the index with their names as `path` (.npz).

    Returns counts: items, those that can be checked, n-grams.
    """
    named = [item for place in places for item in read_items(Path(place))]
    index = ngrams.Index.build(normalised([text for _, text in named], settings))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, names=np.array([name for name, _ in named]), **index.arrays())
    return {"items": len(named), "checked": int((index.total > 0).sum()), "ngrams": len(index.keys)}


@lru_cache(maxsize=2)
def _load(path: str, changed: int) -> tuple[ngrams.Index, list[str]]:
    with np.load(path) as arrays:
        return ngrams.Index.load(arrays), arrays["names"].tolist()


def coverage(path: Path, batch: TextBatch) -> tuple[Any, list[str]]:
    """Per document the largest share of one item's 10-grams that it holds, float32 [n], and that item's name, "" for none.

    `path`: what `write_index` wrote.
    """
    index, names = _load(str(path), path.stat().st_mtime_ns)
    share, which = index.best(batch.data, batch.offsets)
    return share, [names[item] if item >= 0 else "" for item in which.tolist()]
