"""Evaluation of one batch: kernels say which documents may hold a hit, the detectors look at those alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory import evaluate_detectors as detectors
from data_factory import evaluate_kernels as kernels
from data_factory import evaluate_places as places
from data_factory.batches import F32, I32, U8, TextBatch
from data_factory.characters import table as character_table
from data_factory.config import DataConfig, Evaluation
from data_factory.perplexity import Scorer

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
FAILURE = pa.struct([
    ("metric", pa.string()),
    ("value", pa.float64()),
    ("threshold", pa.float64()),
    ("start", pa.int64()),  # bytes of T2 of the first hit, -1 where the metric has no place
    ("end", pa.int64()),
])  # fmt: skip
# What is kept of an evaluated document until the run's medians are known.
MEASURED = pa.schema([
    ("id", pa.string()),
    ("url", pa.string()),
    ("source", pa.string()),
    ("lang", pa.string()),
    ("detected", pa.string()),
    ("topic", pa.string()),
    ("chars", pa.int64()),
    ("perplexity", pa.float32()),
    ("information", pa.float64()),
    ("failures", pa.list_(FAILURE)),
])  # fmt: skip
Found = dict[int, tuple[int, int, int]]  # document -> hits, first byte and end of the first hit


@dataclass(frozen=True)
class Checks:
    """Lexicons and settings of one evaluation."""

    settings: Evaluation
    toxic: detectors.Lexicon
    advert: detectors.Lexicon

    @classmethod
    def load(cls, settings: Evaluation) -> Checks:
        """With the user's own lists; UserError when one cannot be read."""
        return cls(
            settings,
            detectors.lexicon("toxic", settings.toxic_lexicons),
            detectors.lexicon("advert", settings.advert_lexicons),
        )


@dataclass(frozen=True)
class Texts:
    """A batch, its prose (code and formulas blanked, byte for byte), and where its documents may hold a hit.

    `flags`: int64 [n], bits of `evaluate_places`; `runs`, `marks`: of `evaluate_places.private`; `counts`, `markup`,
    `lines`: of `evaluate_places.readable`.
    """

    batch: TextBatch
    prose: U8
    flags: npt.NDArray[np.int64]
    runs: I32
    marks: I32
    counts: npt.NDArray[np.int64]
    markup: I32
    lines: I32

    @classmethod
    def of(cls, batch: TextBatch, doc: I32, start: I32, end: I32) -> Texts:
        """`doc`, `start`, `end`: protected spans, bytes of each document."""
        data, offsets = np.ascontiguousarray(batch.data), np.ascontiguousarray(batch.offsets)
        batch = TextBatch(data, offsets)
        flags = np.zeros(len(batch), np.int64)
        prose = kernels.prose(data, offsets, doc, start, end)
        runs, marks = places.private(data, offsets, flags, character_table(), detectors.LEAST_DIGITS)
        counts, markup, lines = places.readable(prose, offsets, detectors.page_hashes(), flags)
        runs = runs[flags[runs[:, 0]] & places.LONG_NUMBER != 0]
        return cls(batch, prose, flags, runs, marks, counts, markup, lines)

    def prose_string(self, i: int) -> str:
        """Prose of document `i`, a space for each character of code."""
        return bytes(self.prose[self.batch.offsets[i] : self.batch.offsets[i + 1]]).decode(errors="ignore")

    def rare(self) -> npt.NDArray[np.bool_]:
        """bool [n]: ASCII look-alikes stand in front of nothing that a place knows: such a document is looked at in
        full."""
        found: npt.NDArray[np.bool_] = self.flags & places.RARE_CASE != 0
        return found

    def privacy(self) -> Found:
        """Hits of `detectors.privacy`."""
        found: Found = {}
        rare = self.rare()
        kinds = [self.marks[self.marks[:, 1] == kind] for kind in (places.ADDRESS, places.ACCOUNT)]
        runs, addresses, accounts = _by_document(self.runs), *map(_by_document, kinds)
        for i in sorted({*runs, *addresses, *accounts, *np.flatnonzero(rare).tolist()}):
            text = self.batch.string(i)
            columns = [[row[-1] for row in rows.get(i, ())] for rows in (addresses, accounts)]
            hits = detectors.privacy(text, None if rare[i] else detectors.Places(runs.get(i, ()), *columns))
            _add(found, i, text, hits)
        return found

    def remnants(self) -> Found:
        """Hits of `detectors.remnants`."""
        found: Found = {}
        rare = self.rare()
        words = detectors.page_lines()
        markup, lines = _by_document(self.markup), _by_document(self.lines)
        for i in sorted({*markup, *lines, *np.flatnonzero(rare).tolist()}):
            starts = None if rare[i] else [row[-1] for row in markup.get(i, ())]
            hits = detectors.remnants(self.prose_string(i), words, starts, None if rare[i] else lines.get(i, ()))
            if hits:  # positions are characters of the prose, which are those of the text
                _add(found, i, self.batch.string(i), hits)
        return found

    def phrases(self, lexicon: detectors.Lexicon, *, prose: bool) -> Found:
        """Hits of a lexicon in the text or in the prose."""
        found: Found = {}
        rare = self.rare() if lexicon.plain else np.ones(len(self.batch), np.bool_)
        if lexicon.plain:
            data = self.prose if prose else self.batch.data
            lower, starts = kernels.lowered(data, self.batch.offsets, np.iinfo(np.int64).max)
            hits = lexicon.find_bytes(lower)
            doc = np.searchsorted(starts, hits[:, 0], side="right") - 1
            for i, start, end in zip(doc.tolist(), *(hits - starts[doc, None]).T.tolist(), strict=True):
                if not rare[i]:
                    count, first, last = found.get(i, (0, start, end))
                    found[i] = (count + 1, *min((first, last), (start, end)))
        for i in np.flatnonzero(rare).tolist():
            text = self.batch.string(i)
            _add(found, i, text, lexicon.find(self.prose_string(i) if prose else text))
        return found

    def unreadable(self) -> npt.NDArray[np.float64]:
        """float64 [n]: share of characters that a reader cannot use: ten a garbled sequence, endless sentences and
        words; code and formulas do not count."""
        bad = self.counts[:, 1].astype(np.float64)
        for i in np.flatnonzero((self.flags & places.GARBLED != 0) | self.rare()).tolist():
            bad[i] += 10 * detectors.garbled(self.prose_string(i))
        return np.minimum(1.0, bad / np.maximum(self.counts[:, 0], 1))

    def topics(self) -> list[str]:
        """The topic of each document; see `detectors.Topics`."""
        topics = detectors.topics()
        lower, starts = kernels.lowered(self.batch.data, self.batch.offsets, kernels.HEAD)
        names = topics.of_bytes(lower, starts)
        for i in np.flatnonzero(self.rare()).tolist():
            names[i] = topics.of(self.batch.string(i))
        return names


