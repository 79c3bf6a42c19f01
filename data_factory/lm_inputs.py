"""What `train-lm` reads: plain text, JSONL, Parquet and MediaWiki dumps, streamed as small lists of texts in a fixed
order."""

from __future__ import annotations

import bz2
import gzip
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from ziya.errors import UserError

BATCH_BYTES = 4 << 20
_COMPRESSIONS = (".gz", ".zst", ".bz2")
_SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".xml")


def read_texts(inputs: Sequence[str], text_field: str) -> Iterator[list[str]]:
    """Yield the texts (T0, with protected marks) of all inputs, some megabytes at a time.

    A text file is cut at line ends; JSONL and Parquet give one text a row, MediaWiki dumps one a page of the main
    namespace. Folders are read in the order of their relative file names. UserError for what is missing, of an unknown
    kind, or damaged.
    """
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise UserError(f"--input {name} does not exist")
        files = (
            sorted(
                (file for file in path.rglob("*") if _kind(file)), key=lambda file: file.relative_to(path).as_posix()
            )
            if path.is_dir()
            else [path]
        )
        if not files:
            raise UserError(
                f"--input {name} holds no file that train-lm reads ({', '.join(_SUFFIXES)}, also "
                f"{', '.join(_COMPRESSIONS)})"
            )
        for file in files:
            kind = _kind(file)
            if kind == ".txt":
                yield from _plain(file)
            elif kind == ".parquet":
                yield from _parquet(file, text_field)
            elif kind == ".xml":
                yield from _mediawiki(file)
            elif kind:
                yield from _jsonl(file, text_field)
            else:
                raise UserError(
                    f"--input {file}: unknown kind of file; train-lm reads {', '.join(_SUFFIXES)}, also "
                    f"{', '.join(_COMPRESSIONS)}"
                )


def _kind(path: Path) -> str:
    """The suffix that tells the format, without a compression suffix; "" when unknown."""
    if not path.is_file():
        return ""
    suffix = Path(path.stem).suffix if path.suffix in _COMPRESSIONS else path.suffix
    return suffix if suffix in _SUFFIXES else ""


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path))  # type: ignore[arg-type]
    if path.suffix == ".bz2":
        return io.BufferedReader(bz2.open(path))  # type: ignore[arg-type]
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard.open(path, "rb"), BATCH_BYTES)  # type: ignore[arg-type]
    return path.open("rb")


def _line_blocks(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line from 1, lines) of a possibly compressed file."""
    number = 1
    try:
        with _open(path) as file:
            while lines := file.readlines(BATCH_BYTES):
                yield number, lines
                number += len(lines)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise UserError(
            f"--input {path} is damaged after line {number - 1} ({error}): restore it or leave it out"
        ) from error


def _marked(text: str) -> str:
    """T0 as the factory makes it of plain text: stray marks removed, fenced code and formulas marked."""
    from data_factory.extract import mark_fences

    return mark_fences(text.replace("\x02", "").replace("\x03", ""))


def _plain(path: Path) -> Iterator[list[str]]:
    for number, lines in _line_blocks(path):
        try:
            yield [_marked(b"".join(lines).decode())]
        except UnicodeDecodeError as error:
            raise UserError(
                f"--input {path} is not UTF-8 at or after line {number} ({error.reason}): convert it"
            ) from error


def _jsonl(path: Path, text_field: str) -> Iterator[list[str]]:
    for first, lines in _line_blocks(path):
        texts = []
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UserError(
                    f"--input {path} line {number} is not valid JSON ({error}): repair or remove the line"
                ) from error
            text = row.get(text_field) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise UserError(
                    f"--input {path} line {number} has no text in {text_field!r}: name the field with --text-field"
                )
            texts.append(_marked(text))
        yield texts


def _parquet(path: Path, text_field: str) -> Iterator[list[str]]:
    try:
        with pq.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise UserError(
                    f"--input {path} has no column {text_field!r} (columns: {', '.join(file.schema_arrow.names)}): "
                    f"give --text-field"
                )
            for batch in file.iter_batches(batch_size=256, columns=[text_field], use_threads=False):
                yield [_marked(text) for text in batch.column(0).to_pylist() if isinstance(text, str)]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"--input {path} cannot be read as Parquet ({' '.join(str(error).split())}): restore it or leave it out"
        ) from error


def _mediawiki(path: Path) -> Iterator[list[str]]:
    """Pages of a dump through the factory's own reader; damaged ranges are skipped, as in a run."""
    from data_factory import extract
    from data_factory.config import DataConfig, Source
    from data_factory.sources import Damage, read_unit
    from data_factory.units import plan

    source = Source(name="train", paths=[str(path)], format="mediawiki", kind="reference")
    config = DataConfig(sources=[source])
    with tempfile.TemporaryDirectory(prefix="train-lm-") as spool:
        for unit in plan(config, Path(spool), None).units:
            texts: list[str] = []
            size = 0
            for item in read_unit(unit, source, config.read, Counter()):
                if isinstance(item, Damage) or item.drop:
                    continue
                texts.append(extract.record_text(item, config.read))
                size += len(texts[-1])
                if size > BATCH_BYTES:
                    yield texts
                    texts, size = [], 0
            if texts:
                yield texts
