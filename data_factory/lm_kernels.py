"""SentencePiece unigram segmentation as a kernel over whole batches of lines: bytes in, the pieces joined by spaces out.

The library takes a Python string a line and gives one a piece; what a language model reads is neither. The kernel gives
the same pieces (tests compare both on random and real text) for the models that `train_lm` makes: unigram, identity
normalisation, no user-defined and no byte pieces. Others are left to the library.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import sentencepiece

from ziya import sentencepiece_model as spm


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece unigram model as a double-array trie over bytes.

    `trie`: int32 [states, 4]: base, check, piece number or -1, unused; state 0 is the root and the child of s by byte b
    is base[s] + b where check says s. `scores`: float32 [pieces]. `unknown`: score of a character that no piece covers.
    """

    trie: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    unknown: np.float32

    @classmethod
    def of(cls, model: sentencepiece.SentencePieceProcessor) -> Pieces | None:
        """From a loaded model; None when it has a feature that the kernel lacks."""
        file = spm.parse_model(model.serialized_model_proto())
        plain = file.model_type == spm.UNIGRAM and not file.charsmap and not file.whitespace_is_suffix
        if not (plain and file.add_dummy_prefix and file.escape_whitespaces) or file.byte_fallback:
            return None
        if not set(file.types) <= {spm.NORMAL, spm.UNKNOWN, spm.CONTROL}:
            return None
        texts = {i: text.encode() for i, text in enumerate(file.pieces) if file.types[i] == spm.NORMAL}
        order = sorted(texts, key=texts.__getitem__)
        if not order or any(not texts[i] or set(texts[i]) & set(b" \t\n\r\0") for i in order):
            return None
        offsets = np.zeros(len(order) + 1, np.int64)
        np.cumsum([len(texts[i]) for i in order], out=offsets[1:])
        keys = np.frombuffer(b"".join(texts[i] for i in order), np.uint8)
        numbers = np.array(order, np.int32)
        states = 4 * len(keys) + 4096
        while (trie := _build(keys, offsets, numbers, np.full((states, 4), -1, np.int32)))[0, 3] != 1:
            states *= 2
        scores = np.array(file.scores, np.float32)
        return cls(trie, scores, np.float32(scores[order].min() - np.float32(10)))  # the library's penalty

    def joined(
        self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The pieces of newline-closed lines: (bytes of all lines, pieces joined by spaces and closed by a newline;
        pieces of each line int64 [m])."""
        # A space becomes ▁ (3 bytes) and every byte may be a piece with a space behind it; a ▁ stands before each line.
        out = np.empty(4 * (int(offsets[-1] - offsets[0]) + len(offsets)), np.uint8)
        counts = np.zeros(len(offsets) - 1, np.int64)
        size = _join(data, offsets, self.trie, self.scores, self.unknown, out, counts)
        return out[:size], counts


@numba.njit(cache=True)
def _build(keys, offsets, numbers, trie):  # type: ignore[no-untyped-def]
    """Fill a double array from sorted distinct keys; trie[0, 3] = 1 on success, 0 when `trie` is too small."""
    size = len(trie)
    trie[0, 3] = 0
    stack = np.empty((len(keys) + 2, 4), np.int64)  # first key, last key, depth, state
    stack[0] = (0, len(offsets) - 1, 0, 0)
    trie[0, 1] = 0
    top = 1
    free = 256  # the first slot without a state; from 256 on any byte's child can take it, so that it never gets stuck
    starting = np.ones(
        9, np.int64
    )  # by number of children (2, 3-4, 5-8 ...): where the last search ended; none goes back
    used = 0
    children = np.empty(257, np.int64)
    starts = np.empty(257, np.int64)
    while top:
        top -= 1
        first, last, depth, state = stack[top]
        if first < last and offsets[first + 1] - offsets[first] == depth:
            trie[state, 2] = numbers[first]
            first += 1
        count = 0
        for key in range(first, last):
            byte = keys[offsets[key] + depth]
            if count == 0 or children[count - 1] != byte:
                children[count] = byte
                starts[count] = key
                count += 1
        if count == 0:
            continue
        starts[count] = last
        while free < size and trie[free, 1] >= 0:
            free += 1
        group = 0
        while 1 << group < count:
            group += 1
        base = free - children[0] if count == 1 else max(free - children[0], starting[group])
        while True:
            if base + 256 >= size:
                return trie
            fits = True
            for child in range(count):
                if trie[base + children[child], 1] >= 0:
                    fits = False
                    break
            if fits:
                break
            base += 1
        starting[group] = base
        used = max(used, base + 256)
        trie[state, 0] = base
        for child in range(count):
            target = base + children[child]
            trie[target, 1] = state
            stack[top] = (starts[child], starts[child + 1], depth + 1, target)
            top += 1
    trie[0, 3] = 1
    return trie[: used + 1].copy()


@numba.njit(cache=True)
def _segment(text, size, trie, scores, unknown, best, back, piece):  # type: ignore[no-untyped-def]
    """Viterbi over text[:size] (spaces already ▁): back[i], piece[i] = start and number (-1 unknown) of the best piece
    that ends at i.

    Sums are float32, and a later candidate wins only when it is better: both as in SentencePiece.
    """
    for i in range(size + 1):
        back[i] = -1
    best[0] = np.float32(0)
    i = 0
    while i < size:
        byte = text[i]
        length = 1 if byte < 0x80 else (2 if byte < 0xE0 else (3 if byte < 0xF0 else 4))
        here = best[i]
        single = False
        state = np.int64(0)
        j = i
        while j < size:
            target = np.int64(trie[state, 0]) + text[j]
            if trie[state, 0] < 0 or trie[target, 1] != state:
                break
            state = target
            j += 1
            number = trie[state, 2]
            if number >= 0:
                candidate = np.float32(scores[number] + here)
                if back[j] < 0 or candidate > best[j]:
                    best[j] = candidate
                    back[j] = i
                    piece[j] = number
                if j - i == length:
                    single = True
        if not single:
            j = i + length
            candidate = np.float32(unknown + here)
            if back[j] < 0 or candidate > best[j]:
                best[j] = candidate
                back[j] = i
                piece[j] = -1
        i += length


@numba.njit(cache=True)
def _join(data, offsets, trie, scores, unknown, out, counts):  # type: ignore[no-untyped-def]
    """Fill `out` and `counts` as `Pieces.joined` says; returns the bytes written."""
    longest = 0
    for line in range(len(counts)):
        longest = max(longest, offsets[line + 1] - offsets[line])
    text = np.empty(3 * longest + 3, np.uint8)
    best = np.empty(3 * longest + 4, np.float32)
    back = np.empty(3 * longest + 4, np.int32)
    piece = np.empty(3 * longest + 4, np.int32)
    path = np.empty(3 * longest + 4, np.int32)
    written = 0
    for line in range(len(counts)):
        text[0], text[1], text[2] = 0xE2, 0x96, 0x81
        size = 3
        for i in range(offsets[line], offsets[line + 1] - 1):
            if data[i] == 32:
                text[size], text[size + 1], text[size + 2] = 0xE2, 0x96, 0x81
                size += 3
            else:
                text[size] = data[i]
                size += 1
        _segment(text, size, trie, scores, unknown, best, back, piece)
        steps = 0
        i = size
        while i > 0:
            path[steps] = i
            steps += 1
            i = back[i]
        start = 0
        step = steps - 1
        while step >= 0:
            if piece[path[step]] < 0:
                while step > 0 and piece[path[step - 1]] < 0:  # unknown neighbours are one piece
                    step -= 1
            for i in range(start, path[step]):
                out[written] = text[i]
                written += 1
            out[written] = 32
            written += 1
            counts[line] += 1
            start = path[step]
            step -= 1
        out[written - 1] = 10
    return written


@numba.njit(cache=True)
def first_lines(data, offsets):  # type: ignore[no-untyped-def]
    """int64 [m]: the first line that has the same bytes as each line (itself when there is none before)."""
    count = len(offsets) - 1
    first = np.empty(count, np.int64)
    bits = 4
    while 1 << bits < 2 * count:
        bits += 1
    slots = np.full(1 << bits, -1, np.int64)
    hashes = np.empty(count, np.uint64)
    for line in range(count):
        begin, end = offsets[line], offsets[line + 1]
        key = np.uint64(14695981039346656037)  # FNV-1a, then mixed: only its high bits choose the slot
        for i in range(begin, end):
            key = (key ^ np.uint64(data[i])) * np.uint64(1099511628211)
        hashes[line] = key
        slot = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
        while True:
            other = slots[slot]
            if other < 0:
                slots[slot] = line
                first[line] = line
                break
            if hashes[other] == key and offsets[other + 1] - offsets[other] == end - begin:
                shift = offsets[other] - begin
                i = begin
                while i < end and data[i] == data[i + shift]:
                    i += 1
                if i == end:
                    first[line] = other
                    break
            slot = (slot + 1) & ((1 << bits) - 1)
    return first


@numba.njit(cache=True)
def take_lines(data, offsets, chosen):  # type: ignore[no-untyped-def]
    """The lines at `chosen`, copied: (bytes uint8, offsets int64 [k + 1])."""
    ends = np.zeros(len(chosen) + 1, np.int64)
    for j in range(len(chosen)):
        ends[j + 1] = ends[j] + offsets[chosen[j] + 1] - offsets[chosen[j]]
    out = np.empty(ends[-1], np.uint8)
    for j in range(len(chosen)):
        out[ends[j] : ends[j + 1]] = data[offsets[chosen[j]] : offsets[chosen[j] + 1]]
    return out, ends


@numba.njit(cache=True)
def characters(data, offsets, document, n):  # type: ignore[no-untyped-def]
    """int64 [n]: characters of each document's lines, a line's newline counted for its end."""
    counts = np.zeros(n, np.int64)
    for line in range(len(document)):
        count = 0
        for i in range(offsets[line], offsets[line + 1]):
            count += data[i] & 0xC0 != 0x80
        counts[document[line]] += count
    return counts
