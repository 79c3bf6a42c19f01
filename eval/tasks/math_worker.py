"""Compares MATH answers in a process of its own: JSON lines in, JSON lines out. Started by `score_math.py`.

Each comparison has a limit of CPU seconds by a signal, which works here because this is the main thread; the parent kills a
process in which even that does not help.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

SECONDS = 10.0  # CPU seconds of one comparison


class OutOfTime(BaseException):
    """No Exception: the parsers' own `except Exception` must not swallow it."""


def limited(compare: Callable[[], bool]) -> float | None:
    """1.0 or 0.0, None when the time ran out."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1.0)
    try:
        return float(compare())
    except OutOfTime:
        return None
    except Exception:  # math_verify's and sympy's parsers raise whatever their grammars run into
        return 0.0
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _late(*_: Any) -> None:
    raise OutOfTime


def ziya2(request: dict[str, Any]) -> dict[str, Any]:
    """math_verify on the stated answer (on the whole text where none was found) and Minerva's comparison."""
    from lm_eval.tasks.minerva_math import utils
    from math_verify import parse, verify

    text, answer, gold = request["text"], request["answer"], request["gold"]

    def by_verify() -> bool:
        said = parse(f"\\boxed{{{answer}}}" if answer else text, parsing_timeout=None)
        return bool(verify(parse(f"\\boxed{{{gold}}}", parsing_timeout=None), said, timeout_seconds=None))

    def by_minerva() -> bool:
        said = utils.normalize_final_answer(utils.get_unnormalized_answer(text))
        return bool(utils.is_equiv(said, utils.normalize_final_answer(gold)))

    found = {"math_verify": limited(by_verify), "minerva": limited(by_minerva)}
    return {**{name: value or 0.0 for name, value in found.items()}, "timeout": None in found.values()}


def stock(request: dict[str, Any]) -> dict[str, Any]:
    """The harness's own scorer of minerva_math, with the time limits it has itself."""
    from lm_eval.tasks.minerva_math import utils

    return {name: float(value) for name, value in utils.process_results(request["doc"], [request["text"]]).items()}


def main() -> None:
    """Answer until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand between our lines
    signal.signal(signal.SIGPROF, _late)
    import logging

    logging.disable(logging.CRITICAL)
    import lm_eval.tasks.minerva_math.utils  # noqa: F401 (imports math_verify and sympy, before the first request's time runs)

    answer = functools.partial(print, file=out, flush=True)
    answer(json.dumps({"ready": True}))
    for line in sys.stdin:
        request = json.loads(line)
        answer(json.dumps({"ziya2": ziya2, "stock": stock}[request["kind"]](request)))


if __name__ == "__main__":
    main()
