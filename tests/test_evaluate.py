"""Evaluation: detectors on good and bad texts of both languages, the sample, the verdict, same bytes."""

import gzip
import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle_evaluate
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from data_factory import evaluate as module
from data_factory import evaluate_detectors as detectors
from data_factory import evaluate_kernels as kernels
from data_factory import evaluate_measure, language
from data_factory.batches import TextBatch
from data_factory.config import DataConfig, Evaluation, Source
from data_factory.documents import KEPT
from data_factory.evaluate import evaluate, sample
from data_factory.evaluate_verdict import at_most, bounds, needed
from ziya.errors import UserError

GOOD_EN = (
    "The old bridge crosses the river near the mill. Every spring the water rises and the town closes the lower road "
    "for some days. "
    "Engineers measured the level with <EMAIL> on file, and wrote 3.14 beside version 10.2.3.4 of their notes; see "
    "example.com and user@example.org."
)
GOOD_ZH = (
    "老桥横跨磨坊旁的河流。每年春天水位上涨，城里会关闭低处的道路几天。"
    "工程师用<PHONE>登记后测量了水位，并在2023-10-15记录了1234567890。"
)


def config(**evaluation):
    return DataConfig(
        sources=[Source(name="web", paths=["x"]), Source(name="raw", paths=["y"], steps=["language"])],
        evaluation=Evaluation(**evaluation),
    )


def write(path, texts, langs=None, source="web", protected=None, prefix=""):
    rows = [
        {
            "id": f"{prefix}{i:032x}"[-32:],
            "url": f"http://site.example/{i}",
            "text": text,
            "lang": langs[i] if langs else ("zh" if any("\u4e00" <= c <= "\u9fff" for c in text) else "en"),
            "tier": "high",
            "source": source,
            "task": "",
            "perplexity": 1.0,
            "copies": 1,
            "protected": protected[i] if protected else [],
            "prompt_bytes": 0,
        }
        for i, text in enumerate(texts)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, KEPT), path, row_group_size=7)
    return path


# ---- detectors


@pytest.mark.parametrize(
    "text",
    [
        "write to jane.doe@mail-server.co.uk today",
        "邮箱：zhangsan_88@163.com，欢迎来信",
        "jane [at] company [dot] com",
        "电话13812345678联系",
        "手机：138-1234-5678。",
        "+86 138 1234 5678",
        "致电010-62345678咨询",
        "(0755) 12345678",
        "call (212) 664-7665 now",
        "call 212-664-7665 now",
        "reach us at +44 20 7946 0958",
        "身份证11010519491231002X号",
        "QQ：12345678",
        "微信号: zhang_san99",
    ],
)
def test_private_data_is_found(text):
    (start, end), *_ = detectors.privacy(text)
    assert 0 <= start < end <= len(text) and end - start >= 8


@pytest.mark.parametrize(
    "text",
    [
        GOOD_EN,
        GOOD_ZH,
        "<EMAIL> <PHONE> <ID> <IP> <CARD> <ACCOUNT>",
        "icon@2x.png and react@16.8.0 and git@host.org:team/project.git",
        "root@localhost, me@server.internal, a@example.net",
        "https://medium.com/@someone/post-1381234567812",
        "身份证110105194912310021号的校验位不对",
        "page 1234-5678-9012, ISBN 978-7-111-12345-6, 1999-2003, 3.1415926535",
        "call 212-555-0123 in the film",
        "0.13812345678 and 113812345678 and id=13812345678",
        "look at me. com and net are words",
        "QQ音乐和微信：一个比较",
        "# sanity check route\n@app.route('/ping')",
        "shape = this@CircleBody.shape",
    ],
)
def test_harmless_numbers_and_addresses_are_not(text):
    assert detectors.privacy(text) == []


def test_lexicons_need_word_borders_in_latin_only():
    lexicon = detectors.Lexicon(["add to cart", "限时优惠"])
    assert lexicon.find("Please ADD to cart.") == [(7, 18)]
    assert lexicon.find("add to cartography, readd to cart") == []
    assert lexicon.find("春季限时优惠开始") == [(2, 6)]
    assert lexicon.find("İİ add to cart") == [(3, 14)]
    assert detectors.Lexicon([]).find("x") == []


