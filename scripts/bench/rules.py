"""Speed of the document features: MB of text per CPU second of one core, per kernel, as JSON.

    python scripts/bench/rules.py --lang en en.jsonl.gz [--lang zh zh.jsonl.gz ...] [--output results/rules.json]

Compiled kernels are warmed up first. Each figure is the best of several runs, by CPU time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_factory.texts import read_texts

from data_factory.batches import Spans, TextBatch
from data_factory.rules.statistics import count, measure


def best(work: Callable[[], object], runs: int) -> float:
    """Least CPU seconds of several runs."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lang",
        nargs=2,
        action="append",
        required=True,
        metavar=("LANGUAGE", "JSONL"),
        help="en or zh, and a file of texts",
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = {}
    for language, path in arguments.lang:
        batch = TextBatch.from_strings(read_texts([Path(path)]))
        langs = np.full(len(batch), language == "zh", np.uint8)
        megabytes = len(batch.data) / 1e6
        works: dict[str, Callable[[], object]] = {
            "scan": lambda batch=batch, langs=langs: count(batch, langs, repetition=False),  # type: ignore[misc]
            "scan_and_repetition": lambda batch=batch, langs=langs: count(batch, langs),  # type: ignore[misc]
            "all_features": lambda batch=batch, langs=langs: measure(batch, langs, Spans.empty()),  # type: ignore[misc]
        }
        for work in works.values():
            work()
        speeds = {name: round(megabytes / best(work, arguments.runs), 1) for name, work in works.items()}
        result[Path(path).name] = {
            "language": language,
            "documents": len(batch),
            "megabytes": round(megabytes, 3),
            "mb_per_cpu_s": speeds,
        }
    text = json.dumps(result, indent=2, sort_keys=True) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
