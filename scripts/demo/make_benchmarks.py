"""Write small made-up items in the six benchmarks' official file formats, for the demo's evaluation.

    python scripts/demo/make_benchmarks.py OUT_DIR [--seed 8]

OUT_DIR/{mmlu,cmmlu,ceval,gsm8k,math,humaneval}/ as `ziya-eval` reads them. The items are the project's own: questions on its
own articles, generated word problems and equations, and a few functions. Their scores say nothing about a model's abilities;
they show that every path works. The subjects' names are official ones, because readers know no others.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
from itertools import islice
from pathlib import Path

from crawl_pages import topics
from make_texts import maths

SUBJECTS = {"mmlu": "miscellaneous", "cmmlu": "elementary_information_and_technology", "ceval": "computer_network"}
DEV, SCORED = 5, 20
ASK = {"en": "Which article has this sentence: {}", "zh": "下面这句话出自哪一篇文章：{}"}

FUNCTIONS = [
    ("add", "a, b", "Return the sum of two numbers.\n    >>> add(2, 3)\n    5", "    return a + b\n", "add(2, 3) == 5"),
    ("double", "x", "Return twice x.\n    >>> double(4)\n    8", "    return 2 * x\n", "double(4) == 8"),
    ("last", "items", "Return the last item of a list.", "    return items[-1]\n", "last([1, 2, 3]) == 3"),
    ("count", "text, c", "Return how often c stands in text.", "    return text.count(c)\n", "count('abca', 'a') == 2"),
    ("is_even", "n", "Return whether n is even.", "    return n % 2 == 0\n", "is_even(4) and not is_even(5)"),
    ("turn", "text", "Return the text backwards.", "    return text[::-1]\n", "turn('天地') == '地天'"),
]


def letter_items(language: str, seed: int) -> list[list[str]]:
    """[question, A, B, C, D, answer] of DEV + SCORED questions."""
    drawn, found, rows = random.Random(f"{seed} {language}"), topics(language), []
    mark = "。" if language == "zh" else ". "
    for topic in found:
        for section in topic.sections[:2]:
            sentence = section[0].split(mark)[0] + mark.strip()
            others = drawn.sample([other.title for other in found if other is not topic], 3)
            options = [*others, topic.title]
            drawn.shuffle(options)
            rows.append([ASK[language].format(sentence), *options, "ABCD"[options.index(topic.title)]])
    drawn.shuffle(rows)
    return rows[: DEV + SCORED]


def write_csv(path: Path, header: list[str] | None, rows: list[list[str]]) -> None:
    """One official CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows] if header else rows)
    write(path, text.getvalue())


def write(path: Path, text: str) -> None:
    """One file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """JSON lines."""
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def letters(out: Path, seed: int) -> None:
    """MMLU in English, CMMLU and C-Eval in Chinese; another seed each."""
    english, chinese, other = letter_items("en", seed), letter_items("zh", seed), letter_items("zh", seed + 1)
    folder, name = out / "mmlu", SUBJECTS["mmlu"]
    write_csv(folder / "dev" / f"{name}_dev.csv", None, english[:DEV])
    write_csv(folder / "test" / f"{name}_test.csv", None, english[DEV:])
    for split, rows in (("dev", chinese[:DEV]), ("test", chinese[DEV:])):
        header = ["", "Question", "A", "B", "C", "D", "Answer"]
        numbered = [[str(number), *row] for number, row in enumerate(rows)]
        write_csv(out / "cmmlu" / split / f"{SUBJECTS['cmmlu']}.csv", header, numbered)
    for split, rows in (("dev", other[:DEV]), ("val", other[DEV:])):
        header = ["id", "question", "A", "B", "C", "D", "answer"] + (["explanation"] if split == "dev" else [])
        numbered = [[str(number), *row, *([""] if split == "dev" else [])] for number, row in enumerate(rows)]
        write_csv(out / "ceval" / split / f"{SUBJECTS['ceval']}_{split}.csv", header, numbered)


def generations(out: Path, seed: int) -> None:
    """GSM8K, MATH and HumanEval."""
    problems = []
    for row in islice(maths(seed), DEV + SCORED):
        working, answer = row["text"].rsplit(" The answer is: ", 1)
        problems.append({"question": row["prompt"], "answer": f"{working}\n#### {answer}"})
    write_lines(out / "gsm8k" / "train.jsonl", problems[:DEV])
    write_lines(out / "gsm8k" / "test.jsonl", problems[DEV:])
    drawn, equations = random.Random(seed), []
    for _ in range(SCORED):
        x, a, b = drawn.randint(2, 20), drawn.randint(2, 9), drawn.randint(1, 30)
        solution = f"Subtract ${b}$ to get ${a}x = {a * x}$, so $x = \\boxed{{{x}}}$."
        equations.append(
            {
                "problem": f"Solve ${a}x + {b} = {a * x + b}$ for $x$.",
                "level": "Level 1",
                "type": "Algebra",
                "solution": solution,
            }
        )
    for number, row in enumerate(equations):
        write(out / "math" / "test" / "algebra" / f"{number}.json", json.dumps(row))
    functions = []
    for number, (name, arguments, meaning, body, test) in enumerate(FUNCTIONS):
        functions.append(
            {
                "task_id": f"HumanEval/{number}",
                "prompt": f'def {name}({arguments}):\n    """{meaning}\n    """\n',
                "entry_point": name,
                "canonical_solution": body,
                "test": f"def check(candidate):\n    {name} = candidate\n    assert {test}\n",
            }
        )
    write_lines(out / "humaneval" / "HumanEval.jsonl", functions)


def main() -> None:
    """Write OUT_DIR."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=8)
    given = parser.parse_args()
    letters(given.out, given.seed)
    generations(given.out, given.seed)
    print(f"made-up items of six benchmarks in {given.out}")


if __name__ == "__main__":
    main()
