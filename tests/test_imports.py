"""The houses meet only through files: ziya imports none of the others, and the others never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSES = ("ziya", "data_factory", "training", "eval")


def imported_houses(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found & set(HOUSES)


@pytest.mark.parametrize("house", HOUSES)
def test_one_way_doors(house: str) -> None:
    files = sorted((ROOT / house).rglob("*.py"))
    assert files
    allowed = {house} if house == "ziya" else {house, "ziya"}
    for path in files:
        assert imported_houses(path) <= allowed, f"{path.relative_to(ROOT)} imports {imported_houses(path) - allowed}"


def test_nobody_imports_bare_eval() -> None:
    for path in [*ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py")]:
        if ".venv" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert "eval" not in {alias.name for alias in node.names}, path
