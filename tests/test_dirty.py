"""scripts/bench/dirty.py: its accounts must hold for the real readers, on WARC and JSONL made here."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_factory.config import DataConfig
from data_factory.sources import Damage, Record, read_unit
from data_factory.units import plan
from ziya.config import parse
from ziya.errors import UserError

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "scripts" / "bench"), str(ROOT / "scripts" / "demo")]
import dirty  # noqa: E402
from crawl_bytes import iso, record, record_id, response  # noqa: E402

LIMIT = 1 << 18
SHARED = ROOT.parent / "shared" / "data" / "crawl"


def make_warc(path: Path, pages: int = 12) -> list[str]:
    data, keys = b"", []
    for number in range(pages):
        for kind in ("request", "response"):
            url = f"http://a.example/{number}"
            key = record_id(kind, url)
            text = f"<html><body><p>{number}: {'河边的小路。' * (number + 3)} {'plain words ' * 20}</p></body></html>"
            block = response(text.encode()) if kind == "response" else b"GET / HTTP/1.1\r\n\r\n"
            if kind == "response":
                keys.append(key)
            raw = record(kind, url, key, iso(number), block, f"application/http; msgtype={kind}")
            data += gzip.compress(raw, 6, mtime=0)
    path.write_bytes(data)
    return keys


def read_all(
    path: Path, work: Path, limit: int = LIMIT, unit_bytes: int = 64 << 20
) -> tuple[list[Record], list[Damage]]:
    raw = {
        "sources": [{"name": "a", "paths": [str(path)]}],
        "read": {"record_limit_bytes": limit, "unit_bytes": unit_bytes},
    }
    config = parse(DataConfig, raw, "test")
    records, damages = [], []
    for unit in plan(config, work / "spool", None).units:
        for item in read_unit(unit, config.sources[0], config.read, Counter()):
            (damages if isinstance(item, Damage) else records).append(item)
    return records, damages


def assert_account(expected: dict, records: list[Record], damages: list[Damage]) -> None:
    assert len(records) == expected["documents"]
    assert not set(expected["lost"]) & {item.key for item in records}
    ranges = [(first, first + length) for first, length in expected["quarantined"]]
    held = [
        next((number for number, (first, end) in enumerate(ranges) if first <= item.offset < end), None)
        for item in damages
    ]
    assert None not in held, "a damage outside of the planted ranges"
    assert set(held) == set(range(len(ranges))), "a planted range without a damage"


@pytest.mark.parametrize("kind", [*dirty.WARC_KINDS, "mixed"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_warc_accounts_hold_for_the_reader(kind: str, seed: int, tmp_path: Path) -> None:
    keys = make_warc(tmp_path / "sound.warc.gz")
    (name, expected), *_ = dirty.mutate(
        tmp_path / "sound.warc.gz", tmp_path / "out", seed, [kind], 1 << 17, LIMIT
    ).items()
    records, damages = read_all(tmp_path / "out" / name, tmp_path)
    assert_account(expected, records, damages)
    assert expected["documents"] == len(keys) - len(expected["lost"]) + expected["added"]


@pytest.mark.parametrize("kind", ["flip", "cut_head", "garbage", "mixed"])
def test_warc_accounts_do_not_depend_on_the_cuts(kind: str, tmp_path: Path) -> None:
    make_warc(tmp_path / "sound.warc.gz", 30)
    (name, expected), *_ = dirty.mutate(tmp_path / "sound.warc.gz", tmp_path / "out", 5, [kind], 1 << 16, LIMIT).items()
    records, damages = read_all(tmp_path / "out" / name, tmp_path, unit_bytes=4096)
    assert_account(expected, records, damages)


def test_expected_tells_what_each_kind_does(tmp_path: Path) -> None:
    make_warc(tmp_path / "sound.warc.gz")
    found = {
        entry["kind"]: entry
        for entry in dirty.mutate(tmp_path / "sound.warc.gz", tmp_path / "out", 7, None, 1 << 12, LIMIT).values()
    }
    assert set(found) == {*dirty.WARC_KINDS, "mixed"}
    for kind in ("flip", "cut_head", "long_length", "short_length"):
        assert len(found[kind]["lost"]) == 1 and len(found[kind]["quarantined"]) == 1
    for kind in ("garbage", "not_warc", "bomb"):
        assert not found[kind]["lost"] and len(found[kind]["quarantined"]) == 1
    for kind in ("duplicate", "giant_line", "entities"):
        assert found[kind]["added"] == 1 and not found[kind]["quarantined"]
    assert found["invalid_utf8"] == {"kind": "invalid_utf8", "documents": 12, "lost": [], "added": 0, "quarantined": []}
    assert found["truncate"]["lost"] and found["truncate"]["documents"] == 12 - len(found["truncate"]["lost"])


def test_same_seed_same_bytes_and_other_seed_other_bytes(tmp_path: Path) -> None:
    make_warc(tmp_path / "sound.warc.gz")
    copies = []
    for folder, seed in (("a", 7), ("b", 7), ("c", 8)):
        dirty.mutate(tmp_path / "sound.warc.gz", tmp_path / folder, seed, ["flip"], 1 << 12, LIMIT)
        copies.append((tmp_path / folder / "sound.flip.warc.gz").read_bytes())
    assert copies[0] == copies[1] != copies[2]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("kind", [*dirty.JSONL_KINDS, "mixed"])
def test_jsonl_accounts_hold_for_the_reader(kind: str, suffix: str, tmp_path: Path) -> None:
    rows = [
        json.dumps({"url": f"http://a.example/{n}", "text": f"第{n}行 line {n}"}, ensure_ascii=False) for n in range(20)
    ]
    data = ("\n".join(rows) + "\n").encode()
    path = tmp_path / f"sound.{suffix}"
    path.write_bytes(gzip.compress(data, mtime=0) if suffix.endswith("gz") else data)
    (name, expected), *_ = dirty.mutate(path, tmp_path / "out", 3, [kind], 1 << 16, LIMIT).items()
    records, damages = read_all(tmp_path / "out" / name, tmp_path)
    assert len(records) == expected["documents"]
    if suffix == "jsonl":  # offsets are positions in the input file: for .gz, ranges of the inflated lines do not apply
        assert_account(expected, records, damages)
    else:
        assert len(damages) == len(expected["quarantined"])


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    make_warc(tmp_path / "sound.warc.gz")
    with pytest.raises(UserError, match="unknown kind 'burn'"):
        dirty.mutate(tmp_path / "sound.warc.gz", tmp_path, 1, ["burn"])
    (tmp_path / "broken.warc.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="sound"):
        dirty.mutate(tmp_path / "broken.warc.gz", tmp_path, 1, ["flip"])
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(UserError, match="not a"):
        dirty.mutate(tmp_path / "a.txt", tmp_path, 1)


@pytest.mark.skipif(not (SHARED / "whirlwind.warc.gz").exists(), reason="needs the real crawl in ../shared/data/crawl")
@pytest.mark.parametrize("name", ["whirlwind.warc.gz", "whirlwind.warc.wet.gz"])
def test_a_real_archive(name: str, tmp_path: Path) -> None:
    sound = [item.key for item in read_all(SHARED / name, tmp_path)[0]]
    parts = dirty.members((SHARED / name).read_bytes())
    assert [key for part in parts for key in part.keys] == sound
