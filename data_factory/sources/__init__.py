"""Readers: units of input bytes -> records or damaged byte ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from data_factory.config import Read, Source
from data_factory.sources.record import DROPS, Damage, Record
from data_factory.sources.warc import read_warc
from data_factory.units import Unit

__all__ = ["DROPS", "Damage", "Record", "read_unit"]


def read_unit(unit: Unit, source: Source, read: Read, counts: Counter[str]) -> Iterator[Record | Damage]:
    """Yield the records of a unit in order, and one `Damage` for each damaged byte range.

    WARC records of other types (request, metadata, revisit, ...) are counted in `counts["other_records"]` and
    `counts["other_records.<type>"]`. Stops after `unit.limit` records.
    """
    records = 0
    for item in _dispatch(unit, source, read, counts):
        if isinstance(item, Record):
            if records == unit.limit:
                return
            records += 1
        yield item


def _dispatch(unit: Unit, source: Source, read: Read, counts: Counter[str]) -> Iterator[Record | Damage]:
    if unit.format == "warc":
        return read_warc(unit, read, counts)
    raise NotImplementedError(unit.format)
