"""SentencePiece unigram segmentation as a kernel over whole batches of lines: bytes in, word numbers of the language
model out.

The library takes a Python string a line and gives one a piece; what a language model reads is neither. The kernel
covers the models that `train_lm` makes: unigram, identity normalisation, no user-defined and no byte pieces, no piece
across a space. Others are left to the library.

The pieces of a word (a space, or the start of the line, and what follows up to the next space) depend on that word
alone: the best path through a line is the best paths of its words one behind the other. So the latest words are kept
with their pieces. Scores are added as integers, without rounding, and of equal sums that with the longest last piece
wins. The library adds float32 along the whole line, so that its choice between equal sums (the same pieces in another
order: 0 000 or 000 0) hangs on the rounding of what came before. Only there may the two differ: in 8 lines of 10,000 of
English technical text, 2 of Chinese.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np
import sentencepiece

from data_factory.batches import I32, I64, U8
from data_factory.characters import decode
from data_factory.ngram_arpa import Words, find_word
from ziya import sentencepiece_model as spm

_SPACE = "▁"
_UNIT = 1 << 24  # of scores: float32 numbers from 1 to 128 are whole multiples, so that sums are exact
_LARGEST = 120.0  # a score that fits int32 in these units
_NEVER = -(1 << 62)
_MEMORY_BYTES, _MEMORY_NUMBERS = 24, 8  # longest word and most pieces that the memory holds
_MEMORY_SETS = 1 << 15  # 32,768 sets of two entries of 64 bytes: 4 MiB


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece unigram model as a double-array trie over characters.

    `codes`: int32, code point -> number of the character, -1 for one that no piece has. `trie`: int32 [states, 4]:
    base, check, word of the piece that ends here or -1, its score in 1 / _UNIT; state 0 is the root and the child of s
    by character c is base[s] + c where check says s. `space`: the number of ▁. `unknown`: score of a character that no
    piece covers. `words`: those of the language model, for what no piece covers; `other`: the word for what the model
    does not have. `memory`: int64 [sets, 16], the latest words and their pieces (see `_recall`); it changes speed,
    never results.
    """

    codes: I32
    trie: I32
    space: int
    unknown: int
    words: Words
    other: int
    memory: I64 = field(default_factory=lambda: np.zeros((_MEMORY_SETS, 16), np.int64), repr=False)

    @classmethod
    def of(cls, model: sentencepiece.SentencePieceProcessor, words: Words, other: int) -> Pieces | None:
        """From a loaded model and the words of a language model (`other`: its unknown word); None when the model has a
        feature that the kernel lacks."""
        file = spm.parse_model(model.serialized_model_proto())
        plain = file.model_type == spm.UNIGRAM and not file.charsmap and not file.whitespace_is_suffix
        if not (plain and file.add_dummy_prefix and file.escape_whitespaces) or file.byte_fallback:
            return None
        if not set(file.types) <= {spm.NORMAL, spm.UNKNOWN, spm.CONTROL}:
            return None
        kept = [i for i, kind in enumerate(file.types) if kind == spm.NORMAL]
        texts = [file.pieces[i] for i in kept]
        behind = "".join(text[1:] for text in texts)
        if _SPACE not in texts or "" in texts or _SPACE in behind or set("".join(texts)) & set(" \t\n\r\0"):
            return None
        # Frequent characters get small numbers, so that their children lie together.
        points, counts = np.unique(_points("".join(texts)), return_counts=True)
        alphabet = points[np.lexsort((points, -counts))]
        codes = np.full(int(points.max()) + 1, -1, np.int32)
        codes[alphabet] = np.arange(len(alphabet))
        # Sorted as strings of these numbers, moved out of the way of surrogates.
        moved = "".join(map(chr, np.arange(0x10000, 0x10000 + len(alphabet)).tolist()))
        table = {int(point): moved[code] for code, point in enumerate(alphabet)}
        order = sorted(range(len(texts)), key=[text.translate(table) for text in texts].__getitem__)
        texts = [texts[i] for i in order]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        keys = codes[_points("".join(texts))]
        numbers = words.numbers([text.encode() for text in texts])
        numbers[numbers < 0] = other
        scores = np.array(file.scores)[kept][order]
        if not (np.abs(scores) < _LARGEST).all():
            return None
        fixed = np.round(scores * _UNIT).astype(np.int32)
        states = 4 * len(keys) + 4 * len(alphabet) + 4096
        while True:
            empty = np.full((states, 4), -1, np.int32)
            trie = _build(keys, offsets, numbers, fixed, len(alphabet), empty)
            if len(trie):
                break
            states *= 2
        lowest = int(fixed.min()) - 10 * _UNIT  # the library's penalty
        return cls(codes, trie, int(codes[ord(_SPACE)]), lowest, words, other)

    def numbers(self, data: U8, offsets: I64) -> tuple[I32, I64]:
        """(word numbers of the pieces of all lines, end to end, int32; where each line ends among them, int64 [m]), of
        newline-closed lines without runs of spaces."""
        # Every byte may be a piece with a space behind it, and a space stands before each line.
        out = np.empty(int(offsets[-1] - offsets[0]) + len(offsets) + 1, np.int32)
        ends = np.zeros(len(offsets) - 1, np.int64)
        words = self.words
        tables = self.codes, self.trie, self.space, self.unknown, words.data, words.offsets, words.slots, self.other
        size = _segment(data, offsets, *tables, self.memory, out, ends)
        return out[:size], ends


