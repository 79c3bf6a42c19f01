"""Step `verdicts`: thresholds over columns -> reasons of DP, AS and RF. Nothing else drops a document before deduplication.

A document meets the stages in the paper's order (read, preprocess, score, rules) and carries every reason of the first stage that
fails it; later stages are not reached. Only documents without a reason compete in deduplication.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_factory import tiers
from data_factory.config import DataConfig
from data_factory.documents import REASON, read_table, table_writer
from data_factory.rules import RULES, thresholds

STAGES = ("read", "preprocess", "score", "rules", "deduplicate")
TIERS = ("high", "medium", "low", "unranked")
VERDICTS = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("document_row", pa.int32()),
        ("stage", pa.string()),
        ("tier", pa.string()),
        ("reasons", pa.list_(REASON)),
    ]
)


@dataclass
class Table:
    """The measurement columns of one unit, as numpy arrays by name, and T2's columns spread over the same rows."""

    columns: dict[str, Any]
    rows: int

    @classmethod
    def read(cls, out: Path, name: str, columns: list[str], keys: list[str]) -> Table:
        """Read `columns` of measurements/ and `keys` of keys/ (NaN where a record has no T1)."""
        table = read_table(out / "measurements" / f"{name}.parquet", list(dict.fromkeys([*columns, "document_row"])))
        values = {column: _numpy(table[column]) for column in table.column_names}
        if keys:
            described = read_table(out / "keys" / f"{name}.parquet", keys)
            rows = values["document_row"]
            for column in keys:
                spread = np.full(table.num_rows, np.nan, np.float32)
                spread[rows >= 0] = _numpy(described[column])[rows[rows >= 0]]
                values[column] = spread
        return cls(values, table.num_rows)


def _numpy(column: pa.ChunkedArray) -> Any:
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    return column.to_numpy()


@dataclass
class Reasons:
    """Reasons of one unit while they are collected: rows, rule ids, values, thresholds."""

    rows: list[Any] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    limits: list[Any] = field(default_factory=list)

    def add(self, failed: Any, rule: str, values: Any, limits: Any) -> None:
        """Add `rule` for the rows where `failed`."""
        rows = np.flatnonzero(failed)
        if len(rows):
            self.rows.append(rows)
            self.rules.append(rule)
            self.values.append(np.broadcast_to(values, failed.shape)[rows].astype(np.float64))
            self.limits.append(np.broadcast_to(limits, failed.shape)[rows].astype(np.float64))


DP_COLUMNS = ["source", "drop", "drop_value", "lang", "lang_score", "url_domain", "url_hard_words", "url_soft_words"]


def _steps(config: DataConfig, sources: Any, step: str) -> Any:
    having = {source.name for source in config.sources if step in source.steps}
    return np.array([name in having for name in sources], bool)


def preprocess_reasons(config: DataConfig, table: Table, reasons: Reasons) -> Any:
    """Add the reasons of reading and DP; bool [n], the rows that pass."""
    column = table.columns
    structural = column["drop"] != ""
    for rule in sorted(set(column["drop"][structural])):
        reasons.add(column["drop"] == rule, rule, column["drop_value"], np.nan)
    alive = ~structural
    score = np.full(table.rows, -np.inf)
    for language, minimum in config.language.min_score.items():
        score[column["lang"] == language] = np.float32(minimum)
    low = alive & (column["lang_score"] < score) & _steps(config, column["source"], "language")
    reasons.add(low, "language.min_score", column["lang_score"], score)
    failed = low.copy()
    url = config.url
    for rule, name, limit in (
        ("url.domain", "url_domain", int(url.domain)),
        ("url.hard_words", "url_hard_words", url.hard_words),
        ("url.soft_words", "url_soft_words", url.soft_words),
    ):
        if limit:
            hit = alive & (column[name] >= limit)
            reasons.add(hit, rule, column[name], limit)
            failed |= hit
    return alive & ~failed


def ranked_rows(config: DataConfig, table: Table, past: Any) -> tuple[Any, Any]:
    """(bool [n]: rows that are ranked; object [n]: their ranking group). Rows past DP of sources that are scored, with a perplexity."""
    column = table.columns
    ranked = (
        past & _steps(config, column["source"], "scoring") & ~np.isnan(column["perplexity"]) & config.scoring.enabled
    )
    if config.scoring.ranking_group == "language":
        groups = column["lang"]
    else:
        groups = np.array(
            [f"{source}/{lang}" for source, lang in zip(column["source"], column["lang"], strict=True)], dtype=object
        )
    return ranked, groups


def score_reasons(
    config: DataConfig, table: Table, past: Any, cuts: dict[str, tiers.Cut], reasons: Reasons
) -> tuple[Any, Any]:
    """Add the reasons of AS; (bool [n] rows that pass, int8 [n] tier codes into TIERS)."""
    column = table.columns
    ranked, groups = ranked_rows(config, table, past)
    codes = np.full(table.rows, 3, np.int8)
    perplexity = column["perplexity"]
    rows = np.flatnonzero(ranked)
    codes[rows] = tiers.tiers(groups[rows], perplexity[rows], column["id"][rows], cuts)
    boundary = np.full(table.rows, np.nan)
    for group, cut in cuts.items():
        boundary[groups == group] = cut.medium[0] if cut.medium else np.nan
    failed = ranked & (codes == 2)
    reasons.add(failed, "scoring.medium", perplexity, boundary)
    for rule, limits, below in (
        ("scoring.max_perplexity", config.scoring.max_perplexity, False),
        ("scoring.min_perplexity", config.scoring.min_perplexity, True),
    ):
        for language, limit in limits.items():
            outside = perplexity < limit if below else perplexity > limit
            hit = ranked & (column["lang"] == language) & outside
            reasons.add(hit, rule, perplexity, limit)
            failed = failed | hit
    return past & ~failed, codes


