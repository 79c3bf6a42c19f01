"""Compiled search for emoji sequences and emoticons; what counts as one is told in `normalize.py`."""

from __future__ import annotations

import numba
import numpy as np

from data_factory.characters import decode
from data_factory.normalize_tables import (
    ARM_AFTER,
    CHEEK,
    EMOJI,
    EYE,
    EYE_ASCII,
    KEYCAP,
    MOUTH,
    NEWLINE,
    REMOVE,
    SPACE,
    SUSPECT,
    TEXT_EMOJI,
    WIDE,
)  # fmt: skip

LOOK_AHEAD = 100  # bytes of a line searched for the bracket that would make `:(` no emoticon
_TABLE_THROWN = np.frombuffer("︵".encode(), np.uint8)
_TABLE = np.frombuffer("┻━┻".encode(), np.uint8)


@numba.njit(cache=True, inline="always")
def kind_of(table, point):  # type: ignore[no-untyped-def]
    """Bits of a code point; `table` is `character_table(...)`. Beyond the second plane stand Han, then nothing that
    text needs.
    """
    if point < 0x20000:
        return table[point]
    if 0x2F800 <= point <= 0x2FA1F:  # compatibility forms
        return numba.uint16(WIDE | SUSPECT)
    return numba.uint16(WIDE if point <= 0x323AF else REMOVE)


@numba.njit(cache=True)
def emoji_end(data, i, end, table):  # type: ignore[no-untyped-def]
    """End of the emoji sequence that starts at data[i] (selectors, skin tones, tags, joined emoji); i when none
    starts.
    """
    point, size = decode(data, i)
    flags = kind_of(table, point)
    j = i + size
    if flags & (KEYCAP | TEXT_EMOJI):
        selected = j + 2 < end and data[j] == 0xEF and data[j + 1] == 0xB8 and data[j + 2] == 0x8F  # U+FE0F
        if selected:
            j += 3
        if flags & KEYCAP:  # U+20E3
            return j + 3 if j + 2 < end and data[j] == 0xE2 and data[j + 1] == 0x83 and data[j + 2] == 0xA3 else i
        if not selected:
            return i
    while j < end and data[j] >= 0x80:
        point, size = decode(data, j)
        if point in (0xFE0E, 0xFE0F, 0x20E3) or 0x1F3FB <= point <= 0x1F3FF or 0xE0020 <= point <= 0xE007F:
            j += size
            continue
        if point == 0x200D and j + size < end and data[j + size] >= 0x80:
            joined, joined_size = decode(data, j + size)
            if kind_of(table, joined) & (EMOJI | TEXT_EMOJI):
                j += size + joined_size
                continue
        break
    return j


@numba.njit(cache=True)
def _closed(data, i, end, table):  # type: ignore[no-untyped-def]
    """Whether an emoticon may end before data[i]: end, whitespace, Han, full-width marks, emoji or one of . , ! ?"""
    if i >= end:
        return True
    point, _ = decode(data, i)
    return (kind_of(table, point) & (SPACE | NEWLINE | WIDE | EMOJI)) != 0 or point in (0x2E, 0x2C, 0x21, 0x3F)


@numba.njit(cache=True)
def _western_end(data, i, end, table, opened):  # type: ignore[no-untyped-def]
    """End of an emoticon such as :-) :( ;) :'( :D that starts at data[i], a colon or semicolon; i when none does.

    `opened`: brackets opened and not closed on this line so far; a closing bracket that one of them waits for is no
    mouth.
    """
    j = i + 1
    nose = j < end and (data[j] == 0x2D or (data[j] == 0x27 and data[i] == 0x3A))
    if nose:
        j += 1
    if j >= end:
        return i
    mouth = data[j]
    if mouth == 0x29:  # )
        if opened > 0:
            return i
        while j + 1 < end and data[j + 1] == 0x29:
            j += 1
    elif mouth == 0x28 and data[i] == 0x3A:  # (
        while j + 1 < end and data[j + 1] == 0x28:
            j += 1
        k = j + 1
        while k < min(end, j + LOOK_AHEAD) and data[k] != 0x0A and data[k] != 0x0D:
            if data[k] == 0x29:
                return i
            k += 1
    elif nose and data[i + 1] == 0x2D:
        if mouth not in (0x44, 0x50, 0x70, 0x4F, 0x6F, 0x2F, 0x5C, 0x2A) or opened > 0:  # D P p O o / \ *
            return i
    elif not nose and data[i] == 0x3A and mouth in (0x44, 0x50) and opened == 0:  # D P
        k = j + 1
        while k < end and data[k] == 0x20:
            k += 1
        if k < end and data[k] in (0x3D, 0x7C, 0x7B, 0x28, 0x3C, 0x3A, 0x2C):  # `x :D = 1` is code
            return i
    else:
        return i
    return j + 1 if _closed(data, j + 1, end, table) else i


