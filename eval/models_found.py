"""What is evaluated: a Hugging Face folder, a model of the hub, or every export of a training run, and the base beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.cache import WEIGHTS, weights_files
from ziya.errors import UserError
from ziya.exports import ABOUT, is_export, read_export
from ziya.progress import log

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Found:
    """One model. `name` is unique in an output folder and names its samples' folder; step, stage and tokens are an export's."""

    name: str
    folder: str
    step: int | None = None
    stage: int | None = None
    tokens: int | None = None
    is_base: bool = False
    run: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Its line of models.json."""
        found = asdict(self)
        return {"model": found.pop("name"), **found}


def find(
    model: str,
    base: str | None,
    *,
    every: int = 1,
    allow_hub: bool = False,
    waiting: bool = False,
    fetch: bool = True,
    tell: Callable[[str], None] = log,
) -> list[Found]:
    """The base first, then the model or the run's exports by step. `every`: each n-th export, the last one always.

    `waiting`: more exports are to come, so the last one is none yet, and a run without any is no mistake. `fetch` False: a
    model of the hub is not fetched; its folder is then its id.

    UserError: neither folder nor hub id, no weights, no export (with the command that makes one). Checkpoints without an
    export are told, each with its command.
    """
    path = Path(model)
    found: list[Found] = []
    if is_run(path):
        found = exports(path, every, last=not waiting)
        if not found and not waiting:
            raise no_exports(path)
        for step in not_exported(path):
            tell(
                f"step {step} of {path} is not exported and is left out; to evaluate it: {_export_command(path, step)}"
            )
    else:
        found = [_one(model, allow_hub, fetch)]
    if base is not None:
        if is_run(Path(base)):
            raise UserError(f"--base {base} is a training run: give the Hugging Face folder that the run started from")
        first = _one(base, allow_hub, fetch)
        found = [Found(_free(f"base-{first.name}", found), first.folder, is_base=True), *found]
    return found


def is_run(path: Path) -> bool:
    """Whether a folder is a training run, however young, and not itself a model."""
    inside = any((path / name).exists() for name in ("exports", "checkpoints", "metrics.jsonl", "lock"))
    return inside and not any(path.glob("*.safetensors"))


def foreign_folder(path: Path) -> str | None:
    """What a folder is that is neither a place for results nor training text: a training run or a model; None for any other."""
    if is_run(path):
        return "the folder of a training run"
    settings = (path / "config.json").is_file()
    weights = any(any(path.glob(pattern)) for pattern in WEIGHTS)
    return "the folder of a model" if weights or (settings and (path / "tokenizer.json").is_file()) else None


def no_exports(run: Path) -> UserError:
    """What is told of a run without exports: the command that makes one."""
    missing = not_exported(run)
    if not missing:
        return UserError(f"{run} has neither exports nor checkpoints: train it first, or give a Hugging Face folder")
    return UserError(f"{run} has no exported checkpoint: run {_export_command(run, missing[-1])}, then this again")


def exports(run: Path, every: int = 1, *, last: bool = True) -> list[Found]:
    """Each n-th of a run's whole exports by step, and with `last` the last one whatever its number.

    An export is whole when its `ziya.json`, written last, is there.
    """
    found = []
    for folder in sorted((run / "exports").glob("step-*"), key=lambda path: _number(path.name)):
        if not _STEP.fullmatch(folder.name) or not is_export(folder):
            continue
        about = read_export(folder)
        weights_files(folder)
        name = f"{_safe(run.resolve().name)}-{folder.name}"
        found.append(Found(name, str(folder), about.step, about.stage, about.tokens, run=str(run)))
    chosen = found[every - 1 :: every]
    return [*chosen, *(one for one in found[-1:] if last and one not in chosen)]


def not_exported(run: Path) -> list[int]:
    """Steps of a run's checkpoints that have no export."""
    steps = {_number(path.name) for path in (run / "checkpoints").glob("step-*") if _STEP.fullmatch(path.name)}
    return sorted(steps - {_number(path.parent.name) for path in (run / "exports").glob(f"step-*/{ABOUT}")})


def _one(model: str, allow_hub: bool, fetch: bool) -> Found:
    path = Path(model)
    if path.is_dir():
        if path.name in ("exports", "checkpoints") and any(path.glob("step-*")):
            raise UserError(f"{path} lies inside a ziya run: give the run itself, {path.parent}")
        weights_files(path)
        if not (path / "config.json").is_file():
            raise UserError(
                f"{path} holds no config.json: give a folder that save_pretrained or ziya-train export wrote"
            )
        name = _safe(path.resolve().name)
        if not is_export(path):
            return Found(name, str(path))
        about = read_export(path)
        return Found(name, str(path), about.step, about.stage, about.tokens)
    if path.exists():
        raise UserError(f"{model} is a file: give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(model) or model.count("/") != 1:
        raise UserError(f"{model} does not exist: give a Hugging Face folder, a ziya run or a hub id such as ORG/NAME")
    if not allow_hub:
        raise UserError(f"{model} is not a folder here: give one, or allow_hub=true to fetch that model from the hub")
    return Found(_safe(model), _fetched(model) if fetch else model)


def _fetched(model: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return str(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{model} cannot be fetched from the hub: {' '.join(str(error).split())[:300]}") from error


def _export_command(run: Path, step: int) -> str:
    return f"`ziya-train export {shlex.quote(str(run))} --step {step}`"


def _number(name: str) -> int:
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else -1


def _safe(name: str) -> str:
    """A name that is a folder's name on any file system; Chinese stays as it is."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model"


def _free(name: str, taken: Sequence[Found]) -> str:
    names = {found.name for found in taken}
    while name in names:
        name += "-"
    return name


__all__ = ["Found", "exports", "find", "is_run", "no_exports", "not_exported"]
