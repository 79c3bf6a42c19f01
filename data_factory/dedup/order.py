"""External sort in bounded memory, and the total order of winners."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_factory.dedup.rows import RowFile, Rows

Key = Callable[[Rows], tuple[Rows, ...]]  # rows -> the columns to compare by, most significant first


def by(*names: str) -> Key:
    """Key that compares the named fields in ascending order."""
    return lambda rows: tuple(rows[name] for name in names)


def winners_first(order: Sequence[str]) -> Key:
    """Key of the total order among survivors: `order` names tier (best first), length (longest first), date (latest
    first), id.

    The id always decides last, so that no two documents are equal.
    """
    columns: dict[str, Key] = {
        "tier": by("tier"),
        "length": lambda rows: (~rows["chars"],),
        "date": lambda rows: (~rows["date"],),  # ~x = -x - 1: descending, without overflow at the smallest value
        "id": by("id_hi", "id_lo"),
    }
    names = [*order, "id"]
    return lambda rows: tuple(column for name in names for column in columns[name](rows))


def sort_rows(rows: Rows, key: Key) -> Rows:
    """`rows` sorted by `key`, equal rows in the order given."""
    columns = key(rows)
    first = np.ascontiguousarray(columns[0])
    order = np.argsort(first, kind="stable")
    if len(columns) > 1 and len(rows) > 1:
        # Only rows that agree in the first column need the others: for hashes that is hardly any.
        ordered = first[order]
        tied = np.zeros(len(rows), bool)
        tied[1:] = ordered[1:] == ordered[:-1]
        tied[:-1] |= tied[1:]
        places = np.flatnonzero(tied)
        inside = order[places]
        order[places] = inside[np.lexsort([*(column[inside] for column in columns[:0:-1]), ordered[places]])]
    return rows.take(order)  # on structured rows several times faster than rows[order]


def external_sort(chunks: Iterable[Rows], key: Key, folder: Path, memory_rows: int) -> Iterator[Rows]:
    """All rows of `chunks` sorted by `key`, in pieces of at most about `memory_rows` rows; equal rows in the order of
    their input.

    Up to `memory_rows` rows are sorted in memory and never touch the disk. Beyond that, sorted runs go to `folder`
    (emptied at the end) and are merged piece by piece: the borders of the pieces are rows sampled at regular distances
    in every run (Shi and Schaeffer 1992), so that no skew of the keys, not even one key in every row, makes a piece
    larger than memory_rows + runs rows.
    """
    runs: list[RowFile] = []
    pending: list[Rows] = []
    count = 0
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), memory_rows):
                part = chunk[start : start + memory_rows]
                if count + len(part) > memory_rows:
                    runs.append(_spill(pending, key, folder / f"run{len(runs):06d}"))
                    count = 0
                pending.append(part)
                count += len(part)
        if not runs:
            if pending:
                yield _sorted(pending, key)
            return
        runs.append(_spill(pending, key, folder / f"run{len(runs):06d}"))
        yield from _merge(runs, key, memory_rows)
    finally:
        if runs:
            shutil.rmtree(folder, ignore_errors=True)


def _sorted(pending: list[Rows], key: Key) -> Rows:
    """All of `pending` sorted; the list is emptied, so that no more than two copies of its rows are in memory."""
    joined = np.concatenate(pending) if len(pending) > 1 else pending[0]
    pending.clear()
    return sort_rows(joined, key)


def _spill(pending: list[Rows], key: Key, path: Path) -> RowFile:
    rows = _sorted(pending, key)
    file = RowFile(path, rows.dtype)
    file.write(iter([rows]))
    return file


def _merge(runs: list[RowFile], key: Key, memory_rows: int) -> Iterator[Rows]:
    sizes = np.array([len(run) for run in runs], np.int64)
    step = max(1, memory_rows // (4 * len(runs)))  # rows that one sample stands for
    parts = [
        (run.take(np.arange(0, len(run), step)), np.arange(0, len(run), step), number)
        for number, run in enumerate(runs)
    ]
    samples = np.concatenate([part[0] for part in parts])
    positions = np.concatenate([part[1] for part in parts])
    numbers = np.concatenate([np.full(len(part[1]), part[2]) for part in parts])
    # Samples in the total order (key, run, position); every `take`-th one starts a piece of at most (take + runs) *
    # step rows.
    ordered = np.lexsort((positions, numbers, *key(samples)[::-1]))
    take = max(1, memory_rows // step - len(runs))
    begin = np.zeros(len(runs), np.int64)
    for border in [*ordered[take::take].tolist(), -1]:
        end = (
            sizes
            if border < 0
            else _split(runs, key, samples[border : border + 1], int(numbers[border]), int(positions[border]))
        )
        pieces = [run.read(int(a), int(b)) for run, a, b in zip(runs, begin, end, strict=True) if b > a]
        if pieces:
            yield _sorted(pieces, key)
        begin = end


def _split(runs: list[RowFile], key: Key, row: Rows, number: int, position: int) -> npt.NDArray[np.int64]:
    """Rows of every run that come before row `position` of run `number` in the order (key, run, position)."""
    target = _tuple(key(row))
    cuts = np.empty(len(runs), np.int64)
    for i, run in enumerate(runs):
        low, high = (position, position) if i == number else (0, len(run))
        while low < high:
            middle = (low + high) // 2
            here = _tuple(key(run.read(middle, middle + 1)))
            if here < target or (here == target and i < number):
                low = middle + 1
            else:
                high = middle
        cuts[i] = low
    return cuts


def _tuple(columns: tuple[Rows, ...]) -> tuple[Any, ...]:
    return tuple(column[0].item() for column in columns)
