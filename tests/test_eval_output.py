"""The output folder: no score of other weights, no name for two models, nothing deleted that is not ours, UNSAFE shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_benchmarks
from eval_models import config, scores, write_about, write_model, write_world
from small_tokenizers import CHINESE, ENGLISH

from eval import output, results, runner, sandbox, statistics
from ziya.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of two models, folder of benchmarks)."""
    return write_world(tmp_path_factory.mktemp("world"))


def rewrite(model: Path, other: Path) -> None:
    shutil.copyfile(other / "model.safetensors", model / "model.safetensors")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_scores_of_former_weights_are_discarded(
    world: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    models, data = world
    model, base, out, texts = tmp_path / "model", tmp_path / "base", tmp_path / "out", tmp_path / "held.jsonl"
    shutil.copytree(models / "first", model)
    shutil.copytree(models / "second", base)
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in (ENGLISH, CHINESE)), encoding="utf-8")
    every: dict[str, Any] = dict(tasks=["mmlu", "cmmlu"], base=str(base), limit=2)
    runner.run(config(model, data, out, prompt_variants=2, ppl=[str(texts)], **every))
    before = scores(out)
    capfd.readouterr()
    (out / "contamination.json").write_text(json.dumps({
        "threshold": 0.8, "tasks": {}, "flagged": [], "partial": [],
        "scores": [{**row, "clean_value": 0.0, "clean_n": 1} for row in read(out / "results.json")],
    }))  # fmt: skip
    rewrite(model, models / "second")
    rows = runner.run(config(model, data, out, **every | {"tasks": ["mmlu"]}))
    told = [line for line in capfd.readouterr().err.splitlines() if "discarded" in line]
    assert len(told) == 1 and "model has other weights than when it was scored" in told[0] and "(cmmlu, mmlu, held-out texts)" in told[0]
    assert {(row["model"], row["task"]) for row in rows} == {("base-base", "mmlu"), ("base-base", "cmmlu"), ("model", "mmlu")}
    after = scores(out)
    assert {key: value for key, value in after.items() if key[0] == "base-base"} == {
        key: value for key, value in before.items() if key[0] == "base-base"
    }
    assert all(after[key][1] != before[key][1] for key in after if key[0] == "model")
    assert not list((out / "variants").glob("*/model/*")) and {line["model"] for line in read(out / "variants.json")} == {"base-base"}
    assert not (out / "perplexity" / "model.json").exists() and (out / "perplexity" / "base-base.json").exists()
    assert {row["model"] for row in read(out / "perplexity.json")} == {"base-base"}
    assert {row["model"] for row in read(out / "contamination.json")["scores"]} == {"base-base"}
    # The base anew, in a run that is stopped before its end: no results of former weights stay.
    rewrite(base, models / "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.ask, "ask", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            runner.run(config(model, data, out, **every))
    assert not (out / "results.json").exists() and not (out / "perplexity.json").exists()
    assert {key[0] for key in scores(out)} == {"model"}


def test_lines_without_a_record_are_no_scores(
    world: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed between a task's lines and their record: nothing says what they were made from."""
    out, settings = tmp_path / "out", config(world[0] / "first", world[1], tmp_path / "out", tasks=["cmmlu"], limit=1)
    runner.run(settings)
    shutil.copyfile(out / "samples" / "first" / "cmmlu.jsonl", out / "samples" / "first" / "mmlu.jsonl")
    assert {row["task"] for row in runner.run(settings)} == {"cmmlu"}
    assert "discarded" not in capfd.readouterr().err and (out / "samples" / "first" / "cmmlu.json").is_file()


def test_scores_of_replaced_samples_leave_contamination(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"model": "m", "task": "mmlu", "value": 0.5, "n": 4}, {"model": "m", "task": "math", "value": 0.5, "n": 4}]
    (tmp_path / "contamination.json").write_text(json.dumps({"flagged": ["x"], "scores": rows}))
    results.keep_contamination_true(tmp_path, [rows[0], {**rows[1], "value": 0.25}])
    assert read(tmp_path / "contamination.json") == {"flagged": ["x"], "scores": rows[:1]}
    assert "out of date" in capfd.readouterr().err


def test_a_name_belongs_to_one_model(world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, data = world
    out = tmp_path / "out"
    for place, name in (("a", "first"), ("b", "second")):
        folder = tmp_path / place / "run" / "exports" / "step-5"
        shutil.copytree(models / name, folder)
        write_about(folder, 5)
    shutil.copytree(models / "first", tmp_path / "a" / "model")
    shutil.copytree(models / "second", tmp_path / "b" / "model")
    small: dict[str, Any] = dict(tasks=["cmmlu"], limit=1)

    def evaluate(model: str | Path, base: Path | None = None) -> None:
        runner.run(config(Path(model), data, out, base=None if base is None else str(base), **small))

    evaluate(tmp_path / "a" / "run", tmp_path / "a" / "model")
    before = scores(out)
    with pytest.raises(UserError, match=r"scores of run-step-5 from .*a/run/exports/step-5, and .*b/run/exports/step-5 has the same name"):
        evaluate(tmp_path / "b" / "run")
    with pytest.raises(UserError, match=r"scores of base-model from .*a/model, and .*b/model"):
        evaluate(tmp_path / "a" / "run", tmp_path / "b" / "model")
    assert scores(out) == before
    monkeypatch.chdir(tmp_path / "a")
    evaluate("run")  # the same folder, written otherwise
    assert read(out / "models.json")[1]["folder"] == str(tmp_path / "a" / "run" / "exports" / "step-5")
    shutil.move(tmp_path / "a", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    evaluate(tmp_path / "moved" / "run", tmp_path / "moved" / "model")
    assert [line["run"] for line in read(out / "models.json")] == [None, str(tmp_path / "moved" / "run")]
    assert scores(out) == before


@pytest.mark.parametrize("about", [None, "not ours"])
def test_restart_deletes_nothing_in_a_foreign_folder(world: tuple[Path, Path], tmp_path: Path, about: str | None) -> None:
    out = tmp_path / "out"
    (out / "samples").mkdir(parents=True)
    (out / "samples" / "precious.txt").write_text("x")
    (out / "results.json").write_text("[]")
    if about is not None:
        (out / "eval.json").write_text(json.dumps({"about": about}))
    with pytest.raises(UserError, match="holds other files"):
        runner.run(config(world[0] / "first", world[1], out), restart=True)
    assert (out / "samples" / "precious.txt").is_file() and (out / "results.json").is_file()


def test_restart_removes_all_that_runs_made(world: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = config(world[0] / "first", world[1], out, tasks=["cmmlu"], limit=1)
    runner.run(settings)
    made = {path.name for path in out.iterdir()}
    for name in ("variants.json", "perplexity.json", "contamination.json"):
        (out / name).write_text("[]")
    for name in ("samples/former", "variants/1/former", "perplexity"):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "mmlu.json").write_text("{}")
    stored = sorted((out / "cache").rglob("*"))
    with output.claimed(out):
        output.open_output(out, settings, restart=True)
    assert {path.name for path in out.iterdir()} == {output.LOCK, "cache", "eval.json"}
    assert sorted((out / "cache").rglob("*")) == stored
    runner.run(settings)
    assert {path.name for path in out.iterdir()} == made


def test_contamination_may_come_first(world: tuple[Path, Path], tmp_path: Path) -> None:
    from eval import cli

    out = tmp_path / "out"
    (tmp_path / "text.txt").write_text("a text without any of the items\n")
    found = ["contamination", "--documents", str(tmp_path / "text.txt"), "--data", str(world[1]), "--tasks", "gsm8k"]
    assert cli.main([*found, "--output", str(out)]) == 0
    assert runner.run(config(world[0] / "first", world[1], out, tasks=["cmmlu"], limit=1))
    assert "## Contamination" in (out / "table.md").read_text(encoding="utf-8")


def test_a_file_or_a_closed_folder_as_output(world: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"file is a file: give a folder"):
            runner.run(config(world[0] / "first", world[1], out))


def test_a_run_that_scored_nothing_binds_nothing(world: tuple[Path, Path], tmp_path: Path) -> None:
    """A mistake in the first call must not make the second one, with other settings, a mistake too."""
    out, broken = tmp_path / "out", tmp_path / "first"
    shutil.copytree(world[0] / "first", broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        runner.run(config(broken, world[1], out, tasks=["cmmlu"], limit=1))
    assert runner.run(config(world[0] / "first", world[1], out, tasks=["cmmlu"], limit=2))
    with pytest.raises(UserError, match=r"limit: 2 -> 1.*the former ones, another --output, or --restart"):
        runner.run(config(world[0] / "first", world[1], out, tasks=["cmmlu"], limit=1))


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Why there is no sandbox: "" in the list where there is one."""
    said = ["bubblewrap (bwrap) is not installed"]
    monkeypatch.setattr(sandbox, "bubblewrap_problem", lambda: said[0])
    real = sandbox.Sandbox.run

    def run(self: sandbox.Sandbox, programs: Any) -> Any:
        return real(self, programs) if not self.safe else [sandbox.Verdict("failed") for _ in programs]

    monkeypatch.setattr(sandbox.Sandbox, "run", run)
    yield said


def test_scores_without_a_sandbox_are_marked_everywhere(world: tuple[Path, Path], tmp_path: Path, box: list[str]) -> None:
    from eval import cli

    small_benchmarks.write_humaneval(tmp_path / "data")
    shutil.copytree(world[1] / "cmmlu", tmp_path / "data" / "cmmlu")
    out = tmp_path / "out"
    settings = config(world[0] / "first", tmp_path / "data", out, tasks=["cmmlu", "humaneval"], unsafe_code=True)
    rows = {row["task"]: row for row in runner.run(settings)}
    assert rows["humaneval"]["sandbox"] == "none" and rows["cmmlu"]["sandbox"] is None
    assert {row["task"]: row["sandbox"] for row in read(out / "results.json")} == {"cmmlu": None, "humaneval": "none"}
    markdown, page = ((out / name).read_text(encoding="utf-8") for name in ("table.md", "report.html"))
    [scored] = [line for line in markdown.splitlines() if line.startswith("| first |")][:1]
    assert "UNSAFE" in scored.split("|")[-2] and "UNSAFE" not in scored.split("|")[-3]
    assert "ran without a sandbox (--unsafe-code)" in markdown and "ran without a sandbox (--unsafe-code)" in page
    assert page.count('class="unsafe"') >= 2
    assert "UNSAFE" in cli.summary(out, [rows["humaneval"]]) and "UNSAFE" not in cli.summary(out, [rows["cmmlu"]])
    box[0] = ""
    rows = {row["task"]: row for row in runner.run(settings)}
    assert rows["humaneval"]["sandbox"] == "bubblewrap", "scored again now that there is a sandbox"
    assert "UNSAFE" not in (out / "table.md").read_text(encoding="utf-8")


def test_every_scorer_stands_beside_the_score(world: tuple[Path, Path], tmp_path: Path) -> None:
    small_benchmarks.write_math(tmp_path / "data")
    shutil.copytree(world[1] / "gsm8k", tmp_path / "data" / "gsm8k")
    tiny = write_model(tmp_path / "tiny", hidden_size=32, intermediate_size=32, num_hidden_layers=1, max_position_embeddings=64)
    for protocol, names in (("ziya2", {"math", "math_verify", "string", "minerva"}), ("lm-eval", {"minerva", "math_verify"})):
        out = tmp_path / protocol
        rows = runner.run(config(tiny, tmp_path / "data", out, tasks=["gsm8k", "math"], protocol=protocol, limit=2))
        found = {row["task"]: row for row in rows}
        assert set(found["math"]["scores"]) == names and set(found["gsm8k"]["scores"]) == {"strict", "flexible"}
        counted = {"ziya2": ("math", "flexible"), "lm-eval": ("minerva", "strict")}[protocol]
        for task, name in zip(("math", "gsm8k"), counted, strict=True):
            assert found[task]["scores"][name] == found[task]["micro"]
            assert f"**{name}**" in (out / "table.md").read_text(encoding="utf-8")
            assert f'<th class="n counted">{name}</th>' in (out / "report.html").read_text(encoding="utf-8")


def test_scorers_are_means_over_items() -> None:
    def lines(*scores: dict[str, float]) -> list[dict[str, Any]]:
        return [{"scores": one} for one in scores]

    gsm8k = lines({"exact_match,strict-match": 1.0, "exact_match,flexible-extract": 1.0}, {"exact_match,strict-match": 0.0,
                                                                                         "exact_match,flexible-extract": 1.0})  # fmt: skip
    assert statistics.scorers("gsm8k", gsm8k) == {"strict": 0.5, "flexible": 1.0}
    assert statistics.scorers("math", lines({"exact_match,none": 1.0, "math_verify,none": 0.0})) == {"minerva": 1.0, "math_verify": 0.0}
    assert statistics.scorers("mmlu", lines({"acc,none": 1.0})) == statistics.scorers("mmlu", [{}]) == {}
