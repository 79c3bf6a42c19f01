"""Tiers by rank of perplexity: exact cuts in bounded memory (paper section AS; rules.md Q05).

Inside each group documents are ordered by (float32 perplexity, id). Of n ranked documents the first floor(n * high /
100) are the high tier, those after them up to floor(n * medium / 100) are medium, the rest is dropped. A cut is the
last document above it, found by histograms: two passes over the 32 bits of the perplexity, then, when that very value
is tied, passes over the bytes of the ids until the ties that share a prefix fit into `memory_rows`. The rows are read
again on every pass and never held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory.batches import F32

HIGH, MEDIUM, DROPPED, UNRANKED = 0, 1, 2, 3  # codes of `tiers`
NAMES = ("high", "medium", "low", "")  # of the codes, as in summary.json and kept/
ID_BYTES = 32

Strings: TypeAlias = Any  # a sequence of str, an Arrow string or dictionary column, or a numpy array of str
Chunk: TypeAlias = tuple[Strings, F32, Strings]
Ids = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Cut:
    """The cuts of one group. `count`: ranked documents; `high_count`, `medium_count`: documents of those tiers.

    `high`, `medium`: (perplexity, id) of the last document inside the tier (for medium: of the last document kept),
    None where the cut comes before the first document.
    """

    count: int
    high_count: int
    medium_count: int
    high: tuple[float, str] | None
    medium: tuple[float, str] | None

    def as_dict(self) -> dict[str, Any]:
        """For `ziya.files.write_json`; float32 values survive JSON exactly."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Cut:
        """The inverse of `as_dict`, after JSON."""
        bounds = [
            None if value[name] is None else (float(value[name][0]), str(value[name][1])) for name in ("high", "medium")
        ]
        return cls(int(value["count"]), int(value["high_count"]), int(value["medium_count"]), bounds[0], bounds[1])


@dataclass
class _Target:
    """The search for the document of rank `rank` (from 0) of a group: `low` <= its key, known down to `known` bits."""

    group: str
    rank: int
    prefix: int = 0  # the leading bits of the key that are settled
    key: int = -1  # the whole key, once settled
    id_prefix: bytes = b""
    ties: int = -1  # documents with this key and id prefix
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << 16, np.int64))
    collected: list[Ids] = field(default_factory=list)
    id: str | None = None


def rank(
    chunks: Callable[[], Iterator[Chunk]], high: float, medium: float, memory_rows: int = 1 << 20
) -> dict[str, Cut]:
    """Exact cuts of every group.

    `chunks()` starts a new pass over (groups [n], perplexity float32 [n], ids [n]); every pass must give the same rows,
    in any order and any chunking. NaN perplexity means unranked. Ids are unique, at most ID_BYTES bytes long. `high` <=
    `medium` are per cents. At most `memory_rows` ids a cut are held at once, beside 512 KiB of counters a group.
    """
    counters: dict[str, npt.NDArray[np.int64]] = {}
    for groups, perplexity, _ in chunks():
        for group, rows in _split(groups):
            key = _keys(perplexity[rows])[0]
            histogram = np.bincount(key >> 16, minlength=1 << 16)
            counters[group] = counters[group] + histogram if group in counters else histogram
    wanted: dict[tuple[str, str], _Target] = {}
    sizes: dict[str, tuple[int, int, int]] = {}
    for group in sorted(counters):
        count = int(counters[group].sum())
        # Fractions of the decimal text: 29.7 % of 1,000 is 297 documents, whatever 29.7 is in binary.
        limits = [int(Fraction(str(percent)) * count / 100) for percent in (high, medium)]
        sizes[group] = (count, limits[0], limits[1])
        for name, limit in zip(("high", "medium"), limits, strict=True):
            if limit:
                target = _Target(group, limit - 1)
                target.prefix = _descend(target, counters[group])
                wanted[group, name] = target
    _settle(chunks, list(wanted.values()), memory_rows)
    cuts = {}
    for group, (count, high_count, medium_count) in sizes.items():
        if count:
            bounds = [_bound(wanted.get((group, name))) for name in ("high", "medium")]
            cuts[group] = Cut(count, high_count, medium_count, bounds[0], bounds[1])
    return cuts


def tiers(groups: Strings, perplexity: F32, ids: Strings, cuts: Mapping[str, Cut]) -> npt.NDArray[np.uint8]:
    """Code of each document, uint8 [n]: HIGH, MEDIUM, DROPPED, or UNRANKED (NaN perplexity)."""
    codes = np.full(len(perplexity), UNRANKED, np.uint8)
    names = _ids(ids)
    for group, rows in _split(groups):
        ranked = rows[~np.isnan(perplexity[rows])]
        if not len(ranked):
            continue
        if group not in cuts:
            raise ValueError(f"group {group!r} has ranked documents but no cut: rank and tiers saw different documents")
        value, name = perplexity[ranked], names[ranked]
        inside = [_within(value, name, bound) for bound in (cuts[group].high, cuts[group].medium)]
        codes[ranked] = np.where(inside[0], HIGH, np.where(inside[1], MEDIUM, DROPPED))
    return codes


