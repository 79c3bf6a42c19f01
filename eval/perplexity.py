"""Bits per byte on held-out documents, by domain: what a model has learned and what it has forgotten, without any benchmark.

Bits per byte = -log2 p(document) / UTF-8 bytes, summed over a domain's documents before dividing: it compares models with different
tokenizers, which perplexity per token does not. Every token of a document counts once; the first is predicted from the
beginning-of-text token, which itself is not scored. Long documents are cut into disjoint windows of the model's length.

Intervals: 95 % of a seeded bootstrap over documents. A change against the base is paired by document: "learned" or "forgotten"
when its interval leaves 0 out, else "within noise"; one test a domain and model, not adjusted for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.statistics import NOISE, Interval, percentiles
from eval.text_files import json_lines
from ziya.errors import UserError
from ziya.files import digest

F64 = npt.NDArray[np.float64]

DRAWS = 2000
ALL = "(all)"

# Natural log-probability of each text as a whole.
Scorer = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Document:
    """A held-out text with its domain."""

    text: str
    domain: str

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode(errors="replace"))


def read_documents(path: Path) -> list[Document]:
    """Documents of a JSONL file (also .gz): `text`, and `domain`, else `lang`, else none. UserError names a broken line."""
    if not path.is_file():
        raise UserError(f"--ppl {path}: no such file; give a JSONL file with text and, if you have it, domain")
    documents: list[Document] = []
    for number, value, _ in json_lines(path):
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise UserError(f"--ppl {path}, line {number}: no text; every line needs a field text")
        if value["text"]:
            documents.append(Document(value["text"], str(value.get("domain") or value.get("lang") or ALL)))
    if not documents:
        raise UserError(f"--ppl {path} holds no text")
    return documents


def harness_scorer(model: Any) -> Scorer:
    """A scorer from an lm-evaluation-harness model: its `loglikelihood_rolling`. `HFLM` needs `add_bos_token=False`: by default
    it also scores the beginning-of-text token that the tokenizer adds.
    """
    from lm_eval.api.instance import Instance

    def scorer(texts: Sequence[str]) -> list[float]:
        requests = [
            Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=number)
            for number, text in enumerate(texts)
        ]
        return [float(value) for value in model.loglikelihood_rolling(requests, disable_tqdm=True)]

    return scorer


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
