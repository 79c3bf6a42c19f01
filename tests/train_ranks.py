"""Gloo ranks for tests: forked for each job from one server that has imported the heavy packages once for the session."""

from __future__ import annotations

import pickle
import queue
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small_models
import torch
import torch.distributed as dist

Job = Callable[..., Any]
TIMEOUT_S = 600.0


def _serve(rank: int, world: int, port: int, outbox: Any, job: Job, arguments: tuple[Any, ...]) -> None:
    try:
        small_models.join(rank, world, port)
        outbox.put((rank, pickle.dumps(job(rank, *arguments)), None))  # by value: this process ends
        dist.destroy_process_group()
    except BaseException:
        outbox.put((rank, None, traceback.format_exc()))


def run_ranks(world: int, job: Job, *arguments: Any) -> list[Any]:
    """What job(rank, *arguments) gives on each of `world` ranks. Processes are new, so no group or thread outlives its job."""
    context = small_models.context()
    outbox, port = context.Queue(), small_models.free_port()
    processes = [
        context.Process(target=_serve, args=(rank, world, port, outbox, job, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while len(results) < world:
            try:
                rank, result, error = outbox.get(timeout=5)
            except queue.Empty:
                ended = [process.exitcode for process in processes]
                assert not any(ended) and time.monotonic() < deadline, f"ranks gave no result; exit codes {ended}"
                continue
            assert error is None, f"rank {rank}:\n{error}"
            results[rank] = pickle.loads(result)
        for process in processes:
            process.join(timeout=20)
    finally:
        for process in processes:
            process.kill()
    return [results[rank] for rank in range(world)]


def tiny(seed: int = 0, *, tied: bool = False, layers: int = 4) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """(transformers' model, our architecture, its weights): hidden 64, 4 heads in 2 groups, 512 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from training.architecture import parse_architecture

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    raw = config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return model, parse_architecture(raw, Path("config.json")), weights
