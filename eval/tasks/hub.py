"""Writes an absent set below the data folder from the hub, in its official layout, so that readers and hashes know one form only.

Runs only when hub access is allowed and files are absent; files that are there stay, and new ones join them in the folder in
which a split lies. Repositories are those that the harness's own tasks name. The files' bytes are ours, so their hashes are
unknown and a warning says so.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson

from eval.tasks import files
from eval.tasks.items import LETTERS
from eval.tasks.stock import stock_yaml
from ziya.errors import UserError
from ziya.files import write_bytes

HUMANEVAL_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def fetch(task: str, data: Path, load: Callable[..., Any] | None = None) -> None:
    """Download every subject of `task` into `data`; a failure is a UserError that also says how to do it by hand.

    `load` is `datasets.load_dataset` but in tests.
    """
    if load is None:
        import datasets

        load = datasets.load_dataset
    names = list(files.catalog().get(task, files.MATH_TYPES if task == "math" else [task]))
    roots = {split: files.split_root(task, data, split) for split in files.SOURCES[task].splits}
    # A set in one file, whatever its name, is whole.
    whole = {split for split in roots if task in files.subject_files(task, data, split)}
    for name in names:
        stock = stock_yaml(task, name)
        try:
            splits = load(path=stock["dataset_path"], name=stock.get("dataset_name"))
        except Exception as error:  # whatever the hub, the network or the disk raise
            told = " ".join(str(error).split())[:200]
            raise UserError(
                f"{task}: {stock['dataset_path']} could not be loaded from the hub ({told}). {files.by_hand(task, data)}"
            ) from error
        for given, rows in splits.items():
            split = "val" if given == "validation" else given
            if split not in roots or split in whole:
                continue
            for path, content in _files(task, name, split, list(rows)):
                if not (roots[split] / path).exists():  # files of the user, or of a download that was cut off, stay
                    write_bytes(roots[split] / path, content)


def _files(task: str, name: str, split: str, rows: list[dict[str, Any]]) -> Iterable[tuple[str, bytes]]:
    """The official files of one subject's split, as paths below the task's folder and their bytes."""
    if task == "mmlu":
        yield (
            f"{split}/{name}_{split}.csv",
            _csv([[row["question"], *row["choices"], LETTERS[row["answer"]]] for row in rows]),
        )
    elif task in files.catalog():
        question, answer = ("question", "answer") if task == "ceval" else ("Question", "Answer")
        labelled = any(row.get(answer) for row in rows)
        header = ["id" if task == "ceval" else "", question, *LETTERS, *([answer] if labelled else [])]
        cells = [[number, *(row[column] for column in header[1:])] for number, row in enumerate(rows)]
        yield f"{split}/{name}{'' if task == 'cmmlu' else f'_{split}'}.csv", _csv([header, *cells])
    elif task == "math":
        for number, row in enumerate(rows):
            yield f"{split}/{name}/{number}.json", orjson.dumps(row)
    else:
        kept = HUMANEVAL_FIELDS if task == "humaneval" else ("question", "answer")
        lines = [orjson.dumps({field: row[field] for field in kept}) + b"\n" for row in rows]
        yield "HumanEval.jsonl" if task == "humaneval" else f"{split}.jsonl", b"".join(lines)


def _csv(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
