"""Step `pack`: kept texts -> tokens per unit (parallel) -> one pack per source (global shuffle), through the markers of the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_factory import packing
from data_factory.config import DataConfig, Source
from data_factory.steps import Steps
from ziya.manifest import identity
from ziya.tokenizer import load_tokenizer


def pack_all(config: DataConfig, out: Path, names: Sequence[str], steps: Steps, decided: str) -> dict[str, Any]:
    """Tokenise and pack every source when a tokenizer is configured. Returns source -> pack summary.

    `decided`: identity of the kept documents and of all settings of packing.
    """
    if config.tokenizer.path is None:
        shutil.rmtree(out / "packs", ignore_errors=True)  # of an earlier decision, with their markers
        for step in ("tokenize", *(f"pack-{source.name}" for source in config.sources)):
            steps.markers.forget(step)
        return {}
    tokenizer = load_tokenizer(config.tokenizer.path, config.tokenizer.eos, config.tokenizer.pad)
    packing.check_tokenizer(out / "packs", tokenizer.fingerprint)
    wanted = {source.name: identity("pack", decided, source.name) for source in config.sources}
    done = {name: steps.markers.result(f"pack-{name}", "all", value) for name, value in wanted.items()}
    if any(result is None for result in done.values()):
        work = out / "work" / "tokens"
        tokens = {name: work / name for name in names}
        steps.each(
            "tokenize",
            identity("tokenize", decided),
            packing.tokenize_unit,
            names,
            lambda name: (
                out / "kept" / f"{name}.parquet",
                tokens[name],
                config.tokenizer.path,
                config.tokenizer.eos,
                config.tokenizer.pad,
            ),
            lambda name: packing.token_files(tokens[name]),
        )
        for source in config.sources:
            done[source.name] = {"value": _pack(config, out, source, list(tokens.values()), steps, wanted[source.name])}
        shutil.rmtree(out / "work" / "packing", ignore_errors=True)
    shutil.rmtree(out / "work" / "tokens", ignore_errors=True)
    return {
        name: result["value"] for name, result in done.items() if result is not None and result["value"]["documents"]
    }


def _pack(config: DataConfig, out: Path, source: Source, tokens: Sequence[Path], steps: Steps, wanted: str) -> Any:
    def work() -> dict[str, Any]:
        return packing.pack_source(tokens, source, config, out / "packs", out / "work" / "packing")

    return steps.once(f"pack-{source.name}", wanted, work, lambda: sorted((out / "packs").glob(f"{source.name}.*")))
