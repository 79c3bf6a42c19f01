"""The report: masks private data, escapes what pages bring, shows cuts and samples; equal runs leave equal pages."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from crawls import page, prose, record, write_config, write_warc, ziya_data

from data_factory.report import charts, verdict
from data_factory.report.collect import Smallest


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose pages hold private data, markup in text, and short pages that a rule drops."""
    folder = tmp_path_factory.mktemp("report")
    pages = [record(f"http://example.org/{number}", page(prose(number, "en"))) for number in range(6)]
    pages += [record(f"http://example.org/zh/{number}", page(prose(number, "zh"))) for number in range(4)]
    private = "Write to jane.roe@private.example or call 13812345678. " + prose(70, "en", 4)
    pages.append(record("http://example.org/private", page(private)))
    pages.append(
        record(
            "http://example.org/script",
            page("&lt;script&gt;alert(1)&lt;/script&gt; said the note. " + prose(71, "en", 4)),
        )
    )
    write_warc(folder / "crawl" / "a.warc.gz", pages)
    config = write_config(folder / "config.json", rules={"preset": "ziya2", "min_chars": {"en": 1000}})
    ziya_data("run", config, "--input", folder / "crawl", "--output", folder / "out", "--workers", 1)
    return folder / "out"


def test_private_data_is_masked_and_markup_escaped(out: Path) -> None:
    for name in ("report.html", "report.json"):
        text = (out / name).read_text(encoding="utf-8")
        assert "jane.roe" not in text and "13812345678" not in text, name
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "alert(1)" in html
    assert "&lt;EMAIL&gt;" in html
    assert "http://" not in html.replace("http://example.org", ""), "the page loads nothing"


def test_every_reason_has_a_meaning_and_samples(out: Path) -> None:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["rules"]
    for row in report["rules"]:
        assert row["meaning"], row["rule"]
        assert 1 <= len(row["samples"]) <= 3
        assert row["documents"] == report["reasons"][row["rule"]]


def test_report_adds_throughput(out: Path) -> None:
    assert "timings" not in json.loads((out / "report.json").read_text(encoding="utf-8"))
    ziya_data("report", out)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["timings"]["measure"]["peak_rss"] > 0 and report["timings"]["measure.statistics"]["cpu_s"] >= 0
    assert "MB/s/core" in (out / "report.html").read_text(encoding="utf-8")


def test_explain_shows_what_was_masked(out: Path) -> None:
    shown = ziya_data("explain", out, "--url", "http://example.org/private").stdout
    assert "rules.mask_email" in shown and "<EMAIL>" in shown and "rules.min_chars" in shown


def test_samples_do_not_depend_on_order() -> None:
    forward, backward = Smallest(3), Smallest(3)
    keys = [f"{number * 7919 % 100:02d}" for number in range(100)]
    for key in keys:
        forward.add("group", key, key)
    for key in reversed(keys):
        backward.add("group", key, key)
    assert forward.items("group") == backward.items("group") == ["00", "01", "02"]


def test_the_verdict_says_what_it_needs(out: Path) -> None:
    found = {"evaluated": 1232, "population": 9000, "unqualified": 2, "unqualified_rate": 2 / 1232, "pass_mark": 0.001}
    found |= {"passed": False, "sufficient": False, "confidence": 0.95, "low": 0.0002, "high": 0.0059, "needed": 7223}
    assert verdict.rate(found) == (
        "NOT PASSED: 2 of 1,232 documents unqualified, rate 0.1623% above the pass mark 0.1% (95% bounds 0.0200% to 0.5900%)"
    )
    assert verdict.certainty(found) == (
        "not sufficient: 0.1% cannot be shown with 1,232 documents: with 2 failures at least 7,223 are needed "
        "(raise evaluation.min_documents)"
    )
    clean = found | {"unqualified": 0, "needed": 3688, "population": 1232}
    assert "even without a failure at least 3,688 are needed (these are all kept documents)" in verdict.certainty(clean)
    assert "no sample can show a rate of 0%" in verdict.certainty(found | {"pass_mark": 0.0, "needed": None})
    assert verdict.certainty(found | {"sufficient": True}).startswith("sufficient: 95% sure that at most 0.1% of all")
    assert verdict.rate(found | {"evaluated": 0}) == "NOT PASSED: no document was evaluated"
    # the terminal and the page say the same
    own = json.loads((out / "summary.json").read_text(encoding="utf-8"))["evaluation"]
    shown, page_text = ziya_data("report", out).stdout, (out / "report.html").read_text(encoding="utf-8")
    for line in (verdict.rate(own), verdict.certainty(own)):
        assert line in shown and line in page_text


def test_the_funnel_is_as_wide_as_its_shares() -> None:
    rows = charts.funnel([{"name": "read", "in": 100, "out": 50}, {"name": "rules", "in": 50, "out": 0}])
    assert [row["share"] for row in rows] == [0.5, 0.0]
    assert "0.00,0 100.00,0 75.00,40 25.00,40" in rows[0]["shape"]
    assert charts.histogram([], {}) == ""


def test_names_of_cuts_stand_above_the_bars() -> None:
    bins = [(10.0, 100.0, 5), (100.0, 1000.0, 9), (1000.0, 10000.0, 2)]
    svg = charts.histogram(bins, {"high": [120.0, "x"], "medium": [9876.54, "y"]})
    root = ElementTree.fromstring(svg)
    _, top, wide, high = map(float, root.attrib["viewBox"].split())
    names = [element for element in root if element.get("class") == "cutname"]
    assert [name.text for name in names] == ["high ≤ 120", "medium ≤ 9,877"]
    lines = [float(name.attrib["y"]) for name in names]
    assert top + 13 < lines[0] < lines[1] - 17 and lines[1] < min(float(bar.attrib["y"]) for bar in root.iter("rect"))
    assert [name.get("text-anchor") for name in names] == ["start", "end"], "the right one would leave the picture"
    assert top + high > 160 and wide > 560
    assert "cutname" not in charts.histogram(bins, {"high": [5.0, "x"]}), "outside the bins"
