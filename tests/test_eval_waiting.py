"""`wait_s`: a run that trains right now is followed; each n-th export while it goes on, the last one at its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_models import config, write_about, write_benchmarks, write_model

from eval import models_found, runner
from ziya.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a model, folder of benchmarks)."""
    root = tmp_path_factory.mktemp("world")
    return write_model(root / "model", max_position_embeddings=2048), write_benchmarks(root / "data")


class Training:
    """A run that exports a step every ten seconds of a clock that only `sleep` moves."""

    def __init__(self, run: Path, model: Path, coming: list[int], every: float = 10.0) -> None:
        self.run, self.model, self.coming, self.every = run, model, coming, every
        self.now = 0.0
        self.last = 0.0
        self.evaluated: list[tuple[int, float]] = []
        run.mkdir()
        (run / "metrics.jsonl").write_text("{}\n")

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.coming and self.now - self.last >= self.every:
            self.last = self.now
            self.export(self.coming.pop(0))

    def export(self, step: int) -> None:
        folder = self.run / "exports" / f"step-{step}"
        shutil.copytree(self.model, folder)
        write_about(folder, step)


Start = Callable[..., Training]


@pytest.fixture
def start(world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    def started(*coming: int) -> Training:
        found = Training(tmp_path / "run", world[0], list(coming))
        monkeypatch.setattr(runner.time, "sleep", found.sleep)
        monkeypatch.setattr(runner.time, "monotonic", lambda: found.now)
        whole = runner.Session.evaluate

        def evaluate(session: runner.Session, model: models_found.Found) -> None:
            found.evaluated.append((model.step or 0, found.now))
            whole(session, model)

        monkeypatch.setattr(runner.Session, "evaluate", evaluate)
        return found

    return started


def follow(world: tuple[Path, Path], training: Training, **changes: Any) -> list[dict[str, Any]]:
    out = training.run.parent / "out"
    return runner.run(config(training.run, world[1], out, **(dict(tasks=["cmmlu"], limit=1, wait_s=12.0) | changes)))


def test_waiting_takes_what_comes(world: tuple[Path, Path], start: Start) -> None:
    """Two exports appear while the run waits; the wait begins again after each, and ends."""
    training = start(2, 3)
    training.export(1)
    rows = follow(world, training)
    assert [row["step"] for row in rows] == [1, 2, 3] and not training.coming
    assert 30 < training.now < 60


def test_while_waiting_each_nth_export_counts_and_the_last_at_the_end(world: tuple[Path, Path], start: Start) -> None:
    training = start(*range(2, 9))
    training.export(1)
    rows = follow(world, training, every=3)
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert [step for step, _ in training.evaluated] == [3, 6, 8]
    third, sixth, last = (now for _, now in training.evaluated)
    assert third < 40 and sixth < 70 and last >= 70 + 12, "the last one only when no other came for wait_s"
    assert training.now < 110


def test_a_run_without_exports_is_waited_for(world: tuple[Path, Path], start: Start, tmp_path: Path) -> None:
    training = start(5)
    assert [row["step"] for row in follow(world, training)] == [5]
    assert training.now >= 10


def test_after_the_wait_a_run_without_exports_is_refused(world: tuple[Path, Path], start: Start) -> None:
    training = start()
    with pytest.raises(UserError, match="neither exports nor checkpoints"):
        follow(world, training)
    assert 12 <= training.now < 20
    (training.run / "checkpoints" / "step-7").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no exported checkpoint: run `ziya-train export .*--step 7`"):
        follow(world, training, base=str(world[0]))
    assert [step for step, _ in training.evaluated] == [0], "its base was evaluated meanwhile"
    with pytest.raises(UserError, match="no exported checkpoint"):
        follow(world, training, wait_s=0.0)
