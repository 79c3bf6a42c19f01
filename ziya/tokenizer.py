"""Tokenizers of packs: a LLaMA SentencePiece model or a Hugging Face tokenizer.json, encoded in batches of documents.

Documents are encoded whole, without BOS or EOS: encoding line by line gives other ids. Text never becomes a control
piece: `</s>` in a page is spelled out. Three engines, chosen by what is exact: `compiled` (ziya.bpe), `sentencepiece`
and `tokenizers`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ziya import bpe
from ziya.errors import UserError
from ziya.files import digest
from ziya.sentencepiece_model import BYTE, NORMAL, USER_DEFINED, ModelFile, parse_model, piece_spans

EOS_NAMES = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|eos|>", "<eos>")
PAD_NAMES = ("<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "<|padding|>", "[PAD]")
LONG_CHARACTERS = 1 << 20  # longer documents are cut at proven borders before they reach the `tokenizers` engine

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

# Split patterns under which the border between a letter and a following space is always a border of pre-tokens: letters
# stand only at the end of a branch, and no branch goes on from a letter to a space. Cutting there is exact for these.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SAFE_SPLITS = (_LLAMA3, _LLAMA3.replace("{1,3}", ""), _LLAMA3.replace("{1,3}", "+"))


class Tokenizer:
    """One tokenizer; made by `load_tokenizer`.

    `kind`: sentencepiece or huggingface; `engine`: compiled, sentencepiece or tokenizers; `vocab_size`: largest id plus
    one; `eos_id`, `pad_id`; `fingerprint`: 32 hexadecimal characters over the file's content and both special ids.
    """

    kind: str
    engine: str
    vocab_size: int
    eos_id: int
    pad_id: int

    def __init__(self, content: bytes) -> None:
        self._content_digest = digest(content)

    @property
    def fingerprint(self) -> str:
        """Changes with the file's content and with the special ids, with nothing else."""
        return digest(f"{self.kind} {self._content_digest} eos {self.eos_id} pad {self.pad_id}".encode())

    def encode_batch(self, texts: Sequence[str]) -> tuple[I32, I64]:
        """Ids of all texts end to end, int32, and int64 [n + 1] offsets of the texts in them."""
        ids, offsets, _ = self.encode_utf8(*_utf8(texts))
        return ids, offsets

    def encode_utf8(
        self, data: U8, offsets: I64, prompt_bytes: npt.NDArray[np.integer[Any]] | None = None
    ) -> tuple[I32, I64, I32]:
        """The same for UTF-8 text i = data[offsets[i]:offsets[i + 1]], and the ids of its prompt, int32 [n].

        The ids are those of the whole text. With `prompt_bytes` (int [n]) the third array counts the leading ids that
        lie wholly inside the first `prompt_bytes[i]` bytes (an id that also spells text after the prompt is not the
        prompt's); without it, zeros.
        """
        raise NotImplementedError

    def missing_characters(self, characters: Iterable[str]) -> list[str]:
        """Those characters, in order, that are not one piece by themselves."""
        raise NotImplementedError

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces of ids, as the vocabulary spells them."""
        raise NotImplementedError


def load_tokenizer(path: Path | str, eos: str | None = None, pad: str | None = None) -> Tokenizer:
    """Load a SentencePiece `.model` or a Hugging Face `tokenizer.json`.

    `eos` and `pad` name pieces; by default the tokenizer's own are used, and EOS pads where there is no padding piece.
    Raises UserError when the file is missing or no tokenizer, or has no such piece.
    """
    path = Path(path)
    if path.is_dir():
        inside = [name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        advice = f"give {path / inside[0]}" if inside else "give the file tokenizer.model or tokenizer.json"
        raise UserError(f"tokenizer {path} is a folder: {advice}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"tokenizer {path} does not exist: set tokenizer.path to a .model or tokenizer.json") from error
    except OSError as error:
        raise UserError(f"tokenizer {path} cannot be read: {error.strerror}") from error
    if content.lstrip()[:1] == b"{":
        return HuggingFaceTokenizer(content, path, eos, pad)
    return SentencePieceTokenizer(content, path, eos, pad)


def _utf8(texts: Sequence[str]) -> tuple[U8, I64]:
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(item) for item in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def _no_piece(path: Path, setting: str, name: str | None) -> UserError:
    if name is None:
        return UserError(f"tokenizer {path} names no end-of-text piece: set tokenizer.{setting} to one of its pieces")
    return UserError(f"tokenizer {path} has no piece {name!r}: set tokenizer.{setting} to one of its pieces")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; the compiled engine where it is exact, else the library on one thread."""

    kind = "sentencepiece"

    def __init__(self, content: bytes, path: Path, eos: str | None = None, pad: str | None = None) -> None:
        """`path` is for messages."""
        super().__init__(content)
        self._content = content
        not_one = UserError(f"{path} is no tokenizer: it must be a SentencePiece .model or a tokenizer.json")
        try:
            self._model: ModelFile = parse_model(content)
        except (ValueError, UnicodeDecodeError) as error:
            raise not_one from error
        try:
            self._processor.get_piece_size()
        except RuntimeError as error:
            raise not_one from error
        self._ids = {piece: number for number, piece in enumerate(self._model.pieces)}
        self.vocab_size = len(self._model.pieces)
        self.eos_id = self._special(path, "eos", eos, self._processor.eos_id())
        self.pad_id = self._special(path, "pad", pad, self._processor.pad_id(), self.eos_id)

    @cached_property
    def engine(self) -> str:  # type: ignore[override]
        """See `Tokenizer`."""
        return "sentencepiece" if self._compiled is None else "compiled"

    @cached_property
    def _compiled(self) -> tuple[bpe.Tables, bpe.Cache] | None:
        """Built when the first text is encoded: who only asks for ids and the fingerprint does not wait for it."""
        tables = bpe.build_tables(self._model)
        return None if tables is None else (tables, bpe.empty_cache())

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(self._content)
        return processor

    def _special(self, path: Path, setting: str, name: str | None, own: int, otherwise: int = -1) -> int:
        if name is not None:
            if name not in self._ids:
                raise _no_piece(path, setting, name)
            return self._ids[name]
        found = own if own >= 0 else otherwise
        if found < 0:
            raise _no_piece(path, setting, None)
        return int(found)

    @cached_property
    def _characters(self) -> I32:
        """Characters of each piece; -1 for byte pieces, which the compiled engine takes as one byte of text."""
        model = self._model
        lengths = [-1 if kind == BYTE else len(piece) for piece, kind in zip(model.pieces, model.types, strict=True)]
        return np.array(lengths, np.int32)

    def encode_utf8(
        self, data: U8, offsets: I64, prompt_bytes: npt.NDArray[np.integer[Any]] | None = None
    ) -> tuple[I32, I64, I32]:
        """See `Tokenizer.encode_utf8`."""
        if self._compiled is None:
            return self._encode_library(data, offsets, prompt_bytes)
        tables, cache = self._compiled
        ids, ends = bpe.encode(tables, cache, data, offsets)
        if prompt_bytes is None or not np.any(prompt_bytes):
            return ids, ends, np.zeros(len(offsets) - 1, np.int32)
        prompts = bpe.prompt_tokens(tables, self._characters, data, offsets, prompt_bytes, (ids, ends))
        return ids, ends, prompts

    def _encode_library(
        self, data: U8, offsets: I64, prompt_bytes: npt.NDArray[np.integer[Any]] | None
    ) -> tuple[I32, I64, I32]:
        texts = _strings(data, offsets)
        rows = [self._processor.encode(text, out_type=int, num_threads=1) for text in texts]
        ids, ends = _flat(rows)
        prompts = np.zeros(len(texts), np.int32)
        for i in np.flatnonzero(prompt_bytes).tolist() if prompt_bytes is not None else ():
            encoded = self._processor.encode(texts[i], out_type="serialized_proto")
            prompts[i] = _inside(piece_spans(encoded), int(prompt_bytes[i]))  # type: ignore[index]
        return ids, ends, prompts

    def missing_characters(self, characters: Iterable[str]) -> list[str]:
        """See `Tokenizer.missing_characters`."""
        types = self._model.types
        return [c for c in characters if c not in self._ids or types[self._ids[c]] not in (NORMAL, USER_DEFINED)]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """See `Tokenizer.pieces`."""
        return [self._model.pieces[i] for i in ids]


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json through the tokenizers library, on one thread (workers are processes of ours)."""

    kind = "huggingface"
    engine = "tokenizers"

    def __init__(self, content: bytes, path: Path, eos: str | None = None, pad: str | None = None) -> None:
        """`path` is for messages."""
        super().__init__(content)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read at every call; a thread pool would not survive a fork
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is no tokenizer: it must be a tokenizer.json ({reason})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "<|end_of_text|>" inside a page stays text
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError(f"{path} is no tokenizer: its vocabulary is empty")
        self.vocab_size = max(vocabulary.values()) + 1
        for setting, name in (("eos", eos), ("pad", pad)):
            if name is not None and name not in vocabulary:
                raise _no_piece(path, setting, name)
        eos = eos or next((name for name in EOS_NAMES if name in vocabulary), None)
        if eos is None:
            raise _no_piece(path, "eos", None)
        self.eos_id = int(vocabulary[eos])
        pad = pad or next((name for name in PAD_NAMES if name in vocabulary), eos)
        self.pad_id = int(vocabulary[pad])
        self._cut = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])") if self._cuts_are_exact(content) else None

    def _cuts_are_exact(self, content: bytes) -> bool:
        """Whether a cut between an ASCII letter and a space changes no id: known split, no normaliser, plain tokens."""
        import orjson

        settings = orjson.loads(content)
        if settings.get("normalizer") is not None:
            return False
        if any(" " in token["content"] for token in settings.get("added_tokens") or ()):
            return False
        steps = settings.get("pre_tokenizer") or {}
        steps = steps.get("pretokenizers", [steps])
        kinds = [step.get("type") for step in steps]
        if kinds == ["ByteLevel"]:
            return bool(steps[0].get("use_regex", True)) and not steps[0].get("add_prefix_space", False)
        if kinds == ["Split", "ByteLevel"]:
            split, level = steps
            if split.get("behavior") != "Isolated" or split.get("invert", False):
                return False
            known = split.get("pattern", {}).get("Regex") in _SAFE_SPLITS
            return known and not (level.get("use_regex", True) or level.get("add_prefix_space", False))
        return False

    def encode_utf8(
        self, data: U8, offsets: I64, prompt_bytes: npt.NDArray[np.integer[Any]] | None = None
    ) -> tuple[I32, I64, I32]:
        """See `Tokenizer.encode_utf8`."""
        texts = _strings(data, offsets)
        prompts = np.zeros(len(texts), np.int32)
        rows: list[Sequence[int]] = [()] * len(texts)
        short = [i for i, text in enumerate(texts) if len(text) <= LONG_CHARACTERS]
        encodings = self._tokenizer.encode_batch_fast([texts[i] for i in short], add_special_tokens=False)
        for i, encoding in zip(short, encodings, strict=True):
            rows[i] = encoding.ids
        for i, text in enumerate(texts):
            if len(text) > LONG_CHARACTERS:
                rows[i] = self._encode_long(text)
        for i in np.flatnonzero(prompt_bytes).tolist() if prompt_bytes is not None else ():
            prompt = bytes(data[offsets[i] : offsets[i] + int(prompt_bytes[i])]).decode()  # type: ignore[index]
            prompts[i] = _inside(self._tokenizer.encode(texts[i], add_special_tokens=False).offsets, len(prompt))
        ids, ends = _flat(rows)
        return ids, ends, prompts

    def _encode_long(self, text: str) -> Sequence[int]:
        """A document of any length in pieces of about LONG_CHARACTERS, where that is exact; else at once."""
        parts = []
        at = 0
        while at < len(text):
            cut = self._cut.search(text, at + LONG_CHARACTERS) if self._cut is not None else None
            end = cut.start() if cut else len(text)
            parts.append(np.array(self._encode(text[at:end]), np.int32))
            at = end
        return np.concatenate(parts)  # type: ignore[return-value]

    def _encode(self, text: str) -> Sequence[int]:
        encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        ids: Sequence[int] = encoding.ids
        return ids

    def missing_characters(self, characters: Iterable[str]) -> list[str]:
        """See `Tokenizer.missing_characters`. A piece may be spelled in bytes: what counts is that one id spells it."""
        listed = list(characters)
        missing = []
        for character, encoding in zip(
            listed, self._tokenizer.encode_batch(listed, add_special_tokens=False), strict=True
        ):
            one = len(encoding.ids) == 1 and self._tokenizer.decode(encoding.ids) == character
            if not one:
                missing.append(character)
        return missing

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """See `Tokenizer.pieces`."""
        return [str(self._tokenizer.id_to_token(int(i))) for i in ids]


def _strings(data: U8, offsets: I64) -> list[str]:
    whole = data.tobytes()
    return [whole[a:b].decode() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def _flat(rows: Sequence[Sequence[int]]) -> tuple[I32, I64]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.empty(offsets[-1], np.int32)
    for row, start, end in zip(rows, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        ids[start:end] = row
    return ids, offsets


def _inside(spans: Sequence[tuple[int, int]], border: int) -> int:
    """Leading tokens that lie wholly before `border`; empty spans at it are the first bytes of what follows."""
    count = 0
    for begin, end in spans:
        if end > border or (begin == end == border):
            break
        count += 1
    return count if border else 0
