"""A LLaMA that has learnt nothing yet, with a tokenizer of English only: where the demo's base model starts.

    python scripts/demo/make_base.py TEXTS.jsonl OUT_DIR [--seed 7]

OUT_DIR/tokenizer.model, config.json, model.safetensors, generation_config.json. The tokenizer is made like LLaMA's: BPE with
byte fallback, digits apart, no normalisation. Chinese is spelled in bytes, three tokens a character.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

PIECES = 1_500


def tokenizer(texts: list[str], out: Path) -> None:
    """Train OUT/tokenizer.model."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line.strip()),
        model_prefix=str(out / "tokenizer"),
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.9995,
        num_threads=1,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (out / "tokenizer.vocab").unlink()


def model(out: Path, seed: int) -> None:
    """Write config.json and drawn weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=PIECES,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(out)


def main() -> None:
    """Write OUT_DIR."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.texts.read_text(encoding="utf-8").splitlines()
    tokenizer([json.loads(line)["text"] for line in lines], given.out)
    model(given.out, given.seed)
    print(f"{PIECES} pieces and a model that has learnt nothing in {given.out}")


if __name__ == "__main__":
    main()
