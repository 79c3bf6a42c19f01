"""What a language model sees: the one function that turns T1 into lines, shared by training and by scoring.

After cc_net (rules.md Q09): lower case; accents stripped; every digit becomes 0; typographic and full-width punctuation
becomes ASCII; whitespace runs become one space; one line of the document is one line of the model, empty lines fall
away. Where we differ from cc_net, and why: only marks that combine with Latin, Greek and Cyrillic letters are stripped
(dropping every mark, as cc_net does, destroys Indic vowels and turns が into か); lines above MAX_LINE_BYTES are cut,
behind a sentence end or a space where one is near, so that a page without line breaks costs linear time.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import I32, I64, U8, TextBatch
from data_factory.characters import END_MARK, TABLE_SIZE, decode, encode, lower_table, table

VERSION = 1  # of this normaliser: part of every model's manifest; raise it whenever an output changes
MAX_LINE_BYTES = 4000  # of input; SentencePiece's trainer skips lines above 4,192 bytes
_SOFT_LINE_BYTES = 3000  # from here on a line ends behind the next sentence end or space

_DROP, _SPACE, _NEWLINE = -1, -2, -3
# ASCII and the punctuation that becomes it (cc_net's table, with the paired quotes and dashes that it lacks).
_FOLDED = (
    (",", "，、"),
    (".", "。．｡…·・•"),
    ('"', "„”“‟«»「」『』《》〝〞＂"),
    ("'", "´`‘’‚‛′＇"),
    (":", "∶："),
    ("?", "？"),
    ("!", "！"),
    ("(", "（"),
    (")", "）"),
    (";", "；"),
    ("-", "–—―−‐‑‒━－"),
    ("~", "～"),
    ("<", "〈＜"),
    (">", "〉＞"),
    ("[", "【〔［"),
    ("]", "】〕］"),
    ("%", "％"),
    ("/", "／"),
    ("|", "｜"),
    ("+", "＋"),
    ("=", "＝"),
)
_PUNCTUATION = {mark: ascii_mark for ascii_mark, marks in _FOLDED for mark in marks}


@cache
def mapping() -> npt.NDArray[np.int32]:
    """int32 [TABLE_SIZE]: code point -> code point that replaces it, or _DROP, _SPACE, _NEWLINE. Later planes map to
    themselves."""
    lower = lower_table()
    result = lower.copy()
    for point in range(TABLE_SIZE):
        character = chr(point)
        category = unicodedata.category(character)
        if character in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
            result[point] = _NEWLINE
        elif character in "\t▁" or category == "Zs":  # ▁ stands for a space in SentencePiece
            result[point] = _SPACE
        elif category in ("Cc", "Cf", "Co", "Cs", "Cn") or 0x300 <= point <= 0x36F or 0xFE00 <= point <= 0xFE0F:
            result[point] = _DROP
        elif category == "Nd":
            result[point] = ord("0")
        elif character in _PUNCTUATION:
            result[point] = ord(_PUNCTUATION[character])
        elif 0xFF21 <= point <= 0xFF3A or 0xFF41 <= point <= 0xFF5A:  # full-width Latin letters
            result[point] = ord(chr(point - 0xFEE0).lower())
        elif category[0] == "L" and point < 0x2000:
            # A letter that decomposes into one letter and combining marks 0300-036F: Latin, Greek, Cyrillic.
            parts = unicodedata.normalize("NFD", character.lower())
            if all(0x300 <= ord(mark) <= 0x36F for mark in parts[1:]):
                result[point] = ord(parts[0])
    kept = result >= 0
    result[kept] = result[result[kept]]  # Å (the unit) becomes å, which becomes a: normalised text stays as it is
    result.setflags(write=False)
    return result


@dataclass(frozen=True)
class Lines:
    """`m` normalised lines. `data`: uint8, lines end to end, each closed by a newline; `offsets`: int64 [m + 1], line j
    with its
    newline is data[offsets[j]:offsets[j + 1]]; `document`: int32 [m], not decreasing, the document of each line."""

    data: U8
    offsets: I64
    document: I32

    def __len__(self) -> int:
        return len(self.document)

    def strings(self) -> list[str]:
        """All lines as Python strings, without newlines."""
        return self.data.tobytes().decode().split("\n")[:-1]


@numba.njit(cache=True)
def _normalise(data, offsets, mapping, flags, out, line_ends, line_document):  # type: ignore[no-untyped-def]
    """Write normalised lines to `out` (at least 3 bytes for each 2 of `data`, + 16); returns (bytes, lines)."""
    size = 0
    lines = 0
    for document in range(len(offsets) - 1):
        i = offsets[document]
        end = offsets[document + 1]
        while i < end:
            start_in, start_out = i, size
            pending = False  # a space is due before the next character
            while i < end:
                point, length = decode(data, i)
                target = mapping[point] if point < TABLE_SIZE else point
                if target == _NEWLINE:
                    i += length
                    break
                # A cut leaves the character to the next line, so every line holds at least one character.
                if i - start_in >= _SOFT_LINE_BYTES and i > start_in:
                    if i - start_in + length > MAX_LINE_BYTES:
                        break
                    previous = i - 1
                    while data[previous] & 0xC0 == 0x80:
                        previous -= 1
                    before, _ = decode(data, previous)
                    if target == _SPACE or (before < TABLE_SIZE and flags[before] & END_MARK):
                        break
                i += length
                if target == _SPACE:
                    pending = size > start_out
                elif target >= 0:
                    if pending:
                        out[size] = 32
                        size += 1
                        pending = False
                    size = encode(out, size, target)
            if size > start_out:
                out[size] = 10
                size += 1
                line_ends[lines] = size
                line_document[lines] = document
                lines += 1
    return size, lines


@numba.njit(cache=True)
def _most_lines(data, documents):  # type: ignore[no-untyped-def]
    """An upper bound of the lines: line-breaking bytes (a lone E2 or C2 counted too), cuts, and one a document."""
    breaks = 0
    for byte in data:
        if byte < 32 or byte in (0xC2, 0xE2):
            breaks += 1
    return breaks + len(data) // (_SOFT_LINE_BYTES - 4) + documents + 1


def lm_lines(t1: TextBatch) -> Lines:
    """The lines that a language model trains on and scores, of a batch of T1 (rules.md Q09; see the module text).

    The result depends on each document alone, never on its neighbours in the batch. Lines that are short enough to stay
    whole do not change when they are normalised again.
    """
    data = np.ascontiguousarray(t1.data)
    bound = int(_most_lines(data, len(t1)))
    out = np.empty(len(data) * 3 // 2 + bound + 16, np.uint8)
    line_ends = np.zeros(bound, np.int64)
    line_document = np.zeros(bound, np.int32)
    size, lines = _normalise(data, np.ascontiguousarray(t1.offsets), mapping(), table(), out, line_ends, line_document)
    offsets = np.zeros(lines + 1, np.int64)
    offsets[1:] = line_ends[:lines]
    return Lines(out[:size], offsets, line_document[:lines].copy())
