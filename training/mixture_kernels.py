"""Kernels of the global order: a permutation without a list (`walk`) and the queue that keeps shares (`queue`)."""

from __future__ import annotations

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6  # four make a pseudo-random permutation (Luby & Rackoff 1988); even, so that both halves take turns


@numba.njit(cache=True, nogil=True)
def _mix(value):  # type: ignore[no-untyped-def]
    """Finaliser of splitmix64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def walk(places, rows, key, inverse):  # type: ignore[no-untyped-def]
    """Place -> row of an endless sequence of epochs over `rows` rows; `inverse`: row -> place inside the epoch, where the
    epoch is that of place[i] // rows and the row is place[i] % rows."""
    bits = 2
    while (np.int64(1) << bits) < rows:
        bits += 1
    low = np.uint64(bits // 2)
    high = np.uint64(bits) - low
    one = np.uint64(1)
    low_mask, high_mask = (one << low) - one, (one << high) - one
    result = np.empty(len(places), np.int64)
    for i in range(len(places)):
        epoch = places[i] // rows
        value = np.uint64(places[i] - epoch * rows)
        epoch_key = _mix(key + np.uint64(epoch + 1) * _GOLDEN)
        while True:
            # Two halves of `high` and `low` bits; even rounds change the high half, odd rounds the low one.
            left, right = value >> low, value & low_mask
            for step in range(_ROUNDS):
                turn = _ROUNDS - 1 - step if inverse else step
                salt = epoch_key + np.uint64(turn) * _GOLDEN
                if turn % 2 == 0:
                    left ^= _mix(right + salt) & high_mask
                else:
                    right ^= _mix(left + salt) & low_mask
            value = (left << low) | right
            if value < np.uint64(rows):
                break
        result[i] = np.int64(value)
    return result


@numba.njit(cache=True, nogil=True)
def queue(out, done, shares, spent, sizes, cursor, end):  # type: ignore[no-untyped-def]
    """Pick streams for out[done:]. `spent`: tokens of each stream so far; the next rows of stream s have sizes[cursor[s]:end[s]]
    tokens. Returns (rows done, -1), or (rows done, stream) when that stream's sizes are used up."""
    total = spent.sum()
    while done < len(out):
        best, finish = -1, np.inf
        behind, most = 0, -np.inf
        for s in range(len(shares)):
            if cursor[s] == end[s]:
                return done, s
            due = shares[s] * total
            if due - spent[s] > most:
                behind, most = s, due - spent[s]
            if spent[s] <= due:
                ends = (spent[s] + sizes[cursor[s]]) / shares[s]
                if ends < finish:
                    best, finish = s, ends
        if best < 0:  # rounding of shares x total: nobody is exactly on time
            best = behind
        out[done] = best
        size = sizes[cursor[best]]
        cursor[best] += 1
        spent[best] += size
        total += size
        done += 1
    return done, -1
