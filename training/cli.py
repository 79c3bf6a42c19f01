"""`ziya-train`: a stage of training, and init, export, plan, plot."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ziya.errors import UserError, run_main

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=")
COMMANDS = {
    "init": "extend a base model's vocabulary: tokenizer, embedding and head",
    "export": "write a checkpoint as a Hugging Face folder",
    "plan": "parameters, FLOPs, memory, time and the best layouts on given GPUs",
    "plot": "draw loss and held-out bits per byte of runs over tokens",
}
_MISSING = "ziya-train {}: this installation lacks {} (pip install 'ziya[train]')"


def settings_help() -> list[str]:
    """One line a setting: name, whether it is fixed for a run or free, default, meaning."""
    from training.config import (
        TrainConfig,  # what is slow to import comes inside `run_main`: Ctrl-C meanwhile is one line too
    )
    from ziya.config import MEASURING, phase, walk

    lines = []
    for name, field in walk(TrainConfig):
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        kind = "fixed" if phase(field) == MEASURING else "free"
        lines.append(f"  {name}  [{kind}; {default}]  {field.description}")
    return lines


def _run_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  ziya-train {name:8} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="ziya-train",
        usage="ziya-train --stage K --config CONFIG [--processes N] [--accept-change NAME ...] [key=value ...]\n"
        "       ziya-train {init,export,plan,plot} --help",
        description="Train one stage; the same command goes on where the run stands. SIGTERM, SIGUSR1 or Ctrl-C: the running "
        "step ends, the run\nis saved, and the exit code is 128 + the signal's number (143, 138, 130); a second one ends at once. "
        "Exit codes: 0 stage\nfinished, 1 a rank failed, 2 bad input.\n\nother commands:\n" + commands,
        epilog="Paths are relative to the current folder. `init_from=FOLDER` is short for stages.<K-1>.init_from of the stage "
        "that is trained.\n[fixed] settings belong to the run: a resume with another value is refused unless --accept-change "
        "names it. [free] ones may\nchange with every start. In the help below `[]` stands for an item's number: "
        "stages.0.tokens=1e9\n\n" + "\n".join(settings_help()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--stage", type=int, required=True, metavar="K", help="the stage to train: 1, 2 or 3")
    parser.add_argument(
        "--config", type=Path, required=True, help="YAML config, for example configs/train/ziya2_13b.yaml"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="processes per node, short for launch.processes=N")
    parser.add_argument(
        "--accept-change",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="fixed settings (or groups of them, such as data.sources) that may differ from what the run began with",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, for example run=runs/a")
    return parser


def _train(given: Sequence[str]) -> int:
    parser = _run_parser()
    args, rest = parser.parse_known_args(given)
    # argparse takes key=value neither after options nor when an option with several values stands before it.
    overrides = [*args.overrides, *rest, *(item for item in args.accept_change if _OVERRIDE.match(item))]
    accepted = [item for item in args.accept_change if not _OVERRIDE.match(item)]
    unknown = [item for item in overrides if not _OVERRIDE.match(item)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    overrides = [
        f"stages.{args.stage - 1}.{item}" if item.startswith("init_from=") else item
        for item in _in_order(given, overrides)
    ]
    if args.processes is not None:
        overrides.append(f"launch.processes={args.processes}")
    from training.config import load_config

    config = load_config(args.config, overrides)
    from training.launch import launch

    return launch(config, args.stage, accepted)


def _in_order(given: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The overrides as they were typed: of two for one setting the later one counts."""
    return [item for item in given if item in set(overrides)]


def _command(name: str, given: Sequence[str]) -> int:
    """A command that lies in a module of its own, with `add_arguments(parser)` and `main(args)`."""
    parser = argparse.ArgumentParser(prog=f"ziya-train {name}", description=COMMANDS[name], allow_abbrev=False)
    if name == "export":
        return _export(parser, given)
    module = importlib.import_module(f"training.{name}")
    module.add_arguments(parser)
    run: Callable[[argparse.Namespace], int] = module.main
    return run(parser.parse_args(given))


def _export(parser: argparse.ArgumentParser, given: Sequence[str]) -> int:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that has trained")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the latest)")
    parser.add_argument(
        "--average", type=int, default=1, metavar="K", help="mean of the last K checkpoints up to it (1)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: RUN/exports/step-N)")
    parser.add_argument("--keep-padding", action="store_true", help="keep the padding rows of the vocabulary")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the weights (bf16)")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="tokenizer's folder (default: what the run began with)"
    )
    parser.add_argument("--samples", action="store_true", help="add samples.md: how the model writes on, greedy")
    args = parser.parse_args(given)
    from training.export import export

    options = {"average": args.average, "keep_padding": args.keep_padding, "dtype": args.dtype, "base": args.base}
    options["samples"] = args.samples
    print(export(args.run, args.step, args.out, **options))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `ziya-train`."""

    def command() -> int:
        given = sys.argv[1:] if argv is None else list(argv)
        try:
            if given and given[0] in COMMANDS:
                return _command(given[0], given[1:])
            return _train(given)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in ("torch", "deepspeed", "megatron", "safetensors", "transformers", "matplotlib"):
                raise UserError(_MISSING.format(given[0] if given else "", package)) from error
            raise

    return run_main(command)


if __name__ == "__main__":
    sys.exit(main())
