"""Evaluation of one batch: kernels say which documents may hold a hit, the detectors look at those alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory import evaluate_detectors as detectors
from data_factory import evaluate_kernels as kernels
from data_factory.batches import F32, I32, U8, TextBatch
from data_factory.characters import table as character_table
from data_factory.config import DataConfig, Evaluation
from data_factory.perplexity import Scorer

Failure = tuple[str, float, float, int, int]  # metric, value, threshold, first byte, end (-1, -1: no place)
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


@dataclass
class Row:
    """What is kept of one evaluated document until the run's medians are known."""

    identity: dict[str, str]
    failures: list[Failure]
    lang: str
    detected: str
    topic: str
    chars: int
    perplexity: float
    information: float


@dataclass(frozen=True)
class Texts:
    """A batch, its prose (code and formulas blanked, byte for byte), and what each document may hold.

    `flags`: int64 [n], bits of `evaluate_kernels`. `runs`: int32 [m, 4], see `evaluate_kernels.private`. `counts`:
    int64 [n, 2], see `evaluate_kernels.readable`.
    """

    batch: TextBatch
    prose: U8
    flags: npt.NDArray[np.int64]
    runs: I32
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, batch: TextBatch, doc: I32, start: I32, end: I32) -> Texts:
        """`doc`, `start`, `end`: protected spans, bytes of each document."""
        data, offsets = np.ascontiguousarray(batch.data), np.ascontiguousarray(batch.offsets)
        batch = TextBatch(data, offsets)
        flags = np.zeros(len(batch), np.int64)
        prose = kernels.prose(data, offsets, doc, start, end)
        runs = kernels.private(data, offsets, flags, character_table(), detectors.LEAST_DIGITS)
        counts = kernels.readable(prose, offsets, detectors.page_hashes(), flags)
        # ASCII look-alikes stand in front of nothing that a flag knows: such a document is looked at in full.
        flags[flags & kernels.RARE_CASE != 0] = -1
        return cls(batch, prose, flags, runs, counts)

    def prose_string(self, i: int) -> str:
        """Prose of document `i`, a space for each character of code."""
        return bytes(self.prose[self.batch.offsets[i] : self.batch.offsets[i + 1]]).decode(errors="ignore")

    def privacy(self) -> Found:
        """Hits of `detectors.privacy`."""
        found: Found = {}
        rows = np.searchsorted(self.runs[:, 0], np.arange(len(self.batch) + 1))
        wanted = self.flags & (kernels.ADDRESS | kernels.ACCOUNT)
        for i in np.flatnonzero((wanted != 0) | (rows[1:] > rows[:-1])).tolist():
            text = self.batch.string(i)
            runs = [tuple(run) for run in self.runs[rows[i] : rows[i + 1], 1:].tolist()]
            addresses, accounts = wanted[i] & kernels.ADDRESS != 0, wanted[i] & kernels.ACCOUNT != 0
            _add(found, i, text, detectors.privacy(text, runs, bool(addresses), bool(accounts)))
        return found

    def remnants(self) -> Found:
        """Hits of `detectors.remnants`."""
        found: Found = {}
        for i in np.flatnonzero(self.flags & (kernels.MARKUP | kernels.PAGE_LINE)).tolist():
            # positions are characters of the prose, which are those of the text
            _add(found, i, self.batch.string(i), detectors.remnants(self.prose_string(i), detectors.page_lines()))
        return found

    def phrases(self, lexicon: detectors.Lexicon, *, prose: bool) -> Found:
        """Hits of a lexicon in the text or in the prose."""
        found: Found = {}
        rare = self.flags & kernels.RARE_CASE != 0 if lexicon.plain else np.ones(len(self.batch), np.bool_)
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
        for i in np.flatnonzero(self.flags & kernels.GARBLED).tolist():
            bad[i] += 10 * detectors.garbled(self.prose_string(i))
        return np.minimum(1.0, bad / np.maximum(self.counts[:, 0], 1))

    def topics(self) -> list[str]:
        """The topic of each document; see `detectors.Topics`."""
        topics = detectors.topics()
        lower, starts = kernels.lowered(self.batch.data, self.batch.offsets, kernels.HEAD)
        names = topics.of_bytes(lower, starts)
        for i in np.flatnonzero(self.flags & kernels.RARE_CASE).tolist():
            names[i] = topics.of(self.batch.string(i))
        return names


