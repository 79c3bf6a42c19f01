"""Compiled kernels of T0 -> T1 over whole batches; the meaning of every rule is told in `normalize.py`."""

from __future__ import annotations

import numba
import numpy as np

from data_factory.characters import decode
from data_factory.emoticons import emoji_end, emoticon_end, kind_of
from data_factory.normalize_tables import (
    ACTION,
    EMOJI,
    JOINER,
    KEYCAP,
    MARK,
    NEWLINE,
    PUNCT,
    REMOVE,
    SHAPED,
    SPACE,
    STARTER,
    SUSPECT,
    TEXT_EMOJI,
    WIDE,
    WORD,
)  # fmt: skip

WORD_STARTER, DIGIT = WORD | STARTER, WORD | KEYCAP  # letters that an emoticon may start with (T_T); keycaps
ONE = np.uint64(1)
DIRTY, UNSETTLED = 1, 2  # status bits of a document: look again; ask for its Unicode form


@numba.njit(cache=True, inline="always")
def _longest_run(point, limit, line_first):  # type: ignore[no-untyped-def]
    """How many of one mark may stand in a row. … and — are halves of one mark; . - = * _ ` ~ # mean something in
    threes.
    """
    if point in (0x2026, 0x2014, 0x2015):
        return 2
    if point == 0x23 and line_first == 0x23:
        return max(6, limit)
    if point in (0x2E, 0x2D, 0x3D, 0x2A, 0x5F, 0x60, 0x7E):
        return max(3, limit)
    if point == 0x7C and line_first == 0x7C:
        return 1 << 30
    return limit


@numba.njit(cache=True, inline="always")
def _apart(point, flags, faces):  # type: ignore[no-untyped-def]
    """Whether a character starts, holds and ends no emoticon: none reaches across it."""
    closes = point in (0x29, 0xFF09)
    return flags & STARTER == 0 and not closes and point < 0x10000 and faces[point] == 0