def test_every_phrase_of_every_list_is_found_and_no_good_text_is():
    for name, lang in itertools.product(("toxic", "advert"), ("en", "zh")):
        lexicon = detectors.lexicon(name)
        for phrase in detectors.read_words(detectors.FOLDER / f"{name}_{lang}.txt"):
            assert lexicon.find(f"。{phrase}。"), phrase
        assert lexicon.find(GOOD_EN) == lexicon.find(GOOD_ZH) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('text <a href="/x">', ['<a href="/x">']),
        ("one <b>bold</b> word", ["<b>bold</b>"]),
        ("line<br/>\nnext", ["<br/>"]),
        ("不等于 2<sup>32</sup>−1，H<sub>2</sub>O", []),
        ("修改二进制代码<sup>[1]</sup>。", ["<sup>[1]</sup>"]),
        ("a&nbsp;b &#8217;", ["&nbsp;", "&#8217;"]),
        ("javascript:void(0)", ["javascript:void"]),
        ("正文\n\n返回首页\n更多", ["返回首页"]),
        ("text\n Skip to Content \nmore", [" Skip to Content "]),
        ("Previous page\n\n上一页\n下一页\n", ["下一页"]),
        ("点按按钮\n\n上一页\n\n移到上一页。\n\n下一页\n\n移到下一页。", []),
        ("a < b and b > c, if (x<y) && y>z, List<String> and <EMAIL> & R&D; the <br> tag", []),
        (GOOD_EN + GOOD_ZH, []),
    ],
)
def test_remnants(text, found):
    assert [text[start:end] for start, end in detectors.remnants(text, detectors.page_lines())] == found


def test_unreadable_share():
    assert (
        oracle_evaluate.unreadable_share("")
        == oracle_evaluate.unreadable_share(GOOD_EN)
        == oracle_evaluate.unreadable_share(GOOD_ZH)
        == 0
    )
    assert oracle_evaluate.unreadable_share(GOOD_ZH.encode().decode("cp1252", "replace")) > 0.3
    assert oracle_evaluate.unreadable_share("锟斤拷锟斤拷" + GOOD_ZH) > 0.1
    assert oracle_evaluate.unreadable_share("word " * 300 + "end.") > 0.9
    assert oracle_evaluate.unreadable_share("First Last, " * 300) == 0
    assert oracle_evaluate.unreadable_share("x" * 60) == 1


def test_distinct_share():
    assert oracle_evaluate.distinct_share("") == 1
    assert oracle_evaluate.distinct_share("".join(random.Random(0).choices("abcdefghijklmnop", k=3000))) > 0.999
    assert oracle_evaluate.distinct_share("同一句话。" * 300) < 0.01
    text = "".join(random.Random(1).choices("ab", k=400))
    windows = [text[i : i + 12] for i in range(len(text) - 11)]
    assert oracle_evaluate.distinct_share(text) == len(set(windows)) / len(windows)


def test_topics():
    topics = detectors.topics()
    assert topics.of("The compiler reads the database; the function calls a server.") == "computing"
    assert topics.of("球队在联赛中夺得冠军，教练称赞足球队员。") == "sports"
    assert topics.of(GOOD_EN) == "other"


def test_outside_blanks_code_and_keeps_positions():
    text = "前文 code=“值”\nmore 后文"
    start, end = (len(text[:i].encode()) for i in (3, 16))
    blank = oracle_evaluate.outside(text, [(start, end)])
    assert (
        len(blank) == len(text)
        and blank.startswith("前文 ")
        and blank.endswith(text[16:])
        and blank[3:16].strip() == ""
    )
    assert oracle_evaluate.outside(text, []) == text
    assert oracle_evaluate.outside("写 `<p class='x'>` 时", []) == "写 " + " " * 15 + " 时"


def test_a_word_list_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="no_such"):
        detectors.lexicon("toxic", [str(tmp_path / "no_such.txt")])


# ---- kernels

