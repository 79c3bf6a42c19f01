"""Packs of several sources: what is changed for one packs that one again, and a run that goes on packs what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_tokenizers import lines, sentencepiece_model

from data_factory.config import DataConfig
from data_factory.documents import KEPT, table_writer
from data_factory.pack import pack_all
from data_factory.run_state import RunState
from data_factory.steps import Steps
from ziya.files import read_json
from ziya.pack_files import kept_tokenizer

UNITS = {"000000": "books", "000001": "web", "000002": "web", "000003": "web"}  # 000003: nothing was kept of it


def write_kept(path: Path, source: str, texts: list[str]) -> None:
    columns: dict[str, list[Any]] = {
        "id": [f"{path.stem}-{number}" for number in range(len(texts))],
        "url": [""] * len(texts),
        "text": texts,
        "lang": ["en"] * len(texts),
        "tier": ["high"] * len(texts),
        "source": [source] * len(texts),
        "task": [""] * len(texts),
        "perplexity": [1.5] * len(texts),
        "copies": [1] * len(texts),
        "protected": [[]] * len(texts),
        "prompt_bytes": [0] * len(texts),
    }
    with table_writer(path, KEPT) as writer:
        writer.write(pa.table([columns[name] for name in KEPT.names], schema=KEPT))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for number, (unit, source) in enumerate(UNITS.items()):
        texts = [] if unit == "000003" else lines(number, 60)
        write_kept(tmp_path / "out" / "kept" / f"{unit}.parquet", source, texts)
    (tmp_path / "out" / "work").mkdir()
    (tmp_path / "out" / "work" / "run.json").write_text("{}", encoding="utf-8")  # an OUT of ours
    sentencepiece_model(tmp_path / "tokenizer.model")
    return tmp_path / "out"


@pytest.fixture
def steps(out: Path) -> Iterator[Steps]:
    with RunState.open(out) as state, Steps(state, 1) as made:
        yield made


def config(out: Path, books: float = 1.0, web: float = 1.0, length: int = 16) -> DataConfig:
    return DataConfig.model_validate(
        {
            "sources": [
                {"name": "books", "paths": ["x"], "ratio": books},
                {"name": "web", "paths": ["x"], "ratio": web},
                {"name": "empty", "paths": ["x"]},
            ],
            "tokenizer": {"path": str(out.parent / "tokenizer.model")},
            "packing": {"sequence_length": length},
        }
    )


def packs(out: Path) -> dict[str, tuple[bytes, int]]:
    """File -> bytes and when it was written."""
    files = [path for path in sorted((out / "packs").iterdir()) if path.is_file()]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def written(before: dict[str, tuple[bytes, int]], after: dict[str, tuple[bytes, int]]) -> set[str]:
    """Sources of the files that were written in between."""
    return {name.partition(".")[0] for name in after if after[name] != before.get(name)}


def test_one_sources_ratio_packs_that_source_again(out: Path, steps: Steps) -> None:
    def pack(**changes: Any) -> dict[str, Any]:
        return pack_all(config(out, **changes), out, list(UNITS), steps, "decided")

    first = pack()
    assert set(first) == {"books", "web"}
    kept = kept_tokenizer(out / "packs")
    assert kept is not None and kept.read_bytes() == (out.parent / "tokenizer.model").read_bytes()
    plain = packs(out)
    assert pack() == first
    assert packs(out) == plain  # nothing to do

    doubled = pack(web=2.0)
    after = packs(out)
    assert written(plain, after) == {"web"}
    assert doubled["books"] == first["books"]
    assert doubled["web"]["copies"] == 2 * first["web"]["copies"]
    tokenised = {path.stem for path in (out / "work" / "timings" / "tokenize").glob("*.json")}
    assert tokenised == {"000000", "000001", "000002"}
    steps.markers.drop_timings()

    assert pack() == first  # back again: the same bytes as before
    assert {name: value[0] for name, value in packs(out).items()} == {name: value[0] for name, value in plain.items()}
    # only the units of the changed source, and of those only the one that holds documents, were tokenised
    tokenised = {path.stem for path in (out / "work" / "timings" / "tokenize").glob("*.json")}
    assert tokenised == {"000001", "000002"}

    # a setting of all packs, and another decision, pack all sources again
    before = packs(out)
    pack(length=32)
    assert written(before, packs(out)) == {"books", "web"}


def test_a_run_goes_on_with_the_packs_that_are_missing(out: Path, steps: Steps) -> None:
    first = pack_all(config(out), out, list(UNITS), steps, "decided")
    whole = packs(out)
    (out / "packs" / "books.idx").unlink()
    assert pack_all(config(out), out, list(UNITS), steps, "decided") == first
    assert written(whole, packs(out)) == {"books"}
    assert {name: value[0] for name, value in packs(out).items()} == {name: value[0] for name, value in whole.items()}
    # other kept documents: everything anew
    write_kept(out / "kept" / "000000.parquet", "books", lines(9, 30))
    again = pack_all(config(out), out, list(UNITS), steps, "decided otherwise")
    assert (again["books"]["documents"], again["web"]) == (len(lines(9, 30)), first["web"])
    assert read_json(out / "packs" / "books.json") == again["books"]
