"""Where benchmarks take their texts from."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path


def read_texts(paths: Iterable[Path]) -> list[str]:
    """The `text` field of every line of JSONL files, plain or gzipped."""
    texts = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            texts += [str(json.loads(line)["text"]) for line in file]
    return texts


def read_run(out: Path, language: str) -> list[str]:
    """The measured texts (T1) of a language in a run's folder, whatever became of them after the language filter."""
    from data_factory.documents import read_table

    texts = []
    for path in sorted((out / "documents").glob("[0-9]*.parquet")):
        held = read_table(path, ["text"])["text"]
        measured = read_table(out / "measurements" / path.name, ["lang", "document_row"]).to_pylist()
        stages = read_table(out / "decisions" / path.name, ["stage"])["stage"].to_pylist()
        for row, stage in zip(measured, stages, strict=True):
            if row["lang"] == language and row["document_row"] >= 0 and stage not in ("read", "preprocess"):
                texts.append(held[row["document_row"]].as_py())
    return texts
