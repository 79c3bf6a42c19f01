"""`make soak`: seeded damage, kills at random moments and giant pages, through the real command, on the real crawl.

Where the real crawl is absent, a generated one takes its place. Seeds: ZIYA_SOAK_SEEDS=1,2,3 in the environment.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from crawls import ROOT, SHARED, digests, page, prose, record, write_config, write_warc, ziya_data
from oracle_run import check_properties

sys.path.append(str(ROOT / "scripts" / "bench"))
import dirty

pytestmark = pytest.mark.soak
SEEDS = [int(seed) for seed in os.environ.get("ZIYA_SOAK_SEEDS", "1,2,3").split(",")]
MODELS = ROOT / "scripts" / "demo" / "models"
LIMIT = 1 << 20


def rows(out: Path, table: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    paths = sorted((out / table).glob("[0-9]*.parquet"))
    return [row for path in paths for row in pq.read_table(path, columns=columns).to_pylist()]


def sound_crawl(folder: Path, members: int) -> list[Path]:
    """WARC files without damage: so many members of each real file, else generated pages."""
    found = sorted((SHARED / "crawl").glob("docs-*.warc.gz"))
    if not found:
        pages = [record(f"http://a.example/{n}", page(prose(n, "zh" if n % 2 else "en"))) for n in range(members)]
        return [write_warc(folder / "made.warc.gz", pages)]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for path in found:
        parts = [part for part in dirty.members(path.read_bytes()) if len(gzip.decompress(part.data)) < LIMIT // 2]
        paths.append(folder / path.name)
        paths[-1].write_bytes(b"".join(part.data for part in parts[:members]))
    return paths


def pieces(out: Path) -> int:
    """How many pieces of work a run has recorded."""
    return sum(len(names) for _, _, names in os.walk(out / "work" / "done"))


def assert_accounts(out: Path, expected: dict[str, dict[str, Any]]) -> None:
    """Every file of the run: the documents and the damaged ranges that were planted, nothing more, nothing less."""
    documents: dict[str, int] = {}
    for row in rows(out, "measurements", ["file"]):
        documents[row["file"]] = documents.get(row["file"], 0) + 1
    damages: dict[str, list[dict[str, Any]]] = {}
    for row in rows(out, "quarantine"):
        damages.setdefault(row["source"], []).append(row)
    for name, entry in expected.items():
        where = f"{name}: {entry}, found {damages.get(name, [])}"
        assert documents.get(name, 0) == entry["documents"], where
        ranges = [(first, first + length) for first, length in entry["quarantined"]]
        hit = set()
        for damage in damages.get(name, []):
            inside = [number for number, (first, end) in enumerate(ranges) if first <= damage["offset"] < end]
            assert inside, f"a damage outside of the planted ranges; {where}"
            hit.update(inside)
        assert hit == set(range(len(ranges))), f"a planted range without a damage; {where}"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_kind_of_dirt_is_accounted(seed: int, tmp_path: Path) -> None:
    """One run over a damaged copy of every kind and format; workers and cuts change with the seed."""
    rng = random.Random(seed)
    expected: dict[str, dict[str, Any]] = {}
    for source in sound_crawl(tmp_path / "sound", 120):
        expected |= dirty.mutate(source, tmp_path / "in", seed, None, 1 << 18, LIMIT)
    lines = "".join(
        json.dumps({"text": prose(n, "zh" if n % 2 else "en"), "url": f"http://j.example/{n}"}, ensure_ascii=False) + "\n"
        for n in range(60)
    ).encode()
    for name, data in (("lines.jsonl", lines), ("packed.jsonl.gz", gzip.compress(lines, mtime=0))):
        (tmp_path / name).write_bytes(data)
        expected |= dirty.mutate(tmp_path / name, tmp_path / "in", seed, None, 1 << 18, LIMIT)
    config = write_config(
        tmp_path / "config.json",
        sources=[{"name": "dirt", "paths": [str(tmp_path / "in")]}],
        scoring={"models": {lang: str(MODELS / f"{lang}.klm") for lang in ("en", "zh")}},
        rules={"preset": "ziya2"},
        read={"unit_bytes": rng.choice([1 << 14, 1 << 17, 64 << 20]), "record_limit_bytes": LIMIT},
    )
    ziya_data("run", config, "--output", tmp_path / "out", "--workers", rng.choice([1, 2, 3]))
    check_properties(tmp_path / "out")
    assert_accounts(tmp_path / "out", expected)
    errors = {row["error"] for row in rows(tmp_path / "out", "quarantine")}
    assert not any("measuring failed" in error or "extraction failed" in error for error in errors), errors


@pytest.mark.parametrize("seed", SEEDS)
def test_kills_at_random_moments_change_no_byte(seed: int, tmp_path: Path) -> None:
    """SIGKILL to the whole process group, again and again, with 1, 2 and 3 workers, then to the end."""
    rng = random.Random(seed)
    for source in sound_crawl(tmp_path / "sound", 250):
        dirty.mutate(source, tmp_path / "in", seed, ["mixed"], 1 << 18, LIMIT)
    config = write_config(
        tmp_path / "config.json",
        sources=[{"name": "dirt", "paths": [str(tmp_path / "in")]}],
        scoring={"models": {lang: str(MODELS / f"{lang}.klm") for lang in ("en", "zh")}},
        rules={"preset": "ziya2"},
        read={"unit_bytes": 1 << 16, "record_limit_bytes": LIMIT},
        tokenizer={"path": str(MODELS / "tokenizer.model")},
        packing={"sequence_length": 512},
    )
    ziya_data("run", config, "--output", tmp_path / "calm", "--workers", 2)
    wanted, whole = digests(tmp_path / "calm"), pieces(tmp_path / "calm")
    for workers in (1, 2, 3):
        out, kills = tmp_path / f"killed-{workers}", 0
        command = [sys.executable, "-m", "data_factory.cli", "run", str(config), "--output", str(out)]
        for _ in range(6):
            process = subprocess.Popen(
                [*command, "--workers", str(workers)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            done = pieces(out)
            goal = done + rng.uniform(0, 0.5) * (whole - done)  # by work, not by time: other load does not matter
            while process.poll() is None and pieces(out) < goal:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            process.wait()
        assert kills, "no run was killed before its end"
        ziya_data("run", config, "--output", out, "--workers", workers)
        assert digests(out) == wanted, f"{workers} workers, {kills} kills"


@pytest.mark.parametrize("kind", ["html", "html-allowed", "text"])
def test_a_200_megabyte_line_loses_nothing_else(kind: str, tmp_path: Path) -> None:
    """As a page (dropped by its size, or read when the limit allows it) and as a JSON line."""
    size = 200 << 20
    settings = ["read.html_limit_bytes=268435456"] if kind == "html-allowed" else []
    if kind == "text":
        lines = [json.dumps({"text": prose(n, "en"), "url": f"http://j.example/{n}"}) + "\n" for n in range(20)]
        (tmp_path / "sound.jsonl").write_text("".join(lines), encoding="utf-8")
        expected = dirty.mutate(tmp_path / "sound.jsonl", tmp_path / "in", 1, ["giant_line"], size)
    else:
        pages = [record(f"http://a.example/{n}", page(prose(n, "en"))) for n in range(20)]
        write_warc(tmp_path / "sound.warc.gz", pages)
        expected = dirty.mutate(tmp_path / "sound.warc.gz", tmp_path / "in", 1, ["giant_line"], size)
    config = write_config(
        tmp_path / "config.json",
        sources=[{"name": "dirt", "paths": [str(tmp_path / "in")]}],
        rules={"preset": "ziya2"},
        read={},
    )
    ziya_data("run", config, "--output", tmp_path / "out", "--workers", 1, *settings)
    check_properties(tmp_path / "out")
    assert_accounts(tmp_path / "out", expected)
    giant = [row for row in rows(tmp_path / "out", "decisions") if "j.example" not in row["url"] and "a.example" not in row["url"]]
    assert len(giant) == 1 and not giant[0]["kept"]
    rules = {reason["rule"] for reason in giant[0]["reasons"]}
    assert rules == {"read.html_limit_bytes"} if kind == "html" else any(rule.startswith("rules.") for rule in rules)
    others = [row for row in rows(tmp_path / "out", "documents", ["id", "url"]) if "example" in row["url"]]
    assert len(others) >= 20
