"""From a folder to a tokenizer and a model on its device; every way to fail is one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.config import EvalConfig
from eval.models_found import Found
from ziya.errors import UserError
from ziya.exports import TOKENIZER_FILES


def offline() -> None:
    """Keep every library from the hub: files are here, or it is a mistake to be told at once. Before they are imported."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"


def limit_threads(config: EvalConfig, processes: int) -> None:
    """Share the cores among the processes; one process keeps torch's own choice."""
    import torch

    if config.threads is not None or processes > 1:
        torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // processes))


def process_count(config: EvalConfig) -> int:
    """As many as set, else one per GPU."""
    if config.processes is not None:
        return config.processes
    import torch

    return max(1, int(torch.cuda.device_count()))


def tokenizer_folder(found: Found, config: EvalConfig) -> Path:
    """Where the tokenizer lies: the setting, else the model's own folder; UserError when there is none."""
    folder = Path(config.tokenizer or found.folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES[:2]) and not (folder / "vocab.json").is_file():
        raise UserError(
            f"{folder} holds no tokenizer (tokenizer.json or tokenizer.model): copy the base model's files there, "
            "or give tokenizer=FOLDER"
        )
    return folder


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of transformers."""
    from transformers import AutoTokenizer

    with _told(f"the tokenizer of {folder} cannot be loaded"):
        return AutoTokenizer.from_pretrained(folder)


def load_settings(folder: Path) -> tuple[Any, set[int]]:
    """(config of the model, ids that end a text by its generation settings)."""
    from transformers import AutoConfig, GenerationConfig

    with _told(f"{folder / 'config.json'} cannot be used"):
        config = AutoConfig.from_pretrained(folder)
    ends: Any = config.eos_token_id
    if (folder / "generation_config.json").is_file():
        with _told(f"{folder / 'generation_config.json'} cannot be used"):
            ends = GenerationConfig.from_pretrained(folder).eos_token_id
    return config, set(ends) if isinstance(ends, list) else {ends} - {None}


def dtype_name(config: EvalConfig, folder: Path) -> str:
    """float32, bfloat16 or float16: what the weights will compute in."""
    if config.dtype != "auto":
        return config.dtype
    import torch

    if not torch.cuda.is_available():
        return "float32"
    settings, _ = load_settings(folder)
    return str(getattr(settings, "dtype", None) or "float32").removeprefix("torch.")


def load_forward(found: Found, config: EvalConfig, dtype: str, place: int = 0) -> Any:
    """The model, ready to run on GPU number `place`, or on the CPU where there is none."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from eval.forward import Forward

    logging.disable_progress_bar()
    device = f"cuda:{place % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    with _told(f"the model in {found.folder} cannot be loaded"):
        model = AutoModelForCausalLM.from_pretrained(found.folder, dtype=getattr(torch, dtype))
    broken = [name for name, tensor in model.named_parameters() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(
            f"{found.folder}: {len(broken)} weights hold NaN or infinity (first: {broken[0]}): this model is broken"
        )
    try:
        model = model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{found.folder} in {dtype} does not fit into the memory of {device}: free it, or try dtype=bfloat16"
        ) from error
    return Forward(model, config.batch_tokens, share=config.share_prefixes)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())[:300]}") from error


__all__ = [
    "dtype_name",
    "limit_threads",
    "load_forward",
    "load_settings",
    "load_tokenizer",
    "offline",
    "process_count",
    "tokenizer_folder",
]
