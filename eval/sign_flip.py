"""A paired test that stays right for a handful of pairs: the signs of the differences are drawn anew.

Why beside the bootstrap: a bootstrap inside subjects sees only the spread inside each subject. Of one pair a subject it sees none,
of n pairs a share (n - 1) / n of the variance, so with few pairs a subject it calls noise a difference (with one pair a subject
more often than not, with two one time in seven). If nothing changed, each pair's difference is as likely to be its opposite; so
the weighted sum of the differences is compared with its sums under other signs. That holds for any number of pairs and any
weights, for 0/1 and for graded scores; for one subject and scores of 0 and 1 it is McNemar's exact test, and of k pairs that
differ p is never below 2 / 2^k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ziya.files import digest

F64 = npt.NDArray[np.float64]
EXACT = 13  # at most this many differing pairs: all 2^13 signs are tried instead of drawn
TIE = 1e-12  # sums that differ by rounding alone are equal


def flips(groups: Sequence[F64], seed: str, count: int) -> tuple[F64, bool]:
    """(macro means of the differences under other signs, whether these are all that there are).

    `groups`: float64 [pairs] a subject. All 2^k signs of k differences that are not 0 where k is small, else `count` seeded draws.
    """
    weights = [np.abs(group[group != 0]) / (len(group) * len(groups)) for group in groups if len(group)]
    every = np.concatenate([*weights, np.zeros(0)])
    if len(every) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(every))[:, None] >> np.arange(len(every)) & 1)
        return signs @ every, True
    rng = np.random.default_rng(int(digest(f"signs {seed}".encode())[:16], 16))
    total = np.zeros(count)
    for weight, pairs in zip(*np.unique(every, return_counts=True), strict=True):
        total += weight * (2.0 * rng.binomial(pairs, 0.5, size=count) - pairs)  # the sum of that many signs, drawn at once
    return total, False


def p_value(difference: float, flipped: F64, exact: bool) -> float:
    """Two-sided p: the share of signs whose mean lies at least as far from 0; of draws the observed signs count as one more."""
    beyond = int((np.abs(flipped) >= abs(difference) - TIE).sum())
    return beyond / len(flipped) if exact else (beyond + 1) / (len(flipped) + 1)


def reach(flipped: F64, confidence: float) -> float:
    """How far from 0 the middle `confidence` of the means reach; a difference with p above 1 - confidence lies within."""
    return float(np.quantile(np.abs(flipped), confidence, method="higher")) + TIE
