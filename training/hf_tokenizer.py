"""A Hugging Face tokenizer whose ids equal a SentencePiece BPE model's on any text.

SentencePiece joins, again and again, the two neighbours whose joined text is the piece with the best score, the leftmost
ones among equals. The `tokenizers` library takes a ranked list of pairs instead. Ranked by score the two agree, whatever
the text, as long as no two pieces of several characters share a score: a piece is only ever joined from the one pair that
encoding the piece alone ends with, so the order of the other pairs does not matter. LLaMA2 has equal scores in one place:
runs of spaces (-1e9). There longer runs rank first, which makes a run grow from the left as SentencePiece does it.

Settings that equality needs: the normaliser prepends U+2581 (only where the model has `add_dummy_prefix`) and replaces
spaces, no pre-tokenizer cuts the text, and special tokens inside a text stay text, as in SentencePiece. The last one is
`split_special_tokens` in tokenizer_config.json for transformers; the bare library has to be told after loading:
`tokenizer.encode_special_tokens = True`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ziya.bpe_tables import SPACE
from ziya.errors import UserError
from ziya.files import json_bytes, write_bytes, write_json
from ziya.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, ModelFile
from ziya.tokenizer import Tokenizer

# Texts that every written tokenizer is compared on, beside those of the user.
PROBES = (
    "", " ", "  ", "\n", "\t", "\x00", " a", "a ", "a  b", "\n\n  \n", "\r\n\t\t", "    return  x\n\n\n    y",
    "▁", " ▁ ▁▁x", "</s>", "<s>a</s> <unk><0x0A>", "e\u0301\u0327", "\u200d\u200b\ufeff", "👩\u200d👧\ufe0f",
    "\U0010ffff\ud7ff\ue000", "𠮷野家", "中文，English mixed。",
    "नमस्ते สวัสดี مرحبا", "0123456789 3.14159", "\u2028\u2029\u0085\u00a0\u3000", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ababababababa ananananana",
)  # fmt: skip

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def merges(model: ModelFile, path: Path) -> list[list[str]]:
    """Pairs of pieces whose joined text is a piece, by score (highest first), then length, then ids of the halves.

    UserError when the model holds what a ranked list of pairs cannot reproduce (`path` is for messages).
    """
    ids, frozen = _text_pieces(model, path)
    ties: dict[float, list[str]] = defaultdict(list)
    ranked = []
    for piece, number in ids.items():
        if len(piece) == 1 or not frozen.isdisjoint(piece):  # SentencePiece joins nothing to a user-defined piece
            continue
        missing = [character for character in piece if character not in ids]
        if missing:
            raise _cannot(path, f"piece {piece!r} holds {missing[0]!r}, which is no piece itself")
        score = model.scores[number]
        ties[score].append(piece)
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-score, -len(piece), left, right))
    for pieces in ties.values():
        if len(pieces) > 1 and any(piece.strip(SPACE) for piece in pieces):
            raise _cannot(path, f"{len(pieces)} pieces share one score ({pieces[0]!r}, {pieces[1]!r})")
    return [[model.pieces[left], model.pieces[right]] for _, _, left, right in sorted(ranked)]


def _text_pieces(model: ModelFile, path: Path) -> tuple[dict[str, int], set[str]]:
    """Piece -> id of those that text can become, and those among them that are user-defined."""
    ids, frozen = {}, set()
    for number, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True)):
        if kind in (CONTROL, UNKNOWN, BYTE) and len(piece) > 1:
            continue
        if kind == NORMAL or (kind == USER_DEFINED and len(piece) == 1):
            ids[piece] = number
            if kind == USER_DEFINED:
                frozen.add(piece)
        else:
            raise _cannot(path, f"piece {piece!r} is of a special kind")
    return ids, frozen


def _cannot(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}, so no tokenizer.json can give equal ids; use a model trained by SentencePiece")


def special_pieces(content: bytes) -> dict[str, tuple[str, int]]:
    """Role (bos, eos, unk, pad) -> (piece, id) of a serialised model, for the roles that it has."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    roles = {name: int(getattr(processor, f"{name}_id")()) for name in ("bos", "eos", "unk", "pad")}
    return {name: (str(processor.id_to_piece(number)), number) for name, number in roles.items() if number >= 0}


