"""What can be checked before any rank starts: model, packs, layout, changes of the config, where the stage starts.

`RUN/config.json` tells what the run was started with. `fixed`: its fixed settings, those of stages not begun left out;
paths of packs and of the base model are not compared, what they hold is: `packs` and `model`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import run_folder
from training.architecture import Architecture, read_architecture
from training.config import TrainConfig
from training.stages import CHECKPOINT, MODEL, Start, check_number, find_start
from ziya.config import MEASURING, changes, leaves, phase
from ziya.errors import UserError
from ziya.files import digest, read_json, write_json

if TYPE_CHECKING:
    from training.layout import Layout
    from training.packs_index import Sources

_BY_CONTENT = ("model.base", ".packs")  # settings that are paths; what lies there is compared instead
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")


@dataclass(frozen=True)
class Prepared:
    """A stage that may start. `notes`: warnings, one line each."""

    shape: Architecture
    layout: Layout
    sources: Sources
    start: Start
    notes: list[str]


def layout_of(config: TrainConfig, world: int) -> Layout:
    """The layout of so many processes."""
    from training.layout import Layout

    p = config.parallel
    return Layout(world, p.tensor, p.pipeline, p.chunks, p.sequence, p.zero)


def eos_of(base: Path) -> int | None:
    """The model's end-of-text token, the border of plain Megatron packs; None when its config.json tells none."""
    value = read_json(base / "config.json").get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


def prepare(
    config: TrainConfig, number: int, world: int, accepted: Sequence[str] = (), *, here: bool = True
) -> Prepared:
    """Check all that needs no ranks, and write RUN/config.json. UserError says what cannot work; nothing was changed then.

    `here`: ranks run on this machine, so that what it lacks, they lack."""
    from training.attention import check as check_kernel
    from training.checkpoint import whole_checkpoints

    stage = check_number(config, number)
    run_folder.check(config)
    check_kernel(config.model.kernel, bf16=config.model.precision == "bf16", here=here)
    base, run = Path(config.model.base), Path(config.run)
    shape = read_architecture(base)
    if config.data.sequence_length > shape.positions:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length} and {base} has {shape.positions} positions: pack shorter rows, "
            f"or start from a model with more"
        )
    start = find_start(config, number)
    layout = _layout(config, shape, world)
    run.mkdir(parents=True, exist_ok=True)
    sources = _open(config, shape, base, run)
    notes = _notes(config, number, sources) + _check_validation(config, shape, base, run, sources)
    if start.kind == MODEL:
        _check_weights(start.folder, shape)
        if stage.optimizer == "carry" and number > 1:
            notes.append(f"stage {number}: optimizer=carry, but {start.folder} has no moments: they start from zero")
    if start.kind == CHECKPOINT:  # the run's own ones are compared through RUN/config.json
        _check_checkpoint(start.folder, shape)
    _record(config, number, shape, sources, accepted, compare=bool(whole_checkpoints(run)))
    return Prepared(shape, layout, sources, start, notes)


def _layout(config: TrainConfig, shape: Architecture, world: int) -> Layout:
    from training.data import dealt
    from training.layout import check_layout

    layout = layout_of(config, world)
    data, rows = config.data, config.data.global_batch_rows
    parallel = max(layout.data, 1)
    check_layout(
        layout,
        shape,
        length=data.micro_batch_rows * data.sequence_length,
        microbatches=rows // (parallel * data.micro_batch_rows),
    )
    dealt(rows, 0, layout.data, data.micro_batch_rows)
    return layout


def _open(config: TrainConfig, shape: Architecture, base: Path, run: Path) -> Sources:
    from training.packs_index import check_sources, open_sources

    sources = open_sources(config.data, eos_id=eos_of(base), cache=run / "index")
    check_sources(sources, shape.vocab_used, base)
    return sources


def _check_validation(config: TrainConfig, shape: Architecture, base: Path, run: Path, sources: Sources) -> list[str]:
    """Refuse held-out packs that do not fit; warnings about the others."""
    from training.validation import open_validation, trained_on

    held = open_validation(config, shape.vocab_used, base, cache=run / "index", eos_id=eos_of(base))
    return trained_on(held, sources) if held is not None else []


def _check_weights(folder: Path, shape: Architecture) -> None:
    from training.hf_files import HFWeights

    found = read_architecture(folder)
    different = changes(found.to_json(), shape.to_json())
    if different:
        raise UserError(
            f"{folder} is another model than model.base ({'; '.join(different[:3])}): give the same one twice"
        )
    with HFWeights(folder) as weights:
        weights.check(shape)


def _check_checkpoint(folder: Path, shape: Architecture) -> None:
    from training.reshard import Stored

    different = changes(Stored(folder).manifest.architecture, _plain(shape.to_json()))
    if different:
        raise UserError(
            f"init_from {folder} is a checkpoint of another model than model.base ({'; '.join(different[:3])}): give the "
            f"model.base that its run was started with, or start from an export of it"
        )


