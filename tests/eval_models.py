"""Tiny Hugging Face folders and the harness's own model over them, for tests of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_tokenizers import CHINESE, ENGLISH, tokenizer_json

SHARED = Path(__file__).parents[1].parent / "shared"
BENCHMARKS = SHARED / "data" / "benchmarks"
LLAMA2 = SHARED / "data" / "tokenizer" / "llama2"


def write_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of 700 tokens with BOS, EOS and padding."""
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_json(folder / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>",
        pad_token="<|finetune_right_pad_id|>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def write_model(folder: Path, *, seed: int = 0, kind: str = "llama", tokenizer: Path | None = None, **changes: Any) -> Path:
    """A random model of 2 layers whose answers vary (large initial weights), in FP32, with a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if tokenizer is None:
        tokenizer = write_tokenizer(folder)
    names = AutoTokenizer.from_pretrained(tokenizer)
    names.save_pretrained(folder)
    values: dict[str, Any] = dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(names), max_position_embeddings=1024, initializer_range=0.2,
        bos_token_id=names.bos_token_id, eos_token_id=names.eos_token_id,
    )  # fmt: skip
    dtype = changes.pop("dtype", torch.float32)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(values | changes))
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


def write_about(folder: Path, step: int, stage: int = 1, tokens: int = 0) -> None:
    """The `ziya.json` of an export."""
    from ziya.exports import ExportFile, write_export

    write_export(
        folder, ExportFile(step=step, stage=stage, tokens=tokens, averaged_steps=[step], dtype="fp32", architecture={})
    )


def request(kind: str, *arguments: Any, task: str = "task", number: int = 0) -> Any:
    """A request as the harness makes it."""
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, tuple(arguments), 0, (task, number, 1))


def letter_requests(questions: int, letters: tuple[str, ...] = (" A", " B", " C", " D"), task: str = "task") -> list[Any]:
    """Questions of both languages and different lengths behind one few-shot prefix, four letters each."""
    words, characters = ENGLISH.split(), CHINESE
    shots = "".join(
        f"Question: {' '.join(words[i : i + 9])}\n题目：{characters[i : i + 14]}\nAnswer: {'ABCD'[i % 4]}\n\n" for i in range(5)
    )
    found = []
    for number in range(questions):
        context = f"{shots}Question: {' '.join(words[number : number + 2 + number % 7])}\n{characters[: 5 * number]}\nAnswer:"
        found += [request("loglikelihood", context, letter, task=task, number=number) for letter in letters]
    return found


def harness_model(folder: Path, **options: Any) -> Any:
    """The harness's own model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(**{"pretrained": str(folder), "device": "cpu", "dtype": "float32", "batch_size": 4, **options})


def prefix_model(folder: Path, *, share: bool = True, batch_tokens: int = 2048, dtype: Any = None, **options: Any) -> Any:
    """Ours over the same folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from eval.forward import Forward
    from eval.model import PrefixLM

    def load() -> Forward:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32).eval()
        return Forward(model, batch_tokens, share=share)

    return PrefixLM(AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder), load, **options)


SUBJECTS = {"mmlu": ("abstract_algebra", "college_computer_science"), "cmmlu": ("agronomy",)}


def write_benchmarks(folder: Path, items: int = 6) -> Path:
    """Small sets of our own in the official formats: two subjects of MMLU, one of CMMLU, GSM8K."""
    import json
    import random

    draw = random.Random(3)
    words = ENGLISH.replace("\n", " ").split()

    def row(number: int, chinese: bool) -> list[str]:
        if chinese:
            start = draw.randrange(len(CHINESE) - 30)
            text = CHINESE[start : start + 8 + number].replace("\n", "") + "？"
            options = [CHINESE[start + k : start + k + 3].replace("\n", "") or "河" for k in range(4)]
        else:
            text = " ".join(draw.sample(words, 5 + number)) + "?"
            options = draw.sample(words, 4)
        return [text, *(f"{option} {number}{k}" for k, option in enumerate(options)), "ABCD"[draw.randrange(4)]]

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    for task, subjects in SUBJECTS.items():
        for subject in subjects:
            for split, count in (("dev", 5), ("test", items)):
                chinese = task == "cmmlu"
                rows = [row(number, chinese) for number in range(count)]
                lines = [",".join(map(cell, cells)) for cells in rows]
                if chinese:
                    lines = [",Question,A,B,C,D,Answer", *(f"{n},{line}" for n, line in enumerate(lines))]
                name = f"{subject}.csv" if chinese else f"{subject}_{split}.csv"
                path = folder / task / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "gsm8k").mkdir()
    problems = [
        {"question": f"{' '.join(draw.sample(words, 6))} {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(items)
    ]
    for split in ("train", "test"):
        text = "".join(json.dumps(problem) + "\n" for problem in problems * 2)
        (folder / "gsm8k" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_world(root: Path) -> tuple[Path, Path]:
    """(folder of the models `first` and `second`, folder of benchmarks)."""
    for seed, name in enumerate(("first", "second")):
        write_model(root / "models" / name, seed=seed, max_position_embeddings=2048)
    return root / "models", write_benchmarks(root / "data")


def config(model: Path, data: Path, out: Path, **changes: Any) -> Any:
    """Settings of a small evaluation."""
    from eval.config import EvalConfig

    values: dict[str, Any] = dict(
        model=str(model), data=str(data), output=str(out), tasks=["mmlu", "cmmlu"], allow_missing=True, processes=1, threads=1,
    )  # fmt: skip
    return EvalConfig(**(values | changes))


def scores(out: Path) -> dict[tuple[str, str, str, int], tuple[Any, ...]]:
    """(model, task, subject, item) -> (score, log-probabilities or texts) of every sample line."""
    import json

    found = {}
    for path in sorted((out / "samples").rglob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            key = (path.parent.name, line["task"], line["subject"], line["doc_id"])
            assert key not in found
            found[key] = (line["correct"], json.dumps(line["resps"]), line["sample_hash"])
    return found
