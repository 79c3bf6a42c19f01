"""Steps that are refused, and runs that go back: the judge alone, and spikes put into whole runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import train_runs

from training.config import StabilitySettings
from training.stability import Judge
from ziya.files import read_json

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytest.importorskip("deepspeed")

from train_ranks import run_ranks  # noqa: E402 - it imports torch


def judge(**settings: Any) -> Judge:
    return Judge(StabilitySettings(**settings))


def filled(one: Judge, steps: int) -> Judge:
    for step in range(steps):
        one.accept(2.0 + 0.01 * (step % 2), 1.0 + 0.1 * (step % 2))
    return one


def test_what_is_not_finite_is_refused_from_the_first_step() -> None:
    one = judge(sigma=0)
    for loss, norm, reason in (
        (math.nan, 1.0, "loss nan"), (math.inf, 1.0, "loss inf"), (2.0, math.nan, "gradient norm nan"),
        (2.0, math.inf, "gradient norm inf"), (2.0, -1.0, "gradient norm -1.0"),
    ):  # fmt: skip
        assert one.judge(loss, norm).reason == reason
    assert not one.judge(1e9, 1e9).skip


def test_spikes_are_refused_by_loss_and_by_norm_and_falls_are_not() -> None:
    one = filled(judge(sigma=6, window=16, warmup_steps=10), 10)
    # Deviations: 0.005 around 2.005, 0.05 around 1.05.
    assert one.judge(2.036, 1.0).reason == "loss 2.036 above 2.035 (6 sigma)" and not one.judge(2.034, 1.0).skip
    assert one.judge(2.0, 1.36).reason == "gradient norm 1.36 above 1.35 (6 sigma)" and not one.judge(2.0, 1.34).skip
    assert not one.judge(0.1, 0.0).skip


@pytest.mark.parametrize(("window", "warmup"), [(16, 12), (8, 20), (16, 0)])
def test_sigma_judges_once_the_warm_up_is_over_however_short_the_window(window: int, warmup: int) -> None:
    one = judge(sigma=6, window=window, warmup_steps=warmup)
    first = max(warmup, 8)  # fewer steps are no window
    assert not filled(one, first - 1).judge(50.0, 1.0).skip
    again = judge(sigma=6, window=window, warmup_steps=warmup)
    again.load(one.state())  # as a resume does
    for each in (one, again):
        assert filled(each, 1).judge(50.0, 1.0).skip


def test_windows_move_and_travel() -> None:
    one = filled(judge(window=8, warmup_steps=8), 30)
    assert len(one.losses) == 8
    assert [one.skip(index) for index in range(5)] == [False] * 4 + [True]
    other = judge(window=8, warmup_steps=8)
    other.load(one.state())
    assert other.state() == one.state() and other.bad == [0, 1, 2, 3, 4]
    other.forget()
    assert not other.judge(50.0, 50.0).skip and other.bad == [0, 1, 2, 3, 4]
    old = {key: one.state()[key] for key in ("losses", "norms", "bad")}  # of checkpoints written before steps were counted
    other.load(old)
    assert other.judge(50.0, 1.0).skip


# --- whole runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.write_parts(tmp_path_factory.mktemp("stability"))


SPIKES = ["checkpoint.every_steps=4", "stability.warmup_steps=8", "stability.window=16", "stability.skips_in_a_row=3"]


def spiked(rank: int, folder: Path, run: Path, spikes: dict[int, float], left_out: list[list[int]]) -> dict[str, Any]:
    """The first stage of the debug run on two ranks. The weights of rank 0's rows of some batches are multiplied; some batches
    are left out from the beginning."""
    from training import reshard
    from training.trainer import Batches

    read = Batches.read

    def spoiled(self: Batches, data_index: int) -> Any:
        batch, rows = read(self, data_index)
        if rank == 0 and data_index in spikes:
            rows[0].weights.mul_(spikes[data_index])
        return batch, rows

    Batches.read = spoiled  # type: ignore[method-assign]
    with train_runs.trainer(folder, run, *SPIKES, world=2) as made:
        begin = made.begin

        def begun(judge: Judge, ranges: list[list[int]] | None = None) -> Any:
            return begin(judge, [*(ranges or []), *left_out])

        made.begin = begun
        try:
            _, state = made.train()
        except Exception as error:  # the end of a run, as its user reads it
            return {"error": f"{type(error).__name__}: {error}"}
        tensors = {(f.name, f.start, kind): t.clone() for f in reshard.owned(made.engine) for kind, t in f.tensors.items()}
        return {"state": state.to_json(), "tensors": tensors, "windows": made.judge.state(), "said": made.said}


CASES: dict[str, tuple[dict[int, float], list[list[int]], int]] = {
    "skips": ({9: 50.0, 12: math.nan, 13: math.inf}, [[9, 10], [12, 13], [13, 14]], 0),
    "rollback": ({10: 50.0, 11: math.nan, 12: 1e3}, [[10, 11], [11, 12], [12, 13]], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_spikes_leave_the_run_as_if_their_batches_were_never_there(made: Path, tmp_path: Path, case: str) -> None:
    """Weights, moments, windows, books and lines of the other steps equal those of a run that leaves the batches out."""
    spikes, ranges, rollbacks = CASES[case]
    found = run_ranks(2, spiked, made, tmp_path / "run", spikes, [])
    wanted = run_ranks(2, spiked, made, tmp_path / "reference", {}, ranges)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["state"] == theirs["state"] | {"rollbacks": rollbacks}, ours
        assert ours["state"]["step"] == 20 and ours["state"]["skipped"] == ranges
        assert all(torch.equal(tensor, theirs["tensors"][key]) for key, tensor in ours["tensors"].items())
        assert ours["windows"] == theirs["windows"] and ours["windows"]["bad"] == []
        assert sum("back to the last checkpoint, without batches 10 to 12" in line for line in ours["said"]) == rollbacks
    lines, others = (train_runs.lines(tmp_path / name) for name in ("run", "reference"))
    assert [line for line in lines if not line["skipped"]] == others
    skipped = [line for line in lines if line["skipped"]]
    assert [line["data_index"] for line in skipped] == list(spikes)
    assert all(line["reason"] and line["documents"] for line in skipped)
    assert read_json(tmp_path / "run" / "ledger.json") == read_json(tmp_path / "reference" / "ledger.json")


def test_a_run_ends_after_so_many_rollbacks(made: Path, tmp_path: Path) -> None:
    for found in run_ranks(2, spiked, made, tmp_path / "run", dict.fromkeys(range(10, 90), math.nan), []):
        assert found["error"].startswith("UserError: 3 steps in a row were refused (batches 19 to 21) after 3 rollbacks")


def thaws(rank: int, folder: Path, run: Path) -> list[str]:
    """Sixteen steps of new rows alone, then the whole model, whose gradient is many times as large."""
    from training import trainer

    trainer.first_new_row = lambda base, shape: 50
    more = [f"stages.0.embeddings_only_tokens={16 * 4 * train_runs.LENGTH}", "stages.0.embeddings_only_rows=new", *SPIKES]
    with train_runs.trainer(folder, run, *more) as made:
        made.train()
        said: list[str] = made.said
        return said


def test_a_thaw_is_no_spike(made: Path, tmp_path: Path) -> None:
    (said,) = run_ranks(1, thaws, made, tmp_path / "run")
    assert sum("embeddings-only phase ends" in line for line in said) == 1
    assert not [line for line in said if "skipped" in line]
    norms = [line["grad_norm"] for line in train_runs.lines(tmp_path / "run")]
    assert len(norms) == 20 and min(norms[16:]) > max(norms[:16])


def apart(rank: int) -> list[tuple[float, float, str]]:
    """Two ranks whose losses differ, on either side of what is judged: first rank 0's is above it, then rank 1's."""
    import small_models

    from training.layout import Layout, start_groups

    layout = Layout(world=2, zero=1)
    start_groups(layout)
    shape = small_models.architecture()
    engine, here = small_models.engine(shape, layout, bf16=False)
    mean, rows = engine.mean_loss, small_models.batch(0, shape)
    targets = float(sum(row.weights.sum() for row in rows))

    def step(off: float, limit: float) -> tuple[float, float, str]:
        engine.mean_loss = lambda *given: mean(*given) + off
        mine = rows[here.data :: here.layout.data]
        result = engine.step(mine, targets, 1e-3, lambda loss, norm: "refused" if loss > limit else "")
        return result.loss, result.norm, result.reason

    level = step(0.0, -1.0)[0]
    return [step(1e-6 * (rank == above), level + 5e-7) for above in (0, 1)]


def test_ranks_whose_numbers_differ_judge_alike() -> None:
    first, second = run_ranks(2, apart)
    assert first == second and [reason for _, _, reason in first] == ["refused", ""]
