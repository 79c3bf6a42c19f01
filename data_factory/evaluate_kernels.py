"""Kernels of the evaluation that rewrite or count: blanked prose, lowered text, distinct windows."""

from __future__ import annotations

import numba
import numpy as np

LONGEST_INLINE_CODE = 300  # characters
HEAD = 5000  # characters of a document that its topic is read from
END = 0xFF  # stands behind every document of a lowered buffer: in no phrase and in no text


@numba.njit(cache=True, inline="always")
def _blank(out, first, last):  # type: ignore[no-untyped-def]
    """A space for each character but newlines; bytes that continue one become 0x80 and still continue one."""
    for i in range(first, last):
        if out[i] != 10:
            out[i] = 0x80 if out[i] & 0xC0 == 0x80 else 32


@numba.njit(cache=True)
def prose(data, offsets, doc, start, end):  # type: ignore[no-untyped-def]
    """A copy of `data` with protected spans (`doc`, `start`, `end`, bytes of the document) and `inline code` blanked."""
    out = data.copy()
    for k in range(len(doc)):
        base = offsets[doc[k]]
        _blank(out, base + start[k], base + end[k])
    for d in range(len(offsets) - 1):
        i, stop = offsets[d], offsets[d + 1]
        while i < stop:
            if out[i] != 96:
                i += 1
                continue
            j, count = i + 1, 0
            while j < stop and out[j] != 96 and out[j] != 10 and count <= LONGEST_INLINE_CODE:
                count += out[j] & 0xC0 != 0x80
                j += 1
            if j < stop and out[j] == 96 and 1 <= count <= LONGEST_INLINE_CODE:
                _blank(out, i, j + 1)
                i = j + 1
            else:
                i += 1
    return out


@numba.njit(cache=True)
def lowered(data, offsets, limit):  # type: ignore[no-untyped-def]
    """The first `limit` characters of every document in lower case (ASCII letters only), END behind each: (bytes,
    offsets int64 [n + 1] of the documents in them)."""
    out = np.empty(len(data) + len(offsets), np.uint8)
    starts = np.zeros(len(offsets), np.int64)
    size = 0
    for d in range(len(offsets) - 1):
        count = 0
        for i in range(offsets[d], offsets[d + 1]):
            byte = data[i]
            count += byte & 0xC0 != 0x80
            if count > limit:
                break
            out[size] = byte + 32 if 65 <= byte <= 90 else byte
            size += 1
        out[size] = END
        size += 1
        starts[d + 1] = size
    return out[:size], starts


@numba.njit(cache=True)
def distinct(data, offsets, width):  # type: ignore[no-untyped-def]
    """float64 [n]: distinct `width`-byte windows over all windows of each document, 1 where it has none.

    Windows are compared by a 64-bit polynomial hash.
    """
    shares = np.ones(len(offsets) - 1, np.float64)
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    last_power = np.uint64(1)
    for _ in range(width):
        last_power *= multiplier
    longest = 0
    for d in range(len(shares)):
        longest = max(longest, offsets[d + 1] - offsets[d])
    bits = 4
    while 1 << bits < 2 * longest:
        bits += 1
    table = np.zeros(1 << bits, np.uint64)
    for d in range(len(shares)):
        begin, end = offsets[d], offsets[d + 1]
        count = end - begin - width + 1
        if count < 1:
            continue
        bits = 4
        while 1 << bits < 2 * count:
            bits += 1
        shift, mask = np.uint64(64 - bits), (1 << bits) - 1
        table[: mask + 1] = 0
        different = 0
        zero = False  # 0 marks an empty slot
        key = np.uint64(0)
        for i in range(begin, end):
            key = key * multiplier + np.uint64(data[i]) + np.uint64(1)
            if i - begin >= width:
                key -= (np.uint64(data[i - width]) + np.uint64(1)) * last_power
            if i - begin + 1 < width:
                continue
            if key == 0:
                different += not zero
                zero = True
                continue
            slot = np.int64((key * np.uint64(0xC2B2AE3D27D4EB4F)) >> shift)
            while table[slot] != 0 and table[slot] != key:
                slot = (slot + 1) & mask
            if table[slot] == 0:
                table[slot] = key
                different += 1
        shares[d] = different / count
    return shares
