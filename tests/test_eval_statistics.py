"""Intervals, averages and paired tests against scipy, exact enumeration and numbers worked out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from eval import sign_flip, statistics


def lines(task: str, subject: str, scores: list[float], category: str = "") -> list[dict[str, Any]]:
    return [
        {"sample_hash": f"{task}/{subject}/{number}", "subject": subject, "category": category, "task": task, "correct": score}
        for number, score in enumerate(scores)
    ]


@pytest.mark.parametrize(("correct", "n"), [(0, 5), (3, 7), (164, 164), (25, 164), (700, 1319), (1, 1)])
def test_wilson_equals_scipy(correct: int, n: int) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert statistics.wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing() -> None:
    assert statistics.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (9, 2), (3, 3), (40, 61)])
def test_mcnemar_equals_counted_coin_tosses(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(stats.binom.pmf(k, n, 0.5) for k in range(min(gained, lost) + 1))
    assert statistics.mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    assert statistics.mcnemar(gained, lost) == statistics.mcnemar(lost, gained)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_macro_weighs_subjects_and_micro_items() -> None:
    sample = lines("cmmlu", "农学", [1, 1, 1, 0]) + lines("cmmlu", "古汉语", [0, 1])
    (row,) = statistics.summarise({"m": {"cmmlu": sample}}, [{"model": "m"}], None, "ziya2", 0)
    assert (row["macro"], row["micro"], row["n"]) == (pytest.approx((0.75 + 0.5) / 2), pytest.approx(4 / 6), 6)
    assert row["value"] == row["macro"] and row["metric"] == "acc"
    (row,) = statistics.summarise({"m": {"cmmlu": sample}}, [{"model": "m"}], None, "lm-eval", 0)
    assert row["value"] == row["micro"]
    assert (row["low"], row["high"]) == statistics.wilson(4, 6)


def test_benchmarks_without_subjects_have_one_average() -> None:
    sample = lines("math", "algebra", [1, 1, 1, 1]) + lines("math", "geometry", [0])
    (row,) = statistics.summarise({"m": {"math": sample}}, [{"model": "m"}], None, "ziya2", 0)
    assert row["macro"] == row["micro"] == row["value"] == 0.8
    assert (row["low"], row["high"]) == statistics.wilson(4, 5)


def test_the_bootstrap_draws_items_inside_subjects() -> None:
    groups = [np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0])]
    exact = np.array([
        (sum(a) / 3 + sum(b) / 2) / 2
        for a in itertools.product(groups[0], repeat=3)
        for b in itertools.product(groups[1], repeat=2)
    ])  # fmt: skip
    drawn = statistics.draws(groups, "seed", 100_000)
    values, shares = np.unique(np.round(exact, 9), return_counts=True)
    found = np.array([(np.abs(drawn - value) < 1e-6).mean() for value in values])
    assert found.sum() == pytest.approx(1.0)
    assert np.abs(found - shares / len(exact)).max() < 0.006
    assert (drawn == statistics.draws(groups, "seed", 100_000)).all()
    assert (drawn != statistics.draws(groups, "other", 100_000)).any()


def test_the_macro_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    truth = [0.3, 0.5, 0.8, 0.6]
    covered = 0
    for turn in range(200):
        groups = [rng.binomial(1, share, size).astype(float) for share, size in zip(truth, (40, 60, 80, 30), strict=True)]
        low, high = statistics.macro_interval(groups, str(turn))
        covered += low <= np.mean(truth) <= high
    assert 180 <= covered <= 199


def test_scores_without_any_spread_do_not_pretend_certainty() -> None:
    low, high = statistics.macro_interval([np.zeros(2), np.zeros(2)], "x")
    assert low == 0.0 and high == statistics.wilson(0, 4).high > 0.4


def test_pairs_are_items_with_equal_hashes() -> None:
    first, second = lines("gsm8k", "", [1, 0, 1]), lines("gsm8k", "", [0, 0, 1, 1])[::-1]
    pairs = statistics.pair(first, second)
    assert pairs.first.tolist() == [1, 0, 1] and pairs.second.tolist() == [0, 0, 1]
    repeated = [{**line, "sample_hash": "x"} for line in first]
    assert statistics.pair(repeated, repeated[:2]).first.tolist() == [1, 0]


def test_mcnemar_is_used_for_items_and_the_bootstrap_for_macro() -> None:
    base = lines("mmlu", "a", [0] * 10 + [1] * 10) + lines("mmlu", "b", [0, 1])
    better = lines("mmlu", "a", [1] * 20) + lines("mmlu", "b", [1, 1])
    pairs = statistics.pair(base, better)
    micro = statistics.paired_test("mmlu", pairs, "lm-eval", "s")
    assert micro["p_value"] == micro["mcnemar"] == pytest.approx(2 * 0.5**11)
    assert micro["difference"] == pytest.approx(11 / 22)
    macro = statistics.paired_test("mmlu", pairs, "ziya2", "s")
    assert macro["p_value"] == macro["sign_flip"] == pytest.approx(2 * 0.5**11) and macro["bootstrap"] < 0.01
    assert macro["difference"] == pytest.approx(0.5) and macro["low"] > 0
    nothing = statistics.paired_test("mmlu", statistics.pair(base, []), "ziya2", "s")
    assert nothing["n"] == 0 and nothing["p_value"] is None


def test_the_paired_bootstrap_is_about_right_when_nothing_changed() -> None:
    rng = np.random.default_rng(11)
    rejected = 0
    for turn in range(200):
        change = [(rng.binomial(1, 0.5, 80) - rng.binomial(1, 0.5, 80)).astype(float) for _ in range(3)]
        rejected += statistics.bootstrap_p(statistics.draws(change, str(turn), 2000)) < 0.05
    assert 2 <= rejected <= 22


@pytest.mark.parametrize(("items", "subjects"), [(1, 10), (1, 50), (2, 10), (2, 50), (5, 20), (25, 10)])
def test_few_pairs_a_subject_do_not_make_noise_a_difference(items: int, subjects: int) -> None:
    """Where nothing changed, p below 0.05 comes at most about one time in twenty, and the interval holds 0 as often."""
    rng = np.random.default_rng(items * 100 + subjects)
    turns, rejected, outside = 150, 0, 0
    names = [(str(subject), number) for subject in range(subjects) for number in range(items)]
    share = np.repeat(rng.uniform(0.25, 0.8, subjects), items)
    for turn in range(turns):
        first = (rng.random(len(names)) < share).astype(float)
        second = np.where(rng.random(len(names)) < 0.5, first, rng.random(len(names)) < share)
        told = [{"sample_hash": f"{one}", "subject": one[0]} for one in names]
        tested = statistics.paired_test("ceval", statistics.Pairs(told, first, second), "ziya2", str(turn))
        rejected += tested["p_value"] < 0.05
        outside += not tested["low"] <= 0 <= tested["high"]
    assert rejected <= stats.binom.ppf(0.995, turns, 0.05) and outside <= rejected


def test_one_item_a_subject_shows_no_more_than_its_count() -> None:
    base, worse = [], []
    for subject in "abc":
        base += lines("ceval", subject, [1, 1] if subject != "c" else [1])
        worse += lines("ceval", subject, [0, 0] if subject != "c" else [1])
    tested = statistics.paired_test("ceval", statistics.pair(base, worse), "ziya2", "s")
    assert tested["p_value"] == statistics.mcnemar(0, 4) == 0.125 and tested["difference"] == pytest.approx(-2 / 3)
    assert tested["low"] <= tested["difference"] < 0 <= tested["high"]
    same = statistics.paired_test("ceval", statistics.pair(base, base), "ziya2", "s")
    assert same["p_value"] == 1.0 and same["low"] == -same["high"] < -0.4, "five equal pairs are no proof of equality"


def test_drawn_signs_agree_with_all_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [np.array([1.0, -1, 0, 1]), np.array([1.0, 1]), np.array([0.25, 0.5, -0.75])]
    exact, complete = sign_flip.flips(groups, "s", 10)
    weights = [1 / 12] * 3 + [1 / 6] * 2 + [0.25 / 9, 0.5 / 9, 0.75 / 9]
    sums = sorted(float(np.dot(signs, weights)) for signs in itertools.product((-1, 1), repeat=8))
    assert complete and np.sort(exact) == pytest.approx(np.array(sums))
    monkeypatch.setattr(sign_flip, "EXACT", 3)
    drawn, complete = sign_flip.flips(groups, "s", 40_000)
    difference = statistics.macro(groups)
    assert not complete and sign_flip.p_value(difference, drawn, False) == pytest.approx(
        sign_flip.p_value(difference, exact, True), abs=0.01
    )


def test_with_many_pairs_the_sign_test_is_mcnemars() -> None:
    change = np.array([1.0] * 60 + [-1.0] * 35 + [0.0] * 200)
    flipped, _ = sign_flip.flips([change], "s", 100_000)
    assert sign_flip.p_value(float(change.mean()), flipped, False) == pytest.approx(statistics.mcnemar(60, 35), abs=0.003)


def test_difference_and_p_rest_on_the_same_pairs() -> None:
    base = lines("ceval", "a", [1, 1, 0]) + lines("ceval", "b", [1, 0])
    other = lines("ceval", "a", [0, 0, 1]) + lines("ceval", "b", [0, 0])
    other[2]["sample_hash"] = other[4]["sample_hash"] = "another prompt"
    models = [{"model": "base", "is_base": True}, {"model": "m"}]
    samples = {"base": {"ceval": base}, "m": {"ceval": other}}
    [_, row] = statistics.summarise(samples, models, "base", "ziya2", 1)
    assert (row["pairs"], row["pairs_of"], row["difference"]) == (3, 5, -1.0) and row["p_value"] == 0.25
    [test] = statistics.compare(samples, models, "base", "ziya2", 7)
    assert (test["n"], test["of"], test["difference"], test["verdict"]) == (3, 5, -1.0, "within noise")


def test_graded_scores_are_tested_by_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first = lines("humaneval", "", rng.random(60).tolist())
    second = [{**line, "correct": min(1.0, line["correct"] + 0.2)} for line in first]
    tested = statistics.paired_test("humaneval", statistics.pair(first, second), "lm-eval", "s")
    assert tested["mcnemar"] is None and tested["p_value"] < 0.001


def world() -> tuple[dict[str, dict[str, list[dict[str, Any]]]], list[dict[str, Any]]]:
    rng = np.random.default_rng(3)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    models: list[dict[str, Any]] = [{"model": "base", "is_base": True, "run": None, "tokens": 0, "step": 0, "stage": None}]
    models += [
        {"model": f"step-{step}", "run": "r", "step": step, "tokens": step * 10, "stage": "one" if step < 2 else "two"}
        for step in (1, 2, 3)
    ]
    for model, share in zip(models, (0.3, 0.3, 0.7, 0.72), strict=True):
        samples[model["model"]] = {
            "gsm8k": lines("gsm8k", "", rng.binomial(1, share, 200).tolist()),
            "ceval": lines("ceval", "law", rng.binomial(1, share, 60).tolist(), "Social Science")
            + lines("ceval", "high_school_physics", rng.binomial(1, share, 50).tolist(), "STEM"),
        }
    return samples, models


def test_rows_keep_the_contract_and_do_not_depend_on_their_company() -> None:
    samples, models = world()
    rows = statistics.summarise(samples, models, "base", "ziya2", 1)
    names = "model step stage tokens task protocol metric value macro micro n low high base_value p_value scores"
    names = [*names.split(), "pairs", "pairs_of", "difference"]
    assert all(list(row) == names for row in rows)
    assert [(row["model"], row["task"]) for row in rows] == [
        (model["model"], task) for model in models for task in ("ceval", "gsm8k")
    ]
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert all((row["base_value"] is None) == (row["model"] == "base") for row in rows)
    alone = {model: {"ceval": tasks["ceval"]} for model, tasks in samples.items() if model in ("base", "step-3")}
    few = statistics.summarise(alone, models, "base", "ziya2", 1)
    assert [row for row in rows if row["task"] == "ceval" and row["model"] in alone] == few


def test_noise_is_called_noise() -> None:
    samples, models = world()
    rows = statistics.compare(samples, models, "base", "ziya2", 1)
    verdicts = {(row["family"], row["second"], row["task"]): row["verdict"] for row in rows}
    assert verdicts["base", "step-1", "gsm8k"] == verdicts["base", "step-1", "ceval"] == "within noise"
    assert verdicts["base", "step-3", "gsm8k"] == verdicts["previous", "step-2", "gsm8k"] == "better"
    assert verdicts["previous", "step-3", "gsm8k"] == "within noise"
    back = statistics.compare(samples, models[::-1], "step-3", "ziya2", 1)
    assert {row["verdict"] for row in back if row["second"] == "base" and row["family"] == "base"} == {"worse"}
    assert all(row["p_adjusted"] >= row["p_value"] for row in rows)
    assert [row["first"] for row in rows if row["family"] == "previous"] == ["step-1", "step-1", "step-2", "step-2"]


def test_subjects_and_categories() -> None:
    samples, models = world()
    rows = [row for row in statistics.breakdown(samples, models, "ziya2", 1) if row["model"] == "base"]
    assert [(row["category"], row["subject"], row["n"]) for row in rows] == [
        ("STEM", None, 50),
        ("Social Science", None, 60),
        ("STEM", "high_school_physics", 50),
        ("Social Science", "law", 60),
    ]
    assert all(row["task"] == "ceval" for row in rows)
