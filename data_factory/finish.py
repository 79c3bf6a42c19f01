"""Step `finish`: T1 and the thresholds of cut and mask rules -> T2 and its keys, per unit.

T2 is never stored for dropped documents: it is rebuilt from T1 and the candidate spans wherever it is needed, which is cheaper than
the disk it would take and cannot go stale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_factory import benchmarks, measure
from data_factory.batches import Spans, TextBatch
from data_factory.config import DataConfig
from data_factory.dedup import keys as dedup_keys
from data_factory.dedup import lines as dedup_lines
from data_factory.dedup.url_keys import url_keys
from data_factory.documents import read_batches, table_writer
from data_factory.language import language_codes
from data_factory.rules import RULES, cut, privacy, thresholds
from ziya.progress import done

# The pseudo-rule of corpus-wide frequent lines; its threshold is dedup.lines.max_documents.
LINE_RULE = len(RULES) + 1
LINE_RULE_ID = "dedup.lines.max_documents"


def keys_schema(config: DataConfig) -> pa.Schema:
    """Columns of keys/: one row per row of documents/, in the same order."""
    fields = [
        ("id", pa.string()),
        ("final_chars", pa.float32()),
        ("removed_share", pa.float32()),
        ("cut_rules", pa.list_(pa.string())),  # rules whose cuts or masks were applied, each once, sorted
        ("exact_hi", pa.uint64()),
        ("exact_lo", pa.uint64()),
        ("url_hi", pa.uint64()),
        ("url_lo", pa.uint64()),
        ("simhash", pa.uint64()),
        ("shingles", pa.int32()),
    ]
    if config.decontaminate.against:
        fields += [("benchmark_coverage", pa.float32()), ("benchmark_item", pa.string())]
    if config.dedup.fuzzy.method == "minhash":
        fields.append(("minhash", pa.list_(pa.uint32(), config.dedup.fuzzy.permutations)))
    return pa.schema(fields)


@dataclass(frozen=True)
class Limits:
    """Thresholds of span rules as arrays over rule numbers: `limit[language][rule]` (NaN = off) and the failing side."""

    limit: Any  # float64 [2, rules + 2], row 0 every language but zh, row 1 zh
    above: Any  # bool [rules + 2]
    masks: Any  # bool [rules + 2]

    @classmethod
    def of(cls, config: DataConfig) -> Limits:
        """The thresholds in force."""
        count = len(RULES) + 2
        limit, above, masks = np.full((2, count), np.nan), np.ones(count, bool), np.zeros(count, bool)
        active = thresholds(config.rules)
        for number, rule in enumerate(RULES, start=1):
            if rule.effect == "drop":
                continue
            above[number], masks[number] = rule.bad == "above", rule.effect == "mask"
            for row, language in enumerate(("en", "zh")):
                limit[row, number] = active.get(rule.id, {}).get(language, np.nan)
        if config.dedup.lines.max_documents:
            limit[:, LINE_RULE] = config.dedup.lines.max_documents
        return cls(limit, above, masks)

    def applied(self, spans: Spans, codes: Any) -> Any:
        """bool [m]: which candidate spans pass their threshold."""
        limit = self.limit[codes[spans.doc], spans.rule].astype(
            np.float32
        )  # values are float32: 0.2 measured must equal 0.2 configured
        with np.errstate(invalid="ignore"):
            return np.where(self.above[spans.rule], spans.value > limit, spans.value < limit) & ~np.isnan(limit)


@lru_cache(maxsize=2)
def _frequent(path: str, changed: int, max_documents: int) -> dedup_lines.FrequentLines:
    """The lines that are cut at this threshold: on most corpora few of those that are stored, often none."""
    return dedup_lines.FrequentLines.load(Path(path)).above(max_documents)


@lru_cache(maxsize=4)
def _limits(key: str) -> Limits:
    return Limits.of(DataConfig.model_validate_json(key))


def build(table: pa.Table, config: DataConfig, out: Path) -> tuple[TextBatch, Spans, Any, Spans]:
    """T2 of rows of documents/: (T2, protected spans of T2, prompt bytes of T2 int32 [n], spans that were applied to T1)."""
    t1, protected, spans = measure.document_batch(table)
    codes = _per_value(table["lang"], language_codes)
    ruled = _per_value(table["source"], lambda names: np.array([_steps(config, name) for name in names]).reshape(-1, 2))
    limits = _limits(config.model_dump_json())
    applied = spans.take(limits.applied(spans, codes) & ruled[spans.doc, 0])
    frequent_path = out / "work" / "frequent_lines.bin"
    if config.dedup.lines.max_documents and frequent_path.exists():
        frequent = _frequent(str(frequent_path), frequent_path.stat().st_mtime_ns, config.dedup.lines.max_documents)
        lines = dedup_lines.candidates(t1, protected, frequent, config.dedup.lines.min_chars)
        lines = Spans(lines.doc, lines.start, lines.end, np.full(len(lines), LINE_RULE, np.int16), lines.value)
        applied = Spans.concatenate([applied, lines.take(limits.applied(lines, codes) & ruled[lines.doc, 1])])
    masked = limits.masks[applied.rule]
    prompts = np.asarray(table["prompt_bytes"]).astype(np.int32)
    t2, t2_protected, prompt_bytes = cut.build_positions(
        t1, protected, applied.take(~masked), applied.take(masked), privacy.mask_texts(), prompts
    )
    return t2, t2_protected, prompt_bytes, applied


def _per_value(column: pa.ChunkedArray, function: Callable[[list[str]], Any]) -> Any:
    """`function` (names -> one row each) of a column of few distinct strings, computed once a distinct one."""
    encoded = column.combine_chunks().dictionary_encode()
    return function(encoded.dictionary.to_pylist())[np.asarray(encoded.indices)]


def _steps(config: DataConfig, source: str) -> tuple[bool, bool]:
    steps = next(item.steps for item in config.sources if item.name == source)
    return "rules" in steps, "dedup" in steps


def masked_only(table: pa.Table) -> TextBatch:
    """T1 of rows of documents/ with all private-data candidates masked, whatever the thresholds, and nothing cut."""
    t1, protected, spans = measure.document_batch(table)
    masks = np.zeros(len(RULES) + 2, bool)
    masks[1 : len(RULES) + 1] = [rule.effect == "mask" for rule in RULES]
    return cut.build(t1, protected, Spans.empty(), spans.take(masks[spans.rule]), privacy.mask_texts())[0]


def mask_token(rule_id: str) -> str:
    """What replaces the private data that a mask rule finds."""
    return privacy.MASK_TEXT[rule_id].decode()


def cut_texts(table: pa.Table, config: DataConfig, out: Path, rule: str) -> list[str]:
    """The texts that one rule removes from one document, with private data masked."""
    shown = []
    _, _, _, applied = build(table, config, out)
    raw = table["text"][0].as_py().encode()
    _, _, spans = measure.document_batch(table)
    masks = spans.take(np.array([RULES[number - 1].effect == "mask" for number in spans.rule], bool))
    for number, start, end in zip(applied.rule, applied.start, applied.end, strict=True):
        if span_rule_id(int(number)) == rule:
            inside = any(
                start < mask_end and mask_start < end
                for mask_start, mask_end in zip(masks.start, masks.end, strict=True)
            )
            shown.append("(holds private data)" if inside else raw[start:end].decode())
    return shown


def finish_unit(config: DataConfig, out: Path, name: str) -> dict[str, Any]:
    """Write keys/<name>.parquet. Returns bytes seen and how many documents each rule's cuts touched."""
    size = 0
    touched: Counter[str] = Counter()
    with table_writer(out / "keys" / f"{name}.parquet", keys_schema(config)) as writer:
        for table in read_batches(out / "documents" / f"{name}.parquet"):
            t2, protected, _, applied = build(table, config, out)
            size += int(t2.offsets[-1])
            rows = key_rows(table, t2, protected, applied, config, out)
            touched.update(documents_by_rule(rows["cut_rules"]))
            writer.write(rows)
            done(len(t2), int(t2.offsets[-1]))
    return {"bytes": size, "touched": dict(sorted(touched.items()))}


