"""`run=`: a new or empty folder, or a run's; any other is refused in one line, and left as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import train_runs

from training import cli, launch, run_folder
from training.config import load_config
from training.preflight import prepare
from ziya.errors import UserError
from ziya.files import write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.write_parts(tmp_path_factory.mktemp("parts"))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with what files hold."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def refused(given: list[str], capsys: Any) -> str:
    assert cli.main(given) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return str(said[0])


def a_model(folder: Path, made: Path) -> None:
    shutil.copytree(made / "base", folder)


def data_out(folder: Path, made: Path) -> None:
    (folder / "packs").mkdir(parents=True)
    write_json(folder / "config.json", {"version": 1, "config": {}})


def notes(folder: Path, made: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def other_errors(folder: Path, made: Path) -> None:
    (folder / "errors").mkdir(parents=True)
    (folder / "errors" / "monday.txt").write_text("mine")


@pytest.mark.parametrize("fill", [a_model, data_out, notes, other_errors])
def test_a_folder_of_something_else_stays_as_it_is(fill: Any, made: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    fill(run, made)
    before = contents(tmp_path)
    assert "which no run of ziya-train has written" in refused(train_runs.arguments(made, run), capsys)
    settings = load_config(train_runs.CONFIG, train_runs.arguments(made, run)[4:])
    with pytest.raises(UserError, match="which no run of ziya-train has written"):
        prepare(settings, 1, 1)
    assert contents(tmp_path) == before


def test_logs_may_lie_in_a_new_run(tmp_path: Path) -> None:
    """`ziya-train ... 2> RUN/train.log` makes the folder before the run does."""
    (tmp_path / "logs").mkdir()
    for name in ("train.log", "slurm-12.out", "logs/job.err"):
        (tmp_path / name).write_text("said")
    assert run_folder.foreign(tmp_path) is None
    (tmp_path / "model.safetensors").touch()
    assert run_folder.foreign(tmp_path) == "model.safetensors"


def test_a_bare_launch_is_refused_too(made: Path, tmp_path: Path) -> None:
    a_model(tmp_path / "run", made)
    before = contents(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(train_runs.ROOT), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    command = [sys.executable, "-m", "training", *train_runs.arguments(made, tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("error: run=") == 1 and "Traceback" not in done.stderr, done.stderr
    assert contents(tmp_path) == before


def test_the_base_and_the_run_are_apart(made: Path, tmp_path: Path, capsys: Any) -> None:
    parts = shutil.copytree(made, tmp_path / "parts")
    (tmp_path / "link").symlink_to(parts / "base")
    before = contents(tmp_path)
    for run, how in (("base", "is"), ("base/run", "lies in"), (".", "holds"), ("../link", "is")):
        assert f"{how} model.base" in refused(train_runs.arguments(parts, parts / run), capsys)
    assert contents(tmp_path) == before


def test_a_file_or_a_path_below_one(made: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(train_runs.arguments(made, tmp_path / "file"), capsys)
    assert "is a file, so no folder" in refused(train_runs.arguments(made, tmp_path / "file" / "run"), capsys)
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_refused_start_leaves_no_new_folder(made: Path, tmp_path: Path, capsys: Any) -> None:
    given = train_runs.arguments(made, tmp_path / "runs" / "a", "--accept-change", "sed")
    assert "no setting is called so" in refused(given, capsys)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "b").mkdir(parents=True)  # the user's own stays
    assert "no setting is called so" in refused(
        train_runs.arguments(made, tmp_path / "runs" / "b", "--accept-change", "sed"), capsys
    )
    assert (tmp_path / "runs" / "b").is_dir()


def test_folders_of_runs_are_taken(made: Path, tmp_path: Path) -> None:
    """New, empty, with what an earlier start left, with a run's record, or with its checkpoints alone."""

    def taken(name: str) -> Path:
        run = tmp_path / name
        prepare(load_config(train_runs.CONFIG, train_runs.arguments(made, run)[4:]), 1, 1)
        return run

    assert run_folder.is_record(taken("new") / "config.json")
    (taken("new") / "my-notes.txt").write_text("a user may add what he likes")
    taken("new")
    (tmp_path / "empty").mkdir()
    taken("empty")
    left = tmp_path / "left"
    for name in ("launch", "errors", "logs", "index"):
        (left / name).mkdir(parents=True)
    for name in ("lock", "launch/launch.json", "launch/words-0", "errors/rank-3.json", "logs/rank-0.log", "logs/launcher.log"):
        (left / name).touch()
    (left / ".tmp-7-config.json.part").touch()
    taken("left")
    (tmp_path / "lost" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "lost" / "checkpoints" / "step-1" / "manifest.json").write_text("{}")
    assert run_folder.foreign(tmp_path / "lost") is None


def test_an_export_of_the_run_may_be_its_start(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = train_runs.arguments(made, run)[4:]
    prepare(load_config(train_runs.CONFIG, given), 1, 1)
    shutil.copytree(made / "base", run / "exports" / "step-1")
    prepare(load_config(train_runs.CONFIG, [*given, f"stages.0.init_from={run / 'exports' / 'step-1'}"]), 1, 1)


def test_two_starts_at_once_hold_one_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="is being trained by"), launch.only_one(run), launch.only_one(run):
        pass
