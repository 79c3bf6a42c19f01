"""The demo crawl: what it promises, its records under the real readers, and a checker that finds misses."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_factory.batches import TextBatch
from data_factory.config import DataConfig, Fuzzy, Language, load_config
from data_factory.dedup.keys import simhash
from data_factory.language import identify, language_codes
from data_factory.sources import Damage, read_unit
from data_factory.units import plan
from ziya.config import apply_overrides, parse, read_yaml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts" / "demo"))
import check  # noqa: E402
from crawl_pages import Library, special, topics  # noqa: E402
from make_crawl import make_crawl  # noqa: E402


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crawl")
    make_crawl(folder, 7, 420)
    return folder


@pytest.fixture(scope="module")
def expected(crawl: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (crawl / "expected.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_project_text_is_large_and_never_repeats(language: str) -> None:
    found = topics(language)
    paragraphs = [block for topic in found for section in topic.sections for block in section]
    assert all(len(topic.sections) == 7 for topic in found)
    assert len(paragraphs) >= 120
    assert len(set(paragraphs)) == len(paragraphs)
    marks = "。！？?”" if language == "zh" else '.!?"'
    prose = [block for block in paragraphs if not block.startswith("```")]
    assert all(block[-1] in marks for block in prose)
    sentences = Counter(
        sentence for block in prose for sentence in block.replace("。", ".").split(".") if len(sentence) > 8
    )
    assert sentences.most_common(1)[0][1] == 1


def test_same_arguments_same_bytes_other_seed_other_bytes(crawl: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    make_crawl(tmp_path / "again", 7, 420)
    make_crawl(tmp_path / "other", 8, 420)
    assert contents(crawl) == contents(tmp_path / "again")
    assert contents(crawl) != contents(tmp_path / "other")
    with pytest.raises(ValueError, match="too few"):
        make_crawl(tmp_path / "small", 7, 50)
    with pytest.raises(ValueError, match="too many"):
        make_crawl(tmp_path / "large", 7, 5000)


def test_the_cut_of_the_paper_falls_between_good_and_nonsense(expected: list[dict[str, Any]]) -> None:
    ranked = [entry for entry in expected if entry["file"].startswith("web/")]
    for language in ("en", "zh"):
        fates = Counter(
            "good" if entry["fate"] in ("kept", "one_of_group") else entry["reason"][0]
            for entry in ranked
            if entry.get("language") == language
        )
        assert fates["good"] > 60 and fates["good"] * 2 == fates["scoring.medium"] * 3


def test_the_readers_find_every_record_and_every_damage(
    crawl: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    raw = apply_overrides(
        read_yaml(ROOT / "configs" / "data" / "demo.yaml"), ["scoring.enabled=false", "scoring.models={}"]
    )
    for source in raw["sources"]:
        source["paths"] = [str(crawl / Path(path).name) for path in source["paths"]]
    config = parse(DataConfig, raw, "demo")
    places, damages, counts = {}, [], Counter[str]()
    for unit in plan(config, tmp_path / "spool", None).units:
        source = next(item for item in config.sources if item.name == unit.source)
        for item in read_unit(unit, source, config.read, counts):
            if isinstance(item, Damage):
                damages.append((check.name_of(unit.label), item.offset))
            else:
                places[check.name_of(unit.label), item.offset] = item
    planted = {(check.name_of(entry["file"]), entry["offset"]): entry for entry in expected}
    documents = {place for place, entry in planted.items() if entry["fate"] not in ("quarantined", "other")}
    assert set(places) == documents
    assert sorted(damages) == sorted(place for place, entry in planted.items() if entry["fate"] == "quarantined")
    assert counts["other_records"] == sum(entry["fate"] == "other" for entry in expected)
    for place in documents:
        record, entry = places[place], planted[place]
        assert record.key == entry.get("key", record.key) and record.url == entry["url"]
        if record.drop:
            assert record.drop in entry["reason"]
        elif "key" not in entry and entry["fate"] == "kept":
            assert all(wanted in record.prompt + record.content for wanted in entry["contains"])


def test_articles_are_far_apart_and_planted_near_duplicates_are_near() -> None:
    import random

    rng = random.Random(7)
    for language in ("en", "zh"):
        library = Library(language, rng)
        articles = [library.article() for _ in range(126)] + [
            special(language, name) for name in ("code", "formulas", "medical")
        ]
        texts = [article.text() for article in articles]
        long = [library.collection(number).text() for number in range(3)]
        batch = TextBatch.from_strings(texts + long)
        codes, scores = identify(batch, Language())
        assert set(codes) == {language} and min(scores) > 0.65
        prints, shingles = simhash(batch, language_codes(codes), Fuzzy())
        assert min(shingles) >= Fuzzy().min_shingles
        distances = [int(a ^ b).bit_count() for a, b in itertools.combinations(prints, 2)]
        assert min(distances) > 3
        with pytest.raises(IndexError):
            library.article()  # every triple was handed out once


def test_near_duplicates_are_within_the_searched_distance() -> None:
    import random

    from crawl_plants import duplicates
    from resiliparse.extract.html2text import extract_plain_text

    rng = random.Random(7)
    groups: dict[str, list[str]] = {}
    for plant in duplicates({language: Library(language, rng) for language in ("en", "zh")}):
        groups.setdefault(plant.expected["group"], []).append(
            extract_plain_text(plant.body.decode(), main_content=True)
        )
    near = {name: texts for name, texts in groups.items() if name.startswith("near")}
    assert len(near) == 6
    for name, texts in near.items():
        codes = np.full(2, int("zh" in name), np.uint8)
        prints, _ = simhash(TextBatch.from_strings(texts), codes, Fuzzy())
        assert texts[0] != texts[1] and int(prints[0] ^ prints[1]).bit_count() <= 3


def test_demo_config_is_valid() -> None:
    config = load_config(ROOT / "configs" / "data" / "demo.yaml", [])
    assert [source.name for source in config.sources] == ["web", "board", "reference", "tasks"]
    for path in (*config.url.domain_lists, *config.url.hard_word_lists, *config.url.soft_word_lists):
        assert (ROOT / path).is_file()


def write_run(out: Path, expected: list[dict[str, Any]], change: dict[str, Any]) -> None:
    """A run that meets every fate, but for `change`: url -> (kept, reasons, text), or None to leave the record out."""
    measured, decisions, quarantine, kept = [], [], [], []
    winners: dict[str, str] = {}
    for number, entry in enumerate(expected):
        name, url = f"id{number}", entry.get("url", "")
        if entry["fate"] == "quarantined":
            quarantine.append({"source": entry["file"], "offset": entry["offset"], "length": 1, "error": "x"})
        if entry["fate"] in ("quarantined", "other") and url not in change:
            continue
        first = entry["fate"] == "one_of_group" and winners.setdefault(entry["group"], name) == name
        is_kept = entry["fate"] == "kept" or first
        reasons = [] if is_kept else entry["reason"][:1]
        text = " ".join(entry.get("contains", []))
        if url in change:
            if change[url] is None:
                continue
            is_kept, reasons, text = change[url]
        measured.append({"id": name, "file": entry["file"], "offset": entry["offset"], "key": entry.get("key", "")})
        winner = winners.get(entry.get("group", ""))
        rows = [{"rule": rule, "value": 1.0, "threshold": 0.0, "winner": winner} for rule in reasons]
        decisions.append({"id": name, "url": url, "kept": is_kept, "reasons": rows})
        if is_kept:
            kept.append({"id": name, "text": text})
    for name, rows in {
        "measurements": measured,
        "decisions": decisions,
        "quarantine": quarantine,
        "kept": kept,
    }.items():
        (out / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), out / name / "000000.parquet")


def test_the_checker_passes_a_perfect_run(crawl: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    write_run(tmp_path, expected, {})
    assert check.check(tmp_path, crawl) == ([], len(expected))


@pytest.mark.parametrize(
    ("url", "outcome", "told"),
    [
        ("http://zh.good.example/poem.html", (False, ["rules.max_short_lines"], ""), "dropped: rules.max_short_lines"),
        ("http://zh.good.example/poem.html", None, "not among the records"),
        ("http://zh.notes.example/0", (True, [], "加微信"), "the text still has '加微信'"),
        ("http://img.example/logo.png", (True, [], ""), "kept"),
        ("http://img.example/logo.png", (False, ["read.empty"], ""), "dropped: read.empty"),
        ("http://seed0.example/robots.txt", (False, ["read.empty"], ""), "counted as a document"),
        ("http://mirror1.example/zh/0", (True, [], ""), "2 of the group are kept"),
        ("http://mirror1.example/zh/0", (False, ["dedup.url"], ""), "dropped: dedup.url"),
    ],
)
def test_the_checker_finds_a_miss(
    url: str, outcome: Any, told: str, crawl: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_run(tmp_path, expected, {url: outcome})
    misses, _ = check.check(tmp_path, crawl)
    assert misses and all(entry.get("url") == url or entry["fate"] == "one_of_group" for entry, _ in misses)
    assert any(told in miss for _, miss in misses)


def test_the_checker_finds_unexplained_and_missing_quarantine(
    crawl: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_run(tmp_path, expected, {})
    path = tmp_path / "quarantine" / "000000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["offset"] = 0
    pq.write_table(pa.Table.from_pylist(rows), path)
    told = [miss for _, miss in check.check(tmp_path, crawl)[0]]
    assert "no row in quarantine" in told and any("unexpected row" in miss for miss in told)
