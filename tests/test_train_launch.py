"""`ziya-train` as a user starts it: real processes on CPUs. One reference run; every other one is held against it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import train_runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import cli, launch, watch
from training.checkpoint import whole_checkpoints
from training.config import load_config
from training.launch import only_one, read_hostfile
from training.metrics import TIMED, read_lines
from training.state import RunState
from ziya.errors import UserError
from ziya.exports import read_export
from ziya.files import read_json
from ziya.ledger import read_ledger

STEPS = 200
LONG = [f"stages.0.tokens={STEPS * 4 * train_runs.LENGTH}.0", "checkpoint.every_steps=50"]
TWO = ["--processes", "2"]


def told(folder: Path) -> list[str]:
    """`LONG` with held-out rows."""
    return [*LONG, f"telemetry.validation={{中文: {folder / 'held'}}}", "telemetry.validate_every_steps=30"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a pack and RUN `whole`, trained by one process without interruption."""
    folder = tmp_path_factory.mktemp("runs")
    train_runs.write_parts(folder)
    train_runs.write_pack(folder / "held", rows=5, seed=7)
    code, said = train_runs.finish(train_runs.start(train_runs.arguments(folder, folder / "whole", *told(folder))))
    assert code == 0 and said.count("memory plan of a rank, in GiB: weights 0.00, ") == 1, said
    told_reads = [line.partition("each source: ")[2] for line in said.splitlines() if "has read each source: " in line]
    assert told_reads == ["text 0 (to be 12.5 when stage 1 ends)", "text 12.5"]  # 200 steps of 4 of its 64 rows
    return folder


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) >= 20
    for ours, theirs in zip(found[:20], expected, strict=False):
        assert abs(ours["loss"] - theirs["loss"]) < 2e-6
        assert abs(ours["grad_norm"] - theirs["grad_norm"]) < 1e-5 * theirs["grad_norm"]
        assert ours["loss_by_source"] == {"text": pytest.approx(ours["loss"], abs=1e-12)}  # the run's only source
        apart = ("loss", "grad_norm", "loss_by_source")
        assert {k: v for k, v in ours.items() if k not in apart} == {k: v for k, v in theirs.items() if k not in apart}


def test_one_process_trains_a_stage(made: Path) -> None:
    run = made / "whole"
    found = train_runs.lines(run)
    assert [line["data_index"] for line in found] == list(range(len(found)))
    assert [line["step"] for line in found if not line["skipped"]] == list(range(1, STEPS + 1))
    names = {"step", "stage", "tokens", "data_index", "loss", "grad_norm", "lr", "skipped"}
    assert set(found[0]) == names | {"loss_by_source", "bits_per_byte"}
    first = orjson.loads((run / "metrics.jsonl").read_bytes().splitlines()[0])
    assert set(first) == set(found[0]) | set(TIMED) and first["mfu"] is None  # a CPU's peak is not known
    held = read_lines(run / "validation.jsonl")
    assert [line["step"] for line in held] == [0, 30, 60, 90, 120, 150, 180, STEPS]
    assert all(line["name"] == "中文" for line in held) and held[-1]["loss"] < held[0]["loss"] - 0.3
    assert found[-1]["tokens"] == STEPS * 4 * train_runs.LENGTH
    assert found[-1]["loss"] < found[0]["loss"] - 0.3
    assert (run / "latest").read_text() == f"step-{STEPS}\n"
    assert read_ledger(run / "ledger.json").stages["1"].tokens == found[-1]["tokens"]
    assert read_json(run / "config.json")["begun"] == 1
    code, said = train_runs.finish(train_runs.start(train_runs.arguments(made, run, *told(made))))
    assert code == 0 and f"stage 1 is finished: {found[-1]['tokens']:,} tokens, step {STEPS}" in said


def test_a_signal_saves_and_the_same_command_goes_on_to_the_last_bit(made: Path) -> None:
    run = made / "stopped"
    given = train_runs.arguments(made, run, *told(made), "telemetry.tensorboard=true", "telemetry.wandb=none")
    process = train_runs.start(given)
    train_runs.wait_for_steps(run, 50, process)
    with pytest.raises(UserError, match=rf"is being trained by process {process.pid} on "), only_one(run):
        pass
    process.send_signal(signal.SIGTERM)
    code, said = train_runs.finish(process)
    assert code == 128 + signal.SIGTERM, said
    assert not train_runs.processes_of(run)
    stopped = train_runs.lines(run)[-1]["step"]
    assert 50 <= stopped < STEPS and (run / "latest").read_text() == f"step-{stopped}\n"
    code, said = train_runs.finish(train_runs.start(given))
    assert code == 0, said
    assert train_runs.lines(run) == train_runs.lines(made / "whole")
    assert (run / "validation.jsonl").read_bytes() == (made / "whole" / "validation.jsonl").read_bytes()
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss/text")] == list(range(1, STEPS + 1))
    assert [event.step for event in events.Scalars("validation/中文/loss")] == [*range(0, STEPS, 30), STEPS]
    assert read_ledger(run / "ledger.json") == read_ledger(made / "whole" / "ledger.json")


