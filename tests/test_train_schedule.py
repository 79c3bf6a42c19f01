"""The learning rate: three forms over one stage, and one schedule that several stages share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import golden_debug
import pytest
import train_runs
from train_ranks import run_ranks

from training.config import ScheduleSettings, load_config
from training.schedule import rate, rate_at
from training.state import RunState
from ziya.errors import UserError

CARRY = ["stages.1.schedule_from=carry", "stages.2.schedule_from=carry"]
STEP = 4 * train_runs.LENGTH  # tokens


def test_the_three_forms() -> None:
    cosine = ScheduleSettings(peak=1e-3, final=1e-4, warmup=0.1)
    assert [rate(cosine, done, 100) for done in (0, 5, 10)] == [0.0, 5e-4, 1e-3]
    assert rate(cosine, 55, 100) == pytest.approx(5.5e-4) and rate(cosine, 100, 100) == pytest.approx(1e-4)
    assert rate(cosine, 1e9, 100) == rate(cosine, 100, 100)  # a batch may go beyond the budget
    wsd = ScheduleSettings(kind="wsd", peak=1e-3, final=0.0, warmup=0.1, decay=0.2)
    assert [rate(wsd, done, 100) for done in (10, 50, 80)] == [1e-3] * 3
    assert rate(wsd, 85, 100) == pytest.approx(1e-3 * (1 - math.sqrt(0.25))) and rate(wsd, 100, 100) == 0.0
    constant = ScheduleSettings(kind="constant", peak=1e-3, final=0.0, warmup=0.0)
    assert {rate(constant, done, 100) for done in (0, 50, 100)} == {1e-3}


def test_stages_that_are_joined() -> None:
    config = load_config(
        train_runs.CONFIG,
        ["stages.2.schedule_from=carry", "stages.1.schedule.peak=7.0e-3", "stages.2.schedule.peak=7.0e-3"],
    )
    assert [[one.number for one in config.joined(k)] for k in (1, 2, 3)] == [[1], [2, 3], [2, 3]]
    first, second, third = config.stages
    assert rate_at(config, RunState(stage=1, stage_tokens=1300)) == rate(first.schedule, 1300, first.tokens)
    budget = second.tokens + third.tokens
    assert rate_at(config, RunState(stage=2, stage_tokens=200)) == rate(second.schedule, 200, budget)
    third_begins = RunState(stage=3, carried_tokens=1300, stage_tokens=40)
    assert rate_at(config, third_begins) == rate(second.schedule, 1340, budget)
    joined = load_config(train_runs.CONFIG, CARRY)
    assert [[one.number for one in joined.joined(k)] for k in (1, 2, 3)] == [[1, 2, 3]] * 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["stages.0.schedule_from=carry"], "stage 1: schedule_from is carry, and no stage comes before it: set restart"),
        (
            [*CARRY, "stages.2.schedule.peak=5.0e-4"],
            "stage 3: schedule_from is carry, so stage 1's schedule goes on: leave stage 3's own schedule out",
        ),
        (["stages.1.schedule_from=carry", "stages.1.init_from=there"], "leave init_from out, or set schedule_from to restart"),
    ],
)
def test_what_cannot_be_carried_on(changes: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(train_runs.CONFIG, changes)
    assert str(error.value).startswith(f"{train_runs.CONFIG}: ") and str(error.value).endswith(expected)


class StopsAfter:
    """A watch that asks for a stop once the loop has looked so often."""

    launch = None

    def __init__(self, looks: int | None) -> None:
        self.left = looks

    @property
    def asked(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left is not None and self.left < 0


def train(rank: int, folder: Path, run: str, overrides: list[str], parts: list[tuple[int, int | None]]) -> Any:
    """(stage, lr, tokens before the step) of each step; `parts`: (stage, looks after which it is asked to stop)."""
    from training.layout import Layout, start_groups, stop_groups
    from training.preflight import prepare
    from training.trainer import Trainer

    base = [f"run={folder / run}", f"model.base={folder / 'base'}", f"data.sources.0.packs=[{folder / 'text'}]"]
    config = load_config(train_runs.CONFIG, [*base, *overrides])
    for number, looks in parts:
        prepare(config, number, 1)
        start_groups(Layout())
        trainer = Trainer(config, number, Layout(), StopsAfter(looks))  # type: ignore[arg-type]
        how, _ = trainer.train()
        assert how == ("finished" if looks is None else "stopped")
        trainer.engine.deepspeed.destroy()
        stop_groups()
    found = train_runs.lines(folder / run)
    before = [0, *(line["tokens"] for line in found)]
    return [(line["stage"], line["lr"], tokens) for line, tokens in zip(found, before, strict=False)]


def test_one_schedule_over_three_stages(tmp_path: Path) -> None:
    """Rates are those of one stage with all the tokens, over borders and a resume, though stages end after their budgets."""
    golden_debug.write_inputs(tmp_path)
    budgets = [f"stages.{k}.tokens={tokens}" for k, tokens in enumerate((6.5 * STEP, 4.25 * STEP, 5.0 * STEP))]
    parts = [(1, None), (2, 2), (2, None), (3, None)]
    found = run_ranks(1, train, tmp_path, "joined", [*budgets, *CARRY], parts)[0]
    assert [stage for stage, _, _ in found] == [1] * 7 + [2] * 5 + [3] * 5
    whole = f"stages.0.tokens={15.75 * STEP}"
    single = run_ranks(1, train, tmp_path, "single", [whole], [(1, None)])[0]
    assert len(single) == 16 and [lr for _, lr, _ in found[:16]] == [lr for _, lr, _ in single]
    assert found[16][1] == pytest.approx(1e-4)  # past the end of the schedule
    schedule = load_config(train_runs.CONFIG).stage(1).schedule
    assert all(lr == rate(schedule, tokens, 15.75 * STEP) for _, lr, tokens in found)
    apart = run_ranks(1, train, tmp_path, "apart", budgets, [(1, None), (2, None)])[0]
    assert apart[7][1] == 0.0 < found[7][1]  # a stage that restarts warms up anew
