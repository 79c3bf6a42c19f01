"""What a new user of `ziya-data` gets wrong: each mistake is told in one line, and names what to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from crawls import prose, write_config, ziya_data
from small_tokenizers import sentencepiece_model

from data_factory import cli, vocab
from data_factory.config import DataConfig
from data_factory.report import text
from data_factory.rules import PRESETS, RULES, listing
from ziya import config as settings
from ziya.errors import UserError


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def misread(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose four sources have a wrong text field, no record, wrong prompt and task fields, and no fault."""
    folder = tmp_path_factory.mktemp("misread")
    rows = [{"text": prose(number, "en"), "url": f"http://example.org/{number}"} for number in range(24)]
    sources = [
        {"name": "crawl", "paths": [write_lines(folder / "crawl.jsonl", [*rows, {"content": prose(99, "en")}])]},
        {"name": "empty", "paths": [write_lines(folder / "empty.jsonl", [])]},
        {"name": "pairs", "paths": [write_lines(folder / "pairs.jsonl", rows[:3])], "kind": "supervised"},
        {"name": "good", "paths": [write_lines(folder / "good.jsonl", [*rows[:12], {"url": "http://example.org"}])]},
    ]
    sources[0]["text_field"] = "content"
    sources[2]["prompt_field"] = "question"
    sources[3]["task_field"] = "kind"
    config = write_config(folder / "config.json", sources=sources, evaluation={"enabled": False})
    done = ziya_data("run", config, "--output", folder / "out", "--workers", 1)
    return {"out": folder / "out", "done": done, "folder": folder}


def test_a_source_whose_field_is_not_there_is_told_twice(misread: dict[str, Any]) -> None:
    lines = misread["done"].stderr.splitlines()  # one more names the file that is empty
    told = [line for line in lines if line.startswith("warning: source ") and "is empty" not in line]
    assert told == 2 * [
        "warning: source crawl: 24 of 25 records have no field 'content' (they have: text, url): set "
        "sources.0.text_field",
        "warning: source empty: no record was found in its paths",
        "warning: source pairs: 3 of 3 records have no field 'question' (they have: text, url): set "
        "sources.2.prompt_field",
        "warning: source good: none of 12 records has a field 'kind': set sources.3.task_field",
    ]


def test_the_summary_shows_why_records_were_quarantined(misread: dict[str, Any]) -> None:
    assert (
        "most frequent errors in quarantine: field 'content' is missing or null (24), field 'question' is missing or "
        "null (3), field 'text' is missing or null (1)"
    ) in misread["done"].stdout


