"""Lines that recur across the corpus: keys of lines, how many distinct documents hold each, candidate cuts (cc_net's
paragraph key, rule P16).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import I32, Spans, TextBatch
from data_factory.characters import (
    DIGIT,
    LETTER,
    decode,
    encode,
    flags_of,
    lower_table,
    table,
)
from data_factory.dedup.hashing import SEED_LINE, mix64, murmur128_buffer, rotate
from data_factory.dedup.keys import STRIPPED, ascii_keys
from data_factory.dedup.order import by, external_sort, sort_rows
from data_factory.dedup.rows import RowFile, Rows
from ziya.errors import UserError
from ziya.files import atomic_path

U64 = npt.NDArray[np.uint64]
ONE, TWO = np.uint64(1), np.uint64(2)
LINE = np.dtype([("key", "<u8"), ("document", "<u8")])  # document: hash of the whole T1, equal for copies of a page
MAGIC = b"ZIYALIN1"


@numba.njit(cache=True)
def _lines(  # type: ignore[no-untyped-def]
    data, offsets, rows, starts, ends, min_chars, flags, lower, stripped, letters, digit, ascii_key, seed
):
    n = len(offsets) - 1
    most = n
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    for i in range(len(data)):
        most += data[i] == 10
    doc = np.empty(most, np.int32)
    start = np.empty(most, np.int32)
    end = np.empty(most, np.int32)
    key = np.empty(most, np.uint64)
    words = np.empty((longest + longest // 2 + 12) >> 3, np.uint64)  # lower-casing may lengthen two bytes to three
    out = words.view(np.uint8)
    count = 0
    for i in range(n):
        base = offsets[i]
        size = offsets[i + 1] - base
        span = rows[i]
        a = 0
        while a < size:
            # unsigned positions: signed ones are checked for being negative at every access
            o = np.uint64(0)
            chars = 0
            p, stop = np.uint64(base + a), np.uint64(base + size)
            while p < stop:
                byte = data[p]
                if byte < 0x80:
                    if byte == 10:
                        break
                    value = ascii_key[byte]
                    out[o] = value
                    o += np.uint64(value != 0)
                    chars += value != 0  # what is not stripped of ASCII is a letter or a digit
                    p += ONE
                    continue
                if 0xE5 <= byte <= 0xE9:  # U+5000 to U+9FFF: Han, always a letter and without case
                    out[o], out[o + ONE], out[o + TWO] = byte, data[p + ONE], data[p + TWO]
                    o += TWO + ONE
                    chars += 1
                    p += TWO + ONE
                    continue
                point, width = decode(data, numba.int64(p))
                p += np.uint64(width)
                flag = flags_of(flags, point)
                if flag & stripped:
                    continue
                if flag & letters:
                    chars += 1
                if flag & digit:
                    point = numba.int32(48)
                elif point < 0x20000:
                    point = lower[point]
                o = np.uint64(encode(out, numba.int64(o), point))
            b = numba.int64(p) - base
            while span < rows[i + 1] and ends[span] <= a:
                span += 1
            is_free = span >= rows[i + 1] or starts[span] >= b
            if chars >= min_chars and is_free:
                doc[count], start[count], end[count] = i, a, b
                key[count] = murmur128_buffer(words, numba.int64(o), seed)[0]
                count += 1
            a = b + 1
    return doc[:count], start[:count], end[:count], key[:count]


def line_keys(t1: TextBatch, protected: Spans, min_chars: int) -> tuple[I32, I32, I32, U64]:
    """Every countable line as (doc int32, start int32, end int32, key uint64), in text order; the newline is outside
    the span.

    Countable: at least `min_chars` letters or digits and no byte in a protected span. The key is the first half of the
    128-bit hash of the line stripped as an exact key, with every decimal digit as 0: "第3页 共12页" and
    "第 4 页, 共 15 页" are one line.
    """
    rows = protected.row_offsets(len(t1))
    result: tuple[I32, I32, I32, U64] = _lines(
        t1.data,
        t1.offsets,
        rows,
        protected.start,
        protected.end,
        min_chars,
        table(),
        lower_table(),
        STRIPPED,
        LETTER | DIGIT,
        DIGIT,
        ascii_keys(STRIPPED, DIGIT),
        SEED_LINE,
    )
    return result


@numba.njit(cache=True)
def _fold(high, low):  # type: ignore[no-untyped-def]
    out = np.empty(len(high), np.uint64)
    for i in range(len(high)):
        out[i] = mix64(high[i] ^ rotate(low[i], 32))
    return out


class UnitLines:
    """The lines of one unit on disk: LINE rows, sorted, each (line, distinct document) once."""

    @staticmethod
    def write(path: Path, keys: tuple[I32, I32, I32, U64], document_keys: tuple[U64, U64]) -> None:
        """Write a unit's lines: `keys` from `line_keys`, `document_keys` from `keys.exact_keys` of the same T1
        (documents with equal keys count as one). To write several batches of a unit at once, use `rows` and
        `write_rows`."""
        UnitLines.write_rows(path, [UnitLines.rows(keys, document_keys)])

    @staticmethod
    def rows(keys: tuple[I32, I32, I32, U64], document_keys: tuple[U64, U64]) -> Rows:
        """LINE rows of one batch, in text order: `write_rows` sorts them."""
        doc, _, _, key = keys
        out = np.empty(len(key), LINE)
        out["key"] = key
        out["document"] = _fold(*document_keys)[doc]
        return out

    @staticmethod
    def write_rows(path: Path, batches: Sequence[Rows]) -> None:
        """Write the LINE rows of all batches of a unit."""
        rows = _distinct(np.concatenate(batches)) if batches else np.empty(0, LINE)
        with atomic_path(path) as temporary:
            rows.tofile(temporary)


def _distinct(rows: Rows) -> Rows:
    """LINE rows, sorted, each once."""
    rows = sort_rows(rows, by("key", "document"))
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows["key"][1:] != rows["key"][:-1]) | (rows["document"][1:] != rows["document"][:-1])
    return rows if fresh.all() else rows.compress(fresh)


def merge(paths: Sequence[Path], floor: int, work: Path, out: Path, memory_rows: int = 4_000_000) -> int:
    """Count in how many distinct documents each line of all units stands and write those with at least `floor` to
    `out`.

    File: 8 bytes magic `ZIYALIN1`, n as `<u8`, n keys `<u8` ascending, n document counts `<u4`. Returns n. `work` holds
    temporary files. Neither the order of `paths` nor `memory_rows` changes a byte; at most about `memory_rows` rows are
    in memory.
    """
    work.mkdir(parents=True, exist_ok=True)
    piece = min(memory_rows, 1 << 18)
    chunks = (chunk for path in paths for chunk in RowFile(path, LINE).chunks(piece))
    keys, counts = work / "frequent.keys", work / "frequent.counts"
    number = 0
    with keys.open("wb") as key_file, counts.open("wb") as count_file:
        for key, count in _counts(external_sort(chunks, by("key", "document"), work / "sort-lines", memory_rows)):
            often = count >= floor
            key[often].astype("<u8").tofile(key_file)
            count[often].astype("<u4").tofile(count_file)
            number += int(often.sum())
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + number.to_bytes(8, "little"))
        for part in (keys, counts):
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 4 << 20)
            part.unlink()
    return number


def _counts(chunks: Iterator[Rows]) -> Iterator[tuple[U64, npt.NDArray[np.int64]]]:
    """(keys, distinct documents) of sorted LINE rows; a key that crosses a chunk's end is told once."""
    last: Rows = np.empty(0, LINE)
    open_count = 0  # distinct documents so far of the key of `last`
    for chunk in chunks:
        joined = np.concatenate([last, chunk])
        fresh = np.ones(len(joined), bool)  # another (key, document) than the row before
        fresh[1:] = (joined["key"][1:] != joined["key"][:-1]) | (joined["document"][1:] != joined["document"][:-1])
        fresh[: len(last)] = False
        heads = np.flatnonzero(np.concatenate([[True], joined["key"][1:] != joined["key"][:-1]]))
        counts = np.add.reduceat(fresh.astype(np.int64), heads)
        counts[0] += open_count
        keys = joined["key"][heads]
        yield keys[:-1], counts[:-1]
        last, open_count = joined[-1:], int(counts[-1])
    if len(last):
        yield last["key"], np.array([open_count], np.int64)


