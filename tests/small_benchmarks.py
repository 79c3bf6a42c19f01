"""Made-up items in the official file formats of the six benchmarks, a few of each, in both languages."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from eval.sandbox import bubblewrap_problem

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "benchmarks"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmark items of shared/data")
needs_box = pytest.mark.skipif(bool(bubblewrap_problem()), reason=f"needs a working sandbox: {bubblewrap_problem()}")

ZH_SUBJECTS = {"ceval": ("accountant", "law"), "cmmlu": ("agronomy", "ancient_chinese")}
MMLU_SUBJECTS = ("anatomy", "world_religions")
LETTERS = "ABCD"


def write_all(folder: Path) -> Path:
    """Write every set below `folder` and return it."""
    for number, (task, names) in enumerate(ZH_SUBJECTS.items()):
        for name in names:
            for split, count in {"dev": 5, "val": 4, "test": 4}.items():
                if (task, split) != ("cmmlu", "val"):
                    write_chinese(folder, task, name, split, count, number)
    for name in MMLU_SUBJECTS:
        for split, count in {"dev": 5, "val": 2, "test": 4}.items():
            write_mmlu(folder, name, split, count)
    write_gsm8k(folder)
    write_math(folder)
    write_humaneval(folder)
    return folder


def write_chinese(folder: Path, task: str, name: str, split: str, count: int, start: int = 0) -> None:
    """C-Eval's test split has no answers; CMMLU's first column has no name."""
    labelled = (task, split) != ("ceval", "test")
    question, answer = ("question", "answer") if task == "ceval" else ("Question", "Answer")
    header = ["id" if task == "ceval" else "", question, *LETTERS, *([answer] if labelled else [])]
    header += ["explanation"] if (task, split) == ("ceval", "dev") else []
    rows = []
    for number in range(count):
        row = [number, f"{name}的第{number}题：下列“说法”中，\n正确的是____。", f"甲,{number}", "乙", "None", "1.50"]
        row += [LETTERS[(number + start) % 4]] if labelled else []
        rows.append([*row, "解析"] if len(header) > len(row) else row)
    ending = f"{name}_{split}.csv" if task == "ceval" else f"{name}.csv"
    _write_csv(folder / task / split / ending, [header, *rows], bom=task == "cmmlu")


def write_mmlu(folder: Path, name: str, split: str, count: int) -> None:
    """No header; options such as None and 007 stay text."""
    rows = [
        [
            f'Question {number} of "{name}", {split}:\nwhich?',
            f"{number:03}",
            "None",
            " b ",
            "c, or d",
            LETTERS[(number + 1) % 4],
        ]
        for number in range(count)
    ]
    _write_csv(folder / "mmlu" / split / f"{name}_{split}.csv", rows, crlf=True)


def _write_csv(path: Path, rows: list[list[object]], *, bom: bool = False, crlf: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        csv.writer(file, lineterminator="\r\n" if crlf else "\n").writerows(rows)


def write_gsm8k(folder: Path) -> None:
    """Worked answers end in #### and the number."""
    path = folder / "gsm8k"
    path.mkdir(parents=True, exist_ok=True)
    for split, count in {"train": 8, "test": 4}.items():
        lines = []
        for number in range(count):
            total = 1200 * (number + 1)
            question = f"A baker sells {number + 1} boxes of 1,200 rolls\u2028each ({split}). How many rolls?"
            lines.append(
                {"question": question, "answer": f"{number + 1}*1200=<<{total}>>{total} rolls.\n#### {total:,}"}
            )
        _write_jsonl(path / f"{split}.jsonl", lines)


MATH_ITEMS = {
    "algebra": [("What is half of $\\frac{2}{3}$?", "\\frac{1}{3}"), ("Solve $2x=5.0$.", "2.5")],
    "number_theory": [("求小于 $2000$ 的最大整数。", "1{,}999"), ("List both roots of $x^2=1$ as a pair.", "(-1, 1)")],
}


def write_math(folder: Path) -> None:
    """One JSON a problem, in folders of types."""
    for split in ("train", "test"):
        for name, problems in MATH_ITEMS.items():
            for number, (problem, answer) in enumerate(problems, start=9):  # 9, 10: order is by number
                path = folder / "math" / split / name / f"{number}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                solution = f"We compute and find $\\boxed{{{answer}}}$."
                value = {"problem": problem, "level": "Level 1", "type": name.title(), "solution": solution}
                path.write_text(json.dumps(value), encoding="utf-8")


HUMANEVAL_ITEMS = [
    ("double", "    return 2 * x\n", "assert candidate(4) == 8"),
    ("shout", "    text = x.upper()\n\n    return text + '！'\n", "assert candidate('a') == 'A！'"),
    (
        "first",
        "    for one in x:\n        return one\n    return None\n",
        "assert candidate([7, 8]) == 7\n    assert candidate([]) is None",
    ),
]


def write_humaneval(folder: Path) -> None:
    """The gzipped JSON lines of the official release."""
    path = folder / "humaneval" / "HumanEval.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f'import math\n\n\ndef {name}(x):\n    """ Made-up task {number}: {name}. """\n',
            "entry_point": name,
            "canonical_solution": body,
            "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    {test}\n",
        }
        for number, (name, body, test) in enumerate(HUMANEVAL_ITEMS)
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), mtime=0))


def _write_jsonl(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
