"""Packs of another tokenizer: refused before anything changes, made anew with `--replace`; bad tokenizers found at start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from crawls import crawl, digests, write_config, ziya_data
from small_tokenizers import sentencepiece_model

from data_factory import packing


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run packed with one tokenizer, another tokenizer, and what a run packs with that one from the start."""
    folder = tmp_path_factory.mktemp("replace")
    crawl(folder / "crawl", 16)
    models = [sentencepiece_model(folder / f"{size}.model", vocab_size=size) for size in (600, 700)]
    config = write_config(folder / "config.json", packing={"sequence_length": 64}, evaluation={"enabled": False})
    for name, model in zip(("out", "fresh"), models, strict=True):
        arguments = ["--input", folder / "crawl", "--output", folder / name, "--workers", 1, f"tokenizer.path={model}"]
        ziya_data("run", config, *arguments)
    return {"folder": folder, "out": folder / "out", "other": models[1], "fresh": folder / "fresh", "config": config}


def copy(packed: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(packed["out"], packed["folder"] / tmp_path.name)  # beside the first: tokenizers are named from there
    return packed["folder"] / tmp_path.name


@pytest.mark.parametrize("command", ["pack", "decide"])
def test_a_refused_pack_names_the_way_and_changes_nothing(
    packed: dict[str, Path], tmp_path: Path, command: str
) -> None:
    out = copy(packed, tmp_path)
    before = digests(out)
    refused = ziya_data(command, out, f"tokenizer.path={packed['other']}", expect=2).stderr
    assert f"ziya-data pack {out} tokenizer.path=FILE --replace" in refused and refused.count("\n") == 1
    assert digests(out) == before


def test_replace_makes_what_a_fresh_run_makes(packed: dict[str, Path], tmp_path: Path) -> None:
    out = copy(packed, tmp_path)
    ziya_data("pack", out, f"tokenizer.path={packed['other']}", "--replace", "--workers", 1)
    assert digests(out / "packs") == digests(packed["fresh"] / "packs")
    assert (out / "summary.json").read_bytes() == (packed["fresh"] / "summary.json").read_bytes()
    before = digests(out)
    ziya_data("pack", out, "--replace", "--workers", 1)  # nothing to replace
    assert digests(out) == before


def test_packs_that_are_replaced_are_void_before_the_first_new_one(packed: dict[str, Path], tmp_path: Path) -> None:
    packs = copy(packed, tmp_path) / "packs"
    own = json.loads((packs / "crawl.json").read_text(encoding="utf-8"))["tokenizer"]["fingerprint"]
    before = digests(packs)
    packing.discard_others(packs, own)
    assert digests(packs) == before
    packing.discard_others(packs, "0" * 32)
    assert packing.packed_with(packs) is None and not (packs / "tokenizer").exists()


@pytest.mark.parametrize("change", ["tokenizer.path={config}", "tokenizer.eos=<zzz>"])
def test_a_bad_tokenizer_is_refused_before_the_crawl_is_read(
    packed: dict[str, Path], tmp_path: Path, change: str
) -> None:
    arguments = [f"tokenizer.path={packed['other']}", change.format(**packed)]
    refused = ziya_data(
        "run", packed["config"], "--input", packed["folder"] / "crawl", "--output", tmp_path / "out", *arguments, expect=2
    ).stderr
    assert "tokenizer" in refused and refused.count("\n") == 1 and "measure" not in refused
    assert not (tmp_path / "out").exists()
