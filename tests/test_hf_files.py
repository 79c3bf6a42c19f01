from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_models
import torch
from safetensors.torch import load_file, save_file

from training.hf_files import INDEX, SINGLE, HFWeights, expected, write_weights
from ziya.errors import UserError


def test_shards_hold_what_was_given_and_the_index_tells_where(tmp_path: Path) -> None:
    shape = small_models.architecture()
    whole = small_models.whole_weights(shape)
    write_weights(tmp_path, whole.items(), shard_bytes=20_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)),
        INDEX,
    ]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in whole.values())
    for path in shards:
        tensors = load_file(path)
        assert sum(tensor.numel() * 4 for tensor in tensors.values()) <= 20_000 or len(tensors) == 1
        assert all(index["weight_map"][name] == path.name for name in tensors)
    with HFWeights(tmp_path) as weights:
        weights.check(shape)
        assert all(torch.equal(weights.read(name), tensor) for name, tensor in whole.items())
        assert "lm_head.weight" in weights and "other" not in weights


def test_one_shard_needs_no_index(tmp_path: Path) -> None:
    halves = torch.arange(8.0).chunk(2)  # parts of one storage, as cuts are
    write_weights(tmp_path, zip("ab", halves, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]
    tensors = load_file(tmp_path / SINGLE)
    assert torch.equal(tensors["a"], halves[0]) and torch.equal(tensors["b"], halves[1])


def test_what_is_missing_or_cut_short_is_named(tmp_path: Path) -> None:
    shape = small_models.architecture()
    write_weights(tmp_path, small_models.whole_weights(shape).items(), shard_bytes=20_000)
    second = sorted(tmp_path.glob("*.safetensors"))[1]
    data = second.read_bytes()
    second.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"{second.name} cannot be read as safetensors"):
        HFWeights(tmp_path)
    second.unlink()
    with pytest.raises(UserError, match=rf"shard {second.name} is missing"):
        HFWeights(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UserError, match="holds no weight_map"):
        HFWeights(tmp_path)


def test_folders_without_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights"):
        HFWeights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"has only pytorch_model.bin: .*save_pretrained"):
        HFWeights(tmp_path)


def test_weights_of_another_shape_or_without_a_name_are_refused(tmp_path: Path) -> None:
    shape = small_models.architecture()
    whole = small_models.whole_weights(shape)
    del whole["model.layers.1.self_attn.q_proj.bias"]
    whole["model.norm.weight"] = torch.zeros(31)
    save_file(whole, tmp_path / SINGLE)
    weights = HFWeights(tmp_path)
    with pytest.raises(
        UserError, match=r"q_proj.bias is missing; model.norm.weight is \(31,\), config.json asks for \(32,\)"
    ):
        weights.check(shape)
    with pytest.raises(UserError, match="weight nothing is missing"):
        weights.read("nothing")


def test_expected_names_are_transformers_own() -> None:
    transformers = pytest.importorskip("transformers")
    shape = small_models.architecture()
    config = transformers.Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected(shape)
