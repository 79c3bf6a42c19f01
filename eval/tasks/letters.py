"""Whether a tokenizer sees one letter in the worked examples and where letters are scored.

For LLaMA's tokenizer "A" and " A" end in different tokens. A prompt that shows one and scores the other asks the model for a
token that its examples never showed, and costs points that no log tells of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eval.tasks import Subject
from eval.tasks.items import LETTERS
from ziya.errors import UserError


def check_letters(subject: Subject, encode: Callable[[str], Sequence[int]]) -> dict[str, int]:
    """The token of each letter where it is scored, after checking that the shots hold the same tokens.

    `encode` is the model's tokenizer without an end token. A letter that is no token of its own in a shot, one with another token
    than the scored one, or two letters with one token are a UserError: the score would mean nothing.
    """
    context, shots = letter_places(subject)
    scored = {letter: encode(context + end)[-1] for letter, end in zip(LETTERS, subject.letters, strict=True)}
    if len(set(scored.values())) != len(LETTERS):
        raise UserError(
            f"{subject.task}, {subject.name}: the tokenizer gives two of {', '.join(LETTERS)} one token ({scored})"
        )
    whole = list(encode(context))
    for head, letter in shots:
        tokens = list(encode(head))
        if whole[: len(tokens)] != tokens:
            raise UserError(
                f"{subject.task}, {subject.name}: in a worked example the tokenizer joins {letter} to what follows it"
            )
        if tokens[-1] != scored[letter]:
            raise UserError(
                f"{subject.task}, {subject.name}: {letter} is token {tokens[-1]} in a worked example and {scored[letter]} where it "
                "is scored: text and target_delimiter of the prompt must join alike"
            )
    return scored


def letter_places(subject: Subject) -> tuple[str, list[tuple[str, str]]]:
    """The first item's context, and of each worked example the context up to and with its letter."""
    from lm_eval.api.task import ConfigurableTask

    task: Any = ConfigurableTask(config=dict(subject.config))
    task.set_fewshot_seed(1234)  # the evaluator's default
    number = subject.config["num_fewshot"]
    context = task.fewshot_context(task.eval_docs[0], number)
    places = []
    start = 0
    for doc in task.sampler.sample(n=number) if number else []:
        choices = task.doc_to_choice(doc)
        target = choices[task.doc_to_target(doc)]
        shown = task.doc_to_text(doc) + task.config.target_delimiter + target
        start = context.index(shown, start) + len(shown)
        places.append((context[:start], target))
    return context, places
