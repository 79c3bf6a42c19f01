"""n-grams of units over whole UTF-8 buffers: does this text hold those texts? Shared by the contamination check and by
the data factory's decontamination.

A **unit** is one CJK character (Han, kana, Hangul syllable), one word (letters and marks of any other script) or one
number (digits). Everything else separates and is ignored, so neither line breaks nor punctuation nor the letters'
frame "A." can hide a copy behind another layout (the frame's letter itself is a unit). Letters are lower-cased by
code point, full-width ASCII letters and digits count as the plain ones (the part of NFKC that Chinese text needs);
nothing else is normalised: Traditional and Simplified characters differ, and so do composed and decomposed accents.
"12.5" is two numbers and "gsm8k" three units, because layouts differ in what they put between.

Why such units: whitespace words see 2 to 3 % of Chinese exam questions, and one character a unit makes ten English
letters an n-gram.

An n-gram is compared by a 64-bit polynomial hash of mixed unit hashes, not by its text. Two different n-grams agree with
probability about 2^-64; a scan of S units against K n-grams meets K * S / 2^64 false ones in expectation: 0.3 for five
million n-grams and a trillion units. A text is reported when most of its n-grams are met, so hits are not verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

LENGTH = 10  # units of an n-gram
SHARED_BY = 3  # n-grams of more items than this are boilerplate

_BLOCK = 512  # hashes that are looked up at a time
_POINTS = 0x40000  # code points with a class; later ones are tags and private use
_SEPARATOR, _WORD, _NUMBER, _SINGLE = 0, 1, 2, 3  # words and numbers are runs: 0 < class < _SINGLE
_CJK = (
    (0x3005, 0x3008), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7B0),
    (0xF900, 0xFB00), (0xFF66, 0xFFA0), (0x20000, 0x40000),
)  # fmt: skip

_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_START, _STEP = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_SINGLE_SALT = np.uint64(0x5851F42D4C957F2D)  # a character as a unit is not the word of that one character


@cache
def unit_table() -> npt.NDArray[np.uint32]:
    """uint32 [0x40000]: code point -> (code point that it counts as) * 4 + class (0 separator, 1 word, 2 number, 3 single)."""
    import unicodedata

    table = np.zeros(_POINTS, np.uint32)
    for point in range(0x2FA20):  # nothing but Han behind it, set below
        kind = unicodedata.category(chr(point))
        if kind[0] in "LM":
            lower = chr(point).lower()
            table[point] = (ord(lower) if len(lower) == 1 else point) << 2 | _WORD
        elif kind == "Nd":
            table[point] = point << 2 | _NUMBER
    for first, last in _CJK:
        points = np.arange(first, last, dtype=np.uint32)
        letters = (table[first:last] != 0) | (points >= 0x20000)
        table[first:last] = np.where(letters, points << 2 | _SINGLE, 0)
    for wide in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B)):
        table[wide] = table[wide - 0xFEE0]
    table.setflags(write=False)
    return table


@numba.njit(cache=True, inline="always")
def _mix(value):  # type: ignore[no-untyped-def]
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, inline="always")
def _decode(data, at, end):  # type: ignore[no-untyped-def]
    """(code point, its bytes); a byte that belongs to no character is one separator."""
    byte = np.int64(data[at])
    if byte < 0x80:
        return byte, 1
    if 0xE0 <= byte < 0xF0 and at + 2 < end:  # Han first: most characters of more than one byte
        second, third = np.int64(data[at + 1]), np.int64(data[at + 2])
        if (second & 0xC0 == 0x80) and (third & 0xC0 == 0x80):
            return (byte & 0x0F) << 12 | (second & 0x3F) << 6 | (third & 0x3F), 3
    elif 0xC0 <= byte < 0xE0 and at + 1 < end:
        second = np.int64(data[at + 1])
        if second & 0xC0 == 0x80:
            return (byte & 0x1F) << 6 | (second & 0x3F), 2
    elif byte >= 0xF0 and at + 3 < end:
        second, third, fourth = np.int64(data[at + 1]), np.int64(data[at + 2]), np.int64(data[at + 3])
        if (second & 0xC0 == 0x80) and (third & 0xC0 == 0x80) and (fourth & 0xC0 == 0x80):
            return (byte & 0x07) << 18 | (second & 0x3F) << 12 | (third & 0x3F) << 6 | (fourth & 0x3F), 4
    return np.int64(0), 1


@numba.njit(cache=True, inline="always")
def _bits_of(spread, words):  # type: ignore[no-untyped-def]
    """(word, two bits in it): the filter that settles most n-grams with one read of a table that caches hold."""
    two = np.uint64(1) << (spread >> np.uint64(58)) | np.uint64(1) << (spread >> np.uint64(52) & np.uint64(63))
    return np.int64(spread >> np.uint64(24)) & (words - 1), two


@numba.njit(cache=True)
def _fill(slots, numbers, bits, keys):  # type: ignore[no-untyped-def]
    mask = len(slots) - 1
    for number in range(len(keys)):
        spread = _mix(keys[number])
        slot = np.int64(spread) & mask
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot], numbers[slot] = keys[number], number
        word, two = _bits_of(spread, len(bits))
        bits[word] |= two


@numba.njit(cache=True)
def _look_up(block, waiting, text, slots, numbers, bits, stamps, stamp, first, second, size):  # type: ignore[no-untyped-def]
    """Hits among block[:waiting]. In blocks, because reads that wait for memory overlap only without the walk's branches."""
    mask = len(slots) - 1
    for i in range(waiting):
        spread = _mix(block[i])
        word, two = _bits_of(spread, len(bits))
        if bits[word] & two != two:
            continue
        slot = np.int64(spread) & mask
        while slots[slot] != 0 and slots[slot] != block[i]:
            slot = (slot + 1) & mask
        if slots[slot] == 0:
            continue
        number = numbers[slot]
        if stamps[number] != stamp + text:
            stamps[number] = stamp + text
            if size < len(second):
                first[size], second[size] = text, number
            size += 1
    return size


