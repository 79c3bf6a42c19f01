"""`ziya-eval contamination`: which benchmark items stand in the training data, and what the scores are without them.

An item's text is its question with its options (`Item.question`), cut into the 10-grams of `ziya.ngrams` (one CJK
character, one word or one number a unit). n-grams that more than 3 of all checked items share are boilerplate and do not count. An
item is **flagged** when at least `--threshold` of its n-grams occur somewhere in the training data, **partly met** when fewer but
some do. An item without any n-gram of its own (fewer than 10 units, or boilerplate throughout) is **not checked**: it is counted
apart and never flagged.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import report, statistics, training_text
from eval.models_found import foreign_folder
from eval.report.collect import title
from eval.samples import item_key, read_all
from eval.tasks.items import Item, items
from eval.training_text import Batch
from ziya import ngrams
from ziya.errors import UserError
from ziya.files import read_json, write_json
from ziya.progress import counted, log

THRESHOLD = 0.8
DOCUMENTS = 5  # documents that are named for an item, those with most of its n-grams
SHOWN = 20  # items that the terminal shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ziya-eval contamination`."""
    parser.add_argument("--packs", type=Path, nargs="+", default=[], metavar="DIR", help="token packs: folders or prefixes")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer of the packs (default: the copy beside them)"
    )
    parser.add_argument(
        "--documents", type=Path, nargs="+", default=[], metavar="DIR",
        help="texts: an output folder of ziya-data (its kept/ is read), or Parquet, JSONL and plain text files",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the benchmarks' official files")
    parser.add_argument("--tasks", default=",".join(statistics.TASKS), help="benchmarks to check (default: %(default)s)")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="share of an item's 10-grams that flags it (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="OUT", help="write contamination.json there; with results in OUT, scores without flagged items"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the check; exit code 0 whatever is found."""
    if not arguments.packs and not arguments.documents:
        raise UserError("nothing to search: give --packs, --documents or both")
    if not 0 < arguments.threshold <= 1:
        raise UserError(f"--threshold {arguments.threshold} must lie above 0 and at most at 1")
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"--output {arguments.output} is a file: give a folder")
    if arguments.output is not None and (foreign := foreign_folder(arguments.output)):
        raise UserError(f"--output {arguments.output} is {foreign}: give a new folder, or the --output of a `ziya-eval run`")
    tasks = [task for task in arguments.tasks.split(",") if task]
    found = {task: items(task, arguments.data) for task in tasks}
    sources = []  # both are made before either is searched, which may take hours
    if arguments.documents:
        sources.append(training_text.document_batches(arguments.documents))
    if arguments.packs:
        sources.append(training_text.pack_batches(arguments.packs, arguments.tokenizer))
    check = Check.of(found)
    started = time.process_time()
    for batches in sources:
        check.search(batches)
    if not check.bytes:
        raise UserError("the training data holds no text at all: give documents with a field text, or packs with tokens")
    seconds = time.process_time() - started
    log(f"contamination: {counted(check.documents, 'document')}, {check.bytes / 1e6:,.1f} MB in {seconds:.1f} s of one core")
    value = check.result(arguments.threshold)
    if arguments.output is not None:
        value["scores"] = scores(arguments.output, value, found)
        write_json(arguments.output / "contamination.json", value)
        if (arguments.output / "results.json").is_file() and (arguments.output / "models.json").is_file():
            report.write(arguments.output)
    print(told(value))
    return 0


