"""Per-document agreement of our presets with datatrove's filters on English text, as JSON.

    python scripts/bench/agreement.py --peer-python ENV/bin/python --output results/agreement.json en1.jsonl.gz
    en2.jsonl

ENV is an environment of its own with `datatrove[processing]==0.10.1` and spacy (its English word tokenizer; no
network at run time). Input: JSONL with a `text` field. The script runs itself there with `--peer`, which imports
datatrove and nothing of ours.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

FILTERS = ("gopher_quality", "gopher_repetition", "c4_quality", "fineweb_quality")
FINEWEB_RULES = ("min_end_mark_lines", "max_short_lines_fineweb", "max_newlines_per_word", "max_duplicate_line_chars_fineweb")


def peer() -> None:
    """Texts as JSON strings on stdin, one a line -> the reason of each filter ("" = kept) as JSON on stdout."""
    from datatrove.data import Document  # type: ignore[import-not-found]
    from datatrove.pipeline import filters  # type: ignore[import-not-found]

    classes = (
        filters.GopherQualityFilter,
        filters.GopherRepetitionFilter,
        filters.C4QualityFilter,
        filters.FineWebQualityFilter,
    )
    made = dict(zip(FILTERS, (cls() for cls in classes), strict=True))
    texts = [json.loads(line) for line in sys.stdin]
    reasons: dict[str, list[str]] = {name: [] for name in FILTERS}
    seconds = {}
    for name, filter_ in made.items():
        start = time.process_time()
        for number, text in enumerate(texts):
            try:
                result = filter_.filter(Document(text=text, id=str(number)))
            except ZeroDivisionError:  # a text without words
                result = (False, "empty")
            reasons[name].append("" if result is True else (result[1] if isinstance(result, tuple) else "unnamed"))
        seconds[name] = time.process_time() - start
    json.dump({"reasons": reasons, "cpu_s": seconds}, sys.stdout)


def ours(texts: list[str]) -> dict[str, list[list[str]]]:
    """Filter -> ids of our rules that fire, per text."""
    import numpy as np

    from data_factory.batches import Spans, TextBatch
    from data_factory.rules.document import DOCUMENT_RULES
    from data_factory.rules.statistics import measure

    features = measure(TextBatch.from_strings(texts), np.zeros(len(texts), np.uint8), Spans.empty())
    fired: dict[str, list[list[str]]] = {name: [[] for _ in texts] for name in FILTERS}
    for rule in DOCUMENT_RULES:
        for preset, names in (("gopher", FILTERS[:2]), ("c4", FILTERS[2:3]), ("fineweb", FILTERS[3:])):
            threshold = rule.thresholds.get(preset, {}).get("en")
            if threshold is None or (preset == "fineweb" and rule.id not in FINEWEB_RULES):
                continue
            repetition = rule.feature.startswith(("duplicate_", "top_"))
            name = names[repetition] if len(names) == 2 else names[0]
            values = features[rule.feature]
            bad = values < np.float32(threshold) if rule.bad == "below" else values > np.float32(threshold)
            for number in np.flatnonzero(bad):
                fired[name][number].append(rule.id)
    return fired


def compare(theirs: list[str], mine: list[list[str]]) -> dict[str, Any]:
    """Agreement of two lists of verdicts, with the reasons behind disagreements."""
    pairs = Counter((reason != "", bool(rules)) for reason, rules in zip(theirs, mine, strict=True))
    n = len(theirs)
    return {
        "documents": n,
        "agreement": (pairs[True, True] + pairs[False, False]) / n,
        "both_drop": pairs[True, True],
        "both_keep": pairs[False, False],
        "only_datatrove_drops": dict(
            Counter(reason for reason, rules in zip(theirs, mine, strict=True) if reason and not rules).most_common()
        ),
        "only_ours_drops": dict(
            Counter(
                "+".join(rules) for reason, rules in zip(theirs, mine, strict=True) if rules and not reason
            ).most_common()
        ),
    }


def read_texts(paths: list[Path]) -> list[str]:
    """The text field of JSONL files, plain or gzipped."""
    texts = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    return texts


def main() -> None:
    """Run both sides and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="run the datatrove side (called by the script itself)")
    parser.add_argument("--peer-python", type=Path, help="Python of the environment that holds datatrove")
    parser.add_argument("--output", type=Path, help="JSON file to write; default: standard output")
    parser.add_argument("texts", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.peer:
        peer()
        return
    if not arguments.peer_python or not arguments.texts:
        parser.error("give --peer-python and at least one JSONL file")
    texts = read_texts(arguments.texts)
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    run = subprocess.run(
        [str(arguments.peer_python), __file__, "--peer"], input=lines.encode(), stdout=subprocess.PIPE, check=True
    )
    theirs = json.loads(run.stdout)
    mine = ours(texts)
    result = {name: compare(theirs["reasons"][name], mine[name]) for name in FILTERS}
    size = sum(len(text.encode()) for text in texts) / 1e6
    document = {
        "megabytes": size,
        "datatrove_mb_per_cpu_s": {name: size / seconds for name, seconds in theirs["cpu_s"].items()},
        "filters": result,
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
