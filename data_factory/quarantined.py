"""What the quarantine tells a person: its most frequent errors, and sources whose settings seem to be wrong.

Nothing here enters outputs: the warnings go to the log, the counts to the printed summary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_factory.config import DataConfig, Read
from data_factory.documents import read_table
from data_factory.sources.jsonl import lines, parse
from data_factory.sources.record import Broken, Unit
from data_factory.sources.streams import Window
from ziya.errors import UserError

SHARE, RECORDS = 0.9, 20  # a field that so large a share of so many records lacks is a wrong name; or one that all lack
_SHOWN = 20  # records that are looked at for the fields they do have


def errors(out: Path) -> Counter[str]:
    """Error -> quarantined records of OUT; what stands behind a colon (places, bytes) tells one record from another and
    is left out."""
    found: Counter[str] = Counter()
    for path in sorted((out / "quarantine").glob("*.parquet")):
        found.update(error.partition(": ")[0] for error in read_table(path, ["error"])["error"].to_pylist())
    return found


def warnings(
    config: DataConfig, units: Sequence[Unit], out: Path, counts: Mapping[str, Mapping[str, int]], whole: bool
) -> list[str]:
    """One line for every source that looks misread, in the order of the config.

    `counts`: unit name -> rows and quarantined of its measurements; unit i of `units` is the i-th name. `whole`: all of
    the input was read, so that a source without records is an empty one.
    """
    told = []
    for number, source in enumerate(config.sources):
        own = [(name, unit) for name, unit in zip(counts, units, strict=True) if unit.source == source.name]
        records = sum(counts[name]["rows"] + counts[name]["quarantined"] for name, _ in own)
        if not records:
            told += [f"source {source.name}: no record was found in its paths"] if whole else []
            continue
        damaged = [(name, unit) for name, unit in own if counts[name]["quarantined"]]
        for setting, field in (("text_field", source.text_field), ("prompt_field", source.prompt_field)):
            lacking = {name: _lacking(out, name, field) for name, _ in damaged} if field else {}
            missing = sum(lacking.values())
            if field and missing and (missing == records or (records >= RECORDS and missing >= SHARE * records)):
                unit = next(unit for name, unit in damaged if lacking[name])
                has = ", ".join(_fields(unit, field, config.read))
                told.append(
                    f"source {source.name}: {missing} of {records} records have no field {field!r}"
                    f"{f' (they have: {has})' if has else ''}: set sources.{number}.{setting}"
                )
        rows = sum(counts[name]["rows"] for name, _ in own)
        if source.task_field and rows and not any(_has_task(out, name) for name, _ in own):
            told.append(
                f"source {source.name}: none of {rows} records has a field {source.task_field!r}: set "
                f"sources.{number}.task_field"
            )
    return told


def _lacking(out: Path, name: str, field: str) -> int:
    """Records of a unit that were quarantined for this field."""
    column = read_table(out / "quarantine" / f"{name}.parquet", ["error"])["error"]
    return int(np.count_nonzero(pc.equal(column, f"field {field!r} is missing or null")))


def _has_task(out: Path, name: str) -> bool:
    tasks = read_table(out / "documents" / f"{name}.parquet", ["task"])["task"]
    return bool(pc.any(pc.not_equal(tasks, "")).as_py())


def _fields(unit: Unit, field: str, read: Read) -> list[str]:
    """The fields of the first records of a JSONL unit that lack `field`, in their order; none where they cannot be had."""
    found: dict[str, Any] = {}
    if unit.format != "jsonl":
        return []
    try:
        with Window(unit.path) as window:
            seen = 0
            for _, _, line in lines(window, unit.start, unit.end, read.record_limit_bytes):
                try:
                    row = parse(line) if line is not None and line.strip() else {}
                except Broken:
                    continue
                if row and row.get(field) is None:
                    found |= dict.fromkeys(row)
                    seen += 1
                if seen == _SHOWN:
                    break
    except (OSError, UserError):  # the input is gone since: the warning goes without
        return []
    return [name for name in found if name != field]
