"""Deduplication of all survivors: rank, URL -> exact -> fuzzy, and for every loser the kept document that stands for
it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.config import Dedup
from data_factory.dedup import minhash, simhash
from data_factory.dedup.exact import BEATEN, KEYED, same_key
from data_factory.dedup.fuzzy import collapse, resolve
from data_factory.dedup.order import by, external_sort, winners_first
from data_factory.dedup.outcome import INDEX, Outcome
from data_factory.dedup.rows import COPIES, EXACT, FUZZY, LOSER, PAIR, SEEN, STAGES, SURVIVOR, URL, RowFile, Rows
from data_factory.dedup.seen import SeenUrls
from data_factory.dedup.simhash import EDGE, NODE
from ziya.files import write_json

Signatures = Callable[[int], npt.NDArray[np.uint32]]


def deduplicate(
    chunks: Callable[[], Iterator[Rows]],
    settings: Dedup,
    work: Path,
    seen: SeenUrls | None = None,
    signatures: Signatures | None = None,
    memory_rows: int = 4_000_000,
    blocks_in_front: int | None = None,
) -> Outcome:
    """Deduplicate survivors.

    chunks: yields SURVIVOR rows in any order and size, read once. Ids must be unique (a repeated one next to its twin
    in the total order is a ValueError). seen: URLs kept by earlier runs: survivors with such a URL lose before the
    others compete. signatures: unit -> uint32 [rows of the unit, permutations]; needed by method minhash only.
    memory_rows: most rows of a table in memory at once. Beside them stands one byte a survivor (the stage it lost in).
    blocks_in_front: see `simhash.pairs`; like memory_rows it changes time and disk, never the outcome.

    Stages: seen -> URL -> exact -> fuzzy; who loses one does not compete in the next. In each, a document survives iff
    fewer than `keep_copies` survivors that equal it (or are near it) precede it in the total order `settings.order`. A
    loser names the best of those; where that one loses later, the loser names what beat it, until a kept document is
    reached (asserted). The copies of a kept document are itself and all losers of URL, exact and fuzzy that name it:
    summed over kept documents they are survivors - seen.
    """
    return _Run(settings, work, seen, signatures, memory_rows, blocks_in_front).run(chunks)


class _Run:
    def __init__(
        self,
        settings: Dedup,
        work: Path,
        seen: SeenUrls | None,
        signatures: Signatures | None,
        memory_rows: int,
        blocks_in_front: int | None,
    ) -> None:
        self.settings, self.work, self.seen, self.signatures = settings, work, seen, signatures
        self.memory_rows, self.blocks_in_front = memory_rows, blocks_in_front
        self.temporary = work / "temporary"
        self.ranked = RowFile(self.temporary / "ranked", SURVIVOR)
        self.status = np.zeros(0, np.uint8)
        self.expected = 0.0

    def run(self, chunks: Callable[[], Iterator[Rows]]) -> Outcome:
        shutil.rmtree(self.work, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        self.ranked.write(self._ranks(chunks()))
        self.status = np.zeros(len(self.ranked), np.uint8)
        beaten = RowFile(self.temporary / "beaten", BEATEN)
        beaten.write(self._stages())
        by_rank = RowFile(self.temporary / "beaten_by_rank", BEATEN)
        by_rank.write(self._sort(beaten.chunks(self._piece), "rank"))
        pairs = self._write_pairs()
        self._write_tables(by_rank)
        counts = {name: int(np.count_nonzero(self.status == stage)) for stage, name in enumerate(STAGES)}
        kept = counts.pop("kept")
        assert kept + sum(counts.values()) == len(self.ranked)
        result = {
            "survivors": len(self.ranked),
            "kept": kept,
            "losers": counts,
            "pairs": pairs,
            "expected_false_drops": self.expected,
        }
        write_json(self.work / "outcome.json", result)
        shutil.rmtree(self.temporary)
        return Outcome.load(self.work)

    @property
    def _piece(self) -> int:
        return min(self.memory_rows, 1 << 18)  # rows read at once where nothing has to be sorted

    def _sort(self, chunks: Iterator[Rows], *names: str) -> Iterator[Rows]:
        return external_sort(chunks, by(*names), self.temporary / f"sort-{'-'.join(names)}", self.memory_rows)

    def _ranks(self, chunks: Iterator[Rows]) -> Iterator[Rows]:
        """Survivors in the total order; their position is their rank."""
        last: Rows | None = None
        order = list(dict.fromkeys(self.settings.order))
        for chunk in external_sort(chunks, winners_first(order), self.temporary / "sort-rank", self.memory_rows):
            joined = chunk if last is None else np.concatenate([last, chunk])
            # A document that was given twice stands beside itself. Uniqueness as such is asserted where ids are made.
            same = (joined["id_hi"][1:] == joined["id_hi"][:-1]) & (joined["id_lo"][1:] == joined["id_lo"][:-1])
            if same.any():
                twin = joined[np.flatnonzero(same)[0]]
                raise ValueError(f"two survivors have the id {int(twin['id_hi']):016x}{int(twin['id_lo']):016x}")
            last = chunk[-1:]
            yield chunk

    def _alive(self) -> Iterator[tuple[npt.NDArray[np.int64], Rows]]:
        """(ranks, rows) of the survivors that have not lost so far, in order."""
        start = 0
        for chunk in self.ranked.chunks(self._piece):
            index = np.flatnonzero(self.status[start : start + len(chunk)] == 0)
            yield start + index, chunk.take(index)
            start += len(chunk)

    def _stages(self) -> Iterator[Rows]:
        if self.seen is not None:
            yield from self._seen(self.seen)
        if self.settings.url:
            yield from self._keyed("url", URL)
        if self.settings.exact:
            yield from self._keyed("exact", EXACT)
        if self.settings.fuzzy.method != "none":
            yield from self._fuzzy()

    def _seen(self, seen: SeenUrls) -> Iterator[Rows]:
        asked = 0
        for ranks, rows in self._alive():
            where = seen.which(rows["url_hi"], rows["url_lo"])
            hit = where >= 0
            beaten = np.zeros(int(hit.sum()), BEATEN)
            beaten["rank"], beaten["winner"], beaten["stage"] = ranks[hit], where[hit], SEEN
            self.status[ranks[hit]] = SEEN
            asked += int(np.count_nonzero(((rows["url_hi"] != 0) | (rows["url_lo"] != 0)) & ~hit))
            yield beaten
        self.expected = seen.expected_false_drops(asked)

    def _keyed(self, name: str, stage: int) -> Iterator[Rows]:
        def keyed() -> Iterator[Rows]:
            for ranks, rows in self._alive():
                has = (rows[f"{name}_hi"] != 0) | (rows[f"{name}_lo"] != 0)
                out = np.empty(int(has.sum()), KEYED)
                out["hi"], out["lo"], out["rank"] = rows[f"{name}_hi"][has], rows[f"{name}_lo"][has], ranks[has]
                yield out

        # All keys are read before the first loser comes out, so that `status` may change below the iterator.
        return same_key(
            keyed(), stage, self.settings.keep_copies, self.status, self.temporary / f"sort-{name}", self.memory_rows
        )

    def _fuzzy(self) -> Iterator[Rows]:
        fuzzy, copies = self.settings.fuzzy, self.settings.keep_copies
        nodes = RowFile(self.temporary / "nodes", NODE)
        rest = RowFile(self.temporary / "rest", EDGE)
        edges = RowFile(self.temporary / "edges", EDGE)
        names: tuple[str, ...] = ("fingerprint",)
        rows: Iterator[Rows] = self._fingerprints()
        similar: minhash.Sketches | None = None
        if fuzzy.method == "minhash":
            if self.signatures is None:
                raise ValueError("method minhash needs signatures")
            similar = minhash.Sketches(fuzzy, self.temporary / "signatures", self.signatures, self.memory_rows)
            rows, names = similar.sketches(self._sort(self._eligible(), "unit", "row")), ("hi", "lo")
            nodes = RowFile(nodes.path, minhash.SKETCH)
        equal = 0.0 if similar is None else 1.0
        with rest.path.open("wb") as rest_file:

            def first_ones() -> Iterator[Rows]:
                for first, later in collapse(rows, names, copies, self.temporary / "sort-collapse", self.memory_rows):
                    later["value"] = equal
                    later.tofile(rest_file)
                    yield first

            count = nodes.write(first_ones())
        for later in rest.chunks(self._piece):
            beaten = np.zeros(len(later), BEATEN)
            beaten["rank"], beaten["winner"], beaten["stage"], beaten["value"] = (
                later["b"],
                later["a"],
                FUZZY,
                later["value"],
            )
            self.status[later["b"]] = FUZZY
            yield beaten

        def read() -> Iterator[Rows]:
            return nodes.chunks(self._piece)

        found: Iterator[Rows]
        if similar is None:
            found = simhash.pairs(
                read,
                count,
                fuzzy.search_distance,
                self.temporary / "sort-table",
                self.memory_rows,
                self.blocks_in_front,
            )
        else:
            found = similar.pairs(read)
        edges.write(self._sort(chain(found, rest.chunks(self._piece)), "b", "a"))
        near: Callable[[Rows], Rows] = (
            (lambda v: v <= fuzzy.distance) if similar is None else (lambda v: v >= np.float32(0))
        )
        yield from resolve(edges.chunks(self._piece), near, copies, self.status)

    def _eligible(self) -> Iterator[Rows]:
        for ranks, rows in self._alive():
            enough = rows["shingles"] >= max(1, self.settings.fuzzy.min_shingles)
            out = np.empty(int(enough.sum()), minhash.PLACE)
            out["unit"], out["row"], out["rank"] = rows["unit"][enough], rows["row"][enough], ranks[enough]
            yield out

    def _fingerprints(self) -> Iterator[Rows]:
        for ranks, rows in self._alive():
            enough = rows["shingles"] >= max(1, self.settings.fuzzy.min_shingles)
            out = np.empty(int(enough.sum()), NODE)
            out["fingerprint"], out["rank"] = rows["simhash"][enough], ranks[enough]
            yield out

    def _write_pairs(self) -> int:
        edges = RowFile(self.temporary / "edges", EDGE)

        def named() -> Iterator[Rows]:
            for chunk in edges.chunks(self._piece):
                out = np.empty(len(chunk), PAIR)
                for side in ("a", "b"):
                    rows = self.ranked.take(chunk[side])
                    out[f"{side}_hi"], out[f"{side}_lo"] = rows["id_hi"], rows["id_lo"]
                out["value"] = chunk["value"]
                yield out

        return RowFile(self.work / "pairs.bin", PAIR).write(named())

    def _finals(self, by_rank: RowFile) -> Iterator[Rows]:
        """All BEATEN rows by rank, each with a kept winner."""
        prefix = _prefix(self.status)
        for chunk in by_rank.chunks(self._piece):
            while True:
                open_ = (chunk["stage"] != SEEN) & (
                    self.status[np.where(chunk["stage"] == SEEN, 0, chunk["winner"])] != 0
                )
                if not open_.any():
                    break
                beaters = by_rank.take(_positions(self.status, prefix, chunk["winner"][open_]))
                assert (beaters["rank"] == chunk["winner"][open_]).all() and (beaters["winner"] < beaters["rank"]).all()
                chunk["value"][open_] = np.where(
                    chunk["stage"][open_] == FUZZY, beaters["value"], chunk["value"][open_]
                )
                chunk["winner"][open_] = beaters["winner"]
            yield chunk

    def _write_tables(self, by_rank: RowFile) -> None:
        """losers.bin and copies.bin, sorted by (unit, row), and where each unit's rows stand in them."""
        winners = RowFile(self.temporary / "winners", np.dtype([("rank", "<i8")]))

        def placed() -> Iterator[Rows]:
            with winners.path.open("wb") as file:
                for chunk in self._finals(by_rank):
                    honest = chunk["stage"] != SEEN
                    assert not self.status[chunk["winner"][honest]].any(), "a named winner was not kept"
                    np.ascontiguousarray(chunk["winner"][honest]).tofile(file)
                    out = np.zeros(len(chunk), LOSER)
                    rows = self.ranked.take(chunk["rank"])
                    out["unit"], out["row"], out["stage"], out["value"] = (
                        rows["unit"],
                        rows["row"],
                        chunk["stage"],
                        chunk["value"],
                    )
                    out["winner_lo"] = chunk["winner"]  # SEEN: the number of the filter
                    ids = self.ranked.take(chunk["winner"][honest])
                    out["winner_hi"][honest], out["winner_lo"][honest] = ids["id_hi"], ids["id_lo"]
                    yield out

        def stands_for() -> Iterator[Rows]:
            for ranks, counts in _run_lengths(self._sort(winners.chunks(self._piece), "rank")):
                rows = self.ranked.take(ranks)
                out = np.empty(len(ranks), COPIES)
                out["unit"], out["row"], out["copies"] = rows["unit"], rows["row"], counts + 1
                yield out

        places: dict[int, list[int]] = {}
        for column, (name, dtype, rows) in enumerate((("losers", LOSER, placed), ("copies", COPIES, stands_for))):
            position = 0

            def counted(rows: Callable[[], Iterator[Rows]] = rows, column: int = column) -> Iterator[Rows]:
                nonlocal position
                for chunk in self._sort(rows(), "unit", "row"):
                    units, counts = np.unique(chunk["unit"], return_counts=True)
                    for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
                        entry = places.setdefault(unit, [0, 0, 0, 0])
                        if entry[2 * column + 1] == 0:
                            entry[2 * column] = position
                        position += count
                        entry[2 * column + 1] = position
                    yield chunk

            RowFile(self.work / f"{name}.bin", dtype).write(counted())
        index = np.array([(unit, *places[unit]) for unit in sorted(places)], INDEX)
        np.save(self.work / "units.npy", index)


