"""Fuzzy stage: collapse equal sketches, find near pairs, then one pass in the total order.

A document is kept iff fewer than `copies` kept neighbours precede it. Nodes of the neighbour graph are the first `copies` documents of
every sketch; later ones never stand a chance (either `copies` of their sketch are kept, or one of those lost to `copies` others that are
their neighbours, too), so each is beaten by the first of its sketch, or by what beat that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.dedup.exact import BEATEN
from data_factory.dedup.order import Key, external_sort
from data_factory.dedup.rows import FUZZY, Rows
from data_factory.dedup.simhash import EDGE


def collapse(rows: Iterable[Rows], names: tuple[str, ...], copies: int, folder: Path, memory_rows: int) -> Iterator[tuple[Rows, Rows]]:
    """Split `rows` (fields `names` = the sketch, and rank) into the first `copies` of every sketch and the rest.

    Yields (nodes: rows, sorted by (sketch, rank); rest: EDGE from the first document of the sketch (a) to the later one (b)).
    """
    key: Key = lambda chunk: (*(chunk[name] for name in names), chunk["rank"])  # noqa: E731
    last: tuple[Any, ...] | None = None
    first, seen = -1, 0
    for chunk in external_sort(rows, key, folder, memory_rows):
        starts = np.zeros(len(chunk), bool)
        for name in names:
            starts[1:] |= chunk[name][1:] != chunk[name][:-1]
        starts[0] = last != tuple(chunk[name][0] for name in names)
        group = np.cumsum(starts)
        heads = np.flatnonzero(starts)
        head_rank = np.concatenate([[first], chunk["rank"][heads]])
        place = np.arange(len(chunk)) - np.concatenate([[-seen], heads])[group]
        later = place >= copies
        rest = np.zeros(int(later.sum()), EDGE)
        rest["a"], rest["b"] = head_rank[group[later]], chunk["rank"][later]
        last = tuple(chunk[name][-1] for name in names)
        first, seen = int(head_rank[group[-1]]), int(place[-1]) + 1
        yield chunk[~later], rest


@numba.njit(cache=True)
def _pass(a, b, near, status, copies, stage, node, count, first, winner):  # type: ignore[no-untyped-def]
    """One chunk of edges sorted by (b, a): winner[i] = rank that beats b[i], set on the edge that completes `copies`; else -1.

    `node`, `count`, `first`: document in progress, its kept neighbours so far, the best of them. Returns the three to go on with.
    """
    for i in range(len(a)):
        winner[i] = -1
        if b[i] != node:
            node, count, first = b[i], 0, -1
        if near[i] and status[a[i]] == 0:  # all edges into a[i] < b[i] have been seen: its status is final
            if count == 0:
                first = i
            count += 1
            if count == copies:
                status[node] = stage
                winner[i] = 1
    return node, count, first


def resolve(edges: Iterable[Rows], near: Any, copies: int, status: npt.NDArray[np.uint8]) -> Iterator[Rows]:
    """One pass over `edges` (EDGE sorted by (b, a)) in the total order; yields the losers (BEATEN) and sets their `status`.

    `near(values) -> bool`: which edges count as duplicates. A loser names its best kept neighbour.
    """
    raise NotImplementedError
