from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_factory import language
from data_factory.batches import TextBatch
from data_factory.config import Language
from data_factory.language import LANG_EN, LANG_ZH, identify, language_codes

DATA = Path(__file__).parents[2] / "shared" / "data" / "text"
SETTINGS = Language()

EN = "The committee met on Tuesday and agreed that the new library should open before the end of the year. "
ZH = "委员会星期二开会，同意新图书馆在年底之前开放，并且请市民提出意见。"
ZH_HANT = "委員會星期二開會，同意新圖書館在年底之前開放，並且請市民提出意見。"
JA = "委員会は火曜日に会議を開き、新しい図書館を年末までに開館することで合意した。"
KO = "위원회는 화요일에 회의를 열고 새 도서관을 연말 전에 개관하기로 합의했다."
CODE = "def main(argv):\n    for name in argv[1:]:\n        print(open(name).read(), end='')\n"


def code_of(text: str, settings: Language = SETTINGS) -> str:
    return identify(TextBatch.from_strings([text]), settings)[0][0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (EN, "en"), (ZH, "zh"), (ZH_HANT, "zh"), (JA, "ja"), (KO, "ko"),
        ("Комитет собрался во вторник и решил открыть новую библиотеку до конца года.", "ru"),
        ("Le comité s'est réuni mardi et a décidé que la nouvelle bibliothèque ouvrirait cette année.", "fr"),
        ("Der Ausschuss tagte am Dienstag und beschloss, die neue Bücherei noch in diesem Jahr zu öffnen.", "de"),
        ("Η επιτροπή συνεδρίασε την Τρίτη και συμφώνησε να ανοίξει η νέα βιβλιοθήκη.", "el"),
        ("คณะกรรมการประชุมเมื่อวันอังคารและเห็นพ้องว่าห้องสมุดแห่งใหม่ควรเปิด", "th"),
        ("اجتمعت اللجنة يوم الثلاثاء ووافقت على افتتاح المكتبة الجديدة قبل نهاية العام.", "ar"),
        ("", "und"), ("12345 67890 !!! ---", "und"), ("Short text", "und"), ("短文", "und"),
        ("图书馆年底之前开放了", "zh"),
        (ZH * 3 + CODE, "zh"),  # Latin letters are the majority of letters in neither
        (ZH + "作者在日文里写了「さくら」。" + ZH, "zh"),  # a little kana
        (EN * 4 + JA, "en"),
        (EN * 5 + ZH, "en"),
    ],
)  # fmt: skip
def test_languages(text: str, code: str) -> None:
    assert code_of(text) == code


def test_scores() -> None:
    codes, scores = identify(TextBatch.from_strings([ZH, EN, "", JA, ZH + "abcde"]), SETTINGS)
    assert codes == ["zh", "en", "und", "ja", "zh"]
    assert scores.dtype == np.float32
    assert scores[0] == scores[3] == 1 and scores[2] == 0 and 0.8 < scores[1] <= 1
    han = sum("\u4e00" <= character <= "\u9fff" for character in ZH)
    assert scores[4] == pytest.approx(han / (han + 5))


def test_documents_do_not_depend_on_their_batch() -> None:
    documents = [EN * 30, ZH * 40, "", CODE + ZH, JA, EN[:40] * 50]
    batch = TextBatch.from_strings(documents)
    codes, scores = identify(batch, SETTINGS)
    for i, document in enumerate(documents):
        alone, score = identify(TextBatch.from_strings([document]), SETTINGS)
        assert (alone[0], score[0]) == (codes[i], scores[i])
    part, part_scores = identify(TextBatch(batch.data, batch.offsets[2:6]), SETTINGS)
    assert part == codes[2:5] and np.array_equal(part_scores, scores[2:5])
    assert identify(TextBatch.from_strings([]), SETTINGS)[0] == []


def sample_of(text: str, wanted: int) -> str:
    batch = TextBatch.from_strings([text])
    out = np.empty(4 * wanted + language.WINDOWS, np.uint8)
    length = language._sample(batch.data, 0, len(batch.data), len(text), wanted, language.WINDOWS, out)
    return out[:length].tobytes().decode()


def test_sample_is_taken_from_the_whole_document() -> None:
    assert sample_of("a\nb\tc", 100) == "a b c"
    words = [f"word{number}é" for number in range(5000)]
    text = " ".join(words)
    sample = sample_of(text, 1000)
    assert 980 <= len(sample) <= 1004
    found = [int(number) for number in re.findall(r"word(\d+)é", sample)]
    assert found[0] < 100 and found[-1] > 4900
    assert sum(1000 < number < 2000 for number in found) > 10
    assert all(word.startswith("w") for word in sample.split())  # pieces start at words
    for count in (999, 1000, 1001, 1003, 4000):
        for character in "a中é𠀀":
            assert set(sample_of(character * count, 1000)) <= {character, " "}


