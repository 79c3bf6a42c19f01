"""Bytes of text that each token spells, for losses in bits per byte, which compare models with different tokenizers.

Definition. A piece of a SentencePiece model counts its UTF-8 bytes with every word-start mark U+2581 counted as the one space
that it stands for; a byte-fallback piece counts 1; control pieces (BOS, EOS, padding, unknown) count 0. A piece of a byte-level
tokenizer.json counts one byte a character, which is how such vocabularies are spelled; special tokens count 0.

So the tokens of a text add up to `len(text.encode())`, plus 1 where the tokenizer puts a space before every text. That space is
spelled by a document's first token, which is nobody's target (`training.data`): bits per byte are exact over targets. The loss
of predicting an EOS counts in the bits and its 0 bytes do not, as in any measurement of whole documents.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ziya.errors import UserError
from ziya.files import read_json
from ziya.sentencepiece_model import BYTE, NORMAL, USER_DEFINED, ModelFile, parse_model

I32 = npt.NDArray[np.int32]

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def bytes_per_token(folder: Path, vocab_used: int) -> I32 | None:
    """int32 [vocab_used] from the tokenizer of a Hugging Face folder; None where it has none, or one whose pieces do not say
    what they spell. Of two tokenizers the one counts that covers the vocabulary, as in `ziya-train init`."""
    model, text = folder / "tokenizer.model", folder / "tokenizer.json"
    parsed = _parse(model) if model.is_file() else None
    if parsed is not None and (len(parsed.pieces) == vocab_used or not text.is_file()):
        return _fitted(of_sentencepiece(parsed), vocab_used)
    found = of_json(read_json(text)) if text.is_file() else None
    return None if found is None else _fitted(found, vocab_used)


def _parse(path: Path) -> ModelFile:
    try:
        return parse_model(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no SentencePiece model ({error}): copy it again") from error


def of_sentencepiece(model: ModelFile) -> I32:
    """int32 [pieces] of a SentencePiece model."""
    counted = {NORMAL, USER_DEFINED}
    sizes = [
        1 if kind == BYTE else len(piece.replace(_SPACE, " ").encode()) if kind in counted else 0
        for piece, kind in zip(model.pieces, model.types, strict=True)
    ]
    return np.array(sizes, np.int32)


def of_json(content: Any) -> I32 | None:
    """int32 [largest id + 1] of a parsed tokenizer.json; None unless it is byte-level or spelled as SentencePiece does."""
    if not isinstance(content, dict):
        return None
    decoder = content.get("decoder") or {}
    kinds = {step.get("type") for step in decoder.get("decoders") or [decoder]}
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # unigram models: (piece, score) by id
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    if "ByteLevel" in kinds:
        sizes = {number: len(piece) for piece, number in vocabulary.items()}
    elif kinds & {"ByteFallback", "Metaspace"}:
        sizes = {
            number: 1 if _BYTE.fullmatch(piece) else len(piece.replace(_SPACE, " ").encode())
            for piece, number in vocabulary.items()
        }
    else:
        return None
    for token in content.get("added_tokens") or ():
        sizes[token["id"]] = 0 if token.get("special") else len(token["content"].encode())
    found = np.zeros(max(sizes, default=-1) + 1, np.int32)
    found[list(sizes)] = list(sizes.values())
    return found


def _fitted(sizes: I32, vocab_used: int) -> I32:
    """Exactly `vocab_used` long: rows that no piece uses spell nothing."""
    found = np.zeros(vocab_used, np.int32)
    found[: len(sizes)] = sizes[:vocab_used]
    return found
