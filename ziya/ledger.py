"""`RUN/ledger.json`: what a run has read. Written by training (also into each checkpoint), read by plots and evaluation.

**Tokens** are non-padding tokens of batches that the model was updated with; those of skipped batches count only where a name
says so. A token is `first_seen` when its row was never trained on before in the run, in any stage and role, else `repeated`.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ziya.errors import UserError
from ziya.files import read_json, write_json

Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamBook(_Strict):
    """One source in one role (`own`, or `replay K`: rows of stage K drawn again) of a stage.

    `epochs`: tokens of each pass over the source; `rows`: drawn so far, skipped ones included; `spent`: what the queue of
    `training.mixture` counts as drawn; `skipped`: ranges [first, last) of places whose rows were drawn and not trained on.
    """

    source: str
    role: str
    first_seen: Count = 0
    repeated: Count = 0
    epochs: list[int] = Field(default_factory=list)
    rows: Count = 0
    spent: Count = 0
    skipped: list[list[int]] = Field(default_factory=list)


class Mix(_Strict):
    """Shares from a data_index on: `source role` -> share."""

    data_index: Count
    shares: dict[str, float]


class StageBook(_Strict):
    """One stage. `data_index`: the next batch to draw; `skipped`: ranges [first, last) of data_index, those to come included;
    `skipped_tokens`: of skipped batches before `data_index`; `mixes`: the shares, and each accepted change of them."""

    data_index: Count = 0
    tokens: Count = 0
    skipped: list[list[int]] = Field(default_factory=list)
    skipped_tokens: Count = 0
    mixes: list[Mix] = Field(default_factory=list)
    streams: list[StreamBook] = Field(default_factory=list)


class LedgerFile(_Strict):
    """The whole ledger; `stages`: number -> book."""

    version: Literal[1] = 1
    stages: dict[str, StageBook] = Field(default_factory=dict)


def check_ledger(value: Any, origin: str) -> LedgerFile:
    """Parse a ledger; UserError names what is missing, wrong, or does not add up."""
    try:
        ledger = LedgerFile.model_validate(value)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc'])) or 'the whole'} ({item['msg']})" for item in error.errors()[:5]]
        raise UserError(f"{origin} is not a ledger: {', '.join(wrong)}: restore it from a checkpoint") from error
    problems = []
    for number, stage in ledger.stages.items():
        for book in stage.streams:
            if sum(book.epochs) != book.first_seen + book.repeated:
                problems.append(f"stage {number}, {book.source} {book.role}: epochs do not sum to its tokens")
        if sum(book.first_seen + book.repeated for book in stage.streams) != stage.tokens:
            problems.append(f"stage {number}: its streams do not sum to its tokens")
        ranges = [stage.skipped, *(book.skipped for book in stage.streams)]
        if not all(_rising(pairs) for pairs in ranges):
            problems.append(f"stage {number}: skipped ranges must rise and not touch")
    if problems:
        raise UserError(f"{origin} does not add up: {'; '.join(problems)}: restore it from a checkpoint")
    return ledger


def _rising(ranges: list[list[int]]) -> bool:
    return all(len(pair) == 2 and 0 <= pair[0] < pair[1] for pair in ranges) and all(
        before[1] < after[0] for before, after in pairwise(ranges)
    )


def read_ledger(path: Path) -> LedgerFile:
    """Read and check a ledger file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the folder of a run that has trained")
    return check_ledger(read_json(path), str(path))


def write_ledger(path: Path, ledger: LedgerFile) -> None:
    """Check a ledger and write it atomically."""
    value = ledger.model_dump()
    check_ledger(value, str(path))
    write_json(path, value)
