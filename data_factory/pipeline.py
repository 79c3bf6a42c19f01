"""The run on one screen.

    plan -> measure -> identify -> lines -> benchmarks  |  finish -> rank -> verdicts -> deduplicate -> decide -> evaluate -> pack -> report

Left of the bar is measuring; right of it is deciding, which `ziya-data decide` repeats with other thresholds. A step's identity is
that of the steps before it plus the settings it reads, so a killed run goes on where it stood and an unchanged step never repeats.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_factory import (
    benchmarks,
    compete,
    decide,
    evaluate,
    finish,
    identify,
    measure,
    pack,
    packing,
    quarantined,
    run_state,
    tiers,
    units,
    verdicts,
)
from data_factory.config import DataConfig
from data_factory.dedup import lines as dedup_lines
from data_factory.documents import read_table
from data_factory.report import summary as reporting
from data_factory.rules import RULES, spans, thresholds
from data_factory.run_state import RunState
from data_factory.steps import Steps
from ziya.errors import UserError
from ziya.files import write_json
from ziya.manifest import identity
from ziya.progress import log
from ziya.tokenizer import load_tokenizer

# Rows of narrow tables in memory at a time: about 300 bytes each in the widest pass of deduplication.
MEMORY_ROWS = 500_000


def run(config: DataConfig, out: Path, workers: int, limit: int | None, restart: bool) -> dict[str, Any]:
    """`ziya-data run`: measure what is not measured yet, then decide. Returns the summary."""
    check(config, out)
    check_tokenizer(config)
    with RunState.open(out, restart=restart) as state:
        plan = units.plan(config, out / "work" / "spool", limit)
        for warning in plan.warnings:
            log(f"warning: {warning}")
        state.begin(config, plan.inputs, limit)
        with Steps(state, workers) as steps:
            names = measure_all(config, out, plan.units, steps)
            counts = {name: steps.markers.result_of("measure", name)["counts"] for name in names}
            misread = quarantined.warnings(config, plan.units, out, counts, whole=limit is None)
            for warning in misread:
                log(f"warning: {warning}")
            decide_all(config, out, names, steps)
            for warning in misread:  # again, where a person who waited for the end looks
                log(f"warning: {warning}")
        shutil.rmtree(out / "work" / "spool", ignore_errors=True)
        return state.summary()


def redecide(
    out: Path, overrides: list[str], workers: int, replace: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`ziya-data decide`: other thresholds over the stored measurements. Returns (summary before, summary after).

    `replace`: packs of another tokenizer are made anew instead of refused.
    """

    def checked(config: DataConfig, out: Path) -> None:
        check(config, out)
        if any(override.startswith("tokenizer.") for override in overrides):
            fingerprint = check_tokenizer(config)
            if fingerprint and not replace:  # before anything is stored: a refused call changes nothing
                packing.check_tokenizer(out / "packs", fingerprint)

    with RunState.open(out, existing=True) as state:
        if not run_state.measured(out):
            raise UserError(run_state.unfinished(out))
        before = state.summary()
        config = state.decided_config(overrides, checked)
        names = sorted(path.stem for path in (out / "measurements").glob("[0-9]*.parquet"))
        with Steps(state, workers) as steps:
            decide_all(config, out, names, steps, replace)
        return before, state.summary()


def check(config: DataConfig, out: Path) -> None:
    """Refuse what cannot work before any work is done."""
    for path in config.dedup.seen_urls:
        if Path(path).resolve().is_relative_to(out.resolve()):
            raise UserError(
                f"dedup.seen_urls = {path} lies in {out}: a run must not see its own URLs; name filters of earlier runs"
            )
    scored = [source for source in config.sources if "scoring" in source.steps]
    if config.scoring.enabled and scored:
        wanted = {source.language for source in scored if source.language} | (
            set(config.language.keep) if any(not source.language for source in scored) else set()
        )
        missing = sorted(wanted - set(config.scoring.models))
        if missing:
            raise UserError(
                f"no language model for {', '.join(missing)}: train one with `ziya-data train-lm --lang {missing[0]} "
                f"...` and set scoring.models.{missing[0]}, "
                f"take {missing[0]} out of language.keep, or set scoring.enabled=false"
            )
    spans.check_floors(thresholds(config.rules))


def check_tokenizer(config: DataConfig) -> str | None:
    """Open the tokenizer, which would else be found to be none after the whole crawl. Returns its fingerprint.

    None without a tokenizer, or when the file is not there: others name its setting. Raises `UserError` for a file
    that is no tokenizer and for a tokenizer.eos or tokenizer.pad that is no piece of it.
    """
    path = config.tokenizer.path
    if path is None or not Path(path).is_file():
        return None
    return load_tokenizer(path, config.tokenizer.eos, config.tokenizer.pad).fingerprint


