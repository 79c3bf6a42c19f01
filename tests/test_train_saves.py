"""What a stage makes of saves that fail, and of phases that end with it: a whole Trainer in this process, faults put into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import train_runs

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytest.importorskip("deepspeed")

from train_ranks import run_ranks  # noqa: E402 - it imports torch

STEP = 4 * train_runs.LENGTH  # tokens of a step of the debug run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.write_parts(tmp_path_factory.mktemp("saves"))


class FullDisk:
    """The last rank's disk is full for the saves of these numbers, counted from 1."""

    def __init__(self, rank: int, world: int, *numbers: int) -> None:
        from training import reshard

        self.write, self.count = reshard.write_fragments, 0
        self.numbers = numbers if rank == world - 1 else ()
        reshard.write_fragments = self  # type: ignore[assignment]

    def __call__(self, path: Path, fragments: Any) -> tuple[int, str]:
        self.count += 1
        if self.count in self.numbers:
            raise OSError(28, "No space left on device")
        return self.write(path, fragments)


def stopped(rank: int, folder: Path, run: Path) -> dict[str, Any]:
    """A background save fails, and a stop is asked for before another step was made."""
    FullDisk(rank, 2, 1)
    with train_runs.trainer(folder, run, "checkpoint.every_steps=4", world=2) as made:
        save = made.save

        def then_stop(state: Any, judge: Any, final: bool) -> None:
            save(state, judge, final)
            made.watching.asked = True

        made.save = then_stop
        how, state = made.train()
        return {"how": how, "step": state.step, "said": made.said}


def test_a_stop_right_after_a_save_that_fails_saves_again(made: Path, tmp_path: Path) -> None:
    from training.checkpoint import find

    for found in run_ranks(2, stopped, made, tmp_path / "run"):
        assert (found["how"], found["step"]) == ("stopped", 4)
        assert len([line for line in found["said"] if "step-4 was not saved (rank 1: no space left" in line]) == 1
    stored = find(tmp_path / "run")
    assert stored is not None and stored.step == 4
    stored.verify()


def rolled_back(rank: int, folder: Path, run: Path, fails: tuple[int, ...]) -> dict[str, Any]:
    """Three bad batches come while the save of step 8 is under way, so that the rollback is who learns how it went."""
    from training.stability import Verdict
    from training.trainer import Batches

    FullDisk(rank, 2, *fails)
    read, at, steps = Batches.read, [0], []

    def noted(self: Batches, data_index: int) -> Any:
        at[0] = data_index
        return read(self, data_index)

    Batches.read = noted  # type: ignore[method-assign]
    more = ["checkpoint.every_steps=4", "stability.skips_in_a_row=3"]
    with train_runs.trainer(folder, run, *more, world=2) as made:
        judge, poll, begin = made.judge.judge, made.checkpoints.poll, made.begin

        def late() -> int | None:
            under_way = made.checkpoints._pending
            return None if under_way is not None and under_way.step == 8 else poll()

        def begun(*given: Any) -> Any:
            start, state = begin(*given)
            steps.append(state.step)
            return start, state

        made.checkpoints.poll, made.begin = late, begun
        made.judge.judge = lambda loss, norm: Verdict(True, "bad") if at[0] in (8, 9, 10) else judge(loss, norm)
        try:
            how, state = made.train()
        except Exception as error:  # the end of a run, as its user reads it
            return {"error": f"{type(error).__name__}: {error}", "steps": steps, "said": made.said}
        return {"how": how, "state": state.to_json(), "steps": steps, "said": made.said}


@pytest.mark.parametrize("fails", [(), (2,)])
def test_a_rollback_outlives_one_failed_save(made: Path, tmp_path: Path, fails: tuple[int, ...]) -> None:
    """It goes to the last whole checkpoint: step 8 when its save went well, else step 4, alike on both ranks."""
    from training.checkpoint import find

    for found in run_ranks(2, rolled_back, made, tmp_path / "run", fails):
        assert found.get("how") == "finished", found
        assert found["steps"] == [0, 4 if fails else 8]
        assert found["state"]["skipped"] == [[8, 9], [9, 10], [10, 11]] and found["state"]["step"] == 20
        told = [line for line in found["said"] if "step-8 was not saved" in line]
        assert len(told) == len(fails) and all("rank 1: no space left" in line and "step-4" in line for line in told)
    assert find(tmp_path / "run").step == 20  # type: ignore[union-attr]


