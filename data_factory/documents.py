"""Arrow schemas of every table under OUT, and the one way in which tables are written (fixed rows per row group and codec)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ziya.files import atomic_path

ROWS_PER_GROUP = 512

SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32())])
RULE_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("rule", pa.string()), ("value", pa.float32())])
REASON = pa.struct(
    [("rule", pa.string()), ("value", pa.float64()), ("threshold", pa.float64()), ("winner", pa.string())]
)

# T1 of every document that was read to the end of DP, dropped ones included.
DOCUMENTS = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("lang", pa.string()),
        ("text", pa.large_string()),
        ("protected", pa.list_(SPAN)),  # code, formulas: byte ranges of T1
        ("spans", pa.list_(RULE_SPAN)),  # candidate cuts and private data: byte ranges of T1
        ("prompt_bytes", pa.int32()),  # supervised documents: T1[:prompt_bytes] is the prompt; else 0
        ("task", pa.string()),  # supervised documents: the task type; else ""
    ]
)

QUARANTINE = pa.schema(
    [("source", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("error", pa.string())]
)

DECISIONS = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("kept", pa.bool_()),
        ("reasons", pa.list_(REASON)),
        (
            "stage",
            pa.string(),
        ),  # the stage that dropped it: read, preprocess, score, rules, deduplicate, or "" when kept
        ("tier", pa.string()),
        ("copies", pa.int32()),  # kept documents: how many documents this one stands for, itself included
    ]
)

KEPT = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("text", pa.large_string()),
        ("lang", pa.string()),
        ("tier", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("perplexity", pa.float32()),
        ("copies", pa.int32()),
        ("protected", pa.list_(SPAN)),  # byte ranges of T2
        ("prompt_bytes", pa.int32()),  # of T2
    ]
)


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Write a Parquet file atomically; yields a `TableWriter`."""
    with atomic_path(path) as temporary:
        writer = TableWriter(temporary, schema)
        try:
            yield writer
        finally:
            writer.close()


class TableWriter:
    """Collects rows and writes row groups of exactly ROWS_PER_GROUP rows (the last may be shorter), zstd, in order."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows = 0
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False
        )
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Append rows; columns are taken by name and cast to the schema."""
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        table = table.select(self.schema.names).cast(self.schema)
        self.rows += table.num_rows
        self._pending.append(table)
        self._pending_rows += table.num_rows
        if self._pending_rows >= ROWS_PER_GROUP:
            joined = pa.concat_tables(self._pending)
            whole = joined.num_rows // ROWS_PER_GROUP * ROWS_PER_GROUP
            self._writer.write_table(joined.slice(0, whole), row_group_size=ROWS_PER_GROUP)
            self._pending, self._pending_rows = [joined.slice(whole)], joined.num_rows - whole

    def close(self) -> None:
        """Write what is pending and the footer."""
        if self._pending_rows:
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=ROWS_PER_GROUP)
        self._pending, self._pending_rows = [], 0
        self._writer.close()


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet file as tables, in order, one in memory at a time."""
    with pq.ParquetFile(path, memory_map=False) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file on one thread."""
    with pq.ParquetFile(path, memory_map=False) as file:
        return file.read(columns=columns, use_threads=False)


def read_rows(path: Path, rows: Iterable[int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield (row, table of that one row) of a file that `table_writer` wrote; every row group is read once."""
    with pq.ParquetFile(path, memory_map=False) as file:
        group, table = -1, None
        for row in sorted(set(rows)):
            if row // ROWS_PER_GROUP != group:
                group = row // ROWS_PER_GROUP
                table = file.read_row_group(group, use_threads=False)
            assert table is not None
            yield row, table.take(pa.array([row % ROWS_PER_GROUP]))  # a copy: the row group can go
