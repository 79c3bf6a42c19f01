"""The tokenizer side of `ziya-train init`: which one a base model has, and the one that the new folder gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.architecture import Architecture
from training.hf_tokenizer import merges, special_pieces, without_prefix, write_tokenizer
from training.vocabulary import check_model, extend
from ziya.errors import UserError
from ziya.files import read_json, write_bytes
from ziya.progress import log
from ziya.sentencepiece_model import ModelFile, parse_model
from ziya.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

MODEL, JSON = "tokenizer.model", "tokenizer.json"
FILES = (
    MODEL,
    JSON,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)  # what belongs to a tokenizer in a Hugging Face folder

COMPARED_TEXTS, COMPARED_CHARACTERS = 200, 100_000  # of the user's, on which tokenizer.json is compared


@dataclass(frozen=True)
class BaseTokenizer:
    """A base model's tokenizer. `size`: tokens with rows of their own; `first`: the id that stands before a text (BOS, or
    EOS where there is none); `special`: role (bos, eos, unk, pad) -> id; `model`: None when it is a tokenizer.json."""

    folder: Path
    tokenizer: Tokenizer
    size: int
    first: int
    special: dict[str, int]
    config: dict[str, Any]  # tokenizer_config.json
    content: bytes = b""
    model: ModelFile | None = None

    @property
    def kind(self) -> str:
        """sentencepiece or huggingface."""
        return self.tokenizer.kind


@dataclass(frozen=True)
class NewTokenizer:
    """The tokenizer of the new folder. `spelled[i]`: ids of the base tokenizer for `added[i]`, without the prefix."""

    base: BaseTokenizer
    tokenizer: Tokenizer
    added: list[str]
    already: list[str]
    spelled: list[list[int]]
    content: bytes = b""
    model: ModelFile | None = None

    def write(self, folder: Path, texts: Sequence[str], positions: int) -> None:
        """Write its files into `folder`; a tokenizer.json of the base model is kept byte for byte."""
        if self.model is not None:
            path = self.base.folder / MODEL
            compared = [text[:COMPARED_CHARACTERS] for text in texts[:COMPARED_TEXTS]]
            write_tokenizer(folder, self.content, self.model, path, compared, self.base.config, positions)
            return
        for name in FILES:
            if (self.base.folder / name).is_file():
                write_bytes(folder / name, (self.base.folder / name).read_bytes())

    def fingerprints(self, folder: Path) -> dict[str, str]:
        """File -> fingerprint as packs record it, for the files that packs can be made with."""
        names = (MODEL, JSON) if self.model is not None else (JSON,)
        return {name: load_tokenizer(folder / name, eos=self._eos()).fingerprint for name in names}

    def _eos(self) -> str:
        return self.tokenizer.pieces([self.tokenizer.eos_id])[0]


def open_tokenizer(folder: Path, shape: Architecture, raw: dict[str, Any], *, extends: bool) -> BaseTokenizer:
    """The tokenizer of a base model (`raw`: its config.json).

    A SentencePiece model is taken when it covers the vocabulary, else the tokenizer.json. UserError when the folder has
    none that fits the embedding, or `extends` (characters are to be added) and it is a tokenizer.json.
    """
    path = folder / MODEL
    has_json = (folder / JSON).is_file()
    if path.is_file():
        try:
            return _sentencepiece(path, shape, raw)
        except UserError as error:
            if extends or not has_json:
                raise
            log(f"{error}: {JSON} is kept as the model's tokenizer")
    if not has_json:
        raise UserError(f"{folder} has no {MODEL} and no {JSON}: copy the tokenizer's files into the model's folder")
    if extends:
        raise UserError(
            f"{folder}: its tokenizer is a {JSON}, which spells any character already and is kept as it is; leave --chars out"
        )
    return _huggingface(folder / JSON, shape, raw)


def _sentencepiece(path: Path, shape: Architecture, raw: dict[str, Any]) -> BaseTokenizer:
    content = path.read_bytes()
    model = check_model(content, path)
    size = len(model.pieces)
    if size != shape.vocab_used:
        raise UserError(
            f"{path} has {size:,} pieces, the embedding in config.json has {shape.vocab_used:,} tokens; both must be of one "
            f"model (padding rows must be marked: ziya_vocab_used in config.json)"
        )
    merges(model, path)  # refuses what a tokenizer.json cannot express, before anything slow begins
    special = {role: number for role, (_, number) in special_pieces(content).items()}
    tokenizer = SentencePieceTokenizer(content, path)
    first = special.get("bos", tokenizer.eos_id)
    return BaseTokenizer(path.parent, tokenizer, size, first, special, _config(path.parent), content, model)


def _huggingface(path: Path, shape: Architecture, raw: dict[str, Any]) -> BaseTokenizer:
    ids = {role: _first(raw.get(f"{role}_token_id")) for role in ("bos", "eos", "pad")}
    special = {role: number for role, number in ids.items() if number is not None}
    content = path.read_bytes()
    tokenizer = HuggingFaceTokenizer(content, path, eos=_piece(content, path, special.get("eos")))
    size = tokenizer.vocab_size
    if size > shape.vocab_size:
        raise UserError(
            f"{path} has {size:,} tokens, the embedding in config.json only {shape.vocab_size:,} rows; both must be of one model"
        )
    first = special.get("bos", tokenizer.eos_id)
    return BaseTokenizer(
        path.parent, tokenizer, size, first if first < size else tokenizer.eos_id, special, _config(path.parent)
    )


def _piece(content: bytes, path: Path, number: int | None) -> str | None:
    """The spelling of a token of a tokenizer.json, None when there is no such token."""
    import tokenizers

    if number is None:
        return None
    try:
        return tokenizers.Tokenizer.from_buffer(content).id_to_token(number)  # type: ignore[no-any-return]
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is no tokenizer.json ({' '.join(str(error).split())[:200]}): copy it again") from error


def _first(value: Any) -> int | None:
    """A token id of config.json, which may be one number or several."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) else None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def extend_tokenizer(base: BaseTokenizer, characters: Sequence[str]) -> NewTokenizer:
    """The tokenizer of the new folder: with characters added, or the base's own."""
    if base.model is None:
        return NewTokenizer(base, base.tokenizer, [], [], [])
    path = base.folder / MODEL
    extended = extend(base.content, characters, path)
    return NewTokenizer(
        base=base,
        tokenizer=SentencePieceTokenizer(extended.content, path),
        added=extended.added,
        already=extended.already,
        spelled=without_prefix(base.tokenizer, base.model, extended.added),
        content=extended.content,
        model=parse_model(extended.content),
    )