@dataclass
class Check:
    """The items, their index, and what of them was met so far."""

    items: list[Item]
    index: ngrams.Index
    seen: Any  # bool [n-grams of the index]: met anywhere
    best: list[list[tuple[int, str]]]  # per item: (n-grams, document), most first
    least: Any  # int64 [items]: n-grams that a document needs to be named for the item
    documents: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, found: dict[str, list[Item]]) -> Check:
        """Index the items of all tasks."""
        every = [item for task in found.values() for item in task]
        index = ngrams.Index.build([item.question for item in every])
        return cls(every, index, np.zeros(len(index.keys), bool), [[] for _ in every], np.ones(len(every), np.int64))

    def search(self, batches: Iterable[Batch]) -> None:
        """Look for the items in documents."""
        for batch in batches:
            self.documents += len(batch.offsets) - 1
            self.bytes += int(batch.offsets[-1] - batch.offsets[0])
            hits = self.index.scan(batch.data, batch.offsets)
            self.seen[hits.ngram] = True
            document, item, met = self.index.pairs(hits)
            for row in np.flatnonzero(met >= self.least[item]).tolist():
                self._name(int(item[row]), int(met[row]), batch.name(int(document[row])))

    def _name(self, item: int, met: int, document: str) -> None:
        best = self.best[item]
        best.append((met, document))
        best.sort(key=lambda pair: (-pair[0], pair[1]))
        if len(best) > DOCUMENTS:
            best.pop()
        if len(best) == DOCUMENTS:
            self.least[item] = best[-1][0]

    def result(self, threshold: float) -> dict[str, Any]:
        """contamination.json without scores."""
        tasks: dict[str, dict[str, int]] = {}
        flagged: list[dict[str, Any]] = []
        partial: list[dict[str, Any]] = []
        coverage = self.index.coverage(self.seen)
        for number, item in enumerate(self.items):
            counts = tasks.setdefault(item.task, {"items": 0, "checked": 0, "flagged": 0, "partial": 0})
            counts["items"] += 1
            share, total = float(coverage[number]), int(self.index.total[number])
            if not total:
                continue
            counts["checked"] += 1
            if share > 0:
                over = share >= threshold
                counts["flagged" if over else "partial"] += 1
                named = [{"id": name, "share": met / total} for met, name in self.best[number]]
                entry = {"id": item.id, "task": item.task, "subject": item.subject, "coverage": share, "ngrams": total}
                (flagged if over else partial).append({**entry, "documents": named})
        return {
            "threshold": threshold, "ngram": ngrams.LENGTH, "boilerplate_above": ngrams.SHARED_BY, "documents": self.documents,
            "bytes": self.bytes, "tasks": tasks, "flagged": flagged,
            "partial": sorted(partial, key=lambda entry: (-entry["coverage"], entry["id"])), "scores": [],
        }  # fmt: skip


def scores(out: Path, value: dict[str, Any], found: dict[str, list[Item]]) -> list[dict[str, Any]]:
    """Scores of OUT's samples with and without flagged items: `{task, model, value, n, clean_value, clean_n, flagged}`.

    A sample belongs to the item with its question and its options, under either protocol. Nothing without results in OUT.
    """
    if not (out / "results.json").is_file():
        return []
    rows = read_json(out / "results.json")
    known = {task: {item_key(item.question) for item in own} for task, own in found.items()}
    over = {entry["id"] for entry in value["flagged"]}
    flagged = {task: {item_key(item.question) for item in own if item.id in over} for task, own in found.items()}
    samples = read_all(out / "samples")
    result = []
    for row in rows:
        lines = samples.get(row["model"], {}).get(row["task"], [])
        task = statistics.benchmark(row["task"])
        if task not in found or not lines:
            continue
        strange = sum(line["item"] not in known[task] for line in lines)
        if strange:
            log(f"{row['task']} {row['model']}: {strange} of {len(lines)} samples are no items of --data and count as not flagged")
        clean = [line for line in lines if line["item"] not in flagged[task]]
        score = statistics.average(row["task"], clean, row["protocol"])
        result.append({
            "task": row["task"], "model": row["model"], "value": row["value"], "n": len(lines), "clean_value": score,
            "clean_n": len(clean), "flagged": len(lines) - len(clean),
        })  # fmt: skip
    return result


def told(value: dict[str, Any]) -> str:
    """What the terminal shows."""
    lines = [f"{'task':<12}{'items':>8}{'checked':>9}{'flagged':>9}{'partly met':>12}"]
    for task, counts in value["tasks"].items():
        numbers = f"{counts['items']:>8}{counts['checked']:>9}{counts['flagged']:>9}{counts['partial']:>12}"
        lines.append(f"{title(task):<12}{numbers}")
    for kind in ("flagged", "partial"):
        for entry in value[kind][:SHOWN]:
            where = "; ".join(f"{item['id']} ({item['share']:.0%})" for item in entry["documents"])
            lines.append(f"{kind} {entry['coverage']:.0%} {entry['id']}: {where}")
        if len(value[kind]) > SHOWN:
            lines.append(f"... and {len(value[kind]) - SHOWN} more {kind}")
    for row in value["scores"]:
        shown = "none left" if row["clean_value"] is None else f"{100 * row['clean_value']:.2f} ({counted(row['clean_n'], 'item')})"
        every = f"{100 * row['value']:.2f} ({counted(row['n'], 'item')})"
        lines.append(f"{title(row['task'])} {row['model']}: {every}, without flagged {shown}")
    return "\n".join(lines)
