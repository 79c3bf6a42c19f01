"""Kernels of the evaluation: blanked prose, what may hold a hit, and the counts behind readability and information.

They decide nothing alone: a flag says which documents and which places the detectors' own tests must look at, and never
misses one (tests compare with the detectors run over everything). Positions are characters or bytes as each says.
"""

from __future__ import annotations

import numba
import numpy as np

from data_factory.characters import DIGIT, SPACE, TABLE_SIZE, decode

# What a document may hold (bits).
ADDRESS, ACCOUNT, MARKUP, PAGE_LINE, GARBLED, RARE_CASE = 1, 2, 4, 8, 16, 32
LONGEST_INLINE_CODE = 300  # characters
HEAD = 5000  # characters of a document that its topic is read from
LONGEST_SENTENCE = 600  # characters without any mark or line break
LONG_WORD = 45
END = 0xFF  # stands behind every document of a lowered buffer: in no phrase and in no text
_FNV, _PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)


@numba.njit(cache=True, inline="always")
def _blank(out, first, last):  # type: ignore[no-untyped-def]
    """A space for each character but newlines; bytes that continue one become 0x80 and still continue one."""
    for i in range(first, last):
        if out[i] != 10:
            out[i] = 0x80 if out[i] & 0xC0 == 0x80 else 32


@numba.njit(cache=True)
def prose(data, offsets, doc, start, end):  # type: ignore[no-untyped-def]
    """A copy of `data` with protected spans (`doc`, `start`, `end`, bytes of the document) and `inline code` blanked."""
    out = data.copy()
    for k in range(len(doc)):
        base = offsets[doc[k]]
        _blank(out, base + start[k], base + end[k])
    for d in range(len(offsets) - 1):
        i, stop = offsets[d], offsets[d + 1]
        while i < stop:
            if out[i] != 96:
                i += 1
                continue
            j, count = i + 1, 0
            while j < stop and out[j] != 96 and out[j] != 10 and count <= LONGEST_INLINE_CODE:
                count += out[j] & 0xC0 != 0x80
                j += 1
            if j < stop and out[j] == 96 and 1 <= count <= LONGEST_INLINE_CODE:
                _blank(out, i, j + 1)
                i = j + 1
            else:
                i += 1
    return out


