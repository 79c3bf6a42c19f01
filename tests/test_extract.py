"""Encodings, extraction with protected marks, and the killable worker."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from data_factory.config import Read
from data_factory.encodings import codec
from data_factory.extract import ExtractTimeout, decode_html, decode_text, extract, mark_fences, sanitise
from data_factory.trafilatura_worker import Trafilatura

CRAWL = Path(__file__).parents[2] / "shared" / "data" / "crawl"
READ = Read()
WELL_FORMED = re.compile("[^\x02\x03]*(?:\x02[^\x02\x03]+\x03[^\x02\x03]*)*")
CHINESE = (
    "<html><head>{}</head><body><p>中文网页的编码声明常常是错的，读者要自己判断。繁體與简体都有。</p></body></html>"
)


def page(body):
    return f"<html><body><main>{body}</main></body></html>"


@pytest.mark.parametrize(
    ("encoding", "charset", "meta", "used"),
    [
        ("gb18030", "gb2312", "", "gb18030"),
        ("gb18030", "", '<meta charset="GBK">', "gb18030"),
        ("gb18030", "", '<meta http-equiv="Content-Type" content="text/html; charset=gb2312">', "gb18030"),
        ("gb18030", "ISO-8859-1", '<meta charset="gb2312">', "gb18030"),
        ("gb18030", "", "", "gb18030"),
        ("utf-8", "gb2312", '<meta charset="gbk">', "utf-8"),
        ("utf-8", "", "", "utf-8"),
        ("utf-8-sig", "big5", "", "utf-8"),
        ("utf-16", "", "", "utf-16-le"),
    ],
)
def test_decode_html(encoding, charset, meta, used):
    html = CHINESE.format(meta)
    assert decode_html(html.encode(encoding), charset) == (html, used)


def test_decode_other_encodings():
    big5 = '<meta charset="big5"><p>繁體中文網頁的內容，香港的「嘅」字也在其中。</p>'
    assert decode_html(big5.encode("big5hkscs"), "") == (big5, "big5hkscs")
    latin = "<p>caf\u00e9 \u201cquoted\u201d</p>"
    assert decode_html(latin.encode("cp1252"), "iso-8859-1") == (
        latin,
        "cp1252" if codec("latin1") == "cp1252" else codec("latin1"),
    )
    japanese = "<p>日本語のページです。漢字とかな。</p>"
    assert decode_html(japanese.encode("cp932"), "shift_jis")[0] == japanese
    assert decode_html("<p>联通</p>".encode("gbk"), "gb2312")[0] == "<p>联通</p>"  # these bytes are valid UTF-8 too


def test_undecodable_bytes_are_replaced_and_countable():
    text, used = decode_html("<p>好的内容</p>".encode() + b"\xff\xfe\xff", "utf-8")
    assert used == "utf-8" and text.startswith("<p>好的内容") and text.count("\ufffd") == 3
    text, _ = decode_text(bytes(range(256)) * 3, "nonsense")
    assert isinstance(text, str) and "\x02" not in text and "\x00" not in text


def test_decoding_never_fails():
    rng = random.Random(2)
    labels = [
        "",
        "utf-8",
        "gbk",
        "big5",
        "utf-16",
        "iso-2022-jp",
        "hz-gb-2312",
        "x",
        "utf-7",
        "euc-kr",
        "shift_jis",
        "rot13",
        "idna",
    ]
    for _ in range(300):
        text, used = decode_html(rng.randbytes(rng.randrange(200)), rng.choice(labels))
        assert used
        sanitise(text).encode()


def test_structure_is_kept_and_navigation_goes():
    text = extract(
        "<html><body><nav><ul><li><a href=/>Home</a></ul></nav><main><h1>Title</h1><p>One<br>two.</p><ul><li>a point<li>another point</ul>"
        "<ol><li>first</ol><p>三。</p></main><footer>Copyright</footer></body></html>",
        READ,
    )
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    assert lines == ["Title", "One", "two.", "• a point", "• another point", "1. first", "三。"]


def test_code_is_marked_and_unchanged():
    code = "def f(x):\n\tif x < 1 & 2:\n        return [ ]\n\n\n    # 注释  两个空格"
    escaped = code.replace("&", "&amp;").replace("<", "&lt;")
    for tags in (
        "<pre>{}</pre>",
        "<pre class=x><code>\n{}\n</code></pre>",
        "<code>{}</code>",
        "<textarea class='code'>{}</textarea>",
        "<li>a<PRE>{}</PRE>",
    ):
        text = extract(page("<p>before <code>inline</code></p>" + tags.format(escaped) + "<p>after</p>"), READ)
        assert f"\x02{code}\x03" in text, tags
        assert text.count("\x02") == 1 and "before inline" in text and "after" in text


def test_line_numbers_are_not_code():
    html = '<table class="highlighttable"><tr><td class="linenos"><pre>1\n2</pre></td><td class="code"><pre>a = 1\nb = 2</pre></td></tr></table>'  # noqa: E501
    assert extract(page(html), READ).strip() == "\x02a = 1\nb = 2\x03"


def test_formulas():
    tex = r"\frac{a}{b} &lt; c"
    wiki = (
        f'<p>令 <span class="mwe-math-element"><span class="mwe-math-mathml-inline mwe-math-mathml-a11y" style="display: none;"><math alttext="no"><semantics>'  # noqa: E501
        f'<mrow><mi>a</mi></mrow><annotation encoding="application/x-tex">{tex}</annotation></semantics></math></span>'
        f'<img class="mwe-math-fallback-image-inline" alt="no"></span> 成立。</p>'
    )
    assert extract(page(wiki), READ) == "令 \x02\\frac{a}{b} < c\x03 成立。"
    assert extract(page('<p>x <math alttext="a+b"><mi>q</mi></math> y</p>'), READ) == "x \x02a+b\x03 y"
    assert extract(page('<p>x <script type="math/tex">a<b</script> y</p>'), READ) == "x \x02a<b\x03 y"


def test_marks_cannot_be_forged():
    forged = "<p>a \x02b\x03 &#2;c&#3; &#x02;d&#X0003; &#0002e &#x2f; \x00</p><pre>x &#2;y\x03\n&#3;</pre>"
    assert extract(page(forged), READ).split() == ["a", "b", "c", "d", "e", "/", "\x02x", "y\x03"]


@pytest.mark.parametrize(
    "html",
    [
        "<pre>never closed <p>text",
        "</pre></code> text",
        "<!-- <pre> --> text <pre></pre>",
        "<script>var a = '<pre>';</script><p>text</p><pre>x</pre>",
        "<pre><pre>a</pre>text</pre></pre>",
        "<code>\n<pre>a\n</pre>\nb\n</code> text",
        "<math><math>a</math></math> text <math",
        "<p title='<pre>'>text</p></pre>",
        "text &#xD800; \ud800",
    ],
)
def test_broken_markup_leaves_marks_well_formed(html):
    text = extract(page(html), READ)
    assert WELL_FORMED.fullmatch(text) and "text" in text
    text.encode()


def test_random_markup_leaves_marks_well_formed():
    rng = random.Random(4)
    parts = [
        "<pre>",
        "</pre>",
        "<code>",
        "</code>",
        "\n",
        "<math>",
        "</math>",
        "<!--",
        "-->",
        "<script>",
        "</script>",
        "<ul>",
        "</ul>",
        "<li>",
        "中",
        "a ",
        "<br>",
        "&#2;",
        "\x03",
        "<textarea class=code>",
        "</textarea>",
        "<p>",
        "<div>",
        "</div>",
        "<pre",
        ">",
    ]
    for _ in range(500):
        assert WELL_FORMED.fullmatch(extract(page("".join(rng.choices(parts, k=40))), READ))


def test_single_chinese_characters_between_tags_stay():
    text = extract(
        page(
            "<h1><b>第</b> <i>一</i><span>章</span></h1><p>&#20196; <math alttext='x'></math> 成立<b>。</b></p><i>\ue000</i>"
        ),
        READ,
    )
    assert [line for line in text.split("\n") if line] == ["第 一章", "令 \x02x\x03 成立。"]


def test_xhtml_empty_elements_do_not_swallow_the_page():
    head = '<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x"><html><head><script src="a.js"/><title>t</title></head>'  # noqa: E501
    html = (
        head
        + '<body><div><h1><a id="top"/>Title</h1><div class="toc"/><p>Some words. <a href="http://x/">link</a></p></div></body></html>'
    )
    assert [line for line in extract(html, READ).split("\n") if line] == ["Title", "Some words. link"]
    slashes = (
        head
        + '<body><p>One<a id="a/b"  class=c/d//>two<span\n/> three <i / >four</i> <a href=/x/y/>five</a></p></body></html>'
    )
    assert extract(slashes, READ) == "Onetwo three four five"


@pytest.mark.parametrize(
    "unit",
    [
        "<div>x ",
        "<pre",
        "<code>",
        "<math>",
        "<ul><li>x",
        "<a href=x>y",
        "<!--",
        "&#",
        "<div class=a>x <a>y</a>",
        "<pre>\n",
    ],
)
def test_time_is_bounded_on_hostile_pages(unit):
    start = time.process_time()
    extract("<html><body>" + unit * (600_000 // len(unit)), READ)
    assert time.process_time() - start < 10


def test_single_line_page():
    start = time.process_time()
    text = extract(page("<p>" + "word 词 " * 700_000 + "</p>"), READ)
    assert len(text) > 4_000_000 and time.process_time() - start < 10


def test_fences_and_formulas_in_plain_text():
    text = "a\n```python\nx = 1\n```\nb $$x^2$$ c $$ 5 and $$ 6\n~~~\ny\n```\n~~~\n```\nopen"
    assert (
        mark_fences(text)
        == "a\n\x02```python\nx = 1\n```\x03\nb \x02$$x^2$$\x03 c $$ 5 and $$ 6\n\x02~~~\ny\n```\n~~~\x03\n```\nopen"
    )
    assert mark_fences("plain") == "plain"
    assert mark_fences("kept \x02code\x03 ```") == "kept \x02code\x03 ```"
    assert mark_fences("torn \x02code ```") == "torn code ```"


def test_trafilatura_worker():
    pytest.importorskip("trafilatura")
    read = Read(extractor="trafilatura", extract_seconds=60.0)
    html = page(
        "<article><h1>Title</h1>"
        + "<p>A paragraph with enough words in it to be taken for content by anyone.</p>" * 5
        + "<pre>x = 1\n    y = 2</pre></article>"
    )
    text = extract(html, read)
    assert (
        "A paragraph with enough words" in text and "\x02x = 1\n    y = 2\x03" in text and WELL_FORMED.fullmatch(text)
    )
    assert extract("", read) == ""
    process = Trafilatura.shared()._process
    with pytest.raises(ExtractTimeout, match="extract_seconds"):
        extract(
            page("<article>" + "<p>Enough words, and more of them.</p>" * 20_000),
            Read(extractor="trafilatura", extract_seconds=0.01),
        )
    assert process.poll() is not None  # killed
    assert "A paragraph" in extract(html, read)  # and replaced
    Trafilatura.shared()._process.kill()
    with pytest.raises(RuntimeError, match="died"):
        extract(html, read)
    assert "A paragraph" in extract(html, read)
    Trafilatura.shared().close()


def test_real_pages():
    if not CRAWL.exists():
        pytest.skip("the shared crawl is not here")
    from collections import Counter

    from data_factory.config import Source
    from data_factory.sources import read_unit
    from data_factory.sources.record import Unit

    path = CRAWL / "docs-000.warc.gz"
    unit = Unit(0, "s", str(path), path.name, "warc", "gz", 0, path.stat().st_size, 0, 400)
    marked = codes = 0
    for item in read_unit(unit, Source(name="s", paths=["x"]), READ, Counter()):
        html, used = decode_html(item.content, item.charset)
        text = extract(html, READ)
        assert used == "utf-8" and WELL_FORMED.fullmatch(text)
        codes += "<pre" in html
        marked += "\x02" in text
    assert codes and marked >= 0.95 * codes
