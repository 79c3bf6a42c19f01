"""Exports that fall due while training goes on: in order, never waited for by training, nothing lost at a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import train_runs
from train_checkpoints import PlainEngine, extras, opened, small

from training import exporting
from training.checkpoint import whole_checkpoints
from training.exporting import Exports
from training.state import RunState
from ziya.exports import is_export, read_export

FAKE = "import sys, time, pathlib\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)\nsys.exit({code})"


class Fake:
    """Exports that end when `gate(step)` exists; `begun`: their steps, in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.begun, self.bad = folder, [], set()  # type: ignore[var-annotated]
        self.real = subprocess.Popen
        monkeypatch.setattr(exporting.subprocess, "Popen", self)

    def __call__(self, command: list[str], **options: Any) -> Any:
        assert command[1:4] == ["-m", "training.cli", "export"] and options["env"]["CUDA_VISIBLE_DEVICES"] == ""
        step = int(command[command.index("--step") + 1])
        self.begun.append(step)
        code = 1 if step in self.bad else 0
        return self.real([sys.executable, "-c", FAKE.format(code=code), str(self.gate(step))])

    def gate(self, step: int) -> Path:
        return self.folder / f"gate-{step}"

    def let(self, step: int, exports: Exports) -> None:
        """Let the export of `step` end, and wait until that is seen."""
        self.gate(step).touch()
        deadline = time.monotonic() + 30
        while step in exports.left:
            assert time.monotonic() < deadline
            time.sleep(0.02)
            exports.look()


def test_one_after_another_and_none_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints whose exports run or wait are not pruned; those whose exports have ended are, at the next save."""
    engine, said = PlainEngine(small()), []  # type: ignore[var-annotated]
    checkpoints = opened(tmp_path, engine, keep=1)
    exports = Exports(tmp_path, checkpoints.held, said.append, samples=False)
    fake = Fake(tmp_path, monkeypatch)
    fake.bad = {2}

    def save(step: int) -> list[int]:
        checkpoints.save(step, extras(step), wait=True)
        return [stored.step for stored in whole_checkpoints(tmp_path)]

    for step in (1, 2, 3):
        save(step)
        exports.due(step)  # the first one runs on and on: a call that waited for it would never come back
    assert fake.begun == [1] and exports.left == [1, 2, 3]
    assert len(said) == 1 and "exports take longer" in said[0] and "steps 1, 2, 3 are kept" in said[0]
    assert save(4) == [1, 2, 3, 4]
    fake.let(1, exports)
    assert fake.begun == [1, 2] and save(5) == [2, 3, 5]
    fake.let(2, exports)
    assert said[1:] == [
        f"warning: the export of step 2 failed (see {tmp_path / 'logs' / 'rank-0.log'}): `ziya-train export {tmp_path} "
        "--step 2` makes it"
    ]
    fake.gate(3).touch()
    exports.finish(lambda: False)
    assert fake.begun == [1, 2, 3] and exports.left == [] and save(6) == [6]


def test_a_stop_ends_what_runs_and_the_next_start_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, said = PlainEngine(small()), []  # type: ignore[var-annotated]
    checkpoints = opened(tmp_path, engine)
    exports = Exports(tmp_path, checkpoints.held, said.append, samples=False)
    fake = Fake(tmp_path, monkeypatch)
    for step in (1, 2):
        checkpoints.save(step, extras(step), wait=True)
        exports.due(step)
    half = tmp_path / "exports" / "step-1.tmp"
    half.mkdir(parents=True)
    process = exports._running[1]  # type: ignore[index]
    asked = iter([False, False, True])
    exports.finish(lambda: next(asked))
    assert process.returncode == -signal.SIGTERM and not half.exists() and not checkpoints.held
    assert said[0] == "waiting for the export of step 1, 2"
    assert [line.split(":")[1] for line in said[1:]] == [f" the export of step {s} was not waited for" for s in (1, 2)]

    state = RunState(tokens=250, exported_tokens=200)  # extras: 100 tokens a step
    again = Exports(tmp_path, checkpoints.held, said.append, samples=True)
    again.make_up(RunState())
    assert not again.left
    again.make_up(state)
    assert again.left == [2] and checkpoints.held == {2} and fake.begun == [1, 2]
    again.stop()
    made = tmp_path / "exports" / "step-2"
    made.mkdir()
    (made / "ziya.json").write_text("{}")
    again.make_up(state)
    assert not again.left


def test_an_export_that_cannot_be_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*given: Any, **options: Any) -> Any:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(exporting.subprocess, "Popen", none_left)
    said: list[str] = []
    exports = Exports(tmp_path, set(), said.append, samples=False)
    exports.due(3)
    assert not exports.left and len(said) == 1 and "could not be started (Resource temporarily unavailable)" in said[0]


# --- real processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.write_parts(tmp_path_factory.mktemp("exports"))


def slow(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make every `ziya-train export` of processes started from now on take so long before it begins."""
    folder.mkdir()
    text = f"import sys, time\nif 'export' in sys.orig_argv:\n    time.sleep({seconds})\n"
    (folder / "sitecustomize.py").write_text(text)
    monkeypatch.setattr(train_runs, "ROOT", f"{folder}{os.pathsep}{train_runs.ROOT}")


def test_waiting_for_exports_outlasts_the_timeout_of_collectives(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, two exports that take longer together than a collective may."""
    run, tokens = tmp_path / "run", 4 * train_runs.LENGTH
    slow(tmp_path / "slow", monkeypatch, 21)
    more = [f"stages.0.tokens={6 * tokens}.0", "checkpoint.every_steps=3", "checkpoint.keep=1", "--processes", "2"]
    more += [f"checkpoint.export_every_tokens={3 * tokens}.0", "launch.timeout_s=40"]
    code, said = train_runs.finish(train_runs.start(train_runs.arguments(made, run, *more)))
    assert code == 0 and "waiting for the export of step" in said and "warning: the export" not in said, said
    assert sorted(path.name for path in (run / "exports").iterdir()) == ["step-3", "step-6"]
    assert [read_export(run / "exports" / f"step-{step}").step for step in (3, 6)] == [3, 6]


def exporting_now(run: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "export" in words and str(run) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def test_a_signal_waits_for_no_export_and_the_next_start_makes_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tokens = tmp_path / "run", 4 * train_runs.LENGTH
    more = [f"stages.0.tokens={220 * tokens}.0", "checkpoint.every_steps=20"]  # exported at step 120 and no more
    more += [f"checkpoint.export_every_tokens={120 * tokens}.0", "checkpoint.keep=1"]
    given = train_runs.arguments(made, run, *more)
    with monkeypatch.context() as patched:
        slow(tmp_path / "slow", patched, 600)
        process = train_runs.start(given)
        deadline = time.monotonic() + 200
        while not exporting_now(run):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code, said = train_runs.finish(process, 60)
    assert "warning: the export of step 120 was not waited for" in said, said
    assert not exporting_now(run) and not train_runs.processes_of(run)
    assert code == 128 + signal.SIGTERM and not is_export(run / "exports" / "step-120")
    code, said = train_runs.finish(train_runs.start(given))
    assert code == 0 and read_export(run / "exports" / "step-120").step == 120, said
