"""datatrove on a corpus, without a network, through its public classes: four filters, or the path of its FineWeb example.

    ENV/bin/python run_datatrove.py filters --language en --input en.jsonl [--alone]
    ENV/bin/python run_datatrove.py path --input en=en.jsonl zh=zh.jsonl --lid lid.176.ftz --tokenizer tokenizer.json \
        --work DIR

ENV is an environment of its own (`README.md`). Prints one JSON object; imports nothing of ours. CPU seconds are of
this process and its children; documents lie in memory before the filters' clock starts, and each language's word tokenizer is loaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document  # type: ignore[import-not-found]
from datatrove.executor.local import LocalPipelineExecutor  # type: ignore[import-not-found]
from datatrove.pipeline import filters  # type: ignore[import-not-found]
from datatrove.pipeline.dedup import minhash  # type: ignore[import-not-found]
from datatrove.pipeline.readers import JsonlReader  # type: ignore[import-not-found]
from datatrove.pipeline.tokens import DocumentTokenizer  # type: ignore[import-not-found]
from datatrove.pipeline.writers import JsonlWriter  # type: ignore[import-not-found]
from datatrove.utils import lid  # type: ignore[import-not-found]
from datatrove.utils.typeshelper import Languages  # type: ignore[import-not-found]

# Chinese needs its own numbers, or every page falls at the first filter and the rest is never measured: words of
# jieba are short, no page holds "the" and "of", and `split()` sees one word a line.
CHINESE_STOP_WORDS = ["的", "了", "在", "是", "和", "有", "与", "为", "不", "也", "或", "对", "中", "这", "等"]
LANGUAGE = {"en": Languages.english, "zh": Languages.mandarin_chinese}


def chain(language: str) -> list[Any]:
    """Gopher repetition, Gopher quality, C4, FineWeb in the order of the FineWeb example (C4 without its end-mark
    rule, as there)."""
    words = LANGUAGE[language]
    chinese = language == "zh"
    quality: dict[str, Any] = {"min_avg_word_length": 1, "stop_words": CHINESE_STOP_WORDS} if chinese else {}
    c4: dict[str, Any] = {"min_words_per_line": -1} if chinese else {}
    return [
        filters.GopherRepetitionFilter(language=words),
        filters.GopherQualityFilter(language=words, **quality),
        filters.C4QualityFilter(language=words, filter_no_terminal_punct=False, **c4),
        filters.FineWebQualityFilter(language=words, **({"short_line_length": 12} if chinese else {})),
    ]


def documents(path: Path) -> list[Any]:
    """The documents of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [Document(text=json.loads(line)["text"], id=str(number)) for number, line in enumerate(file)]


def size(texts: list[Any]) -> int:
    """UTF-8 bytes of documents."""
    return sum(len(document.text.encode()) for document in texts)


def run_filters(path: Path, language: str, alone: bool) -> dict[str, Any]:
    """The four filters as one pipeline, or over all documents: each alone, and all four of each document."""
    warm = Document(text="这是 一个 测试。The cat is on the mat. \n" * 5, id="warm")
    for step in chain(language):
        list(step.run(iter([warm])))
    startup = time.process_time()
    texts = documents(path)
    out: dict[str, Any] = {"documents": len(texts), "bytes": size(texts), "startup_cpu_s": startup}
    if alone:
        out["alone"] = {}
        for step in chain(language):
            texts = documents(path)  # C4 rewrites them
            start = time.process_time()
            kept = len(list(step.run(iter(texts))))
            seconds = time.process_time() - start
            out["alone"][type(step).__name__] = {"cpu_s": seconds, "kept": kept}
        steps, contents = chain(language), [document.text for document in documents(path)]
        start = time.process_time()
        for text in contents:
            for step in steps:  # its cache of words holds five texts: shared by the four filters
                step.filter(Document(text=text, id="0"))
        out["together_cpu_s"] = time.process_time() - start
        return out
    stream: Iterator[Any] = iter(texts)
    for step in chain(language):
        stream = step.run(stream)
    start = time.process_time()
    kept_texts = list(stream)
    out["cpu_s"] = time.process_time() - start
    out["kept"], out["kept_bytes"] = len(kept_texts), size(kept_texts)
    return out