def rule_reasons(config: DataConfig, table: Table, past: Any, reasons: Reasons) -> Any:
    """Add the reasons of RF's document rules and of benchmark items; bool [n], the rows that pass."""
    column = table.columns
    reached = past & _steps(config, column["source"], "rules")
    failed_any = np.zeros(table.rows, bool)
    active = thresholds(config.rules)
    zh = column["lang"] == "zh"
    for rule in RULES:
        if rule.effect != "drop" or rule.id not in active:
            continue
        limits = np.where(zh, active[rule.id].get("zh", np.nan), active[rule.id].get("en", np.nan))
        value = column[rule.feature]
        with np.errstate(invalid="ignore"):
            edge = limits.astype(np.float32)  # measurements are float32: 0.2 measured must equal 0.2 configured
            bad = value < edge if rule.bad == "below" else value > edge
        failed = reached & bad
        reasons.add(failed, f"rules.{rule.id}", value, limits)
        failed_any |= failed
    if config.decontaminate.against:  # whatever steps a source has: no kind of text may hold benchmark items
        limit = config.decontaminate.threshold
        held = past & (column["benchmark_coverage"] >= np.float32(limit))
        reasons.add(held, "decontaminate.threshold", column["benchmark_coverage"], limit)
        failed_any |= held
    return past & ~failed_any


def columns_needed() -> tuple[list[str], list[str]]:
    """(measurement columns, keys columns) that verdicts read."""
    features = [rule.feature for rule in RULES if rule.effect == "drop" and rule.text == "T1"]
    finals = [rule.feature for rule in RULES if rule.effect == "drop" and rule.text == "T2"]
    return list(dict.fromkeys(["id", "url", "date", "perplexity", *DP_COLUMNS, *features])), list(
        dict.fromkeys(["final_chars", *finals])
    )


def verdicts_unit(config: DataConfig, out: Path, name: str, cuts: dict[str, tiers.Cut]) -> dict[str, Any]:
    """Write work/verdicts/<name>.parquet and return how many rows each stage let pass."""
    measured, finals = columns_needed()
    finals += ["benchmark_coverage"] if config.decontaminate.against else []
    table = Table.read(out, name, measured, finals)
    reasons = Reasons()
    has_text = table.columns["drop"] == ""
    past_dp = preprocess_reasons(config, table, reasons)
    past_as, codes = score_reasons(config, table, past_dp, cuts, reasons)
    past_rf = rule_reasons(config, table, past_as, reasons)
    stage = np.full(table.rows, "", dtype=object)
    language_drop = np.isin(table.columns["drop"].astype(str), ["language.keep"])
    stage[~has_text] = "read"
    stage[language_drop | (has_text & ~past_dp)] = "preprocess"
    stage[past_dp & ~past_as] = "score"
    stage[past_as & ~past_rf] = "rules"
    tier = np.array(TIERS, dtype=object)[codes]
    with table_writer(out / "work" / "verdicts" / f"{name}.parquet", VERDICTS) as writer:
        writer.write(
            pa.table(
                [
                    pa.array(table.columns["id"], pa.string()),
                    pa.array(table.columns["url"], pa.string()),
                    pa.array(table.columns["document_row"], pa.int32()),
                    pa.array(stage, pa.string()),
                    pa.array(tier, pa.string()),
                    reason_lists(reasons, table.rows),
                ],
                names=VERDICTS.names,
            )
        )
    ranks: dict[str, dict[str, int]] = {}
    for code in range(3):
        names, counts = np.unique(table.columns["lang"][codes == code].astype(str), return_counts=True)
        for language, count in zip(names.tolist(), counts.tolist(), strict=True):
            ranks.setdefault(language, {})[TIERS[code]] = count
    return {
        "tiers": ranks,
        "rows": table.rows,
        "read": int((stage != "read").sum()),
        "preprocess": int(past_dp.sum()),
        "score": int(past_as.sum()),
        "rules": int(past_rf.sum()),
    }


def reason_lists(reasons: Reasons, n: int) -> pa.Array:
    """list<struct<rule, value, threshold, winner>> [n], reasons in the order in which they were added."""
    if not reasons.rows:
        return pa.array([[]] * n, pa.list_(REASON))
    rows = np.concatenate(reasons.rows)
    order = np.argsort(rows, kind="stable")
    names = pa.DictionaryArray.from_arrays(
        np.repeat(np.arange(len(reasons.rules), dtype=np.int32), [len(part) for part in reasons.rows])[order],
        reasons.rules,
    )
    limits = np.concatenate(reasons.limits)[order]
    fields = [
        names.cast(pa.string()),
        pa.array(np.concatenate(reasons.values)[order], from_pandas=True),
        pa.array(limits, from_pandas=True),  # NaN (no threshold) becomes null
        pa.nulls(len(rows), pa.string()),
    ]
    offsets = np.searchsorted(rows[order], np.arange(n + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.StructArray.from_arrays(fields, names=[item.name for item in REASON])
    )
