from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_factory.batches import TextBatch
from data_factory.normalize import converter
from data_factory.vocab_counts import CODE_POINTS, Differences, add_characters


def texts(seed: int, number: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices("abc \n é中国繁體龍後𠀀😀\u0080\uffff", k=rng.randint(0, 50))) for _ in range(number)]


def as_mapping(counts: np.ndarray) -> dict[str, int]:
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def counted(documents: list[str]) -> Counter[str]:
    return Counter(character for text in documents for character in text if character > "\x7f")


def test_counts_equal_a_counter() -> None:
    documents = texts(1, 100)
    chosen = np.array([i % 3 == 0 for i in range(100)])
    counts = np.zeros(CODE_POINTS, np.int64)
    batch = TextBatch.from_strings(documents)
    add_characters(batch, chosen, counts)
    assert as_mapping(counts) == counted(documents[::3])
    add_characters(TextBatch(batch.data, batch.offsets[20:41]), np.ones(20, bool), counts)  # adds to what is there
    assert as_mapping(counts) == counted(documents[::3] + documents[20:40])


def test_text_and_differences_give_the_text_before() -> None:
    before = texts(2, 200)
    after = [converter().convert(text) if i % 2 else text for i, text in enumerate(before)]
    found = Differences.between(TextBatch.from_strings(before), TextBatch.from_strings(after))
    assert len(found.row) and set(found.row.tolist()) <= {i for i in range(200) if before[i] != after[i]}
    assert np.all(found.delta != 0) and np.all(np.diff(found.row) >= 0)
    for chosen in (np.ones(200, bool), np.arange(200) % 5 == 1, np.zeros(200, bool)):
        counts = np.zeros(CODE_POINTS, np.int64)
        add_characters(TextBatch.from_strings(after), chosen, counts)
        found.add_to(counts, chosen)
        assert as_mapping(counts) == counted([text for text, wanted in zip(before, chosen, strict=True) if wanted])


def test_parts_are_joined_behind_each_other(tmp_path: Path) -> None:
    one = Differences.between(TextBatch.from_strings(["龍", "a"]), TextBatch.from_strings(["龙", "a"]))
    both = Differences.joined([one, one.moved(2), Differences.joined([])])
    both.write(tmp_path / "x.npz")
    loaded = Differences.load(tmp_path / "x.npz")
    assert loaded.row.tolist() == [0, 0, 2, 2]
    assert [chr(point) for point in loaded.point] == ["龍", "龙"] * 2 and loaded.delta.tolist() == [1, -1, 1, -1]
    assert [loaded.row.dtype, loaded.point.dtype, loaded.delta.dtype] == [np.dtype(name) for name in ("i4", "u4", "i4")]


def test_nothing_to_tell() -> None:
    same = TextBatch.from_strings(["", "中"])
    for after in (same, TextBatch.from_strings(["", "中"])):
        assert len(Differences.between(same, after).row) == 0


def test_differences_of_other_documents_are_noticed() -> None:
    found = Differences.between(TextBatch.from_strings(["龍"]), TextBatch.from_strings(["龙"])).moved(1)
    with pytest.raises(IndexError):
        found.add_to(np.zeros(CODE_POINTS, np.int64), np.ones(1, bool))
