"""Document counters and features against the plain reference, protected spans, edge cases, bounds."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_statistics import count as reference

from data_factory.batches import Spans, TextBatch
from data_factory.rules import kernels_phrases, kernels_tables
from data_factory.rules.statistics import FEATURES, count, measure

SHARED = Path(__file__).parents[2] / "shared" / "data" / "text"
PIECES = [
    "the", "The", "and", "don't", "well-known", "x-", "3.14", "1,000", "2.", "e.g.", "U.S.", "NASA", "ÀÉ", "naïve",
    "café", "a", "word", "word", "的", "是", "我们", "中国",
    "𠀀", "カナ", "한국", "。", "！", "？", "；", "…", "……", "...", "....", "..", "。。", "”", "’", "'", '"', ")",
    "】", "【", "【注】", "\n", "\n", "\n\n", "\n \n", " ", " ", "  ", "\u3000", "\t", "•", "-", "#", "##",
    "(", "（", "{", "}", "\ufffd", "Ã©", "锟斤拷", "lorem ipsum", "Lorem Ipsum", "测试测试测试", "http://a.b/c?d=1.",
    "https://例", "](https://x.y/z)", "www.example.com,", "HTTP://Q", "www.", "privacy policy",
    "JavaScript", "read more", "阅读全文", "更多", "版权所有", "+", "==", "★", "😀", "१२", "é", "€", "x" * 1001,
    "这是一个句子。", "This is a sentence. ", "a b c d e f g h i j k l m n. ", "甲乙丙丁戊己庚辛壬癸子丑寅卯。",
]  # fmt: skip


def compare(texts: list[str], zh: bool) -> None:
    counts, entropy = count(TextBatch.from_strings(texts), np.full(len(texts), zh, np.uint8))
    for text, row, value in zip(texts, counts, entropy, strict=True):
        expected, expected_entropy = reference(text, zh)
        assert dict(zip(kernels_tables.COUNTERS, row.tolist(), strict=True)) == expected, text
        assert value == pytest.approx(expected_entropy, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.one_of(st.sampled_from(PIECES), st.text(max_size=3, alphabet=st.characters(exclude_categories=["Cs", "Cc"]))),
            max_size=40,
        ),
        max_size=3,
    ),
    st.booleans(),
)
# T1 holds no control characters but tab and line feed, which PIECES has.
def test_counters_equal_reference(documents: list[list[str]], zh: bool) -> None:
    compare(["".join(document) for document in documents], zh)


@pytest.mark.parametrize("zh", [False, True])
def test_counters_equal_reference_on_long_random_documents(zh: bool) -> None:
    rng = random.Random(7)
    documents = []
    for vocabulary in (3, 12, 60, 500):
        words = [rng.choice(PIECES) for _ in range(vocabulary)]
        documents.append(rng.choice(["", " "]).join(rng.choice(words) for _ in range(600)))
        phrase = " ".join(rng.choice(PIECES) for _ in range(17))
        documents.append(
            "\n".join(
                phrase if rng.random() < 0.3 else " ".join(rng.choice(PIECES) for _ in range(8)) for _ in range(40)
            )
        )
    compare(documents, zh)


@pytest.mark.parametrize(("name", "zh"), [("en_wikitext2", False), ("zh_articles", True)])
def test_counters_equal_reference_on_real_documents(name: str, zh: bool) -> None:
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: shared reference text is absent")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:6000] for line, _ in zip(file, range(12), strict=False)]
    compare(texts, zh)


def test_features_of_empty_documents_object_to_nothing_but_size() -> None:
    features = measure(TextBatch.from_strings(["", " \n"]), np.array([0, 1], np.uint8), Spans.empty())
    assert tuple(features) == FEATURES
    assert all(
        values.dtype == np.float32 and values.shape == (2,) and np.isfinite(values).all()
        for values in features.values()
    )
    assert features["chars"].tolist() == [0, 2] and features["words"].tolist() == [0, 0]
    assert features["letter_words"].tolist() == [1, 1] and features["end_mark_lines"].tolist() == [1, 1]
    empty = measure(TextBatch.from_strings([]), np.zeros(0, np.uint8), Spans.empty())
    assert all(len(values) == 0 for values in empty.values())


def protect(batch: TextBatch, marked: list[tuple[int, str]]) -> Spans:
    """Spans of the first occurrence of each (document, string)."""
    rows = []
    for document, piece in marked:
        start = batch.string(document).encode().index(piece.encode())
        rows.append((document, start, start + len(piece.encode())))
    doc, start, end = np.array(sorted(rows), np.int32).T
    return Spans.plain(doc, start, end)


def test_protected_text_counts_for_size_only() -> None:
    code = "if x {\n}\nif x {\n}\nif x {\n}\n代码 # # #"
    prose = ["Before the code. {} After the code.", "代码之前。{}代码之后。"]
    batch = TextBatch.from_strings([text.format(code) for text in prose])
    langs = np.array([0, 1], np.uint8)
    features = measure(batch, langs, protect(batch, [(0, code), (1, code)]))
    shadow = measure(TextBatch.from_strings([text.format(" ") for text in prose]), langs, Spans.empty())
    whole = measure(batch, langs, Spans.empty())
    for name in FEATURES:
        expected = whole if name in ("chars", "words", "mean_word_length") else shadow
        np.testing.assert_allclose(features[name], expected[name], rtol=1e-6, err_msg=name)
    assert whole["duplicate_lines"].min() > 0 and features["duplicate_lines"].max() == 0
    assert whole["curly_share"].min() > 0 and features["curly_share"].max() == 0


def test_batches_change_nothing() -> None:
    rng = random.Random(3)
    texts = ["".join(rng.choice(PIECES) for _ in range(rng.randrange(0, 300))) for _ in range(30)]
    langs = np.array([rng.randrange(2) for _ in texts], np.uint8)
    together = measure(TextBatch.from_strings(texts), langs, Spans.empty())
    for i, text in enumerate(texts):
        alone = measure(TextBatch.from_strings([text]), langs[i : i + 1], Spans.empty())
        assert all(alone[name][0] == together[name][i] for name in FEATURES)


def test_repetition_is_measured_on_a_bounded_head() -> None:
    cap = kernels_tables.COMPARED
    head = " ".join(str(k) for k in range(cap))
    texts = [f"{head} {'spam ham ' * 50_000}", "spam ham " * 10]
    counts, _ = count(TextBatch.from_strings(texts), np.zeros(2, np.uint8))
    at = kernels_tables.AT
    assert counts[0, at.words] == cap + 100_000
    assert counts[0, at.compared_chars] == len(head) + 1  # the space that closes the last compared word
    assert counts[0, at.top_2gram_chars] == 0 < counts[1, at.top_2gram_chars]
    lines, _ = count(TextBatch.from_strings([".\n" * (cap + 10)]), np.zeros(1, np.uint8))
    assert lines[0, at.compared_lines] == cap and lines[0, at.lines] == cap + 10


def test_a_text_of_exactly_n_words_has_one_ngram() -> None:
    """Trap: a published loop bound misses the last n-gram and gives none for a text of exactly n units."""
    at = kernels_tables.AT
    counts, _ = count(TextBatch.from_strings(["甲" * 13, "甲" * 14, "甲" * 12]), np.ones(3, np.uint8))
    assert counts[:, at.compared_13grams].tolist() == [1, 2, 0]
    assert counts[:, at.repeated_13grams].tolist() == [0, 2, 0]


def test_chinese_is_not_judged_by_ascii() -> None:
    """Trap: ASCII classes and ASCII end marks drop all Chinese."""
    text = "今天天气很好，我们去公园散步。你要一起来吗？当然要来！\n“好的，明天见。”"
    features = measure(TextBatch.from_strings([text]), np.ones(1, np.uint8), Spans.empty())
    assert features["alphanumeric_share"][0] > 0.7 and features["letter_words"][0] > 0.7
    assert features["sentences"][0] == 4 and features["end_mark_lines"][0] == 1


def test_phrases_do_not_overlap_inside_counted_classes() -> None:
    """Characters of mojibake and filler are summed over phrases, so none may lie inside another."""
    for bits in (kernels_phrases.MOJIBAKE, kernels_phrases.FILLER):
        group = [phrase for phrase, own in kernels_phrases.phrases().items() if own & bits]
        assert len(group) > 5
        assert not [(a, b) for a in group for b in group if a != b and a in b]
