"""Regular expressions mean the same in every Python that is supported.

Python 3.11.0 to 3.11.4, among them the python3 of Debian 12, match possessive quantifiers and atomic groups wrongly
(issues 100061 and 106052 of CPython) and silently: one such pattern lost every XHTML page there, and no page elsewhere.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_SYNTAX = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # escapes and character classes
UNSAFE = re.compile(r"[*+?}]\+|\(\?>")


def is_unsafe(pattern: str) -> bool:
    """Whether a pattern uses what early versions of 3.11 match wrongly."""
    return UNSAFE.search(NO_SYNTAX.sub("x", pattern)) is not None


def patterns(path: Path) -> Iterator[str]:
    """First arguments of calls of `re`, an f-string's values as x."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).startswith("re."):
            yield "".join(
                part.value if isinstance(part.value, str) else part.value.decode("latin-1")
                for part in ast.walk(node.args[0])
                if isinstance(part, ast.Constant) and isinstance(part.value, str | bytes)
            )


@pytest.mark.parametrize("house", ["ziya", "data_factory", "training", "eval", "scripts"])
def test_no_possessive_quantifiers_or_atomic_groups(house: str) -> None:
    found = [(path.relative_to(ROOT), text) for path in sorted((ROOT / house).rglob("*.py")) for text in patterns(path)]
    assert found or house == "eval"
    assert [(str(path), text) for path, text in found if is_unsafe(text)] == []


def test_what_counts_as_unsafe() -> None:
    assert all(map(is_unsafe, ["a*+b", "(?:a|b)++", r"\d?+", "x{1,3}+y", "(?>a)", r"[\]]*+"]))
    assert not any(map(is_unsafe, [r"[*+?}]\+", r"\*+", "a+?", "[^]*+]+", r"\\+", r"(?:a+)+", r"[\]*+]", "(?=a)"]))
