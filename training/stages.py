"""Where a stage starts, what it starts with, and when it is finished. All of it is read from the checkpoints in RUN: a stage
is finished when its last checkpoint holds as many tokens as its budget asks for, so no mark can disagree with the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from training.config import StageSettings, TrainConfig
from training.state import RunState
from ziya.errors import UserError

if TYPE_CHECKING:
    from training.reshard import Stored

RESUME, STAGE, CHECKPOINT, MODEL = "resume", "stage", "checkpoint", "model"


@dataclass(frozen=True)
class Start:
    """How a stage begins.

    `kind`: RESUME, from the stage's own checkpoint in `folder`, with its moments, windows and books; STAGE, from the last
    checkpoint of the stage before, whose weights, books and (optimizer: carry) moments go on; CHECKPOINT, from a checkpoint
    that `init_from` names, weights and (carry) moments; MODEL, from the Hugging Face folder `folder`. `state`: counters to go
    on with; `ledger`: books to go on with, None for empty ones; `windows`: the judge's, RESUME only.
    """

    kind: Literal["resume", "stage", "checkpoint", "model"]
    folder: Path
    state: RunState
    ledger: dict[str, Any] | None = None
    windows: dict[str, Any] | None = None

    def moments(self, stage: StageSettings) -> bool:
        """Whether the moments of `folder` go on."""
        return self.kind == RESUME or (self.kind in (STAGE, CHECKPOINT) and stage.optimizer == "carry")

    def finished(self, stage: StageSettings) -> bool:
        """Whether nothing of the stage's budget is left."""
        return self.state.stage_tokens >= stage.tokens

    def __str__(self) -> str:
        what = {
            RESUME: f"goes on at step {self.state.step} from {self.folder}",
            STAGE: f"starts at step {self.state.step} from the stage before it, {self.folder}",
            CHECKPOINT: f"starts at step {self.state.step} from checkpoint {self.folder} (init_from)",
            MODEL: f"starts at step {self.state.step} from {self.folder}",
        }
        return what[self.kind]


def check_number(config: TrainConfig, number: int) -> StageSettings:
    """The settings of stage `number`; UserError when the config has none of it."""
    if not 1 <= number <= len(config.stages):
        raise UserError(f"--stage {number}: the config has stages 1 to {len(config.stages)}")
    return config.stage(number)


def find_start(config: TrainConfig, number: int) -> Start:
    """Where stage `number` starts in this run; reads manifests only.

    UserError: the run is in a later stage already, the stage before is not finished and no `init_from` is given, or
    `init_from` is neither a checkpoint nor a model.
    """
    from training.checkpoint import find

    stage = check_number(config, number)
    run = Path(config.run)
    last = find(run)
    extras = last.manifest.extras if last is not None else {}
    state = RunState.from_json(extras["state"]) if last is not None else None
    if last is not None and state is not None and state.stage == number:
        return Start("resume", last.folder, state, extras["ledger"], extras["windows"])
    if state is not None and state.stage > number:
        raise UserError(
            f"{run} has come to stage {state.stage} (step {state.step}), so stage {number} is behind it: give --stage "
            f"{state.stage}, or train stage {number} again in another run=FOLDER"
        )
    counters = state.next_stage(number) if state is not None else RunState(stage=number)
    if state is not None and stage.schedule_from == "carry":
        counters.carried_tokens = state.carried_tokens + state.stage_tokens
    ledger = extras.get("ledger")
    if stage.init_from is not None:
        return _from(Path(stage.init_from), number, counters, ledger)
    if number == 1:
        return Start("model", Path(config.model.base), counters)
    if last is None or state is None:
        raise UserError(
            f"{run} has no checkpoint of stage {number - 1}, which stage {number} starts from: train it first (--stage "
            f"{number - 1}), or give init_from=FOLDER (a checkpoint or a Hugging Face model)"
        )
    before = config.stage(number - 1)
    if state.stage != number - 1 or state.stage_tokens < before.tokens:
        done = state.stage_tokens if state.stage == number - 1 else 0
        raise UserError(
            f"stage {number - 1} in {run} has {done:,} of {before.tokens:,.0f} tokens: finish it first (--stage {number - 1}), "
            f"or give init_from={last.folder} to start stage {number} from there"
        )
    return Start("stage", last.folder, counters, ledger)


def _from(folder: Path, number: int, state: RunState, ledger: dict[str, Any] | None) -> Start:
    """What `init_from` names: a checkpoint, a run (its latest checkpoint), or a Hugging Face folder."""
    stored = _checkpoint(folder)
    if stored is not None:  # with its moments comes the phase that they were made in
        frozen = RunState.from_json(stored.manifest.extras["state"]).frozen
        return Start("checkpoint", stored.folder, replace(state, frozen=frozen), ledger)
    if (folder / "config.json").is_file():
        return Start("model", folder, replace(state, frozen=False), ledger)
    raise UserError(
        f"stages.{number - 1}.init_from={folder} is no checkpoint, no run with checkpoints and no Hugging Face folder: give the "
        "path of one of them"
    )


def _checkpoint(folder: Path) -> Stored | None:
    from training.checkpoint import find
    from training.reshard import MANIFEST, Stored

    return Stored(folder) if (folder / MANIFEST).is_file() else find(folder)
