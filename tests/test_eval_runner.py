"""The run: equal to the harness on real items, resumable after a kill, the same with any number of processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from eval_models import (
    BENCHMARKS,
    LLAMA2,
    config,
    harness_model,
    prefix_model,
    request,
    scores,
    write_about,
    write_model,
    write_world,
)
from small_tokenizers import CHINESE, ENGLISH

from eval import ask, output, runner, workers
from eval.tasks import Subject
from ziya.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of models, folder of benchmarks)."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def evaluated(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of `first` against the base `second`."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    runner.run(config(world[0] / "first", world[1], out, base=str(world[0] / "second"), prompt_variants=2))
    return out


def test_what_a_run_leaves(evaluated: Path) -> None:
    models = json.loads((evaluated / "models.json").read_text())
    assert [(line["model"], line["is_base"], line["step"]) for line in models] == [("base-second", True, None), ("first", False, None)]
    rows = json.loads((evaluated / "results.json").read_text())
    assert [(row["model"], row["task"]) for row in rows] == [
        ("base-second", "cmmlu"), ("base-second", "mmlu"), ("first", "cmmlu"), ("first", "mmlu"),
    ]  # fmt: skip
    found = scores(evaluated)
    assert len(found) == 2 * 18
    for row in rows:
        own = [value[0] for key, value in found.items() if key[:2] == (row["model"], row["task"])]
        assert row["n"] == len(own) and row["micro"] == pytest.approx(sum(own) / len(own))
    assert {value[2] for key, value in found.items() if key[0] == "first"} == {
        value[2] for key, value in found.items() if key[0] == "base-second"
    }, "both models were asked the same"
    assert len({value[2] for value in found.values()}) == 18
    answers = {key[1:]: value[1] for key, value in found.items() if key[0] == "first"}
    assert answers != {key[1:]: value[1] for key, value in found.items() if key[0] == "base-second"}
    for name in ("table.md", "report.html", "curves.png", "curves.svg"):
        assert (evaluated / name).stat().st_size > 100
    lines = json.loads((evaluated / "variants.json").read_text())
    assert {(line["model"], line["task"]) for line in lines} == {(row["model"], row["task"]) for row in rows}
    for line in lines:
        assert len(line["values"]) == 2 and line["least"] <= line["mean"] <= line["greatest"]


def test_a_folder_without_git_is_nothing_to_complain_of(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    runner.run(config(world[0] / "first", world[1], tmp_path / "out", tasks=["mmlu"], limit=1))
    said = capfd.readouterr().err
    assert "git" not in said.replace(str(tmp_path), "") and "mmlu" in said


def test_one_of_something_is_singular() -> None:
    one = {"items_with_fewer_shots": 1, "fewest_shots": 0, "shots": 1, "items_cut": 1}
    assert runner._shortened(one, 64).startswith("1 prompt does not fit into 64 tokens and has fewer than 1 example, 0 at least")
    assert "1 question does not fit even alone and lost its beginning" in runner._shortened(one, 64)
    assert runner._shortened({**one, "items_with_fewer_shots": 2}, 64).startswith("2 prompts do not fit into 64 tokens and have fewer")


def test_a_sample_line_is_the_harness_s_and_more(evaluated: Path) -> None:
    line = json.loads((evaluated / "samples" / "first" / "mmlu.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash"} <= set(line)
    assert (line["task"], line["subject"], line["category"], line["shots"]) == ("mmlu", "abstract_algebra", "STEM", 5)
    assert line["correct"] == line["acc"] == line["scores"]["acc,none"]
    assert len(line["arguments"]) == 4 and line["arguments"][0][0].count("Answer:") == 6
    assert [asked[0] for asked in line["arguments"][1:]] == [""] * 3  # the prompt stands once


def test_finished_tasks_are_not_asked_again(
    world: tuple[Path, Path], evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    settings = config(world[0] / "first", world[1], out, base=str(world[0] / "second"), prompt_variants=2)
    asked: list[str] = []
    whole = ask.ask
    monkeypatch.setattr(ask, "ask", lambda subjects, model: asked.append(subjects[0].task) or whole(subjects, model))
    runner.run(settings)
    assert asked == [] and "all 4 tasks are finished" in capfd.readouterr().err
    for name in ("results.json", "variants.json", "table.md", "models.json"):
        assert (out / name).read_bytes() == (evaluated / name).read_bytes()
    (out / "samples" / "first" / "mmlu.jsonl").write_text("damaged\n")
    runner.run(settings)
    assert asked == ["mmlu"]
    assert scores(out) == scores(evaluated)
    runner.run(config(world[0] / "first", world[1], out, tasks=["gsm8k"], limit=None))
    assert asked == ["mmlu", "gsm8k"], "another task joins the folder"
    rows = json.loads((out / "results.json").read_text())
    assert {(row["model"], row["task"]) for row in rows} >= {("base-second", "mmlu"), ("first", "gsm8k")}


def test_changed_data_or_weights_are_asked_again(world: tuple[Path, Path], tmp_path: Path) -> None:
    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "out"
    shutil.copytree(world[0] / "first", model)
    shutil.copytree(world[1], data)
    settings = config(model, data, out, tasks=["mmlu"])
    runner.run(settings)
    before = scores(out)
    path = data / "mmlu" / "test" / "abstract_algebra_test.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[0] = lines[0][:-3] + ('"A"' if lines[0].endswith('"B"') else '"B"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    runner.run(settings)
    after = scores(out)
    assert [key for key in before if before[key] != after[key]] == [("model", "mmlu", "abstract_algebra", 0)]
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(world[0] / "second" / name, model / name)
    runner.run(settings)
    assert all(scores(out)[key][1] != after[key][1] for key in after)


def test_another_protocol_needs_another_folder(world: tuple[Path, Path], evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    settings = config(world[0] / "first", world[1], out, protocol="lm-eval", tasks=["mmlu"])
    with pytest.raises(UserError, match=r"protocol: 'ziya2' -> 'lm-eval'.*--restart"):
        runner.run(settings)
    assert scores(out) == scores(evaluated)
    runner.run(settings, restart=True)
    assert {key[:2] for key in scores(out)} == {("first", "mmlu")}


def test_two_processes_give_what_one_gives(world: tuple[Path, Path], evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runner.run(config(world[0] / "first", world[1], out, processes=2, tasks=["mmlu"]))
    assert scores(out) == {key: value for key, value in scores(evaluated).items() if key[:2] == ("first", "mmlu")}
    record = json.loads((out / "samples" / "first" / "mmlu.json").read_text())
    assert record["tokens_processed"] == 0, "the processes ran the model, this one only scored"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_mistake_in_a_process_is_told_as_such(world: tuple[Path, Path], tmp_path: Path, processes: int) -> None:
    model = tmp_path / "broken"
    shutil.copytree(world[0] / "first", model)
    size = (model / "model.safetensors").stat().st_size
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(UserError, match="cannot be loaded"):
        runner.run(config(model, world[1], tmp_path / "out", processes=processes, tasks=["cmmlu"]))


def test_a_killed_run_goes_on(world: tuple[Path, Path], evaluated: Path, tmp_path: Path) -> None:
    """Killed after the first subject's answers: they are there, are not asked again, and the scores are the same."""
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "eval.cli", "run", str(world[0] / "first"), "--data", str(world[1]), "--output", str(out),
        "--tasks", "mmlu,cmmlu", "--processes", "1", "allow_missing=true", "threads=1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (stored := list(out.glob("cache/*/ziya_*.json"))) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    times = {path: path.stat().st_mtime_ns for path in stored}
    assert times and not (out / "results.json").exists()
    runner.run(config(world[0] / "first", world[1], out))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert scores(out) == {key: value for key, value in scores(evaluated).items() if key[0] == "first"}


def test_shots_are_left_out_oldest_first(tmp_path: Path, world: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "short", max_position_embeddings=270)
    out = tmp_path / "out"
    runner.run(config(model, world[1], out, tasks=["mmlu", "gsm8k"], limit=4))
    lines = [json.loads(text) for text in (out / "samples" / "short" / "mmlu.jsonl").read_text(encoding="utf-8").splitlines()]
    fewer = [line for line in lines if line["shots"] < 5]
    assert fewer and min(line["shots"] for line in lines) < max(line["shots"] for line in lines)
    whole = ask.subjects_of("mmlu", config(model, world[1], out))
    examples = {one.name: [row["question"] for row in one.config["custom_dataset"]()["dev"]] for one in whole}
    for line in lines:
        prompt = line["arguments"][0][0]
        there = [question in prompt for question in examples[line["subject"]]]
        assert there == [False] * (5 - line["shots"]) + [True] * line["shots"]
        assert line["doc"]["question"] in prompt
    record = json.loads((out / "samples" / "short" / "mmlu.json").read_text())
    told = capfd.readouterr().err
    for subject, what in record["shortened"].items():
        own = [line["shots"] for line in lines if line["subject"] == subject]
        assert what == {"items_with_fewer_shots": sum(n < 5 for n in own), "fewest_shots": min(own), "shots": 5}
        assert f"short mmlu: {subject}: {what['items_with_fewer_shots']} prompts do not fit into 270 tokens" in told
    record = json.loads((out / "samples" / "short" / "gsm8k.json").read_text())["shortened"]["gsm8k"]
    assert record["generated_at_most"] == 135 and record["fewest_shots"] < 4


def test_a_run_s_exports_are_its_checkpoints(world: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "训练", tmp_path / "out"
    for step, name in ((5, "first"), (20, "second")):
        folder = run / "exports" / f"step-{step}"
        shutil.copytree(world[0] / name, folder)
        write_about(folder, step, 1 + step // 10, 1000 * step)
    for step in (5, 10, 20):
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (run / "exports" / "step-30.tmp").mkdir()
    (run / "config.json").write_text("{}")
    rows = runner.run(config(run, world[1], out, tasks=["cmmlu"], limit=2))
    assert [(row["model"], row["step"], row["stage"], row["tokens"]) for row in rows] == [
        ("训练-step-5", 5, 1, 5000), ("训练-step-20", 20, 3, 20000),
    ]  # fmt: skip
    assert f"ziya-train export {run} --step 10" in capfd.readouterr().err.replace("'", "")


def answers_of_the_harness(subjects: list[Subject], folder: Path) -> dict[str, Any]:
    """The harness's own run of the same tasks with its own model."""
    with ask.quiet():
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager

        return simple_evaluate(
            model=harness_model(folder, batch_size=2), tasks=[one.config for one in subjects],
            task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, confirm_run_unsafe_code=True,
        )  # fmt: skip


@pytest.mark.skipif(not (BENCHMARKS.is_dir() and LLAMA2.is_dir()), reason="needs the real benchmark items in ../shared/data")
@pytest.mark.parametrize("limit", [2, pytest.param(25, marks=pytest.mark.soak)])
def test_protocol_lm_eval_equals_the_harness_on_real_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Scores, log-probabilities and texts, item by item, with LLaMA2's tokenizer, all six benchmarks."""
    from transformers import LlamaTokenizer

    LlamaTokenizer.from_pretrained(LLAMA2, add_bos_token=True).save_pretrained(tmp_path / "tokenizer")
    folder = write_model(
        tmp_path / "llama", tokenizer=tmp_path / "tokenizer", hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        max_position_embeddings=4096,
    )  # fmt: skip
    tasks = ["ceval", "cmmlu", "mmlu", "gsm8k", "math", "humaneval"]
    plain = ask.subjects_of

    def shorter(task: str, *arguments: Any) -> list[Subject]:
        found = plain(task, *arguments)
        for one in found:  # generated texts of a few tokens: the harness needs minutes for 1,024
            if "generation_kwargs" in one.config:
                one.config["generation_kwargs"] = {**one.config["generation_kwargs"], "max_gen_toks": 24}
        return found

    monkeypatch.setattr(ask, "subjects_of", shorter)
    settings = config(folder, BENCHMARKS, tmp_path / "out", tasks=tasks, protocol="lm-eval", limit=limit)
    rows = {row["task"]: row for row in runner.run(settings)}
    assert set(rows) == set(tasks)
    for task in tasks:
        subjects = shorter(task, settings)
        theirs = answers_of_the_harness(subjects, folder)
        record = json.loads((tmp_path / "out" / "samples" / "llama" / f"{task}.json").read_text())
        lines = [json.loads(text) for text in (tmp_path / "out" / "samples" / "llama" / f"{task}.jsonl").open(encoding="utf-8")]
        correct: list[float] = []
        for one in subjects:
            name = one.config["task"]
            assert record["harness"][one.name] == ask.plain(theirs["results"][name])
            metric, _, chosen = one.metric.partition(",")
            logged = {entry["doc_id"]: entry for entry in theirs["samples"][name] if entry["filter"] == chosen}
            own = [line for line in lines if line["subject"] == one.name]
            assert len(own) == len(logged) == one.items
            for line in own:
                other = logged[line["doc_id"]]
                context = line["arguments"][0][0]
                whole = [[asked[0] or context, *asked[1:]] for asked in line["arguments"]]
                assert whole == json.loads(json.dumps(other["arguments"]))
                assert line["correct"] == other[metric]
                correct.append(float(other[metric]))
                for answer, expected in zip(line["resps"], other["resps"], strict=True):
                    if isinstance(expected[0], str):
                        assert answer == list(expected)
                    else:
                        assert answer[0][0] == pytest.approx(expected[0][0], abs=1e-4)
                        assert answer[0][1] == expected[0][1]
        assert rows[task]["value"] == pytest.approx(sum(correct) / len(correct))


def test_a_folder_in_use_is_refused(world: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with output.claimed(out), pytest.raises(UserError, match="in use by another ziya-eval run"):
        runner.run(config(world[0] / "first", world[1], out))


def test_what_is_asked_otherwise_is_told(world: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder with tokenizer.model alone gets no BOS token; penalties of generation_config.json are not applied."""
    model = tmp_path / "model"
    settings = config(model, world[1], tmp_path / "out", tasks=["cmmlu"], limit=1, max_length=4096)
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(ROOT / "scripts" / "demo" / "models" / "tokenizer.model", tmp_path / "tokenizer")
    write_model(model, tokenizer=tmp_path / "tokenizer", max_position_embeddings=2048)
    told = "begin without the BOS token"
    runner.run(settings)
    said = capfd.readouterr().err
    assert told not in said, "transformers wrote tokenizer.json, which decides"
    assert "model: max_length=4096 is more than the 2048 tokens that the model was made for" in said
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "tokenizer" / "tokenizer.model", model)
    generation = json.loads((model / "generation_config.json").read_text())
    generation |= {"repetition_penalty": 1.2, "no_repeat_ngram_size": 0, "temperature": 0.7, "do_sample": True}
    (model / "generation_config.json").write_text(json.dumps(generation))
    runner.run(settings)
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if told in line and line.startswith("model: ")]
    assert [line for line in lines if "repetition_penalty = 1.2 not applied" in line] and "no_repeat_ngram_size" not in "".join(lines)
    (model / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}))
    (model / "generation_config.json").unlink()
    runner.run(settings)
    assert told not in (said := capfd.readouterr().err) and "not applied" not in said


def test_work_is_cut_and_dealt_evenly(world: tuple[Path, Path], tmp_path: Path) -> None:
    settings = config(world[0] / "first", world[1], tmp_path)
    wanted = {(task, 0): ask.subjects_of(task, settings) for task in ("mmlu", "cmmlu", "gsm8k")}
    work = workers.units(wanted, 5)
    assert [(one.task, one.subject, one.portion) for one in work] == [
        ("mmlu", "abstract_algebra", None), ("mmlu", "college_computer_science", None), ("cmmlu", "agronomy", None),
        ("gsm8k", "gsm8k", 0), ("gsm8k", "gsm8k", 1), ("gsm8k", "gsm8k", 2),
    ]  # fmt: skip
    hands = workers.deal(work, 3)
    assert sorted(map(str, work)) == sorted(str(unit) for hand in hands for unit in hand)
    assert [{unit.task for unit in hand} for hand in hands] == [{"gsm8k"}, {"gsm8k"}, {"gsm8k", "mmlu", "cmmlu"}]
    assert len(workers.deal(work[:2], 8)) == 2


def test_held_out_documents_are_measured_beside(world: tuple[Path, Path], tmp_path: Path) -> None:
    texts = tmp_path / "held.jsonl"
    lines = [{"text": ENGLISH, "domain": "en"}, {"text": ENGLISH[::-1], "domain": "en"}, {"text": CHINESE, "domain": "zh"}]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "out"
    settings = config(
        world[0] / "first", world[1], out, base=str(world[0] / "second"), tasks=["cmmlu"], limit=1, ppl=[str(texts)]
    )
    runner.run(settings)
    rows = json.loads((out / "perplexity.json").read_text())
    assert {(row["model"], row["domain"]) for row in rows} >= {("first", "en"), ("first", "zh"), ("base-second", "zh")}
    [mine] = [row for row in rows if (row["model"], row["domain"]) == ("first", "zh")]
    model = prefix_model(world[0] / "first")
    [total] = model.loglikelihood_rolling([request("loglikelihood_rolling", CHINESE)])
    assert mine["bits_per_byte"] == pytest.approx(-total / math.log(2) / len(CHINESE.encode()), rel=1e-5)
    assert mine["base"] is not None and mine["base"] != mine["bits_per_byte"]
    kept = (out / "perplexity" / "first.json").stat().st_mtime_ns
    runner.run(settings)
    assert (out / "perplexity" / "first.json").stat().st_mtime_ns == kept
