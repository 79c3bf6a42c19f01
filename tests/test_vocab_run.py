"""`ziya-data vocab` on real runs: kept documents alone, as they were before Traditional -> Simplified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from crawls import page, prose, record, write_config, write_warc, ziya_data

from data_factory.vocab import read_counts


def characters(out: Path, ids: set[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in sorted((out / "documents").glob("*.parquet")):
        for row in pq.read_table(path, columns=["id", "text"]).to_pylist():
            for character in row["text"] if row["id"] in ids else "":
                if character > "\x7f":
                    counts[character] = counts.get(character, 0) + 1
    return counts


def kept(out: Path) -> set[str]:
    return {
        row["id"]
        for path in (out / "kept").glob("*.parquet")
        for row in pq.read_table(path, columns=["id"]).to_pylist()
    }


def counted(out: Path) -> dict[str, int]:
    counts = read_counts(out)
    return {chr(point): int(counts[point]) for point in np.flatnonzero(counts)}


def test_counts_are_those_of_a_run_without_conversion(tmp_path: Path) -> None:
    from opencc import OpenCC

    traditional = OpenCC("s2t")
    pages = [record(f"http://example.org/{i}", page(prose(i, "zh"))) for i in range(6)]
    pages += [record(f"http://example.org/t{i}", page(traditional.convert(prose(20 + i, "zh")))) for i in range(6)]
    pages += [record("http://example.org/short", page("龘龘龘，這個頁面太短，所以會被刪除，它的字不能進入詞表。"))]
    write_warc(tmp_path / "crawl" / "a.warc.gz", pages[:7])
    write_warc(tmp_path / "crawl" / "b.warc.gz", pages[7:])
    pairs = [
        {"id": i, "prompt": f"這個國家第{i}大的城市在哪裡？", "text": traditional.convert(prose(40 + i, "zh"))}
        for i in range(3)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    supervised = {"name": "pairs", "paths": [str(tmp_path / "pairs.jsonl")], "kind": "supervised"}
    supervised |= {"prompt_field": "prompt", "id_field": "id"}
    outs = {}
    for convert in (True, False):
        config = write_config(
            tmp_path / f"{convert}.json",
            sources=[{"name": "crawl", "paths": [str(tmp_path / "crawl")]}, supervised],
            normalize={"to_simplified": convert},
            rules={"preset": "none", "min_chars": 100},
            read={"unit_bytes": 4096},
            dedup={"fuzzy": {"method": "none"}},
        )
        outs[convert] = tmp_path / str(convert)
        ziya_data("run", config, "--output", outs[convert], "--workers", 1)
    ids = kept(outs[True])
    assert len(ids) == 15 and ids == kept(outs[False])
    wanted = characters(outs[False], ids)
    assert counted(outs[True]) == counted(outs[False]) == wanted
    assert "龘" not in wanted and "國" in wanted and "國" not in characters(outs[True], ids)
    ziya_data("decide", outs[True], "rules.min_chars=off", "--workers", 1)  # the kept set can change
    assert counted(outs[True])["龘"] == 3
