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
from ziya.files import read_json
from ziya.progress import log


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
    """Where the tokenizer lies: the model's own folder, else the setting's; UserError when neither holds one."""
    folder = Path(found.folder)
    if holds_tokenizer(folder):
        return folder
    if config.tokenizer is None:
        raise UserError(
            f"{folder} holds no tokenizer (tokenizer.json or tokenizer.model): copy the base model's files there, "
            "or give tokenizer=FOLDER"
        )
    if not holds_tokenizer(Path(config.tokenizer)):
        raise UserError(
            f"neither {folder} nor tokenizer={config.tokenizer} holds a tokenizer (tokenizer.json or tokenizer.model): give a "
            "folder that does"
        )
    return Path(config.tokenizer)


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any((folder / name).is_file() for name in (*TOKENIZER_FILES[:2], "vocab.json"))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of transformers."""
    from transformers import AutoTokenizer

    with _told(f"the tokenizer of {folder} cannot be loaded"):
        found = AutoTokenizer.from_pretrained(folder)
    if found.bos_token_id is None and found.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {folder} has neither a beginning-of-text nor an end-of-text token, and one must stand before a text: "
            "name them in its tokenizer_config.json"
        )
    return found


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


# Settings of generation_config.json that change greedy texts, with the values that change nothing.
PENALTIES = {
    "repetition_penalty": (None, 1), "no_repeat_ngram_size": (None, 0), "min_length": (None, 0), "min_new_tokens": (None, 0),
    "bad_words_ids": (None, []), "suppress_tokens": (None, []), "begin_suppress_tokens": (None, []), "sequence_bias": (None, {}, []),
    "forced_bos_token_id": (None,), "forced_eos_token_id": (None,), "exponential_decay_length_penalty": (None,),
}  # fmt: skip


def notices(
    folder: Path, tokenizer_folder: Path, tokenizer: Any, max_length: int | None = None, own_length: int | None = None
) -> list[str]:
    """One line for each thing in which a model is asked otherwise than its makers may have meant."""
    found = []
    if max_length is not None and own_length is not None and max_length > own_length:
        found.append(f"max_length={max_length} is more than the {own_length} tokens that the model was made for")
    config = tokenizer_folder / "tokenizer_config.json"
    decided = (tokenizer_folder / "tokenizer.json").is_file() or (config.is_file() and "add_bos_token" in read_json(config))
    bos = tokenizer.bos_token_id
    if not decided and bos is not None and bos not in tokenizer.encode("A")[:1]:
        found.append(
            f"{tokenizer_folder} holds tokenizer.model alone, so prompts begin without the BOS token that LLaMA models are trained "
            "with: copy the base model's tokenizer.json and tokenizer_config.json there"
        )
    path = folder / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    ignored = [f"{name} = {settings[name]}" for name, plain in PENALTIES.items() if settings.get(name) not in plain]
    if ignored:
        found.append(f"{path}: {', '.join(ignored)} not applied: answers are the plain greedy ones, as in the harness")
    return found


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
    with _told(f"the model in {found.folder} cannot be loaded"), _without_tables():
        # Sizes that differ are collected with the rest instead of raised: the error tells of a table that only a log shows.
        model, told = AutoModelForCausalLM.from_pretrained(
            found.folder, dtype=getattr(torch, dtype), output_loading_info=True, ignore_mismatched_sizes=True
        )
    _check_whole(found.folder, told)
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


def _check_whole(folder: str, told: dict[str, Any]) -> None:
    """Refuse weights that lack a part of the model: transformers fills it with random numbers. Tied parts do not count as lacking."""
    missing, unused = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    sizes = sorted((name, list(here), list(wanted)) for name, here, wanted in told["mismatched_keys"])
    if missing:
        raise UserError(
            f"{folder}: its weights lack {len(missing)} tensors that its config.json asks for ({_some(missing)}): copy the whole "
            "model, or the config.json that belongs to these weights"
        )
    if sizes:
        wrong = _some([f"{name} is {here}, not {wanted}" for name, here, wanted in sizes])
        raise UserError(
            f"{folder}: {len(sizes)} tensors have other shapes than its config.json asks for ({wrong}): copy the config.json that "
            "belongs to these weights"
        )
    if unused:
        log(f"{folder}: {len(unused)} tensors of its weights are not part of its model and are left out ({_some(unused)})")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextlib.contextmanager
def _without_tables() -> Iterator[None]:
    """Without the table that transformers logs of a model's tensors: `_check_whole` says it in a line."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())[:300]}") from error


__all__ = [
    "dtype_name",
    "holds_tokenizer",
    "limit_threads",
    "load_forward",
    "load_settings",
    "load_tokenizer",
    "notices",
    "offline",
    "process_count",
    "tokenizer_folder",
]
