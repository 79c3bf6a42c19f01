"""GSM8K's final number: strict (a stated answer) and flexible (the last number), both after the cut at the next question."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from eval.tasks.scoring import batch_filter, cut

VERSION = 1
# a minus behind a digit or a bracket is a subtraction, not a sign; \d knows the digits of every script
NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?")
STATED = re.compile(
    r"(?:####|answer is|answer:|答案是|答案为|答案：)\s*[:：]?\s*\\?[$¥￥]?\s*(?=[-\d.])", re.IGNORECASE
)


def numbers(text: str) -> list[Decimal]:
    """Every number of a text; thousands commas belong to it."""
    return [
        Decimal(found.replace(",", ""))
        for match in NUMBER.finditer(text)
        if any(map(str.isdecimal, found := match.group()))
    ]


def flexible(text: str) -> Decimal | None:
    """The last number of the text."""
    found = numbers(text)
    return found[-1] if found else None


def strict(text: str) -> Decimal | None:
    """The number behind the first "The answer is" (or ####, or its Chinese kin), none without such words."""
    stated = STATED.search(text)
    found = numbers(text[stated.end() :].split("\n", maxsplit=1)[0]) if stated else []
    return found[0] if found else None


def correct(predicted: Decimal | None, gold: str) -> bool:
    """Whether the number equals the gold answer in value: 18, 18.0 and 18.00 are one number."""
    return predicted is not None and predicted == numbers(gold)[-1]


def filters(until: Sequence[str]) -> list[dict[str, Any]]:
    """The harness filters `strict` and `flexible`: each response becomes its number as text, "" where there is none."""

    def reader(read: Callable[[str], Decimal | None]) -> Callable[[list[str], Sequence[dict[str, Any]]], list[str]]:
        def score(responses: list[str], docs: Sequence[dict[str, Any]]) -> list[str]:
            found = [read(cut(response, until)) for response in responses]
            return ["" if number is None else str(number) for number in found]

        return score

    return [batch_filter("strict", reader(strict)), batch_filter("flexible", reader(flexible))]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The harness's scorer of one filtered response."""
    predicted = Decimal(results[0]) if results[0] else None
    return {"exact_match": float(correct(predicted, doc["answer"]))}
