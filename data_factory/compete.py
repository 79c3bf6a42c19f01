"""Step `deduplicate`: hands the survivors' narrow columns to `dedup` and keeps its outcome per unit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_factory.config import DataConfig
from data_factory.dedup import resolve, seen
from data_factory.dedup.outcome import write_pairs
from data_factory.dedup.rows import STAGES, SURVIVOR
from data_factory.dedup.url_keys import url_keys
from data_factory.documents import read_batches, read_table
from data_factory.identify import format_ids, parse_ids
from ziya.files import atomic_path, file_digest
from ziya.progress import done

# Winners' order: documents of unranked (curated) sources first, then by tier.
_TIER_ORDER = {"unranked": 0, "high": 1, "medium": 2, "low": 3}


@dataclass(frozen=True)
class DuplicateRows:
    """One unit's losers (`rows` of measurements/, the deciding setting, value, threshold, winner's id) and winners' copy counts."""

    rows: Any
    rules: list[str]
    values: Any
    limits: Any
    winners: list[str]
    copy_rows: Any
    copies: Any

    def save(self, path: Path) -> None:
        """Write as .npz, deterministically."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                rows=self.rows,
                rules=np.array(self.rules, "U16"),
                values=self.values,
                limits=self.limits,
                winners=np.array(self.winners, "U64"),
                copy_rows=self.copy_rows,
                copies=self.copies,
            )

    @classmethod
    def load(cls, path: Path) -> DuplicateRows:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(
                data["rows"],
                data["rules"].tolist(),
                data["values"],
                data["limits"],
                data["winners"].tolist(),
                data["copy_rows"],
                data["copies"],
            )


def survivors(config: DataConfig, out: Path, names: Sequence[str]) -> Iterator[Any]:
    """Structured rows of the documents without a reason so far, unit by unit."""
    takes_part = {source.name for source in config.sources if "dedup" in source.steps}
    for unit, name in enumerate(names):
        verdicts = read_table(out / "work" / "verdicts" / f"{name}.parquet", ["id", "stage", "tier", "document_row"])
        measured = read_table(out / "measurements" / f"{name}.parquet", ["date", "source"])
        stage = np.array(verdicts["stage"].to_pylist(), dtype=object)
        source = np.array([value in takes_part for value in measured["source"].to_pylist()], bool)
        rows = np.flatnonzero((stage == "") & source)
        keys = read_table(
            out / "keys" / f"{name}.parquet",
            ["final_chars", "exact_hi", "exact_lo", "url_hi", "url_lo", "simhash", "shingles"],
        )
        places = np.asarray(verdicts["document_row"])[rows]
        table = np.zeros(len(rows), SURVIVOR)
        table["unit"], table["row"] = unit, rows
        tiers = np.array([_TIER_ORDER[tier] for tier in verdicts["tier"].to_pylist()], np.uint8)
        table["tier"] = tiers[rows]
        date = np.asarray(measured["date"])[rows]
        table["date"] = np.where(date == 0, np.iinfo(np.int64).min, date)  # unknown dates lose to known ones
        if len(rows):
            ids = verdicts["id"].to_pylist()
            table["id_hi"], table["id_lo"] = parse_ids([ids[row] for row in rows])
        table["chars"] = np.asarray(keys["final_chars"])[places].astype(np.uint32)
        for column in ("exact_hi", "exact_lo", "url_hi", "url_lo", "simhash", "shingles"):
            table[column] = np.asarray(keys[column])[places]
        done(len(rows), table.nbytes)
        yield table


# Stage -> the reason's id. The winner of `seen` is an earlier run.
_REASONS = {"seen": "dedup.seen_urls", "url": "dedup.url", "exact": "dedup.exact", "fuzzy": "dedup.fuzzy"}


def deduplicate(config: DataConfig, out: Path, names: Sequence[str], memory_rows: int) -> dict[str, Any]:
    """Run URL, exact and fuzzy deduplication; writes work/duplicates/<unit>.npz and duplicates/pairs.parquet. Returns counts."""
    earlier = seen.SeenUrls.load(config.dedup.seen_urls) if config.dedup.seen_urls else None
    # named by the digest of its filter
    earlier_runs = [f"earlier run {file_digest(Path(path))}" for path in config.dedup.seen_urls]

    def signatures(unit: int) -> Any:
        column = read_table(out / "keys" / f"{names[unit]}.parquet", ["minhash"])["minhash"].combine_chunks()
        rows = np.asarray(read_table(out / "measurements" / f"{names[unit]}.parquet", ["document_row"])["document_row"])
        spread = np.zeros((len(rows), config.dedup.fuzzy.permutations), np.uint32)
        spread[rows >= 0] = np.asarray(column.flatten()).reshape(len(column), -1)
        return spread

    fuzzy = config.dedup.fuzzy
    work = out / "work" / "dedup"
    outcome = resolve.deduplicate(
        lambda: survivors(config, out, names),
        config.dedup,
        work,
        earlier,
        signatures if fuzzy.method == "minhash" else None,
        memory_rows,
    )
    limits = {"fuzzy": float(fuzzy.distance) if fuzzy.method == "simhash" else fuzzy.similarity}
    for unit, name in enumerate(names):
        losers, copies = outcome.for_unit(unit)
        stages = [STAGES[code] for code in losers["stage"].tolist()]
        winners = format_ids(losers["winner_hi"], losers["winner_lo"]) if len(losers) else []
        DuplicateRows(
            losers["row"].astype(np.int64),
            [_REASONS[stage] for stage in stages],
            np.where([stage == "fuzzy" for stage in stages], losers["value"], np.nan).astype(np.float64)
            if len(losers)
            else np.zeros(0),
            np.array([limits.get(stage, np.nan) for stage in stages], np.float64),
            [
                earlier_runs[losers["winner_lo"][at]] if stage == "seen" else winners[at]
                for at, stage in enumerate(stages)
            ],
            copies["row"].astype(np.int64),
            copies["copies"].astype(np.int32),
        ).save(out / "work" / "duplicates" / f"{name}.npz")
    write_pairs(outcome, out / "duplicates" / "pairs.parquet", is_similarity=fuzzy.method == "minhash")
    shutil.rmtree(work)
    return {
        "survivors": outcome.survivors,
        "kept": outcome.kept,
        "losers": {_REASONS[stage]: count for stage, count in sorted(outcome.losers.items())},
        "near_pairs": outcome.pairs,
        "expected_false_drops": outcome.expected_false_drops,
    }


def remember_urls(path: Path, kept: Sequence[Path], error_rate: float) -> dict[str, Any]:
    """Write the Bloom filter over the URLs of kept documents."""
    count = sum(pq.ParquetFile(file).metadata.num_rows for file in kept)
    keys = (url_keys(table["url"].to_pylist()) for file in kept for table in read_batches(file, ["url"]))
    seen.write(path, keys, count, error_rate)
    return {"urls": count}
