"""HumanEval: a response becomes a program, its tests run in the sandbox, pass@1 is the share that pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from eval.sandbox import Program, Sandbox
from eval.tasks.scoring import batch_filter, cut

VERSION = 1
FENCED = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def completion(response: str, doc: dict[str, Any], until: Sequence[str]) -> str:
    """The program that a response makes of its prompt.

    Code in a fence counts instead of the words around it; when it defines the function anew it stands behind the lines above the
    prompt's function. A body of three spaces has lost one to a tokenizer that strips the first space of what it decodes.
    """
    prompt = str(doc["prompt"])
    if fence := FENCED.search(response):
        response = fence[1]
        if re.search(rf"^def {re.escape(doc['entry_point'])}\b", response, re.MULTILINE):
            return prompt[: prompt.rindex(f"def {doc['entry_point']}")] + response
    response = cut(response, until)
    if response.startswith("   ") and not response.startswith("    "):
        response = " " + response
    return prompt + response


def tests(doc: dict[str, Any]) -> str:
    """What runs behind the program."""
    return f"{doc['test']}\ncheck({doc['entry_point']})"


def scoring(sandbox: Sandbox, name: str, program: Callable[[str, dict[str, Any]], str]) -> dict[str, Any]:
    """Filter and scorer of a harness config; `program` turns a response and its doc into code."""

    def score(responses: list[str], docs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        codes = [program(response, doc) for response, doc in zip(responses, docs, strict=True)]
        verdicts = sandbox.run([Program(code, tests(doc)) for code, doc in zip(codes, docs, strict=True)])
        return [
            {
                "program": code,
                "status": verdict.status,
                "detail": verdict.detail,
                "scores": {"pass@1": float(verdict.passed)},
            }
            for code, verdict in zip(codes, verdicts, strict=True)
        ]

    return {"filter_list": [batch_filter(name, score)]}
