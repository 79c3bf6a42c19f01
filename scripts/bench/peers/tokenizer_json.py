"""A LLaMA SentencePiece model as `tokenizer.json`, so that a peer can tokenise with the same vocabulary.

    python tokenizer_json.py tokenizer.model tokenizer.json [check.jsonl ...]

Merges are all cuts of a piece into two pieces, in the order of the piece's rank. Prints how many texts of the check
files get other ids than SentencePiece's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, normalizers


def convert(model: Path) -> Tokenizer:
    """The equal Hugging Face tokenizer of a BPE SentencePiece model with byte fallback."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    numbers = range(pieces.get_piece_size())
    vocabulary = {pieces.id_to_piece(i): i for i in numbers}
    normal = {
        pieces.id_to_piece(i): pieces.get_score(i)
        for i in numbers
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
    }
    cuts = [
        (-score, vocabulary[piece], vocabulary[piece[:k]], vocabulary[piece[k:]], (piece[:k], piece[k:]))
        for piece, score in normal.items()
        for k in range(1, len(piece))
        if piece[:k] in normal and piece[k:] in normal
    ]
    merges = [cut[4] for cut in sorted(cuts)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def main() -> None:
    """Convert, save, compare."""
    model, target, *checks = map(Path, sys.argv[1:])
    tokenizer = convert(model)
    tokenizer.save(str(target))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = [json.loads(line)["text"] for path in checks for line in path.open(encoding="utf-8")]
    other = sum(tokenizer.encode(text).ids != pieces.encode(text) for text in texts)
    print(json.dumps({"texts": len(texts), "other_ids": other}))


if __name__ == "__main__":
    main()
