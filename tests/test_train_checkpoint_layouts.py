"""Resume to the bit in the same layout, and every bit carried into others: the real engine on two and four ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from train_checkpoints import (
    engine_state,
    extras,
    same,
    wholes,
)

from training.checkpoint import Checkpoints
from training.config import CheckpointSettings
from training.layout import Layout
from training.reshard import Stored


def resume(rank: int, folder: Path, layout: Layout, bf16: bool, others: Sequence[Layout]) -> dict[str, Any]:
    """Five steps straight, and three + save, load + two in new engines; then the same checkpoint from one of `others` to the
    next: each reads what the one before it wrote again."""
    from training.layout import start_groups, stop_groups

    shape = small_models.architecture()
    run = folder / f"{'bf16' if bf16 else 'fp32'} {layout}"
    found: dict[str, Any] = {}
    start_groups(layout)
    engine, here = small_models.engine(shape, layout, bf16=bf16)
    checkpoints = Checkpoints(run, engine, layout, here, CheckpointSettings())
    straight = small_models.train(engine, here, shape, range(3))
    checkpoints.save(3, extras(3), wait=False)
    done = []
    for step in (3, 4):
        straight += small_models.train(engine, here, shape, range(step, step + 1))
        done.append(checkpoints.poll())
    done.append(checkpoints.wait())
    found["saved once"] = [step for step in done if step] == [3]
    entries = Stored(run / "checkpoints" / "step-3").manifest.files.values()
    values = sum(numel for entry in entries for _, numel in entry.weights.values())
    found["no value twice"] = values == shape.parameters
    other, here = small_models.engine(shape, layout, bf16=bf16, seed=7)
    loaded = Checkpoints(run, other, layout, here, CheckpointSettings()).load()
    found["extras"] = loaded == extras(3)
    found["losses"] = small_models.train(other, here, shape, range(3, 5)) == straight[3:]
    found["state"] = same(engine_state(engine), engine_state(other))
    # Back in the same engine, as a roll-back does, after steps that must leave no trace.
    checkpoints.load()
    found["roll back"] = small_models.train(engine, here, shape, range(3, 5)) == straight[3:]
    found["state after roll back"] = same(engine_state(engine), engine_state(other))
    stop_groups()

    before = wholes(run / "checkpoints" / "step-3")
    found["moments"] = all(bool(tensor.any()) for tensor in before.values())
    found["reshard"], found["reshard losses"] = [], 0.0
    for number, new in enumerate(others):
        start_groups(new)
        third, here = small_models.engine(shape, new, bf16=bf16, seed=8 + number)
        Checkpoints(run, third, new, here, CheckpointSettings()).load()
        run = folder / f"{run.name} {number}"
        written = Checkpoints(run, third, new, here, CheckpointSettings())
        written.save(3, extras(3), wait=True)
        after = wholes(written.root / "step-3")
        found["reshard"].append(before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before))
        losses = small_models.train(third, here, shape, range(3, 5))
        off = max(abs(a[0] - b[0]) for a, b in zip(losses, straight[3:], strict=True))
        found["reshard losses"] = max(off, found["reshard losses"])
        stop_groups()
    found["straight"] = straight
    return found


def alone(rank: int, folder: Path, run: str, straight: list[tuple[float, float]]) -> dict[str, Any]:
    """A checkpoint of two pipeline stages in one process."""
    import torch.distributed as dist

    from training.layout import start_groups, stop_groups

    found: dict[str, Any] = {}
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        dist.init_process_group("gloo", init_method=f"file://{folder}/alone", rank=0, world_size=1)
        shape, layout = small_models.architecture(), Layout()
        start_groups(layout)
        engine, here = small_models.engine(shape, layout, bf16=False, seed=9)
        Checkpoints(folder / run, engine, layout, here, CheckpointSettings()).load()
        losses = small_models.train(engine, here, shape, range(3, 5))
        found["alone"] = max(abs(a[0] - b[0]) for a, b in zip(losses, straight[3:], strict=True))
        stop_groups()
    else:
        dist.init_process_group("gloo", init_method=f"file://{folder}/other", rank=0, world_size=1)
    return found


LAYOUTS = {
    "DP2": Layout(world=2, zero=1),
    "TP2": Layout(world=2, tensor=2, zero=1),
    "TP2+SP": Layout(world=2, tensor=2, sequence=True, zero=1),
    "PP2": Layout(world=2, pipeline=2, zero=1),
    "PP2x2": Layout(world=2, pipeline=2, chunks=2, zero=1),
    "ZeRO-2": Layout(world=2, zero=2),
    "ZeRO-3": Layout(world=2, zero=3),
}
CASES = [("DP2", False), ("DP2", True), ("TP2", False), ("TP2+SP", True), ("PP2", False), ("PP2x2", True)]
CASES += [(name, bf16) for name in ("ZeRO-2", "ZeRO-3") for bf16 in (False, True)]
FOUR = {
    "TP2 DP2 ZeRO-3": Layout(world=4, tensor=2, zero=3),
    "TP2+SP DP2 ZeRO-3": Layout(world=4, tensor=2, sequence=True, zero=3),
    "TP2 DP2 ZeRO-2": Layout(world=4, tensor=2, zero=2),
    "TP2+SP DP2 ZeRO-2": Layout(world=4, tensor=2, sequence=True, zero=2),
}
FOUR_CASES = [
    ("TP2 DP2 ZeRO-3", False),
    ("TP2+SP DP2 ZeRO-3", True),
    ("TP2 DP2 ZeRO-2", True),
    ("TP2+SP DP2 ZeRO-2", False),
]
ONE_PART, STAGES = Layout(world=4, zero=1), Layout(world=4, pipeline=2, zero=1)


def layouts(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, bf16 in CASES:
        found[f"{name} {bf16}"] = resume(rank, folder, LAYOUTS[name], bf16, [Layout(world=2, zero=1)])
    found |= alone(rank, folder, f"fp32 {LAYOUTS['PP2']}", found["PP2 False"]["straight"])
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    return small_models.run_world(layouts, 2, folder, folder)


def four_ranks(rank: int, folder: Path) -> dict[str, Any]:
    """Each case to one tensor part under ZeRO-1, to two pipeline stages, and back to where it came from."""
    return {
        f"{name} {bf16}": resume(rank, folder, FOUR[name], bf16, [ONE_PART, STAGES, FOUR[name]])
        for name, bf16 in FOUR_CASES
    }


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("four")
    return small_models.run_world(four_ranks, 4, folder, folder)


EXACT = ("saved once", "no value twice", "extras", "losses", "state", "roll back", "state after roll back")


@pytest.mark.parametrize(("name", "bf16"), CASES)
def test_resume_is_exact_to_the_bit_in_the_same_layout(world: list[dict[str, Any]], name: str, bf16: bool) -> None:
    for found in world:
        assert not [key for key in EXACT if found[f"{name} {bf16}"][key] is not True]


@pytest.mark.parametrize(("name", "bf16"), CASES)
def test_reshard_carries_every_bit_and_training_goes_on(world: list[dict[str, Any]], name: str, bf16: bool) -> None:
    for found in world:
        case = found[f"{name} {bf16}"]
        assert case["reshard"] == [True] and case["moments"]
        assert case["reshard losses"] < (2e-3 if bf16 else 1e-6)


def test_two_pipeline_stages_go_on_in_one_process(world: list[dict[str, Any]]) -> None:
    assert world[0]["alone"] < 1e-6


@pytest.mark.parametrize(("name", "bf16"), FOUR_CASES)
def test_zero_2_and_3_under_tensor_parallelism_resume_to_the_bit(
    four: list[dict[str, Any]], name: str, bf16: bool
) -> None:
    for found in four:
        assert not [key for key in EXACT if found[f"{name} {bf16}"][key] is not True]


@pytest.mark.parametrize(("name", "bf16"), FOUR_CASES)
def test_zero_2_and_3_under_tensor_parallelism_reshard_there_and_back(
    four: list[dict[str, Any]], name: str, bf16: bool
) -> None:
    """Masters and moments keep every bit in TP1 ZeRO-1, in PP2, and back in the first layout; losses go on."""
    for found in four:
        case = found[f"{name} {bf16}"]
        assert case["reshard"] == [True, True, True] and case["moments"]
        assert case["reshard losses"] < (2e-3 if bf16 else 1e-6)
