"""Data tables of HTML come out one row a line, `| cell | cell`; layout tables stay as they are.

The extractor writes every block element on lines of its own, so a table whose cells hold paragraphs falls into one cell
a line and looks like a menu. `mark_tables` marks the cells of data tables before extraction and makes their blocks
inline; `join_rows` turns the marks into bars afterwards. Bars, not tabs: normalisation makes one space of a run of
white space, which would join the cells, and lets bars be. A bar before the first cell: the line rules take a line that
starts with one for a table's row, not for a navigation path (Home | Moves to the start). None after the last: it would
hide the mark that ends a sentence from the rules that count such lines.

A data table is an innermost table with at least two rows of at least two cells that hold text. It is not marked as
`role=presentation` or as navigation and holds no lists, headings, code, forms, scripts or other blocks but paragraphs
and divisions; at most a tenth of its cells hold several paragraphs or more than 400 characters; and, unless it begins
with a row of headings, at most 70 % of them are nothing but links (navigation, indexes).

Line breaks inside a cell become ` / `. Columns stay columns: empty cells stand where a cell spans columns or rows. A
row of one cell (a heading across the table) is a plain line, as is the caption.
"""

from __future__ import annotations

import re

CELL, BREAK = "\x05", "\x06"  # not in any text that the extractor is given
LONG = 400  # characters above which a cell is a paragraph
_MAX_COLUMNS = 64  # the spans of wider tables are left alone
_PART = re.compile(r"<(t[rdh])(?=[\s>/])([^<>]{0,1000})>", re.IGNORECASE)
_NAVIGATION = re.compile(
    r"<table[^<>]{0,500}?\b(?:role|class|id|summary)\s?=\s?(?:\"[^\"<>]{0,500}?|'[^'<>]{0,500}?)?\b"
    r"(?:presentation|none|nav|navbox|navbar|navigation|menu|pager)(?![a-z])",
    re.IGNORECASE,
)
_BLOCK = re.compile(
    r"<(?:/?script|/?textarea|pre|[uod]l|h[1-6r]|form|input|select|button|iframe|blockquote|center|section|article|"
    r"address|figure|details|nav|menu|object)\b|<code[^<>]*>\x02",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[^<>\x05]*>")
_LINK = re.compile(r"<a\b[^<>\x05]*\bhref\b[^<>\x05]*>[^\x05]{0,1000}?</a\b", re.IGNORECASE)
_WORDY = re.compile(r"[^\W_]")
_PARAGRAPH = re.compile(r"<p(?=[\s>])", re.IGNORECASE)
_OPEN = re.compile(r"<(?:p|div)(?=[\s>])", re.IGNORECASE)
_CLOSE = re.compile(r"</(?:p|div)\s*>", re.IGNORECASE)
_BR = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_SPAN = re.compile(r"\b(col|row)span\s*=\s*[\"']?\s*(\d{1,4})", re.IGNORECASE)
_SPANNING = re.compile(r"pan\s?=\s?[\"']?0*(?:[2-9]|[1-9]\d)")  # of colspan and rowspan; a literal start makes it fast
_ROW = re.compile("\x05[^\n]*")


def mark_tables(html: str) -> str:
    """`html` with U+0005 at the start of every cell of a data table, U+0006 for its line breaks, and no other blocks."""
    if "<TABLE" in html:
        html = html.replace("<TABLE", "<table").replace("</TABLE", "</table")
    pieces: list[str] = []
    done = at = 0
    while (end := html.find("</table", at)) >= 0:
        start = html.rfind("<table", at, end)  # the innermost: an outer table finds none
        at = end + len("</table")
        if start >= 0 and (marked := _marked(html[start:end])):
            pieces += [html[done:start], marked]
            done = end
    return "".join([*pieces, html[done:]]) if pieces else html


def join_rows(text: str) -> str:
    """Extracted `text` with marked cells as rows; to be called on the text of a page that `mark_tables` changed."""
    if CELL in text:
        text = _ROW.sub(_row, text)
    return text.replace(BREAK, "\n") if BREAK in text else text


def _row(match: re.Match[str]) -> str:
    return row_text(match[0].split(CELL)[1:])


def row_text(cells: list[str]) -> str:
    """The line of a row; U+0006 in a cell is a line break."""
    cells = [cell.strip() for cell in cells]
    if any(BREAK in cell for cell in cells):
        cells = [" / ".join(filter(None, map(str.strip, cell.split(BREAK)))) for cell in cells]
    if len(cells) == 1 or not any(cells):
        return cells[0]
    return " ".join([f"| {cell}" if cell else "|" for cell in cells])


def _marked(table: str) -> str:
    """A table without its end tag, marked, or "" when it is no data table."""
    if table.count("<tr") + table.count("<TR") < 2 or _NAVIGATION.match(table):
        return ""
    parts = _PART.split(table)  # text before, then (name, attributes, content) of every row and cell
    kinds = "".join([name[1] for name in parts[1::3]]).lower()  # r, d, h
    if not _is_data(kinds, parts[3::3]) or _BLOCK.search(table):
        return ""
    pads = _empty_cells(parts) if _SPANNING.search(table) or "SPAN" in table else {}
    pieces = [parts[0]]
    for i in range(1, len(parts), 3):
        name, attributes, content = parts[i : i + 3]
        pieces.append(f"<{name}{attributes}>{'' if name[1] in 'rR' else CELL * (1 + pads.get(i, 0))}{content}")
    marked = _CLOSE.sub("</span> ", _OPEN.sub(" <span", "".join(pieces)))
    return _BR.sub(BREAK, marked) if "<br" in marked or "<BR" in marked else marked


def _is_data(kinds: str, contents: list[str]) -> bool:
    """Whether rows (kind r) and cells (d and h) with these contents are data; what costs least is tested first."""
    if sum(len(row) >= 2 for row in kinds.split("r")) < 2:
        return False
    joined = CELL.join(contents)
    texts = _TAG.sub("", joined).replace("&nbsp;", " ").replace("&#160;", " ")
    sizes = [len(text.strip()) for text in texts.split(CELL)]
    filled = "".join([kind if size or kind == "r" else "" for kind, size in zip(kinds, sizes, strict=True)])
    rows = [row for row in filled.split("r") if len(row) >= 2]
    cells = [i for i, kind in enumerate(kinds) if sizes[i] and kind != "r"]
    blocks = sum(sizes[i] > LONG or _paragraphs(contents[i]) > 1 for i in cells)
    if len(rows) < 2 or 10 * blocks > len(cells):
        return False
    if "d" not in rows[0] or ("href" not in joined and "HREF" not in joined):
        return True
    rest = _TAG.sub("", _LINK.sub("", joined)).split(CELL)
    links = sum("href" in contents[i].lower() and not _WORDY.search(rest[i]) for i in cells)
    return 10 * links <= 7 * len(cells)


def _paragraphs(content: str) -> int:
    return len(_PARAGRAPH.findall(content)) if content.count("<p") + content.count("<P") > 1 else 0


def _empty_cells(parts: list[str]) -> dict[int, int]:
    """Position of a cell in `parts` -> columns between it and the cell before it that other cells span; none at all
    when they would outnumber the cells by far.
    """
    pads: dict[int, int] = {}
    covered: dict[int, int] = {}  # column -> rows from this one on that a cell further up spans
    opened: dict[int, int] = {}  # the same of this row's cells, from the next row on
    column = pending = 0
    for i in range(1, len(parts), 3):
        if parts[i][1] in "rR":
            covered = {place: rows - 1 for place, rows in covered.items() if rows > 1} | opened
            opened = {}
            column = pending = 0
            continue
        spans = {axis.lower(): int(number) for axis, number in _SPAN.findall(parts[i + 1])}
        width, height = max(spans.get("col", 1), 1), max(spans.get("row", 1), 1)
        while column in covered:
            column += 1
            pending += 1
        pads[i] = pending
        if column + width > _MAX_COLUMNS:
            return {}
        if height > 1:
            opened |= dict.fromkeys(range(column, column + width), height - 1)
        column += width
        pending = width - 1
    return pads if sum(pads.values()) <= 2 * len(pads) else {}