def test_a_second_failed_save_in_a_row_ends_the_run_at_a_rollback_too(made: Path, tmp_path: Path) -> None:
    for found in run_ranks(2, rolled_back, made, tmp_path / "run", (1, 2)):
        assert found["error"].startswith("SaveError: checkpoint step-8 was not saved (rank 1: no space left"), found


def thawed(rank: int, folder: Path, run: Path, optimizer: str, elsewhere: bool) -> dict[str, Any]:
    """Stage 1 ends inside its embeddings-only phase; stage 2 takes its moments over or not, in the same run or `elsewhere`."""
    from training import reshard

    more = ["stages.0.embeddings_only_tokens=1e9", f"stages.1.optimizer={optimizer}"]
    with train_runs.trainer(folder, run, *more) as made:
        made.train()
        body = {f.name: f.tensors[reshard.FIRST] for f in reshard.owned(made.engine) if "layers" in f.name}
        frozen = {"still": all(not moment.any() for moment in body.values()), "steps": reshard.adam_steps(made.engine)}
    if elsewhere:
        more, run = [*more, f"stages.1.init_from={run}"], run.with_name(f"{run.name} elsewhere")
    with train_runs.trainer(folder, run, *more, stage=2) as made:
        made.train()
        state = {(f.name, kind): t.clone() for f in reshard.owned(made.engine) for kind, t in f.tensors.items()}
        return {"frozen": frozen, "state": state, "steps": reshard.adam_steps(made.engine), "said": made.said}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_moments_start_anew_where_the_embeddings_only_phase_ends_with_its_stage(
    made: Path, tmp_path: Path, elsewhere: bool
) -> None:
    carried, restarted = (
        run_ranks(1, thawed, made, tmp_path / kind, kind, elsewhere)[0] for kind in ("carry", "restart")
    )
    assert carried["frozen"]["still"] and set(carried["frozen"]["steps"].values()) == {20.0}
    assert set(carried["steps"].values()) == {10.0}
    assert carried["state"].keys() == restarted["state"].keys()
    for key, value in carried["state"].items():
        assert torch.equal(value, restarted["state"][key]), key
    assert sum("embeddings-only phase ends" in line for line in carried["said"]) == 1
    if not elsewhere:
        tokens = [line["tokens"] for line in train_runs.lines(tmp_path / "carry")]
        assert tokens == [STEP * step for step in range(1, 31)]


def exported(rank: int, folder: Path, run: Path, background: bool) -> tuple[list[int], list[str]]:
    """Exports are due each seven steps, and the save that the first is due with fails; steps that are exported."""
    from training import exporting

    class Ended:
        returncode = 0

        def poll(self) -> int:
            return 0

    FullDisk(rank, 1, 2)
    begun: list[int] = []
    more = ["checkpoint.every_steps=4", f"checkpoint.export_every_tokens={7 * STEP}.0"]
    more += [f"checkpoint.background={str(background).lower()}"]
    with train_runs.trainer(folder, run, *more) as made:
        exporting.subprocess.Popen = lambda command, **_: begun.append(int(command[-1])) or Ended()  # type: ignore[assignment]
        made.train()
        made.end("finished")
        return begun, made.said


@pytest.mark.parametrize("background", [True, False])
def test_an_export_that_is_due_with_a_failed_save_is_made_with_the_next(
    made: Path, tmp_path: Path, background: bool
) -> None:
    (found,) = run_ranks(1, exported, made, tmp_path / "run", background)
    assert found[0] == [12, 20]
    assert sum("step-8 was not saved" in line for line in found[1]) == 1
