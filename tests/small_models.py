"""Tiny models, batches and worlds of processes for tests of training. Heavy packages are imported where they are used."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.architecture import Architecture
from training.hf_files import expected
from training.layout import Layout
from training.rows import Packed, positions_of

ROW = 16


def architecture(**changes: Any) -> Architecture:
    values: dict[str, Any] = dict(
        family="qwen2",
        hidden=32,
        ffn=48,
        layers=4,
        heads=4,
        groups=2,
        head_dim=8,
        vocab_size=64,
        vocab_used=61,
        positions=64,
        qkv_bias=True,
    )
    return Architecture(**{**values, **changes})


def whole_weights(shape: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, size in expected(shape).items():
        weights[name] = torch.randn(size, generator=generator) * 0.1 + (1.0 if "norm" in name else 0.0)
    return weights


def batch(step: int, shape: Architecture, rows: int = 4) -> list[Packed]:
    """The rows of global batch `step`, one micro-batch each; borders and masks differ between rows."""
    generator = torch.Generator().manual_seed(100 + step)
    made = []
    for number in range(rows):
        tokens = torch.randint(0, shape.vocab_used, (ROW + 1,), generator=generator)
        cut = 1 + int(torch.randint(0, ROW - 1, (), generator=generator))
        borders = torch.tensor([0, cut, ROW] if number % 2 else [0, ROW], dtype=torch.int32)
        weights = (torch.rand(ROW, generator=generator) > 0.2).float()
        longest = int((borders[1:] - borders[:-1]).max())
        made.append(
            Packed(tokens[:-1], tokens[1:], weights, positions_of(borders, ROW, restart=True), borders, longest)
        )
    return made


def engine(shape: Architecture, layout: Layout, *, bf16: bool, seed: int = 0) -> tuple[Any, Any]:
    """(Engine, Place) of this process, weights filled; groups of `layout` must have been started."""
    from training import weights
    from training.config import OptimizerSettings
    from training.engine import Engine
    from training.layout import place
    from training.model import Numerics, build

    here = place(layout)
    chunks = build(shape, layout, Numerics(bf16=bf16, kernel="plain", loss_chunk=8))
    whole = whole_weights(shape, seed)
    weights.fill(chunks, whole.__getitem__, shape, here.tensor, layout.tensor)  # type: ignore[arg-type]
    return Engine(chunks, layout, OptimizerSettings()), here


def train(made: Any, here: Any, shape: Architecture, steps: range, judge: Any = None) -> list[tuple[float, float]]:
    """(loss, norm) of each step."""
    found = []
    for step in steps:
        rows = batch(step, shape)
        targets = float(sum(row.weights.sum() for row in rows))
        result = made.step(rows[here.data :: here.layout.data], targets, 1e-3, judge)
        found.append((result.loss, result.norm))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def context() -> Any:
    """How processes of a test world start: forked from one server per session that has imported the heavy packages (6 s),
    so that each process costs a fork. Nothing there has computed yet, so no thread is lost by forking."""
    os.environ["DS_ACCELERATOR"] = "cpu"  # read at DeepSpeed's import
    found = torch.multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["deepspeed", "transformers.models.llama.modeling_llama", "training.checks"])
    return found


def join(rank: int, world: int, port: int) -> None:
    """Make this process rank `rank` of a gloo world on this machine."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    from training import device
    from training.layout import start_distributed

    device.prepare()
    start_distributed("gloo")


def run_world(work: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """`work(rank, *arguments)` in `world` spawned processes joined by gloo; what each returned, by rank."""
    port = free_port()
    start = context()
    processes = [
        start.Process(target=_process, args=(work, rank, world, port, folder, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 300
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes) or time.monotonic() > deadline:
            for process in processes:  # the others wait for the one that failed
                process.kill()
        processes[0].join(0.2)
    found = []
    for rank in range(world):
        path = folder / f"result-{rank}.pt"
        if not path.is_file():
            errors = "\n".join(one.read_text() for one in sorted(folder.glob("error-*.txt")))
            raise AssertionError(f"rank {rank} gave no result:\n{errors}")
        found.append(torch.load(path, weights_only=False))
    return found


def _process(
    work: Callable[..., Any], rank: int, world: int, port: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    try:
        join(rank, world, port)
        torch.save(work(rank, *arguments), folder / f"result-{rank}.pt")
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(f"rank {rank}: {traceback.format_exc()}")
        os._exit(1)
