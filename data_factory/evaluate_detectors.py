"""Detectors of the evaluation (DE): what one hit of fails a document, and the counts behind readability and topics.

They share nothing with the rules of RF, neither code nor word lists: a check that repeats the filter's own test would
always pass. Positions are byte ranges of T2. Masks of private data (<EMAIL>, <PHONE> ...) are no hits: they name no
HTML tag and hold no data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ahocorasick_rs
import numpy as np
import numpy.typing as npt

from data_factory.batches import I64, U8
from data_factory.evaluate_kernels import HEAD
from data_factory.evaluate_places import LEAST_LONG_NUMBER, LONGEST_PAGE_LINE, word_hashes
from ziya.errors import UserError

FOLDER = Path(__file__).parent / "evaluation_lexicons"
Hits = list[tuple[int, int]]  # character ranges

# ---- privacy: e-mail addresses, telephone and identity-card numbers, labelled messenger accounts

_AT = re.compile(r"[@＠]|[\[(（]\s?[Aa][Tt]\s?[\])）]\s?")
_LOCAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_+-])?\Z")
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9-]{1,63}(?:\.|\s?[\[(]dot[\])]\s?)){1,4}([A-Za-z]{2,24})(?![A-Za-z0-9-]|\.[A-Za-z0-9])",
    re.IGNORECASE,
)
# Names that RFC 2606 and RFC 6761 reserve, and file endings that make image@2x.png look like an address.
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.[a-z]+)?|test|invalid|localhost|local|internal)$", re.IGNORECASE)
_FILE_ENDINGS = frozenset((
    "png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "jsx", "tsx", "json", "html",
    "htm", "xml", "md", "txt", "py", "rb", "java", "sh", "yml", "yaml", "service", "socket", "target",
))  # fmt: skip
# git@host.org:path is an address of a repository, this@Outer.field is Kotlin.
_ROLES = frozenset(("git", "hg", "svn", "this", "super", "return", "break", "continue"))
_BEFORE, _AFTER = r"(?<![A-Za-z0-9_./:=&#%+@-])", r"(?![A-Za-z0-9_/=-]|\.\d)"
_PHONE = re.compile(
    rf"{_BEFORE}(?:"
    r"(?:\+?86[-\s]?)?1[3-9]\d[-\s]?\d{4}[-\s]?\d{4}"  # Chinese mobile numbers
    r"|(?:\+?86[-\s]?)?[(（]?0(?:10|2\d|[3-9]\d{2})[)）]?[-\s]\d{7,8}"  # Chinese land lines
    r"|(?:1[-.\s])?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}"  # North America
    r"|\+[1-9]\d{0,2}[-.\s]\(?\d{1,4}\)?(?:[-.\s]\d{2,4}){2,4}"  # written with a country code
    rf"){_AFTER}"
)
_FICTIONAL = re.compile(r"555[-.]01\d\d$")
_CARD = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[0-9Xx](?![0-9A-Za-z])"
)
_ACCOUNT = re.compile(
    r"(?:QQ|企鹅)\s?(?:号|号码|群|群号)?\s?[:：]\s?[1-9]\d{4,10}(?!\d)"
    r"|(?:微信|WeChat|weixin|VX|V信)\s?(?:号|ID)?\s?[:：]\s?(?=[A-Za-z0-9_-]*[0-9_-])[A-Za-z][A-Za-z0-9_-]{5,19}",
    re.IGNORECASE,
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


LEAST_DIGITS = 6  # of a telephone number
_LONG_NUMBER = re.compile(rf"\d{{{LEAST_LONG_NUMBER}}}")


@dataclass(frozen=True)
class Places:
    """Where in a text private data may stand, in characters (`evaluate_places.private`).

    `runs`: (first, end, digits) of what may hold a number; `addresses`, `accounts`: characters one may start at (an
    address: its @).
    """

    runs: Sequence[Sequence[int]]
    addresses: Sequence[int]
    accounts: Sequence[int]

    @classmethod
    def anywhere(cls, text: str) -> Places:
        """All places of a text."""
        runs = [(0, len(text), len(text))] if _LONG_NUMBER.search(text) else []
        return cls(runs, [m.start() for m in _AT.finditer(text)], [m.start() for m in _ACCOUNT.finditer(text)])


def privacy(text: str, places: Places | None = None) -> Hits:
    """E-mail addresses (also written with [at] and [dot]), telephone numbers, valid identity-card numbers, labelled
    accounts.

    Numbers are looked for in texts with a number of at least LEAST_LONG_NUMBER digits. `places`: None = anywhere.
    """
    places = Places.anywhere(text) if places is None else places
    hits = [*_emails(text, places.addresses)]
    for first, end, digits in places.runs:
        stop = end + 2  # what the look-aheads see, and the X of an identity card
        hits += [m.span() for m in _PHONE.finditer(text, first, stop) if not _FICTIONAL.search(m[0])]
        if digits >= 17:
            hits += [m.span() for m in _CARD.finditer(text, first, stop) if _valid_card(m[0])]
    return sorted(hits + _matches(_ACCOUNT, text, places.accounts))


def _matches(pattern: re.Pattern[str], text: str, starts: Sequence[int]) -> Hits:
    """What `finditer` finds, when it finds nothing but at `starts` (increasing)."""
    hits: Hits = []
    last = 0
    for start in starts:
        if start >= last and (match := pattern.match(text, start)):
            last = match.end()
            hits.append(match.span())
    return hits


def _valid_card(number: str) -> bool:
    """The check digit of GB 11643."""
    return "10X98765432"[sum(w * int(d) for w, d in zip(_WEIGHTS, number, strict=False)) % 11] == number[-1].upper()


def _emails(text: str, places: Sequence[int]) -> Iterator[tuple[int, int]]:
    last = 0
    for place in places:
        at, start = _AT.match(text, place), place
        if at is None:
            continue
        if at[0] not in "@＠" and start > last and text[start - 1].isspace():  # name [at] host
            start -= 1
        last = at.end()
        local = _LOCAL.search(text, max(0, start - 64), start)
        domain = _DOMAIN.match(text, last)
        if local is None or domain is None or local[0].lower() in _ROLES or domain[1].lower() in _FILE_ENDINGS:
            continue
        if at[0] not in "@＠" and domain[0].count(".") + domain[0].lower().count("dot") == 0:
            continue
        if local.start() and text[local.start() - 1] in "/:@":  # https://name@host, the second part of a@b@c
            continue
        if not _RESERVED.search(domain[0]):
            yield local.start(), domain.end()


# ---- remnants of web pages

_TAG_NAMES = (
    "a|abbr|article|aside|b|big|blockquote|body|br|button|center|cite|dd|div|dl|dt|em|fieldset|figure|font|footer|form|frame|h[1-6]|head|header|hr|html|i|"
    "iframe|img|input|label|li|link|meta|nav|noscript|object|ol|option|p|pre|script|section|select|small|span|strike|strong|style|sub|sup|svg|table|"
    "tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|video"
)
_REMNANT = re.compile(
    rf"</?(?:{_TAG_NAMES})\s+[a-z-]+\s?=\s?[\"'][^<>]{{0,2000}}>"  # a tag with an attribute
    # an element on one line; an exponent or an index (2<sup>32</sup>) is content, a footnote's <sup>[1]</sup> is none
    rf"|<(?!(su[bp])>[^<>\[\]\n]{{1,20}}</\1>)(?P<tag>{_TAG_NAMES})>[^<>\n]{{1,200}}</(?P=tag)>"
    r"|<br\s?/?>\s*$|<!--\[if |<!DOCTYPE html|<!\[CDATA\["
    r"|&(?:nbsp|ldquo|rdquo|lsquo|rsquo|mdash|ndash|hellip|raquo|laquo|middot|bull|copy|reg|trade|#0?39|#160|#82[0-9][0-9]);"
    r"|javascript:\s?(?:void|;)|__doPostBack\(|var _hmt\b|_gaq\.push\(|document\.write\(",
    re.IGNORECASE | re.MULTILINE,
)


def remnants(
    text: str,
    words: Mapping[str, bool],
    places: Sequence[int] | None = None,
    lines: Iterable[Sequence[int]] | None = None,
) -> Hits:
    """HTML and script remnants, and lines that are nothing but a function word of a page.

    `words`: of `page_lines`, True where one alone is a hit; of the others two must stand on neighbouring lines.
    `places`: characters that a remnant may start at; `lines`: (first character, end, number among the lines that are
    not blank) of those that may be such a word (`evaluate_places.readable`). None = anywhere.
    """
    hits = [m.span() for m in _REMNANT.finditer(text)] if places is None else _matches(_REMNANT, text, places)
    before = -2  # number of the last line that is a word
    for first, end, number in _lines(text) if lines is None else lines:
        known = words.get(_word(text[first:end]))
        if known is None:
            continue
        if known or before == number - 1:
            hits.append((first, end))
        before = number
    return sorted(hits)


def _lines(text: str) -> Iterator[tuple[int, int, int]]:
    start = number = 0
    for line in text.split("\n"):
        if _word(line):
            yield start, start + len(line), number
            number += 1
        start += len(line) + 1


def _word(line: str) -> str:
    """A short line in lower case, without the marks that stand around links."""
    return line.strip(" \t\u3000|>»«<·•-").lower() if len(line) <= LONGEST_PAGE_LINE else line


# ---- lexicons


class Lexicon:
    """Phrases found anywhere (Latin ones only between word borders), in lower case.

    `plain`: lowering ASCII letters is enough to find all of them.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        """`phrases`: lower case, no duplicates."""
        self.phrases = list(phrases)
        self.plain = all(map(_is_plain, self.phrases))
        self._automaton = ahocorasick_rs.AhoCorasick(self.phrases, store_patterns=False) if self.phrases else None
        self._bytes = _byte_automaton(self.phrases) if self.phrases and self.plain else None

    def find_bytes(self, lower: U8) -> npt.NDArray[np.int64]:
        """int64 [m, 2]: byte ranges of all hits in lowered documents (`evaluate_kernels.lowered`); needs `plain`."""
        matches = self._bytes.find_matches_as_indexes(lower, overlapping=True) if self._bytes is not None else []
        hits: npt.NDArray[np.int64] = np.array(matches, np.int64).reshape(-1, 3)[:, 1:]
        # The last byte of the buffer stands behind a document, so that -1 is no word either.
        before, first, last, behind = (_WORD_BYTES[lower[hits[:, k] + shift]] for k in (0, 1) for shift in (-1, 0))
        joined = (before & first) | (last & behind)
        alone: npt.NDArray[np.int64] = hits[~joined]
        return alone

    def find(self, text: str) -> Hits:
        """Character ranges of all hits, overlapping ones too, by their end."""
        if self._automaton is None:
            return []
        lower = text.lower() if "İ" not in text else text.replace("İ", "I").lower()  # İ alone grows when lowered
        hits = []
        for _, start, end in self._automaton.find_matches_as_indexes(lower, overlapping=True):
            left, right = lower[start - 1 : start] if start else "", lower[end : end + 1]
            if not (_joined(left, lower[start]) or _joined(lower[end - 1], right)):
                hits.append((start, end))
        return hits


