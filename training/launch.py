"""The outermost process: it checks, starts the deepspeed launcher in a session of its own, passes signals on, tells the end.

The first SIGTERM, SIGUSR1 or Ctrl-C lets the running step end, saves, and ends with 128 + the signal's number (143, 138, 130):
not 0, because the stage is not finished, so `ziya-train --stage 1 ... && ziya-train --stage 2 ...` stops there. The second one
kills everything at once. The same command goes on where the run stands. See `watch.py` for how the ranks hear of it.

One node: the launcher's node part (`deepspeed.launcher.launch`) is started directly, its outer part would only start it.
Several (`launch.hostfile`), or one that is not this machine: `deepspeed.launcher.runner`, which needs pdsh and ssh without a
password, and RUN on a shared disk.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from training import preflight, run_folder, watch
from training.config import TrainConfig
from training.progress import Follower, StageBar
from ziya.errors import UserError
from ziya.progress import log

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PORT = 29500  # of the rendezvous on several nodes, deepspeed's default
LEAVE_S = 25.0  # for the ranks to end by themselves once one has failed; they take GRACE_S
_HOST = re.compile(r"^(\S+)\s+slots=(\d+)\s*$")


@dataclass(frozen=True)
class Machines:
    """Where ranks run. `ids`: numbers of the GPUs of this node (or of processes without any); `hosts`: of several nodes or of
    another one, empty for this one alone; `world`: all processes."""

    ids: list[str]
    hosts: dict[str, int]
    world: int
    gpus: bool


def machines(config: TrainConfig) -> Machines:
    """Count processes: `launch.processes` a node, else one a GPU, else 1; a hostfile's slots where there is one."""
    import torch

    gpus = torch.cuda.is_available()
    wanted = config.launch.processes
    if config.launch.hostfile is not None:
        hosts = read_hostfile(Path(config.launch.hostfile))
        if wanted is not None:
            small = [name for name, slots in hosts.items() if slots < wanted]
            if small:
                raise UserError(f"launch.processes={wanted} and {config.launch.hostfile} gives {small[0]} fewer slots")
            hosts = dict.fromkeys(hosts, wanted)
        if len(hosts) > 1 or not is_this_machine(next(iter(hosts))):
            return Machines([], hosts, sum(hosts.values()), gpus)
        wanted = next(iter(hosts.values()))
    if not gpus:
        count = wanted or 1
        return Machines([str(number) for number in range(count)], {}, count, False)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if wanted is not None and wanted > len(there):
        raise UserError(f"launch.processes={wanted} and this node has {len(there)} GPUs: one process a GPU at most")
    ids = there[: wanted or len(there)]
    return Machines(ids, {}, len(ids), True)


def read_hostfile(path: Path) -> dict[str, int]:
    """Host -> slots of a DeepSpeed hostfile (`HOST slots=N` a line, # for comments). UserError names a bad line."""
    if not path.is_file():
        raise UserError(f"launch.hostfile {path} does not exist: give a file with a line `HOST slots=N` for each node")
    hosts: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _HOST.match(text)
        if match is None or match[1] in hosts or int(match[2]) < 1:
            raise UserError(f"{path} line {number}: {text!r} is not `HOST slots=N` of a host named once")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"{path} names no host: it needs a line `HOST slots=N` for each node")
    return hosts


def is_this_machine(name: str) -> bool:
    """Whether a host's name or address is this machine's."""
    full = socket.getfqdn()
    if name in ("localhost", socket.gethostname(), full, socket.gethostname().split(".")[0], full.split(".")[0]):
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    except OSError:  # a name that nobody knows here; ssh may, by its own config
        return False
    own = {address.address.partition("%")[0] for addresses in psutil.net_if_addrs().values() for address in addresses}
    return any(address in own or ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


@contextlib.contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Hold RUN/lock, so that no second launch trains in the same run. UserError names who holds it.

    The lock is shared with rank 0 (`share_lock`): a run whose launching process was killed is held until its ranks have ended.
    A folder that was made for a start that is refused goes again.
    """
    made = run_folder.missing(run)
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{run} is being trained by {holder}: stop it first, or give another run=FOLDER") from error
        except OSError as error:  # a file system without locks
            log(f"warning: {run} cannot be locked ({error.strerror}): take care to start it only once")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            yield
        except UserError:
            run_folder.take_back(made)
            raise


def share_lock(run: Path) -> Any:
    """Rank 0's share of the lock; keep the file open."""
    file = (run / "lock").open("a+", encoding="utf-8")
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return file


def launch(config: TrainConfig, number: int, accepted: Sequence[str] = ()) -> int:
    """Train stage `number`; the exit code: 0 finished, 128 + signal stopped and saved, 1 a rank failed. UserError otherwise."""
    config = absolute(config)
    run = Path(config.run)
    run_folder.check(config)
    signals: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)

    with only_one(run):
        there = machines(config)
        prepared = preflight.prepare(config, number, there.world, accepted, here=not there.hosts)
        if prepared.start.finished(config.stage(number)):
            log(
                f"stage {number} is finished: {prepared.start.state.stage_tokens:,} tokens, step {prepared.start.state.step}"
            )
            return 0
        for text in prepared.notes:
            log(f"warning: {text}")
        log(f"stage {number} {prepared.start}; {prepared.layout}")
        before = {signum: signal.signal(signum, note) for signum in SIGNALS}
        try:
            child = _start(config, number, there)
            bar = StageBar(prepared.start.state, config.stage(number).tokens)
            try:
                return _follow(run, child, signals, bar)
            finally:
                bar.close()
                _kill(run, child)  # does nothing after an orderly end
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def absolute(config: TrainConfig) -> TrainConfig:
    """The same settings with a whole path of the run, for ranks that stand elsewhere."""
    return config.model_copy(update={"run": str(Path(config.run).absolute())})


