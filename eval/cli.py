"""`ziya-eval`: evaluate models, write the report again, and what evaluation offers beside."""

from __future__ import annotations

import argparse
import importlib
import re
import signal
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

# All but this is imported inside `run_main`, so that Ctrl-C in the first moments ends in one line too.
from ziya.errors import UserError, run_main

if TYPE_CHECKING:
    from eval.config import EvalConfig

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
_PACKAGES = ("torch", "transformers", "lm_eval", "math_verify", "matplotlib", "datasets")
COMMANDS = {
    "run": "evaluate a model, or every export of a training run, beside its base",
    "report": "write table, curves and page of an evaluated folder again",
}
# Commands that lie in a module of their own: eval/<name>.py with add_arguments and main.
OTHERS = {"contamination": "find benchmark items in training data"}
# Options of `run` that are settings: dest -> how the value is written as YAML.
_SETTINGS = (
    "base",
    "tasks",
    "data",
    "output",
    "protocol",
    "limit",
    "prompt_variants",
    "dtype",
    "batch_tokens",
    "processes",
    "ppl",
)


def settings_help() -> list[str]:
    """One line a setting: name, whether it belongs to an output folder or is free, default, meaning."""
    from eval.config import EvalConfig
    from ziya import config as settings

    lines = []
    for name, field in settings.walk(EvalConfig):
        kind = "fixed" if settings.phase(field) == settings.MEASURING else "free"
        lines.append(
            f"  {name}  [{kind}; default {field.get_default(call_default_factory=True)!r}]  {field.description}"
        )
    return lines


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ziya-eval",
        description="Is a model better than what it started from, where, and is it real: six benchmarks over a run's life.",
        epilog="Exit codes: 0 done, 1 an evaluation process failed, 2 bad input, 130 interrupted (run the same command again).",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help=COMMANDS["run"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="Evaluate a Hugging Face folder, a model of the hub, or every export of a ziya run. What is finished in "
        "--output is not asked\nagain: the same command goes on after any interruption, and when a run has new exports.",
    )
    if command == "run":
        run.epilog = (
            "Paths are relative to the current folder. [fixed] settings belong to the output folder, [free] ones may change "
            "from call to call.\nExamples: shots=0 max_length=2048 every=5 wait_s=3600\n\n" + "\n".join(settings_help())
        )
    run.add_argument(
        "model", nargs="?", metavar="MODEL_OR_RUN", help="Hugging Face folder, hub id (with allow_hub=true) or ziya run"
    )
    run.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example every=5")
    run.add_argument("--config", type=Path, help="YAML settings, for example configs/eval/ziya2.yaml")
    run.add_argument("--base", metavar="HF_DIR", help="model that the others are compared with")
    run.add_argument("--tasks", metavar="LIST", help="ceval,cmmlu,mmlu,gsm8k,math,humaneval or some of them (all)")
    run.add_argument(
        "--data", metavar="DIR", help="folder with a folder of official files for each benchmark (benchmarks)"
    )
    run.add_argument("--output", metavar="OUT", help="folder for results (eval_out)")
    run.add_argument("--protocol", choices=("ziya2", "lm-eval"), help="prompts, shots and averages (ziya2)")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N items of every subject")
    run.add_argument(
        "--prompt-variants", type=int, metavar="K", help="repeat each task over K wordings, print the spread (1)"
    )
    run.add_argument("--ppl", metavar="FILES", help="JSONL files of held-out documents: bits per byte by domain, with commas between")
    run.add_argument("--unsafe-code", action="store_true", help="run HumanEval's programs even where no sandbox works")
    run.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights (auto)")
    run.add_argument("--batch-tokens", type=int, metavar="N", help="tokens of a batch (16384)")
    run.add_argument("--processes", type=int, metavar="N", help="processes with the whole model each (one per GPU)")
    run.add_argument("--restart", action="store_true", help="discard all that former runs left in --output but the stored answers")

    report = commands.add_parser("report", help=COMMANDS["report"], allow_abbrev=False)
    report.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")

    for name, text in OTHERS.items():
        other = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if command == name:
            importlib.import_module(f"eval.{name}").add_arguments(other)
    return parser


