"""The order of a pack: hashes of document ids, sampling by ratio, and a shuffle on disk in buckets of bounded size.

Everything here depends on the seed and the ids alone: how documents are spread over files never changes the order. A
hash is 128 bits wide (two 64-bit hashes `h1`, `h2` of one id), so that ties do not occur.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_factory.batches import TextBatch
from data_factory.tokenize_unit import open_tokens
from ziya.files import digest

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
BUFFER_BYTES = 32 << 20  # rows that are collected before they are spread over the buckets
PACK, RATIO = 0, 1  # states of a row: goes into the pack; left out by the ratio


@numba.vectorize(cache=True)
def finish(value):  # type: ignore[no-untyped-def]
    """Finaliser of splitmix64 on each uint64: spreads every input bit over all output bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True)
def _hash_ids(data, offsets, salt):  # type: ignore[no-untyped-def]
    """FNV-1a over the bytes of each id, started from `salt`, then the finaliser of splitmix64."""
    result = np.empty(len(offsets) - 1, np.uint64)
    for row in range(len(result)):
        value = salt
        for i in range(offsets[row], offsets[row + 1]):
            value = (value ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
        result[row] = finish(value)
    return result


def hash_ids(ids: TextBatch, seed: int, purpose: str) -> tuple[U64, U64]:
    """128-bit hash(seed, purpose, id) of each id as two columns, uint64 [n] each."""
    data = ids.data.view()
    data.flags.writeable = False  # one compiled kernel, wherever the bytes come from
    halves = []
    for half in (1, 2):
        salt = np.uint64(int(digest(f"{seed} {purpose} {half}".encode())[:16], 16))
        halves.append(_hash_ids(data, ids.offsets, salt))
    return halves[0], halves[1]


def order_purpose(copy: int) -> str:
    """Purpose of the hash that places copy number `copy` of a document."""
    return f"order {copy}"


class Sampler:
    """Which documents of a source are packed how often: `ratio` = whole copies of all + one more of a share.

    The share is exact: round-half-up(share * documents) documents, those of the smallest hash(seed, 'ratio', id).
    """

    def __init__(self, ratio: float, seed: int) -> None:
        self.seed = seed
        self.copies = math.floor(ratio)
        self.share = ratio - self.copies
        self._last: tuple[int, int] | None = None  # largest hash that is selected

    def fit(self, first: Iterable[TextBatch], second: Iterable[TextBatch]) -> None:
        """Find the border: the first pass counts by leading bits, the second collects one bin of 65,536."""
        if self.share == 0:
            return
        bins = np.zeros(1 << 16, np.int64)
        for ids in first:
            h1, _ = hash_ids(ids, self.seed, "ratio")
            bins += np.bincount((h1 >> np.uint64(48)).astype(np.int64), minlength=1 << 16)
        wanted = math.floor(self.share * int(bins.sum()) + 0.5)
        if wanted == 0:
            return
        ends = np.cumsum(bins)
        critical = int(np.searchsorted(ends, wanted))
        found: list[tuple[int, int]] = []
        for ids in second:
            h1, h2 = hash_ids(ids, self.seed, "ratio")
            inside = (h1 >> np.uint64(48)).astype(np.int64) == critical
            found.extend(zip(h1[inside].tolist(), h2[inside].tolist(), strict=True))
        found.sort()
        self._last = found[wanted - int(ends[critical] - bins[critical]) - 1]

    def times(self, ids: TextBatch) -> I64:
        """How often each document is packed, int64 [n]."""
        times = np.full(len(ids), self.copies, np.int64)
        if self._last is not None:
            h1, h2 = hash_ids(ids, self.seed, "ratio")
            last1, last2 = (np.uint64(value) for value in self._last)
            times += (h1 < last1) | ((h1 == last1) & (h2 <= last2))
        return times


class Buckets:
    """Rows in files by the leading bits of `h1`: each file fits in memory, and the files follow each other in order."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        folder.mkdir(parents=True, exist_ok=True)
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0

    def _path(self, number: int) -> Path:
        return self.folder / f"bucket-{number:06}.arrows"

    def add(self, table: pa.Table) -> None:
        """Append rows; the table must have `h1`."""
        if not table.num_rows:
            return
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        if self._pending_bytes >= BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        self._pending, self._pending_bytes = [], 0
        high = table.column("h1").to_numpy() >> np.uint64(32)
        bucket = ((high * np.uint64(self.count)) >> np.uint64(32)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        borders = np.searchsorted(bucket[order], np.arange(self.count + 1))
        for number in np.flatnonzero(np.diff(borders)).tolist():
            rows = table.take(pa.array(order[borders[number] : borders[number + 1]]))
            # A file holds one IPC stream after the other: appending needs no open file per bucket.
            with self._path(number).open("ab") as file, pa.ipc.new_stream(file, rows.schema) as stream:
                stream.write_table(rows)

    def __iter__(self) -> Iterator[pa.Table]:
        """Tables in bucket order, one in memory at a time; each file is removed when the next one is asked for."""
        self.flush()
        for number in range(self.count):
            path = self._path(number)
            if not path.exists():
                continue
            parts = []
            size = path.stat().st_size
            with path.open("rb") as file:
                while file.tell() < size:
                    parts.append(pa.ipc.open_stream(file).read_all())
            table = pa.concat_tables(parts).combine_chunks()
            del parts
            yield table
            del table
            path.unlink()


def spread(token_files: Sequence[Path], source: str, sampler: Sampler, buckets: Buckets) -> None:
    """Every document of `source` goes to the buckets: once per copy, or once with state RATIO when it is left out."""
    for path in token_files:
        with open_tokens(path) as tokens:
            for batch in tokens:
                table = of_source(batch, source)
                ids = TextBatch.from_arrow(table.column("id"))
                times = sampler.times(ids)
                out = np.flatnonzero(times == 0)
                if len(out):
                    without = table.take(pa.array(out))
                    empty = pa.array([[]] * len(out), table.schema.field("tokens").type)
                    without = without.set_column(without.schema.get_field_index("tokens"), "tokens", empty)
                    buckets.add(_keyed(without, sampler.seed, 0, RATIO))
                for copy in range(int(times.max(initial=0))):
                    chosen = np.flatnonzero(times > copy)
                    rows = table if len(chosen) == table.num_rows else table.take(pa.array(chosen))
                    buckets.add(_keyed(rows, sampler.seed, copy, PACK))


def of_source(batch: pa.RecordBatch, source: str) -> pa.Table:
    """Rows of one source."""
    table = pa.Table.from_batches([batch])
    mask = pc.equal(table.column("source"), source)
    return table if pc.all(mask).as_py() else table.filter(mask)


def _keyed(table: pa.Table, seed: int, copy: int, state: int) -> pa.Table:
    h1, h2 = hash_ids(TextBatch.from_arrow(table.column("id")), seed, order_purpose(copy))
    n = table.num_rows
    columns: list[tuple[str, Any]] = [
        ("h1", pa.array(h1)),
        ("h2", pa.array(h2)),
        ("copy", pa.array(np.full(n, copy, np.int32))),
        ("state", pa.array(np.full(n, state, np.int8))),
    ]
    for name, column in columns:
        table = table.append_column(name, column)
    return table