_WORD_BYTES = np.array([byte < 128 and chr(byte).isalnum() for byte in range(256)])


def _is_plain(phrase: str) -> bool:
    """Whether no letter but ASCII ones has another case."""
    return all(c.isascii() or c.upper() == c == c.lower() for c in phrase)


def _byte_automaton(phrases: Sequence[str]) -> ahocorasick_rs.BytesAhoCorasick:
    return ahocorasick_rs.BytesAhoCorasick(
        [phrase.encode() for phrase in phrases], implementation=ahocorasick_rs.Implementation.DFA
    )


def _joined(left: str, right: str) -> bool:
    """Whether two neighbours belong to one Latin word or number."""
    return left.isascii() and right.isascii() and left.isalnum() and right.isalnum()


def read_words(path: Path) -> list[str]:
    """The entries of a word file in lower case: one a line, # comments, empty lines ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"word list {path} cannot be read ({error}): give a UTF-8 text file with one entry a line"
        ) from error
    return [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]


def lexicon(name: str, more: Sequence[str] = ()) -> Lexicon:
    """The shipped lists `name`_en.txt and `name`_zh.txt together with the user's files."""
    words = [
        word
        for path in [FOLDER / f"{name}_en.txt", FOLDER / f"{name}_zh.txt", *map(Path, more)]
        for word in read_words(path)
    ]
    return Lexicon(list(dict.fromkeys(words)))