def tokenizer_json(
    content: bytes, model: ModelFile, path: Path, *, add_bos: bool = True, add_eos: bool = False
) -> bytes:
    """The text of a `tokenizer.json`; `content` is what `model` was parsed from. Errors as `merges`."""
    special = special_pieces(content)
    prepend: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if model.add_dummy_prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    strip: list[dict[str, Any]] = (
        [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.add_dummy_prefix else []
    )
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    return json_bytes(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, "content": piece, **_FLAGS} for piece, number in _special_tokens(model)],
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
            "pre_tokenizer": None,
            "post_processor": _template(special, add_bos=add_bos, add_eos=add_eos),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": special["unk"][0] if "unk" in special else None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {piece: number for number, piece in enumerate(model.pieces)},
                "merges": merges(model, path),
            },
        }
    )


def _special_tokens(model: ModelFile) -> list[tuple[str, int]]:
    kinds = enumerate(zip(model.pieces, model.types, strict=True))
    return [(piece, number) for number, (piece, kind) in kinds if kind in (CONTROL, UNKNOWN)]


def _template(special: dict[str, tuple[str, int]], *, add_bos: bool, add_eos: bool) -> dict[str, Any]:
    """What stands around a text when special tokens are asked for."""
    before = [special["bos"]] if add_bos and "bos" in special else []
    after = [special["eos"]] if add_eos and "eos" in special else []

    def steps(name: str, kind: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": kind}}
        around = [[{"SpecialToken": {"id": piece, "type_id": kind}} for piece, _ in side] for side in (before, after)]
        return [*around[0], text, *around[1]]

    return {
        "type": "TemplateProcessing",
        "single": steps("A", 0),
        "pair": [*steps("A", 0), *steps("B", 1)],
        "special_tokens": {
            piece: {"id": piece, "ids": [number], "tokens": [piece]} for piece, number in [*before, *after]
        },
    }


def write_tokenizer(
    folder: Path, content: bytes, model: ModelFile, path: Path, texts: Sequence[str], base: dict[str, Any], length: int
) -> None:
    """Write tokenizer.model, tokenizer.json, tokenizer_config.json and special_tokens_map.json into `folder`.

    `base`: the base model's tokenizer_config.json (whether BOS and EOS are added is kept); `length`: the model's
    positions. Before it is written, the JSON is compared with SentencePiece on `PROBES` and `texts`; UserError when one
    differs.
    """
    adds = {"add_bos": bool(base.get("add_bos_token", True)), "add_eos": bool(base.get("add_eos_token", False))}
    data = tokenizer_json(content, model, path, **adds)
    runs = [f"{left}{' ' * count}{right}" for count in range(1, 70) for left, right in (("", ""), ("x", "y"))]
    different = first_difference(content, data, [*PROBES, *runs, *texts])
    if different is not None:
        raise _cannot(path, f"its ids of {different[:40]!r} come from an order of merges that ranks cannot express")
    special = special_pieces(content)
    names = {f"{role}_token": piece for role, (piece, _) in special.items()}
    config = {
        # The plain class: those named after a model build their own normaliser, with other ids.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(number): {"content": piece, **_FLAGS} for piece, number in _special_tokens(model)},
        "add_bos_token": adds["add_bos"] and "bos" in special,
        "add_eos_token": adds["add_eos"] and "eos" in special,
        "clean_up_tokenization_spaces": False,  # else "a , b" decodes to "a, b"
        "split_special_tokens": True,  # "</s>" inside a text stays text
        "model_max_length": length,
        **names,
    }
    write_bytes(folder / "tokenizer.model", content)
    write_bytes(folder / "tokenizer.json", data)
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", names)


def first_difference(content: bytes, data: bytes, texts: Sequence[str]) -> str | None:
    """The first text that a `tokenizer.json` (`data`) encodes otherwise than the SentencePiece model, or None."""
    import sentencepiece
    import tokenizers

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.encode_special_tokens = True
    for text in texts:
        if processor.encode(text) != tokenizer.encode(text, add_special_tokens=False).ids:
            return text
    return None


def without_prefix(tokenizer: Tokenizer, model: ModelFile, characters: Sequence[str]) -> list[list[int]]:
    """Ids of each character alone, without the piece of the dummy prefix that the model puts before every text."""
    ids, ends = tokenizer.encode_batch(characters)
    prefix = model.pieces.index(SPACE) if model.add_dummy_prefix else -1
    rows = [ids[start:end].tolist() for start, end in pairwise(ends.tolist())]
    return [row[1:] if len(row) > 1 and row[0] == prefix else row for row in rows]
