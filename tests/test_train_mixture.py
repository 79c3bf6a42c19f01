from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle_train_data as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import DataSettings, StageSettings
from training.mixture import Order, epoch_warnings, own_shares, stage_streams
from training.mixture_kernels import walk
from training.packs_index import Sources, open_sources
from ziya.errors import UserError

LENGTH, SEED = 24, 11


def stage(number: int, weights: dict[str, float], replay: dict[int, float] | None = None, tokens: float = 1e4) -> Any:
    again = [{"stage": k, "ratio": ratio} for k, ratio in (replay or {}).items()]
    return StageSettings.model_validate({"number": number, "tokens": tokens, "weights": weights, "replay": again})


def sized(*sources: tuple[str, str, str, int]) -> Sources:
    """Sources of which only name, language, tier and tokens are known."""
    items = [
        SimpleNamespace(
            name=name, tokens=tokens, rows=1, order=None, settings=SimpleNamespace(language=lang, tier=tier)
        )
        for name, lang, tier, tokens in sources
    ]
    return Sources(items, LENGTH)  # type: ignore[arg-type]


FIVE = sized(
    ("zh_web", "zh", "high", 300), ("zh_old", "zh", "medium", 100), ("zh_book", "zh", "high", 100),
    ("en_web", "en", "high", 500), ("code", "any", "any", 50),
)  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"zh_web": 3.0, "code": 1.0}, [0.75, 0, 0, 0, 0.25]),
        # Languages first, then names inside each; a language without names splits by tokens.
        ({"language:zh": 2.0, "language:en": 8.0, "zh_web": 7.0, "zh_book": 3.0}, [0.14, 0, 0.06, 0.8, 0]),
        ({"language:zh": 1.0, "language:any": 1.0}, [0.3, 0.1, 0.1, 0, 0.5]),
        # Tiers inside languages: zh high (by tokens 3:1) against zh medium; English has high alone.
        ({"language:zh": 1.0, "language:en": 1.0, "tier:high": 3.0, "tier:medium": 1.0}, [0.28125, 0.125, 0.09375, 0.5, 0]),
        # A tier stands for those of its sources that are not named.
        ({"tier:high": 1.0, "zh_web": 1.0}, [0.5, 0, 0.5 * 100 / 600, 0.5 * 500 / 600, 0]),
        ({"language:zh": 0.0, "language:en": 1.0, "zh_web": 5.0}, [0, 0, 0, 1, 0]),
    ],
)  # fmt: skip
def test_shares(weights: dict[str, float], expected: list[float]) -> None:
    assert own_shares(stage(1, weights), FIVE) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "none are given"),
        ({"code": 0.0}, "all zero"),
        ({"code": -1.0}, "not negative, found code = -1.0"),
        ({"code": float("nan")}, "finite"),
        ({"language:zh": 1.0, "code": 1.0}, "name code, whose language has no weight"),
        ({"language:zh": 1.0, "zh_web": 0.0}, "of zh_web, zh_old, zh_book are all zero"),
        ({"tier:high": 1.0, "zh_web": 1.0, "zh_book": 1.0, "en_web": 1.0}, "tier:high a share and no source is left"),
        ({"language:en": 1.0, "tier:medium": 1.0}, "tier:medium a share and no source is left"),
    ],
)
def test_nonsense_is_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        own_shares(stage(1, weights), FIVE)


def test_a_source_without_tokens_gets_no_share() -> None:
    with pytest.raises(UserError, match=r"give empty a share and there are no tokens"):
        own_shares(stage(1, {"empty": 1.0}), sized(("empty", "zh", "high", 0)))


def test_replay_is_as_much_as_asked_by_the_earlier_weights() -> None:
    stages = [
        stage(1, {"zh_web": 3.0, "en_web": 1.0}),
        stage(2, {"code": 1.0}, {1: 1.0}),
        stage(3, {"zh_old": 1.0}, {1: 1.0, 2: 1.0}),
    ]
    third = {(s.source.name, s.role): s.share for s in stage_streams(stages, FIVE, SEED, 3)}
    assert third == pytest.approx(
        {("zh_old", 0): 1 / 3, ("zh_web", 1): 0.25, ("en_web", 1): 1 / 12, ("code", 2): 1 / 3}, abs=1e-12
    )
    own = {s.source.name: s.key for s in stage_streams(stages, FIVE, SEED, 1)}
    again = {s.source.name: s.key for s in stage_streams(stages, FIVE, SEED, 2) if s.role == 1}
    assert own.keys() == again.keys() and not set(own.values()) & set(again.values())  # permutations of their own


def test_warns_above_four_epochs_over_all_stages() -> None:
    stages = [stage(1, {"code": 1.0, "en_web": 19.0}, tokens=2200), stage(2, {"zh_web": 1.0}, {1: 1.0}, tokens=4400)]
    assert epoch_warnings(stages, FIVE, 1) == [] or "code" not in epoch_warnings(stages, FIVE, 1)[0]
    lines = epoch_warnings(stages, FIVE, 2)  # code: 2.2 + 2.2; en_web: 4.18 + 4.18; zh_web: 7.3
    assert [line.split()[1] for line in lines] == ["zh_web", "en_web", "code"]
    assert "read 4.4 times up to the end of stage 2" in lines[2]


