"""Batches of texts as one UTF-8 buffer, and tables of spans over them: what every kernel takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TextBatch:
    """`n` documents. `data`: uint8, their UTF-8 bytes end to end; `offsets`: int64 [n + 1], document i is "
    "data[offsets[i]:offsets[i + 1]]."""

    data: U8
    offsets: I64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_arrow(cls, column: pa.Array | pa.ChunkedArray) -> TextBatch:
        """From a string or large_string column without nulls; the buffer is not copied."""
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if not pa.types.is_large_string(column.type):
            column = column.cast(pa.large_string())
        if column.null_count:
            raise ValueError("texts must not be null")
        if len(column) == 0:
            return cls(np.zeros(0, np.uint8), np.zeros(1, np.int64))
        _, offsets_buffer, data_buffer = column.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
        data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
        return cls(data[offsets[0] : offsets[-1]], offsets - offsets[0])

    @classmethod
    def from_strings(cls, texts: Sequence[str]) -> TextBatch:
        """From Python strings (must encode as UTF-8: no lone surrogates)."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(item) for item in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def to_arrow(self) -> pa.LargeStringArray:
        """As an Arrow large_string column over the same buffers."""
        buffers = [
            None,
            pa.py_buffer(np.ascontiguousarray(self.offsets)),
            pa.py_buffer(np.ascontiguousarray(self.data)),
        ]
        return pa.Array.from_buffers(pa.large_string(), len(self), buffers)

    def string(self, i: int) -> str:
        """Document `i` as a Python string."""
        return bytes(self.data[self.offsets[i] : self.offsets[i + 1]]).decode()

    def strings(self) -> list[str]:
        """All documents as Python strings."""
        return [str(value) for value in self.to_arrow().to_pylist()]

    def lengths(self) -> I64:
        """Bytes per document, int64 [n]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Spans:
    """Byte ranges inside the documents of a batch, sorted by (document, start, end, rule).

    `doc`, `start`, `end`: int32 [m]; positions are relative to the document's first byte, half open. `rule`: int16 [m], a number
    from `rules.catalogue.RULE_NUMBER` (0 for plain spans); `value`: float32 [m], compared with the rule's threshold.
    """

    doc: I32
    start: I32
    end: I32
    rule: npt.NDArray[np.int16]
    value: F32

    def __len__(self) -> int:
        return len(self.doc)

    @classmethod
    def empty(cls) -> Spans:
        """No spans."""
        return cls.plain(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32))

    @classmethod
    def plain(cls, doc: I32, start: I32, end: I32) -> Spans:
        """Spans without a rule (protected spans)."""
        return cls(
            doc.astype(np.int32),
            start.astype(np.int32),
            end.astype(np.int32),
            np.zeros(len(doc), np.int16),
            np.zeros(len(doc), np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Spans]) -> Spans:
        """All parts as one sorted table."""
        if not parts:
            return cls.empty()
        joined = cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("doc", "start", "end", "rule", "value")
            )
        )
        order = np.lexsort((joined.rule, joined.end, joined.start, joined.doc))
        return joined.take(order)

    def take(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Spans:
        """The spans at `index` (positions or a mask)."""
        return Spans(self.doc[index], self.start[index], self.end[index], self.rule[index], self.value[index])

    def row_offsets(self, n: int) -> I64:
        """int64 [n + 1]: the spans of document i are rows row_offsets[i] to row_offsets[i + 1] (a CSR view)."""
        return np.searchsorted(self.doc, np.arange(n + 1)).astype(np.int64)
