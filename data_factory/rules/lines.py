"""The lines of a batch with their counts, in one pass, and the ends of sentences and clauses inside a line."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from data_factory import characters
from data_factory.batches import I32, I64, Spans, TextBatch

TERMINAL = 1  # ends in an end mark (not in ...) or a closing quote
WORDY = 2  # holds a letter or digit
CODE_LIKE = 4  # holds brackets, pipes, back-quotes, $, \\ or =
FENCED = 8  # inside a Markdown code fence, or the fence, or indented by four blanks or a tab
SEPARATED = 16  # holds > » › → | or ＞
TABLE_ROW = 32  # starts with |
ODD = 64  # holds a symbol that is neither of a rule (- * _ = ~) nor a mark of sentences, a quote or a bracket
HEADING = 128  # starts with # or a digit

_PLAIN = np.zeros(0x10000, np.bool_)  # marks that are not ODD
_PLAIN[[ord(mark) for mark in "-*_=~.,!?;:'\"…。，！？、；：—–“”‘’（）()《》「」『』#>+`"]] = True

# Columns of `LineTable.counts`.
CHARS, WORDS, UNITS, UPPER, DIGITS, RUN, SOLID, FLAGS = range(8)


@dataclass(frozen=True)
class LineTable:
    """Every line that is not blank, in order.

    `doc`: int32 [m]; `start`, `end`: int64 [m], batch positions without outer blanks; `counts`: int32 [m, 8]:
    characters, words between spaces, units (Han characters, and runs of other letters and digits), upper-case
    characters, digits, longest run without space, Han or non-ASCII punctuation (URLs apart), bytes in letters and
    digits, flags.
    """

    doc: I32
    start: I64
    end: I64
    counts: I32

    def __len__(self) -> int:
        return len(self.doc)

    @classmethod
    def of(cls, batch: TextBatch) -> LineTable:
        """The lines of a batch."""
        size = int(np.count_nonzero(batch.data == 10)) + len(batch)
        return cls(*_lines(batch.data, batch.offsets, characters.table(), _PLAIN, size))

    def overlapping(self, batch: TextBatch, spans: Spans) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """bool [m]: lines that share a byte with a span."""
        base = batch.offsets[spans.doc]
        first = np.searchsorted(self.end, base + spans.start, side="right")
        last = np.searchsorted(self.start, base + spans.end, side="left")
        step = np.zeros(len(self) + 1, np.int64)
        hit = last > first
        np.add.at(step, first[hit], 1)
        np.add.at(step, last[hit], -1)
        return np.cumsum(step[:-1]) > 0


@numba.njit(cache=True)
def _lines(data, offsets, flags, plain, size):  # type: ignore[no-untyped-def]
    doc_of = np.empty(size, np.int32)
    starts = np.empty(size, np.int64)
    ends = np.empty(size, np.int64)
    counts = np.zeros((size, 8), np.int32)
    n = 0
    for doc in range(len(offsets) - 1):
        i, last = offsets[doc], offsets[doc + 1]
        fenced = False
        while i < last:
            indent = 0
            while i < last and (data[i] == 32 or data[i] == 9 or data[i] == 10 or data[i] == 13):
                if data[i] == 10:
                    indent = 0
                else:
                    indent += 4 if data[i] == 9 else 1
                i += 1
            if i >= last:
                break
            start, end = i, i
            chars, trailing, words, units, upper, digits, run, longest, solid, bits = 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
            in_word, in_unit, in_url = False, False, False
            while i < last and data[i] != 10:
                byte = data[i]
                if byte < 0x80:
                    point, width = np.int32(byte), 1
                    flag = flags[byte]
                else:
                    point, width = characters.decode(data, i)
                    flag = characters.flags_of(flags, point)
                i += width
                if flag & 32:  # SPACE
                    trailing += 1
                    in_word, in_unit, in_url, run = False, False, False, 0
                    continue
                if chars == 0:  # the first character: wide spaces before it are outside
                    start, trailing = i - width, 0
                    if byte == 124:
                        bits |= TABLE_ROW
                    if byte == 35 or 48 <= byte <= 57:
                        bits |= HEADING
                chars += trailing + 1
                trailing = 0
                end = i
                if not in_word:
                    words += 1
                    in_word = True
                if flag & 1:  # HAN
                    first = i
                    while i < last and 0xE5 <= data[i] <= 0xE9:  # U+5000 to U+9FFF: more of them
                        i += 3
                    more = (i - first) // 3
                    chars += more
                    units += 1 + more
                    in_unit, in_url, run = False, False, 0
                    solid += width + 3 * more
                    end = i
                    bits |= WORDY
                    continue
                if flag & 6:  # LETTER | DIGIT
                    if not in_unit:
                        units += 1
                        in_unit = True
                    solid += width
                    bits |= WORDY
                    if flag & 128:
                        upper += 1
                    if flag & 4:
                        digits += 1
                    first = i
                    while i < last and 97 <= data[i] <= 122:  # most of a text is a-z behind a letter
                        i += 1
                    chars += i - first
                    solid += i - first
                    run += 1 + i - first
                    end = i
                else:
                    in_unit = False
                    if point > 0xFFFF or not plain[point]:
                        bits |= ODD
                    if byte < 0x80:
                        run += 1
                        if byte == 58 and i + 1 < last and data[i] == 47 and data[i + 1] == 47:  # ://
                            in_url = True
                        # $ ( ) < = > [ \ ] ` { | }
                        if byte in (36, 40, 41, 60, 61, 62, 91, 92, 93, 96, 123, 124, 125):
                            bits |= CODE_LIKE
                        if byte in (62, 124):
                            bits |= SEPARATED
                    else:
                        run = 0
                        if point in (0xBB, 0x203A, 0x2192, 0xFF1E):
                            bits |= SEPARATED
                if not in_url:
                    longest = max(longest, run)
            if chars == 0:
                continue
            if (
                end - start >= 3
                and data[start] == data[start + 1] == data[start + 2]
                and (data[start] == 96 or data[start] == 126)
            ):
                fenced = not fenced
                bits |= FENCED
            if fenced or indent >= 4:
                bits |= FENCED
            if _terminal(data, flags, start, end):
                bits |= TERMINAL
            doc_of[n], starts[n], ends[n] = doc, start, end
            counts[n, 0], counts[n, 1], counts[n, 2], counts[n, 3] = chars, words, units, upper
            counts[n, 4], counts[n, 5], counts[n, 6], counts[n, 7] = digits, longest, solid, bits
            n += 1
    return doc_of[:n].copy(), starts[:n].copy(), ends[:n].copy(), counts[:n].copy()


@numba.njit(cache=True)
def _terminal(data, flags, start, end):  # type: ignore[no-untyped-def]
    """C4's test and its Chinese form: an end mark that is not an ASCII ellipsis, a closing quote, or a wide bracket."""
    j = end - 1
    while data[j] & 0xC0 == 0x80:
        j -= 1
    point, _ = characters.decode(data, j)
    if point == 46:  # .
        return not (j - 2 >= start and data[j - 1] == 46 and data[j - 2] == 46)
    if characters.flags_of(flags, point) & 2048:  # END_MARK
        return True
    return point in (0x22, 0x27, 0x201D, 0x2019, 0x300D, 0x300F, 0xFF09)  # " ' ” ’ 」 』 ）


