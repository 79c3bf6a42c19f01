"""JSONL, Parquet and MediaWiki readers, and wikitext."""

from __future__ import annotations

import bz2
import json
import random
from collections import Counter
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_factory.config import Read, Source
from data_factory.sources import Damage, Record, read_unit
from data_factory.sources.record import Unit
from data_factory.sources.wikitext import plain_text
from ziya.errors import UserError


def read(path, format, compression="", cut=None, read=None, **source):
    size = path.stat().st_size
    cut = cut or size
    out = []
    for start in range(0, size, cut):
        unit = Unit(0, "s", str(path), path.name, format, compression, start, min(size, start + cut))
        out += read_unit(unit, Source(name="s", paths=["x"], **source), read or Read(), Counter())
    return out


def test_jsonl_broken_lines_cost_themselves(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "first", "url": "http://a.org", "date": "2024-05-17T23:31:22Z", "id": 7}',
        b'{"text": "truncated',
        b'{"url": "no text"}',
        b'{"text": null}',
        b'{"text": 5}',
        '{"text": "坏"}'.encode("gb18030"),
        b"[1, 2]",
        b"",
        b'{"text": "  "}',
        b'{"text": "lone \\ud83d and pair \\ud83d\\ude00", "score": NaN}',
        b'{"text": "marks \x7f \\u0000\\u0002\\u0003|"}\r',
        '{"text": "最后"}'.encode(),
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    items = read(path, "jsonl", id_field="id")
    kinds = [type(item) for item in items]
    assert kinds == [Record] + [Damage] * 6 + [Record] * 4
    assert (items[0].content, items[0].url, items[0].date, items[0].key) == ("first", "http://a.org", 1715988682, "7")
    assert [
        word in item.error
        for word, item in zip(("JSON", "missing", "missing", "int", "UTF-8", "list"), items[1:7], strict=True)
    ] == [True] * 6
    assert items[7].drop == "read.empty"
    assert items[8].content == "lone \ufffd and pair 😀"
    assert items[9].content == "marks \x7f |"
    assert items[10].content == "最后"
    for item, line in zip(items[1:7], lines[1:7], strict=True):
        assert (item.offset, item.length) == (path.read_bytes().index(line), len(line) + 1)
    for cut in (1, 7, 50, 4096):
        assert read(path, "jsonl", cut=cut, id_field="id") == items


def test_jsonl_fields(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"a": "答", "q": "问", "kind": "qa", "meta": {"url": "u", "when": 1700000000123}})
        + "\n"
        + json.dumps({"a": "x"})
        + "\n"
    )
    items = read(
        path, "jsonl", text_field="a", prompt_field="q", task_field="kind", url_field="meta.url", date_field="meta.when"
    )
    assert (items[0].content, items[0].prompt, items[0].task, items[0].url, items[0].date) == (
        "答",
        "问",
        "qa",
        "u",
        1700000000,
    )
    assert isinstance(items[1], Damage) and "'q'" in items[1].error


def test_jsonl_over_long_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "%s"}' % (b"x" * size) for size in (5, 3 << 20, 5, 1 << 19, 2 << 20)]
    path.write_bytes(b"\n".join(lines))
    for cut in (None, 1 << 18):
        items = read(path, "jsonl", cut=cut, read=Read(record_limit_bytes=1 << 20))
        assert [type(item) for item in items] == [Record, Damage, Record, Record, Damage]
        assert items[1].length == len(lines[1]) + 1


def test_parquet(tmp_path):
    rows = {
        "text": ["一", None, "", "four"],
        "url": ["a", "b", None, "d"],
        "date": [datetime(2024, 5, 17, 23, 31, 22, tzinfo=UTC)] * 4,
        "unused": [1, 2, 3, 4],
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(rows), path, row_group_size=2)
    unit = Unit(0, "s", str(path), "a", "parquet", "", 0, 2)
    items = list(read_unit(unit, Source(name="s", paths=["x"]), Read(), Counter()))
    assert [type(item) for item in items] == [Record, Damage, Record, Record]
    assert [item.offset for item in items] == [0, 1, 2, 3]
    assert items[0].date == 1715988682 and items[2].drop == "read.empty"
    with pytest.raises(UserError, match="no column 'body'"):
        list(read_unit(unit, Source(name="s", paths=["x"], text_field="body"), Read(), Counter()))


