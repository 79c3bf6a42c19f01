"""Sample lines of all models -> the page's items: each question once, with every model's answer beside the others.

The page holds whole texts, so it holds a part of a large run only (`ITEMS`), spread evenly over tasks and over each task's
lines; the page says so, and `samples/` has all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from eval import statistics
from ziya.files import digest

ITEMS = 5000
QUESTION_CHARS, ANSWER_CHARS = 1500, 400
LETTERS = "ABCDEFGHIJ"

Lines = Mapping[str, Mapping[str, list[dict[str, Any]]]]


def cut(text: str, limit: int) -> str:
    """At most `limit` characters; a cut is visible."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def asked(doc: Mapping[str, Any]) -> str:
    """The question's own text in a harness document, "" when no field is known to hold it."""
    texts = (doc.get(name) for name in ("question", "Question", "problem", "prompt", "text"))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def options(doc: Mapping[str, Any]) -> list[str]:
    """The options of a harness document, "A. ..." each."""
    choices = doc.get("choices")
    found = dict(zip(LETTERS, choices, strict=False)) if isinstance(choices, list) else doc
    return [f"{letter}. {found[letter]}" for letter in "ABCD" if isinstance(found.get(letter), str)]


def item_key(text: str) -> str:
    """What names an item by its whole text, question and all options, whatever fields its task keeps them in."""
    return digest(" ".join(text.split()).encode(errors="surrogatepass"))


def slim(line: Mapping[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """What statistics, page and contamination need of a line: its prompt may be ten thousand characters, and there are many.

    `texts` shares equal strings between lines: every model is asked the same.
    """
    given = line.get("doc")
    doc: Mapping[str, Any] = given if isinstance(given, dict) else {}
    kept = {name: line[name] for name in ("correct", "sample_hash", "subject", "category", "task") if name in line}
    kept |= {"item": item_key("\n".join([asked(doc), *options(doc)])), "q": cut(question(line), QUESTION_CHARS)}
    kept |= {"g": cut(_first(line.get("target")), ANSWER_CHARS), "said": cut(answer(line), ANSWER_CHARS)}
    return {name: texts.setdefault(value, value) if isinstance(value, str) else value for name, value in kept.items()}


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
        said = _first(filtered)
    output = _first(raw)
    return said if not output or output.strip() == said.strip() else f"{said}\n--- output ---\n{output}"


def _first(value: Any) -> str:
    while isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def build(samples: Lines, models: list[str], limit: int = ITEMS) -> tuple[list[dict[str, Any]], int]:
    """(items of the page, how many there are in all).

    `samples`: lines that `slim` made.
    An item is `{t: task, s: subject, q: question, g: gold answer, a: [per model: null or [correct, answer]]}`.
    """
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for number, model in enumerate(models):
        for task, lines in samples.get(model, {}).items():
            seen: Counter[str] = Counter()
            for line in lines:
                name = str(line["sample_hash"])
                key = (task, name, seen[name])
                seen[name] += 1
                item = found.setdefault(key, {"task": task, "line": line, "answers": [None] * len(models)})
                item["answers"][number] = line
    tasks = statistics.task_order({task for task, _, _ in found})
    share = min(1.0, limit / max(len(found), 1))
    shown = []
    for task in tasks:
        own = [item for (name, _, _), item in found.items() if name == task]
        count = len(own) if share == 1 else max(1, int(len(own) * share))
        shown += [own[place * len(own) // count] for place in range(count)]
    return [_item(item) for item in shown], len(found)


def _item(item: dict[str, Any]) -> dict[str, Any]:
    line = item["line"]
    answers = [
        None if own is None else [round(float(own["correct"]), 4), own.get("said", "")] for own in item["answers"]
    ]
    return {
        "t": item["task"], "s": str(line.get("subject") or ""), "q": line.get("q", ""), "g": line.get("g", ""),
        "a": answers,
    }  # fmt: skip
