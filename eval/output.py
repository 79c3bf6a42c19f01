"""The output folder: whose it is, which models stand in it, and what in it is out of date.

A model's name is its place in OUT, so one name belongs to one model: a name may come again from the same folder (however its path
is written) or from another folder with the same weights (a run that was moved). A checkpoint that was written anew in its folder
keeps its name; what the former weights scored is discarded, so that results.json never mixes both.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.config import EvalConfig
from eval.models_found import Found
from ziya.config import MEASURING, changes, leaves, phase
from ziya.errors import UserError
from ziya.files import TEMPORARY, read_json, remove_temporaries, write_json
from ziya.progress import log

LOCK, ABOUT, MODELS, CACHE = ".lock", "eval.json", "models.json", "cache"
# All that a run leaves in OUT beside the cache; ABOUT goes last, so that an interrupted --restart can be repeated.
FOLDERS = ("samples", "variants", "perplexity")
FILES = (
    "results.json", "variants.json", "perplexity.json", "contamination.json", "report.json", "table.md", "curves.png",
    "curves.svg", "report.html", MODELS, ABOUT,
)  # fmt: skip
BEFORE = {LOCK, CACHE, "contamination.json"}  # what may lie in OUT before its first run


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep a second `ziya-eval run` out of the folder: each would rewrite the other's results."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except (FileExistsError, NotADirectoryError) as error:
        wrong = next(path for path in (*reversed(out.parents), out) if path.exists() and not path.is_dir())
        raise UserError(f"--output {out}: {wrong} is a file: give a folder") from error
    except OSError as error:
        raise UserError(f"--output {out} cannot be written ({error.strerror}): give another folder") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{out} is in use by another ziya-eval run: wait for it, or give another --output"
            ) from error
        yield


def open_output(out: Path, config: EvalConfig, restart: bool) -> None:
    """Claim OUT for the fixed settings, or refuse it. `restart` discards what a former run made, in a folder of ours only."""
    fixed = {name: value for name, field, value in leaves(config) if phase(field) == MEASURING}
    former = _former(out)
    if former is None:
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith(TEMPORARY))
        others = [name for name in others if name not in BEFORE]
        if others:
            raise UserError(
                f"{out} holds other files ({', '.join(others[:3])}): give an empty or new folder as --output"
            )
    elif restart:
        discard_all(out)
    else:
        differing = changes(former, fixed)
        if differing and any(next((out / name).rglob("*.json"), None) for name in FOLDERS):  # else nothing was scored yet
            raise UserError(
                f"{out} holds scores of other settings ({'; '.join(differing)}): give the former ones, another --output, or "
                "--restart to discard the scores"
            )
    remove_temporaries(out)
    write_json(out / ABOUT, {"settings": fixed})


def _former(out: Path) -> dict[str, Any] | None:
    """The fixed settings of the runs before, None when there is no eval.json of ours."""
    path = out / ABOUT
    if not path.is_file():
        return None
    value = read_json(path)
    settings = value.get("settings") if isinstance(value, dict) else None
    return settings if isinstance(settings, dict) and "protocol" in settings else None


def discard_all(out: Path) -> None:
    """Remove what runs made, all but the stored answers."""
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)


def models(out: Path) -> list[dict[str, Any]]:
    """The lines of models.json, none before the first model."""
    path = out / MODELS
    return read_json(path) if path.is_file() else []


def check_name(out: Path, found: Found, weights: Callable[[], str]) -> None:
    """Refuse a model whose name stands in OUT for another one; `weights` gives the digest of its weights."""
    for line in models(out):
        if line["model"] != found.name or _place(line["folder"]) == _place(found.folder) or not _kept(out, found.name):
            continue
        if line.get("weights") != weights():
            raise UserError(
                f"{out} has scores of {found.name} from {line['folder']}, and {_place(found.folder)} has the same name and other "
                "weights: give another --output, or rename the model's folder (for an export: its run's folder)"
            )


def register(out: Path, found: Found, weights: str) -> None:
    """Add a model to models.json: the base first, then by run and step, in the order of their coming.

    UserError: its name stands there for another model.
    """
    check_name(out, found, lambda: weights)
    known = [line for line in models(out) if line["model"] != found.name]
    if found.is_base:
        known = [{**line, "is_base": False} for line in known]
    line = {**found.to_json(), "folder": _place(found.folder), "weights": weights}
    line["run"] = None if found.run is None else _place(found.run)
    ordered = sorted(
        [*known, line],
        key=lambda line: (not line["is_base"], line["run"] or "", -1 if line["step"] is None else line["step"]),
    )
    write_json(out / MODELS, ordered)


def _place(folder: str) -> str:
    return str(Path(folder).resolve())


def discard_stale(out: Path, name: str, identity: dict[str, Any]) -> None:
    """Delete what a model's name scored with other weights, tokenizer or dtype, whether it is asked again in this call or not.

    Results that hold such scores go too; the run's end writes them anew.
    """
    kept = {path: read_json(path).get("identity") or {} if path.is_file() else None for path in _kept(out, name)}
    for path in (path for path, former in kept.items() if former is None):  # lines of a run that was killed before their record
        path.with_suffix(".jsonl").unlink()
    stale = {path: former for path, former in kept.items() if former is not None and former != identity}
    if not stale:
        return
    what = dict.fromkeys("held-out texts" if path.parent.name == "perplexity" else path.stem for path in stale)
    changed = dict.fromkeys(key for former in stale.values() for key in identity if former.get(key) != identity[key])
    log(f"{name} has other {', '.join(changed)} than when it was scored: its former scores are discarded ({', '.join(what)})")
    (out / "results.json").unlink(missing_ok=True)
    is_base = any(line["is_base"] for line in models(out) if line["model"] == name)
    for path in stale:
        if path.parent.name == "perplexity":  # where it is the base, the others' rows hold its numbers too
            _rewrite(out / "perplexity.json", lambda rows: [] if is_base else _others(rows, name))
        path.with_suffix(".jsonl").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    _rewrite(out / "contamination.json", lambda value: {**value, "scores": _others(value.get("scores", []), name)})


def _kept(out: Path, name: str) -> list[Path]:
    """The records of a model's samples, also of lines whose record is missing, and of its held-out documents."""
    folders = [out / "samples" / name, *sorted((out / "variants").glob(f"*/{name}"))]
    found = {path.with_suffix(".json") for folder in folders for path in folder.glob("*.json*")}
    bits = out / "perplexity" / f"{name}.json"
    return sorted(found) + ([bits] if bits.is_file() else [])


def _rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; one of which nothing is left is removed."""
    if path.is_file():
        value = change(read_json(path))
        if value:
            write_json(path, value)
        else:
            path.unlink()


def _others(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["model"] != name]


__all__ = ["check_name", "claimed", "discard_stale", "models", "open_output", "register"]
