"""Step `measure`: one unit's bytes -> T1, measurements, candidate spans, quarantine. Needs no neighbour and drops nothing.

Flow of one batch: records -> (structural drops leave here, with a measurement row) -> T0 -> clean -> language (unwanted ones leave
here) -> Traditional to Simplified = T1 -> features, lexicon hits, candidate spans, perplexity -> rows.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from data_factory import documents, extract, language, normalize
from data_factory.batches import Spans, TextBatch
from data_factory.config import DataConfig, Source
from data_factory.dedup import keys as dedup_keys
from data_factory.dedup import lines as dedup_lines
from data_factory.documents import table_writer
from data_factory.perplexity import Scorer
from data_factory.rules import RULES, statistics
from data_factory.rules.spans import Detectors
from data_factory.sources import read_unit
from data_factory.sources.record import Damage, Record
from data_factory.units import Unit
from data_factory.urls import UrlLists
from data_factory.vocab_counts import Differences
from ziya.progress import done

_HAN = re.compile("[\u3400-\u9fff]")
BATCH_ROWS = 512
BATCH_BYTES = 16 << 20
MIN_BATCH_TO_BLAME = 8
RULE_IDS = np.array(["", *(rule.id for rule in RULES)], dtype=object)

# Columns that are not rule features. `document_row` is the row in documents/, -1 for records without T1.
FIXED_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("date", pa.int64()),
        ("document_row", pa.int32()),
        ("drop", pa.string()),
        ("drop_value", pa.float32()),
        ("lang", pa.string()),
        ("lang_score", pa.float32()),
        ("url_domain", pa.float32()),
        ("url_hard_words", pa.float32()),
        ("url_soft_words", pa.float32()),
        ("text_bytes", pa.int64()),
        ("perplexity", pa.float32()),
        ("bits_per_char", pa.float32()),  # of the language model, over its normalised text
    ]
)
# Lexicon densities are measured by the span detectors; those that a rule compares are stored.
HITS = tuple(
    dict.fromkeys(
        rule.feature
        for rule in RULES
        if rule.effect == "drop" and rule.text == "T1" and rule.feature not in statistics.FEATURES
    )
)
FEATURE_COLUMNS = (*statistics.FEATURES, *HITS)
MEASUREMENTS = pa.schema([*FIXED_COLUMNS, *((name, pa.float32()) for name in FEATURE_COLUMNS)])


@dataclass(frozen=True)
class MeasureJob:
    """Everything a worker needs for one unit."""

    unit: Unit
    config: DataConfig
    out: Path
    poison: tuple[int, ...] = ()  # numbers of records that killed a worker: quarantined unread

    @property
    def source(self) -> Source:
        """The unit's source settings."""
        return next(source for source in self.config.sources if source.name == self.unit.source)

    @property
    def name(self) -> str:
        """File stem of the unit's outputs."""
        return f"{self.unit.number:06d}"

    def outputs(self) -> list[Path]:
        """All files this job writes."""
        parquet = [self.out / folder / f"{self.name}.parquet" for folder in ("documents", "measurements", "quarantine")]
        return [
            *parquet,
            self.out / "work" / "lines" / f"{self.name}.npy",
            self.out / "work" / "characters" / f"{self.name}.npz",
        ]


@dataclass
class Clock:
    """CPU seconds and bytes per sub-step of a unit."""

    cpu: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    _start: float = 0.0

    def start(self) -> None:
        """Begin a lap."""
        self._start = time.process_time()

    def lap(self, name: str, size: int) -> None:
        """Book the time since the last lap under `name`, for `size` bytes seen."""
        now = time.process_time()
        self.cpu[name] = self.cpu.get(name, 0.0) + now - self._start
        self.bytes[name] = self.bytes.get(name, 0) + size
        self._start = now


@lru_cache(maxsize=2)
def _tools(key: str) -> tuple[Scorer | None, Detectors, UrlLists]:
    config = DataConfig.model_validate_json(key)
    scorer = Scorer(config.scoring.models) if config.scoring.enabled and config.scoring.models else None
    return scorer, Detectors.load(config.rules), UrlLists.load(config.url)


def tools(config: DataConfig) -> tuple[Scorer | None, Detectors, UrlLists]:
    """Models and lexicons, loaded once per process and configuration."""
    return _tools(config.model_dump_json())


