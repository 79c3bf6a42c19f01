"""All document counts of a batch: one pass over the UTF-8 bytes, then the repetition tables, document by document.

The definitions stand in `README.md`; the plain reference is `tests/oracle_statistics.py`.
"""

from __future__ import annotations

import numba
import numpy as np

from data_factory.characters import DIGIT, HAN, LETTER, PUNCTUATION, SPACE, SYMBOL, flags_of
from data_factory.rules.kernels_repetition import insert, open_table, repeated_ngrams, table_bits
from data_factory.rules.kernels_scan import scan
from data_factory.rules.kernels_tables import AT, COMPARED, COUNTERS, Buffers

N_COUNTERS = len(COUNTERS)


@numba.njit(cache=True)
def measure_batch(data, offsets, zh_documents, flags, tables, automaton, repetition):  # type: ignore[no-untyped-def]
    """Counts of every document: (int64 [n, len(COUNTERS)], float64 [n] character entropy in nats).

    `flags`: `characters.table()`; `repetition` off skips the repetition counters.
    """
    n = len(offsets) - 1
    counts = np.zeros((n, N_COUNTERS), np.int64)
    entropy = np.zeros(n, np.float64)
    longest = 0
    for d in range(n):
        longest = max(longest, offsets[d + 1] - offsets[d])
    units = min(longest, COMPARED)
    buffers = Buffers(
        np.zeros(0x110000, np.int32),
        np.zeros(min(longest, 0x110000) + 1, np.int32),
        np.zeros(units + 1, np.uint64),
        np.zeros(units + 1, np.int64),
        np.zeros(units + 1, np.uint64),
        np.zeros(units + 1, np.int64),
        np.zeros(units + 1, np.uint64),
        np.zeros(units + 1, np.int64),
    )
    bits = table_bits(units)
    keys = np.zeros(1 << bits, np.uint64)
    slot_count = np.zeros(1 << bits, np.int32)
    slot_first = np.zeros(1 << bits, np.int32)
    slots = np.zeros(units + 1, np.int32)
    runs = np.zeros(units + 2, np.int32)
    positions = np.zeros(units + 1, np.int32)
    stamp = np.uint64(0)
    for d in range(n):
        zh = zh_documents[d] == 1
        row = counts[d]
        n_units, n_lines, n_paragraphs, n_kinds = scan(
            data, offsets[d], offsets[d + 1], zh, flags, tables, automaton, buffers, row
        )
        entropy[d] = character_classes(flags, buffers.histogram, buffers.kinds, n_kinds, row)
        if not repetition:
            continue
        stamp, repeated, chars = repeated_elements(buffers.line_hash, buffers.line_chars, n_lines, keys, stamp)
        row[AT.compared_lines], row[AT.repeated_lines], row[AT.repeated_line_chars] = n_lines, repeated, chars
        stamp, repeated, chars = repeated_elements(
            buffers.paragraph_hash, buffers.paragraph_chars, n_paragraphs, keys, stamp
        )
        row[AT.compared_paragraphs], row[AT.repeated_paragraphs] = n_paragraphs, repeated
        row[AT.repeated_paragraph_chars] = chars
        stamp = repeated_ngrams(
            buffers.prefix_hash, buffers.prefix_chars, n_units, zh, keys, slot_count, slot_first, slots, runs,
            positions, stamp, row,
        )  # fmt: skip
    return counts, entropy


@numba.njit(cache=True)
def repeated_elements(hashes, chars, n, keys, stamp):  # type: ignore[no-untyped-def]
    """(next stamp, repeats, characters in repeats) of a list of hashes; the first copy is no repeat (datatrove's
    reading of Gopher).
    """
    repeated, repeated_chars = 0, 0
    if n < 2:
        return stamp, repeated, repeated_chars
    stamp, bits = open_table(keys, n, stamp)
    for k in range(n):
        if insert(keys, bits, stamp, hashes[k]) < 0:
            repeated += 1
            repeated_chars += chars[k]
    return stamp, repeated, repeated_chars


@numba.njit(cache=True)
def character_classes(flags, histogram, kinds, n_kinds, counts):  # type: ignore[no-untyped-def]
    """Fill the class counters of one document from its histogram, clear the histogram, return the entropy (nats) of
    its characters without whitespace.
    """
    total = 0
    for k in range(n_kinds):
        total += 0 if flags_of(flags, kinds[k]) & SPACE else histogram[kinds[k]]
    entropy = 0.0
    for k in range(n_kinds):
        point = kinds[k]
        count = histogram[point]
        histogram[point] = 0
        kind = flags_of(flags, point)
        if kind & SPACE:
            counts[AT.space] += count
            continue
        share = count / total
        entropy -= share * np.log(share)
        if kind & HAN:
            counts[AT.han] += count
        if kind & LETTER:
            counts[AT.letters] += count
        elif kind & DIGIT:
            counts[AT.digits] += count
        elif kind & PUNCTUATION:
            counts[AT.punctuation] += count
        elif kind & SYMBOL:
            counts[AT.symbols] += count
        if point in (0x28, 0x29, 0xFF08, 0xFF09):
            counts[AT.parentheses] += count
        elif point in (0x7B, 0x7D):
            counts[AT.curly] += count
        elif point == 0x23:
            counts[AT.hashes] += count
        elif point == 0xFFFD:
            counts[AT.replacements] += count
    return entropy


@numba.njit(cache=True)
def cut_spans(data, offsets, rows, start, end, inside):  # type: ignore[no-untyped-def]
    """A batch without its spans (`inside` False: one space stands for each) or of its spans only (`inside` True: each
    followed by a newline).

    `rows`: int64 [n + 1], the spans of document d are rows[d] to rows[d + 1] of `start` and `end`, sorted and
    disjoint. Returns (data, offsets).
    """
    n = len(offsets) - 1
    new_offsets = np.zeros(n + 1, np.int64)
    for d in range(n):
        covered = 0
        for k in range(rows[d], rows[d + 1]):
            covered += end[k] - start[k]
        size = covered if inside else offsets[d + 1] - offsets[d] - covered
        new_offsets[d + 1] = new_offsets[d] + size + rows[d + 1] - rows[d]
    out = np.empty(new_offsets[n], np.uint8)
    for d in range(n):
        base, p, position = offsets[d], new_offsets[d], 0
        for k in range(rows[d], rows[d + 1]):
            first, last = (start[k], end[k]) if inside else (position, start[k])
            out[p : p + last - first] = data[base + first : base + last]
            p += last - first
            out[p] = 10 if inside else 32
            p += 1
            position = end[k]
        if not inside:
            out[p : new_offsets[d + 1]] = data[base + position : offsets[d + 1]]
    return out, new_offsets
