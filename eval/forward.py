"""Forward passes over token rows: a shared prefix once, rows behind it in batches of similar length, tokens counted."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from eval.caches import keep_rows, prefix_cache, row_cache, shareable
from eval.prefixes import Group, partition
from ziya.errors import UserError
from ziya.progress import log

LOGIT_ROWS = 8192  # positions whose logits over the vocabulary are in memory at once
FEW_ROWS, PADDING = 4, 0.1  # a batch of more rows than FEW_ROWS ends before so large a part of it is padding
SPREAD = 8  # a batch may read so many times batch_tokens keys, shared prefixes counted for every row


@dataclass(frozen=True)
class Row:
    """Input tokens of one row and, for each request that it answers, the continuation that its last positions predict."""

    tokens: list[int]
    continuations: list[tuple[int, list[int]]]  # (number of the request, its tokens)

    @property
    def first(self) -> int:
        """First position whose logits are needed."""
        return len(self.tokens) - max(len(tokens) for _, tokens in self.continuations)


class Forward:
    """A causal model of transformers that scores and continues rows; `processed` counts the tokens it ran, padding included.

    `batch_tokens` bounds the tokens of a batch (rows x longest row behind the prefix, generated ones included). A batch that
    does not fit into the device's memory is run in halves.
    """

    def __init__(self, model: Any, batch_tokens: int, *, share: bool = True) -> None:
        self.model, self.batch_tokens = model, batch_tokens
        self.plain = shareable(model)
        self.share = share and self.plain
        self.device = next(model.parameters()).device
        self.processed = 0
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    # -- rows -> batches ---------------------------------------------------------------------------------------------
    def groups(self, rows: Sequence[list[int]], limits: Sequence[int]) -> list[Group]:
        """Rows by shared prefix; all in one group without a prefix when the model cannot share."""
        if self.share:
            return partition(rows, limits)
        return [Group(0, tuple(range(len(rows))))] if rows else []

    def batches(
        self, group: Group, lengths: Sequence[int], positions: Callable[[int], range] | None = None, extra: int = 0
    ) -> Iterator[list[int]]:
        """Row numbers of a group in batches of falling length. `extra`: positions a row will still grow by; rows of a model
        that cannot share then have one length, because padding would fill its sliding windows.
        """
        order = sorted(group.rows, key=lambda number: (-lengths[number], number))
        batch: list[int] = []
        wanted: set[int] = set()
        filled = 0  # tokens of the batch without padding
        for number in order:
            size = len(batch) + 1
            longest = lengths[batch[0]] if batch else lengths[number]
            own = longest - group.prefix + extra
            more = wanted.union(positions(number)) if positions is not None else wanted
            full = (
                size * own > self.batch_tokens
                or size * (own + group.prefix) > SPREAD * self.batch_tokens
                or size * len(more) > LOGIT_ROWS
                or (
                    len(batch) >= FEW_ROWS
                    and 1 - (filled + lengths[number] - group.prefix) / (size * (longest - group.prefix)) > PADDING
                )
                or (extra and not self.plain and lengths[number] != longest)
            )
            if batch and full:
                yield batch
                batch, filled, more = [], 0, set(positions(number)) if positions is not None else set()
            batch.append(number)
            filled += lengths[number] - group.prefix
            wanted = more
        if batch:
            yield batch

    # -- scoring -----------------------------------------------------------------------------------------------------
    def score(self, rows: Sequence[Row], done: Callable[[int], None] = lambda _: None) -> dict[int, tuple[float, bool]]:
        """Request number -> (sum of FP32 log-probabilities of its continuation, whether each token is the argmax).

        `done` is told how many requests were answered, batch by batch.
        """
        found: dict[int, tuple[float, bool]] = {}
        tokens = [row.tokens for row in rows]
        self._check_ids([*tokens, *(continuation for row in rows for _, continuation in row.continuations)])
        for group in self.groups(tokens, [row.first for row in rows]):
            prefix = self.prefix(tokens[group.rows[0]][: group.prefix])
            for batch in self.batches(
                group, [len(row) for row in tokens], lambda number: range(rows[number].first, len(tokens[number]))
            ):
                answers = self._halving(batch, partial(self._score, rows, prefix, group.prefix))
                found.update(answers)
                done(len(answers))
        return found

    def _score(
        self, every: Sequence[Row], prefix: Any | None, length: int, batch: list[int]
    ) -> dict[int, tuple[float, bool]]:
        rows = [every[number] for number in batch]
        ids = self._padded([row.tokens[length:] for row in rows])
        wanted = sorted({position for row in rows for position in range(row.first, len(row.tokens))})
        slot = {position: number for number, position in enumerate(wanted)}
        keep = torch.tensor([position - length for position in wanted], device=self.device)
        cache = row_cache(self.model, prefix, keep=False) if prefix is not None else None
        logits = self._run(ids, cache, keep)  # [rows, len(wanted), vocabulary]
        # One line a scored token: which row, which position, which token, for which request.
        lines = [
            (number, slot[len(row.tokens) - len(continuation) + offset], token, request)
            for number, row in enumerate(rows)
            for request, continuation in row.continuations
            for offset, token in enumerate(continuation)
        ]
        places = list(dict.fromkeys((number, position) for number, position, _, _ in lines))
        line_of = {place: number for number, place in enumerate(places)}
        row_index, position_index = torch.tensor(places, device=self.device).T
        chosen = logits[row_index, position_index].float()  # [places, vocabulary]
        index = torch.tensor([line_of[number, position] for number, position, _, _ in lines], device=self.device)
        token = torch.tensor([token for _, _, token, _ in lines], device=self.device)
        log_probability = (chosen[index, token] - torch.logsumexp(chosen, dim=-1)[index]).tolist()
        if any(math.isnan(value) for value in log_probability):
            raise UserError(
                "the model's log-probabilities are not numbers: its weights are damaged, or dtype overflows (try bfloat16)"
            )
        greedy = (chosen.argmax(dim=-1)[index] == token).tolist()
        found: dict[int, tuple[float, bool]] = {}
        for (_, _, _, request), value, top in zip(lines, log_probability, greedy, strict=True):
            total, best = found.get(request, (0.0, True))
            found[request] = (total + value, best and top)
        return found

    # -- generation --------------------------------------------------------------------------------------------------
    def greedy(
        self,
        prompts: Sequence[list[int]],
        most: int,
        ends: Callable[[list[int]], bool],
        done: Callable[[int], None] = lambda _: None,
    ) -> list[list[int]]:
        """The argmax continuation of every prompt, until `ends(tokens so far)` or `most` tokens."""
        self._check_ids(prompts)
        found: list[list[int]] = [[] for _ in prompts]
        for group in self.groups(prompts, [len(prompt) - 1 for prompt in prompts]):
            prefix = self.prefix(prompts[group.rows[0]][: group.prefix])
            for batch in self.batches(group, [len(prompt) for prompt in prompts], extra=most):
                run = partial(self._greedy, prompts, prefix, group.prefix, most, ends)
                answers = self._halving(batch, run)
                for number, tokens in answers.items():
                    found[number] = tokens
                done(len(batch))
        return found

    def _greedy(
        self,
        every: Sequence[list[int]],
        prefix: Any | None,
        length: int,
        most: int,
        ends: Callable[[list[int]], bool],
        batch: list[int],
    ) -> dict[int, list[int]]:
        prompts = [every[number] for number in batch]
        # Rows are padded on the right, so a prompt's positions are those it has alone; padding between a prompt and what
        # it generates is masked out for good.
        found: list[list[int]] = [[] for _ in prompts]
        sizes = torch.tensor([len(prompt) - length for prompt in prompts], device=self.device)
        ids = self._padded([prompt[length:] for prompt in prompts])
        columns = torch.arange(ids.shape[1], device=self.device)
        mask = torch.cat(
            [
                torch.ones(len(prompts), length, dtype=torch.long, device=self.device),
                (columns[None] < sizes[:, None]).long(),
            ],
            dim=1,
        )
        cache = row_cache(self.model, prefix, keep=True)
        lasts = sorted({int(size) - 1 for size in sizes})
        logits = self._run(ids, cache, torch.tensor(lasts, device=self.device), mask)
        slots = torch.tensor([lasts.index(int(size) - 1) for size in sizes], device=self.device)
        token = logits[torch.arange(len(prompts), device=self.device), slots].argmax(dim=-1)
        alive = list(range(len(prompts)))
        for step in range(most):
            for number, value in zip(alive, token.tolist(), strict=True):
                found[number].append(value)
            going = [place for place, number in enumerate(alive) if not ends(found[number])]
            if not going or step == most - 1:
                break
            if len(going) < len(alive):  # a finished row costs as much as a living one
                rows = torch.tensor(going, device=self.device)
                keep_rows(cache, rows)
                token, mask, sizes = token[rows], mask[rows], sizes[rows]
                alive = [alive[place] for place in going]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            logits = self._run(token[:, None], cache, torch.zeros(1, dtype=torch.long, device=self.device), mask,
                               positions=(length + sizes + step)[:, None])  # fmt: skip
            token = logits[:, 0].argmax(dim=-1)
        return dict(zip(batch, found, strict=True))

    # -- one forward -------------------------------------------------------------------------------------------------
    def prefix(self, tokens: list[int]) -> Any | None:
        """The filled cache of a prefix, None for an empty one."""
        if not tokens:
            return None
        cache = prefix_cache(self.model)
        self._run(
            torch.tensor([tokens], device=self.device), cache, torch.tensor([len(tokens) - 1], device=self.device)
        )
        return cache

    def _run(
        self,
        ids: torch.Tensor,
        cache: Any | None,
        keep: torch.Tensor,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [rows, len(keep), vocabulary] of the positions `keep` of ids [rows, length], which follow what `cache` holds."""
        self.processed += ids.numel()
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        if mask is not None:
            options["attention_mask"] = mask
        if positions is not None:
            options["position_ids"] = positions
        with torch.inference_mode():
            if self._keeps:
                found: torch.Tensor = self.model(input_ids=ids, logits_to_keep=keep, **options).logits
            else:
                found = self.model(input_ids=ids, **options).logits[:, keep]
        return found

    def _check_ids(self, rows: Iterable[Sequence[int]]) -> None:
        """Refuse tokens that the model does not know: on a GPU the library's own error names nothing."""
        largest, known = max((max(row, default=0) for row in rows), default=0), self.model.get_input_embeddings().num_embeddings
        if largest >= known:
            raise UserError(
                f"the tokenizer gives token {largest}, the model knows {known} tokens: it belongs to another model, copy the model's "
                "own tokenizer files into its folder"
            )

    def _padded(self, rows: list[list[int]]) -> torch.Tensor:
        """[rows, longest], padded on the right: a causal model never looks there, so any token will do."""
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)

    def _halving(self, batch: list[int], run: Callable[[list[int]], dict[int, Any]]) -> dict[int, Any]:
        try:
            return run(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        log(
            f"a batch of {len(batch)} rows does not fit into the device's memory and is run in halves; a smaller batch_tokens is faster"
        )
        half = (len(batch) + 1) // 2
        return {**self._halving(batch[:half], run), **self._halving(batch[half:], run)}
