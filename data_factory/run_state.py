"""The state of one OUT folder: whose settings and inputs it was made from, and who is writing to it now."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_factory.config import DataConfig
from ziya import config as settings
from ziya.errors import UserError
from ziya.files import file_digest, read_json, remove_temporaries, write_json
from ziya.manifest import Markers, identity

# Raised whenever the bytes that a step writes for the same settings change: an OUT of an older format is refused, not mixed.
FORMAT = 1


# Deciding settings that only touch documents which are kept already.
_AFTER_DECISIONS = ("evaluation.", "tokenizer.", "packing.", "seed", "sources.")


def setting_values(config: DataConfig, phase: str) -> dict[str, Any]:
    """Dotted name -> value of all settings of a phase; files are represented by digests of their content, input paths are left out."""
    values: dict[str, Any] = {}
    for name, field, given in settings.leaves(config):
        value = given
        if settings.phase(field) != phase or name.endswith(".paths"):
            continue
        if name == "scoring.models" and not config.scoring.enabled:
            value = {}  # never opened: they need not exist
        shown = _content(name, value) if settings.is_file(field) else value
        if isinstance(shown, dict):  # one entry a key, so that a change is named by its key
            values |= {f"{name}.{key}": item for key, item in sorted(shown.items())}
        else:
            values[name] = shown
    return values


def _content(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _content(f"{name}.{key}", item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [_content(f"{name}.{number}", item) for number, item in enumerate(value)]
    if value is None:
        return None
    path = Path(value)
    if not path.is_file():
        raise UserError(f"{name} = {value}: no such file; give the path of an existing file, or remove the setting")
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{name} = {value}: cannot be read ({error.strerror})") from error


def _relocated(config: DataConfig, out: Path) -> dict[str, Any]:
    """The config as plain data with file settings relative to `out` (no absolute path enters outputs) and without input paths."""
    files = {name for name, field in settings.walk(DataConfig) if settings.is_file(field)}

    def visit(value: Any, name: str) -> Any:
        if name in files:
            return _each_path(value, lambda path: os.path.relpath(Path(path).absolute(), out.absolute()))
        if isinstance(value, dict):
            return {key: visit(item, f"{name}.{key}" if name else key) for key, item in value.items()}
        return value

    raw: dict[str, Any] = visit(config.model_dump(mode="json"), "")
    for source in raw["sources"]:
        source["paths"] = []
    return raw


def _each_path(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, list):
        return [change(item) for item in value]
    return change(value) if value is not None else None


def _with_paths(config: DataConfig, out: Path, given: set[str]) -> DataConfig:
    """A stored config with usable paths: stored ones are relative to `out`, those of overrides (`given` keys) to the current folder."""
    files = {name for name, field in settings.walk(DataConfig) if settings.is_file(field)}

    def visit(value: Any, name: str) -> Any:
        if name in files:
            own = any(key == name or key.startswith(f"{name}.") for key in given)
            return value if own else _each_path(value, lambda path: os.path.normpath(out / path))
        if isinstance(value, dict):
            return {key: visit(item, f"{name}.{key}" if name else key) for key, item in value.items()}
        return value

    return settings.parse(DataConfig, visit(config.model_dump(mode="json"), ""), str(out))


def stored_config(out: Path) -> DataConfig:
    """The config that OUT was decided with."""
    return _with_paths(settings.parse(DataConfig, read_json(out / "work" / "run.json")["config"], str(out)), out, set())


class RunState:
    """Locks OUT, compares what it was made from with what is asked now, and keeps the decided settings."""

    def __init__(self, out: Path) -> None:
        self.out, self.work = out, out / "work"
        self.markers = Markers(out, self.work)
        self.measured = ""  # identity of measuring settings and inputs
        self.inputs: dict[str, Any] = {}  # source/label -> bytes and digest, as the plan read them

    @classmethod
    @contextmanager
    def open(cls, out: Path, *, restart: bool = False, existing: bool = False) -> Iterator[RunState]:
        """Lock OUT. `restart` empties an OUT of ours first; `existing` refuses a folder that no run made."""
        state = cls(out)
        ours = (state.work / "run.json").exists()
        if existing and not ours:
            raise UserError(f"{out} holds no run: give the --output folder of a `ziya-data run`")
        if not ours and out.is_dir() and any(path.name != "work" for path in out.iterdir()):
            raise UserError(f"{out} is not empty and no run made it: give a new or empty folder as --output")
        try:
            state.work.mkdir(parents=True, exist_ok=True)
            lock = (state.work / "lock").open("w")
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}): give another --output folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process is working on {out}: wait for it or stop it") from error
            if restart:
                for path in out.iterdir():
                    if path.name != "work":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                for path in state.work.iterdir():
                    if path.name != "lock":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            remove_temporaries(out)
            yield state

    def begin(self, config: DataConfig, inputs: list[dict[str, Any]], limit: int | None) -> None:
        """Start or go on with a run: refuses an OUT made from other settings or inputs, naming what changed."""
        path = self.work / "run.json"
        measuring, deciding = setting_values(config, settings.MEASURING), setting_values(config, settings.DECIDING)
        measuring |= {"(format)": FORMAT, "--limit": limit}
        listed = {f"{item['source']}/{item['label']}": [item["bytes"], item["digest"]] for item in inputs}
        if path.exists():
            old = read_json(path)
            changed = settings.changes(old["measuring"], measuring)
            changed += [f"input {line}" for line in settings.changes(old["inputs"], listed)]
            if changed:
                raise UserError(
                    f"{self.out} was made with other settings or input ({'; '.join(changed[:8])}): use another "
                    "--output, or --restart to start over"
                )
            changed = settings.changes(old["deciding"], deciding)
            if changed:
                raise UserError(
                    f"{self.out} was decided with other settings ({'; '.join(changed[:8])}): change them back, use "
                    f"`ziya-data decide {self.out} key=value`, "
                    "another --output, or --restart to start over"
                )
        self.inputs = listed
        self.measured = identity(measuring, listed)
        self.unit_settings = identity(measuring)
        write_json(
            path,
            {"config": _relocated(config, self.out), "measuring": measuring, "deciding": deciding, "inputs": listed},
        )

    def decided_config(self, overrides: list[str], check: Callable[[DataConfig, Path], None]) -> DataConfig:
        """The stored config with deciding overrides applied; measuring ones are refused by name.

        `check` refuses what cannot work. Only what passes it is stored: a refused call changes nothing.
        """
        stored = read_json(self.work / "run.json")
        raw = settings.apply_overrides(stored["config"], overrides)
        asked = settings.parse(DataConfig, raw, f"{self.out} with {' '.join(overrides)}")
        given = {override.partition("=")[0].strip() for override in overrides}
        config = _with_paths(asked, self.out, given)
        measuring = setting_values(config, settings.MEASURING) | {
            key: stored["measuring"][key] for key in ("(format)", "--limit")
        }
        changed = settings.changes(stored["measuring"], measuring)
        if changed:
            names = "; ".join(changed)
            raise UserError(
                f"decide cannot change measuring settings ({names}): they shape what was measured; use `ziya-data "
                "run` with another --output"
            )
        self.measured = identity(measuring, stored["inputs"])
        self.unit_settings = identity(measuring)
        deciding = setting_values(config, settings.DECIDING)
        changed = [
            name
            for name in settings.changes(stored["deciding"], deciding)
            if not name.startswith(_AFTER_DECISIONS)
        ]
        if changed and (self.work / "pruned").exists():
            raise UserError(
                f"{self.out} was pruned: the texts of its dropped documents are gone, so {'; '.join(changed)} cannot "
                "be decided again; run with another --output"
            )
        check(config, self.out)
        if deciding != stored["deciding"]:
            (self.out / "summary.json").unlink(missing_ok=True)  # until the new decisions are whole there is no result
            write_json(self.work / "run.json", {**stored, "config": _relocated(config, self.out), "deciding": deciding})
        return config

    def summary(self) -> dict[str, Any]:
        """summary.json of a finished run, or an empty mapping."""
        path = self.out / "summary.json"
        return dict(read_json(path)) if path.exists() else {}
