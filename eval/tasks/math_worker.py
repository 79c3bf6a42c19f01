"""Compares MATH answers in a process of its own: JSON lines in, JSON lines out. Started by `score_math.py`.

Each comparison has a limit of CPU seconds by a signal, which works here because this is the main thread; the parent kills a
process in which even that does not help.
"""

from __future__ import annotations

import contextlib
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


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """Both scores of one answer; "timeout" tells that one of them ran out of time and counts as wrong.

    Kind "ziya2": math_verify on the stated answer (on the whole text where none was found), Minerva's comparison with the gold
    answer. Kind "stock": what the harness's `minerva_math` calls exact_match and math_verify, on the solution and the whole text.
    """
    from lm_eval.tasks.minerva_math import utils
    from math_verify import parse, verify

    text, stock = request["text"], request["kind"] == "stock"
    if stock:
        gold, said, normal = request["doc"]["solution"], text, request["doc"]["answer"]
    else:
        gold, said = f"\\boxed{{{request['gold']}}}", f"\\boxed{{{request['answer']}}}" if request["answer"] else text
        normal = utils.normalize_final_answer(request["gold"])

    def by_verify() -> bool:
        target = parse(said, parsing_timeout=None)
        return bool(verify(parse(gold, parsing_timeout=None), target, timeout_seconds=None))

    def by_minerva() -> bool:
        answer = utils.get_unnormalized_answer(text)
        if answer == "[invalidanswer]":  # its word for a text that states none; sympy would think about it for nothing
            return False
        return bool(utils.is_equiv(utils.normalize_final_answer(answer), normal))

    found = {"math_verify": limited(by_verify), "exact_match" if stock else "minerva": limited(by_minerva)}
    return {**{name: value or 0.0 for name, value in found.items()}, "timeout": None in found.values()}


def main() -> None:
    """Answer until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand between our lines
    signal.signal(signal.SIGPROF, _late)
    import logging

    logging.disable(logging.CRITICAL)
    from lm_eval.tasks.minerva_math import utils

    # Their limits are seconds of the clock, in which a busy machine fails right answers; ours stands around each comparison.
    utils.timeout = lambda seconds: contextlib.nullcontext()
    compare(
        {"kind": "ziya2", "text": "", "answer": "\\frac{1}{2}", "gold": "0.5"}
    )  # builds the grammars before time runs
    utils.is_equiv("\\frac{1}{2}", "0.5")

    answer = functools.partial(print, file=out, flush=True)
    answer(json.dumps({"ready": True}))
    for line in sys.stdin:
        request = json.loads(line)
        answer(json.dumps(compare(request)))


if __name__ == "__main__":
    main()
