"""Which folders `run=` may name: a run rewrites config.json, empties RUN/launch and RUN/errors and prunes RUN/checkpoints, so it
must never begin among files of something else.

A folder is taken when it is new, empty, or made by a run: its config.json is a run's record, or there is none and every file is
one that a start leaves before it writes the record, or a log (`ziya-train ... 2> RUN/train.log`).
Nothing here writes, but for `take_back`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from training.config import TrainConfig
from ziya.errors import UserError
from ziya.files import TEMPORARY, read_json

RECORD = {"version", "begun", "config", "fixed", "packs", "model"}  # keys of RUN/config.json
_LEFT = re.compile(
    r"lock|index(/.*)?|latest|launch|launch/(launch\.json|alive|stop|abort|outcome\.json|hostfile|(rank|words)-\d+(\.json)?)"
    r"|errors|errors/rank-\d+\.json|logs|(logs/)?[^/]+\.(log|out|err)"
)
_CHECKPOINTS = "checkpoints/*/manifest.json"


def check(config: TrainConfig) -> None:
    """UserError unless `run` is a folder that a run may begin or go on in, apart from the base model's."""
    run, base = Path(config.run), Path(config.model.base)
    check_parents(run, f"run={run}")
    if run.exists() and not run.is_dir():
        raise UserError(f"run={run} is a file: name a new or empty folder, or that of a run")
    here, model = run.resolve(), base.resolve()
    if here == model or model in here.parents or here in model.parents:
        how = "is" if here == model else "lies in" if model in here.parents else "holds"
        raise UserError(f"run={run} {how} model.base {base}: a run needs a folder of its own, give another run=FOLDER")
    other = foreign(run)
    if other is not None:
        raise UserError(
            f"run={run} holds {other}, which no run of ziya-train has written: nothing was changed there; give a new or empty "
            f"folder, or that of a run"
        )


def foreign(run: Path) -> str | None:
    """What in a folder tells that no run has made it, in words; None when it is new, empty, or a run's."""
    if not run.is_dir():
        return None
    if (run / "config.json").exists():
        return None if is_record(run / "config.json") else "another config.json"
    if any(run.glob(_CHECKPOINTS)):  # a run whose record was lost
        return None
    found = [*run.iterdir(), *(path for name in ("launch", "errors", "logs") for path in (run / name).glob("*"))]
    for path in sorted(found):
        if not path.name.startswith(TEMPORARY) and not _LEFT.fullmatch(path.relative_to(run).as_posix()):
            return str(path.relative_to(run))
    return None


def is_record(path: Path) -> bool:
    """Whether a config.json is what `preflight` writes, and not, say, a Hugging Face model's."""
    try:
        value = read_json(path)
    except (UserError, OSError):
        return False
    return isinstance(value, dict) and value.keys() >= RECORD


def check_parents(path: Path, name: str) -> None:
    """UserError when a folder above `path` is a file; `name`: how the path was given, for the message."""
    for above in path.absolute().parents:
        if above.is_dir():
            return
        if above.exists():
            raise UserError(f"{name}: {above} is a file, so no folder can be made in it: give another path")


def missing(run: Path) -> list[Path]:
    """The folders that making `run` would make, deepest first."""
    return [path for path in (run, *run.parents) if not path.exists()]


def take_back(made: list[Path]) -> None:
    """Remove folders that a refused start has made (`missing`), unless anything but its lock and index lies in the run."""
    if not made or {path.name for path in made[0].iterdir()} - {"lock", "index"}:
        return
    shutil.rmtree(made[0], ignore_errors=True)
    for path in made[1:]:
        with contextlib.suppress(OSError):  # something else lies there by now
            path.rmdir()
