"""What is shown of long steps: documents and bytes inside a unit, counted in other processes; nothing when nobody asks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data_factory.executor import Pool
from ziya.progress import Board, Progress, done


def work(documents: int, size: int, folder: str) -> int:
    """A task: tells half of its work, waits until the test has looked, tells the rest."""
    done(documents, size)
    while not (Path(folder) / "looked").exists():
        time.sleep(0.01)
    done(documents, size)
    return documents


def test_work_inside_units_is_counted_across_processes(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with Board(tmp_path / "work", 2) as board, Pool(2) as pool:
        tasks = [(board.path, number, work, (10 * (number + 1), 1000, str(tmp_path))) for number in range(2)]
        results = pool.map(Board.run, tasks)
        (tmp_path / "looked").touch()
        assert sorted(value for _, value, _ in results) == [10, 20]
        assert board.totals() == (60, 4000)
        # a task that starts anew (its worker died) does not count twice
        assert Board.run(board.path, 1, work, (1, 5, str(tmp_path))) == 1
        assert board.totals() == (22, 2010)
    assert list((tmp_path / "work").iterdir()) == []


def test_work_goes_on_without_a_board(tmp_path: Path) -> None:
    (tmp_path / "looked").touch()
    done(3, 4)  # nobody asks
    with Board(tmp_path, 1) as board:
        board.path.unlink()
        assert Board.run(board.path, 0, work, (7, 1, str(tmp_path))) == 7
        assert board.totals() == (0, 0)


def test_a_long_unit_is_not_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "looked").touch()
    with Board(tmp_path, 1) as board, Progress("measure", 3, every_seconds=0.05, totals=board.totals) as bar:
        Board.run(board.path, 0, work, (600, 2_500_000, str(tmp_path)))
        time.sleep(0.3)
        bar.advance(3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("measure: 0 of 3 units, 1,200 documents, 5.0 MB, ")
    assert lines[0].endswith(" MB/s")
    assert lines[-1].startswith("measure: 3 units in ")


def test_a_long_pass_is_not_silent_either(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("lines", 1, "pass", every_seconds=0.05, totals=lambda: (0, 0)) as bar:
        time.sleep(0.2)
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "lines: 0 s so far"
    assert lines[-1].startswith("lines: 1 pass in ")


def test_short_steps_tell_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Board(tmp_path, 1) as board, Progress("rank", 1, "pass", totals=board.totals) as bar:
        bar.advance()
    assert capsys.readouterr().err.splitlines() == ["rank: 1 pass in 0.0 s"]
