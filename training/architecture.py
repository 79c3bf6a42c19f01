"""The shape of a LLaMA-family model, read from and written as a Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ziya.errors import UserError
from ziya.files import read_json

FAMILIES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"}


@dataclass(frozen=True)
class RopeScaling:
    """LLaMA 3's scaling of rotary frequencies: low ones are divided by `factor`, those between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class Architecture:
    """All that fixes the weights' shapes and the forward pass; `vocab_size` counts padding rows, `vocab_used` does not."""

    family: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    vocab_size: int
    vocab_used: int
    positions: int
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    tied: bool = False

    @property
    def parameters(self) -> int:
        """Number of weights, padding rows and norms included."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.groups)
        bias = self.head_dim * (self.heads + 2 * self.groups) if self.qkv_bias else 0
        layer = attention + bias + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + (1 if self.tied else 2) * self.vocab_size * self.hidden + self.hidden

    def with_vocabulary(self, used: int, multiple: int) -> Architecture:
        """The same model with `used` tokens, padded up to a multiple."""
        return replace(self, vocab_used=used, vocab_size=-(-used // multiple) * multiple)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for manifests."""
        return asdict(self)


def _refuse(path: Path, found: str, need: str) -> UserError:
    return UserError(f"{path}: {found}; {need}")


def read_architecture(folder: Path) -> Architecture:
    """The architecture of a Hugging Face folder. UserError names what this program does not cover."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: give a Hugging Face model folder")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise _refuse(path, "the file holds no JSON object", "give a Hugging Face model folder")
    return parse_architecture(raw, path)


def parse_architecture(raw: dict[str, Any], path: Path) -> Architecture:
    """`read_architecture` of a mapping; `path` is for messages."""
    names = raw.get("architectures") or ["(none)"]
    if names[0] not in FAMILIES:
        raise _refuse(path, f"architecture {names[0]}", f"one of {', '.join(FAMILIES)} can be trained")
    family = FAMILIES[names[0]]
    missing = [
        key
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        if not isinstance(raw.get(key), int)
    ]
    if missing:
        raise _refuse(path, f"no {', '.join(missing)}", "a complete config.json is needed")
    if family == "mistral" and raw.get("sliding_window"):
        raise _refuse(path, f"sliding_window {raw['sliding_window']}", "only full attention is trained: set it to null")
    if family == "qwen2" and raw.get("use_sliding_window"):
        raise _refuse(path, "use_sliding_window true", "only full attention is trained: set it to false")
    if raw.get("hidden_act", "silu") != "silu":
        raise _refuse(path, f"hidden_act {raw['hidden_act']}", "only silu (SwiGLU) is trained")
    if raw.get("mlp_bias"):
        raise _refuse(path, "mlp_bias true", "linear layers of the MLP without bias are needed")
    if raw.get("attention_bias"):
        raise _refuse(path, "attention_bias true", "a bias on the attention output is not covered")
    heads = raw["num_attention_heads"]
    head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
    groups = raw.get("num_key_value_heads") or heads
    if heads % groups or raw["hidden_size"] % heads:
        raise _refuse(path, f"{heads} heads in {groups} groups over hidden {raw['hidden_size']}", "they must divide")
    base, scaling = _rope(raw, path)
    return Architecture(
        family=family,
        hidden=raw["hidden_size"],
        ffn=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        vocab_size=raw["vocab_size"],
        vocab_used=min(raw.get("ziya_vocab_used", raw["vocab_size"]), raw["vocab_size"]),
        positions=raw.get("max_position_embeddings", 2048),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_base=base,
        rope_scaling=scaling,
        qkv_bias=family == "qwen2",
        tied=bool(raw.get("tie_word_embeddings", False)),
    )


def _rope(raw: dict[str, Any], path: Path) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, from the keys of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    base = float(parameters.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise _refuse(path, f"rope type {kind}", "the plain form and llama3 are covered")
    return base, RopeScaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_positions=int(parameters["original_max_position_embeddings"]),
    )


def hf_config(shape: Architecture, *, dtype: str = "bfloat16", bos: int = 1, eos: int = 2) -> dict[str, Any]:
    """A `config.json` that `transformers` 4 and 5 read; `parse_architecture` gives `shape` back."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_base}
    if shape.rope_scaling is not None:
        rope = {
            "rope_type": "llama3",
            "rope_theta": shape.rope_base,
            "factor": shape.rope_scaling.factor,
            "low_freq_factor": shape.rope_scaling.low_freq_factor,
            "high_freq_factor": shape.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": shape.rope_scaling.original_positions,
        }
    name = next(name for name, family in FAMILIES.items() if family == shape.family)
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "ziya_vocab_used": shape.vocab_used,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_base,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if shape.rope_scaling is not None:
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if shape.family == "mistral":
        config["sliding_window"] = None
    if shape.family == "qwen2":
        config["use_sliding_window"] = False
    return config
