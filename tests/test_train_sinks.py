"""TensorBoard is read back; Weights & Biases is a fake. Whatever they do, training goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")

import train_runs

from training import sinks
from training.config import TrainConfig, load_config
from training.sinks import Sinks, TensorBoard, WandB, open_sinks, train_values, validation_values
from ziya.files import read_json


def line(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step, "stage": 1, "tokens": step * 10, "data_index": step, "loss": 2.0 / step, "grad_norm": None,
        "lr": 0.1, "skipped": False, "loss_by_source": {"中文": 3.0 / step, "en": 1.0}, "mfu": None,
    } | changes  # fmt: skip


def config(run: Path, *more: str) -> TrainConfig:
    return load_config(train_runs.CONFIG, [f"run={run}", *more])


def test_values_to_draw() -> None:
    values = train_values(line(2))
    assert values == {
        "train/skipped": 0.0, "train/stage": 1.0, "train/tokens": 20.0, "train/data_index": 2.0, "train/loss": 1.0, "train/lr": 0.1,
        "train/loss/中文": 1.5, "train/loss/en": 1.0,
    }  # fmt: skip
    assert train_values(line(2, skipped=True, documents=[["a", "b"]])) == {"train/skipped": 1.0}
    held = {"name": "中文", "step": 5, "loss": 2.0, "bits_per_byte": None, "base_bits_per_byte": None, "targets": 9}
    assert validation_values(held) == {"validation/中文/loss": 2.0}


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_holds_each_step_once_after_a_resume_and_a_rollback(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = config(tmp_path, "telemetry.tensorboard=true")
    warned: list[str] = []
    held = {"name": "中文", "step": 0, "loss": 2.0, "bits_per_byte": 1.5, "base_bits_per_byte": 1.5}
    for first in (-1, 4):  # at first; then as a resume from step 4 finds it
        with open_sinks(settings, 0) as one:
            one._warn = warned.append
            one.rewind(first)
            if first < 0:
                one.validation(held)
            for step in range(max(first, 0) + 1, 8):
                one.train(line(step, loss=float(step) if step < 6 else -1.0))
            one.rewind(5)
            for step in range(6, 10):
                one.train(line(step, loss=float(step)))
    found = events(tmp_path)
    assert warned == []
    assert found["train/loss"] == [(step, float(step)) for step in range(1, 10)]
    assert found["train/loss/中文"][0] == (1, 3.0) and len(found["train/loss/中文"]) == 9
    assert found["validation/中文/bits_per_byte"] == [(0, 1.5)]
    assert open_sinks(settings, 1)._thread is None and open_sinks(config(tmp_path), 0)._thread is None


class FakeRun:
    def __init__(self, module: Fake) -> None:
        self.module = module

    def log(self, values: dict[str, float], step: int) -> None:
        self.module.called("log")
        self.module.logged.append((step, values))

    def finish(self) -> None:
        self.module.called("finish")
        self.module.finished += 1


class Fake(ModuleType):
    """`wandb` as far as it is used; `act(name)` is called first in every call."""

    def __init__(self, act: Callable[[str], None] = lambda name: None) -> None:
        super().__init__("wandb")
        self.called, self.inits, self.logged, self.finished = act, [], [], 0
        self.inits: list[dict[str, Any]]
        self.logged: list[tuple[int, dict[str, float]]]

    def init(self, **given: Any) -> FakeRun:
        self.called("init")
        self.inits.append(given)
        return FakeRun(self)


def wandb(run: Path, warned: list[str]) -> Sinks:
    return Sinks({"Weights & Biases": lambda: WandB(run, "ziya", {"seed": 1})}, warned.append)


def test_weights_and_biases_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    warned: list[str] = []
    for step in (1, 2):
        with wandb(tmp_path, warned) as one:
            one.rewind(step - 1)
            one.train(line(step))
    first, second = fake.inits
    assert first["id"] == second["id"] == read_json(tmp_path / "wandb.json")["id"]
    assert (first["project"], first["resume"], first["config"]) == ("ziya", "allow", {"seed": 1})
    assert [step for step, _ in fake.logged] == [1, 2] and fake.logged[0][1]["train/loss"] == 2.0
    assert fake.finished == 2 and warned == []
    with Sinks({"w": lambda: WandB(tmp_path, "other", {})}, warned.append):
        pass
    assert fake.inits[-1]["id"] != first["id"]  # another project is another run


@pytest.mark.parametrize("bad", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(1), KeyError("entity")])
def test_a_service_that_fails_is_told_once_and_the_other_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, error: BaseException
) -> None:
    def act(name: str) -> None:
        if name == bad:
            raise error

    monkeypatch.setitem(sys.modules, "wandb", Fake(act))
    warned: list[str] = []
    other = FakeRun(Fake())

    class Other:
        def write(self, step: int, values: dict[str, float]) -> None:
            other.log(values, step)

        def rewind(self, step: int) -> None: ...
        def close(self) -> None: ...

    with Sinks({"W&B": lambda: WandB(tmp_path, "p", {}), "other": Other}, warned.append) as both:
        for step in range(1, 6):
            both.train(line(step))
    assert len(warned) == 1 and warned[0].startswith("warning: W&B gets nothing more: ") and "\n" not in warned[0]
    assert [step for step, _ in other.module.logged] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("module", ["wandb", "torch.utils.tensorboard"])
def test_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    warned: list[str] = []
    makers = {"it": (lambda: WandB(tmp_path, "p", {})) if module == "wandb" else lambda: TensorBoard(tmp_path)}
    with Sinks(makers, warned.append) as one:
        one.train(line(1))
        one.rewind(0)
        one.train(line(1))
    assert len(warned) == 1 and module in warned[0]


def test_a_service_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(sinks, "WAITING", 4)
    monkeypatch.setitem(sys.modules, "wandb", Fake(lambda name: go.wait(60) and None))
    warned: list[str] = []
    one = wandb(tmp_path, warned)
    for step in range(1, 20):
        one.train(line(step))
    one.close(0.05)
    assert len(warned) == 2 and "cannot keep up" in warned[0] and "did not end in time" in warned[1]
    go.set()
