"""SentencePiece unigram segmentation and KenLM probing look-ups as kernels over whole batches of lines.

The two C++ libraries take a call a line and a Python string a piece; these kernels take bytes and give the same pieces
and, bit for bit, the same log probabilities (tests compare both). They read KenLM's own file: version 5 of the binary
format, model type "probing". Layout, little endian, all tables aligned to 4 bytes: header (magic, order, multiplier,
counts) | vocabulary: 8 bytes, then entries of (hash of the word u64, number u32) | unigrams (probability f32, back-off
f32), one more than counted | for orders 2 to n-1 entries of (hash of the n-gram u64, probability f32, back-off f32) |
for order n entries of (hash u64, probability f32) | the words. Tables are open-addressed with linear steps; an entry
without n-gram has hash 0. A probability's sign bit is cleared where the n-gram goes on to the left, a back-off of minus
zero says that no n-gram goes on to the right.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import sentencepiece

_MAGIC = b"mmap lm http://kheafield.com/code format version 5\n\0\0"
_PROBING = 0
MAX_ORDER = 6
FETCHED = 64  # words whose table entries are read ahead: 64 words of 4 orders are 16 KB of cache lines


@dataclass(frozen=True)
class ProbingModel:
    """A probing model mapped into memory. `words`: the file as uint32; `floats`: the same memory as float32.

    `tables`: int64 [order + 1, 2]: (first uint32, entries) of the vocabulary, of the unigrams and of each higher order.
    """

    words: npt.NDArray[np.uint32]
    floats: npt.NDArray[np.float32]
    tables: npt.NDArray[np.int64]
    order: int

    @classmethod
    def load(cls, path: Path) -> ProbingModel | None:
        """Map the model at `path`; None when it is of another type or version (the library reads those)."""
        magic = len(_MAGIC) + -len(_MAGIC) % 8
        with path.open("rb") as file:
            head = file.read(magic + 32 + 20 + 8 * MAX_ORDER)
        if len(head) < magic + 52 or not head.startswith(_MAGIC):
            return None
        order, multiplier, kind, _, version = struct.unpack_from("<BxxxfiBxxxI", head, magic + 32)
        if kind != _PROBING or version != 0 or not 2 <= order <= MAX_ORDER:
            return None
        counts = struct.unpack_from(f"<{order}Q", head, magic + 52)
        sizes = [max(count + 1, int(np.float32(multiplier) * np.float32(count))) for count in counts]
        start = magic + 52 + 8 * order
        start += -start % 8 + 8
        tables = [(start, sizes[0])]
        start += 12 * sizes[0]
        tables.append((start, counts[0] + 1))
        start += 8 * (counts[0] + 1)
        for n in range(1, order):
            tables.append((start, sizes[n]))
            start += (12 if n == order - 1 else 16) * sizes[n]
        raw = np.memmap(path, np.uint8, "r")
        if start > len(raw):
            return None
        words = np.asarray(raw[: len(raw) // 4 * 4]).view(np.uint32)
        return cls(
            words, words.view(np.float32), np.array([(first // 4, size) for first, size in tables], np.int64), order
        )


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece unigram model as a double-array trie over bytes.

    `trie`: int32 [states, 4]: base, check, piece number or -1, unused; state 0 is the root and the child of s by byte b
    is base[s] + b where check says s. `scores`: float32 [pieces]. `unknown`: score of a character that no piece covers.
    `data`, `offsets`: the bytes of all pieces.
    """

    trie: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    unknown: np.float32
    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, model: sentencepiece.SentencePieceProcessor) -> Pieces:
        """From a loaded unigram model with identity normalisation, as `train_lm` makes them."""
        count = model.get_piece_size()
        texts = [model.id_to_piece(i).encode() for i in range(count)]
        normal = [
            i
            for i in range(count)
            if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i) or model.is_unused(i))
        ]
        scores = np.array([model.get_score(i) for i in range(count)], np.float32)
        order = sorted(normal, key=lambda i: texts[i])
        sorted_offsets = np.zeros(len(order) + 1, np.int64)
        np.cumsum([len(texts[i]) for i in order], out=sorted_offsets[1:])
        keys = np.frombuffer(b"".join(texts[i] for i in order), np.uint8)
        states = 4 * len(keys) + 4096
        while (trie := _build(keys, sorted_offsets, np.array(order, np.int32), np.full((states, 4), -1, np.int32)))[
            0, 3
        ] != 1:
            states *= 2
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        unknown = np.float32(scores[normal].min() - np.float32(10))  # the library's penalty
        return cls(trie, scores, unknown, np.frombuffer(b"".join(texts), np.uint8), offsets)


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
def _murmur(data, first, last):  # type: ignore[no-untyped-def]
    """MurmurHash64A with seed 0 of data[first:last]: KenLM's hash of a word."""
    m = np.uint64(0xC6A4A7935BD1E995)
    r = np.uint64(47)
    h = np.uint64(last - first) * m
    i = first
    while last - i >= 8:
        k = np.uint64(0)
        for j in range(8):
            k |= np.uint64(data[i + j]) << np.uint64(8 * j)
        k *= m
        k ^= k >> r
        k *= m
        h ^= k
        h *= m
        i += 8
    if i < last:
        for j in range(last - i):
            h ^= np.uint64(data[i + j]) << np.uint64(8 * j)
        h *= m
    h ^= h >> r
    h *= m
    return h ^ (h >> r)


