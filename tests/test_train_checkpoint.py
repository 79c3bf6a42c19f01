from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch

from training import reshard
from training.architecture import Architecture
from training.checkpoint import Checkpoints, SaveError, find, whole_checkpoints
from training.config import CheckpointSettings
from training.layout import Layout, Place
from training.reshard import KINDS, MANIFEST, Stored, native_names, native_size
from training.state import RunState
from training.weights import whole_to_native
from ziya.errors import UserError


def extras(step: int, stage: int = 1, tokens: int | None = None) -> dict[str, Any]:
    state = RunState(stage=stage, step=step, tokens=step * 100 if tokens is None else tokens)
    return {"state": state.to_json(), "config": {"model": {"base": ""}}, "note": "中文"}


# --- one process, torch alone: the files, their order and every fault ------------------------------------------------


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


def test_what_is_loaded_is_what_was_saved_and_training_goes_on_alike(tmp_path: Path) -> None:
    engine, _ = saved(tmp_path)
    state = engine.state()
    engine.step(3)
    other = PlainEngine(small(), seed=1)
    assert opened(tmp_path, other).load() == extras(2)
    assert all(torch.equal(a, b) for a, b in zip(state, other.state(), strict=True))
    other.step(3)
    assert all(torch.equal(a, b) for a, b in zip(engine.state(), other.state(), strict=True))
    assert opened(tmp_path, other).load(1) == extras(1)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are: 1, 2"):
        opened(tmp_path, other).load(7)


def test_a_background_save_holds_the_moment_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    engine = PlainEngine(small())
    checkpoints = opened(tmp_path, engine)
    go, write = threading.Event(), reshard.write_fragments
    monkeypatch.setattr(reshard, "write_fragments", lambda *a: go.wait(30) and write(*a))
    engine.step(1)
    state = engine.state()
    checkpoints.save(1, extras(1), wait=False)
    assert checkpoints.poll() is None and find(tmp_path) is None
    engine.step(2)
    go.set()
    assert checkpoints.wait() == 1 and checkpoints.wait() is None and checkpoints.poll() is None
    other = PlainEngine(small(), seed=1)
    opened(tmp_path, other).load()
    assert all(torch.equal(a, b) for a, b in zip(state, other.state(), strict=True))
    # A second save waits for the first: both end whole.
    checkpoints.save(2, extras(2), wait=False)
    checkpoints.save(3, extras(3), wait=False)
    checkpoints.wait()
    assert [stored.step for stored in whole_checkpoints(tmp_path)] == [1, 2, 3]


def test_before_the_first_step_moments_are_zero(tmp_path: Path) -> None:
    engine = PlainEngine(small())
    opened(tmp_path, engine).save(0, extras(0), wait=True)
    other = PlainEngine(small(), seed=1)
    other.step(9)
    opened(tmp_path, other).load()
    for one in (engine, other):
        one.step(1)
    assert all(torch.equal(a, b) for a, b in zip(engine.state(), other.state(), strict=True))


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


def check_whole(run: Path, engine_of: dict[int, list[torch.Tensor]], least: int) -> int:
    """The checkpoint that a new start finds is whole and one of those saved."""
    engine = PlainEngine(small(), seed=5)
    checkpoints = opened(run, engine)
    note = checkpoints.load()["note"]
    assert all(torch.equal(a, b) for a, b in zip(engine.state(), engine_of[note], strict=True))
    assert note >= least
    assert not [name for name in names(run) if not name.removeprefix("step-").isdigit()]
    return int(note)


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


def test_pruning_keeps_the_latest_the_last_of_each_stage_and_one_each_so_many_tokens(tmp_path: Path) -> None:
    engine = PlainEngine(small())
    checkpoints = opened(tmp_path, engine, keep=2, keep_every_tokens=400.0)
    for step in range(1, 13):
        checkpoints.save(step, extras(step, stage=1 if step < 6 else 2), wait=True)
    # 400, 800 and 1200 tokens: 4, 8, 12; last of stage 1: 5; latest two: 11, 12.
    assert [one.step for one in whole_checkpoints(tmp_path)] == [4, 5, 8, 11, 12]
    # Back to an earlier step: "latest" follows what was saved last, not the highest number.
    checkpoints.save(7, extras(7, stage=2), wait=True)
    assert [one.step for one in whole_checkpoints(tmp_path)] == [4, 5, 8, 12, 7]
    found = find(tmp_path)
    assert found is not None and found.step == 7


def test_without_a_usable_latest_the_last_saved_is_found(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "latest").write_text("step-1\n")
    assert find(tmp_path).step == 1  # type: ignore[union-attr]
    (tmp_path / "latest").write_text("step-9\n")
    assert find(tmp_path).step == 2  # type: ignore[union-attr]
    (tmp_path / "latest").unlink()
    assert find(tmp_path).step == 2  # type: ignore[union-attr]
    assert find(tmp_path / "other") is None
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        opened(tmp_path / "other", PlainEngine(small())).load()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip, "does not have the bytes"), (cut_short, "is cut short"), (Path.unlink, "is missing")],
)
def test_damage_is_found_before_anything_is_loaded(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    engine, checkpoints = saved(tmp_path)
    state = engine.state()
    damage(tmp_path / "checkpoints" / "step-2" / "rank-0000.safetensors")
    with pytest.raises(UserError, match=message):
        checkpoints.load()
    assert all(torch.equal(a, b) for a, b in zip(state, engine.state(), strict=True))
    shutil.rmtree(tmp_path / "checkpoints" / "step-2")  # what the message advises
    assert checkpoints.load() == extras(1)


def test_manifests_that_are_wrong_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "checkpoints" / "step-2" / MANIFEST
    whole = Stored(path.parent).manifest
    text = path.read_text()
    for bad in ("{", "{}", text.replace('"version": 1', '"version": 2')):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"manifest.json"):
            Stored(path.parent)
    entry = whole.files["rank-0000.safetensors"]
    entry.weights["final_norm.weight"][1] -= 1
    whole.write(path.parent)
    with pytest.raises(UserError, match=r"lacks values 15 to 16 of final_norm.weight, tensor rank 0"):
        Stored(path.parent).covers()


