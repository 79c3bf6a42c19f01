"""What every character is to the normaliser, as tables over code points."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_factory.characters import DIGIT, HAN, LETTER, TABLE_SIZE, table

Form = Literal["NFC", "NFKC"]

# What a character is to the normaliser.
SPACE = 1
NEWLINE = 2
REMOVE = 4  # invisible or without meaning
PUNCT = 8  # runs are shortened
EMOJI = 16
TEXT_EMOJI = 32  # an emoji only when variation selector 16 or a joiner says so
JOINER = 64  # U+200C, U+200D
STARTER = 128  # an emoticon may start here
MARK = 256  # U+0002, U+0003
KEYCAP = 512  # 0-9 # *
ACTION = 1023  # characters without these bits are copied
WIDE = 1024  # Han and full-width punctuation: no spaces between two of them
WORD = 2048  # letters and digits of scripts that put spaces between words
SHAPED = 4096  # letters of Arabic and Indic scripts, whose joiners change words
SUSPECT = 8192  # may be changed by Unicode normalisation

# What a character is in a kaomoji.
EYE, EYE_ASCII, MOUTH, CHEEK, ARM_BEFORE, ARM_AFTER = 1, 2, 4, 8, 16, 32

# Emoji_Presentation of Unicode 17 below U+10000, and the text-default characters that are nothing but pictographs.
_EMOJI_BMP = """
231A-231B 23E9-23EC 23F0 23F3 25FD-25FE 2614-2615 2648-2653 267F 2693 26A1 26AA-26AB 26BD-26BE 26C4-26C5 26CE
26D4 26EA 26F2-26F3 26F5 26FA 26FD 2705 270A-270B 2728 274C 274E 2753-2755 2757 2795-2797 27B0 27BF 2B1B-2B1C
2B50 2B55 2600-2604 2618 261D 2620 2639-263A 2668 26C8 26CF 26D1 26D3 26E9 26F0-26F1 26F4 26F7-26F9 270C-270D
2744 2763-2764
"""
_EMOJI_ASTRAL = """
1F004 1F0CF 1F18E 1F191-1F19A 1F1E6-1F1FF 1F201 1F21A 1F22F 1F232-1F236 1F238-1F23A 1F250-1F251 1F300-1F64F
1F680-1F6FF 1F7E0-1F7EB 1F7F0 1F90C-1F9FF 1FA70-1FAFF
"""
# Emoji by selector only. Letter-like signs and arrows (© ™ ↔ ➡) are not here: they lose the selector and stay.
_TEXT_EMOJI = """
2328 23CF 23ED-23EF 23F1-23F2 23F8-23FA 24C2 25AA-25AB 25B6 25C0 25FB-25FC 260E 2611 2622-2623 2626 262A
262E-262F 2638 2640 2642 265F-2660 2663 2665-2666 267B 267E 2692 2694-2697 2699 269B-269C 26A0 26A7 26B0-26B1
2702 2708-2709 270F 2712 2714 2716 271D 2721 2733-2734 2747 1F170-1F171 1F17E-1F17F 1F202 1F237
"""
_SHAPED_BLOCKS = "0600-06FF 0700-074F 0750-077F 08A0-08FF 0900-0DFF 1000-109F 1780-17FF 1820-18AF"
# Thai, Lao, Burmese, Khmer, kana
_UNSPACED_BLOCKS = "0E00-0EFF 1000-109F 1780-17FF 3040-30FF 3100-312F 31F0-31FF FF66-FF9F"
_NEVER_SHORTENED = "()[]{}\\\ufffd"

_EYES = "^＾￣¯´°•・◕⊙●◉≧ಠಥ╥ᵔ˘¬﹏>"
_ASCII_EYES = "-T;=+~@oO."  # the mouth between these is _ or outside ASCII
_MOUTHS = "_＿▽ω.oO︿∀Дз‿∇﹏-ー口皿益ε▿◡ᴗᆺ^・。ェ~д□▂⌣ㅂㅁ"
_CHEEKS = "*#=~;'\"/\\!`´｡。ノﾉ＼／☆★σ✿❀✧・゜゚･ﾟ๑ง۶٩凸っつシ彡づ♡♥╯╰｀*＊"
_ARMS_BEFORE = "ヽヾ╰╮╭٩ლ"
_ARMS_AFTER = "ノﾉ╯ゞ۶و♡♥☆～"
_PAIRS = "<≦＜"  # right eyes of > ≧ ＞
_STARTERS = ":;(（^->ToO¯"


def _ranges(text: str) -> list[tuple[int, int]]:
    pairs = [item.split("-") for item in text.split()]
    return [(int(pair[0], 16), int(pair[-1], 16)) for pair in pairs]


@cache
def _unstable(form: Form) -> npt.NDArray[np.bool_]:
    """bool [TABLE_SIZE]: characters that `form` may change, reorder or join to the one before; text without them is
    in that form.
    """
    unstable = np.zeros(TABLE_SIZE, np.bool_)
    for point in range(0x80, TABLE_SIZE):
        if 0x3400 <= point <= 0x9FFF or 0xD800 <= point <= 0xDFFF:
            continue
        character = chr(point)
        if unicodedata.normalize(form, character) != character or unicodedata.combining(character):
            unstable[point] = True
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):  # the second part may join a first part before it
            unstable[int(parts[1], 16)] = True
    unstable[0x1161:0x1176] = unstable[0x11A8:0x11C3] = True  # Hangul vowels and finals
    return unstable


@cache
def character_table(form: Literal["NFC", "NFKC", "none"]) -> npt.NDArray[np.uint16]:
    """uint16 [TABLE_SIZE]: what each character is to the normaliser (the bits above)."""
    flags = table()
    kinds = np.zeros(TABLE_SIZE, np.uint16)
    han = (flags & HAN) > 0
    for point in range(TABLE_SIZE):
        character = chr(point)
        category = unicodedata.category(character)
        value = 0
        if character in "\n\r\x0b\x0c\x85\u2028\u2029":
            value = NEWLINE
        elif character == "\t" or category == "Zs":
            value = SPACE
        elif 0xFE00 <= point <= 0xFE0F or (category in ("Cc", "Cf", "Co", "Cs", "Cn") and not han[point]):
            value = REMOVE
        elif category[0] in "PS" and character not in _NEVER_SHORTENED:
            value = PUNCT
        if han[point] or (category[0] == "P" and (0x3001 <= point <= 0x303F or 0xFF01 <= point <= 0xFF65)):
            value |= WIDE
        elif flags[point] & (LETTER | DIGIT):
            value |= WORD
        kinds[point] = value
    for first, last in _ranges(_UNSPACED_BLOCKS):
        kinds[first : last + 1] &= ~np.uint16(WORD)
    kinds[0x02] = kinds[0x03] = MARK
    kinds[0x200C] = kinds[0x200D] = JOINER
    for first, last in _ranges(_EMOJI_BMP + " " + _EMOJI_ASTRAL):
        kinds[first : last + 1] = EMOJI
    for first, last in _ranges(_TEXT_EMOJI):
        kinds[first : last + 1] |= TEXT_EMOJI
    for first, last in _ranges(_SHAPED_BLOCKS):
        block = kinds[first : last + 1]
        block[(flags[first : last + 1] & LETTER) > 0] |= SHAPED
    for character in "0123456789#*":
        kinds[ord(character)] |= KEYCAP
    for character in _STARTERS + _ARMS_BEFORE:
        kinds[ord(character)] |= STARTER
    if form != "none":
        kinds[_unstable(form)] |= SUSPECT
    kinds.setflags(write=False)
    return kinds


@cache
def face_table() -> npt.NDArray[np.uint8]:
    """uint8 [0x10000]: the parts that a character can play in a bracketed face."""
    faces = np.zeros(0x10000, np.uint8)
    parts = ((_EYES + _PAIRS, EYE), (_ASCII_EYES, EYE_ASCII), (_MOUTHS, MOUTH), (_CHEEKS, CHEEK))
    for characters, part in (*parts, (_ARMS_BEFORE, ARM_BEFORE), (_ARMS_AFTER, ARM_AFTER)):
        for character in characters:
            faces[ord(character)] |= part
    faces.setflags(write=False)
    return faces
