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
    wholes,
)

from training import reshard, watch
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


def saved_and_trained_on(run: Path) -> tuple[PlainEngine, dict[int, Any]]:
    """(engine after step 2, its state after each step); step 1 is saved in `run`."""
    engine = PlainEngine(small())
    opened(run, engine).save(1, {**extras(1), "note": 1}, wait=True)
    states = {1: engine.state()}
    engine.step(1)
    states[2] = engine.state()
    return engine, states


@pytest.mark.parametrize("again", [False, True])
def test_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """Killed before every single change of the disk, saving a new step, or the same step again; keep=1 prunes too."""
    template = tmp_path / "template"
    engine, states = saved_and_trained_on(template)
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
    engine, states = saved_and_trained_on(template)
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


class Collectives:
    """Counts this rank's collectives; rank `victim` is killed, or meets an error, instead of number `at` (0: never)."""

    NAMES = ("all_gather_object", "all_gather", "all_gather_into_tensor", "all_reduce", "broadcast", "barrier")

    def __init__(self, rank: int, victim: int, at: int, kill: bool) -> None:
        import torch.distributed as dist

        self.mine, self.at, self.kill, self.count = rank == victim, at, kill, 0
        for name in self.NAMES:
            setattr(dist, name, self.wrap(getattr(dist, name)))

    def wrap(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.mine and self.count == self.at:
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("out of luck")
            return collective(*arguments, **options)

        return counted


def end(run: Path, rank: int, work: Callable[[], Any]) -> None:
    """Do `work` and end this process as a rank does: 0, or 3 with its error left for the launcher; 4: it hung."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(4))
    signal.alarm(50)
    try:
        work()
    except BaseException as error:
        watch.write_error(run, rank, error)
        os._exit(3)
    os._exit(0)


def check_end(run: Path, codes: list[int], victim: int, kill: bool) -> None:
    """Every rank has ended, and the one message names the victim, whatever the other one met."""
    assert codes[victim] == (-signal.SIGKILL if kill else 3) and codes[1 - victim] in (0, 3)
    if kill:
        watch.write_gone(run, victim)  # as the launcher does
    told = watch.verdict(run)
    assert told is not None and told[0].startswith(f"rank {victim} on "), told
    assert ("was killed" if kill else "RuntimeError: out of luck") in told[0]


def as_one_of_two(rank: int, run: Path, engine: PlainEngine, what: str, victim: int, at: int, kill: bool) -> None:
    """Save step 2, or load step 1, in a world of two in which `victim` is lost; ends this process."""

    def work() -> None:
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{run}/meet", rank=rank, world_size=2)
        layout = Layout(world=2, zero=0)
        settings = CheckpointSettings(keep=1)
        checkpoints = Checkpoints(run, engine, layout, Place(0, 0, rank, layout), settings)  # type: ignore[arg-type]
        Collectives(rank, victim, at, kill)
        if what == "save":
            checkpoints.save(2, {**extras(2), "note": 2}, wait=True)
        else:
            checkpoints.load(1)
            Path(run / f"loaded-{rank}").touch()

    end(run, rank, work)


@pytest.mark.parametrize("kill", [True, False])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("what", ["save", "load"])
def test_a_rank_lost_before_any_collective_leaves_a_whole_one(
    tmp_path: Path, what: str, victim: int, kill: bool
) -> None:
    """Rank 0, which commits, or rank 1 is killed, or its collective fails: the other one ends too, one message tells of it, and
    what stands is whole."""
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
                as_one_of_two(rank, run, engine, what, victim, at, kill)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if codes != [0, 0]:
            check_end(run, codes, victim, kill)
            assert not (run / f"loaded-{victim}").exists()
        seen.append(check_whole(run, states, 1))
    if what == "save":
        assert at > 3 and seen[0] == 1 and seen[-1] == 2 and seen == sorted(seen)
    else:
        assert at == 3 and set(seen) == {1} and (run / "loaded-0").exists() and (run / "loaded-1").exists()


REFRESHED = {"ZeRO-1": (Layout(world=2, zero=1), True), "ZeRO-3": (Layout(world=2, zero=3), False)}


def load_as_one_of_two(rank: int, port: int, run: Path, kind: str, at: int, kill: bool) -> None:
    """Save (at 0) or load the real engine; rank 1 is lost before its collective number `at` of the load. Ends this process."""

    def work() -> None:
        small_models.join(rank, 2, port)
        import deepspeed

        from training.layout import start_groups

        layout, bf16 = REFRESHED[kind]
        shape = small_models.architecture()
        start_groups(layout)
        engine, here = small_models.engine(shape, layout, bf16=bf16)
        checkpoints = Checkpoints(run, engine, layout, here, CheckpointSettings())
        if not at:
            small_models.train(engine, here, shape, range(1))
            checkpoints.save(1, extras(1), wait=True)
        lost = Collectives(rank, 1, at, kill)
        backend = deepspeed.comm.comm.cdb  # it has looked one collective up before
        backend.all_gather_function = lost.wrap(backend.all_gather_function)
        checkpoints.load(1)
        (run / f"loaded-{rank}").write_text(str(lost.count))

    end(run, rank, work)


@pytest.mark.parametrize(
    ("kind", "every"), [("ZeRO-1", True), ("ZeRO-3", False), pytest.param("ZeRO-3", True, marks=pytest.mark.soak)]
)
def test_a_rank_lost_while_weights_are_gathered_anew_ends_all(tmp_path: Path, kind: str, every: bool) -> None:
    """After files are read, a load gathers weights over data-parallel ranks: ZeRO-1 each group, ZeRO-3 what stays whole;
    there `every` one is lost in turn, or only the first and the last."""

    def both(run: Path, at: int, kill: bool) -> list[int]:
        start, port = small_models.context(), small_models.free_port()
        processes = [
            start.Process(target=load_as_one_of_two, args=(rank, port, run, kind, at, kill)) for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    template = tmp_path / "template"
    assert both(template, 0, False) == [0, 0]
    count = int((template / "loaded-1").read_text())
    assert count > 2  # two of them are the reports on reading
    whole = wholes(template / "checkpoints" / "step-1")
    for at in range(3, count + 1) if every else (3, count):
        run = tmp_path / f"run-{at}"
        shutil.copytree(template / "checkpoints", run / "checkpoints")
        kill = bool(at % 2)
        check_end(run, both(run, at, kill), 1, kill)
        after = wholes(run / "checkpoints" / "step-1")
        assert not (run / "loaded-1").exists() and all(torch.equal(whole[name], after[name]) for name in whole)


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