@numba.njit(cache=True)
def is_end(data, i, last):  # type: ignore[no-untyped-def]
    """Bytes of the end mark of a sentence at i, 0 = none.

    ASCII marks need a blank, a closer or the end behind them (not 3.5, a.b, x?y=1).
    """
    byte = data[i]
    if byte in (46, 33, 63):  # . ! ?
        if i + 1 >= last:
            return 1
        after = data[i + 1]
        if after in (32, 9, 10, 13, 33, 34, 39, 41, 63, 93) or (after >= 0x80 and byte != 46):
            return 1
        return 0
    if byte == 0xE3 and data[i + 1] == 0x80 and data[i + 2] == 0x82:  # 。
        return 3
    if byte == 0xEF and data[i + 1] == 0xBC and (data[i + 2] == 0x81 or data[i + 2] == 0x9F):  # ！ ？
        return 3
    if byte == 0xE2 and data[i + 1] == 0x80 and data[i + 2] == 0xA6:  # …
        return 3
    return 0


@numba.njit(cache=True)
def is_clause(data, i, last):  # type: ignore[no-untyped-def]
    """Bytes of the clause mark at i (， ； and , ; before a blank or a wide character), 0 = none."""
    byte = data[i]
    if byte in (44, 59):  # , ;
        return 1 if i + 1 >= last or data[i + 1] == 32 or data[i + 1] >= 0x80 else 0
    if byte == 0xEF and data[i + 1] == 0xBC and (data[i + 2] == 0x8C or data[i + 2] == 0x9B):  # ， ；
        return 3
    return 0


@numba.njit(cache=True)
def skip_closers(data, flags, i, last):  # type: ignore[no-untyped-def]
    """Position behind the end marks and closers (quotes, brackets) that follow position i."""
    while i < last:
        size = is_end(data, i, last)
        if size == 0:
            point, size = characters.decode(data, i)
            if not characters.flags_of(flags, point) & 4096:  # CLOSER
                break
        i += size
    return i


@numba.njit(cache=True)
def sentence_bounds(data, flags, first, last, start, end):  # type: ignore[no-untyped-def]
    """(start, end, mark): the sentence in the line [first, last) around [start, end), and where its end marks begin."""
    left = first
    j = start
    while j > first:
        j -= 1
        while data[j] & 0xC0 == 0x80:
            j -= 1
        if is_end(data, j, last):
            left = min(skip_closers(data, flags, j, last), start)
            break
    while left < start and (data[left] == 32 or data[left] == 9):
        left += 1
    i = end
    while i < last:
        if is_end(data, i, last):
            return left, skip_closers(data, flags, i, last), i
        i += characters.decode(data, i)[1]
    return left, last, last


@numba.njit(cache=True)
def clause_bounds(data, first, last, mark, start, end):  # type: ignore[no-untyped-def]
    """(start, end): the clause of the sentence [first, last) around [start, end), with the clause mark that follows it.

    The last clause ends before the sentence's end marks (at `mark`); a clause that is the whole sentence is the
    sentence.
    """
    left = first
    j = start
    while j > first:
        j -= 1
        while data[j] & 0xC0 == 0x80:
            j -= 1
        size = is_clause(data, j, mark)
        if size:
            left = j + size
            break
    while left < start and (data[left] == 32 or data[left] == 9):
        left += 1
    i = end
    while i < mark:
        size = is_clause(data, i, mark)
        if size:
            return left, i + size
        i += characters.decode(data, i)[1]
    return (first, last) if left == first else (left, mark)