def _by_document(rows: I32) -> dict[int, list[list[int]]]:
    """Rows of (document, ...), sorted by document -> document -> what stands behind its number."""
    documents, starts = np.unique(rows[:, 0], return_index=True)
    columns = rows[:, 1:].tolist()
    bounds = [*starts.tolist(), len(rows)]
    return {
        document: columns[first:end]
        for document, first, end in zip(documents.tolist(), bounds[:-1], bounds[1:], strict=True)
    }


def _add(found: Found, i: int, text: str, hits: detectors.Hits) -> None:
    """Enter hits in characters of `text`."""
    if hits:
        start, end = min(hits)
        found[i] = len(hits), len(text[:start].encode()), len(text[:end].encode())


def measure(table: pa.Table, config: DataConfig, checks: Checks, scorer: Callable[[], Scorer] | None) -> pa.Table:
    """One row of schema MEASURED a document. `table`: columns of `documents.KEPT`, `uncut` (bool: T2 is T1, so that
    what was measured on T1 holds) and `bits_per_char` (as measured on T1). `scorer` is called when a document needs it;
    None: perplexity and information stay NaN.
    """
    texts = Texts.of(TextBatch.from_arrow(table["text"]), *_spans(table["protected"]))
    langs = table["lang"].to_pylist()
    uncut = np.array(table["uncut"].to_pylist(), np.bool_)
    perplexity = bits = np.full(len(langs), np.nan, np.float32)
    if scorer is not None:
        perplexity, bits = _model_values(table, uncut, texts.batch, langs, scorer)
    information = bits * kernels.distinct(texts.batch.data, texts.batch.offsets, detectors.WINDOW)
    found = {
        "privacy": texts.privacy(),
        "toxic": texts.phrases(checks.toxic, prose=False),
        "advert": texts.phrases(checks.advert, prose=True),
        "web_remnant": texts.remnants(),
    }
    chars = texts.counts[:, 0]
    failures = {
        metric: [(i, float(count), 0.0, start, end) for i, (count, start, end) in hits.items()]
        for metric, hits in found.items()
    } | _thresholds(langs, checks.settings, chars, perplexity, information, texts.unreadable())
    return pa.table(
        [
            *(table[name] for name in ("id", "url", "source", "lang")),
            pa.array(_detected(table, uncut, texts.batch, config), pa.string()),
            pa.array(texts.topics(), pa.string()),
            pa.array(chars),
            pa.array(perplexity),
            pa.array(information),
            _failure_lists(failures, len(langs)),
        ],
        schema=MEASURED,
    )


