"""Every setting of an evaluation. `fixed` ones belong to an output folder: its scores are comparable because all of them were
made with the same ones. `free` ones may change from call to call.
"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from ziya.config import Settings
from ziya.config import deciding as free
from ziya.config import measuring as fixed

TASKS = ("ceval", "cmmlu", "mmlu", "gsm8k", "math", "humaneval")


class EvalConfig(Settings):
    """What is asked of which models, and how."""

    model: str | None = free(
        None, "Hugging Face folder, hub id or ziya run; MODEL_OR_RUN of the command line replaces it"
    )
    base: str | None = free(None, "Hugging Face folder that the others are compared with")
    tasks: list[str] = free(list(TASKS), "benchmarks, in the order in which they run")
    data: str = free("benchmarks", "folder with a folder of official files for each benchmark")
    output: str = free("eval_out", "folder for results, samples and stored answers")
    protocol: Literal["ziya2", "lm-eval"] = fixed(
        "ziya2",
        "ziya2: OpenCompass's prompts and shots, macro averages; lm-eval: the harness's stock prompts, micro averages",
    )
    limit: int | None = fixed(None, "ask only the first so many items of every subject (for trials)", ge=1)
    shots: int | None = fixed(
        None, "worked examples in a prompt (null: the protocol's number for each benchmark)", ge=0
    )
    split: str | None = fixed(None, "split that is scored (null: the protocol's for each benchmark)")
    allow_missing: bool = fixed(False, "evaluate the subjects that are there when files of others are missing")
    prompt_variants: int = free(
        1, "wordings of each prompt that are tried (fewer where a benchmark has fewer); the spread is printed", ge=1
    )
    unsafe_code: bool = free(False, "run HumanEval's generated programs where no sandbox works; such scores are marked UNSAFE")
    allow_hub: bool = free(False, "fetch from the hub: a model that is no folder here, sets that are missing in data")
    ppl: list[str] = free([], "JSONL files (text, domain) of held-out documents whose bits per byte are measured")
    tokenizer: str | None = fixed(None, "folder of the tokenizer, for models whose own folder has none")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = fixed(
        "auto", "of the weights while they compute; auto: the folder's own on GPUs, float32 on CPUs"
    )
    max_length: int | None = fixed(None, "context length in tokens (null: the model's)", ge=8)
    batch_tokens: int = free(
        16384, "tokens of a batch, generated ones included; more is faster and takes more memory", ge=1
    )
    share_prefixes: bool = free(True, "run a few-shot prefix once for all questions behind it")
    processes: int | None = free(None, "processes, each with the whole model (null: one per GPU, 1 without GPUs)", ge=1)
    threads: int | None = free(None, "CPU threads of a process (null: cores / processes)", ge=1)
    every: int = free(1, "of a run's exports, evaluate each n-th and the last (with wait_s: the last at the end of the wait)", ge=1)
    wait_s: float = free(0.0, "seconds to wait for a run's next export, from the last one on; also for its first", ge=0)
    seed: int = free(1234, "of the bootstrap")

    @field_validator("tasks", "ppl", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """`ceval,cmmlu` is a list too."""
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
