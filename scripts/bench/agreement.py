"""Per-document agreement of our presets with datatrove's filters on the same text, as JSON.

    python scripts/bench/agreement.py --peer-python ENV/bin/python --en OUT1 en.jsonl.gz --zh OUT1 zh.jsonl.gz
        [--cases DIR] [--output results/agreement.json]

ENV is the datatrove environment of `peers/README.md`; no network at run time. Input: JSONL files with a `text` field,
plain or gzipped, or folders of finished runs, whose measured texts (T1) past the language filter are taken.
English: the presets `gopher`, `c4` and `fineweb` against the filters' defaults. Chinese: the preset `fineweb` against
the same filters with FineWeb-2's settings. `--cases` writes the texts on which the two differ, a JSONL file a filter.
The script runs itself in ENV with `--peer`, which imports datatrove and nothing of ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench_factory.texts import read_run, read_texts

# Filter -> our preset, per language.
PRESETS = {
    "en": {"gopher_quality": "gopher", "gopher_repetition": "gopher", "c4_quality": "c4", "fineweb_quality": "fineweb"},
    "zh": {"gopher_quality": "fineweb", "gopher_repetition": "fineweb", "fineweb_quality": "fineweb"},
}
FINEWEB_RULES = (
    "min_end_mark_lines",
    "max_short_lines_fineweb",
    "max_newlines_per_word",
    "max_duplicate_line_chars_fineweb",
)


def peer_filters(language: str) -> dict[str, Any]:
    """datatrove's filters: with their defaults for English, as FineWeb-2 (configs/cmn_Hani.yml) sets them for Chinese."""
    from datatrove.pipeline import filters  # type: ignore[import-not-found]
    from datatrove.utils.typeshelper import Languages  # type: ignore[import-not-found]

    if language == "en":
        return {
            "gopher_quality": filters.GopherQualityFilter(),
            "gopher_repetition": filters.GopherRepetitionFilter(),
            "c4_quality": filters.C4QualityFilter(),
            "fineweb_quality": filters.FineWebQualityFilter(),
        }
    words = Languages.mandarin_chinese
    return {
        "gopher_quality": filters.GopherQualityFilter(
            min_avg_word_length=1, max_avg_word_length=5, max_non_alpha_words_ratio=0.735,
            stop_words=list("的年在月是和日了於·為有被人中为他與後也而由"), language=words,
        ),
        "gopher_repetition": filters.GopherRepetitionFilter(
            dup_line_frac=0.287, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0,
            top_n_grams=((2, 0.256), (3, 0.201), (4, 0.171)),
            dup_n_grams=((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127)), language=words,
        ),
        "fineweb_quality": filters.FineWebQualityFilter(
            line_punct_thr=0.106, short_line_thr=999, char_duplicates_ratio=0.1, new_line_ratio=0.178, language=words
        ),
    }  # fmt: skip


def peer(language: str) -> None:
    """Texts as JSON strings on stdin, one a line -> the reason of each filter ("" = kept) as JSON on stdout."""
    from datatrove.data import Document  # type: ignore[import-not-found]

    texts = [json.loads(line) for line in sys.stdin]
    reasons: dict[str, list[str]] = {}
    seconds = {}
    for name, filter_ in peer_filters(language).items():
        reasons[name] = []
        start = time.process_time()
        for number, text in enumerate(texts):
            try:
                result = filter_.filter(Document(text=text, id=str(number)))
            except ZeroDivisionError:  # a text without words
                result = (False, "empty")
            reasons[name].append("" if result is True else (result[1] if isinstance(result, tuple) else "unnamed"))
        seconds[name] = time.process_time() - start
    json.dump({"reasons": reasons, "cpu_s": seconds}, sys.stdout)


