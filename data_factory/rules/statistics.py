"""Document features over T1: named float32 columns from shared counts. Every column has this one producer.

Sizes (`chars`, `words`, `mean_word_length`) see all text. Every other feature sees T1 with each protected span (code,
formulas) replaced by one space, because code repeats lines and is full of marks for good reasons. What a word, a line
and a sentence are stands in `README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from data_factory import characters
from data_factory.batches import F32, I64, Spans, TextBatch
from data_factory.rules.kernels import cut_spans, measure_batch
from data_factory.rules.kernels_phrases import automaton
from data_factory.rules.kernels_tables import AT, FREE_MOJIBAKE, FREE_REPLACEMENTS, tables

Counts = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

# Ratios: feature -> (numerator, denominator, value when the denominator is 0). That value is one that no rule objects
# to: a page that is all code, or empty, is the business of the size rules.
_RATIOS: Mapping[str, tuple[str, str, float]] = {
    "hashes_per_word": ("hashes", "tokens", 0),
    "ellipses_per_word": ("ellipses", "tokens", 0),
    "letter_words": ("letter_words", "tokens", 1),
    "stop_word_share": ("stop_words", "words", 1),
    "capital_words": ("capital_words", "words", 0),
    "newlines_per_word": ("newlines", "tokens", 0),
    "bullet_lines": ("bullet_lines", "lines", 0),
    "ellipsis_lines": ("ellipsis_lines", "lines", 0),
    "teaser_lines": ("teaser_lines", "lines", 0),
    "end_mark_lines": ("end_mark_lines", "lines", 1),
    "short_lines": ("short_open_lines", "lines", 0),
    "short_lines_fineweb": ("short_lines", "lines", 0),
    "boilerplate_lines": ("boilerplate_lines", "lines", 0),
    "mean_line_length": ("line_chars", "open_lines", 1000),
    "space_share": ("space", "chars", 0),
    "han_share": ("han", "chars", 1),
    "parenthesis_share": ("parentheses", "chars", 0),
    "bracketed_share": ("bracketed_chars", "chars", 0),
    "url_share": ("url_chars", "chars", 0),
    "curly_share": ("curly", "chars", 0),
    "replacement_share": ("excess_replacements", "chars", 0),
    "mojibake_share": ("excess_mojibake", "chars", 0),
    "filler_share": ("filler_chars", "chars", 0),
    "punctuation_share": ("punctuation", "solid", 0.1),
    "symbol_share": ("symbols", "solid", 0),
    "alphanumeric_share": ("alphanumeric", "solid", 1),
    "digit_share": ("digits", "unpunctuated", 0),
    "distinct_chars": ("head_kinds", "head_chars", 1),
    "duplicate_lines": ("repeated_lines", "compared_lines", 0),
    "duplicate_line_chars": ("repeated_line_chars", "compared_chars", 0),
    "duplicate_line_chars_fineweb": ("repeated_line_chars", "compared_unbroken", 0),
    "duplicate_paragraphs": ("repeated_paragraphs", "compared_paragraphs", 0),
    "duplicate_paragraph_chars": ("repeated_paragraph_chars", "compared_chars", 0),
    **{f"top_{n}gram_chars": (f"top_{n}gram_chars", "compared_chars", 0) for n in range(2, 5)},
    **{f"duplicate_{n}gram_chars": (f"repeated_{n}gram_chars", "compared_chars", 0) for n in range(5, 11)},
    "repeated_13grams": ("repeated_13grams", "compared_13grams", 0),
}
_COUNTS: Mapping[str, str] = {
    "stop_words": "stop_word_kinds",
    "sentences": "sentences",
    "c4_sentences": "c4_sentences",
    "c4_curly_lines": "c4_curly_lines",
    "longest_line": "longest_line",
}
_NO_ENTROPY = 20.0  # nats; of a document without characters

FEATURES: tuple[str, ...] = ("chars", "words", "mean_word_length", *_COUNTS, *_RATIOS, "char_entropy")


def count(batch: TextBatch, langs: npt.NDArray[np.uint8], repetition: bool = True) -> tuple[Counts, F64]:
    """Counters (`kernels_tables.COUNTERS`) of every document as they stand: (int64 [n, counters], float64 [n]
    entropy).
    """
    data = batch.data.view()
    data.flags.writeable = False  # one compiled variant for all callers
    offsets: I64 = np.array(batch.offsets, np.int64)
    zh = np.array(langs == 1, np.uint8)
    result: tuple[Counts, F64] = measure_batch(data, offsets, zh, characters.table(), tables(), automaton(), repetition)
    return result


def unprotected(batch: TextBatch, protected: Spans, inside: bool = False) -> TextBatch:
    """The batch with one space for each protected span; with `inside`, the protected spans only, one a line."""
    rows = protected.row_offsets(len(batch))
    data = batch.data.view()
    data.flags.writeable = False
    new_data, offsets = cut_spans(
        data,
        np.array(batch.offsets, np.int64),
        rows,
        protected.start.astype(np.int64),
        protected.end.astype(np.int64),
        inside,
    )
    return TextBatch(new_data, offsets)


def measure(batch: TextBatch, langs: npt.NDArray[np.uint8], protected: Spans) -> dict[str, F32]:
    """All document features of a batch of T1: `FEATURES` -> float32 [n].

    `langs`: uint8 [n], 1 for Chinese, 0 for every other language (it selects stop words, the length of a short line
    and whether joining spaces count). Never NaN. Repetition features are measured on the first 2^18 units or lines of
    a document.
    """
    shadow = unprotected(batch, protected) if len(protected) else batch
    counts, entropy = count(shadow, langs)
    column = {name: counts[:, number] for name, number in AT._asdict().items()}
    chars, words, word_chars = column["chars"], column["words"], column["word_chars"]
    if len(protected):
        inner, _ = count(unprotected(batch, protected, inside=True), langs, repetition=False)
        spans = np.diff(protected.row_offsets(len(batch)))
        chars = chars + inner[:, AT.chars] - 2 * spans  # one space and one newline stand for each span
        words, word_chars = words + inner[:, AT.words], word_chars + inner[:, AT.word_chars]
    column["solid"] = column["chars"] - column["space"]
    column["alphanumeric"] = column["letters"] + column["digits"]
    column["unpunctuated"] = column["solid"] - column["punctuation"]
    column["open_lines"] = column["lines"] - column["complete_lines"]
    column["excess_replacements"] = np.maximum(column["replacements"] - FREE_REPLACEMENTS, 0)
    column["excess_mojibake"] = np.maximum(column["mojibake_chars"] - FREE_MOJIBAKE, 0)
    column["compared_unbroken"] = column["compared_chars"] - column["compared_newlines"]

    features = {
        "chars": chars.astype(np.float32),
        "words": words.astype(np.float32),
        "mean_word_length": _ratio(word_chars, words, 0.0),
    }
    for name, counter in _COUNTS.items():
        features[name] = column[counter].astype(np.float32)
    for name, (numerator, denominator, empty) in _RATIOS.items():
        features[name] = _ratio(column[numerator], column[denominator], empty)
    features["char_entropy"] = np.where(column["solid"] > 0, entropy, _NO_ENTROPY).astype(np.float32)
    return features


def _ratio(numerator: Counts, denominator: Counts, empty: float) -> F32:
    result = np.full(len(numerator), empty, np.float64)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result.astype(np.float32)
