"""Tiers: exact ranks against sorting, ties, NaN, tiny groups, bounded memory."""

import json
import math

import numpy as np
import oracle_lm
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_factory import tiers


def hex_ids(n, seed=0):
    return [np.random.default_rng([seed, i]).bytes(16).hex() for i in range(n)]


def chunked(rows, size):
    def chunks():
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield [row[0] for row in part], np.array([row[1] for row in part], np.float32), [row[2] for row in part]

    return chunks


def check(rows, high, medium, size=7, memory_rows=2):
    cuts = tiers.rank(chunked(rows, size), high, medium, memory_rows)
    groups, perplexity, ids = (
        [row[0] for row in rows],
        np.array([row[1] for row in rows], np.float32),
        [row[2] for row in rows],
    )
    rounded = [(group, float(value), name) for group, value, name in zip(groups, perplexity, ids, strict=True)]
    expected = oracle_lm.tiers(rounded, high, medium)
    restored = {name: tiers.Cut.from_dict(json.loads(json.dumps(cut.as_dict()))) for name, cut in cuts.items()}
    assert restored == cuts
    assert tiers.tiers(groups, perplexity, ids, restored).tolist() == expected
    for group, cut in cuts.items():
        codes = [code for code, row in zip(expected, rounded, strict=True) if row[0] == group]
        assert (cut.high_count, cut.medium_count) == (codes.count(0), codes.count(0) + codes.count(1))
        assert cut.count == len(codes) - codes.count(3)
    return cuts, expected


VALUES = st.one_of(
    st.sampled_from([1.0, 1.0000001, 2.0, 0.0, -0.0, -3.5, 1e-45, 3.4e38, math.inf, math.nan]),
    st.floats(width=32, allow_nan=True),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["en", "zh", "web/zh"]), VALUES), max_size=60),
    st.floats(0, 100, allow_nan=False),
    st.floats(0, 100, allow_nan=False),
    st.integers(1, 30),
    st.integers(1, 5),
)
def test_equals_sorting(values, a, b, size, memory_rows):
    ids = hex_ids(len(values))
    rows = [(group, value, name) for (group, value), name in zip(values, ids, strict=True)]
    check(rows, min(a, b), max(a, b), size, memory_rows)


def test_many_ties_in_bounded_memory():
    # 3,000 documents of one perplexity, ids that share long prefixes: only the passes over id bytes can separate them.
    ids = [f"{'ab' * 14}{i:04x}" for i in range(3000)]
    rows = [("zh", 12.5, name) for name in reversed(ids)] + [
        ("zh", 1.0, hex_ids(1)[0]),
        ("en", math.nan, hex_ids(2)[1]),
    ]
    cuts, codes = check(rows, 30, 60, size=500, memory_rows=10)
    assert list(cuts) == ["zh"]
    assert cuts["zh"].high == (12.5, ids[898])  # 900 of 3,001 are high: one document of 1.0 and the first 899 ties
    assert codes[-1] == 3


def test_chunking_and_order_do_not_matter():
    rng = np.random.default_rng(5)
    rows = [(str(rng.choice(["en", "zh"])), float(rng.integers(1, 90)), name) for name in hex_ids(400)]
    first = tiers.rank(chunked(rows, 400), 30, 60, 1000)
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    assert tiers.rank(chunked(shuffled, 13), 30, 60, 1) == first


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_tiny_groups(count):
    rows = [("zh", float(i), name) for i, name in enumerate(hex_ids(count))]
    _, codes = check(rows, 30, 60)
    assert codes == {0: [], 1: [2], 2: [1, 2], 3: [1, 2, 2], 4: [0, 1, 2, 2]}[count]


def test_percentages_are_decimal_not_binary():
    rows = [("en", float(i), name) for i, name in enumerate(hex_ids(1000))]
    cuts, _ = check(rows, 29.7, 58.3, size=100, memory_rows=1000)
    assert (cuts["en"].high_count, cuts["en"].medium_count) == (297, 583)  # 0.583 * 1000 is 582.99 in binary
    cuts, codes = check(rows, 0, 100, size=100)
    assert cuts["en"].high is None and set(codes) == {1}


def test_arrow_columns_and_empty_input():
    assert tiers.rank(lambda: iter(()), 30, 60) == {}
    ids = hex_ids(3)
    columns = (
        pa.array(["en"] * 3).dictionary_encode(),
        np.array([3, 1, 2], np.float32),
        pa.chunked_array([ids[:1], ids[1:]]),
    )
    cuts = tiers.rank(lambda: iter([columns]), 34, 67)
    assert tiers.tiers(*columns, cuts).tolist() == [2, 0, 1]


def test_contract_violations_are_refused():
    with pytest.raises(ValueError, match="no cut"):
        tiers.tiers(["zh"], np.array([1], np.float32), hex_ids(1), {})
    with pytest.raises(ValueError, match="32 bytes"):
        tiers.rank(lambda: iter([(["zh"] * 2, np.array([1, 1], np.float32), ["a" * 33, "b"])]), 50, 60)