def test_two_tensor_ranks_and_one_that_is_killed(made: Path) -> None:
    run = made / "tensor"
    process = train_runs.start(train_runs.arguments(made, run, *LONG, *TWO, "parallel.tensor=2"))
    train_runs.wait_for_steps(run, 20, process)
    os.kill(watch.ranks(run)[1]["pid"], signal.SIGKILL)
    died = time.monotonic()
    code, said = train_runs.finish(process)
    assert time.monotonic() - died < 60 and not train_runs.processes_of(run)
    assert code == 1
    errors = [line for line in said.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(errors) == 1 and errors[0].startswith("error: rank 1 on ") and "was killed" in errors[0], said
    assert_close(train_runs.lines(run), train_runs.lines(made / "whole"))


def test_two_pipeline_ranks_outlive_their_launcher_only_to_save(made: Path) -> None:
    run = made / "pipeline"
    process = train_runs.start(train_runs.arguments(made, run, *LONG, *TWO, "parallel.pipeline=2"))
    train_runs.wait_for_steps(run, 20, process)
    ranks = [entry["pid"] for entry in watch.ranks(run).values()]
    for pid in ranks:  # on a busy machine they would have saved and ended before we look
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="is being trained by"), only_one(run):
        pass
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 60
    while train_runs.processes_of(run):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = train_runs.lines(run)
    assert (run / "latest").read_text() == f"step-{found[-1]['step']}\n" and found[-1]["step"] < STEPS
    assert_close(found, train_runs.lines(made / "whole"))


