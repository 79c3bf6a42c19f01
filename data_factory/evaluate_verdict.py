"""The verdict of an evaluation: rates, their exact bounds, distributions and warnings from the measured documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory.config import DataConfig
from data_factory.evaluate_measure import LEVELS

# One row a document and metric that it fails. `start`, `end`: bytes of T2 of the first hit, -1 where the metric has no
# place.
FAILURES = pa.schema([
    ("id", pa.string()),
    ("url", pa.string()),
    ("source", pa.string()),
    ("lang", pa.string()),
    ("metric", pa.string()),
    ("level", pa.int8()),
    ("value", pa.float64()),  # hits for level 1, else the measured value
    ("threshold", pa.float64()),
    ("start", pa.int64()),
    ("end", pa.int64()),
])  # fmt: skip


def ordered(table: pa.Table) -> pa.Table:
    """The documents by id and source, whatever unit they come from."""
    keys = list(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))
    return table.take(pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64()))


def conclude(table: pa.Table, population: int, config: DataConfig, *, scored: bool) -> tuple[dict[str, Any], pa.Table]:
    """(what evaluation.json holds, rows of schema FAILURES) from rows of schema `evaluate_measure.MEASURED` in order.

    `population`: documents that the sample was drawn from. `scored`: whether there were language models at all.
    """
    settings = config.evaluation
    langs = table["lang"].to_pylist()
    perplexity, unscored = _numbers(table["perplexity"]), np.isnan(_numbers(table["perplexity"]))
    failures = table["failures"].combine_chunks()
    owner = np.repeat(np.arange(len(table)), np.asarray(failures.value_lengths()).astype(np.int64))
    flat = failures.flatten()
    metric = np.array(flat.field("metric").to_pylist(), dtype=object)
    caps = _caps(langs, perplexity, settings.max_perplexity_ratio)
    beyond = _beyond(langs, perplexity, caps, set(owner[metric == "perplexity"].tolist()))
    bad = np.zeros(len(table), np.bool_)
    bad[owner] = bad[beyond] = True
    total, failed = len(table), int(bad.sum())
    low, high = bounds(failed, total, settings.confidence)
    rate = failed / total if total else 0.0
    counts = Counter(metric.tolist())
    counts["perplexity"] += len(beyond)
    metrics: dict[str, dict[str, Any]] = {
        name: {"level": level, "failures": counts[name], "measured": True} for name, level in LEVELS.items()
    }
    for name in ("perplexity", "informativeness"):
        metrics[name]["measured"] = not bool(unscored.all())
        metrics[name]["unmeasured_documents"] = int(unscored.sum())
    languages, topics, warnings = _distributions(table, langs, config)
    if total == 0:
        warnings.insert(0, "no document was evaluated: nothing was kept, or no source has the step evaluation")
    elif unscored.any():
        without = sorted({langs[i] for i in np.flatnonzero(unscored).tolist()})
        warnings.append(
            f"perplexity and informativeness were not measured for {', '.join(without)}: "
            f"{'no model' if scored else 'scoring is off'}"
        )
    result = {
        "population": population,
        "evaluated": total,
        "seed": config.seed,
        "unqualified": failed,
        "unqualified_rate": rate,
        "pass_mark": settings.pass_mark,
        "passed": bool(total) and rate <= settings.pass_mark,
        "confidence": settings.confidence,
        "low": low,
        "high": high,
        "sufficient": high <= settings.pass_mark,
        "needed": needed(failed, settings.pass_mark, settings.confidence),
        "needed_without_failure": needed(0, settings.pass_mark, settings.confidence),
        "metrics": metrics,
        "perplexity_caps": {lang: round(value, 4) for lang, value in caps.items()},
        "languages": languages,
        "topics": topics,
        "length": _quantiles(_numbers(table["chars"])),
        "warnings": warnings,
    }
    return result, _failures(
        table, owner, flat, beyond, perplexity, np.array([caps[langs[i]] for i in beyond.tolist()])
    )


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = column.to_numpy().astype(np.float64)
    return numbers


def _caps(langs: list[str], perplexity: npt.NDArray[np.float64], ratio: float) -> dict[str, float]:
    """Language -> cap of perplexity against the sample's median; languages without a score are absent."""
    codes = np.asarray(langs, dtype=object)
    known = ~np.isnan(perplexity)
    return {
        lang: ratio * float(np.median(perplexity[known & (codes == lang)]))
        for lang in sorted(set(codes[known].tolist()))
    }


def _beyond(
    langs: list[str], perplexity: npt.NDArray[np.float64], caps: dict[str, float], failed: set[int]
) -> npt.NDArray[np.int64]:
    """Rows above their language's cap, but those whose perplexity failed already."""
    limits = np.array([caps.get(lang, math.inf) for lang in langs], np.float64)
    rows = np.flatnonzero(perplexity > limits).tolist()  # false for NaN
    return np.array([row for row in rows if row not in failed], np.int64)


