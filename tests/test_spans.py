"""Paragraph, sentence and clause rules: golden pages, guards, floors, lexicons, and the plain references."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
import oracle_spans
import pytest

from data_factory import characters
from data_factory.batches import Spans, TextBatch
from data_factory.rules import RULE, RULE_NUMBER, RULES, RuleSettings, cut, lexicon, patterns, thresholds
from data_factory.rules import span_kernels as kernels
from data_factory.rules.lines import DIGITS, LineTable
from data_factory.rules.paragraph import PARAGRAPH_RULES
from data_factory.rules.sentence import SENTENCE_RULES
from data_factory.rules.spans import FEATURES, FLOORS, Detectors, check_floors
from ziya.errors import UserError

OURS = PARAGRAPH_RULES + SENTENCE_RULES
PAGES = [
    json.loads(line) for line in (Path(__file__).parent / "golden" / "span_rules.jsonl").read_text("utf-8").splitlines()
]
for page in PAGES:  # @A*600@ stands for 600 times A
    page["text"] = re.sub(r"@(.)\*(\d+)@", lambda match: match[1] * int(match[2]), page["text"])
    page["cut"] = [re.sub(r"@(.)\*(\d+)@", lambda match: match[1] * int(match[2]), cut) for cut in page.get("cut", [])]
TEXTS = [page["text"] for page in PAGES]
LANGS = np.array([page["lang"] == "zh" for page in PAGES], np.uint8)


@cache
def detectors() -> Detectors:
    return Detectors.load(RuleSettings())


@cache
def measured() -> tuple[Spans, dict[str, np.ndarray]]:
    return detectors().measure(TextBatch.from_strings(TEXTS), LANGS, Spans.empty())


def limit(page: dict[str, object]) -> float:
    row = page.get("override") or thresholds(RuleSettings(preset=page.get("preset", "ziya2")))[str(page["rule"])]
    return float(row[page["lang"]])  # type: ignore[index]


@pytest.mark.parametrize("number", range(len(PAGES)), ids=lambda i: f"{PAGES[i]['rule']}-{PAGES[i]['lang']}-{i}")
def test_golden(number: int) -> None:
    page, (spans, hits) = PAGES[number], measured()
    rule = RULE[page["rule"]]
    if rule.effect == "drop":
        assert (hits[rule.feature][number] > limit(page)) == page["drop"]
        return
    own = spans.take((spans.doc == number) & (spans.rule == RULE_NUMBER[rule.id]))
    own = own.take(own.value > limit(page) if rule.bad == "above" else own.value < limit(page))
    text = page["text"].encode()
    assert [text[s:e].decode() for s, e in zip(own.start, own.end, strict=True)] == page["cut"]


def test_every_rule_has_pages_that_fire_and_pages_that_do_not() -> None:
    seen = {(page["rule"], page["lang"], bool(page["cut"] or page.get("drop"))) for page in PAGES}
    for rule in OURS:
        languages = {language for row in rule.thresholds.values() for language in row} or {"en", "zh"}
        for language in languages:
            assert {(rule.id, language, True), (rule.id, language, False)} <= seen, (rule.id, language)


def test_catalogue() -> None:
    assert sum(rule.effect == "cut" for rule in OURS) >= 18
    assert sum(rule.effect == "mask" for rule in OURS) >= 4
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert {rule.feature for rule in OURS if rule.effect == "drop"} <= set(FEATURES)
    assert set(FLOORS) == {rule.id for rule in RULES if rule.effect != "drop"}
    for preset in ("ziya2", "gopher", "c4", "fineweb", "refinedweb", "none"):
        check_floors(thresholds(RuleSettings(preset=preset)))


def test_floors_refuse_looser_thresholds() -> None:
    with pytest.raises(UserError, match=r"rules.short_lines = 9 for zh; it needs at most 8"):
        check_floors({"short_lines": {"zh": 9.0}})
    with pytest.raises(UserError, match=r"rules.link_lines = 0.1 for en; it needs at least 0.5"):
        check_floors({"link_lines": {"en": 0.1}})


def test_a_document_is_measured_alone() -> None:
    whole, hits = measured()
    rows = whole.row_offsets(len(TEXTS))
    for number in range(0, len(TEXTS), 3):
        batch = TextBatch.from_strings([TEXTS[number]])
        alone, own = detectors().measure(batch, LANGS[number : number + 1], Spans.empty())
        part = whole.take(np.arange(rows[number], rows[number + 1]))
        for name in ("start", "end", "rule", "value"):
            assert getattr(alone, name).tolist() == getattr(part, name).tolist(), (TEXTS[number], name)
        assert all(own[name][0] == hits[name][number] for name in FEATURES)
    assert detectors().document_hits(TextBatch.from_strings(TEXTS), LANGS).keys() == set(FEATURES)
    assert len(detectors().candidates(TextBatch.from_strings([]), np.zeros(0, np.uint8), Spans.empty())) == 0


def test_spans_are_sorted_inside_their_document_and_whole_characters() -> None:
    spans, _ = measured()
    keys = list(zip(spans.doc, spans.start, spans.end, spans.rule, strict=True))
    assert keys == sorted(keys)
    for doc, start, end, _ in keys:
        text = TEXTS[doc].encode()
        assert 0 <= start < end <= len(text)
        text[start:end].decode()


def test_protected_text_and_fences_are_off_limits_for_cuts_but_not_for_persons() -> None:
    text = "Read more...\nWrite to jane@example.org on 93.184.216.34.[1] Watch free porn videos."
    batch, langs = TextBatch.from_strings([text]), np.zeros(1, np.uint8)
    everything = Spans.plain(np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([len(text)], np.int32))

    def fired(spans: Spans) -> set[str]:
        return {RULES[number - 1].id for number in spans.rule.tolist()}

    free = fired(detectors().candidates(batch, langs, Spans.empty()))
    assert {"action_lines", "citation_marks", "toxic_sentences", "mask_email", "mask_ip"} <= free
    assert fired(detectors().candidates(batch, langs, everything)) == {"mask_email"}
    head = Spans.plain(np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([4], np.int32))
    assert free - fired(detectors().candidates(batch, langs, head)) == {
        "action_lines",
        "short_lines",
        "unterminated_lines",
    }
    fenced = TextBatch.from_strings(["```\nRead more...\nhttp://example.org/x\n```\nRead more..."])
    spans = detectors().candidates(fenced, langs, Spans.empty())
    assert spans.start[spans.rule == RULE_NUMBER["action_lines"]].tolist() == [42]
    assert "link_lines" not in fired(spans)


def test_user_lexicons(tmp_path: Path) -> None:
    toxic, advert = tmp_path / "toxic.txt", tmp_path / "advert.txt"
    toxic.write_text("# ours\nfrobnicate\n坏词\t1\n", "utf-8")
    advert.write_text("glorp*\n", "utf-8")
    own = Detectors.load(RuleSettings(toxic_lexicons=[str(toxic)], advert_lexicons=[str(advert)]))
    batch = TextBatch.from_strings(["Do not Frobnicate it. Frobnicated things stay. A glorpy thing."])
    spans = own.candidates(batch, np.zeros(1, np.uint8), Spans.empty())
    toxic_rows = spans.take(spans.rule == RULE_NUMBER["toxic_sentences"])
    assert [
        (int(s), int(e), float(v)) for s, e, v in zip(toxic_rows.start, toxic_rows.end, toxic_rows.value, strict=True)
    ] == [(0, 21, 3.0)]
    assert (spans.rule == RULE_NUMBER["advert_sentences"]).sum() == 1
    for content, complaint in (
        (b"\xff\xfe", "not UTF-8"),
        (b"# nothing\n", "holds no entry"),
        (b"word\theavy\n", "line 1: weight 'heavy' found"),
        ("字\n".encode(), "line 1: an entry of 1 characters found"),
    ):
        toxic.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            Detectors.load(RuleSettings(toxic_lexicons=[str(toxic)]))
    with pytest.raises(UserError, match="cannot be read"):
        Detectors.load(RuleSettings(toxic_lexicons=[str(tmp_path / "absent.txt")]))


def test_shipped_lexicons() -> None:
    lists = lexicon.Lexicon.load()
    assert len(lists.entries) > 1500
    for entry in lists.entries:
        assert len(entry.decode()) > 1
    assert (lists.weights.sum(axis=0) > 0).all()


def random_text(rng: random.Random) -> str:
    pieces = [
        "word",
        "Ab9",
        "ab",
        "甲",
        "乙丙",
        "坏词",
        "é",
        "Ａ",
        "　",
        " ",
        "  ",
        "\n",
        "\n\n",
        "，",
        "。",
        ".",
        "...",
        "3.5",
        "😀",
        "\t",
        "ﾊ",
        "ABC",
    ]
    return "".join(rng.choice(pieces) for _ in range(rng.randrange(0, 40)))


def test_lines_equal_reference() -> None:
    rng = random.Random(2)
    texts = [random_text(rng) for _ in range(600)] + TEXTS
    batch = TextBatch.from_strings(texts)
    table = LineTable.of(batch)
    found = [
        (int(doc), batch.data[s:e].tobytes().decode(), tuple(int(value) for value in counts[:5]))
        for doc, s, e, counts in zip(table.doc, table.start, table.end, table.counts, strict=True)
    ]
    assert found == [(doc, *line) for doc, text in enumerate(texts) for line in oracle_spans.lines(text)]


def test_search_equals_reference() -> None:
    rng = random.Random(3)
    entries = ["ab", "word", "坏词", "乙丙", "b9", "abc", "word坏词", "词"]
    lists = lexicon.Lexicon([("toxic", entry, 3.0) for entry in entries])
    texts = [random_text(rng) for _ in range(800)]
    batch = TextBatch.from_strings(texts)
    matches = lists.search(batch)
    found = set()
    for entry, start, end in zip(matches.entry, matches.start, matches.end, strict=True):
        doc = int(np.searchsorted(batch.offsets, start, side="right")) - 1
        text = texts[doc].encode()
        low, high = start - batch.offsets[doc], end - batch.offsets[doc]
        found.add((doc, lists.entries[entry].decode(), len(text[:low].decode()), len(text[:high].decode())))
    assert found == {(doc, *item) for doc, text in enumerate(texts) for item in oracle_spans.search(text, entries)}
    assert len(found) == len(matches) > 300


def test_kernels_propose_every_line_that_a_pattern_accepts() -> None:
    rng = random.Random(8)
    pieces = [
        *(
            "Home",
            "首页",
            "您现在的位置：",
            "News",
            "新闻",
            "x" * 39,
            ">",
            ">>",
            " > ",
            "|",
            "»",
            "→",
            "->",
            "·",
            ". ",
            "\t",
            "！",
        ),
        *(
            "2023",
            "12",
            "3",
            "1",
            "-",
            "/",
            ".",
            "年",
            "月",
            "日",
            " ",
            "Jan",
            "march",
            "SEPT",
            "ſep",
            "12:30",
            "posted on ",
        ),
        *("作者：", "来源: ", "日期", "周一", "Monday", ", ", "１２", "é"),
    ]
    accepted = 0
    for _ in range(20000):
        line = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 9))).strip()
        table = LineTable.of(TextBatch.from_strings([line]))
        if len(table) != 1:
            continue
        data = TextBatch.from_strings([line]).data
        path = kernels.paths(
            data, characters.table(), table.start, table.end, patterns.PATH_OPENERS, patterns.LONGEST_PART
        )
        dated = kernels.dated(data, table.start, table.end, table.counts[:, DIGITS], patterns.MONTHS)
        text = data[table.start[0] : table.end[0]].tobytes().decode()
        assert path[0] or not patterns.breadcrumb(text), text
        assert dated[0] or not patterns.byline(text), text
        accepted += bool(patterns.breadcrumb(text)) + bool(patterns.byline(text))
    assert accepted > 500


def test_folding_keeps_positions() -> None:
    text = "ABC Éß Ａｂ 甲ÀЖ"
    folded = lexicon.fold(text)
    assert len(folded) == len(text.encode())
    assert folded.decode() == "abc éß ａｂ 甲àЖ"


@pytest.mark.parametrize(("name", "limit_share"), [("zh_articles", 0.0045), ("en_wikitext2", 0.0005)])
def test_reference_text_stays_whole(name: str, limit_share: float) -> None:
    import gzip

    path = Path(__file__).parents[2] / "shared" / "data" / "text" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"reference text {path.name} is absent")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"].replace("<unk>", "") for line in file]
    batch = TextBatch.from_strings(texts)
    langs = np.full(len(texts), name.startswith("zh"), np.uint8)
    spans, hits = detectors().measure(batch, langs, Spans.empty())
    language, cuts, dropped = "zh" if name.startswith("zh") else "en", [], np.zeros(len(texts), np.bool_)
    for rule_id, row in thresholds(RuleSettings()).items():
        rule = RULE[rule_id]
        if language not in row:
            continue
        if rule.feature in hits:
            dropped |= hits[rule.feature] > row[language]
        if rule.effect == "cut":
            own = spans.take(spans.rule == RULE_NUMBER[rule_id])
            own = own.take(own.value > row[language] if rule.bad == "above" else own.value < row[language])
            cuts.append(own)
    t2, _ = cut.build(batch, Spans.empty(), Spans.concatenate(cuts), Spans.empty(), {})
    assert 1 - len(t2.data) / len(batch.data) < limit_share
    assert not dropped.any()