def _start(config: TrainConfig, number: int, there: Machines) -> subprocess.Popen[bytes]:
    run = Path(config.run)
    for name in ("launch", "errors"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).mkdir(parents=True, exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
    message = watch.folder(run) / "launch.json"
    entry = {"stage": number, "config": config.model_dump(mode="json"), "threads": _threads(config, there)}
    watch.put(message, entry | watch.me())
    (watch.folder(run) / "alive").write_text("0", encoding="utf-8")
    port = config.launch.port or (PORT if there.hosts else _free_port())
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.runner" if there.hosts else "deepspeed.launcher.launch"]
    if there.hosts:
        _check_nodes(there.hosts)
        hosts = watch.folder(run) / "hostfile"
        hosts.write_text("".join(f"{name} slots={slots}\n" for name, slots in there.hosts.items()), encoding="utf-8")
        command += [f"--hostfile={hosts}", "--launcher=pdsh"]
        command += ["--force_multi"] * (len(there.hosts) == 1)  # a single host would be taken for this machine
    else:
        world = base64.urlsafe_b64encode(json.dumps({"localhost": there.ids}).encode()).decode()
        command += [f"--world_info={world}", "--master_addr=127.0.0.1"]
    command += [f"--master_port={port}", "--module", "--no_local_rank", "--log_level=critical"]
    command += ["training", "--launched", str(message)]
    with (run / "logs" / "launcher.log").open("ab") as output:
        return subprocess.Popen(
            command,
            env=_environment(config, there),
            stdin=subprocess.DEVNULL,
            stdout=output,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process only, and one call kills all of them
            # A job manager's SIGUSR1 to all processes would end deepspeed's launcher, which does not know it; ranks do.
            preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),  # noqa: PLW1509 - no threads yet
        )


def _threads(config: TrainConfig, there: Machines) -> int:
    here = max(1, len(there.ids), max(there.hosts.values(), default=1))
    return config.launch.threads or max(1, (os.cpu_count() or 1) // here)


def _environment(config: TrainConfig, there: Machines) -> dict[str, str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    paths = [str(Path(__file__).resolve().parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if not there.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def _check_nodes(hosts: dict[str, int]) -> None:
    if shutil.which("pdsh") is None:
        what = "several nodes are" if len(hosts) > 1 else f"{next(iter(hosts))} of launch.hostfile is not this machine: it is"
        raise UserError(
            f"{what} started through pdsh, which is not on this machine: install it (apt-get install pdsh)"
            f"{'' if len(hosts) > 1 else ', or name localhost'}"
        )


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _follow(run: Path, child: subprocess.Popen[bytes], signals: list[int], bar: StageBar) -> int:
    """Wait for the launcher, show how far the stage is, pass signals on, end everything once a rank has failed."""
    asked = failed = None
    metrics = Follower(run / "metrics.jsonl", bar)
    beat = looked = 0.0
    while child.poll() is None:
        now = time.monotonic()
        metrics.look()
        if now - beat > watch.ALIVE_S:
            beat = now
            watch.beat(run, now)
        if signals and asked is None:
            asked = signals[0]
            log(f"{signal.Signals(asked).name}: the running step ends, then the run is saved (again: end at once)")
            (watch.folder(run) / "stop").touch()
        if len(signals) > 1:
            log(f"{signal.Signals(signals[1]).name}: ended at once; the last checkpoint stands")
            _kill(run, child)
            return 128 + signals[1]
        if now - looked > watch.LOOK_S:
            looked = now
            for rank in watch.missing(run):
                watch.write_gone(run, rank)
            failed = failed or (now if watch.errors(run) else None)
        if failed is not None and now - failed > LEAVE_S:
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
    bar.close()
    _kill(run, child)  # what the launcher may have left behind
    return _outcome(run, child, asked)


def _kill(run: Path, child: subprocess.Popen[bytes]) -> None:
    """End the launcher and its ranks, here by their session, elsewhere by the file that each rank looks for."""
    with contextlib.suppress(OSError):  # a full disk must not leave ranks behind
        (watch.folder(run) / "abort").touch()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _outcome(run: Path, child: subprocess.Popen[bytes], asked: int | None) -> int:
    told = watch.verdict(run)
    if told is not None:
        message, mine = told
        if mine:
            raise UserError(message)
        print(f"error: {message}", file=sys.stderr)
        return 1
    outcome = watch.read(watch.folder(run) / "outcome.json")
    if outcome is None:
        where = run / "logs" / "launcher.log"
        print(
            f"error: the deepspeed launcher ended with {child.returncode} before training; see {where}", file=sys.stderr
        )
        return 1
    if outcome["how"] == "finished":
        return 0
    return 128 + (asked if asked is not None else signal.SIGTERM)