@numba.njit(cache=True, inline="always")
def _entry(words, at):  # type: ignore[no-untyped-def]
    """The 64-bit key at a position of the file."""
    return np.uint64(words[at]) | (np.uint64(words[at + 1]) << np.uint64(32))


@numba.njit(cache=True, inline="always")
def _find(words, first, entries, width, key):  # type: ignore[no-untyped-def]
    """Position (in uint32) of the entry with `key` in a table of `entries` entries of `width` uint32; -1 = none."""
    at = first + np.int64(key % np.uint64(entries)) * width
    return _probe(words, first, entries, width, key, at, _entry(words, at))


@numba.njit(cache=True, inline="always")
def _probe(words, first, entries, width, key, at, found):  # type: ignore[no-untyped-def]
    """As `_find`, from the position `at` whose key `found` is read already."""
    while found != key:
        if found == 0:
            return -1
        at += width
        if at == first + entries * width:
            at = first
        found = _entry(words, at)
    return at


@numba.njit(cache=True)
def word_numbers(words, tables, data, offsets):  # type: ignore[no-untyped-def]
    """int64 [n]: number of each word data[offsets[i]:offsets[i + 1]] in the model, 0 = unknown."""
    numbers = np.zeros(len(offsets) - 1, np.int64)
    for i in range(len(numbers)):
        at = _find(words, tables[0, 0], tables[0, 1], 3, _murmur(data, offsets[i], offsets[i + 1]))
        if at >= 0:
            numbers[i] = words[at + 2]
    return numbers


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
def _fetch(words, tables, order, sentence, first, last, keys, places, found):  # type: ignore[no-untyped-def]
    """For each word sentence[first:last] and each order from 2: key, place in its table and the key that stands there.

    The reads depend on nothing, so that the processor waits for many of them at once; asked one after the other, each
    would cost a full access to memory. That is where the time of a model larger than the caches goes.
    """
    for i in range(first, last):
        node = np.uint64(sentence[i])
        row = i - first
        for k in range(min(i, order - 1)):
            node = (node * np.uint64(8978948897894561157)) ^ (
                np.uint64(1 + sentence[i - 1 - k]) * np.uint64(17894857484156487943)
            )
            width = 3 if k == order - 2 else 4
            at = tables[k + 2, 0] + np.int64(node % np.uint64(tables[k + 2, 1])) * width
            keys[row, k] = node
            places[row, k] = at
            found[row, k] = _entry(words, at)


