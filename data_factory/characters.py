"""Character classes as one flag table over code points, and UTF-8 decoding for kernels.

Every step that asks "is this Han, a letter, punctuation ..." asks here, so that no two steps disagree and none assumes ASCII.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numba
import numpy as np
import numpy.typing as npt

HAN = 1  # Unicode Han script (ideographs, 々 〇), not just U+4E00-9FA5
LETTER = 2  # category L*, Han and kana included, and marks (M*) that combine with them
DIGIT = 4  # category Nd
PUNCTUATION = 8  # category P*
SYMBOL = 16  # category S*
SPACE = 32  # White_Space, U+3000 included
EMOJI = 64  # pictographs, emoji modifiers, variation selector 16, regional indicators
UPPER = 128  # has a lower-case form
KANA = 256
HANGUL = 512
CONTROL = 1024  # controls (but \t \n), format characters, zero-width, private use, surrogates, unassigned
END_MARK = 2048  # ends a sentence: . ! ? … 。 ！ ？ ； and their half-width or vertical forms
CLOSER = 4096  # quotes and brackets that may follow an end mark: " ' ” ’ ） 」 』 》 】 ) ]

TABLE_SIZE = 0x20000  # beyond the second plane every assigned letter is Han; see `flags`
_END_MARKS = ".!?…。！？；．｡‼⁇⁈⁉︒︕︖"
_CLOSERS = "\"'”’）」』》】〉〕)]〗｣＂＇"


@cache
def table() -> npt.NDArray[np.uint16]:
    """uint16 [TABLE_SIZE]: flags of every code point of the first two planes."""
    flags = np.zeros(TABLE_SIZE, np.uint16)
    for point in range(TABLE_SIZE):
        character = chr(point)
        category = unicodedata.category(character)
        kind = category[0]
        value = 0
        if kind in "LM":
            value |= LETTER
        elif category == "Nd":
            value |= DIGIT
        elif kind == "P":
            value |= PUNCTUATION
        elif kind == "S":
            value |= SYMBOL
        elif category in ("Cc", "Cf", "Co", "Cs", "Cn") and character not in "\t\n":
            value |= CONTROL
        if category == "Lu":
            value |= UPPER
        if character.isspace():
            value = (
                (value | SPACE) & ~CONTROL if character in "\t\n\r\x0b\x0c\x85\u2028\u2029" or kind == "Z" else value
            )
        flags[point] = value
    for first, last in (
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAD9),
        (0x2E80, 0x2FD5),
        (0x3005, 0x3005),
        (0x3007, 0x3007),
        (0x3021, 0x3029),
    ):
        flags[first : last + 1] = HAN | LETTER
    flags[0x3041:0x3097] |= KANA
    flags[0x30A1:0x30FB] |= KANA
    flags[0x31F0:0x3200] |= KANA
    flags[0xFF66:0xFF9E] |= KANA
    for first, last in ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3)):
        flags[first : last + 1] |= HANGUL
    for first, last in (
        (0x1F000, 0x1FAFF),
        (0x2600, 0x27BF),
        (0x2B50, 0x2B55),
        (0x1F1E6, 0x1F1FF),
        (0xFE0F, 0xFE0F),
        (0x20E3, 0x20E3),
    ):
        flags[first : last + 1] |= EMOJI
    for character in _END_MARKS:
        flags[ord(character)] |= END_MARK
    for character in _CLOSERS:
        flags[ord(character)] |= CLOSER
    flags.setflags(write=False)
    return flags


@cache
def lower_table() -> npt.NDArray[np.int32]:
    """int32 [TABLE_SIZE]: simple lower-case mapping (code points whose lower-case form is one character; others map to themselves)."""
    lower = np.arange(TABLE_SIZE, dtype=np.int32)
    for point in range(TABLE_SIZE):
        mapped = chr(point).lower()
        if len(mapped) == 1 and ord(mapped) < TABLE_SIZE:
            lower[point] = ord(mapped)
    lower.setflags(write=False)
    return lower


@numba.njit(cache=True, inline="always")
def decode(data, i):  # type: ignore[no-untyped-def]
    """(code point, bytes) of the character that starts at data[i]; `data` holds valid UTF-8."""
    first = data[i]
    if first < 0x80:
        return numba.int32(first), 1
    if first < 0xE0:
        return numba.int32(((first & 0x1F) << 6) | (data[i + 1] & 0x3F)), 2
    if first < 0xF0:
        return numba.int32(((first & 0x0F) << 12) | ((data[i + 1] & 0x3F) << 6) | (data[i + 2] & 0x3F)), 3
    return numba.int32(
        ((first & 0x07) << 18) | ((data[i + 1] & 0x3F) << 12) | ((data[i + 2] & 0x3F) << 6) | (data[i + 3] & 0x3F)
    ), 4


@numba.njit(cache=True, inline="always")
def encode(out, o, point):  # type: ignore[no-untyped-def]
    """Write a code point to `out` (uint8) at `o` as UTF-8; returns the position after it."""
    if point < 0x80:
        out[o] = point
        return o + 1
    if point < 0x800:
        out[o] = 0xC0 | (point >> 6)
        out[o + 1] = 0x80 | (point & 0x3F)
        return o + 2
    if point < 0x10000:
        out[o] = 0xE0 | (point >> 12)
        out[o + 1] = 0x80 | ((point >> 6) & 0x3F)
        out[o + 2] = 0x80 | (point & 0x3F)
        return o + 3
    out[o] = 0xF0 | (point >> 18)
    out[o + 1] = 0x80 | ((point >> 12) & 0x3F)
    out[o + 2] = 0x80 | ((point >> 6) & 0x3F)
    out[o + 3] = 0x80 | (point & 0x3F)
    return o + 4


@numba.njit(cache=True, inline="always")
def flags_of(table, point):  # type: ignore[no-untyped-def]
    """Flags of a code point; `table` is `table()`."""
    if point < 0x20000:
        return table[point]
    if point <= 0x323AF:
        return numba.uint16(3)  # HAN | LETTER
    return numba.uint16(1024)  # CONTROL: tags, private planes, unassigned
