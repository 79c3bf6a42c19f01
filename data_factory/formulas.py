r"""Formulas written as TeX in running text (MathJax, Markdown, LaTeX): found, and marked as protected.

Recognised are `$$...$$`, `\[...\]`, `\(...\)`, `\begin{equation}...\end{equation}` and the other display environments, and
inline `$...$` under pandoc's rules and more, so that prices (`$5 and $10`) and shell variables (`$HOME:$PATH`) stay text.
No formula holds a blank line. Every search is bounded, so that no input costs more than linear time.
"""

from __future__ import annotations

import re

START, END = "\x02", "\x03"

_OPENING = re.compile(r"(?<!\\)\$\$?|(?<!\\)\\[\[(]|\\begin\{([a-z]{1,12}\*?)\}")
# What every match of _OPENING begins with. Its search has no literal start and is slow on long texts; looking for these
# and matching there finds the same.
_STARTS = ("$", "\\[", "\\(", "\\begin{")
_CLOSING = {r"\[": re.compile(r"\\\[|\\\]"), r"\(": re.compile(r"\\\(|\\\)")}
_ENVIRONMENTS = frozenset(
    name + star
    for name in (
        "equation",
        "align",
        "aligned",
        "gather",
        "multline",
        "eqnarray",
        "math",
        "displaymath",
        "split",
        "cases",
        "matrix",
        "pmatrix",
        "bmatrix",
    )
    for star in ("", "*")
)
_DISPLAY, _INLINE = 2000, 300  # characters of the longest formula
_TEX = re.compile(r"[\\^_={}]")
_BLANK = re.compile(r"\n[ \t]*\n")
# Without any TeX: letters that are no words, figures and signs ($x$, $n+1$, $dx/dt$, $AB > CD$); beside blanks, no two
# small letters together, and never figures alone ($5 or 6$, $100$).
_PLAIN = re.compile(
    r"(?![\d.,% ]*\Z)"
    r"(?:(?:[A-Za-z]{1,3}(?![A-Za-z])|[\d+\-*/<>()\[\],.|!:'])+|(?:[a-z](?![a-z])|[A-Z]{1,3}(?![A-Za-z])|[\d+\-*/<>()\[\],.|!:' ])+)\Z"
)
_PROSE = re.compile(r"[A-Za-z]{4,}[ ,]+[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}|[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
_COMMAND = re.compile(r"\\[A-Za-z]+\*?(?:\{[^{}]*\})?")


def mark_formulas(text: str) -> str:
    """`text` with U+0002 and U+0003 around every formula, its delimiters included; marked text stays as it is."""
    if "$" not in text and "\\" not in text:
        return text
    if START not in text:
        return _marked(text)
    pieces = []
    for number, part in enumerate(text.split(START)):
        inside, found, outside = part.partition(END) if number else ("", "", part)
        pieces.append(f"{START}{inside}{found}{_marked(outside)}" if number else _marked(outside))
    return "".join(pieces)


def _marked(text: str) -> str:
    pieces, done, at = [], 0, 0
    ahead = [(place, start) for start in _STARTS if (place := text.find(start)) >= 0]  # the next of each kind
    while ahead:
        place, start = min(ahead)
        opening = _OPENING.match(text, place) if place >= at else None
        if opening is not None:
            at = opening.end()
            end = _end(text, opening)
            if end >= 0:
                pieces += [text[done:place], START, text[place:end], END]
                done = at = end
        ahead.remove((place, start))
        place = text.find(start, max(at, place + 1))
        if place >= 0:
            ahead.append((place, start))
    return "".join([*pieces, text[done:]]) if pieces else text


def _end(text: str, opening: re.Match[str]) -> int:
    """Where the formula ends that `opening` begins, or -1 when it begins none."""
    mark, first = opening[0], opening.end()
    if mark == "$":
        return _inline_end(text, opening.start())
    if mark == "$$":
        last = text.find("$", first, first + _DISPLAY + 1)
        if (
            last < 0
            or not text.startswith("$$", last)
            or not (_TEX.search(text, first, last) or _PLAIN.match(text[first:last]))
        ):
            return -1
        end = last + 2
    elif mark in _CLOSING:
        closing = _CLOSING[mark].search(text, first, first + _DISPLAY + 2)
        if closing is None or closing[0] == mark:  # opened twice
            return -1
        last, end = closing.start(), closing.end()
    else:
        name = f"\\end{{{opening[1]}}}"
        last = text.find(name, first, first + 2 * _DISPLAY) if opening[1] in _ENVIRONMENTS else -1
        if last < 0:
            return -1
        end = last + len(name)
    content = text[first:last]
    return end if content.strip() and not _BLANK.search(content) else -1


def _inline_end(text: str, start: int) -> int:
    first = start + 1
    before, after = text[start - 1 : start], text[first : first + 1]
    if not after or after.isspace() or _joins(before):
        return -1
    last = text.find("$", first, first + _INLINE + 1)
    while last > 0 and text[last - 1] == "\\":  # \$ is a dollar
        last = text.find("$", last + 1, first + _INLINE + 1)
    if last < 0 or text[last - 1].isspace() or _joins(text[last + 1 : last + 2]) or text[last + 1 : last + 2] == "$":
        return -1
    content = text[first:last]
    if "\n" in content:
        return -1
    if _PLAIN.match(content) or (_TEX.search(content) and not _PROSE.search(_COMMAND.sub("", content))):
        return last + 1
    return -1


def _joins(character: str) -> bool:
    """Whether a dollar sign beside this character belongs to a price, a variable or a word."""
    return character.isascii() and (character.isalnum() or character in "_$\\") and character != ""
