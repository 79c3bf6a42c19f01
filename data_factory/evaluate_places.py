"""Kernels of the evaluation that look for places: where a hit may start, which documents may hold one.

They decide nothing alone: flags and places say where the detectors' own tests must look, and never miss one (tests
compare with the detectors run over everything). Places are characters of the document.
"""

from __future__ import annotations

import numba
import numpy as np

from data_factory.characters import DIGIT, SPACE, TABLE_SIZE, decode

# What a document may hold (bits of flags).
GARBLED, RARE_CASE, LONG_NUMBER = 1, 2, 4
# What a place may be the start of.
ADDRESS, ACCOUNT, MARKUP = 0, 1, 2
LEAST_LONG_NUMBER = 4  # digits that stand together
LONGEST_SENTENCE = 600  # characters without any mark or line break
LONG_WORD = 45
LONGEST_PAGE_LINE = 40  # characters
OTHER_LINE, PAGE_LINE, BLANK_LINE = 0, 1, 2
_FNV, _PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)


@numba.njit(cache=True, inline="always")
def _alphanumeric(byte):  # type: ignore[no-untyped-def]
    return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122


@numba.njit(cache=True)
def _is(data, i, end, word):  # type: ignore[no-untyped-def]
    """Whether `word` (lower case) stands at i, in either case of ASCII letters."""
    if i + len(word) > end:
        return False
    for k in range(len(word)):
        byte = data[i + k]
        if byte != word[k] and not (65 <= byte <= 90 and byte + 32 == word[k]):
            return False
    return True


_PENGUIN = np.frombuffer("企鹅".encode(), np.uint8)
_MICRO = np.frombuffer("微信".encode(), np.uint8)
_LETTER = np.frombuffer("信".encode(), np.uint8)
_WECHAT, _WEIXIN = np.frombuffer(b"wechat", np.uint8), np.frombuffer(b"weixin", np.uint8)


@numba.njit(cache=True)
def _room(rows, count, more):  # type: ignore[no-untyped-def]
    """`rows` with its first `count` rows and room for `more`: asked for once a document, as growing inside makes loops slow."""
    if count + more <= len(rows):
        return rows
    longer = np.empty((max(2 * len(rows), count + more), rows.shape[1]), rows.dtype)
    longer[:count] = rows[:count]
    return longer


@numba.njit(cache=True, inline="always")
def _put(rows, count, row):  # type: ignore[no-untyped-def]
    for k in range(len(row)):
        rows[count, k] = row[k]


