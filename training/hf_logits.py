"""transformers' own logits of a Hugging Face folder, with one layer of it in memory at a time, so that any size can be compared.

transformers' model is made without memory (device meta). Each of its parts that holds weights reads them when its turn in the
forward pass comes, and forgets them afterwards: a 13B model in FP32 needs 1.3 GB, its largest layer or table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.hf_files import HFWeights

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def hf_logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """float32 [T, vocabulary] on the CPU, as `AutoModelForCausalLM` computes them in `dtype`, of int64 [T] tokens of one document.

    UserError when a weight is missing in the folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    body = model.model
    body.rotary_emb = type(body.rotary_emb)(config=config)  # its tables are computed, not stored in the folder
    parts = {EMBEDDING: body.embed_tokens, "model.norm": body.norm, HEAD: model.lm_head}
    parts |= {f"model.layers.{number}": layer for number, layer in enumerate(body.layers)}
    with HFWeights(folder) as weights, torch.no_grad():
        for name, part in parts.items():
            # A tied head has no tensor of its own in the folder.
            place = name if f"{name}.weight" in weights or name != HEAD else EMBEDDING
            _on_call(part, partial(_filled, weights, place, dtype))
        logits: torch.Tensor = model(tokens[None].cpu(), use_cache=False).logits
    return logits[0].float()


def _on_call(part: Any, values: Callable[[Any], dict[str, torch.Tensor]]) -> None:
    """Give `part` its weights for the time of each forward pass."""

    def before(module: Any, _: Any) -> None:
        module.load_state_dict(values(module), assign=True)

    def after(module: Any, *_: Any) -> None:
        module.to("meta")

    part.register_forward_pre_hook(before)
    part.register_forward_hook(after)


def _filled(weights: HFWeights, place: str, dtype: torch.dtype, module: Any) -> dict[str, torch.Tensor]:
    """Name inside the module -> tensor."""
    return {name: weights.read(f"{place}.{name}").to(dtype) for name in module.state_dict()}
