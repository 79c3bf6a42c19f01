"""One stage of training, on one screen: batch -> step -> judgement -> books -> metrics -> checkpoint, until the budget is met."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from training.config import StageSettings, TrainConfig
from training.engine import Engine
from training.rows import Packed
from training.schedule import rate_at
from training.stability import Judge
from training.state import RunState
from ziya.errors import UserError

FINISHED, STOPPED = "finished", "stopped"


class Batch(Protocol):
    """What the loop needs to know of a global batch; see `training.data.GlobalBatch`."""

    @property
    def token_count(self) -> int:
        """Non-padding tokens of the global batch."""

    @property
    def target_count(self) -> float:
        """Unmasked targets of the global batch."""


class Batches(Protocol):
    """The stage's data as this rank reads it."""

    def read(self, data_index: int) -> tuple[Any, list[Packed]]:
        """(global batch, this data-parallel rank's micro-batches on its device)."""


@dataclass
class Services:
    """What the loop calls at its borders; each is replaced in tests.

    `save(state, judge, final)` writes a checkpoint; `restore(judge, ranges)` loads the last one and gives its state, in which
    those ranges are left out too; `report(...)` writes metrics; `book(state, batch)` enters the ledger; `log(text)` speaks on
    rank 0; `validate(state)` measures held-out rows, unless it has done so at this step.
    """

    save: Callable[[RunState, Judge, bool], None]
    restore: Callable[[Judge, list[list[int]]], RunState]
    report: Callable[..., None]
    book: Callable[[RunState, Any], None]
    log: Callable[[str], None]
    validate: Callable[[RunState], None]
    stop: Callable[[], bool]


class SavePolicy:
    """When a checkpoint is due: by steps, by tokens, whichever comes first."""

    def __init__(self, config: TrainConfig, state: RunState) -> None:
        self.every_steps, self.every_tokens = config.checkpoint.every_steps, config.checkpoint.every_tokens
        self.done(state)

    def due(self, state: RunState) -> bool:
        """Whether `state` is so far from the last checkpoint that one is due."""
        steps = self.every_steps is not None and state.step - self.step >= self.every_steps
        return steps or (self.every_tokens is not None and state.tokens - self.tokens >= self.every_tokens)

    def done(self, state: RunState) -> None:
        """Count on from `state`."""
        self.step, self.tokens = state.step, state.tokens


def train_stage(
    config: TrainConfig,
    stage: StageSettings,
    engine: Engine,
    batches: Batches,
    state: RunState,
    judge: Judge,
    services: Services,
    *,
    new_rows: int,
) -> tuple[str, RunState]:
    """Train until the stage's budget is consumed or a stop is asked for; (FINISHED or STOPPED, the last state).

    `new_rows`: first vocabulary row that the base model did not have, for embeddings_only_rows = new. Every decision is
    taken from numbers that all ranks share, so no rank can leave the loop alone.
    """
    policy = SavePolicy(config, state)
    while state.stage_tokens < stage.tokens:
        if services.stop():
            services.save(state, judge, True)
            return STOPPED, state
        state.settle()
        started = time.monotonic()
        batch, rows = batches.read(state.data_index)
        waited = time.monotonic() - started
        if set_phase(engine, stage, state, new_rows, services.log):
            judge.forget()
        learning_rate = rate_at(config, state)
        result = engine.step(
            rows, batch.target_count, learning_rate, judge=lambda loss, norm: judge.judge(loss, norm).reason
        )
        seconds = time.monotonic() - started
        if result.reason:
            services.report(state, batch, rows, result, learning_rate, seconds, waited)
            services.log(f"step {state.step + 1}: batch {state.data_index} skipped: {result.reason}")
            state, policy = _after_skip(config, state, judge, services, policy)
            continue
        judge.accept(result.loss, result.norm)
        state.step += 1
        state.tokens += batch.token_count
        state.stage_tokens += batch.token_count
        services.book(state, batch)
        services.report(state, batch, rows, result, learning_rate, seconds, waited)
        state.data_index += 1
        if state.step % config.telemetry.validate_every_steps == 0:
            services.validate(state)
        if policy.due(state) and state.stage_tokens < stage.tokens:
            services.save(state, judge, False)
            policy.done(state)
    services.validate(state)
    services.save(state, judge, True)
    return FINISHED, state


def _after_skip(
    config: TrainConfig, state: RunState, judge: Judge, services: Services, policy: SavePolicy
) -> tuple[RunState, SavePolicy]:
    """Leave the batch out and go on with the next, or go back to the last checkpoint and leave all bad batches out."""
    bad = state.data_index
    if not judge.skip(bad):
        state.leave_out([[bad, bad + 1]])
        return state, policy
    ranges, rollbacks = [*state.skipped, [bad, bad + 1]], state.rollbacks + 1
    if rollbacks > config.stability.rollbacks:
        raise UserError(
            f"{len(judge.bad)} steps in a row were refused (batches {judge.bad[0]} to {bad}) after {rollbacks - 1} rollbacks; "
            f"look at their documents in metrics.jsonl; lower the learning rate, or raise stability.rollbacks"
        )
    services.log(
        f"{len(judge.bad)} skips in a row: back to the last checkpoint, without batches {judge.bad[0]} to {bad}"
    )
    restored = services.restore(judge, ranges)
    restored.rollbacks = rollbacks
    judge.bad = []
    return restored, SavePolicy(config, restored)


def set_phase(engine: Engine, stage: StageSettings, state: RunState, new_rows: int, log: Callable[[str], None]) -> bool:
    """Enter or leave the embeddings-only phase; at both ends all moments are reset. True when it ends here."""
    wanted = state.stage_tokens < stage.embeddings_only_tokens
    if wanted and not state.frozen:
        engine.reset_moments()  # carried ones would move what has no gradient now
        log(f"embeddings-only phase: {stage.embeddings_only_tokens:g} tokens, rows: {stage.embeddings_only_rows}")
    thaw = state.frozen and not wanted
    if thaw:
        engine.reset_moments()
        log("embeddings-only phase ends: all weights move, moments are reset")
    state.frozen = wanted
    engine.frozen_below = (new_rows if stage.embeddings_only_rows == "new" else 0) if wanted else None
    return thaw


class StopFlag:
    """Signals set it; `agreed` tells whether any rank's is set, alike on all ranks."""

    def __init__(self) -> None:
        self.asked = False

    def set(self, *_: Any) -> None:
        """Ask for a stop after the running step; fits `signal.signal`."""
        self.asked = True

    def agreed(self) -> bool:
        """Reduce over all ranks; every rank must call it at the same place."""
        from training.device import device

        flag = torch.tensor([float(self.asked)], device=device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

