"""Kills, full disks and lost ranks at every moment of a save and a load: what stands is whole, and all ranks end."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from train_checkpoints import (
    PlainEngine,
    check_whole,
    cut_short,
    engine_state,
    engine_weights,
    extras,
    names,
    opened,
    same,
    small,
)

from training import reshard
from training.checkpoint import Checkpoints, SaveError
from training.config import CheckpointSettings
from training.layout import Layout, Place
from ziya.errors import UserError


class Operations:
    """Counts what changes the disk; does `act` in place of number `at`."""

    def __init__(self, at: int, act: Callable[[str], None]) -> None:
        self.at, self.act, self.count = at, act, 0

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.act(name)
            return function(*arguments, **options)

        return wrapped

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for owner, name in (
            (Path, "rename"),
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (Path, "open"),
            (os, "replace"),
            (os, "fsync"),
            (os, "unlink"),
            (os, "rmdir"),
        ):
            monkeypatch.setattr(owner, name, self.wrap(name, getattr(owner, name)))


@pytest.mark.parametrize("again", [False, True])
def test_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """Killed before every single change of the disk, saving a new step, or the same step again; keep=1 prunes too."""
    template = tmp_path / "template"
    engine = PlainEngine(small())
    opened(template, engine).save(1, {**extras(1), "note": 1}, wait=True)
    states = {1: engine.state()}
    engine.step(1)
    states[2] = engine.state()
    seen, at = set(), 0
    while True:
        at += 1
        run = tmp_path / f"run-{at}"
        shutil.copytree(template, run)
        child = os.fork()
        if child == 0:
            checkpoints = opened(run, engine, keep=1)
            Operations(at, lambda name: os.kill(os.getpid(), signal.SIGKILL)).install(monkeypatch)
            step = 1 if again else 2
            checkpoints.save(step, {**extras(step), "note": 2}, wait=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = check_whole(run, states, 1)
        seen.add(found)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0 and found == 2
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert at > 10 and seen == {1, 2}


@pytest.mark.parametrize("again", [False, True])
def test_a_fault_at_any_moment_leaves_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """A full disk at each change of the disk: one clear line, no rest of it, and the next save works."""
    template = tmp_path / "template"
    engine = PlainEngine(small())
    opened(template, engine).save(1, {**extras(1), "note": 1}, wait=True)
    states = {1: engine.state()}
    engine.step(1)
    states[2] = engine.state()
    refused = at = 0
    while True:
        at += 1
        run = tmp_path / f"run-{at}"
        shutil.copytree(template, run)
        checkpoints = opened(run, engine, keep=1)

        def full(name: str) -> None:
            raise OSError(28, "No space left on device")

        operations = Operations(at, full)
        step = 1 if again else 2
        with monkeypatch.context() as patched:
            operations.install(patched)
            try:
                checkpoints.save(step, {**extras(step), "note": 2}, wait=True)
            except SaveError as error:
                refused += 1
                assert "no space left on the disk" in str(error) and "step-1" in str(error)
                assert not list(run.glob("checkpoints/*.tmp"))
        check_whole(run, states, 1)
        checkpoints.save(3, {**extras(3), "note": 2}, wait=True)
        assert check_whole(run, states, 2)
        if operations.count < at:
            break
    assert refused > 8


def save_as_one_of_two(rank: int, run: Path, engine: PlainEngine, victim: int, at: int, kill: bool) -> None:
    """Save step 2 in a world of two, in which `victim` ends before its collective number `at`; ends this process: 0 saved, 3 an
    error, 4 the other one's end went unnoticed."""
    import torch.distributed as dist

    signal.signal(signal.SIGALRM, lambda *_: os._exit(4))
    signal.alarm(50)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{run}/meet", rank=rank, world_size=2)
    layout = Layout(world=2, zero=0)
    settings = CheckpointSettings(keep=1)
    checkpoints = Checkpoints(run, engine, layout, Place(0, 0, rank, layout), settings)  # type: ignore[arg-type]
    gather, count = dist.all_gather_object, 0

    def counted(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if rank == victim and count == at:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("a collective that timed out")
        gather(*arguments, **options)

    dist.all_gather_object = counted
    try:
        checkpoints.save(2, {**extras(2), "note": 2}, wait=True)
    except BaseException:
        os._exit(3)
    os._exit(0)


@pytest.mark.parametrize("kill", [True, False])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_lost_before_any_collective_leaves_a_whole_one(tmp_path: Path, victim: int, kill: bool) -> None:
    """Rank 0, which commits, or rank 1 is killed, or its collective fails: the other one ends too, and what stands is whole."""
    engine = PlainEngine(small())
    template = tmp_path / "template"
    opened(template, engine).save(1, {**extras(1), "note": 1}, wait=True)
    states = {1: engine.state()}
    engine.step(1)
    states[2] = engine.state()
    seen, at, codes = [], 0, [1, 1]
    while codes != [0, 0]:
        at += 1
        run = tmp_path / f"run-{at}"
        shutil.copytree(template, run)
        children = []
        for rank in range(2):
            child = os.fork()
            if child == 0:
                save_as_one_of_two(rank, run, engine, victim, at, kill)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if codes != [0, 0]:
            assert codes[victim] == (-signal.SIGKILL if kill else 3) and codes[1 - victim] in (0, 3)
        seen.append(check_whole(run, states, 1))
    assert at > 3 and seen[0] == 1 and seen[-1] == 2 and seen == sorted(seen)


def faults(rank: int, folder: Path) -> dict[str, Any]:
    """One rank fails to write, or meets another model; a first step that is skipped."""
    from training.layout import start_groups, stop_groups

    shape, layout = small_models.architecture(), Layout(world=2, tensor=2, zero=1)
    found: dict[str, Any] = {}
    start_groups(layout)
    for bf16 in (False, True):
        kind = "bf16" if bf16 else "fp32"
        engine, here = small_models.engine(shape, layout, bf16=bf16)
        run = folder / f"faults {kind}"
        checkpoints = Checkpoints(run, engine, layout, here, CheckpointSettings())
        before = engine_weights(engine)
        small_models.train(engine, here, shape, range(1), judge=lambda loss, norm: "refused")
        found[f"skip {kind}"] = same(before, engine_weights(engine))
        checkpoints.save(1, extras(1), wait=True)
        other, here = small_models.engine(shape, layout, bf16=bf16, seed=7)
        Checkpoints(run, other, layout, here, CheckpointSettings()).load()
        a, b = (small_models.train(one, here, shape, range(3)) for one in (engine, other))
        found[f"after skip {kind}"] = a == b and same(engine_state(engine), engine_state(other))
    write = reshard.write_fragments

    def full(path: Path, fragments: Any) -> Any:
        if rank == 1:
            path.write_bytes(b"part")
            raise OSError(28, "No space left on device")
        return write(path, fragments)

    reshard.write_fragments = full  # type: ignore[assignment]
    checkpoints.save(2, extras(2), wait=False)
    try:
        checkpoints.wait()
    except SaveError as error:
        found["full"] = str(error)
    reshard.write_fragments = write
    found["left"] = names(run)
    torch.distributed.barrier()  # rank 0 makes the next folder at once
    checkpoints.save(2, extras(2), wait=True)
    found["after"] = names(run)
    if rank == 1:  # damage in the share of files that one rank verifies
        cut_short(run / "checkpoints" / "step-2" / "rank-0001.safetensors")
    torch.distributed.barrier()
    try:
        checkpoints.load()
    except UserError as error:
        found["damaged"] = str(error)
    stop_groups()
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    return small_models.run_world(faults, 2, folder, folder)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_skipped_first_step_is_no_step(world: list[dict[str, Any]], kind: str) -> None:
    assert all(found[f"skip {kind}"] and found[f"after skip {kind}"] for found in world)


def test_one_ranks_full_disk_is_told_by_all_and_leaves_nothing(world: list[dict[str, Any]]) -> None:
    for faulty in world:
        assert (
            "step-2 was not saved (rank 1: no space left on the disk" in faulty["full"] and "step-1" in faulty["full"]
        )
        assert faulty["left"] == ["step-1"] and faulty["after"] == ["step-1", "step-2"]
        assert "rank-0001.safetensors" in faulty["damaged"] and "cut short" in faulty["damaged"]
