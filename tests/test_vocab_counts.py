from __future__ import annotations

import random
from collections import Counter

import numpy as np

from data_factory.batches import TextBatch
from data_factory.vocab_counts import count_characters


def test_counts_equal_a_counter() -> None:
    numbers = random.Random(1)
    documents = [
        "".join(numbers.choices("abc \n é中国繁體𠀀😀\u0080\uffff", k=numbers.randint(0, 50))) for _ in range(100)
    ]
    batch = TextBatch.from_strings(documents)
    points, counts = count_characters(batch)
    expected = Counter(character for text in documents for character in text if character > "\x7f")
    assert points.dtype == np.uint32 and counts.dtype == np.int64
    assert np.all(np.diff(points.astype(np.int64)) > 0)
    assert dict(zip(map(chr, points.tolist()), counts.tolist(), strict=True)) == expected
    part, part_counts = count_characters(TextBatch(batch.data, batch.offsets[20:41]))
    wanted = Counter(character for text in documents[20:40] for character in text if character > "\x7f")
    assert dict(zip(map(chr, part.tolist()), part_counts.tolist(), strict=True)) == wanted


def test_nothing_to_count() -> None:
    for documents in ([], ["", "plain ASCII"]):
        points, counts = count_characters(TextBatch.from_strings(documents))
        assert len(points) == len(counts) == 0
