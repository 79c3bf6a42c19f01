"""A tiny base model, a pack and the `ziya-train` command, for tests that start real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from training.metrics import TIMED
from ziya.packs import pack_writer

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "train" / "debug_cpu.yaml"
LENGTH = 32


def write_base(folder: Path, **changes: Any) -> Path:
    """A LLaMA of hidden 32 and 2 layers in Hugging Face's form."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    values: dict[str, Any] = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=64, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(values | changes))).save_pretrained(folder)
    return folder


def write_pack(prefix: Path, rows: int = 64, largest: int = 60, seed: int = 0, length: int = LENGTH) -> Path:
    """Rows of three texts each, as a plain Megatron dataset (no manifest)."""
    rng = np.random.default_rng(seed)
    with pack_writer(prefix, length, np.uint16) as writer:
        for _ in range(rows):
            sizes = rng.multinomial(length - 3, [1 / 3] * 3) + 1
            tokens = rng.integers(3, largest + 1, length).astype(np.uint16)
            tokens[0], tokens[np.cumsum(sizes) - 1] = largest, 2
            writer.add(tokens, sizes, np.array([3]))
    return prefix


def write_parts(folder: Path) -> Path:
    """A folder with what every run needs: the model `base` and the pack `text`."""
    write_base(folder / "base")
    write_pack(folder / "text")
    return folder


def arguments(folder: Path, run: Path, *more: str, stage: int = 1) -> list[str]:
    """Arguments of `ziya-train` for the base and the pack in `folder`."""
    return [
        "--stage", str(stage), "--config", str(CONFIG), f"run={run}", f"model.base={folder / 'base'}",
        f"data.sources.0.packs=[{folder / 'text'}]", *more,
    ]  # fmt: skip


def start(given: list[str]) -> subprocess.Popen[str]:
    """`ziya-train` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "training", *given]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
    """(exit code, what it said on stderr)."""
    _, said = process.communicate(timeout=timeout)
    return process.returncode, said


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run."""
    path = run / "metrics.jsonl"
    found = [json.loads(text) for text in path.read_bytes().splitlines()] if path.is_file() else []
    return [{key: value for key, value in line.items() if key not in TIMED} for line in found]


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str], timeout: float = 240) -> None:
    """Until metrics.jsonl has so many lines."""
    deadline = time.monotonic() + timeout
    path = run / "metrics.jsonl"
    while not path.is_file() or path.read_bytes().count(b"\n") < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(run: Path) -> list[str]:
    """Commands of running processes that belong to a run."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        text = " ".join(process.info["cmdline"] or [])
        if str(run / "launch") in text and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(text)
    return found


@contextmanager
def trainer(folder: Path, run: Path, *overrides: str, stage: int = 1, world: int = 1) -> Iterator[Any]:
    """A Trainer of the debug run; `said` holds what it logs on any rank."""
    from training.config import load_config
    from training.layout import Layout, start_groups, stop_groups
    from training.trainer import Trainer

    layout = Layout(world=world)
    start_groups(layout)
    given = [f"run={run}", f"model.base={folder / 'base'}", f"data.sources.0.packs=[{folder / 'text'}]", *overrides]
    made = Trainer(load_config(CONFIG, given), stage, layout, SimpleNamespace(asked=False, launch=None))  # type: ignore[arg-type]
    made.said = []
    made.log = made.said.append  # type: ignore[method-assign]
    yield made
    made.engine.deepspeed.destroy()
    stop_groups()
