"""The spine: a run's accounting, equal bytes for any number of workers and after kills, refusals, `decide` equals a fresh run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from crawls import SHARED, crawl, digests, page, prose, record, write_config, write_warc, ziya_data


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small crawl, its config and a finished run with one worker."""
    folder = tmp_path_factory.mktemp("small")
    crawl(folder / "crawl")
    config = write_config(folder / "config.json")
    ziya_data("run", config, "--input", folder / "crawl", "--output", folder / "out", "--workers", 1)
    return {"folder": folder, "crawl": folder / "crawl", "config": config, "out": folder / "out"}


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    return [row for path in sorted((out / table).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def summary(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return value


def test_accounting(small: dict[str, Path]) -> None:
    value = summary(small["out"])
    documents = value["documents"]
    assert documents["in"] == documents["kept"] + documents["dropped"] + documents["quarantined"] == 45
    assert documents["quarantined"] == 1
    decisions = rows(small["out"], "decisions")
    assert len(decisions) + len(rows(small["out"], "quarantine")) == documents["in"]
    assert sum(row["kept"] for row in decisions) == documents["kept"] == len(rows(small["out"], "kept"))
    assert all(row["kept"] or row["reasons"] for row in decisions), "a document was dropped without a reason"
    assert not any(row["kept"] and row["reasons"] for row in decisions)
    entering = documents["in"]
    for step in value["steps"]:
        assert step["in"] == entering
        entering = step["out"]
    assert entering == documents["kept"]
    counted: dict[str, int] = {}
    for row in decisions:
        for reason in row["reasons"]:
            counted[reason["rule"]] = counted.get(reason["rule"], 0) + 1
    assert counted == value["reasons"]


def test_fates(small: dict[str, Path]) -> None:
    by_url = {row["url"]: row for row in rows(small["out"], "decisions")}
    reason = {url: [item["rule"] for item in row["reasons"]] for url, row in by_url.items()}
    assert reason["http://example.org/i.png"] == ["read.not_html"]
    assert reason["http://example.org/gone"] == ["read.status"]
    assert reason["http://example.org/fr"] == ["language.keep"]
    twins = [reason["http://example.org/copy"], reason["http://example.org/en/2"]]
    assert sorted(twins) == [[], ["dedup.exact"]]
    twins = [reason["http://example.org/zh/5"], reason["http://example.org/zh/5?utm_source=x"]]
    assert sorted(twins) == [[], ["dedup.url"]]


def test_every_named_winner_is_kept(small: dict[str, Path]) -> None:
    decisions = rows(small["out"], "decisions")
    kept = {row["id"] for row in decisions if row["kept"]}
    winners = [reason["winner"] for row in decisions for reason in row["reasons"] if reason["winner"]]
    assert winners and set(winners) <= kept
    copies = {row["id"]: row["copies"] for row in decisions if row["kept"]}
    assert all(copies[winner] > 1 for winner in winners)


def test_ids_are_unique_and_texts_join(small: dict[str, Path]) -> None:
    ids = [row["id"] for row in rows(small["out"], "decisions")]
    assert len(set(ids)) == len(ids)
    assert ids == [row["id"] for row in rows(small["out"], "measurements")]
    texts = {row["id"]: row["text"] for row in rows(small["out"], "documents")}
    assert all(row["text"] in texts[row["id"]] or row["text"] for row in rows(small["out"], "kept"))


def test_any_number_of_workers_gives_the_same_bytes(small: dict[str, Path]) -> None:
    other = small["folder"] / "out2"
    ziya_data("run", small["config"], "--input", small["crawl"], "--output", other, "--workers", 2)
    assert digests(other) == digests(small["out"])


def test_a_killed_run_goes_on_and_gives_the_same_bytes(small: dict[str, Path]) -> None:
    other = small["folder"] / "killed"
    arguments = ("run", small["config"], "--input", small["crawl"], "--output", other, "--workers", 2)
    for after in (1, 2, 3, 4, 5, 6):
        killed = ziya_data(*arguments, expect=None, env={"ZIYA_TEST_KILL_AFTER": str(after)})
        assert killed.returncode == -9
        assert not (other / "summary.json").exists()
    ziya_data(*arguments)
    assert digests(other) == digests(small["out"])


def test_a_finished_run_repeats_nothing(small: dict[str, Path]) -> None:
    before = digests(small["out"])
    stamps = {path: path.stat().st_mtime_ns for path in (small["out"] / "documents").glob("*")}
    ziya_data("run", small["config"], "--input", small["crawl"], "--output", small["out"], "--workers", 1)
    assert digests(small["out"]) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in (small["out"] / "documents").glob("*")}


def test_changed_config_or_input_is_refused_by_name(small: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("run", small["config"], "--input", small["crawl"], "--output", small["out"])
    refused = ziya_data(*arguments, "language.sample_chars=500", expect=2)
    assert "language.sample_chars: 1000 -> 500" in refused.stderr and "--restart" in refused.stderr
    refused = ziya_data(*arguments, "dedup.exact=false", expect=2)
    assert "dedup.exact: True -> False" in refused.stderr and "decide" in refused.stderr
    changed = tmp_path / "crawl"
    shutil.copytree(small["crawl"], changed)
    write_warc(changed / "c.warc.gz", [record("http://example.org/new", page(prose(99, "en")))])
    refused = ziya_data("run", small["config"], "--input", changed, "--output", small["out"], expect=2)
    assert "c.warc.gz" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1


def test_decide_equals_a_fresh_run(small: dict[str, Path]) -> None:
    decided, fresh = small["folder"] / "decided", small["folder"] / "fresh"
    shutil.copytree(small["out"], decided)
    shown = ziya_data("decide", decided, "rules.min_chars=900", "dedup.exact=false", "--workers", 1)
    assert "rules.min_chars: 0 ->" in shown.stdout
    assert "dedup.exact: 1 -> 0" in shown.stdout
    ziya_data(
        "run", small["config"], "--input", small["crawl"], "--output", fresh, "rules.min_chars=900", "dedup.exact=false"
    )
    assert digests(decided) == digests(fresh)
    assert summary(decided)["documents"]["kept"] < summary(small["out"])["documents"]["kept"]


def test_decide_refuses_measuring_settings_by_name(small: dict[str, Path]) -> None:
    refused = ziya_data("decide", small["out"], "language.sample_chars=500", expect=2)
    assert "language.sample_chars" in refused.stderr and "measuring" in refused.stderr
    refused = ziya_data("decide", small["folder"], "rules.min_chars=5", expect=2)
    assert "holds no run" in refused.stderr


def test_a_run_never_sees_its_own_urls(small: dict[str, Path]) -> None:
    refused = ziya_data("decide", small["out"], f"dedup.seen_urls=[{small['out'] / 'urls.bloom'}]", expect=2)
    assert "must not see its own URLs" in refused.stderr
    assert summary(small["out"])["documents"]["kept"], "a refused call changes nothing"


def test_users_mistakes_are_one_line(small: dict[str, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    for arguments, part in (
        (("run", small["config"], "--input", empty, "--output", out), "empty"),
        (("run", small["config"], "--input", tmp_path / "none", "--output", out), "none"),
        (("run", small["config"], "--input", small["crawl"], "--output", out, "rules.min_char=3"), "did you mean"),
        (
            ("run", small["config"], "--input", small["crawl"], "--output", out, "scoring.enabled=true"),
            "no language model for",
        ),
        (("run", small["config"], "--input", small["crawl"], "--output", small["crawl"]), "not empty"),
        (("run", tmp_path / "none.yaml", "--output", out), "does not exist"),
        (("explain", small["out"], "--id", "0" * 32), "no document"),
    ):
        failed = ziya_data(*arguments, expect=2)
        assert part in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr
        assert len([line for line in failed.stderr.strip().splitlines() if line.startswith("error:")]) == 1


def test_limit_reads_the_first_records(small: dict[str, Path], tmp_path: Path) -> None:
    ziya_data(
        "run", small["config"], "--input", small["crawl"], "--output", tmp_path / "out", "--limit", 7, "--workers", 2
    )
    first = [row["url"] for row in rows(small["out"], "decisions")][:7]
    assert [row["url"] for row in rows(tmp_path / "out", "decisions")] == first


def test_repeated_records_get_ids_of_their_own(small: dict[str, Path], tmp_path: Path) -> None:
    same = record("http://example.org/x", page(prose(1, "en")), key="<urn:uuid:same>")
    write_warc(
        tmp_path / "crawl" / "a.warc.gz", [same, record("http://example.org/y", page(prose(2, "en"))), same, same]
    )
    outs = [tmp_path / name for name in ("out", "units")]
    for out, unit_bytes in zip(outs, (1 << 20, 4096), strict=True):
        ziya_data(
            "run",
            small["config"],
            "--input",
            tmp_path / "crawl",
            "--output",
            out,
            f"read.unit_bytes={unit_bytes}",
            "--workers",
            1,
        )
    ids = [[row["id"] for row in rows(out, "decisions")] for out in outs]
    assert len(set(ids[0])) == 4
    assert ids[0] == ids[1], "ids do not depend on how the input was cut"
    assert [row["id"] for row in rows(outs[0], "documents")] == ids[0]


def test_explain_tells_reason_and_winner(small: dict[str, Path]) -> None:
    decisions = rows(small["out"], "decisions")
    loser = next(row for row in decisions if row["reasons"] and row["reasons"][0]["rule"] == "dedup.exact")
    shown = ziya_data("explain", small["out"], "--id", loser["id"]).stdout
    assert "DROPPED at stage deduplicate" in shown and loser["reasons"][0]["winner"] in shown and "before (T1)" in shown
    shown = ziya_data("explain", small["out"], "--url", "http://example.org/gone", "--json").stdout
    assert json.loads(shown)[0]["decision"]["reasons"][0]["rule"] == "read.status"


def test_prune_removes_dropped_texts_only(small: dict[str, Path]) -> None:
    pruned = small["folder"] / "pruned"
    shutil.copytree(small["out"], pruned)
    kept_before = {path.name: path.read_bytes() for path in (pruned / "kept").glob("*")}
    assert "pruned the texts of" in ziya_data("prune", pruned).stdout
    kept = {row["id"] for row in rows(pruned, "kept")}
    assert all((row["text"] is not None) == (row["id"] in kept) for row in rows(pruned, "documents"))
    refused = ziya_data("decide", pruned, "rules.min_chars=10", expect=2)
    assert "pruned" in refused.stderr
    assert {path.name: path.read_bytes() for path in (pruned / "kept").glob("*")} == kept_before
    ziya_data("report", pruned)


@pytest.mark.skipif(not (SHARED / "crawl").is_dir(), reason="the real crawl (../shared/data/crawl) is not here")
def test_real_crawl_accounting_and_equal_bytes(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", rules={"preset": "ziya2"}, read={"unit_bytes": 2 << 20})
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, workers in zip(outs, (1, 2), strict=True):
        ziya_data("run", config, "--input", SHARED / "crawl", "--output", out, "--workers", workers)
    assert digests(outs[0]) == digests(outs[1])
    documents = summary(outs[0])["documents"]
    assert documents["in"] == documents["kept"] + documents["dropped"] + documents["quarantined"] >= 2942
