"""URL rules of DP: banned domains and listed words, from the user's files (rule L05 of RefinedWeb, datatrove and
MAP-NEO).

A URL is read as a person reads it: percent-encoding is undone (UTF-8, else GB18030, which old Chinese sites use),
punycode hosts are decoded, full-width letters, case and Traditional Chinese are folded; the words of the lists are
folded the same way.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
from ahocorasick_rs import AhoCorasick, MatchKind
from opencc import OpenCC

from data_factory.batches import F32
from data_factory.config import Url
from ziya.errors import UserError

# Scripts that are written without spaces: a listed word of these is found inside a longer run, others only as whole
# tokens.
_UNSPACED = (
    "々〆〇\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_TOKEN = re.compile(f"[{_UNSPACED}]+|[^\\W_{_UNSPACED}]+")
_AUTHORITY = re.compile(r"^\s*<?(?:[A-Za-z][A-Za-z0-9+.-]*:)?//([^/?#\\>]*)")
_HOST = re.compile(r"^(?:[^\s/?#@:\\.]+\.)*[^\s/?#@:\\.]+$")
_COMMENT = re.compile(r"(?:^|\s)#.*$")


@cache
def _simplifier() -> OpenCC:
    return OpenCC("t2s")


def _fold(text: str) -> str:
    """Compatibility form, no case, Simplified."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return folded if folded.isascii() else str(_simplifier().convert(folded))


def _unpunycode(label: str) -> str:
    if label[:4].lower() != "xn--":
        return label
    try:
        return label[4:].encode("ascii").decode("punycode")
    except (UnicodeError, ValueError):  # not punycode after all: the label itself is compared
        return label


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def fold_host(host: str) -> str:
    """A host name in the form in which hosts are compared: folded, punycode decoded, no port, no final dot."""
    host = host.rpartition("@")[2]
    if not host.startswith("["):  # an IPv6 address keeps its colons
        host = host.partition(":")[0]
    labels = [_unpunycode(label) for label in _unquote(host).replace("。", ".").rstrip(".").split(".")]
    joined = ".".join(labels)
    return _fold(joined) if _is_text(joined) else host.lower()


def host_of(url: str) -> str:
    """Folded host of a URL; a URL without a scheme starts with its host."""
    found = _AUTHORITY.match(url)
    return fold_host(found.group(1) if found else re.split(r"[/?#]", url.strip().strip("<>"), maxsplit=1)[0])


def _unquote(text: str) -> str:
    """Undo percent-encoding, twice at most (doubly encoded links are common); bytes that are no UTF-8 are read as
    GB18030.
    """
    for _ in range(2):
        if "%" not in text:
            break
        data = unquote_to_bytes(text)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("gb18030", "replace")
    return text


def _spaced(text: str) -> str:
    """Tokens of folded text, one after another: a token of a spaced script stands between two spaces, others stand
    bare.
    """
    return "".join(token if _UNSPACED_RUN.match(token) else f" {token} " for token in _TOKEN.findall(text))


def url_tokens(url: str) -> str:
    """The text in which listed words are searched: tokens of the decoded, folded URL, host included."""
    if url.isascii() and "%" not in url and "xn--" not in url.lower():
        return _spaced(url.lower())  # most URLs
    found = _AUTHORITY.match(url)
    if found:
        labels = ".".join(_unpunycode(label) for label in found.group(1).split("."))
        url = f"{labels} {url[found.end() :]}"
    text = _unquote(url)
    return _spaced(_fold(text if _is_text(text) else text.encode("utf-8", "replace").decode()))


def _entries(path: str) -> Iterator[tuple[int, str]]:
    """(line number, entry) of a list file: one entry a line, # comments, blank lines skipped."""
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        message = f"list {path} cannot be read ({error.strerror}): give the path of a text file with one entry a line"
        raise UserError(message) from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = _COMMENT.sub("", line.decode()).strip()
        except UnicodeDecodeError as error:
            raise UserError(f"list {path}, line {number}: not UTF-8; save the file as UTF-8") from error
        if entry:
            yield number, entry


def _read_domains(paths: Sequence[str]) -> frozenset[str]:
    domains = set()
    for path in paths:
        for number, entry in _entries(path):
            host = entry.removeprefix("*").removeprefix(".")
            if not _HOST.match(host) or "*" in host:
                raise UserError(
                    f"list {path}, line {number}: {entry!r} is no domain; "
                    "write a bare host name such as example.com (subdomains are included)"
                )
            domains.add(fold_host(host))
    return frozenset(domains)


def _read_words(paths: Sequence[str]) -> AhoCorasick | None:
    words: dict[str, None] = {}
    for path in paths:
        for number, entry in _entries(path):
            word = _spaced(_fold(entry))
            if not word:
                raise UserError(
                    f"list {path}, line {number}: {entry!r} has no letter or digit, so that no URL could match; "
                    "remove the line"
                )
            words[word] = None
    return AhoCorasick(list(words), matchkind=MatchKind.LeftmostLongest) if words else None


@dataclass(frozen=True)
class UrlLists:
    """The user's lists, ready to match."""

    domains: frozenset[str]
    hard: AhoCorasick | None
    soft: AhoCorasick | None

    @classmethod
    def load(cls, settings: Url) -> UrlLists:
        """Read the list files. A file that is missing, not UTF-8 or has a bad entry is a UserError with its line."""
        hard, soft = _read_words(settings.hard_word_lists), _read_words(settings.soft_word_lists)
        return cls(_read_domains(settings.domain_lists), hard, soft)

    def measure(self, urls: Sequence[str]) -> dict[str, F32]:
        """float32 [n] columns of `urls`, in order.

        url_domain: 1 where the host or a parent domain of it is listed, else 0 (an address is compared as a whole).
        url_hard_words, url_soft_words: listed words found in the URL, occurrences, longest first and without
        overlap. A word of a spaced script counts as a whole token (`sex` is not in `sussex`); a Chinese word counts
        inside a longer run.
        """
        domain, hard, soft = (np.zeros(len(urls), np.float32) for _ in range(3))
        for i, url in enumerate(urls):
            if self.domains:
                domain[i] = self._banned(host_of(url))
            if self.hard or self.soft:
                tokens = url_tokens(url)
                hard[i] = len(self.hard.find_matches_as_indexes(tokens)) if self.hard else 0
                soft[i] = len(self.soft.find_matches_as_indexes(tokens)) if self.soft else 0
        return {"url_domain": domain, "url_hard_words": hard, "url_soft_words": soft}

    def _banned(self, host: str) -> bool:
        if host in self.domains:
            return True
        if host.replace(".", "").isdigit():  # 3.4 is no parent of 1.2.3.4
            return False
        position = host.find(".")
        while position >= 0:
            if host[position + 1 :] in self.domains:
                return True
            position = host.find(".", position + 1)
        return False
