"""Bits per byte on held-out documents, by domain: what a model has learned and what it has forgotten, without any benchmark.

Bits per byte = -log2 p(document) / UTF-8 bytes, summed over a domain's documents before dividing: it compares models with different
tokenizers, which perplexity per token does not. Every token counts once; the first is predicted from the beginning-of-text token.

Long documents are **rolled**: windows of the model's length, each `stride` tokens after the one before; a window scores the
tokens that no earlier window scored and sees those before them. `stride` = window length is the harness' `loglikelihood_rolling`
(disjoint windows, cheapest, little context behind every border); half a window is the default here.

Intervals: 95 % of a seeded bootstrap over documents. A change against the base is paired by document: "learned" or "forgotten"
when its interval leaves 0 out, else "within noise"; one test a domain and model, not adjusted for their number.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from eval.statistics import NOISE, Interval, percentiles
from ziya.errors import UserError
from ziya.files import digest

F64 = npt.NDArray[np.float64]

DRAWS = 2000
ALL = "(all)"

# Natural log-probability of each text as a whole; harness models give it by `harness_scorer`.
Scorer = Callable[[Sequence[str]], Sequence[float]]
# Summed natural log-probability of `targets` after `context`, for each (context, targets) of token ids.
WindowScorer = Callable[[Sequence[tuple[list[int], list[int]]]], Sequence[float]]


@dataclass(frozen=True)
class Document:
    """A held-out text with its domain."""

    text: str
    domain: str

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode(errors="replace"))


def read_documents(path: Path, limit: int | None = None) -> list[Document]:
    """Documents of a JSONL file (also .gz): `text`, and `domain`, else `lang`, else none. UserError names a broken line."""
    if not path.is_file():
        raise UserError(f"--ppl {path}: no such file; give a JSONL file with text and, if you have it, domain")
    documents: list[Document] = []
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if limit is not None and len(documents) >= limit:
                    break
                if not line.strip():
                    continue
                value = orjson.loads(line)
                if not isinstance(value, dict) or not isinstance(value.get("text"), str):
                    raise UserError(f"--ppl {path}, line {number}: no text; every line needs a field text")
                if value["text"]:
                    documents.append(Document(value["text"], str(value.get("domain") or value.get("lang") or ALL)))
    except (orjson.JSONDecodeError, OSError, EOFError) as error:
        raise UserError(f"--ppl {path} cannot be read ({error}): it must be JSONL") from error
    if not documents:
        raise UserError(f"--ppl {path} holds no text")
    return documents


def windows(tokens: Sequence[int], prefix: int, length: int, stride: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, targets) of rolled windows: all tokens are targets once; context and targets fit `length` + 1 ids together.

    A model of `length` positions reads context + targets without the last id and predicts the targets. `prefix` stands before the
    first token.
    """
    if not 1 <= stride <= length:
        raise UserError(f"the stride of --ppl is {stride}: it must lie between 1 and the window's {length} tokens")
    whole = [prefix, *tokens]
    done = 1  # ids that were scored or are the prefix
    while done < len(whole):
        end = min(done + (length if done == 1 else stride), len(whole))
        begin = max(0, end - length - 1)
        yield whole[begin:done], whole[done:end]
        done = end


def rolling(
    score: WindowScorer, encode: Callable[[str], list[int]], prefix: int, length: int, stride: int | None = None, batch: int = 16
) -> Scorer:
    """A scorer of whole texts from a scorer of windows; `stride` defaults to half of `length`."""
    step = stride if stride is not None else max(1, length // 2)

    def scorer(texts: Sequence[str]) -> list[float]:
        pairs = [(i, window) for i, text in enumerate(texts) for window in windows(encode(text), prefix, length, step)]
        pairs.sort(key=lambda pair: len(pair[1][0]) + len(pair[1][1]), reverse=True)  # alike lengths share a batch
        sums = [0.0] * len(texts)
        for first in range(0, len(pairs), batch):
            part = pairs[first : first + batch]
            for (i, _), value in zip(part, score([window for _, window in part]), strict=True):
                sums[i] += float(value)
        return sums

    return scorer


def harness_scorer(model: Any) -> Scorer:
    """A scorer from an lm-evaluation-harness model: its `loglikelihood_rolling` (disjoint windows).

    `HFLM` needs `add_bos_token=False`: by default it also scores the beginning-of-text token that the tokenizer adds.
    """
    from lm_eval.api.instance import Instance

    def scorer(texts: Sequence[str]) -> list[float]:
        requests = [
            Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=number)
            for number, text in enumerate(texts)
        ]
        return [float(value) for value in model.loglikelihood_rolling(requests, disable_tqdm=True)]

    return scorer