@numba.njit(cache=True)
def _walk(data, offsets, table, length, slots, numbers, bits, stamps, stamp, ends, units, first, second):  # type: ignore[no-untyped-def]
    """The one pass over texts: split units, roll the hash, look it up.

    With slots: (text, n-gram) of every hit that is new in its text goes into `first`, `second` as far as they reach.
    Without: every hash goes into `second`. `ends` [n]: where each text's output ends; `units` [n]: its units.
    Returns the size of the output. Texts are numbered from `stamp` in `stamps`, which says who met an n-gram last.
    """
    collecting = len(slots) == 0
    ring = np.zeros(length, np.uint64)
    block = np.zeros(_BLOCK, np.uint64)
    oldest = np.uint64(1)
    for _ in range(length):
        oldest *= _BASE
    size = 0
    for text in range(len(offsets) - 1):
        at, end = offsets[text], offsets[text + 1]
        rolling, count, place, waiting = np.uint64(0), 0, 0, 0
        ring[:] = 0
        word, kind = _START, np.uint32(0)  # of the word or number that is being read; kind 0: none
        while at <= end:  # one step past the end: it closes the last unit
            value, step = np.uint32(0), 1
            if at < end:
                point, step = _decode(data, at, end)
                value = table[point] if point < _POINTS else np.uint32(0)
            at += step
            now = value & np.uint32(3)
            if now == kind and 0 < now < _SINGLE:
                word = (word ^ np.uint64(value)) * _STEP
                continue
            for turn in range(2):  # the unit that ended here, then the character that is a unit by itself
                if turn == 0:
                    if kind == _SEPARATOR:
                        continue
                    unit = _mix(word)
                else:
                    if now != _SINGLE:
                        continue
                    unit = _mix(np.uint64(value) * _STEP ^ _SINGLE_SALT)
                rolling = rolling * _BASE + unit - ring[place] * oldest
                ring[place] = unit
                place = place + 1 if place + 1 < length else 0
                count += 1
                if count < length:
                    continue
                if collecting:
                    second[size] = rolling
                    size += 1
                    continue
                block[waiting] = rolling
                waiting += 1
                if waiting == _BLOCK:
                    size = _look_up(block, waiting, text, slots, numbers, bits, stamps, stamp, first, second, size)
                    waiting = 0
            if 0 < now < _SINGLE:
                word, kind = (_START ^ np.uint64(value)) * _STEP, now
            else:
                kind = np.uint32(0)
        size = _look_up(block, waiting, text, slots, numbers, bits, stamps, stamp, first, second, size)
        ends[text] = size
        units[text] = count
    return size


