"""Runs programs that a model wrote: bubblewrap, no network, no host files, limits of memory, time and processes.

In: programs and their tests. Out: one verdict each, in order. The box holds the running interpreter (binary, standard library and
the shared libraries they load) read-only and a small /tmp; nothing else of the host. A program has passed when the inner process
hands back a random token that it unmasks only after the tests have returned; exit code and output count for nothing. That stops
programs that exit early, guess or print; a program written against this very file could still cheat its own tests, not the host.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.sandbox_calls import call_filter
from ziya.errors import UserError

INSIDE = Path(__file__).with_name("sandbox_inside.py")
MODULES_WITHOUT_USE = re.compile(r"_tkinter|readline|_curses|nis|_dbm|_gdbm|ossaudiodev|_test|xx")
LONGEST_VERDICT = 4096  # bytes


@dataclass(frozen=True)
class Limits:
    """What one program may use. `seconds` are CPU seconds, so that a busy machine does not fail right programs."""

    seconds: int = 3
    wall_seconds: float = 15.0
    memory: int = 1 << 30
    processes: int = 32
    file_bytes: int = 16 << 20


@dataclass(frozen=True)
class Program:
    """A program and the tests that run behind it, in the same namespace."""

    code: str
    test: str


@dataclass(frozen=True)
class Verdict:
    """`status`: passed, failed (an exception, see `detail`), timeout, or exited (the program ended before its tests did)."""

    status: str
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the tests were reached and held."""
        return self.status == "passed"


