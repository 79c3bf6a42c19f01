"""Whole runs over mixed inputs and with the selectable methods: every reader, MinHash, earlier runs' URLs, packs, decide."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import zstandard
from crawls import ROOT, crawl, digests, page, prose, record, write_config, write_warc

from data_factory import cli
from ziya.packs import PackReader

MODELS = ROOT / "scripts" / "demo" / "models"
TOKENIZER = MODELS / "tokenizer.model"
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10"><siteinfo><sitename>W</sitename>
<dbname>zhwiki</dbname><base>https://zh.wikipedia.org/wiki/Main</base></siteinfo>\n"""


def ziya_data(*arguments: object) -> None:
    """The command inside this process (its workers are processes all the same): saves a start for each of many runs."""
    assert cli.main([str(argument) for argument in arguments]) == 0, arguments


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    return [row for path in sorted((out / table).glob("[0-9]*.parquet")) for row in pq.read_table(path).to_pylist()]


def summary(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return value


def both(number: int) -> str:
    """Prose in one of the two languages."""
    return prose(number, "zh" if number % 2 else "en")


def responses(first: int, count: int) -> list[bytes]:
    return [record(f"http://web.example/{n}", page(both(n), "")) for n in range(first, first + count)]


def conversion(number: int) -> bytes:
    """A WET record."""
    body = both(number).encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:wet-{number}>\r\n"
        f"WARC-Target-URI: http://wet.example/{number}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def wiki_page(number: int, namespace: int = 0, extra: str = "") -> str:
    return (
        f"<page><title>T{number}</title><ns>{namespace}</ns><id>{number}</id>{extra}<revision><id>9</id>"
        f"<timestamp>2023-11-03T00:00:00Z</timestamp><model>wikitext</model>"
        f'<text xml:space="preserve">{both(number)}</text></revision></page>\n'
    )


def lines(numbers: range) -> bytes:
    entries = [{"text": both(n), "url": f"http://rows.example/{n}", "key": f"k{n}"} for n in numbers]
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every input format under five named sources, cut into many units, and a finished run over them."""
    folder = tmp_path_factory.mktemp("mixed")
    web = folder / "web"
    write_warc(web / "a.warc.gz", [*responses(1000, 12), record("http://web.example/gone", b"x", status=404)])
    write(web / "b.warc.zst", b"".join(zstandard.compress(item) for item in responses(1100, 12)))
    write(web / "c.warc", b"".join(responses(1200, 12)))
    write(web / "d.warc.wet.gz", b"".join(gzip.compress(conversion(n), mtime=0) for n in range(1300, 1312)))
    write(web / "one-member.warc.gz", gzip.compress(b"".join(responses(1400, 12)), mtime=0))
    write(folder / "rows" / "a.jsonl", lines(range(2000, 2012)) + b'{"url": "http://rows.example/no-text"}\n')
    write(folder / "rows" / "b.jsonl.gz", gzip.compress(lines(range(2100, 2112)), mtime=0))
    write(folder / "rows" / "c.jsonl.zst", zstandard.compress(lines(range(2200, 2212))))
    table = pa.table({"body": [both(n) for n in range(3000, 3020)], "url": [f"http://table.example/{n}" for n in range(20)]})
    (folder / "table").mkdir()
    pq.write_table(table, folder / "table" / "a.parquet", row_group_size=6)
    dump = [wiki_page(n) for n in range(4000, 4010)] + [wiki_page(1, 1), wiki_page(2, extra='<redirect title="x" />')]
    write(folder / "wiki" / "a.xml", (HEAD + "".join(dump) + "</mediawiki>").encode())
    many = [HEAD, *(wiki_page(n) + wiki_page(n + 1) for n in range(4100, 4110, 2)), "</mediawiki>"]
    write(folder / "wiki" / "b.xml.bz2", b"".join(bz2.compress(part.encode()) for part in many))
    single = HEAD + "".join(wiki_page(n) for n in range(4200, 4208)) + "</mediawiki>"
    write(folder / "wiki" / "c.xml.bz2", bz2.compress(single.encode()))
    config = write_config(
        folder / "config.json",
        sources=[
            {"name": "web", "paths": [str(web)]},
            {"name": "rows", "paths": [str(folder / "rows" / "*")], "kind": "reference", "id_field": "key"},
            {"name": "table", "paths": [str(folder / "table")], "format": "parquet", "text_field": "body"},
            {"name": "wiki", "paths": [str(folder / "wiki")], "kind": "reference"},
        ],
        read={"unit_bytes": 4096},
        normalize={"to_simplified": False},  # the made-up words of the prose hold Traditional characters
    )
    ziya_data("run", config, "--output", folder / "out", "--workers", 2)
    return {"folder": folder, "config": config, "out": folder / "out"}


def test_every_format_is_accounted(mixed: dict[str, Any]) -> None:
    value = summary(mixed["out"])
    assert value["documents"] == {"in": 61 + 37 + 20 + 30, "kept": 60 + 36 + 20 + 28, "dropped": 3, "quarantined": 1}
    assert value["reasons"] == {"read.namespace": 1, "read.redirect": 1, "read.status": 1}
    kept: dict[str, int] = {}
    for row in rows(mixed["out"], "kept"):
        kept[row["source"]] = kept.get(row["source"], 0) + 1
    assert kept == {"web": 60, "rows": 36, "table": 20, "wiki": 28}
    (damage,) = rows(mixed["out"], "quarantine")
    assert damage["source"] == "a.jsonl" and damage["offset"] == len(lines(range(2000, 2012)))


def test_every_text_arrives_whole_and_once(mixed: dict[str, Any]) -> None:
    texts = [row["text"] for row in rows(mixed["out"], "kept")]
    numbers = [
        *range(1000, 1012), *range(1100, 1112), *range(1200, 1212), *range(1300, 1312), *range(1400, 1412),
        *range(2000, 2012), *range(2100, 2112), *range(2200, 2212), *range(3000, 3020),
    ]  # fmt: skip
    wanted = [both(number) for number in numbers]
    wanted += [f"T{n}" + both(n) for n in (*range(4000, 4010), *range(4100, 4110), *range(4200, 4208))]
    wanted = sorted("".join(text.split()) for text in wanted)
    assert sorted("".join(text.split()) for text in texts) == wanted


def test_cuts_and_workers_change_nothing(mixed: dict[str, Any], tmp_path: Path) -> None:
    ziya_data("run", mixed["config"], "--output", tmp_path / "one", "--workers", 1)
    assert digests(tmp_path / "one") == digests(mixed["out"])
    ziya_data("run", mixed["config"], "--output", tmp_path / "big", "--workers", 1, "read.unit_bytes=67108864")
    assert len(list((tmp_path / "big" / "kept").glob("*"))) == 12 < len(list((mixed["out"] / "kept").glob("*")))
    for table in ("decisions", "kept", "quarantine"):
        assert repr(rows(tmp_path / "big", table)) == repr(rows(mixed["out"], table))  # NaN is not equal to itself


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ten texts; of each of the first four there are two near copies, of the fifth three equal ones."""
    folder = tmp_path_factory.mktemp("copies")
    entries = []
    for number in range(10):
        text = both(number)
        variants = [text]
        if number < 4:
            old = "，" if number % 2 else ", as "
            variants += [text.replace(old, f"{old}那么" if number % 2 else f"{old}all ", 1), text.replace(old, f" {old}", 1) + " x9"]
        if number == 4:
            variants *= 4
        entries += [{"text": item, "url": f"http://copies.example/{number}/{k}"} for k, item in enumerate(variants)]
    write(folder / "in.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in entries).encode())
    config = write_config(folder / "config.json", sources=[{"name": "a", "paths": [str(folder / "in.jsonl")]}])
    return {"folder": folder, "config": config, "count": len(entries)}


def test_minhash_finds_planted_near_duplicates_for_any_workers(copies: dict[str, Any], tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, workers in zip(outs, (1, 2), strict=True):
        ziya_data("run", copies["config"], "--output", out, "--workers", workers, "dedup.fuzzy.method=minhash")
    assert digests(outs[0]) == digests(outs[1])
    by_text: dict[str, list[dict[str, Any]]] = {}
    for row in rows(outs[0], "decisions"):
        by_text.setdefault(row["url"].split("/")[3], []).append(row)
    for number, group in by_text.items():
        kept = [row for row in group if row["kept"]]
        assert len(kept) == 1 and kept[0]["copies"] == len(group), number
        for row in group:
            assert row["kept"] or {reason["winner"] for reason in row["reasons"]} == {kept[0]["id"]}
    reasons = summary(outs[0])["reasons"]
    assert reasons == {"dedup.exact": 3, "dedup.fuzzy": 8}
    assert all(
        0.8 <= reason["value"] <= 1 and reason["threshold"] == 0.8
        for row in rows(outs[0], "decisions") for reason in row["reasons"] if reason["rule"] == "dedup.fuzzy"
    )  # fmt: skip


def test_keep_copies_keeps_up_to_k(copies: dict[str, Any], tmp_path: Path) -> None:
    for method in ("simhash", "minhash"):
        out = tmp_path / method
        ziya_data("run", copies["config"], "--output", out, "dedup.keep_copies=2", f"dedup.fuzzy.method={method}", "dedup.fuzzy.distance=3")
        decisions = rows(out, "decisions")
        fourth = [row for row in decisions if "/4/" in row["url"]]
        assert sum(row["kept"] for row in fourth) == 2 and sorted(row["copies"] for row in fourth) == [0, 0, 1, 3]
        assert sum(row["copies"] for row in decisions) == copies["count"]


def test_earlier_runs_pages_are_dropped_and_a_run_never_sees_itself(tmp_path: Path) -> None:
    crawl(tmp_path / "crawl", pages=12)
    config = write_config(tmp_path / "config.json")
    first = ("run", config, "--input", tmp_path / "crawl", "--output", tmp_path / "first", "--workers", 1)
    ziya_data(*first)
    before = digests(tmp_path / "first")
    ziya_data(*first)
    assert digests(tmp_path / "first") == before, "running again changed something"
    shutil.copytree(tmp_path / "crawl", tmp_path / "later")
    write_warc(tmp_path / "later" / "new.warc.gz", responses(7000, 3))
    fresh = {f"http://web.example/{n}" for n in (7000, 7001, 7002)}
    bloom = tmp_path / "first" / "urls.bloom"
    second = ("run", config, "--input", tmp_path / "later", "--output", tmp_path / "second", f"dedup.seen_urls=[{bloom}]")
    ziya_data(*second)
    kept = {row["url"] for row in rows(tmp_path / "first", "kept")}
    seen = {row["url"]: row for row in rows(tmp_path / "second", "decisions")}
    assert kept and all([reason["rule"] for reason in seen[url]["reasons"]] == ["dedup.seen_urls"] for url in kept)
    assert all("earlier run" in reason["winner"] for url in kept for reason in seen[url]["reasons"])
    # A filter knows URLs only: the twin of a page that the first run kept is kept now, under its own URL.
    twins = {row["url"] for row in rows(tmp_path / "first", "decisions") if row["stage"] == "deduplicate"}
    assert fresh <= {row["url"] for row in rows(tmp_path / "second", "kept")} <= fresh | twins
    assert 0 < summary(tmp_path / "second")["duplicates"]["expected_false_drops"] < 1e-3
    after = digests(tmp_path / "second")
    ziya_data(*second)
    assert digests(tmp_path / "second") == after
    ziya_data(*second, "--restart")
    assert digests(tmp_path / "second") == after, "a restarted run saw its own file"


def test_frequent_lines_are_cut(tmp_path: Path) -> None:
    footer = "Back to the front page of the valley chronicle", "返回山谷编年史的首页继续阅读"
    entries = [{"text": f"{both(n)}\n{footer[n % 2]} {10 + n}"} for n in range(24)]
    write(tmp_path / "in.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in entries).encode())
    config = write_config(tmp_path / "config.json", sources=[{"name": "a", "paths": [str(tmp_path / "in.jsonl")]}])
    ziya_data("run", config, "--output", tmp_path / "out", "dedup.lines.max_documents=11")
    kept = rows(tmp_path / "out", "kept")
    assert len(kept) == 24 and not any(line in row["text"] for row in kept for line in footer)
    ziya_data("decide", tmp_path / "out", "dedup.lines.max_documents=12")
    kept = rows(tmp_path / "out", "kept")
    assert all(footer[n % 2] in row["text"] for n, row in enumerate(kept))


def test_supervised_pairs_become_whole_packs(tmp_path: Path) -> None:
    asks = [f"第{n}座桥是谁修的？" if n % 2 else f"Who built bridge number {n}?" for n in range(40)]
    entries = [
        {"ask": ask, "answer": both(n)[: 40 + 13 * n], "kind": "qa" if n % 3 else "story"} for n, ask in enumerate(asks)
    ]
    write(tmp_path / "in.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in entries).encode())
    source = {
        "name": "tasks", "paths": [str(tmp_path / "in.jsonl")], "kind": "supervised", "text_field": "answer",
        "prompt_field": "ask", "task_field": "kind", "steps": ["normalize"],
    }  # fmt: skip
    config = write_config(tmp_path / "config.json", sources=[source])
    length = 256
    ziya_data("run", config, "--output", tmp_path / "out", f"tokenizer.path={TOKENIZER}", f"packing.sequence_length={length}")
    packs = tmp_path / "out" / "packs"
    reader = PackReader(packs / "tasks")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    pieces = pq.read_table(packs / "tasks.documents.parquet").to_pylist()
    left_out = pq.read_table(packs / "tasks.dropped.parquet").to_pylist()
    kept = {row["id"]: row for row in rows(tmp_path / "out", "kept")}
    packed = [piece for piece in pieces if piece["id"]]
    assert len(kept) == 40 and len(packed) + len(left_out) == 40 and len({piece["id"] for piece in packed}) == len(packed)
    for sample in range(len(reader)):
        assert len(reader.sample(sample)) == length
        mine = [piece for piece in pieces if piece["sample"] == sample]
        assert [piece["tokens"] for piece in mine] == reader.piece_lengths(sample).tolist()
        assert len({piece["task"] for piece in mine if piece["id"]}) == 1, "tasks share a sample"
    for number, piece in enumerate(pieces):
        if piece["id"]:
            ids, row = reader.sequence(number).tolist(), kept[piece["id"]]
            assert ids[-1] == tokenizer.eos_id() and tokenizer.decode(ids[:-1]) == row["text"]
            prompt = row["text"].encode()[: row["prompt_bytes"]].decode()
            assert tokenizer.decode(ids[: piece["prompt_tokens"]]).strip() == prompt.strip()
            assert prompt.startswith(("Question:Who built", "问题:第")) and prompt.rstrip().endswith(("Answer:", "回答:"))
    manifest = json.loads((packs / "tasks.json").read_text(encoding="utf-8"))
    assert manifest["mode"] == "whole"
    reader.close()


def test_trafilatura_can_be_selected(tmp_path: Path) -> None:
    crawl(tmp_path / "crawl", pages=8)
    config = write_config(tmp_path / "config.json")
    for name in ("trafilatura", "resiliparse"):
        ziya_data("run", config, "--input", tmp_path / "crawl", "--output", tmp_path / name, f"read.extractor={name}")
    texts = [{row["url"]: row["text"] for row in rows(tmp_path / name, "documents")} for name in ("trafilatura", "resiliparse")]
    assert set(texts[0]) == set(texts[1]) and len(texts[0]) >= 8
    for url, text in texts[0].items():
        assert "".join(text.split())[-40:] == "".join(texts[1][url].split())[-40:], url


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small crawl with scoring, rules, lines, evaluation and packs, and a finished run."""
    folder = tmp_path_factory.mktemp("decided")
    twins = [f"{both(n // 2)}\n\nShare this article with your friends\n\nMail me{n}@example.org" for n in range(30)]
    pages = [record(f"http://a.example/{n}", page(text, "")) for n, text in enumerate(twins)]
    pages += [record(f"http://b.example/{n}", page(both(100 + n), "")) for n in range(30)]
    write_warc(folder / "crawl" / "a.warc.gz", pages)
    config = write_config(
        folder / "config.json",
        sources=[{"name": "crawl", "paths": [str(folder / "crawl")]}],
        scoring={"models": {lang: str(MODELS / f"{lang}.klm") for lang in ("en", "zh")}},
        rules={"preset": "ziya2"},
        tokenizer={"path": str(TOKENIZER)},
        packing={"sequence_length": 128},
    )
    ziya_data("run", config, "--output", folder / "out", "--workers", 1)
    return {"folder": folder, "config": config, "out": folder / "out"}


@pytest.mark.parametrize(
    "settings",
    [
        ["rules.action_lines=off", "rules.mask_email=off", "dedup.lines.max_documents=5"],
        ["scoring.high=10", "scoring.medium=90", "language.min_score={en: 0.3, zh: 0.4}"],
        ["dedup.exact=false", "dedup.fuzzy.distance=0", "dedup.keep_copies=3", "dedup.order=[length, id]"],
        ["evaluation.enabled=false", "tokenizer.path=null"],
        ["sources.0.ratio=0.5", "seed=1", "packing.mode=whole", "packing.sequence_length=512"],
    ],
    ids=["spans", "scoring", "dedup", "no-evaluation-no-packs", "packs"],
)
def test_decide_equals_a_fresh_run_and_goes_back(decided: dict[str, Any], settings: list[str], tmp_path: Path) -> None:
    """Moved settings give the bytes of a fresh run, and moving them back gives the first run's bytes."""
    moved = decided["folder"] / f"moved-{tmp_path.name}"  # beside `out`: stored paths are relative to it
    shutil.copytree(decided["out"], moved)
    ziya_data("decide", moved, *settings, "--workers", 1)
    fresh = decided["folder"] / f"fresh-{moved.name}"
    ziya_data("run", decided["config"], "--output", fresh, *settings, "--workers", 1)
    assert summary(moved)["documents"]["in"] == 60
    assert different(moved, fresh) == []
    assert different(moved, decided["out"]) != []
    stored = json.loads((decided["out"] / "work" / "run.json").read_text(encoding="utf-8"))["config"]
    back = []
    for setting in settings:
        key = setting.partition("=")[0]
        value: Any = stored
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        back.append(f"{key}={json.dumps(str(TOKENIZER) if key == 'tokenizer.path' else value)}")
    ziya_data("decide", moved, *back, "--workers", 1)
    assert different(moved, decided["out"]) == []


def different(one: Path, other: Path) -> list[str]:
    """Files that differ or stand on one side only."""
    left, right = digests(one), digests(other)
    return sorted(name for name in {*left, *right} if left.get(name) != right.get(name))
