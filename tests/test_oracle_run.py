"""The deciding half of whole runs against a slow plain-Python reference, under several settings, and on the real crawl."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawls import ROOT, SHARED, page, prose, record, write_warc, ziya_data
from oracle_run import Oracle, check_properties

from data_factory import cli

MODELS = ROOT / "scripts" / "demo" / "models"
FOOTERS = {
    "en": ["Read the full archive of our village chronicle in the town hall", "Printed on paper from the old mill"],
    "zh": ["欢迎到镇公所查阅本村编年史的全部卷册内容", "本刊采用老磨坊出产的纸张印刷发行"],
}


def golden() -> list[tuple[str, str]]:
    """(language, text) of the golden texts of span rules, those that fire and those that do not."""
    path = ROOT / "tests" / "golden" / "span_rules.jsonl"
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(entry["lang"], entry["text"]) for entry in entries]


def make_pages(seed: int, count: int) -> list[bytes]:
    """WARC records: prose with duplicates of every kind, frequent lines, span-rule texts, code, private data, junk."""
    rng, texts = random.Random(seed), golden()
    rng.shuffle(texts)
    made: list[tuple[str, str, str]] = []  # url, language, text
    for number in range(count):
        lang = "zh" if number % 3 == 0 else "en"
        url, text = f"http://example.org/{lang}/{number}", prose(seed * 10_000 + number, lang, rng.randrange(4, 22))
        kind = number % 11
        if kind == 1 and made:  # the same letters, other marks and case
            _, lang, text = rng.choice(made)
            text = text.upper().replace(",", " -") if lang == "en" else text.replace("，", "、")
        elif kind in (2, 3) and made:  # nearly the same: one word or one clause differs
            _, lang, text = rng.choice(made)
            old, new = ("，", "，据说") if lang == "zh" else (" as ", " just as ")
            text = text.replace(old, new, 1)
        elif kind == 4 and made:  # the same address once more, with another text
            old, lang, _ = rng.choice(made)
            url = old.replace("http://", "https://www.") + "?utm_source=feed"
            text = prose(seed * 10_000 + number, lang)
        elif kind == 5:
            text += f"\n\nWrite to helper{number}@example.org or 13912345{number:03d}.\n\n" + text[:200]
        elif kind == 6 and texts:
            for _ in range(3):
                text += "\n\n" + texts.pop()[1] if texts else ""
        if number % 4 == 0:
            text += "\n\n" + rng.choice(FOOTERS[lang])
        if number % 9 == 0:
            text = text[: rng.randrange(30, 200)]
        made.append((url, lang, text))
    records = []
    for number, (url, _, text) in enumerate(made):
        body = page(text.replace("&", "&amp;").replace("<", "&lt;"), "")
        if number % 7 == 0:
            code = f"<pre>def f{number}(x):\n    return x  # mail root{number}@example.net, 8.8.4.{number}</pre></article>"
            body = body.replace(b"</article>", code.encode())
        if number % 13 == 0:
            body = body.replace(b"<p>", "<p>作者，".encode() if "/zh/" in url else b"<p>Well, ")
        records.append(record(url, body, status=404 if number % 29 == 28 else 200))
    return records


def write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished run over about 150 pages of three sources: ranked web pages, unranked reference text, supervised pairs."""
    folder = tmp_path_factory.mktemp("oracle")
    records = make_pages(3, 150)
    write_warc(folder / "web" / "a.warc.gz", records[:90])
    write_warc(folder / "web" / "b.warc.gz", records[90:])
    reference = [
        {"text": prose(30_000 + n, "zh" if n % 3 == 0 else "en", 4 + n % 18), "url": f"http://ref.example/{n}"}
        for n in range(12)
    ]
    twins = [  # unranked, so that some pair meets in deduplication whatever the models say
        {"text": entry["text"].replace(",", " -").replace("，", "、"), "url": entry["url"] + "/again"}
        for entry in reference[6:]
    ]
    write_lines(folder / "reference.jsonl", reference + twins)
    prompts = [
        f"Who keeps the museum of valley {n}? Ask root{n}@example.org." if n % 2 else f"第{n}座桥谁修的？请问13912345{n:03d}。"
        for n in range(10)
    ]
    asked = [
        {"prompt": prompt, "text": prose(500 + n, "en" if n % 2 else "zh", 4), "task": "qa"}
        for n, prompt in enumerate(prompts)
    ]
    write_lines(folder / "tasks.jsonl", asked)
    (folder / "banned.txt").write_text("ref.example\n", encoding="utf-8")
    config = {
        "sources": [
            {"name": "web", "paths": [str(folder / "web")]},
            {"name": "reference", "paths": [str(folder / "reference.jsonl")], "kind": "reference",
             "steps": ["language", "normalize", "rules", "dedup", "evaluation"]},
            {"name": "tasks", "paths": [str(folder / "tasks.jsonl")], "kind": "supervised", "prompt_field": "prompt",
             "task_field": "task", "steps": ["normalize", "rules"]},
        ],
        "read": {"unit_bytes": 16384},
        "url": {"domain_lists": [str(folder / "banned.txt")], "domain": False},
        "scoring": {"models": {lang: str(MODELS / f"{lang}.klm") for lang in ("en", "zh")}},
        "dedup": {"lines": {"max_documents": 8}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ziya_data("run", folder / "config.json", "--output", folder / "out", "--workers", 2)
    return {"folder": folder, "out": folder / "out"}


def checked(out: Path) -> dict[str, int]:
    check_properties(out)
    return Oracle(out).decide().compare()


def test_defaults_equal_the_reference(made: dict[str, Any]) -> None:
    counts = checked(made["out"])
    assert counts["documents"] >= 170
    for found in (
        "stage read", "stage score", "stage rules", "stage deduplicate", "stage kept", "scoring.medium", "dedup.url",
        "dedup.exact", "dedup.fuzzy", "near pairs", "changed texts", "rules.mask_email", "rules.mask_phone",
        "dedup.lines.max_documents",
    ):  # fmt: skip
        assert counts.get(found), f"the crawl never meets {found}: {counts}"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["scoring.high=12.5", "scoring.medium=77.7", "scoring.ranking_group=source", "scoring.max_perplexity.en=900",
          "scoring.min_perplexity.zh=10", "rules.max_removed_share=0.01", "rules.min_final_chars=300"], "rules.min_final_chars"),
        (["scoring.medium=100", "rules.preset=none", "dedup.keep_copies=2", "dedup.order=[date, length]",
          "dedup.lines.max_documents=4"], "dedup.fuzzy"),
        (["scoring.medium=100", "rules.preset=gopher", "dedup.url=false", "dedup.exact=false", "dedup.fuzzy.distance=1",
          "url.domain=true", "rules.mask_email=off", "language.min_score={en: 0.95, zh: 0.9}"], "url.domain"),
    ],
)  # fmt: skip
def test_moved_thresholds_equal_the_reference(
    made: dict[str, Any], settings: list[str], told: str, tmp_path: Path
) -> None:
    shutil.copytree(made["out"], tmp_path / "out")
    for name in ("banned.txt",):
        shutil.copy(made["folder"] / name, tmp_path / name)
    assert cli.main(["decide", str(tmp_path / "out"), *settings, *model_paths(), "--workers", "1"]) == 0
    counts = checked(tmp_path / "out")
    assert counts.get(told), counts


