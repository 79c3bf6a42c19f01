"""All pairs of 64-bit fingerprints within a Hamming distance, by sorted permuted tables (Manku, Jain, Das Sarma 2007).

The 64 bits are cut into `distance + m` blocks. Two fingerprints within `distance` differ in at most `distance` blocks,
so they agree on at least `m`: one table for every choice of m blocks, sorted with those blocks in front, brings every
pair side by side in some table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.dedup.order import by, external_sort
from data_factory.dedup.rows import Rows

NODE = np.dtype([("fingerprint", "<u8"), ("rank", "<i8")])
EDGE = np.dtype([("a", "<i8"), ("b", "<i8"), ("value", "<f4")])  # ranks, a < b
Tables = npt.NDArray[np.int64]

# Cost of one row of a sorted table (measured), and of one comparison (measured, times three: real fingerprints crowd).
_SORT_NS, _COMPARE_NS = 200.0, 10.0


def table_count(rows: int, distance: int) -> int:
    """Blocks in front (m) with the least estimated time for `rows` fingerprints.

    Distance 3: m = 1 (4 tables of 16 bits) to about 2e6 rows, m = 2 (10 tables of 25 or 26 bits) to about 1e9, then m =
    3 (20 of 32).
    """

    def cost(m: int) -> float:
        bucket = rows / math.pow(2.0, 64 * m / (distance + m))
        return math.comb(distance + m, m) * (_SORT_NS + _COMPARE_NS * bucket)

    return min(range(1, 5), key=cost)


def tables(distance: int, m: int) -> tuple[Tables, npt.NDArray[np.uint64]]:
    """Tables for `distance` with `m` blocks in front.

    Returns (moves int64 [tables, blocks, 2]: (first bit, bits) of every block, most significant of the permuted value
    first; masks uint64 [tables]: the bits that a bucket of the table agrees on).
    """
    blocks = distance + m
    sizes = [64 // blocks + (i < 64 % blocks) for i in range(blocks)]
    firsts = [sum(sizes[:i]) for i in range(blocks)]
    moves, masks = [], []
    for chosen in combinations(range(blocks), m):
        rest = [i for i in range(blocks) if i not in chosen]
        moves.append([(firsts[i], sizes[i]) for i in (*chosen, *rest)])
        masks.append(sum(((1 << sizes[i]) - 1) << firsts[i] for i in chosen))
    return np.array(moves, np.int64), np.array(masks, np.uint64)


@numba.njit(cache=True)
def _permute(values, moves):  # type: ignore[no-untyped-def]
    out = np.zeros(len(values), np.uint64)
    for i in range(len(values)):
        value = values[i]
        result = np.uint64(0)
        for b in range(len(moves)):
            bits = np.uint64(moves[b, 1])
            mask = np.uint64(0xFFFFFFFFFFFFFFFF) if bits == 64 else (np.uint64(1) << bits) - np.uint64(1)
            part = (value >> np.uint64(moves[b, 0])) & mask
            result = part if bits == 64 else (result << bits) | part
        out[i] = result
    return out


@numba.njit(cache=True, inline="always")
def _ones(x):  # type: ignore[no-untyped-def]
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@numba.njit(cache=True)
def _scan(values, ranks, masks, t, distance, i, j, a, b, value):  # type: ignore[no-untyped-def]
    """Fill a, b, value with the pairs of table `t` (rows sorted by permuted value) from position (i, j) on.

    Returns (pairs written, i, j to go on from; i = number of rows at the end). A pair that an earlier table shows is
    left to it.
    """
    n = len(values)
    capacity = len(a)
    count = 0
    limit = np.uint64(distance)
    mask = masks[t]
    while i < n:
        x = values[i]
        while j < n and ((values[j] ^ x) & mask) == 0:
            difference = values[j] ^ x
            bits = _ones(difference)
            if bits <= limit:
                first = True
                for k in range(t):
                    if (difference & masks[k]) == 0:
                        first = False
                        break
                if first:
                    if count == capacity:
                        return count, i, j
                    a[count] = min(ranks[i], ranks[j])
                    b[count] = max(ranks[i], ranks[j])
                    value[count] = bits
                    count += 1
            j += 1
        i += 1
        j = i + 1
    return count, i, j


def pairs(
    nodes: Callable[[], Iterable[Rows]], rows: int, distance: int, folder: Path, memory_rows: int, m: int | None = None
) -> Iterator[Rows]:
    """Every pair of `nodes` (NODE, `rows` in all, read once a table) within `distance`, once, as EDGE, in no promised
    order.

    `m`: blocks in front (default: `table_count`); it changes the time, never the set of pairs. Memory: as
    `external_sort`, and one bucket (fingerprints that agree on the front bits of a table) at a time.
    """
    moves, masks = tables(distance, m or table_count(rows, distance))
    keyed = np.dtype([("key", "<u8"), *NODE.descr])
    for t in range(len(moves)):

        def permuted(t: int = t) -> Iterator[Rows]:
            for chunk in nodes():
                out = np.empty(len(chunk), keyed)
                out["fingerprint"], out["rank"] = chunk["fingerprint"], chunk["rank"]
                out["key"] = _permute(np.ascontiguousarray(chunk["fingerprint"]), moves[t])
                yield out

        carried = np.empty(0, keyed)
        for chunk in external_sort(permuted(), by("key"), folder, memory_rows):
            joined = np.concatenate([carried, chunk]) if len(carried) else chunk
            # The last bucket may go on in the next chunk: hold it back.
            open_from = _tail(joined["fingerprint"], masks[t])
            yield from _found(joined[:open_from], masks, t, distance, memory_rows)
            carried = joined[open_from:]
        yield from _found(carried, masks, t, distance, memory_rows)


def _tail(fingerprints: npt.NDArray[np.uint64], mask: np.uint64) -> int:
    """Start of the last bucket of sorted rows."""
    different = np.flatnonzero((fingerprints ^ fingerprints[-1]) & mask)
    return int(different[-1]) + 1 if len(different) else 0


def _found(rows: Rows, masks: npt.NDArray[np.uint64], t: int, distance: int, memory_rows: int) -> Iterator[Rows]:
    values, ranks = np.ascontiguousarray(rows["fingerprint"]), np.ascontiguousarray(rows["rank"])
    capacity = min(memory_rows, 1 << 20)
    a, b, value = np.empty(capacity, np.int64), np.empty(capacity, np.int64), np.empty(capacity, np.float32)
    i, j = 0, 1
    while i < len(values):
        found: Any = _scan(values, ranks, masks, t, distance, i, j, a, b, value)
        count, i, j = found
        if count:
            edges = np.empty(count, EDGE)
            edges["a"], edges["b"], edges["value"] = a[:count], b[:count], value[:count]
            yield edges
