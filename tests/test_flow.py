"""The three commands one after another, from a crawl to scores, each killed once with -9 and simply run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("deepspeed")
pytest.importorskip("lm_eval")

import train_runs

from ziya.exports import read_export

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts" / "demo"))
import make_benchmarks  # noqa: E402
import make_crawl  # noqa: E402

TOKENIZER = ROOT / "scripts" / "demo" / "models" / "tokenizer.model"
STEPS, LENGTH = 24, 256


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """A command in a session of its own, so that a kill reaches all its processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def killed_once(begun: Callable[[], bool], module: str, *arguments: object) -> str:
    """Kill the command when it has begun, run it again to its end; what it said then."""
    first = start(module, *arguments)
    deadline = time.monotonic() + 300
    while not begun():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL, "it had finished before it was killed"
    return finished(start(module, *arguments))


def finished(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return said


def rows(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.json" and "work" not in path.parts
    }


def test_from_a_crawl_to_scores_with_a_kill_in_each_command(tmp_path: Path) -> None:
    crawl, out, run, scores = (tmp_path / name for name in ("crawl", "out", "run", "scores"))

    # Crawl -> clean, accounted token packs.
    make_crawl.make_crawl(crawl, 7, 420)
    data = ["run", "configs/data/demo.yaml", "--output", out, f"packing.sequence_length={LENGTH}"]
    data += [f"sources.{k}.paths=[{crawl / name}]" for k, name in enumerate(("web", "board", "curated", "supervised"))]
    killed_once(lambda: any((out / "measurements").glob("*.parquet")), "data_factory.cli", *data)
    documents = json.loads((out / "summary.json").read_text(encoding="utf-8"))["documents"]
    assert documents["in"] == documents["kept"] + documents["dropped"] + documents["quarantined"] == 420
    assert rows(out / "kept") == documents["kept"] > 200
    (tmp_path / "again").mkdir()
    data[data.index(out)] = tmp_path / "again" / "out"
    finished(start("data_factory.cli", *data))
    assert contents(out) == contents(tmp_path / "again" / "out")

    # Packs and a base model -> a trained model.
    base = train_runs.write_base(tmp_path / "base", vocab_size=4000, max_position_embeddings=2048)
    shutil.copy(TOKENIZER, base / "tokenizer.model")
    train = ["--stage", 1, "--config", "configs/train/debug_cpu.yaml", f"run={run}", f"model.base={base}"]
    train += [f"data.sources.0.packs=[{out}/packs/web]", f"data.sequence_length={LENGTH}", "checkpoint.every_steps=5"]
    train += [f"stages.0.tokens={STEPS * 4 * LENGTH}.0", "stages.0.schedule.peak=3e-3"]
    killed_once(lambda: len(train_runs.lines(run)) > 11, "training.cli", *train)
    found = train_runs.lines(run)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1)) and len(found) >= STEPS
    assert found[-1]["loss"] < found[0]["loss"] - 0.1
    finished(start("training.cli", "export", run))
    exported = next((run / "exports").iterdir())
    assert read_export(exported).step == found[-1]["step"]

    # The model and its base -> scores.
    make_benchmarks.letters(tmp_path / "benchmarks", 8)
    make_benchmarks.generations(tmp_path / "benchmarks", 8)
    evaluate = ["run", run, "--base", base, "--data", tmp_path / "benchmarks", "--tasks", "mmlu,cmmlu,gsm8k"]
    evaluate += ["--output", scores, "allow_missing=true", "--limit", 8]
    killed_once(lambda: any(scores.rglob("*.jsonl")), "eval.cli", *evaluate)
    results = json.loads((scores / "results.json").read_text(encoding="utf-8"))
    assert {(row["step"], row["task"]) for row in results} == {
        (step, task) for step in (None, found[-1]["step"]) for task in ("mmlu", "cmmlu", "gsm8k")
    }
    assert all(row["n"] == 8 and row["low"] <= row["value"] <= row["high"] for row in results)
    fresh = [tmp_path / "fresh" if item == scores else item for item in evaluate]
    finished(start("eval.cli", *fresh))
    assert json.loads((tmp_path / "fresh" / "results.json").read_text(encoding="utf-8")) == results
