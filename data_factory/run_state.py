"""The state of one OUT folder: whose settings and inputs it was made from, and who is writing to it now."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_factory.benchmarks import place_digest
from data_factory.config import DataConfig
from ziya import config as settings
from ziya.errors import UserError
from ziya.files import file_digest, read_json, remove_temporaries, write_json
from ziya.manifest import Markers, identity

# Raised whenever the bytes that a step writes for the same settings change: an OUT of an older format is refused, not mixed.
FORMAT = 2


# Deciding settings that only touch documents which are kept already.
_AFTER_DECISIONS = ("evaluation.", "tokenizer.", "packing.", "seed", "sources.")
# Those of them that shape packs.
_PACKS = ("tokenizer.", "packing.mode", "packing.sequence_length", "seed", "sources.")


def setting_values(config: DataConfig, phase: str, stored: dict[str, Any] | None = None) -> dict[str, Any]:
    """Dotted name -> value of all settings of a phase; files are represented by digests of their content, input paths are left out.

    `stored`: values that a run was made with. A file that does not exist any more counts as unchanged when they hold
    its digest. Raises `UserError` for any other missing file.
    """
    values: dict[str, Any] = {}
    for name, field, given in settings.leaves(config):
        value = given
        if settings.phase(field) != phase or name.endswith(".paths"):
            continue
        if name.startswith("decontaminate.") and not config.decontaminate.against:
            continue  # off: an OUT of before it existed stays what it was
        if name == "scoring.models" and not config.scoring.enabled:
            value = {}  # never opened: they need not exist
        shown = _content(name, value, stored or {}) if settings.is_file(field) else value
        if isinstance(shown, dict):  # one entry a key, so that a change is named by its key
            values |= {f"{name}.{key}": item for key, item in sorted(shown.items())}
        else:
            values[name] = shown
    return values


def _content(name: str, value: Any, stored: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _content(f"{name}.{key}", item, stored) for key, item in sorted(value.items())}
    if isinstance(value, list):
        known = stored.get(name) or []
        if len(known) != len(value):
            known = [None] * len(value)
        return [_content(name, item, {name: digest}) for item, digest in zip(value, known, strict=True)]
    if value is None:
        return None
    path = Path(value)
    folders = name == "decontaminate.against"  # the one setting that may name folders
    if not (path.exists() if folders else path.is_file()):
        if stored.get(name) is not None:
            return stored[name]
        raise UserError(f"{name} = {value}: no such file; give the path of an existing file, or remove the setting")
    try:
        return place_digest(path) if folders else file_digest(path)
    except OSError as error:
        raise UserError(f"{name} = {value}: cannot be read ({error.strerror})") from error


def require_files(config: DataConfig, out: Path, *names: str) -> None:
    """Refuse, by its setting's name, a file that the next work opens and that is not there: an OUT was moved alone."""
    found = {name: value for name, field, value in settings.leaves(config) if settings.is_file(field) and name in names}
    missing = []
    for name, value in found.items():
        each = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in each:
            for path in item if isinstance(item, list) else [item]:
                if path is not None and not Path(path).is_file():
                    missing.append((f"{name}.{key}" if key else name, isinstance(item, list), path))
    if missing:
        told = ", ".join(f"{name} ({path})" for name, _, path in missing)
        give = " ".join(dict.fromkeys(f"{name}={'[PATH]' if many else 'PATH'}" for name, many, _ in missing))
        raise UserError(f"{out} needs files that are not there: {told}; give their places now: {give}")


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
        if name in given:
            return value
        if isinstance(value, dict):
            return {key: visit(item, f"{name}.{key}" if name else key) for key, item in value.items()}
        if name in files or name.rpartition(".")[0] in files:  # a file, or one of a mapping of files
            return _each_path(value, lambda path: os.path.normpath(out / path))
        return value

    return settings.parse(DataConfig, visit(config.model_dump(mode="json"), ""), str(out))


def require_run(out: Path) -> None:
    """Raises `UserError` for a place that no run was written to: none, a file, or another folder."""
    if not (out / "work" / "run.json").is_file():
        raise UserError(f"{out} holds no run: give the --output folder of a `ziya-data run`")


def measured(out: Path) -> bool:
    """Whether all input of OUT was measured: the tables of the last measuring steps are there."""
    names = ["frequent_lines.bin"]
    config = read_json(out / "work" / "run.json").get("config", {})
    if config.get("decontaminate", {}).get("against"):
        names.append("benchmarks.npz")
    return all((out / "work" / name).exists() for name in names)


def unfinished(out: Path) -> str:
    """What to say of an OUT without summary.json: which command goes on, a run that measures or a decision."""
    if measured(out):
        return f"{out} was not decided to its end (no summary.json): finish it with `ziya-data decide {out}`"
    return f"{out} holds no finished run (no summary.json): run the same `ziya-data run` again, to its end"


def require_finished(out: Path) -> None:
    """Raises `UserError` for what is no run, and for one whose summary is not there, naming the command that goes on."""
    require_run(out)
    if not (out / "summary.json").is_file():
        raise UserError(unfinished(out))