def in_child(work: Callable[[], object]) -> float:
    """CPU seconds of a call in a forked child and its children.

    A step of its own process, as on a cluster: the executor copies its pipeline, and cannot copy a Chinese word
    tokenizer that an earlier step loaded ("cannot pickle 'module' object").
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"a step of datatrove ended with exit code {child.exitcode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_path(inputs: dict[str, Path], lid_model: Path, tokenizer: Path, work: Path) -> dict[str, Any]:
    """Reader, language, filters, MinHash, JSONL, tokens; one pipeline a language, one worker."""
    lid.FT176LID.MODEL_URL = f"file://{lid_model.resolve()}"
    config = minhash.MinhashConfig()
    out: dict[str, Any] = {"startup_cpu_s": time.process_time(), "languages": {}}
    for language, path in inputs.items():
        folder = work / language
        words = LANGUAGE[language]

        def read(where: Path | str, pattern: str) -> Any:
            return JsonlReader(str(where), glob_pattern=pattern, compression=None)

        def write(where: Path) -> Any:
            return JsonlWriter(str(where), output_filename="${rank}.jsonl", compression=None)

        steps: dict[str, tuple[list[Any], int]] = {
            "filter": (
                [
                    read(path.parent, path.name),
                    filters.LanguageFilter([language]),
                    *chain(language),
                    write(folder / "filtered"),
                ],
                1,
            ),
            "signatures": (
                [
                    read(folder / "filtered", "*.jsonl"),
                    minhash.MinhashDedupSignature(str(folder / "signatures"), config, language=words),
                ],
                1,
            ),
            "buckets": (
                [minhash.MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)],
                config.num_buckets,
            ),
            "cluster": (
                [minhash.MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config)],
                1,
            ),
            "write_and_tokenise": (
                [
                    read(folder / "filtered", "*.jsonl"),
                    minhash.MinhashDedupFilter(str(folder / "remove")),
                    write(folder / "kept"),
                    DocumentTokenizer(str(folder / "tokens"), str(tokenizer), eos_token="</s>"),
                ],
                1,
            ),
        }
        row: dict[str, Any] = {"cpu_s": {}}
        for name, (pipeline, tasks) in steps.items():
            row["cpu_s"][name] = in_child(
                LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / "logs" / name)).run
            )
        for name, part in (("filtered", "filtered"), ("kept", "kept")):
            texts = [text for file in sorted((folder / part).glob("*.jsonl")) for text in documents(file)]
            row[name] = {"documents": len(texts), "bytes": size(texts)}
        files = (file for file in (folder / "tokens").iterdir() if file.suffix == ".ds")
        row["token_bytes"] = sum(file.stat().st_size for file in files)
        out["languages"][language] = row
    return out


def main() -> None:
    """Run one part and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="part", required=True)
    one = commands.add_parser("filters")
    one.add_argument("--input", type=Path, required=True)
    one.add_argument("--language", choices=sorted(LANGUAGE), required=True)
    one.add_argument("--alone", action="store_true", help="no filter spares the next one a document")
    whole = commands.add_parser("path")
    whole.add_argument("--input", nargs="+", required=True, metavar="LANGUAGE=JSONL")
    whole.add_argument("--lid", type=Path, required=True, help="a fastText language model (lid.176.ftz)")
    whole.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    whole.add_argument("--work", type=Path, required=True, help="an empty folder")
    arguments = parser.parse_args()
    if arguments.part == "filters":
        result = run_filters(arguments.input, arguments.language, arguments.alone)
    else:
        inputs = {name: Path(path) for name, path in (item.split("=", 1) for item in arguments.input)}
        result = run_path(inputs, arguments.lid, arguments.tokenizer, arguments.work)
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["peak_rss"] = max(usage) * 1024
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
