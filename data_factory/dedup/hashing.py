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


@numba.njit(cache=True)
def murmur128(data, start, end, seed):  # type: ignore[no-untyped-def]
    """128-bit hash of data[start:end] (uint8) as (high, low) uint64: the two halves in the order of the published test
    vectors.
    """
    h1 = np.uint64(seed)
    h2 = np.uint64(seed)
    length = end - start
    i = start
    while i + 16 <= end:
        k1 = rotate(_word(data, i) * _C1, 31) * _C2
        h1 = (rotate(h1 ^ k1, 27) + h2) * _FIVE + _D1
        k2 = rotate(_word(data, i + 8) * _C2, 33) * _C1
        h2 = (rotate(h2 ^ k2, 31) + h1) * _FIVE + _D2
        i += 16
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
