"""What the document kernels count, and the lookup tables that they read."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

COUNTERS = (
    "chars", "words", "word_chars", "tokens", "letter_words", "capital_words", "stop_words", "stop_word_kinds",
    "ellipses", "newlines",
    "lines", "line_chars", "longest_line", "bullet_lines", "ellipsis_lines", "teaser_lines", "end_mark_lines",
    "short_lines", "complete_lines", "short_open_lines", "boilerplate_lines",
    "sentences", "c4_sentences", "c4_curly_lines", "url_chars", "bracketed_chars", "mojibake_chars", "filler_chars",
    "head_chars", "head_kinds",
    "space", "han", "letters", "digits", "punctuation", "symbols", "parentheses", "curly", "hashes", "replacements",
    "compared_chars", "compared_newlines", "compared_lines", "repeated_lines", "repeated_line_chars",
    "compared_paragraphs", "repeated_paragraphs", "repeated_paragraph_chars",
    "top_2gram_chars", "top_3gram_chars", "top_4gram_chars",
    "repeated_5gram_chars", "repeated_6gram_chars", "repeated_7gram_chars", "repeated_8gram_chars",
    "repeated_9gram_chars", "repeated_10gram_chars",
    "repeated_13grams", "compared_13grams",
)  # fmt: skip
AT: Any = namedtuple("AT", COUNTERS)(*range(len(COUNTERS)))  # column of each counter, also inside kernels

HEAD = 2000  # characters (whitespace apart) over which distinct characters are counted
COMPARED = 1 << 18  # repetition is measured on the head of a document: at most this many units and lines
SHORT_LINE = (30, 12)  # characters of a short line: other languages (FineWeb), zh
LONGEST_C4_WORD = 1000
COMPLETE_LINE = 5  # characters of the shortest line that a mark at its end completes: 诗行，but not 好。
FREE_REPLACEMENTS = 5  # U+FFFD that cost nothing: some bad bytes do not spoil a page, however short
FREE_MOJIBAKE = 9  # characters: a page may quote 锟斤拷 three times

GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
# English function words for the share of stop words (our list; BigScience's is longer and has contractions).
FUNCTION_WORDS = (
    *GOPHER_STOP_WORDS, "a", "an", "in", "is", "was", "are", "were", "been", "being", "it", "its", "he", "she",
    "they", "them", "his", "her", "their", "this", "these",
    "those", "for", "on", "as", "by", "at", "from", "or", "but", "not", "no", "if", "so", "than", "then", "when",
    "which", "who", "what", "where", "how", "has",
    "had", "do", "does", "did", "will", "would", "can", "could", "should", "may", "must", "i", "you", "we", "your",
    "our", "my", "into", "about", "also", "any",
    "all", "there", "only", "such", "other", "more", "one", "after", "over",
)  # fmt: skip
# The most frequent Chinese function characters, in Simplified form because T1 of zh documents is Simplified (spec:
# FineWeb-2's list, folded).
ZH_STOP_CHARACTERS = "的是在和了有为也与而不这就我你他它以及中可上下到要会对能一个人之其或但从被把所等于将因如您此"
BULLETS = "•-*‣⁃◦▪▫●○■□◆◇►▶※·➢➤–"
JOINERS = "'’-‐‑"

HASH = np.uint64(0x9E3779B97F4A7C15)


class Tables(NamedTuple):
    """Lookup tables of the kernel, built once a process.

    `zh_stop`: uint8 [0x10000], 0 = no stop character, 2 + k = the k-th; `stop_keys` uint64 [512] and
    `stop_values` uint8 [512]: open addressing from packed lower-case ASCII words, 1 = a function word, 2 + k = the
    k-th of Gopher's; `bullets`: int32, sorted.
    """

    zh_stop: npt.NDArray[np.uint8]
    stop_keys: npt.NDArray[np.uint64]
    stop_values: npt.NDArray[np.uint8]
    bullets: npt.NDArray[np.int32]


@cache
def tables() -> Tables:
    """The lookup tables."""
    zh_stop = np.zeros(0x10000, np.uint8)
    for number, character in enumerate(ZH_STOP_CHARACTERS):
        zh_stop[ord(character)] = 2 + number
    keys, values = np.zeros(512, np.uint64), np.zeros(512, np.uint8)
    for number, word in enumerate(FUNCTION_WORDS):
        packed = int.from_bytes(word.encode(), "big")
        slot = (packed * int(HASH) & (1 << 64) - 1) >> 55
        while keys[slot]:
            slot = (slot + 1) % 512
        keys[slot], values[slot] = packed, 2 + number if number < len(GOPHER_STOP_WORDS) else 1
    return Tables(zh_stop, keys, values, np.array(sorted(map(ord, BULLETS)), np.int32))


class Buffers(NamedTuple):
    """What the scan of one document leaves for the repetition counters; reused from document to document.

    `histogram`: int32 [0x110000], all zero between documents; `kinds`: int32, the distinct code points.
    `prefix_hash` uint64 and `prefix_chars` int64 [units + 1]: polynomial hash and characters of the first k units.
    Hashes and characters of lines and paragraphs: uint64 and int64.
    """

    histogram: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int32]
    prefix_hash: npt.NDArray[np.uint64]
    prefix_chars: npt.NDArray[np.int64]
    line_hash: npt.NDArray[np.uint64]
    line_chars: npt.NDArray[np.int64]
    paragraph_hash: npt.NDArray[np.uint64]
    paragraph_chars: npt.NDArray[np.int64]
