"""T1 -> T2: cut spans are removed and private data is replaced, with the positions of what remains.

What happens at the seam of a cut, so that the rest still reads as text:

- Overlapping cuts, and cuts with only blanks between them, are one cut. Bytes inside protected spans are never
  touched by repair.
- A line of which nothing but blanks would remain goes with its newline. Of the newlines before and after such lines
  the longer run stays, so that no run grows beyond what it was.
- Of blanks on both sides one side stays; none stays before a closing mark, at a line's start or at its end.
- A clause mark (， 、 ； , ;) that would stand before an end mark, another clause mark or a line's end goes; so does
  a mark that would open a line or follow an end mark, and a pair of brackets or quotes that would be empty.
- Where two words would become one, a space stands between them (`1</td><td>2`, `Roses&nbsp;need`), unless the cut was
  of tags that stand inside words (`<b>H</b>ello`).
- The text's outer whitespace goes.
- A mask inside a cut vanishes. Overlapping masks are one, with the text of the longest (the first, on a tie); of a
  mask that a cut overlaps in part the rest is still replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from data_factory import characters
from data_factory.batches import I32, I64, Spans, TextBatch
from data_factory.rules.lexicon import word_after, word_before


@dataclass(frozen=True)
class Edits:
    """Replacements that turn T1 into T2: sorted, disjoint, each inside one document.

    `start`, `end`: int64 [m], bytes from the start of the batch's buffer; `text`: int32 [m], row of `texts`, -1 =
    nothing. `offsets`: int64 [n + 1] of T2.
    """

    start: I64
    end: I64
    text: I32
    texts: tuple[bytes, ...]
    offsets: I64

    def gains(self) -> I64:
        """int64 [m + 1]: bytes by which the first k edits lengthen the text (negative: shorten)."""
        lengths = np.array([*(len(text) for text in self.texts), 0], np.int64)[self.text]
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths - (self.end - self.start))))


def build(
    t1: TextBatch, protected: Spans, cuts: Spans, masks: Spans, mask_texts: Mapping[int, bytes]
) -> tuple[TextBatch, Spans]:
    """T2, and the protected spans in it (those of which nothing remains are left out).

    `cuts`, `masks`: spans of T1 that are in force, sorted as in `Spans`; `mask_texts`: rule number -> what stands for
    the masked text (`privacy.mask_texts()`).
    """
    edits = plan(t1, protected, cuts, masks, mask_texts)
    start = positions(t1, edits, protected.doc, protected.start)
    end = positions(t1, edits, protected.doc, protected.end, up=True)
    kept = Spans(protected.doc, start, end, protected.rule, protected.value)
    return apply(t1, edits), kept.take(end > start)


def build_positions(
    t1: TextBatch, protected: Spans, cuts: Spans, masks: Spans, mask_texts: Mapping[int, bytes], position: I32
) -> tuple[TextBatch, Spans, I32]:
    """As `build`, with one position a document carried over.

    `position`: int32 [n], bytes of T1 (`prompt_bytes`); returned as bytes of T2.
    """
    edits = plan(t1, protected, cuts, masks, mask_texts)
    start = positions(t1, edits, protected.doc, protected.start)
    end = positions(t1, edits, protected.doc, protected.end, up=True)
    kept = Spans(protected.doc, start, end, protected.rule, protected.value).take(end > start)
    moved = positions(t1, edits, np.arange(len(t1), dtype=np.int32), position, up=True)
    return apply(t1, edits), kept, moved


def plan(t1: TextBatch, protected: Spans, cuts: Spans, masks: Spans, mask_texts: Mapping[int, bytes]) -> Edits:
    """The edits of a batch; see the module for the rules."""
    base = t1.offsets[:-1]
    guard = protected.row_offsets(len(t1)), base[protected.doc] + protected.start, base[protected.doc] + protected.end
    cuts, masks = cuts.take(cuts.end > cuts.start), masks.take(masks.end > masks.start)
    rows = cuts.row_offsets(len(t1))
    start, end = _seams(t1.data, t1.offsets, rows, base[cuts.doc] + cuts.start, base[cuts.doc] + cuts.end, *guard)
    numbers = sorted(mask_texts)
    texts = tuple(mask_texts[number] for number in numbers)
    unknown = set(masks.rule.tolist()) - set(numbers)
    if unknown:
        raise ValueError(f"masks of rules without a text: {sorted(unknown)}")
    text = np.searchsorted(np.array(numbers, np.int64), masks.rule).astype(np.int32)
    pieces = _masks(base[masks.doc] + masks.start, base[masks.doc] + masks.end, text, start, end)
    starts, ends = np.concatenate((start, pieces[0])), np.concatenate((end, pieces[1]))
    which = np.concatenate((np.full(len(start), -1, np.int32), pieces[2]))
    which[np.flatnonzero(_joining(t1, start, end, *pieces[:2]))] = len(texts)
    texts = (*texts, b" ")
    order = np.argsort(starts, kind="stable")
    edits = Edits(starts[order], ends[order], which[order], texts, t1.offsets)
    before = np.searchsorted(edits.end, t1.offsets, side="right")
    return Edits(edits.start, edits.end, edits.text, texts, t1.offsets + edits.gains()[before])


_INSIDE_WORDS = re.compile(
    rb"(?:</?(?:a|b|i|u|s|em|strong|span|font|small|big|tt|strike|sup|sub|ins|del)(?:\s[^<>]*)?>|&(?:shy|zwj|zwnj);?)+",
    re.IGNORECASE,
)


def _joining(t1: TextBatch, start: I64, end: I64, mask_start: I64, mask_end: I64) -> npt.NDArray[np.bool_]:
    """bool [k]: deletions that would make one word of two. What a mask replaces is no word."""
    doc = np.searchsorted(t1.offsets, start, side="right") - 1
    first, last = t1.offsets[doc], t1.offsets[doc + 1]
    joins = (start > first) & (end < last)
    near = np.flatnonzero(joins)
    joins[near] &= (t1.data[start[near] - 1] > 32) & (t1.data[end[near]] > 32)
    flags = characters.table()
    for k in np.flatnonzero(joins).tolist():
        s, e = int(start[k]), int(end[k])
        at = np.searchsorted(mask_start, (s - 1, e), side="right") - 1
        masked = len(mask_start) > 0 and bool(((at >= 0) & (mask_end[at] > (s - 1, e))).any())
        joins[k] = (
            not masked
            and word_before(t1.data, flags, first[k], s)
            and word_after(t1.data, flags, last[k], e)
            and not _INSIDE_WORDS.fullmatch(t1.data[s:e].tobytes())
        )
    return joins


def apply(t1: TextBatch, edits: Edits) -> TextBatch:
    """T2 of the planned edits."""
    if not len(edits.start):
        return t1
    joined = np.frombuffer(b"".join(edits.texts), np.uint8)
    text_offsets = np.concatenate(([0], np.cumsum([len(text) for text in edits.texts]))).astype(np.int64)
    data = _apply(t1.data, edits.start, edits.end, edits.text, joined, text_offsets, int(edits.offsets[-1]))
    return TextBatch(data, edits.offsets)


def positions(t1: TextBatch, edits: Edits, doc: I32, position: I32, up: bool = False) -> I32:
    """int32 [k]: where `position` (bytes of T1 in `doc`) stands in T2; in a mask its start, or its end if `up`."""
    x = t1.offsets[doc] + position.astype(np.int64)
    before = np.searchsorted(edits.end, x, side="right")
    gains = edits.gains()
    moved = x + gains[before]
    if len(edits.start):
        inside = np.minimum(before, len(edits.start) - 1)
        within = (before < len(edits.start)) & (edits.start[inside] < x)
        low = edits.start[inside] + gains[inside]
        high = low + gains[inside + 1] - gains[inside] + edits.end[inside] - edits.start[inside]
        moved = np.where(within, high if up else low, moved)
    return (moved - edits.offsets[doc]).astype(np.int32)


@numba.njit(cache=True)
def _blank(data, i):  # type: ignore[no-untyped-def]
    """Bytes of the blank (space, tab, carriage return, U+3000) at i; 0 = none."""
    byte = data[i]
    if byte in (32, 9, 13):
        return 1
    if byte == 0xE3 and data[i + 1] == 0x80 and data[i + 2] == 0x80:
        return 3
    return 0


@numba.njit(cache=True)
def _before(data, first, i):  # type: ignore[no-untyped-def]
    """Start of the character that ends at i > first."""
    j = i - 1
    while j > first and data[j] & 0xC0 == 0x80:
        j -= 1
    return j


@numba.njit(cache=True)
def _point(data, i):  # type: ignore[no-untyped-def]
    """Code point of the character at i, and its bytes (BMP marks only; four-byte characters return 0)."""
    byte = data[i]
    if byte < 0x80:
        return np.int32(byte), 1
    if byte < 0xE0:
        return np.int32(((byte & 0x1F) << 6) | (data[i + 1] & 0x3F)), 2
    if byte < 0xF0:
        return np.int32(((byte & 0x0F) << 12) | ((data[i + 1] & 0x3F) << 6) | (data[i + 2] & 0x3F)), 3
    return np.int32(0), 4


@numba.njit(cache=True)
def _kind(data, i, last):  # type: ignore[no-untyped-def]
    """1 = clause mark, 2 = end mark, 3 = closing bracket or quote, 4 = opening one, 0 = another character.

    An ASCII mark with a letter or digit right behind it (.NET, 3.5, 1,000) is no mark.
    """
    point, _ = _point(data, i)
    if point in (0x2C, 0x3B, 0x2E, 0x21, 0x3F):  # , ; . ! ?
        if i + 1 < last:
            after = data[i + 1]
            if 48 <= after <= 57 or 65 <= after <= 90 or 97 <= after <= 122:
                return 0
        return 1 if point in (0x2C, 0x3B) else 2
    if point in (0xFF0C, 0x3001, 0xFF1B):  # ， 、 ；
        return 1
    if point in (0x3002, 0xFF01, 0xFF1F, 0x2026):  # 。 ！ ？ …
        return 2
    if point in (0x29, 0x5D, 0xFF09, 0x3011, 0x300B, 0x300D, 0x300F, 0x201D):  # ) ] ） 】 》 」 』 ”
        return 3
    if point in (0x28, 0x5B, 0xFF08, 0x3010, 0x300A, 0x300C, 0x300E, 0x201C):  # ( [ （ 【 《 「 『 “
        return 4
    return 0


@numba.njit(cache=True)
def _pair(data, opening, closing):  # type: ignore[no-untyped-def]
    """Whether the characters at two positions are a pair of brackets or quotes."""
    first, _ = _point(data, opening)
    second, _ = _point(data, closing)
    if first in (0x28, 0x300A, 0x300C, 0x300E, 0x3010, 0xFF08):
        return second == first + 1
    return (first == 0x5B and second == 0x5D) or (first == 0x201C and second == 0x201D)


@numba.njit(cache=True)
def _free(starts, ends, low, high, i):  # type: ignore[no-untyped-def]
    """Whether byte i is outside the protected spans low to high (sorted)."""
    while low < high:
        middle = (low + high) // 2
        if ends[middle] <= i:
            low = middle + 1
        elif starts[middle] > i:
            high = middle
        else:
            return False
    return True


@numba.njit(cache=True)
def _trim(data, a, b, starts, ends, low, high, out_start, out_end, n0, n):  # type: ignore[no-untyped-def]
    """Extend the deletions n0 to n of the text [a, b) over its outer whitespace; returns the new n."""
    k, i = n0, a
    while True:
        if k < n and out_start[k] <= i:
            i = max(i, out_end[k])
            k += 1
        elif i < b and (data[i] == 10 or _blank(data, i)) and _free(starts, ends, low, high, i):
            i += 1 if data[i] == 10 else _blank(data, i)
        else:
            break
    if i > a:
        if k == n0:
            for j in range(n, n0, -1):
                out_start[j], out_end[j] = out_start[j - 1], out_end[j - 1]
            n += 1
        else:
            for j in range(k, n):
                out_start[n0 + 1 + j - k], out_end[n0 + 1 + j - k] = out_start[j], out_end[j]
            n -= k - n0 - 1
        out_start[n0], out_end[n0] = a, i
    i = b
    while i > a:
        if n > n0 and out_end[n - 1] >= i:
            i = out_start[n - 1]
            n -= 1
            continue
        j = _before(data, a, i)
        if (data[j] == 10 or _blank(data, j)) and _free(starts, ends, low, high, j):
            i = j
        else:
            break
    if i < b:
        out_start[n], out_end[n] = i, b
        n += 1
    return n


@numba.njit(cache=True)
def _seams(data, offsets, rows, start, end, guard_rows, guard_start, guard_end):  # type: ignore[no-untyped-def]
    """(start, end) int64: the deletions that cuts become after repair, batch positions; sorted and disjoint."""
    out_start = np.empty(len(start) + 2 * len(offsets), np.int64)
    out_end = np.empty(len(start) + 2 * len(offsets), np.int64)
    n = 0
    for doc in range(len(offsets) - 1):
        a, b = offsets[doc], offsets[doc + 1]
        low, high = guard_rows[doc], guard_rows[doc + 1]
        n0 = n
        i, stop = rows[doc], rows[doc + 1]
        while i < stop:
            s, e = start[i], end[i]
            i += 1
            while True:
                left = s
                floor = out_end[n - 1] if n > n0 else a
                while left > floor:
                    j = _before(data, a, left)
                    if not _blank(data, j) or not _free(guard_start, guard_end, low, high, j):
                        break
                    left = j
                if n > n0 and left <= out_end[n - 1]:  # only blanks since the deletion before: one with it
                    n -= 1
                    s, e = min(s, out_start[n]), max(e, out_end[n])
                    continue
                right = e
                while right < b:
                    size = _blank(data, right)
                    if not size or not _free(guard_start, guard_end, low, high, right):
                        break
                    right += size
                if i < stop and start[i] <= right:
                    e = max(e, end[i])
                    i += 1
                    continue
                opens = left == a or data[left - 1] == 10
                closes = right == b or data[right] == 10
                if opens and closes:
                    above = left
                    while (
                        above > floor and data[above - 1] == 10 and _free(guard_start, guard_end, low, high, above - 1)
                    ):
                        above -= 1
                    below = right
                    limit = min(b, start[i]) if i < stop else b
                    while below < limit and data[below] == 10 and _free(guard_start, guard_end, low, high, below):
                        below += 1
                    if left - above >= below - right:
                        s, e = left, below
                    else:
                        s, e = above, right
                    break
                before = _before(data, a, left) if not opens else a
                p = 0 if opens or not _free(guard_start, guard_end, low, high, before) else _kind(data, before, left)
                q = 0 if closes or not _free(guard_start, guard_end, low, high, right) else _kind(data, right, b)
                after = right + _point(data, right)[1] if not closes else right
                if opens:
                    if q in (1, 2):
                        e = after
                        continue
                    e = right
                elif closes:
                    if p == 1:
                        s = before
                        continue
                    s, e = left, right
                elif p == 4 and q == 3 and _pair(data, before, right):
                    s, e = before, after
                    continue
                elif p == 1 and q == 2:
                    s = before
                    continue
                elif (p == 1 and q == 1) or (p == 2 and q in (1, 2)):
                    e = after
                    continue
                elif left < s:
                    if 1 <= q <= 3:
                        s = left
                    e = right
                elif p == 4:
                    e = right
                break
            out_start[n], out_end[n] = s, e
            n += 1
        n = _trim(data, a, b, guard_start, guard_end, low, high, out_start, out_end, n0, n)
    return out_start[:n].copy(), out_end[:n].copy()


@numba.njit(cache=True)
def _masks(start, end, text, cut_start, cut_end):  # type: ignore[no-untyped-def]
    """(start, end, text) of what masks replace: overlapping ones joined, cut bytes taken out (-1 from there on)."""
    out_start = np.empty(len(start) + len(cut_start), np.int64)
    out_end = np.empty(len(start) + len(cut_start), np.int64)
    out_text = np.empty(len(start) + len(cut_start), np.int32)
    n, k, i = 0, 0, 0
    while i < len(start):
        s, e, longest, best = start[i], end[i], end[i] - start[i], text[i]
        i += 1
        while i < len(start) and start[i] < e:
            if end[i] - start[i] > longest:
                longest, best = end[i] - start[i], text[i]
            e = max(e, end[i])
            i += 1
        while k < len(cut_start) and cut_end[k] <= s:
            k += 1
        j, position = k, s
        while position < e:
            stop = e
            if j < len(cut_start) and cut_start[j] < e:
                stop = max(position, cut_start[j])
            if stop > position:
                out_start[n], out_end[n], out_text[n] = position, stop, best
                best = -1
                n += 1
            if j < len(cut_start) and cut_start[j] < e:
                position = max(position, cut_end[j])
                j += 1
            else:
                position = e
    return out_start[:n].copy(), out_end[:n].copy(), out_text[:n].copy()


@numba.njit(cache=True)
def _apply(data, start, end, text, texts, text_offsets, size):  # type: ignore[no-untyped-def]
    """uint8 [size]: `data` with the edits made."""
    out = np.empty(size, np.uint8)
    at, position = 0, 0
    for k in range(len(start)):
        length = start[k] - position
        out[at : at + length] = data[position : start[k]]
        at += length
        if text[k] >= 0:
            first, last = text_offsets[text[k]], text_offsets[text[k] + 1]
            out[at : at + last - first] = texts[first:last]
            at += last - first
        position = end[k]
    out[at:] = data[position:]
    return out
