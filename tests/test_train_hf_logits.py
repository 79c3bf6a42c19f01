"""transformers' logits read layer by layer are those of the whole model, and never more than one layer is in memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from training.hf_files import HFWeights
from training.hf_logits import hf_logits

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
SIZES: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=96, max_position_embeddings=64,
)  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"use_sliding_window": False}),
}


def write_model(folder: Path, kind: str) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    name, changes = KINDS[kind]
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**(SIZES | changes))
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms that count
            weight.add_(0.1 * torch.randn_like(weight))
    model.bfloat16().save_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_whole_model(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    write_model(tmp_path, kind)
    tokens = torch.randint(0, 96, (32,), generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, torch.bfloat16):
        whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        with torch.no_grad():
            right = whole(tokens[None]).logits[0].float()
        found = hf_logits(tmp_path, tokens, dtype)
        assert found.dtype == torch.float32 and torch.equal(found, right)


def test_one_layer_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, "llama")
    living: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def read(self: HFWeights, name: str, whole: Any = HFWeights.read) -> torch.Tensor:
        nonlocal most
        value = whole(self, name).float()  # so that .float() gives it back itself
        living.append(weakref.ref(value))
        most = max(most, sum(tensor.numel() for tensor in (one() for one in living) if tensor is not None))
        return value

    monkeypatch.setattr(HFWeights, "read", read)
    hf_logits(tmp_path, torch.arange(32))
    layer = 32 * 32 * 3 + 3 * 32 * 64 + 2 * 32  # queries, keys, values, output in two groups; feed-forward; norms
    assert len(living) == 6 * 9 + 3 and most == max(layer, 96 * 32)