def _points(text: str) -> I32:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le"), np.int32)


@numba.njit(cache=True)
def _build(keys, offsets, numbers, scores, alphabet, trie):  # type: ignore[no-untyped-def]
    """Fill a double array from sorted distinct keys; nothing is returned when `trie` is too small."""
    size = len(trie)
    stack = np.empty((len(keys) + 2, 4), np.int64)  # first key, last key, depth, state
    stack[0] = (0, len(offsets) - 1, 0, 0)
    trie[0, 1] = 0
    top = 1
    free = alphabet  # the first slot without a state; from here on any character's child can take it
    # By number of children (2, 3-4, 5-8 ...): where the last search ended; none goes back.
    starting = np.ones(40, np.int64)
    used = 0
    children = np.empty(alphabet + 1, np.int64)
    starts = np.empty(alphabet + 1, np.int64)
    while top:
        top -= 1
        first, last, depth, state = stack[top]
        if first < last and offsets[first + 1] - offsets[first] == depth:
            trie[state, 2] = numbers[first]
            trie[state, 3] = scores[first]
            first += 1
        count = 0
        for key in range(first, last):
            code = keys[offsets[key] + depth]
            if count == 0 or children[count - 1] != code:
                children[count] = code
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
            if base + alphabet >= size:
                return trie[:0].copy()
            fits = True
            for child in range(count):
                if trie[base + children[child], 1] >= 0:
                    fits = False
                    break
            if fits:
                break
            base += 1
        starting[group] = base
        used = max(used, base + alphabet)
        trie[state, 0] = base
        for child in range(count):
            target = base + children[child]
            trie[target, 1] = state
            stack[top] = (starts[child], starts[child + 1], depth + 1, target)
            top += 1
    for state in range(used + 1):
        trie[state, 0] = max(trie[state, 0], 0)  # a leaf: its children belong to others, so that check says no
    return trie[: used + 1].copy()


@numba.njit(cache=True)
def _best_path(count, chars, trie, unknown, best, back, piece):  # type: ignore[no-untyped-def]
    """Viterbi over chars[:count]: back[i], piece[i] = start and word (-1 unknown) of the best piece that ends at i.

    A later candidate wins only when it is better, as in SentencePiece.
    """
    for i in range(1, count + 1):
        best[i] = _NEVER
    best[0] = 0
    root = trie[0, 0]
    for i in range(count):
        here = best[i]
        single = False
        j = i
        if chars[i] >= 0:
            state = np.int64(0)
            base = root
            while True:
                target = np.int64(base) + chars[j]
                if trie[target, 1] != state:
                    break
                state = target
                base = trie[state, 0]
                j += 1
                if trie[state, 2] >= 0:
                    candidate = np.int64(trie[state, 3]) + here
                    if candidate > best[j]:
                        best[j] = candidate
                        back[j] = i
                        piece[j] = trie[state, 2]
                    if j == i + 1:
                        single = True
                if j == count or chars[j] < 0:
                    break
        if not single:
            candidate = unknown + here
            if candidate > best[i + 1]:
                best[i + 1] = candidate
                back[i + 1] = i
                piece[i + 1] = -1


@numba.njit(cache=True, inline="always")
def _pack(data, begin, stop):  # type: ignore[no-untyped-def]
    """(where the word at `begin` ends, at a space or `stop`; its first 24 bytes as three uint64, zeros behind it)."""
    a = b = c = np.uint64(0)
    end = begin
    short = min(stop, begin + _MEMORY_BYTES)
    while end < short and data[end] != 32:
        n = np.uint64(end - begin)
        value = np.uint64(data[end]) << ((n & np.uint64(7)) << np.uint64(3))
        if n < 8:
            a |= value
        elif n < 16:
            b |= value
        else:
            c |= value
        end += 1
    while end < stop and data[end] != 32:
        end += 1
    return end, a, b, c


