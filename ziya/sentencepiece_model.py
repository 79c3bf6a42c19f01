"""What a SentencePiece model file says about itself: pieces, their types and scores, and how text is normalised.

The wheel of sentencepiece needs protobuf for this; the few fields that matter are read from the wire format here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class ModelFile:
    """Fields of `ModelProto` (sentencepiece_model.proto). Lists are indexed by piece id."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    model_type: int
    byte_fallback: bool
    whitespace_is_suffix: bool
    charsmap: bytes  # the compiled character map of the normaliser; empty = identity
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse_model(data: bytes) -> ModelFile:
    """Parse a serialised model; ValueError when the bytes are not of that format."""
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            text, kind = piece.get(1, b""), piece.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(kind, int):
                raise ValueError("a piece has fields of the wrong type")
            score = piece.get(2, b"\0\0\0\0")
            pieces.append(text.decode())
            scores.append(struct.unpack("<f", score)[0] if isinstance(score, bytes) else 0.0)
            types.append(kind)
        elif number == 2 and isinstance(value, bytes):
            trainer.update(_fields(value))
        elif number == 3 and isinstance(value, bytes):
            normalizer.update(_fields(value))
    if not pieces:
        raise ValueError("no pieces")
    charsmap = normalizer.get(2, b"")
    return ModelFile(
        pieces=pieces,
        scores=scores,
        types=types,
        model_type=_number(trainer, 3, UNIGRAM),
        byte_fallback=bool(_number(trainer, 35, 0)),
        whitespace_is_suffix=bool(_number(trainer, 24, 0)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"?",
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
        escape_whitespaces=bool(_number(normalizer, 5, 1)),
    )


def piece_spans(encoded: bytes) -> list[tuple[int, int]]:
    """(first byte, end) of every piece in the text of a serialised `SentencePieceText`."""
    spans = []
    for number, value in _fields(encoded):
        if number == 2 and isinstance(value, bytes):
            piece = dict(_fields(value))
            spans.append((_number(piece, 4, 0), _number(piece, 5, 0)))
    return spans


def _number(fields: dict[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: varints as int, everything else as bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if number == 0 or at + size > end:
            raise ValueError("cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
