"""How fast texts become packs: CPU time of one core, next to the tokenizer's own library, and equality with it.

    python scripts/bench/packing.py --tokenizer tokenizer.model TEXTS.jsonl[.gz] ... [--repeat 4] [--output FILE]

Each line of a text file is a JSON object with `text`. Documents are measured as they are (every engine gets whole
documents, one thread); compiled kernels are warmed up first and start-up is reported apart. `--repeat` packs the texts
that many times, each time as new documents, to show that memory does not grow with the input.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from bench_factory.texts import read_texts

from data_factory import packing
from data_factory.config import DataConfig
from data_factory.documents import KEPT, table_writer
from ziya.files import json_bytes
from ziya.tokenizer import load_tokenizer


def cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def library_ids(tokenizer: Path, documents: list[str]) -> tuple[float, list[list[int]]]:
    """The same through sentencepiece or tokenizers, called as their own documentation does."""
    if tokenizer.suffix == ".json":
        import tokenizers

        engine = tokenizers.Tokenizer.from_file(str(tokenizer))
        engine.encode_special_tokens = True
        return cpu(lambda: [e.ids for e in engine.encode_batch_fast(documents, add_special_tokens=False)])
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    return cpu(lambda: processor.encode(documents, out_type=int, num_threads=1))


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures; rates in MB (10^6 bytes) of text per CPU second."""
    documents = read_texts(args.texts)
    size = sum(len(text.encode()) for text in documents) / 1e6
    start_up, tokenizer = cpu(lambda: load_tokenizer(args.tokenizer))
    compile_s, _ = cpu(lambda: tokenizer.encode_batch(["warm up 热身"]))
    seconds, (ids, ends) = cpu(lambda: tokenizer.encode_batch(documents))
    result: dict[str, Any] = {
        "documents": len(documents),
        "text_mb": round(size, 2),
        "engine": tokenizer.engine,
        "start_up_s": round(start_up, 2),
        "first_call_s": round(compile_s, 2),
        "encode_mb_s": round(size / seconds, 1),
    }
    seconds, rows = library_ids(args.tokenizer, documents)
    differing = sum(ids[ends[i] : ends[i + 1]].tolist() != row for i, row in enumerate(rows))
    result |= {"library_mb_s": round(size / seconds, 1), "differing_documents": differing, "peak_mb_before": peak_mb()}
    with tempfile.TemporaryDirectory() as name:
        result |= pack(Path(name), documents, size * args.repeat, args)
    return result


def pack(folder: Path, documents: list[str], size: float, args: argparse.Namespace) -> dict[str, Any]:
    """Rates and peak memory of tokenize_unit and pack_source, both modes."""
    files, total = [], 0.0
    for repeat in range(args.repeat):
        kept = folder / f"kept-{repeat}.parquet"
        with table_writer(kept, KEPT) as writer:
            for number, text in enumerate(documents):
                row: dict[str, Any] = dict.fromkeys(KEPT.names, "")
                row |= {"id": f"{repeat}-{number}", "text": text, "source": "bench", "copies": 1}
                row |= {"perplexity": None, "protected": [], "prompt_bytes": 0}
                writer.write(pa.Table.from_pylist([row], schema=KEPT))
        files.append(folder / f"tokens-{repeat}")
        seconds, _ = cpu(partial(packing.tokenize_unit, kept, files[-1], args.tokenizer))
        total += seconds
    result: dict[str, Any] = {"tokenize_unit_mb_s": round(size / total, 1), "peak_mb_tokenize": peak_mb()}
    for mode in ("splice", "whole"):
        config = DataConfig.model_validate(
            {
                "sources": [{"name": "bench", "paths": ["-"]}],
                "packing": {"mode": mode, "sequence_length": args.sequence_length},
            }
        )
        source = config.sources[0]
        for _ in range(2):  # the first call compiles
            seconds, manifest = cpu(partial(packing.pack_source, files, source, config, folder / mode, folder / "work"))
        result[f"{mode}_mb_s"] = round(size / seconds, 1)
        result[f"{mode}_million_tokens_s"] = round(manifest["tokens"] / seconds / 1e6, 1)
        result[f"{mode}_padding_share"] = manifest["padding_share"]
        result[f"{mode}_dropped"] = manifest["dropped"]
        result[f"peak_mb_{mode}"] = peak_mb()
    return result


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    data = json_bytes(measure(args))
    sys.stdout.buffer.write(data)
    if args.output:
        args.output.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
