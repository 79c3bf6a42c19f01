"""Remnants of HTML and templates in a line: entities, comments, template and forum code, and tags that are markup.

A tag with attributes is markup. A bare tag may be what a text about HTML speaks of (use <b> for bold text), so that it
needs a reason: its partner on the line, a line of nothing but tags, text right behind a <p> that opens the line, text
right against a <br>. <sup> and <sub> stay around an exponent or index: without them 10<sup>6</sup> is another number.
Nothing inside back-quotes is a remnant, and `a <b> c`, List<String>, <jane@example.org> never are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SURE, DOUBTFUL = 2, 1

_LAYOUT = (
    "div|span|p|br|hr|font|table|tbody|thead|tfoot|tr|td|th|caption|colgroup|ul|ol|li|dl|dt|dd|center|blockquote|nobr|big|small|"
    "strike|h[1-6]|strong|em|b|i|u|tt"
)
_OTHER = (
    "a|img|script|style|iframe|s|input|button|form|section|article|header|footer|nav|label|select|option|sup|sub|noscript|"
    "object|embed|param|figure|figcaption|picture|video|audio|ins|del|pre|code|abbr|cite"
)
_KEPT = frozenset({b"sup", b"sub"})  # these carry meaning
_ALONE = frozenset({b"br", b"hr"})
_BLOCKS = frozenset(
    b"div p table tbody thead tfoot tr td th ul ol li dl dt dd center blockquote font br hr caption".split()
)
_BB = r"url|img|quote|size|color|font|b|i|u|center|align|email|list|caption|embed|gallery|vc_\w+|audio|video|code"
_ATTRIBUTES = rb"\s+[a-zA-Z\-]+\s*=\s*(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s>&]+)[^<>\n]*?"
_REMNANT = re.compile(
    rb"(?P<sure>"
    rb"&(?:nbsp|ensp|emsp|ldquo|rdquo|lsquo|rsquo|hellip|mdash|ndash|middot|laquo|raquo|bull|zwnj|zwj|thinsp|shy);?"
    rb"|&(?:amp;)+(?:nbsp|lt|gt|quot|amp|#\d{2,6});"
    rb"|<!--(?:(?!-->)[^\n])*(?:-->)?"
    rb"|\[/?(?:" + _BB.encode() + rb")(?:\s*=[^\]\n]{1,200}|\s+\w+=[^\]\n]{1,300})\]|\[/(?:" + _BB.encode() + rb")\]"
    rb"|\[\[(?:file|image|category):[^\[\]\n]{1,300}\]\]"
    rb"|\{\{\s?[\w#/!>:\x80-\xff][^{}\n]{0,200}\}\}|\{%[^{}\n]{1,200}%\}|<%[^<>\n]{1,200}%>"
    rb")|(?:<|&lt;)(?P<closing>/?)(?P<name>(?:" + _LAYOUT.encode() + rb"|" + _OTHER.encode() + rb"))"
    rb"(?P<attributes>" + _ATTRIBUTES + rb")?\s*/?(?:>|&gt;)"
    rb"|&(?:lt|gt|amp|quot|copy|reg|apos);|&#(?:\d{2,6}|x[0-9a-fA-F]{2,5});?",
    re.IGNORECASE,
)
_IS_LAYOUT = re.compile(_LAYOUT.encode(), re.IGNORECASE)
_CODE = re.compile(rb"(`{1,3})(?:(?!\1)[^\n])+\1")
# What a text about HTML writes around a tag that it names: 标签 标记 元素 属性; 使用 用 如 像; 、 或 和.
_NAMED_BEFORE = re.compile(
    rb"(?:\b(?:tags?|elements?|use[sd]?|using|like|called)|\xe6\xa0\x87\xe7\xad\xbe|\xe6\xa0\x87\xe8\xae\xb0|\xe5\x85\x83\xe7\xb4\xa0|\xe7\x94\xa8"
    rb"|\xe5\xa6\x82|\xe5\x83\x8f)\s?\Z",
    re.IGNORECASE,
)
_NAMED_AFTER = re.compile(
    rb"\s?(?:tags?\b|elements?\b|attributes?\b|\xe6\xa0\x87\xe7\xad\xbe|\xe6\xa0\x87\xe8\xae\xb0|\xe5\x85\x83\xe7\xb4\xa0|\xe5\xb1\x9e\xe6\x80\xa7"
    rb"|\xe3\x80\x81|\xe6\x88\x96|\xe5\x92\x8c)",
    re.IGNORECASE,
)
_GENERIC = re.compile(rb"[A-Za-z0-9_]<[A-Z]>")  # List<S>; <B> right behind a word is rare in HTML
_PROGRAM = re.compile(rb"=>|[{}]|\(['\"]|>>>|\);")  # a line of a program writes tags of its own
_QUOTES = tuple(quote.encode() for quote in "\"'“”‘’「」『』\\")


@dataclass
class _Tag:
    start: int
    end: int
    name: bytes
    closing: bool
    attributes: bool
    markup: bool = False


def remnants(text: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, value) of HTML and template remnants in the line text[start:end], none inside back-quotes.

    2 = sure; 1 = doubtful: a bare tag or an entity that a text about HTML would name.
    """
    code = [(match.start(), match.end()) for match in _CODE.finditer(text, start, end)]
    found: list[tuple[int, int, int]] = []
    tags: list[_Tag] = []
    for match in _REMNANT.finditer(text, start, end):
        if any(low <= match.start() < high for low, high in code):
            continue
        if (
            match["name"]
            and len(match["name"]) == 1
            and _GENERIC.search(text, max(start, match.start() - 1), match.end())
        ):
            continue
        if match["name"] is None:
            found.append((match.start(), match.end(), SURE if match["sure"] else DOUBTFUL))
        else:
            tags.append(
                _Tag(*match.span(), match["name"].lower(), match["closing"] == b"/", match["attributes"] is not None)
            )
    if tags:
        _judge(text, start, end, tags)
        found += [(tag.start, tag.end, SURE if tag.markup else DOUBTFUL) for tag in tags]
    yield from sorted(found)


