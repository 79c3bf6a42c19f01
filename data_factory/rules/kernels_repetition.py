"""Repetition inside a document: n-grams of units, by prefix hashes and small open-addressing tables that are reused
without clearing.

The hash of units i to i + n is prefix[i + n] - prefix[i] * BASE^n modulo 2^64, so that every length costs one
multiplication. A table entry holds the upper 48 bits of a hash and a 16-bit stamp; entries of an older stamp count as
empty, so a table is cleared once in 65,535 uses.

A repeated n-gram consists of repeated shorter ones. So only the 2-grams of all positions are looked up, and each
further length visits the positions that can still repeat. The results are those of the plain definitions (Gopher, in
datatrove's reading).
"""

from __future__ import annotations

import numba
import numpy as np

from data_factory.rules.kernels_tables import AT, HASH

BASE = np.uint64(0xD6E8FEB86659FD93)
_UPPER = np.uint64(0xFFFFFFFFFFFF0000)
_STAMPS = np.uint64(0xFFFF)


@numba.njit(cache=True, inline="always")
def mix(value):  # type: ignore[no-untyped-def]
    """A 64-bit finaliser (xor, shift, multiply)."""
    value = (value ^ (value >> np.uint64(32))) * HASH
    return value ^ (value >> np.uint64(29))


@numba.njit(cache=True)
def table_bits(n):  # type: ignore[no-untyped-def]
    """Bits of a table for n entries: at most half full, at least 16 slots."""
    bits = 4
    while (1 << bits) < 2 * n:
        bits += 1
    return bits


@numba.njit(cache=True)
def open_table(keys, n, stamp):  # type: ignore[no-untyped-def]
    """(stamp, bits) of an empty table for n entries inside `keys`."""
    if stamp == _STAMPS:
        keys[:] = 0
        stamp = np.uint64(0)
    return stamp + np.uint64(1), table_bits(n)


@numba.njit(cache=True, inline="always")
def insert(keys, bits, stamp, value):  # type: ignore[no-untyped-def]
    """Slot of a hash: s >= 0 when it was inserted there now, -1 - s when it stood there before."""
    entry = (value & _UPPER) | stamp
    slot = np.int64((value * HASH) >> np.uint64(64 - bits))
    last = (1 << bits) - 1
    while True:
        found = keys[slot]
        if found == entry:
            return -1 - slot
        if (found & _STAMPS) != stamp:
            keys[slot] = entry
            return slot
        slot = (slot + 1) & last


@numba.njit(cache=True)
def count_ngrams(prefix, length, power, positions, n, keys, bits, stamp, slot_count, slot_first, slots):  # type: ignore[no-untyped-def]
    """Count the n-grams at `positions[:n]` (ascending): slots per position, and (count, first position) of the most
    frequent, the earliest of equals.
    """
    best, best_first = 0, 0
    for k in range(n):
        i = positions[k]
        slot = insert(keys, bits, stamp, prefix[i + length] - prefix[i] * power)
        if slot >= 0:
            slot_count[slot] = 1
            slot_first[slot] = i
        else:
            slot = -1 - slot
            slot_count[slot] += 1
        slots[k] = slot
        count = slot_count[slot]
        if count > best or (count == best and slot_first[slot] < best_first):
            best, best_first = count, slot_first[slot]
    return best, best_first


@numba.njit(cache=True)
def repeated_ngrams(prefix, chars, units, zh, keys, slot_count, slot_first, slots, runs, positions, stamp, counts):  # type: ignore[no-untyped-def]
    """Fill the n-gram counters of one document; returns the next stamp.

    Top 2- to 4-grams: characters of the most frequent n-gram (with the joining spaces where words are spaced) times
    its count; 0 when nothing repeats. Repeated 5- to 10-grams: a walk that jumps over an n-gram seen before and adds
    its characters. 13-grams: all copies of those that repeat.
    """
    counts[AT.compared_13grams] = max(units - 12, 0)
    n = max(units - 1, 0)
    for k in range(n):
        positions[k] = k
    power = BASE
    for length in range(2, 5):
        power *= BASE
        if n < 2:
            return stamp
        stamp, bits = open_table(keys, n, stamp)
        best, first = count_ngrams(
            prefix, length, power, positions, n, keys, bits, stamp, slot_count, slot_first, slots
        )
        if best < 2:
            return stamp
        span = chars[first + length] - chars[first] + (0 if zh else length - 1)
        counts[AT.top_2gram_chars + length - 2] = best * span
        # keep the positions whose n-gram repeats and is followed by another that does: only there can n + 1 units
        # repeat
        kept = 0
        for k in range(n):
            if slot_count[slots[k]] >= 2:
                positions[kept] = positions[k]
                kept += 1
        n = kept
        if length < 4:
            kept = 0
            for k in range(n - 1):
                if positions[k + 1] == positions[k] + 1:
                    positions[kept] = positions[k]
                    kept += 1
            n = kept
    # runs[k]: how many repeated 4-grams follow each other from positions[k] on; n units can only repeat where runs >=
    # n - 3
    for k in range(n - 1, -1, -1):
        follows = k + 1 < n and positions[k + 1] == positions[k] + 1
        runs[k] = runs[k + 1] + 1 if follows else 1
    for length in range(5, 11):
        power *= BASE
        kept = 0
        for k in range(n):
            if runs[k] >= length - 3:
                positions[kept] = positions[k]
                runs[kept] = runs[k]
                kept += 1
        n = kept
        if n < 2:
            return stamp
        stamp, bits = open_table(keys, n, stamp)
        following, total = 0, 0
        for k in range(n):
            i = positions[k]
            if i >= following and insert(keys, bits, stamp, prefix[i + length] - prefix[i] * power) < 0:
                total += chars[i + length] - chars[i]
                following = i + length
        counts[AT.repeated_5gram_chars + length - 5] = total
        if total == 0:
            return stamp
    kept = 0
    for k in range(n):
        if runs[k] >= 10:
            positions[kept] = positions[k]
            kept += 1
    if kept < 2:
        return stamp
    stamp, bits = open_table(keys, kept, stamp)
    count_ngrams(
        prefix, 13, power * BASE * BASE * BASE, positions, kept, keys, bits, stamp, slot_count, slot_first, slots
    )
    repeated = 0
    for k in range(kept):
        repeated += slot_count[slots[k]] >= 2
    counts[AT.repeated_13grams] = repeated
    return stamp