@dataclass(frozen=True)
class FrequentLines:
    """`keys`: uint64 [n] ascending; `documents`: uint32 [n]: in how many distinct documents the line stands.
    Memory-mapped when loaded.
    """

    keys: U64
    documents: npt.NDArray[np.uint32]

    @classmethod
    def load(cls, path: Path) -> FrequentLines:
        """Open a file that `merge` wrote."""
        with path.open("rb") as file:
            head = file.read(16)
        count = int.from_bytes(head[8:], "little")
        if head[:8] != MAGIC or path.stat().st_size != 16 + 12 * count:
            raise UserError(f"{path} is not a complete table of frequent lines: remove it and run again")
        if count == 0:
            return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint32))
        keys: Any = np.memmap(path, "<u8", "r", offset=16, shape=(count,))
        documents: Any = np.memmap(path, "<u4", "r", offset=16 + 8 * count, shape=(count,))
        return cls(keys, documents)

    def above(self, documents: int) -> FrequentLines:
        """Only the lines that stand in more than `documents` distinct documents, in memory."""
        chosen = np.flatnonzero(self.documents > documents)
        return FrequentLines(np.asarray(self.keys[chosen]), np.asarray(self.documents[chosen]))

    def count(self, keys: U64) -> npt.NDArray[np.uint32]:
        """Distinct documents of each line key, uint32 [m]; 0 where it is below the floor."""
        if len(self.keys) == 0:
            return np.zeros(len(keys), np.uint32)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.documents[at], 0).astype(np.uint32)


def candidates(t1: TextBatch, protected: Spans, frequent: FrequentLines, min_chars: int) -> Spans:
    """Spans of all lines that are in `frequent`: rule 0, value = in how many distinct documents the line stands
    (float32: exact to 2^24).
    """
    if len(frequent.keys) == 0:
        return Spans.empty()
    doc, start, end, key = line_keys(t1, protected, min_chars)
    count = frequent.count(key)
    found = count > 0
    return Spans(
        doc[found], start[found], end[found], np.zeros(int(found.sum()), np.int16), count[found].astype(np.float32)
    )
