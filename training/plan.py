"""`ziya-train plan`: what a config needs and how long it takes on machines that nobody has started yet.

config, shape of the model, GPU's data ─▶ memory a rank (plan_memory) ┐
                                         step by causes (plan_speed)  ├─▶ every layout that `check_layout` accepts, those
                                                                      ┘   that fit ranked by tokens a second
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from training import flops, plan_memory, plan_speed
from training.architecture import Architecture, parse_architecture, read_architecture
from training.config import ModelSettings, TrainConfig, load_config
from training.gpus import GPUS, Gpu
from training.layout import Layout, check_layout
from training.plan_memory import GIB, Memory
from training.plan_speed import UNKNOWN, Step
from training.preflight import layout_of
from ziya.errors import UserError
from ziya.files import read_json, write_json

MICRO = (1, 2, 4, 8)  # rows of a micro-batch that the search tries
_DAY = 86400.0
ACTIVATIONS = {
    True: "derived from what fused kernels must keep, not measured on a GPU (model.fused=false: the plain ones, which tests count)",
    False: "of the plain kernels, which tests count on a CPU; not measured on a GPU",
}


@dataclass(frozen=True)
class Candidate:
    """A layout with what it costs; `memory` is that of its fullest pipeline stage, number `stage`."""

    layout: Layout
    micro: int
    recompute: str
    stage: int
    memory: Memory
    step: Step
    limit: float

    @property
    def fits(self) -> bool:
        """Whether the fullest rank stays below the GPU's memory."""
        return self.memory.total <= self.limit

    @property
    def tokens_per_s(self) -> float:
        """Of all GPUs together."""
        return self.step.tokens / self.step.seconds

    def __str__(self) -> str:
        return (
            f"{self.layout}, {self.micro} row{'s' if self.micro > 1 else ''} a micro-batch, recompute {self.recompute}"
        )

    def to_json(self, gpu: Gpu) -> dict[str, Any]:
        """Plain values; memory in bytes, times in seconds."""
        return {
            "layout": asdict(self.layout) | {"data": self.layout.data},
            "micro_batch_rows": self.micro,
            "recompute": self.recompute,
            "fits": self.fits,
            "fullest_stage": self.stage,
            "memory": asdict(self.memory) | {"total": self.memory.total},
            "host_per_node": self.memory.host_total * min(gpu.node, self.layout.world),
            "step": asdict(self.step) | {"seconds": self.step.seconds},
            "tokens_per_s": self.tokens_per_s,
            "utilisation": self.step.tflops / gpu.peak,
        }


def shape_of(config: TrainConfig, given: Path | None) -> tuple[Architecture, Path]:
    """The model's shape and the file it comes from: `given` (a config.json, or a folder with one), else model.base where it is,
    else model.shape. UserError when none is there."""
    base = Path(config.model.base)
    path = given
    if path is None and (base / "config.json").is_file():
        path = base
    if path is None and config.model.shape is not None:
        path = Path(config.model.shape)
    if path is None:
        raise UserError(
            f"model.base {base} has no config.json: name the shape with --shape FILE or model.shape=FILE (see configs/models/)"
        )
    if path.is_dir():
        return read_architecture(path), path / "config.json"
    if not path.is_file():
        name = f"model.shape {path}" if given is None else str(path)
        where = "" if path.is_absolute() else f" in {Path.cwd()} (paths in a config, too, are relative to the current folder)"
        raise UserError(
            f"{name} does not exist{where}: give a config.json in Hugging Face's form (see configs/models/)"
        )
    return parse_architecture(read_json(path), path), path


