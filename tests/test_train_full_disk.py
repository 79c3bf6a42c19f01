"""A disk without room: what must still be said is said, and what others can do without ends nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import train_runs

from training import watch
from ziya.errors import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytest.importorskip("deepspeed")

from train_ranks import run_ranks  # noqa: E402 - it imports torch


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (not root)")
    yield disk
    subprocess.run(["umount", str(disk)], check=False)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == 28


def test_last_words_and_signs_of_life_need_no_room(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("launch", "errors"):
        (disk / name).mkdir()
    (disk / "launch" / "alive").write_text("0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(watch.Watch, "_looking", lambda self: None)
    ranks = [watch.Watch(disk, rank, {**watch.me()}, print) for rank in (0, 1)]
    fill(disk)
    watch.beat(disk, 12.5)
    assert (disk / "launch" / "alive").read_text().strip() == "12.5"
    watch.beat(disk, 3.0)
    assert float((disk / "launch" / "alive").read_text()) == 3.0
    with pytest.raises(OSError, match="No space left"):
        watch.put(disk / "launch" / "other.json", {})
    try:
        raise UserError("no space left: free some")
    except UserError as error:
        watch.write_error(disk, 0, error)
    assert watch.verdict(disk) == ("no space left: free some", True)
    ranks[1].leave("stopped")
    assert watch.ranks(disk)[1]["left"] == "stopped"
    fill(disk)
    watch.write_error(disk, 2, "has no room kept for it")  # and ends nothing
    assert set(watch.errors(disk)) == {0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.write_parts(tmp_path_factory.mktemp("full"))


def without_ledger(rank: int, folder: Path, run: Path, fails: int) -> dict[str, Any]:
    """So many writes of ledger.json find no room."""
    from training.ledger import Ledger

    write, left = Ledger.write, [fails]

    def full(self: Ledger, path: Path) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise UserError(f"no space left on the disk that holds {path.parent}: free some and run again")
        write(self, path)

    Ledger.write = full  # type: ignore[method-assign]
    with train_runs.trainer(folder, run, "checkpoint.every_steps=4") as made:
        how, state = made.train()
        return {"how": how, "step": state.step, "said": made.said}


def test_a_ledger_that_cannot_be_written_is_told_once_and_written_later(made: Path, tmp_path: Path) -> None:
    from training.checkpoint import find
    from ziya.files import read_json

    (found,) = run_ranks(1, without_ledger, made, tmp_path / "run", 3)
    assert (found["how"], found["step"]) == ("finished", 20)
    assert len([line for line in found["said"] if "ledger.json stays behind (no space left" in line]) == 1
    stored = find(tmp_path / "run")
    assert stored is not None and read_json(tmp_path / "run" / "ledger.json") == stored.manifest.extras["ledger"]
