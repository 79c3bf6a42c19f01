"""Which checkpoints are kept, and which one a run goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_checkpoints import (
    PlainEngine,
    extras,
    opened,
    saved,
    small,
)

from training.checkpoint import find, whole_checkpoints
from ziya.errors import UserError


def test_pruning_keeps_the_latest_the_last_of_each_stage_and_one_each_so_many_tokens(tmp_path: Path) -> None:
    engine = PlainEngine(small())
    checkpoints = opened(tmp_path, engine, keep=2, keep_every_tokens=400.0)
    for step in range(1, 13):
        checkpoints.save(step, extras(step, stage=1 if step < 6 else 2), wait=True)
    # 400, 800 and 1200 tokens: 4, 8, 12; last of stage 1: 5; latest two: 11, 12.
    assert [one.step for one in whole_checkpoints(tmp_path)] == [4, 5, 8, 11, 12]
    # Back to an earlier step: "latest" follows what was saved last, not the highest number.
    checkpoints.save(7, extras(7, stage=2), wait=True)
    assert [one.step for one in whole_checkpoints(tmp_path)] == [4, 5, 8, 12, 7]
    found = find(tmp_path)
    assert found is not None and found.step == 7


def test_without_a_usable_latest_the_last_saved_is_found(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "latest").write_text("step-1\n")
    assert find(tmp_path).step == 1  # type: ignore[union-attr]
    (tmp_path / "latest").write_text("step-9\n")
    assert find(tmp_path).step == 2  # type: ignore[union-attr]
    (tmp_path / "latest").unlink()
    assert find(tmp_path).step == 2  # type: ignore[union-attr]
    assert find(tmp_path / "other") is None
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        opened(tmp_path / "other", PlainEngine(small())).load()
