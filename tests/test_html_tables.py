"""Data tables come out one row a line, layout tables as before; in both languages, and in bounded time."""

from __future__ import annotations

import random
import re
import time

import pytest

from data_factory import normalize
from data_factory.batches import TextBatch
from data_factory.config import Normalize, Read
from data_factory.extract import extract
from data_factory.html_tables import mark_tables, row_text

READ = Read()


def lines(table: str) -> list[str]:
    """Lines of T1 of a page with a table between two paragraphs, without the paragraphs."""
    html = f"<html><body><main><p>Before the table.</p>{table}<p>After the table.</p></main></body></html>"
    t1, _ = normalize.clean(TextBatch.from_strings([extract(html, READ)]), Normalize())
    found = [line for line in t1.string(0).split("\n") if line]
    assert found[0] == "Before the table." and found[-1] == "After the table."
    return found[1:-1]


def table(*rows: list[str], cell: str = "<td>{}</td>", head: str = "<th>{}</th>") -> str:
    kinds = [head, *[cell] * (len(rows) - 1)]
    body = (f"<tr>{''.join(kind.format(text) for text in row)}</tr>" for kind, row in zip(kinds, rows, strict=True))
    return f"<table>\n{chr(10).join(body)}\n</table>"


ENGLISH = [["Key", "Meaning"], ["Home", "Moves to the start of the line."], ["End", "Moves to its end."]]
CHINESE = [["省份", "省会", "面积"], ["浙江", "杭州", "10.55"], ["辽", "沈阳", "14.8"]]


@pytest.mark.parametrize("rows", [ENGLISH, CHINESE])
@pytest.mark.parametrize(
    "cell", ["<td>{}</td>", "<td>{}", "<td>\n <p class='x'>{}</p>\n</td>\n", "<TD><DIV>{}</DIV></TD>", "<td><p>{}"]
)
def test_a_row_is_a_line_however_its_cells_are_written(rows: list[list[str]], cell: str) -> None:
    wanted = ["| " + " | ".join(row) for row in rows]
    assert lines(table(*rows, cell=cell)) == wanted
    assert lines(table(*rows, cell=cell, head=cell)) == wanted
    assert lines(table(*rows, cell=cell).replace("table", "TABLE").replace("tr>", "TR>")) == wanted


def test_caption_sections_and_inline_markup() -> None:
    html = (
        "<table><caption>Two<br>keys</caption><colgroup><col><col></colgroup><thead><tr><th>Key<th>Use</thead>"
        "<tbody><tr><td><code>a|b</code><td><a href=x>one</a> <b>two</b><tr><td>&lt;c&gt;&nbsp;<td><img src=x alt=no>d"
        "<tfoot><tr><td>e<td><math alttext='x_1'></math></tfoot></table>"
    )
    assert lines(html) == ["Two", "keys", "| Key | Use", "| a|b | one two", "| <c> | d", "| e | x_1"]


def test_line_breaks_and_paragraphs_inside_cells() -> None:
    many = [
        ["城市", "说明"],
        ["北京<br>上海", "两座<BR/><br />城市<br>"],
        *[["x", "y"]] * 8,
        ["a", "<p>一段。</p><p>两段。</p>"],
    ]
    found = lines(table(*many))
    assert found[:2] == ["| 城市 | 说明", "| 北京 / 上海 | 两座 / 城市"]
    assert found[-1] == "| a | 一段。两段。"  # normalisation takes the space between two Han


def test_spans_keep_columns_apart() -> None:
    html = (
        "<table><tr><th colspan=3>All of it</th></tr><tr><th rowspan='2'>A<th colspan=\"2\">B</tr><tr><td>c<td>d</tr>"
        "<tr><td>e<td colspan=2>f</tr><tr><td colspan=2>g<td>h</tr></table>"
    )
    assert lines(html) == ["All of it", "| A | B", "| | c | d", "| e | f", "| g | | h"]
    wide = "<table>" + "<tr><td rowspan=999 colspan=60>a<td>b<td>c</tr>" * 3 + "</table>"
    assert lines(wide) == ["| a | b | c"] * 3


def test_empty_cells_stay_and_rows_without_text_go() -> None:
    rows = [["", "2023", "2024"], ["税收", "", "7"], ["", "", ""], ["费用", "5", ""]]
    assert lines(table(*rows)) == ["| | 2023 | 2024", "| 税收 | | 7", "| 费用 | 5 |"]