PIECES = [
    *("a", " ", "\n", "`", "``", "。", ",", "x" * 44, "y", "长" * 200, "\u3000", "\xa0", "é", "Ã", "\x80", "ä\xa0", "锟斤拷", "烫烫烫"),
    *("\ufffd", "\ue123", "&#12;", "&nbsp;", "<b>x</b>", "<br/>\n", '<a href="x">', "a<b", "< b", "<!--[if ", "İ", "\u212a", "ſ", "𝟘"),
    *("jane", "@", "＠", "mail.net", " [at] ", "(at)", "（ at ）", " dot ", "13812345678", "138-1234-5678", "0.1", "+44 20 7946 0958"),
    *("11010519491231002X", "11010519491231002", "(212) 664-7665", "QQ：1234567", "微信: ab_123456", "VX", "v信:", "1", "12", "１"),
    *("返回首页", "Skip to Content", "上一页", "下一页", "»", "add to cart", "ADD to cart", "在线成人视频", "限时优惠", "coach"),
    *("javascript:void(0)", "var _hmt", "javaſcript:;", "document.write(", "_gaq.push(", "compiler database server", "比赛 球队 冠军"),
    *("+1 22 33 44", "12.34.56 78", "x@y.png", "&ldquo;", "&#160;", "\x1c", "\t", "var ", "VAR _hmt", "__doPostBack('x')"),
    *("\n上一页\n下一页", "\n\n", " 返回首页 \n", "<b>var _hmt</b>", "<!DOCTYPE html>", "QQQQ: 123456", " [at] [at] ", "@@"),
]  # fmt: skip


def rows_of(texts, protected, checks):
    """What the kernels and the flagged detectors say: one dictionary a document."""
    doc = np.repeat(np.arange(len(texts)), list(map(len, protected))).astype(np.int32)
    ends = [np.array([span[k] for spans in protected for span in spans], np.int32) for k in (0, 1)]
    batch = evaluate_measure.Texts.of(TextBatch.from_strings(texts), doc, *ends)
    found = {
        "privacy": batch.privacy(),
        "toxic": batch.phrases(checks.toxic, prose=False),
        "advert": batch.phrases(checks.advert, prose=True),
        "web_remnant": batch.remnants(),
    }
    columns = zip(
        batch.topics(),
        batch.unreadable().tolist(),
        kernels.distinct(batch.batch.data, batch.batch.offsets, detectors.WINDOW).tolist(),
        batch.counts[:, 0].tolist(),
        strict=True,
    )
    return [(*values, {name: hits[i] for name, hits in found.items() if i in hits}) for i, values in enumerate(columns)]


def expected_row(text, protected, checks):
    prose = oracle_evaluate.outside(text, protected)
    hits = {
        "privacy": detectors.privacy(text),
        "toxic": checks.toxic.find(text),
        "advert": checks.advert.find(prose),
        "web_remnant": detectors.remnants(prose, detectors.page_lines()),
    }
    found = {
        name: (len(spans), *(len(text[:place].encode()) for place in min(spans)))
        for name, spans in hits.items()
        if spans
    }
    numbers = oracle_evaluate.unreadable_share(prose), oracle_evaluate.distinct_share(text), len(text)
    return (detectors.topics().of(text), *numbers, found)


def random_documents(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 30)))
        spans = []
        if rng.random() < 0.4 and len(text) > 4:
            places = sorted(rng.sample(range(len(text) + 1), 4))
            spans = [tuple(len(text[:place].encode()) for place in places[k : k + 2]) for k in (0, 2)]
        yield text, spans


@pytest.mark.parametrize("words", [[], ["ÉCLAIR".lower(), "a b"]])
def test_kernels_say_what_the_plain_detectors_say(words):
    loaded = evaluate_measure.Checks.load(Evaluation())
    checks = replace(loaded, toxic=detectors.Lexicon([*loaded.toxic.phrases, *words]))
    assert checks.toxic.plain == (not words) and checks.advert.plain
    texts, protected = zip(*random_documents(len(words), 1500), strict=True)
    found = rows_of(texts, protected, checks)
    seen = set()
    for text, spans, row in zip(texts, protected, found, strict=True):
        assert row == expected_row(text, spans, checks), (text, spans)
        seen |= set(row[-1])
    assert seen == {"privacy", "toxic", "advert", "web_remnant"}


def test_page_words_are_in_one_case_outside_ascii():
    assert all(detectors._is_plain(word) and 0 < len(word) <= 40 for word in detectors.page_lines())


