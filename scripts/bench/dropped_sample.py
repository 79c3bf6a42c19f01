"""Dropped pages of a run, drawn by hash(seed, id), with reasons and text, for a person to read.

    python scripts/bench/dropped_sample.py OUT --count 100 --seed 7 [--input CRAWL ...] [--reason rules.] [--stage rules]
        [--head 700] [--tail 300] [--rows sample.jsonl]

A page that fell before it had a T1 (`language.keep`) is read again from `--input`, the paths that the run was given.
Beside a duplicate stands the text of the winner that its decision names. `--rows` writes one JSON line a page.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from data_factory import run_state, units
from data_factory.config import DataConfig
from data_factory.documents import read_table
from data_factory.extract import record_text
from data_factory.sources import Record, read_unit


def dropped(out: Path, reasons: list[str], stages: list[str]) -> list[dict[str, Any]]:
    """Decisions of all dropped documents, with where they were read; those with a wanted reason (prefix) and stage."""
    rows = []
    for path in sorted((out / "decisions").glob("*.parquet")):
        columns = ["lang", "lang_score", "file", "offset", "document_row", "chars"]
        measured = read_table(out / "measurements" / path.name, columns).to_pylist()
        for decision, where in zip(read_table(path).to_pylist(), measured, strict=True):
            names = [reason["rule"] for reason in decision["reasons"]]
            wanted = not reasons or any(name.startswith(prefix) for name in names for prefix in reasons)
            if not decision["kept"] and wanted and (not stages or decision["stage"] in stages):
                rows.append({**decision, **where, "unit": path.stem})
    return rows


def draw(rows: list[dict[str, Any]], seed: int, count: int) -> list[dict[str, Any]]:
    """The `count` rows with the smallest hash of (seed, id)."""
    return sorted(rows, key=lambda row: hashlib.blake2b(f"{seed}:{row['id']}".encode()).digest())[:count]


def texts_by_id(out: Path, ids: set[str]) -> dict[str, str]:
    """T1 of documents that have one."""
    found = {}
    for path in sorted((out / "documents").glob("*.parquet")):
        table = read_table(path, ["id", "text"])
        for number, name in enumerate(table["id"].to_pylist()):
            if name in ids:
                found[name] = str(table["text"][number].as_py())
    return found


def read_again(config: DataConfig, inputs: list[str], rows: list[dict[str, Any]]) -> dict[str, str]:
    """T0 of the records of `rows`, by id, read from the input."""
    wanted = {(row["file"], row["offset"]): row["id"] for row in rows}
    config = config.model_copy(update={"sources": [config.sources[0].model_copy(update={"paths": inputs})]})
    found = {}
    with tempfile.TemporaryDirectory() as spool:
        for unit in units.plan(config, Path(spool), None).units:
            for item in read_unit(unit, config.sources[0], config.read, Counter()):
                if isinstance(item, Record) and (unit.label, item.offset) in wanted and not item.drop:
                    found[wanted[unit.label, item.offset]] = record_text(item, config.read).translate({2: None, 3: None})
    return found


def shown(text: str, head: int, tail: int) -> str:
    """Head and tail of a text, blank lines left out."""
    text = "\n".join(line for line in text.split("\n") if line.strip())
    if len(text) <= head + tail + 40:
        return text
    return f"{text[:head]}\n[... {len(text) - head - tail} characters ...]\n{text[len(text) - tail :]}"


def differences(text: str, winner: str, limit: int) -> str:
    """The lines of one text that the other lacks, - and + as in a diff; at most `limit` of them, then how many more."""
    mine, theirs = ([line.strip() for line in item.split("\n") if line.strip()] for item in (text, winner))
    lines = [line for line in difflib.unified_diff(mine, theirs, lineterm="", n=0) if line[:3] not in ("---", "+++") and line[:2] != "@@"]
    more = f"\n[{len(lines) - limit} more; {len(mine)} lines here, {len(theirs)} in the winner]" if len(lines) > limit else ""
    return "\n".join(line[:200] for line in lines[:limit]) + more


def main() -> None:
    """Draw, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--reason", nargs="+", default=[], help="only documents with a reason that starts so")
    parser.add_argument("--stage", nargs="+", default=[], help="only documents that fell in these stages")
    parser.add_argument("--input", nargs="+", default=[], help="the input of the run, for pages without T1")
    parser.add_argument("--head", type=int, default=700)
    parser.add_argument("--tail", type=int, default=300)
    parser.add_argument("--lines", type=int, default=16, help="differing lines shown of a duplicate")
    parser.add_argument("--rows", type=Path, help="also write JSON lines here")
    arguments = parser.parse_args()
    out: Path = arguments.out
    everything = dropped(out, arguments.reason, arguments.stage)
    sample = draw(everything, arguments.seed, arguments.count)
    winners = {reason["winner"] for row in sample for reason in row["reasons"] if reason["winner"]}
    texts = texts_by_id(out, {row["id"] for row in sample} | winners)
    missing = [row for row in sample if row["id"] not in texts]
    if missing and arguments.input:
        texts |= read_again(run_state.stored_config(out), arguments.input, missing)
    print(f"{len(sample)} of {len(everything)} dropped documents, seed {arguments.seed}")
    lines = []
    for number, row in enumerate(sample, start=1):
        print(f"\n##### {number} {row['id']} {row['url']}")
        print(f"[{row['lang']} {row['lang_score']:.2f}] stage {row['stage']}, {row['chars']:.0f} characters")
        for reason in row["reasons"]:
            print("   ", ", ".join(f"{name} {value}" for name, value in reason.items() if value is not None))
        print(shown(texts.get(row["id"], "(no text stored; give --input)"), arguments.head, arguments.tail))
        for reason in row["reasons"]:
            if reason["winner"] in texts:
                print(f"--- winner {reason['winner']} ({len(texts[reason['winner']])} characters); lines that differ:")
                print(differences(texts.get(row["id"], ""), texts[reason["winner"]], arguments.lines))
        lines.append(json.dumps({**row, "text": texts.get(row["id"], "")}, ensure_ascii=False))
    if arguments.rows:
        arguments.rows.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