@numba.njit(cache=True)
def lowered(data, offsets, limit):  # type: ignore[no-untyped-def]
    """The first `limit` characters of every document in lower case (ASCII letters only), END behind each: (bytes,
    offsets int64 [n + 1] of the documents in them)."""
    out = np.empty(len(data) + len(offsets), np.uint8)
    starts = np.zeros(len(offsets), np.int64)
    size = 0
    for d in range(len(offsets) - 1):
        count = 0
        for i in range(offsets[d], offsets[d + 1]):
            byte = data[i]
            count += byte & 0xC0 != 0x80
            if count > limit:
                break
            out[size] = byte + 32 if 65 <= byte <= 90 else byte
            size += 1
        out[size] = END
        size += 1
        starts[d + 1] = size
    return out[:size], starts


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
def private(data, offsets, flags, classes, least):  # type: ignore[no-untyped-def]
    """Set ADDRESS, ACCOUNT and RARE_CASE in `flags` int64 [n]; returns int32 [m, 4]: the runs of digits, spaces and
    the marks of telephone numbers that hold at least `least` digits, as (document, first character, end, digits).

    RARE_CASE: İ, the Kelvin sign or ſ, whose lower case or fold is an ASCII letter. `classes`: `characters.table()`.
    """
    runs = np.empty((len(data) // (least + 1) + 2 * len(offsets) + 2, 4), np.int32)
    found = 0
    for d in range(len(offsets) - 1):
        begin, end = offsets[d], offsets[d + 1]
        i, place, digits, first = begin, 0, 0, -1
        flag = 0
        while i < end:
            byte = data[i]
            inside = digit = False
            size = 1
            if byte < 0x80:
                if 48 <= byte <= 57:
                    inside = digit = True
                elif byte <= 46:
                    # white space, ( ) + - .
                    inside = byte in (32, 40, 41, 43, 45, 46) or 9 <= byte <= 13 or 28 <= byte <= 31
                    if byte == 40 and i + 2 < end:
                        flag |= _at_follows(data, i + 1, end)
                elif byte == 64:
                    if i > begin and i + 1 < end:
                        left, right = data[i - 1], data[i + 1]
                        if (_alphanumeric(left) or left in (95, 43, 45)) and (_alphanumeric(right) or right == 45):
                            flag |= ADDRESS
                elif byte == 91:
                    flag |= _at_follows(data, i + 1, end)
                elif byte in (81, 113, 86, 118, 87, 119) and i + 1 < end:
                    after = data[i + 1] | 32
                    lower = byte | 32
                    if (
                        (lower == 113 and after == 113)
                        or (lower == 118 and (after == 120 or _is(data, i + 1, end, _LETTER)))
                        or (lower == 119 and (_is(data, i, end, _WECHAT) or _is(data, i, end, _WEIXIN)))
                    ):
                        flag |= ACCOUNT
            else:
                point, size = decode(data, i)
                if point in (0x130, 0x212A, 0x17F):
                    flag |= RARE_CASE
                elif point in (0xFF08, 0xFF09):
                    inside = True
                    if point == 0xFF08:
                        flag |= _at_follows(data, i + 3, end)
                elif point == 0xFF20:
                    flag |= ADDRESS
                elif point in (0x4F01, 0x5FAE):
                    flag |= ACCOUNT if _is(data, i, end, _PENGUIN) or _is(data, i, end, _MICRO) else 0
                elif point < TABLE_SIZE:  # no digit and no space lies beyond
                    digit = classes[point] & DIGIT != 0
                    inside = digit or classes[point] & SPACE != 0
            if inside:
                if first < 0:
                    first, digits = place, 0
                digits += digit
            elif first >= 0:
                if digits >= least:
                    runs[found, 0], runs[found, 1], runs[found, 2], runs[found, 3] = d, first, place, digits
                    found += 1
                first = -1
            i += size
            place += 1
        if first >= 0 and digits >= least:
            runs[found, 0], runs[found, 1], runs[found, 2], runs[found, 3] = d, first, place, digits
            found += 1
        flags[d] |= flag
    return runs[:found].copy()


@numba.njit(cache=True)
def _at_follows(data, i, end):  # type: ignore[no-untyped-def]
    """ADDRESS when `at` and a closing bracket stand behind an opening one, at most one space (to 3 bytes) between."""
    for gap in range(4):
        if i + gap + 2 < end and data[i + gap] | 32 == 97 and data[i + gap + 1] | 32 == 116:
            for k in range(i + gap + 2, min(i + gap + 6, end)):
                if data[k] in (41, 93, 0xEF):  # ) ] and the first byte of ）
                    return ADDRESS
    return 0


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
    """Set MARKUP, PAGE_LINE and GARBLED in `flags`; returns int64 [n, 2]: characters; characters in endless words and
    sentences.

    `data`: prose (`prose`). `words`: sorted hashes (`word_hashes`) of the function words of pages.
    """
    counts = np.zeros((len(offsets) - 1, 2), np.int64)
    for d in range(len(offsets) - 1):
        end = offsets[d + 1]
        i = line = offsets[d]
        flag = chars = bad = sentence = word = line_chars = 0
        while i < end:
            byte = data[i]
            size = 1
            stop = False
            if byte < 0x80:
                letter = 65 <= byte <= 90 or 97 <= byte <= 122
                stop = byte in (33, 44, 46, 59, 63, 10)
                if byte in (38, 60, 95, 74, 106, 68, 100) and flag & MARKUP == 0 and _markup(data, i, end):
                    flag |= MARKUP
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
            if byte == 10:
                if 1 < line_chars <= 41 and flag & PAGE_LINE == 0 and _page_line(data, line, i - 1, words):
                    flag |= PAGE_LINE
                line, line_chars = i, 0
        if 0 < line_chars <= 40 and flag & PAGE_LINE == 0 and _page_line(data, line, end, words):
            flag |= PAGE_LINE
        bad += word if word >= LONG_WORD else 0
        bad += sentence if sentence > LONGEST_SENTENCE else 0
        flags[d] |= flag
        counts[d] = (chars, bad)
    return counts


@numba.njit(cache=True)
def _page_line(data, first, last, words):  # type: ignore[no-untyped-def]
    """Whether the line, stripped of the marks around a link and lowered, has the hash of a function word."""
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
        return False
    key = _hash(data, first, last)
    low, high = 0, len(words)
    while low < high:
        middle = (low + high) // 2
        if words[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low < len(words) and words[low] == key


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


@numba.njit(cache=True)
def distinct(data, offsets, width):  # type: ignore[no-untyped-def]
    """float64 [n]: distinct `width`-byte windows over all windows of each document, 1 where it has none.

    Windows are compared by a 64-bit polynomial hash.
    """
    shares = np.ones(len(offsets) - 1, np.float64)
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    last_power = np.uint64(1)
    for _ in range(width):
        last_power *= multiplier
    longest = 0
    for d in range(len(shares)):
        longest = max(longest, offsets[d + 1] - offsets[d])
    bits = 4
    while 1 << bits < 2 * longest:
        bits += 1
    table = np.zeros(1 << bits, np.uint64)
    for d in range(len(shares)):
        begin, end = offsets[d], offsets[d + 1]
        count = end - begin - width + 1
        if count < 1:
            continue
        bits = 4
        while 1 << bits < 2 * count:
            bits += 1
        shift, mask = np.uint64(64 - bits), (1 << bits) - 1
        table[: mask + 1] = 0
        different = 0
        zero = False  # 0 marks an empty slot
        key = np.uint64(0)
        for i in range(begin, end):
            key = key * multiplier + np.uint64(data[i]) + np.uint64(1)
            if i - begin >= width:
                key -= (np.uint64(data[i - width]) + np.uint64(1)) * last_power
            if i - begin + 1 < width:
                continue
            if key == 0:
                different += not zero
                zero = True
                continue
            slot = np.int64((key * np.uint64(0xC2B2AE3D27D4EB4F)) >> shift)
            while table[slot] != 0 and table[slot] != key:
                slot = (slot + 1) & mask
            if table[slot] == 0:
                table[slot] = key
                different += 1
        shares[d] = different / count
    return shares