def test_parquet_bad_bytes_and_damage(tmp_path):
    path = tmp_path / "a.parquet"
    raw = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": raw}), path)
    source = Source(name="s", paths=["x"])
    items = list(read_unit(Unit(0, "s", str(path), "a", "parquet", "", 0, 1), source, Read(), Counter()))
    assert [type(item) for item in items] == [Record, Damage] and "UTF-8" in items[1].error
    pq.write_table(
        pa.table({"text": [f"{number:09}" for number in range(1000)]}),
        path,
        row_group_size=500,
        compression="zstd",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    data[4:30] = b"\xff" * 26
    path.write_bytes(data)
    items = list(read_unit(Unit(0, "s", str(path), "a", "parquet", "", 0, 2), source, Read(), Counter()))
    assert isinstance(items[0], Damage) and items[0].length == 500
    assert [item.offset for item in items[1:]] == list(range(500, 1000))
    path.write_bytes(bytes(data[:-4]))
    assert isinstance(
        next(iter(read_unit(Unit(0, "s", str(path), "a", "parquet", "", 0, 1), source, Read(), Counter()))), Damage
    )


HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10"><siteinfo><sitename>W</sitename>
<dbname>zhwiki</dbname><base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96</base></siteinfo>
"""


def wiki_page(number, text="正文 text", ns=0, extra=""):
    return f"""  <page><title>标题 {number}</title><ns>{ns}</ns><id>{number}</id>{extra}<revision><id>9</id>
<timestamp>2023-11-03T00:00:00Z</timestamp><model>wikitext</model><text xml:space="preserve">{text} {number}</text></revision></page>\n"""


def dump(count):
    rng = random.Random(5)
    return [
        wiki_page(number, "".join(rng.choices("数学物理 abc", k=rng.randrange(20, 300)))) for number in range(count)
    ]


def test_mediawiki_plain(tmp_path):
    pages = dump(40)
    pages[3] = wiki_page(3, ns=1)
    pages[4] = wiki_page(4, extra='<redirect title="x" />')
    pages[5] = wiki_page(5, "&undefined;")
    pages[6] = pages[6].replace("</page>", "")
    path = tmp_path / "d.xml"
    path.write_text(HEAD + "".join(pages) + "</mediawiki>", encoding="utf-8")
    items = read(path, "mediawiki")
    assert (items[0].key, items[0].url, items[0].date) == (
        "wiki:zhwiki:0",
        "https://zh.wikipedia.org/wiki/%E6%A0%87%E9%A2%98_0",
        1698969600,
    )
    assert items[0].content.startswith("标题 0\n\n")
    assert [(item.drop, item.drop_value) for item in items[3:5]] == [("read.namespace", 1.0), ("read.redirect", 0.0)]
    assert [type(item) for item in items[5:8]] == [Damage, Damage, Record] and len(items) == 40
    for cut in (50, 333, 1000):
        assert read(path, "mediawiki", cut=cut) == items, cut
    path.write_text(HEAD + "".join(pages)[:-30], encoding="utf-8")
    assert isinstance(read(path, "mediawiki")[-1], Damage)
    for cut in (50, 333, 1000):
        assert len(read(path, "mediawiki", cut=cut)) == 40


@pytest.mark.parametrize("across", [False, True])
def test_mediawiki_multistream_ranges(tmp_path, across):
    pages = dump(60)
    body = "".join(pages).encode()
    if across:  # streams that end anywhere, as parallel compressors make them
        groups = [body[at : at + 997] for at in range(0, len(body), 997)]
    else:
        groups = ["".join(pages[at : at + 7]).encode() for at in range(0, 60, 7)]
    path = tmp_path / "d.xml.bz2"
    streams = [bz2.compress(item) for item in [HEAD.encode(), *groups, b"</mediawiki>"]]
    path.write_bytes(b"".join(streams))
    items = read(path, "mediawiki", "bz2")
    assert [item.key for item in items] == [f"wiki:zhwiki:{number}" for number in range(60)]
    for cut in (10, 100, 450, 3000):
        assert read(path, "mediawiki", "bz2", cut=cut) == items, cut
    streams[3] = streams[3][:60] + b"\0" * 20 + streams[3][80:]
    path.write_bytes(b"".join(streams))
    items = read(path, "mediawiki", "bz2")
    damages = [item for item in items if isinstance(item, Damage)]
    records = [item for item in items if isinstance(item, Record)]
    assert (
        len(damages) == 1
        and damages[0].offset == len(streams[0] + streams[1] + streams[2])
        and damages[0].length == len(streams[3])
    )
    assert len(records) >= 50 and records[-1].key == "wiki:zhwiki:59"
    for cut in (10, 100, 450, 3000):
        again = read(path, "mediawiki", "bz2", cut=cut)
        assert [item for item in again if isinstance(item, Record)] == records, cut
        assert [
            item for item in again if isinstance(item, Damage) and item.offset == damages[0].offset and item.length
        ] == damages


def test_entity_tricks_do_not_expand(tmp_path):
    bomb = "".join(f'<!ENTITY a{number + 1} "{f"&a{number};" * 10}">' for number in range(9))
    path = tmp_path / "d.xml"
    path.write_text(
        f'<?xml version="1.0"?><!DOCTYPE m [<!ENTITY a0 "ha">{bomb}<!ENTITY f SYSTEM "file:///etc/passwd">]>'
        + HEAD
        + wiki_page(1, "&a9;")
        + wiki_page(2, "&f;")
        + wiki_page(3)
        + wiki_page(4, "<!DOCTYPE x>")
    )
    items = read(path, "mediawiki")
    assert [type(item) for item in items] == [Damage, Damage, Record, Damage]
    assert items[2].content == "标题 3\n\n正文 text 3"


def test_wikitext_prose():
    text = """{{Infobox|a={{b|c}}
|x=|}}
'''数学'''（{{lang|en|Mathematics}}）研究[[数量]]、[[结构 (数学)|结构]]。<ref name="a">cite {{x}}</ref><ref name=b/>
[[File:A.jpg|thumb|说明 [[链接]] 文]]
== 历史 ==
-{zh-hans:计算机;zh-hant:電腦}-很-{H|zh-cn:a}-好-{重}-。<!-- c {{ -->&nbsp;a &lt;b&gt; [http://x.com 外链][http://y.com]
=== 空 ===
{| class=x
| cell || {{t|}}
|}
=== 单 ===
* 一
# 甲
# 乙
== 外部链接 ==
{{reflist}}
[[Category:数学]] [[en:Math]]
"""
    assert (
        plain_text(text)
        == "数学（Mathematics）研究数量、结构。\n\n历史\n\n计算机很好重。 a <b> 外链\n\n单\n\n• 一\n1. 甲\n2. 乙"
    )


def test_wikitext_keeps_code_and_formulas():
    text = 'E <math>a_{1} + {{b}} &lt; [[c]]</math> f.\n<syntaxhighlight lang="c">\nint a[[2]] = {{1}};\n\tx;\n</syntaxhighlight>\n<nowiki>[[raw]]</nowiki> <code>in</code> <pre>p  q</pre>'  # noqa: E501
    assert (
        plain_text(text)
        == "E \x02a_{1} + {{b}} < [[c]]\x03 f.\n\n\x02int a[[2]] = {{1}};\n\tx;\x03\n\n[[raw]] in\n\x02p  q\x03"
    )


@pytest.mark.parametrize(
    "text",
    [
        "{{" * 50_000,
        "[[a|" * 50_000,
        "{|\n" * 50_000,
        "<ref>" * 50_000,
        "<math" * 50_000,
        "-{" * 50_000 + "}-" * 50_000,
        "[" * 100_000,
        "=" * 100_000,
        "'" * 99_999,
        "<a " * 50_000,
        "\x02" * 9 + "9\x03" * 9,
    ],
)
def test_wikitext_is_linear_and_never_fails(text):
    out = plain_text(text + "\n尾")
    assert "\x02" not in out and "\x03" not in out and out.endswith("尾")


def test_wikitext_random_markup_never_fails():
    rng = random.Random(11)
    parts = [
        "{{",
        "}}",
        "[[",
        "]]",
        "|",
        "{|",
        "|}",
        "\n",
        "-{",
        "}-",
        "<ref>",
        "</ref>",
        "<math>",
        "</math>",
        "<pre>",
        "</pre>",
        "== h ==\n",
        "中",
        " a",
        "'''",
        "&lt;",
        "\x02",
        "\x03",
        "<!--",
        "-->",
        "zh-cn:",
        ";",
    ]
    for _ in range(400):
        out = plain_text("".join(rng.choices(parts, k=60)))
        depth = 0
        for character in out:
            depth += (character == "\x02") - (character == "\x03")
            assert depth in (0, 1)
        assert depth == 0
