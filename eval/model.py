"""The harness's model: requests in text -> token rows -> answers, with shared prefixes and stored answers.

Tokens, truncation and stop strings are those of the harness's own Hugging Face model, so answers equal its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.forward import Forward, Row

LENGTH_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")
NO_LENGTH, UNSET = 2048, 10**20
MOST_TOKENS = 256  # generated where a task does not say, as in the harness
BLOCK = 128  # generated answers that are stored together: what a kill may cost, and what one process takes at a time


class Answers(Protocol):
    """Where answers of a subject's requests are kept between runs."""

    def find(self, subject: str, kind: str, requests: Sequence[Any]) -> list[Any] | None:
        """The stored answers, in the requests' order."""

    def store(self, subject: str, kind: str, requests: Sequence[Any], answers: list[Any]) -> None:
        """Keep them."""


def context_length(config: Any, tokenizer: Any) -> int:
    """Longest row of the model: by its config, else by its tokenizer, else 2048 (the harness's order)."""
    config = getattr(config, "text_config", None) or config
    for name in LENGTH_NAMES:
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < UNSET else NO_LENGTH


class PrefixLM(TemplateLM):  # type: ignore[misc]
    """An `lm_eval` model over a causal model of transformers.

    `load` gives the Forward and is called when an answer is missing, not before. `answers` keeps what was answered, subject by
    subject. `advance` is told how many requests were answered.
    """

    backend = "causal"

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        load: Callable[[], Forward],
        *,
        max_length: int | None = None,
        end_ids: Iterable[int] = (),
        answers: Answers | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.config = tokenizer, config
        self.max_length = max_length or context_length(config, tokenizer)
        self.answers, self.advance = answers, advance
        self._load = load
        self._forward: Forward | None = None
        self._end_ids = {*end_ids, self.eot_token_id} - {None}
        self._encoded: dict[str, list[int]] = {}

    @property
    def forward(self) -> Forward:
        """The model, loaded."""
        if self._forward is None:
            self._forward = self._load()
        return self._forward

    @property
    def processed(self) -> int:
        """Tokens run so far."""
        return 0 if self._forward is None else self._forward.processed

    # -- tokens ------------------------------------------------------------------------------------------------------
    @property
    def eot_token_id(self) -> Any:
        """The end of a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> Any:
        """What an empty context is replaced with."""
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a text that already begins with the BOS token gets no second one."""
        if add_special_tokens is None and string in self._encoded:
            return self._encoded[string]
        if add_special_tokens is None:
            add_special_tokens = not self._begins(string)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _begins(self, string: str) -> bool:
        return string.startswith(self.tokenizer.decode(self.prefix_token_id))

    def own_tokens(self, text: str) -> list[int]:
        """The tokens of a text alone, to be scored behind the prefix token: one that the tokenizer adds is not among them."""
        tokens = self.tok_encode(text, add_special_tokens=False)
        # Some tokenizers put theirs in front whatever they are told; a text that spells it keeps its own.
        added = tokens[:1] == [self.prefix_token_id] and not self._begins(text)
        return tokens[1:] if added else tokens

    def encode_all(self, strings: Iterable[str]) -> None:
        """Encode many texts in one call and remember them until `forget`."""
        new = list(dict.fromkeys(string for string in strings if string not in self._encoded))
        for special in (True, False):
            some = [string for string in new if self._begins(string) is not special]
            if some:
                ids = self.tokenizer(some, add_special_tokens=special)["input_ids"]
                self._encoded.update(zip(some, ids, strict=True))

    def forget(self) -> None:
        """Drop what `encode_all` remembers."""
        self._encoded.clear()

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """(tokens of the context, tokens of the continuation), cut where the harness cuts."""
        if context:
            first, second = self._encode_pair(context, continuation)
            return first, second
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        if tokens[0] == self.prefix_token_id:
            return tokens[:1], tokens[1:]
        return [self.prefix_token_id], tokens

    # -- the harness's three questions -------------------------------------------------------------------------------
    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability of the continuation behind the context, whether it is the argmax) of every request."""
        return self._by_subject(
            requests, "loglikelihood", self._loglikelihood, lambda answer: (float(answer[0]), bool(answer[1]))
        )

    def _loglikelihood(self, requests: list[Any]) -> list[Any]:
        pairs = [request.args for request in requests]
        # What _encode_pair asks for: both sides of a border that spaces were moved over.
        self.encode_all(
            text for context, rest in pairs if context for text in (context.rstrip() or context, context + rest)
        )
        tokens = [(None, *self.pair(context, continuation)) for context, continuation in pairs]
        self.forget()
        return self._loglikelihood_tokens(tokens)

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> list[Any]:
        rows: dict[tuple[int, ...], Row] = {}
        for number, (_, context, continuation) in enumerate(requests):
            tokens = [*context, *continuation][-(self.max_length + 1) :][:-1]
            row = rows.setdefault(tuple(tokens), Row(tokens, []))
            row.continuations.append((number, continuation))
        found = self.forward.score(list(rows.values()), self.advance)
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts behind the prefix token, in disjoint windows of the model's length."""
        return self._by_subject(requests, "loglikelihood_rolling", self._rolling, float)

    def _rolling(self, requests: list[Any]) -> list[float]:
        rows: list[Row] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.own_tokens(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                rows.append(Row([*context, *continuation][:-1], [(len(rows), continuation)]))
                owners.append(number)
        found = self.forward.score(rows)
        totals = [0.0] * len(requests)
        for window, owner in enumerate(owners):
            totals[owner] += found[window][0]
        self.advance(len(requests))
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of every context, up to its first stop string or the end of the text."""
        return self._by_subject(requests, "generate_until", self._generate, str)

    def room(self, asked: int) -> int:
        """Tokens that may be generated when a task asks for so many: never more than half of the model's length."""
        return min(asked, self.max_length // 2)

    def _generate(self, requests: list[Any]) -> list[str]:
        texts = [""] * len(requests)
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        self.encode_all(request.args[0] for request in requests)
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        for numbers in kinds.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1], MOST_TOKENS)
            if options["do_sample"]:
                raise ValueError(f"a task asks for sampling ({requests[numbers[0]].args[1]}): answers here are greedy")
            stops = handle_stop_sequences(options["until"], eos=end)
            most = self.room(options["max_gen_toks"])
            prompts = [self.tok_encode(requests[number].args[0])[-(self.max_length - most) :] for number in numbers]
            tokens = self.forward.greedy(prompts, most, self._ends(stops), self.advance)
            for number, generated in zip(numbers, tokens, strict=True):
                text = self.tokenizer.decode(generated, skip_special_tokens=True)
                texts[number] = postprocess_generated_text(generation=text, stop=stops, think_end_token=None)
        self.forget()
        return texts

    def _ends(self, stops: Sequence[str]) -> Callable[[list[int]], bool]:
        # A stop string of n bytes lies within the last n tokens, however they cut it; two more for halves at both ends.
        window = max((len(stop.encode()) for stop in stops), default=0) + 2

        def ends(tokens: list[int]) -> bool:
            if tokens[-1] in self._end_ids:
                return True
            text = self.tokenizer.decode(tokens[-window:])
            return any(stop in text for stop in stops if stop)

        return ends

    def _by_subject(
        self, requests: list[Any], kind: str, run: Callable[[list[Any]], list[Any]], restore: Callable[[Any], Any]
    ) -> list[Any]:
        """Answers of all requests, a subject (the request's task) or a block of it at a time: stored ones are read, new ones stored."""
        found: list[Any] = [None] * len(requests)
        for subject, numbers in portions(requests, kind):
            some = [requests[number] for number in numbers]
            answers = self.answers.find(subject, kind, some) if self.answers is not None else None
            if answers is None:
                answers = run(some)
                if self.answers is not None:
                    self.answers.store(subject, kind, some, answers)
            else:
                self.advance(len(some))
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = restore(answer)
        return found


def portions(requests: Sequence[Any], kind: str) -> list[tuple[str, list[int]]]:
    """(subject, numbers of requests that are answered and stored together), subjects in the order of their coming."""
    subjects: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        subjects.setdefault(request.task_name or "", []).append(number)
    found = []
    for subject, numbers in subjects.items():
        size = BLOCK if kind == "generate_until" else len(numbers)
        found += [(subject, numbers[start : start + size]) for start in range(0, len(numbers), size)]
    return found