def test_an_error_of_a_rank_is_told_once(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = train_runs.arguments(made, run, "stability.sigma=1e-9", "stability.window=8", "stability.warmup_steps=8")
    given += ["stability.skips_in_a_row=1", "stability.rollbacks=1", "model.kernel=plain", "stages.0.tokens=1e5"]
    code, said = train_runs.finish(train_runs.start(given))
    errors = [line for line in said.splitlines() if line.startswith(("error", "Traceback"))]
    assert code == 2 and len(errors) == 1 and "1 steps in a row were refused" in errors[0], said
    skipped = [line for line in train_runs.lines(run) if line["skipped"]]
    assert len(skipped) == 2 and all(line["documents"][0][0] == "text" for line in skipped)


def test_exports_are_made_while_training_goes_on(made: Path, tmp_path: Path) -> None:
    """Each so many tokens, in a process of its own; it loads, and tells the step and the tokens of its checkpoint."""
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    tokens = 4 * train_runs.LENGTH
    more = [f"stages.0.tokens={16 * tokens}.0", "checkpoint.every_steps=4", "checkpoint.keep=1"]
    more += [f"checkpoint.export_every_tokens={10 * tokens}.0"]
    code, said = train_runs.finish(train_runs.start(train_runs.arguments(made, run, *more)))
    assert code == 0 and "an export failed" not in said, said
    # Saved at 4, 8, 12 and, at the end, 16: ten steps lie behind 12 only, and step 12 was read while others were pruned.
    assert [path.name for path in (run / "exports").iterdir()] == ["step-12"]
    about = read_export(run / "exports" / "step-12")
    assert (about.step, about.stage, about.tokens) == (12, 1, 12 * tokens)
    assert AutoModelForCausalLM.from_pretrained(run / "exports" / "step-12").config.vocab_size == 128
    assert (run / "latest").read_text() == "step-16\n"


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_stands(made: Path, tmp_path: Path) -> None:
    """RUN on a disk of 1 MB, which holds two checkpoints at most."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (not root)")
    try:
        run = disk / "run"
        more = [f"stages.0.tokens={40 * 4 * train_runs.LENGTH}.0", "checkpoint.every_steps=4"]
        code, said = train_runs.finish(train_runs.start(train_runs.arguments(made, run, *more)))
        errors = [line for line in said.splitlines() if line.startswith(("error", "Traceback"))]
        assert code == 2 and len(errors) == 1 and "was not saved (rank 0: no space left on the disk" in errors[0], said
        assert said.count("training goes on, the next checkpoint is due as set") == 1, said
        whole = whole_checkpoints(run)
        assert whole and (run / "latest").read_text() == f"step-{whole[-1].step}\n"
        for stored in whole:
            stored.verify()
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_hostfiles(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# nodes\na slots=4\n\n b slots=8 \n")
    assert read_hostfile(path) == {"a": 4, "b": 8}
    assert set(read_hostfile(train_runs.ROOT / "configs" / "cluster" / "hostfile").values()) == {8}
    for text in ("a\n", "a slots=0\n", "a slots=1\na slots=2\n", "# none\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="HOST slots=N"):
            read_hostfile(path)


def test_a_host_that_is_not_this_machine(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One host of a hostfile: here it starts at once; another one is reached as several are, or nothing starts."""
    lookup = launch.socket.getaddrinfo
    addresses = {"node-far": "192.0.2.7", "node-alias": "127.0.1.1"}

    def getaddrinfo(name: str, *given: Any, **named: Any) -> Any:
        if name == "node-none":
            raise socket.gaierror(-2, "Name or service not known")
        return lookup(addresses.get(name, name), *given, **named)

    monkeypatch.setattr(launch.socket, "getaddrinfo", getaddrinfo)
    own = [entry.address for network in psutil.net_if_addrs().values() for entry in network if entry.family == socket.AF_INET]
    for name in ("localhost", socket.gethostname(), socket.getfqdn(), "127.0.0.1", "node-alias", *own):
        assert launch.is_this_machine(name), name
    assert not launch.is_this_machine("node-far") and not launch.is_this_machine("node-none")

    hosts, run = tmp_path / "hosts", tmp_path / "run"
    given = train_runs.arguments(made, run, f"launch.hostfile={hosts}")
    config = launch.absolute(load_config(train_runs.CONFIG, given[4:]))
    hosts.write_text(f"{socket.gethostname()} slots=2\n")
    assert launch.machines(config) == launch.Machines(["0", "1"], {}, 2, False)
    hosts.write_text("node-far slots=2\n")
    there = launch.machines(config)
    assert there == launch.Machines([], {"node-far": 2}, 2, False)

    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    # What kernels the other machine can run is not known here.
    assert cli.main([*given, "model.kernel=flash", "model.precision=bf16"]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "node-far of launch.hostfile is not this machine: it is started through pdsh, which is not on" in said
    monkeypatch.setattr(launch.shutil, "which", lambda name: f"/usr/bin/{name}")
    started: list[list[str]] = []
    monkeypatch.setattr(launch.subprocess, "Popen", lambda command, **_: started.append(command))
    launch._start(config, 1, there)
    launch._start(config, 1, launch.Machines([], {"node-far": 2, "node-b": 2}, 4, False))
    assert [command[3] for command in started] == ["deepspeed.launcher.runner"] * 2
    assert ["--force_multi" in command for command in started] == [True, False]


def test_the_first_cause_is_told(tmp_path: Path) -> None:
    (tmp_path / "errors").mkdir()
    assert watch.verdict(tmp_path) is None
    watch.write_error(tmp_path, 0, RuntimeError("[gloo] Connection closed by peer [10.0.0.2]"))
    assert watch.verdict(tmp_path) == (watch.verdict(tmp_path)[0], False)  # type: ignore[index]
    assert "rank 0" in watch.verdict(tmp_path)[0]  # type: ignore[index]
    watch.write_gone(tmp_path, 3)
    assert "rank 3 on" in watch.verdict(tmp_path)[0] and "was killed" in watch.verdict(tmp_path)[0]  # type: ignore[index]
    watch.write_error(tmp_path, 2, ValueError("列数 7 is odd"))
    assert "rank 2 on" in watch.verdict(tmp_path)[0] and "列数 7 is odd" in watch.verdict(tmp_path)[0]  # type: ignore[index]
    for rank in range(4):
        watch.write_error(tmp_path, rank, UserError("no space left: free some"))
    assert watch.verdict(tmp_path) == ("no space left: free some", True)


@pytest.mark.parametrize(("codes", "requeued", "ended"), [("0 0 0", 0, 0), ("0 138", 1, 138), ("2", 0, 2), ("1", 0, 1)])
def test_slurm_requeues_what_was_stopped(tmp_path: Path, codes: str, requeued: int, ended: int) -> None:
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    scripts = {
        "ziya-train": f'echo "$@" >> {tmp_path}/called\ncode=$(head -1 {tmp_path}/codes)\n'
        f"sed -i 1d {tmp_path}/codes\nexit $code\n",
        "scontrol": f'[ "$1" = show ] && {{ echo n1; echo n2; }}\n[ "$1" = requeue ] && echo "$2" >> {tmp_path}/again\nexit 0\n',
    }
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "HOSTS": str(tmp_path / "hosts"),
    }
    script = train_runs.ROOT / "configs" / "cluster" / "slurm_requeue.sh"
    done = subprocess.run(["bash", str(script), "seed=3"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ended, done.stderr
    assert ((tmp_path / "again").read_text() == "7\n") if requeued else not (tmp_path / "again").exists()
    called = (tmp_path / "called").read_text().splitlines()
    assert len(called) == len(codes.split()) and called[0].startswith("--stage 1 ") and called[0].endswith("seed=3")


def test_slurm_passes_a_signal_on(tmp_path: Path) -> None:
    scripts = {
        "ziya-train": f"trap 'sleep 0.3; exit 138' USR1\ntouch {tmp_path}/ready\nwhile :; do sleep 0.05; done\n",
        "scontrol": f'[ "$1" = requeue ] && touch {tmp_path}/again\nexit 0\n',
    }
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
        "HOSTS": str(tmp_path / "hosts"),
    }
    script = train_runs.ROOT / "configs" / "cluster" / "slurm_requeue.sh"
    process = subprocess.Popen(["bash", str(script)], env=environment)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 138 and (tmp_path / "again").exists()


def test_metrics_are_what_lies_behind_the_state(tmp_path: Path) -> None:
    from training.metrics import Metrics

    metrics = Metrics(tmp_path)
    for stage, index, skipped in [
        (1, 0, False),
        (1, 9, False),
        (2, 0, False),
        (2, 1, True),
        (2, 2, False),
        (2, 3, True),
    ]:
        metrics.write({"step": index, "stage": stage, "data_index": index, "skipped": skipped})
    with metrics.path.open("a") as file:
        file.write('{"step": 4, "stage"')  # cut short by a kill
    metrics.rewind(RunState(stage=2, data_index=1, skipped=[[1, 2]]))
    kept = [json.loads(text) for text in metrics.path.read_text().splitlines()]
    assert [(line["stage"], line["data_index"]) for line in kept] == [(1, 0), (1, 9), (2, 0), (2, 1)]


def test_metrics_wait_for_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from training import metrics

    file, write, room = metrics.Metrics(tmp_path), os.write, [0, 5, None]
    monkeypatch.setattr(metrics.os, "write", lambda d, data: write(d, data[: room.pop(0)]))
    lines = [{"step": n, "stage": 1, "data_index": n, "skipped": False} for n in range(4)]
    file.write(lines[0])
    file.write(lines[1])
    assert file.path.read_bytes() == b"" and file.read() == lines[:2]
    file.write(lines[2])
    assert [json.loads(text) for text in file.path.read_text().splitlines()] == lines[:3]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "No space left on device" in said[0] and "training goes on" in said[0]
    room[:] = [0]
    file.write(lines[3])
    file.rewind(RunState(data_index=2))  # what waits is rewound as well
    assert file.read() == lines[:2] == [json.loads(text) for text in file.path.read_text().splitlines()]


HANGING = """
import sys, time
from pathlib import Path
from training import watch
from training.checkpoint import whole_checkpoints
run, rank = Path(sys.argv[1]), int(sys.argv[2])
watch.GRACE_S = 1.0
one = watch.Watch(run, rank, watch.read(run / "launch" / "launch.json"), print)
print("ready", flush=True)
while not one.asked:  # as in a collective that another rank does not join
    time.sleep(0.05)
print("asked", flush=True)
"""


@pytest.mark.parametrize("event", ["abort", "error", "killed", "stop", "gone"])
def test_a_rank_that_hangs_hears_of_it(tmp_path: Path, event: str) -> None:
    launcher = subprocess.Popen(["sleep", "60"])
    entry = watch.me() | {"pid": launcher.pid, "created": watch.created(launcher.pid)}
    for folder in ("launch", "errors", "logs"):
        (tmp_path / folder).mkdir()
    watch.put(tmp_path / "launch" / "launch.json", entry)
    environment = {**os.environ, "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "PYTHONPATH": str(train_runs.ROOT)}
    command = [sys.executable, "-c", HANGING, str(tmp_path), "1"]
    rank = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None and rank.stdout.readline() == "ready\n"
    try:
        if event in ("abort", "stop"):
            (tmp_path / "launch" / event).touch()
        elif event == "error":
            watch.write_error(tmp_path, 0, ValueError("a bug"))
        elif event == "killed":  # a sibling that has gone without a word
            watch.put(tmp_path / "launch" / "rank-0.json", entry | {"created": 1.0})
        else:
            launcher.kill()
            launcher.wait()
        said, _ = rank.communicate(timeout=10)
    finally:
        launcher.kill()
        launcher.wait()
        rank.kill()
    if event in ("stop", "gone"):
        assert (rank.returncode, said) == (0, "asked\n")
    else:
        assert rank.returncode == 1 and "left" in watch.ranks(tmp_path)[1]
        assert set(watch.errors(tmp_path)) == (set() if event == "abort" else {0})
