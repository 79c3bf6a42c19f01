"""Planning: expansion, labels, cuts, spooling and limits."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_factory.config import DataConfig
from data_factory.sources import Damage, Record, read_unit
from data_factory.units import Unit, format_of, plan
from ziya.errors import UserError


def config(*paths, unit_bytes=4096, **source):
    return DataConfig.model_validate(
        {
            "sources": [{"name": "s", "paths": [str(path) for path in paths], **source}],
            "read": {"unit_bytes": unit_bytes},
        }
    )


def lines(count, start=0):
    return "".join(
        json.dumps({"text": f"文档 number {number} " + "x" * 40}, ensure_ascii=False) + "\n"
        for number in range(start, start + count)
    ).encode()


def contents(settings, planned):
    return [
        item.content
        for unit in planned.units
        for item in read_unit(unit, settings.sources[0], settings.read, Counter())
    ]


def test_folder_is_sorted_labelled_and_filtered(tmp_path):
    root = tmp_path / "in"
    for name in ("b/2.jsonl", "a.jsonl", "b/1.ndjson", ".hidden.jsonl", "b/.git/x.jsonl", "notes.txt", "b/empty.jsonl"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if "empty" in name else lines(2))
    planned = plan(config(root), tmp_path / "spool", None)
    assert [unit.label for unit in planned.units] == ["a.jsonl", "b/1.ndjson", "b/2.jsonl"]
    assert [unit.number for unit in planned.units] == [0, 1, 2]
    assert [entry["label"] for entry in planned.inputs] == ["a.jsonl", "b/1.ndjson", "b/2.jsonl", "b/empty.jsonl"]
    assert any("notes.txt" in warning for warning in planned.warnings) and any(
        "empty" in warning for warning in planned.warnings
    )
    assert not any(str(tmp_path) in json.dumps(entry) for entry in planned.inputs)


def test_plan_does_not_depend_on_where_the_folder_is(tmp_path):
    plans = []
    for place in ("one", "two/deeper"):
        root = tmp_path / place
        root.mkdir(parents=True)
        (root / "a.jsonl").write_bytes(lines(300))
        planned = plan(config(root), tmp_path / "spool", None)
        plans.append(([dataclasses.replace(unit, path="") for unit in planned.units], planned.inputs))
    assert plans[0] == plans[1] and len(plans[0][0]) > 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2"])
@pytest.mark.parametrize("unit_bytes", [4096, 5000, 1 << 20])
def test_every_line_is_read_once_whatever_the_cut(tmp_path, name, unit_bytes):
    data = lines(400)
    pack = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress}.get(name.rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(pack(data))
    settings = config(tmp_path / name, unit_bytes=unit_bytes)
    planned = plan(settings, tmp_path / "spool", None)
    assert all(unit.end - unit.start <= unit_bytes for unit in planned.units)
    assert len(planned.units) == -(-len(data) // unit_bytes)
    assert contents(settings, planned) == [json.loads(line)["text"] for line in data.splitlines()]


def test_spool_is_reused_and_atomic(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(50)))
    settings, spool = config(path), tmp_path / "spool"
    first = plan(settings, spool, None)
    (part,) = [item for item in spool.iterdir() if item.suffix == ".jsonl"]
    before = part.stat().st_mtime_ns
    assert plan(settings, spool, None) == first and part.stat().st_mtime_ns == before
    assert not [item for item in spool.iterdir() if item.name.startswith(".tmp-")]
    path.write_bytes(gzip.compress(lines(51)))
    assert len(contents(settings, plan(settings, spool, None))) == 51


def test_damage_inside_a_spooled_stream_costs_its_range(tmp_path):
    parts = [gzip.compress(lines(30, start)) for start in (0, 30, 60)]
    parts[1] = parts[1][: len(parts[1]) // 2]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(parts))
    for unit_bytes in (4096, 1 << 20):
        settings = config(tmp_path, unit_bytes=unit_bytes)
        planned = plan(settings, tmp_path / ".spool", None)
        items = [
            item for unit in planned.units for item in read_unit(unit, settings.sources[0], settings.read, Counter())
        ]
        damages = [item for item in items if isinstance(item, Damage)]
        assert len(damages) == 1 and "compressed bytes" in damages[0].error
        texts = [item.content for item in items if isinstance(item, Record)]
        assert texts[:30] == [json.loads(line)["text"] for line in lines(30).splitlines()]
        assert texts[-30:] == [json.loads(line)["text"] for line in lines(30, 60).splitlines()]


def test_over_long_line_neither_fills_the_spool_nor_costs_others(tmp_path):
    data = lines(2) + b'{"text": "' + b"0" * (12 << 20) + b'"}\n' + lines(2, 2)
    for name, packed in (("a.jsonl.gz", gzip.compress(data, 1)), ("a.jsonl", data)):
        (tmp_path / name).write_bytes(packed)
        settings = DataConfig.model_validate(
            {
                "sources": [{"name": "s", "paths": [str(tmp_path / name)]}],
                "read": {"record_limit_bytes": 1 << 20, "unit_bytes": 1 << 21},
            }
        )
        planned = plan(settings, tmp_path / "spool", None)
        items = [
            item for unit in planned.units for item in read_unit(unit, settings.sources[0], settings.read, Counter())
        ]
        assert [type(item) for item in items] == [Record, Record, Damage, Record, Record]
    assert sum(item.stat().st_size for item in (tmp_path / "spool").iterdir()) < 2 << 20


def test_single_member_warc_is_spooled_and_cut(tmp_path):
    record = b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <%d>\r\nContent-Type: text/plain\r\nContent-Length: 300\r\n\r\n%s\r\n\r\n"  # noqa: E501
    data = b"".join(record % (number, b"y" * 300) for number in range(100))
    (tmp_path / "one.warc.gz").write_bytes(gzip.compress(data))
    (tmp_path / "many.warc.gz").write_bytes(
        b"".join(gzip.compress(record % (number, b"y" * 300)) for number in range(100))
    )
    settings = config(tmp_path)
    planned = plan(settings, tmp_path / ".spool", None)
    assert next(unit.compression for unit in planned.units if unit.label == "many.warc.gz") == "gz"
    spooled = [unit for unit in planned.units if unit.label == "one.warc.gz"]
    assert len(spooled) == -(-len(data) // 4096) and not spooled[0].compression
    keys = [item.key for unit in spooled for item in read_unit(unit, settings.sources[0], settings.read, Counter())]
    assert keys == [str(number) for number in range(100)]


def test_limit_is_the_first_records_of_the_plan(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(100))
    (tmp_path / "b.jsonl").write_bytes(lines(100, 100))
    settings = config(tmp_path)
    everything = contents(settings, plan(settings, tmp_path / ".spool", None))
    for limit in (1, 59, 100, 101, 150, 200, 500):
        planned = plan(settings, tmp_path / ".spool", limit)
        assert contents(settings, planned) == everything[:limit]
    assert len(plan(settings, tmp_path / ".spool", 100).inputs) == 1


def test_format_and_compression():
    assert [
        format_of(name)
        for name in ("x.warc.gz", "x.warc.wet.gz", "X.JSONL.ZST", "d.xml.bz2", "p.parquet", "a.txt", "gz")
    ] == ["warc", "warc", "jsonl", "mediawiki", "parquet", None, None]


def test_compression_goes_by_the_bytes(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(lines(3))  # a server that decompressed on the way
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(lines(3, 3)))
    settings = config(tmp_path)
    assert len(contents(settings, plan(settings, tmp_path / ".spool", None))) == 6


def test_same_label_twice_is_told_apart_and_same_file_is_read_once(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(lines(2))
    planned = plan(config(tmp_path / "one", tmp_path / "two"), tmp_path / "spool", None)
    assert [unit.label for unit in planned.units] == ["1/a.jsonl", "2/a.jsonl"]
    planned = plan(config(tmp_path / "one", tmp_path / "one" / "*.jsonl"), tmp_path / "spool", None)
    assert [unit.label for unit in planned.units] == ["a.jsonl"] and "twice" in planned.warnings[0]


def test_globs_and_urls(tmp_path):
    import fsspec

    (tmp_path / "2023" / "x").mkdir(parents=True)
    (tmp_path / "2023" / "x" / "a.jsonl").write_bytes(lines(2))
    planned = plan(config(tmp_path / "20*" / "**" / "*.jsonl"), tmp_path / "spool", None)
    assert [unit.label for unit in planned.units] == ["2023/x/a.jsonl"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/in/a.jsonl", lines(90))
    memory.pipe("/bucket/in/b/c.jsonl.gz", gzip.compress(lines(5)))
    for pattern in ("memory://bucket/in", "memory://bucket/in/**/*.jsonl*"):
        settings = config(pattern)
        planned = plan(settings, tmp_path / "spool", None)
        assert sorted({unit.label for unit in planned.units}) == ["a.jsonl", "b/c.jsonl.gz"]
        assert len(contents(settings, planned)) == 95
    planned = plan(config("memory://bucket/in/a.jsonl"), tmp_path / "spool", None)
    assert {unit.label for unit in planned.units} == {"a.jsonl"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing", "does not exist"),
        ("empty", "holds no files"),
        ("other", "known extensions"),
        ("zero", "no bytes"),
        ("x.bin", "format"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, text):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "a.jsonl").write_text("")
    (tmp_path / "x.bin").write_text("?")
    with pytest.raises(UserError, match=text):
        plan(config(tmp_path / name), tmp_path / "spool", None)


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        plan(config(tmp_path, unit_bytes=4096), tmp_path / "spool", None)
    if os.geteuid():
        (tmp_path / "a.jsonl").unlink()
        (tmp_path / "b.jsonl").write_text("{}")
        (tmp_path / "b.jsonl").chmod(0)
        with pytest.raises(UserError, match=r"b\.jsonl"):
            plan(config(tmp_path), tmp_path / "spool", None)


def test_parquet_units_are_row_groups(tmp_path):
    table = pa.table({"text": [f"row {number} " + "z" * 100 for number in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none", use_dictionary=False)
    settings = config(tmp_path)
    planned = plan(settings, tmp_path / ".spool", None)
    assert 1 < len(planned.units) < 10
    assert contents(settings, planned) == table["text"].to_pylist()


def test_units_survive_json():
    unit = Unit(3, "s", "/p", "l", "jsonl", "", 0, 9, 0, None, ((4, "bad"),))
    assert dataclasses.asdict(Unit(**json.loads(json.dumps(dataclasses.asdict(unit))))) | {
        "damage": ((4, "bad"),)
    } == dataclasses.asdict(unit)


def test_labels_are_posix(tmp_path):
    (tmp_path / "ä" / "中").mkdir(parents=True)
    (tmp_path / "ä" / "中" / "a.jsonl").write_bytes(lines(1))
    assert plan(config(tmp_path), tmp_path / ".spool", None).units[0].label == str(Path("ä/中/a.jsonl").as_posix())