def _within(value: F32, name: Ids, bound: tuple[float, str] | None) -> npt.NDArray[np.bool_]:
    if bound is None:
        return np.zeros(len(value), np.bool_)
    limit = np.float32(bound[0])
    return np.asarray((value < limit) | ((value == limit) & (name <= np.bytes_(bound[1].encode()))))


def _settle(chunks: Callable[[], Iterator[Chunk]], targets: list[_Target], memory_rows: int) -> None:
    """Repeat passes until every target knows its id; each pass narrows every open target."""
    while any(target.id is None for target in targets):
        for target in targets:
            target.histogram[:] = 0
            target.collected = []
        for groups, perplexity, ids in chunks():
            names: Ids | None = None
            for group, rows in _split(groups):
                open_targets = [target for target in targets if target.group == group and target.id is None]
                if not open_targets:
                    continue
                key, finite = _keys(perplexity[rows])
                known = rows[finite]
                for target in open_targets:
                    if target.key < 0:
                        below = key[key >> 16 == target.prefix] & 0xFFFF
                        target.histogram += np.bincount(below, minlength=1 << 16)
                        continue
                    if names is None:
                        names = _ids(ids)
                    tied = names[known[key == target.key]]
                    done = len(target.id_prefix)
                    letters = tied.view(np.uint8).reshape(-1, ID_BYTES)
                    match = (letters[:, :done] == np.frombuffer(target.id_prefix, np.uint8)).all(axis=1)
                    if target.ties <= memory_rows:
                        target.collected.append(tied[match])
                    else:
                        pair = letters[match, done].astype(np.int64) << 8 | letters[match, done + 1]
                        target.histogram += np.bincount(pair, minlength=1 << 16)
        for target in targets:
            if target.id is None:
                _narrow(target, memory_rows)


def _narrow(target: _Target, memory_rows: int) -> None:
    """Settle the next bits of a target from what the last pass counted or collected."""
    if target.key < 0:
        low = _descend(target, target.histogram)
        target.key = target.prefix << 16 | low
        target.ties = int(target.histogram[low])
    elif target.ties <= memory_rows:
        tied = np.concatenate(target.collected)
        target.id = np.partition(tied, target.rank)[target.rank].decode()
        target.collected = []
    else:
        pair = _descend(target, target.histogram)
        target.id_prefix += bytes((pair >> 8, pair & 0xFF))
        target.ties = int(target.histogram[pair])
        if len(target.id_prefix) == ID_BYTES:  # only when ids repeat: all that is left is one id
            target.id = target.id_prefix.rstrip(b"\0").decode()


def _descend(target: _Target, histogram: npt.NDArray[np.int64]) -> int:
    """The bucket that holds the target's rank; the rank becomes relative to that bucket."""
    ends = np.cumsum(histogram)
    bucket = int(np.searchsorted(ends, target.rank, side="right"))
    if bucket == len(ends):
        raise ValueError("the passes over the ranked documents gave different rows")
    target.rank -= int(ends[bucket - 1]) if bucket else 0
    return bucket


def _bound(target: _Target | None) -> tuple[float, str] | None:
    if target is None or target.id is None:
        return None
    return _value(target.key), target.id


def _keys(perplexity: F32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """(keys of the values that are not NaN, mask of those values): unsigned 32-bit keys in the order of the floats."""
    ranked = ~np.isnan(perplexity)
    bits = (np.asarray(perplexity, np.float32)[ranked] + np.float32(0)).view(np.uint32).astype(np.int64)  # -0 becomes 0
    return np.where(bits < 1 << 31, bits | 1 << 31, ~bits & 0xFFFFFFFF), ranked


def _value(key: int) -> float:
    """The float of a key."""
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _split(groups: Strings) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """(group, rows) of every group of a chunk."""
    column = groups.combine_chunks() if isinstance(groups, pa.ChunkedArray) else pa.array(groups, type=None)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    encoded = column.cast(pa.large_string()).dictionary_encode()
    index = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)
    return [(str(name), np.flatnonzero(index == number)) for number, name in enumerate(encoded.dictionary.to_pylist())]


def _ids(ids: Strings) -> Ids:
    """Ids as fixed-width bytes [n], S32."""
    if isinstance(ids, (pa.Array, pa.ChunkedArray)):
        ids = ids.to_numpy(zero_copy_only=False)
    array = np.asarray(ids, dtype=np.bytes_)  # fails on what is not ASCII
    if array.dtype.itemsize > ID_BYTES:
        raise ValueError(f"ids are at most {ID_BYTES} bytes long, found {array.dtype.itemsize}")
    return np.ascontiguousarray(array.astype(f"S{ID_BYTES}"))
