"""The pool: every task answered, a dead worker costs its task only, users' errors travel."""

from __future__ import annotations

import os

import pytest

from data_factory.executor import Pool, WorkerDied
from ziya.errors import UserError


def double(value: int) -> int:
    return 2 * value


def die_on(value: int, deadly: int) -> int:
    if value == deadly:
        os.kill(os.getpid(), 9)
    return value


def complain(value: int) -> int:
    raise UserError(f"value {value} is bad")


def crash(value: int) -> int:
    raise ValueError("a bug")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_answered(workers: int) -> None:
    with Pool(workers) as pool:
        answers = {number: value for number, value, _ in pool.map(double, [(i,) for i in range(20)])}
        again = {number: value for number, value, _ in pool.map(double, [(i,) for i in range(3)])}
    assert answers == {i: 2 * i for i in range(20)}
    assert again == {0: 0, 1: 2, 2: 4}


def test_usage_is_measured() -> None:
    with Pool(1) as pool:
        ((_, _, usage),) = pool.map(double, [(1,)])
    assert usage is not None and usage.peak_rss > 1 << 20 and usage.cpu_s >= 0


def test_a_dead_worker_costs_its_task_only() -> None:
    with Pool(2) as pool:
        answers = {number: value for number, value, _ in pool.map(die_on, [(i, 3) for i in range(8)])}
    assert answers.pop(3) == WorkerDied("SIGKILL")
    assert answers == {i: i for i in (0, 1, 2, 4, 5, 6, 7)}


def test_errors_travel() -> None:
    with Pool(1) as pool, pytest.raises(UserError, match="value 5 is bad"):
        list(pool.map(complain, [(5,)]))
    with Pool(1) as pool, pytest.raises(RuntimeError, match="ValueError: a bug"):
        list(pool.map(crash, [(5,)]))
