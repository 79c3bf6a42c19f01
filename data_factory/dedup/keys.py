"""Keys of T2: 128-bit exact keys, 64-bit simhash fingerprints, MinHash signatures (URL keys are in `url_keys`)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import Spans, TextBatch
from data_factory.characters import (
    CONTROL,
    DIGIT,
    EMOJI,
    LETTER,
    PUNCTUATION,
    SPACE,
    SYMBOL,
    decode,
    encode,
    flags_of,
    lower_table,
    table,
)
from data_factory.config import Fuzzy
from data_factory.dedup.hashing import SEED_SHORT_TEXT, SEED_TEXT, mix64, murmur128_buffer
from data_factory.dedup.url_keys import url_keys

__all__ = ["exact_keys", "minhash", "simhash", "url_keys"]

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

SHORT_KEY = 20  # characters; below, what is left after stripping says too little (":-)" and "!" must differ)
STRIPPED = PUNCTUATION | SYMBOL | SPACE | EMOJI | CONTROL
MINHASH_SEED, MINHASH_SCHEME = 1, "affine32"

ONE, TWO = np.uint64(1), np.uint64(2)
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: base of the rolling hash over tokens
_WORD = np.uint64(0xD6E8FEB86659FD93)  # odd: base of the hash over the characters of a word


@cache
def ascii_keys(dropped: int, zero: int) -> npt.NDArray[np.uint8]:
    """uint8 [128]: what a key text holds for each byte of ASCII: 0 (nothing) for characters with a flag in `dropped`,
    which must hold CONTROL; "0" for those with a flag in `zero`; else the lower-case form.
    """
    flags, lower = table()[:128], lower_table()[:128]
    kept = np.where(flags & zero, ord("0"), lower)
    keys: npt.NDArray[np.uint8] = np.where(flags & dropped, 0, kept).astype(np.uint8)
    keys.setflags(write=False)
    return keys


@numba.njit(cache=True)
def _strip(data, begin, end, starts, ends, dropped, ascii_key, flags, lower, out):  # type: ignore[no-untyped-def]
    """Key text of data[begin:end] into `out`: characters with a flag in `dropped` are left out, the others lower-cased.

    `starts`, `ends`: protected byte ranges relative to `begin`, copied as they are. Returns (bytes, characters)
    written.
    """
    o = 0
    count = 0
    i = begin
    span = 0
    while i < end:
        while span < len(starts) and begin + ends[span] <= i:
            span += 1
        if span < len(starts) and begin + starts[span] <= i:
            while i < begin + ends[span]:
                out[o] = data[i]
                count += (data[i] & 0xC0) != 0x80
                o += 1
                i += 1
            continue
        limit = end if span >= len(starts) else min(end, begin + starts[span])
        while i < limit:
            # unsigned positions: signed ones are checked for being negative at every access
            u, v, stop = np.uint64(i), np.uint64(o), np.uint64(limit)
            while u < stop:
                byte = data[u]
                if byte < 0x80:
                    value = ascii_key[byte]
                    out[v] = value
                    v += np.uint64(value != 0)
                    count += value != 0
                    u += ONE
                elif 0xE5 <= byte <= 0xE9:  # U+5000 to U+9FFF: Han, which is in no class that is dropped, without case
                    out[v], out[v + ONE], out[v + TWO] = byte, data[u + ONE], data[u + TWO]
                    v += TWO + ONE
                    count += 1
                    u += TWO + ONE
                else:
                    break
            i, o = numba.int64(u), numba.int64(v)
            if i >= limit:
                break
            point, size = decode(data, i)
            i += size
            if flags_of(flags, point) & dropped:
                continue
            if point < 0x20000:
                point = lower[point]
            o = encode(out, o, point)
            count += 1
    return o, count


@numba.njit(cache=True)
def _exact(  # type: ignore[no-untyped-def]
    data,
    offsets,
    rows,
    starts,
    ends,
    flags,
    lower,
    stripped,
    space,
    ascii_long,
    ascii_short,
    short,
    seed_long,
    seed_short,
):
    n = len(offsets) - 1
    high = np.zeros(n, np.uint64)
    low = np.zeros(n, np.uint64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    words = np.empty((longest + longest // 2 + 12) >> 3, np.uint64)  # lower-casing may lengthen two bytes to three
    out = words.view(np.uint8)
    for i in range(n):
        a, b = rows[i], rows[i + 1]
        seed = seed_long
        begin, end = offsets[i], offsets[i + 1]
        size, count = _strip(data, begin, end, starts[a:b], ends[a:b], stripped, ascii_long, flags, lower, out)
        if count < short:
            seed = seed_short
            size, count = _strip(data, begin, end, starts[a:b], ends[a:b], space, ascii_short, flags, lower, out)
        if size > 0:
            high[i], low[i] = murmur128_buffer(words, size, seed)
    return high, low


def exact_keys(t2: TextBatch, protected: Spans) -> tuple[U64, U64]:
    """128-bit key of each text without punctuation, emoji, symbols, whitespace and case, as (high, low) uint64 [n].

    Digits stay: pages that differ in a number differ. Case means the one-character lower-case form. Bytes inside
    `protected` spans are kept as they are. A key text of fewer than 20 characters is replaced by the text that keeps
    its symbols (without whitespace and controls, lower-case). A text with nothing left has the key (0, 0), which never
    competes. Rule X02 with Ziya2's symbol removal.
    """
    rows = protected.row_offsets(len(t2))
    result: tuple[U64, U64] = _exact(
        t2.data,
        t2.offsets,
        rows,
        protected.start,
        protected.end,
        table(),
        lower_table(),
        STRIPPED,
        SPACE | CONTROL,
        ascii_keys(STRIPPED, 0),
        ascii_keys(SPACE | CONTROL, 0),
        SHORT_KEY,
        SEED_TEXT,
        SEED_SHORT_TEXT,
    )
    return result


@numba.njit(cache=True)
def _tokens(data, begin, end, is_zh, ascii_key, flags, lower, out):  # type: ignore[no-untyped-def]
    """Token hashes of data[begin:end] into `out` (uint64); returns how many. zh: one a letter or digit; else one a run
    of them.
    """
    m, i, stop = np.uint64(0), np.uint64(begin), np.uint64(end)  # unsigned: see `_strip`
    word = np.uint64(0)
    inside = False
    while i < stop:
        byte = data[i]
        if byte < 0x80:
            point = numba.int32(ascii_key[byte])  # what is not stripped of ASCII is a letter or a digit
            is_token = point != 0
            i += ONE
        elif 0xE5 <= byte <= 0xE9:  # U+5000 to U+9FFF: Han
            point = numba.int32(byte & 0x0F) << 12 | numba.int32(data[i + ONE] & 0x3F) << 6 | (data[i + TWO] & 0x3F)
            is_token = True
            i += TWO + ONE
        else:
            point, size = decode(data, numba.int64(i))
            i += np.uint64(size)
            is_token = (flags_of(flags, point) & (LETTER | DIGIT)) != 0
            if is_token and point < 0x20000:
                point = lower[point]
        if is_token:
            if is_zh:
                out[m] = mix64(np.uint64(point))
                m += ONE
            else:
                word = (word + np.uint64(point)) * _WORD
                inside = True
        elif inside:
            out[m] = mix64(word)
            m += ONE
            word = np.uint64(0)
            inside = False
    if inside:
        out[m] = mix64(word)
        m += ONE
    return numba.int64(m)


@numba.njit(cache=True)
def _windows(tokens, m, window):  # type: ignore[no-untyped-def]
    """Hashes of all runs of `window` tokens, the last included, in place; returns how many (none when m < window)."""
    if m < window:
        return 0
    last = np.uint64(1)
    for _ in range(window):
        last *= _BASE
    # value = sum token[i] * BASE^(window - 1 - i) mod 2^64, rolled; tokens[i] is read as the outgoing one before it is
    # overwritten.
    value = np.uint64(0)
    for i in range(window):
        value = value * _BASE + tokens[i]
    for i in range(m - window + 1):
        outgoing = tokens[i]
        tokens[i] = mix64(value)
        if i + window < m:
            value = value * _BASE + tokens[i + window] - outgoing * last
    return m - window + 1


@numba.njit(cache=True)
def _longest(offsets):  # type: ignore[no-untyped-def]
    longest = 0
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    return longest


@numba.njit(cache=True, inline="always")
def _add3(a, b, c):  # type: ignore[no-untyped-def]
    """(carry, sum) of three one-bit numbers in each of 64 lanes."""
    half = a ^ b
    return (a & b) | (half & c), half ^ c


@numba.njit(cache=True)
def _fingerprint(hashes, m, planes):  # type: ignore[no-untyped-def]
    """Majority bit of every position over hashes[:m]. `planes`: uint64 [32], scratch: bit b of planes[k] is binary digit
    k of the number of hashes that have bit b (64 counters side by side; a tree of adders feeds eight hashes at a time).
    """
    planes[:] = 0
    ones = twos = fours = np.uint64(0)
    i = 0
    while i + 8 <= m:
        two_a, ones = _add3(ones, hashes[i], hashes[i + 1])
        two_b, ones = _add3(ones, hashes[i + 2], hashes[i + 3])
        four_a, twos = _add3(twos, two_a, two_b)
        two_a, ones = _add3(ones, hashes[i + 4], hashes[i + 5])
        two_b, ones = _add3(ones, hashes[i + 6], hashes[i + 7])
        four_b, twos = _add3(twos, two_a, two_b)
        carry, fours = _add3(fours, four_a, four_b)
        k = 3
        while carry:
            planes[k], carry = planes[k] ^ carry, planes[k] & carry
            k += 1
        i += 8
    planes[0], planes[1], planes[2] = ones, twos, fours
    while i < m:
        carry = hashes[i]
        k = 0
        while carry:
            planes[k], carry = planes[k] ^ carry, planes[k] & carry
            k += 1
        i += 1
    # all 64 counters are compared with m // 2 at once, from the highest digit down
    above = np.uint64(0)
    equal = ~np.uint64(0)
    for k in range(31, -1, -1):
        if (m >> 1) >> k & 1:
            equal &= planes[k]
        else:
            above |= equal & planes[k]
            equal &= ~planes[k]
    return above


@numba.njit(cache=True)
def _simhash(data, offsets, langs, window_en, window_zh, flags, lower, ascii_key):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    fingerprints = np.zeros(n, np.uint64)
    shingles = np.zeros(n, np.int32)
    scratch = np.empty(_longest(offsets) + 1, np.uint64)
    planes = np.zeros(32, np.uint64)
    for i in range(n):
        is_zh = langs[i] == 1
        m = _tokens(data, offsets[i], offsets[i + 1], is_zh, ascii_key, flags, lower, scratch)
        m = _windows(scratch, m, window_zh if is_zh else window_en)
        shingles[i] = m
        fingerprints[i] = _fingerprint(scratch, m, planes)
    return fingerprints, shingles


def simhash(t2: TextBatch, langs: npt.NDArray[np.uint8], settings: Fuzzy) -> tuple[U64, npt.NDArray[np.int32]]:
    """64-bit simhash (Charikar 2002; Manku et al. 2007) of each text: (fingerprints uint64 [n], shingles int32 [n]).

    Features, each occurrence weighing 1: `langs` 1 (zh): every run of `shingle_zh` letters or digits, whatever stands
    between them; else: every run of `shingle_en` words, a word being a run of letters and digits (Unicode; Han runs
    too). Lower-case, the last shingle included. A text shorter than one window has no shingle and fingerprint 0: such
    texts are compared by exact key only. A bit is set iff more than half of the features set it. Memory: 8 bytes of
    scratch a byte of the longest text.
    """
    result: tuple[U64, npt.NDArray[np.int32]] = _simhash(
        t2.data,
        t2.offsets,
        langs,
        settings.shingle_en,
        settings.shingle_zh,
        table(),
        lower_table(),
        ascii_keys(STRIPPED, 0),
    )
    return result


@numba.njit(cache=True)
def _minhash(data, offsets, langs, window_en, window_zh, flags, lower, ascii_key, a, b):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    permutations = len(a)
    signatures = np.full((n, permutations), np.uint32(0xFFFFFFFF), np.uint32)
    scratch = np.empty(_longest(offsets) + 1, np.uint64)
    for i in range(n):
        is_zh = langs[i] == 1
        m = _tokens(data, offsets[i], offsets[i + 1], is_zh, ascii_key, flags, lower, scratch)
        m = _windows(scratch, m, window_zh if is_zh else window_en)
        row = signatures[i]
        for j in range(m):
            h = np.uint32(scratch[j] & np.uint64(0xFFFFFFFF))
            # datasketch mixes the 32-bit hash (MurmurHash3's fmix32) before the affine permutations.
            h ^= h >> np.uint32(16)
            h = np.uint32(h * np.uint32(0x85EBCA6B))
            h ^= h >> np.uint32(13)
            h = np.uint32(h * np.uint32(0xC2B2AE35))
            h ^= h >> np.uint32(16)
            for p in range(permutations):
                value = np.uint32(np.uint32(a[p] * h) + b[p])
                row[p] = min(row[p], value)
    return signatures


def minhash(t2: TextBatch, langs: npt.NDArray[np.uint8], settings: Fuzzy) -> U32:
    """MinHash signatures uint32 [n, permutations] over the shingles of `simhash`.

    Equal to `datasketch.MinHash(permutations, seed=1, scheme="affine32")` updated with the low 32 bits of every shingle
    hash. A text without shingles has all values at 2^32 - 1.
    """
    a, b = permutations(settings.permutations)
    result: U32 = _minhash(
        t2.data,
        t2.offsets,
        langs,
        settings.shingle_en,
        settings.shingle_zh,
        table(),
        lower_table(),
        ascii_keys(STRIPPED, 0),
        a,
        b,
    )
    return result


def permutations(count: int) -> tuple[U32, U32]:
    """datasketch's affine permutations h -> a h + b mod 2^32, uint32 [count] each."""
    import datasketch  # heavy to import, needed by method minhash only

    parameters: Any = datasketch.MinHash(num_perm=count, seed=MINHASH_SEED, scheme=MINHASH_SCHEME).permutations
    return np.ascontiguousarray(parameters[0], np.uint32), np.ascontiguousarray(parameters[1], np.uint32)
