"""Readers: a benchmark's official files become items. CSV is read by the `csv` module as text, never by guessing types.

In: `DIR/<task>/...` as `eval/tasks/files.py` lists it. Out: `Item`s in file order. A row that cannot be read is a UserError
that names file and row: a benchmark with a hole in it has no score.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.tasks import files
from eval.text_files import brief, content, json_lines, json_value, text
from ziya.errors import UserError

LETTERS = ("A", "B", "C", "D")
LETTER_TASKS = ("ceval", "cmmlu", "mmlu")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*")


@dataclass(frozen=True)
class Item:
    """One question. `answer` is a letter, a final answer or a program, "" where the official split is unlabelled.

    `question` is what a reader of the item sees, its options included; `raw` holds the official fields under one set of names:
    letter tasks question, A, B, C, D, answer; gsm8k and math question, solution, answer; humaneval the fields of its file.
    """

    id: str
    task: str
    subject: str
    question: str
    answer: str
    raw: dict[str, str]


def items(task: str, data: Path, split: str | None = None, *, subject: str | None = None) -> list[Item]:
    """All items of a task's split (the scored one by default), of one subject or of every subject that is there.

    A set that is absent is a UserError that says what to download.
    """
    split = files.check_names(task, split)
    found = files.subject_files(task, data, split)
    if not found:
        raise files.absent(task, data, split)
    if subject is not None:
        found = {subject: found[subject]} if subject in found else {}
    return [item for name, paths in found.items() for item in read_subject(task, name, paths, split)]


def read_subject(task: str, subject: str, paths: list[Path], split: str) -> list[Item]:
    """Read one subject's files."""
    if task in LETTER_TASKS:
        rows: Iterator[dict[str, str]] = (row for path in paths for row in _letter_rows(task, path, split))
    else:
        read = {"gsm8k": _gsm8k, "math": _math, "humaneval": _humaneval}[task]
        rows = (read(raw, where) for path in paths for raw, where in _json_rows(path))
    result = []
    for number, row in enumerate(rows):
        question = row["prompt"] if task == "humaneval" else row["question"]
        if task in LETTER_TASKS:
            question = "\n".join([question, *(f"{letter}. {row[letter]}" for letter in LETTERS)])
        answer = row["canonical_solution"] if task == "humaneval" else row["answer"]
        result.append(Item(f"{task}/{subject}/{split}/{number}", task, subject, question, answer, row))
    if not result:
        raise UserError(f"{task}: {paths[0]} holds no item: restore the file")
    return result


def _letter_rows(task: str, path: Path, split: str) -> Iterator[dict[str, str]]:
    """Rows as question, A, B, C, D, answer (and C-Eval's explanation). MMLU has no header; C-Eval's test has no answers."""
    rows = _csv_rows(path)
    header = [*("question", *LETTERS), "answer"]
    if task != "mmlu":
        _, _, names = next(rows, (1, 1, []))
        header = [name.strip() if name.strip() in LETTERS else name.strip().lower() for name in names]
        needed = {"question", *LETTERS}
        if not needed <= set(header):
            raise UserError(f"{path}, row 1: the header is {brief(header)}, it needs id, question, A, B, C, D, answer")
    labelled = "answer" in header
    if not labelled and not (task == "ceval" and split == "test"):
        raise UserError(f"{path}, row 1: the header has no answer column: only C-Eval's test split is without answers")
    for number, last, cells in rows:
        if not cells:
            continue
        where = f"{path}, row {number} (ends on line {last})"
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} columns, the format has {len(header)}: restore the file")
        row = dict(zip(header, cells, strict=True))
        row.pop("", None)  # CMMLU numbers its rows in a column without a name
        row["answer"] = row.get("answer", "").strip()
        if labelled and row["answer"] not in LETTERS:
            raise UserError(f"{where}: the answer is {brief(repr(row['answer']))}, it must be A, B, C or D")
        if not any(row[name].strip() for name in ("question", *LETTERS)):
            raise UserError(f"{where}: question and options are empty")
        yield row


def _csv_rows(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """(number of the row, line on which it ends, cells) of a CSV file."""
    reader = csv.reader(io.StringIO(text(path), newline=""))
    number = last = 0
    try:
        for number, cells in enumerate(reader, start=1):
            last = reader.line_num
            yield number, last, cells
    except csv.Error as error:  # a quote that is never closed swallows the rest of the file
        raise UserError(
            f"{path}, row {number + 1} (begins on line {last + 1}): {brief(error)}: close its quotes or restore the file"
        ) from error


def _json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """A file's JSON objects with the words that name their place: one of .json, one a line of .jsonl."""
    if path.suffix == ".json":
        found = [(str(path), json_value(content(path), str(path)))]
    else:
        found = [(f"{path}, line {number}", value) for number, value, _ in json_lines(path)]
    for where, value in found:
        if not isinstance(value, dict):
            raise UserError(f"{where}: holds a {type(value).__name__}, it must be an object")
        yield value, where


def _field(raw: dict[str, Any], where: str, *names: str) -> str:
    for name in names:
        if isinstance(raw.get(name), str) and raw[name].strip():
            return str(raw[name])
    raise UserError(f"{where}: no text under {' or '.join(names)} (found {brief(', '.join(raw)) or 'nothing'})")


def _gsm8k(raw: dict[str, Any], where: str) -> dict[str, str]:
    solution = _field(raw, where, "answer")
    _head, mark, answer = solution.rpartition("#### ")
    if not mark or not answer.strip():
        raise UserError(f"{where}: the answer does not end in '#### <number>'")
    return {"question": _field(raw, where, "question"), "solution": solution, "answer": answer.strip().replace(",", "")}


def _math(raw: dict[str, Any], where: str) -> dict[str, str]:
    """Hendrycks' and the hub's fields, or question and answer where the answer ends in "The answer is: ...": MetaMath's form."""
    problem = _field(raw, where, "problem", "question")
    solution = _field(raw, where, "solution", "answer")
    body, mark, stated = solution.rpartition("The answer is: ")
    if "solution" not in raw and mark:
        solution, answer = body, stated.strip()
    else:
        answer = (
            str(raw["answer"]) if "solution" in raw and isinstance(raw.get("answer"), str) else last_boxed(solution)
        )
    if not answer:
        raise UserError(f"{where}: the solution has no \\boxed answer")
    row = {"question": problem, "solution": solution, "answer": answer}
    for extra in ("level", "type", "subject", "unique_id"):
        if isinstance(raw.get(extra), (str, int)):
            row[extra] = str(raw[extra])
    return row


def _humaneval(raw: dict[str, Any], where: str) -> dict[str, str]:
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    return {name: _field(raw, where, name) for name in names}


def last_boxed(text: str) -> str:
    """What the last \\boxed{...} (or \\fbox{...}, or `\\boxed x`) of a text holds; "" when there is none or it never closes."""
    marks = list(BOXED.finditer(text))
    if not marks:
        return ""
    start = marks[-1].end()
    if text[start : start + 1] != "{":
        return re.split(r"[\s$]", text[start:], maxsplit=1)[0] if marks[-1].group().endswith(" ") else ""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place]
    return ""
