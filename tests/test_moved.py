"""An OUT that was moved without the files that its settings name: what needs none of them works, the rest says which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from crawls import crawl, digests, write_config, ziya_data
from small_tokenizers import sentencepiece_model

URL = "http://example.org/en/4"


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with every kind of file setting but models; its copy elsewhere, without them; and a folder that holds them."""
    folder = tmp_path_factory.mktemp("moved")
    files = folder / "files"
    files.mkdir()
    crawl(folder / "crawl")
    for name in ("domains", "rules", "evaluation"):
        (files / f"{name}.txt").write_text(f"{name}.example\n", encoding="utf-8")
    tokenizer = sentencepiece_model(files / "tokenizer.model")
    config = write_config(
        folder / "config.json",
        url={"domain_lists": [str(files / "domains.txt")]},
        rules={"preset": "none", "toxic_lexicons": [str(files / "rules.txt")]},
        evaluation={"toxic_lexicons": [str(files / "evaluation.txt")], "min_documents": 10},
        tokenizer={"path": str(tokenizer)},
        packing={"sequence_length": 64},
    )
    ziya_data("run", config, "--input", folder / "crawl", "--output", folder / "out", "--workers", 1)
    there = tmp_path_factory.mktemp("elsewhere") / "deep" / "out"
    shutil.copytree(folder / "out", there)
    kept = there.parent.parent / "files"
    files.rename(kept)
    return {"out": there, "files": kept, "tokenizer": kept / tokenizer.name}


def copy(moved: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(moved["out"], tmp_path / "a" / "out")
    return tmp_path / "a" / "out"


def kept(out: Path) -> int:
    value: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return int(value["documents"]["kept"])


def test_what_needs_no_file_works(moved: dict[str, Path], tmp_path: Path) -> None:
    out = copy(moved, tmp_path)
    assert "KEPT" in ziya_data("explain", out, "--url", URL).stdout
    ziya_data("report", out)
    ziya_data("prune", out)


def test_decide_names_each_file_that_it_needs_and_changes_nothing_without(
    moved: dict[str, Path], tmp_path: Path
) -> None:
    out = copy(moved, tmp_path)
    before = digests(out)
    refused = ziya_data("decide", out, "rules.min_chars=900", expect=2).stderr
    assert "evaluation.toxic_lexicons=[PATH]" in refused and "tokenizer.path=PATH" in refused
    assert "domain_lists" not in refused and "rules.toxic" not in refused, "they are not opened again"
    assert digests(out) == before
    given = [f"evaluation.toxic_lexicons=[{moved['files'] / 'evaluation.txt'}]", f"tokenizer.path={moved['tokenizer']}"]
    ziya_data("decide", out, "rules.min_chars=900", *given, "--workers", 1)
    assert kept(out) < kept(moved["out"])
    ziya_data("decide", out, "rules.min_chars=off", "--workers", 1)  # their places are known now
    assert kept(out) == kept(moved["out"])


def test_packing_again_needs_the_tokenizer_alone(moved: dict[str, Path], tmp_path: Path) -> None:
    out = copy(moved, tmp_path)
    refused = ziya_data("pack", out, "packing.sequence_length=32", expect=2).stderr
    assert "tokenizer.path=PATH" in refused and "lexicons" not in refused
    ziya_data("pack", out, "packing.sequence_length=32", f"tokenizer.path={moved['tokenizer']}", "--workers", 1)


def test_packs_that_stay_need_no_tokenizer(moved: dict[str, Path], tmp_path: Path) -> None:
    out = copy(moved, tmp_path)
    before = digests(out / "packs")
    assert before
    ziya_data("decide", out, "--workers", 1)
    refused = ziya_data("decide", out, "evaluation.min_documents=11", expect=2).stderr
    assert "evaluation.toxic_lexicons=[PATH]" in refused and "tokenizer" not in refused
    lexicon = f"evaluation.toxic_lexicons=[{moved['files'] / 'evaluation.txt'}]"
    ziya_data("decide", out, "evaluation.min_documents=11", lexicon, "--workers", 1)
    assert digests(out / "packs") == before
    for change in ("seed=5", "packing.mode=whole", "tokenizer.eos=<s>"):
        refused = ziya_data("decide", out, change, expect=2).stderr
        assert "tokenizer.path=PATH" in refused, change
    next((out / "packs").glob("*.bin")).unlink()
    assert "tokenizer.path=PATH" in ziya_data("decide", out, expect=2).stderr


def test_vocab_names_its_option(moved: dict[str, Path], tmp_path: Path) -> None:
    out = copy(moved, tmp_path)
    assert "--tokenizer" in ziya_data("vocab", out, "--size", 5, expect=2).stderr
    ziya_data("vocab", out, "--size", 5, "--tokenizer", moved["tokenizer"])
    assert len((out / "chars.txt").read_text(encoding="utf-8").split()) == 5


def test_other_content_is_refused_by_name(moved: dict[str, Path], tmp_path: Path) -> None:
    out = copy(moved, tmp_path)
    other = tmp_path / "other.txt"
    other.write_text("other\n", encoding="utf-8")
    refused = ziya_data("decide", out, f"url.domain_lists=[{other}]", expect=2).stderr
    assert "url.domain_lists" in refused and "measuring" in refused
    refused = ziya_data("decide", out, f"url.domain_lists=[{tmp_path / 'none.txt'}]", expect=2).stderr
    assert "none.txt: no such file" in refused
