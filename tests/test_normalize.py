from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import oracle_normalize as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_factory.batches import Spans, TextBatch
from data_factory.config import Normalize
from data_factory.normalize import clean, converter, simplify, strip_marks

CRAWL = Path(__file__).parents[2] / "shared" / "data" / "crawl" / "docs-000.warc.gz"
DEFAULT = Normalize()

# Pieces that meet each other in random documents: whatever has a rule of its own, alone and half.
PIECES = [
    *"aoTe8中国，。！()（）:-D^_;><.…—#|=*`!?~é가가نیक्ทあヽノ´ω•Ω[]{\\/\"'★☆٩۶😀❤✔👍🏽👩🇨",
    *["Word", ":-)", ":)", ":(", "(^_^)", "(T_T)", "o_O", "T_T", "¯\\_(ツ)_/¯", "(╯°□°)╯︵ ┻━┻", "1️⃣"],
    *" \n\n\r\t\u3000\xa0\x85\u2028\u200b\u200c\u200d\ufeff\ufe0f",
    *["  ", "\r\n"],
]
PIECES += ["\u20e3", "\u0301", "\ufffd", "\ue000", "\U000e0100", "\U0002f800", "\U00020000", "\x00", "\x07"]
PIECES += ["\x02\x03", "\x02x  = 1\x03", "\x02\r\r\n\x03", "\x02a\n\n\x03", "\x02\n:)\x03", "\x02中\x03"]


def texts(batch: TextBatch) -> list[str]:
    return [batch.string(i) for i in range(len(batch))]


def marked(batch: TextBatch, spans: Spans) -> list[str]:
    """The texts with marks set again."""
    result = []
    for i in range(len(batch)):
        data, out, position = batch.string(i).encode(), b"", 0
        for row in np.flatnonzero(spans.doc == i):
            out += data[position : spans.start[row]] + b"\x02" + data[spans.start[row] : spans.end[row]] + b"\x03"
            position = int(spans.end[row])
        result.append((out + data[position:]).decode())
    return result


def cleaned(text: str, **changes: object) -> str:
    return marked(*clean(TextBatch.from_strings([text]), Normalize(**changes)))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one\r\ntwo\rthree\x0bfour\u2028five", "one\ntwo\nthree\nfour\nfive"),
        ("  a \t b\u3000\xa0c  \n\n \n\n d ", "a b c\n\nd"),
        ("中 国 人　民 ， 好 。 abc 中文 x", "中国人民，好。 abc 中文 x"),
        (
            "zero\u200bwidth \ufeffbom so\xadft \ue000private \x07bell \u202eleft",
            "zerowidth bom soft private bell left",
        ),
        ("damage \ufffd\ufffd\ufffd\ufffd\ufffd stays", "damage \ufffd\ufffd\ufffd\ufffd\ufffd stays"),
        ("cafe\u0301 e\u200b\u0301", "café é"),
        ("می\u200cخواهم क्\u200dष a\u200db", "می\u200cخواهم क्\u200dष ab"),
        ("葛\U000e0100城 ☎\ufe0e", "葛城 ☎"),
        (
            "中文😀好 good😀morning Great 😀! 👨\u200d👩\u200d👧 👍🏽 🇨🇳 1️⃣ 🏴\U000e0067\U000e0062\U000e007f end",
            "中文好 good morning Great! end",
        ),
        ("★ ✔ © → ❶ ☰ 8 # *", "★ ✔ © → ❶ ☰ 8 # *"),
        ("✔️ ©️ ❤", "©"),
        ("谢谢:) 好的 :-) ok ;-) :( no :D end", "谢谢好的 ok no end"),
        ("笑(^_^)了 怒(╯°□°)╯︵ ┻━┻ ¯\\_(ツ)_/¯ ^_^ T_T (｡•́︿•̀｡)", "笑了怒"),
        ("wow！！！！！ ……… ——— .......... ------ ~~~~~~ $$$$$", "wow！！！ …… —— ... --- ~~~ $$$"),
        ("#### Head\n| a |||| b |\n|------|:----:|\n=====", "#### Head\n| a |||| b |\n|---|:---:|\n==="),
        ("f(g(h(i(x)))) \\\\\\\\host {{{{a}}}} [[[[1]]]]", "f(g(h(i(x)))) \\\\\\\\host {{{{a}}}} [[[[1]]]]"),
        ("", ""),
        (" \n\u200b😀 ", ""),
    ],
)
def test_golden(before: str, after: str) -> None:
    assert cleaned(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "x = a[1:] and {k :v} at 8:00, ratio 3:0 (see :) a:Dog C:Program f(T_T) O_Oasis",
        "（注意：）如下：（一）第二章:(1)见表 (如下:) 《书：》",
        "call foo( ;) or for (i = 0; ;) {} in let x :D = 1",
        "<表>.<栏> a -_-b x^_^y 2^^3 (*.*) (-1) (5°-10°) (`.`) (^.+^) ::: ;; http://a.b/:D",
        "|:-|:-|\nKey :Value\nip::1",
        "不，“引号”……——《书名》、（括号）「引」·间隔",
    ],
)
def test_code_times_and_chinese_marks_are_no_emoticons(text: str) -> None:
    assert cleaned(text) == text.replace("  ", " ")


