"""DE: a seeded sample of the kept documents, ten automatic metrics on T2, one verdict (paper section DE).

| metric | level | what fails |
|---|---|---|
| privacy, toxic, advert, web_remnant | 1 | one hit fails the document |
| perplexity, informativeness, readability | 2 | a threshold, a setting, fails the document |
| document_length | 3 | a threshold fails the document |
| language_distribution, topic_distribution | 3 | warn for the run, no document fails |

Unqualified rate = documents that fail any metric / documents evaluated; `passed` compares it with the pass mark,
`sufficient` compares the upper Clopper-Pearson bound. What the paper leaves open and we define:
- perplexity: of T2 (that of T1 where nothing was cut: the texts are the same), against the median of the sample in
  the same language (and an absolute cap when set);
- informativeness: bits per character of the normalised text under the language model, times the share of distinct
  12-byte windows: templates are cheap for the model, repetition is not distinct, both say little per character;
- readability: share of characters in garbled sequences, endless words and sentences
  (`evaluate_measure.Texts.unreadable`);
- language distribution: share of documents that language identification of T2 calls another language than the stored
  one;
- topic distribution: topic = word list with the most distinct words; the largest share may not exceed a setting.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from data_factory import evaluate_verdict
from data_factory.config import DataConfig
from data_factory.documents import read_batches, read_table, table_writer
from data_factory.evaluate_measure import MEASURED, Checks, measure
from data_factory.measure import tools
from data_factory.perplexity import Scorer
from data_factory.steps import Steps
from ziya.files import write_json
from ziya.manifest import identity

BATCH_ROWS, BATCH_BYTES = 512, 16 << 20  # measured together
_COLUMNS = ["id", "url", "source", "text", "lang", "protected", "perplexity", "task"]


def evaluate_all(
    config: DataConfig, out: Path, names: Sequence[str], steps: Steps, decided: str
) -> dict[str, Any] | None:
    """Draw the sample, measure it unit by unit, conclude; writes `evaluation/` and returns what evaluation.json holds,
    None when the evaluation is off. `decided`: identity of the kept documents and of all settings of the evaluation.
    """
    if not config.evaluation.enabled:
        shutil.rmtree(out / "evaluation", ignore_errors=True)  # of an earlier decision, with its markers
        for step in ("sample", "evaluate", "verdict"):
            steps.markers.forget(step)
        return None
    if steps.markers.result("verdict", "all", identity("verdict", decided)) is None:
        kept = [out / "kept" / f"{name}.parquet" for name in names]
        chosen = steps.once("sample", identity("sample", decided), lambda: asdict(sample(kept, config)))
        steps.each(
            "evaluate",
            identity("evaluate", decided),
            evaluate_unit,
            names,
            lambda name: (config, out, name, chosen),
            lambda name: [_part(out, name)],
        )
    result: dict[str, Any] = steps.once(
        "verdict",
        identity("verdict", decided),
        lambda: _verdict(
            config,
            out / "evaluation",
            [read_table(_part(out, name)) for name in names],
            int(chosen["population"]),
            scored=_scored(config),
        ),
        lambda: sorted((out / "evaluation").glob("*")),
    )
    shutil.rmtree(out / "work" / "evaluation", ignore_errors=True)
    return result


def evaluate_unit(config: DataConfig, out: Path, name: str, chosen: Mapping[str, Any]) -> int:
    """Measure the sampled documents of one unit: writes work/evaluation/<name>.parquet of schema MEASURED; returns how
    many there are. `chosen`: a `Sample` as a dictionary."""

    def scorer() -> Scorer:
        found, *_ = tools(config)
        assert found is not None
        return found

    path, checks = out / "kept" / f"{name}.parquet", Checks.load(config.evaluation)
    table = _measured(path, config, checks, Sample(**chosen), scorer if _scored(config) else None)
    with table_writer(_part(out, name), MEASURED) as writer:
        writer.write(table)
    return len(table)


def evaluate(kept_files: Sequence[Path], config: DataConfig, out: Path, scorer: Scorer | None) -> dict[str, Any]:
    """Evaluate a sample of the kept documents here and now; writes `evaluation.json` and `failures.parquet` into
    `out` and returns the former.

    `kept_files`: Parquet files of schema `documents.KEPT`. Documents of sources without the step `evaluation` are left
    out. Without a `scorer` (or a model of a document's language) perplexity and informativeness are not measured, and
    the result says so.
    """
    chosen, checks = sample(kept_files, config), Checks.load(config.evaluation)
    models = None if scorer is None else lambda: scorer
    tables = [_measured(path, config, checks, chosen, models) for path in kept_files]
    return _verdict(config, out, tables, chosen.population, scored=scorer is not None)


def _part(out: Path, name: str) -> Path:
    return out / "work" / "evaluation" / f"{name}.parquet"


def _scored(config: DataConfig) -> bool:
    return config.scoring.enabled and bool(config.scoring.models)


def _verdict(
    config: DataConfig, out: Path, tables: Sequence[pa.Table], population: int, *, scored: bool
) -> dict[str, Any]:
    table = evaluate_verdict.ordered(pa.concat_tables([MEASURED.empty_table(), *tables]))
    result, failures = evaluate_verdict.conclude(table, population, config, scored=scored)
    with table_writer(out / "failures.parquet", evaluate_verdict.FAILURES) as writer:
        writer.write(failures)
    write_json(out / "evaluation.json", result)
    return result


# ---- sample


@dataclass(frozen=True)
class Sample:
    """The documents that come first by (hash of seed and id, id).

    `population`: documents it was drawn from; `size`: its own; `key`, `id`: of its last document.
    """

    population: int
    size: int
    key: int
    id: str


def sample(files: Sequence[Path], config: DataConfig) -> Sample:
    """The max(ceil(share), min_documents) first documents of the sources with the step `evaluation`.

    Memory follows the sample, not the documents.
    """
    settings = config.evaluation
    population = sum(int(_wanted(table, config).sum()) for file in files for table in read_batches(file, ["source"]))
    size = min(population, max(math.ceil(settings.share * population), settings.min_documents))
    chosen: list[tuple[int, str]] = []
    for file in files:
        for table in read_batches(file, ["id", "source"]):
            ids = table["id"].filter(pa.array(_wanted(table, config))).to_pylist()
            chosen += zip(_keys(ids, config.seed), ids, strict=True)
            if len(chosen) > 2 * size + 100_000:
                chosen = sorted(chosen)[:size]
    last = max(sorted(chosen)[:size], default=(-1, ""))
    return Sample(population, size, *last)


def _keys(ids: Sequence[str], seed: int) -> list[int]:
    return [xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) for name in ids]


def _wanted(table: pa.Table, config: DataConfig) -> npt.NDArray[np.bool_]:
    """Which rows come from a source with the step `evaluation`."""
    names = {source.name for source in config.sources if "evaluation" in source.steps}
    return np.array([name in names for name in table["source"].to_pylist()], np.bool_)


def _chosen(table: pa.Table, config: DataConfig, chosen: Sample) -> npt.NDArray[np.bool_]:
    """Which rows are in the sample. `table`: columns id and source."""
    ids = table["id"].to_pylist()
    last = chosen.key, chosen.id
    inside = [pair <= last for pair in zip(_keys(ids, config.seed), ids, strict=True)]
    return np.array(inside, np.bool_) & _wanted(table, config)


def _measured(
    path: Path, config: DataConfig, checks: Checks, chosen: Sample, scorer: Callable[[], Scorer] | None
) -> pa.Table:
    """The sampled documents of a file, measured. `scorer` is called when a document needs one; None: scoring is off."""
    parts = [measure(table, config, checks, scorer) for table in _sampled(path, config, chosen)]
    return pa.concat_tables([MEASURED.empty_table(), *parts])


def _sampled(path: Path, config: DataConfig, chosen: Sample) -> Iterator[pa.Table]:
    """The sampled rows of a file in batches, with the columns `uncut` and `bits_per_char`.

    Of row groups without one nothing but ids is read.
    """
    pending: list[pa.Table] = []
    uncut: dict[str, float] | None = None
    with pq.ParquetFile(path, memory_map=False) as file:
        for group in range(file.num_row_groups):
            mask = _chosen(file.read_row_group(group, columns=["id", "source"], use_threads=False), config, chosen)
            if not mask.any():
                continue
            uncut = _uncut(path) if uncut is None else uncut
            table = file.read_row_group(group, columns=_COLUMNS, use_threads=False)
            table = table if mask.all() else table.filter(pa.array(mask))
            ids = table["id"].to_pylist()
            table = table.append_column("uncut", pa.array([name in uncut for name in ids], pa.bool_()))
            known = pa.array([uncut.get(name, math.nan) for name in ids], pa.float32())
            pending.append(table.append_column("bits_per_char", known))
            size = sum(part["text"].nbytes for part in pending)
            if sum(map(len, pending)) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield pa.concat_tables(pending)
                pending = []
    if pending:
        yield pa.concat_tables(pending)


def _uncut(kept: Path) -> dict[str, float]:
    """Documents of a unit from which nothing was cut and in which nothing was masked, so that their T2 is T1: id -> bits
    per character as measured on T1 (NaN where that was not measured)."""
    keys, measured = (kept.parent.parent / folder / kept.name for folder in ("keys", "measurements"))
    if not keys.is_file():
        return {}
    table = read_table(keys, ["id", "cut_rules"])
    ids = table["id"].filter(pc.equal(pc.list_value_length(table["cut_rules"]), 0)).to_pylist()
    if not measured.is_file():
        return dict.fromkeys(ids, math.nan)
    columns = read_table(measured, ["id", "bits_per_char"])
    bits = dict(zip(columns["id"].to_pylist(), columns["bits_per_char"].to_pylist(), strict=True))
    return {name: bits.get(name, math.nan) for name in ids}
