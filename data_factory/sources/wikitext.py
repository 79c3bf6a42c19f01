"""Wikitext -> plain text: templates, tables, references, files and markup go, prose stays; code and formulas are
marked as protected.

Written for prose, not for fidelity: a template's words are kept only where they are part of the sentence (languages,
links between wikis, units, quotations). Every pass is linear in the text, and nesting is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape

_START, _END = "\x02", "\x03"
_HOLD = re.compile("\x02(\\d+)\x03")
# Tags whose content is not wikitext. Protected: kept as it stands; dropped: no prose.
_PROTECTED = frozenset({"math", "source", "syntaxhighlight", "pre", "code", "chem", "ce"})
_DROPPED = frozenset(
    {
        "ref",
        "references",
        "gallery",
        "timeline",
        "imagemap",
        "graph",
        "score",
        "templatedata",
        "mapframe",
        "maplink",
        "hiero",
        "includeonly",
        "inputbox",
        "indicator",
    }
)
_RAW = re.compile(
    rf"<(?:!--|({'|'.join(sorted(_PROTECTED | _DROPPED | {'nowiki'}))})(?=[\s/>])([^<>]{{0,1000}})>)", re.IGNORECASE
)
_CLOSE = {name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in _PROTECTED | _DROPPED | {"nowiki"}}
_BREAK = re.compile(r"<(?:br|hr|/p|/div|/li|/tr|/h\d|/blockquote)\b[^<>]{0,1000}>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,1000}>")
_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|-\{|\}-|^[ \t:*]*(\{\|)|^[ \t]*(\|\})(?!\})", re.MULTILINE)
_CLOSER = {"}}": "{{", "]]": "[[", "}-": "-{", "|}": "{|"}
_MAX_DEPTH = 64
_NAMESPACES = re.compile(
    r"\s*(?:file|image|media|category|文件|档案|檔案|图像|圖像|媒体|媒體|分类|分類)\s*:", re.IGNORECASE
)
_INTERWIKI = re.compile(r"\s*[a-z]{2,3}(?:-[a-z]{2,8})*\s*:")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\[\]<>]{1,2000}(?:[ \t]+([^\[\]\n]{0,1000}))?\]")
_QUOTES = re.compile(r"'{2,5}")
_HEADING = re.compile(r"^(={1,6})[ \t]*(.+?)[ \t]*\1[ \t]*$")
_SWITCH = re.compile(r"__[A-Z]{3,30}__")
_BLANKS = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")
_VARIANT = re.compile(r"\s*(zh(?:-[a-z]{2,4})?)\s*:(.*)", re.DOTALL)
_PREFERRED = ("zh-cn", "zh-hans", "zh", "zh-sg", "zh-my")
_FIRST = frozenset(
    {
        "nowrap",
        "nobr",
        "small",
        "big",
        "le",
        "ill",
        "link-en",
        "link-ja",
        "link-de",
        "link-fr",
        "math",
        "mvar",
        "quote",
        "cquote",
        "blockquote",
    }
    | {
        "abbr",
        "em",
        "strong",
        "sup",
        "sub",
        "bd",
        "nihongo",
        "langs",
        "red",
        "tq",
        "lang-en",
        "lang-zh",
        "lang-ja",
        "lang-la",
        "lang-de",
        "lang-fr",
    }
)


def plain_text(wikitext: str) -> str:
    """Prose of a page: headings and paragraphs on lines of their own, list items with bullets; code and formulas
    between U+0002 and U+0003.
    """
    held: list[str] = []
    text = wikitext.replace("\x00", "").replace(_START, "").replace(_END, "").replace("\r\n", "\n")
    text = "".join(_hold(text, held))
    text = _resolve(text)
    text = _EXTERNAL.sub(lambda match: match[1] or "", text)
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _QUOTES.sub("", _SWITCH.sub("", text))
    text = "\n".join(_lines(unescape(text).replace("\xa0", " ").replace("\x00", "")))
    text = _BLANKS.sub("\n\n", text).strip()
    return _HOLD.sub(lambda match: held[int(match[1])] if int(match[1]) < len(held) else "", text)


def _hold(text: str, held: list[str]) -> Iterator[str]:
    """Pieces of the text without comments and dropped tags; raw content goes to `held` and leaves its number between
    marks.
    """
    at = 0
    missing: set[str] = set()
    while (tag := _RAW.search(text, at)) is not None:
        yield text[at : tag.start()]
        at = tag.end()
        if tag[1] is None:
            end = text.find("-->", at)
            at = len(text) if end < 0 else end + 3
            continue
        name = tag[1].lower()
        if tag[2].endswith("/"):
            continue
        close = _CLOSE[name].search(text, at) if name not in missing else None
        if close is None:
            missing.add(name)
            continue
        inner, at = text[at : close.start()], close.end()
        if name in _DROPPED:
            continue
        inner = inner.strip("\n")
        one_line = name in ("code", "nowiki") and "\n" not in inner
        if name == "code" and one_line:
            yield inner
        elif inner.strip():
            plain = unescape(inner).replace(_START, "").replace(_END, "")
            held.append(
                plain if name == "nowiki" else f"{_START}{plain.strip() if name == 'math' else plain.rstrip()}{_END}"
            )
            number = f"{_START}{len(held) - 1}{_END}"
            yield number if one_line or name in ("math", "nowiki", "chem", "ce") else f"\n{number}\n"
    yield text[at:]


def _resolve(text: str) -> str:
    """Replace templates, tables, links and language variants, innermost first, by the words that they leave."""
    frames: list[tuple[str, list[str]]] = [("", [])]
    at = 0
    for token in _TOKEN.finditer(text):
        symbol = token[1] or token[2] or token[0]
        start = token.start(1) if token[1] else token.start(2) if token[2] else token.start()
        if start < at:
            continue
        frames[-1][1].append(text[at:start])
        at = token.end()
        if symbol not in _CLOSER:
            if len(frames) < _MAX_DEPTH:
                frames.append((symbol, []))
            continue
        opening = _CLOSER[symbol]
        if all(kind != opening for kind, _ in frames):
            frames[-1][1].append("" if symbol in ("}}", "|}") else symbol)
            continue
        while frames[-1][0] != opening:  # something inside was never closed: its words stay
            _, pieces = frames.pop()
            frames[-1][1].extend(pieces)
        _, pieces = frames.pop()
        frames[-1][1].append(_WORDS[opening]("".join(pieces)))
    frames[-1][1].append(text[at:])
    return "".join(piece for _, pieces in frames for piece in pieces)


def _template(content: str) -> str:
    name, *arguments = content.split("|")
    name = name.strip().lower().replace("_", " ")
    plain = [item.strip() for item in arguments if "=" not in item.partition("]")[0] or item.lstrip().startswith("1=")]
    plain = [item.removeprefix("1=").strip() for item in plain]
    if name == "!":
        return "|"
    if name == "lang" and len(plain) > 1:
        return plain[1]
    if name in ("tsl", "translink", "link") and len(plain) > 1:
        return plain[2] if len(plain) > 2 and plain[2] else plain[1]
    if name in ("convert", "cvt") and len(plain) > 1:
        return f"{plain[0]} {plain[1]}"
    if name in ("frac", "sfrac") and len(plain) == 2:
        return f"{plain[0]}/{plain[1]}"
    if (name in _FIRST or name.startswith("lang-")) and plain:
        return plain[0]
    return ""


def _link(content: str) -> str:
    target, *labels = content.split("|")
    if not target.startswith(":"):
        if _NAMESPACES.match(target):
            return ""
        if not labels and _INTERWIKI.match(target):
            return ""
    label = labels[-1] if labels else target.removeprefix(":")
    return label if label.strip() or not labels else target.partition("(")[0].strip()


def _variants(content: str) -> str:
    """-{zh-hans:X;zh-hant:Y}- -> X; -{X}- -> X; -{H|...}-, -{T|...}-, -{R|X}- by their flag."""
    flag, bar, rest = content.partition("|")
    if bar and re.fullmatch(r"[A-Za-z;\s-]*", flag):
        if set(flag.upper().replace(";", "")) & set("HTN-"):
            return ""
        content = rest
    rules = {
        match[1]: match[2].strip() for part in content.split(";") if (match := _VARIANT.match(part.rpartition("=>")[2]))
    }
    if not rules:
        return content
    return next((rules[name] for name in _PREFERRED if name in rules), next(iter(rules.values())))


def _table(content: str) -> str:
    """Tables leave nothing: their cells are no sentences."""
    return ""


_WORDS: dict[str, Callable[[str], str]] = {"{{": _template, "[[": _link, "-{": _variants, "{|": _table}


def _lines(text: str) -> Iterator[str]:
    """Lines without list and heading marks; a heading without a line of text before the next heading of its level or
    above is left out.
    """
    waiting: list[tuple[int, str]] = []  # headings that no text has followed yet
    number = 0
    for raw in text.split("\n"):
        line = raw.rstrip()
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            waiting = [item for item in waiting if item[0] < level] + [(level, heading[2].strip())]
            continue
        mark = re.match(r"[*#:;]+|-{4,}", line)
        number = number + 1 if mark and mark[0].endswith("#") else 0
        body = line[mark.end() :].strip() if mark else line.strip()
        if not body:
            yield ""
            continue
        if waiting:
            for _, title in waiting:
                yield from ("", title, "")
            waiting = []
        if mark and mark[0].endswith("*"):
            yield f"• {body}"
        elif number:
            yield f"{number}. {body}"
        else:
            yield body