def test_settings() -> None:
    assert cleaned("ok 😀 ❤️ 1️⃣ :-) 👩\u200d👧 x\ufe0f", remove_emoji=False) == "ok 😀 ❤️ 1️⃣ :-) 👩\u200d👧 x"
    assert cleaned("ａ，１ ﬁ", unicode_form="NFKC") == "a,1 fi"
    assert cleaned("e\u0301 ﬁ", unicode_form="none") == "e\u0301 ﬁ"
    assert cleaned("!!!!! 。。。 ... …… ---", max_repeated_punctuation=1) == "! 。 ... …… ---"
    assert cleaned("!!!!!!!", max_repeated_punctuation=5) == "!!!!!"


def test_protected_text_keeps_its_bytes_except_line_ends() -> None:
    code = "if x:\t\n\n\n\n    y = '!!!!!'  # 😀 :-) \u200b\ufeff 中 文 e\u0301"
    batch, spans = clean(
        TextBatch.from_strings([f"Use  \x02{code}\x03  here !!!!!\r\n", "none", f"\x02{code}\r\nend\x03"]), DEFAULT
    )
    assert texts(batch) == [f"Use {code} here !!!", "none", f"{code}\nend"]
    assert (spans.doc.tolist(), spans.start.tolist()) == ([0, 2], [4, 0])
    first = batch.string(0).encode()[spans.start[0] : spans.end[0]]
    assert first.decode() == code
    assert cleaned("a \x02\x03 b \x02never closed  x") == "a b \x02never closed  x\x03"
    assert cleaned("text\n\n\n\x02code\n\n\x03\n\n\nmore \x02\n\x03") == "text\n\n\x02code\n\n\x03more\x02\n\x03"


def test_strip_marks_changes_nothing_else() -> None:
    batch, spans = strip_marks(TextBatch.from_strings(["a  \x02b\r\n\x03 c", "", "\x02\x03d"]))
    assert texts(batch) == ["a  b\r\n c", "", "d"]
    assert (spans.doc.tolist(), spans.start.tolist(), spans.end.tolist()) == ([0], [3], [6])


def test_random_documents_equal_the_oracle() -> None:
    numbers = random.Random(11)
    for _ in range(6):
        choice = Normalize(
            unicode_form=numbers.choice(["NFC", "NFKC", "none"]),
            remove_emoji=numbers.random() < 0.8,
            max_repeated_punctuation=numbers.choice([1, 3, 4]),
        )
        documents = ["".join(numbers.choices(PIECES, k=numbers.randint(0, 40))) for _ in range(150)]
        batch, spans = clean(TextBatch.from_strings(documents), choice)
        for document, found, with_marks in zip(documents, texts(batch), marked(batch, spans), strict=True):
            expected = oracle.clean(document, choice)
            assert oracle.split_marks(expected)[0] == found, (document, choice)
            assert with_marks == expected, (document, choice)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(st.sampled_from(PIECES), st.characters(exclude_categories=["Cs"], exclude_characters="\x02\x03")),
        max_size=30,
    ),
    st.sampled_from(
        [Normalize(), Normalize(unicode_form="NFKC", max_repeated_punctuation=1), Normalize(remove_emoji=False)]
    ),
)
def test_cleaning_twice_is_cleaning_once(pieces: list[str], choice: Normalize) -> None:
    batch, spans = clean(TextBatch.from_strings(["".join(pieces), "neighbour"]), choice)
    once = marked(batch, spans)
    again = marked(*clean(TextBatch.from_strings(once), choice))
    assert once == again
    assert once[1] == "neighbour"
    outside = re.sub("\x02[^\x03]*\x03", "", once[0])
    assert not re.search("[\r\t\x00\u200b\ufeff\ue000]|  |\n\n\n", outside)


def test_what_a_shortened_run_or_a_lost_space_completes_is_found() -> None:
    """Only such changes as can complete an emoticon ask for another pass: runs and spaces around parts of faces."""
    generator = random.Random(17)
    parts = [*"()（）^_.。・-*#=~～'To:;/>!，|Da中口╯°︵━", " ", "\u3000", "\n"]
    documents = []
    for _ in range(3000):
        few = generator.sample(parts, generator.randrange(3, 9))
        documents.append(
            "".join(generator.choice(few) * generator.choice((1, 1, 1, 2, 4, 7)) for _ in range(generator.randrange(9)))
        )
    for most in (1, 3):
        choice = Normalize(max_repeated_punctuation=most)
        found = texts(clean(TextBatch.from_strings(documents), choice)[0])
        assert found == [oracle.clean(document, choice) for document in documents]


