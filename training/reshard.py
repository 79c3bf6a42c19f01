"""Checkpoints as fragments of native weights: written by whoever owns them, read by any layout.

A file `rank-XXXX.safetensors` holds FP32 tensors named `<native weight>:<kind>:<start>`: the values from `start` on of the
flattened weight as that file's tensor-parallel rank holds it. Native names count layers in the whole model, so another
pipeline, data-parallel size or ZeRO stage only slices anew; another tensor-parallel size joins the old parts into whole
tensors, one weight at a time, and cuts again. Moments travel the way of their weights. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from training import partitioned
from training.architecture import Architecture, RopeScaling
from training.hf_files import expected
from training.weights import native_to_whole, whole_to_native
from ziya.errors import UserError
from ziya.files import file_digest, read_json, write_json

if TYPE_CHECKING:
    from training.engine import Engine

MASTER, FIRST, SECOND = KINDS = ("master", "exp_avg", "exp_avg_sq")
MANIFEST = "manifest.json"
_PIECE = 16 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FileEntry(_Strict):
    """One rank's file: size and digest, the rank's place, and [start, numel] of its fragment of each weight."""

    bytes: int
    digest: str
    tensor: int
    pipeline: int
    data: int
    weights: dict[str, list[int]]


class LayoutEntry(_Strict):
    """`training.layout.Layout` at the save."""

    world: int
    tensor: int
    pipeline: int
    chunks: int
    sequence: bool
    zero: int


class Manifest(_Strict):
    """`manifest.json` of a checkpoint. `serial` counts the run's saves; `adam_steps`: optimizer group -> AdamW's step count;
    `architecture`: `Architecture.to_json()`; `extras`: what the training loop keeps."""

    format: Literal["ziya-checkpoint"] = "ziya-checkpoint"
    version: Literal[1] = 1
    step: int
    stage: int
    tokens: int
    serial: int
    precision: Literal["bf16", "fp32"]
    layout: LayoutEntry
    adam_steps: dict[str, float]
    architecture: dict[str, Any]
    files: dict[str, FileEntry]
    extras: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write it atomically."""
        write_json(folder / MANIFEST, self.model_dump())


@dataclass(frozen=True)
class Fragment:
    """Values start .. start + numel of the flattened native weight `name`: flat float32 tensors by kind, views of the
    optimizer's own memory (or host copies of it)."""

    name: str
    start: int
    numel: int
    tensors: dict[str, torch.Tensor]


def replicated(name: str) -> bool:
    """Whether all tensor-parallel ranks hold the same values of this weight; it is then saved by the first of them."""
    return name.endswith("norm.weight")


def native_names(shape: Architecture) -> list[str]:
    """Names of all native weights, in the model's order."""
    names = ["embedding.weight"]
    for number in range(shape.layers):
        names += [f"layers.{number}.attention_norm.weight", f"layers.{number}.attention.qkv.weight"]
        names += [f"layers.{number}.attention.qkv.bias"] if shape.qkv_bias else []
        names += [f"layers.{number}.attention.out.weight", f"layers.{number}.mlp_norm.weight"]
        names += [f"layers.{number}.mlp.up.weight", f"layers.{number}.mlp.down.weight"]
    return [*names, "final_norm.weight", *([] if shape.tied else ["head.weight"])]


def native_size(name: str, shape: Architecture, ranks: int) -> torch.Size:
    """Shape of native weight `name` on one of `ranks` tensor-parallel ranks."""
    sizes = expected(shape)
    return whole_to_native(name, lambda whole: torch.empty(sizes[whole], device="meta"), shape, 0, ranks).shape


