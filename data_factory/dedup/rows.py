"""Row layouts of deduplication (packed little-endian structs, so that files of them are read back by position) and row
files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]

# One survivor of DP, AS and RF. `tier`: 0 is best. `chars`: length of T2. `date`: seconds since 1970, unknown = the
# smallest int64. `id`: the 32 hexadecimal digits as two numbers. A key of (0, 0) never competes; `shingles` 0 = not in
# the fuzzy stage.
SURVIVOR = np.dtype(
    [
        ("unit", "<u4"),
        ("row", "<u4"),
        ("tier", "u1"),
        ("chars", "<u4"),
        ("date", "<i8"),
        ("id_hi", "<u8"),
        ("id_lo", "<u8"),
        ("url_hi", "<u8"),
        ("url_lo", "<u8"),
        ("exact_hi", "<u8"),
        ("exact_lo", "<u8"),
        ("simhash", "<u8"),
        ("shingles", "<u4"),
    ]
)

# Stage that a loser lost in; 0 = kept.
KEPT, SEEN, URL, EXACT, FUZZY = 0, 1, 2, 3, 4
STAGES = ("kept", "seen", "url", "exact", "fuzzy")

# One loser. `winner`: id of the kept document that stands for it; stage SEEN: (0, number of the filter that knows the
# URL). `value`: fuzzy: Hamming distance (or estimated Jaccard similarity) to what beat it; 0 in the other stages.
LOSER = np.dtype(
    [("unit", "<u4"), ("row", "<u4"), ("stage", "u1"), ("winner_hi", "<u8"), ("winner_lo", "<u8"), ("value", "<f4")]
)

# A kept document that stands for more than one: itself and every loser of url, exact and fuzzy whose named winner it
# is.
COPIES = np.dtype([("unit", "<u4"), ("row", "<u4"), ("copies", "<u4")])

# A pair of near duplicates among survivors: `a` wins over `b` in the total order. `value` as in LOSER.
PAIR = np.dtype([("a_hi", "<u8"), ("a_lo", "<u8"), ("b_hi", "<u8"), ("b_lo", "<u8"), ("value", "<f4")])

_BLOCK = 1 << 15


class RowFile:
    """Fixed-size rows in a file: appended in order, then read by position in blocks (no memory map: resident memory
    stays what we hold).
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, width: int = 1) -> None:
        self.path, self.dtype, self.width = path, np.dtype(dtype), width
        self.size = self.dtype.itemsize * width

    def __len__(self) -> int:
        return self.path.stat().st_size // self.size if self.path.exists() else 0

    def write(self, chunks: Iterator[Rows]) -> int:
        """Write all chunks, replacing the file; returns the number of rows."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        count = 0
        with self.path.open("wb") as file:
            for chunk in chunks:
                np.ascontiguousarray(chunk, self.dtype).tofile(file)
                count += len(chunk)
        return count

    def read(self, start: int, stop: int) -> Rows:
        """Rows start to stop."""
        count = max(0, min(stop, len(self)) - start)
        rows = np.fromfile(self.path, self.dtype, count * self.width, offset=start * self.size)
        return rows.reshape(count, self.width) if self.width > 1 else rows

    def chunks(self, rows: int) -> Iterator[Rows]:
        """All rows, `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self.read(start, start + rows)

    def take(self, positions: npt.NDArray[np.int64]) -> Rows:
        """The rows at `positions`, in any order: the file is read forward, only in blocks that hold one."""
        shape = (len(positions), self.width) if self.width > 1 else (len(positions),)
        result = np.empty(shape, self.dtype)
        if len(positions) == 0:
            return result
        order = np.argsort(positions, kind="stable")
        ordered = positions[order]
        starts = np.flatnonzero(np.diff(ordered // _BLOCK, prepend=-1))
        stops = np.append(starts[1:], len(ordered))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            first = int(ordered[start])
            block = self.read(first, int(ordered[stop - 1]) + 1)
            result[order[start:stop]] = block.take(ordered[start:stop] - first, axis=0)
        return result
