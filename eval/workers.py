"""Several processes, each with the whole model: subjects are dealt out, answers meet in the cache.

A process answers its subjects' requests and stores them; the process that started them then scores everything from the cache. So
the result does not depend on how many there were, and a killed one costs the subject it was at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eval.config import EvalConfig
from eval.models_found import Found
from ziya.errors import UserError

if TYPE_CHECKING:
    from eval.tasks import Subject


def deal(subjects: Sequence[Subject], processes: int) -> list[list[Subject]]:
    """Subjects for each process: the largest first, each to whoever has least; the same every time."""
    hands: list[list[Subject]] = [[] for _ in range(processes)]
    load = [0] * processes
    for subject in sorted(subjects, key=lambda one: (-one.items, one.name)):
        who = load.index(min(load))
        hands[who].append(subject)
        load[who] += subject.items
    return [hand for hand in hands if hand]


def answer(
    hands: Sequence[Sequence[Subject]],
    variant: int,
    found: Found,
    config: EvalConfig,
    identity: dict[str, Any],
    advance: Callable[[int], None],
) -> None:
    """Run a process for each hand until every answer is stored. Raises UserError as a process met it; RuntimeError else."""
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0)
    failures = context.Queue()
    processes = [
        context.Process(
            target=_work,
            args=(
                place,
                len(hands),
                hand[0].task,
                variant,
                [one.name for one in hand],
                found,
                config,
                identity,
                count,
                failures,
            ),
        )
        for place, hand in enumerate(hands)
    ]
    told = 0
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes):
            time.sleep(0.1)
            told, now = int(count.value), told
            advance(told - now)
        for process in processes:
            if not any(one.exitcode for one in processes):
                process.join()
        if any(process.exitcode for process in processes):
            _raise(failures, [process.exitcode for process in processes])
        advance(int(count.value) - told)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def _raise(failures: Any, codes: Sequence[int | None]) -> None:
    try:
        is_users, text = failures.get(timeout=5)
    except Exception:
        raise RuntimeError(f"an evaluation process ended with exit codes {list(codes)} and said nothing") from None
    raise UserError(text) if is_users else RuntimeError(text)


def _work(
    place: int,
    processes: int,
    task: str,
    variant: int,
    names: Sequence[str],
    found: Found,
    config: EvalConfig,
    identity: dict[str, Any],
    count: Any,
    failures: Any,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starting process hears Ctrl-C too and ends this one
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()

    def advance(amount: int) -> None:
        with count.get_lock():
            count.value += amount

    try:
        from eval import ask, loading

        loading.limit_threads(config, processes)
        chosen = {one.name: one for one in ask.subjects_of(task, config, variant, lambda _: None)}
        mine = [chosen[name] for name in names]
        versions = {one.config["task"]: one.version for one in mine}
        ask.fill_cache(mine, ask.open_model(found, config, identity, versions, place, advance))
    except UserError as error:
        failures.put((True, str(error)))
        raise SystemExit(2) from error
    except BaseException as error:
        failures.put((False, f"evaluation process {place}: {traceback.format_exc()}"))
        raise SystemExit(1) from error


def _die_with(parent: int) -> None:
    """End when the starting process was killed: nobody would read the rest."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


__all__ = ["answer", "deal"]
