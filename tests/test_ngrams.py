"""The n-gram scanner against a plain Python reference, on random texts in both languages."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter

import numpy as np
import pytest

from ziya import ngrams


def plain_units(text: str) -> list[str]:
    """Units by the definition, one character at a time."""
    found: list[str] = []
    previous = ""
    for character in text:
        point = ord(character)
        if 0xFF10 <= point <= 0xFF19 or 0xFF21 <= point <= 0xFF3A or 0xFF41 <= point <= 0xFF5A:
            character = unicodedata.normalize("NFKC", character)
            point = ord(character)
        kind = unicodedata.category(character)
        cjk = kind[0] in "LM" and any(first <= point < last for first, last in ngrams._CJK)
        if cjk or 0x20000 <= point < 0x40000:
            found.append(f"cjk {character}")
            previous = ""
        elif kind[0] in "LM":
            lower = character.lower()
            character = lower if len(lower) == 1 else character
            if previous == "word":
                found[-1] += character
            else:
                found.append(f"word {character}")
            previous = "word"
        elif kind == "Nd":
            if previous == "number":
                found[-1] += character
            else:
                found.append(f"number {character}")
            previous = "number"
        else:
            previous = ""
    return found


def plain_ngrams(text: str, length: int = ngrams.LENGTH) -> list[tuple[str, ...]]:
    units = plain_units(text)
    return [tuple(units[at : at + length]) for at in range(len(units) - length + 1)]


ALPHABETS = [
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会",
    "abcdefgHIJK",
    "0123456789",
    " \n\t，。、；：？！“”（）.,;:?!-_/\\$",
    "éèüßÅñ чшЯ αΩ のカーゞ한글 ｱｲ ＡｚＺ０９ 𠀀𪛖 😀🇨🇳 \u0301\u200d\ufeff",
]


def random_text(rng: random.Random, characters: int) -> str:
    parts = []
    while sum(map(len, parts)) < characters:
        alphabet = rng.choices(ALPHABETS, (6, 6, 2, 4, 2))[0]
        parts.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 7))))
    return "".join(parts)


def world(seed: int) -> tuple[list[str], list[str]]:
    """Items (some short, some sharing text) and documents that hold pieces of them."""
    rng = random.Random(seed)
    items = [random_text(rng, rng.choice((3, 20, 60, 200))) for _ in range(30)]
    frame = random_text(rng, 40)
    items += [frame + random_text(rng, 50) for _ in range(rng.choice((2, 3, 4, 6)))]
    documents = ["", "a", "是"]
    for _ in range(40):
        text = random_text(rng, rng.randrange(1, 300))
        for _ in range(rng.randrange(3)):
            item = rng.choice(items)
            start = rng.randrange(len(item))
            piece = item[start : start + rng.randrange(1, 120)] if rng.random() < 0.7 else item
            text += rng.choice(("\n", "。", "")) + piece + random_text(rng, 30)
        documents.append(text)
    return items, documents


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("length", (1, 3, 10))
def test_the_scanner_equals_its_plain_reference(seed: int, length: int) -> None:
    items, documents = world(seed)
    shared_by = 3
    of_item = [set(plain_ngrams(item, length)) for item in items]
    owners = Counter(gram for grams in of_item for gram in grams)
    kept = [{gram for gram in grams if owners[gram] <= shared_by} for grams in of_item]

    index = ngrams.Index.build(items, shared_by, length)
    assert index.units.tolist() == [len(plain_units(item)) for item in items]
    assert index.total.tolist() == [len(grams) for grams in kept]
    assert index.removed.tolist() == [len(all_) - len(grams) for all_, grams in zip(of_item, kept, strict=True)]
    assert len(index.keys) == len(set().union(*kept))

    data, offsets = ngrams.utf8(documents)
    hits = index.scan(data, offsets)
    assert hits.units.tolist() == [len(plain_units(text)) for text in documents]
    of_document = [set(plain_ngrams(text, length)) for text in documents]
    expected = [
        (number, which, len(grams & own))
        for number, grams in enumerate(of_document)
        for which, own in enumerate(kept)
        if grams & own
    ]
    assert list(zip(*(column.tolist() for column in index.pairs(hits)), strict=True)) == expected

    everywhere = set().union(*of_document)
    seen = np.zeros(len(index.keys), bool)
    seen[hits.ngram] = True
    shares = [len(own & everywhere) / len(own) if own else float("nan") for own in kept]
    assert np.allclose(index.coverage(seen), shares, equal_nan=True)

    share, which = index.best(data, offsets)
    for number, grams in enumerate(of_document):
        values = [len(grams & own) / len(own) if grams & own else 0.0 for own in kept]
        assert share[number] == np.float32(max(values))
        assert which[number] == (values.index(max(values)) if max(values) else -1)


def test_the_answers_do_not_depend_on_how_documents_are_cut_into_batches() -> None:
    items, documents = world(7)
    index = ngrams.Index.build(items)
    whole = index.pairs(index.scan(*ngrams.utf8(documents)))
    single = [index.pairs(index.scan(*ngrams.utf8([text]))) for text in documents]
    expected = [(n, i, c) for n, part in enumerate(single) for _, i, c in zip(*map(np.ndarray.tolist, part), strict=True)]
    assert list(zip(*map(np.ndarray.tolist, whole), strict=True)) == expected
    loaded = ngrams.Index.load(index.arrays())
    again = loaded.pairs(loaded.scan(*ngrams.utf8(documents)))
    assert all((a == b).all() for a, b in zip(whole, again, strict=True))


def test_more_hits_than_the_first_buffer_holds() -> None:
    rng = random.Random(1)
    long = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(9000))
    index = ngrams.Index.build([long])
    hits = index.scan(*ngrams.utf8([long, "x", long]))
    assert len(hits.ngram) == 2 * int(index.total[0]) > (1 << 12) + 2 * len(long) * 3 / 16
    assert np.bincount(hits.document).tolist() == [index.total[0], 0, index.total[0]]


def test_layout_case_and_full_width_do_not_hide_a_copy() -> None:
    item = "若某公司2023年净利润为1,200万元，则每股收益(EPS)是多少？A. 1.5元 B. 2元"
    other = "若某公司２０２３年净利润为１，２００万元\n则每股收益（ｅｐｓ）是多少\nＡ．１．５元\tＢ．２元"
    index = ngrams.Index.build([item, "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning."])
    share, which = index.best(*ngrams.utf8([other, "JANET'S ducks lay 16 eggs per day; she eats three\nfor breakfast every morning"]))
    assert share.tolist() == [1.0, 1.0] and which.tolist() == [0, 1]


def test_short_and_boilerplate_items_cannot_be_checked() -> None:
    index = ngrams.Index.build(["短题", *["the same words stand in each of these questions here and there"] * 4])
    assert index.total.tolist() == [0] * 5 and index.removed.tolist() == [0, 3, 3, 3, 3]
    share, which = index.best(*ngrams.utf8(["短题", "the same words stand in each of these questions here and there"]))
    assert share.tolist() == [0.0, 0.0] and which.tolist() == [-1, -1]
    assert np.isnan(index.coverage(np.zeros(0, bool))).all()
    empty = ngrams.Index.build([])
    assert empty.items == 0 and empty.best(*ngrams.utf8(["x " * 20]))[1].tolist() == [-1]


def test_damaged_utf8_is_read_to_its_end() -> None:
    rng = random.Random(3)
    item = "一二三四五六七八九十甲乙丙"
    index = ngrams.Index.build([item])
    for _ in range(50):
        noise = bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        data = np.frombuffer(noise + b"\n" + item.encode() + b"\xe4", np.uint8)
        assert index.best(data, np.array([0, len(data)]))[0][0] == 1.0
