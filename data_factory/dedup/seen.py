"""URLs kept by earlier runs: a Bloom filter file that is pybloom-live's, filled and asked in batches.

File: 8 bytes magic `ZIYABLM1`; 32 hexadecimal characters: XXH3-128 of all that follows; then what
`pybloom_live.BloomFilter.tofile` writes (`<dQQQQ`: error rate, slices, bits of a slice, capacity, count; then the bits,
first bit lowest in its byte), so that any tool that has pybloom-live reads it from byte 40 on. A key is the 32
hexadecimal digits of a 128-bit URL key. pybloom-live hashes with XXH128 or SHA-1 to SHA-512 over fixed salts, by error
rate and size: nothing in it depends on PYTHONHASHSEED.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pybloom_live
import xxhash

from ziya.errors import UserError
from ziya.files import atomic_path

U64 = npt.NDArray[np.uint64]

MAGIC = b"ZIYABLM1"
_HEADER = struct.Struct("<dQQQQ")
_START = len(MAGIC) + 32
_PIECE = 1 << 16  # keys hashed at once


class _Positions:
    """Bit positions of keys, as pybloom-live computes them for a filter of `slices` slices of `bits` bits."""

    def __init__(self, slices: int, bits: int) -> None:
        self.slices, self.bits = slices, bits
        self.width = 8 if bits >= 1 << 31 else 4 if bits >= 1 << 15 else 2
        _, hasher = pybloom_live.pybloom.make_hashfuncs(slices, bits)
        per_digest = hasher().digest_size // self.width
        self.salted = [hasher(hasher(struct.pack("I", i)).digest()) for i in range(-(-slices // per_digest))]

    def __call__(self, high: U64, low: U64) -> U64:
        """Positions uint64 [n, slices] in the whole bit array."""
        n = len(high)
        if n == 0:
            return np.zeros((0, self.slices), np.uint64)
        text = np.stack([high, low], axis=1).astype(">u8").tobytes().hex().encode()
        digests = bytearray()
        for start in range(0, 32 * n, 32):
            key = text[start : start + 32]
            for salted in self.salted:
                state = salted.copy()
                state.update(key)
                digests += state.digest()
        words = np.frombuffer(digests, f"<u{self.width}").reshape(n, -1)[:, : self.slices].astype(np.uint64)
        return words % np.uint64(self.bits) + np.arange(self.slices, dtype=np.uint64) * np.uint64(self.bits)


@numba.njit(cache=True)
def _set(bits, positions):  # type: ignore[no-untyped-def]
    for i in range(positions.shape[0]):
        for j in range(positions.shape[1]):
            at = positions[i, j]
            bits[at >> np.uint64(3)] |= np.uint8(1) << np.uint8(at & np.uint64(7))


@numba.njit(cache=True)
def _test(bits, positions, found):  # type: ignore[no-untyped-def]
    for i in range(positions.shape[0]):
        found[i] = True
        for j in range(positions.shape[1]):
            at = positions[i, j]
            if (bits[at >> np.uint64(3)] >> np.uint8(at & np.uint64(7))) & np.uint8(1) == 0:
                found[i] = False
                break


@dataclass(frozen=True)
class _Filter:
    path: Path
    error_rate: float
    slices: int
    slice_bits: int
    capacity: int
    count: int
    bits: npt.NDArray[np.uint8]

    def contains(self, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        positions = _Positions(self.slices, self.slice_bits)
        found = np.zeros(len(high), bool)
        for start in range(0, len(high), _PIECE):
            stop = start + _PIECE
            _test(self.bits, positions(high[start:stop], low[start:stop]), found[start:stop])
        return found

    def false_positive_rate(self) -> float:
        """Expected from the number of keys inside: (1 - (1 - 1/bits of a slice)^count)^slices."""
        return (
            float((-np.expm1(self.count * np.log1p(-1.0 / self.slice_bits))) ** self.slices)
            if self.slice_bits > 1
            else 1.0
        )


class SeenUrls:
    """Bloom filters of earlier runs, read-only; the bits are memory-mapped, so that worker processes share them."""

    def __init__(self, filters: Sequence[_Filter]) -> None:
        self.filters = list(filters)

    @classmethod
    def load(cls, paths: Sequence[Path | str]) -> SeenUrls:
        """Open filters; a missing, foreign or damaged file is a UserError that names it."""
        return cls([_open(Path(path)) for path in paths])

    def which(self, high: U64, low: U64) -> npt.NDArray[np.int16]:
        """Number of the first filter that holds each key, int16 [n]; -1 = none. The key (0, 0), no URL, is in none."""
        result = np.full(len(high), -1, np.int16)
        open_ = np.flatnonzero((high != 0) | (low != 0))
        for number, item in enumerate(self.filters):
            found = item.contains(np.ascontiguousarray(high[open_]), np.ascontiguousarray(low[open_]))
            result[open_[found]] = number
            open_ = open_[~found]
        return result

    def contains(self, high: U64, low: U64) -> npt.NDArray[np.bool_]:
        """Whether any filter holds each key, bool [n]."""
        return self.which(high, low) >= 0

    def expected_false_drops(self, n: int) -> float:
        """Of `n` new URLs, how many the filters are expected to take for seen."""
        missed = 1.0
        for item in self.filters:
            missed *= 1.0 - item.false_positive_rate()
        return n * (1.0 - missed)


def _open(path: Path) -> _Filter:
    try:
        with path.open("rb") as file:
            head = file.read(_START + _HEADER.size)
            if head[: len(MAGIC)] != MAGIC or len(head) < _START + _HEADER.size:
                raise UserError(f"{path} is not a filter of seen URLs: name a urls.bloom that an earlier run wrote")
            state = xxhash.xxh3_128(head[_START:])
            while piece := file.read(4 << 20):
                state.update(piece)
    except OSError as error:
        raise UserError(
            f"filter of seen URLs {path} cannot be read ({error.strerror}): correct dedup.seen_urls"
        ) from error
    if state.hexdigest().encode() != head[len(MAGIC) : _START]:
        raise UserError(
            f"filter of seen URLs {path} is damaged (its digest does not match): restore it, or remove it from "
            "dedup.seen_urls"
        )
    error_rate, slices, slice_bits, capacity, count = _HEADER.unpack(head[_START:])
    bits: Any = np.memmap(path, np.uint8, "r", offset=_START + _HEADER.size)
    return _Filter(path, error_rate, slices, slice_bits, capacity, count, bits)


def write(path: Path, keys: Iterable[tuple[U64, U64]], count: int, error_rate: float) -> None:
    """Write a filter of `count` keys, given in batches of (high, low), at `error_rate`; the order of the keys does not
    change its bytes.

    The key (0, 0) is counted but not stored. Memory: the filter, about 1.44 log2(1 / error_rate) bits a key. ValueError
    when the number of keys is not `count`: a filter must not fill up silently.
    """
    made: Any = pybloom_live.BloomFilter(capacity=max(count, 1), error_rate=error_rate)
    slices, slice_bits = int(made.num_slices), int(made.bits_per_slice)
    bits = np.zeros((slices * slice_bits + 7) // 8, np.uint8)
    positions = _Positions(slices, slice_bits)
    given = 0
    for high, low in _pieces(keys):
        given += len(high)
        has = (high != 0) | (low != 0)
        _set(bits, positions(high[has], low[has]))
    if given != count:
        raise ValueError(f"{given} keys were given for a filter sized for {count}")
    header = _HEADER.pack(error_rate, slices, slice_bits, max(count, 1), count)
    state = xxhash.xxh3_128(header)
    state.update(bits.data)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + state.hexdigest().encode() + header)
        bits.tofile(file)


def _pieces(keys: Iterable[tuple[U64, U64]]) -> Iterator[tuple[U64, U64]]:
    for high, low in keys:
        for start in range(0, len(high), _PIECE):
            yield high[start : start + _PIECE], low[start : start + _PIECE]
