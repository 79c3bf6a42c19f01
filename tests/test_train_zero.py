"""What happens between reduction and update is the same when gradients (ZeRO-2) and weights (ZeRO-3) are cut up as when they
are not: refused steps, gradients that are not finite, the embeddings-only phase, fills and the checks at a start."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytest.importorskip("deepspeed")

import parity  # noqa: E402 - they import torch
from train_ranks import run_ranks, tiny  # noqa: E402

SETTINGS: dict[bool, dict[str, Any]] = {
    False: {"world": 4, "tensor": 2, "sequence": True},
    True: {"world": 2},
}
NEW = 300  # first vocabulary row that is new; the second tensor rank's part starts before it, at 256


def phases(rank: int, settings: dict[str, Any], bf16: bool, folder: Path) -> dict[str, Any]:
    """A run through every special step; masters and moments of each moment as pieces."""
    from training import checks, reshard
    from training.stages import Start
    from training.state import RunState
    from training.trainer import fill_from_model

    engine, here, shape = parity.made(rank, settings, bf16=bf16)

    def state() -> dict[str, list[parity.Piece]]:
        found: dict[str, list[parity.Piece]] = {kind: [] for kind in reshard.KINDS}
        for fragment in reshard.owned(engine):
            for kind, values in fragment.tensors.items():
                found[kind].append((fragment.name, here.tensor, fragment.start, values.clone()))
        return found

    def weights() -> list[torch.Tensor]:
        found = []
        for weight in engine.chunks[0].parameters():
            with engine.gathered(weight):
                found.append(weight.detach().clone())
        return found

    def step(number: int, *, refuse: bool = False, spoil: bool = False) -> tuple[float, float, str]:
        rows = parity.rows_of("padded", number)
        targets = float(sum(row.weights.sum() for row in rows))
        mine = [parity.packed([row]) for row in rows[here.data :: here.layout.data]]
        if spoil and here.data == 0:
            mine[0].weights[1] = float("inf")
        result = engine.step(mine, targets, 1e-3, lambda loss, norm: "refused" if refuse else "")
        return result.loss, result.norm, result.reason

    found: dict[str, Any] = {"numbers": []}

    def same() -> bool:
        kept = zip(before, [*weights(), *(piece[3] for pieces in state().values() for piece in pieces)], strict=True)
        return all(torch.equal(old, new) for old, new in kept)

    for number in (0, 2):  # a first step, and one after moments have moved
        before = [*weights(), *(piece[3] for pieces in state().values() for piece in pieces)]
        found[f"refused {number}"] = step(number, refuse=True)[2] == "refused" and same()
        found[f"spoiled {number}"] = bool(step(number, spoil=True)[2]) and same()
        found["numbers"].append(step(number + 1)[:2])
    for name, below in (("new rows", NEW), ("all rows", 0)):
        engine.frozen_below = below
        engine.reset_moments()
        found[f"before {name}"] = state()
        found["numbers"] += [step(number)[:2] for number in (4, 5)]
        found[f"after {name}"] = state()
    engine.frozen_below = None
    engine.reset_moments()
    found["numbers"] += [step(number)[:2] for number in (6, 7)]
    found["end"] = state()
    fill_from_model(engine, folder, shape, here)
    said = [
        checks.masks(engine, shape, here),
        checks.accumulation(engine),
        checks.parity(engine, shape, here, Start("model", folder, RunState())),
    ]
    found["checks"] = len(said) == 3 and not any(piece[3].any() for piece in state()["exp_avg"])
    found["numbers"].append(step(0)[:2])
    parity.done(engine)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    tiny()[0].save_pretrained(path)
    return path


@cache
def run(zero: int, bf16: bool, folder: Path) -> list[dict[str, Any]]:
    settings = {**SETTINGS[bf16], "zero": zero}
    return run_ranks(settings["world"], phases, settings, bf16, folder)


def whole(found: list[dict[str, Any]], moment: str, kind: str, tensor: int) -> dict[str, torch.Tensor]:
    return parity.joined([piece for one in found for piece in one[moment][kind]], tensor)


CASES = [(zero, bf16) for zero in (1, 2, 3) for bf16 in (False, True)]


@pytest.mark.parametrize(("zero", "bf16"), CASES)
def test_refused_steps_and_gradients_that_are_not_finite_leave_every_bit(zero: int, bf16: bool, folder: Path) -> None:
    for found in run(zero, bf16, folder):
        wrong = [name for name, good in found.items() if isinstance(good, bool) and not good]
        assert not wrong and "refused 2" in found and "spoiled 2" in found and "checks" in found


@pytest.mark.parametrize(("zero", "bf16"), CASES)
def test_the_embeddings_only_phase_moves_nothing_else(zero: int, bf16: bool, folder: Path) -> None:
    found, tensor = run(zero, bf16, folder), SETTINGS[bf16].get("tensor", 1)
    for name, first in (("new rows", NEW), ("all rows", 0)):
        before, after = (whole(found, f"{moment} {name}", "master", tensor) for moment in ("before", "after"))
        for weight, old in before.items():
            if weight in ("model.embed_tokens.weight", "lm_head.weight"):
                assert torch.equal(old[:first], after[weight][:first])
                moved = (old[first:] != after[weight][first:]).any(dim=1)
                assert moved.all() if weight == "lm_head.weight" else moved.any()
            else:
                assert torch.equal(old, after[weight]), weight


@pytest.mark.parametrize(("zero", "bf16"), [case for case in CASES if case[0] > 1])
def test_every_number_is_that_of_zero_1(zero: int, bf16: bool, folder: Path) -> None:
    found, wanted = run(zero, bf16, folder), run(1, bf16, folder)
    assert all(one["numbers"] == found[0]["numbers"] for one in found)
    loss_off, norm_off = (2e-3, 1e-2) if bf16 else (2e-6, 1e-5)
    for (loss, norm), (wanted_loss, wanted_norm) in zip(found[0]["numbers"], wanted[0]["numbers"], strict=True):
        assert abs(loss - wanted_loss) < loss_off and abs(norm - wanted_norm) < norm_off * wanted_norm
    tensor = SETTINGS[bf16].get("tensor", 1)
    masters, others = whole(found, "end", "master", tensor), whole(wanted, "end", "master", tensor)
    for name, master in masters.items():
        # Adam's first steps move by the sign of a gradient: where it is all but zero, rounding decides.
        assert (master - others[name]).abs().mean() < (1e-4 if bf16 else 1e-6), name