def ours(texts: list[str], language: str) -> dict[str, list[dict[str, float]]]:
    """Filter -> per text, the rules of its family that fire, with the measured values."""
    import numpy as np

    from data_factory.batches import Spans, TextBatch
    from data_factory.rules.document import DOCUMENT_RULES
    from data_factory.rules.statistics import measure

    langs = np.full(len(texts), language == "zh", np.uint8)
    features = measure(TextBatch.from_strings(texts), langs, Spans.empty())
    fired: dict[str, list[dict[str, float]]] = {name: [{} for _ in texts] for name in PRESETS[language]}
    for rule in DOCUMENT_RULES:
        name = family(rule.id, rule.feature, rule.thresholds)
        threshold = rule.thresholds.get(PRESETS[language].get(name, ""), {}).get(language)
        if threshold is None:
            continue
        values = features[rule.feature]
        bad = values < np.float32(threshold) if rule.bad == "below" else values > np.float32(threshold)
        for number in np.flatnonzero(bad):
            fired[name][number][rule.id] = float(values[number])
    return fired


def family(rule: str, feature: str, presets: Any) -> str:
    """The filter of datatrove that holds a rule; "" for rules of ours."""
    if rule in FINEWEB_RULES:
        return "fineweb_quality"
    if "gopher" in presets:
        return "gopher_repetition" if feature.startswith(("duplicate_", "top_")) else "gopher_quality"
    return "c4_quality" if "c4" in presets else ""


def compare(theirs: list[str], mine: list[dict[str, float]]) -> dict[str, Any]:
    """Agreement of two lists of verdicts, with the reasons behind disagreements."""
    pairs = Counter((reason != "", bool(rules)) for reason, rules in zip(theirs, mine, strict=True))
    only_theirs = Counter(reason for reason, rules in zip(theirs, mine, strict=True) if reason and not rules)
    only_ours = Counter("+".join(rules) for reason, rules in zip(theirs, mine, strict=True) if rules and not reason)
    return {
        "agreement": round((pairs[True, True] + pairs[False, False]) / len(theirs), 4),
        "both_drop": pairs[True, True],
        "both_keep": pairs[False, False],
        "only_datatrove_drops": dict(only_theirs.most_common()),
        "only_ours_drops": dict(only_ours.most_common()),
    }


def run(language: str, paths: list[Path], peer_python: Path, cases: Path | None) -> dict[str, Any]:
    """Both sides of a language."""
    texts = [text for path in paths for text in (read_run(path, language) if path.is_dir() else read_texts([path]))]
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    command = [str(peer_python), __file__, "--peer", language]
    theirs = json.loads(subprocess.run(command, input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout)
    mine = ours(texts, language)
    for name in PRESETS[language] if cases else ():
        assert cases is not None
        cases.mkdir(parents=True, exist_ok=True)
        with (cases / f"{language}_{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, (reason, rules) in enumerate(zip(theirs["reasons"][name], mine[name], strict=True)):
                if bool(reason) != bool(rules):
                    row = {"number": number, "datatrove": reason, "ours": rules, "text": texts[number]}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    size = sum(len(text.encode()) for text in texts) / 1e6
    return {
        "documents": len(texts),
        "megabytes": round(size, 2),
        "presets": PRESETS[language],
        "datatrove_mb_per_cpu_s": {name: round(size / seconds, 3) for name, seconds in theirs["cpu_s"].items()},
        "filters": {name: compare(theirs["reasons"][name], mine[name]) for name in PRESETS[language]},
    }


def main() -> None:
    """Run both sides and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=sorted(PRESETS), help="run the datatrove side (called by the script itself)")
    parser.add_argument("--peer-python", type=Path, help="Python of the environment that holds datatrove")
    parser.add_argument("--en", nargs="+", type=Path, default=[], metavar="PATH", help="English texts")
    parser.add_argument("--zh", nargs="+", type=Path, default=[], metavar="PATH", help="Chinese texts")
    parser.add_argument("--cases", type=Path, help="folder for the texts on which the two differ")
    parser.add_argument("--output", type=Path, help="JSON file to write; default: standard output")
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.peer)
        return
    inputs = {language: paths for language, paths in (("en", arguments.en), ("zh", arguments.zh)) if paths}
    if not arguments.peer_python or not inputs:
        parser.error("give --peer-python, and --en or --zh with a file or a run's folder")
    result = {
        language: run(language, paths, arguments.peer_python, arguments.cases) for language, paths in inputs.items()
    }
    text = json.dumps(result, ensure_ascii=False, indent=2) + "\n"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
