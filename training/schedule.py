"""Learning rate as a function of consumed non-padding tokens: of the stage, or of the stages that a carried schedule joins."""

from __future__ import annotations

import math

from training.config import ScheduleSettings, TrainConfig
from training.state import RunState


def rate_at(config: TrainConfig, state: RunState) -> float:
    """The rate for the step that starts at `state`: along its stage's schedule or, where it is carried, along the schedule of
    the first of the joined stages, over what all of them consume."""
    joined = config.joined(state.stage)
    consumed = state.carried_tokens + state.stage_tokens
    return rate(joined[0].schedule, consumed, sum(stage.tokens for stage in joined))


def rate(settings: ScheduleSettings, consumed: float, budget: float) -> float:
    """The rate for the step that starts after `consumed` of `budget` tokens.

    Warm-up rises linearly from 0 over `warmup` of the budget. `cosine` falls from `peak` to `final` over the rest (Ziya2
    paper). `wsd` stays at `peak` and falls to `final` by 1 - sqrt over the last `decay` of the budget (2405.18392).
    """
    done = min(max(consumed / budget, 0.0), 1.0)
    if done < settings.warmup:
        return settings.peak * done / settings.warmup
    if settings.kind == "constant":
        return settings.peak
    if settings.kind == "cosine":
        share = (done - settings.warmup) / max(1.0 - settings.warmup, 1e-12)
        return settings.final + (settings.peak - settings.final) * 0.5 * (1.0 + math.cos(math.pi * share))
    start = max(1.0 - settings.decay, settings.warmup)
    if done <= start:
        return settings.peak
    share = (done - start) / (1.0 - start)
    return settings.final + (settings.peak - settings.final) * (1.0 - math.sqrt(share))