def stored_config(out: Path) -> DataConfig:
    """The config that OUT was last asked to be decided with. Raises `UserError` for what is no run."""
    require_run(out)
    return _with_paths(settings.parse(DataConfig, read_json(out / "work" / "run.json")["config"], str(out)), out, set())


@dataclass(frozen=True)
class Decided:
    """The settings that one unit's decisions were made with, and how they differ from those that OUT was last asked for.

    `changes`: `name: then -> asked`, none when they are the same. `known`: whether they are on record; a run that was
    killed while it wrote that unit leaves decisions that only its end can vouch for.
    """

    config: DataConfig
    changes: list[str]
    known: bool


def decided_settings(out: Path, unit: str) -> Decided:
    """What the decisions of `unit` in OUT were made with (see `RunState.record_decision`)."""
    asked = read_json(out / "work" / "run.json")
    decisions, markers = Path("decisions") / f"{unit}.parquet", Markers(out, out / "work")
    records = sorted((out / "work" / "decided").glob("*.json"))
    for path in records:
        if markers.result("decide", unit, path.stem) is None:
            continue
        if markers.outputs("decide", unit)[str(decisions)] != file_digest(out / decisions):
            continue
        record = read_json(path)
        config = _with_paths(settings.parse(DataConfig, record["config"], str(out)), out, set())
        return Decided(config, settings.changes(record["deciding"], asked["deciding"]), True)
    return Decided(stored_config(out), [], not records or not (out / decisions).exists())


def _not_given(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Stored values of the settings that no override names."""
    return {
        name: value
        for name, value in values.items()
        if not any(name == key or name.startswith(f"{key}.") for key in given)
    }


class RunState:
    """Locks OUT, compares what it was made from with what is asked now, and keeps the decided settings."""

    def __init__(self, out: Path) -> None:
        self.out, self.work = out, out / "work"
        self.markers = Markers(out, self.work)
        self.measured = ""  # identity of measuring settings and inputs
        self.inputs: dict[str, Any] = {}  # source/label -> bytes and digest, as the plan read them
        self.deciding: dict[str, Any] = {}  # deciding settings by name, files as digests

    @classmethod
    @contextmanager
    def open(cls, out: Path, *, restart: bool = False, existing: bool = False) -> Iterator[RunState]:
        """Lock OUT. `restart` empties an OUT of ours first; `existing` refuses a folder that no run made."""
        state = cls(out)
        if existing:
            require_run(out)
        ours = (state.work / "run.json").exists()
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
        self.inputs, self.deciding = listed, deciding
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
        measuring = setting_values(config, settings.MEASURING, _not_given(stored["measuring"], given)) | {
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
        deciding = self.deciding = setting_values(config, settings.DECIDING, _not_given(stored["deciding"], given))
        changes = settings.changes(stored["deciding"], deciding)
        changed = [name for name in changes if not name.startswith(_AFTER_DECISIONS)]
        if changed and (self.work / "pruned").exists():
            raise UserError(
                f"{self.out} was pruned: the texts of its dropped documents are gone, so {'; '.join(changed)} cannot "
                "be decided again; run with another --output"
            )
        check(config, self.out)
        require_files(config, self.out, *self._opened(config, changes))
        if deciding != stored["deciding"]:
            (self.out / "summary.json").unlink(missing_ok=True)  # until the new decisions are whole there is no result
            write_json(self.work / "run.json", {**stored, "config": _relocated(config, self.out), "deciding": deciding})
        return config

    def _opened(self, config: DataConfig, changes: list[str]) -> list[str]:
        """File settings that deciding opens when `changes` are made: those of the steps that have to run again."""
        everything = not (self.out / "summary.json").exists() or any(
            not name.startswith(_AFTER_DECISIONS) for name in changes
        )
        names = ["dedup.seen_urls"] if everything else []
        if config.evaluation.enabled and (
            everything or any(name.startswith(("evaluation.", "seed")) for name in changes)
        ):
            names += ["evaluation.toxic_lexicons", "evaluation.advert_lexicons"]
            names += ["scoring.models"] if config.scoring.enabled else []
        if everything or any(name.startswith(_PACKS) for name in changes):
            names.append("tokenizer.path")
        return names

    def record_decision(self, decided: str) -> None:
        """Keep the settings of the decisions with the identity `decided` before the first of them is written."""
        stored = read_json(self.work / "run.json")
        write_json(
            self.work / "decided" / f"{decided}.json", {"config": stored["config"], "deciding": stored["deciding"]}
        )

    def forget_other_decisions(self, decided: str) -> None:
        """All decisions are those with the identity `decided`: drop the settings of earlier ones."""
        for path in (self.work / "decided").glob("*.json"):
            if path.stem != decided:
                path.unlink()

    def summary(self) -> dict[str, Any]:
        """summary.json of a finished run, or an empty mapping."""
        path = self.out / "summary.json"
        return dict(read_json(path)) if path.exists() else {}
