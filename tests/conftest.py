"""The short suite is repeatable: hypothesis draws the same examples each time; `make soak` draws new ones."""

from __future__ import annotations

import pytest
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    """Pick the profile by whether the soak tests run."""
    settings.register_profile("short", derandomize=True, deadline=None)
    settings.register_profile("soak", deadline=None, print_blob=True)
    settings.load_profile("short" if "not soak" in str(config.getoption("-m")) else "soak")
