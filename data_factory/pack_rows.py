"""Rows of a bucket as arrays, and the pieces that samples are made of: what `splice` and `whole` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory.shuffle import PACK
from ziya.pack_files import PIECES

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_STRINGS = ("id", "source", "lang", "tier", "task")


@dataclass(frozen=True)
class Samples:
    """Whole samples. `tokens`: [samples * sequence_length]; `pieces`: theirs, in order (PIECES without `piece`)."""

    tokens: npt.NDArray[Any]
    pieces: pa.Table


class Rows:
    """One bucket of n rows.

    `tokens`, `offsets`: ids of all rows end to end; `lengths` int64 [n]; `h1`, `h2` uint64, `copy`, `state` [n]: see
    `shuffle`; `tasks` int64 [n]: number of the task among the bucket's sorted tasks.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        lists = table.column("tokens").combine_chunks()
        self.offsets: I64 = lists.offsets.to_numpy()
        self.tokens = lists.values.to_numpy()
        self.lengths = np.diff(self.offsets)
        self.h1 = table.column("h1").to_numpy()
        self.h2 = table.column("h2").to_numpy()
        self.copy = table.column("copy").to_numpy()
        self.state = table.column("state").to_numpy()
        encoded = table.column("task").combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()
        number = {name: position for position, name in enumerate(sorted(names))}
        self.tasks: I64 = np.array([number[name] for name in names], np.int64)[encoded.indices.to_numpy()]

    def packed(self, longest: int | None = None) -> npt.NDArray[np.bool_]:
        """Which rows go into the pack: not left out by the ratio and, with EOS, not over `longest` tokens."""
        mask: npt.NDArray[np.bool_] = self.state == PACK
        return mask if longest is None else mask & (self.lengths + 1 <= longest)

    def in_order(self, mask: npt.NDArray[np.bool_]) -> I64:
        """Positions of the masked rows in shuffled order."""
        positions = np.flatnonzero(mask)
        return positions[np.lexsort((self.copy[positions], self.h2[positions], self.h1[positions]))]


@numba.njit(cache=True)
def place(tokens, offsets, order, starts, eos, out):  # type: ignore[no-untyped-def]
    """Copy row order[i] of `tokens` to out[starts[i]:] and end it with `eos`."""
    for i in range(len(order)):
        row = order[i]
        at = starts[i]
        for k in range(offsets[row], offsets[row + 1]):
            out[at] = tokens[k]
            at += 1
        out[at] = eos


def pieces_of(rows: Rows, row: I64, sample: I64, start: I64, tokens: I64) -> pa.Table:
    """Pieces, in order: `tokens` of document `row` from its token `start` on, in `sample`; all int64 [pieces]."""
    taken = rows.table.select([*_STRINGS, "perplexity", "prompt_tokens"]).take(pa.array(row))
    prompt = taken.column("prompt_tokens").to_numpy().astype(np.int64)
    columns = {name: taken.column(name) for name in (*_STRINGS, "perplexity")}
    columns |= {
        "sample": pa.array(sample),
        "tokens": pa.array(tokens.astype(np.int32)),
        "prompt_tokens": pa.array(np.clip(prompt - start, 0, tokens).astype(np.int32)),
        "start": pa.array(start),
    }
    return pa.table([columns[name] for name in _names()], schema=_schema())


def padding_piece(sample: I64, tokens: I64) -> pa.Table:
    """One padding piece per given sample."""
    n = len(sample)
    columns: dict[str, Any] = {name: pa.array([""] * n, pa.string()) for name in _STRINGS}
    columns |= {
        "sample": pa.array(np.asarray(sample, np.int64)),
        "perplexity": pa.nulls(n, pa.float32()),
        "tokens": pa.array(np.asarray(tokens, np.int32)),
        "prompt_tokens": pa.array(np.zeros(n, np.int32)),
        "start": pa.array(np.zeros(n, np.int64)),
    }
    return pa.table([columns[name] for name in _names()], schema=_schema())


def no_pieces() -> pa.Table:
    """An empty table of pieces."""
    return _schema().empty_table()


def _schema() -> pa.Schema:
    return PIECES.remove(PIECES.get_field_index("piece"))


def _names() -> list[str]:
    return [str(name) for name in _schema().names]
