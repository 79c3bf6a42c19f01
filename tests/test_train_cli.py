"""`ziya-train` up to the launch: help, configs, refusals, where a stage starts, changes of a run's settings."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import oracle_train_data as oracle
import pytest
import train_runs
from small_tokenizers import sentencepiece_model

from training import cli, launch
from training.architecture import read_architecture
from training.config import TrainConfig, load_config
from training.layout import Layout
from training.preflight import prepare
from training.reshard import LayoutEntry, Manifest
from training.stages import find_start
from training.state import RunState
from ziya.config import walk
from ziya.errors import UserError
from ziya.files import read_json, write_json
from ziya.tokenizer import load_tokenizer

CONFIGS = sorted((train_runs.ROOT / "configs" / "train").glob("*.yaml"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.write_parts(tmp_path_factory.mktemp("parts"))


def config(made: Path, run: Path, *overrides: str) -> TrainConfig:
    parts = [f"run={run}", f"model.base={made / 'base'}", f"data.sources.0.packs=[{made / 'text'}]"]
    return load_config(train_runs.CONFIG, [*parts, *overrides])


def put_checkpoint(run: Path, made: Path, state: RunState, serial: int = 1) -> Path:
    """A manifest as a run leaves it, without the tensors, which nothing before the launch reads."""
    folder = run / "checkpoints" / f"step-{state.step}"
    folder.mkdir(parents=True)
    Manifest(
        step=state.step,
        stage=state.stage,
        tokens=state.tokens,
        serial=serial,
        precision="fp32",
        layout=LayoutEntry(**asdict(Layout())),
        adam_steps={},
        architecture=read_architecture(made / "base").to_json(),
        files={},
        extras={"state": state.to_json(), "ledger": {"version": 1}, "windows": {"losses": [], "norms": [], "bad": []}},
    ).write(folder)
    (run / "latest").write_text(f"step-{state.step}\n")
    return folder


# --- help and configs -------------------------------------------------------------------------------------------------


def test_help_tells_every_command_and_setting_and_stays_light() -> None:
    code = "import sys; from training.cli import main\ntry: main(['--help'])\nfinally: print([m for m in ('torch',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=train_runs.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in cli.COMMANDS:
        assert f"ziya-train {command}" in done.stdout
    for name, field in walk(TrainConfig):
        assert any(f"  {name}  [{kind}; " in done.stdout for kind in ("fixed", "free")), name
        assert str(field.description) in done.stdout
    assert "  seed  [fixed; default 1234]" in done.stdout and "  run  [free; default 'run']" in done.stdout


@pytest.mark.parametrize("given", [["plot", "x"], ["plan"], ["init"], ["export", "x"], ["--stage", "1"]])
def test_ctrl_c_while_modules_are_imported_is_one_line(given: list[str]) -> None:
    """The first module that is slow to import stands for all: the entry point must reach `run_main` before it."""
    code = (
        "import os, signal, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pydantic', 'numpy', 'torch', 'orjson', 'xxhash'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Slow())\n"
        f"sys.argv[1:] = {given!r}\n"
        "from training.cli import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=train_runs.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr
    assert done.stderr.startswith("interrupted")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_read(path: Path) -> None:
    stages = [stage.number for stage in load_config(path).stages]
    assert stages == ([1] if path.stem == "demo_base" else [1, 2, 3])


def test_the_papers_values() -> None:
    paper = load_config(train_runs.ROOT / "configs" / "train" / "ziya2_13b.yaml")
    assert [stage.tokens for stage in paper.stages] == [650e9, 58e9, 0.3e9]
    layout = Layout(80, paper.parallel.tensor, paper.parallel.pipeline, zero=paper.parallel.zero)
    assert str(layout) == "TP1 PP2 DP40 ZeRO-1"
    assert paper.data.global_batch_rows % (layout.data * paper.data.micro_batch_rows) == 0
    assert sum(paper.stage(1).weights.values()) == pytest.approx(653.3)
    for stage in paper.stages:
        assert (stage.schedule.kind, stage.schedule.final, stage.schedule.warmup) == ("cosine", 1e-5, 0.01)
        assert [(replay.stage, replay.ratio) for replay in stage.replay] == [(k, 1.0) for k in range(1, stage.number)]
    o = paper.optimizer
    assert (o.beta1, o.beta2, o.weight_decay, o.clip, paper.data.sequence_length) == (0.9, 0.95, 0.1, 1.0, 4096)
    axis = load_config(train_runs.ROOT / "configs" / "train" / "ziya2_axis.yaml")
    assert [stage.tokens for stage in axis.stages] == [650e9, 47e9, 3e9]
    budgets = [stage.model_copy(update={"tokens": 0.0}) for stage in paper.stages]
    assert [stage.model_copy(update={"tokens": 0.0}) for stage in axis.stages] == budgets
    assert axis.model_copy(update={"run": "", "stages": []}) == paper.model_copy(update={"run": "", "stages": []})


def test_arguments_in_any_order(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(launch, "launch", lambda *given: seen.append(given) or 0)
    given = train_runs.arguments(
        made, tmp_path, "stages.0.tokens=1e9", "stability.sigma=1.5e1", "--accept-change", "seed", "seed=1", "stages.1",
        "seed=7", "--processes", "2", "init_from=there", stage=2,
    )  # fmt: skip
    assert cli.main(given) == 0
    found, number, accepted = seen[0]
    assert (number, accepted, found.seed, found.launch.processes) == (2, ["seed", "stages.1"], 7, 2)
    assert (found.stage(1).tokens, found.stability.sigma) == (1e9, 15.0)
    assert (found.stage(1).init_from, found.stage(2).init_from) == (None, "there")


# --- refusals: one line, exit code 2, nothing left behind --------------------------------------------------------------


def refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(given) == 2
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == said[-1]
    return errors[0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--stage", "4"], "--stage 4: the config has stages 1 to 3"),
        (["--config", "none.yaml"], "config none.yaml does not exist"),
        (["data.rows=3"], "unknown key data.rows"),
        (["model.precision=fp16"], "FP16 is refused: Ziya2 was begun in it"),
        (["model.kernel=flash"], "model.kernel=flash runs on GPUs only, and torch sees none here: set model.kernel=auto"),
        (["model.kernel=torch", "model.precision=bf16"], "model.kernel=torch runs on GPUs only"),
        (["parallel.tensor=2", "--processes", "3"], "3 processes are not a multiple of parallel.tensor 2"),
        (["parallel.zero=2", "parallel.pipeline=2", "--processes", "2"], "parallel.zero 2 cuts gradients up"),
        (["--processes", "3"], "data.global_batch_rows=4 is not a multiple of data-parallel size 3"),
        (["data.sequence_length=128"], "data.sequence_length=128 and "),
        (["model.base=/nowhere"], "/nowhere has no config.json"),
        (["data.sources.0.packs=[/nowhere/p]"], "pack /nowhere/p.bin does not exist"),
        (["--stage", "2"], "has no checkpoint of stage 1, which stage 2 starts from"),
        (["--stage", "2", "init_from=/nowhere"], "init_from=/nowhere is no checkpoint"),
        (["launch.hostfile=/nowhere"], "launch.hostfile /nowhere does not exist"),
        (["--accept-change", "sed"], "--accept-change sed: no setting is called so (did you mean seed?)"),
    ],
)
def test_refusals(more: list[str], expected: str, made: Path, tmp_path: Path, capsys: Any) -> None:
    assert expected in refused(train_runs.arguments(made, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_base_that_is_not_whole(made: Path, tmp_path: Path, capsys: Any) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    shutil.copy(made / "text.bin", tmp_path)
    shutil.copy(made / "text.idx", tmp_path)
    given = train_runs.arguments(tmp_path, tmp_path / "run")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be read as safetensors" in refused(given, capsys)
    weights.unlink()
    assert "has no weights" in refused(given, capsys)
    raw = read_json(base / "config.json")
    write_json(base / "config.json", raw | {"architectures": ["GPT2LMHeadModel"]})
    assert "architecture GPT2LMHeadModel" in refused(given, capsys)
    write_json(base / "config.json", raw | {"vocab_size": 60})
    assert "holds token ids up to 60 and the model knows 0 to 59" in refused(given, capsys)


def test_packs_of_another_tokenizer(made: Path, tmp_path: Path, capsys: Any) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    tokenizer = load_tokenizer(sentencepiece_model(base / "tokenizer.model"))
    facts = {name: getattr(tokenizer, name) for name in ("kind", "fingerprint", "vocab_size", "eos_id", "pad_id")}
    rows = oracle.whole_rows(random.Random(1), 4, train_runs.LENGTH, "text")
    oracle.write_pack(tmp_path / "text", rows, "whole", facts)
    raw = read_json(base / "config.json")
    write_json(base / "config.json", raw | {"vocab_size": tokenizer.vocab_size})
    given = train_runs.arguments(tmp_path, tmp_path / "run")
    sentencepiece_model(base / "tokenizer.model", vocab_size=600)
    assert "packed with another tokenizer.model" in refused(given, capsys)
    for name in ("b", "c"):
        oracle.write_pack(tmp_path / name, rows, "whole", facts)
    packs = [tmp_path / name for name in ("text", "b", "c")]
    said = refused([*given, f"data.sources.0.packs=[{','.join(map(str, packs))}]"], capsys)
    assert f"{packs[0]}, {packs[1]} and {packs[2]} were packed with another tokenizer.model" in said
    assert said.count("pack again") == 1
    (base / "tokenizer.model").unlink()
    said = refused([*given, f"data.sources.0.packs=[{','.join(map(str, packs))}]"], capsys)
    assert f"has no tokenizer.model, which {packs[0]}, {packs[1]} and {packs[2]} were packed with: copy it there" in said


def test_a_checkpoint_of_another_model(made: Path, tmp_path: Path, capsys: Any) -> None:
    """As `init_from`, and in RUN itself; what is in RUN stays as it is."""
    folder = put_checkpoint(tmp_path / "old", made, RunState(step=10, data_index=10, tokens=1280, stage_tokens=1280))
    other = tmp_path / "parts"
    train_runs.write_base(other / "base", intermediate_size=96)
    train_runs.write_pack(other / "text")
    said = refused(train_runs.arguments(other, tmp_path / "run", f"init_from={folder}"), capsys)
    assert f"init_from {folder} is a checkpoint of another model than model.base (ffn: 64 -> 96)" in said
    run = tmp_path / "run2"
    prepare(config(made, run), 1, 1)
    put_checkpoint(run, made, RunState(step=10, data_index=10, tokens=1280, stage_tokens=1280))

    def held() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}

    before = held()
    assert "model.architecture: " in refused(train_runs.arguments(other, run), capsys)
    assert before.items() <= held().items()  # an index of the other packs may have come


# --- where a stage starts ---------------------------------------------------------------------------------------------


def test_where_stages_start(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = config(made, run, "stages.1.optimizer=carry")
    first = find_start(settings, 1)
    assert (first.kind, first.folder, first.state, first.finished(settings.stage(1))) == (
        "model", made / "base", RunState(), False,
    )  # fmt: skip
    half = put_checkpoint(run, made, RunState(step=10, data_index=10, tokens=1280, stage_tokens=1280))
    assert find_start(settings, 1).kind == "resume" and find_start(settings, 1).folder == half
    with pytest.raises(UserError, match=r"stage 1 in .* has 1,280 of 2,560 tokens: finish it first"):
        find_start(settings, 2)
    over = find_start(config(made, run, f"stages.1.init_from={half}"), 2)
    assert (over.kind, over.folder) == ("checkpoint", half)
    assert over.state == RunState(stage=2, step=10, tokens=1280)
    model = find_start(config(made, run, f"stages.1.init_from={made / 'base'}"), 2)
    assert (model.kind, model.state.step, model.ledger) == ("model", 10, {"version": 1})
    whole = put_checkpoint(run, made, RunState(step=20, data_index=20, tokens=2560, stage_tokens=2560), 2)
    assert find_start(settings, 1).finished(settings.stage(1))
    second = find_start(settings, 2)
    assert (second.kind, second.folder, second.moments(settings.stage(2))) == ("stage", whole, True)
    assert not second.moments(config(made, run).stage(2))
    assert second.state == RunState(stage=2, step=20, tokens=2560)
    with pytest.raises(UserError, match=r"stage 2 in .* has 0 of 1,280 tokens"):
        find_start(settings, 3)
    put_checkpoint(run, made, RunState(stage=2, step=25, data_index=5, tokens=3200, stage_tokens=640), 3)
    with pytest.raises(UserError, match=r"has come to stage 2 \(step 25\), so stage 1 is behind it"):
        find_start(settings, 1)
    other = find_start(config(made, tmp_path / "other", f"stages.0.init_from={run}"), 1)
    assert (other.kind, other.folder.name, other.state, other.ledger) == ("checkpoint", "step-25", RunState(), None)


# --- settings that a run is bound to ----------------------------------------------------------------------------------


def test_fixed_settings_are_refused_by_name(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(config(made, run), 1, 1)
    prepare(config(made, run, "seed=9"), 1, 1)  # nothing was trained yet: nothing binds
    put_checkpoint(run, made, RunState(step=10, data_index=10, tokens=1280, stage_tokens=1280))
    free = ["stability.sigma=4.0", "stages.1.tokens=9.0", "data.micro_batch_rows=2", "telemetry.validate_every_steps=7"]
    prepare(config(made, run, "seed=9", *free), 1, 1)
    changed = ["seed=8", "optimizer.beta2=0.9", "stages.0.schedule.peak=2.0e-3"]
    with pytest.raises(UserError) as error:
        prepare(config(made, run, *changed), 1, 1)
    for text in ("seed: 9 -> 8", "optimizer.beta2: 0.95 -> 0.9", "stages.0.schedule.peak: 0.001 -> 0.002"):
        assert text in str(error.value)
    assert str(error.value).endswith("--accept-change optimizer.beta2 seed stages.0.schedule.peak")
    with pytest.raises(UserError, match=r"other settings: seed: 9 -> 8\. "):
        prepare(config(made, run, *changed), 1, 1, ["optimizer", "stages.0"])
    prepare(config(made, run, *changed), 1, 1, ["optimizer", "stages.0", "seed"])
    prepare(config(made, run, *changed), 1, 1)  # accepted once, it is the run's
    assert read_json(run / "config.json")["accepted"] == [
        "optimizer.beta2: 0.95 -> 0.9", "seed: 9 -> 8", "stages.0.schedule.peak: 0.001 -> 0.002",
    ]  # fmt: skip


def test_other_packs_and_other_models_are_refused_and_moved_ones_are_not(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    parts = shutil.copytree(made, tmp_path / "parts")
    prepare(config(parts, run), 1, 1)
    put_checkpoint(run, made, RunState(step=10, data_index=10, tokens=1280, stage_tokens=1280))
    prepare(config(made, run), 1, 1)
    train_runs.write_pack(parts / "text", seed=1)
    with pytest.raises(UserError, match=r"packs\.text: the packs of this source hold other rows"):
        prepare(config(parts, run), 1, 1)
    raw = read_json(parts / "base" / "config.json")
    write_json(parts / "base" / "config.json", raw | {"rms_norm_eps": 0.1})
    with pytest.raises(UserError, match=r"model\.architecture: .* is another model"):
        prepare(config(parts, run), 1, 1, ["packs"])
    prepare(config(parts, run), 1, 1, ["packs.text", "model.architecture"])


def test_a_stage_binds_its_own_settings_when_it_begins(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(config(made, run), 1, 1)
    put_checkpoint(run, made, RunState(step=20, data_index=20, tokens=2560, stage_tokens=2560))
    prepare(config(made, run, "stages.1.tokens=640.0"), 2, 1)
    put_checkpoint(run, made, RunState(stage=2, step=21, data_index=1, tokens=2688, stage_tokens=128), 2)
    prepare(config(made, run, "stages.1.tokens=640.0", "stages.2.tokens=1.0"), 2, 1)
    with pytest.raises(UserError, match=r"stages\.1\.tokens: 640\.0 -> 1280\.0"):
        prepare(config(made, run), 2, 1)


def test_what_a_carried_schedule_binds(made: Path, tmp_path: Path) -> None:
    """Stage 1's rates depend on the tokens of all stages that carry its schedule on, and on which those are."""
    run, carry = tmp_path / "run", ["stages.1.schedule_from=carry"]
    prepare(config(made, run, *carry), 1, 1)
    put_checkpoint(run, made, RunState(step=10, data_index=10, tokens=1280, stage_tokens=1280))
    prepare(config(made, run, *carry, "stages.2.tokens=9.0", "stages.1.replay=[]"), 1, 1)
    with pytest.raises(UserError, match=r"other settings: stages\.1\.tokens: 1280\.0 -> 640\.0\. "):
        prepare(config(made, run, *carry, "stages.1.tokens=640.0"), 1, 1)
    with pytest.raises(UserError, match=r"other settings: stages\.1\.schedule_from: 'carry' -> 'restart'\. "):
        prepare(config(made, run), 1, 1)
    with pytest.raises(UserError, match=r"other settings: stages\.2\.schedule_from: 'restart' -> 'carry'\. "):
        prepare(config(made, run, *carry, "stages.2.schedule_from=carry"), 1, 1)
    prepare(config(made, run, "stages.1.tokens=640.0"), 1, 1, ["stages.1.schedule_from"])


def test_a_run_from_before_a_setting_was_known_goes_on(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(config(made, run), 1, 1)
    put_checkpoint(run, made, RunState(step=10, data_index=10, tokens=1280, stage_tokens=1280))
    recorded = read_json(run / "config.json")
    old = {name: value for name, value in recorded["fixed"].items() if not name.endswith("schedule_from")}
    assert len(old) == len(recorded["fixed"]) - 2
    write_json(run / "config.json", recorded | {"fixed": old})
    with pytest.raises(UserError, match=r"other settings: stages\.1\.schedule_from: 'restart' -> 'carry'\. "):
        prepare(config(made, run, "stages.1.schedule_from=carry"), 1, 1)
    prepare(config(made, run), 1, 1)
    assert read_json(run / "config.json")["fixed"] == recorded["fixed"]


def test_many_epochs_are_warned_of(made: Path, tmp_path: Path) -> None:
    assert prepare(config(made, tmp_path / "a"), 1, 1).notes == []
    notes = prepare(config(made, tmp_path / "b", "stages.0.tokens=10240.0"), 1, 1).notes
    assert len(notes) == 1 and "source text is read 5.0 times" in notes[0]