def model_paths() -> list[str]:
    """A copied run finds its models by relative paths: they are named again."""
    return [f"scoring.models.{lang}={MODELS / f'{lang}.klm'}" for lang in ("en", "zh")]


def test_the_reference_notices_a_changed_table(made: dict[str, Any], tmp_path: Path) -> None:
    """A comparison that cannot fail would prove nothing: one changed cell of each table is noticed."""
    oracle = Oracle(made["out"]).decide()
    oracle.compare()
    for folder, column in (("decisions", "tier"), ("decisions", "copies"), ("kept", "text"), ("keys", "simhash")):
        out = tmp_path / f"{folder}-{column}"
        shutil.copytree(made["out"], out)
        path = next(path for path in sorted((out / folder).glob("*.parquet")) if pq.read_metadata(path).num_rows)
        table = pq.read_table(path)
        values = table[column].to_pylist()
        values[0] = values[0] + 1 if isinstance(values[0], int) else values[0] + "."
        at = table.schema.get_field_index(column)
        pq.write_table(table.set_column(at, table.schema.field(column), pa.array(values, table.schema.field(column).type)), path)
        oracle.out = out
        with pytest.raises(AssertionError):
            oracle.compare()


@pytest.mark.soak
@pytest.mark.skipif(not (SHARED / "crawl").is_dir(), reason="the real crawl (../shared/data/crawl) is not here")
@pytest.mark.parametrize("settings", [[], ["dedup.fuzzy.method=minhash", "dedup.keep_copies=2", "rules.preset=fineweb"]])
def test_the_real_crawl_equals_the_reference(settings: list[str], tmp_path: Path) -> None:
    config = ROOT / "configs" / "data" / "ziya2.yaml"
    ziya_data(
        "run", config, "--input", SHARED / "crawl", "--output", tmp_path / "out", "--workers", 2, *model_paths(), *settings
    )
    counts = checked(tmp_path / "out")
    assert counts["documents"] >= 2900 and counts["dedup.exact"] and counts["dedup.fuzzy"] and counts["changed texts"]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
def test_random_crawls_equal_the_reference(seed: int, tmp_path: Path) -> None:
    """Other pages and random settings each time."""
    rng = random.Random(seed)
    write_warc(tmp_path / "web" / "a.warc.gz", make_pages(100 + seed, 400))
    config = {"sources": [{"name": "web", "paths": [str(tmp_path / "web")]}]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    high = rng.uniform(0, 100)
    settings = [
        f"read.unit_bytes={rng.choice([4096, 20000, 1 << 20])}",
        f"scoring.high={high}", f"scoring.medium={rng.uniform(high, 100)}",
        f"scoring.ranking_group={rng.choice(['language', 'source'])}",
        f"rules.preset={rng.choice(['ziya2', 'gopher', 'c4', 'fineweb', 'refinedweb', 'none'])}",
        f"dedup.keep_copies={rng.choice([1, 1, 2, 3])}",
        f"dedup.order={rng.sample(['tier', 'length', 'date', 'id'], rng.randrange(1, 5))}",
        f"dedup.fuzzy.method={rng.choice(['simhash', 'simhash', 'minhash', 'none'])}",
        "dedup.fuzzy.search_distance=6", f"dedup.fuzzy.distance={rng.randrange(7)}",
        f"dedup.fuzzy.similarity={rng.choice([0.5, 0.7, 0.9])}",
        f"dedup.lines.max_documents={rng.choice([0, 3, 10])}",
        f"dedup.lines.floor={rng.choice([2, 3])}",
    ]  # fmt: skip
    ziya_data("run", tmp_path / "config.json", "--output", tmp_path / "out", *model_paths(), *settings, "--workers", 2)
    checked(tmp_path / "out")
