from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from train_checkpoints import PlainEngine, cut_short, extras, opened, small

from training import export as module
from training.architecture import read_architecture
from training.checkpoint import Checkpoints, find
from training.config import CheckpointSettings
from training.export import export
from training.hf_files import HFWeights, expected
from training.layout import Layout
from training.reshard import MASTER, native_names
from ziya.errors import UserError
from ziya.exports import read_export


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three checkpoints, its base folder beside it."""
    run = tmp_path_factory.mktemp("run")
    base = run / "base"
    base.mkdir()
    (base / "tokenizer.model").write_bytes(b"model")
    (base / "generation_config.json").write_text("{}")
    (base / "config.json").write_text(json.dumps({"eos_token_id": [2, 5], "bos_token_id": 3, "pad_token_id": 62}))
    engine = PlainEngine(small())
    checkpoints = opened(run, engine)
    for step in (1, 2, 3):
        engine.step(step)
        extra = extras(step, stage=1 if step < 3 else 2)
        checkpoints.save(step, {**extra, "config": {"model": {"base": str(base)}}}, wait=True)
    return run


def masters(run: Path, step: int) -> dict[str, torch.Tensor]:
    stored = find(run, step)
    assert stored is not None
    return {key: tensor for name in native_names(stored.shape) for key, tensor in stored.whole(name, MASTER).items()}


def read(folder: Path) -> dict[str, torch.Tensor]:
    with HFWeights(folder) as weights:
        weights.check(read_architecture(folder))
        return {name: weights.read(name) for name in expected(read_architecture(folder))}


def test_export_trims_padding_and_tells_where_it_comes_from(trained: Path) -> None:
    told: list[str] = []
    out = export(trained, log=told.append)
    assert out == trained / "exports" / "step-3"
    shape = small()
    assert read_architecture(out) == replace(shape, vocab_size=61)
    found, wanted = read(out), masters(trained, 3)
    for name, tensor in found.items():
        assert torch.equal(
            tensor, wanted[name][:61].to(torch.bfloat16) if tensor.shape[0] == 61 else wanted[name].to(torch.bfloat16)
        )
    about = read_export(out)
    assert (about.step, about.stage, about.tokens, about.averaged_steps) == (3, 2, 300, [3])
    assert about.architecture == replace(shape, vocab_size=61).to_json()
    assert (out / "tokenizer.model").read_bytes() == b"model" and (out / "generation_config.json").is_file()
    config = json.loads((out / "config.json").read_text())
    assert config["eos_token_id"] == [2, 5] and config["bos_token_id"] == 3 and "pad_token_id" not in config
    assert [text for text in told if "pad_token_id 62" in text] and len(told) == 1


def test_kept_padding_is_warned_of_and_another_step_and_folder_can_be_asked_for(trained: Path, tmp_path: Path) -> None:
    told: list[str] = []
    out = export(trained, 1, tmp_path / "out", keep_padding=True, dtype="fp32", base=tmp_path, log=told.append)
    assert read_architecture(out) == small()
    assert all(torch.equal(tensor, masters(trained, 1)[name]) for name, tensor in read(out).items())
    assert ["3 padding rows are kept" in told[0], "holds no tokenizer" in told[1]] == [True, True]


def test_average_is_the_mean_of_the_masters_rounded_once(trained: Path, tmp_path: Path) -> None:
    out = export(trained, average=2, out=tmp_path / "out", dtype="fp32")
    first, second = masters(trained, 2), masters(trained, 3)
    for name, tensor in read(out).items():
        assert torch.equal(tensor, ((first[name] + second[name]) / 2)[: len(tensor)])
    assert json.loads((out / "ziya.json").read_text())["averaged_steps"] == [2, 3]
    assert not torch.equal(read(out)["model.norm.weight"], second["model.norm.weight"])
    with pytest.raises(UserError, match="keeps 3 checkpoints up to step 3, 4 are to be averaged"):
        export(trained, average=4, out=tmp_path / "more")
    with pytest.raises(UserError, match="keeps 1 checkpoints up to step 1"):
        export(trained, 1, average=2, out=tmp_path / "more")


def test_an_earlier_export_is_replaced_and_nothing_else(trained: Path, tmp_path: Path) -> None:
    out = export(trained, 1, tmp_path / "out")
    export(trained, 2, out)
    assert json.loads((out / "ziya.json").read_text())["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(UserError, match="exists and is no export"):
        export(trained, 1, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes").read_text() == "keep"


def test_the_samples_of_the_same_weights_stay(trained: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = export(trained, 2, tmp_path / "out", log=said.append)
    for name in ("samples.md", "samples.json"):
        (out / name).write_text("what step 2 writes")
    assert export(trained, 2, out, log=said.append) == out
    assert said[-1] == f"{out} holds this export already: it stays as it is"
    assert (out / "samples.md").read_text() == (out / "samples.json").read_text() == "what step 2 writes"
    for options, what in (({"average": 2}, "the mean of steps 1, 2"), ({"dtype": "fp32"}, r"step 2 (fp32, ")):
        export(trained, 2, out, **options, log=said.append)  # type: ignore[arg-type]
        assert len([line for line in said if f"is replaced by that of {what}" in line]) == 1
        assert not (out / "samples.md").exists() and not (out / "samples.json").exists()
    assert [line for line in said if "the export of step 2 (bf16, " in line and " with its samples is replaced" in line]
    export(trained, 3, out, log=said.append)
    assert "the export of step 2 (fp32, " in said[-1] and "with its samples" not in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_export_below_a_file_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file, so no folder can be made in it"):
        export(trained, 1, tmp_path / "file" / "out")


def test_a_full_disk_leaves_the_earlier_export(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(trained, 1, tmp_path / "out")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(UserError, match="no space left"):
        export(trained, 2, out)
    assert json.loads((out / "ziya.json").read_text())["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_damaged_or_absent_checkpoints_are_refused(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "checkpoints", run / "checkpoints")
    cut_short(run / "checkpoints" / "step-3" / "rank-0000.safetensors")
    with pytest.raises(UserError, match="cut short"):
        export(run)
    assert not (run / "exports").exists()
    with pytest.raises(UserError, match="no checkpoint to export"):
        export(tmp_path / "none")


@pytest.mark.parametrize("kind", ["json", "model"])
def test_samples_in_both_languages_and_code(tmp_path: Path, kind: str) -> None:
    """Greedy and the same each time, by either kind of tokenizer; without one nothing is written."""
    import small_tokenizers

    base = tmp_path / "base"
    base.mkdir()
    shape = small_models.architecture(layers=1, vocab_size=768, vocab_used=760, positions=128)
    opened(tmp_path, PlainEngine(shape)).save(1, extras(1), wait=True)
    with pytest.raises(UserError, match=r"holds no tokenizer\.json or tokenizer\.model: samples need"):
        export(tmp_path, base=base, samples=True)
    assert not (tmp_path / "exports").exists()
    if kind == "json":
        small_tokenizers.tokenizer_json(base / "tokenizer.json")
    else:
        small_tokenizers.sentencepiece_model(base / "tokenizer.model")
    first = export(tmp_path, base=base, samples=True, log=lambda text: None)
    second = export(tmp_path, out=tmp_path / "again", base=base, samples=True, log=lambda text: None)
    found = json.loads((first / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert {language: len(samples) for language, samples in found.items()} == {"zh": 3, "en": 3, "code": 3}
    for samples in found.values():
        for one in samples:
            assert one["text"].startswith(one["prompt"]) and 0 < one["tokens"] <= 64
            assert one["ended"] or one["tokens"] == 64
            assert one["text"].encode() in (first / "samples.md").read_bytes()
    for name in ("samples.json", "samples.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def native_and_hf(rank: int, folder: Path) -> dict[str, Any]:
    """Train two steps, export, and compare the logits of a row of two documents with transformers' on each document."""
    from transformers import AutoModelForCausalLM

    from training.layout import start_groups, stop_groups

    found: dict[str, Any] = {}
    layout = Layout()
    for family, changes in (
        ("qwen2", {}),
        ("llama", {"qkv_bias": False, "tied": True, "head_dim": 16}),
        ("bf16", {"family": "mistral", "qkv_bias": False}),
    ):
        bf16 = family == "bf16"
        shape = small_models.architecture(**{"family": family, **changes})
        start_groups(layout)
        engine, here = small_models.engine(shape, layout, bf16=bf16)
        run = folder / family
        small_models.train(engine, here, shape, range(2))
        Checkpoints(run, engine, layout, here, CheckpointSettings()).save(2, extras(2), wait=True)
        out = export(run, dtype="bf16" if bf16 else "fp32", log=lambda text: None)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16 if bf16 else torch.float32)
        rows = small_models.batch(5, shape)[1]
        with torch.no_grad():
            chunk = engine.chunks[0]
            ours = chunk.logits(chunk(rows))[:, : shape.vocab_used]
            parts = rows.tokens.split(rows.lengths)
            theirs = torch.cat([model(part[None]).logits[0].float() for part in parts])
        found[family] = {
            "shape": tuple(ours.shape) == tuple(theirs.shape) == (small_models.ROW, 61),
            "difference": float((ours - theirs).abs().max()),
            "scale": float(theirs.abs().max()),
            "embedding": torch.equal(chunk.embedding.weight[:61], model.get_input_embeddings().weight),
            "documents": len(rows.lengths),
        }
        stop_groups()
    return found


def test_transformers_gives_the_native_models_logits(tmp_path: Path) -> None:
    (found,) = small_models.run_world(native_and_hf, 1, tmp_path, tmp_path)
    for family, limit in (("qwen2", 1e-5), ("llama", 1e-5), ("bf16", 0.02)):
        case = found[family]
        assert case["shape"] and case["embedding"] and case["documents"] == 2
        assert case["difference"] <= limit * (case["scale"] if family == "bf16" else 1.0), (family, case)
