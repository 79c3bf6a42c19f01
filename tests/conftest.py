"""The short suite is repeatable: hypothesis draws the same examples each time; `make soak` draws new ones."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: tests are of CPUs, and the same on machines with GPUs


def pytest_configure(config: pytest.Config) -> None:
    """Pick the profile by whether the soak tests run."""
    settings.register_profile("short", derandomize=True, deadline=None)
    settings.register_profile("soak", deadline=None, print_blob=True)
    settings.load_profile("short" if "not soak" in str(config.getoption("-m")) else "soak")


@pytest.fixture
def quiet_harness() -> None:
    """Without the log of lm-evaluation-harness."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up items of the six benchmarks in their official formats."""
    import small_benchmarks

    return small_benchmarks.write_all(tmp_path_factory.mktemp("benchmarks"))
