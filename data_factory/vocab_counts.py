"""Which characters Traditional -> Simplified took out of each document, and how often characters occur in chosen ones:
what `ziya-data vocab` chooses new tokens from.

A unit keeps the differences only, document by document: few documents are converted, and what their texts held before
is the stored text plus the difference. So the characters of any set of documents can be told after the fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import I32, I64, TextBatch
from data_factory.characters import decode
from ziya.files import atomic_path

CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Differences:
    """Rows (document `row` int32, code `point` uint32, `delta` int32): the document's text held `delta` more of the
    character before its conversion than after it. Rows of a document stand together; a character may stand twice.
    """

    row: I32
    point: npt.NDArray[np.uint32]
    delta: I32

    @classmethod
    def between(cls, before: TextBatch, after: TextBatch) -> Differences:
        """The differences of two forms of the same documents, of characters outside ASCII; rows count from 0."""
        if before is after:
            return cls.joined([])
        size = (len(before.data) + len(after.data)) // 2 + 1  # characters outside ASCII have two bytes and more
        row, point, delta = np.empty(size, np.int32), np.empty(size, np.uint32), np.empty(size, np.int32)
        counts = np.zeros(CODE_POINTS, np.int32)
        n = _differences(before.data, before.offsets, after.data, after.offsets, counts, row, point, delta)
        return cls(row[:n].copy(), point[:n].copy(), delta[:n].copy())

    @classmethod
    def joined(cls, parts: Sequence[Differences]) -> Differences:
        """All parts, one behind the other."""
        empty = cls(np.zeros(0, np.int32), np.zeros(0, np.uint32), np.zeros(0, np.int32))
        each = [empty, *parts]
        return cls(*(np.concatenate([getattr(part, name) for part in each]) for name in ("row", "point", "delta")))

    def moved(self, rows: int) -> Differences:
        """The same of documents that stand `rows` rows further on."""
        return Differences(self.row + np.int32(rows), self.point, self.delta)

    def write(self, path: Path) -> None:
        """Write as one .npz file."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, row=self.row, point=self.point, delta=self.delta)

    @classmethod
    def load(cls, path: Path) -> Differences:
        """Read what `write` wrote. Raises `KeyError`, `ValueError`, `OSError` or `EOFError` for anything else."""
        with np.load(path) as arrays:
            return cls(arrays["row"], arrays["point"], arrays["delta"])

    def add_to(self, counts: I64, chosen: npt.NDArray[np.bool_]) -> None:
        """Add the differences of the documents where `chosen` (bool [documents]) holds to `counts` int64 [0x110000]."""
        here = chosen[self.row]
        np.add.at(counts, self.point[here], self.delta[here])


def add_characters(batch: TextBatch, chosen: npt.NDArray[np.bool_], counts: I64) -> None:
    """Add the occurrences of every character outside ASCII in the documents where `chosen` (bool [n]) holds to
    `counts` int64 [0x110000].
    """
    _count(batch.data, batch.offsets, chosen, counts)


@numba.njit(cache=True)
def _count(data, offsets, chosen, counts):  # type: ignore[no-untyped-def]
    for doc in range(len(offsets) - 1):
        if chosen[doc]:
            i, last = offsets[doc], offsets[doc + 1]
            while i < last:
                if data[i] < 0x80:
                    i += 1
                else:
                    point, size = decode(data, i)
                    counts[point] += 1
                    i += size


@numba.njit(cache=True)
def _differences(data, offsets, new_data, new_offsets, counts, row, point, delta):  # type: ignore[no-untyped-def]
    """`counts`: int32 zeros, left as zeros. Returns the number of rows written."""
    n = 0
    for doc in range(len(offsets) - 1):
        i, last, j, new_last = offsets[doc], offsets[doc + 1], new_offsets[doc], new_offsets[doc + 1]
        if last - i == new_last - j:
            while i < last and data[i] == new_data[j]:
                i += 1
                j += 1
            if i == last:
                continue
        touched = n
        for side in range(2):
            text = new_data if side else data
            i, last = (new_offsets[doc], new_offsets[doc + 1]) if side else (offsets[doc], offsets[doc + 1])
            while i < last:
                if text[i] < 0x80:
                    i += 1
                    continue
                character, size = decode(text, i)
                if counts[character] == 0:
                    point[touched] = character
                    touched += 1
                counts[character] += -1 if side else 1
                i += size
        for k in range(n, touched):  # those that are back at zero, and repeats, go
            character = point[k]
            if counts[character] != 0:
                row[n], point[n], delta[n] = doc, character, counts[character]
                counts[character] = 0
                n += 1
    return n
