"""`splice`: documents in shuffled order, EOS after each, joined and cut at the length (stage 1 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data_factory.pack_rows import Rows, Samples, no_pieces, padding_piece, pieces_of, place


def splice(buckets: Iterator[pa.Table], sequence_length: int, eos_id: int, pad_id: int) -> Iterator[Samples]:
    """Yield the samples of each bucket as soon as they are full; only the very last one is padded.

    A document that a border cuts becomes one piece on each side. What does not fill a sample waits for the next bucket,
    so the result does not depend on where buckets end.
    """
    tokens = np.zeros(0, np.int32)  # of the sample that is not full yet
    waiting = no_pieces()
    done = 0
    for table in buckets:
        rows = Rows(table)
        order = rows.in_order(rows.packed())
        ends = len(tokens) + np.cumsum(rows.lengths[order] + 1)
        starts = ends - rows.lengths[order] - 1
        stream = np.empty(int(ends[-1]) if len(ends) else len(tokens), rows.tokens.dtype)
        stream[: len(tokens)] = tokens
        place(rows.tokens, rows.offsets, order, starts, eos_id, stream)
        full = len(stream) // sequence_length
        # A document from s to e lies in samples s // L to (e - 1) // L, in each with one piece.
        first, last = starts // sequence_length, (ends - 1) // sequence_length
        count = last - first + 1
        document = np.repeat(np.arange(len(order)), count)
        number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
        sample = first[document] + number
        begin = np.maximum(starts[document], sample * sequence_length)
        end = np.minimum(ends[document], (sample + 1) * sequence_length)
        pieces = pieces_of(rows, order[document], sample + done, begin - starts[document], end - begin)
        pieces = pa.concat_tables([waiting, pieces])
        numbers = pieces.column("sample").to_numpy()
        complete = int(np.searchsorted(numbers, done + full))
        yield Samples(stream[: full * sequence_length], pieces.slice(0, complete))
        tokens, waiting = stream[full * sequence_length :].copy(), pieces.slice(complete).combine_chunks()
        done += full
        del table, rows, stream, pieces  # before the next bucket is read
    if len(tokens):
        padding = sequence_length - len(tokens)
        stream = np.full(sequence_length, pad_id, tokens.dtype)
        stream[: len(tokens)] = tokens
        if padding:
            waiting = pa.concat_tables([waiting, padding_piece(np.array([done]), np.array([padding]))])
        yield Samples(stream, waiting)
