"""Frequent lines: keys and counts equal to plain Python, copies of a page count once, memory and order change nothing.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import oracle_dedup as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_factory.batches import Spans, TextBatch
from data_factory.dedup.keys import exact_keys
from data_factory.dedup.lines import FrequentLines, UnitLines, candidates, line_keys, merge
from ziya.errors import UserError

LINES = [
    "版权所有 © 2023 某某网站",
    "版权所有 2019 某某网站！",
    "Share on Facebook",
    "share  on facebook!",
    "第 3 页 共 12 页",
    "…… —— ……",
    "短",
    "",
    "A line of Text 7",
    "正文内容在这里，各不相同",
    "𠀀𠀁𠀂𠀃",
    "ȺȺȺȺ",
]


def pages(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    result = [
        "\n".join(
            generator.choice(LINES) + generator.choice(["", "", " x", "1"]) for _ in range(generator.randrange(7))
        )
        for _ in range(count)
    ]
    return [*result, *(generator.choice(result) + generator.choice(["", "!"]) for _ in range(count // 3))]


def spans_of(parts: list[list[tuple[int, int]]]) -> Spans:
    rows = np.array([(doc, *item) for doc, items in enumerate(parts) for item in items], np.int32).reshape(-1, 3)
    return Spans.plain(rows[:, 0], rows[:, 1], rows[:, 2])


def expected_counts(texts: list[str], floor: int, min_chars: int) -> dict[int, int]:
    documents: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for text in texts:
        for _, _, key in oracle.line_keys(text, [], min_chars):
            documents[key].add(oracle.exact_key(text, []))
    return {key: len(members) for key, members in documents.items() if len(members) >= floor}


def write_unit(path: Path, texts: list[str], min_chars: int) -> None:
    batch = TextBatch.from_strings(texts)
    UnitLines.write(path, line_keys(batch, Spans.empty(), min_chars), exact_keys(batch, Spans.empty()))


@given(
    st.lists(st.text(st.sampled_from("aB9 9\n\n。，中文é\U00020000٣\r"), max_size=40), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_keys_equal_the_oracle(texts: list[str], min_chars: int, seed: int) -> None:
    generator = random.Random(seed)
    parts = []
    for text in texts:
        cuts = sorted(generator.sample(range(len(text) + 1), min(4, len(text) + 1)))
        at = [len(text[:cut].encode()) for cut in cuts]
        parts.append([(a, b) for a, b in zip(at[::2], at[1::2], strict=False) if b > a])
    doc, start, end, key = line_keys(TextBatch.from_strings(texts), spans_of(parts), min_chars)
    found = list(zip(doc.tolist(), start.tolist(), end.tolist(), key.tolist(), strict=True))
    assert found == [(i, *line) for i, text in enumerate(texts) for line in oracle.line_keys(text, parts[i], min_chars)]


def test_which_lines_are_one_line() -> None:
    texts = [
        "第3页 共12页",
        "第 4 页，共 15 页",
        "第 5 页，共 7 页",
        "SHARE on facebook!",
        "Share on Facebook",
        "Share on Face book",
        "中文四字",
        "中文4字",
    ]
    key = line_keys(TextBatch.from_strings(texts), Spans.empty(), 4)[3].tolist()
    assert key[0] == key[1] != key[2] and key[3] == key[4] == key[5] and key[6] != key[7]


def test_short_and_protected_lines_are_not_counted() -> None:
    text = "import os\n短短短\nabc, def — ghi\nplain text line"
    batch = TextBatch.from_strings([text])
    code = Spans.plain(*(np.array([value], np.int32) for value in (0, 7, 8)))  # one byte inside the first line
    doc, start, end, _ = line_keys(batch, code, 9)
    assert [text.encode()[a:b].decode() for a, b in zip(start, end, strict=True)] == [
        "abc, def — ghi",
        "plain text line",
    ]
    assert (
        len(line_keys(batch, Spans.empty(), 10)[0]) == 1
        and len(line_keys(batch, Spans.empty(), 3)[0]) == 4
        and doc.tolist() == [0, 0]
    )


def test_counts_equal_the_oracle_and_do_not_depend_on_partitions(tmp_path: Path) -> None:
    texts = pages(1, 60)
    expected = expected_counts(texts, 3, 3)
    assert len(expected) > 5
    outputs = set()
    for parts, memory in ((1, 10**6), (5, 10**6), (5, 40), (9, 25)):
        paths = [tmp_path / f"{parts}-{i}" for i in range(parts)]
        for i, path in enumerate(paths):
            write_unit(path, texts[i::parts], 3)
        count = merge(paths[::-1] if memory == 40 else paths, 3, tmp_path / "work", tmp_path / "out", memory)
        frequent = FrequentLines.load(tmp_path / "out")
        assert dict(zip(frequent.keys.tolist(), frequent.documents.tolist(), strict=True)) == expected and count == len(
            expected
        )
        assert (np.diff(frequent.keys) > 0).all()
        outputs.add((tmp_path / "out").read_bytes())
        assert not list((tmp_path / "work").iterdir())
    assert len(outputs) == 1


def test_a_copied_page_does_not_make_its_lines_frequent(tmp_path: Path) -> None:
    page = "一篇被转载一百次的文章\n它的每一行都不是模板文字"
    texts = (
        [page] * 60
        + [page.replace("\n", "！\n\n")] * 40
        + [f"第{chr(0x4E00 + i)}篇文章的正文各不相同\n版权所有，转载请注明出处" for i in range(3)]
    )
    write_unit(tmp_path / "unit", texts, 8)
    assert merge([tmp_path / "unit"], 2, tmp_path / "work", tmp_path / "out") == 1
    frequent = FrequentLines.load(tmp_path / "out")
    assert frequent.documents.tolist() == [3]
    batch = TextBatch.from_strings([texts[-1], "没有模板的页面内容", "x\n版权所有 转载请注明出处\ny"])
    found = candidates(batch, Spans.empty(), frequent, 8)
    assert (
        found.doc.tolist() == [0, 2]
        and found.value.tolist() == [3, 3]
        and found.rule.tolist() == [0, 0]
        and found.value.dtype == np.float32
    )
    cut = [
        bytes(batch.data[batch.offsets[d] + a : batch.offsets[d] + b]).decode()
        for d, a, b in zip(found.doc, found.start, found.end, strict=True)
    ]
    assert cut == ["版权所有，转载请注明出处", "版权所有 转载请注明出处"]


def test_batches_of_a_unit_are_one_unit(tmp_path: Path) -> None:
    texts = pages(2, 30)
    write_unit(tmp_path / "whole", texts, 3)
    rows = []
    for part in (texts[:11], texts[11:]):
        batch = TextBatch.from_strings(part)
        rows.append(UnitLines.rows(line_keys(batch, Spans.empty(), 3), exact_keys(batch, Spans.empty())))
    UnitLines.write_rows(tmp_path / "parts", rows)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_nothing_frequent_and_broken_tables(tmp_path: Path) -> None:
    UnitLines.write_rows(tmp_path / "unit", [])
    assert (
        merge([tmp_path / "unit"], 2, tmp_path / "work", tmp_path / "out")
        == 0
        == merge([], 2, tmp_path / "work", tmp_path / "out")
    )
    batch = TextBatch.from_strings(["Share on Facebook"])
    assert len(candidates(batch, Spans.empty(), FrequentLines.load(tmp_path / "out"), 3)) == 0
    (tmp_path / "out").write_bytes((tmp_path / "out").read_bytes() + b"x")
    with pytest.raises(UserError, match="not a complete table"):
        FrequentLines.load(tmp_path / "out")