def utf8(texts: Sequence[str]) -> tuple[U8, I64]:
    """Texts as one buffer and offsets, int64 [n + 1]; lone surrogates (JSON can hold them) become question marks."""
    encoded = [text.encode(errors="replace") for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(item) for item in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def _plain(data: U8) -> U8:
    view = data.view()
    view.flags.writeable = False  # one compiled kernel, wherever the bytes come from
    return view


def hashes(data: U8, offsets: I64, length: int = LENGTH) -> tuple[U64, I64, I64]:
    """n-grams of texts data[offsets[i]:offsets[i + 1]].

    Returns uint64 hashes of all texts end to end (repeats stay), int64 [n + 1] offsets of the texts in them, and int64 [n]
    units of each text. A text of fewer than `length` units has none.
    """
    n = len(offsets) - 1
    out, ends, units = np.empty(int(offsets[-1] - offsets[0]), np.uint64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    no_slots, none = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    _walk(
        _plain(data), offsets, unit_table(), length, no_slots, np.zeros(0, np.int32), no_slots, none, 0, ends, units, none,
        out,
    )  # fmt: skip
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    return out[: starts[-1]].copy(), starts, units


@dataclass(frozen=True)
class Hits:
    """Which n-grams stand in which documents, each pair once, ordered by document: `document`, `ngram` int64 [h].

    `units`: int64 [documents], units of each document.
    """

    document: I64
    ngram: I64
    units: I64


class Index:
    """The n-grams of a set of items, to be found in documents.

    `items`: their number; `units` int64 [items]; `removed` int64 [items]: distinct n-grams of the item that are
    boilerplate; `total` int64 [items]: distinct n-grams that count. An item with `total` 0 (shorter than an n-gram, or
    boilerplate throughout) cannot be checked and never has a coverage.
    """

    def __init__(self, keys: U64, first: I64, owners: I32, total: I64, removed: I64, units: I64, length: int) -> None:
        """Use `build` or `load`. `keys` [k] distinct hashes; the items of n-gram j are owners[first[j]:first[j + 1]]."""
        self.keys, self.first, self.owners, self.total, self.removed = keys, first, owners, total, removed
        self.units, self.length = units, length
        size = 1 << max(4, int(2 * len(keys)).bit_length())
        self._slots, self._numbers = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
        self._bits = np.zeros(size // 8, np.uint64)  # 16 to 32 bits an n-gram: 1 % of the others pass the filter
        _fill(self._slots, self._numbers, self._bits, keys)
        self._stamps, self._stamp = np.full(len(keys), -1, np.int64), 0

    @classmethod
    def build(cls, texts: Sequence[str], shared_by: int = SHARED_BY, length: int = LENGTH) -> Index:
        """Index the n-grams of `texts` that stand in at most `shared_by` of them."""
        found, starts, units = hashes(*utf8(texts), length)
        owner = np.repeat(np.arange(len(texts), dtype=np.int64), np.diff(starts))
        order = np.lexsort((owner, found))
        found, owner = found[order], owner[order]
        new_key = np.ones(len(found), bool)
        new_key[1:] = found[1:] != found[:-1]
        new_pair = new_key.copy()
        new_pair[1:] |= owner[1:] != owner[:-1]
        found, owner, new_key = found[new_pair], owner[new_pair], new_key[new_pair]
        first = np.append(np.flatnonzero(new_key), len(found)).astype(np.int64)
        keep = np.diff(first) <= shared_by
        kept_pairs = np.repeat(keep, np.diff(first))
        total = np.bincount(owner[kept_pairs], minlength=len(texts)).astype(np.int64)
        removed = np.bincount(owner[~kept_pairs], minlength=len(texts)).astype(np.int64)
        kept_first = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.diff(first)[keep])]).astype(np.int64)
        keys = found[first[:-1]][keep]
        return cls(keys, kept_first, owner[kept_pairs].astype(np.int32), total, removed, units, length)

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.total)

    def arrays(self) -> dict[str, Any]:
        """What `load` needs, as arrays to store."""
        names = ("keys", "first", "owners", "total", "removed", "units")
        return {**{name: getattr(self, name) for name in names}, "length": np.int64(self.length)}

    @classmethod
    def load(cls, arrays: Any) -> Index:
        """From what `arrays` gave (a mapping, such as an opened .npz)."""
        keys, first, owners = arrays["keys"], arrays["first"], arrays["owners"]
        return cls(keys, first, owners, arrays["total"], arrays["removed"], arrays["units"], int(arrays["length"]))

    def scan(self, data: U8, offsets: I64) -> Hits:
        """Find the n-grams in documents data[offsets[i]:offsets[i + 1]]; one pass over the bytes."""
        n = len(offsets) - 1
        capacity = (1 << 12) + int(offsets[-1] - offsets[0]) // 16  # more hits than that cost a second pass
        ends, units = np.zeros(n, np.int64), np.zeros(n, np.int64)
        while True:
            document, ngram = np.empty(capacity, np.int64), np.empty(capacity, np.uint64)
            count = _walk(
                _plain(data), offsets, unit_table(), self.length, self._slots, self._numbers, self._bits, self._stamps,
                self._stamp, ends, units, document, ngram,
            )  # fmt: skip
            self._stamp += n
            if count <= capacity:
                return Hits(document[:count].copy(), ngram[:count].astype(np.int64), units)
            capacity = count

    def pairs(self, hits: Hits) -> tuple[I64, I64, I64]:
        """(document, item, number of the item's n-grams that the document holds), int64 [p] each, sorted by both."""
        counts = (self.first[1:] - self.first[:-1])[hits.ngram]
        if not counts.sum():
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        inside = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        item = self.owners[np.repeat(self.first[:-1][hits.ngram], counts) + inside].astype(np.int64)
        key, met = np.unique(np.repeat(hits.document, counts) * self.items + item, return_counts=True)
        return key // self.items, key % self.items, met.astype(np.int64)

    def coverage(self, seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """float64 [items]: share of each item's n-grams among the `seen` ones (bool [k]); NaN where nothing can be checked."""
        met = np.bincount(self.owners[np.repeat(seen, np.diff(self.first))], minlength=self.items)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(met / self.total)

    def best(self, data: U8, offsets: I64) -> tuple[npt.NDArray[np.float32], I64]:
        """Per document the largest share of one item's n-grams that it holds, float32 [n], and that item, int64 [n].

        Of equals the first item; without any hit 0 and -1.
        """
        n = len(offsets) - 1
        share, which = np.zeros(n, np.float32), np.full(n, -1, np.int64)
        document, item, met = self.pairs(self.scan(data, offsets))
        value = (met / self.total[item]).astype(np.float32)
        order = np.lexsort((item, -value, document))
        document, item, value = document[order], item[order], value[order]
        rows, at = np.unique(document, return_index=True)
        share[rows], which[rows] = value[at], item[at]
        return share, which
