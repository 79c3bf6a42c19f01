"""`whole`: complete documents of one task type in each sample, close to and never over the length (stages 2 and 3).

Best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language modeling", without its cutting): documents
from long to short, each into the sample with the least room that still holds it, the sample that reached this room
first among equals; when none holds it, into a new one. A sort, then one scan of a bit set of rooms per document.
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory.pack_rows import Rows, Samples, padding_piece, pieces_of, place
from data_factory.shuffle import finish

I64 = npt.NDArray[np.int64]


@numba.njit(cache=True)
def _best_fit(sizes, capacity, bins):  # type: ignore[no-untyped-def]
    """Bin of each size (descending, at most `capacity`) into bins[:]; returns the number of bins.

    Rooms 1 to `capacity` each have a queue of bins, in order of arrival; a bit set tells which queues have any.
    """
    words = (capacity >> 6) + 1
    some = np.zeros(words, np.uint64)
    head = np.full(capacity + 1, -1, np.int64)
    tail = np.full(capacity + 1, -1, np.int64)
    following = np.full(len(sizes), -1, np.int64)
    count = 0
    for i in range(len(sizes)):
        size = sizes[i]
        word = size >> 6
        bits = some[word] & (~np.uint64(0) << np.uint64(size & 63))
        while bits == 0 and word + 1 < words:
            word += 1
            bits = some[word]
        if bits == 0:
            chosen, room = count, capacity
            count += 1
        else:
            room = word << 6
            while bits & np.uint64(1) == 0:
                bits >>= np.uint64(1)
                room += 1
            chosen = head[room]
            head[room] = following[chosen]
            if head[room] < 0:
                tail[room] = -1
                some[word] &= ~(np.uint64(1) << np.uint64(room & 63))
        bins[i] = chosen
        room -= size
        if room > 0:
            following[chosen] = -1
            if tail[room] < 0:
                head[room] = chosen
                some[room >> 6] |= np.uint64(1) << np.uint64(room & 63)
            else:
                following[tail[room]] = chosen
            tail[room] = chosen
    return count


def best_fit(sizes: I64, capacity: int) -> tuple[I64, int]:
    """Bin number of each size, and the number of bins; sizes descend and lie in 1 .. capacity."""
    bins = np.empty(len(sizes), np.int64)
    return bins, int(_best_fit(np.asarray(sizes, np.int64), capacity, bins))


def whole(buckets: Iterator[pa.Table], sequence_length: int, eos_id: int, pad_id: int) -> Iterator[Samples]:
    """Yield the samples of each bucket: each is packed by itself, its samples in shuffled order.

    Inside a sample documents stand in shuffled order, too, then padding. Documents that are longer than the length,
    with EOS, are left out here and counted by the caller.
    """
    done = 0
    for table in buckets:
        rows = Rows(table)
        order = rows.in_order(rows.packed(sequence_length))
        row = np.zeros(len(order), np.int64)  # sample of each document, before the shuffle
        keys = []  # the shuffle's key of each sample
        samples = 0
        sizes = rows.lengths[order] + 1
        tasks = rows.tasks[order]
        for task in range(int(tasks.max(initial=-1)) + 1):
            mine = np.flatnonzero(tasks == task)
            mine = mine[np.argsort(-sizes[mine], kind="stable")]
            bins, count = best_fit(sizes[mine], sequence_length)
            row[mine] = samples + bins
            _, opener = np.unique(bins, return_index=True)  # the longest document opened its sample
            keys.append(finish(rows.h2[order][mine[opener]]))
            samples += count
        if not samples:
            continue
        shuffled = np.argsort(np.concatenate(keys), kind="stable")
        rank = np.empty(samples, np.int64)
        rank[shuffled] = np.arange(samples)
        by_sample = np.argsort(rank[row], kind="stable")
        order, sizes, sample = order[by_sample], sizes[by_sample], rank[row][by_sample]
        filled = np.bincount(sample, weights=sizes, minlength=samples).astype(np.int64)
        ends = np.cumsum(sizes)
        starts = ends - sizes + sample * sequence_length - (np.cumsum(filled) - filled)[sample]
        stream = np.full(samples * sequence_length, pad_id, rows.tokens.dtype)
        place(rows.tokens, rows.offsets, order, starts, eos_id, stream)
        pieces = pieces_of(rows, order, sample + done, np.zeros(len(order), np.int64), sizes)
        short = np.flatnonzero(filled < sequence_length)
        padding = padding_piece(short + done, sequence_length - filled[short])
        pieces = pa.concat_tables([pieces, padding])
        pieces = pieces.take(pa.array(np.argsort(pieces.column("sample").to_numpy(), kind="stable")))
        yield Samples(stream, pieces)
        done += samples
        del table, rows, stream, pieces  # before the next bucket is read
