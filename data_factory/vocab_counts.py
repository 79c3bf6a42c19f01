"""Characters of a batch and how often they occur: what `ziya-data vocab` chooses new tokens from.

Counted on texts before Traditional -> Simplified, so that Traditional characters can enter a vocabulary too.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import I64, TextBatch
from data_factory.characters import decode

CODE_POINTS = 0x110000


@numba.njit(cache=True)
def _count(data, counts):  # type: ignore[no-untyped-def]
    """Add one to counts[code point] for every character of `data` at or above U+0080."""
    i, n = 0, len(data)
    while i < n:
        if data[i] < 0x80:
            i += 1
            continue
        point, size = decode(data, i)
        counts[point] += 1
        i += size


def count_characters(batch: TextBatch) -> tuple[npt.NDArray[np.uint32], I64]:
    """Occurrences of every character outside ASCII in a whole batch.

    Returns (code points uint32 [m], ascending; counts int64 [m], all above 0). Counts of several batches add up to
    the counts of the joined batch, in any order.
    """
    counts = np.zeros(CODE_POINTS, np.int64)
    _count(batch.data[batch.offsets[0] : batch.offsets[-1]], counts)
    points = np.flatnonzero(counts)
    return points.astype(np.uint32), counts[points]
