"""Reading a back-off model from an ARPA file (the text standard of n-gram models) into arrays.

    \\data\\
    ngram 1=COUNT
    ...
    \\1-grams:
    log10 probability <tab> words separated by spaces [<tab> log10 back-off weight]
    ...
    \\end\\
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np

from data_factory.batches import F32, I32, I64, U8
from ziya.errors import UserError

_FNV = np.uint64(14695981039346656037)
_PRIME = np.uint64(1099511628211)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Words:
    """The words of a model. `data`: uint8, their bytes end to end; `offsets`: int64 [words + 1]; `slots`: int32, a
    power of two, hash table of word numbers, -1 where empty (see `find_word`)."""

    data: U8
    offsets: I64
    slots: I32

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, data: U8, offsets: I64) -> Words:
        """Index words that are all different."""
        slots = np.full(1 << max(4, (2 * len(offsets)).bit_length()), -1, np.int32)
        _fill_slots(data, offsets, slots)
        return cls(data, offsets, slots)

    def number(self, word: bytes) -> int:
        """The number of a word, -1 when the model does not have it."""
        return int(self.numbers([word])[0])

    def numbers(self, words: Sequence[bytes]) -> I32:
        """The number of each word, int32; -1 for one that the model does not have."""
        ends = np.cumsum([len(word) for word in words], dtype=np.int64)
        return np.asarray(
            _find_words(np.frombuffer(b"".join(words), np.uint8), ends, self.data, self.offsets, self.slots)
        )


@dataclass(frozen=True)
class Grams:
    """All n-grams of one order. `words`: int32 [n, order]; `probability`, `backoff`: float32 [n], log10 (back-off 0
    where the file gives none)."""

    words: I32
    probability: F32
    backoff: F32


@numba.njit(cache=True)
def hash_bytes(data, begin, end):  # type: ignore[no-untyped-def]
    """FNV-1a of data[begin:end], 64 bits, spread so that the high bits choose a slot."""
    key = _FNV
    for i in range(begin, end):
        key = (key ^ np.uint64(data[i])) * _PRIME
    return key * _SPREAD


@numba.njit(cache=True)
def find_word(text, begin, end, data, offsets, slots):  # type: ignore[no-untyped-def]
    """The number of the word text[begin:end], -1 when there is none."""
    mask = len(slots) - 1
    slot = np.int64(hash_bytes(text, begin, end) >> np.uint64(32)) & mask
    while True:
        word = np.int64(slots[slot])
        if word < 0:
            return word
        start = offsets[word]
        if offsets[word + 1] - start == end - begin:
            i = 0
            while i < end - begin and data[start + i] == text[begin + i]:
                i += 1
            if i == end - begin:
                return word
        slot = (slot + 1) & mask


@numba.njit(cache=True)
def _find_words(text, ends, data, offsets, slots):  # type: ignore[no-untyped-def]
    found = np.empty(len(ends), np.int32)
    for i in range(len(ends)):
        found[i] = find_word(text, ends[i - 1] if i else 0, ends[i], data, offsets, slots)
    return found


@numba.njit(cache=True)
def _fill_slots(data, offsets, slots):  # type: ignore[no-untyped-def]
    mask = len(slots) - 1
    for word in range(len(offsets) - 1):
        slot = np.int64(hash_bytes(data, offsets[word], offsets[word + 1]) >> np.uint64(32)) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = word


def read_arpa(path: Path) -> tuple[Words, list[Grams]]:
    """(words, most probable first; n-grams of each order, in file order). UserError when `path` is no sound ARPA
    file."""
    if not path.stat().st_size:
        raise UserError(f"{path} is not an ARPA file: it is empty")
    with path.open("rb") as file:
        lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = np.frombuffer(lines, np.uint8)
        counts = _header(lines, path)
        words, grams = _unigrams(lines, counts[0], path)
        orders = [grams]
        for order in range(2, len(counts) + 1):
            _heading(lines, order, path)
            count = counts[order - 1]
            table, values = np.empty((count, order), np.int32), np.zeros((count, 2), np.float32)
            end = _parse(data, lines.tell(), words.data, words.offsets, words.slots, table, values)
            if end < 0:
                raise _bad(path, order, -end)
            lines.seek(min(end, len(data)))
            orders.append(Grams(table, values[:, 0].copy(), values[:, 1].copy()))
        # The mapping is closed with its last array.
    return words, orders


def _bad(path: Path, order: int, line: int) -> UserError:
    return UserError(f"{path} is not a sound ARPA file: line {line} of its {order}-grams cannot be read")


def _header(lines: mmap.mmap, path: Path) -> list[int]:
    """The number of n-grams of each order; `lines` is left where the first section begins."""
    counts: list[int] = []
    while line := lines.readline():
        name, _, value = line.strip().partition(b"=")
        if name == b"ngram %d" % (len(counts) + 1) and value.isdigit() and int(value) < len(lines):
            counts.append(int(value))
        elif line.startswith(b"\\1-grams:") and counts:
            lines.seek(-len(line), 1)
            return counts
        elif name.startswith(b"ngram"):
            break
    raise UserError(f"{path} is not an ARPA file: it does not begin with \\data\\ and the counts of its n-grams")


def _heading(lines: mmap.mmap, order: int, path: Path) -> None:
    """Pass the heading of the section of an order."""
    line = b"\n"
    while line and not line.strip():
        line = lines.readline()
    if line.strip() != b"\\%d-grams:" % order:
        raise UserError(f"{path} is not a sound ARPA file: its section of {order}-grams is missing")


def _unigrams(lines: mmap.mmap, count: int, path: Path) -> tuple[Words, Grams]:
    _heading(lines, 1, path)
    rows: list[tuple[float, bytes, float]] = []
    for number in range(count):
        fields = lines.readline().split()
        try:
            probability, word, backoff = fields if len(fields) == 3 else (*fields, b"0")
            rows.append((-float(probability), word, float(backoff)))
        except ValueError:
            raise _bad(path, 1, number + 1) from None
    # The most probable first: words that are often looked up lie together.
    rows.sort()
    if len({word for _, word, _ in rows}) < count:
        raise UserError(f"{path} is not a sound ARPA file: a 1-gram is there twice")
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum([len(word) for _, word, _ in rows], out=offsets[1:])
    words = Words.of(np.frombuffer(b"".join(word for _, word, _ in rows), np.uint8), offsets)
    probabilities = np.array([-value for value, _, _ in rows], np.float64).astype(np.float32)
    backoffs = np.array([value for _, _, value in rows], np.float64).astype(np.float32)
    return words, Grams(np.arange(count, dtype=np.int32)[:, None], probabilities, backoffs)


@numba.njit(cache=True)
def _number(data, i):  # type: ignore[no-untyped-def]
    """(the decimal number at data[i:], where it ends, itself i when there is none). At most 18 digits count, which is
    more than a float32 holds."""
    start = i
    negative = i < len(data) and data[i] == 45
    i += negative
    digits, power, seen, point = np.int64(0), 0, 0, False
    while i < len(data) and (48 <= data[i] <= 57 or (data[i] == 46 and not point)):
        if data[i] == 46:
            point = True
        else:
            seen += 1
            if digits < 10**17:
                digits = digits * 10 + (data[i] - 48)
                power -= point
            else:
                power += not point
        i += 1
    if seen == 0:
        return 0.0, start
    if i + 1 < len(data) and data[i] in (69, 101):
        j = i + 1
        down = data[j] == 45
        j += data[j] in (43, 45)
        exponent = 0
        while j < len(data) and 48 <= data[j] <= 57:
            exponent = min(exponent * 10 + (data[j] - 48), 9999)
            j += 1
        power += -exponent if down else exponent
        i = j
    # Powers of ten up to 10^22 are exact in float64, so that one rounding remains.
    value = np.float64(digits)
    while power < 0:
        step = min(-power, 22)
        value /= 10.0**step
        power += step
        if value == 0.0:
            break
    while power > 0 and value != 0.0:
        step = min(power, 22)
        value *= 10.0**step
        power -= step
        if value > 1e300:
            break
    return (-value if negative else value), i


@numba.njit(cache=True)
def _parse(data, at, word_data, word_offsets, slots, words, values):  # type: ignore[no-untyped-def]
    """Fill `words` [n, order] and `values` [n, 2] from the lines at `at`; returns where they end, or -(line) of the
    first bad one."""
    order = words.shape[1]
    for row in range(len(words)):
        value, i = _number(data, at)
        if i == at or i >= len(data) or data[i] not in (9, 32):
            return -(row + 1)
        values[row, 0] = value
        for column in range(order):
            begin = i + 1
            i = begin
            while i < len(data) and data[i] not in (9, 10, 13, 32):
                i += 1
            word = find_word(data, begin, i, word_data, word_offsets, slots)
            if word < 0 or i >= len(data):
                return -(row + 1)
            words[row, column] = word
            if column + 1 < order and data[i] not in (9, 32):
                return -(row + 1)
        if data[i] in (9, 32):
            begin = i + 1
            value, i = _number(data, begin)
            if i == begin:
                return -(row + 1)
            values[row, 1] = value
        if i < len(data) and data[i] == 13:
            i += 1
        if i < len(data) and data[i] != 10:
            return -(row + 1)
        at = i + 1
    return at
