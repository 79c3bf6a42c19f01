"""Gloo ranks that live for a whole test module: forked from one server that has imported torch, megatron-core, DeepSpeed and
transformers, so a session pays the imports once; each job gets its own process groups."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import small_models
import torch
import torch.distributed as dist

Job = Callable[..., Any]


def _serve(rank: int, world: int, port: int, inbox: Any, outbox: Any) -> None:
    small_models.join(rank, world, port)
    while (work := inbox.get()) is not None:
        job, arguments = work
        try:
            outbox.put((rank, job(rank, *arguments), None))
        except BaseException:
            outbox.put((rank, None, traceback.format_exc()))
            break
    dist.destroy_process_group()


class Ranks:
    """`world` processes; `run(job, *arguments)` calls job(rank, *arguments) on each and gives the results by rank."""

    def __init__(self, world: int) -> None:
        context = small_models.context()
        self.world, self.outbox = world, context.Queue()
        self.inboxes = [context.Queue() for _ in range(world)]
        port = small_models.free_port()
        self.processes = [
            context.Process(target=_serve, args=(rank, world, port, self.inboxes[rank], self.outbox), daemon=True)
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def run(self, job: Job, *arguments: Any) -> list[Any]:
        for inbox in self.inboxes:
            inbox.put((job, arguments))
        results: list[Any] = [None] * self.world
        for _ in range(self.world):
            rank, result, error = self.outbox.get(timeout=300)
            assert error is None, f"rank {rank}:\n{error}"
            results[rank] = result
        return results

    def close(self) -> None:
        for inbox in self.inboxes:
            inbox.put(None)
        for process in self.processes:
            process.join(timeout=20)
            process.kill()


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
