"""Token packs: Megatron's indexed dataset, written as a stream and read through a memory map.

A pack is two files. A **document** of the format is one training sample of exactly `sequence_length` tokens; a
**sequence** of the format is one piece of it (a text, a part of a text, or padding), so that a trainer finds the
borders of texts inside a sample.

`PREFIX.bin`: the tokens of all sequences end to end, little-endian, nothing else.

`PREFIX.idx`, little-endian:

| bytes | content |
|---|---|
| 9 | magic `MMIDIDX\\x00\\x00` |
| 8 | uint64 version, 1 |
| 1 | uint8 type of a token: 4 int32, 8 uint16 (1 uint8, 2 int8, 3 int16, 5 int64, 6 float64, 7 float32) |
| 8 | uint64 s, number of sequences |
| 8 | uint64 d + 1, number of documents plus one |
| 4 s | int32, tokens of each sequence |
| 8 s | int64, byte offset of each sequence in the .bin |
| 8 (d + 1) | int64, first sequence of each document; the last entry is s |

The layout is the one of `megatron.core.datasets.indexed_dataset.IndexedDataset`, which reads these files.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from ziya.errors import UserError
from ziya.files import atomic_path, file_digest

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
CODES: dict[int, type[np.number[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
UINT16_LIMIT = 65_500  # vocabularies below it fit two bytes; the border is Megatron's
_ROWS = 1 << 20  # rows of the index that are in memory at once

Tokens = npt.NDArray[Any]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 for vocabularies below 65,500 pieces, else int32, as Megatron chooses."""
    return np.dtype(np.uint16 if vocab_size < UINT16_LIMIT else np.int32)


def bin_path(prefix: Path) -> Path:
    """`PREFIX.bin`."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """`PREFIX.idx`."""
    return prefix.with_name(prefix.name + ".idx")


@contextlib.contextmanager
def pack_writer(prefix: Path, sequence_length: int, dtype: npt.DTypeLike) -> Iterator[PackWriter]:
    """Write `PREFIX.bin` and `PREFIX.idx`; both appear together, verified, when the block ends without an error.

    Memory does not grow with the pack: tokens go straight to the file, sizes and borders are spooled beside it.
    """
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(atomic_path(idx_path(prefix)))  # renamed last: a .idx without its .bin never exists
        tokens = stack.enter_context(atomic_path(bin_path(prefix)))
        spools = [stack.enter_context(_spool(index, name)) for name in ("sizes", "documents")]
        writer = PackWriter(
            stack.enter_context(tokens.open("wb")), spools[0], spools[1], sequence_length, np.dtype(dtype)
        )
        yield writer
        writer.write_index(index)
        if file_digest(tokens) != writer.digest or tokens.stat().st_size != writer.tokens * writer.dtype.itemsize:
            raise OSError(f"{bin_path(prefix)}: what was read back differs from what was written")
        _check(index, tokens, sequence_length)
        idx_path(prefix).unlink(missing_ok=True)  # an index of an earlier run never meets the new tokens


@contextlib.contextmanager
def _spool(beside: Path, name: str) -> Iterator[IO[bytes]]:
    path = beside.with_name(f"{beside.name}-{name}")
    try:
        with path.open("w+b") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


class PackWriter:
    """Appends samples; made by `pack_writer`. `samples`, `sequences`, `tokens`: what was written so far."""

    def __init__(
        self, file: IO[bytes], sizes: IO[bytes], documents: IO[bytes], sequence_length: int, dtype: np.dtype[Any]
    ) -> None:
        self.dtype = dtype
        self.sequence_length = sequence_length
        self.samples = self.sequences = self.tokens = 0
        self._code = next(code for code, known in CODES.items() if np.dtype(known) == dtype)
        self._file, self._sizes, self._documents = file, sizes, documents
        self._hash = xxhash.xxh3_128()

    def add(self, tokens: Tokens, lengths: npt.NDArray[np.integer[Any]], pieces: npt.NDArray[np.integer[Any]]) -> None:
        """Append whole samples.

        `tokens`: [samples * sequence_length]; `lengths`: tokens of each sequence, [sequences], all positive; `pieces`:
        sequences of each sample, [samples]. Raises ValueError when a sample has not exactly `sequence_length` tokens.
        """
        lengths, pieces = np.asarray(lengths, np.int64), np.asarray(pieces, np.int64)
        ends = np.cumsum(pieces)
        if len(tokens) != len(pieces) * self.sequence_length or (ends[-1] if len(ends) else 0) != len(lengths):
            raise ValueError(
                f"{len(tokens)} tokens and {len(lengths)} sequences do not make "
                f"{len(pieces)} samples of {self.sequence_length}"
            )
        if not len(pieces):
            return
        borders = np.cumsum(lengths)[ends - 1]
        if (
            (lengths <= 0).any()
            or (pieces <= 0).any()
            or (borders != np.arange(1, len(pieces) + 1) * self.sequence_length).any()
        ):
            raise ValueError(
                f"every sequence must be longer than 0 and every sample exactly {self.sequence_length} tokens"
            )
        info = np.iinfo(self.dtype)
        if len(tokens) and tokens.dtype != self.dtype and not (info.min <= tokens.min() and tokens.max() <= info.max):
            raise ValueError(f"token ids {tokens.min()} to {tokens.max()} do not fit {self.dtype}")
        data = np.ascontiguousarray(tokens, self.dtype.newbyteorder("<")).data
        self._file.write(data)
        self._hash.update(data)
        self._sizes.write(lengths.astype("<i4").tobytes())
        self._documents.write((self.sequences + ends).astype("<i8").tobytes())
        self.samples += len(pieces)
        self.sequences += len(lengths)
        self.tokens += len(tokens)

    @property
    def digest(self) -> str:
        """128-bit xxh3 of the .bin as written so far, 32 hexadecimal characters."""
        return str(self._hash.hexdigest())

    def write_index(self, path: Path) -> None:
        """Flush the tokens and write the index; called by `pack_writer`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        with path.open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, self._code, self.sequences, self.samples + 1))
            for chunk in _chunks(self._sizes, "<i4"):
                file.write(chunk.tobytes())
            pointer = 0
            for chunk in _chunks(self._sizes, "<i4"):
                ends = pointer + np.cumsum(chunk.astype(np.int64)) * self.dtype.itemsize
                file.write(np.concatenate([[pointer], ends[:-1]]).astype("<i8").tobytes())
                pointer = int(ends[-1])
            file.write(struct.pack("<q", 0))
            for chunk in _chunks(self._documents, "<i8"):
                file.write(chunk.tobytes())