def _notes(config: TrainConfig, number: int, sources: Sources) -> list[str]:
    from training.mixture import epoch_warnings

    return epoch_warnings(config.stages, sources, number)


def fixed_settings(config: TrainConfig, begun: int) -> dict[str, Any]:
    """Dotted name -> value of every fixed setting that the run has used: those of stages after `begun` are still free, but for
    what says how long the schedule is that stage `begun` follows."""
    found = {}
    used = _used_later(config, begun)
    for name, field, value in leaves(config):
        place = name.split(".")
        if phase(field) != MEASURING or name.endswith(_BY_CONTENT):
            continue
        if place[0] == "stages" and len(place) > 1 and int(place[1]) >= begun and name not in used:
            continue
        found[name] = _plain(value)
    return found


def _used_later(config: TrainConfig, begun: int) -> set[str]:
    """Names of settings of later stages that count already: a carried schedule runs over the tokens of all its stages."""
    names: set[str] = set()
    for number, stage in enumerate(config.stages[begun:], begun):
        names.add(f"stages.{number}.schedule_from")
        if stage.schedule_from != "carry":
            break
        names.add(f"stages.{number}.tokens")
    return names


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _model(shape: Architecture, base: Path) -> dict[str, Any]:
    tokenizers = [base / name for name in _TOKENIZERS if (base / name).is_file()]
    return {
        "architecture": shape.to_json(),
        "tokenizer": digest(tokenizers[0].read_bytes()) if tokenizers else None,
    }


def _record(
    config: TrainConfig, number: int, shape: Architecture, sources: Sources, accepted: Sequence[str], *, compare: bool
) -> None:
    """Compare with RUN/config.json once a checkpoint binds the run to it, then write what holds now."""
    path = Path(config.run) / "config.json"
    before: dict[str, Any] = read_json(path) if compare and path.is_file() else {}
    begun = max(number, int(before.get("begun", 0)))
    now = {
        "version": 1,
        "begun": begun,
        "config": config.model_dump(mode="json"),
        "fixed": fixed_settings(config, begun),
        "packs": sources.identity(),
        "model": _model(shape, Path(config.model.base)),
    }
    _check_names(config, accepted)
    granted = list(before.get("accepted", []))
    if before:
        used = fixed_settings(config, int(before["begun"]))
        found = _differences(before, now, used, _defaults(config))
        refused = {name: text for name, text in found.items() if not _granted(name, accepted)}
        if refused:
            names = " ".join(refused)
            raise UserError(
                f"{path.parent} was started with other settings: {'; '.join(refused.values())}. Set them back, start another "
                f"run=FOLDER, or go on with --accept-change {names}"
            )
        granted += [text for text in found.values() if text not in granted]
    write_json(path, now | {"accepted": granted})


def _differences(
    before: dict[str, Any], now: dict[str, Any], fixed: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, str]:
    """Name -> `name: old -> new` of all that a run is bound to and that is not as before. `defaults`: what held, in effect,
    before this program knew a setting."""
    known = before["fixed"]
    old = known | {name: value for name, value in defaults.items() if name in fixed and name not in known}
    found = {text.partition(":")[0]: text for text in changes(old, fixed)}
    for name in {name for name in found if name not in old or name not in fixed}:
        place = name.split(".")
        if place[0] == "stages" and place[1].isdigit() and int(place[1]) >= int(before["begun"]):
            del found[name]  # bound because a schedule is carried further, or no longer: that is told by its own name
    for name in sorted({*before["packs"], *now["packs"]}):
        if before["packs"].get(name) != now["packs"].get(name):
            found[f"packs.{name}"] = f"packs.{name}: the packs of this source hold other rows"
    for part in ("architecture", "tokenizer"):
        if before["model"][part] != now["model"][part]:
            found[f"model.{part}"] = f"model.{part}: {now['config']['model']['base']} is another model"
    return found


def _defaults(config: TrainConfig) -> dict[str, Any]:
    """Name -> default of every setting that has one."""
    return {
        name: _plain(field.get_default(call_default_factory=True))
        for name, field, _ in leaves(config)
        if not field.is_required()
    }


def _granted(name: str, accepted: Sequence[str]) -> bool:
    return any(name == given or name.startswith(f"{given}.") for given in accepted)


def _check_names(config: TrainConfig, accepted: Sequence[str]) -> None:
    known = {name for name, _, _ in leaves(config)} | {f"packs.{source.name}" for source in config.data.sources}
    known |= {"model.architecture", "model.tokenizer"}
    whole = known | {".".join(name.split(".")[:depth]) for name in known for depth in range(1, name.count(".") + 1)}
    for name in accepted:
        if name not in whole:
            near = difflib.get_close_matches(name, sorted(whole), n=1)
            raise UserError(
                f"--accept-change {name}: no setting is called so{f' (did you mean {near[0]}?)' if near else ''}"
            )