def test_another_model_or_precision_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    wider = PlainEngine(replace(small(), ffn=12, rope_base=5e5))
    with pytest.raises(UserError, match=r"another model \(ffn: 8 -> 12; rope_base: 10000.0 -> 500000.0\)"):
        opened(tmp_path, wider).load()
    with pytest.raises(UserError, match=r"was trained in fp32, model.precision is bf16"):
        opened(tmp_path, PlainEngine(small(), bf16=True)).load()


def test_extras_must_be_json_of_the_same_step(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, PlainEngine(small()))
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(1, {**extras(1), "loss": float("nan")}, wait=True)
    with pytest.raises(ValueError, match="step 2"):
        checkpoints.save(2, extras(1), wait=True)


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    engine, _ = saved(tmp_path)
    tensors = load_file(tmp_path / "checkpoints" / "step-2" / "rank-0000.safetensors")
    assert set(tensors) == {f"{name}:{kind}:0" for name in native_names(small()) for kind in KINDS}
    weight = engine.chunks[0].weights["layers.0.mlp.up.weight"]
    assert torch.equal(tensors["layers.0.mlp.up.weight:master:0"], weight.detach().view(-1))


def test_native_sizes_are_those_of_the_parts() -> None:
    shape = small_models.architecture()
    whole = small_models.whole_weights(shape)
    for name in native_names(shape):
        for ranks in (1, 2):
            part = whole_to_native(name, whole.__getitem__, shape, 1 if ranks == 2 else 0, ranks)
            assert native_size(name, shape, ranks) == part.shape


# --- two processes, the real engine: layouts ---------------------------------------------------------------------------


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


def resume(rank: int, folder: Path, layout: Layout, bf16: bool) -> dict[str, Any]:
    """Five steps straight, and three + save, load + two in new engines; then the same checkpoint in DP2."""
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

    new = Layout(world=2, zero=1)
    start_groups(new)
    third, here = small_models.engine(shape, new, bf16=bf16, seed=8)
    read = Checkpoints(run, third, new, here, CheckpointSettings())
    read.load()
    written = Checkpoints(folder / f"{run.name} again", third, new, here, CheckpointSettings())
    written.save(3, extras(3), wait=True)
    before, after = wholes(run / "checkpoints" / "step-3"), wholes(written.root / "step-3")
    found["reshard"] = before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    found["moments"] = all(bool(tensor.any()) for tensor in before.values())
    losses = small_models.train(third, here, shape, range(3, 5))
    found["reshard losses"] = max(abs(a[0] - b[0]) for a, b in zip(losses, straight[3:], strict=True))
    stop_groups()
    found["straight"] = straight
    return found


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


def layouts(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"faults": faults(rank, folder)}
    for name, bf16 in CASES:
        found[f"{name} {bf16}"] = resume(rank, folder, LAYOUTS[name], bf16)
    found |= alone(rank, folder, f"fp32 {LAYOUTS['PP2']}", found["PP2 False"]["straight"])
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    return small_models.run_world(layouts, 2, folder, folder)


@pytest.mark.parametrize(("name", "bf16"), CASES)
def test_resume_is_exact_to_the_bit_in_the_same_layout(world: list[dict[str, Any]], name: str, bf16: bool) -> None:
    for found in world:
        case = found[f"{name} {bf16}"]
        wrong = [
            key
            for key in (
                "saved once",
                "no value twice",
                "extras",
                "losses",
                "state",
                "roll back",
                "state after roll back",
            )
            if case[key] is not True
        ]
        assert not wrong


@pytest.mark.parametrize(("name", "bf16"), CASES)
def test_reshard_carries_every_bit_and_training_goes_on(world: list[dict[str, Any]], name: str, bf16: bool) -> None:
    for found in world:
        case = found[f"{name} {bf16}"]
        assert case["reshard"] and case["moments"]
        assert case["reshard losses"] < (2e-3 if bf16 else 1e-6)


def test_two_pipeline_stages_go_on_in_one_process(world: list[dict[str, Any]]) -> None:
    assert world[0]["alone"] < 1e-6


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_a_skipped_first_step_is_no_step(world: list[dict[str, Any]], kind: str) -> None:
    assert all(found["faults"][f"skip {kind}"] and found["faults"][f"after skip {kind}"] for found in world)


def test_one_ranks_full_disk_is_told_by_all_and_leaves_nothing(world: list[dict[str, Any]]) -> None:
    for found in world:
        faulty = found["faults"]
        assert (
            "step-2 was not saved (rank 1: no space left on the disk" in faulty["full"] and "step-1" in faulty["full"]
        )
        assert faulty["left"] == ["step-1"] and faulty["after"] == ["step-1", "step-2"]
        assert "rank-0001.safetensors" in faulty["damaged"] and "cut short" in faulty["damaged"]
