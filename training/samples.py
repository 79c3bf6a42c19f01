"""What an exported model writes on after a few beginnings in Chinese, English and code: `samples.md` and `samples.json`.

Greedy, so the same export gives the same text. Beginnings carry no BOS, as rows of packs do not. They show at a glance whether a
model is broken; they measure nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ziya.errors import UserError
from ziya.exports import SAMPLES
from ziya.files import write_bytes, write_json
from ziya.tokenizer import load_tokenizer

PROMPTS = {
    "zh": ("中国的首都是", "春天来了，", "牛顿第二定律指出"),
    "en": (
        "The capital of France is",
        "Once upon a time, in a small village",
        "Photosynthesis is the process by which",
    ),
    "code": ("def fibonacci(n):\n", "import numpy as np\n\ndef normalize(", "SELECT name, COUNT(*) FROM "),
}
TOKENS = 64
SAMPLES_TEXT = "samples.md"
_FILES = ("tokenizer.json", "tokenizer.model")


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer in a model's folder. UserError when there is none."""
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no {' or '.join(_FILES)}: samples need the model's tokenizer (--base DIR)")


def write_samples(folder: Path, tokens: int = TOKENS) -> None:
    """Load the Hugging Face model in `folder` with transformers, let it go on from each beginning, write both files there."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tokenizer_file(folder)
    tokenizer, decode = load_tokenizer(path), _decoder(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    found: dict[str, list[dict[str, Any]]] = {}
    for language, prompts in PROMPTS.items():
        found[language] = []
        for prompt in prompts:
            ids = tokenizer.encode_batch([prompt])[0].tolist()
            made = model.generate(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=tokens,
                pad_token_id=tokenizer.pad_id,
                eos_token_id=tokenizer.eos_id,
            )[0].tolist()
            ended = made[-1] == tokenizer.eos_id
            # Rows without a token (a base's own padding) can win in a model that has hardly trained.
            text = decode([token for token in made[: len(made) - ended] if token < tokenizer.vocab_size])
            found[language].append({"prompt": prompt, "text": text, "tokens": len(made) - len(ids), "ended": ended})
    write_json(folder / SAMPLES, {"version": 1, "greedy": True, "max_new_tokens": tokens, "samples": found})
    write_bytes(folder / SAMPLES_TEXT, _markdown(found).encode())


def _decoder(path: Path) -> Callable[[Sequence[int]], str]:
    """Ids -> text by the tokenizer's own library."""
    if path.suffix == ".json":
        from tokenizers import Tokenizer

        library = Tokenizer.from_file(str(path))
        return lambda ids: str(library.decode(list(ids), skip_special_tokens=True))
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda ids: str(processor.decode(list(ids)))


def _markdown(found: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["# Samples", "", "Greedy; what the model was given is repeated at the beginning."]
    for language, samples in found.items():
        lines += ["", f"## {language}"]
        for one in samples:
            fence = "````"  # text of a model may hold three
            lines += [
                "",
                f"{fence}text",
                one["text"],
                fence,
                f"{one['tokens']} tokens{', then the end' if one['ended'] else ''}",
            ]
    return "\n".join(lines) + "\n"
