"""What users' machines and crawls do to a run: deadly records, full disks, signals, unreadable files. Nothing else is lost."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from crawls import ROOT, crawl, digests, page, prose, record, write_config, write_warc, ziya_data


def summary(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return value


def quarantine(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "quarantine").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_record_that_kills_its_worker_costs_itself_only(tmp_path: Path) -> None:
    pages = [record(f"http://example.org/{number}", page(prose(number, "en"))) for number in range(9)]
    pages.insert(4, record("http://example.org/deadly", page("Gefahrenwort " + prose(50, "en"))))
    pages.append(record("http://example.org/deadly2", page("Gefahrenwort " + prose(51, "en"))))
    write_warc(tmp_path / "crawl" / "a.warc.gz", pages)
    config = write_config(tmp_path / "config.json")
    env = {"ZIYA_TEST_DEADLY_WORD": "Gefahrenwort"}
    done = ziya_data(
        "run", config, "--input", tmp_path / "crawl", "--output", tmp_path / "out", "--workers", 2, env=env
    )
    assert "kill their worker" in done.stderr
    documents = summary(tmp_path / "out")["documents"]
    assert documents == {"in": 11, "kept": 9, "dropped": 0, "quarantined": 2}
    assert {row["error"] for row in quarantine(tmp_path / "out")} == {"the record kills its worker process"}


def test_damage_of_every_kind_is_one_row_each(tmp_path: Path) -> None:
    folder = tmp_path / "crawl"
    good = [record(f"http://example.org/{number}", page(prose(number, "zh"))) for number in range(6)]
    write_warc(folder / "whole.warc.gz", good)
    cut = (folder / "whole.warc.gz").read_bytes()
    (folder / "truncated.warc.gz").write_bytes(cut[: len(cut) - 200])
    bomb = gzip.compress(record("http://example.org/bomb", b"<html>" + bytes(3 << 20)), 9, mtime=0)
    (folder / "bomb.warc.gz").write_bytes(gzip.compress(good[0], mtime=0) + bomb + gzip.compress(good[1], mtime=0))
    lines = [{"text": prose(90, "en")}, {"title": "no text"}, {"text": 5}, {"text": prose(91, "zh")}]
    raw = (
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
        + b'\n{"text": "broken\n{"text": "\xff\xfe bad"}\n'
    )
    (folder / "lines.jsonl").write_bytes(raw)
    config = write_config(tmp_path / "config.json", read={"unit_bytes": 1 << 20, "record_limit_bytes": 1 << 20})
    ziya_data(
        "run",
        config,
        "--input",
        folder,
        "--output",
        tmp_path / "out",
        "dedup.exact=false",
        "dedup.url=false",
        "dedup.fuzzy.method=none",
    )
    documents = summary(tmp_path / "out")["documents"]
    assert documents["in"] == documents["kept"] + documents["dropped"] + documents["quarantined"]
    by_file: dict[str, int] = {}
    for row in quarantine(tmp_path / "out"):
        by_file[row["source"]] = by_file.get(row["source"], 0) + 1
    assert by_file == {"truncated.warc.gz": 1, "bomb.warc.gz": 1, "lines.jsonl": 4}
    assert documents["kept"] == 6 + 5 + 2 + 2


def start_run(arguments: list[str]) -> subprocess.Popen[str]:
    """The command as a terminal starts it: a process group of its own that Ctrl-C reaches."""
    # A command started with `&` in a script ignores Ctrl-C, and so do its children: these tests may be run like that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "data_factory.cli", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt(process: subprocess.Popen[str], number: int, state: Callable[[], bool]) -> str:
    """Signal the whole group as soon as `state` holds; returns what the run told."""
    deadline = time.monotonic() + 120
    while not state() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None and state(), "the run never came to this state"
    os.killpg(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert "run the same command again" in told and "Traceback" not in told, told
    return told


def children(process: subprocess.Popen[str]) -> list[str]:
    """Command lines of the processes that a process started."""
    found = []
    for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(Path(f"/proc/{number}/cmdline").read_text())
    return found


def test_ctrl_c_and_sigterm_leave_a_resumable_state(tmp_path: Path) -> None:
    crawl(tmp_path / "crawl", pages=80)
    config = write_config(tmp_path / "config.json", read={"unit_bytes": 4096})
    arguments = [
        "run",
        str(config),
        "--input",
        str(tmp_path / "crawl"),
        "--output",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    done = tmp_path / "out" / "work" / "done" / "measure"
    for number in (signal.SIGTERM, signal.SIGINT):
        before = len(list(done.glob("*.json")))
        process = start_run(arguments)
        told = interrupt(process, number, lambda before=before: len(list(done.glob("*.json"))) > before)  # type: ignore[misc]
        assert process.returncode == 130, told
        assert not (tmp_path / "out" / "summary.json").exists()
    ziya_data(*arguments)
    ziya_data(*arguments[:5], str(tmp_path / "fresh"))
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="/proc tells when a worker starts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_starts_leaves_signals_to_its_parent(number: int, tmp_path: Path) -> None:
    """A worker imports for about a second; Ctrl-C of the group in this time is one line, without the worker's traceback."""
    crawl(tmp_path / "crawl", pages=4)
    config = write_config(tmp_path / "config.json")
    arguments = [
        "run",
        str(config),
        "--input",
        str(tmp_path / "crawl"),
        "--output",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    process = start_run(arguments)

    def imports() -> bool:
        started = any("spawn_main" in command for command in children(process))
        time.sleep(0.1 if started else 0)  # the interpreter is up, the imports are not done
        return started

    interrupt(process, number, imports)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_worker_whose_parent_is_gone_ends_silently() -> None:
    """Its answer finds nobody: no traceback after the parent's last line."""
    script = (
        "import multiprocessing, os\n"
        "from data_factory import executor\n"
        "ours, theirs = multiprocessing.Pipe()\n"
        "ours.send((os.getpid, ()))\n"
        "ours.close()\n"
        "executor._worker(theirs, os.getppid())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_runs_cannot_share_an_output(tmp_path: Path) -> None:
    import fcntl

    crawl(tmp_path / "crawl", pages=4)
    config = write_config(tmp_path / "config.json")
    (tmp_path / "out" / "work").mkdir(parents=True)
    with (tmp_path / "out" / "work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = ziya_data("run", config, "--input", tmp_path / "crawl", "--output", tmp_path / "out", expect=2)
    assert "another process is working on" in refused.stderr


def test_a_full_disk_is_one_line_and_resumable(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small file system can only be mounted by root")
    try:
        crawl(tmp_path / "crawl", pages=120)
        config = write_config(tmp_path / "config.json")
        arguments = ("run", config, "--input", tmp_path / "crawl", "--output", disk / "out", "--workers", 1)
        failed = ziya_data(*arguments, expect=2)
        assert "no space left" in failed.stderr and "Traceback" not in failed.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        ziya_data(*arguments)
        ziya_data("run", config, "--input", tmp_path / "crawl", "--output", tmp_path / "fresh", "--workers", 1)
        assert digests(disk / "out") == digests(tmp_path / "fresh")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_missing_model_and_damaged_model_are_one_line(tmp_path: Path) -> None:
    crawl(tmp_path / "crawl", pages=4)
    config = write_config(
        tmp_path / "config.json", scoring={"models": {"en": str(tmp_path / "en.klm"), "zh": str(tmp_path / "zh.klm")}}
    )
    failed = ziya_data("run", config, "--input", tmp_path / "crawl", "--output", tmp_path / "out", expect=2)
    assert "no such file" in failed.stderr
    for name in ("en.klm", "zh.klm"):
        (tmp_path / name).write_bytes(b"not a model")
    failed = ziya_data("run", config, "--input", tmp_path / "crawl", "--output", tmp_path / "out", expect=2)
    assert "Traceback" not in failed.stderr and "en.klm" in failed.stderr
