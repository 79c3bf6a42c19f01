"""The command: settings from file, options and overrides; every mistake one line; help without the heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from eval_models import write_about

from eval import cli, models_found
from eval.config import EvalConfig
from ziya.config import load
from ziya.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EvalConfig, bool]]:
    """What the command would run, without running it."""
    from eval import runner

    found: list[tuple[EvalConfig, bool]] = []

    def run(config: EvalConfig, *, restart: bool = False) -> list[dict[str, Any]]:
        found.append((config, restart))
        return []

    monkeypatch.setattr(runner, "run", run)
    return found


def model_folder(folder: Path, **about: int) -> Path:
    """Looks like a Hugging Face folder from outside."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    if about:
        write_about(folder, **about)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["run", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said
    return said


def test_file_options_and_overrides(tmp_path: Path, asked: list[tuple[EvalConfig, bool]]) -> None:
    path = tmp_path / "评测.yaml"
    path.write_text(yaml.safe_dump({"tasks": ["mmlu"], "limit": 3, "every": 2, "base": "b"}), encoding="utf-8")
    assert cli.main(["run", "--config", str(path), "runs/a", "every=5", "--limit", "9", "--tasks", "ceval,gsm8k", "wait_s=2.5"]) == 0
    config, restart = asked[0]
    assert (config.model, config.base, config.tasks, config.limit, config.every, config.wait_s, restart) == (
        "runs/a", "b", ["ceval", "gsm8k"], 9, 5, 2.5, False,
    )  # fmt: skip
    assert cli.main(["run", "runs/a", "--unsafe-code", "--restart", "--prompt-variants", "3", "--protocol", "lm-eval"]) == 0
    config, restart = asked[1]
    assert (config.unsafe_code, restart, config.prompt_variants, config.protocol, config.limit) == (True, True, 3, "lm-eval", None)
    assert cli.main(["run", "every=3", "model=runs/b", "--output", "o"]) == 0
    assert (asked[2][0].model, asked[2][0].every, asked[2][0].output) == ("runs/b", 3, "o")


OPTIONS = {
    "--base": "b",
    "--tasks": "mmlu",
    "--data": "d",
    "--output": "o",
    "--protocol": "lm-eval",
    "--limit": "7",
    "--prompt-variants": "2",
    "--ppl": "zh.jsonl,en.jsonl",
    "--dtype": "float32",
    "--batch-tokens": "99",
    "--processes": "2",
}


def test_every_option_reaches_the_settings(asked: list[tuple[EvalConfig, bool]]) -> None:
    parser = cli._parser("run")._subparsers._group_actions[0].choices["run"]  # type: ignore[union-attr,index]
    known = {action.option_strings[0] for action in parser._actions if action.option_strings and action.nargs != 0}
    assert known - {"--config"} == set(OPTIONS)
    assert cli.main(["run", "m", *(part for pair in OPTIONS.items() for part in pair)]) == 0
    found, default = asked[0][0].model_dump(mode="json"), EvalConfig(model="m").model_dump(mode="json")
    names = {option[2:].replace("-", "_") for option in OPTIONS}
    assert {name for name, value in found.items() if value != default[name]} == names
    assert found["ppl"] == ["zh.jsonl", "en.jsonl"]


def test_the_shipped_settings_are_the_defaults() -> None:
    shipped = load(EvalConfig, ROOT / "configs" / "eval" / "ziya2.yaml")
    assert shipped == EvalConfig()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["m", "every=0"], "every = 0"),
        (["m", "batch_token=4"], "did you mean batch_tokens"),
        (["m", "--limit", "0"], "limit = 0"),
        (["m", "limit=ten"], "limit = 'ten'"),
        (["m", "protocol=opencompass"], "protocol = 'opencompass'"),
        (["--config", "nowhere.yaml", "m"], "nowhere.yaml does not exist"),
    ],
)
def test_wrong_settings(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert told in refused(capsys, *arguments)


def test_unknown_options_end_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["run", "m", "other"], ["run", "m", "--limt", "3"], ["rum", "m"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
    assert "unrecognized arguments: --limt 3" in capsys.readouterr().err


def test_mistakes_in_tasks_data_and_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(tmp_path), "--output", str(tmp_path / "out")]
    assert "no model" in refused(capsys)
    assert "mmlu" in refused(capsys, "m", "--tasks", "mmmlu", *data)
    there = str(model_folder(tmp_path / "there"))
    assert "gsm8k: no test files" in refused(capsys, there, "--tasks", "gsm8k", *data)
    assert "task 'mmul' is unknown (did you mean mmlu?)" in refused(capsys, there, "--tasks", "ceval,mmul", *data)
    assert "nobase does not exist" in refused(capsys, there, "--base", "nobase", "--tasks", "ceval", *data)
    assert "nomodel does not exist" in refused(capsys, "nomodel", "--tasks", "ceval", *data)
    young = tmp_path / "young"
    (young / "checkpoints").mkdir(parents=True)
    assert "ceval: no val files" in refused(capsys, str(young), "wait_s=9", "--tasks", "ceval", *data), "a run that is waited for"
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) for n in range(9)]
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    given = ["--tasks", "gsm8k", *data]

    def last(*arguments: str) -> str:
        assert cli.main(["run", *arguments]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "does not exist" in last("no/such/folder", *given)
    assert "allow_hub=true" in last("Org/Name", *given)
    assert "is a file" in last(str(tmp_path / "gsm8k" / "test.jsonl"), *given)
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in last(str(tmp_path / "empty"), *given)
    model = model_folder(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    assert "holds no tokenizer" in last(str(model), *given)
    (model / "config.json").unlink()
    assert "holds no config.json" in last(str(model), *given)
    assert "--base" in last(str(model_folder(tmp_path / "m2")), "--base", str(run_folder(tmp_path / "run", [1], [1])), *given)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    assert "other files" in last(str(tmp_path / "m2"), *given, "--output", str(tmp_path / "mine"))


def test_more_mistakes_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("tasks: [mmlu\nlimit: 3")
    said = refused(capsys, "--config", str(tmp_path / "bad.yaml"))
    assert "bad.yaml is not valid YAML" in said and "line 2" in said and "<unicode string>" not in said
    run = run_folder(tmp_path / "run", [], [5])
    with pytest.raises(UserError, match=r"run/exports lies inside a ziya run: give the run itself, .*run$"):
        models_found.find(str(run / "exports"), None)
    path = tmp_path / "data" / "mmlu" / "test" / "anatomy_test.csv"
    path.parent.mkdir(parents=True)
    path.write_text("Which?,1,2,3,4,A\n")
    model = str(model_folder(tmp_path / "model"))
    said = refused(capsys, model, "--tasks", "mmlu", "--data", str(tmp_path / "data"), "shots=0")
    assert "56 subjects have no test file" in said and "and 48 more. Download" in said and len(said) < 900
    found = ["contamination", "--documents", str(path), "--data", str(tmp_path / "none"), "--output", str(path)]
    assert cli.main(found) == 2
    assert capsys.readouterr().err.strip().endswith("anatomy_test.csv is a file: give a folder")
    with pytest.raises(SystemExit):
        cli.main(["run", "m", "other"])
    assert "unrecognized arguments: other (one model or run a call" in capsys.readouterr().err


def run_folder(folder: Path, checkpoints: list[int], exports: list[int]) -> Path:
    for step in checkpoints:
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    for step in exports:
        model_folder(folder / "exports" / f"step-{step}", step=step, stage=1, tokens=step * 10)
    (folder / "config.json").write_text("{}")
    return folder


def test_exports_of_a_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run 一", [100, 200], [1000, 20, 3, 400, 50])
    told: list[str] = []

    def steps(every: int) -> list[int | None]:
        return [one.step for one in models_found.find(str(run), None, every=every, tell=told.append)]

    assert steps(1) == [3, 20, 50, 400, 1000]
    assert steps(2) == [20, 400, 1000]
    assert steps(4) == [400, 1000]
    assert steps(9) == [1000]
    assert len(told) == 8 and f"`ziya-train export '{run}' --step 100`" in told[0]
    found = models_found.find(str(run), str(model_folder(tmp_path / "base")), tell=told.append)
    assert [one.name for one in found[:2]] == ["base-base", "run-一-step-3"]
    assert found[0].is_base and found[0].step is None and found[1].tokens == 30 and found[1].run == str(run)


def test_a_run_without_exports_names_the_command(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [5, 10], [])
    with pytest.raises(UserError, match=r"no exported checkpoint: run `ziya-train export .*run --step 10`"):
        models_found.find(str(run), None)
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="neither exports nor checkpoints"):
        models_found.find(str(tmp_path / "new"), None)


def test_a_damaged_export_is_named(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [], [5])
    (run / "exports" / "step-5" / "ziya.json").write_text('{"step": 5, "stage": 1}')
    for model in (run, run / "exports" / "step-5"):
        with pytest.raises(UserError, match=r"step-5/ziya.json does not tell of an export: tokens \(Field required\)"):
            models_found.find(str(model), None)
    about = {"version": 1, "step": 5, "stage": 1, "tokens": 50, "averaged_steps": [5], "dtype": "fp32", "architecture": {}}
    for changed, told in (({"step": -5}, "step"), ({"tokens": True}, "tokens"), ({"averaged_steps": [4]}, "end with step 5")):
        (run / "exports" / "step-5" / "ziya.json").write_text(json.dumps(about | changed))
        with pytest.raises(UserError, match=told):
            models_found.find(str(run), None)


def test_an_export_alone_knows_its_place(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "step-7", step=7, stage=2, tokens=70)
    [found] = models_found.find(str(folder), None)
    assert (found.name, found.step, found.stage, found.tokens, found.run) == ("step-7", 7, 2, 70, None)


def test_help_is_complete_and_light() -> None:
    """Every setting is told, and none of the heavy packages is imported for it."""
    code = (
        "import sys; from eval import cli\n"
        "try: cli.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'lm_eval', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    for name in EvalConfig.model_fields:
        assert f"\n  {name}  [" in done.stdout
    for option in ("--base", "--tasks", "--data", "--output", "--protocol", "--limit", "--prompt-variants", "--unsafe-code"):
        assert option in done.stdout


def test_ctrl_c_while_modules_are_imported_is_one_line() -> None:
    """The first heavy module's import raises KeyboardInterrupt, as Ctrl-C in the first moments does."""
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('pydantic', 'yaml', 'numpy', 'torch'): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from eval.cli import main\n"
        "sys.exit(main(['run', 'm']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr.startswith("interrupted: ") and done.stderr.count("\n") == 1


def test_the_end_of_a_run_is_told(tmp_path: Path) -> None:
    row = {"model": "m", "task": "mmlu", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "macro": 0.5, "micro": 0.45}
    (tmp_path / "variants.json").write_text(
        json.dumps([{"model": "m", "task": "mmlu", "values": [0.5, 0.3], "mean": 0.4, "least": 0.3, "greatest": 0.5}])
    )
    row |= dict.fromkeys(("base_value", "p_value", "pairs", "pairs_of", "difference"))
    compared = {"base_value": 0.25, "p_value": 0.031, "pairs": 9, "pairs_of": 9, "difference": 0.25}
    text = cli.summary(tmp_path, [{**row, **compared}, row])
    assert "+25.00 to the base, p = 0.031" in text and "[40.00, 60.00]" in text
    assert "over 2 wordings: 30.00 to 50.00, mean 40.00" in text
    lines = cli.summary(tmp_path / "none", [{**row, "model": "模型-a"}, {**row, "model": "model-abcd"}]).splitlines()
    assert [cli.columns(line.split("mmlu")[0]) for line in lines[:2]] == [12, 12], "Chinese names take two columns a character"