def _judge(text: bytes, start: int, end: int, tags: list[_Tag]) -> None:
    """Set `markup` of the tags of a line."""
    partner = _partners(tags)
    named = [_named(text, start, end, tag) for tag in tags]
    kept = {k for k, other in partner.items() if tags[k].name in _KEPT and _meaningful(text, tags, k, other)}
    sure = any(tag.attributes and not name for tag, name in zip(tags, named, strict=True))
    sure |= not any(named) and sum(tag.name not in _KEPT for tag in tags) >= 4
    rest = b"".join(text[low:high] for low, high in _gaps(start, end, tags))
    program = _PROGRAM.search(rest) is not None
    for number, tag in enumerate(tags):
        other = partner.get(number)
        if number in kept:
            continue
        if sure:
            tag.markup = True
        elif (
            _IS_LAYOUT.fullmatch(tag.name)
            and not program
            and not named[number]
            and not (other is not None and named[other])
        ):
            loose = tag.name in _BLOCKS and (not rest.strip() or _glued(text, start, end, tag))
            tag.markup = other is not None or loose


def _meaningful(text: bytes, tags: list[_Tag], one: int, other: int) -> bool:
    """Whether <sup> or <sub> holds an exponent or index: short, without other tags, no number of a footnote."""
    low, high = sorted((one, other))
    inner = text[tags[low].end : tags[high].start]
    return high == low + 1 and not tags[low].attributes and len(inner) <= 40 and not inner.startswith((b"[", b"&#"))


def _partners(tags: list[_Tag]) -> dict[int, int]:
    """Opening and closing tags that belong together, both ways."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for number, tag in enumerate(tags):
        if not tag.closing:
            opened.append(number)
            continue
        for place in range(len(opened) - 1, -1, -1):
            if tags[opened[place]].name == tag.name:
                pairs[number], pairs[opened[place]] = opened[place], number
                del opened[place:]
                break
    return pairs


def _gaps(start: int, end: int, tags: list[_Tag]) -> Iterator[tuple[int, int]]:
    """What stands between the tags."""
    for tag in tags:
        yield start, tag.start
        start = tag.end
    yield start, end


def _named(text: bytes, start: int, end: int, tag: _Tag) -> bool:
    """Whether the line speaks of the tag: in quotation marks, behind "use", before 标签 ..."""
    before, after = text[max(start, tag.start - 24) : tag.start], text[tag.end : min(end, tag.end + 24)]
    quoted = before.endswith(_QUOTES) and (after.startswith(_QUOTES) or before.endswith(b"\\"))
    return quoted or bool(_NAMED_BEFORE.search(before)) or bool(_NAMED_AFTER.match(after))


def _glued(text: bytes, start: int, end: int, tag: _Tag) -> bool:
    """Whether text stands right against a tag without partner, where markup would have it."""
    before, after = text[start : tag.start][-1:], text[tag.end : end][:1]
    if tag.name in _ALONE:
        return not before.isspace() or not after.isspace() if before and after else bool(before + after)
    if tag.closing:
        return not after.strip() or not before.isspace()
    return not before and not after.isspace()