@cache
def page_lines() -> dict[str, bool]:
    """Function words of web pages -> whether a line of one alone is a remnant (entries behind ~ are not)."""
    entries = [*read_words(FOLDER / "page_en.txt"), *read_words(FOLDER / "page_zh.txt")]
    return {entry.removeprefix("~"): not entry.startswith("~") for entry in entries}


@cache
def page_hashes() -> npt.NDArray[np.uint64]:
    """Sorted hashes of all words of `page_lines`."""
    words = [word.encode() for word in page_lines()]
    offsets = np.zeros(len(words) + 1, np.int64)
    np.cumsum([len(word) for word in words], out=offsets[1:])
    hashes: npt.NDArray[np.uint64] = np.sort(word_hashes(np.frombuffer(b"".join(words), np.uint8), offsets))
    return hashes


@dataclass(frozen=True)
class Topics:
    """A word list a topic: the topic with the most distinct words in the first HEAD characters, "other" below three
    (the first of equals)."""

    names: tuple[str, ...]
    automaton: ahocorasick_rs.AhoCorasick
    byte_automaton: ahocorasick_rs.BytesAhoCorasick
    owner: tuple[int, ...]

    def of(self, text: str) -> str:
        """The topic of one text."""
        found = np.zeros(len(self.names), np.int64)
        for number in {match[0] for match in self.automaton.find_matches_as_indexes(text[:HEAD].lower())}:
            found[self.owner[number]] += 1
        return self._name(found)

    def of_bytes(self, lower: U8, starts: I64) -> list[str]:
        """The topics of lowered documents (`evaluate_kernels.lowered`, HEAD characters each)."""
        matches = np.array(self.byte_automaton.find_matches_as_indexes(lower), np.int64).reshape(-1, 3)
        doc = np.searchsorted(starts, matches[:, 1], side="right") - 1
        words = np.unique(doc * len(self.owner) + matches[:, 0])
        found = np.zeros((len(starts) - 1, len(self.names)), np.int64)
        np.add.at(found, (words // len(self.owner), np.array(self.owner, np.int64)[words % len(self.owner)]), 1)
        return [self._name(row) for row in found]

    def _name(self, found: npt.NDArray[np.int64]) -> str:
        best = int(found.argmax())
        return self.names[best] if found[best] >= 3 else "other"


@cache
def topics() -> Topics:
    """The shipped topics: lines of topics.txt are `topic: word, word ...`."""
    names, words, owner = [], [], []
    for line in read_words(FOLDER / "topics.txt"):
        name, _, rest = line.partition(":")
        if name not in names:
            names.append(name)
        for word in rest.split(","):
            if word.strip():
                words.append(word.strip())
                owner.append(names.index(name))
    automaton = ahocorasick_rs.AhoCorasick(words, store_patterns=False)
    return Topics(tuple(names), automaton, _byte_automaton(words), tuple(owner))


# ---- readability and distinct content (the rest of both is in `evaluate_kernels`)

WINDOW = 12  # bytes whose repetition lowers informativeness
_GARBLED = re.compile(
    "\ufffd|[ÂÃâ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œ]|锟斤拷?|烫烫烫|屯屯屯|ï»¿|[\ue000-\uf8ff]|[äåæçèé][\u0080-\u00bf][\u0080-\u00bf]|(?:&#\\d{2,5};)"
)


def garbled(text: str) -> int:
    """Sequences that only a wrong encoding or a lost character leaves."""
    return sum(1 for _ in _GARBLED.finditer(text))