def test_real_pages_equal_the_plain_detectors():
    path = Path(__file__).parents[2] / "shared" / "data" / "text" / "zh_articles.jsonl.gz"
    if not path.is_file():
        pytest.skip("the shared text is not beside the checkout")
    with gzip.open(path) as file:
        texts = [json.loads(line)["text"][:20000] for line in itertools.islice(file, 60)]
    checks = evaluate_measure.Checks.load(Evaluation())
    assert rows_of(texts, [[]] * len(texts), checks) == [expected_row(text, [], checks) for text in texts]


# ---- sample


def test_sample_is_seeded_bounded_and_independent_of_the_split(tmp_path):
    texts = ["text"] * 100
    whole = write(tmp_path / "a.parquet", texts)
    table = pq.read_table(whole)
    for i in range(4):
        pq.write_table(table.slice(i * 25, 25), tmp_path / f"part{i}.parquet")
    parts = [tmp_path / f"part{i}.parquet" for i in (2, 0, 3, 1)]

    def chosen(files, seed=1, **settings):
        wanted = config(**{"share": 0.2, "min_documents": 5, **settings}).model_copy(update={"seed": seed})
        drawn = sample(files, wanted)
        tables = [part for file in files for part in module._sampled(file, wanted, drawn)]
        ids = [name for part in tables for name in part["id"].to_pylist()]
        assert drawn.population == 100 and drawn.size == len(ids) == len(set(ids))
        return set(ids)

    drawn = chosen([whole])
    assert len(drawn) == 20
    # the first by a hash of seed and id
    by_hash = sorted(table["id"].to_pylist(), key=lambda name: xxhash.xxh3_64_intdigest(f"1:{name}".encode()))
    assert drawn == set(by_hash[:20])
    assert chosen(parts) == drawn != chosen([whole], seed=2)
    assert len(chosen([whole], share=0.001, min_documents=33)) == 33
    assert len(chosen([whole], share=0.015, min_documents=1)) == 2  # ceil
    assert len(chosen([whole], share=0.01, min_documents=3000)) == 100
    raw = write(tmp_path / "raw.parquet", texts, source="raw")
    assert (sample([raw], config()).population, list(module._sampled(raw, config(), sample([raw], config())))) == (
        0,
        [],
    )
    # A larger sample contains the smaller one.
    assert drawn > chosen([whole], share=0.1)


# ---- verdict


def test_clopper_pearson_bounds():
    assert bounds(0, 0, 0.95) == (0, 1)
    low, high = bounds(0, 3000, 0.95)
    assert low == 0 and math.isclose(high, 1 - 0.025 ** (1 / 3000), rel_tol=1e-9)
    low, high = bounds(10, 10, 0.95)
    assert high == 1 and math.isclose(low, 0.025**0.1, rel_tol=1e-9)

    def tail(p, k, n):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    low, high = bounds(3, 50, 0.9)  # by definition each tail holds 5 %
    assert math.isclose(tail(high, 3, 50), 0.05, rel_tol=1e-6) and math.isclose(
        1 - tail(low, 2, 50), 0.05, rel_tol=1e-6
    )
    for k, n, p in [(3, 50, 0.2), (0, 7, 0.5), (7, 7, 0.01), (40, 50, 0.1), (10, 5000, 0.5)]:
        assert math.isclose(at_most(k, n, p), tail(p, k, n), rel_tol=1e-9)


def test_the_bounds_equal_the_beta_quantiles():
    special = pytest.importorskip("scipy.special")
    for failed, total in itertools.chain(
        itertools.product(range(12), range(12, 15)), [(1, 5000), (16, 1873), (900, 1000)]
    ):
        low, high = bounds(failed, total, 0.99)
        assert high == round(float(special.betaincinv(failed + 1, total - failed, 0.995)), 12)
        assert low == (round(float(special.betaincinv(failed, total - failed + 1, 0.005)), 12) if failed else 0)