def flat_masters(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    """(kind of its optimizer group, FP32 tensor that AdamW updates), which lie elsewhere than in its groups under ZeRO-3."""
    groups = engine.adam.param_groups
    if engine.layout.zero == 3:
        for number, flat in enumerate(partitioned.masters(engine)):
            yield groups[engine.optimizer.sub_group_to_group_id[number]]["kind"], flat
        return
    for group in groups:
        for weight in group["params"]:
            yield group["kind"], weight


def ensure_moments(engine: Engine) -> None:
    """Give every weight of AdamW that has no moments yet what its first step would start from: zeros, at step 0."""
    adam = engine.adam
    on_device = any(group.get("fused") or group.get("capturable") for group in adam.param_groups)
    for _, weight in flat_masters(engine):
        state = adam.state[weight]
        if FIRST not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device if on_device else "cpu")
            state[FIRST], state[SECOND] = torch.zeros_like(weight), torch.zeros_like(weight)


def owned(engine: Engine) -> Iterator[Fragment]:
    """The fragments whose masters and moments this rank updates, as views; under ZeRO-0 whole weights, on every rank.

    ZeRO-1 and 2 tell through `_hp_mapping` which part of each weight lies where in the rank's flat masters, ZeRO-3 through
    the places of its gradients. The moments are taken from AdamW itself at the same place: DeepSpeed links its own mapping
    to them after the first group's update, when the other groups have none, or after a skipped first step, when no group has.
    """
    ensure_moments(engine)
    if engine.layout.zero:
        flats = [flat for _, flat in flat_masters(engine)]
        for part in partitioned.parts(engine):
            yield _fragment(engine, part.name, part.start, flats[part.flat], part.place, part.numel)
        return
    for chunk in engine.chunks:
        for name, weight in chunk.named_parameters():
            yield _fragment(engine, name, 0, weight, 0, weight.numel())


def _fragment(engine: Engine, name: str, start: int, flat: torch.Tensor, place: int, numel: int) -> Fragment:
    state = engine.adam.state[flat]
    tensors = {MASTER: flat.detach(), FIRST: state[FIRST], SECOND: state[SECOND]}
    return Fragment(name, start, numel, {kind: t.view(-1).narrow(0, place, numel) for kind, t in tensors.items()})


def adam_steps(engine: Engine) -> dict[str, float]:
    """AdamW's step count by kind of group (embedding, matrix, plain)."""
    ensure_moments(engine)
    return {kind: float(engine.adam.state[weight]["step"]) for kind, weight in flat_masters(engine)}


