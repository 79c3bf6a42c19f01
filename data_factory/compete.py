"""Step `deduplicate`: hands the survivors' narrow columns to `dedup` and keeps its outcome per unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_factory import dedup
from data_factory.config import DataConfig
from data_factory.dedup.seen import SeenUrls
from data_factory.documents import read_table
from data_factory.identify import format_ids, parse_ids
from ziya.files import atomic_path

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
                file, rows=self.rows, rules=np.array(self.rules, "U16"), values=self.values, limits=self.limits,
                winners=np.array(self.winners, "U64"), copy_rows=self.copy_rows, copies=self.copies,
            )

    @classmethod
    def load(cls, path: Path) -> DuplicateRows:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(data["rows"], data["rules"].tolist(), data["values"], data["limits"], data["winners"].tolist(), data["copy_rows"], data["copies"])


def survivors(config: DataConfig, out: Path, names: Sequence[str]) -> Iterator[Any]:
    """Structured rows of the documents without a reason so far, unit by unit."""
    takes_part = {source.name for source in config.sources if "dedup" in source.steps}
    for unit, name in enumerate(names):
        verdicts = read_table(out / "work" / "verdicts" / f"{name}.parquet", ["id", "stage", "tier", "document_row"])
        measured = read_table(out / "measurements" / f"{name}.parquet", ["date", "source"])
        stage = np.array(verdicts["stage"].to_pylist(), dtype=object)
        source = np.array([value in takes_part for value in measured["source"].to_pylist()], bool)
        rows = np.flatnonzero((stage == "") & source)
        keys = read_table(out / "keys" / f"{name}.parquet", ["final_chars", "exact_hi", "exact_lo", "url_hi", "url_lo", "simhash", "shingles"])
        places = np.asarray(verdicts["document_row"])[rows]
        table = np.zeros(len(rows), dedup.SURVIVOR)
        table["unit"], table["row"] = unit, rows
        tiers = np.array([_TIER_ORDER[tier] for tier in verdicts["tier"].to_pylist()], np.uint8)
        table["tier"] = tiers[rows]
        table["date"] = np.asarray(measured["date"])[rows]
        if len(rows):
            ids = verdicts["id"].to_pylist()
            table["id_hi"], table["id_lo"] = parse_ids([ids[row] for row in rows])
        table["chars"] = np.asarray(keys["final_chars"])[places].astype(np.uint32)
        for column in ("exact_hi", "exact_lo", "url_hi", "url_lo", "simhash", "shingles"):
            table[column] = np.asarray(keys[column])[places]
        yield table


def deduplicate(config: DataConfig, out: Path, names: Sequence[str], memory_rows: int) -> dict[str, Any]:
    """Run URL, exact and fuzzy deduplication; writes work/duplicates/<unit>.npz. Returns counts."""
    seen = SeenUrls.load(config.dedup.seen_urls) if config.dedup.seen_urls else None

    def signatures(unit: int) -> Any:
        name = names[unit]
        column = read_table(out / "keys" / f"{name}.parquet", ["minhash"])["minhash"].combine_chunks()
        rows = np.asarray(read_table(out / "measurements" / f"{name}.parquet", ["document_row"])["document_row"])
        table = np.asarray(column.flatten()).reshape(len(column), -1)
        spread = np.zeros((len(rows), table.shape[1] if len(column) else 1), np.uint32)
        spread[rows >= 0] = table[rows[rows >= 0]]
        return spread

    fuzzy = config.dedup.fuzzy
    outcome = dedup.deduplicate(
        lambda: survivors(config, out, names), config.dedup, out / "work" / "dedup", seen, signatures if fuzzy.method == "minhash" else None, memory_rows
    )
    limit = {"fuzzy": float(fuzzy.distance) if fuzzy.method == "simhash" else fuzzy.similarity}
    for unit, name in enumerate(names):
        losers, copies = outcome.for_unit(unit)
        stages = [outcome.stage_name(code) for code in losers["stage"].tolist()]
        winners = format_ids(losers["winner_hi"], losers["winner_lo"]) if len(losers) else []
        DuplicateRows(
            losers["row"].astype(np.int64),
            [{"seen": "dedup.seen_urls", "fuzzy": "dedup.fuzzy"}.get(stage, f"dedup.{stage}") for stage in stages],
            losers["value"].astype(np.float64),
            np.array([limit.get(stage, np.nan) for stage in stages], np.float64),
            ["earlier run" if stage == "seen" else winner for stage, winner in zip(stages, winners, strict=True)],
            copies["row"].astype(np.int64),
            copies["copies"].astype(np.int32),
        ).save(out / "work" / "duplicates" / f"{name}.npz")
    return outcome.summary()