def key_rows(
    table: pa.Table, t2: TextBatch, protected: Spans, applied: Spans, config: DataConfig, out: Path
) -> pa.Table:
    """The keys of T2, one row a document."""
    n = len(t2)
    before, after = character_counts(TextBatch.from_arrow(table["text"])), character_counts(t2)
    exact_hi, exact_lo = dedup_keys.exact_keys(t2, protected)
    url_hi, url_lo = url_keys(TextBatch.from_arrow(table["url"]))
    codes = _per_value(table["lang"], language_codes)
    columns: dict[str, Any] = {
        "id": table["id"],
        "final_chars": after.astype(np.float32),
        "removed_share": (np.maximum(before - after, 0) / np.maximum(before, 1)).astype(np.float32),
        "cut_rules": applied_rules(applied, n),
        "exact_hi": exact_hi,
        "exact_lo": exact_lo,
        "url_hi": url_hi,
        "url_lo": url_lo,
    }
    if config.decontaminate.against:
        columns |= benchmark_columns(t2, out)
    fuzzy = config.dedup.fuzzy
    columns["simhash"], columns["shingles"] = np.zeros(n, np.uint64), np.zeros(n, np.int32)
    if fuzzy.method != "none":
        columns["simhash"], columns["shingles"] = dedup_keys.simhash(t2, codes, fuzzy)
    if fuzzy.method == "minhash":
        signatures = dedup_keys.minhash(t2, codes, fuzzy)
        columns["minhash"] = pa.FixedSizeListArray.from_arrays(pa.array(signatures.reshape(-1)), fuzzy.permutations)
    schema = keys_schema(config)
    return pa.table(
        [pa.array(columns[name]) if isinstance(columns[name], np.ndarray) else columns[name] for name in schema.names],
        names=schema.names,
    )


