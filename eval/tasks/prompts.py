"""The wordings of protocol `ziya2`: data in `prompts/<task>.yaml`, verbatim from the source that each names."""

from __future__ import annotations

import functools
from pathlib import Path

from pydantic import Field

from ziya.config import Settings, parse, read_yaml
from ziya.errors import UserError

HERE = Path(__file__).parent / "prompts"


class Example(Settings):
    """A worked example of a generation task."""

    question: str
    solution: str


class Prompt(Settings):
    """One wording. Templates are Jinja over an item's fields; `subject` is its name as the prompt says it.

    A prompt is description, then for each shot text + target_delimiter + answer + fewshot_delimiter, then text; for letter tasks
    the scored continuations are target_delimiter + letter, so that shots and scoring join text and letter alike.
    """

    source: str
    licence: str
    text: str
    description: str = ""
    target_delimiter: str = ""
    fewshot_delimiter: str = "\n\n"
    until: list[str] = Field(default_factory=list)
    max_tokens: int = 0
    examples: list[Example] = Field(default_factory=list)


class Prompts(Settings):
    """A task's wordings: variant 0 is the protocol, the others serve `--prompt-variants`."""

    shots: int
    variants: list[Prompt]
    examples: list[Example] = Field(default_factory=list)


@functools.cache
def prompts(task: str) -> Prompts:
    """The wordings of one task."""
    path = HERE / f"{task}.yaml"
    return parse(Prompts, read_yaml(path), str(path))


def prompt(task: str, variant: int) -> Prompt:
    """One wording with its worked examples; an unknown variant is a UserError."""
    known = prompts(task)
    if not 0 <= variant < len(known.variants):
        raise UserError(f"{task} has no wording {variant}: it has 0 to {len(known.variants) - 1}")
    chosen = known.variants[variant]
    return chosen if chosen.examples else chosen.model_copy(update={"examples": known.examples})
