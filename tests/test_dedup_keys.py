"""Exact keys, simhash, MinHash and URL keys: published vectors, equality with plain Python, and what must (not) be
equal.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle_dedup as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_factory.batches import Spans, TextBatch
from data_factory.config import Fuzzy
from data_factory.dedup.hashing import murmur128
from data_factory.dedup.keys import exact_keys, minhash, simhash
from data_factory.dedup.url_keys import SID_CHARS, SORTED_PARAMETERS, normal_url, url_keys

REFERENCE = Path(__file__).parents[2] / "shared" / "data" / "text"
FUZZY = Fuzzy(permutations=16)
TEXT = st.text(
    st.sampled_from("aBcZ 09.,!？。中文繁體漢字éÉßΣσİȺあアﾊ한①½\u200b\u3000\n\t😀☃\U00020000\U0003ffff_'-"), max_size=60
)


def keys_of(texts: list[str], protected: list[list[tuple[int, int]]] | None = None) -> list[tuple[int, int]]:
    high, low = exact_keys(TextBatch.from_strings(texts), spans(protected or [[] for _ in texts]))
    return list(zip(high.tolist(), low.tolist(), strict=True))


def spans(protected: list[list[tuple[int, int]]]) -> Spans:
    rows = [(doc, *item) for doc, items in enumerate(protected) for item in items]
    columns = np.array(rows, np.int32).reshape(-1, 3)
    return Spans.plain(columns[:, 0], columns[:, 1], columns[:, 2])


def sketches(texts: list[str], langs: list[int], fuzzy: Fuzzy = FUZZY) -> list[tuple[int, int]]:
    values, counts = simhash(TextBatch.from_strings(texts), np.array(langs, np.uint8), fuzzy)
    return list(zip(values.tolist(), counts.tolist(), strict=True))


def random_texts(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    words = [
        "Data",
        "model",
        "The",
        "of",
        "数据",
        "模型",
        "的",
        "清洗",
        "，",
        "。",
        "12",
        "3",
        "!",
        "—",
        " ",
        "\n",
        "É",
        "\U00020000",
        "😀",
        "don't",
    ]
    return [
        "".join(generator.choice(words) + generator.choice(["", " "]) for _ in range(generator.randrange(80)))
        for _ in range(count)
    ]


def reference_texts(name: str, count: int) -> list[str]:
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"needs the reference text {path}, which is not part of the project")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"][:3000] for _, line in zip(range(count), file, strict=False)]


def protected_parts(text: str, generator: random.Random) -> list[tuple[int, int]]:
    """Up to two byte ranges that start and end between characters."""
    cuts = sorted(generator.sample(range(len(text) + 1), min(4, len(text) + 1)))
    at = [len(text[:cut].encode()) for cut in cuts]
    return [(a, b) for a, b in zip(at[::2], at[1::2], strict=False) if b > a]


def test_murmur_has_the_published_values() -> None:
    vectors = {
        b"": "0" * 32,
        b"hello": "cbd8a7b341bd9b025b1e906a48ae1d19",
        b"The quick brown fox jumps over the lazy dog": "e34bbc7bbc071b6c7a433ca9c49a9347",
    }
    for data, digest in vectors.items():
        high, low = murmur128(np.frombuffer(data, np.uint8), 0, len(data), 0)
        assert f"{int(high):016x}{int(low):016x}" == digest
        assert oracle.murmur128(data, 0) == (int(high), int(low))


def test_exact_keys_equal_the_oracle_on_random_and_real_texts() -> None:
    generator = random.Random(1)
    texts = [*random_texts(1, 200), "", " \n", "!", "?", "中", "a" * 19, "a" * 20, "a" * 19 + "."]
    for name in ("en_wikitext2.jsonl.gz", "zh_articles.jsonl.gz"):
        if (REFERENCE / name).exists():
            texts += reference_texts(name, 15)
    parts = [protected_parts(text, generator) if i % 2 else [] for i, text in enumerate(texts)]
    assert keys_of(texts, parts) == [oracle.exact_key(text, part) for text, part in zip(texts, parts, strict=True)]


@given(st.lists(TEXT, min_size=1, max_size=4), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_exact_keys_equal_the_oracle(texts: list[str], seed: int) -> None:
    generator = random.Random(seed)
    parts = [protected_parts(text, generator) for text in texts]
    assert keys_of(texts, parts) == [oracle.exact_key(text, part) for text, part in zip(texts, parts, strict=True)]


def test_what_an_exact_key_ignores_and_what_it_keeps() -> None:
    zh, en = "今天的天气非常好，我们一起去公园散步吧，好不好呀？", "The weather is fine today, so let us walk."
    same = keys_of([zh, zh.replace("，", ", ").replace("？", "?!😀"), en, en.upper().replace(",", " —") + "\n"])
    assert same[0] == same[1] and same[2] == same[3] and same[0] != same[2]
    numbers = keys_of([f"{en} Page 12", f"{en} Page 13", zh + "第一页", zh + "第二页"])
    assert len(set(numbers)) == 4  # digits stay: pages that differ in a number do not merge
    assert len(set(keys_of(["C++", "C#", "C", ":-)", ":-(", "!", "？"]))) == 7  # short texts keep their symbols
    assert keys_of(["C + +", "c++"])[0] == keys_of(["C++"])[0]
    assert keys_of(["", " \u3000\n"]) == [(0, 0), (0, 0)]


def test_protected_bytes_stay_as_they_are() -> None:
    text = "An example of a loop in the language: for (i = 0; i < n; ++i) x[i]++;"
    other = text.replace("++;", "--;")
    at = text.index("for")
    assert keys_of([text])[0] == keys_of([other])[0]
    one, two = keys_of([text, other], [[(at, len(text))], [(at, len(other))]])
    assert one != two


def test_fingerprints_equal_the_oracle_on_random_and_real_texts() -> None:
    texts, langs = random_texts(2, 120), [i % 2 for i in range(120)]
    for name, lang in (("en_wikitext2.jsonl.gz", 0), ("zh_articles.jsonl.gz", 1)):
        if (REFERENCE / name).exists():
            real = reference_texts(name, 8)
            texts, langs = texts + real, langs + [lang] * len(real)
    for fuzzy in (FUZZY, Fuzzy(shingle_en=1, shingle_zh=2)):
        window = (fuzzy.shingle_en, fuzzy.shingle_zh)
        expected = [oracle.simhash(text, lang == 1, window[lang]) for text, lang in zip(texts, langs, strict=True)]
        assert sketches(texts, langs, fuzzy) == expected


@given(st.lists(TEXT, min_size=1, max_size=4), st.integers(0, 1), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_fingerprints_equal_the_oracle(texts: list[str], lang: int, window: int) -> None:
    fuzzy = Fuzzy(shingle_en=window, shingle_zh=window)
    assert sketches(texts, [lang] * len(texts), fuzzy) == [oracle.simhash(text, lang == 1, window) for text in texts]


def test_more_than_255_features_are_counted() -> None:
    texts = ["".join(chr(0x4E00 + (i * i) % 997) for i in range(n)) for n in (258, 259, 260, 515, 1200)]
    assert sketches(texts, [1] * 5) == [oracle.simhash(text, True, 5) for text in texts]


def test_shingles_of_short_texts_and_the_last_shingle() -> None:
    """Trap: `range(len - window)` loses the last shingle and gives all short texts one fingerprint."""
    assert [count for _, count in sketches(["one two", "one two three", "one two three four"], [0, 0, 0])] == [0, 1, 2]
    assert [
        count for _, count in sketches(["中文网页", "中文网页。", "中文网页好", "中，文 网页好啊"], [1, 1, 1, 1])
    ] == [0, 0, 1, 2]
    last, other = sketches(["one two three four", "one two three five"], [0, 0])
    assert last != other
    assert sketches(["", "..."], [0, 1]) == [(0, 0), (0, 0)]


def test_similar_texts_are_near_and_others_are_not() -> None:
    generator = random.Random(3)
    zh = "".join(chr(0x4E00 + generator.randrange(3000)) for _ in range(2000))
    en = " ".join(f"w{generator.randrange(2000)}" for _ in range(1000))
    values = sketches([zh, zh[:-3] + "甲乙丙", en, en + " end"], [1, 1, 0, 0])
    assert (values[0][0] ^ values[1][0]).bit_count() <= 3
    assert (values[2][0] ^ values[3][0]).bit_count() <= 3
    assert (values[0][0] ^ values[2][0]).bit_count() > 10


def test_signatures_equal_datasketch() -> None:
    texts, langs = [*random_texts(4, 60), "", "一二三四"], [i % 2 for i in range(62)]
    got = minhash(TextBatch.from_strings(texts), np.array(langs, np.uint8), FUZZY)
    assert got.shape == (62, 16) and got.dtype == np.uint32
    expected = [oracle.minhash(text, lang == 1, (3, 5)[lang], 16) for text, lang in zip(texts, langs, strict=True)]
    assert got.tolist() == expected


SAME_URL = [
    [
        "http://example.com/a",
        "https://www.Example.COM:443/a/",
        "<http://example.com/a>",
        "example.com/a",
        "//example.com:/a#top",
        " HTTP://example.com:80/x/../a?utm_source=n\n",
    ],
    ["http://例子.中国/中 文?q=数据", "http://%e4%be%8b%e5%ad%90.中国/%E4%B8%AD%20%E6%96%87?q=%E6%95%b0%E6%8d%AE"],
    [
        "http://a.b/p?x=1&y=2",
        "http://a.b/p?y=2&&x=1&",
        "http://a.b/p;jsessionid=77AB?fbclid=q&x=1&y=2&PHPSESSID=1",
        "http://a.b/%70?x=1&y=2&sid=0123456789abcdef01",
    ],
    ["http://a.b/p?q=a+b", "http://a.b/p?q=a%20b", "http://a.b./p?q=a b"],
    ["a.b", "a.b/", "http://www.a.b//", "http://a.b/./.."],
]
DIFFERENT_URLS = [
    "http://a.b/p", "http://a.b/P", "http://a.b/p/index.html", "http://a.b:8080/p", "http://m.a.b/p",
    "ftp://a.b/p", "http://a.b/p?id=1", "http://a.b/p?id=2", "http://a.b/p?sid=06/01/02", "http://a.b/p#!x",
    "http://a.b/p#!y", "http://a.b/p%2Fq", "http://a.b/p/q", "http://a.b/p?a=1&a=2", "http://a.b/p?a=2&a=1",
    "http://u@a.b/p",
]  # fmt: skip


def test_spellings_of_one_url_share_a_key() -> None:
    groups = []
    for group in SAME_URL:
        assert len({normal_url(url) for url in group}) == 1, [normal_url(url) for url in group]
        high, low = url_keys(group)
        assert len(set(zip(high.tolist(), low.tolist(), strict=True))) == 1
        groups.append(int(high[0]))
    assert len(set(groups)) == len(SAME_URL)
    high, low = url_keys(DIFFERENT_URLS)
    assert len(set(zip(high.tolist(), low.tolist(), strict=True))) == len(DIFFERENT_URLS)
    assert [column.tolist() for column in url_keys(["", " ", "<>"])] == [[0, 0, 0], [0, 0, 0]]
    assert (
        normal_url("https://www.例子.com/中文?q=%e4%b8%ad+x&&a")
        == "%E4%BE%8B%E5%AD%90.com/%E4%B8%AD%E6%96%87?a&q=%E4%B8%AD%20x"
    )


PIECES = st.sampled_from(
    ["http://", "https://", "ftp://", "www.", "a.b", "A.B", "中", "@", ":", "80", "443", "/", "//", "/.",
     "/..", "?", "&", "=", "#", "#!", "%", "%2e", "%2F", "%4", "%e4", "utm_x=1", "UTM_Y", "sid=",
     "0123456789abcdef", "x", "Z", " ", "+", ";jsessionid=1", ";p", "[::1]", "<", ">", "~", "\"", "spm=1",
     "b=2", "a=1", "é", "😀"]
)  # fmt: skip


@given(st.lists(st.lists(PIECES, max_size=14).map("".join), min_size=1, max_size=5))
@settings(max_examples=400, deadline=None)
def test_url_keys_equal_the_oracle(urls: list[str]) -> None:
    assert [normal_url(url) for url in urls] == [oracle.normal_url(url) for url in urls]
    high, low = url_keys(urls)
    assert list(zip(high.tolist(), low.tolist(), strict=True)) == [oracle.url_key(url) for url in urls]


def test_a_query_with_very_many_parameters_keeps_their_order() -> None:
    many = "http://a.b/?" + "&".join(f"p{i}=1" for i in range(SORTED_PARAMETERS, -1, -1))
    assert normal_url(many) == oracle.normal_url(many)
    assert normal_url(many).startswith(f"a.b?p{SORTED_PARAMETERS}=1")
    assert normal_url(f"a.b?sid={'a' * SID_CHARS}") == "a.b" and normal_url(f"a.b?sid={'a' * (SID_CHARS - 1)}") != "a.b"


def test_keys_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "import numpy as np; from data_factory.batches import *; from data_factory.config import Fuzzy\n"
        "from data_factory.dedup.keys import *\n"
        "t = TextBatch.from_strings(['a b c d e f', '今天天气很好'])\n"
        "l = np.array([0, 1], np.uint8); f = Fuzzy(permutations=16)\n"
        "print(exact_keys(t, Spans.empty()), simhash(t, l, f), minhash(t, l, f).tolist(), url_keys(['http://a.b/c?y=1&x=2']))"
    )
    outputs = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        outputs.add(
            subprocess.run(
                [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
    assert len(outputs) == 1 and outputs.pop().strip()
