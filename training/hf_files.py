"""Weights of a Hugging Face folder: read tensor by tensor, written shard by shard. Safetensors only: nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.architecture import Architecture
from ziya.errors import UserError
from ziya.files import atomic_path, write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class HFWeights:
    """The tensors of a folder by name. Files are memory-mapped; only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        """UserError when shards are missing, cut short, or not safetensors."""
        self.folder = folder
        self._files = {}
        names = self._shards()
        self.place: dict[str, str] = {}
        for name in names:
            path = folder / name
            if not path.is_file():
                raise UserError(f"{folder}: shard {name} is missing; copy all files of the model together")
            try:
                self._files[name] = safe_open(path, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(
                    f"{path} cannot be read as safetensors ({' '.join(str(error).split())}): it is cut short or of another "
                    f"kind; copy it again"
                ) from error
            for key in self._files[name].keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - not a mapping
                self.place[key] = name

    def _shards(self) -> list[str]:
        index = self.folder / INDEX
        if index.is_file():
            try:
                places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{index} holds no weight_map: copy the model's files again") from error
            return sorted(set(places.values()))
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        other = sorted(path.name for path in self.folder.glob("*.bin")) if self.folder.is_dir() else []
        found = f"only {other[0]}" if other else "no weights"
        raise UserError(
            f"{self.folder} has {found}: {SINGLE} or {INDEX} is needed (convert pickled weights with transformers' "
            f"save_pretrained)"
        )

    def __contains__(self, name: str) -> bool:
        return name in self.place

    def read(self, name: str) -> torch.Tensor:
        """One tensor, whole. UserError when the model has none of this name."""
        if name not in self.place:
            raise UserError(
                f"{self.folder}: weight {name} is missing; the folder and its config.json do not belong together"
            )
        tensor: torch.Tensor = self._files[self.place[name]].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[self.place[name]].get_slice(name).get_shape())  # type: ignore[no-untyped-call]

    def check(self, shape: Architecture) -> None:
        """Compare names and shapes of all weights that `shape` asks for; UserError tells the first ones that differ."""
        wrong = []
        for name, size in expected(shape).items():
            if name not in self.place:
                wrong.append(f"{name} is missing")
            elif self.shape(name) != size:
                wrong.append(f"{name} is {self.shape(name)}, config.json asks for {size}")
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"{self.folder}: {'; '.join(wrong[:3])}{more}: weights and config.json must be of one model"
            )

    def __enter__(self) -> HFWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()


def expected(shape: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the model in Hugging Face's form, in the model's order."""
    wide, narrow = shape.heads * shape.head_dim, shape.groups * shape.head_dim
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, shape.hidden)}
    for number in range(shape.layers):
        prefix = f"model.layers.{number}."
        names[f"{prefix}input_layernorm.weight"] = (shape.hidden,)
        for letter, rows in (("q", wide), ("k", narrow), ("v", narrow)):
            names[f"{prefix}self_attn.{letter}_proj.weight"] = (rows, shape.hidden)
            if shape.qkv_bias:
                names[f"{prefix}self_attn.{letter}_proj.bias"] = (rows,)
        names[f"{prefix}self_attn.o_proj.weight"] = (shape.hidden, wide)
        names[f"{prefix}post_attention_layernorm.weight"] = (shape.hidden,)
        names[f"{prefix}mlp.gate_proj.weight"] = (shape.ffn, shape.hidden)
        names[f"{prefix}mlp.up_proj.weight"] = (shape.ffn, shape.hidden)
        names[f"{prefix}mlp.down_proj.weight"] = (shape.hidden, shape.ffn)
    names["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        names["lm_head.weight"] = (shape.vocab_size, shape.hidden)
    return names


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], *, shard_bytes: int = 4_000_000_000
) -> None:
    """Write tensors in the order they come, in shards of at most `shard_bytes` (a larger tensor stands alone), and the
    index last. At most one shard is in memory. Shards get their final names when their number is known."""
    shard: dict[str, torch.Tensor] = {}
    size = total = 0
    written: list[tuple[Path, list[str]]] = []

    def flush() -> None:
        nonlocal size
        path = folder / f"model-{len(written) + 1:05d}.safetensors.part"
        with atomic_path(path) as temporary:
            try:
                save_file(shard, temporary, metadata={"format": "pt"})
            except SafetensorError as error:  # a full disk comes as one of these
                raise OSError(f"{path}: {' '.join(str(error).split())}") from error
            temporary.chmod(0o644)  # safetensors writes for the owner only
        written.append((path, list(shard)))
        shard.clear()
        size = 0

    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if shard and size + bytes_ > shard_bytes:
            flush()
        shard[name] = tensor.contiguous()
        size += bytes_
        total += bytes_
    if shard or not written:
        flush()
    if len(written) == 1:
        written[0][0].replace(folder / SINGLE)
        return
    places = {}
    for number, (path, names) in enumerate(written, 1):
        final = folder / f"model-{number:05d}-of-{len(written):05d}.safetensors"
        path.replace(final)
        places.update(dict.fromkeys(names, final.name))
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