@given(rows=st.integers(1, 300), epoch=st.integers(0, 5), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60)
def test_each_epoch_is_a_permutation_that_turns_around(rows: int, epoch: int, key: int) -> None:
    places = np.arange(rows) + epoch * rows
    found = walk(places, rows, np.uint64(key), False)
    assert sorted(found.tolist()) == list(range(rows))
    assert (walk(found + epoch * rows, rows, np.uint64(key), True) == np.arange(rows)).all()
    assert (walk(places[::-1].copy(), rows, np.uint64(key), False) == found[::-1]).all()


def test_permutations_differ_by_epoch_and_spread_evenly() -> None:
    n = 1000
    first, second = (walk(np.arange(n) + e * n, n, np.uint64(5), False) for e in (0, 1))
    assert np.count_nonzero(first == second) < 10 and np.count_nonzero(np.abs(np.diff(first)) == 1) < 10
    # The row at place 0, over many keys: chi-square of 10 rows, 9 degrees of freedom, 0.1 % critical value 27.9.
    heads = np.concatenate([walk(np.zeros(1, np.int64), 10, np.uint64(key * 7919), False) for key in range(4000)])
    counts = np.bincount(heads, minlength=10)
    assert ((counts - 400.0) ** 2 / 400.0).sum() < 27.9
    large = walk(np.arange(5), 158_000_000, np.uint64(1), False)
    assert (walk(large, 158_000_000, np.uint64(1), True) == np.arange(5)).all()


def real(folder: Path, seed: int) -> tuple[dict[str, list[oracle.Row]], DataSettings]:
    rng = random.Random(seed)
    rows = {
        "zh": oracle.splice_rows(rng, 13, LENGTH, "zh"),
        "en": oracle.splice_rows(rng, 7, LENGTH, "en"),
        "qa": oracle.whole_rows(rng, 9, LENGTH, "qa"),
    }
    for name, made in rows.items():
        oracle.write_pack(folder / name, made, "whole" if name == "qa" else "splice")
    sources = [
        {"name": name, "packs": [str(folder / name)], "order": "perplexity" if name == "en" else "shuffled"}
        for name in rows
    ]
    return rows, DataSettings.model_validate({"sources": sources, "sequence_length": LENGTH, "global_batch_rows": 5})


@given(seed=st.integers(0, 10**6), shares=st.lists(st.sampled_from([1.0, 2.0, 0.3, 17.0]), min_size=3, max_size=3))
@settings(max_examples=8)
def test_order_equals_plain_python(tmp_path_factory: pytest.TempPathFactory, seed: int, shares: list[float]) -> None:
    rows, data = real(tmp_path_factory.mktemp("order"), seed)
    sources = open_sources(data)
    stages = [stage(1, dict(zip(rows, shares, strict=True))), stage(2, {"qa": 1.0}, {1: 1.0})]
    for number in (1, 2):
        order = Order(stages, sources, seed, number, 5)
        plain = [
            oracle.Stream(
                s.source.name, f"replay {s.role}" if s.role else "own", s.share, rows[s.source.name],
                s.source.name == "en",
            )
            for s in order.streams
        ]  # fmt: skip
        for index in range(12):
            found = order.batch(index)
            drawn = oracle.draw(plain, seed, number, 5)
            assert list(zip(found.stream.tolist(), found.place.tolist(), found.row.tolist(), strict=True)) == drawn
            state = order.state(index + 1)
            assert [s.tolist() for s in state] == [[p.drawn for p in plain], [p.spent for p in plain]]
            total = sum(p.spent for p in plain)
            assert all(abs(p.spent - p.share * total) <= LENGTH for p in plain)


def test_shares_hold_within_one_row_everywhere(tmp_path: Path) -> None:
    _, data = real(tmp_path, 3)
    sources = open_sources(data)
    stages = [stage(1, {"zh": 0.61, "en": 0.07, "qa": 0.32}), stage(2, {"qa": 1.0, "zh": 0.013}, {1: 1.0})]
    for number in (1, 2):
        order = Order(stages, sources, SEED, number, 1)
        shares = np.array([stream.share for stream in order.streams])
        spent = np.zeros(len(shares))
        for index in range(3000):
            drawn = order.batch(index)
            stream = order.streams[drawn.stream[0]]
            spent[drawn.stream[0]] += stream.source.filled(drawn.row)[0]
            assert np.abs(spent - shares * spent.sum()).max() <= LENGTH
    own = spent[[stream.role == 0 for stream in order.streams]].sum()
    assert abs(own - spent.sum() / 2) <= 2 * LENGTH  # as much replay as own


def test_random_access_equals_straight_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = real(tmp_path, 4)
    sources = open_sources(data)
    stages = [stage(1, {"zh": 1.0, "en": 2.0, "qa": 1.5})]
    straight = Order(stages, sources, SEED, 1, 5)
    expected = [straight.batch(index) for index in range(60)]
    monkeypatch.setattr("training.mixture.BLOCK_ROWS", 7 * 5)  # the size of blocks changes nothing
    wanted = random.Random(1).choices(range(60), k=100)
    jumping = Order(stages, sources, SEED, 1, 5)
    resumed = Order(stages, sources, SEED, 1, 5)
    resumed.remember(17, *map(np.ndarray.tolist, straight.state(17)))
    for index in wanted:
        for order in (jumping, resumed):
            found = order.batch(index)
            for column in ("stream", "place", "row"):
                assert (getattr(found, column) == getattr(expected[index], column)).all()
    for index in (0, 17, 30, 59):
        assert [a.tolist() for a in resumed.state(index)] == [a.tolist() for a in straight.state(index)]
    with pytest.raises(ValueError, match="negative"):
        straight.batch(-1)