@pytest.mark.parametrize(
    "command",
    [
        ["decide"],
        ["explain", "--id", "x"],
        ["report"],
        ["vocab", "--size", "5", "--tokenizer", "{model}"],
        ["pack", "tokenizer.path={model}"],
        ["pack"],
        ["prune"],
    ],
)
@pytest.mark.parametrize("place", ["none", "file.yaml", "empty"])
def test_a_place_without_a_run_is_one_line(
    command: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.yaml").write_text("seed: 1\n", encoding="utf-8")
    model = str(tmp_path / "file.yaml")
    name, *rest = [part.format(model=model) for part in command]
    assert cli.main([name, str(tmp_path / place), *rest]) == 2
    told = capsys.readouterr().err
    assert f"{place} holds no run: give the --output folder" in told and told.count("\n") == 1


def test_a_model_below_a_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_factory import train_lm

    monkeypatch.setattr(train_lm, "find_program", lambda name: name)  # lmplz need not be there
    (tmp_path / "file").write_text("x", encoding="utf-8")
    output = str(tmp_path / "file" / "x.klm")
    assert cli.main(["train-lm", "--lang", "en", "--input", str(tmp_path / "file"), "--output", output]) == 2
    assert f"--output {output} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["report"], ["vocab", "--tokenizer", "{model}"], ["prune"]])
def test_an_interrupted_decide_is_finished_with_decide(
    misread: dict[str, Any], command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = misread["out"]
    summary = (out / "summary.json").read_bytes()
    (out / "summary.json").unlink()
    lines = (out / "work" / "frequent_lines.bin").read_bytes()
    try:
        name, *rest = [part.format(model=sentencepiece_model(tmp_path / "model")) for part in command]
        assert cli.main([name, str(out), *rest]) == 2
        assert f"finish it with `ziya-data decide {out}`" in capsys.readouterr().err
        (out / "work" / "frequent_lines.bin").unlink()  # interrupted while it measured: another command goes on
        for again in ([name, str(out), *rest], ["decide", str(out)]):
            assert cli.main(again) == 2
            assert "run the same `ziya-data run` again" in capsys.readouterr().err
    finally:
        (out / "summary.json").write_bytes(summary)
        (out / "work" / "frequent_lines.bin").write_bytes(lines)


def test_vocab_says_whose_and_replaces_nothing_silently(
    misread: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, chars = sentencepiece_model(tmp_path / "t.model"), tmp_path / "mine.txt"

    def call(*arguments: str) -> tuple[int, str]:
        code = cli.main(["vocab", str(misread["out"]), "--tokenizer", str(model), "--output", str(chars), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, told = call("--size", "5")
    assert code == 0 and f"{chars}: 5 characters" in told and f"that {model} lacks (" in told
    assert chars.with_suffix(".json").exists() and not (misread["out"] / "chars.txt").exists()
    assert call("--size", "5")[0] == 0  # the same again
    code, told = call("--size", "6")
    assert code == 2 and "asked: 5 -> 6" in told and "--replace" in told
    assert len(chars.read_text(encoding="utf-8").split()) == 5
    assert call("--size", "6", "--replace")[0] == 0
    assert len(chars.read_text(encoding="utf-8").split()) == 6
    chars.with_suffix(".json").unlink()  # a list by hand
    assert call("--size", "6")[0] == 2
    with pytest.raises(UserError, match="give a name such as"):
        vocab.vocab(misread["out"], 5, model, output=tmp_path / "x.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("rules.max_digit_share=40", "rules.max_digit_share = 40: it is a share"),
        ("rules.max_duplicate_lines.zh=60", "rules.max_duplicate_lines: it is a share, which lies in 0..1 (0.4 is 40 %), found 60"),
        ("rules.min_chars.en=-5", "rules.min_chars: it must be at least 0, found -5"),
        ("language.min_score.en=65", "language.min_score.en = 65"),
        ("evaluation.max_unreadable.zh=-0.1", "evaluation.max_unreadable.zh = -0.1"),
    ],
)  # fmt: skip
def test_thresholds_of_a_wrong_scale_are_refused_by_name(change: str, told: str) -> None:
    raw = settings.apply_overrides({"sources": [{"name": "a", "paths": ["x"]}]}, [change])
    with pytest.raises(UserError) as refused:
        settings.parse(DataConfig, raw, "x.yaml")
    assert told in str(refused.value) and "\n" not in str(refused.value) and "{" not in str(refused.value)


def test_published_thresholds_are_in_bounds() -> None:
    for preset in PRESETS:
        rules = {rule.id: dict(rule.thresholds[preset]) for rule in RULES if rule.thresholds.get(preset)}
        settings.parse(DataConfig, {"sources": [], "rules": rules}, preset)


def test_a_group_that_contradicts_itself_is_not_printed_whole() -> None:
    raw = settings.apply_overrides({"sources": []}, ["scoring.high=70"])
    with pytest.raises(UserError, match=r"^x\.yaml: scoring: high \(70\.0\) must not exceed medium \(60\.0\)$"):
        settings.parse(DataConfig, raw, "x.yaml")


def test_tiers_that_changed_are_shown(misread: dict[str, Any]) -> None:
    before = json.loads((misread["out"] / "summary.json").read_text(encoding="utf-8"))
    tiers = [{"en": {"high": 30, "medium": 40, "low": 10}}, {"en": {"high": 25, "medium": 45, "low": 10}}]
    shown = text.changes(before | {"tiers": tiers[0]}, before | {"tiers": tiers[1]}, misread["out"])
    assert "tier high of en: 30 -> 25 (-5)" in shown and "tier medium of en: 40 -> 45 (+5)" in shown
    assert "tier low of en: 10 ->" not in shown


def test_the_mark_of_a_recalibrated_threshold_is_explained() -> None:
    legend, *rules = listing("ziya2", False).splitlines()
    assert "*" in legend and "recalibrated" in legend and len(rules) == len(RULES)
