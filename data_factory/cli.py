"""`ziya-data`: run, decide, explain, report, rules, train-lm, vocab, pack, prune."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ziya.errors import UserError, run_main

_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=")


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser of all commands. What is slow to import, which some arguments and help texts need, is imported for
    `command` alone, and here: Ctrl-C meanwhile is one line too."""
    parser = argparse.ArgumentParser(prog="ziya-data", description="A crawl dump becomes clean, accounted token packs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    help_text = "read, measure, decide, evaluate, pack and report; run again to resume"
    run = commands.add_parser(
        "run", help=help_text, description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if command == "run":
        from data_factory.config import DataConfig
        from ziya import config as settings

        run.epilog = (
            "Paths are relative to the current folder. A rule takes a number, off, null (the preset's threshold), or one "
            "of\nthese for a language: rules.min_chars.zh=80. [measuring] settings need a new run, [deciding] ones can be "
            "moved by\n`ziya-data decide`:\n" + "\n".join(settings.describe(DataConfig))
        )
    run.add_argument("config", type=Path, metavar="CONFIG", help="YAML config, for example configs/data/ziya2.yaml")
    run.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted overrides, for example rules.min_chars=100"
    )
    run.add_argument(
        "--input",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="files, folders, globs or URLs: replace the paths of the config's first source",
    )
    run.add_argument("--output", type=Path, metavar="DIR", default=Path("out"), help="output folder (default: out)")
    run.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="worker processes (default: all cores); never changes the output",
    )
    run.add_argument("--limit", type=int, metavar="N", help="read only the first N records")
    run.add_argument("--restart", action="store_true", help="empty the output folder of an earlier run first")

    decide = commands.add_parser(
        "decide", help="apply other thresholds to the stored measurements and show what changed"
    )
    decide.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")
    decide.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="deciding settings, for example rules.min_chars.en=300; they add up from call to call",
    )
    decide.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="worker processes")

    explain = commands.add_parser(
        "explain",
        help="tell one document's life: measurements, reasons, winner of its duplicate, text before and after",
    )
    explain.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")
    which = explain.add_mutually_exclusive_group(required=True)
    which.add_argument("--url", help="the document's URL")
    which.add_argument("--id", help="the document's id")
    explain.add_argument("--json", action="store_true", help="print JSON")

    report = commands.add_parser(
        "report", help="write report.html and report.json of a run again, and print the summary"
    )
    report.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")

    rules = commands.add_parser("rules", help="list every rule with its thresholds, one a line")
    rules.add_argument("--preset", default="ziya2", help="whose thresholds to show")
    rules.add_argument("--json", action="store_true", help="print JSON")

    train = commands.add_parser("train-lm", help="train a KenLM model over SentencePiece pieces for perplexity tiers")
    if command == "train-lm":
        from data_factory import train_lm

        train_lm.add_arguments(train)
    characters = commands.add_parser("vocab", help="list the most frequent characters that a tokenizer lacks")
    if command == "vocab":
        from data_factory import vocab

        vocab.add_arguments(characters)

    pack = commands.add_parser("pack", help="(re)pack the kept documents of a run with a tokenizer")
    pack.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")
    pack.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="tokenizer.*, packing.*, seed and sources.<number>.ratio settings",
    )
    pack.add_argument(
        "--replace",
        action="store_true",
        help="make packs of another tokenizer anew (without it they are refused); they stand until all texts are tokenised",
    )
    pack.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="worker processes")

    prune = commands.add_parser(
        "prune", help="delete the texts of dropped documents; afterwards decide can change evaluation and packing only"
    )
    prune.add_argument("out", type=Path, metavar="OUT", help="output folder of a run")
    return parser


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(args: argparse.Namespace) -> int:
    from data_factory.executor import rarely_collect

    rarely_collect()  # before the imports
    from data_factory import pipeline
    from data_factory.config import DataConfig
    from data_factory.report import text
    from ziya import config as settings

    raw = settings.apply_overrides(settings.read_yaml(args.config), args.overrides)
    if args.input:
        sources = raw.get("sources") or [{"name": "crawl"}]
        if not isinstance(sources, list) or not isinstance(sources[0], dict):
            raise UserError(f"{args.config}: sources must be a list of mappings with a name")
        sources[0]["paths"] = args.input
        raw["sources"] = [source for source in sources if source.get("paths")]
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: it needs a number of at least 1")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: it needs a number of at least 1")
    config = settings.parse(DataConfig, raw, str(args.config))
    summary = pipeline.run(config, args.output, args.workers, args.limit, args.restart)
    print(text.summary(summary, args.output))
    return 0


def _decide(args: argparse.Namespace) -> int:
    from data_factory.executor import rarely_collect

    rarely_collect()  # before the imports
    from data_factory import pipeline
    from data_factory.report import text

    before, after = pipeline.redecide(args.out, args.overrides, args.workers, getattr(args, "replace", False))
    print(text.changes(before, after, args.out))
    return 0


def _pack(args: argparse.Namespace) -> int:
    for override in args.overrides:
        if not override.startswith(("tokenizer.", "packing.", "sources.", "seed=")):
            raise UserError(
                f"pack takes tokenizer.*, packing.*, sources.<number>.ratio and seed, not {override}: "
                "use `ziya-data decide` for other settings"
            )
    from data_factory import run_state

    given = [item for item in args.overrides if item.startswith("tokenizer.path=")]
    if not given and run_state.stored_config(args.out).tokenizer.path is None:
        raise UserError(
            f"{args.out} has no tokenizer: give tokenizer.path=FILE (a SentencePiece .model or a tokenizer.json)"
        )
    return _decide(args)


def _rules(args: argparse.Namespace) -> int:
    from data_factory.rules import PRESETS, listing

    if args.preset not in PRESETS:
        raise UserError(f"--preset {args.preset}: known presets are {', '.join(PRESETS)}")
    print(listing(args.preset, args.json))
    return 0


def _explain(args: argparse.Namespace) -> int:
    from data_factory import explain

    print(explain.explain(args.out, args.url, args.id, args.json))
    return 0


def _report(args: argparse.Namespace) -> int:
    from data_factory.report import summary, text

    print(text.summary(summary.rewrite(args.out), args.out))
    return 0


def _prune(args: argparse.Namespace) -> int:
    from data_factory import prune

    print(prune.prune(args.out))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `ziya-data`."""
    signal.signal(signal.SIGTERM, _terminate)

    def command() -> int:
        given = sys.argv[1:] if argv is None else list(argv)
        parser = _parser(next((item for item in given if not item.startswith("-")), ""))
        args, rest = parser.parse_known_args(given)
        # argparse cannot take key=value after options; and `--input PATH key=value` swallows it
        if hasattr(args, "overrides"):
            paths = list(getattr(args, "input", None) or [])
            swallowed = [item for item in paths if _OVERRIDE.match(item) and not Path(item).exists()]
            args.overrides += [item for item in rest if _OVERRIDE.match(item)] + swallowed
            if paths:
                args.input = [item for item in paths if item not in swallowed]
            rest = [item for item in rest if not _OVERRIDE.match(item)]
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if args.command == "train-lm":
            from data_factory import train_lm

            return train_lm.main(args)
        if args.command == "vocab":
            from data_factory import vocab

            return vocab.main(args)
        table = {
            "run": _run,
            "decide": _decide,
            "pack": _pack,
            "rules": _rules,
            "explain": _explain,
            "report": _report,
            "prune": _prune,
        }
        return table[args.command](args)

    return run_main(command)


if __name__ == "__main__":
    sys.exit(main())