def _failures(
    table: pa.Table,
    owner: npt.NDArray[np.int64],
    flat: pa.StructArray,
    beyond: npt.NDArray[np.int64],
    perplexity: npt.NDArray[np.float64],
    caps: npt.NDArray[np.float64],
) -> pa.Table:
    """One row a document and metric; the perplexities against the median come last of a document's."""
    none = np.full(len(beyond), -1, np.int64)
    added = {
        "metric": pa.array(["perplexity"] * len(beyond), pa.string()),
        "value": pa.array(perplexity[beyond], pa.float64()),
        "threshold": pa.array(caps, pa.float64()),
        "start": pa.array(none),
        "end": pa.array(none),
    }
    order = np.argsort(np.concatenate([owner, beyond]), kind="stable")
    documents = pa.array(np.concatenate([owner, beyond])[order])
    columns = {
        name: pa.concat_arrays([flat.field(name), column]).take(pa.array(order)) for name, column in added.items()
    }
    columns |= {name: table[name].take(documents) for name in ("id", "url", "source", "lang")}
    columns["level"] = pa.array([LEVELS[name] for name in columns["metric"].to_pylist()], pa.int8())
    return pa.table([columns[name] for name in FAILURES.names], schema=FAILURES)


# ---- exact bounds


def bounds(failed: int, total: int, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson bounds of a rate, two-sided; (0, 1) for no observation."""
    if total == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 1 - _upper(total - failed, total, tail) if failed else 0.0
    high = _upper(failed, total, tail) if failed < total else 1.0
    return round(low, 12), round(high, 12)


def needed(failed: int, pass_mark: float, confidence: float) -> int | None:
    """Documents that a sample with so many failures needs so that its upper bound meets the pass mark; None when none
    can."""
    if pass_mark <= 0:
        return None
    if pass_mark >= 1:
        return max(1, failed)
    tail = (1 - confidence) / 2
    enough = failed + 1
    while at_most(failed, enough, pass_mark) > tail:
        enough *= 2
    short = max(failed, enough // 2)
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (middle, enough) if at_most(failed, middle, pass_mark) > tail else (short, middle)
    return enough


def _upper(failed: int, total: int, tail: float) -> float:
    """The rate at which `failed` or fewer of `total` have probability `tail`; failed < total."""
    low, high = failed / total, 1.0
    ways = math.log(math.comb(total, failed))
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if at_most(failed, total, middle, ways) > tail else (low, middle)
    return high


def at_most(failed: int, total: int, rate: float, ways: float | None = None) -> float:
    """Probability of `failed` or fewer of `total` at `rate`, 0 < rate < 1. `ways`: log of the binomial coefficient.

    Summed from the largest count down, each term from the one before, until terms no longer count.
    """
    ways = math.log(math.comb(total, failed)) if ways is None else ways
    odds = (1 - rate) / rate
    term = whole = 1.0
    for i in range(failed, 0, -1):
        term *= i / (total - i + 1) * odds
        whole += term
        if term < 1e-18 * whole and i * odds < total - i + 1:  # from here on terms fall
            break
    return math.exp(min(0.0, ways + failed * math.log(rate) + (total - failed) * math.log1p(-rate) + math.log(whole)))


# ---- distributions


def _distributions(
    table: pa.Table, langs: list[str], config: DataConfig
) -> tuple[dict[str, Any], dict[str, float], list[str]]:
    """Language table, topic shares, and the warnings of the two distribution metrics."""
    settings = config.evaluation
    warnings: list[str] = []
    languages: dict[str, dict[str, Any]] = {}
    codes, detected = np.asarray(langs, dtype=object), np.array(table["detected"].to_pylist(), dtype=object)
    numbers = {name: _numbers(table[name]) for name in ("perplexity", "information")}
    for lang, lang_share in _shares(langs).items():
        own = codes == lang
        # "und": too few letters for an opinion is no contradiction
        other = int((own & (detected != lang) & (detected != "und")).sum()) / int(own.sum())
        languages[lang] = {
            "share": lang_share,
            "documents": int(own.sum()),
            "mismatch": round(other, 6),
            **{name: _quantiles(values[own]) for name, values in numbers.items()},
        }
        if other > settings.max_language_mismatch:
            warnings.append(f"language_distribution: {other:.1%} of the {lang} documents read as another language")
    for lang in config.language.keep:
        share = float(languages[lang]["share"]) if lang in languages else 0.0
        if langs and share < settings.min_language_share:
            warnings.append(
                f"language_distribution: {lang} is {share:.2%} of the sample, below {settings.min_language_share:.2%}"
            )
    topics = _shares(table["topic"].to_pylist())
    for topic, share in topics.items():
        if topic != "other" and share > settings.max_topic_share:
            warnings.append(f"topic_distribution: {share:.1%} of the sample is about {topic}")
    return languages, topics, warnings


def _shares(values: Iterable[str]) -> dict[str, float]:
    """Share of each value, sorted by name."""
    counts = Counter(values)
    return {name: round(counts[name] / counts.total(), 6) for name in sorted(counts)}


def _quantiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Minimum, deciles 1, 5, 9 and maximum of the numbers that are not NaN; empty when there is none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {}
    points = np.quantile(known, [0, 0.1, 0.5, 0.9, 1], method="lower")
    return {
        name: round(float(value), 6) for name, value in zip(("min", "p10", "p50", "p90", "max"), points, strict=True)
    }
