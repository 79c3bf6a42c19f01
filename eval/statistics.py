"""Scores with their uncertainty: intervals, averages over subjects, and paired tests between checkpoints.

In: samples (model -> task -> lines with `correct` 0..1, `subject`, `category`, `sample_hash`) and the list of models.
Out: rows for results.json (`summarise`), for subjects and categories (`breakdown`), and paired tests (`compare`).

- **micro**: mean over items. **macro**: mean over subjects of their means; tasks without subjects (GSM8K, MATH, HumanEval:
  OpenCompass scores them over all items) have one group, so that both are equal.
- Interval of micro: Wilson's 95 %. Of macro: 95 % percentiles of a bootstrap stratified by subject (items are drawn again
  inside each subject; subjects are the benchmark, not a sample). A bootstrap of few items that are all wrong shows no spread
  at all, so where no subject has any, Wilson's interval of all items stands in.
- Paired tests use items with equal `sample_hash` in both models: same item, same prompt. Scores of 0 and 1: McNemar's exact
  test (binomial over the items on which the two differ). Macro: paired bootstrap of the difference, stratified by subject;
  two-sided p = twice the smaller share of draws on the other side of 0, but never below p of the sign test (`sign_flip.py`), which
  stays right where subjects have few pairs.
- Many tests: `compare` adjusts p by Holm's method inside each family (all tasks and models against the base; all tasks and
  steps between consecutive checkpoints). A verdict says better or worse only below 0.05 after the adjustment, else "within
  noise". `p_value` of `summarise` is not adjusted.
- Every draw is seeded by (seed, models, task): rows do not depend on which others are computed beside them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eval import sign_flip
from ziya.files import digest

F64 = npt.NDArray[np.float64]
Line = Mapping[str, Any]
Samples = Mapping[str, Mapping[str, Sequence[Line]]]

TASKS = ("ceval", "cmmlu", "mmlu", "gsm8k", "math", "humaneval")  # the order of tables
UNGROUPED = frozenset({"gsm8k", "math", "humaneval"})
METRICS = {"gsm8k": "exact_match", "math": "exact_match", "humaneval": "pass@1"}  # else acc
CONFIDENCE = 0.95
SIGNIFICANT = 0.05
DRAWS = 10_000
BETTER, WORSE, NOISE = "better", "worse", "within noise"


class Interval(NamedTuple):
    """Ends of a 95 % interval."""

    low: float
    high: float


def benchmark(task: str) -> str:
    """The benchmark that a task belongs to: `gsm8k` of `gsm8k_flexible`."""
    return re.split(r"[^a-z0-9]", task.lower(), maxsplit=1)[0]


def task_order(tasks: Iterable[str]) -> list[str]:
    """Tasks in the order of tables: the six first, then by name."""
    place = {name: number for number, name in enumerate(TASKS)}
    return sorted(tasks, key=lambda task: (place.get(benchmark(task), len(TASKS)), task))


def wilson(correct: float, n: int) -> Interval:
    """Wilson's 95 % interval of `correct` out of `n`; (0, 1) when nothing was asked."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = 1.959963984540054  # normal quantile of 0.975
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    # At its ends the interval touches 0 and 1 exactly; rounding must not leave it there.
    return Interval(0.0 if correct <= 0 else centre - half, 1.0 if correct >= n else centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: `gained` and `lost` items changed from wrong to right and from right to wrong."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order.tolist()):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def grouped(task: str, lines: Sequence[Line], values: Sequence[float] | F64) -> list[F64]:
    """`values` (one a line) per subject in the order of names; one group where the benchmark has no subjects."""
    groups: dict[str, list[float]] = {}
    for line, value in zip(lines, values, strict=True):
        name = "" if benchmark(task) in UNGROUPED else str(line.get("subject") or "")
        groups.setdefault(name, []).append(float(value))
    return [np.array(groups[name]) for name in sorted(groups)]


def macro(groups: Sequence[F64]) -> float:
    """Mean of the groups' means; 0 when there are none."""
    return float(np.mean([group.mean() for group in groups])) if groups else 0.0


def draws(groups: Sequence[F64], seed: str, count: int = DRAWS) -> F64:
    """float64 [count]: the macro mean of items drawn with replacement inside each group.

    The counts of a group's distinct values in such a draw are multinomial, so they are drawn directly.
    """
    rng = np.random.default_rng(int(digest(seed.encode())[:16], 16))
    total = np.zeros(count)
    for group in groups:
        distinct, counts = np.unique(group, return_counts=True)
        total += rng.multinomial(len(group), counts / len(group), size=count) @ distinct / len(group)
    return total / max(len(groups), 1)


def percentiles(values: F64) -> Interval:
    """The middle 95 % of draws."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def macro_interval(groups: Sequence[F64], seed: str) -> Interval:
    """Interval of `macro`; Wilson's over all items for one group, or where no group has any spread."""
    if len(groups) < 2 or all(np.ptp(group) == 0 for group in groups):
        values = np.concatenate([*groups, np.zeros(0)])
        return wilson(float(values.sum()), len(values))
    return percentiles(draws(groups, seed))


def bootstrap_p(values: F64) -> float:
    """Two-sided p of a difference from its bootstrap draws; never below 2 / (draws + 1), for that many were tried."""
    below, above = int((values <= 0).sum()), int((values >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(values) + 1))


class Pairs(NamedTuple):
    """Items that two models met alike: the first model's lines and both scores, float64 [pairs]."""

    lines: list[Line]
    first: F64
    second: F64


def pair(first: Sequence[Line], second: Sequence[Line]) -> Pairs:
    """Lines with equal `sample_hash`; the k-th repeat of a hash meets the k-th."""

    def keyed(lines: Sequence[Line]) -> dict[tuple[str, int], Line]:
        seen: Counter[str] = Counter()
        result = {}
        for line in lines:
            name = str(line["sample_hash"])
            result[name, seen[name]] = line
            seen[name] += 1
        return result

    one, other = keyed(first), keyed(second)
    both = sorted(key for key in one if key in other)
    scores = [[float(side[key]["correct"]) for key in both] for side in (one, other)]
    return Pairs([one[key] for key in both], np.array(scores[0]), np.array(scores[1]))


def paired_test(task: str, pairs: Pairs, protocol: str, seed: str) -> dict[str, Any]:
    """The change from the first model to the second: difference with interval, p of both tests, and the p of the score in use.

    `difference`, `low`, `high` are of macro under protocol ziya2 where the task has subjects, else of micro. p of macro and of graded
    scores is the larger of the bootstrap's and the sign test's (`sign_flip.py` says why), the interval the wider of both: of few
    pairs a subject a bootstrap sees too little spread, of one pair none at all. Whatever the pairs, p below 0.05 then comes at most
    one time in twenty where nothing changed; with many pairs a subject both agree.
    """
    n = len(pairs.lines)
    names = ("difference", "low", "high", "mcnemar", "bootstrap", "sign_flip", "p_value")
    if n == 0:
        return {"n": 0, **dict.fromkeys(names)}
    change = pairs.second - pairs.first
    binary = bool(np.isin(pairs.first, (0, 1)).all() and np.isin(pairs.second, (0, 1)).all())
    exact = mcnemar(int((change > 0).sum()), int((change < 0).sum())) if binary else None
    groups = grouped(task, pairs.lines, change) if protocol == "ziya2" else [change]
    difference, drawn = macro(groups), draws(groups, seed)
    flipped, complete = sign_flip.flips(groups, seed, DRAWS)
    p_bootstrap, p_flip = bootstrap_p(drawn), sign_flip.p_value(difference, flipped, complete)
    # Pairs that all agree bound the share of those that do not, as no success bounds a rate.
    reach = sign_flip.reach(flipped, CONFIDENCE) if change.any() else wilson(0, n).high
    ends = percentiles(drawn)
    low, high = max(-1.0, min(ends.low, difference - reach)), min(1.0, max(ends.high, difference + reach))
    p_used = exact if exact is not None and len(groups) == 1 else max(p_bootstrap, p_flip)
    return {"n": n, **dict(zip(names, (difference, low, high, exact, p_bootstrap, p_flip, p_used), strict=True))}


def average(task: str, lines: Sequence[Line], protocol: str) -> float | None:
    """The score of lines alone: macro under `ziya2`, micro under `lm-eval`; None without lines."""
    if not lines:
        return None
    correct = [float(line["correct"]) for line in lines]
    return macro(grouped(task, lines, correct)) if protocol == "ziya2" else float(np.mean(correct))


def _score(task: str, lines: Sequence[Line], protocol: str, seed: str) -> dict[str, Any]:
    correct = [float(line["correct"]) for line in lines]
    groups = grouped(task, lines, correct)
    micro = float(np.mean(correct)) if correct else 0.0
    mean = macro(groups)
    by_macro = protocol == "ziya2"
    ends = macro_interval(groups, seed) if by_macro else wilson(sum(correct), len(correct))
    return {
        "value": mean if by_macro else micro, "macro": mean, "micro": micro, "n": len(lines),
        "low": ends.low, "high": ends.high,
    }  # fmt: skip


FILTERS = {"strict-match": "strict", "flexible-extract": "flexible"}  # the harness's names -> one name under both protocols


def scorers(task: str, lines: Sequence[Line]) -> dict[str, float]:
    """Every score of a task with more than one, as the mean over its items: GSM8K `strict` and `flexible`; MATH `math` (the score:
    math_verify or equal text), `math_verify`, `string` and `minerva`; {} for a task with one score."""
    totals: dict[str, list[float]] = {}
    for line in lines:
        for key, value in (line.get("scores") or {}).items():
            totals.setdefault(key, []).append(float(value))
    if len(totals) < 2:
        return {}
    return {_scorer(task, key): float(np.mean(values)) for key, values in totals.items()}


def _scorer(task: str, key: str) -> str:
    """`exact_match,strict-match` -> strict; `math_verify,none` -> math_verify; MATH's exact_match is Minerva's."""
    metric, _, chosen = key.partition(",")
    if chosen == "none":
        return "minerva" if benchmark(task) == "math" and metric == "exact_match" else metric
    return FILTERS.get(chosen, chosen)


def summarise(
    samples: Samples, models: Sequence[dict[str, Any]], base: str | None, protocol: str, seed: int
) -> list[dict[str, Any]]:
    """Rows of results.json, models in their given order, tasks in the order of tables.

    `value` and its interval `low`, `high` are macro under protocol `ziya2`, micro under `lm-eval`. `base_value`: the same of the
    base on that task. Over the items that both met alike alone: `difference`, `p_value` of it, their number `pairs` of `pairs_of` items;
    None for the base itself, the first two also where there are none. `scores`: see `scorers`.
    """
    rows = []
    for model in models:
        name = model["model"]
        tasks = samples.get(name, {})
        for task in task_order(tasks):
            row = {key: model.get(key) for key in ("model", "step", "stage", "tokens")}
            row |= {"task": task, "protocol": protocol, "metric": METRICS.get(benchmark(task), "acc")}
            row |= _score(task, tasks[task], protocol, f"{seed} {name} {task}")
            row |= {"base_value": None, "p_value": None, "scores": scorers(task, tasks[task])}
            row |= dict.fromkeys(("pairs", "pairs_of", "difference"))
            other = samples.get(base, {}).get(task) if base is not None and name != base else None
            if other:
                row["base_value"] = _score(task, other, protocol, f"{seed} {base} {task}")["value"]
                tested = paired_test(task, pair(other, tasks[task]), protocol, f"{seed} {base} {name} {task}")
                row |= {"p_value": tested["p_value"], "pairs": tested["n"], "difference": tested["difference"]}
                row["pairs_of"] = max(len(other), len(tasks[task]))
            rows.append(row)
    return rows


def breakdown(samples: Samples, models: Sequence[dict[str, Any]], protocol: str, seed: int) -> list[dict[str, Any]]:
    """Rows `{model, task, category, subject, n, value, low, high}`: a task's categories (subject None), then its subjects.

    A category's value is macro or micro as the task's. A task of fewer than two subjects has no rows here.
    """
    rows = []
    for model in models:
        name = model["model"]
        tasks = samples.get(name, {})
        for task in task_order(tasks):
            lines = [line for line in tasks[task] if line.get("subject")]
            categories: dict[str, list[Line]] = {}
            subjects: dict[tuple[str, str], list[Line]] = {}
            for line in lines:
                category = str(line.get("category") or "")
                categories.setdefault(category, []).append(line)
                subjects.setdefault((category, str(line["subject"])), []).append(line)
            if len(subjects) < 2:
                continue
            shared = {"model": name, "task": task}
            for category in sorted(categories):
                if category:
                    score = _score(task, categories[category], protocol, f"{seed} {name} {task} {category}")
                    rows.append(shared | {"category": category, "subject": None} | _short(score))
            for category, subject in sorted(subjects):
                score = _score(task, subjects[category, subject], "lm-eval", "")
                rows.append(shared | {"category": category or None, "subject": subject} | _short(score))
    return rows


def pairs_told(pairs: int | None, items: int | None) -> str:
    """What a difference rests on where that is not all items: `on 5 of 10 items with equal prompts`; "" for all of them."""
    if pairs is None or items is None or pairs == items:
        return ""
    return f"on {pairs:,} of {items:,} items with equal prompts" if pairs else "no item has an equal prompt"


def _short(score: dict[str, Any]) -> dict[str, Any]:
    return {key: score[key] for key in ("n", "value", "low", "high")}


def compare(
    samples: Samples, models: Sequence[dict[str, Any]], base: str | None, protocol: str, seed: int
) -> list[dict[str, Any]]:
    """Paired tests `{family, first, second, task, n, of, difference, low, high, mcnemar, bootstrap, sign_flip, p_value, p_adjusted,
    verdict}`: `n` pairs of `of` items.

    Family `base`: every model against the base. Family `previous`: every checkpoint of a run against the one before it.
    `verdict`: better, worse or within noise; None where no item was met alike.
    """
    against = [("base", base, model["model"]) for model in models if base is not None and model["model"] != base]
    before: dict[Any, str] = {}
    for model in models:
        if model["model"] != base:
            if model.get("run") is not None and model["run"] in before:
                against.append(("previous", before[model["run"]], model["model"]))
            before[model.get("run")] = model["model"]
    rows = []
    for family, first, second in against:
        known = samples.get(first or "", {})
        for task in task_order([task for task in samples.get(second, {}) if task in known]):
            pairs = pair(known[task], samples[second][task])
            tested = paired_test(task, pairs, protocol, f"{seed} {first} {second} {task}")
            items = max(len(known[task]), len(samples[second][task]))
            rows.append({"family": family, "first": first, "second": second, "task": task, "of": items, **tested})
    for family in ("base", "previous"):
        members = [row for row in rows if row["family"] == family and row["p_value"] is not None]
        for row, adjusted in zip(members, holm([row["p_value"] for row in members]), strict=True):
            significant = adjusted < SIGNIFICANT
            row["p_adjusted"] = adjusted
            row["verdict"] = NOISE if not significant else BETTER if row["difference"] > 0 else WORSE
    for row in rows:
        row.setdefault("p_adjusted", None)
        row.setdefault("verdict", None)
    return rows
