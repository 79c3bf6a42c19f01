"""Did every record of the demo crawl meet its planted fate?

    python scripts/demo/check.py OUT_DIR CRAWL_DIR

Joins OUT_DIR/measurements (file, offset, key), decisions, quarantine and kept with CRAWL_DIR/expected.jsonl, prints
every miss, and exits 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Entry = dict[str, Any]


def rows(folder: Path, columns: list[str]) -> list[Entry]:
    """All rows of a table of the run, as dictionaries."""
    found: list[Entry] = []
    for path in sorted(folder.glob("*.parquet")):
        found += pq.read_table(path, columns=columns).to_pylist()
    return found


def name_of(file: str) -> str:
    """Name of an input file without its folders: what the crawl and the run agree on."""
    return file.replace("\\", "/").rsplit("/", 1)[-1]


@dataclass
class Run:
    """What the run says about its records."""

    by_key: dict[str, str]  # WARC-Record-ID -> document id
    by_place: dict[tuple[str, int], str]  # (file, offset) -> document id
    decisions: dict[str, Entry]
    quarantine: list[Entry]
    texts: dict[str, str]
    told: set[int] = field(default_factory=set)  # quarantine rows that an expected damage explains

    @classmethod
    def read(cls, out: Path) -> Run:
        """Read the tables of a finished run."""
        measured = rows(out / "measurements", ["id", "file", "offset", "key"])
        return cls(
            by_key={row["key"]: row["id"] for row in measured if row["key"]},
            by_place={(name_of(row["file"]), row["offset"]): row["id"] for row in measured},
            decisions={row["id"]: row for row in rows(out / "decisions", ["id", "url", "kept", "reasons"])},
            quarantine=rows(out / "quarantine", ["source", "offset", "error"]),
            texts={row["id"]: row["text"] for row in rows(out / "kept", ["id", "text"])},
        )

    def id_of(self, entry: Entry) -> str | None:
        """Document id of an expected record: by its record id, else by its place in its file."""
        if "key" in entry:
            return self.by_key.get(entry["key"])
        return self.by_place.get((name_of(entry["file"]), entry["offset"]))

    def quarantined(self, entry: Entry) -> list[int]:
        """Quarantine rows inside the byte range of an expected record."""
        name, first = name_of(entry["file"]), entry["offset"]
        return [
            number
            for number, row in enumerate(self.quarantine)
            if name_of(row["source"]) == name and first <= row["offset"] < first + max(entry["length"], 1)
        ]


def reasons_of(decision: Entry) -> list[str]:
    """Rule ids of a decision, in their order."""
    return [reason["rule"] for reason in decision["reasons"] or []]


def told(decision: Entry) -> str:
    """A decision in words."""
    return "kept" if decision["kept"] else "dropped: " + ", ".join(reasons_of(decision))


def text_misses(entry: Entry, text: str) -> list[str]:
    """Strings that the kept text should contain or lack."""
    return [
        *(f"kept, but the text lacks {wanted!r}" for wanted in entry.get("contains", []) if wanted not in text),
        *(f"kept, but the text still has {trace!r}" for trace in entry.get("lacks", []) if trace in text),
    ]


def check_entry(entry: Entry, run: Run) -> list[str]:
    """Misses of one record (groups are checked apart)."""
    fate = entry["fate"]
    if fate == "quarantined":
        found = run.quarantined(entry)
        run.told.update(found)
        return [] if found else ["no row in quarantine"]
    document = run.id_of(entry)
    if fate == "other":
        return [] if document is None else ["counted as a document"]
    if document is None:
        found = run.quarantined(entry)
        run.told.update(found)
        return [f"quarantined: {run.quarantine[found[0]]['error']}" if found else "not among the records of the run"]
    decision = run.decisions.get(document)
    if decision is None:
        return ["no decision"]
    if fate == "kept":
        return text_misses(entry, run.texts.get(document, "")) if decision["kept"] else [told(decision)]
    if decision["kept"]:
        return ["kept"]
    return [] if set(entry["reason"]) & set(reasons_of(decision)) else [told(decision)]


def check_group(entries: list[Entry], run: Run) -> list[tuple[Entry, str]]:
    """Misses of a group of duplicates: one is kept, the others fall for the planted reason and name a kept winner."""
    found = [(entry, run.decisions.get(run.id_of(entry) or "")) for entry in entries]
    misses = [(entry, "not among the decisions of the run") for entry, decision in found if decision is None]
    known = [(entry, decision) for entry, decision in found if decision is not None]
    winners = {decision["id"] for _, decision in known if decision["kept"]}
    if len(winners) != 1:
        misses += [(entry, f"{len(winners)} of the group are kept; {told(decision)}") for entry, decision in known]
        return misses
    for entry, decision in known:
        if decision["kept"]:
            misses += [(entry, miss) for miss in text_misses(entry, run.texts.get(decision["id"], ""))]
            continue
        fitting = [reason for reason in decision["reasons"] if reason["rule"] in entry["reason"]]
        if not fitting:
            misses.append((entry, told(decision)))
        elif all(reason["winner"] not in winners for reason in fitting):
            misses.append((entry, f"{fitting[0]['rule']} names {fitting[0]['winner']}, not the kept page of its group"))
    return misses


def check(out: Path, crawl: Path) -> tuple[list[tuple[Entry, str]], int]:
    """All misses as (expected record, what happened instead), and the number of planted records."""
    entries = [json.loads(line) for line in (crawl / "expected.jsonl").read_text(encoding="utf-8").splitlines()]
    run = Run.read(out)
    misses: list[tuple[Entry, str]] = []
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry["fate"] == "one_of_group":
            groups[entry["group"]].append(entry)
        else:
            misses += [(entry, miss) for miss in check_entry(entry, run)]
    for group in groups.values():
        misses += check_group(group, run)
    for number, row in enumerate(run.quarantine):
        if number not in run.told:
            place = {
                "file": name_of(row["source"]),
                "offset": row["offset"],
                "fate": "not quarantined",
                "reason": [],
                "note": "",
            }
            misses.append((place, f"unexpected row in quarantine: {row['error']}"))
    return misses, len(entries)


def main() -> int:
    """Print the misses as a table; 1 when there is one."""
    parser = argparse.ArgumentParser(description="Check the planted fates of the demo crawl.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="output folder of the run")
    parser.add_argument("crawl", type=Path, metavar="CRAWL_DIR", help="folder that make_crawl.py wrote")
    arguments = parser.parse_args()
    for path in (arguments.out / "decisions", arguments.crawl / "expected.jsonl"):
        if not path.exists():
            parser.error(
                f"{path} does not exist: give the output of a finished run, then the folder that make_crawl.py wrote"
            )
    misses, total = check(arguments.out, arguments.crawl)
    missed = {(entry["file"], entry["offset"]) for entry, _ in misses}
    for entry, miss in misses:
        place = f"{entry['file']} at {entry['offset']}"
        wanted = " or ".join([entry["fate"].replace("_", " "), *entry["reason"]][-4:])
        print(f"{place:44} {entry.get('url', '')}\n    {entry['note']}\n    planted: {wanted}\n    found:   {miss}")
    if misses:
        print(f"{len(missed)} places of {total} planted records did not meet their fate")
        for note, count in Counter(entry["note"] for entry, _ in misses).most_common():
            print(f"  {count:4} {note}")
        return 1
    print(f"{total} of {total} planted pages met their fate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