def judge(
    config: TrainConfig, shape: Architecture, layout: Layout, micro: int, model: ModelSettings, gpu: Gpu
) -> Candidate:
    """Memory and speed of one layout. UserError says why it cannot run."""
    length, rows = config.data.sequence_length, config.data.global_batch_rows
    share = max(layout.data, 1) * micro
    check_layout(layout, shape, length=micro * length, microbatches=rows // share)
    if rows % share:
        raise UserError(
            f"data.global_batch_rows={rows} is not a multiple of data-parallel size {layout.data} x "
            f"data.micro_batch_rows={micro}"
        )
    stage, memory = plan_memory.fullest(shape, layout, model, length=length, micro=micro, rows=rows)
    step = plan_speed.estimate(shape, layout, model, gpu, length=length, micro=micro, rows=rows)
    return Candidate(layout, micro, model.recompute, stage, memory, step, gpu.memory_gib * GIB)


def candidates(config: TrainConfig, shape: Architecture, world: int, gpu: Gpu) -> Iterator[Candidate]:
    """Every layout of `world` GPUs that can run: tensor groups inside a node, any pipeline, chunks, ZeRO, micro-batch and
    recomputation."""
    tensors = [size for size in (1, 2, 4, 8) if size <= gpu.node and world % size == 0]
    for tensor, sequence in itertools.product(tensors, (False, True)):
        for pipeline in (size for size in _divisors(shape.layers) if world % (tensor * size) == 0):
            for chunks, zero in itertools.product(_divisors(shape.layers // pipeline), range(4)):
                layout = Layout(world, tensor, pipeline, chunks, sequence, zero)
                for micro, recompute in itertools.product(MICRO, ("none", "attention", "layer")):
                    model = config.model.model_copy(update={"recompute": recompute})
                    try:
                        yield judge(config, shape, layout, micro, model, gpu)
                    except UserError:
                        continue


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def best(found: list[Candidate], count: int) -> list[Candidate]:
    """The fastest that fit, one for each way to cut the model; of equally fast ones the emptiest."""
    chosen: dict[Layout, Candidate] = {}
    for one in sorted(found, key=lambda one: (-one.tokens_per_s, one.memory.total)):
        if one.fits:
            chosen.setdefault(one.layout, one)
    return list(chosen.values())[:count]


def make(config: TrainConfig, shape: Architecture, origin: Path, world: int, gpu: Gpu, count: int) -> dict[str, Any]:
    """The whole plan as plain values."""
    length = config.data.sequence_length
    own: Candidate | None = None
    refused = ""
    try:
        own = judge(config, shape, layout_of(config, world), config.data.micro_batch_rows, config.model, gpu)
    except UserError as error:
        refused = str(error)
    ranked = best(list(candidates(config, shape, world, gpu)), count)
    timed = own if own is not None and own.fits else ranked[0] if ranked else None
    return {
        "version": 1,
        "shape": shape.to_json() | {"file": str(origin), "parameters": shape.parameters},
        "flops_per_token": {
            "causal": flops.full_length(shape, length),
            "full": flops.full_length(shape, length, causal=False),
            "length": length,
        },
        "gpus": world,
        "gpu": asdict(gpu),
        "fused": config.model.fused,
        "rows_per_step": config.data.global_batch_rows,
        "config": None if own is None else own.to_json(gpu),
        "config_text": refused if own is None else str(own),
        "times_of": None if timed is None else str(timed),
        "stages": [
            {
                "stage": stage.number,
                "tokens": stage.tokens,
                "steps": -(-stage.tokens // timed.step.tokens),
                "days": stage.tokens / timed.tokens_per_s / _DAY,
            }
            for stage in config.stages
            if timed is not None
        ],
        "best": [one.to_json(gpu) | {"text": str(one)} for one in ranked],
        "unknown": UNKNOWN,
    }


def render(plan: dict[str, Any], name: str) -> str:
    """The plan for people."""
    shape, per_token = plan["shape"], plan["flops_per_token"]
    lines = [
        f"model   {_amount(shape['parameters'], 'KMB', 2)} parameters: {shape['layers']} layers, hidden {shape['hidden']}, "
        f"{shape['vocab_size']:,} vocabulary rows ({shape['file']})",
        f"FLOPs   {_amount(per_token['causal'], 'kMG', 1)}FLOP a token of {per_token['length']:,} forward and backward, causal "
        f"({_amount(per_token['full'], 'kMG', 1)}FLOP with the masked half)",
        f"step    {plan['rows_per_step']} rows x {per_token['length']:,} tokens on {plan['gpus']} x {name}",
        "",
    ]
    own = plan["config"]
    if own is None:
        lines += [f"The config's layout cannot run: {plan['config_text']}", ""]
    else:
        lines += [
            f"The config's layout: {plan['config_text']}",
            *_memory(own, plan["gpu"]),
            *_step(own, plan["gpu"]),
            "",
        ]
    if plan["stages"]:
        lines.append(f"Time for the budgets ({plan['times_of']}):")
        lines += [
            f"  stage {one['stage']}   {_amount(one['tokens'], 'KMB', 2)} tokens   {one['steps']:,.0f} steps   {_days(one['days'])}"
            for one in plan["stages"]
        ]
        lines.append("")
    if plan["best"]:
        lines.append("Best layouts that fit, by estimate:")
        lines.append("  GiB/GPU  TFLOPS  % of peak  tokens/s/GPU")
        lines += [
            f"  {one['memory']['total'] / GIB:7.1f}  {one['step']['tflops']:6.0f}  {100 * one['utilisation']:9.1f}  "
            f"{one['tokens_per_s'] / plan['gpus']:12,.0f}  {one['text']}"
            for one in plan["best"]
        ]
    else:
        lines.append("No layout fits: take more GPUs, larger ones, or a smaller global batch.")
    lines += ["", f"Activations: {ACTIVATIONS[plan['fused']]}.", f"Estimates: {plan['unknown']}."]
    return "\n".join(lines)


def _amount(value: float, letters: str, places: int) -> str:
    """`13.02 B`: in thousands, millions or billions, the largest of which `places` shows two digits at least."""
    for power, letter in ((9, letters[2]), (6, letters[1]), (3, letters[0])):
        if value >= 10.0 ** (power + 1 - places):
            return f"{value / 10.0**power:,.{places}f} {letter}"
    return f"{value:,.0f} "


def _seconds(value: float) -> str:
    """`12.34`, and two digits of less than a tenth."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _days(value: float) -> str:
    """`12.34 days`, and hours or seconds of little."""
    for unit, size in (("days", 1.0), ("hours", 24.0), ("minutes", 1440.0)):
        if value * size >= 0.1:
            return f"{value * size:,.2f} {unit}"
    return f"{value * 86400:.2g} seconds"


def _memory(one: dict[str, Any], gpu: dict[str, Any]) -> list[str]:
    memory = one["memory"]
    phases = memory["phases"]
    largest = max(phases, key=lambda phase: sum(phases[phase].values()))
    rows = [*memory["states"].items(), *((f"{line} ({largest})", size) for line, size in phases[largest].items())]
    used = sum(size for _, size in rows)
    rows.append(("libraries and allocator (allowance)", memory["total"] - used))
    verdict = "fits" if one["fits"] else "DOES NOT FIT"
    return [
        f"  memory of a rank of stage {one['fullest_stage']}, the fullest, in GiB:",
        *(f"    {size / GIB:8.2f}  {line}" for line, size in rows),
        f"    {memory['total'] / GIB:8.2f}  of {gpu['memory_gib']}: {verdict}",
        f"  host memory of a node: about {one['host_per_node'] / GIB:,.0f} GiB",
    ]


def _step(one: dict[str, Any], gpu: dict[str, Any]) -> list[str]:
    step = one["step"]
    causes = ", ".join(
        f"{name} {_seconds(step[name])}"
        for name in ("compute", "bubble", "tensor", "pipeline", "data", "update")
        if step[name]
    )
    return [
        f"  a step takes {_seconds(step['seconds'])} s ({causes}): {one['tokens_per_s'] / one['layout']['world']:,.0f} tokens/s/GPU, "
        f"{step['tflops']:.0f} model TFLOPS a GPU, {100 * one['utilisation']:.1f} % of {gpu['peak']:.0f}"
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ziya-train plan`."""
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML config, for example configs/train/ziya2_13b.yaml"
    )
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs")
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"kind: {', '.join(GPUS)}")
    parser.add_argument(
        "--shape", type=Path, metavar="FILE", help="config.json of the model (default: model.base's, else model.shape)"
    )
    parser.add_argument("--top", type=int, default=8, metavar="K", help="layouts that are listed (8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan as JSON too")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of a GPU as torch reports it")
    parser.add_argument("--node", type=int, metavar="N", help="GPUs of a node (8)")
    parser.add_argument("--link", type=float, metavar="GB/S", help="bus rate of collectives inside a node")
    parser.add_argument("--nic", type=float, metavar="GB/S", help="network rate of a GPU's port")
    parser.add_argument("--matmul-share", type=float, metavar="X", help="part of the peak that matrix products reach")
    parser.add_argument("--attention-share", type=float, metavar="X", help="part of the peak that attention reaches")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the config")


def main(args: argparse.Namespace) -> int:
    """Print the plan; 1 when no layout fits."""
    if args.gpu not in GPUS:
        raise UserError(f"--gpu {args.gpu}: known are {', '.join(GPUS)} (change one with --memory, --link, --nic ...)")
    if args.gpus < 1:
        raise UserError(f"--gpus {args.gpus}: give 1 or more")
    config = load_config(args.config, args.overrides)
    changed = {
        name: value
        for name, value in (
            ("memory_gib", args.memory),
            ("node", args.node),
            ("link", args.link),
            ("nic", args.nic),
            ("matmul_share", args.matmul_share),
            ("attention_share", args.attention_share),
        )
        if value is not None
    }
    bad = [name for name, value in changed.items() if value <= 0]
    if bad:
        raise UserError(f"{bad[0]} {changed[bad[0]]:g}: give a number above 0")
    gpu = replace(GPUS[args.gpu], **changed)
    shape, origin = shape_of(config, args.shape)
    plan = make(config, shape, origin, args.gpus, gpu, args.top)
    if args.json is not None:
        write_json(args.json, plan)
    sys.stdout.write(render(plan, args.gpu) + "\n")
    return 0 if plan["best"] else 1
