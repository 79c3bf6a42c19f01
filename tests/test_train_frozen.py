"""The embeddings-only phase: what must not move keeps every bit, moments start anew at its end, under layouts and precisions."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytest.importorskip("deepspeed")

import small_models  # noqa: E402 - it imports torch
from train_ranks import run_ranks  # noqa: E402

NEW = 40  # of 61 rows in use
FROZEN_STEPS, STEPS = 4, 6


def phases(rank: int, settings: dict[str, Any], bf16: bool, rows: str) -> dict[str, Any]:
    """Train through the phase and out of it; what this rank holds before, at its end, after the thaw's reset, and at the end."""
    from training import reshard
    from training.config import ScheduleSettings, StageSettings
    from training.layout import Layout, start_groups
    from training.loop import set_phase
    from training.state import RunState

    layout = Layout(**settings)
    start_groups(layout)
    shape = small_models.architecture()
    engine, here = small_models.engine(shape, layout, bf16=bf16)
    stage = StageSettings(
        number=1,
        tokens=1e3,
        weights={"text": 1},
        schedule=ScheduleSettings(),
        embeddings_only_tokens=FROZEN_STEPS,
        embeddings_only_rows=rows,
    )

    def values(kind: str) -> dict[tuple[str, int], Any]:
        return {(f.name, f.start): f.tensors[kind].clone() for f in reshard.owned(engine)}

    state, said, norms = RunState(), [], []
    found = {"before": values(reshard.MASTER), "parts": engine.chunks[0].first_row, "hidden": shape.hidden}
    for step in range(STEPS):
        state.stage_tokens = step  # one token a step
        set_phase(engine, stage, state, NEW, said.append)
        if step == FROZEN_STEPS:
            found["frozen"], found["moments"] = values(reshard.MASTER), [values(kind) for kind in reshard.KINDS[1:]]
            found["steps"] = reshard.adam_steps(engine)
        norms += [norm for _, norm in small_models.train(engine, here, shape, range(step, step + 1))]
    return found | {"end": values(reshard.MASTER), "norms": norms, "said": said}


def moved_rows(found: dict[str, Any], key: tuple[str, int], when: str) -> set[int]:
    """Vocabulary rows of an embedding's or a head's fragment that differ from the beginning."""
    places = (found[when][key] != found["before"][key]).nonzero().flatten() + key[1]
    return {int(place) // found["hidden"] + found["parts"] for place in places}


LAYOUTS = {"one": {}, "TP2": {"world": 2, "tensor": 2}, "DP2": {"world": 2}}


@pytest.mark.parametrize(("name", "bf16", "rows"), [("one", False, "all"), ("TP2", True, "new"), ("DP2", False, "new")])
def test_only_what_may_move_moves(name: str, bf16: bool, rows: str) -> None:
    settings = LAYOUTS[name]
    first = NEW if rows == "new" else 0
    moved: set[int] = set()
    for found in run_ranks(settings.get("world", 1), phases, settings, bf16, rows):
        for key, before in found["before"].items():
            if key[0] in ("embedding.weight", "head.weight"):
                moved |= moved_rows(found, key, "frozen")
            else:
                assert torch.equal(found["frozen"][key], before), f"{key} moved in the embeddings-only phase"
                assert not torch.equal(found["end"][key], before), f"{key} did not move after it"
        assert all(not tensor.any() for kind in found["moments"] for tensor in kind.values())
        assert set(found["steps"].values()) == {0.0}
        assert [line.split(":")[0] for line in found["said"]] == [
            "embeddings-only phase",
            "embeddings-only phase ends",
        ]
        # The body's gradients are gone before the norm: it jumps when they come back.
        assert max(found["norms"][:FROZEN_STEPS]) < min(found["norms"][FROZEN_STEPS:])
    assert moved and min(moved) >= first
    if rows == "all":
        assert min(moved) < NEW
    else:  # without decay: neither old rows nor padding
        assert moved <= set(range(NEW, 61))