def record_id(label: str, record: Record) -> str:
    """The document's id: a hash of its origin (file, record id, URL), or of file and content where there is no record id.

    Records that repeat inside a file get the same id here; `identify` tells them apart by their occurrence number.
    """
    state = xxhash.xxh3_128(f"{label}\0{record.key}\0{record.url}\0".encode(errors="surrogatepass"))
    if not record.key:
        content = record.content if isinstance(record.content, bytes) else record.content.encode(errors="surrogatepass")
        state.update(content)
        state.update(f"\0{record.prompt}".encode(errors="surrogatepass"))
    return str(state.hexdigest())


def count_records(job: MeasureJob) -> int:
    """How many records (damage included) the unit yields when it is only read; used to find one that kills its worker."""
    return sum(1 for _ in read_unit(job.unit, job.source, job.config.read, Counter()))


def probe(job: MeasureJob, first: int, last: int) -> int:
    """Process records first..last without writing anything: lives or dies with them."""
    measured = UnitMeasurer(job)
    for _ in measured.batches(first, last):
        pass
    return last - first


def measure_unit(job: MeasureJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure one unit and write its files. Returns (counts, CPU seconds and bytes per sub-step)."""
    measurer = UnitMeasurer(job)
    paths = job.outputs()
    with ExitStack() as stack:
        texts = stack.enter_context(table_writer(paths[0], documents.DOCUMENTS))
        rows = stack.enter_context(table_writer(paths[1], MEASUREMENTS))
        quarantine = stack.enter_context(table_writer(paths[2], documents.QUARANTINE))
        for kind, table in measurer.batches(0, None):
            measurer.clock.start()
            {"documents": texts, "measurements": rows, "quarantine": quarantine}[kind].write(table)
            measurer.clock.lap("write", table.nbytes)
        counts = {"rows": rows.rows, "documents": texts.rows, "quarantined": quarantine.rows}
    measurer.write_lines(paths[3])
    measurer.write_characters(paths[4])
    clock = measurer.clock
    return {"counts": counts, "other": dict(sorted(measurer.counts.items()))}, {
        "cpu": dict(clock.cpu),
        "bytes": dict(clock.bytes),
    }


@dataclass(frozen=True)
class Measured:
    """One measured batch: rows to write and what the unit keeps of it (documents with T1, line keys, converted characters)."""

    tables: list[tuple[str, pa.Table]]
    documents: int
    lines: Any
    converted: Differences


class UnitMeasurer:
    """State of one unit while it is measured."""

    def __init__(self, job: MeasureJob) -> None:
        self.job, self.source, self.config = job, job.source, job.config
        self.scorer, self.detectors, self.url_lists = tools(job.config)
        self.clock = Clock()
        self.counts: Counter[str] = Counter()
        self.document_rows = 0
        self.lines: list[Any] = []
        self.converted: list[Differences] = []

    def batches(self, first: int, last: int | None) -> Iterator[tuple[str, pa.Table]]:
        """Yield ("documents" | "measurements" | "quarantine", rows) for records first..last of the unit."""
        pending: list[Record] = []
        damages: list[tuple[int, int, str]] = []
        size = 0
        self.clock.start()
        for number, item in enumerate(read_unit(self.job.unit, self.source, self.config.read, self.counts)):
            if number < first:
                continue
            if last is not None and number >= last:
                break
            if isinstance(item, Damage):
                damages.append((item.offset, item.length, item.error))
                continue
            if number in self.job.poison:
                damages.append((item.offset, item.length, "the record kills its worker process"))
                continue
            pending.append(item)
            size += len(item.content)
            if len(pending) >= BATCH_ROWS or size >= BATCH_BYTES:
                self.clock.lap("read", sum(record.length for record in pending))
                yield from self._batch(pending, damages)
                pending, damages, size = [], [], 0
                self.clock.start()
        self.clock.lap("read", sum(record.length for record in pending))
        yield from self._batch(pending, damages)

    def _batch(self, records: list[Record], damages: list[tuple[int, int, str]]) -> Iterator[tuple[str, pa.Table]]:
        texts, prompts, whole = self._extract(records, damages)
        fixed: dict[str, list[Any]] = {
            "id": [record_id(self.job.unit.label, record) for record in whole],
            "url": [record.url for record in whole],
            "key": [record.key for record in whole],
            "offset": [record.offset for record in whole],
            "length": [record.length for record in whole],
            "date": [record.date for record in whole],
            "drop": [record.drop for record in whole],
            "drop_value": [record.drop_value for record in whole],
        }
        measured: list[tuple[str, pa.Table]] = []
        if whole:
            try:
                measured = self._commit(self._measure(whole, texts, prompts, fixed))
            except Exception:  # something in this batch breaks a measuring step: find out what, one record at a time
                failed = 0
                for i, record in enumerate(whole):
                    alone = {name: values[i : i + 1] for name, values in fixed.items()}
                    try:
                        measured += self._commit(self._measure([record], texts[i : i + 1], prompts[i : i + 1], alone))
                    except Exception as error:
                        failed += 1
                        if failed == len(whole) >= MIN_BATCH_TO_BLAME:
                            raise  # no record is to blame when all fail: this is a bug, and quarantine would hide it
                        damages.append(
                            (
                                record.offset,
                                record.length,
                                f"measuring failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
                            )
                        )
        if damages:
            columns = list(zip(*damages, strict=True))
            arrays = [pa.array([self.job.unit.label] * len(damages)), *(pa.array(column) for column in columns)]
            yield "quarantine", pa.table(arrays, names=documents.QUARANTINE.names)
        yield from measured
        done(len(records), sum(record.length for record in records))

    def _commit(self, measured: Measured) -> list[tuple[str, pa.Table]]:
        """Take over the side products of a batch that was measured to its end; returns its tables."""
        self.converted.append(measured.converted.moved(self.document_rows))
        self.document_rows += measured.documents
        self.lines.append(measured.lines)
        return measured.tables

    @staticmethod
    def _test_hook(text: str) -> None:
        """Tests plant a word that kills the worker, as a crash in C code would."""
        deadly = os.environ.get("ZIYA_TEST_DEADLY_WORD")
        if deadly and deadly in text:
            os.kill(os.getpid(), 9)

    def _extract(
        self, records: list[Record], damages: list[tuple[int, int, str]]
    ) -> tuple[list[str], list[str], list[Record]]:
        """T0 (and prompts) of the records that can be read; a record that fails alone goes to quarantine alone."""
        texts, prompts, whole = [], [], []
        size = 0
        for record in records:
            text = ""
            if not record.drop:
                try:
                    text = extract.record_text(record, self.config.read)
                except Exception as error:  # one bad record never costs another
                    damages.append(
                        (
                            record.offset,
                            record.length,
                            f"extraction failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
                        )
                    )
                    continue
                size += len(record.content)
                self._test_hook(text)
            texts.append(text)
            prompts.append(record.prompt)
            whole.append(record)
        self.clock.lap("extract", size)
        return texts, prompts, whole

    def _normalise(self, texts: list[str], prompts: list[str]) -> tuple[TextBatch, Spans]:
        batch = TextBatch.from_strings(texts)
        settings = self.config.normalize
        if "normalize" not in self.source.steps:
            return normalize.strip_marks(batch)
        return normalize.clean(batch, settings)

    def _measure(
        self, records: list[Record], texts: list[str], prompts: list[str], fixed: dict[str, list[Any]]
    ) -> Measured:
        n = len(records)
        config, clock = self.config, self.clock
        clock.start()
        size = sum(map(len, texts))
        batch, protected = self._normalise(texts, prompts)
        prompt_bytes = np.zeros(n, np.int32)
        clock.lap("normalise", int(batch.offsets[-1]))
        drop = np.array(fixed["drop"], dtype=object)
        drop[(batch.lengths() == 0) & (drop == "")] = "read.empty"
        if self.source.language:
            langs, scores = [self.source.language] * n, np.ones(n, np.float32)
        else:
            langs, scores = self._identify(batch, prompts)
        langs = ["" if reason else code for reason, code in zip(drop, langs, strict=True)]
        scores = np.where(drop == "", scores, np.float32(0)).astype(np.float32)
        if "language" in self.source.steps:
            unwanted = np.array([code not in config.language.keep for code in langs]) & (drop == "")
            drop[unwanted] = "language.keep"
        clock.lap("language", int(batch.offsets[-1]))
        alive = np.flatnonzero(drop == "")
        if len(alive) < n:
            batch, protected = take(batch, protected, alive)
        codes = language.language_codes([langs[i] for i in alive])
        traditional = batch
        if config.normalize.to_simplified and "normalize" in self.source.steps:
            batch, protected = normalize.simplify(batch, protected, codes == 1)
        converted = [Differences.between(traditional, batch)]
        clock.lap("simplify", int(batch.offsets[-1]))
        if any(prompts):
            batch, protected, prompt_bytes, of_prompts = self._join_prompts(
                batch, protected, [prompts[i] for i in alive], codes
            )
            converted.append(of_prompts)
        bytes_seen = int(batch.offsets[-1])
        features: dict[str, Any] = dict(statistics.measure(batch, codes, protected))
        clock.lap("statistics", bytes_seen)
        spans, hits = self.detectors.measure(batch, codes, protected)
        features.update(hits)
        clock.lap("spans", bytes_seen)
        if self.scorer is not None and "scoring" in self.source.steps:
            perplexity, bits = self.scorer.measure(batch, [langs[i] for i in alive])
        else:
            perplexity = bits = np.full(len(alive), np.nan, np.float32)
        clock.lap("perplexity", bytes_seen)
        found = dedup_lines.line_keys(batch, protected, config.dedup.lines.min_chars)
        high, low = dedup_keys.exact_keys(batch, protected)
        lines = dedup_lines.UnitLines.rows(found, (high, low))
        clock.lap("lines", bytes_seen)
        row_numbers = np.full(n, -1, np.int32)
        row_numbers[alive] = self.document_rows + np.arange(len(alive), dtype=np.int32)
        tables: list[tuple[str, pa.Table]] = []
        if len(alive):
            rows = document_table(
                fixed, self.source.name, records, alive, langs, batch, protected, spans, prompt_bytes[: len(alive)]
            )
            tables.append(("documents", rows))
        text_bytes = np.zeros(n, np.int64)
        text_bytes[alive] = batch.lengths()
        everything: dict[str, Any] = {
            **{name: pa.array(values) for name, values in fixed.items()},
            "source": pa.array([self.source.name] * n),
            "file": pa.array([self.job.unit.label] * n),
            "document_row": row_numbers,
            "drop": pa.array(drop.tolist(), pa.string()),
            "lang": pa.array(langs, pa.string()),
            "lang_score": scores,
            "text_bytes": text_bytes,
            "perplexity": spread(perplexity, alive, n, np.nan),
            "bits_per_char": spread(bits, alive, n, np.nan),
            **self.url_lists.measure(fixed["url"]),
            **{name: spread(features[name], alive, n, 0.0) for name in FEATURE_COLUMNS},
        }
        tables.append(
            (
                "measurements",
                pa.table([pa.array(everything[name]) for name in MEASUREMENTS.names], names=MEASUREMENTS.names),
            )
        )
        clock.lap("tables", size)
        return Measured(tables, len(alive), lines, Differences.joined(converted))

    def _identify(self, batch: TextBatch, prompts: list[str]) -> tuple[list[str], Any]:
        """Language of each document; of prompt and answer together where there is a prompt."""
        if any(prompts):
            batch = TextBatch.from_strings(
                [f"{prompt}\n{text}" for prompt, text in zip(prompts, batch.strings(), strict=True)]
            )
        langs, scores = language.identify(batch, self.config.language)
        if "language" not in self.source.steps:  # nothing is dropped here, but templates and thresholds need a language
            han = [bool(_HAN.search(text)) for text in batch.strings()]
            langs = [
                ("zh" if chinese else "en") if code == "und" else code for code, chinese in zip(langs, han, strict=True)
            ]
        return langs, scores

    def _join_prompts(
        self, batch: TextBatch, protected: Spans, prompts: list[str], codes: np.ndarray[Any, Any]
    ) -> tuple[TextBatch, Spans, Any, Differences]:
        """Supervised documents: normalise the prompts too, then join prompt and answer by the template."""
        asked, asked_spans = self._normalise(prompts, [])
        traditional = asked
        if self.config.normalize.to_simplified and "normalize" in self.source.steps:
            asked, asked_spans = normalize.simplify(asked, asked_spans, codes == 1)
        joined, ends, spans = [], [], []
        answer_rows, prompt_rows = protected.row_offsets(len(batch)), asked_spans.row_offsets(len(batch))
        for i, (prompt, answer) in enumerate(zip(asked.strings(), batch.strings(), strict=True)):
            template = self.source.prompt_template or ("问题:{}回答:{}" if codes[i] == 1 else "Question:{} Answer:{}")
            before, middle, after = template.split("{}")
            head = len((before).encode())
            start = len((before + prompt + middle).encode())
            joined.append(before + prompt + middle + answer + after)
            ends.append(start)
            for table, rows, shift in ((asked_spans, prompt_rows, head), (protected, answer_rows, start)):
                spans += [
                    (i, int(table.start[row]) + shift, int(table.end[row]) + shift)
                    for row in range(rows[i], rows[i + 1])
                ]
        columns = np.array(spans, np.int32).reshape(-1, 3)
        return (
            TextBatch.from_strings(joined),
            Spans.plain(columns[:, 0], columns[:, 1], columns[:, 2]),
            np.array(ends, np.int32),
            Differences.between(traditional, asked),
        )

    def write_lines(self, path: Path) -> None:
        """Write the unit's line keys with their documents' content keys."""
        dedup_lines.UnitLines.write_rows(path, self.lines)

    def write_characters(self, path: Path) -> None:
        """Write what Traditional -> Simplified took out of each document."""
        Differences.joined(self.converted).write(path)


def spread(values: Any, rows: Any, n: int, default: float) -> Any:
    """float32 [n] with `values` at `rows` and `default` elsewhere."""
    column = np.full(n, default, np.float32)
    column[rows] = values
    return column


def take(batch: TextBatch, spans: Spans, rows: Any) -> tuple[TextBatch, Spans]:
    """The documents `rows` (ascending) of a batch and their spans, renumbered."""
    number = np.full(len(batch), -1, np.int64)
    number[rows] = np.arange(len(rows))
    chosen = spans.take(number[spans.doc] >= 0) if len(spans) else spans
    renumbered = Spans(number[chosen.doc].astype(np.int32), chosen.start, chosen.end, chosen.rule, chosen.value)
    return TextBatch.from_arrow(batch.to_arrow().take(pa.array(rows))), renumbered


def document_table(
    fixed: dict[str, list[Any]],
    source: str,
    records: list[Record],
    alive: Any,
    langs: list[str],
    batch: TextBatch,
    protected: Spans,
    spans: Spans,
    prompt_bytes: Any,
) -> pa.Table:
    """Rows of documents/ for the documents `alive` of a batch."""
    n = len(alive)

    def lists(table: Spans, with_rule: bool) -> pa.Array:
        fields = [pa.array(table.start), pa.array(table.end)]
        names = ["start", "end"]
        if with_rule:
            fields += [pa.array(RULE_IDS[table.rule].tolist(), pa.string()), pa.array(table.value)]
            names += ["rule", "value"]
        return pa.ListArray.from_arrays(
            pa.array(table.row_offsets(n).astype(np.int32)), pa.StructArray.from_arrays(fields, names=names)
        )

    columns = {
        "id": pa.array([fixed["id"][i] for i in alive], pa.string()),
        "url": pa.array([fixed["url"][i] for i in alive], pa.string()),
        "source": pa.array([source] * n, pa.string()),
        "lang": pa.array([langs[i] for i in alive], pa.string()),
        "text": batch.to_arrow(),
        "protected": lists(protected, False),
        "spans": lists(spans, True),
        "prompt_bytes": pa.array(prompt_bytes, pa.int32()),
        "task": pa.array([records[i].task for i in alive], pa.string()),
    }
    return pa.table([columns[name] for name in documents.DOCUMENTS.names], names=documents.DOCUMENTS.names)


def document_batch(table: pa.Table) -> tuple[TextBatch, Spans, Spans]:
    """T1, protected spans and candidate spans (rule numbers and values) of rows of documents/."""
    batch = TextBatch.from_arrow(table["text"])
    return batch, spans_of(table["protected"]), spans_of(table["spans"])


def spans_of(column: pa.ChunkedArray) -> Spans:
    """A list column of spans as `Spans`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten()
    counts = np.asarray(array.value_lengths().fill_null(0)).astype(np.int64)
    doc = np.repeat(np.arange(len(array), dtype=np.int32), counts)
    start, end = (np.asarray(flat.field(name)).astype(np.int32) for name in ("start", "end"))
    if flat.type.num_fields == 2:
        return Spans.plain(doc, start, end)
    numbers = {rule.id: number for number, rule in enumerate(RULES, start=1)}
    encoded = flat.field("rule").dictionary_encode()
    lookup = np.array([numbers[name] for name in encoded.dictionary.to_pylist()] or [0], np.int16)
    rule = lookup[np.asarray(encoded.indices)] if len(flat) else np.zeros(0, np.int16)
    return Spans(doc, start, end, rule.astype(np.int16), np.asarray(flat.field("value")).astype(np.float32))
