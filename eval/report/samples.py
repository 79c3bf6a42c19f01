"""Sample lines of all models -> the page's items: each question once, with every model's answer beside the others.

The page holds texts, so it holds a part of a large run only (`ITEMS`, and `ANSWERS` of all models together), spread evenly over
tasks and over each task's lines; the page says so, and `samples/` has all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval import statistics
from eval.samples import LETTERS, Line, Lines, asked, options, whole

ITEMS, ANSWERS = 5000, 50_000  # of the page, at most
QUESTION_CHARS, ANSWER_CHARS = 1500, 400


def cut(text: str, limit: int) -> str:
    """At most `limit` characters; a cut is visible."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def question(line: Mapping[str, Any]) -> str:
    """What was asked: the item's own question, else the end of the prompt."""
    doc = line.get("doc")
    if isinstance(doc, dict):
        text = asked(doc)
        if text:
            return "\n".join([text, *(option for option in options(doc) if option not in text)])
    arguments = line.get("arguments")
    while isinstance(arguments, (dict, list)) and arguments:
        arguments = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    return str(arguments or "")[-QUESTION_CHARS:]


def gold(line: Mapping[str, Any]) -> str:
    """The right answer: an option's letter where the harness logs its place, the final answer above a worked solution, a program."""
    target, filtered = _first(line.get("target")), line.get("filtered_resps")
    options_asked = len(filtered) if isinstance(filtered, list) else 0
    is_place = options_asked > 1 and target.isdecimal() and int(target) < min(options_asked, len(LETTERS))
    if is_place:
        return LETTERS[int(target)]
    given = line.get("doc")
    doc: Mapping[str, Any] = given if isinstance(given, dict) else {}
    if isinstance(doc.get("canonical_solution"), str):  # HumanEval's target is the tests
        return str(doc["canonical_solution"])
    final = doc.get("answer")
    has_final = options_asked < 2 and isinstance(final, str) and final.strip() not in ("", target.strip())
    return f"{final}\n--- solution ---\n{target}" if has_final else target


def answer(line: Mapping[str, Any]) -> str:
    """What the model said: the scored answer, then the raw output where it says more."""
    filtered, raw = line.get("filtered_resps"), line.get("resps")
    if isinstance(line.get("prediction"), str):
        said = line["prediction"]
    elif (
        isinstance(filtered, list)
        and len(filtered) > 1
        and all(isinstance(item, (list, tuple)) and item for item in filtered)
    ):
        values = [float(item[0]) for item in filtered]  # log-probabilities of the options
        best = max(range(len(values)), key=values.__getitem__)
        told = ", ".join(f"{letter} {value:.2f}" for letter, value in zip(LETTERS, values, strict=False))
        return f"{LETTERS[best] if best < len(LETTERS) else best + 1} (log-probabilities {told})"
    else:
        said = _told(_first_of(filtered))
    output = _first(raw)
    return said if not output or output.strip() == said.strip() else f"{said}\n--- output ---\n{output}"


def _told(value: Any) -> str:
    """What a scorer read in an output: a text or number, MATH's final answer, the verdict on a program."""
    if isinstance(value, dict) and "program" in value:
        return " ".join(filter(None, [str(value.get("status", "")), str(value.get("detail", ""))]))
    if isinstance(value, dict):
        value = "out of time" if value.get("timeout") else value.get("answer", "")
    return _first(value) or "(no answer found)"


def _first_of(value: Any) -> Any:
    while isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    return value


def _first(value: Any) -> str:
    found = _first_of(value)
    return "" if found is None else str(found)


Item = tuple[str, list[Line | None]]  # (task, its line of each model)


class Shown(NamedTuple):
    """Items of the page, `{t: task, s: subject, q: question, g: gold answer, a: [per model: null or [correct, answer]]}`, and how
    many there are in all."""

    items: list[dict[str, Any]]
    total: int


def of(out: Path, value: dict[str, Any], samples: Lines) -> Shown:
    """The items of OUT's page."""
    names = [model["model"] for model in value["models"]]
    chosen, total = choose(samples, names)
    return Shown(texts(out / "samples", chosen, names), total)


def choose(samples: Mapping[str, Mapping[str, Sequence[Any]]], models: Sequence[str]) -> tuple[list[Item], int]:
    """(items that are shown, how many there are in all). Lines of two models belong to one item where their hashes are equal."""
    found: dict[tuple[str, str, int], list[Any]] = {}
    for number, model in enumerate(models):
        for task, lines in samples.get(model, {}).items():
            seen: Counter[str] = Counter()
            for line in lines:
                name = line["sample_hash"]
                found.setdefault((task, name, seen[name]), [None] * len(models))[number] = line
                seen[name] += 1
    limit = min(ITEMS, ANSWERS // max(len(models), 1))
    share = min(1.0, limit / max(len(found), 1))
    chosen: list[Item] = []
    for task in statistics.task_order({task for task, _, _ in found}):
        own = [item for (name, _, _), item in found.items() if name == task]
        count = len(own) if share == 1 else max(1, int(len(own) * share))
        chosen += [(task, own[place * len(own) // count]) for place in range(count)]
    return chosen, len(found)


def texts(folder: Path, chosen: Sequence[Item], models: Sequence[str]) -> list[dict[str, Any]]:
    """The chosen items with their texts, read from `folder/<model>/<task>.jsonl`, one file after the other."""
    shown: list[dict[str, Any]] = [
        {"t": task, "s": "", "q": None, "g": "", "a": [None] * len(models)} for task, _ in chosen
    ]
    for number, model in enumerate(models):
        for task in dict.fromkeys(task for task, _ in chosen):
            wanted = [(place, item[number]) for place, (name, item) in enumerate(chosen) if name == task]
            there = [(place, line) for place, line in wanted if line is not None]
            if not there:
                continue
            read = whole(folder / model / f"{task}.jsonl", [line.place for _, line in there])
            for (place, _), line in zip(there, read, strict=True):
                item = shown[place]
                if item["q"] is None:  # every model was asked the same
                    item["q"], item["g"] = cut(question(line), QUESTION_CHARS), cut(gold(line), ANSWER_CHARS)
                    item["s"] = str(line.get("subject") or "")
                item["a"][number] = [round(float(line["correct"]), 4), cut(answer(line), ANSWER_CHARS)]
    return shown