def configure(args: argparse.Namespace) -> EvalConfig:
    """File, then options, then key=value: later ones win."""
    from eval.config import EvalConfig
    from ziya import config as settings

    raw = settings.read_yaml(args.config) if args.config is not None else {}
    given: dict[str, Any] = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    if args.model is not None:
        given["model"] = args.model
    if args.unsafe_code:
        given["unsafe_code"] = True
    raw = settings.apply_overrides({**raw, **given}, args.overrides)
    return settings.parse(EvalConfig, raw, str(args.config) if args.config is not None else "settings")


def _run(args: argparse.Namespace) -> int:
    config = configure(args)
    from eval import runner

    rows = runner.run(config, restart=args.restart)
    print(summary(Path(config.output), rows))
    return 0


def columns(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def summary(out: Path, rows: Sequence[dict[str, Any]]) -> str:
    """What the terminal shows at the end: a line a model and task, the spread over wordings, where the rest lies."""
    from eval.report.collect import p_value, points
    from eval.statistics import pairs_told
    from ziya.files import read_json
    from ziya.progress import counted

    wide = max((columns(row["model"]) for row in rows), default=0)

    def padded(name: str) -> str:
        return name + " " * (wide - columns(name))

    lines = []
    for row in rows:
        text = f"{padded(row['model'])}  {row['task']:10} {100 * row['value']:6.2f}  [{100 * row['low']:.2f}, {100 * row['high']:.2f}]"
        text += f"  {counted(row['n'], 'item')}  macro {100 * row['macro']:.2f} micro {100 * row['micro']:.2f}"
        told = pairs_told(row["pairs"], row["pairs_of"])
        if row["difference"] is not None:  # over the pairs alone, as in the table and on the page
            text += f"  {points(row['difference'], signed=True)} to the base{f' {told}' if told else ''}, p = {p_value(row['p_value'])}"
        elif told:
            text += f"  not compared with the base: {told}"
        if row.get("sandbox") == "none":
            text += "  UNSAFE: without a sandbox"
        lines.append(text)
    if (out / "variants.json").is_file():
        for line in read_json(out / "variants.json"):
            lines.append(
                f"{padded(line['model'])}  {line['task']:10} over {len(line['values'])} wordings: {100 * line['least']:.2f} to "
                f"{100 * line['greatest']:.2f}, mean {100 * line['mean']:.2f}"
            )
    return "\n".join([*lines, f"{out / 'table.md'}  {out / 'report.html'}"])


def _report(args: argparse.Namespace) -> int:
    from eval import report

    report.write(args.out)
    print(args.out / "report.html")
    return 0


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `ziya-eval`."""
    signal.signal(signal.SIGTERM, _terminate)

    def command() -> int:
        given = sys.argv[1:] if argv is None else list(argv)
        name = next((item for item in given if not item.startswith("-")), "")
        parser = _parser(name)
        args, rest = parser.parse_known_args(given)
        if name == "run":  # argparse cannot take key=value after options, and takes one for MODEL_OR_RUN
            loose = [item for item in given if _OVERRIDE.match(item) and item in {args.model, *args.overrides, *rest}]
            others = [item for item in [args.model, *args.overrides, *rest] if item is not None and item not in loose]
            args.model, args.overrides = (others[0] if others and not others[0].startswith("-") else None), loose
            rest = others[1:] if args.model is not None else others
        if rest:
            hint = "" if rest[0].startswith("-") else " (one model or run a call; settings are key=value)"
            parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        table: dict[str, Callable[[argparse.Namespace], int]] = {"run": _run, "report": _report}
        try:
            if name in OTHERS:
                run: Callable[[argparse.Namespace], int] = importlib.import_module(f"eval.{name}").main
                return run(args)
            return table[args.command](args)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in _PACKAGES:
                raise UserError(f"ziya-eval: this installation lacks {package} (pip install 'ziya[eval]')") from error
            raise

    return run_main(command)


if __name__ == "__main__":
    sys.exit(main())
