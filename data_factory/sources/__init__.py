"""Readers: units of input bytes -> records or damaged byte ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from data_factory.config import Read, Source
from data_factory.sources.jsonl import read_jsonl
from data_factory.sources.mediawiki import read_mediawiki
from data_factory.sources.parquet import read_parquet
from data_factory.sources.record import DROPS, Damage, Record, Unit
from data_factory.sources.spool import tell_damage
from data_factory.sources.warc import read_warc

__all__ = ["DROPS", "Damage", "Record", "read_unit"]


def read_unit(unit: Unit, source: Source, read: Read, counts: Counter[str]) -> Iterator[Record | Damage]:
    """Yield the records of a unit in order, and one `Damage` for each damaged byte range.

    WARC records of other types (request, metadata, revisit, ...) are counted in `counts["other_records"]` and
    `counts["other_records.<type>"]`. Stops after `unit.limit` records. Raises `UserError` when the input cannot be
    opened.
    """
    records = 0
    if unit.limit == 0:
        return
    for item in tell_damage(_items(unit, source, read, counts), unit.damage):
        if isinstance(item, Record):
            records += 1
            if item.is_html and len(item.content) > read.html_limit_bytes:
                item.drop, item.drop_value, item.content = "read.html_limit_bytes", float(len(item.content)), b""
        yield item
        if records == unit.limit:
            return


def _items(unit: Unit, source: Source, read: Read, counts: Counter[str]) -> Iterator[Record | Damage]:
    if unit.format == "warc":
        return read_warc(unit, read, counts)
    if unit.format == "jsonl":
        return read_jsonl(unit, source, read)
    if unit.format == "parquet":
        return read_parquet(unit, source, read)
    return read_mediawiki(unit, source, read)
