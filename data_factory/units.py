"""Input files -> work units: byte ranges of at most `read.unit_bytes` that never depend on the number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_factory.config import DataConfig


@dataclass(frozen=True)
class Unit:
    """One range of one input."""

    number: int
    source: str
    path: str
    label: str
    format: str
    compression: str
    start: int
    end: int
    origin_offset: int = 0
    limit: int | None = None
    damage: str = ""


@dataclass(frozen=True)
class Plan:
    """All units of a run in order."""

    units: list[Unit]
    inputs: list[dict[str, Any]]
    warnings: list[str]


def plan(config: DataConfig, spool: Path, limit: int | None) -> Plan:
    """Expand the inputs of `config` and cut them into units."""
    raise NotImplementedError
