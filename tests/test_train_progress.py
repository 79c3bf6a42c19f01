"""How far a stage is: a bar on a terminal, lines elsewhere, both from metrics.jsonl."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import train_runs

from training.metrics import Metrics
from training.progress import Follower, StageBar, duration, last_line
from training.state import RunState


def line(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step, "stage": 2, "tokens": 1000 + 100 * step, "data_index": step, "loss": 3.21987, "grad_norm": 0.5,
        "tokens_per_s": 1234.5, "skipped": False,
    } | changes  # fmt: skip


START = RunState(stage=2, step=2, tokens=1200, stage_tokens=200)


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path)
    metrics.write(line(2))
    follower = Follower(metrics.path, StageBar(START, 1000, every_s=0.0))
    follower.look()  # what was there before this launch
    assert capsys.readouterr().err == ""
    metrics.write(line(3))
    follower.look()
    follower.look()
    assert re.fullmatch(
        r"step 3: loss 3\.2199, gradient norm 0\.5, 1,23[45] tokens/s, 30\.0 % of stage 2\n", capsys.readouterr().err
    )
    metrics.write(line(4, loss=None, grad_norm=None, skipped=True))
    follower.look()
    said = capsys.readouterr().err
    assert said.startswith("step 4: loss not finite, gradient norm not finite") and said.endswith(
        "40.0 % of stage 2, 0 s left\n"
    )
    metrics.rewind(RunState(stage=2, data_index=3))  # a rollback makes the file anew
    metrics.write(line(3, tokens=1250))
    follower.look()
    assert " 25.0 % of stage 2" in capsys.readouterr().err
    metrics.write(line(5, stage=3))
    follower.look()
    assert capsys.readouterr().err == ""


def test_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_line(path) is None
    for text, expected in (
        ("", None),
        ('{"a":1}', None),
        ('{"a":1}\n', {"a": 1}),
        ('{"a":1}\n{"b":2}\n{"c"', {"b": 2}),
    ):
        path.write_text(text)
        assert last_line(path) == expected, text
    path.write_text('{"documents":"' + "x" * (1 << 17) + '"}\n')
    assert last_line(path) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59, "59 s"), (420, "7 min"), (3600 * 5 + 720, "5 h 12 min"), (86400 * 3 + 3600 * 4, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


TERMINAL = """
import sys, time
from training.progress import StageBar
from training.state import RunState
from ziya.progress import log
bar = StageBar(RunState(stage=2, step=2, tokens=1200, stage_tokens=200), 1000)
for step in (3, 5, 4, 8):
    time.sleep(0.25)
    bar.show({"step": step, "stage": 2, "tokens": 1000 + 100 * step, "loss": 3.21987, "grad_norm": 1, "tokens_per_s": 1})
log("报告 a line")
bar.close()
log("end")
"""


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(train_runs.ROOT), "TERM": "xterm"}
    child = subprocess.Popen(
        [sys.executable, "-c", TERMINAL], stderr=theirs, stdin=theirs, stdout=subprocess.DEVNULL, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.wait(60) == 0
    text = said.decode()
    shown = re.findall(r"stage 2:\s+(\d+)%", text)
    assert shown[:4] == ["30", "50", "40", "80"], text  # back after a rollback
    assert "step 8, loss 3.2199" in text and re.search(r"\d+(\.\d+)?k?tok/s", text)
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", text), text  # time taken and left
    lines = [part.strip() for part in re.split(r"[\r\n]|\x1b\[K|\x1b\[A", text) if part.strip()]
    assert "报告 a line" in lines and lines[-1] == "end"