@numba.njit(cache=True)
def _is_face(points, m, faces):  # type: ignore[no-untyped-def]
    """Whether m code points are cheeks, eye, mouth of 1-3 characters, eye, cheeks; at most 3 cheeks a side."""
    for a in range(min(4, m)):
        left = faces[points[a]]
        for b in range(a + 1, min(a + 5, m)):
            eyes = points[a] == points[b] and left & (EYE | EYE_ASCII)
            eyes = eyes or (points[a] == 0x3E and points[b] == 0x3C) or (points[a] == 0x2267 and points[b] == 0x2266)
            eyes = eyes or (points[a] == 0xFF1E and points[b] == 0xFF1C) or (points[a] == 0xB4 and points[b] == 0x60)
            eyes = eyes or (points[a] == 0x60 and points[b] == 0xB4) or (points[a] == 0x6F and points[b] == 0x4F)
            eyes = eyes or (points[a] == 0x4F and points[b] == 0x6F)
            if not eyes or m - 1 - b > 3:
                continue
            if b == a + 1 and points[a] != 0x5E:  # only ^^ needs no mouth
                continue
            good = True
            plain = points[a] < 0x80 and points[a] != 0x5E and points[a] != 0x3E and points[a] != 0x60
            for c in range(a + 1, b):
                if not faces[points[c]] & MOUTH or (plain and points[c] < 0x80 and points[c] != 0x5F):
                    good = False
            for c in range(m):
                if (c < a or c > b) and not faces[points[c]] & CHEEK:
                    good = False
            if good:
                return True
        if not left & CHEEK:
            return False
    return False


@numba.njit(cache=True)
def _same(data, i, wanted):  # type: ignore[no-untyped-def]
    return np.array_equal(data[i : i + len(wanted)], wanted)


@numba.njit(cache=True)
def _kaomoji_end(data, i, end, faces, after_word, points):  # type: ignore[no-untyped-def]
    """End of a bracketed face such as (^_^) or (╯°□°)╯︵ ┻━┻ whose bracket (or arm before it) is data[i]; i when
    none is.

    `after_word`: a letter or digit stands before it. `points`: int32 scratch [16].
    """
    point, size = decode(data, i)
    j = i + size
    if point not in (0x28, 0xFF08):  # an arm
        if j >= end:
            return i
        point, size = decode(data, j)
        if point not in (0x28, 0xFF08):
            return i
        j += size
    if j >= end:
        return i
    m = 0
    while True:
        if j >= end:
            return i
        point, size = decode(data, j)
        j += size
        if point in (0x29, 0xFF09):
            break
        if 0x300 <= point <= 0x36F:  # accents on eyes
            continue
        if m >= 12 or point >= 0x10000 or faces[point] == 0:
            return i
        points[m] = point
        m += 1
    if m < 2 or not _is_face(points, m, faces):
        return i
    if after_word and (points[0] == 0x54 or points[0] == 0x4F or points[0] == 0x6F):  # f(T_T) may be code
        return i
    for _ in range(2):
        if j < end and data[j] >= 0x80:
            point, size = decode(data, j)
            if point < 0x10000 and faces[point] & ARM_AFTER:
                j += size
    k = j + len(_TABLE_THROWN)
    if k <= end and _same(data, j, _TABLE_THROWN):
        if k < end and data[k] == 0x20:
            k += 1
        if k + len(_TABLE) <= end and _same(data, k, _TABLE):
            return k + len(_TABLE)
    return j


@numba.njit(cache=True)
def _shrug_end(data, i, end):  # type: ignore[no-untyped-def]
    r"""End of ¯\_(ツ)_/¯ (one or two backslashes, underscores optional) that starts at data[i]; i when it does not."""
    j = i + 2
    slashes = 0
    while j < end and data[j] == 0x5C and slashes < 2:
        j += 1
        slashes += 1
    if slashes == 0:
        return i
    if j < end and data[j] == 0x5F:
        j += 1
    if j + 4 >= end or data[j] != 0x28 or data[j + 1] != 0xE3 or data[j + 2] != 0x83 or data[j + 3] != 0x84:
        return i
    if data[j + 4] != 0x29:
        return i
    j += 5
    if j < end and data[j] == 0x5F:
        j += 1
    if j + 2 < end and data[j] == 0x2F and data[j + 1] == 0xC2 and data[j + 2] == 0xAF:
        return j + 3
    return i


@numba.njit(cache=True)
def emoticon_end(data, i, end, table, faces, alone, after_word, opened, points):  # type: ignore[no-untyped-def]
    """End of the emoticon that starts at data[i]; i when none does.

    `alone`: what stands before it: 2 whitespace or the line's start, 1 Han or a full-width mark, 0 anything else.
    """
    first = data[i]
    if first == 0x28 or (first >= 0x80 and first != 0xC2):
        return _kaomoji_end(data, i, end, faces, after_word, points)
    if first == 0xC2:
        return _shrug_end(data, i, end)
    if alone == 0 or i + 1 >= end or (first == 0x3E and alone < 2):
        return i
    second = data[i + 1]
    if i + 2 < end:
        third = data[i + 2]
        known = False
        if second == 0x5F:  # ^_^ -_- T_T ;_; >_< o_O O_o
            known = (first == third and first in (0x5E, 0x2D, 0x54, 0x3B)) or (first == 0x3E and third == 0x3C)
            known = known or (first == 0x6F and third == 0x4F) or (first == 0x4F and third == 0x6F)
        elif second in (0x2E, 0x2D, 0x6F):  # ^.^ ^-^ ^o^ >.<
            known = (first == 0x5E and third == 0x5E) or (first == 0x3E and third == 0x3C and second == 0x2E)
        if known:
            return i + 3 if _closed(data, i + 3, end, table) else i
    if first in (0x3A, 0x3B):
        return _western_end(data, i, end, table, opened)
    return i