def _run_lengths(chunks: Iterator[Rows]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(values, counts) of the runs of sorted `rank`s, runs that cross a chunk's end joined."""
    value, count = -1, 0
    for chunk in chunks:
        values, counts = np.unique(chunk["rank"], return_counts=True)
        if count and values[0] == value:
            counts[0] += count
        elif count:
            values, counts = np.insert(values, 0, value), np.insert(counts, 0, count)
        value, count = int(values[-1]), int(counts[-1])
        if len(values) > 1:
            yield values[:-1], counts[:-1]
    if count:
        yield np.array([value], np.int64), np.array([count], np.int64)


_STRIDE = 1 << 12


def _prefix(status: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Losers before every _STRIDE-th rank."""
    counts = [int(np.count_nonzero(status[i : i + _STRIDE])) for i in range(0, len(status), _STRIDE)]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@numba.njit(cache=True)
def _positions_kernel(status, prefix, ranks, stride, out):  # type: ignore[no-untyped-def]
    for i in range(len(ranks)):
        block = ranks[i] // stride
        count = prefix[block]
        for j in range(block * stride, ranks[i]):
            count += status[j] != 0
        out[i] = count


def _positions(status: npt.NDArray[np.uint8], prefix: npt.NDArray[np.int64], ranks: Any) -> npt.NDArray[np.int64]:
    """Position of each loser in the table of losers by rank = how many losers precede it."""
    out = np.empty(len(ranks), np.int64)
    _positions_kernel(status, prefix, np.ascontiguousarray(ranks), _STRIDE, out)
    return out
