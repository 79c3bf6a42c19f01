"""Step `pack`: kept texts -> tokens per unit (parallel) -> one pack per source (global shuffle), through the markers of the run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_factory import packing
from data_factory.config import DataConfig, Source
from data_factory.documents import read_batches
from data_factory.run_state import require_files
from data_factory.steps import Steps
from ziya.files import write_bytes
from ziya.manifest import identity
from ziya.pack_files import TOKENIZER_FOLDER, kept_tokenizer
from ziya.tokenizer import load_tokenizer


def pack_all(
    config: DataConfig, out: Path, names: Sequence[str], steps: Steps, decided: str, replace: bool = False
) -> dict[str, Any]:
    """Tokenise and pack every source when a tokenizer is configured. Returns source -> pack summary.

    `decided`: identity of the kept documents. A pack's identity adds what shapes its bytes and nothing of other sources,
    so that a changed ratio packs one source again and tokenises only the units of that source. Packs of another
    tokenizer are refused with `UserError`; `replace` makes them anew, and they stand until all texts are tokenised.
    """
    if config.tokenizer.path is None:
        shutil.rmtree(out / "packs", ignore_errors=True)  # of an earlier decision, with their markers
        for step in ("tokenize", *(f"pack-{source.name}" for source in config.sources)):
            steps.markers.forget(step)
        return {}
    # the file may be gone from an OUT that was moved: packs that stand need it no more
    fingerprint = None if Path(config.tokenizer.path).is_file() else packing.packed_with(out / "packs")
    if fingerprint is None:
        fingerprint = load_tokenizer(config.tokenizer.path, config.tokenizer.eos, config.tokenizer.pad).fingerprint
        if not replace:
            packing.check_tokenizer(out / "packs", fingerprint)
    tokenized = identity("tokenize", decided, fingerprint)
    shape = [config.packing.mode, config.packing.sequence_length, config.seed]
    wanted = {source.name: identity("pack", tokenized, shape, source.name, source.ratio) for source in config.sources}
    done = {name: steps.markers.result(f"pack-{name}", "all", value) for name, value in wanted.items()}
    todo = [source for source in config.sources if done[source.name] is None]
    if todo:
        require_files(config, out, "tokenizer.path")
        work = out / "work" / "tokens"
        source_of = {name: unit_source(out / "kept" / f"{name}.parquet") for name in names}
        needed = [name for name in names if source_of[name] in {source.name for source in todo}]
        steps.each(
            "tokenize",
            tokenized,
            packing.tokenize_unit,
            needed,
            lambda name: (
                out / "kept" / f"{name}.parquet",
                work / name,
                config.tokenizer.path,
                config.tokenizer.eos,
                config.tokenizer.pad,
            ),
            lambda name: packing.token_files(work / name),
        )
        packing.discard_others(out / "packs", fingerprint)
        for source in todo:
            tokens = [work / name for name in needed if source_of[name] == source.name]
            done[source.name] = {"value": _pack(config, out, source, tokens, steps, wanted[source.name])}
        shutil.rmtree(out / "work" / "packing", ignore_errors=True)
    _keep_tokenizer(Path(config.tokenizer.path), out / "packs")
    shutil.rmtree(out / "work" / "tokens", ignore_errors=True)
    return {
        name: result["value"] for name, result in done.items() if result is not None and result["value"]["documents"]
    }


def _keep_tokenizer(path: Path, folder: Path) -> None:
    """Keep the tokenizer beside the packs that it spelled, so that they can be read back wherever they go."""
    if path.is_file() and kept_tokenizer(folder) is None:
        name = "tokenizer.json" if path.suffix == ".json" else "tokenizer.model"
        write_bytes(folder / TOKENIZER_FOLDER / name, path.read_bytes())


def unit_source(kept: Path) -> str | None:
    """The source of a unit's kept documents (a unit is a part of one file of one source); None when none was kept."""
    for table in read_batches(kept, ["source"]):
        return str(table["source"][0])
    return None


def _pack(config: DataConfig, out: Path, source: Source, tokens: Sequence[Path], steps: Steps, wanted: str) -> Any:
    def work() -> dict[str, Any]:
        return packing.pack_source(tokens, source, config, out / "packs", out / "work" / "packing")

    return steps.once(f"pack-{source.name}", wanted, work, lambda: sorted((out / "packs").glob(f"{source.name}.*")))
