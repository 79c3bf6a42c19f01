"""Characters added to a SentencePiece model, and how many tokens a text has before and after.

A serialised protobuf message is extended by writing fields after it: repeated fields grow, scalar ones take the last
value. So new pieces and the new vocabulary size are appended to the file, and every byte of the base model stays.
In BPE a piece of one character is never the result of a merge and its score is never compared, so texts without the new
characters keep their ids; the scores lie below all others all the same, for readers that compare them.
"""

from __future__ import annotations

import gzip
import json
import struct
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ziya.bpe_tables import SPACE
from ziya.errors import UserError
from ziya.sentencepiece_model import BPE, BYTE, NORMAL, USER_DEFINED, ModelFile, parse_model
from ziya.tokenizer import Tokenizer

_BYTES = 256
_BATCH = 256  # texts that are encoded at once


@dataclass(frozen=True)
class Extended:
    """A SentencePiece model with characters added."""

    content: bytes  # the serialised model
    added: list[str]  # the new pieces: ids from the base model's size on, in this order
    already: list[str]  # characters asked for that the base model holds as pieces


@dataclass(frozen=True)
class TextCounts:
    """A text as one tokenizer sees it; characters are Unicode code points, tokens are without BOS and EOS."""

    documents: int
    characters: int
    bytes: int
    tokens: int

    @property
    def tokens_per_character(self) -> float:
        """Tokens per code point; 0 of an empty text."""
        return self.tokens / self.characters if self.characters else 0.0


def read_characters(path: Path) -> list[str]:
    """The characters of a list as `ziya-data vocab` writes it: UTF-8, one character (code point) a line, in order.

    UserError tells the first line that is empty, holds several characters, a space or control character, or repeats one.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"characters {path}: no such file; give the chars.txt of `ziya-data vocab`") from error
    except OSError as error:
        raise UserError(f"characters {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"characters {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    lines = text.split("\n")  # not splitlines: U+2028 and its like are characters here
    if lines[-1] == "":
        lines.pop()
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        character = line[:-1] if len(line) > 1 and line.endswith("\r") else line
        if len(character) != 1:
            found = f"{len(character)} characters ({character[:20]!r})" if character else "nothing"
            raise UserError(f"characters {path}, line {number}: {found}; each line must hold one character")
        if character in (" ", SPACE) or unicodedata.category(character) == "Cc":
            raise UserError(
                f"characters {path}, line {number}: {character!r} cannot be added (spaces are spelled {SPACE} and control "
                f"characters in bytes); remove the line"
            )
        if character in first:
            raise UserError(
                f"characters {path}, line {number}: {character} stands in line {first[character]} too; remove one of them"
            )
        first[character] = number
    if not first:
        raise UserError(f"characters {path} is empty: give one character a line")
    return list(first)


def check_model(content: bytes, path: Path) -> ModelFile:
    """Parse a SentencePiece model; UserError unless it is BPE and gives back any UTF-8 text (`path` is for messages)."""
    try:
        model = parse_model(content)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no SentencePiece model ({error}): copy it again") from error
    byte_pieces = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == BYTE}
    problem = None
    if model.model_type != BPE:
        problem = "is no BPE model, and new characters would change the ids of other texts"
    elif not model.byte_fallback or len(byte_pieces) != _BYTES:
        problem = f"has no byte fallback ({len(byte_pieces)} of {_BYTES} byte pieces), so that it loses rare characters"
    elif model.charsmap:
        problem = "normalises its text (a character map), so that decoding does not give the text back"
    elif model.remove_extra_whitespaces:
        problem = "removes extra spaces, so that decoding does not give the text back"
    elif model.whitespace_is_suffix or not model.escape_whitespaces:
        problem = "writes spaces otherwise than LLaMA does"
    elif SPACE not in model.pieces:
        problem = f"has no piece {SPACE} for a space"
    if problem:
        raise UserError(f"{path} {problem}; a LLaMA-like model is needed (BPE, byte fallback, identity normaliser)")
    return model


def extend(content: bytes, characters: Sequence[str], path: Path) -> Extended:
    """Add characters to a serialised SentencePiece model, in order; those that are pieces already stay where they are.

    `path` is for messages; errors as `check_model`.
    """
    model = check_model(content, path)
    ids = {piece: number for number, piece in enumerate(model.pieces)}
    already = [character for character in characters if character in ids]
    for character in already:
        if model.types[ids[character]] not in (NORMAL, USER_DEFINED):
            raise UserError(f"{path}: {character!r} is a special piece of the model; remove it from the characters")
    added = [character for character in characters if character not in ids]
    score = np.float32(min(model.scores))
    tail = bytearray()
    for character in added:
        # At -1e9, where LLaMA2's spaces are, single precision has no number one below.
        score = min(np.float32(score - 1), np.nextafter(score, np.float32(-np.inf)))
        text = character.encode()
        piece = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", score)
        tail += b"\x0a" + _varint(len(piece)) + piece  # ModelProto.pieces; the type is NORMAL by default
    if added:
        size = b"\x20" + _varint(len(model.pieces) + len(added))  # TrainerSpec.vocab_size
        tail += b"\x12" + _varint(len(size)) + size
    return Extended(content + bytes(tail), added, already)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def read_texts(path: Path, limit: int) -> list[str]:
    """Documents of a text file, at most `limit` characters in all (the last document is cut).

    `.jsonl`: the field `text` of each line; anything else is one document. Either may be gzipped (`.gz`). UserError when
    the file is missing, not UTF-8, or empty.
    """
    texts = []
    left = limit
    try:
        for text in _documents(path, limit):
            texts.append(text[:left])
            left -= len(texts[-1])
            if left <= 0:
                break
    except FileNotFoundError as error:
        raise UserError(f"text {path}: no such file; give a text or .jsonl file") from error
    except (OSError, EOFError) as error:
        raise UserError(f"text {path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"text {path} is not UTF-8: save it as UTF-8") from error
    if not any(texts):
        raise UserError(f"text {path} is empty: give some text to count tokens on")
    return texts


def _documents(path: Path, limit: int) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        if ".jsonl" not in path.suffixes[-2:]:
            yield file.read(limit)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"text {path}, line {number}: no JSON object with a field `text`") from error
            yield text.encode(errors="replace").decode()  # half a surrogate pair, escaped, is no text


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> TextCounts:
    """Count texts in a tokenizer's tokens."""
    tokens = sum(
        len(tokenizer.encode_batch(texts[start : start + _BATCH])[0]) for start in range(0, len(texts), _BATCH)
    )
    return TextCounts(
        documents=len(texts),
        characters=sum(map(len, texts)),
        bytes=sum(len(text.encode()) for text in texts),
        tokens=tokens,
    )
