"""How the launching process and the ranks know of each other: small files in RUN/launch and RUN/errors, on any number of nodes.

| file | written by | says |
|---|---|---|
| `launch/launch.json` | launcher, once | id, host, process id, config, stage: what ranks are started with |
| `launch/alive` | launcher, every few seconds | it lives (ranks of other nodes cannot look for its process) |
| `launch/stop` | launcher | save and end: it got a signal |
| `launch/abort` | launcher | end at once |
| `launch/rank-N.json` | rank N | its host and process id; `left`: it has ended, and how |
| `launch/words-N` | rank N | nothing: room for its last words on a disk that fills up |
| `launch/outcome.json` | rank 0 | how training ended |
| `errors/rank-N.json` | rank N, or one that misses it | what ended the run |

A thread in each rank looks every half second, so a rank that hangs in a collective ends too. On NFS other nodes see a file
some seconds later.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import psutil

from ziya.errors import UserError
from ziya.files import atomic_path, read_json

LOOK_S = 0.5
ALIVE_S, SILENT_S = (
    5.0,
    60.0,
)  # the launcher writes `alive` this often; ranks elsewhere take so long a silence for its end
WORDS = 32 << 10  # bytes kept for a rank's last words
GRACE_S = 8.0  # after another rank's error: time for one's own, which may say more
_NETWORK = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|tcpstore|timed out|socket|remote process", re.IGNORECASE
)


def folder(run: Path) -> Path:
    """RUN/launch."""
    return run / "launch"


def put(path: Path, value: Any) -> None:
    """Write JSON that readers see whole or not at all. Raises OSError, for a full disk too."""
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(orjson.dumps(value))
    except UserError as error:
        raise error.__cause__ if isinstance(error.__cause__, OSError) else OSError(str(error)) from error


def say(run: Path, rank: int, path: Path, value: Any) -> None:
    """`put` what must still be said for `rank` when the disk is full, in the room that `Watch` has kept for it. Raises OSError."""
    try:
        put(path, value)
    except OSError:
        (folder(run) / f"words-{rank}").unlink()
        put(path, value)


def beat(run: Path, now: float) -> None:
    """The launcher lives: in place, so that a full disk cannot stop it, and what cannot be written ends nothing."""
    with contextlib.suppress(OSError), (folder(run) / "alive").open("r+b") as file:
        file.write(f"{now:<24}".encode())


def read(path: Path) -> Any:
    """What `put` wrote, or None."""
    try:
        return read_json(path)
    except (OSError, UserError):
        return None


def created(pid: int) -> float | None:
    """When a process of this machine began, None when it has ended; tells it from another one with its number."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def lives(entry: dict[str, Any]) -> bool:
    """Whether the process of an entry {pid, created} of this machine still runs."""
    since = created(int(entry["pid"]))
    return since is not None and abs(since - float(entry["created"])) < 1.0


def machine() -> str:
    """Names the set of processes that this one can see: a name alone may be that of many containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def me() -> dict[str, Any]:
    """{host, machine, pid, created} of this process."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": machine(), "pid": pid, "created": created(pid)}


def ranks(run: Path, among: Iterable[int] | None = None) -> dict[int, dict[str, Any]]:
    """What the ranks (of `among`, where given) that have begun say of themselves."""
    named = [folder(run) / f"rank-{rank}.json" for rank in among or ()]
    paths = list(folder(run).glob("rank-*.json")) if among is None else named
    found = {int(path.stem.removeprefix("rank-")): read(path) for path in paths}
    return {rank: entry for rank, entry in found.items() if isinstance(entry, dict)}


def errors(run: Path) -> dict[int, dict[str, Any]]:
    """The errors that ranks of this launch have left."""
    found = {}
    for path in (run / "errors").glob("rank-*.json"):
        entry = read(path)
        if isinstance(entry, dict):
            found[int(path.stem.removeprefix("rank-"))] = entry
    return found


def write_error(run: Path, rank: int, error: BaseException | str) -> None:
    """Leave the error that ended `rank`; `network` marks those that only say that another rank has gone."""
    text = error if isinstance(error, str) else " ".join(str(error).split()) or type(error).__name__
    entry: dict[str, Any] = {"rank": rank, "host": socket.gethostname(), "time": time.time(), "message": text}
    if isinstance(error, BaseException):
        entry["user"] = isinstance(error, UserError)
        entry["type"] = type(error).__name__
        entry["network"] = not entry["user"] and bool(_NETWORK.search(f"{entry['type']} {text}"))
        entry["traceback"] = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # the launcher still sees that the rank has gone
        say(run, rank, run / "errors" / f"rank-{rank}.json", entry)


def missing(run: Path, among: Iterable[int] | None = None) -> list[int]:
    """Ranks of this machine (those of `among`, where given) that have gone without a word: killed, or out of memory."""
    here = machine()
    told = errors(run)
    return [
        rank
        for rank, entry in sorted(ranks(run, among).items())
        if entry["machine"] == here and "left" not in entry and rank not in told and not lives(entry)
    ]


