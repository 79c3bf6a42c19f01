"""Prompts that fit the model: worked examples are left out, oldest first and whole, until a question's prompt fits.

Rule: a prompt with its longest answer must fit into the model's context. If it does not, the first example is left out, then
the second, and so on; the question itself is never touched here. A question that is too long even alone loses its
beginning, as in the harness. `FittingTask.shortened` tells both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs

from eval.model import MOST_TOKENS, PrefixLM


@dataclass
class Shortened:
    """What was left out of a subject's prompts; `shots[i]` belongs to item i."""

    shots: list[int] = field(default_factory=list)
    full: int = 0  # shots of a whole prompt
    cut: int = 0  # items whose own text was cut
    room: int | None = None  # tokens that may be generated, where the task asked for more

    def report(self) -> dict[str, int]:
        """Counts for the records; empty when every prompt is whole."""
        fewer = [count for count in self.shots if count < self.full]
        found = {"items_with_fewer_shots": len(fewer), "fewest_shots": min(fewer), "shots": self.full} if fewer else {}
        if self.cut:
            found["items_cut"] = self.cut
        if self.room is not None:
            found["generated_at_most"] = self.room
        return found


class FittingTask(ConfigurableTask):  # type: ignore[misc]
    """A harness task that knows the model's context length."""

    def __init__(self, config: dict[str, Any], model: PrefixLM) -> None:
        super().__init__(config=dict(config))
        self._model = model
        self._sampler = self.sampler.sample if hasattr(self, "sampler") else None
        self._shown: list[Any] = []  # the examples of the prompt at work
        self._only: list[Any] | None = None
        if self._sampler is not None:
            self.sampler.sample = self._sample
        self.shortened = Shortened()

    def _sample(self, *arguments: Any, **options: Any) -> list[Any]:
        if self._only is not None:
            return self._only
        assert self._sampler is not None
        self._shown = list(self._sampler(*arguments, **options))
        return self._shown

    def build_all_requests(self, **options: Any) -> None:
        """As in the harness; what is left out is counted anew."""
        self.shortened = Shortened(full=self.config.num_fewshot or 0)
        if self.OUTPUT_TYPE == "generate_until":
            asked = self._asked()
            if self._model.room(asked) < asked:
                self.shortened.room = self._model.room(asked)
        super().build_all_requests(**options)

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **options: Any) -> Any:
        """The harness's prompt with as many of its examples as fit, the newest ones."""
        build: Callable[..., Any] = super().fewshot_context
        text = build(doc, num_fewshot, **options)
        shots = num_fewshot
        if isinstance(text, str):
            shown = self._shown
            fits = self._fits(text, doc)
            while not fits and shots:
                shots -= 1
                self._only = shown[num_fewshot - shots :]
                try:
                    text = build(doc, shots, **options)
                finally:
                    self._only = None
                fits = self._fits(text, doc)
            self.shortened.cut += not fits
        self.shortened.shots.append(shots)
        return text

    def _asked(self) -> int:
        return int(normalize_gen_kwargs(self.config.generation_kwargs or {}, MOST_TOKENS)["max_gen_toks"])

    def _fits(self, text: str, doc: dict[str, Any]) -> bool:
        model = self._model
        if self.OUTPUT_TYPE == "generate_until":
            room = model.max_length - model.room(self._asked())
            return _surely_short(text, room) or len(model.tok_encode(text)) <= room
        if self.OUTPUT_TYPE == "multiple_choice":
            answers = [f"{self.config.target_delimiter}{choice}" for choice in self.doc_to_choice(doc)]
        elif self.OUTPUT_TYPE == "loglikelihood":
            answers = [str(self.doc_to_target(doc))]
        else:
            return True
        room = model.max_length + 1  # the last token of an answer is predicted, not read
        longest = max(answers, key=len)
        if _surely_short(text + longest, room):
            return True
        return max(sum(map(len, model.pair(text, answer))) for answer in answers) <= room


def _surely_short(text: str, room: int) -> bool:
    """Without encoding: a token is at least a byte, and a BOS and a leading space may be added."""
    return len(text.encode()) + 2 <= room
