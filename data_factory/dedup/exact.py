"""URL and exact stages: of the documents that share a 128-bit key, the first `copies` in the total order go on, the
others lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_factory.dedup.order import by, external_sort
from data_factory.dedup.rows import Rows

KEYED = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("rank", "<i8")])
BEATEN = np.dtype([("rank", "<i8"), ("winner", "<i8"), ("stage", "u1"), ("value", "<f4")])  # winner: a rank


def same_key(
    rows: Iterable[Rows], stage: int, copies: int, status: npt.NDArray[np.uint8], folder: Path, memory_rows: int
) -> Iterator[Rows]:
    """Yield the losers (BEATEN) among `rows` (KEYED) and set `status[rank] = stage` for each.

    A loser names the first document with its key. The key (0, 0) never competes. Any order of `rows`; memory as in
    `external_sort`.
    """
    last_hi = last_lo = np.uint64(0)
    first, seen = -1, 0
    for chunk in external_sort(rows, by("hi", "lo", "rank"), folder, memory_rows):
        hi, lo, rank = chunk["hi"], chunk["lo"], chunk["rank"]
        starts = np.empty(len(chunk), bool)
        starts[1:] = (hi[1:] != hi[:-1]) | (lo[1:] != lo[:-1])
        starts[0] = first < 0 or hi[0] != last_hi or lo[0] != last_lo
        group = np.cumsum(starts)  # 0: goes on from the chunk before
        heads = np.flatnonzero(starts)
        head_rank = np.concatenate([[first], rank[heads]])
        place = np.arange(len(chunk)) - np.concatenate([[-seen], heads])[group]
        losing = (place >= copies) & ((hi != 0) | (lo != 0))
        beaten = np.zeros(int(losing.sum()), BEATEN)
        beaten["rank"] = rank[losing]
        beaten["winner"] = head_rank[group[losing]]
        beaten["stage"] = stage
        status[beaten["rank"]] = stage
        last_hi, last_lo, first, seen = hi[-1], lo[-1], int(head_rank[group[-1]]), int(place[-1]) + 1
        if len(beaten):
            yield beaten