class Sandbox:
    """Runs batches of programs, `jobs` at a time. Without a working bubblewrap it refuses, unless `unsafe_code`."""

    def __init__(self, *, unsafe_code: bool = False, limits: Limits | None = None, jobs: int | None = None) -> None:
        self.limits = limits or Limits()
        self.jobs = jobs or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0] * (os.cpu_count() or 1)
        )
        problem = bubblewrap_problem()
        if problem and not unsafe_code:
            raise UserError(
                f"programs that a model wrote are run in a sandbox only, and {problem}. Install bubblewrap (apt-get install "
                "bubblewrap) where user namespaces are allowed, leave humaneval out, or accept the risk with --unsafe-code"
            )
        self.safe = not problem

    @property
    def name(self) -> str:
        """How reports call it."""
        return (
            "bubblewrap" if self.safe else "UNSAFE: no sandbox, generated code can read and change this machine's files"
        )

    def run(self, programs: Sequence[Program]) -> list[Verdict]:
        """Verdicts in the order of the programs."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(self._run, programs))

    def _run(self, program: Program) -> Verdict:
        with contextlib.ExitStack() as stack:
            folder = None if self.safe else stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            return _run(program, self.limits, folder)


def _run(program: Program, limits: Limits, folder: str | None, stderr: Any = subprocess.DEVNULL) -> Verdict:
    """One program in a box, or in `folder` where there is no box."""
    token = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(tempfile.TemporaryFile())
        mask = secrets.token_bytes(len(token))  # what the pipe holds is not yet the token: passing it on is not enough
        source.write(json.dumps({"code": program.code, "test": program.test, "mask": mask.hex()}).encode())
        source.seek(0)
        token_read = _pipe_with(bytes(a ^ b for a, b in zip(token.encode(), mask, strict=True)), stack)
        told_read, told_write = os.pipe()
        stack.callback(os.close, told_read)
        passed = [source.fileno(), token_read, told_write]
        inner = [*map(str, passed), *map(str, (limits.memory, limits.seconds, limits.processes, limits.file_bytes))]
        command = [_python(), "-P", "-s", "-S", "-B", "-c", INSIDE.read_text(encoding="utf-8"), *inner]
        if folder is None:
            rules = call_filter()
            if rules:  # a pipe, for the descriptor stays open inside: a file of the host could be written through it
                passed.append(_pipe_with(rules, stack))
            extra = ["--seccomp", str(passed[-1])] if rules else []
            command = [*_box(), *extra, "--", *command]
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=passed,
                cwd=folder,
                env=None if folder is None else _environment(),
                start_new_session=True,
            )
        finally:
            os.close(told_write)
        deadline = time.monotonic() + limits.wall_seconds
        told, late = _listen(told_read, deadline)
        if not told and not late:  # it closed the pipe; its end tells why, unless it does not end
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late = True
        if (
            process.returncode is None or folder is not None
        ):  # without a box, what a program left behind dies with its group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return _verdict(told, token, late, code)


def _pipe_with(content: bytes, stack: contextlib.ExitStack) -> int:
    """The reading end of a pipe that holds `content` (less than a pipe's 64 KiB) and then ends."""
    read, write = os.pipe()
    stack.callback(os.close, read)
    os.write(write, content)
    os.close(write)
    return read


def _listen(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    """The verdict's line (empty when the pipe closed without one) and whether the deadline passed."""
    told = b""
    while b"\n" not in told and len(told) < LONGEST_VERDICT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return b"", True
        piece = os.read(descriptor, LONGEST_VERDICT)
        if not piece:
            return b"", False
        told += piece
    return told, False


def _verdict(told: bytes, token: str, late: bool, code: int) -> Verdict:
    try:
        value = json.loads(told.split(b"\n", maxsplit=1)[0]) if told else {}
    except ValueError:
        value = {}
    if not isinstance(value, dict):
        value = {}
    if isinstance(value.get("token"), str) and secrets.compare_digest(value["token"].encode(), token.encode()):
        return Verdict("passed")
    if isinstance(value.get("detail"), str):
        return Verdict("failed", value["detail"].encode(errors="replace").decode())  # a program may raise half a character
    if told:
        return Verdict("exited", "it claimed to have passed without the token that its tests would have given it")
    if late or abs(code) % 128 in (signal.SIGXCPU, signal.SIGKILL):
        return Verdict("timeout", "out of time")
    return Verdict("exited", f"ended with code {code} before its tests had returned")


def _python() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _environment() -> dict[str, str]:
    return {"PYTHONHOME": sys.base_prefix, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PATH": ""}


@functools.cache
def _box() -> tuple[str, ...]:
    """bubblewrap's command up to the inner command."""
    standard = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})
    libraries = _libraries(Path(standard))
    box = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--cap-drop", "ALL", "--clearenv", "--new-session"]
    box += ["--die-with-parent", "--hostname", "sandbox"]
    for path in dict.fromkeys([_python(), standard, *libraries]):
        box += ["--ro-bind", path, path]
    for name in ("site-packages", "dist-packages", "test"):
        if (Path(standard) / name).is_dir():
            box += ["--tmpfs", f"{standard}/{name}", "--remount-ro", f"{standard}/{name}"]
    box += ["--dev", "/dev", "--remount-ro", "/dev", *_small_tmpfs(), "--chdir", "/tmp", "--remount-ro", "/"]
    for name, value in {
        **_environment(),
        "LD_LIBRARY_PATH": ":".join(sorted({str(Path(one).parent) for one in libraries})),
    }.items():
        box += ["--setenv", name, value]
    return tuple(box)


def _small_tmpfs() -> list[str]:
    """A /tmp of 16 MiB; bubblewrap before 0.7 has no size, there RLIMIT_FSIZE alone holds."""
    sized = "--size" in subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False).stdout
    return [*(["--size", str(16 << 20)] if sized else []), "--tmpfs", "/tmp"]


def _libraries(standard: Path) -> list[str]:
    """The shared libraries that the interpreter and its standard modules load, as `ldd` names them."""
    modules = [path for path in (standard / "lib-dynload").glob("*.so") if not MODULES_WITHOUT_USE.match(path.name)]
    told = subprocess.run(["ldd", _python(), *map(str, modules)], capture_output=True, text=True, check=False).stdout
    paths = [path for line in told.splitlines() if line[:1].isspace() for path in re.findall(r"(/\S+) \(0x", line)]
    return sorted(dict.fromkeys(paths))


@functools.cache
def bubblewrap_problem() -> str:
    """Why bubblewrap cannot be used here, "" when it can: a trivial program is run once."""
    if not shutil.which("bwrap"):
        return "bubblewrap (bwrap) is not installed"
    with tempfile.TemporaryFile() as stderr:
        verdict = _run(Program("", "pass"), Limits(), None, stderr)
        stderr.seek(0)
        words = " ".join(stderr.read().decode(errors="replace").split())
    return "" if verdict.passed else f"bubblewrap does not work here ({words or verdict.detail})"