def test_how_many_documents_are_needed():
    assert needed(0, 0.001, 0.95) == 3688
    assert needed(0, 0, 0.95) is None and needed(3, 1, 0.95) == 3 and needed(0, 1, 0.95) == 1
    for failed, mark in itertools.product((0, 1, 2, 16, 300), (0.001, 0.05, 0.5)):
        n = needed(failed, mark, 0.95)
        assert bounds(failed, n, 0.95)[1] <= mark < bounds(failed, n - 1, 0.95)[1]


BAD = {
    "privacy": "Contact the author at jane.doe@mailbox.net about the river and its bridge. " + GOOD_EN,
    "toxic": "这里提供在线成人视频。" + GOOD_ZH,
    "advert": GOOD_ZH + "现在限时优惠，欢迎选购。",
    "web_remnant": GOOD_EN + '\n<div class="nav">Home</div>',
    "readability": GOOD_ZH.encode().decode("cp1252", "replace"),
    "document_length": "太短了。",
}


def test_one_bad_document_of_each_kind_fails_for_its_reason(tmp_path):
    texts = [GOOD_EN, GOOD_ZH, *BAD.values()]
    path = write(tmp_path / "kept" / "0.parquet", texts, langs=["en", "zh", "en", "zh", "zh", "en", "zh", "zh"])
    result = evaluate([path], config(), tmp_path / "out", None)
    failures = pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert {row["metric"]: int(row["id"], 16) for row in failures} == {name: i + 2 for i, name in enumerate(BAD)}
    assert (result["evaluated"], result["unqualified"], result["passed"], result["sufficient"]) == (8, 6, False, False)
    assert result["unqualified_rate"] == 0.75
    assert {name: entry["failures"] for name, entry in result["metrics"].items() if entry["failures"]} == dict.fromkeys(
        BAD, 1
    )
    assert result["metrics"]["perplexity"] == {"level": 2, "failures": 0, "measured": False, "unmeasured_documents": 8}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == result
    email = next(row for row in failures if row["metric"] == "privacy")
    assert texts[2].encode()[email["start"] : email["end"]] == b"jane.doe@mailbox.net"
    assert not any("jane" in str(value) for value in email.values())  # positions, never excerpts
    toxic = next(row for row in failures if row["metric"] == "toxic")
    assert texts[3].encode()[toxic["start"] : toxic["end"]].decode() == "在线成人视频"
    assert (toxic["level"], toxic["value"], toxic["threshold"]) == (1, 1, 0)


def test_masks_and_code_do_not_fail_but_private_data_in_code_does(tmp_path):
    code = '<div class="a">x</div> add to cart'
    texts = [f"{GOOD_EN}\n{code}\n", f"{GOOD_EN}\nmail('jane@mailbox.net')\n"]
    spans = [[{"start": len(GOOD_EN) + 1, "end": len(text.encode())}] for text in texts]
    path = write(tmp_path / "kept.parquet", texts, protected=spans)
    evaluate([path], config(), tmp_path / "out", None)
    assert [
        (row["id"][-1], row["metric"]) for row in pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    ] == [("1", "privacy")]


class FakeScorer:
    """Perplexity and bits from the text's first number; NaN for other languages than zh."""

    def measure(self, batch, langs, known):
        assert np.isnan(known).all()
        numbers = [float(batch.string(i).split()[0]) if lang == "zh" else math.nan for i, lang in enumerate(langs)]
        values = np.array(numbers, np.float32)
        return values, (values / 100).astype(np.float32)


def test_perplexity_is_judged_against_the_median_and_the_cap(tmp_path):
    texts = [f"{value} {GOOD_ZH}" for value in (90, 100, 100, 110, 999, 1001, 5)]
    path = write(tmp_path / "kept.parquet", [*texts, GOOD_EN])
    result = evaluate([path], config(max_perplexity_ratio=10), tmp_path / "out", FakeScorer())
    rows = pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert [(int(row["id"], 16), row["metric"]) for row in rows] == [(5, "perplexity"), (6, "informativeness")]
    assert rows[0]["threshold"] == 1000 and result["perplexity_caps"] == {"zh": 1000}
    assert result["metrics"]["perplexity"]["unmeasured_documents"] == 1
    assert any("not measured for en" in warning for warning in result["warnings"])
    evaluate([path], config(max_perplexity={"zh": 105}), tmp_path / "out", FakeScorer())
    rows = pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert [int(row["id"], 16) for row in rows if row["metric"] == "perplexity"] == [3, 4, 5]


