"""Aho-Corasick automata over bytes, as arrays for compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Machine(NamedTuple):
    """Finds all occurrences of phrases, ASCII letters without case; a kernel steps `state = moves[state + classes[byte]]`.

    `classes`: uint8 [256], byte -> column; `moves`: uint32 [states * columns], a state is the start of its row and 0
    the first. Phrases end in the states from `first_end` on only; state s is row s // columns - first_end // columns
    of `own` (int32: the phrase that ends here, or -1) and of `shorter` (int32: the row of the state that tells which
    shorter phrases end here too, or -1).
    """

    classes: npt.NDArray[np.uint8]
    moves: npt.NDArray[np.uint32]
    columns: int
    first_end: int
    own: npt.NDArray[np.int32]
    shorter: npt.NDArray[np.int32]


def build(phrases: Sequence[bytes]) -> Machine:
    """The automaton of distinct phrases, none empty, ASCII letters in lower case."""
    used = sorted({byte for phrase in phrases for byte in phrase})
    classes = np.zeros(256, np.uint8)
    for column, byte in enumerate(used, start=1):
        classes[byte] = column
        if 0x61 <= byte <= 0x7A:
            classes[byte - 32] = column
    columns = len(used) + 1
    children: list[dict[int, int]] = [{}]
    owner = [-1]
    levels: list[list[tuple[int, int, int]]] = []  # (parent, column, child) by depth
    for number, phrase in enumerate(phrases):
        state = 0
        for depth, byte in enumerate(phrase):
            column = int(classes[byte])
            child = children[state].get(column)
            if child is None:
                child = len(children)
                children[state][column] = child
                children.append({})
                owner.append(-1)
                if depth == len(levels):
                    levels.append([])
                levels[depth].append((state, column, child))
            state = child
        owner[state] = number

    states = len(children)
    own = np.array(owner, np.int32)
    moves = np.zeros((states, columns), np.uint32)
    fail, shorter = np.zeros(states, np.int64), np.full(states, -1, np.int64)
    for level in levels:
        parent, column, child = np.array(level, np.int64).T
        fail[child] = np.where(parent == 0, 0, moves[parent, column])  # as the parent's own fall-back moves
        moves[parent, column] = child
        shorter[child] = np.where(own[fail[child]] >= 0, fail[child], shorter[fail[child]])
        # Rows of this depth start as those of the states they fall back to, which are complete: they lie higher.
        moves[child] = moves[fail[child]]
    # Numbered anew, the states where a phrase ends come last, so that one comparison finds them.
    ends = (own >= 0) | (shorter >= 0)
    order = np.argsort(ends, kind="stable")
    number_of = np.argsort(order)
    first = int((~ends).sum())
    tail = order[first:]
    links = np.where(shorter[tail] >= 0, number_of[shorter[tail]] - first, -1).astype(np.int32)
    return Machine(
        classes,
        (number_of[moves[order]] * columns).astype(np.uint32).ravel(),
        columns,
        first * columns,
        own[tail],
        links,
    )
