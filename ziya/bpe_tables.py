"""The vocabulary of a SentencePiece BPE model as arrays that `ziya.bpe` encodes with."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from ziya.sentencepiece_model import BPE, BYTE, NORMAL, UNUSED, USER_DEFINED, ModelFile

SPACE = "\u2581"  # how SentencePiece spells a space
CODE_POINTS = 0x110000
UNKNOWN = 1 << 30  # symbols from here on are characters that no piece holds alone

I32 = npt.NDArray[np.int32]


class Tables(NamedTuple):
    """A vocabulary as arrays. A symbol is a piece id, or `UNKNOWN` + k for a character that is no piece by itself."""

    symbol: I32  # [CODE_POINTS] symbol of a character
    char_class: I32  # [CODE_POINTS] 0 = in no piece of several characters, else a number for `pairs`
    pairs: npt.NDArray[np.uint8]  # [classes, ceil(classes / 8)] bits: this pair of classes stands inside some piece
    ascii_pairs: npt.NDArray[np.uint8]  # [128 * 128] the same for ASCII, one byte a pair; a space counts as U+2581
    merge_keys: npt.NDArray[np.uint64]  # open addressing: left << 32 | right, plus 1; 0 = free
    merge_values: I32  # piece id of the joined text
    rank: I32  # [pieces] 0 = best score; equal scores share a rank
    byte_ids: I32  # [256] piece of a byte
    add_prefix: bool


def build_tables(model: ModelFile) -> Tables | None:
    """Tables of a model, or None when the model is outside what this encoder reproduces exactly."""
    if (
        model.model_type != BPE
        or not model.byte_fallback
        or model.whitespace_is_suffix
        or model.charsmap
        or model.remove_extra_whitespaces
        or not model.escape_whitespaces
    ):
        return None
    ids: dict[str, int] = {}
    frozen = set()
    byte_ids = np.full(256, -1, np.int32)
    for number, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True)):
        if kind == BYTE:
            byte_ids[int(piece[3:5], 16)] = number
        elif kind == NORMAL:
            ids[piece] = number
        elif kind == USER_DEFINED and len(piece) == 1:
            ids[piece] = number
            frozen.add(piece)
        elif kind in (UNUSED, USER_DEFINED) or len(piece) == 1:
            return None
    if (byte_ids < 0).any() or SPACE not in ids or SPACE in frozen or " " in "".join(ids):
        return None
    return _tables(model, ids, frozen, byte_ids)


def _tables(model: ModelFile, ids: dict[str, int], frozen: set[str], byte_ids: I32) -> Tables:
    symbol = np.full(CODE_POINTS, -1, np.int32)
    char_class = np.zeros(CODE_POINTS, np.int32)
    symbols = dict(ids)
    number_of: dict[str, int] = {}
    inside = sorted({character for piece in ids if len(piece) > 1 for character in piece} - frozen)
    for number, character in enumerate(inside, start=1):
        char_class[ord(character)] = number_of[character] = number
        symbols.setdefault(character, UNKNOWN + number)
    for text, value in symbols.items():
        if len(text) == 1:
            symbol[ord(text)] = value
    joins: dict[int, int] = {}
    neighbours: set[tuple[str, str]] = set()
    pairs = np.zeros((len(inside) + 1, (len(inside) + 8) // 8), np.uint8)
    for piece, number in ids.items():
        if len(piece) == 1 or not frozen.isdisjoint(piece):  # a frozen character joins nothing
            continue
        neighbours.update(pairwise(piece))
        for cut in range(1, len(piece)):
            before, after = symbols.get(piece[:cut]), symbols.get(piece[cut:])
            if before is not None and after is not None:
                joins[before << 32 | after] = number
    for a, b in neighbours:
        pairs[number_of[a], number_of[b] >> 3] |= 1 << (number_of[b] & 7)
    keys, values = _hash_table(joins)
    symbol[ord(" ")], char_class[ord(" ")] = symbol[ord(SPACE)], char_class[ord(SPACE)]
    ascii_class = char_class[:128]
    bits = pairs[ascii_class[:, None], ascii_class[None, :] >> 3] >> (ascii_class[None, :] & 7).astype(np.uint8) & 1
    rank = np.unique(-np.array(model.scores, np.float32), return_inverse=True)[1].astype(np.int32)
    return Tables(
        symbol, char_class, pairs, bits.astype(np.uint8).ravel(), keys, values, rank, byte_ids, model.add_dummy_prefix
    )


def _hash_table(joins: dict[int, int]) -> tuple[npt.NDArray[np.uint64], I32]:
    size = 1 << max(4, (2 * len(joins)).bit_length())
    keys = np.zeros(size, np.uint64)
    values = np.zeros(size, np.int32)
    _fill(keys, values, np.fromiter(joins, np.uint64, len(joins)), np.fromiter(joins.values(), np.int32, len(joins)))
    return keys, values


@numba.njit(cache=True)
def slot(key, size):  # type: ignore[no-untyped-def]
    """Where the search for a key starts in a table of `size` places."""
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    return numba.int64((mixed >> np.uint64(20)) & np.uint64(size - 1))


@numba.njit(cache=True)
def _fill(keys, values, new_keys, new_values):  # type: ignore[no-untyped-def]
    size = len(keys)
    for i in range(len(new_keys)):
        key = new_keys[i] + np.uint64(1)
        at = slot(key, size)
        while keys[at] != 0:
            at = (at + 1) & (size - 1)
        keys[at] = key
        values[at] = new_values[i]
