"""Parquet by ranges of row groups. Offsets are row numbers inside the file; a null text costs its row, a damaged page
its row group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_factory.config import Read, Source
from data_factory.sources.fields import names, record_of
from data_factory.sources.record import Broken, Damage, Record, Unit
from data_factory.sources.streams import is_remote
from ziya.errors import UserError

ROWS = 256  # rows in memory at once
_ERRORS = (OSError, pa.ArrowException, ValueError)


def _open(path: str, stack: ExitStack) -> Any:
    file: Any = path
    if is_remote(path):
        import fsspec  # slow to import, for remote inputs only

        file = stack.enter_context(fsspec.open(path, "rb"))
    return stack.enter_context(pq.ParquetFile(file, memory_map=False))


def group_ranges(path: str, unit_bytes: int) -> list[tuple[int, int]]:
    """Ranges of row groups of at most `unit_bytes` decompressed (one row group is never cut). A file without a
    readable footer is one range, which its reader reports as damaged.
    """
    with ExitStack() as stack:
        try:
            metadata = _open(path, stack).metadata
            sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        except _ERRORS:
            return [(0, 1)]
    ranges: list[tuple[int, int]] = []
    start, size = 0, 0
    for number, group in enumerate(sizes):
        if number > start and size + group > unit_bytes:
            ranges.append((start, number))
            start, size = number, 0
        size += group
    return [*ranges, (start, len(sizes))] if sizes else []


def read_parquet(unit: Unit, source: Source, read: Read) -> Iterator[Record | Damage]:
    """Records of a Parquet unit. Raises `UserError` when the file has no column of the text's name. See `read_unit`."""
    with ExitStack() as stack:
        try:
            file = _open(unit.path, stack)
        except _ERRORS as error:
            yield Damage(0, 0, f"the file is not readable Parquet: {_line(error)}")
            return
        present = set(file.schema_arrow.names)
        roots = list(dict.fromkeys(name if name in present else name.partition(".")[0] for name in names(source)))
        for needed in (source.text_field, source.prompt_field):
            if needed and needed not in present and needed.partition(".")[0] not in present:
                raise UserError(
                    f"source {source.name}: {unit.label} has no column {needed!r} "
                    f"(columns: {', '.join(file.schema_arrow.names)}); set text_field or prompt_field"
                )
        first = sum(file.metadata.row_group(number).num_rows for number in range(unit.start))
        for group in range(unit.start, unit.end):
            rows = file.metadata.row_group(group).num_rows
            done = 0
            try:
                for batch in file.iter_batches(
                    batch_size=ROWS,
                    row_groups=[group],
                    columns=[name for name in roots if name in present],
                    use_threads=False,
                ):
                    yield from _rows(batch, source, first + done, read.record_limit_bytes)
                    done += batch.num_rows
            except _ERRORS as error:
                yield Damage(
                    first + done, rows - done, f"rows {first + done} to {first + rows} cannot be read: {_line(error)}"
                )
            first += rows


def _rows(batch: pa.RecordBatch, source: Source, first: int, limit: int) -> Iterator[Record | Damage]:
    for number in range(batch.num_rows):
        try:
            row = {name: column[number].as_py() for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            yield record_of(row, source, first + number, 1, limit)
        except UnicodeDecodeError as error:
            yield Damage(first + number, 1, f"a field is not valid UTF-8: {error.reason} at byte {error.start}")
        except Broken as error:
            yield Damage(first + number, 1, str(error))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