def prose_of(*documents: str) -> list[str]:
    batch = TextBatch.from_strings(documents)
    out, offsets = np.empty(len(batch.data) + len(batch), np.uint8), np.zeros(len(batch) + 1, np.int64)
    language._prose(batch.data, batch.offsets, language._script_table(), out, offsets)
    prose = TextBatch(out, offsets)
    return [prose.string(i) for i in range(len(batch))]


def test_prose_leaves_code_out() -> None:
    line = "The (best) way -- don't wait, \"friends\": it's free!"
    prose = prose_of(f"{line} See https://x.org/a?b=c or a_b.c(d) now.\n{CODE}\nconst a = b.c(d);\n{line}")[0]
    kept = line.replace("-- ", "")
    assert prose == f"{kept} See or now.\nfor name in\n{kept}\n"
    assert prose_of("中文使用foo.bar()函数，见Foo类a中b/c文" * 3)[0] == "中文使用函数见Foo类a中文" * 3 + "\n"
    assert prose_of(CODE, "", "a中" * 50) == [CODE, "", "a中" * 50 + "\n"]  # pure code stays whole


def test_a_foreign_head_does_not_decide() -> None:
    navigation = (
        "Home | Login | Register | Search | About us | Contact | Products | Download | Help | Terms | Privacy\n" * 12
    )
    assert code_of((ZH + "\n") * 4 + CODE * 5) == "zh"
    assert code_of(navigation + (ZH + "\n") * 60) == "zh"


FR = "Le comité s'est réuni mardi et a décidé que la nouvelle bibliothèque ouvrirait cette année. "


@pytest.mark.parametrize(
    ("text", "likeliest"),
    [(EN + ZH * 5, "en"), ("\n".join([EN] + [ZH] * 5), "en"), (ZH_HANT * 3 + EN, "en"), (EN + ZH * 7, "zh")],
)
def test_a_page_in_two_kept_languages_is_scored_by_both(text: str, likeliest: str) -> None:
    def found(*keep: str) -> tuple[str, float]:
        codes, scores = identify(TextBatch.from_strings([text]), Language(keep=list(keep)))
        return codes[0], float(scores[0])

    both, one = found("en", "zh"), found(likeliest)
    assert both[0] == one[0] == likeliest
    assert one[1] < 0.65 < 0.69 < both[1] <= 1
    assert found("fr") == found() == one  # languages that are not kept stand alone
    assert found("zh", "en") == both and both[1] <= found("zh", "en", "fr")[1]


def test_other_languages_are_not_added_up() -> None:
    batch = TextBatch.from_strings([FR * 3 + EN, FR * 3 + ZH * 2, FR + EN])
    for keep in (["en", "zh"], ["en"], []):
        codes, scores = identify(batch, Language(keep=keep))
        assert codes[:2] == ["fr", "fr"]
        assert np.array_equal(scores[:2], identify(batch, Language(keep=["fr"]))[1][:2])
    codes, scores = identify(batch, Language(keep=["en", "fr"]))
    assert codes[:2] == ["fr", "fr"] and np.all(scores > identify(batch, Language(keep=["fr"]))[1])


def test_japanese_without_kana_is_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model gives to Japanese goes to Chinese where there is Han, and to no language where there is none."""
    known = ("en", "fr", "ja", "zh")
    table = np.array([[0.3, 0.05, 0.4, 0.2], [0.3, 0.05, 0.4, 0.2], [0.3, 0.05, 0.4, 0.2], [0.1, 0.6, 0.1, 0.2]])
    monkeypatch.setattr(language.language_model, "codes", lambda: known)
    monkeypatch.setattr(language.language_model, "probabilities", lambda data, offsets: table)
    documents = [EN + ZH, EN, EN + JA, EN + ZH]
    codes, scores = identify(TextBatch.from_strings(documents), SETTINGS)
    assert codes == ["zh", "en", "en", "fr"]
    assert scores.tolist() == pytest.approx([0.9, 0.5, 0.5, 0.6])
    codes, scores = identify(TextBatch.from_strings(documents), Language(keep=["fr"]))
    assert codes == ["zh", "und", "ja", "fr"]
    assert scores.tolist() == pytest.approx([0.6, 0.4, 0.4, 0.6])


def test_codes() -> None:
    codes = language_codes(["zh", "en", "und", "ja", "zh"])
    assert codes.dtype == np.uint8
    assert codes.tolist() == [LANG_ZH, LANG_EN, LANG_EN, LANG_EN, LANG_ZH]


@pytest.mark.parametrize(("name", "code"), [("en_wikitext2", "en"), ("zh_articles", "zh")])
def test_reference_text(name: str, code: str) -> None:
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"the reference text is not here: {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for line in file]
    codes, scores = identify(TextBatch.from_strings(documents), SETTINGS)
    kept = np.mean(
        [found == code and score >= SETTINGS.min_score[code] for found, score in zip(codes, scores, strict=True)]
    )
    assert kept > 0.99
