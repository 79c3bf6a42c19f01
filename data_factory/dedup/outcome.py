"""What deduplication decided, as tables on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory.dedup.rows import COPIES, LOSER, PAIR, RowFile, Rows
from data_factory.documents import table_writer
from ziya.files import read_json

INDEX = np.dtype([("unit", "<u4"), ("losers", "<i8"), ("losers_end", "<i8"), ("copies", "<i8"), ("copies_end", "<i8")])
# The near-duplicate pairs; `distance`: Hamming distance, or 1 - estimated Jaccard similarity.
PAIRS = pa.schema([("id_a", pa.string()), ("id_b", pa.string()), ("distance", pa.float32())])


@dataclass(frozen=True)
class Outcome:
    """What deduplication decided; its tables lie in `work`, so that worker processes can `load` it.

    `survivors`, `kept`: documents. `losers`: documents by stage (seen, url, exact, fuzzy). `pairs`: near-duplicate
    pairs found. `expected_false_drops`: how many of the `seen` losers the Bloom filters' error rates let expect to be
    wrong.
    """

    work: Path
    survivors: int
    kept: int
    losers: dict[str, int]
    pairs: int
    expected_false_drops: float

    @classmethod
    def load(cls, work: Path) -> Outcome:
        """The outcome of a finished `deduplicate` in `work`."""
        return cls(work=work, **read_json(work / "outcome.json"))

    def for_unit(self, unit: int) -> tuple[Rows, Rows]:
        """(LOSER rows, COPIES rows) of a unit, each sorted by row. Kept documents without a COPIES row stand for
        themselves alone.
        """
        index = np.load(self.work / "units.npy")
        at = int(np.searchsorted(index["unit"], unit))
        if at == len(index) or index["unit"][at] != unit:
            return np.empty(0, LOSER), np.empty(0, COPIES)
        entry = index[at]
        losers = RowFile(self.work / "losers.bin", LOSER).read(int(entry["losers"]), int(entry["losers_end"]))
        return losers, RowFile(self.work / "copies.bin", COPIES).read(int(entry["copies"]), int(entry["copies_end"]))

    def near_pairs(self, rows: int = 1 << 16) -> Iterator[Rows]:
        """All near-duplicate pairs (PAIR) found among survivors of URL and exact, `rows` at a time, by (rank of b, rank
        of a).

        The first `keep_copies` documents of a sketch stand for it; every further one is listed with the first of its
        sketch only.
        """
        return RowFile(self.work / "pairs.bin", PAIR).chunks(rows)


def hex_ids(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> pa.StringArray:
    """128-bit ids as strings of 32 hexadecimal digits."""
    text = np.stack([high, low], axis=1).astype(">u8").tobytes().hex().encode()
    offsets = 32 * np.arange(len(high) + 1, dtype=np.int32)
    return pa.StringArray.from_buffers(len(high), pa.py_buffer(offsets), pa.py_buffer(text))


def write_pairs(outcome: Outcome, path: Path, is_similarity: bool = False) -> None:
    """Write all near pairs as Parquet (schema PAIRS). `is_similarity`: the pairs come from minhash."""
    with table_writer(path, PAIRS) as writer:
        for chunk in outcome.near_pairs():
            distance = np.float32(1) - chunk["value"] if is_similarity else chunk["value"]
            columns = [hex_ids(chunk["a_hi"], chunk["a_lo"]), hex_ids(chunk["b_hi"], chunk["b_lo"])]
            writer.write(pa.Table.from_arrays([*columns, pa.array(distance, pa.float32())], schema=PAIRS))
