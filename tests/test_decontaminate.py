"""`decontaminate.against`: documents that hold benchmark items are dropped with a reason; off, nothing changes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawls import SHARED, prose, write_config, ziya_data

from data_factory import benchmarks, run_state
from data_factory.batches import TextBatch
from data_factory.config import DataConfig, Normalize
from ziya import config as settings
from ziya.errors import UserError

RNG = random.Random(4)
WORDS = ["".join(RNG.choice("aeioulnrst") for _ in range(RNG.randrange(3, 9))) for _ in range(400)]
ITEMS: list[dict[str, str]] = []
for _ in range(3):  # Chinese ones with characters of both scripts, which T1 does not keep
    ITEMS.append({"question": "".join(chr(RNG.randrange(0x4E00, 0x9000)) for _ in range(30)) + "是多少？"})
    ITEMS[-1] |= {"A": "一吨煤", "B": "两吨铁", "C": "三吨盐", "D": "四吨糖", "answer": "B"}
    ITEMS.append({"question": f"{' '.join(RNG.choices(WORDS, k=36))}. How many?", "answer": "#### 7"})


def text(item: dict[str, str]) -> str:
    return "\n".join(value for name, value in item.items() if name != "answer")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run over JSONL against a folder of items: two documents hold one whole, one holds two thirds, one hides it in a cut."""
    folder = tmp_path_factory.mktemp("decontaminate")
    documents = [{"id": f"d{n}", "text": prose(n, "zh" if n % 2 else "en")} for n in range(8)]
    documents.append({"id": "whole-en", "text": f"{prose(50, 'en')}\n\n{text(ITEMS[1]).upper()}\n\n{prose(51, 'en')}"})
    documents.append({"id": "whole-zh", "text": f"{prose(52, 'zh')}\n\n{text(ITEMS[2])}\n\n{prose(53, 'zh')}"})
    part = ITEMS[3]["question"].split()
    documents.append({"id": "part", "text": f"{prose(54, 'en')}\n\n{' '.join(part[: len(part) * 2 // 3])}"})
    documents.append({"id": "masked", "text": f"{prose(55, 'en')}\n\nAsk user.name@example.org for more, {prose(56, 'en')}"})
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents), encoding="utf-8")
    (folder / "bench").mkdir()
    lines = [json.dumps(item) for item in ITEMS]
    (folder / "bench" / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "bench" / "LICENSE").write_text("not a benchmark", encoding="utf-8")
    steps = ["language", "normalize"]
    config = write_config(
        folder / "config.json", decontaminate={"against": [str(folder / "bench")]},
        sources=[{"name": "web", "paths": [str(path)], "id_field": "id", "steps": steps}],
    )  # fmt: skip
    ziya_data("run", config, "--output", folder / "out", "--workers", 1)
    return {"folder": folder, "config": config, "out": folder / "out"}


