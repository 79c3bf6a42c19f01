"""`explain`: the table of measurements, and decisions of an interrupted `decide` told with their own settings."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from crawls import crawl, digests, write_config, ziya_data

from data_factory.run_state import decided_settings
from ziya.files import read_json

URL = "http://example.org/en/4"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of several units that was decided with rules.min_chars.en = 900, and in which URL is kept."""
    folder = tmp_path_factory.mktemp("explain")
    crawl(folder / "crawl")
    config = write_config(folder / "config.json", rules={"preset": "ziya2", "min_chars": {"en": 900}})
    ziya_data("run", config, "--input", folder / "crawl", "--output", folder / "out", "--workers", 1)
    return folder / "out"


def told(out: Path, url: str = URL) -> str:
    return ziya_data("explain", out, "--url", url).stdout


def life(out: Path, url: str = URL) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(ziya_data("explain", out, "--url", url, "--json").stdout)[0]
    return value


def table(shown: str) -> dict[str, list[str]]:
    """Measurement -> the words of its line."""
    lines = shown.partition("measurements, and what they must be:\n")[2].partition("\n  ---")[0].split("\n")
    return {words[0]: words[1:] for words in map(str.split, lines) if len(words) > 1}


def test_measurements_are_a_table_with_thresholds(out: Path) -> None:
    shown = told(out)
    rows = table(shown)
    length = life(out)["measurements"]["chars"]
    assert rows["chars"][:4] == [f"{length:.6g}", "ok", ">=", "900"] and rows["chars"][4] == "rules.min_chars"
    assert rows["lang"] == ["en"] and rows["lang_score"][1:] == ["ok", ">=", "0.65", "language.min_score"]
    assert rows["final_chars"][0] == f"{length:.6g}" and "removed_share" in rows
    places = {line.index("rules.") for line in shown.split("\n") if re.match(r" {4}\w.* rules\.", line)}
    assert len(places) == 1, "columns stand below each other"
    assert "FAILS" not in shown
    gone = told(out, "http://example.org/gone")
    assert "read.status" in gone and "FAILS" not in gone and table(gone)["document_row"] == ["-1"]


def test_a_missed_threshold_is_marked(out: Path, tmp_path: Path) -> None:
    other = tmp_path / "out"
    shutil.copytree(out, other)
    ziya_data("decide", other, "rules.min_chars.en=100000", "--workers", 1)
    assert table(told(other))["chars"][1:] == ["FAILS", ">=", "100000", "rules.min_chars"]
    checks = {check["rule"]: check for check in life(other)["checks"]}
    assert not checks["rules.min_chars"]["passes"] and checks["rules.min_chars"]["must"] == ">="


@pytest.mark.parametrize("after", [1, 12])
def test_an_interrupted_decide_is_told_with_the_settings_of_each_decision(
    out: Path, tmp_path: Path, after: int
) -> None:
    other = tmp_path / "out"
    shutil.copytree(out, other)
    change = "rules.min_chars.en=100000"
    units = sorted(path.stem for path in (out / "decisions").glob("*.parquet"))
    pieces = len(units) + 1 + 2 if after > 1 else 1  # verdicts of all units, deduplication, decisions of two units
    stopped = ziya_data("decide", other, change, "--workers", 1, expect=None, env={"ZIYA_TEST_KILL_AFTER": str(pieces)})
    assert stopped.returncode == -9
    states = [decided_settings(other, unit) for unit in units]
    new = 0 if after == 1 else 2
    assert [bool(state.changes) for state in states] == [False] * new + [True] * (len(units) - new)
    assert {tuple(state.changes) for state in states if state.changes} == {("rules.min_chars.en: 900.0 -> 100000.0",)}
    assert all(state.known for state in states)
    old = states[-1].config.rules.min_chars
    assert old == {"en": 900}
    for unit, state in ((units[0], states[0]), (units[-1], states[-1])):
        url = next(row["url"] for row in _rows(other / "decisions" / f"{unit}.parquet") if "/en/" in row["url"])
        assert ("decided with earlier settings" in told(other, url)) == bool(state.changes)
        found = life(other, url)
        assert found["settings"]["changed_since"] == state.changes
        check = next(check for check in found["checks"] if check["rule"] == "rules.min_chars")
        assert check["threshold"] == (900 if state.changes else 100000)
        reasons = {reason["rule"] for reason in found["decision"]["reasons"]}
        assert ("rules.min_chars" in reasons) == (not state.changes)
    ziya_data("decide", other, "--workers", 1)
    fresh = tmp_path / "fresh"
    shutil.copytree(out, fresh)
    ziya_data("decide", fresh, change, "--workers", 1)
    assert digests(other) == digests(fresh)
    assert len(list((other / "work" / "decided").glob("*"))) == 1


def test_decisions_without_a_record_are_said_to_be_so(out: Path, tmp_path: Path) -> None:
    other = tmp_path / "out"
    shutil.copytree(out, other)
    unit = next(
        path.stem for path in sorted((other / "decisions").glob("*")) if any(row["url"] == URL for row in _rows(path))
    )
    marker = other / "work" / "done" / "decide" / f"{unit}.json"
    marker.write_text(json.dumps({**read_json(marker), "identity": "0" * 32}), encoding="utf-8")
    assert not decided_settings(other, unit).known
    assert "is not on record" in told(other)


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