@numba.njit(cache=True)
def private(data, offsets, flags, classes, least):  # type: ignore[no-untyped-def]
    """Set RARE_CASE and LONG_NUMBER in `flags` int64 [n]; returns where private data may stand.

    Both int32, in the order of the text: `runs` [m, 4]: the runs of digits, spaces and the marks of telephone numbers
    that hold at least `least` digits, as (document, first character, end, digits); `places` [k, 3]: (document, ADDRESS
    or ACCOUNT, character).

    RARE_CASE: İ, the Kelvin sign or ſ, whose lower case or fold is an ASCII letter. `classes`: `characters.table()`.
    """
    runs, places = np.empty((64, 4), np.int32), np.empty((64, 3), np.int32)
    found = placed = 0
    for d in range(len(offsets) - 1):
        begin, end = offsets[d], offsets[d + 1]
        i, place, digits, first, together = begin, 0, 0, -1, 0
        runs, places = _room(runs, found, (end - begin) // (least + 1) + 1), _room(places, placed, end - begin)
        flag = 0
        while i < end:
            byte = data[i]
            inside = digit = False
            kind = -1
            size = 1
            if byte < 0x80:
                if 48 <= byte <= 57:
                    inside = digit = True
                elif byte <= 46:
                    # white space, ( ) + - .
                    inside = byte in (32, 40, 41, 43, 45, 46) or 9 <= byte <= 13 or 28 <= byte <= 31
                    if byte == 40 and i + 2 < end and _at_follows(data, i + 1, end):
                        kind = ADDRESS
                elif byte == 64:
                    if i > begin and i + 1 < end:
                        left, right = data[i - 1], data[i + 1]
                        if (_alphanumeric(left) or left in (95, 43, 45)) and (_alphanumeric(right) or right == 45):
                            kind = ADDRESS
                elif byte == 91:
                    kind = ADDRESS if _at_follows(data, i + 1, end) else -1
                elif byte in (81, 113, 86, 118, 87, 119) and i + 1 < end:
                    after = data[i + 1] | 32
                    lower = byte | 32
                    if (
                        (lower == 113 and after == 113)
                        or (lower == 118 and (after == 120 or _is(data, i + 1, end, _LETTER)))
                        or (lower == 119 and (_is(data, i, end, _WECHAT) or _is(data, i, end, _WEIXIN)))
                    ):
                        kind = ACCOUNT
            else:
                point, size = decode(data, i)
                if point in (0x130, 0x212A, 0x17F):
                    flag |= RARE_CASE
                elif point in (0xFF08, 0xFF09):
                    inside = True
                    if point == 0xFF08 and _at_follows(data, i + 3, end):
                        kind = ADDRESS
                elif point == 0xFF20:
                    kind = ADDRESS
                elif point in (0x4F01, 0x5FAE):
                    kind = ACCOUNT if _is(data, i, end, _PENGUIN) or _is(data, i, end, _MICRO) else -1
                elif point < TABLE_SIZE:  # no digit and no space lies beyond
                    digit = classes[point] & DIGIT != 0
                    inside = digit or classes[point] & SPACE != 0
            if kind >= 0:
                _put(places, placed, (d, kind, place))
                placed += 1
            if inside:
                if first < 0:
                    first, digits = place, 0
                digits += digit
                together = together + 1 if digit else 0
                if together == LEAST_LONG_NUMBER:
                    flag |= LONG_NUMBER
            elif first >= 0:
                if digits >= least:
                    _put(runs, found, (d, first, place, digits))
                    found += 1
                first, together = -1, 0
            i += size
            place += 1
        if first >= 0 and digits >= least:
            _put(runs, found, (d, first, place, digits))
            found += 1
        flags[d] |= flag
    return runs[:found].copy(), places[:placed].copy()


@numba.njit(cache=True)
def _at_follows(data, i, end):  # type: ignore[no-untyped-def]
    """Whether `at` and a closing bracket stand behind an opening one, at most one space (to 3 bytes) between."""
    for gap in range(4):
        if i + gap + 2 < end and data[i + gap] | 32 == 97 and data[i + gap + 1] | 32 == 116:
            for k in range(i + gap + 2, min(i + gap + 6, end)):
                if data[k] in (41, 93, 0xEF):  # ) ] and the first byte of ）
                    return True
    return False


_JAVASCRIPT, _POST_BACK = np.frombuffer(b"javascript:", np.uint8), np.frombuffer(b"__dopost", np.uint8)
_HMT, _GAQ = np.frombuffer(b"_hmt", np.uint8), np.frombuffer(b"_gaq", np.uint8)
_WRITE = np.frombuffer(b"document.write", np.uint8)


@numba.njit(cache=True)
def _markup(data, i, end):  # type: ignore[no-untyped-def]
    """Whether a tag, a comment, an entity or a script's word may start at i."""
    byte = data[i]
    if byte == 60:  # <name, then a space, > or /
        j = i + 1
        if j < end and data[j] == 33:
            return True
        j += j < end and data[j] == 47
        k = j
        while k < end and k - j < 12 and _alphanumeric(data[k]):
            k += 1
        return j < k < end and (data[k] <= 32 or data[k] in (47, 62) or data[k] >= 0x80)
    if byte == 38:  # &name;
        j = i + 1
        while j < end and j - i < 9 and (_alphanumeric(data[j]) or data[j] == 35):
            j += 1
        return j < end and j > i + 2 and data[j] == 59
    if byte == 95:
        return _is(data, i, end, _POST_BACK) or _is(data, i, end, _HMT) or _is(data, i, end, _GAQ)
    if byte | 32 == 106:
        return _is(data, i, end, _JAVASCRIPT)
    return byte | 32 == 100 and _is(data, i, end, _WRITE)


@numba.njit(cache=True)
def _garbled(data, i, end, point):  # type: ignore[no-untyped-def]
    """Whether a garbled sequence may start with the character `point` at i; see `evaluate_detectors`."""
    if point < 0x80:
        return point == 38 and i + 1 < end and data[i + 1] == 35
    if point < 0x100:
        if point in (0xC2, 0xC3, 0xE2):
            return i + 2 < end and data[i + 2] >= 0x80
        if point in (0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9):
            return i + 3 < end and data[i + 2] == 0xC2
        return point == 0xEF and i + 3 < end and data[i + 2] == 0xC2
    if point in (0x951F, 0x70EB, 0x5C6F):
        return i + 3 < end and data[i + 3] >= 0x80
    return point == 0xFFFD or 0xE000 <= point <= 0xF8FF


@numba.njit(cache=True)
def readable(data, offsets, words, flags):  # type: ignore[no-untyped-def]
    """Set GARBLED in `flags`; returns (counts, places, lines), of which the last two in the order of the text.

    `counts`: int64 [n, 2]: characters; characters in endless words and sentences. `places`: int32 [k, 3]: (document,
    MARKUP, character). `lines`: int32 [m, 4]: the lines that may be a function word of a page, as (document, first
    character, end, number among the document's lines that are not blank).
    `data`: prose (`prose`). `words`: sorted hashes (`word_hashes`) of the function words of pages.
    """
    counts = np.zeros((len(offsets) - 1, 2), np.int64)
    places, lines = np.empty((64, 3), np.int32), np.empty((64, 4), np.int32)
    placed = lined = 0
    for d in range(len(offsets) - 1):
        i = line = offsets[d]
        end = offsets[d + 1]
        places, lines = _room(places, placed, (end - i) // 2 + 1), _room(lines, lined, (end - i) // 2 + 1)
        flag = chars = bad = sentence = word = line_chars = number = 0
        while i < end:
            byte = data[i]
            size = 1
            stop = False
            if byte < 0x80:
                letter = 65 <= byte <= 90 or 97 <= byte <= 122
                stop = byte in (33, 44, 46, 59, 63, 10)
                if byte in (38, 60, 95, 74, 106, 68, 100) and _markup(data, i, end):
                    before = 4 if byte == 95 and _is(data, i, end, _HMT) else 0  # var _hmt
                    _put(places, placed, (d, MARKUP, max(0, chars - before)))
                    placed += 1
                if byte == 38 and _garbled(data, i, end, 38):
                    flag |= GARBLED
            else:
                letter = False
                point, size = decode(data, i)
                stop = point in (0x3002, 0xFF01, 0xFF1F, 0xFF1B, 0x2026, 0xFF0C, 0x3001)
                if flag & GARBLED == 0 and _garbled(data, i, end, point):
                    flag |= GARBLED
            i += size
            while i < end and data[i] == 0x80 and byte == 32:  # what `prose` left of a blanked character
                i += 1
            chars += 1
            line_chars += 1
            if letter:
                word += 1
            else:
                bad += word if word >= LONG_WORD else 0
                word = 0
            if stop:
                bad += sentence if sentence > LONGEST_SENTENCE else 0
                sentence = 0
            else:
                sentence += 1
            if byte == 10 or i == end:
                closed = byte == 10
                kind = OTHER_LINE
                if line_chars - closed <= LONGEST_PAGE_LINE:
                    kind = _line_kind(data, line, i - closed, words)
                if kind == PAGE_LINE:
                    _put(lines, lined, (d, chars - line_chars, chars - closed, number))
                    lined += 1
                number += kind != BLANK_LINE
                line, line_chars = i, 0
        bad += word if word >= LONG_WORD else 0
        bad += sentence if sentence > LONGEST_SENTENCE else 0
        flags[d] |= flag
        counts[d] = (chars, bad)
    return counts, places[:placed].copy(), lines[:lined].copy()


@numba.njit(cache=True)
def _line_kind(data, first, last, words):  # type: ignore[no-untyped-def]
    """PAGE_LINE: stripped of the marks around a link and lowered, the line has the hash of a function word."""
    while first < last:
        size = _mark_size(data, first, last)
        if size == 0:
            break
        first += size
    while first < last:
        start = last - 1
        while start > first and data[start] & 0xC0 == 0x80:
            start -= 1
        if _mark_size(data, start, last) == 0:
            break
        last = start
    if first == last:
        return BLANK_LINE
    key = _hash(data, first, last)
    low, high = 0, len(words)
    while low < high:
        middle = (low + high) // 2
        if words[middle] < key:
            low = middle + 1
        else:
            high = middle
    return PAGE_LINE if low < len(words) and words[low] == key else OTHER_LINE


@numba.njit(cache=True)
def _mark_size(data, i, last):  # type: ignore[no-untyped-def]
    """Bytes of the mark at i that may stand around a link's word, 0 for another character."""
    byte = data[i]
    if byte in (32, 9, 124, 62, 60, 45, 0x80):
        return 1
    if byte == 0xC2 and i + 1 < last and data[i + 1] in (0xBB, 0xAB, 0xB7):  # » « ·
        return 2
    if i + 2 < last and data[i + 1] == 0x80:
        return 3 * ((byte == 0xE3 and data[i + 2] == 0x80) or (byte == 0xE2 and data[i + 2] == 0xA2))  # U+3000, •
    return 0


@numba.njit(cache=True)
def _hash(data, first, last):  # type: ignore[no-untyped-def]
    """FNV-1a of bytes in ASCII lower case."""
    key = _FNV
    for i in range(first, last):
        byte = data[i]
        if 65 <= byte <= 90:
            byte += 32
        key = (key ^ np.uint64(byte)) * _PRIME
    return key


@numba.njit(cache=True)
def word_hashes(data, offsets):  # type: ignore[no-untyped-def]
    """uint64 [n]: hashes of the words data[offsets[i]:offsets[i + 1]]."""
    out = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(out)):
        out[i] = _hash(data, offsets[i], offsets[i + 1])
    return out