def test_batches_do_not_mix_documents() -> None:
    numbers = random.Random(3)
    documents = ["".join(numbers.choices(PIECES, k=20)) for _ in range(60)]
    whole = marked(*clean(TextBatch.from_strings(documents), DEFAULT))
    assert whole == [cleaned(document) for document in documents]
    joined = TextBatch.from_strings(documents)
    part = TextBatch(joined.data, joined.offsets[10:31])  # offsets that do not start at 0
    assert marked(*clean(part, DEFAULT)) == whole[10:30]


def test_simplify_changes_traditional_documents_outside_spans_only() -> None:
    batch, spans = clean(
        TextBatch.from_strings(["這是\x02繁體\x03中國，意志消沈。", "于是乾隆说：著作於后", "English 國", "裏面 國"]),
        DEFAULT,
    )
    out, moved = simplify(batch, spans, np.array([True, True, False, True]))
    assert texts(out) == ["这是繁體中国，意志消沉。", "于是乾隆说：著作於后", "English 國", "里面国"]
    assert out.string(0).encode()[moved.start[0] : moved.end[0]].decode() == "繁體"
    same, same_spans = simplify(batch, spans, np.zeros(4, np.bool_))
    assert same is batch and same_spans is spans


def test_joined_conversion_equals_conversion_of_each_piece() -> None:
    """No phrase may be matched across the separator, protected text or the border of two documents."""
    numbers = random.Random(5)
    pool = [*"乾坤隆燥意志消沈深憑藉慰著名後面麼頭髮發國語說話裏里鐘錶表甚什餘年abc，。 \n"]
    pool += ["\U0002a700", "豈", "意志消沈", "乾坤"]
    documents = []
    for _ in range(300):
        parts = ["國" + "".join(numbers.choices(pool, k=numbers.randint(0, 8))) for _ in range(numbers.randint(1, 3))]
        documents.append("".join(part if number % 2 == 0 else f"\x02{part}\x03" for number, part in enumerate(parts)))
    batch, spans = strip_marks(TextBatch.from_strings(documents))
    out, moved = simplify(batch, spans, np.ones(len(batch), np.bool_))
    expected = []
    for document in documents:
        parts = re.split("(\x02[^\x03]*\x03)", document)
        expected.append("".join(part if part[:1] == "\x02" else converter().convert(part) for part in parts))
    assert marked(out, moved) == expected


@pytest.fixture(scope="module")
def crawl() -> list[tuple[str, str]]:
    if not CRAWL.is_file():
        pytest.skip(f"the real crawl is not here: {CRAWL}")
    warc = pytest.importorskip("fastwarc.warc")
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    pages = []
    with CRAWL.open("rb") as file:
        for number, record in enumerate(warc.ArchiveIterator(file, record_types=warc.WarcRecordType.response)):
            if number % 5 == 0:
                tree = HTMLTree.parse(record.reader.read().decode("utf-8", "replace"))
                text = extract_plain_text(tree, main_content=True).replace("\x02", "").replace("\x03", "")
                pages.append((record.headers["WARC-Target-URI"], text))
    return pages


def test_real_pages(crawl: list[tuple[str, str]]) -> None:
    before = [text for _, text in crawl]
    batch, spans = clean(TextBatch.from_strings(before), DEFAULT)
    after = texts(batch)
    assert len(spans) == 0
    assert len(before) > 200
    assert all(new for old, new in zip(before, after, strict=True) if old.strip())  # no page is emptied
    size = sum(map(len, after)) / sum(map(len, before))
    assert 0.9 < size < 1, size
    letters = [sum(map(str.isalpha, page)) for page in (" ".join(before), " ".join(after))]
    assert letters[1] > 0.998 * letters[0]
    assert marked(*clean(batch, DEFAULT)) == after
    for old, new in list(zip(before, after, strict=True))[::10]:
        if len(old) < 4000:
            assert oracle.clean(old, DEFAULT) == new


def test_real_chinese_pages(crawl: list[tuple[str, str]]) -> None:
    for language, least, most in (("zh-TW", 0.75, 1.0), ("zh-CN", 0.0, 0.01)):
        pages = [text for url, text in crawl if f"/{language}/" in url]
        batch, spans = clean(TextBatch.from_strings(pages), DEFAULT)
        out, _ = simplify(batch, spans, np.ones(len(batch), np.bool_))
        changed = np.mean([a != b for a, b in zip(texts(batch), texts(out), strict=True)])
        assert least <= changed <= most, (language, changed)
        assert all(b in (a, converter().convert(a)) for a, b in zip(texts(batch), texts(out), strict=True))
