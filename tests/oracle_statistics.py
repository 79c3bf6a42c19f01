"""Slow plain-Python reference of the document counters: the definitions of `data_factory/rules/README.md`, written
over strings.

It shares with the kernels only the character table and the phrase and word lists.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from data_factory.characters import (
    CLOSER,
    DIGIT,
    END_MARK,
    HAN,
    LETTER,
    PUNCTUATION,
    SPACE,
    SYMBOL,
    UPPER,
    flags_of,
    table,
)
from data_factory.rules import kernels_tables as tables
from data_factory.rules.kernels_phrases import BOILERPLATE, FILLER, JAVASCRIPT, MOJIBAKE, POLICY, TEASER, phrases

_URL = re.compile(r"(?:https?://|www\.)([!#-&*-;=?-Z^_a-z~]+)", re.IGNORECASE | re.ASCII)


def kind(character: str) -> int:
    return int(flags_of.py_func(table(), ord(character)))


def ascii_lower(text: str) -> str:
    return "".join(c.lower() if c < "\x80" else c for c in text)


def is_word(c: str) -> bool:
    return bool(kind(c) & (LETTER | DIGIT)) and not kind(c) & HAN


def find_words(text: str) -> list[tuple[int, int]]:
    """(start, end) of every word."""
    found, i = [], 0
    while i < len(text):
        if kind(text[i]) & HAN:
            found.append((i, i + 1))
            i += 1
        elif is_word(text[i]):
            start = i
            i += 1
            while i < len(text):
                numeric = text[i] in ".," and kind(text[i - 1]) & DIGIT
                if is_word(text[i]):
                    i += 1
                elif i + 1 < len(text) and (
                    (text[i] in tables.JOINERS and is_word(text[i + 1])) or (numeric and kind(text[i + 1]) & DIGIT)
                ):
                    i += 2
                else:
                    break
            found.append((start, i))
        else:
            i += 1
    return found


def strip(text: str) -> str:
    while text and kind(text[0]) & SPACE:
        text = text[1:]
    while text and kind(text[-1]) & SPACE:
        text = text[:-1]
    return text


def find_sentences(text: str, words: list[tuple[int, int]]) -> list[int]:
    """Positions at which a sentence was found to have ended (the character after its marks)."""
    ends, first = [], 0
    for match in re.finditer(f"[{re.escape(_all(END_MARK))}][{re.escape(_all(END_MARK | CLOSER))}]*", text + "\n"):
        k = match.end()
        marks = [c for c in match[0] if kind(c) & END_MARK]
        follows = (text + "\n")[k]
        if all(c < "\x80" for c in marks) and not kind(follows) & SPACE:
            continue
        inside = [word for word in words if word[1] <= k and word[0] >= first]
        if len(inside) >= 2:
            ends.append(k)
            first = k
    return ends


def _all(flag: int) -> str:
    return "".join(chr(point) for point, flags in enumerate(table()) if flags & flag)


def ends_with_mark(line: str) -> bool:
    while line and kind(line[-1]) & CLOSER and not kind(line[-1]) & END_MARK:
        line = line[:-1]
    return bool(line) and bool(kind(line[-1]) & END_MARK)


def hits(text: str, bits: int) -> list[tuple[int, int]]:
    """(start, end) of every occurrence of every phrase with one of the bits."""
    folded, found = ascii_lower(text), []
    for phrase, own in phrases().items():
        if own & bits:
            at = folded.find(phrase)
            while at >= 0:
                found.append((at, at + len(phrase)))
                at = folded.find(phrase, at + 1)
    return found


def repeats(items: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    number = size = 0
    for item in items:
        if item in seen:
            number += 1
            size += len(item)
        seen.add(item)
    return number, size


def count(text: str, zh: bool) -> tuple[dict[str, int], float]:
    """(counters, character entropy) of one document."""
    c: dict[str, int] = dict.fromkeys(tables.COUNTERS, 0)
    spans = find_words(text)
    words = [text[a:b] for a, b in spans]
    c["chars"], c["words"], c["word_chars"] = len(text), len(words), sum(map(len, words))
    joined = {k for a, b in spans for k in range(a, b) if not is_word(text[k]) and not kind(text[k]) & HAN}
    marks = [
        k
        for k, x in enumerate(text)
        if kind(x) & (PUNCTUATION | SYMBOL) and (k == 0 or text[k - 1] != x) and k not in joined
    ]
    c["tokens"] = len(words) + len(marks)
    c["letter_words"] = sum(any(kind(x) & LETTER for x in word) for word in words)
    for word in words:
        letters = [x for x in word if kind(x) & LETTER and not kind(x) & HAN]
        c["capital_words"] += len(letters) >= 2 and all(kind(x) & UPPER for x in letters)
    stops = tables.ZH_STOP_CHARACTERS if zh else tables.FUNCTION_WORDS
    folded = [ascii_lower(word) for word in words]
    c["stop_words"] = sum(word in stops for word in folded)
    c["stop_word_kinds"] = len(
        {word for word in folded if word in (tables.ZH_STOP_CHARACTERS if zh else tables.GOPHER_STOP_WORDS)}
    )
    c["ellipses"] = len(re.findall(r"…+|(?<!\.)\.{3,}|(?<!。)。{2,}", text))
    c["newlines"] = text.count("\n")

    end_of_url = 0
    for start, _ in spans:
        match = _URL.match(text, start)
        if match and start >= end_of_url and text[start] in "hHwW":
            rest = match[1].rstrip(".,;:!?")
            if rest:
                end_of_url = match.start(1) + len(rest)
                c["url_chars"] += 0 if text[max(start - 2, 0) : start] == "](" else end_of_url - start
    c["mojibake_chars"] = sum(b - a for a, b in hits(text, MOJIBAKE))
    c["filler_chars"] = sum(b - a for a, b in hits(text, FILLER))

    sentence_ends = find_sentences(text, spans)
    c["sentences"] = len(sentence_ends)
    lines, at = [], 0
    for raw in text.split("\n"):
        line = strip(raw)
        ended = [k for k in sentence_ends if at <= k <= at + len(raw)] if raw else []
        units = [word for word in spans if at <= word[0] < at + len(raw)]
        at += len(raw) + 1
        c["bracketed_chars"] += sum(map(len, re.findall("【([^】]*)】", raw)))
        if not line:
            lines.append("")
            continue
        lines.append(line)
        c["longest_line"] = max(c["longest_line"], len(line))
        c["bullet_lines"] += line[0] in tables.BULLETS
        ellipsis = line.endswith(("…", "...", "。。"))
        c["ellipsis_lines"] += ellipsis
        c["teaser_lines"] += ellipsis or any(b == len(line) for _, b in hits(line, TEASER))
        c["end_mark_lines"] += ends_with_mark(line)
        marked = ends_with_mark(line) or line[-1] in ",;—，；"
        complete = marked and not ellipsis and len(line) >= tables.COMPLETE_LINE
        c["complete_lines"] += complete
        c["short_lines"] += len(line) <= tables.SHORT_LINE[zh]
        c["short_open_lines"] += len(line) <= tables.SHORT_LINE[zh] and not complete
        c["boilerplate_lines"] += bool(hits(line, BOILERPLATE))
        runs = "".join(" " if kind(x) & SPACE else x for x in line).split()
        enough = len(units) >= 3 if zh else len(runs) >= 3 and max(map(len, runs)) <= tables.LONGEST_C4_WORD
        if enough and ends_with_mark(line) and not ellipsis and not hits(line, JAVASCRIPT):
            c["c4_curly_lines"] += "{" in line
            c["c4_sentences"] += 0 if hits(line, POLICY) else len(ended)
    full = [line for line in lines if line]
    paragraphs = [part for part in re.split("\n\n+", "\n".join(lines).strip("\n")) if part]
    c["lines"] = c["compared_lines"] = len(full)
    c["line_chars"] = sum(map(len, full))
    c["repeated_lines"], c["repeated_line_chars"] = repeats(full)
    c["compared_paragraphs"] = len(paragraphs)
    c["repeated_paragraphs"], c["repeated_paragraph_chars"] = repeats(paragraphs)
    c["compared_chars"], c["compared_newlines"] = c["chars"], c["newlines"]

    solid = [x for x in text if not kind(x) & SPACE]
    c["head_chars"], c["head_kinds"] = min(len(solid), tables.HEAD), len(set(solid[: tables.HEAD]))
    c["space"] = len(text) - len(solid)
    c["han"] = sum(bool(kind(x) & HAN) for x in solid)
    c["letters"] = sum(bool(kind(x) & LETTER) for x in solid)
    c["digits"] = sum(bool(kind(x) & DIGIT) for x in solid)
    c["punctuation"] = sum(bool(kind(x) & PUNCTUATION) for x in solid)
    c["symbols"] = sum(bool(kind(x) & SYMBOL) for x in solid)
    for name, characters in (("parentheses", "()（）"), ("curly", "{}"), ("hashes", "#"), ("replacements", "\ufffd")):
        c[name] = sum(x in characters for x in solid)
    shares = [number / len(solid) for number in Counter(solid).values()]

    for n in range(2, 5):
        grams = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
        if grams:
            gram, number = Counter(grams).most_common(1)[0]
            c[f"top_{n}gram_chars"] = number * (sum(map(len, gram)) + (0 if zh else n - 1)) if number >= 2 else 0
    for n in range(5, 11):
        seen, k = set(), 0
        while k <= len(words) - n:
            gram = tuple(words[k : k + n])
            if gram in seen:
                c[f"repeated_{n}gram_chars"] += sum(map(len, gram))
                k += n
            else:
                seen.add(gram)
                k += 1
    grams = [tuple(words[k : k + 13]) for k in range(len(words) - 12)]
    c["compared_13grams"] = len(grams)
    c["repeated_13grams"] = sum(number for number in Counter(grams).values() if number > 1)
    return c, -sum(share * math.log(share) for share in shares)