def write_fragments(path: Path, fragments: Sequence[Fragment]) -> tuple[int, str]:
    """Write host fragments as safetensors, fsynced; (bytes, digest of the bytes), hashed as they pass.

    Streams: no second copy of the tensors is made in memory. Raises OSError.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    tensors = [(f"{f.name}:{kind}:{f.start}", tensor) for f in fragments for kind, tensor in f.tensors.items()]
    place = 0
    for key, tensor in tensors:
        end = place + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    state = xxhash.xxh3_128()
    size = 0
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text, *(tensor.numpy().view("u1") for _, tensor in tensors)):
            view = memoryview(part)
            for start in range(0, len(view), _PIECE):
                piece = view[start : start + _PIECE]
                state.update(piece)
                size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, str(state.hexdigest())


class Stored:
    """A whole checkpoint on disk: its manifest, and any range or whole of any weight."""

    def __init__(self, folder: Path) -> None:
        """UserError when there is no manifest of a form that this program reads."""
        self.folder = folder
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder} has no {MANIFEST}: it is not a whole checkpoint; give another step")
        try:
            self.manifest = Manifest.model_validate(read_json(path))
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, item['loc'])) or 'the whole'} ({item['msg']})" for item in error.errors()[:3]]
            raise self._damaged(f"{path} is not a manifest that this version reads: {', '.join(wrong)}") from error
        shape = dict(self.manifest.architecture)
        if shape["rope_scaling"] is not None:
            shape["rope_scaling"] = RopeScaling(**shape["rope_scaling"])
        self.shape = Architecture(**shape)
        self.tensor = self.manifest.layout.tensor
        self._open: dict[str, Any] = {}
        self._index: dict[tuple[str, int], list[tuple[int, int, str]]] = {}
        for file, entry in self.manifest.files.items():
            for name, (start, numel) in entry.weights.items():
                self._index.setdefault((name, entry.tensor), []).append((start, numel, file))
        for pieces in self._index.values():
            pieces.sort()

    @property
    def step(self) -> int:
        """Optimizer updates of the run."""
        return self.manifest.step

    @property
    def files(self) -> list[str]:
        """Names of the files beside the manifest, in order."""
        return sorted(self.manifest.files)

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Compare files (all unless named) with the sizes and digests of the manifest; UserError names the first bad one."""
        for name in self.files if files is None else files:
            path, entry = self.folder / name, self.manifest.files[name]
            if not path.is_file():
                raise self._damaged(f"{path} is missing")
            if path.stat().st_size != entry.bytes:
                raise self._damaged(
                    f"{path} has {path.stat().st_size} bytes, {entry.bytes} were written: it is cut short"
                )
            if file_digest(path) != entry.digest:
                raise self._damaged(f"{path} does not have the bytes that were written")

    def covers(self) -> None:
        """Check that the fragments tile every weight of the architecture without holes; UserError names the first hole."""
        for name in native_names(self.shape):
            numel = native_size(name, self.shape, self.tensor).numel()
            for rank in range(1 if replicated(name) else self.tensor):
                self._pieces(name, rank, 0, numel)

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{what}: the checkpoint is damaged; restore it from a copy, or remove {self.folder} to go on from an earlier one"
        )

    def _pieces(self, name: str, rank: int, start: int, numel: int) -> list[tuple[int, int, int, str]]:
        """(first, last + 1, start of the stored fragment, file) of what makes up the range, in order."""
        found, here = [], start
        for first, length, file in self._index.get((name, rank), []):
            if first <= here < first + length and here < start + numel:
                last = min(first + length, start + numel)
                found.append((here, last, first, file))
                here = last
        if here != start + numel:
            raise self._damaged(f"{self.folder} lacks values {here} to {start + numel} of {name}, tensor rank {rank}")
        return found

    def read(self, name: str, kind: str, rank: int, start: int, numel: int) -> torch.Tensor:
        """float32 [numel]: a range of the flattened weight as tensor rank `rank` of the stored layout held it."""
        rank = 0 if replicated(name) else rank
        parts = []
        for first, last, origin, file in self._pieces(name, rank, start, numel):
            try:
                if file not in self._open:
                    self._open[file] = safe_open(self.folder / file, framework="pt")
                stored = self._open[file].get_slice(f"{name}:{kind}:{origin}")
                parts.append(stored[first - origin : last - origin])
            except (SafetensorError, OSError, ValueError) as error:
                raise self._damaged(f"{self.folder / file} cannot be read ({' '.join(str(error).split())})") from error
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self, name: str, kind: str) -> dict[str, torch.Tensor]:
        """Native weight `name` (or a moment of it) joined over the tensor ranks: Hugging Face name -> float32 tensor."""
        size = native_size(name, self.shape, self.tensor)
        ranks = 1 if replicated(name) else self.tensor
        parts = [self.read(name, kind, rank, 0, size.numel()).view(size) for rank in range(ranks)]
        return native_to_whole(name, parts, self.shape)

    def cut(self, name: str, kind: str, rank: int, ranks: int, start: int, numel: int) -> torch.Tensor:
        """float32 [numel]: a range of the flattened weight as tensor rank `rank` of `ranks` holds it in any layout."""
        if ranks == self.tensor:
            return self.read(name, kind, rank, start, numel)
        whole = self.whole(name, kind)
        return whole_to_native(name, whole.__getitem__, self.shape, rank, ranks).reshape(-1)[start : start + numel]


def fill(stored: Stored, fragments: Iterable[Fragment], rank: int, ranks: int) -> None:
    """Fill the fragments of tensor rank `rank` of `ranks` in place. At most one weight is whole in memory at a time."""
    with torch.no_grad():
        for fragment in fragments:
            for kind, tensor in fragment.tensors.items():
                tensor.copy_(stored.cut(fragment.name, kind, rank, ranks, fragment.start, fragment.numel))