@numba.njit(cache=True)
def clean_pass(data, offsets, table, faces, remove_emoji, limit, out, out_offsets, status):  # type: ignore[no-untyped-def]
    """One pass over a batch with marks; writes `out`, `out_offsets` [n + 1] and `status` [n]; `out` is as long as
    `data`.

    Whitespace is held back (`spaces`, `newlines`) until the next visible character decides what becomes of it.
    """
    points = np.empty(16, np.int32)
    o = 0
    for d in range(len(offsets) - 1):
        out_offsets[d] = o
        begin = o
        i, end = offsets[d], offsets[d + 1]
        spaces, gap, newlines = False, False, 0  # gap: an emoji or emoticon was taken out
        prev, prev_flags, run, tail = 0, numba.uint16(0), 0, 0  # tail: line feeds at the end of the output
        line_first, opened, state, harmless = 0, 0, 0, False
        while i < end:
            byte = data[i]
            if byte < 0x80:
                point, size = numba.int32(byte), 1
                flags = table[byte]
            else:
                point, size = decode(data, i)
                flags = kind_of(table, point)
            if flags & ACTION:
                if flags & SPACE:
                    spaces = True
                    i += size
                    continue
                if flags & NEWLINE:
                    i += 2 if byte == 0x0D and i + 1 < end and data[i + 1] == 0x0A else size
                    newlines = min(newlines + 1, 2)
                    continue
                if flags & REMOVE:
                    state |= DIRTY
                    i += size
                    continue
                if flags & MARK:
                    j = i + 1
                    while byte == 0x02 and j < end and data[j] != 0x03:
                        j += 1
                    if byte == 0x02 and j > i + 1:
                        first = data[i + 1]
                        fresh = o == begin or newlines > 0 or tail > 0
                        if newlines > 0:
                            while o > begin and newlines > 0 and tail < 2:
                                out[o] = 0x0A
                                o += 1
                                tail += 1
                                newlines -= 1
                        elif spaces and not fresh and first not in (0x0A, 0x0D):
                            out[o] = 0x20
                            o += 1
                        if fresh:
                            line_first, opened = 2, 0
                        out[o] = 0x02
                        o += 1
                        for k in range(i + 1, j):
                            if data[k] == 0x0D:  # carriage returns before a line feed go with it
                                q = k + 1
                                while q < j and data[q] == 0x0D:
                                    q += 1
                                if q < j and data[q] == 0x0A:
                                    continue
                            if data[k] == 0x02:
                                continue
                            out[o] = data[k]
                            o += 1
                            tail = tail + 1 if data[k] == 0x0A else 0
                            if data[k] == 0x0A:
                                line_first, opened = 2, 0
                        out[o] = 0x03
                        o += 1
                        spaces, gap, newlines, prev, prev_flags, run = False, False, 0, 0, numba.uint16(0), 0
                    else:  # marks around nothing: what stood on both sides now meets
                        state |= DIRTY
                    i = j + 1 if byte == 0x02 else i + 1
                    continue
                if flags & JOINER:
                    kept = False
                    if prev_flags & SHAPED and not spaces and not gap and newlines == 0 and i + size < end:
                        following, _ = decode(data, i + size)
                        kept = (kind_of(table, following) & SHAPED) != 0
                    if not kept:
                        state |= DIRTY
                        i += size
                        continue
                elif flags & (EMOJI | TEXT_EMOJI) or (
                    # digits are frequent: only those before a byte that starts U+FE0F or U+20E3 are looked at
                    flags & KEYCAP and i + 1 < end and data[i + 1] in (0xEF, 0xE2)
                ):
                    stop = emoji_end(data, i, end, table)
                    if stop > i and remove_emoji:
                        gap = True
                        state |= DIRTY
                        i = stop
                        continue
                    if stop > i:
                        size = stop - i
                        flags = numba.uint16(0)
                        point = numba.int32(1)
                if flags & STARTER and remove_emoji:
                    pending = spaces or newlines > 0
                    alone = 2 if pending or o == begin or tail > 0 else 1 if prev_flags & WIDE else 0
                    after_word = not pending and (prev_flags & WORD) != 0
                    balance = 0 if newlines > 0 else opened
                    stop = emoticon_end(data, i, end, table, faces, alone, after_word, balance, points)
                    if stop > i:
                        gap = True
                        state |= DIRTY
                        i = stop
                        continue
                if flags & PUNCT:
                    joined = newlines == 0 and point == prev and (not spaces or (prev_flags & flags & WIDE) != 0)
                    if not joined:
                        run = 0
                        # Shortening a run can complete a face only where one may hold the run: after a part of one.
                        harmless = (point == 0x2D or not flags & STARTER) and (
                            spaces or newlines > 0 or o == begin or _apart(prev, prev_flags, faces)
                        )
                    elif run >= _longest_run(point, limit, line_first):
                        spaces, gap = False, False
                        if not harmless:
                            state |= DIRTY
                        i += size
                        continue
                    run += 1
            if newlines > 0:
                while o > begin and newlines > 0 and tail < 2:
                    out[o] = 0x0A
                    o += 1
                    tail += 1
                    newlines -= 1
                newlines = 0
            elif spaces:
                if o > begin and tail == 0:
                    if prev_flags & flags & WIDE:
                        if not (_apart(prev, prev_flags, faces) or _apart(point, flags, faces)):
                            state |= DIRTY
                    elif not (gap and point in (0x2E, 0x2C, 0x21, 0x3F)):
                        out[o] = 0x20
                        o += 1
            elif gap and prev_flags & flags & WORD:
                out[o] = 0x20
                o += 1
            spaces, gap = False, False
            if o == begin or tail > 0:
                line_first, opened, tail = point, 0, 0
            if point == 0x28:
                opened += 1
            elif point == 0x29 and opened > 0:
                opened -= 1
            if flags & SUSPECT:
                state |= UNSETTLED
            for k in range(i, i + size):
                out[o] = data[k]
                o += 1
            prev, prev_flags = point, flags
            i += size
            # Most text is words with single spaces and marks between them, or Han: such runs are copied here without
            # looking at anything else. A mark is copied with what follows it, so that a word is always the last thing.
            if flags & WORD and not flags & SHAPED:
                # unsigned positions: signed ones are checked for being negative at every access
                u, v, last = np.uint64(i), np.uint64(o), np.uint64(end - 1)
                while u < last:
                    byte, following = data[u], data[u + ONE]
                    if byte >= 0x80:
                        break
                    kind = table[byte]
                    if (
                        kind == WORD
                        or (kind == WORD_STARTER and following != 0x5F)
                        or (kind == DIGIT and following < 0xE0)
                    ):
                        prev = numba.int32(byte)
                        out[v] = byte
                        u += ONE
                        v += ONE
                        continue
                    ahead = u + ONE
                    if kind == PUNCT:
                        if following == 0x20:
                            ahead += ONE
                    elif byte != 0x20:
                        break
                    if ahead >= last or data[ahead] >= 0x80:
                        break
                    kind, following = table[data[ahead]], data[ahead + ONE]
                    if (
                        kind != WORD
                        and (kind != WORD_STARTER or following == 0x5F)
                        and (kind != DIGIT or following >= 0xE0)
                    ):
                        break
                    while u < ahead:
                        out[v] = data[u]
                        u += ONE
                        v += ONE
                i, o = numba.int64(u), numba.int64(v)
            elif flags == WIDE:
                while i + 2 < end and (0xE3 <= data[i] <= 0xE9 or data[i] == 0xEF):
                    point, _ = decode(data, i)
                    kind = table[point]
                    if kind == PUNCT | WIDE and point != prev:
                        run = 1
                        harmless = flags == WIDE and faces[prev] == 0
                    elif kind != WIDE:
                        break
                    out[o], out[o + 1], out[o + 2] = data[i], data[i + 1], data[i + 2]
                    o += 3
                    i += 3
                    prev, flags = point, kind
        status[d] = state
    out_offsets[len(offsets) - 1] = o
    return o