@numba.njit(cache=True, inline="always")
def _set_of(a, b, c, size, sets):  # type: ignore[no-untyped-def]
    """The set of the memory (a power of two of them) that may hold a word."""
    mixed = a * np.uint64(0x9E3779B97F4A7C15) ^ b * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= (c + np.uint64(size)) * np.uint64(0xD6E8FEB86659FD93)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(40)) & (sets - 1)


@numba.njit(cache=True, inline="always")
def _recall(memory, row, a, b, c, size, out, written):  # type: ignore[no-untyped-def]
    """Write the numbers of a word that the set `row` holds; returns how many, 0 when it does not hold the word.

    A set has two entries of 8 int64: the word's bytes (3), its size and 256 times its numbers, the numbers in pairs.
    """
    for entry in (0, 8):
        kept = memory[row, entry + 3]
        if kept & 0xFF != size or kept == 0 or memory[row, entry] != np.int64(a):
            continue
        if memory[row, entry + 1] == np.int64(b) and memory[row, entry + 2] == np.int64(c):
            count = kept >> 8
            for step in range(0, count, 2):  # one number more than there are may be written
                pair = memory[row, entry + 4 + (step >> 1)]
                out[written + step] = np.int32(pair & 0xFFFFFFFF)
                out[written + step + 1] = np.int32(pair >> 32)
            return count
    return 0


@numba.njit(cache=True)
def _remember(memory, row, a, b, c, size, numbers):  # type: ignore[no-untyped-def]
    """Make a word the first entry of its set; the older of the two is forgotten."""
    for k in range(8):
        memory[row, 8 + k] = memory[row, k]
    memory[row, 0], memory[row, 1], memory[row, 2] = np.int64(a), np.int64(b), np.int64(c)
    memory[row, 3] = size | len(numbers) << 8
    for k in range(4):
        low = numbers[2 * k] if 2 * k < len(numbers) else 0
        high = numbers[2 * k + 1] if 2 * k + 1 < len(numbers) else 0
        memory[row, 4 + k] = np.int64(low) | np.int64(high) << 32


@numba.njit(cache=True)
def _segment(  # type: ignore[no-untyped-def]
    data, offsets, codes, trie, space, unknown, word_data, word_offsets, word_slots, other, memory, out, ends
):
    """Fill `out` and `ends` as `Pieces.numbers` says; returns the numbers written."""
    longest = 0
    for line in range(len(ends)):
        longest = max(longest, offsets[line + 1] - offsets[line])
    chars = np.empty(longest + 2, np.int32)
    place = np.empty(longest + 2, np.int64)
    best = np.empty(longest + 3, np.int64)
    back = np.empty(longest + 3, np.int32)
    piece = np.empty(longest + 3, np.int32)
    path = np.empty(longest + 3, np.int32)
    written = 0
    for line in range(len(ends)):
        at = offsets[line]
        stop = offsets[line + 1] - 1
        while at <= stop:
            end, a, b, c = _pack(data, at, stop)
            size = end - at
            row = np.int64(-1)
            if size <= _MEMORY_BYTES:
                row = _set_of(a, b, c, size, len(memory))
                count = _recall(memory, row, a, b, c, size, out, written)
                if count > 0:
                    written += count
                    at = end + 1
                    continue
            chars[0], place[0], count = space, at, 1
            i = at
            while i < end:
                point, length = decode(data, i)
                place[count] = i
                chars[count] = codes[point] if point < len(codes) else -1
                count += 1
                i += length
            place[count] = end
            _best_path(count, chars, trie, unknown, best, back, piece)
            steps = 0
            while count > 0:
                path[steps] = count
                steps += 1
                count = back[count]
            first = written
            step = steps - 1
            while step >= 0:
                word = piece[path[step]]
                if word < 0:
                    start = place[back[path[step]]]
                    while step > 0 and piece[path[step - 1]] < 0:  # unknown neighbours are one piece
                        step -= 1
                    word = np.int32(find_word(data, start, place[path[step]], word_data, word_offsets, word_slots))
                    if word < 0:
                        word = np.int32(other)
                out[written] = word
                written += 1
                step -= 1
            if row >= 0 and written - first <= _MEMORY_NUMBERS:
                _remember(memory, row, a, b, c, size, out[first:written])
            at = end + 1
        ends[line] = written
    return written


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
