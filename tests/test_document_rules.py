"""Golden pages: every document rule fires on a page made for it and on no good page; presets carry the published
numbers.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import opencc
import pytest

from data_factory.batches import F32, Spans, TextBatch
from data_factory.rules import kernels_phrases, kernels_tables
from data_factory.rules.catalogue import Rule
from data_factory.rules.document import DOCUMENT_RULES
from data_factory.rules.statistics import FEATURES, measure

SHARED = Path(__file__).parents[2] / "shared" / "data" / "text"
RULE = {rule.id: rule for rule in DOCUMENT_RULES}
LANGUAGES = ("en", "zh")

GOOD = {
    "en": (
        "The harbour town was founded by fishermen who came from the northern islands.\nThey built low houses of "
        "stone, and they kept their boats on the beach in winter. "
        "In 1854 a railway reached the valley, and with it came trade, visitors and a small university.\n\nMost "
        "families lived from the sea until the middle of the century. "
        "When the shoals moved away, many of them learned other work: some made furniture, others opened schools "
        "and shops (the oldest is still open).\n"
        "Today about 12,000 people live there. Would you like to see the old lighthouse? It stands on a cliff to "
        "the west, and that path is safe with good shoes!\n"
        "The museum below explains how storms are measured, why lamps used whale oil, and what a keeper had to "
        "write down each night."
    ),
    "zh": (
        "这座港口小镇由来自北方岛屿的渔民建立。\n他们用石头盖起低矮的房屋，冬天把船停在沙滩上。1854年，铁路修到了"
        "山谷，随之而来的是贸易、游客和一所小小的大学。\n\n"
        "直到上世纪中叶，大多数家庭仍以捕鱼为生。后来鱼群离开了，许多人学会了别的手艺：有人做家具，有人开办学校和"
        "商店（最老的一家现在还营业）。\n"
        "如今镇上大约有一万二千人。你想去看看那座旧灯塔吗？它立在西边的悬崖上，穿一双好鞋就能安全走到！\n山下的博"
        "物馆讲述了风暴如何测量、灯为什么要用鲸油，以及守塔人每天夜里必须记录些什么。"
    ),
}
EN, ZH = GOOD["en"], GOOD["zh"]
LONG_EN, LONG_ZH = (EN + "\n") * 1400, (ZH + "\n") * 2400
NAMES = [
    "Quartz", "Falcon", "Meadow", "Lantern", "Copper", "Willow", "Harbor", "Saffron", "Timber", "Velvet", "Orchid",
    "Granite", "Juniper", "Marble", "Cobalt", "Thistle", "Ember", "Canyon", "Raven", "Birch",
]  # fmt: skip
THINGS = [
    "苹果", "香蕉", "葡萄", "电脑", "手机", "桌椅", "书包", "铅笔", "台灯", "沙发", "窗帘", "地毯", "冰箱", "烤箱",
    "水壶", "雨伞", "手套", "围巾", "毛衣", "皮鞋",
]  # fmt: skip
REPEATED_EN = "The best offer of the year is here for you and all your friends today.\n"
REPEATED_ZH = "全年最优惠的价格就在这里，欢迎您和朋友们前来选购。\n"

# rule -> language -> a page that must fire it
BAD: dict[str, dict[str, str]] = {
    "min_chars": {"en": "Too short.", "zh": "太短了。"},
    "max_chars": {"en": LONG_EN, "zh": LONG_ZH},
    "min_words": {"en": "Three words only. " + "." * 200, "zh": "太短了，只有一句话。" + "。" * 60},
    "max_words": {"en": LONG_EN, "zh": LONG_ZH},
    "min_sentences": {"en": ", ".join(NAMES * 3), "zh": "，".join(THINGS * 3)},
    "min_c4_sentences": {"en": "\n".join(f"{name} menu of the site" for name in NAMES)},
    "min_mean_word_length": {"en": "a b to c d e of f g h I j k at l m no p q r so t. " * 5},
    "max_mean_word_length": {
        "en": "Donaudampfschiffahrtsgesellschaft Rechtsschutzversicherungsgesellschaften " * 20,
        "zh": "配置 connectionsMaximum applicationServerRegistryFactory 值 " * 10,
    },
    "max_hashes_per_word": {"en": "#sun #sea #holiday " * 20, "zh": "#阳光#海#假" * 20},
    "max_ellipses_per_word": {"en": "well ... so ... then ... " * 10, "zh": "嗯……好……行……" * 10},
    "min_letter_words": {"en": "12 - 45 - 78 : 99 / 100 = 3 | the " * 10, "zh": "12-45:78/99=100|的" * 10},
    "min_stop_words": {"en": ". ".join(NAMES * 2), "zh": "。".join(THINGS * 2)},
    "min_stop_word_share": {"en": ", ".join(NAMES * 2), "zh": "，".join(THINGS * 2)},
    "max_capital_words": {
        "en": "BUY the BEST SHOES and SAVE MONEY NOW with us. " * 5,
        "zh": "BUY NOW SALE NEW HOT BEST VIP TOP 的鞋 " * 5,
    },
    "max_bullet_lines": {
        "en": "\n".join(f"• {name}" for name in NAMES),
        "zh": "\n".join(f"· {name}" for name in THINGS),
    },
    "max_ellipsis_lines": {
        "en": "\n".join(f"{name} is the story of a ..." for name in NAMES),
        "zh": "\n".join(f"关于{name}的故事……" for name in THINGS),
    },
    "max_teaser_lines": {
        "en": "\n".join(f"{name} is a story. Read more" for name in NAMES),
        "zh": "\n".join(f"关于{name}的故事 阅读全文" for name in THINGS),
    },
    "min_end_mark_lines": {
        "en": "\n".join(f"{name} and the others of that kind" for name in NAMES),
        "zh": "\n".join(f"{name}和其他的东西" for name in THINGS),
    },
    "max_short_lines": {
        "en": "\n".join(f"{name} shop" for name in NAMES),
        "zh": "\n".join(f"{name}商店" for name in THINGS),
    },
    "max_short_lines_fineweb": {"en": "\n".join(f"{name} shop." for name in NAMES)},
    "max_newlines_per_word": {"en": "\n\n".join(NAMES), "zh": "\n\n".join(THINGS)},
    "min_mean_line_length": {"en": "\n".join(NAMES), "zh": "\n".join(THINGS)},
    "max_longest_line": {"en": EN.replace("\n", " ") * 30, "zh": ZH.replace("\n", "") * 100},
    "max_boilerplate_lines": {
        "en": "All rights reserved.\nTerms of Use\nSkip to main content\n" + EN[:80],
        "zh": "版权所有 2020\n京ICP备1234号\n上一篇：苹果\n" + ZH[:30],
    },
    "min_han_share": {"zh": EN},
    "min_alphanumeric_share": {"en": "a? b! (c) [d] -- e; f: 'g' " * 10, "zh": "好？（是）！——「对」；" * 10},
    "max_symbol_share": {"en": "★★★ the sale ★★★ of the year ★★★ " * 5, "zh": "★★★大促销★★★来啦★★★" * 5},
    "max_digit_share": {
        "en": "In 2019 1234567890 1234567890 of 555 the 99. " * 5,
        "zh": "电话13900000000，编号20190101123456的货。" * 5,
    },
    "max_space_share": {
        "en": "a   b    the      sale    of     shoes    " * 5,
        "zh": "大   促   销   的   日   子   " * 5,
    },
    "max_parenthesis_share": {"en": "(a) (b) (c) (to) (the) (of) " * 10, "zh": "（甲）（乙）（丙的）" * 10},
    "max_bracketed_share": {"zh": "【新品上市】【限时优惠】快来买的。" * 5},
    "max_url_share": {
        "en": "See http://example.com/a/very/long/path/to/nothing and www.example.org/spam. " * 5,
        "zh": "看http://example.com/a/very/long/path/to/nothing吧。" * 5,
    },
    "min_punctuation_share": {"en": " ".join(NAMES * 3), "zh": " ".join(THINGS * 3)},
    "max_punctuation_share": {"en": "so: - the, (of), 'a'; -- [b] ... " * 10, "zh": "好，是；对。啊！嗯？" * 10},
    "max_curly_share": {"en": "{{a}} {the} {{of}} {x} " * 10, "zh": "{{甲}}{的}{{乙}}" * 10},
    "max_c4_curly_lines": {"en": EN + "\nThe template prints {name} there.", "zh": ZH + "\n模板在这里打印{名字}的值。"},
    "max_filler_share": {"en": "Lorem ipsum dolor sit amet. " * 5, "zh": "测试测试的页面。" * 5},
    "max_replacement_share": {"en": "The caf\ufffd is clos\ufffdd today. " * 4, "zh": "今天\ufffd\ufffd的店。" * 4},
    "max_mojibake_share": {"en": "The cafÃ© doesnâ€™t open. " * 4, "zh": "锟斤拷的页面锟斤拷。" * 4},
    "min_distinct_chars": {"zh": "哈哈哈的" * 40},
    "min_char_entropy": {"en": "aaaa aaab " * 40, "zh": "哈哈哈的" * 40},
    "max_duplicate_lines": {"en": REPEATED_EN * 8, "zh": REPEATED_ZH * 8},
    "max_duplicate_paragraphs": {"en": (REPEATED_EN + "\n") * 8, "zh": (REPEATED_ZH + "\n") * 8},
    "max_duplicate_line_chars": {"en": REPEATED_EN * 8, "zh": REPEATED_ZH * 8},
    "max_duplicate_paragraph_chars": {"en": (REPEATED_EN + "\n") * 8, "zh": (REPEATED_ZH + "\n") * 8},
    "max_duplicate_line_chars_fineweb": {"en": REPEATED_EN * 8, "zh": REPEATED_ZH * 8},
    **{f"max_top_{n}gram_chars": {"en": "buy cheap shoes " * 30, "zh": "便宜鞋" * 30} for n in range(2, 5)},
    **{
        f"max_duplicate_{n}gram_chars": {
            "en": REPEATED_EN.replace("\n", " ") * 8,
            "zh": REPEATED_ZH.replace("\n", "") * 8,
        }
        for n in range(5, 11)
    },
    "max_repeated_13grams": {"en": REPEATED_EN * 8, "zh": REPEATED_ZH * 8},
}
# T2 rules: text before and after the cuts
CUT = {
    "min_final_chars": {"en": (EN, EN[:60]), "zh": (ZH, ZH[:20])},
    "max_removed_share": {"en": (EN, EN[: len(EN) // 3]), "zh": (ZH, ZH[: len(ZH) // 3])},
}


def features(text: str, language: str, final: str | None = None) -> dict[str, F32]:
    values = measure(TextBatch.from_strings([text]), np.array([language == "zh"], np.uint8), Spans.empty())
    final = text if final is None else final
    values["final_chars"] = np.array([len(final)], np.float32)
    values["removed_share"] = np.array([1 - len(final) / len(text)], np.float32)
    return values


def fires(rule: Rule, preset: str, language: str, values: dict[str, F32]) -> bool:
    threshold = rule.thresholds.get(preset, {}).get(language)
    if threshold is None:
        return False
    value = float(values[rule.feature][0])
    return value < threshold if rule.bad == "below" else value > threshold


def test_rules_are_well_formed() -> None:
    assert len(DOCUMENT_RULES) >= 35 and len(RULE) == len(DOCUMENT_RULES)
    for rule in DOCUMENT_RULES:
        assert rule.granularity == "document" and rule.effect == "drop" and rule.source and rule.meaning
        assert rule.id.startswith("min_" if rule.bad == "below" else "max_")
        assert any(rule.thresholds.values()), f"{rule.id} is on in no preset"
        assert rule.feature in FEATURES if rule.text == "T1" else rule.feature in ("final_chars", "removed_share")
        assert set(rule.recalibrated) <= set(rule.thresholds["ziya2"]), rule.id
    assert {rule.feature for rule in DOCUMENT_RULES} >= set(FEATURES), "a feature that no rule reads"


@pytest.mark.parametrize("rule", DOCUMENT_RULES, ids=lambda rule: rule.id)
def test_every_rule_fires_on_its_golden_page_in_every_language(rule: Rule) -> None:
    """Trap: a rule family that never fires, unnoticed, because a tuple is always true."""
    for preset, by_language in rule.thresholds.items():
        for language in by_language:
            if rule.id == "min_mean_word_length" and (preset, language) == ("fineweb", "zh"):
                continue  # FineWeb-2's 1.0 is for jieba words; a unit has at least one character: it can never fire
            text, final = CUT[rule.id][language] if rule.text == "T2" else (BAD[rule.id][language], None)
            assert fires(rule, preset, language, features(text, language, final)), (preset, language)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("preset", ["ziya2", "gopher", "c4", "fineweb", "refinedweb"])
def test_no_rule_fires_on_a_good_page(preset: str, language: str) -> None:
    values = features(GOOD[language], language)
    assert [rule.id for rule in DOCUMENT_RULES if fires(rule, preset, language, values)] == []


POEMS = {
    "en": "The Pool\n\nAn old pond at dusk;\na frog leaps from the bank,\nand the water rings.\n\nThe reeds are still now,"
    "\nthe mud keeps every footprint\nof the birds that left.\n\nSnow on the far hills;\nmy father mends a fish trap,"
    "\nhumming to himself.\n\nWhen the ice is gone,\nthe boat will want some tar,\nand the oars a coat of oil.",
    "zh": "渡口\n\n古渡无人系旧舟，\n芦花吹雪满汀洲。\n一行归雁斜阳外，\n半入青山半入秋。\n\n老翁携酒过溪桥，\n"
    "醉倚垂杨听晚潮。\n问我当年同钓者，\n笑抬竹杖指云霄。\n\n夜来风起漏声迟，\n灯下翻书检旧诗。\n窗外忽传新雨到，\n"
    "满城荷叶一时知。\n\n山深鸟不知，\n月落人初醒。\n一灯照水明，\n两岸无人影。",
}
MENUS = {
    "en": "\n".join(f"{name} and more" for name in NAMES),
    "zh": "\n".join(f"{name}与更多" for name in THINGS),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_verse_is_kept_and_a_menu_is_not(language: str) -> None:
    def fired(text: str) -> set[str]:
        values = features(text, language)
        return {rule.id for rule in DOCUMENT_RULES if fires(rule, "ziya2", language, values)}

    assert fired(POEMS[language]) == set()
    assert "max_short_lines" in fired(MENUS[language])
    assert "max_short_lines" in fired("\n".join(["好。", "顶！", "赞。"] * 8) if language == "zh" else "Ok.\nHm.\nYes.\n" * 8)


@pytest.mark.parametrize("language", LANGUAGES)
def test_some_lost_bytes_cost_no_page(language: str) -> None:
    good = GOOD[language]
    assert len(good) < 1000
    for lost, broken in (("\ufffd", 3), ("锟斤拷" if language == "zh" else "Ã©", 3)):
        rule = RULE["max_replacement_share" if lost == "\ufffd" else "max_mojibake_share"]
        assert not fires(rule, "ziya2", language, features(good + lost * broken, language))
        assert fires(rule, "ziya2", language, features(good + lost * 20, language))


def test_presets_carry_the_published_numbers() -> None:
    gopher = {
        "min_words": 50, "max_words": 100_000, "min_mean_word_length": 3, "max_mean_word_length": 10,
        "max_hashes_per_word": 0.1, "max_ellipses_per_word": 0.1,
        "max_bullet_lines": 0.9, "max_ellipsis_lines": 0.3, "min_letter_words": 0.8, "min_stop_words": 2,
        "max_duplicate_lines": 0.3, "max_duplicate_paragraphs": 0.3,
        "max_duplicate_line_chars": 0.2, "max_duplicate_paragraph_chars": 0.2, "max_top_2gram_chars": 0.2,
        "max_top_3gram_chars": 0.18, "max_top_4gram_chars": 0.16,
        "max_duplicate_5gram_chars": 0.15, "max_duplicate_6gram_chars": 0.14, "max_duplicate_7gram_chars": 0.13,
        "max_duplicate_8gram_chars": 0.12,
        "max_duplicate_9gram_chars": 0.11, "max_duplicate_10gram_chars": 0.1,
    }  # fmt: skip
    fineweb = {
        "min_end_mark_lines": 0.12,
        "max_short_lines_fineweb": 0.67,
        "max_newlines_per_word": 0.3,
        "max_duplicate_line_chars_fineweb": 0.01,
        "min_sentences": 5,
        "max_curly_share": 0,
        "max_filler_share": 0,
    }
    fineweb_zh = {
        "max_duplicate_lines": 0.287, "max_top_2gram_chars": 0.256, "max_top_3gram_chars": 0.201,
        "max_top_4gram_chars": 0.171, "max_duplicate_5gram_chars": 0.198,
        "max_duplicate_6gram_chars": 0.182, "max_duplicate_7gram_chars": 0.167, "max_duplicate_8gram_chars": 0.154,
        "max_duplicate_9gram_chars": 0.14,
        "max_duplicate_10gram_chars": 0.127, "min_end_mark_lines": 0.106, "max_newlines_per_word": 0.178,
        "max_duplicate_line_chars_fineweb": 0.1, "min_letter_words": 0.735,
        "min_mean_word_length": 1, "max_mean_word_length": 5, "min_stop_words": 2, "min_words": 50,
        "max_words": 100_000, "max_hashes_per_word": 0.1,
        "max_ellipses_per_word": 0.1, "max_bullet_lines": 0.9, "max_ellipsis_lines": 0.3,
    }  # fmt: skip

    def numbers(preset: str, language: str) -> dict[str, float]:
        return {
            rule.id: rule.thresholds[preset][language]
            for rule in DOCUMENT_RULES
            if rule.thresholds.get(preset, {}).get(language) is not None
        }  # type: ignore[misc]

    assert numbers("gopher", "en") == gopher
    assert numbers("fineweb", "en") == {**gopher, **fineweb}
    assert numbers("fineweb", "zh") == fineweb_zh
    assert numbers("refinedweb", "en") == {**gopher, "max_removed_share": 0.05}
    assert numbers("c4", "en") == {"min_c4_sentences": 5, "max_c4_curly_lines": 0, "max_filler_share": 0}
    assert set(numbers("gopher", "zh")) == {
        "max_bullet_lines",
        "max_ellipsis_lines",
        "max_duplicate_lines",
        "max_duplicate_paragraphs",
        "max_duplicate_line_chars",
        "max_duplicate_paragraph_chars",
    }


def test_word_lists_are_what_t1_holds() -> None:
    """Trap: numbers and lists from before Traditional -> Simplified do not hold after it. T1 of zh is Simplified."""
    convert = opencc.OpenCC("t2s").convert
    assert convert(kernels_tables.ZH_STOP_CHARACTERS) == kernels_tables.ZH_STOP_CHARACTERS
    clean = [phrase for phrase, bits in kernels_phrases.phrases().items() if not bits & kernels_phrases.MOJIBAKE]
    assert [phrase for phrase in clean if convert(phrase) != phrase] == []


def detokenise(text: str) -> str:
    text = re.sub(r" ?<unk>", "", re.sub(r" @(.)@ ", r"\1", text))
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    return "\n".join(line.strip(" =") for line in re.sub(r" ('s|'t|'re|'ve|'ll|'d|'m)\b", r"\1", text).split("\n"))


@pytest.mark.parametrize(("name", "language"), [("en_wikitext2", "en"), ("zh_articles", "zh")])
def test_clean_reference_text_is_kept(name: str, language: str) -> None:
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: shared reference text is absent")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    texts = [detokenise(text) for text in texts] if language == "en" else texts
    batch = TextBatch.from_strings(texts)
    doc, start, end = [], [], []
    for number, text in enumerate(texts if language == "zh" else []):  # fenced code of Markdown is protected text
        for match in re.finditer(r"(?ms)^[ \t>]*```.*?^[ \t>]*```[ \t]*$", text):
            before = len(text[: match.start()].encode())
            doc, start, end = [*doc, number], [*start, before], [*end, before + len(match[0].encode())]
    spans = Spans.plain(np.array(doc, np.int32), np.array(start, np.int32), np.array(end, np.int32))
    values = measure(batch, np.full(len(batch), language == "zh", np.uint8), spans)
    dropped = np.zeros(len(batch), bool)
    for rule in DOCUMENT_RULES:
        threshold = rule.thresholds["ziya2"].get(language)
        if threshold is not None and rule.text == "T1":
            dropped |= values[rule.feature] < threshold if rule.bad == "below" else values[rule.feature] > threshold
    assert dropped.mean() < 0.01
