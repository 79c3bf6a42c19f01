"""Keys of T2: 128-bit exact keys, 64-bit simhash fingerprints, MinHash signatures (URL keys are in `url_keys`)."""

from __future__ import annotations

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
from data_factory.dedup.hashing import SEED_SHORT_TEXT, SEED_TEXT, mix64, murmur128
from data_factory.dedup.url_keys import url_keys

__all__ = ["exact_keys", "minhash", "simhash", "url_keys"]

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

SHORT_KEY = 20  # characters; below, what is left after stripping says too little (":-)" and "!" must differ)
STRIPPED = PUNCTUATION | SYMBOL | SPACE | EMOJI | CONTROL
MINHASH_SEED, MINHASH_SCHEME = 1, "affine32"

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: base of the rolling hash over tokens
_WORD = np.uint64(0xD6E8FEB86659FD93)  # odd: base of the hash over the characters of a word


@numba.njit(cache=True)
def _strip(data, begin, end, starts, ends, dropped, flags, lower, out):  # type: ignore[no-untyped-def]
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
            stop = begin + ends[span]
            while i < stop:
                out[o] = data[i]
                count += (data[i] & 0xC0) != 0x80
                o += 1
                i += 1
            continue
        limit = end if span >= len(starts) else min(end, begin + starts[span])
        while i < limit:
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
def _exact(data, offsets, rows, starts, ends, flags, lower, stripped, space, short, seed_long, seed_short):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    high = np.zeros(n, np.uint64)
    low = np.zeros(n, np.uint64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    out = np.empty(longest + longest // 2 + 4, np.uint8)  # lower-casing may lengthen two bytes to three
    for i in range(n):
        a, b = rows[i], rows[i + 1]
        seed = seed_long
        size, count = _strip(data, offsets[i], offsets[i + 1], starts[a:b], ends[a:b], stripped, flags, lower, out)
        if count < short:
            seed = seed_short
            size, count = _strip(data, offsets[i], offsets[i + 1], starts[a:b], ends[a:b], space, flags, lower, out)
        if size > 0:
            high[i], low[i] = murmur128(out, 0, size, seed)
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
        SHORT_KEY,
        SEED_TEXT,
        SEED_SHORT_TEXT,
    )
    return result


@numba.njit(cache=True)
def _tokens(data, begin, end, is_zh, flags, lower, out):  # type: ignore[no-untyped-def]
    """Token hashes of data[begin:end] into `out` (uint64); returns how many. zh: one a letter or digit; else one a run
    of them.
    """
    m = 0
    i = begin
    word = np.uint64(0)
    inside = False
    while i < end:
        point, size = decode(data, i)
        i += size
        if flags_of(flags, point) & (LETTER | DIGIT):
            if point < 0x20000:
                point = lower[point]
            if is_zh:
                out[m] = mix64(np.uint64(point))
                m += 1
            else:
                word = (word + np.uint64(point)) * _WORD
                inside = True
        elif inside:
            out[m] = mix64(word)
            m += 1
            word = np.uint64(0)
            inside = False
    if inside:
        out[m] = mix64(word)
        m += 1
    return m


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


@numba.njit(cache=True)
def _fingerprint(hashes, m, spread, lanes, ones):  # type: ignore[no-untyped-def]
    """Majority bit of every position over hashes[:m]. `spread[b]`: the eight bits of byte b, one a byte; `lanes`: eight
    byte-wise counters.
    """
    ones[:] = 0
    i = 0
    while i < m:
        stop = min(m, i + 255)  # a byte counts to 255
        lanes[:] = 0
        for j in range(i, stop):
            h = hashes[j]
            for k in range(8):
                lanes[k] += spread[(h >> np.uint64(8 * k)) & np.uint64(255)]
        for k in range(8):
            for bit in range(8):
                ones[8 * k + bit] += (lanes[k] >> np.uint64(8 * bit)) & np.uint64(255)
        i = stop
    value = np.uint64(0)
    for bit in range(64):
        if 2 * ones[bit] > m:
            value |= np.uint64(1) << np.uint64(bit)
    return value


@numba.njit(cache=True)
def _simhash(data, offsets, langs, window_en, window_zh, flags, lower, spread):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    fingerprints = np.zeros(n, np.uint64)
    shingles = np.zeros(n, np.int32)
    scratch = np.empty(_longest(offsets) + 1, np.uint64)
    lanes = np.zeros(8, np.uint64)
    ones = np.zeros(64, np.int64)
    for i in range(n):
        is_zh = langs[i] == 1
        m = _tokens(data, offsets[i], offsets[i + 1], is_zh, flags, lower, scratch)
        m = _windows(scratch, m, window_zh if is_zh else window_en)
        shingles[i] = m
        fingerprints[i] = _fingerprint(scratch, m, spread, lanes, ones)
    return fingerprints, shingles


def _spread_table() -> U64:
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    spread: U64 = np.bitwise_or.reduce(bits.astype(np.uint64) << (8 * np.arange(8, dtype=np.uint64)), axis=1)
    return spread


_SPREAD = _spread_table()


def simhash(t2: TextBatch, langs: npt.NDArray[np.uint8], settings: Fuzzy) -> tuple[U64, npt.NDArray[np.int32]]:
    """64-bit simhash (Charikar 2002; Manku et al. 2007) of each text: (fingerprints uint64 [n], shingles int32 [n]).

    Features, each occurrence weighing 1: `langs` 1 (zh): every run of `shingle_zh` letters or digits, whatever stands
    between them; else: every run of `shingle_en` words, a word being a run of letters and digits (Unicode; Han runs
    too). Lower-case, the last shingle included. A text shorter than one window has no shingle and fingerprint 0: such
    texts are compared by exact key only. A bit is set iff more than half of the features set it. Memory: 8 bytes of
    scratch a byte of the longest text.
    """
    result: tuple[U64, npt.NDArray[np.int32]] = _simhash(
        t2.data, t2.offsets, langs, settings.shingle_en, settings.shingle_zh, table(), lower_table(), _SPREAD
    )
    return result


@numba.njit(cache=True)
def _minhash(data, offsets, langs, window_en, window_zh, flags, lower, a, b):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    permutations = len(a)
    signatures = np.full((n, permutations), np.uint32(0xFFFFFFFF), np.uint32)
    scratch = np.empty(_longest(offsets) + 1, np.uint64)
    for i in range(n):
        is_zh = langs[i] == 1
        m = _tokens(data, offsets[i], offsets[i + 1], is_zh, flags, lower, scratch)
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
        t2.data, t2.offsets, langs, settings.shingle_en, settings.shingle_zh, table(), lower_table(), a, b
    )
    return result


def permutations(count: int) -> tuple[U32, U32]:
    """datasketch's affine permutations h -> a h + b mod 2^32, uint32 [count] each."""
    import datasketch  # heavy to import, needed by method minhash only

    parameters: Any = datasketch.MinHash(num_perm=count, seed=MINHASH_SEED, scheme=MINHASH_SCHEME).permutations
    return np.ascontiguousarray(parameters[0], np.uint32), np.ascontiguousarray(parameters[1], np.uint32)
