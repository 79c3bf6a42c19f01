"""MATH: an answer is right when math_verify says so or its normalised text equals the gold's; Minerva's score stands beside it.

The normalisation follows what Hendrycks et al. (2021) let count as equal; the words here are ours. math_verify and Minerva's
comparison run in worker processes (`math_worker.py`) with a limit of CPU time each: sympy can think for hours.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.tasks.items import last_boxed
from eval.tasks.scoring import batch_filter, cut

VERSION = 1
ANSWER_WORDS = re.compile(r"(?:final answer is|answer is|答案是|答案为)\s*[:：]?\s*(.+)", re.IGNORECASE)
WAIT_FOR_START, WAIT_FOR_ANSWER = 600.0, 60.0  # seconds; the CPU limit inside ends an answer long before

SPACES = re.compile(r"\\[!,;:> ]|\\q?quad\b|~|\s")
SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])")
UNIT = re.compile(r"(?<=[\d})])\\(?:text|mbox|textrm|mathrm)\{[^{}]*\}(?:\^\{?\d\}?)?$")
WORDS = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|operatorname)\{([^{}]*)\}")
NAME = re.compile(r"^[a-zA-Z](?:_\{?\w\}?)?(?:\([a-zA-Z]\))?=(?=.)|^[a-zA-Z]\\in(?![a-zA-Z])")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
ZEROS = re.compile(r"(\d)\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)")
SLASHED = re.compile(r"(?<![\w}])(-?\d+)/(\d+)(?![\w{])")
BARE_FRACTION = re.compile(r"\\frac(?:\{([^{}]*)\}|(\d|[a-zA-Z]))(?:\{([^{}]*)\}|(\d|[a-zA-Z]))")
BARE_ROOT = re.compile(r"\\sqrt(?![\[{])(\w)")


def final_answer(text: str) -> str:
    """The answer that a solution states: the last box, else what follows the last "answer is", else nothing."""
    boxed = _bare(last_boxed(text))
    if boxed:
        return boxed
    stated = ANSWER_WORDS.findall(text)
    if not stated:
        return ""
    answer = re.sub(r"\s*I hope it is correct\.?\s*$", "", stated[-1].strip())
    dollars = re.fullmatch(r"\$+(.*?)\$+[.。]?", answer)
    return (dollars[1] if dollars else answer).strip().rstrip(".。")


def normalise(answer: str) -> str:
    """One spelling for answers that are the same to a reader: fractions, roots, spaces, units, signs of size, zeros, commas."""
    text = _bare(answer.strip().strip("$").rstrip(".。"))
    text = text.replace("\\$", "").replace("\\%", "").replace("%", "").replace("−", "-")
    text = SIZES.sub("", SPACES.sub("", text))
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\^\{?\\circ\}?|\\degree", "", text)
    text = WORDS.sub(r"\1", UNIT.sub("", text))
    text = NAME.sub("", text)
    text = THOUSANDS.sub(lambda match: re.sub(r"[,{}]", "", match[0]), text)
    text = ZEROS.sub(lambda match: match[1] or match[2], text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    text = SLASHED.sub(r"\\frac{\1}{\2}", text)
    text = BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = BARE_FRACTION.sub(lambda found: rf"\frac{{{found[1] or found[2]}}}{{{found[3] or found[4]}}}", text)
    return re.sub(r"\\frac\{-", r"-\\frac{", text)


def _bare(text: str) -> str:
    """Without braces around the whole: after OpenCompass's shots models write \\boxed{{24}}."""
    while text.startswith("{") and text.endswith("}"):
        depth, ends = 0, []
        for place, letter in enumerate(text):
            depth += {"{": 1, "}": -1}.get(letter, 0)
            ends += [place] if depth == 0 else []
        if ends[:1] != [len(text) - 1]:
            break
        text = text[1:-1].strip()
    return text


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers are one after normalisation; an empty answer equals nothing."""
    return bool(answer) and normalise(answer) == normalise(gold)


def scoring(until: Sequence[str]) -> list[dict[str, Any]]:
    """The `filter_list` of protocol ziya2: metrics math (the score), math_verify, string and minerva."""

    def score(responses: list[str], docs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = [cut(response, until) for response in responses]
        answers = [final_answer(text) for text in texts]
        asked = [
            {"kind": "ziya2", "text": text, "answer": answer, "gold": doc["answer"]}
            for text, answer, doc in zip(texts, answers, docs, strict=True)
        ]
        found = []
        for answer, doc, told in zip(answers, docs, pool().ask(asked), strict=True):
            said = {"math_verify": told.get("math_verify", 0.0), "minerva": told.get("minerva", 0.0)}
            said["string"] = float(same_text(answer, doc["answer"]))
            said["math"] = max(said["math_verify"], said["string"])
            found.append({"answer": answer, "timeout": bool(told.get("timeout")), "scores": said})
        return found

    return [batch_filter("none", score)]


def stock_scoring() -> list[dict[str, Any]]:
    """The `filter_list` of protocol lm-eval: the harness's own `minerva_math` scorer, run in the workers."""

    def score(responses: list[str], docs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        asked = [{"kind": "stock", "text": text, "doc": doc} for text, doc in zip(responses, docs, strict=True)]
        names = ("exact_match", "math_verify")
        return [
            {
                "answer": text,
                "timeout": bool(told.get("timeout")),
                "scores": {name: told.get(name, 0.0) for name in names},
            }
            for text, told in zip(responses, pool().ask(asked), strict=True)
        ]

    return [batch_filter("none", score)]


class _Worker:
    """One process of `math_worker.py`, started when it is first asked, started anew after it had to be killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer, {"timeout": True} when none came."""
        if self.process is None:
            root = str(Path(__file__).parents[2])
            path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eval.tasks.math_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
            if self._read(WAIT_FOR_START) is None:
                self.close()
                raise RuntimeError(
                    "the process that compares MATH answers did not start: run `python -m eval.tasks.math_worker`"
                )
        assert self.process is not None and self.process.stdin is not None
        told = None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            told = self._read(WAIT_FOR_ANSWER)
        if told is None:
            self.close()
            return {"timeout": True}
        return told

    def _read(self, seconds: float) -> dict[str, Any] | None:
        assert self.process is not None and self.process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):  # one line at a time is on the way, so nothing is read beyond it
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                return None
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                return None
            line += piece
        value: dict[str, Any] = json.loads(line)
        return value

    def close(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


class _Pool:
    """Workers that live as long as this process: starting one costs seconds of imports."""

    def __init__(self, size: int) -> None:
        self.workers = [_Worker() for _ in range(size)]
        self.lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers in the order of the requests."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(requests)):
            waiting.put(number)
        answers: list[dict[str, Any]] = [{} for _ in requests]
        failures: list[BaseException] = []

        def serve(worker: _Worker) -> None:
            try:
                while not failures:
                    number = waiting.get_nowait()
                    answers[number] = worker.ask(requests[number])
            except queue.Empty:
                return
            except BaseException as error:  # told to the caller below
                failures.append(error)

        with self.lock:
            threads = [threading.Thread(target=serve, args=[worker]) for worker in self.workers[: len(requests)]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        return answers

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.close()


_POOL: list[_Pool] = []


def pool() -> _Pool:
    """The one pool of this process."""
    if not _POOL:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _POOL.append(_Pool(min(8, available)))
    return _POOL[0]