@numba.njit(cache=True)
def strip_marks(data, offsets, out, out_offsets, doc, start, end):  # type: ignore[no-untyped-def]
    """Drop the marks of a batch: writes `out`, `out_offsets` [n + 1] and one span per marked text; returns (bytes,
    spans).
    """
    o = 0
    m = 0
    for d in range(len(offsets) - 1):
        out_offsets[d] = o
        begin = o
        opened = -1
        for i in range(offsets[d], offsets[d + 1]):
            byte = data[i]
            if byte > 0x03 or byte < 0x02:
                out[o] = byte
                o += 1
            elif byte == 0x02:
                opened = o - begin
            elif opened >= 0:
                if o - begin > opened:
                    doc[m], start[m], end[m] = d, opened, o - begin
                    m += 1
                opened = -1
    out_offsets[len(offsets) - 1] = o
    return o, m


@numba.njit(cache=True)
def find_documents(data, offsets, wanted, row_offsets, start, end, points, found):  # type: ignore[no-untyped-def]
    """found[d]: whether document d, `wanted`, has a character with points[code point] outside its spans (CSR rows)."""
    for d in range(len(offsets) - 1):
        found[d] = False
        if not wanted[d]:
            continue
        i, row = offsets[d], row_offsets[d]
        while i < offsets[d + 1]:
            if row < row_offsets[d + 1] and i == offsets[d] + start[row]:
                i = max(i, offsets[d] + end[row])
                row += 1
                continue
            if data[i] < 0xE0:  # every Han character takes three bytes or more
                i += 1 if data[i] < 0x80 else 2
                continue
            point, size = decode(data, i)
            if point < len(points) and points[point]:
                found[d] = True
                break
            i += size


@numba.njit(cache=True)
def gather_unprotected(data, offsets, chosen, row_offsets, start, end, separator, out):  # type: ignore[no-untyped-def]
    """Write what stands outside the spans of the chosen documents, a separator after every piece; returns (bytes,
    pieces).
    """
    o, pieces = 0, 0
    for d in range(len(offsets) - 1):
        if not chosen[d]:
            continue
        position = offsets[d]
        for row in range(row_offsets[d], row_offsets[d + 1] + 1):
            stop = offsets[d] + start[row] if row < row_offsets[d + 1] else offsets[d + 1]
            size = stop - position
            out[o : o + size] = data[position:stop]
            out[o + size] = separator
            o += size + 1
            pieces += 1
            if row < row_offsets[d + 1]:
                position = offsets[d] + end[row]
    return o, pieces


@numba.njit(cache=True)
def scatter_unprotected(  # type: ignore[no-untyped-def]
    data, offsets, chosen, row_offsets, start, end, separator, pieces, out, out_offsets, new_start, new_end
):
    """Put the pieces of `gather_unprotected` back between the spans; writes the batch `out` and moved spans;
    returns its bytes.
    """
    o, p = 0, 0
    for d in range(len(offsets) - 1):
        out_offsets[d] = o
        if not chosen[d]:
            size = offsets[d + 1] - offsets[d]
            out[o : o + size] = data[offsets[d] : offsets[d + 1]]
            o += size
            continue
        for row in range(row_offsets[d], row_offsets[d + 1] + 1):
            q = p
            while pieces[q] != separator:
                q += 1
            out[o : o + q - p] = pieces[p:q]
            o += q - p
            p = q + 1
            if row < row_offsets[d + 1]:
                new_start[row] = o - out_offsets[d]
                size = end[row] - start[row]
                out[o : o + size] = data[offsets[d] + start[row] : offsets[d] + end[row]]
                o += size
                new_end[row] = o - out_offsets[d]
    out_offsets[len(offsets) - 1] = o
    return o
