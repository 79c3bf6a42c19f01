"""How fast a training step is: a slice of the 13B model on one GPU next to transformers + DeepSpeed, or a small one on a CPU.

    python scripts/bench/train.py gpu [--tiny] [--micro 1 2 4] [--steps 5] [--output DIR]
    python scripts/bench/train.py cpu [--pairs 7] [--output DIR]

`gpu`: 20 layers of the 13B shape with embedding and head, rows of 4096 tokens, BF16, 8 accumulations, AdamW on one fortieth of
the weights (this process is one of forty data-parallel ranks of which the others do not exist; nothing is sent, so
data-parallel communication is left out). Next to it (a) transformers + DeepSpeed ZeRO-1 with SDPA and a document mask and (b)
the same without the mask. Parity is printed first. `--tiny` runs the same code at a small size, on a CPU too: it proves that
the benchmark runs, its figures mean nothing.

`cpu`: hidden 512, 8 layers, one row of 2048 tokens, FP32, next to plain transformers + torch's AdamW, in turns (ABAB), by CPU
time; and what loading a batch costs. No network is needed; results are added to train.json and train.md in --output.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_train.common import (
    ACCUMULATE,
    CPU,
    RANKS,
    SLICE,
    TINY,
    Where,
    about,
    dataset,
    here,
    matrix_rate,
    moved,
    world,
)
from bench_train.systems import Ours, Peer, Plain, parity
from bench_train.table import write

from training import flops
from training.architecture import Architecture
from training.data import GlobalBatch, micro_batches
from training.layout import Layout
from training.rows import Packed

RESULTS = Path(__file__).parent / "results"
OURS = "ours"  # with the settings of a run by default: the same bits each time


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def useful(shape: Architecture, rows: list[Packed], *, masked: bool) -> float:
    """Model FLOPs of a step: attention inside documents, or over whole rows where nothing is masked."""
    tokens = sum(len(part.tokens) for part in rows)
    lengths = (
        [size for part in rows for size in part.lengths] if masked else [shape.positions] * (tokens // shape.positions)
    )
    return flops.of_rows(shape, tokens, float(sum(size * size for size in lengths)))


def timed(where: Where, system: Any, steps: list[tuple[list[Packed], float]], warm: int = 2) -> dict[str, Any]:
    """Seconds of each step after `warm` others, and the losses of all."""
    where.free()
    losses, seconds = [], []
    for number, (rows, targets) in enumerate(steps):
        start = where.now()
        losses.append(system.step(rows, targets))
        if number >= warm:
            seconds.append(where.now() - start)
    return {"seconds": seconds, "median_s": statistics.median(seconds), "losses": losses, "peak_gib": where.peak_gib()}


def attempt(where: Where, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `work`, or its failure, which is a result too."""
    say(f"{name} ...")
    try:
        return work()
    except Exception as error:
        say("".join(traceback.format_exception(error)[-3:]))
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        where.free()


def gpu(args: argparse.Namespace) -> dict[str, Any]:
    """The slice of the 13B model; see the module's text."""
    where, shape = here(), TINY if args.tiny else SLICE
    if not where.gpu and not args.tiny:
        raise SystemExit("error: no GPU here: give --tiny to run the same code at a small size on the CPU")
    layout = Layout(world=RANKS)
    found: dict[str, Any] = {"tiny": args.tiny, "layers": shape.layers, "accumulate": ACCUMULATE, "ranks": RANKS}
    found["data_sheet_tflops"] = flops.peak_tflops(torch.cuda.get_device_name()) if where.gpu else None
    with tempfile.TemporaryDirectory() as name, world(RANKS):
        for micro in args.micro:
            found[f"micro {micro}"] = _micro(args, where, shape, layout, Path(name), micro)
    return found


