"""What tests of checkpoints share: an engine without megatron-core and DeepSpeed, and the state of a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import small_models
import torch

from training import reshard
from training.architecture import Architecture
from training.checkpoint import Checkpoints
from training.config import CheckpointSettings
from training.layout import Layout, Place
from training.reshard import KINDS, Stored, native_names
from training.state import RunState
from training.weights import whole_to_native


def extras(step: int, stage: int = 1, tokens: int | None = None) -> dict[str, Any]:
    state = RunState(stage=stage, step=step, tokens=step * 100 if tokens is None else tokens)
    return {"state": state.to_json(), "config": {"model": {"base": ""}}, "note": "中文"}


class Chunk:
    def __init__(self, shape: Architecture, seed: int = 0) -> None:
        whole = small_models.whole_weights(shape, seed)
        self.shape = shape
        self.weights = {
            name: torch.nn.Parameter(whole_to_native(name, whole.__getitem__, shape, 0, 1).clone())
            for name in native_names(shape)
        }

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.weights.items())


class PlainEngine:
    """What checkpoints need of an engine, without megatron-core and DeepSpeed (ZeRO-0)."""

    def __init__(self, shape: Architecture, seed: int = 0, bf16: bool = False) -> None:
        self.chunks, self.bf16 = [Chunk(shape, seed)], bf16
        self.adam = torch.optim.AdamW([{"params": list(self.chunks[0].weights.values()), "kind": "matrix"}], lr=1e-2)
        self.optimizer, self.layout = self.adam, Layout(zero=0)

    def refresh(self) -> None:
        """Masters are the weights."""

    def step(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _, weight in self.chunks[0].named_parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        self.adam.step()

    def state(self) -> list[torch.Tensor]:
        return [t.clone() for fragment in reshard.owned(self) for t in fragment.tensors.values()]  # type: ignore[arg-type]


def opened(run: Path, engine: PlainEngine, **settings: Any) -> Checkpoints:
    layout = Layout(zero=0)
    return Checkpoints(run, engine, layout, Place(0, 0, 0, layout), CheckpointSettings(**settings))  # type: ignore[arg-type]


def small() -> Architecture:
    return small_models.architecture(layers=1, hidden=16, ffn=8, heads=2, groups=1)


def saved(run: Path, steps: int = 2, **settings: Any) -> tuple[PlainEngine, Checkpoints]:
    engine = PlainEngine(small())
    checkpoints = opened(run, engine, **settings)
    for step in range(1, steps + 1):
        engine.step(step)
        checkpoints.save(step, extras(step), wait=True)
    return engine, checkpoints


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def check_whole(run: Path, engine_of: dict[int, list[torch.Tensor]], least: int) -> int:
    """The checkpoint that a new start finds is whole and one of those saved."""
    engine = PlainEngine(small(), seed=5)
    checkpoints = opened(run, engine)
    note = checkpoints.load()["note"]
    assert all(torch.equal(a, b) for a, b in zip(engine.state(), engine_of[note], strict=True))
    assert note >= least
    assert not [name for name in names(run) if not name.removeprefix("step-").isdigit()]
    return int(note)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def wholes(folder: Path) -> dict[str, torch.Tensor]:
    stored = Stored(folder)
    stored.verify()
    return {
        f"{k} {n}": t for name in native_names(stored.shape) for k in KINDS for n, t in stored.whole(name, k).items()
    }


def engine_weights(engine: Any) -> list[torch.Tensor]:
    found = []
    for chunk in engine.chunks:
        for weight in chunk.parameters():
            with engine.gathered(weight):
                found.append(weight.detach().clone())
    return found


def engine_state(engine: Any) -> list[torch.Tensor]:
    high = [t.clone() for fragment in reshard.owned(engine) for t in fragment.tensors.values()]
    return [*engine_weights(engine), *high, torch.tensor(list(reshard.adam_steps(engine).values()))]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
