"""Step `identify`: ids are unique. Records that repeat inside a file (same origin, or same content without one) get the id of
their occurrence number, counted in the order of the input, whatever the units were.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_factory.dedup.outcome import hex_ids
from data_factory.documents import read_table, table_writer
from ziya.files import digest

ID = np.dtype([("hi", "u8"), ("lo", "u8"), ("unit", "u4"), ("row", "u4")])


def parse_ids(ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """32 hexadecimal digits each -> (uint64 high, uint64 low)."""
    raw = np.frombuffer(bytes.fromhex("".join(ids)), ">u8").reshape(-1, 2)
    return raw[:, 0].astype(np.uint64), raw[:, 1].astype(np.uint64)


def format_ids(high: np.ndarray, low: np.ndarray) -> list[str]:
    """The inverse of `parse_ids`."""
    ids: list[str] = hex_ids(high, low).to_pylist()
    return ids


def repeated(out: Path, names: Sequence[str], partitions: int = 16) -> dict[str, list[tuple[int, str]]]:
    """unit name -> [(row, new id)] for every record but the first of its id. One partition of the ids is in memory at a time."""
    fixes: dict[str, list[tuple[int, str]]] = {}
    for partition in range(partitions):
        parts = []
        for unit, name in enumerate(names):
            high, low = parse_ids(read_table(out / "measurements" / f"{name}.parquet", ["id"])["id"].to_pylist())
            rows = np.flatnonzero((high >> np.uint64(32)) % np.uint64(partitions) == partition)
            part = np.zeros(len(rows), ID)
            part["hi"], part["lo"], part["unit"], part["row"] = high[rows], low[rows], unit, rows
            parts.append(part)
        table = np.concatenate(parts) if parts else np.zeros(0, ID)
        table = table[np.lexsort((table["row"], table["unit"], table["lo"], table["hi"]))]
        same = np.zeros(len(table), bool)
        same[1:] = (table["hi"][1:] == table["hi"][:-1]) & (table["lo"][1:] == table["lo"][:-1])
        occurrence = 0
        for position in np.flatnonzero(same):
            occurrence = occurrence + 1 if position and same[position - 1] else 2
            row = table[position]
            base = format_ids(table["hi"][position : position + 1], table["lo"][position : position + 1])[0]
            fixes.setdefault(names[int(row["unit"])], []).append(
                (int(row["row"]), digest(f"{base}\0{occurrence}".encode()))
            )
    return fixes


def stale(out: Path, name: str, fixes: Sequence[tuple[int, str]]) -> bool:
    """Whether a unit still holds old ids: its files were measured (again) after the fixes were found, or never rewritten."""
    measured = read_table(out / "measurements" / f"{name}.parquet", ["id", "document_row"])
    ids, rows = measured["id"].to_pylist(), measured["document_row"].to_pylist()
    written = read_table(out / "documents" / f"{name}.parquet", ["id"])["id"].to_pylist()
    return any(ids[row] != new or (rows[row] >= 0 and written[rows[row]] != new) for row, new in fixes)


def rewrite(out: Path, name: str, fixes: Sequence[tuple[int, str]]) -> None:
    """Put new ids into a unit's measurements/ and documents/. Running it again changes nothing: rows are absolute."""
    new = dict(fixes)
    path = out / "measurements" / f"{name}.parquet"
    measured = read_table(path)
    ids = [new.get(row, value) for row, value in enumerate(measured["id"].to_pylist())]
    by_document = {row: ids[number] for number, row in enumerate(measured["document_row"].to_pylist()) if row >= 0}
    _replace(path, ids)
    path = out / "documents" / f"{name}.parquet"
    _replace(path, [by_document[row] for row in range(len(by_document))])


def _replace(path: Path, ids: Sequence[str]) -> None:
    schema = pq.read_schema(path)
    first = 0
    with pq.ParquetFile(path) as file, table_writer(path, schema) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)
            column = pa.array(ids[first : first + table.num_rows], pa.string())
            writer.write(table.set_column(table.schema.get_field_index("id"), "id", column))
            first += table.num_rows
