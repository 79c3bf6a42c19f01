"""Fuzzy stage: collapse equal sketches, find near pairs, then one pass in the total order.

A document is kept iff fewer than `copies` kept neighbours precede it. Nodes of the neighbour graph are the first
`copies` documents of every sketch; later ones never stand a chance (either `copies` of their sketch are kept, or one of
those lost to `copies` others that are their neighbours, too), so each is beaten by the first of its sketch, or by what
beat that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.dedup.exact import BEATEN
from data_factory.dedup.order import Key, external_sort
from data_factory.dedup.rows import FUZZY, Rows
from data_factory.dedup.simhash import EDGE


def collapse(
    rows: Iterable[Rows], names: tuple[str, ...], copies: int, folder: Path, memory_rows: int
) -> Iterator[tuple[Rows, Rows]]:
    """Split `rows` (fields `names` = the sketch, and rank) into the first `copies` of every sketch and the rest.

    Yields (nodes: rows, sorted by (sketch, rank); rest: EDGE from the first document of the sketch (a) to the later one
    (b)).
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
        yield chunk.take(np.flatnonzero(~later)), rest


@numba.njit(cache=True)
def _pass(a, b, value, near, status, copies, stage, state, best, winner, winner_value):  # type: ignore[no-untyped-def]
    """One chunk of edges sorted by (b, a). winner[i] (a rank) is set on the edge that completes `copies` for b[i], else
    -1.

    `state` int64 [4]: document in progress, whether it competes, its kept neighbours so far, the best of them; `best`
    float32 [1]: value of the edge to that one. Both go on into the next chunk.
    """
    for i in range(len(a)):
        winner[i] = -1
        if b[i] != state[0]:
            state[0] = b[i]
            state[1] = status[b[i]] == 0
            state[2] = 0
        # Every edge that ends in a[i] < b[i] has been seen: its status is final.
        if state[1] and near[i] and status[a[i]] == 0:
            if state[2] == 0:
                state[3] = a[i]
                best[0] = value[i]
            state[2] += 1
            if state[2] == copies:
                status[b[i]] = stage
                winner[i] = state[3]
                winner_value[i] = best[0]


def resolve(
    edges: Iterable[Rows], near: Callable[[Rows], Rows], copies: int, status: npt.NDArray[np.uint8]
) -> Iterator[Rows]:
    """One pass over `edges` (EDGE sorted by (b, a)) in the total order; yields the losers (BEATEN) and sets their
    `status`.

    `near`: values -> bool, which edges count. A loser names its best kept neighbour. Documents whose status is set
    already (the rest of `collapse`) neither win nor lose here.
    """
    state, best = np.array([-1, 0, 0, -1], np.int64), np.zeros(1, np.float32)
    for chunk in edges:
        a, b, value = (np.ascontiguousarray(chunk[name]) for name in ("a", "b", "value"))
        winner, winner_value = np.empty(len(a), np.int64), np.zeros(len(a), np.float32)
        _pass(a, b, value, near(value), status, copies, FUZZY, state, best, winner, winner_value)
        lost = winner >= 0
        beaten = np.zeros(int(lost.sum()), BEATEN)
        beaten["rank"], beaten["winner"], beaten["stage"], beaten["value"] = (
            b[lost],
            winner[lost],
            FUZZY,
            winner_value[lost],
        )
        yield beaten