def _micro(
    args: argparse.Namespace, where: Where, shape: Architecture, layout: Layout, folder: Path, micro: int
) -> dict[str, Any]:
    rows = RANKS * ACCUMULATE * micro
    data, config = dataset(folder / f"micro-{micro}", shape, rows=rows, micro=micro, mean=shape.positions // 4)
    steps, loading = [], []
    for number in range(args.steps + 2):
        start = where.now()
        batch = data.batch(number)
        mine = [moved(part, where) for part in micro_batches(batch, 0, RANKS, micro, config.data)]
        loading.append(where.now() - start)
        steps.append((mine, float(batch.target_count)))
    result: dict[str, Any] = {"loading_s": statistics.median(loading[1:]), "systems": {}}
    result["parity"] = attempt(where, "parity", lambda: parity(shape, where, layout, steps[0][0][0], bf16=True))
    say(f"parity at micro-batch {micro}: {result['parity']}")
    result["matrix_tflops"] = matrix_rate(shape, where, torch.bfloat16, micro * shape.positions)
    systems: dict[str, tuple[bool, Callable[[str], Any]]] = {
        OURS: (True, lambda kind: Ours(shape, where, layout, bf16=True, recompute=kind)),
        "(a) transformers + DeepSpeed, document mask": (
            True,
            lambda kind: Peer(shape, where, masked=True, recompute=kind == "layer"),
        ),
        "(b) transformers + DeepSpeed, no document mask": (
            False,
            lambda kind: Peer(shape, where, masked=False, recompute=kind == "layer"),
        ),
    }
    if micro == args.micro[0]:  # what the same bits cost is seen once
        systems[f"{OURS}, model.deterministic=false"] = (
            True,
            lambda kind: Ours(shape, where, layout, bf16=True, recompute=kind, deterministic=False),
        )
    for name, (masked, make) in systems.items():
        # transformers computes whole layers again or nothing; memory decides how much each system must.
        kinds = ("none", "attention", "layer") if name.startswith(OURS) else ("none", "layer")
        for kind in kinds if args.recompute == "auto" else (args.recompute,):

            def work(make: Callable[[str], Any] = make, kind: str = kind) -> dict[str, Any]:
                system = make(kind)
                try:
                    return timed(where, system, steps)
                finally:
                    system.close()

            one = attempt(where, f"micro-batch {micro}: {name}, recompute {kind}", work)
            one["recompute"] = kind
            if "memory" not in one.get("failed", ""):
                break
        if "median_s" in one:
            tokens = sum(len(part.tokens) for part in steps[0][0])
            one["tokens_per_s"] = tokens / one["median_s"]
            work_done = statistics.mean(useful(shape, part, masked=masked) for part, _ in steps[2:])
            one["tflops"] = work_done / one["median_s"] / 1e12
            say(f"  {one['tokens_per_s']:,.0f} tokens/s, {one['tflops']:.3g} model TFLOPS")
        result["systems"][name] = one
    return result


def cpu(args: argparse.Namespace) -> dict[str, Any]:
    """A small model in FP32: pairs of steps in turns, equal work (one document a row), then packed documents."""
    where, layout = Where(torch.device("cpu"), gpu=False), Layout()
    shape = TINY if args.tiny else CPU
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {"tiny": args.tiny, "pairs": args.pairs, "rows": args.rows}
    with tempfile.TemporaryDirectory() as name, world(1):
        for kind, mean in (("one document a row", shape.positions), ("packed documents", shape.positions // 4)):
            data, config = dataset(Path(name), shape, rows=args.rows, micro=1, mean=mean)

            def load(number: int, data: Any = data, config: Any = config) -> tuple[GlobalBatch, list[Packed]]:
                batch = data.batch(number)
                return batch, micro_batches(batch, 0, 1, 1, config.data)

            found[kind] = attempt(where, kind, lambda load=load: _pairs(args, where, shape, layout, load))
    return found


def _pairs(args: argparse.Namespace, where: Where, shape: Architecture, layout: Layout, load: Any) -> dict[str, Any]:
    first = load(0)[1]
    found: dict[str, Any] = {"parity": parity(shape, where, layout, first[0], bf16=False)}
    say(f"  parity: {found['parity']}")
    systems = {
        "ours": Ours(shape, where, layout, bf16=False, recompute="none"),
        "transformers + torch AdamW": Plain(shape, where, masked=True)
        if len(first[0].lengths) > 1
        else Plain(shape, where, masked=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    losses: dict[str, list[float]] = {name: [] for name in systems}
    loading = []
    for number in range(args.pairs + 2):
        start = where.now()
        batch, rows = load(number)
        loading.append(where.now() - start)
        for name, system in systems.items():
            start = where.now()
            losses[name].append(system.step(rows, float(batch.target_count)))
            seconds[name].append(where.now() - start)
    for system in systems.values():
        system.close()
    seconds = {name: values[2:] for name, values in seconds.items()}
    one, other = seconds.values()
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    found |= {
        "cpu_seconds": seconds,
        "losses": losses,
        "median_s": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "loading_s": statistics.median(loading[2:]),
    }
    found["loading_share"] = found["loading_s"] / found["median_s"]["ours"]
    say(
        f"  ours / plain {found['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), loading {100 * found['loading_share']:.3f} %"
    )
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=("gpu", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="the same code at a small size, to see that it runs")
    parser.add_argument("--micro", type=int, nargs="+", default=[1, 2, 4], help="gpu: rows of a micro-batch (1 2 4)")
    parser.add_argument("--steps", type=int, default=5, help="gpu: measured steps, after two others (5)")
    parser.add_argument(
        "--recompute",
        choices=("auto", "none", "attention", "layer"),
        default="auto",
        help="gpu: activations computed again; auto: as little as fits, for each system (auto)",
    )
    parser.add_argument("--pairs", type=int, default=7, help="cpu: measured pairs, after two others (7)")
    parser.add_argument("--rows", type=int, default=1, help="cpu: rows of a step (1)")
    parser.add_argument("--threads", type=int, default=1, help="cpu: threads (1)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of train.json and train.md")
    args = parser.parse_args()
    where = here()
    entry = {"about": about(where), "command": shlex.join(["python", "scripts/bench/train.py", *sys.argv[1:]])}
    entry["result"] = gpu(args) if args.where == "gpu" else cpu(args)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "train.json"
    all_results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    name = f"{args.where}{' tiny' if args.tiny else ''}"
    all_results[name] = entry
    write(args.output, all_results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
