"""Step `decide`: verdicts + outcome of deduplication -> decisions/ and kept/, per unit. Nothing else says kept or dropped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_factory import documents, finish
from data_factory.compete import DuplicateRows
from data_factory.config import DataConfig
from data_factory.documents import REASON, SPAN, read_batches, read_table, table_writer
from ziya.progress import done


def decide_unit(config: DataConfig, out: Path, name: str) -> dict[str, Any]:
    """Write decisions/<name>.parquet and kept/<name>.parquet; returns counts by stage, reason, language and tier."""
    duplicates = DuplicateRows.load(out / "work" / "duplicates" / f"{name}.npz")
    verdicts = read_table(out / "work" / "verdicts" / f"{name}.parquet")
    n = verdicts.num_rows
    stage = np.array(verdicts["stage"].to_pylist(), dtype=object)
    copies = np.zeros(n, np.int32)
    survivors = stage == ""
    copies[survivors] = 1
    copies[duplicates.copy_rows] = duplicates.copies
    assert (stage[duplicates.rows] == "").all(), "a document that a rule dropped took part in deduplication"
    stage[duplicates.rows] = "deduplicate"
    kept = stage == ""
    copies[~kept] = 0
    reasons = _with_duplicates(verdicts["reasons"].combine_chunks(), duplicates, n)
    with table_writer(out / "decisions" / f"{name}.parquet", documents.DECISIONS) as writer:
        writer.write(
            pa.table(
                [
                    verdicts["id"],
                    verdicts["url"],
                    pa.array(kept),
                    reasons,
                    pa.array(stage, pa.string()),
                    verdicts["tier"],
                    pa.array(copies),
                ],
                names=documents.DECISIONS.names,
            )
        )
    kept_rows, kept_by, cut_by = _write_kept(config, out, name, verdicts, kept, copies)
    assert kept_rows == int(kept.sum()), "every kept document has a text"
    stages, counts = np.unique(stage[~kept].astype(str), return_counts=True)
    return {
        "in": n,
        "kept": kept_rows,
        "dropped_by_stage": dict(zip(stages.tolist(), counts.tolist(), strict=True)),
        "reasons": _reason_counts(reasons),
        "kept_by": kept_by,
        "cut_by": cut_by,
    }


def _reason_counts(reasons: pa.Array) -> dict[str, int]:
    """Rule id -> documents (a rule stands at most once in a document's reasons)."""
    rules = reasons.flatten().field("rule")
    counted = rules.value_counts()
    return dict(sorted((item["values"], item["counts"]) for item in counted.to_pylist()))


def _with_duplicates(reasons: pa.Array, duplicates: DuplicateRows, n: int) -> pa.Array:
    """Put the one reason of deduplication into the (empty) reason lists of its losers."""
    if not len(duplicates.rows):
        return reasons
    flat, lengths = reasons.flatten(), np.asarray(reasons.value_lengths()).astype(np.int64)
    added = np.zeros(n, np.int64)
    added[duplicates.rows] = 1
    extra = pa.StructArray.from_arrays(
        [
            pa.array(duplicates.rules, pa.string()),
            pa.array(duplicates.values, pa.float64(), from_pandas=True),
            pa.array(duplicates.limits, pa.float64(), from_pandas=True),
            pa.array(duplicates.winners, pa.string()),
        ],
        names=[item.name for item in REASON],
    )
    joined = pa.concat_arrays([flat, extra])
    # position of every reason in the joined array, document by document
    owner = np.concatenate([np.repeat(np.arange(n), lengths), duplicates.rows])
    order = np.argsort(owner, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(lengths + added)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), joined.take(pa.array(order)))


def _write_kept(
    config: DataConfig, out: Path, name: str, verdicts: pa.Table, kept: Any, copies: Any
) -> tuple[int, dict[str, dict[str, list[int]]], dict[str, int]]:
    """Rebuild T2 of the kept documents and write them in input order. Returns (rows, language -> tier ->
    [documents, bytes], cut or mask rule -> documents that it changed)."""
    rows = np.asarray(verdicts["document_row"])
    with_text = np.flatnonzero(rows >= 0)
    assert (rows[with_text] == np.arange(len(with_text))).all(), "documents/ and measurements/ are in the same order"
    keep, tier, copy_count = (
        kept[with_text],
        np.array(verdicts["tier"].to_pylist(), dtype=object)[with_text],
        copies[with_text],
    )
    perplexity = np.asarray(read_table(out / "measurements" / f"{name}.parquet", ["perplexity"])["perplexity"])[
        with_text
    ]
    first = 0
    kept_by: dict[str, dict[str, list[int]]] = {}
    cut_by: Counter[str] = Counter()
    with table_writer(out / "kept" / f"{name}.parquet", documents.KEPT) as writer:
        for table in read_batches(out / "documents" / f"{name}.parquet"):
            chosen = np.flatnonzero(keep[first : first + table.num_rows])
            if len(chosen):
                part = table.take(pa.array(chosen))
                t2, protected, prompt_bytes, applied = finish.build(part, config, out)
                cut_by.update(finish.documents_by_rule(finish.applied_rules(applied, len(t2))))
                places = chosen + first
                spans = pa.ListArray.from_arrays(
                    pa.array(protected.row_offsets(len(t2)).astype(np.int32)),
                    pa.StructArray.from_arrays(
                        [pa.array(protected.start), pa.array(protected.end)], names=[item.name for item in SPAN]
                    ),
                )
                columns = {
                    **{column: part[column] for column in ("id", "url", "lang", "source", "task")},
                    "text": t2.to_arrow(),
                    "tier": pa.array(tier[places], pa.string()),
                    "perplexity": pa.array(perplexity[places], pa.float32()),
                    "copies": pa.array(copy_count[places]),
                    "protected": spans,
                    "prompt_bytes": pa.array(np.asarray(prompt_bytes).astype(np.int32)),
                }
                for lang, rank, size in zip(part["lang"].to_pylist(), tier[places], t2.lengths().tolist(), strict=True):
                    counts = kept_by.setdefault(lang, {}).setdefault(rank, [0, 0])
                    counts[0] += 1
                    counts[1] += size
                writer.write(pa.table([columns[field] for field in documents.KEPT.names], names=documents.KEPT.names))
            first += table.num_rows
            done(table.num_rows, table["text"].nbytes)
        return writer.rows, kept_by, dict(sorted(cut_by.items()))
