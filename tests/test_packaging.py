"""What pyproject.toml asks for is what was tested."""

from __future__ import annotations

import re
import tomllib

import pytest
from train_runs import ROOT


@pytest.mark.parametrize("name", ["deepspeed", "megatron-core", "transformers"])
def test_floors_of_what_training_reaches_into(name: str) -> None:
    """Training relies on how these work inside, so no version is offered that the tests did not run with."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = re.search(rf"^{name}==(\S+)$", constraints, re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert tested is not None
    for extra in ("train", "dev"):
        (floor,) = [one.partition(">=")[2] for one in extras[extra] if one.partition(">=")[0] == name]
        assert f"{tested[1]}.".startswith(f"{floor}."), f"{extra}: {name}>={floor}, tested with {tested[1]}"