@numba.njit(cache=True)
def _score(words, floats, tables, order, sentence, size, scratch):  # type: ignore[no-untyped-def]
    """log10 probability of sentence[1:size] after sentence[0] = <s>, added in float32 as KenLM adds it."""
    keys, places, found, backoff, new_backoff = scratch
    block = len(keys)
    backoff[0] = floats[tables[1, 0] + 2 * sentence[0] + 1]
    length = 1  # words of context in use
    total = np.float32(0)
    for i in range(1, size):
        row = (i - 1) % block
        if row == 0:
            _fetch(words, tables, order, sentence, i, min(i + block, size), keys, places, found)
        at = tables[1, 0] + 2 * sentence[i]
        probability = -abs(floats[at])
        closed = words[at] >> np.uint32(31) != 0  # no n-gram goes on to the left
        new_backoff[0] = floats[at + 1]
        new_length = 1 if words[at + 1] != np.uint32(0x80000000) else 0
        matched = 1
        for k in range(length):
            if closed:
                break
            if k == order - 2:
                at = _probe(words, tables[order, 0], tables[order, 1], 3, keys[row, k], places[row, k], found[row, k])
                if at >= 0:
                    probability = floats[at + 2]
                    matched = order
                break
            at = _probe(words, tables[k + 2, 0], tables[k + 2, 1], 4, keys[row, k], places[row, k], found[row, k])
            if at < 0:
                break
            probability = -abs(floats[at + 2])
            closed = words[at + 2] >> np.uint32(31) != 0
            new_backoff[k + 1] = floats[at + 3]
            matched = k + 2
            if words[at + 3] != np.uint32(0x80000000):
                new_length = k + 2
        for k in range(matched - 1, length):
            probability += backoff[k]
        for k in range(new_length):
            backoff[k] = new_backoff[k]
        length = new_length
        total += probability
    return total


@numba.njit(cache=True)
def score_lines(data, offsets, trie, scores, unknown, numbers, words, floats, tables, order, begin, end):  # type: ignore[no-untyped-def]
    """(log10 probability float64 [m], pieces int64 [m]) of newline-closed lines; the sum of one line is float32, as in
    KenLM.

    `numbers`: word number of every piece; `begin`, `end`: those of <s> and </s>.
    """
    count = len(offsets) - 1
    logs = np.zeros(count, np.float64)
    lengths = np.zeros(count, np.int64)
    longest = 0
    for line in range(count):
        longest = max(longest, offsets[line + 1] - offsets[line])
    text = np.empty(3 * longest + 3, np.uint8)
    best = np.empty(3 * longest + 4, np.float32)
    back = np.empty(3 * longest + 4, np.int32)
    piece = np.empty(3 * longest + 4, np.int32)
    path = np.empty(3 * longest + 4, np.int32)
    sentence = np.empty(3 * longest + 6, np.int64)
    scratch = (
        np.empty((FETCHED, MAX_ORDER), np.uint64),
        np.empty((FETCHED, MAX_ORDER), np.int64),
        np.empty((FETCHED, MAX_ORDER), np.uint64),
        np.empty(MAX_ORDER + 1, np.float32),
        np.empty(MAX_ORDER + 1, np.float32),
    )
    for line in range(count):
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
        sentence[0] = begin
        pieces = 0
        step = steps - 1
        while step >= 0:
            stop = path[step]
            number = piece[stop]
            pieces += 1
            if number >= 0:
                sentence[pieces] = numbers[number]
            else:
                start = back[stop]
                while step > 0 and piece[path[step - 1]] < 0:  # unknown neighbours are one piece
                    step -= 1
                at = _find(words, tables[0, 0], tables[0, 1], 3, _murmur(text, start, path[step]))
                sentence[pieces] = np.int64(words[at + 2]) if at >= 0 else np.int64(0)
            step -= 1
        sentence[pieces + 1] = end
        logs[line] = _score(words, floats, tables, order, sentence, pieces + 2, scratch)
        lengths[line] = pieces
    return logs, lengths


class Kernel:
    """One model ready for `score_lines`."""

    def __init__(self, model: ProbingModel, pieces: Pieces) -> None:
        """Look every piece up in the model's vocabulary once."""
        numbers = word_numbers(model.words, model.tables, pieces.data, pieces.offsets)
        marks = np.frombuffer(b"<s></s>", np.uint8)
        begin, end = word_numbers(model.words, model.tables, marks, np.array([0, 3, 7], np.int64)).tolist()
        self._arguments: tuple[Any, ...] = (
            *(pieces.trie, pieces.scores, pieces.unknown, numbers),
            *(model.words, model.floats, model.tables, model.order, begin, end),
        )

    def score(
        self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """(log10 probability, pieces), both [m], of lines as in `lm_text.Lines`."""
        logs, pieces = score_lines(data, offsets, *self._arguments)
        return logs, pieces
