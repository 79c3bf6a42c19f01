"""State on disk: copied to the host by all ranks, written behind the training's back, made valid by one rename.

    RUN/checkpoints/step-N.tmp/rank-XXXX.safetensors   each rank, in the background; fsynced, hashed
    all ranks tell their hashes (main thread, CPU group: at the next `poll` or `wait`)
    step-N.tmp/manifest.json -> rename to step-N -> RUN/latest -> prune      rank 0

A folder named `step-N` is whole, at any moment: what a killed process leaves is called `.tmp` (removed at the next start or save) or
`.old` (the former step-N while another takes its place; taken back when that did not happen).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training import reshard
from training.agreement import Ranks, told
from training.config import CheckpointSettings
from training.layout import Layout, Place
from training.reshard import (
    MANIFEST,
    FileEntry,
    Fragment,
    LayoutEntry,
    Manifest,
    Stored,
    adam_steps,
    flat_masters,
    owned,
    replicated,
)
from ziya.config import changes
from ziya.errors import UserError
from ziya.files import remove_temporaries, write_bytes

if TYPE_CHECKING:
    from training.engine import Engine

LATEST = "latest"
_TEMPORARY, _FORMER = ".tmp", ".old"


class SaveError(UserError):
    """A checkpoint could not be saved; training's state is untouched and the last whole checkpoint stands."""


def recover(run: Path) -> None:
    """Clear away what a killed process left, so that every folder in RUN/checkpoints is whole. For the run's one writer."""
    root = run / "checkpoints"
    for former in sorted(root.glob(f"step-*{_FORMER}")):
        final = former.with_suffix("")
        if final.exists():
            shutil.rmtree(former)
        else:
            former.rename(final)
    for path in sorted(root.glob(f"step-*{_TEMPORARY}")):
        shutil.rmtree(path, ignore_errors=True)
    remove_temporaries(root)


def whole_checkpoints(run: Path) -> list[Stored]:
    """All whole checkpoints, in the order in which they were saved."""
    folders = {path.name.removesuffix(_FORMER): path for path in (run / "checkpoints").glob(f"step-*{_FORMER}")}
    folders |= {path.name: path for path in (run / "checkpoints").glob("step-*") if path.suffix == ""}
    found = [Stored(path) for path in folders.values() if (path / MANIFEST).is_file()]
    return sorted(found, key=lambda stored: stored.manifest.serial)


def find(run: Path, step: int | None = None) -> Stored | None:
    """The checkpoint of `step`, else the one that RUN/latest names, else the last one saved; None when there is none.

    UserError when `step` is asked for and not there.
    """
    stored = whole_checkpoints(run)
    if step is not None:
        for one in stored:
            if one.step == step:
                return one
        there = ", ".join(str(one.step) for one in stored) or "none"
        raise UserError(f"{run} has no checkpoint of step {step}; there are: {there}")
    latest = run / LATEST
    name = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    named = [one for one in stored if f"step-{one.step}" == name]
    return (named or stored)[-1] if stored else None


@dataclass
class _Pending:
    """A save under way. `report` is this rank's part of the manifest, or {"error": text}; set when `thread` has ended."""

    step: int
    extras: dict[str, Any]
    folder: Path
    report: dict[str, Any] = field(default_factory=dict)
    thread: threading.Thread | None = None


