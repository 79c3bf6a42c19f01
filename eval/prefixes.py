"""Which token rows run behind one shared prefix: a partition of a subject's rows that processes the fewest tokens.

Rows are whole tokenised prompts; a prefix is cut where their tokens part, never where their texts do, because a tokenizer may
merge characters over any border of the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GROUP_COST = 64  # tokens' worth of a group: it ends a batch, and short prefixes are not worth that


@dataclass(frozen=True)
class Group:
    """Rows (their numbers) that share their first `prefix` tokens; prefix 0: rows that run whole."""

    prefix: int
    rows: tuple[int, ...]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two rows share."""
    length = min(len(first), len(second))
    for position in range(length):
        if first[position] != second[position]:
            return position
    return length


def partition(rows: Sequence[list[int]], limits: Sequence[int]) -> list[Group]:
    """Groups of rows so that prefixes once, plus the rest of every row, plus GROUP_COST a group, are as few tokens as possible.

    `limits[i]`: longest prefix that row i may give up (its scored positions lie behind it). Optimal among partitions of the
    rows in lexicographic order, which keeps rows with long common prefixes side by side. O(n^2) with numpy. Groups come
    in that order; rows without a prefix worth its group come last, together.
    """
    if not rows:
        return []
    order = sorted(range(len(rows)), key=lambda number: rows[number])
    limit = np.array([limits[number] for number in order], dtype=np.int64)
    shared = np.array([common(rows[a], rows[b]) for a, b in itertools.pairwise(order)], dtype=np.int64)
    count = len(order)
    best = np.zeros(count + 1, dtype=np.int64)  # best[i]: most tokens saved by the first i rows
    start = np.zeros(count + 1, dtype=np.int64)  # where the last group of that best partition begins
    reach = np.zeros(count, dtype=np.int64)  # reach[i]: longest prefix of rows i..end
    for end in range(count):
        if end:
            np.minimum(reach[:end], shared[end - 1], out=reach[:end])
        np.minimum(reach[:end], limit[end], out=reach[:end])
        reach[end] = limit[end]
        sizes = np.arange(end + 1, 0, -1)
        saved = best[: end + 1] + np.maximum((sizes - 1) * reach[: end + 1] - GROUP_COST, 0)
        start[end + 1] = int(np.argmax(saved))
        best[end + 1] = saved[start[end + 1]]
    groups: list[Group] = []
    whole: list[int] = []
    end = count
    while end:
        begin = int(start[end])
        members = order[begin:end]
        prefix = int(min(limit[begin:end].min(), shared[begin : end - 1].min(initial=np.iinfo(np.int64).max)))
        if (len(members) - 1) * prefix > GROUP_COST:
            groups.append(Group(prefix, tuple(members)))
        else:
            whole += members
        end = begin
    groups.reverse()
    return [*groups, *([Group(0, tuple(sorted(whole)))] if whole else [])]
