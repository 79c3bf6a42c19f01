"""DE: a seeded sample of the kept documents, ten automatic metrics on T2, one verdict (paper section DE).

| metric | level | what fails |
|---|---|---|
| privacy, toxic, advert, web_remnant | 1 | one hit fails the document |
| perplexity, informativeness, readability | 2 | a threshold, a setting, fails the document |
| document_length | 3 | a threshold fails the document |
| language_distribution, topic_distribution | 3 | warn for the run, no document fails |

Unqualified rate = documents that fail any metric / documents evaluated; `passed` compares it with the pass mark,
`sufficient` compares the upper Clopper-Pearson bound. What the paper leaves open and we define:
- perplexity: of T2 (that of T1 where nothing was cut: the texts are the same), against the median of the sample in
  the same language (and an absolute cap when set);
- informativeness: bits per character of the normalised text under the language model, times the share of distinct
  12-byte windows: templates are cheap for the model, repetition is not distinct, both say little per character;
- readability: share of characters in garbled sequences, endless words and sentences
  (`evaluate_measure.Texts.unreadable`);
- language distribution: share of documents that language identification of T2 calls another language than the stored
  one;
- topic distribution: topic = word list with the most distinct words; the largest share may not exceed a setting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from scipy.special import betaincinv

from data_factory.config import DataConfig, Evaluation
from data_factory.documents import read_batches, read_table, table_writer
from data_factory.evaluate_measure import Checks, Row, measure
from data_factory.perplexity import Scorer
from ziya.files import write_json

BATCH_ROWS, BATCH_BYTES = 512, 16 << 20  # measured together
_COLUMNS = ["id", "url", "source", "text", "lang", "protected", "perplexity", "task"]
LEVELS = {
    "privacy": 1,
    "toxic": 1,
    "advert": 1,
    "web_remnant": 1,
    "perplexity": 2,
    "informativeness": 2,
    "readability": 2,
    "document_length": 3,
    "language_distribution": 3,
    "topic_distribution": 3,
}

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


def evaluate(kept_files: Sequence[Path], config: DataConfig, out: Path, scorer: Scorer | None) -> dict[str, Any]:
    """Evaluate a sample of the kept documents; writes `evaluation.json` and `failures.parquet` into `out` and returns
    the former.

    `kept_files`: Parquet files of schema `documents.KEPT`. Documents of sources without the step `evaluation` are left
    out. Without a
    `scorer` (or a model of a document's language) perplexity and informativeness are not measured, and the result says
    so.
    """
    settings = config.evaluation
    sources = [source.name for source in config.sources if "evaluation" in source.steps]
    population, wanted = sample(kept_files, sources, settings, config.seed)
    checks = Checks.load(settings)
    rows: list[Row] = []
    for table in _sampled(kept_files, wanted):
        rows += measure(table, config, checks, scorer)
    rows.sort(key=lambda row: (row.identity["id"], row.identity["source"]))
    thresholds = _relative(rows, settings)
    result = _verdict(rows, population, config, scorer, thresholds)
    with table_writer(out / "failures.parquet", FAILURES) as writer:
        for row in rows:
            if row.failures:
                table = [
                    {**row.identity, "metric": m, "level": LEVELS[m], "value": v, "threshold": t, "start": s, "end": e}
                    for m, v, t, s, e in row.failures
                ]
                writer.write(pa.Table.from_pylist(table, FAILURES))
    write_json(out / "evaluation.json", result)
    return result


# ---- sample


def sample(files: Sequence[Path], sources: Sequence[str], settings: Evaluation, seed: int) -> tuple[int, set[str]]:
    """(documents of `sources`, ids of the sample): the max(ceil(share), min_documents) smallest by (hash of seed and
    id, id).

    Memory follows the sample, not the documents.
    """
    population = sum(
        int(np.count_nonzero(batch_mask(table, sources))) for file in files for table in read_batches(file, ["source"])
    )
    size = min(population, max(math.ceil(settings.share * population), settings.min_documents))
    chosen: list[tuple[int, str]] = []
    for file in files:
        for table in read_batches(file, ["id", "source"]):
            ids = table["id"].filter(pa.array(batch_mask(table, sources))).to_pylist()
            chosen += [(xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()), name) for name in ids]
            if len(chosen) > 2 * size + 100_000:
                chosen = sorted(chosen)[:size]
    return population, {name for _, name in sorted(chosen)[:size]}


def batch_mask(table: pa.Table, sources: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which rows come from one of `sources`."""
    wanted = set(sources)
    return np.array([name in wanted for name in table["source"].to_pylist()], np.bool_)


def _sampled(files: Sequence[Path], wanted: set[str]) -> Iterator[pa.Table]:
    """The sampled rows in batches, with the columns `uncut` and `bits_per_char`; row groups without one are not read beyond their ids."""
    pending: list[pa.Table] = []
    for path in files:
        uncut: dict[str, float] | None = None
        with pq.ParquetFile(path, memory_map=False) as file:
            for group in range(file.num_row_groups):
                names = file.read_row_group(group, columns=["id"], use_threads=False)["id"].to_pylist()
                mask = [name in wanted for name in names]
                if any(mask):
                    uncut = _uncut(path) if uncut is None else uncut
                    table = file.read_row_group(group, columns=_COLUMNS, use_threads=False).filter(pa.array(mask))
                    ids = table["id"].to_pylist()
                    table = table.append_column("uncut", pa.array([name in uncut for name in ids], pa.bool_()))
                    known = pa.array([uncut.get(name, math.nan) for name in ids], pa.float32())
                    pending.append(table.append_column("bits_per_char", known))
                    size = sum(part["text"].nbytes for part in pending)
                    if sum(map(len, pending)) >= BATCH_ROWS or size >= BATCH_BYTES:
                        yield pa.concat_tables(pending)
                        pending = []
    if pending:
        yield pa.concat_tables(pending)


def _uncut(kept: Path) -> dict[str, float]:
    """Documents of a unit from which nothing was cut and in which nothing was masked, so that their T2 is T1: id -> bits
    per character as measured on T1 (NaN where that was not measured)."""
    keys, measured = (kept.parent.parent / folder / kept.name for folder in ("keys", "measurements"))
    if not keys.is_file():
        return {}
    table = read_table(keys, ["id", "cut_rules"])
    ids = table["id"].filter(pc.equal(pc.list_value_length(table["cut_rules"]), 0)).to_pylist()
    if not measured.is_file():
        return dict.fromkeys(ids, math.nan)
    columns = read_table(measured, ["id", "bits_per_char"])
    bits = dict(zip(columns["id"].to_pylist(), columns["bits_per_char"].to_pylist(), strict=True))
    return {name: bits.get(name, math.nan) for name in ids}


def _relative(rows: list[Row], settings: Evaluation) -> dict[str, float]:
    """Add the failures against the sample's medians; returns the cap of perplexity per language."""
    caps = {}
    for lang in sorted({row.lang for row in rows}):
        scored = [row for row in rows if row.lang == lang and not math.isnan(row.perplexity)]
        if scored:
            caps[lang] = settings.max_perplexity_ratio * float(np.median([row.perplexity for row in scored]))
        for row in scored:
            if row.perplexity > caps[lang] and not any(failure[0] == "perplexity" for failure in row.failures):
                row.failures.append(("perplexity", row.perplexity, caps[lang], -1, -1))
    return caps


# ---- verdict


def bounds(failed: int, total: int, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson bounds of a rate, two-sided; (0, 1) for no observation."""
    if total == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = float(betaincinv(failed, total - failed + 1, tail)) if failed else 0.0
    high = float(betaincinv(failed + 1, total - failed, 1 - tail)) if failed < total else 1.0
    return round(low, 12), round(high, 12)


def needed(pass_mark: float, confidence: float) -> int | None:
    """Documents that a sample without any failure needs so that its upper bound meets the pass mark; None when none
    can."""
    if pass_mark <= 0:
        return None
    return 1 if pass_mark >= 1 else math.ceil(math.log((1 - confidence) / 2) / math.log1p(-pass_mark))


def _verdict(
    rows: list[Row], population: int, config: DataConfig, scorer: Scorer | None, caps: dict[str, float]
) -> dict[str, Any]:
    settings = config.evaluation
    total = len(rows)
    failed = sum(bool(row.failures) for row in rows)
    low, high = bounds(failed, total, settings.confidence)
    rate = failed / total if total else 0.0
    per_metric = Counter(failure[0] for row in rows for failure in row.failures)
    unscored = sorted({row.lang for row in rows if math.isnan(row.perplexity)})
    metrics: dict[str, dict[str, Any]] = {
        name: {"level": level, "failures": per_metric[name], "measured": True} for name, level in LEVELS.items()
    }
    for name in ("perplexity", "informativeness"):
        metrics[name]["measured"] = any(not math.isnan(row.perplexity) for row in rows)
        metrics[name]["unmeasured_documents"] = sum(math.isnan(row.perplexity) for row in rows)
    languages, warnings = _distributions(rows, config)
    if total == 0:
        warnings.insert(0, "no document was evaluated: nothing was kept, or no source has the step evaluation")
    if unscored and total:
        warnings.append(
            f"perplexity and informativeness were not measured for {', '.join(unscored)}: "
            f"{'no model' if scorer else 'scoring is off'}"
        )
    return {
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
        "needed_without_failure": needed(settings.pass_mark, settings.confidence),
        "metrics": metrics,
        "perplexity_caps": {lang: round(value, 4) for lang, value in caps.items()},
        "languages": languages,
        "topics": _shares(row.topic for row in rows),
        "length": _quantiles([float(row.chars) for row in rows]),
        "warnings": warnings,
    }


def _distributions(rows: list[Row], config: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """Language table and the warnings of the two distribution metrics."""
    settings = config.evaluation
    warnings: list[str] = []
    languages: dict[str, dict[str, Any]] = {}
    for lang, lang_share in _shares(row.lang for row in rows).items():
        own = [row for row in rows if row.lang == lang]
        # "und": too few letters for an opinion is no contradiction
        other = sum(row.detected not in (lang, "und") for row in own) / len(own)
        languages[lang] = {
            "share": lang_share,
            "documents": len(own),
            "mismatch": round(other, 6),
            "perplexity": _quantiles([row.perplexity for row in own]),
            "information": _quantiles([row.information for row in own]),
        }
        if other > settings.max_language_mismatch:
            warnings.append(f"language_distribution: {other:.1%} of the {lang} documents read as another language")
    for lang in config.language.keep:
        share = float(languages[lang]["share"]) if lang in languages else 0.0
        if rows and share < settings.min_language_share:
            warnings.append(
                f"language_distribution: {lang} is {share:.2%} of the sample, below {settings.min_language_share:.2%}"
            )
    for topic, share in _shares(row.topic for row in rows).items():
        if topic != "other" and share > settings.max_topic_share:
            warnings.append(f"topic_distribution: {share:.1%} of the sample is about {topic}")
    return languages, warnings


def _shares(values: Iterator[str]) -> dict[str, float]:
    """Share of each value, sorted by name."""
    counts = Counter(values)
    return {name: round(counts[name] / counts.total(), 6) for name in sorted(counts)}


def _quantiles(values: list[float]) -> dict[str, float]:
    """Minimum, deciles 1, 5, 9 and maximum of the numbers that are not NaN; empty when there is none."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return {}
    points = np.quantile(known, [0, 0.1, 0.5, 0.9, 1], method="lower")
    return {
        name: round(float(value), 6) for name, value in zip(("min", "p10", "p50", "p90", "max"), points, strict=True)
    }