def decisions(out: Path) -> dict[str, Any]:
    """Key of the input's document -> its decision."""
    tables = [
        [row for path in sorted((out / name).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        for name in ("measurements", "decisions")
    ]
    keys = {row["id"]: row["key"] for row in tables[0]}
    return {keys[row["id"]]: row for row in tables[1]}


def test_documents_that_hold_an_item_are_dropped_with_the_reason(world: dict[str, Path]) -> None:
    rows = decisions(world["out"])
    assert {name for name, row in rows.items() if not row["kept"]} == {"whole-en", "whole-zh"}
    for name in ("whole-en", "whole-zh"):
        (reason,) = rows[name]["reasons"]
        assert reason["rule"] == "decontaminate.threshold" and reason["value"] == 1.0 and reason["threshold"] == 0.8
        assert rows[name]["stage"] == "rules"
    summary = json.loads((world["out"] / "summary.json").read_text(encoding="utf-8"))
    assert summary["reasons"] == {"decontaminate.threshold": 2}
    assert summary["documents"]["in"] == 12 == summary["documents"]["kept"] + 2
    assert "holds a benchmark item" in (world["out"] / "report.html").read_text(encoding="utf-8")


def test_explain_names_the_item_and_decide_moves_the_threshold(world: dict[str, Path]) -> None:
    rows = decisions(world["out"])
    told = ziya_data("explain", world["out"], "--id", rows["part"]["id"], "--json").stdout
    (life,) = json.loads(told)
    measured = life["measurements"]
    assert measured["benchmark_item"] == "bench/test.jsonl:4" and 0.5 < measured["benchmark_coverage"] < 0.8
    check = next(check for check in life["checks"] if check["rule"] == "decontaminate.threshold")
    assert check["passes"] and check["must"] == "<" and check["threshold"] == 0.8
    refused = ziya_data("decide", world["out"], f"decontaminate.against=[{world['folder'] / 'in.jsonl'}]", expect=2)
    assert "decontaminate.against" in refused.stderr and "measuring" in refused.stderr
    ziya_data("decide", world["out"], "decontaminate.threshold=0.5", "--workers", 1)
    assert {name for name, row in decisions(world["out"]).items() if not row["kept"]} == {"whole-en", "whole-zh", "part"}
    ziya_data("decide", world["out"], "decontaminate.threshold=0.8", "--workers", 1)


def test_a_run_without_it_is_what_it_was_before(world: dict[str, Path]) -> None:
    sources = [{"name": "web", "paths": ["x"]}]
    off = settings.parse(DataConfig, {"sources": sources}, "x")
    for phase in (settings.MEASURING, settings.DECIDING):
        assert not [name for name in run_state.setting_values(off, phase) if name.startswith("decontaminate")]
    on = settings.parse(DataConfig, {"sources": sources, "decontaminate": {"against": [str(world["folder"] / "bench")]}}, "x")
    found = run_state.setting_values(on, settings.MEASURING)["decontaminate.against"]
    assert len(found) == 1 and len(found[0]) == 32, "content counts, not the path"
    with pytest.raises(UserError, match=r"decontaminate\.against = /nowhere: no such file"):
        missing = settings.parse(DataConfig, {"sources": sources, "decontaminate": {"against": ["/nowhere"]}}, "x")
        run_state.setting_values(missing, settings.MEASURING)


def test_every_format_gives_the_question_with_its_options(tmp_path: Path) -> None:
    expected = [text(item) for item in ITEMS if "A" in item]
    rows = [item for item in ITEMS if "A" in item]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    names = ["id", "question", *"ABCD", "answer"]
    for name, header in (("c.csv", True), ("d.csv.gz", True), ("e.csv", False)):
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        if header:
            writer.writerow(names)
        writer.writerows([[str(n), *(row[key] for key in names[1:])][0 if header else 1 :] for n, row in enumerate(rows)])
        content = buffer.getvalue().encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (tmp_path / "f.txt").write_text("\n\n".join(expected), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "g.parquet")
    choices = [{"question": row["question"], "choices": {"text": [row[key] for key in "ABCD"], "label": []}} for row in rows]
    (tmp_path / "h.jsonl").write_text("\n".join(json.dumps(row) for row in choices), encoding="utf-8")
    for path in sorted(tmp_path.iterdir()):
        assert [found for _, found in benchmarks.read_items(path)] == expected, path.name
    assert len(list(benchmarks.read_items(tmp_path))) == 8 * len(expected)
    assert benchmarks.json_item({"x": "我", "y": ["b"]}) == "我\nb"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.jsonl", b"{", "cannot be read"), ("b.txt.gz", b"x", "cannot be read"), ("c.csv", b"\xff\xfe", "cannot be read"),
        ("d.parquet", b"x", "cannot be read"), ("e.exe", b"x", "no known kind"), ("f.txt", b" \n", "holds no text"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            list(benchmarks.read_items(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no benchmark"):
        list(benchmarks.read_items(tmp_path / "empty"))


def test_the_index_gives_the_same_bytes_and_the_best_item(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(item) for item in ITEMS), encoding="utf-8")
    paths = [tmp_path / "one.npz", tmp_path / "two.npz"]
    counts = [benchmarks.write_index([str(tmp_path / "t.jsonl")], Normalize(), path) for path in paths]
    assert counts[0] == counts[1] and counts[0]["items"] == counts[0]["checked"] == len(ITEMS)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    (simplified,) = benchmarks.normalised([text(ITEMS[4])], Normalize())
    assert simplified != text(ITEMS[4])
    batch = TextBatch.from_strings(["x", simplified, prose(1, "en")])
    share, names = benchmarks.coverage(paths[0], batch)
    assert share.dtype == np.float32 and share.tolist() == [0.0, 1.0, 0.0] and names == ["", "t.jsonl:5", ""]


@pytest.mark.skipif(not (SHARED / "benchmarks").is_dir(), reason="the shared benchmark files are not here")
def test_the_official_files_are_read(tmp_path: Path) -> None:
    places = {"gsm8k/test.jsonl": 200, "humaneval": 164, "mmlu/test": 100, "cmmlu/test": 100, "ceval/val": 50, "math": 50}
    for place, least in places.items():
        found = list(benchmarks.read_items(SHARED / "benchmarks" / place))
        assert len(found) >= least, place
        counts = benchmarks.write_index([str(SHARED / "benchmarks" / place)], Normalize(), tmp_path / "i.npz")
        assert counts["checked"] >= 0.85 * counts["items"], place