def measure_all(config: DataConfig, out: Path, todo: Sequence[units.Unit], steps: Steps) -> list[str]:
    """Everything that needs the input: per unit, then ids and frequent lines over all units. Returns the unit names."""
    jobs = [measure.MeasureJob(unit, config, out) for unit in todo]
    names = [job.name for job in jobs]
    results = steps.measure(jobs)
    warn_of_damage(out, results)
    rows = sum(result["counts"]["rows"] for result in results.values())
    fixes = steps.once("identify", steps.state.measured, lambda: identify.repeated(out, names, rows // MEMORY_ROWS + 1))
    for name in sorted(fixes):
        if identify.stale(out, name, fixes[name]):
            identify.rewrite(out, name, fixes[name])
    for job in jobs:  # rewritten files have other sizes: their markers follow
        if job.name in fixes:
            steps.markers.finish("measure", job.name, steps.unit_identity(job), job.outputs(), results[job.name])
    frequent = out / "work" / "frequent_lines.bin"
    parts = [out / "work" / "lines" / f"{name}.npy" for name in names]
    steps.once(
        "lines",
        steps.state.measured,
        lambda: int(dedup_lines.merge(parts, config.dedup.lines.floor, out / "work", frequent, MEMORY_ROWS)),
        [frequent],
    )
    if config.decontaminate.against:
        index = out / "work" / "benchmarks.npz"
        steps.once(
            "benchmarks",
            steps.state.measured,
            lambda: benchmarks.write_index(config.decontaminate.against, config.normalize, index),
            [index],
        )
    return names


def decide_all(config: DataConfig, out: Path, names: Sequence[str], steps: Steps, replace: bool = False) -> None:
    """Everything after the measurements, ending with summary.json. `replace`: packs of another tokenizer are made anew."""

    def values(*prefixes: str) -> dict[str, Any]:
        return {name: value for name, value in steps.state.deciding.items() if name.startswith(prefixes)}

    active = thresholds(config.rules)
    cuts_and_masks = {rule.id: active[rule.id] for rule in RULES if rule.effect != "drop" and rule.id in active}
    documents = {rule.id: active[rule.id] for rule in RULES if rule.effect == "drop" and rule.id in active}

    finished = identity("finish", steps.state.measured, cuts_and_masks, values("dedup.lines."))
    steps.each(
        "finish",
        finished,
        finish.finish_unit,
        names,
        lambda name: (config, out, name),
        lambda name: [out / "keys" / f"{name}.parquet"],
    )

    ranked = identity("rank", steps.state.measured, values("scoring.", "language.", "url."))
    cuts = steps.once("rank", ranked, lambda: rank(config, out, names))

    unseen = values("decontaminate.")
    judged = identity("verdicts", finished, ranked, documents, *([unseen] if unseen else []))
    cut_points = {group: tiers.Cut.from_dict(cut) for group, cut in cuts.items()}
    stages = steps.each(
        "verdicts",
        judged,
        verdicts.verdicts_unit,
        names,
        lambda name: (config, out, name, cut_points),
        lambda name: [out / "work" / "verdicts" / f"{name}.parquet"],
    )

    competed = identity("deduplicate", judged, values("dedup."))
    duplicate_files = [out / "work" / "duplicates" / f"{name}.npz" for name in names]
    duplicates = steps.once(
        "deduplicate",
        competed,
        lambda: compete.deduplicate(config, out, names, MEMORY_ROWS),
        [*duplicate_files, out / "duplicates" / "pairs.parquet"],
    )

    decided = identity("decide", competed)
    steps.state.record_decision(decided)
    kept = [out / "kept" / f"{name}.parquet" for name in names]
    decisions = steps.each(
        "decide",
        decided,
        decide.decide_unit,
        names,
        lambda name: (config, out, name),
        lambda name: [out / "decisions" / f"{name}.parquet", out / "kept" / f"{name}.parquet"],
    )

    evaluated = identity("evaluate", decided, values("evaluation.", "seed"))
    verdict = evaluate.evaluate_all(config, out, names, steps, evaluated)
    if config.packing.require_pass and verdict and not verdict["passed"]:
        raise UserError(
            f"the evaluation did not pass (unqualified rate {verdict['unqualified_rate']:.4f}): tighten the rules "
            "with `ziya-data decide`, or set packing.require_pass=false"
        )

    packs = pack.pack_all(config, out, names, steps, decided, replace)
    remembered = identity("seen", decided, values("dedup.seen"))
    steps.once(
        "remember",
        remembered,
        lambda: compete.remember_urls(out / "urls.bloom", kept, config.dedup.seen_error_rate),
        [out / "urls.bloom"],
    )

    measured = [steps.markers.result_of("measure", name) for name in names]
    parts = {
        "measured": measured,
        "verdicts": [stages[name] for name in names],
        "duplicates": duplicates,
        "decisions": [decisions[name] for name in names],
    }
    summary = reporting.summarise(config, out, parts, cuts, verdict, packs)
    reporting.write_timings(out, steps.markers)
    steps.apart(reporting.write_report, config, out, summary)
    steps.state.forget_other_decisions(decided)
    write_json(out / "summary.json", summary)  # last: it says that the run is whole


def warn_of_damage(out: Path, results: dict[str, Any]) -> None:
    """Say so when most of the input could not be read: a wrong text field looks like that."""
    damaged = sum(result["counts"]["quarantined"] for result in results.values())
    if damaged <= sum(result["counts"]["rows"] for result in results.values()):
        return
    errors: Counter[str] = Counter()
    for name in results:
        errors.update(read_table(out / "quarantine" / f"{name}.parquet", ["error"])["error"].to_pylist())
    log(
        f"warning: {damaged} records, more than half, were quarantined; the most frequent error: {errors.most_common(1)[0][0]}"
    )


def rank(config: DataConfig, out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Exact rank cuts per ranking group over all documents past DP."""
    columns = ["id", "perplexity", *verdicts.DP_COLUMNS]

    def chunks() -> Iterator[tuple[Any, Any, Any]]:
        for name in names:
            table = verdicts.Table.read(out, name, columns, [])
            past = verdicts.preprocess_reasons(config, table, verdicts.Reasons())
            ranked, groups = verdicts.ranked_rows(config, table, past)
            rows = np.flatnonzero(ranked)
            yield groups[rows], table.columns["perplexity"][rows], table.columns["id"][rows]

    cuts = tiers.rank(chunks, config.scoring.high, config.scoring.medium, MEMORY_ROWS)
    return {group: cut.as_dict() for group, cut in sorted(cuts.items())}