def _add(found: Found, i: int, text: str, hits: detectors.Hits) -> None:
    """Enter hits in characters of `text`."""
    if hits:
        start, end = min(hits)
        found[i] = len(hits), len(text[:start].encode()), len(text[:end].encode())


def measure(table: pa.Table, config: DataConfig, checks: Checks, scorer: Scorer | None) -> list[Row]:
    """One row a document. `table`: columns of `documents.KEPT` and `uncut` (bool: T2 is T1, so that what was measured
    on T1 holds)."""
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
    detected, topic, unreadable = _detected(table, uncut, texts.batch, config), texts.topics(), texts.unreadable()
    chars = texts.counts[:, 0].tolist()
    rows = []
    for i, values in enumerate(zip(*(table[name].to_pylist() for name in _IDENTITY), strict=True)):
        failures: list[Failure] = [
            (metric, float(hits[i][0]), 0.0, hits[i][1], hits[i][2]) for metric, hits in found.items() if i in hits
        ]
        numbers = chars[i], float(perplexity[i]), float(information[i]), float(unreadable[i])
        failures += _thresholds(*numbers, langs[i], checks.settings)
        identity = dict(zip(_IDENTITY, values, strict=True))
        rows.append(Row(identity, failures, langs[i], detected[i], topic[i], *numbers[:3]))
    return rows


_IDENTITY = ("id", "url", "source", "lang")


def _spans(column: pa.ChunkedArray) -> tuple[I32, I32, I32]:
    """(document, start, end) of a column of span lists."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = np.asarray(column.value_lengths().fill_null(0)).astype(np.int64)
    flat = column.flatten()
    doc = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return doc, np.asarray(flat.field("start")).astype(np.int32), np.asarray(flat.field("end")).astype(np.int32)


def _model_values(
    table: pa.Table, uncut: npt.NDArray[np.bool_], batch: TextBatch, langs: list[str], scorer: Scorer
) -> tuple[F32, F32]:
    """(perplexity, bits per character) of T2, float32 [n] each: as measured on T1 where T2 is T1, else measured now."""
    perplexity = np.where(uncut, table["perplexity"].to_numpy(), np.nan).astype(np.float32)
    bits = np.where(uncut, table["bits_per_char"].to_numpy(), np.nan).astype(np.float32)
    open_rows = np.flatnonzero(np.isnan(perplexity) | np.isnan(bits))
    if len(open_rows):
        part = TextBatch.from_arrow(batch.to_arrow().take(pa.array(open_rows)))
        measured = scorer.measure(part, [langs[i] for i in open_rows], perplexity[open_rows])
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
    chars: int, perplexity: float, information: float, unreadable: float, lang: str, settings: Evaluation
) -> Iterator[Failure]:
    """Levels 2 and 3, as far as a document decides them alone."""
    cap = settings.max_perplexity.get(lang, math.inf)
    if perplexity > cap:
        yield "perplexity", perplexity, cap, -1, -1
    least = settings.min_information.get(lang, -math.inf)
    if information < least:
        yield "informativeness", information, least, -1, -1
    most = settings.max_unreadable.get(lang, math.inf)
    if unreadable > most:
        yield "readability", unreadable, most, -1, -1
    if not settings.min_chars <= chars <= settings.max_chars:
        limit = settings.min_chars if chars < settings.min_chars else settings.max_chars
        yield "document_length", float(chars), float(limit), -1, -1
