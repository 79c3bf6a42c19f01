"""HTML -> T0: main content with its structure, code and formulas marked as protected by U+0002 ... U+0003.

Marks are never nested and never empty; all other U+0000, U+0002, U+0003 and lone surrogates are removed from the
input first, in the text and as character references, so that no page can forge them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from resiliparse.extract.html2text import extract_plain_text

from data_factory.config import Read
from data_factory.encodings import decode_html, decode_text, sanitise
from data_factory.formulas import END, START, mark_formulas
from data_factory.html_tables import BREAK, CELL, join_rows, mark_tables
from data_factory.sources.record import Record
from data_factory.trafilatura_worker import ExtractTimeout, Trafilatura

__all__ = [
    "END",
    "START",
    "ExtractTimeout",
    "decode_html",
    "decode_text",
    "extract",
    "mark_fences",
    "record_text",
    "sanitise",
]

_MARKS = re.compile("[\x02\x03]")
_FORGED = re.compile(r"&#(?:[xX]0*[02356](?![0-9a-fA-F])|0*[02356](?![0-9]));?")
# Elements that matter before parsing. Attributes are bounded and hold no angle bracket, which keeps the search linear
# on any input; code on one line, by far the most frequent, is passed over inside the pattern.
_TAG = re.compile(
    r"<(?:!--|(pre|math|textarea|script|style)(?=[\s>/])([^<>]{0,2000})>|(code)(?=[\s>/])([^<>]{0,2000})>(?![^<\n]{0,200}</code>))",
    re.IGNORECASE,
)
_HINTS = ("<code", "<pre", "<math", "<textarea", "math/tex")
_CLOSE = {
    name: re.compile(rf"</{name}\s*>", re.IGNORECASE) for name in ("pre", "code", "math", "textarea", "script", "style")
}
_HIDING = re.compile(
    r"<span[^<>]{0,300}(?:mwe-math-mathml|katex-mathml|MJX_Assistive)[^<>]{0,300}>(?=\s*<math)", re.IGNORECASE
)
_TEX = re.compile(r"<annotation[^<>]{0,300}application/x-tex[^<>]{0,300}>([^<]*)</annotation>", re.IGNORECASE)
_ALTTEXT = re.compile(r"\balttext\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE)
_CODE_AREA = re.compile(
    r"\b(?:class|id|name)\s*=\s*[\"'][^\"']*(?:code|source|snippet|highlight|crayon)", re.IGNORECASE
)
_MATH_SCRIPT = re.compile(r"type\s*=\s*[\"']?math/(?:tex|asciimath)", re.IGNORECASE)
_BREAK = re.compile(r"<br\b", re.IGNORECASE)
_BLOCK = re.compile(r"<(/?)(?:div|ul|ol|article|footer)(?=[\s>])", re.IGNORECASE)
_LIST_TAG = re.compile(r"</?(?:ul|ol|li|menu|dir)(?=[\s>])", re.IGNORECASE)
# resiliparse takes a text that is one character of three bytes for an icon of an icon font, and so loses <b>中</b>. A
# control character beside it, removed afterwards, prevents that; the private use area, where icons are, is left to
# it.
_LONE = re.compile(r">([ \t\r\n]*(?:[\u0800-\ud7ff\uf900-\uffff]|&#[xX]?[0-9a-fA-F]{2,6};)[ \t\r\n]*)(?=<)")
_BESIDE = "\x04"
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,}(?=[^`\n]*$)|~{3,})[^\n]*$", re.MULTILINE)
# resiliparse takes every unnumbered list fewer than four levels below the body for navigation, with or without links
# in it, and loses a tenth of the lines of hand-written pages so. Wrapped lists are deep enough; lists made of links
# still fall by its other rule.
_WRAP, _UNWRAP = "<section><section><section>", "</section></section></section>"
_LISTS = tuple(
    (f"<{ul}", ((f"<{ul}>", f"{_WRAP}<{ul}>"), (f"<{ul} ", f"{_WRAP}<{ul} "), (f"</{ul}>", f"</{ul}>{_UNWRAP}")))
    for ul in ("ul", "UL")
)
# An XHTML page may close any element with />, which an HTML parser ignores: <a id="x"/> would make the rest of the
# page a link, <script src="x"/> a script.
_SELF_CLOSED = re.compile(
    r"<(a|b|i|p|em|td|th|li|div|span|code|script|style|title|iframe|textarea)((?:\s[^<>]*)?)/>", re.IGNORECASE
)
_XHTML = re.compile(r"^\s*<\?xml|<!DOCTYPE[^<>]*XHTML", re.IGNORECASE)
# Line numbers beside code, and the second, visual form of formulas whose TeX is taken.
_SKIP = [
    ".linenos",
    ".lineno",
    ".linenodiv",
    ".gutter",
    ".line-numbers-rows",
    ".katex-html",
    ".MathJax_Preview",
    ".mwe-math-fallback-image-inline",
    ".mwe-math-fallback-image-display",
]
_SKIP_HINTS = ("lineno", "gutter", "line-numbers", "katex", "MathJax", "mwe-math")
_MAX_DEPTH = 512  # of block elements, as in browsers
_DEPTH_COST = 1 << 30  # nesting depth times page length above which main-content rules, quadratic in both, are left out


def extract(html: str, read: Read) -> str:
    """T0 of an HTML page with marks around code and formulas, by the extractor that `read` names.

    Raises `ExtractTimeout` when trafilatura takes longer than `read.extract_seconds`.
    """
    html = sanitise(html)
    if "&#" in html:
        html = _FORGED.sub("", html)
    if read.extractor == "trafilatura":
        return mark_formulas(_settle(Trafilatura.shared().extract(html, read.extract_seconds)))
    if "/>" in html and _XHTML.search(html[:600]):
        html = _SELF_CLOSED.sub(r"<\1\2></\1>", html)
    html = html.replace(_BESIDE, "")
    lone = not html.isascii() or "&#" in html
    if lone:
        html = _LONE.sub(rf">\1{_BESIDE}", html)
    shallow = _is_shallow(html)
    if not shallow:
        html = _LIST_TAG.sub("<p", html)  # each list item is indented by its depth: quadratic too
    for opening, tags in _LISTS:
        if opening in html:
            for tag, wrapped in tags:
                html = html.replace(tag, wrapped)
    if "<math" in html:
        html = _HIDING.sub("<span>", html)
    skip = None
    if any(hint in html for hint in _HINTS) or ("<BODY" in html and any(hint.upper() in html for hint in _HINTS)):
        html = "".join(_marked(html))
        skip = _SKIP if any(hint in html for hint in _SKIP_HINTS) else None
    if "</table" in html or "</TABLE" in html:
        html = mark_tables(html.replace(CELL, " ").replace(BREAK, " "))
    text = extract_plain_text(html, preserve_formatting=True, main_content=shallow, alt_texts=False, skip_elements=skip)
    return mark_formulas(_settle(join_rows(text.replace(_BESIDE, "") if lone else text)))


def record_text(record: Record, read: Read) -> str:
    """T0 of a record, marked, whatever its form."""
    if isinstance(record.content, str):
        return mark_fences(record.content)
    if record.is_html:
        return extract(decode_html(record.content, record.charset)[0], read)
    return mark_fences(decode_text(record.content, record.charset)[0])


def _is_shallow(html: str) -> bool:
    """Whether main-content rules end in bounded time: each block element that they look at costs the length of its
    content.
    """
    if len(html) < 1 << 16:
        return True
    if (html.count("<div") + html.count("<DIV") + html.count("<ul") + html.count("<article")) * len(html) < _DEPTH_COST:
        return True
    depth = deepest = 0
    for match in _BLOCK.finditer(html):
        depth = max(depth - 1, 0) if match[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest <= _MAX_DEPTH and deepest * len(html) < _DEPTH_COST


def _marked(html: str) -> Iterator[str]:
    """Pieces of `html` with marks around code and formulas."""
    at = 0
    missing: set[str] = set()
    search = _TAG.search
    while (tag := search(html, at)) is not None:
        yield html[at : tag.start()]
        at = tag.end()
        if tag[0] == "<!--":
            end = html.find("-->", at)
            yield tag[0] if end < 0 else html[tag.start() : end]
            at = max(at, end)
            continue
        name = (tag[1] or tag[3]).lower()
        close = _CLOSE[name].search(html, at) if name not in missing else None
        if close is None:
            missing.add(name)
            yield tag[0]
            continue
        inner, at = html[at : close.start()], close.end()
        yield _element(name, tag, inner, close[0])
    yield html[at:]


def _element(name: str, tag: re.Match[str], inner: str, close: str) -> str:
    """One element with marks where it is code or a formula, unchanged where it is not."""
    attributes = tag[2] or ""
    if name == "pre":
        # the parser removes a line break right behind <pre>, and must still find it there
        first = inner[: 2 if inner.startswith("\r\n") else 1 if inner.startswith("\n") else 0]
        return f"{tag[0]}{first}{START}{inner[len(first) :]}{END}{close}"
    if name == "code":
        if inner.strip().count("\n") >= 2:
            return f"<pre>{START}{inner}{END}</pre>"
        return f"{tag[0]}{START}{inner}{END}{close}" if _BREAK.search(inner) else tag[0] + inner + close
    if name == "math":
        tex, alt = _TEX.search(inner), _ALTTEXT.search(attributes)
        if tex or alt:
            inner = tex[1].strip() if tex else (alt[1] or alt[2] or "") if alt else ""
            return f"<span>{START}{inner}{END}</span>"
        return f"{tag[0]}{START}{inner}{END}{close}"
    if name == "textarea" and _CODE_AREA.search(attributes):
        return f"<pre>{START}{inner.replace('<', '&lt;').replace('>', '&gt;')}{END}</pre>"
    if name == "script" and _MATH_SCRIPT.search(attributes):
        return f"<span>{START}{escape(inner, quote=False)}{END}</span>"
    return tag[0] + inner + close


def _settle(text: str) -> str:
    """Keep whole, outermost, non-empty marks; move them inside the whitespace around their content."""
    if START not in text and END not in text:
        return text
    pieces: list[str] = []
    at = depth = opened = 0
    for match in _MARKS.finditer(text):
        if match[0] == START:
            if depth == 0:
                pieces.append(text[at : match.start()])
                at = opened = match.end()
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                pieces.append(_protect(text[opened : match.start()]))
                at = match.end()
    rest = text[at:]
    pieces.append(_MARKS.sub("", rest))
    return "".join(pieces)


def _protect(content: str) -> str:
    content = _MARKS.sub("", content)
    body = content.strip("\n").rstrip()
    if not body.strip():
        return content
    start = content.index(body)
    return f"{content[:start]}{START}{body}{END}{content[start + len(body) :]}"


def mark_fences(text: str) -> str:
    """Plain text or Markdown with marks around closed ``` and ~~~ fences (their lines included) and formulas
    (`formulas.py`).

    Text that its reader marked already (MediaWiki) keeps those marks alone; all other text comes without marks from
    `decode_text` and the readers.
    """
    if START in text or END in text:
        return _settle(text)
    if "```" not in text and "~~~" not in text:
        return mark_formulas(text)
    pieces = []
    at, opening = 0, None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence[1][0] == opening[1][0] and len(fence[1]) >= len(opening[1]) and fence[0].strip() == fence[1]:
            pieces += [mark_formulas(text[at : opening.start()]), START, text[opening.start() : fence.end()], END]
            at, opening = fence.end(), None
    return "".join([*pieces, mark_formulas(text[at:])])