Failures = dict[
    str, list[tuple[int, float, float, int, int]]
]  # metric -> (document, value, threshold, first byte, end)


def _failure_lists(failures: Failures, documents: int) -> pa.ListArray:
    """A list of FAILURE a document, in the order of the metrics."""
    rows = sorted(
        (row[0], number, name, *row[1:]) for number, name in enumerate(LEVELS) for row in failures.get(name, ())
    )
    offsets = np.searchsorted([row[0] for row in rows], np.arange(documents + 1)).astype(np.int32)
    values = [dict(zip((field.name for field in FAILURE), row[2:], strict=True)) for row in rows]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, FAILURE))


def _spans(column: pa.ChunkedArray) -> tuple[I32, I32, I32]:
    """(document, start, end) of a column of span lists."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = np.asarray(column.value_lengths().fill_null(0)).astype(np.int64)
    flat = column.flatten()
    doc = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return doc, np.asarray(flat.field("start")).astype(np.int32), np.asarray(flat.field("end")).astype(np.int32)


def _model_values(
    table: pa.Table,
    uncut: npt.NDArray[np.bool_],
    batch: TextBatch,
    langs: list[str],
    scorer: Callable[[], Scorer],
) -> tuple[F32, F32]:
    """(perplexity, bits per character) of T2, float32 [n] each: as measured on T1 where T2 is T1, else measured now."""
    perplexity = np.where(uncut, table["perplexity"].to_numpy(), np.nan).astype(np.float32)
    bits = np.where(uncut, table["bits_per_char"].to_numpy(), np.nan).astype(np.float32)
    open_rows = np.flatnonzero(np.isnan(perplexity) | np.isnan(bits))
    if len(open_rows):
        part = TextBatch.from_arrow(batch.to_arrow().take(pa.array(open_rows)))
        measured = scorer().measure(part, [langs[i] for i in open_rows], perplexity[open_rows])
        perplexity[open_rows], bits[open_rows] = measured
    return perplexity, bits


def _detected(table: pa.Table, uncut: npt.NDArray[np.bool_], batch: TextBatch, config: DataConfig) -> list[str]:
    """Language that identification reads from T2.

    It was read from the very same text already where nothing was cut, unless the source declares its language, the text
    was simplified afterwards (zh), or only a part of it was read (supervised documents).
    """
    from data_factory.language import identify  # loads fastText

    declared = {source.name for source in config.sources if source.language}
    detected: list[Any] = [
        lang if same and lang not in ("", "zh") and not task and source not in declared else None
        for lang, same, task, source in zip(
            table["lang"].to_pylist(), uncut, table["task"].to_pylist(), table["source"].to_pylist(), strict=True
        )
    ]
    unknown = [i for i, lang in enumerate(detected) if lang is None]
    if unknown:
        part = TextBatch.from_arrow(batch.to_arrow().take(pa.array(unknown)))
        for i, lang in zip(unknown, identify(part, config.language)[0], strict=True):
            detected[i] = lang
    return detected


def _thresholds(
    langs: list[str],
    settings: Evaluation,
    chars: npt.NDArray[np.int64],
    perplexity: F32,
    information: npt.NDArray[np.float64],
    unreadable: npt.NDArray[np.float64],
) -> Failures:
    """Levels 2 and 3, as far as a document decides them alone."""

    def limits(values: Mapping[str, float], none: float) -> npt.NDArray[np.float64]:
        return np.array([values.get(lang, none) for lang in langs], np.float64)

    length = np.where(chars < settings.min_chars, settings.min_chars, settings.max_chars).astype(np.float64)
    cap, least = limits(settings.max_perplexity, math.inf), limits(settings.min_information, -math.inf)
    most = limits(settings.max_unreadable, math.inf)
    bad: dict[str, tuple[Any, Any, Any]] = {  # comparisons with NaN are false
        "perplexity": (perplexity > cap, perplexity, cap),
        "informativeness": (information < least, information, least),
        "readability": (unreadable > most, unreadable, most),
        "document_length": ((chars < settings.min_chars) | (chars > settings.max_chars), chars, length),
    }
    return {
        metric: [(i, float(values[i]), float(thresholds[i]), -1, -1) for i in np.flatnonzero(mask).tolist()]
        for metric, (mask, values, thresholds) in bad.items()
    }
