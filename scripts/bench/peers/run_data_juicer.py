"""data-juicer's command on a corpus, without a network: one fused recipe a language, or each operator alone.

    python run_data_juicer.py --env ENV --language en --input en.jsonl --models DIR --lid lid.176.ftz --work DIR [--op X]

ENV is an environment of its own (`README.md`). Models are ours under the names that it expects: KenLM, SentencePiece
and a fastText language model. Prints one JSON object: CPU seconds of the whole process tree, wall seconds, what is
left. Needs the standard library alone and runs in any Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Thresholds so wide that operators after the first still see the text: data-juicer, too, pays for what it measures.
# A short list stands for its own flagged words: their number does not change the cost of looking words up in a set.
FLAGGED_WORDS = {"en": ["casino", "viagra", "porn", "escort", "xxx"], "zh": ["赌博", "色情", "彩票", "代开发票", "裸聊"]}


def recipe(language: str) -> list[dict[str, dict[str, Any]]]:
    """The operators: name -> settings. Chinese is cut into words by the SentencePiece model, as its own recipes do."""
    tokens = language == "zh"
    return [
        {"language_id_score_filter": {"lang": language, "min_score": 0.5}},
        {"character_repetition_filter": {"rep_len": 10, "max_ratio": 0.9}},
        {"word_repetition_filter": {"lang": language, "tokenization": tokens, "rep_len": 10, "max_ratio": 0.9}},
        {"flagged_words_filter": {"lang": language, "tokenization": tokens, "max_ratio": 0.5}},
        {"special_characters_filter": {"max_ratio": 0.9}},
        {"perplexity_filter": {"lang": language, "max_ppl": 100000}},
        {"document_simhash_deduplicator": {"tokenization": "character" if tokens else "space", "window_size": 5,
                                           "num_blocks": 4, "hamming_distance": 3}},
    ]  # fmt: skip


def prepare(models: Path, lid: Path, work: Path) -> dict[str, str]:
    """Fill the caches; the environment variables that name them."""
    cache, assets = work / "models", work / "assets"
    for folder in (cache, assets):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(lid, cache / "lid.176.bin")
    for language in FLAGGED_WORDS:
        shutil.copyfile(models / f"{language}.klm", cache / f"{language}.arpa.bin")
        shutil.copyfile(models / f"{language}.klm.spm", cache / f"{language}.sp.model")
    (assets / "flagged_words.json").write_text(json.dumps(FLAGGED_WORDS), encoding="utf-8")
    return {
        "DATA_JUICER_CACHE_HOME": str(work / "cache"),
        "DATA_JUICER_MODELS_CACHE": str(cache),
        "DATA_JUICER_ASSETS_CACHE": str(assets),
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }


def main() -> None:
    """Run once and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True, help="the environment that holds data-juicer")
    parser.add_argument("--language", choices=sorted(FLAGGED_WORDS), required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder of en.klm, zh.klm and their .spm")
    parser.add_argument("--lid", type=Path, required=True, help="a fastText language model (lid.176.ftz)")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--op", help="run this operator alone; default: all, fused")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    variables = prepare(arguments.models, arguments.lid, work)
    process = [item for item in recipe(arguments.language) if arguments.op in (None, *item)]
    if not process:
        parser.error(f"no operator {arguments.op}")
    config = {
        "project_name": "bench",
        "dataset_path": str(arguments.input.resolve()),
        "export_path": str(work / "out" / "kept.jsonl"),
        "work_dir": str(work / "out"),
        "np": 1,
        "use_cache": False,
        "op_fusion": True,
        "fusion_strategy": "greedy",
        "open_tracer": False,
        "open_monitor": False,
        "auto_op_parallelism": False,
        "process": process,
    }
    recipe_path = work / "recipe.yaml"
    recipe_path.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run = subprocess.run(
        [str(arguments.env / "bin" / "dj-process"), "--config", str(recipe_path)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    log = run.stdout.decode(errors="replace")
    (work / "log.txt").write_text(log, encoding="utf-8")
    kept = work / "out" / "kept.jsonl"
    rows = [json.loads(line) for line in kept.open(encoding="utf-8")] if kept.exists() else []
    result: dict[str, Any] = {
        "rc": run.returncode,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": time.monotonic() - start,
        "peak_rss": after.ru_maxrss * 1024,
        "kept": len(rows),
        "kept_bytes": sum(len(row["text"].encode()) for row in rows),
        "fused": "Ops are fused into one op" in log,
    }
    if run.returncode:
        result["error"] = re.sub(r"/[^\s'\"]+/", "", log.strip().splitlines()[-1])[-300:]
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
