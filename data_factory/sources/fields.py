"""Fields of rows (JSONL objects, Parquet rows) -> records."""

from __future__ import annotations

from calendar import timegm
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from data_factory.config import Source
from data_factory.encodings import sanitise
from data_factory.sources.record import Broken, Record


def epoch(value: object) -> int:
    """Epoch seconds of an ISO 8601 text (UTC when it names no zone), a date, or seconds (milliseconds above year
    9999); 0 for anything else.
    """
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        if isinstance(value, datetime):
            return timegm(value.utctimetuple())
        if isinstance(value, date):
            return timegm(value.timetuple())
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value / 1000 if abs(value) > 253402300799 else value)
    except (ValueError, OverflowError):
        pass
    return 0


def names(source: Source) -> list[str]:
    """The fields that a source's records need, in a fixed order."""
    chosen = [
        source.text_field,
        source.url_field,
        source.date_field,
        source.id_field,
        source.task_field,
        source.prompt_field,
    ]
    return list(dict.fromkeys(name for name in chosen if name))


def find(row: Mapping[str, Any], name: str | None) -> Any:
    """The value of a field; `meta.url` looks inside `meta` when there is no field of that very name. None when
    absent.
    """
    if name is None or name in row:
        return row.get(name) if name else None
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def record_of(row: Mapping[str, Any], source: Source, offset: int, length: int, limit: int) -> Record:
    """The record of a row; raises `Broken` when its text (or a supervised prompt) is missing, no string, or over
    `limit` bytes.
    """
    text = _string(row, source.text_field)
    prompt = _string(row, source.prompt_field) if source.prompt_field else ""
    if (
        len(text) + len(prompt) > limit // 4
        and len(text.encode("utf-8", "replace")) + len(prompt.encode("utf-8", "replace")) > limit
    ):
        raise Broken(f"the text is larger than read.record_limit_bytes ({limit})")
    key, url, task = find(row, source.id_field), find(row, source.url_field), find(row, source.task_field)
    record = Record(
        offset=offset,
        length=length,
        key=sanitise(str(key)) if isinstance(key, (str, int)) else "",
        url=sanitise(url) if isinstance(url, str) else "",
        date=epoch(find(row, source.date_field)),
        content=text,
        is_html=False,
        charset="",
        drop="",
        drop_value=0.0,
        prompt=prompt,
        task=sanitise(str(task)) if task is not None else "",
    )
    if not text.strip():
        record.content, record.drop = "", "read.empty"
    return record


def _string(row: Mapping[str, Any], name: str) -> str:
    value = find(row, name)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise Broken(f"field {name!r} is not valid UTF-8: {error.reason} at byte {error.start}") from error
    if value is None:
        raise Broken(f"field {name!r} is missing or null")
    if not isinstance(value, str):
        raise Broken(f"field {name!r} is no text but {type(value).__name__}")
    return sanitise(value)