def folder_scorer(folder: Path, device: str = "cpu", length: int | None = None, stride: int | None = None, batch: int = 8) -> Scorer:
    """A scorer from a Hugging Face model folder; log-probabilities are summed in float64 from FP32 logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", local_files_only=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no model folder ({' '.join(str(error).split())[:200]})") from error
    longest = length or int(model.config.max_position_embeddings)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise UserError(f"{folder}: the tokenizer has neither a beginning-of-text nor an end-of-text token to start from")

    def score(parts: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        size = max(len(context) + len(targets) for context, targets in parts) - 1
        rows = torch.zeros((len(parts), size), dtype=torch.long)
        for row, (context, targets) in zip(rows, parts, strict=True):  # right padding: causal attention never sees it
            ids = [*context, *targets[:-1]]
            row[: len(ids)] = torch.tensor(ids)
        with torch.inference_mode():
            logits = model(rows.to(device)).logits
            sums = []
            for row, (context, targets) in zip(logits, parts, strict=True):
                own = row[len(context) - 1 : len(context) - 1 + len(targets)].float()
                chosen = own.gather(1, torch.tensor(targets, device=device)[:, None])[:, 0]
                sums.append(float((chosen - own.logsumexp(1)).double().sum()))
        return sums

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    return rolling(score, encode, int(prefix), longest, stride, batch)


def domains(documents: Sequence[Document]) -> list[tuple[str, list[int]]]:
    """(domain, its documents' numbers), by name; with several domains all together come first."""
    found: dict[str, list[int]] = {}
    for number, document in enumerate(documents):
        found.setdefault(document.domain, []).append(number)
    listed = sorted(found.items())
    return listed if len(listed) == 1 else [(ALL, list(range(len(documents)))), *listed]


def measure(score: Scorer, documents: Sequence[Document]) -> list[float]:
    """Bits of each document under a model, in the given order. UserError for a document without a finite probability."""
    bits = [-float(value) / math.log(2) for value in score([document.text for document in documents])]
    for number, value in enumerate(bits):
        if not math.isfinite(value):
            raise UserError(f"document {number + 1} of --ppl has a log-probability of {-value}: the model's weights are damaged")
    return bits


def _bootstrap(numerators: F64, sizes: F64, seed: str) -> F64:
    """Draws of sum(numerators) / sum(sizes) over documents drawn with replacement, float64 [DRAWS]."""
    rng = np.random.default_rng(int(digest(seed.encode())[:16], 16))
    counts = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=DRAWS)
    return np.asarray((counts @ numerators) / (counts @ sizes))


def table(documents: Sequence[Document], bits: dict[str, Sequence[float]], base: str | None, seed: int) -> list[dict[str, Any]]:
    """Rows of perplexity.json, domain by domain, models in the order of `bits` (model -> bits of each document).

    `{model, domain, documents, bytes, bits_per_byte, low, high, base, change, change_low, change_high, verdict}`; `change` is
    bits per byte minus the base's (below 0: learned, above: forgotten), None for the base itself.
    """
    sizes = np.array([document.size for document in documents], np.float64)
    rows = []
    for domain, numbers in domains(documents):
        own = sizes[numbers]
        for model, values in bits.items():
            found = np.asarray(values, np.float64)[numbers]
            ends = percentiles(_bootstrap(found, own, f"{seed} {domain} {model}"))
            row: dict[str, Any] = {
                "model": model, "domain": domain, "documents": len(numbers), "bytes": int(own.sum()),
                "bits_per_byte": float(found.sum() / own.sum()), "low": ends.low, "high": ends.high, "base": None, "change": None,
                "change_low": None, "change_high": None, "verdict": None,
            }  # fmt: skip
            if base is not None and base in bits and model != base:
                other = np.asarray(bits[base], np.float64)[numbers]
                moved = percentiles(_bootstrap(found - other, own, f"{seed} {domain} {base} {model}"))
                row |= {
                    "base": float(other.sum() / own.sum()), "change": float((found - other).sum() / own.sum()),
                    "change_low": moved.low, "change_high": moved.high, "verdict": _verdict(moved, len(numbers)),
                }  # fmt: skip
            rows.append(row)
    return rows


def _verdict(change: Interval, documents: int) -> str:
    if documents < 2 or change.low <= 0 <= change.high:  # one document says nothing about others
        return NOISE
    return "learned" if change.high < 0 else "forgotten"
