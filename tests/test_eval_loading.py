"""Loading: only whole models are evaluated, each with its own tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_models import config, prefix_model, request, scores, write_benchmarks, write_model, write_tokenizer

from eval import loading, runner
from eval.models_found import Found
from ziya.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "whole")


def load(folder: Path, **changes: Any) -> Any:
    return loading.load_forward(Found("m", str(folder)), config(folder, folder, folder, **changes), "float32")


def changed(whole: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose weights were changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(whole, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(UP), rf"lack 1 tensors that its config.json asks for \({UP}\)"),
        (lambda w: w.pop("lm_head.weight"), r"lack 1 tensors .*lm_head.weight"),
        (lambda w: [w.pop(name) for name in list(w) if ".layers.1." in name], r"lack 9 tensors .*, \.\.\.\)"),
        (lambda w: w.update({UP: w[UP][:5]}), rf"1 tensors have other shapes .*{UP} is \[5, 64\], not \[96, 64\]"),
    ],
)
def test_a_model_that_lacks_a_part_is_refused(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """transformers would fill it with random numbers, and the scores would look like a model's."""
    with pytest.raises(UserError, match=message) as error:
        load(changed(whole, tmp_path / "m", change))
    assert "\n" not in str(error.value) and str(tmp_path / "m") in str(error.value)
    assert "MISSING" not in capfd.readouterr().err


def test_tensors_without_use_are_told(whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(changed(whole, tmp_path / "m", lambda w: w.update({"value_head.weight": w[UP]})))
    told = [line for line in capfd.readouterr().err.splitlines() if "value_head" in line]
    assert len(told) == 1 and "1 tensors of its weights are not part of its model" in told[0]


def test_tied_parts_need_not_be_there_twice(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tied = write_model(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load(tied)
    with pytest.raises(UserError, match=r"lack 2 tensors .*lm_head\.weight, model\.embed_tokens"):
        load(changed(tied, tmp_path / "m", lambda w: w.pop("model.embed_tokens.weight")))


def test_the_setting_s_tokenizer_is_for_models_without_one(whole: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other")
    settings = config(whole, whole, tmp_path, tokenizer=str(other))
    assert loading.tokenizer_folder(Found("m", str(whole)), settings) == whole
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(whole / name, bare / name)
    assert loading.tokenizer_folder(Found("m", str(bare)), settings) == other
    with pytest.raises(UserError, match="give tokenizer=FOLDER"):
        loading.tokenizer_folder(Found("m", str(bare)), config(bare, bare, tmp_path))
    with pytest.raises(UserError, match=r"neither .*bare nor tokenizer=.*nothing holds a tokenizer"):
        loading.tokenizer_folder(Found("m", str(bare)), config(bare, bare, tmp_path, tokenizer=str(tmp_path / "nothing")))


def test_two_models_of_a_run_keep_their_own_tokenizers(whole: Path, tmp_path: Path) -> None:
    """With tokenizer= for the base alone, the other's answers are those that it has without the setting."""
    data = write_benchmarks(tmp_path / "data")
    base = write_model(tmp_path / "base", seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    other = write_tokenizer(tmp_path / "other")
    path = other / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["post_processor"] = None  # adds no BOS
    path.write_text(json.dumps(value), encoding="utf-8")
    common: dict[str, Any] = dict(tasks=["mmlu"], limit=2)
    runner.run(config(whole, data, tmp_path / "with", base=str(base), tokenizer=str(other), **common))
    runner.run(config(whole, data, tmp_path / "without", **common))
    mine = {key: value for key, value in scores(tmp_path / "with").items() if key[0] == "whole"}
    assert mine == scores(tmp_path / "without") and len(mine) == 4


def test_a_tokenizer_of_another_model_is_one_line(whole: Path, tmp_path: Path) -> None:
    small = write_model(tmp_path / "small", vocab_size=300)
    for kind, argument in (("loglikelihood", " the river"), ("generate_until", {"until": [], "max_gen_toks": 2})):
        model = prefix_model(small)
        with pytest.raises(UserError, match=r"gives token \d+, the model knows 300 tokens"):
            getattr(model, kind)([request(kind, "The river rises in the hills above the town", argument)])


def test_a_tokenizer_without_border_tokens_is_one_line(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(tmp_path / "made")
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "made" / "tokenizer.json")).save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="neither a beginning-of-text nor an end-of-text token"):
        loading.load_tokenizer(tmp_path / "none")