def benchmark_columns(t2: TextBatch, out: Path) -> dict[str, Any]:
    """`benchmark_coverage` and `benchmark_item` of T2: what the texts to be trained on hold of one benchmark item at most."""
    share, names = benchmarks.coverage(out / "work" / "benchmarks.npz", t2)
    return {"benchmark_coverage": share, "benchmark_item": pa.array(names, pa.string())}


def applied_rules(applied: Spans, n: int) -> pa.ListArray:
    """Per document the settings whose cuts or masks were applied, each once, sorted: list<string> [n]."""
    names = [span_rule_id(number) for number in range(1, LINE_RULE + 1)]
    place = np.argsort(np.argsort(np.array(names)))  # of each name among the sorted ones
    pairs = np.unique(applied.doc.astype(np.int64) * len(names) + place[applied.rule - 1])
    offsets = np.searchsorted(pairs, np.arange(n + 1, dtype=np.int64) * len(names)).astype(np.int32)
    rules = pa.array(sorted(names), pa.string()).take(pa.array(pairs % len(names)))
    return pa.ListArray.from_arrays(pa.array(offsets), rules)


def documents_by_rule(rules: pa.ListArray | pa.ChunkedArray) -> dict[str, int]:
    """Setting -> in how many of the lists that `applied_rules` made it stands."""
    counted = pc.list_flatten(rules).value_counts()
    return {item["values"]: item["counts"] for item in counted.to_pylist()}


def character_counts(batch: TextBatch) -> Any:
    """Characters (code points) per document, int64 [n]."""
    data = batch.data.view()
    data.flags.writeable = False  # one compiled kernel, wherever the bytes come from
    return _character_counts(data, batch.offsets)


@numba.njit(cache=True)
def _character_counts(data, offsets):  # type: ignore[no-untyped-def]
    """Bytes that do not continue a character, per document."""
    counts = np.zeros(len(offsets) - 1, np.int64)
    for row in range(len(counts)):
        count = 0
        for byte in data[offsets[row] : offsets[row + 1]]:
            count += (byte & 0xC0) != 0x80
        counts[row] = count
    return counts


def span_rule_id(number: int) -> str:
    """Setting name of a span rule's number."""
    return LINE_RULE_ID if number == LINE_RULE else f"rules.{RULES[number - 1].id}"
