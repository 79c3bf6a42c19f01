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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.config import EvalConfig
from eval.models_found import Found
from ziya.errors import UserError

if TYPE_CHECKING:
    from eval.tasks import Subject

GENERATED = 30  # letter questions that take as long as one generated answer, roughly


@dataclass(frozen=True)
class Unit:
    """What one process answers at a time: a subject, or one portion of a subject of generated answers."""

    task: str
    variant: int
    subject: str
    portion: int | None
    cost: int


def units(wanted: Mapping[tuple[str, int], Sequence[Subject]], block: int) -> list[Unit]:
    """The subjects of (task, wording) in units. Generated answers cost more and are cut into blocks of `block`."""
    found = []
    for (task, variant), subjects in wanted.items():
        for one in subjects:
            if one.config.get("output_type") == "generate_until":
                for number, start in enumerate(range(0, one.items, block)):
                    cost = GENERATED * min(block, one.items - start)
                    found.append(Unit(task, variant, one.name, number, cost))
            else:
                found.append(Unit(task, variant, one.name, None, one.items))
    return found


def deal(work: Sequence[Unit], processes: int) -> list[list[Unit]]:
    """Units for each process: the costliest first, each to whoever has least; the same every time."""
    hands: list[list[Unit]] = [[] for _ in range(processes)]
    load = [0] * processes
    for unit in sorted(work, key=lambda one: (-one.cost, one.task, one.variant, one.subject, one.portion or 0)):
        who = load.index(min(load))
        hands[who].append(unit)
        load[who] += unit.cost
    return [hand for hand in hands if hand]


def answer(
    hands: Sequence[Sequence[Unit]],
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
        context.Process(target=_work, args=(place, len(hands), list(hand), found, config, identity, count, failures))
        for place, hand in enumerate(hands)
    ]
    told = 0
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes) and not any(process.exitcode for process in processes):
            time.sleep(0.1)
            told, former = int(count.value), told
            advance(told - former)
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
    hand: Sequence[Unit],
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
        mine = []
        for task, variant in dict.fromkeys((unit.task, unit.variant) for unit in hand):
            for subject in ask.subjects_of(task, config, variant, lambda _: None):
                own = [
                    unit.portion
                    for unit in hand
                    if (unit.task, unit.variant, unit.subject) == (task, variant, subject.name)
                ]
                if own:
                    mine.append((subject, None if None in own else [part for part in own if part is not None]))
        versions = {one.config["task"]: one.version for one, _ in mine}
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


__all__ = ["Unit", "answer", "deal", "units"]