def test_pass_and_sufficiency_are_two_things(tmp_path):
    good = write(tmp_path / "good.parquet", [f"{GOOD_EN} {i}" for i in range(40)])
    result = evaluate([good], config(), tmp_path / "out", None)
    assert result["passed"] and not result["sufficient"] and result["low"] == 0 < result["high"]
    result = evaluate([good], config(pass_mark=0.2), tmp_path / "out", None)
    assert result["passed"] and result["sufficient"]
    assert (tmp_path / "out" / "failures.parquet").exists()


def test_sources_without_the_step_and_empty_input(tmp_path):
    raw = write(tmp_path / "raw.parquet", list(BAD.values()), source="raw")
    result = evaluate([raw], config(), tmp_path / "out", None)
    assert (result["evaluated"], result["passed"], result["sufficient"]) == (0, False, False)
    assert "no document was evaluated" in result["warnings"][0]
    assert evaluate([], config(), tmp_path / "out", None)["population"] == 0


def test_distributions_warn_and_do_not_fail(tmp_path):
    sports = [f"The coach of the football team won the championship in season {i}. " * 3 for i in range(20)]
    path = write(tmp_path / "kept.parquet", sports, langs=["en"] * 15 + ["zh"] * 5)
    result = evaluate([path], config(), tmp_path / "out", None)
    assert result["passed"] and result["topics"] == {"sports": 1.0}
    text = " ".join(result["warnings"])
    assert "100.0% of the zh documents read as another language" in text and "about sports" in text
    assert result["languages"]["zh"]["mismatch"] == 1 and result["languages"]["en"]["mismatch"] == 0
    one = write(tmp_path / "one.parquet", [GOOD_EN * 2])
    assert any(
        "zh is 0.00% of the sample" in warning
        for warning in evaluate([one], config(), tmp_path / "out", None)["warnings"]
    )


def test_same_bytes_for_any_split_of_the_files(tmp_path):
    texts = [GOOD_EN + f" {i}" for i in range(30)] + list(BAD.values())
    path = write(tmp_path / "all.parquet", texts)
    table = pq.read_table(path)
    parts = []
    for i, start in enumerate(range(0, len(texts), 9)):
        parts.append(tmp_path / f"p{i}.parquet")
        pq.write_table(table.slice(start, 9), parts[-1], row_group_size=2)
    evaluate([path], config(min_documents=20), tmp_path / "a", None)
    evaluate(parts[::-1], config(min_documents=20), tmp_path / "b", None)
    for name in ("evaluation.json", "failures.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class Untouched:
    """A scorer that remembers what was known before."""

    def measure(self, batch, langs, known):
        self.known = known
        return known, known


def test_what_was_measured_on_t1_holds_where_nothing_was_cut(tmp_path, monkeypatch):
    path = write(tmp_path / "kept" / "u.parquet", [GOOD_EN, GOOD_EN + " x", GOOD_ZH, GOOD_EN + " y"])
    ids = pq.read_table(path)["id"].to_pylist()
    cuts = [["rules.line"], [], [], None]  # the fourth document has no row: another unit's
    (tmp_path / "keys").mkdir()
    keys = pa.table({"id": ids[:3], "cut_rules": pa.array(cuts[:3], pa.list_(pa.string()))})
    pq.write_table(keys, tmp_path / "keys" / "u.parquet")
    asked = []
    real = language.identify
    monkeypatch.setattr(language, "identify", lambda batch, s: asked.append(batch.strings()) or real(batch, s))
    scorer = Untouched()
    evaluate([path], config(), tmp_path / "out", scorer)
    assert np.isnan(scorer.known).tolist() == [True, False, False, True]
    # Chinese may have been simplified after identification.
    assert asked == [[GOOD_EN, GOOD_ZH, GOOD_EN + " y"]]


def test_detectors_share_nothing_with_the_rules():
    for name in ("evaluate", "evaluate_detectors", "evaluate_kernels", "evaluate_measure", "evaluate_places"):
        source = (Path(module.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        assert "data_factory.rules" not in source and "rules/lexicons" not in source
