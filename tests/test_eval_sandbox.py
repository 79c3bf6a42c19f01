"""The sandbox: right programs pass, hostile ones are contained, and nothing but reached tests counts as passing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from small_benchmarks import SHARED, needs_box, needs_shared

from eval import sandbox
from eval.sandbox import Limits, Program, Sandbox, Verdict, bubblewrap_problem
from eval.sandbox_calls import call_filter
from eval.tasks.items import items
from ziya.errors import UserError

SHORT = Limits(seconds=1, wall_seconds=10)


def verdict(code: str, test: str = "", limits: Limits | None = None) -> Verdict:
    return Sandbox(limits=limits).run([Program(code, test)])[0]


@needs_box
def test_programs_are_judged_by_their_tests_in_order() -> None:
    programs = [
        Program("def add(a, b):\n    return a + b\n", "assert add(2, 3) == 5"),
        Program("def 加(甲, 乙):\n    return 甲 - 乙\n", "assert 加(2, 3) == 5, '错了'"),
        Program("def add(a, b)\n", "assert add(2, 3) == 5"),
        Program("def add(a, b):\n    return a + b\n", "assert add(2, 3) == 5"),
    ]
    found = Sandbox().run(programs)
    assert [one.status for one in found] == ["passed", "failed", "failed", "passed"]
    assert found[1].detail == "AssertionError: 错了"
    assert found[2].detail.startswith("SyntaxError")


@needs_box
@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "print('{\"token\": \"' + '0' * 32 + '\"}', flush=True); import os; os._exit(0)",
        'import os\nfor fd in range(64):\n    try:\n        os.write(fd, b\'{"token": "0"}\\n\')\n'
        "    except OSError:\n        pass\nos._exit(0)",
        "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'[]\\n\\xff')\n    except OSError:\n        pass\nos._exit(0)",
        "import sys; sys.stdout.close(); sys.stderr.close(); assert False",
        "import os; os.closerange(0, 64)",
        "print(input())",
        "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit",
        "import os\nclass Quiet(Exception):\n    def __str__(self): os._exit(0)\nraise Quiet",
        # passes on whatever any descriptor holds, as the token
        "import json, os\nfor fd in range(3, 64):\n    try:\n        os.set_blocking(fd, False); held = os.read(fd, 64)\n"
        "    except OSError:\n        continue\n    for other in range(3, 64):\n        try:\n"
        "            os.write(other, json.dumps({'token': held.decode(errors='replace')}).encode() + b'\\n')\n"
        "        except OSError:\n            pass\nos._exit(0)",
    ],
)
def test_only_reached_tests_count(code: str) -> None:
    assert verdict(code).status in ("exited", "failed")


@needs_box
@pytest.mark.parametrize(
    "code",
    [
        "import builtins; builtins.exec = lambda *_: None",
        "import builtins\nreal = compile\nbuiltins.compile = lambda text, *rest: real('pass', *rest)",
        "import builtins; builtins.AssertionError = type('Other', (Exception,), {})",
        "import json, os; json.dumps = lambda *_: '{}'; os.write = os._exit = lambda *_: 0",
        "try:\n    raise SystemExit(0)\nexcept BaseException:\n    pass",
        "import sys; sys.excepthook = lambda *_: None; sys.settrace(lambda *_: None)",
    ],
)
def test_a_program_cannot_switch_its_tests_off(code: str) -> None:
    assert verdict(code, "assert False").status == "failed"
    assert verdict(code, "assert True").passed, "nothing else may make it fail"


C = "import ctypes, mmap, os\nlibrary = ctypes.CDLL(None, use_errno=True)\n"


@needs_box
@pytest.mark.skipif(not call_filter(), reason="the numbers of this machine's system calls are not known")
@pytest.mark.parametrize(
    "call",
    [
        "library.unshare(0x10000000)",  # a user namespace of its own, in which it may mount
        "library.unshare(0x10020000)",
        "library.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "library.ptrace(16, os.getppid(), 0, 0)",  # the process that started it, which has no filter
        "library.shmget(0, 1 << 30, 0o1600)",  # memory that no limit counts
        "library.memfd_create(b'x', 0)",
        "library.syscall(447, 0)",
        "library.syscall(425, 8, ctypes.create_string_buffer(120))",
        "library.fork()",
    ],
)
def test_calls_that_evade_the_limits_are_refused(call: str) -> None:
    assert verdict(f"{C}assert {call} == -1 and ctypes.get_errno() == 1, ctypes.get_errno()").passed


@needs_box
def test_what_a_program_raises_can_be_written_down() -> None:
    found = verdict("raise Exception('\\udc80 half a character')")
    assert found == Verdict("failed", "Exception: ? half a character")
    assert orjson.dumps(found.detail)


@needs_box
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("while True: pass", "timeout"),
        ("import os, time\nos.closerange(0, 64)\ntime.sleep(1000)", "timeout"),
        ("while True: print('x' * 100000)", "timeout"),
        (
            "from signal import *\nfor one in (SIGTERM, SIGXCPU): signal(one, SIG_IGN)\nwhile True: pass",
            "timeout",
        ),
        ("while True: print('x' * 100000, file=__import__('sys').stderr)", "timeout"),
        ("held = bytearray(8 << 30)", "failed"),
        ("held = []\nwhile True: held.append(bytearray(1 << 20))", "failed"),
        ("import mmap\nheld = []\nwhile True: held.append(mmap.mmap(-1, 64 << 20))", "failed"),
        ("import os\nheld = []\nwhile True: held.append(os.pipe())", "failed"),
        ("def deeper(n): return deeper(n + 1)\ndeeper(0)", "failed"),
        ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", "failed"),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL); os.kill(1, signal.SIGKILL)", "passed"),  # nothing happens
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))", "failed"),
        ("import os\nwhile True: os.fork()", "failed"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', '0'])", "failed"),
        ("import os, signal; os.kill(-1, signal.SIGKILL)", "failed"),
    ],
)
def test_time_memory_and_processes_are_bounded(code: str, status: str) -> None:
    # A quarter of the usual memory: a busy machine may need a second of CPU time to hand out a whole gigabyte.
    limits = Limits(seconds=1, wall_seconds=6, memory=256 << 20)
    assert verdict(code, limits=limits).status == status


@needs_box
def test_many_bytes_are_bounded() -> None:
    code = "for name in range(100):\n    with open(f'/tmp/{name}', 'wb') as file: file.write(bytes(10 << 20))"
    assert verdict(code).detail.startswith("OSError")
    one = "with open('/tmp/one', 'wb') as file:\n    while True: file.write(bytes(1 << 20))"
    assert verdict(one).detail.startswith("OSError")


@needs_box
def test_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert verdict(code).status == "failed"
    outside = "import socket\nsocket.create_connection(('192.0.2.1', 80), 2)"
    assert "unreachable" in verdict(outside).detail


@needs_box
def test_no_host_files(tmp_path: Path) -> None:
    secret = tmp_path / "秘密.txt"
    secret.write_text("x", encoding="utf-8")
    for path in (secret, Path(__file__), Path("/etc/passwd"), Path("/proc/self/environ"), Path.home() / ".bashrc"):
        assert verdict(f"open({str(path)!r}, 'rb').read()").detail.startswith("FileNotFoundError"), path
    for path in (
        tmp_path / "new",
        Path("/new"),
        Path("/dev/shm/new"),
        Path(os.__file__),
        Path(os.__file__).with_name("new.py"),
    ):
        assert "Error" in verdict(f"open({str(path)!r}, 'w').write('x')").detail, path
    assert not (tmp_path / "new").exists()
    assert verdict(
        "import os",
        "assert set(os.environ) <= {'PYTHONHOME', 'PYTHONHASHSEED', 'PYTHONUTF8', 'PATH', 'LD_LIBRARY_PATH', 'PWD', 'LC_CTYPE'}",
    ).passed
    assert verdict("import os", "assert os.listdir('/tmp') == []").passed


@needs_box
def test_no_descriptor_reaches_a_file_of_the_host() -> None:
    code = (
        "import os, stat\nfor fd in range(3, 64):\n    try:\n        kind = os.fstat(fd).st_mode\n"
        "    except OSError:\n        continue\n    assert stat.S_ISFIFO(kind), fd"
    )
    assert verdict(code).passed


@needs_box
def test_what_right_programs_need_is_there() -> None:
    modules = "math, random, hashlib, decimal, itertools, re, typing, threading, ctypes, sqlite3, zlib, bz2, lzma"
    assert verdict(
        f"import {modules}\nthreads = [threading.Thread(target=print) for _ in range(4)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    ).passed
    assert verdict("", "assert list({'a', 'b', 'c', '汉'}) == list({'a', 'b', 'c', '汉'})").passed


@needs_box
def test_order_of_sets_is_the_same_in_every_run() -> None:
    found = {verdict("assert False, list({'a', 'b', 'c', 'd', 'e'})").detail for _ in range(4)}
    assert len(found) == 1


@pytest.fixture
def without_box(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    bubblewrap_problem.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    yield
    monkeypatch.undo()
    bubblewrap_problem.cache_clear()


@pytest.mark.usefixtures("without_box")
def test_without_bubblewrap_it_refuses_and_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"bubblewrap \(bwrap\) is not installed.*--unsafe-code"):
        Sandbox()


@pytest.mark.usefixtures("without_box")
def test_unsafe_code_runs_with_limits_and_is_named_loudly(tmp_path: Path) -> None:
    unsafe = Sandbox(unsafe_code=True, limits=SHORT)
    assert unsafe.name.startswith("UNSAFE")
    here = Path.cwd()
    found = unsafe.run(
        [
            Program("x = 1", "assert x == 1"),
            Program("while True: pass", ""),
            Program("held = bytearray(8 << 30)", ""),
            Program("import os; os._exit(0)", ""),
            Program("open('left_behind', 'w').write('x')", ""),
            Program("import os", "assert 'HOME' not in os.environ"),
        ]
    )
    assert [one.status for one in found] == ["passed", "timeout", "failed", "exited", "passed", "passed"]
    assert not (here / "left_behind").exists()


def test_a_bubblewrap_that_cannot_work_is_told_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    bubblewrap_problem.cache_clear()
    sandbox._box.cache_clear()
    try:
        with pytest.raises(UserError, match="No permissions to create new namespace"):
            Sandbox()
    finally:
        bubblewrap_problem.cache_clear()
        sandbox._box.cache_clear()


@needs_box
@needs_shared
def test_canonical_solutions_pass() -> None:
    tests = [item.raw for item in items("humaneval", SHARED)]
    programs = [
        Program(raw["prompt"] + raw["canonical_solution"], f"{raw['test']}\ncheck({raw['entry_point']})")
        for raw in tests
    ]
    assert len(programs) == 164
    assert [one for one in Sandbox().run(programs) if not one.passed] == []
    wrong = [
        Program(raw["prompt"] + "    return None\n", program.test)
        for raw, program in zip(tests[:20], programs, strict=False)
    ]
    assert not any(one.passed for one in Sandbox().run(wrong))
