"""MinHash-LSH behind the interface of the fuzzy stage: equal signatures collapse, bands propose pairs, signatures
verify them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.config import Fuzzy
from data_factory.dedup.hashing import SEED_BAND, SEED_TEXT, murmur128
from data_factory.dedup.order import by, external_sort
from data_factory.dedup.rows import RowFile, Rows
from data_factory.dedup.simhash import EDGE

PLACE = np.dtype([("unit", "<u4"), ("row", "<u4"), ("rank", "<i8")])
SKETCH = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("rank", "<i8"), ("at", "<i8")])  # at: position in the signature file
_BANDED = np.dtype([("key", "<u8"), ("rank", "<i8"), ("at", "<i8")])
_CANDIDATE = np.dtype([("a", "<i8"), ("b", "<i8"), ("a_at", "<i8"), ("b_at", "<i8")])


def bands(similarity: float, permutations: int) -> tuple[int, int]:
    """(bands, rows of a band) that datasketch's MinHashLSH takes for this threshold: least false positives + false
    negatives.
    """
    import datasketch  # heavy to import, needed by method minhash only

    lsh: Any = datasketch.MinHashLSH(threshold=similarity, num_perm=permutations)
    return int(lsh.b), int(lsh.r)


@numba.njit(cache=True)
def _hash_rows(data, size, seed):  # type: ignore[no-untyped-def]
    n = len(data) // size
    high = np.empty(n, np.uint64)
    low = np.empty(n, np.uint64)
    for i in range(n):
        high[i], low[i] = murmur128(data, i * size, (i + 1) * size, seed)
    return high, low


@numba.njit(cache=True)
def _bucket_pairs(keys, ranks, at, i, j, a, b, a_at, b_at):  # type: ignore[no-untyped-def]
    """Pairs of rows (sorted by key) with equal keys from position (i, j) on; returns (pairs written, i, j to go on
    from).
    """
    n = len(keys)
    count = 0
    while i < n:
        while j < n and keys[j] == keys[i]:
            if count == len(a):
                return count, i, j
            x, y = (i, j) if ranks[i] < ranks[j] else (j, i)
            a[count], b[count], a_at[count], b_at[count] = ranks[x], ranks[y], at[x], at[y]
            count += 1
            j += 1
        i += 1
        j = i + 1
    return count, i, j


class Sketches:
    """Signatures of the eligible survivors in one file, and the near pairs among them."""

    def __init__(
        self, settings: Fuzzy, folder: Path, signatures: Callable[[int], npt.NDArray[np.uint32]], memory_rows: int
    ) -> None:
        self.settings, self.folder, self.signatures, self.memory_rows = settings, folder, signatures, memory_rows
        folder.mkdir(parents=True, exist_ok=True)
        self.file = RowFile(folder / "signatures", "<u4", settings.permutations)
        # Signatures held at once: as many bytes as memory_rows rows of other tables take.
        self.piece = max(1, min(memory_rows // 16, 1 << 14))

    def sketches(self, places: Iterable[Rows]) -> Iterator[Rows]:
        """SKETCH rows of `places` (PLACE sorted by unit, row); their signatures go to the file on the way."""
        position, unit, table = 0, -1, np.empty((0, self.settings.permutations), np.uint32)
        with self.file.path.open("wb") as file:
            for chunk in places:
                for start in np.flatnonzero(np.diff(chunk["unit"].astype(np.int64), prepend=-1)).tolist():
                    if chunk["unit"][start] != unit:
                        unit = int(chunk["unit"][start])
                        table = self.signatures(unit)
                        if table.shape[1] != self.settings.permutations:
                            raise ValueError(f"unit {unit} has {table.shape[1]} permutations, not as the settings say")
                    part = chunk[start:][chunk["unit"][start:] == unit]
                    chosen = np.ascontiguousarray(table[part["row"]], "<u4")
                    chosen.tofile(file)
                    out = np.empty(len(part), SKETCH)
                    out["hi"], out["lo"] = _hash_rows(
                        chosen.view(np.uint8).reshape(-1), 4 * self.settings.permutations, SEED_TEXT
                    )
                    out["rank"], out["at"] = part["rank"], np.arange(position, position + len(part))
                    position += len(part)
                    yield out

    def pairs(self, nodes: Callable[[], Iterable[Rows]]) -> Iterator[Rows]:
        """Every pair of `nodes` (SKETCH) that shares a band and has an estimated Jaccard similarity of at least the
        setting, as EDGE.
        """
        last: Rows = np.empty(0, _CANDIDATE)
        for chunk in external_sort(
            self._candidates(nodes), by("b", "a"), self.folder / "sort-candidates", self.memory_rows
        ):
            joined = np.concatenate([last, chunk])
            fresh = np.ones(len(joined), bool)
            fresh[1:] = (joined["a"][1:] != joined["a"][:-1]) | (joined["b"][1:] != joined["b"][:-1])
            fresh[: len(last)] = False
            chosen = joined[fresh]
            for start in range(0, len(chosen), self.piece):
                yield self._verified(chosen[start : start + self.piece])
            last = joined[-1:]

    def _verified(self, candidates: Rows) -> Rows:
        equal = (self.file.take(candidates["a_at"]) == self.file.take(candidates["b_at"])).sum(axis=1)
        near = equal / self.settings.permutations >= self.settings.similarity
        edges = np.empty(int(near.sum()), EDGE)
        edges["a"], edges["b"] = candidates["a"][near], candidates["b"][near]
        edges["value"] = equal[near] / self.settings.permutations
        return edges

    def _candidates(self, nodes: Callable[[], Iterable[Rows]]) -> Iterator[Rows]:
        count, width = bands(self.settings.similarity, self.settings.permutations)
        for band in range(count):
            carried: Rows = np.empty(0, _BANDED)
            keyed = self._banded(nodes, band, width)
            for chunk in external_sort(keyed, by("key", "rank"), self.folder / "sort-band", self.memory_rows):
                joined = np.concatenate([carried, chunk])
                different = np.flatnonzero(joined["key"] != joined["key"][-1])
                open_from = int(different[-1]) + 1 if len(different) else 0
                yield from self._bucket(joined[:open_from])
                carried = joined[open_from:]
            yield from self._bucket(carried)

    def _banded(self, nodes: Callable[[], Iterable[Rows]], band: int, width: int) -> Iterator[Rows]:
        for chunk in nodes():
            for start in range(0, len(chunk), self.piece):
                part = chunk[start : start + self.piece]
                values = np.ascontiguousarray(self.file.take(part["at"])[:, band * width : (band + 1) * width])
                out = np.empty(len(part), _BANDED)
                out["key"] = _hash_rows(values.view(np.uint8).reshape(-1), 4 * width, SEED_BAND)[0]
                out["rank"], out["at"] = part["rank"], part["at"]
                yield out

    def _bucket(self, rows: Rows) -> Iterator[Rows]:
        columns = [np.ascontiguousarray(rows[name]) for name in ("key", "rank", "at")]
        capacity = max(1, min(self.memory_rows, 1 << 20))
        a, b, a_at, b_at = (np.empty(capacity, np.int64) for _ in range(4))
        i, j = 0, 1
        while i < len(rows):
            found: Any = _bucket_pairs(*columns, i, j, a, b, a_at, b_at)
            count, i, j = found
            if count:
                out = np.empty(count, _CANDIDATE)
                out["a"], out["b"], out["a_at"], out["b_at"] = a[:count], b[:count], a_at[:count], b_at[:count]
                yield out