LAYOUT = {
    "one column": "<table><tr><td>a</td></tr><tr><td>b</td></tr></table>",
    "one row": "<table><tr><td>a</td><td>b</td></tr></table>",
    "an icon beside text": "<table><tr><td><img src=x></td><td>Note</td></tr><tr><td></td><td>Text of it.</td></tr></table>",
    "lists": table(["a", "<ul><li>b</ul>"], ["c", "d"], ["e", "f"]),
    "headings": table(["<h2>a</h2>", "b"], ["c", "d"], ["e", "f"]),
    "code": table(["a", "<pre>b\nc</pre>"], ["c", "d"], ["e", "f"]),
    "code with breaks": table(["a", "<code>\x02b<br>c\x03</code>"], ["c", "d"], ["e", "f"]),
    "a form": table(["Name", "<input name=a>x"], ["Word", "<input name=b>y"]),
    "paragraphs": table(["a", "b"], ["<p>c</p><p>d</p>", "<p>e</p><p>f</p>"]),
    "long cells": table(["a", "b"], ["An article. " * 50, "另一篇文章。" * 100], ["c", "d"]),
    "presentation": table(["a", "b"], ["c", "d"]).replace("<table", "<table role=presentation"),
    "navigation": table(["a", "b"], ["c", "d"]).replace("<table", '<table class="x nav_table"'),
    "links": table(*[["<a href=x>上一页</a>", "[<a href=y>下一页</a>]"]] * 3, head="<td>{}</td>"),
    "script": "<script>document.write('<table><tr><td>a<td>b<tr><td>c<td>d');</script></table>",
    "no end": "<table><tr><td>a<td>b<tr><td>c<td>d",
}


@pytest.mark.parametrize("kind", LAYOUT)
def test_layout_tables_are_left_alone(kind: str) -> None:
    assert mark_tables(f"<p>x</p>{LAYOUT[kind]}<p>y</p>") == f"<p>x</p>{LAYOUT[kind]}<p>y</p>"


def test_links_below_headings_are_data() -> None:
    linked = table(
        ["Country", "Capital"], ["<a href=x>Peru</a>", "<a href=y>Lima</a>"], ["<a href=z>Chad</a>", "N'Djamena"]
    )
    assert lines(linked) == ["| Country | Capital", "| Peru | Lima", "| Chad | N'Djamena"]


def test_of_nested_tables_the_inner_one_can_be_data() -> None:
    html = f"<table><tr><td>左边</td><td>{table(*CHINESE)}</td></tr><tr><td>下面</td><td>末尾</td></tr></table>"
    found = lines(html)
    assert [line for line in found if line.startswith("|")] == ["| " + " | ".join(row) for row in CHINESE]
    assert found[0] == "左边" and "下面" in found[-1]


def test_marks_cannot_be_forged() -> None:
    forged = table(["a\x05", "b&#5;&#x06;"], ["c\x06", "d"], ["e", "f"])
    assert lines(forged) == ["| a | b", "| c | d", "| e | f"]
    assert lines("<p>x\x05y &#5;z</p>") == ["xy z"]


def test_row_text() -> None:
    assert row_text([" a ", "", "b\x06\x06 c\x06"]) == "| a | | b / c"
    assert (row_text(["title"]), row_text(["", ""])) == ("title", "")


def test_all_text_is_kept_on_random_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(8)
    parts = ["<tr>", "<td>", "<th>", "</td>", "</tr>", "<p>", "</p>", "<br>", "<div>", "</div>", "<b>", "</b>", "<td colspan=2>",
             "<td rowspan=3>", "<a href=x>", "</a>", "<table>", "</table>", " ", "中文", "word", "<caption>", "&nbsp;"]  # fmt: skip
    weights = [8 if part in ("<tr>", "<td>", "word", "中文", "</p>") else 1 for part in parts]
    marked = 0
    for _ in range(400):
        body = "".join(rng.choices(parts, weights, k=60))
        html = f"<html><body><table>{body}</table></body></html>"
        changed = mark_tables(html)
        marked += changed != html

        with_rows = extract(html, READ)
        with monkeypatch.context() as patch:
            patch.setattr("data_factory.extract.mark_tables", lambda page: page)
            without = extract(html, READ)
        assert re.findall("word|[中文]", with_rows) == re.findall("word|[中文]", without)
        assert "\x05" not in with_rows and "\x06" not in with_rows
    assert marked >= 20


@pytest.mark.parametrize(
    "unit",
    ["<table>", "<table></table>", "<table><tr><td>", "<table><tr><td>a<td>b<tr><td>c<td>d</table>", "<td rowspan=999>a<tr>",
     "<a href=x>", "<br>", "&nbsp;", "<p>", "<table class='", "<td class='nav", "colspan=2"],
)  # fmt: skip
def test_time_is_bounded(unit: str) -> None:
    start = time.process_time()
    mark_tables(unit * (1_000_000 // len(unit)))
    mark_tables("<table><tr><td>a<td>b<tr><td>c<td>d<td>" + unit * (1_000_000 // len(unit)) + "</table>")
    assert time.process_time() - start < 6