def verdict(run: Path) -> tuple[str, bool] | None:
    """(the one message that tells why the run ended, whether it is the user's to mend), None when no rank failed.

    An error of its own counts before a rank's death, a death before a lost connection: the last only says that another went.
    """
    told = errors(run)
    own = [entry for _, entry in sorted(told.items()) if not entry.get("network") and not entry.get("gone")]
    gone = [entry for _, entry in sorted(told.items()) if entry.get("gone")]
    rest = [entry for _, entry in sorted(told.items(), key=lambda item: item[1]["time"])]
    for found in (sorted(own, key=lambda entry: entry["time"]), gone, rest):
        if found:
            first = found[0]
            break
    else:
        return None
    if first.get("user"):
        alike = all(entry["message"] == first["message"] for entry in own)
        everywhere = alike and len(own) == len(told)
        return (first["message"] if everywhere else f"rank {first['rank']}: {first['message']}"), True
    kind = f"{first['type']}: " if "type" in first else ""
    where = f"; traceback in {run / 'errors' / f'''rank-{first['rank']}.json'''}" if "traceback" in first else ""
    return f"rank {first['rank']} on {first['host']}: {kind}{first['message']}{where}", False


def write_gone(run: Path, rank: int) -> None:
    """Leave the error of a rank that cannot do so itself."""
    write_error(
        run,
        rank,
        f"was killed (out of memory, or a signal); what it said last is in {run / 'logs' / f'rank-{rank}.log'}",
    )
    path = run / "errors" / f"rank-{rank}.json"
    entry = read(path)
    if isinstance(entry, dict):
        with contextlib.suppress(OSError):
            say(run, rank, path, entry | {"gone": True})


class Watch:
    """The thread of a rank that looks at those files. `asked`: the launcher wants the run saved and ended, or has gone."""

    def __init__(self, run: Path, rank: int, launch: dict[str, Any] | None, log: Callable[[str], None]) -> None:
        """For rank `rank`, with the launcher's LOCAL_RANK and LOCAL_SIZE in the environment.

        `launch`: content of launch.json; None under a bare launcher, where there is nothing to look at."""
        self.run, self.rank, self.launch, self.log = run, rank, launch, log
        self.asked = False
        # Two ranks of a node look for their siblings, so that many ranks do not keep a shared disk busy.
        first, size = rank - int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_SIZE", "1"))
        self._siblings = range(first, first + size) if rank - first < 2 else range(0)
        self._local = launch is not None and launch["machine"] == machine()
        self._alive: tuple[str, float] = ("", time.monotonic())
        self._ended = threading.Event()
        self._entry = me()
        (run / "errors" / f"rank-{rank}.json").unlink(missing_ok=True)
        if launch is not None:
            put(folder(run) / f"rank-{rank}.json", self._entry)
            (folder(run) / f"words-{rank}").write_bytes(bytes(WORDS))
            threading.Thread(target=self._looking, name="watch", daemon=True).start()

    def ask(self, *_: Any) -> None:
        """Ask for a stop after the running step; fits `signal.signal`."""
        self.asked = True

    def leave(self, how: str) -> None:
        """Say that this rank ends in order."""
        self._ended.set()
        with contextlib.suppress(OSError):
            if self.launch is None:
                return
            say(self.run, self.rank, folder(self.run) / f"rank-{self.rank}.json", self._entry | {"left": how})

    def _looking(self) -> None:
        failed: float | None = None
        while not self._ended.wait(LOOK_S):
            try:
                if (folder(self.run) / "abort").exists():
                    self._exit("told to end at once")
                for rank in missing(self.run, self._siblings):
                    write_gone(self.run, rank)
                if any((self.run / "errors").glob("rank-*.json")):
                    failed = failed or time.monotonic()
                    if time.monotonic() - failed > GRACE_S:
                        self._exit("another rank failed")
                if not self.asked:
                    self._look_at_launcher()
            except OSError:
                continue  # a disk that stumbles must not end the watch

    def _look_at_launcher(self) -> None:
        assert self.launch is not None
        if (folder(self.run) / "stop").exists():
            self.asked = True
        elif not self._present():
            self.asked = True
            if self.rank == 0:
                self.log("the launching process has gone: saving and ending")

    def _present(self) -> bool:
        assert self.launch is not None
        if self._local:
            return lives(self.launch)
        path = folder(self.run) / "alive"
        now = path.read_text(encoding="utf-8") if path.is_file() else ""
        if now != self._alive[0]:
            self._alive = (now, time.monotonic())
        return time.monotonic() - self._alive[1] < SILENT_S

    def _exit(self, why: str) -> None:
        self.leave(why)
        os._exit(1)  # the main thread may hang in a collective for as long as its timeout