class Checkpoints:
    """Saves and loads of one run. Every method is collective: all ranks call it at the same place with the same step."""

    def __init__(self, run: Path, engine: Engine, layout: Layout, place: Place, settings: CheckpointSettings) -> None:
        """`run` must be on a disk that all nodes share. Clears away what a killed process left."""
        self.run, self.engine, self.layout, self.place, self.settings = run, engine, layout, place, settings
        self.root = run / "checkpoints"
        self.ranks = Ranks()
        self.rank = self.ranks.rank
        self._pending: _Pending | None = None
        self.held: set[int] = set()
        """Steps that are read, or will be, and must not be pruned; rank 0's."""
        self.ranks.together(lambda: recover(run) if self.rank == 0 else None)

    def save(self, step: int, extras: dict[str, Any], *, wait: bool) -> None:
        """Copy the state to the host and write it, in the background unless `wait` or the settings say otherwise.

        `extras`: plain JSON values, the same on all ranks; extras["state"] is `RunState.to_json()`. An earlier save is
        finished first. Raises SaveError, alike on all ranks; this save's fate is known after `poll` or `wait`.
        """
        self.wait()
        json.dumps(extras, allow_nan=False)  # what JSON would change silently is refused here
        if extras["state"]["step"] != step:
            raise ValueError(f"step {step}, but extras hold the state of step {extras['state']['step']}")
        folder = self.root / f"step-{step}{_TEMPORARY}"
        pending = _Pending(step, extras, folder)

        def copy() -> list[Fragment]:
            if self.rank == 0:
                recover(self.run)
                folder.mkdir(parents=True)
            mine = [fragment for fragment in owned(self.engine) if self._writes(fragment.name)]
            return [
                Fragment(f.name, f.start, f.numel, {k: t.to("cpu", copy=True) for k, t in f.tensors.items()})
                for f in mine
            ]

        try:
            fragments = self.ranks.together(copy)
        except UserError as error:
            self._clear()
            raise self._failed(step, str(error)) from error
        self._pending = pending
        steps = adam_steps(self.engine)
        if self.settings.background and not wait:
            pending.thread = threading.Thread(target=self._write, args=(pending, fragments, steps), name="checkpoint")
            pending.thread.start()
            return
        self._write(pending, fragments, steps)
        if wait:
            self.wait()

    def _writes(self, name: str) -> bool:
        """Whether this rank is the one that saves its fragments of `name`."""
        return not (replicated(name) and self.place.tensor) and not (self.layout.zero == 0 and self.place.data)

    def _write(self, pending: _Pending, fragments: Sequence[Fragment], steps: dict[str, float]) -> None:
        """Write this rank's file; runs beside training, so it calls nothing collective and keeps every error for the report."""
        name = f"rank-{self.rank:04d}.safetensors"
        report: dict[str, Any] = {"steps": steps, "file": name if fragments else None}
        try:
            if fragments:
                size, digest = reshard.write_fragments(pending.folder / name, fragments)
                weights = {fragment.name: [fragment.start, fragment.numel] for fragment in fragments}
                report |= {"bytes": size, "digest": digest, "weights": weights}
            report |= {"tensor": self.place.tensor, "pipeline": self.place.pipeline, "data": self.place.data}
        except BaseException as error:  # whatever it is, the other ranks must learn of it
            report = {"error": told(error)}
        pending.report = report

    def poll(self) -> int | None:
        """Finish a save that all ranks have written; its step, or None when nothing was finished. Raises SaveError."""
        if self._pending is None:
            return None
        writing = self._pending.thread is not None and self._pending.thread.is_alive()
        return None if any(self.ranks.gather(writing)) else self._finish(self._pending)

    def wait(self) -> int | None:
        """Finish the save under way, if any; its step. Raises SaveError."""
        if self._pending is None:
            return None
        if self._pending.thread is not None:
            self._pending.thread.join()
        return self._finish(self._pending)

    def _finish(self, pending: _Pending) -> int:
        self._pending = None
        reports = self.ranks.gather(pending.report)
        errors = [f"rank {rank}: {report['error']}" for rank, report in enumerate(reports) if "error" in report]
        if not errors:
            try:
                self.ranks.together(lambda: self._commit(pending, reports) if self.rank == 0 else None)
            except UserError as error:
                errors = [str(error)]
        if errors:
            self._clear()
            raise self._failed(pending.step, errors[0])
        return pending.step

    def _commit(self, pending: _Pending, reports: list[dict[str, Any]]) -> None:
        """Rank 0, all files written: manifest, rename, `latest`, prune."""
        steps: dict[str, float] = {}
        for report in reports:
            for kind, count in report.pop("steps").items():
                if steps.setdefault(kind, count) != count:
                    raise UserError(f"ranks have taken {steps[kind]} and {count} AdamW steps of group {kind}")
        files = {report.pop("file"): report for report in reports if report["file"]}
        for name, report in files.items():
            path = pending.folder / name
            if not path.is_file() or path.stat().st_size != report["bytes"]:
                raise UserError(f"{path} is not seen by rank 0: run must be a folder that all nodes share")
        before = whole_checkpoints(self.run)
        state = pending.extras["state"]
        Manifest(
            step=pending.step,
            stage=state["stage"],
            tokens=state["tokens"],
            serial=1 + max((stored.manifest.serial for stored in before), default=0),
            precision=self._precision(),
            layout=LayoutEntry(**asdict(self.layout)),
            adam_steps=steps,
            architecture=self._architecture(),
            files={name: FileEntry(**report) for name, report in files.items()},
            extras=pending.extras,
        ).write(pending.folder)
        Stored(pending.folder).covers()
        final = self.root / f"step-{pending.step}"
        former = final.with_name(final.name + _FORMER)
        _sync(pending.folder)
        if final.exists():
            final.rename(former)
        pending.folder.rename(final)
        _sync(self.root)
        shutil.rmtree(former, ignore_errors=True)
        write_bytes(self.run / LATEST, f"{final.name}\n".encode())
        with contextlib.suppress(OSError):  # the checkpoint stands; what could not be removed goes with the next save
            self._prune()

    def _prune(self) -> None:
        """Remove what the policy does not keep: the latest `keep`, the last of each stage, one each `keep_every_tokens`."""
        stored = whole_checkpoints(self.run)
        kept = {one.step for one in stored[-self.settings.keep :]}
        kept |= {one.step for one in {one.manifest.stage: one for one in stored}.values()}
        every = self.settings.keep_every_tokens
        if every is not None:
            first = {int(one.manifest.tokens // every): one for one in reversed(stored)}
            kept |= {one.step for share, one in first.items() if share}
        for one in stored:
            if one.step not in kept and one.step not in self.held:
                trash = one.folder.with_name(f"step-{one.step}{_TEMPORARY}")
                one.folder.rename(trash)  # first, so that a folder in the middle of its removal never looks whole
                shutil.rmtree(trash)

    def load(self, step: int | None = None, *, folder: Path | None = None) -> dict[str, Any]:
        """Fill masters, moments, AdamW's step counts and the weights from the checkpoint of `step` (None: the latest) or from
        `folder` (a checkpoint of another run); its extras. Any layout reads any other's.

        Raises UserError, alike on all ranks: no such checkpoint, damaged files, another model or precision.
        """
        self.wait()

        def check() -> Stored:
            stored = Stored(folder) if folder is not None else find(self.run, step)
            if stored is None:
                raise UserError(f"{self.run} has no checkpoint to go on from")
            self._same_model(stored)
            stored.verify(stored.files[self.rank :: self.layout.world])
            return stored

        stored = self.ranks.together(check)
        self.ranks.together(lambda: reshard.fill(stored, owned(self.engine), self.place.tensor, self.layout.tensor))
        for kind, weight in flat_masters(self.engine):
            self.engine.adam.state[weight]["step"].fill_(stored.manifest.adam_steps[kind])
        self.engine.refresh()
        extras: dict[str, Any] = stored.manifest.extras
        return extras

    def _same_model(self, stored: Stored) -> None:
        different = changes(stored.manifest.architecture, self._architecture())
        if different:
            raise UserError(
                f"{stored.folder} is a checkpoint of another model ({'; '.join(different[:3])}): give the model.base that the "
                f"run was started with, or another run folder"
            )
        if stored.manifest.precision != self._precision():
            raise UserError(
                f"{stored.folder} was trained in {stored.manifest.precision}, model.precision is {self._precision()}: set "
                f"it to {stored.manifest.precision}, or start from an export of it"
            )

    def _architecture(self) -> dict[str, Any]:
        return self.engine.chunks[0].shape.to_json()

    def _precision(self) -> Literal["bf16", "fp32"]:
        return "bf16" if self.engine.bf16 else "fp32"

    def _clear(self) -> None:
        if self.rank == 0:
            with contextlib.suppress(OSError):
                recover(self.run)
        self.ranks.gather(None)  # no rank writes anew before the folder is gone

    def _failed(self, step: int, why: str) -> SaveError:
        latest = self.run / LATEST
        last = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
        stands = f"the last whole checkpoint is {last}" if last else "there is no earlier checkpoint"
        return SaveError(f"checkpoint step-{step} was not saved ({why}); {stands}")


def _sync(folder: Path) -> None:
    """Make names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["LATEST", "Checkpoints", "SaveError", "find", "recover", "whole_checkpoints"]