def _chunks(file: IO[bytes], dtype: str) -> Iterator[npt.NDArray[Any]]:
    file.seek(0)
    while data := file.read(_ROWS * np.dtype(dtype).itemsize):
        yield np.frombuffer(data, dtype)


def _check(index: Path, tokens: Path, sequence_length: int) -> None:
    """Read the index back: sizes positive, pointers their running sum, every sample of `sequence_length` tokens."""
    reader = PackReader(tokens, index=index)
    running = 0
    itemsize = reader.dtype.itemsize
    for first in range(0, reader.sequences, _ROWS):
        sizes = reader.sizes[first : first + _ROWS].astype(np.int64)
        ends = running + np.cumsum(sizes) * itemsize
        if (sizes <= 0).any() or (reader.pointers[first : first + _ROWS] != ends - sizes * itemsize).any():
            raise OSError(f"{index}: what was read back differs from what was written")
        running = int(ends[-1])
    for first in range(0, len(reader), _ROWS):
        starts = reader.borders[first : min(first + _ROWS, len(reader))]
        expected = np.arange(first, first + len(starts)) * (sequence_length * itemsize)
        if (reader.pointers[starts] != expected).any():
            raise OSError(f"{index}: what was read back differs from what was written")
    reader.close()


class PackReader:
    """A pack through a memory map. `len(reader)`: samples; `sequences`: pieces of all samples; `dtype`: a token's type.

    `sizes` int32 [sequences], `pointers` int64 [sequences] (bytes), `borders` int64 [samples + 1] (first piece of each
    sample; the last entry is the number of pieces).
    """

    def __init__(self, prefix: Path, *, index: Path | None = None) -> None:
        """`prefix`: path without `.bin` and `.idx` (with `index`: the .bin itself). UserError on a broken pack."""
        tokens, index = (prefix, index) if index is not None else (bin_path(prefix), idx_path(prefix))
        for path in (tokens, index):
            if not path.is_file():
                raise UserError(f"pack {path} does not exist: give the path of a pack without its .bin or .idx")
        size = index.stat().st_size
        with index.open("rb") as file:
            head = file.read(HEADER.size)
        if len(head) < HEADER.size or head[:9] != MAGIC:
            raise UserError(f"{index} is not the index of a pack: it must start with {MAGIC!r}")
        _, version, code, self.sequences, documents = HEADER.unpack(head)
        if version != VERSION or code not in CODES:
            raise UserError(
                f"{index} has version {version} and token type {code}: version {VERSION} and types 1 to 8 can be read"
            )
        need = HEADER.size + 12 * self.sequences + 8 * documents
        if documents < 1 or size < need:
            raise UserError(f"{index} has {size} bytes and needs {need}: it is cut short, make the pack again")
        self.dtype = np.dtype(CODES[code]).newbyteorder("<")
        data = np.memmap(index, np.uint8, "r")
        offset = HEADER.size
        self.sizes = data[offset : offset + 4 * self.sequences].view("<i4")
        offset += 4 * self.sequences
        self.pointers = data[offset : offset + 8 * self.sequences].view("<i8")
        offset += 8 * self.sequences
        self.borders = data[offset : offset + 8 * documents].view("<i8")
        end = int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if self.sequences else 0
        if self.borders[0] != 0 or self.borders[-1] != self.sequences or tokens.stat().st_size != end:
            raise UserError(
                f"{tokens} has {tokens.stat().st_size} bytes and its index tells of {end}: make the pack again"
            )
        self.tokens: Tokens = np.memmap(tokens, self.dtype, "r") if end else np.zeros(0, self.dtype)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.borders) - 1

    def sequence(self, i: int) -> Tokens:
        """Tokens of piece `i` of the whole pack, a view [sizes[i]]."""
        start = int(self.pointers[i]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.sizes[i])]

    def sample(self, i: int) -> Tokens:
        """Tokens of sample `i`, a view [sequence_length]."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        first, last = int(self.borders[i]), int(self.borders[i + 1])
        if first == last:
            return self.tokens[:0]
        start = int(self.pointers[first]) // self.dtype.itemsize
        return self.tokens[start : int(self.pointers[last - 1]) // self.dtype.itemsize + int(self.sizes[last - 1])]

    def piece_lengths(self, i: int) -> npt.NDArray[np.int32]:
        """Tokens of each piece of sample `i`, int32 [pieces]; they sum to its length."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        lengths: npt.NDArray[np.int32] = self.sizes[int(self.borders[i]) : int(self.borders[i + 1])]
        return lengths

    def close(self) -> None:
        """Drop the memory maps (views that were handed out stay valid)."""
        self.tokens = np.zeros(0, self.dtype)
        self.sizes, self.pointers, self.borders = (np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(1, np.int64))
