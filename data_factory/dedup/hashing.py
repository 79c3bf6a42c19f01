"""Hash kernels of the deduplication keys: MurmurHash3 x64-128 (A. Appleby, public domain) and its 64-bit finaliser.

Stable by construction: no salt, no dependence on PYTHONHASHSEED. Identities, not a defence against someone who builds
collisions on purpose.
"""

from __future__ import annotations

import numba
import numpy as np

# Seeds keep keys of different meaning apart.
SEED_TEXT, SEED_SHORT_TEXT, SEED_URL, SEED_LINE, SEED_BAND = 0, 1, 2, 3, 4

_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_D1, _D2 = np.uint64(0x52DCE729), np.uint64(0x38495AB5)
_M1, _M2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_FIVE = np.uint64(5)


@numba.njit(cache=True, inline="always")
def rotate(x, r):  # type: ignore[no-untyped-def]
    """`x` uint64 rotated left by `r` bits."""
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@numba.njit(cache=True, inline="always")
def mix64(x):  # type: ignore[no-untyped-def]
    """Bijective finaliser of MurmurHash3 on a uint64."""
    x ^= x >> np.uint64(33)
    x *= _M1
    x ^= x >> np.uint64(33)
    x *= _M2
    x ^= x >> np.uint64(33)
    return x


@numba.njit(cache=True, inline="always")
def _word(data, i):  # type: ignore[no-untyped-def]
    value = np.uint64(data[i])
    for j in range(1, 8):
        value |= np.uint64(data[i + j]) << np.uint64(8 * j)
    return value


@numba.njit(cache=True, inline="always")
def _round(h1, h2, k1, k2):  # type: ignore[no-untyped-def]
    """Take 16 bytes, as two little-endian words, into the state."""
    h1 = (rotate(h1 ^ rotate(k1 * _C1, 31) * _C2, 27) + h2) * _FIVE + _D1
    h2 = (rotate(h2 ^ rotate(k2 * _C2, 33) * _C1, 31) + h1) * _FIVE + _D2
    return h1, h2


@numba.njit(cache=True)
def _finish(data, i, end, length, h1, h2):  # type: ignore[no-untyped-def]
    """Take the last bytes data[i:end], fewer than 16, and return both halves of the hash of `length` bytes."""
    k1 = np.uint64(0)
    k2 = np.uint64(0)
    for j in range(end - i):
        if j < 8:
            k1 |= np.uint64(data[i + j]) << np.uint64(8 * j)
        else:
            k2 |= np.uint64(data[i + j]) << np.uint64(8 * (j - 8))
    h2 ^= rotate(k2 * _C2, 33) * _C1
    h1 ^= rotate(k1 * _C1, 31) * _C2
    h1 ^= np.uint64(length)
    h2 ^= np.uint64(length)
    h1 += h2
    h2 += h1
    h1 = mix64(h1)
    h2 = mix64(h2)
    h1 += h2
    h2 += h1
    return h1, h2


@numba.njit(cache=True)
def murmur128(data, start, end, seed):  # type: ignore[no-untyped-def]
    """128-bit hash of data[start:end] (uint8) as (high, low) uint64: the two halves in the order of the published test
    vectors.
    """
    h1 = np.uint64(seed)
    h2 = np.uint64(seed)
    i = start
    while i + 16 <= end:
        h1, h2 = _round(h1, h2, _word(data, i), _word(data, i + 8))
        i += 16
    return _finish(data, i, end, end - start, h1, h2)


@numba.njit(cache=True)
def murmur128_buffer(words, size, seed):  # type: ignore[no-untyped-def]
    """`murmur128` of the first `size` bytes of a buffer that was allocated as words (uint64, a little-endian host):
    three times as fast.
    """
    h1 = np.uint64(seed)
    h2 = np.uint64(seed)
    for k in range(size >> 4):
        h1, h2 = _round(h1, h2, words[2 * k], words[2 * k + 1])
    return _finish(words.view(np.uint8), size & ~15, size, size, h1, h2)
