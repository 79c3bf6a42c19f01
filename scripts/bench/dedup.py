"""Rates of deduplication: keys (MB/s), all pairs of fingerprints, the whole of `deduplicate`, the Bloom filter, line
counts.

    python scripts/bench/dedup.py [--rows 1000000] [--output results/dedup.json]

CPU time of one process, kernels compiled before. Texts are made here (seeded): Zipf-like words in English, characters
in Chinese.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_factory.batches import Spans, TextBatch
from data_factory.config import Dedup, Fuzzy
from data_factory.dedup import seen
from data_factory.dedup.keys import exact_keys, minhash, simhash, url_keys
from data_factory.dedup.lines import UnitLines, line_keys, merge
from data_factory.dedup.resolve import deduplicate
from data_factory.dedup.rows import SURVIVOR
from data_factory.dedup.simhash import NODE, pairs, table_count
from ziya.files import write_json


def texts(language: str, megabytes: int, generator: np.random.Generator) -> TextBatch:
    """Documents of about 3 kB with lines of about 60 bytes."""
    count = megabytes * 340
    if language == "zh":
        draws = 0x4E00 + (generator.zipf(1.3, (count, 980)) % 3000)
        draws[:, ::20] = ord("，")
        draws[:, ::41] = ord("\n")
        return TextBatch.from_strings(["".join(map(chr, row)) for row in draws.tolist()])
    words = ["".join(chr(97 + c) for c in generator.integers(0, 26, size)) for size in generator.integers(2, 11, 20000)]
    draws = generator.zipf(1.3, (count, 430)) % 20000
    return TextBatch.from_strings(
        [" ".join(words[w] + ("\n" if i % 9 == 8 else "") for i, w in enumerate(row)) for row in draws.tolist()]
    )


def cpu(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and result of the second call: the first compiles."""
    action()
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def crowded(rows: int, generator: np.random.Generator) -> Any:
    """Random fingerprints, one in ten within three bits of another one."""
    values = generator.integers(0, 2**64, rows, np.uint64)
    near = generator.choice(rows, rows // 10, replace=False)
    values[near] = values[(near + 1) % rows] ^ (np.uint64(1) << generator.integers(0, 64, len(near), np.uint64))
    nodes = np.zeros(rows, NODE)
    nodes["fingerprint"], nodes["rank"] = values, np.arange(rows)
    return nodes


def survivors(rows: int, generator: np.random.Generator) -> Any:
    """Survivors: one in ten with a repeated URL, one in ten with a repeated text, one in ten a near duplicate."""
    out = np.zeros(rows, SURVIVOR)
    out["unit"], out["row"] = np.arange(rows) // 10000, np.arange(rows) % 10000
    out["tier"], out["chars"], out["date"] = (
        generator.integers(0, 2, rows),
        generator.integers(200, 9000, rows),
        generator.integers(0, 2**31, rows),
    )
    for name in ("id_hi", "id_lo", "url_hi", "url_lo", "exact_hi", "exact_lo"):
        out[name] = generator.integers(1, 2**64, rows, np.uint64)
    for part, names in enumerate((("url_hi", "url_lo"), ("exact_hi", "exact_lo"))):
        for name in names:
            out[name][part : rows - 10 : 10] = out[name][part + 3 : rows - 7 : 10]
    out["simhash"], out["shingles"] = crowded(rows, generator)["fingerprint"], 100
    return out


def measure(rows: int) -> Iterator[tuple[str, float, str]]:
    """(name, value, unit) of every figure."""
    generator = np.random.default_rng(1)
    none = Spans.empty()
    for language, number in (("en", 0), ("zh", 1)):
        batch = texts(language, 10, generator)
        langs, size = np.full(len(batch), number, np.uint8), len(batch.data) / 1e6
        yield f"{language} exact keys", size / cpu(lambda b=batch: exact_keys(b, none))[0], "MB/s"
        yield f"{language} simhash", size / cpu(lambda b=batch, x=langs: simhash(b, x, Fuzzy()))[0], "MB/s"
        yield (
            f"{language} minhash, 128 permutations",
            size / cpu(lambda b=batch, x=langs: minhash(b, x, Fuzzy()))[0],
            "MB/s",
        )
        seconds, lines = cpu(lambda b=batch: line_keys(b, none, 8))
        yield f"{language} line keys", size / seconds, "MB/s"
        with tempfile.TemporaryDirectory() as folder:
            UnitLines.write(Path(folder, "unit"), lines, exact_keys(batch, none))
            work = Path(folder, "work")
            yield (
                f"{language} line counts",
                size / cpu(lambda p=Path(folder, "unit"), w=work: merge([p], 3, w, w / "out"))[0],
                "MB/s",
            )
    urls = [
        f"https://www.example{i % 997}.org/path/to/page{i}.html?id={i}&utm_source=feed&lang=zh" for i in range(200_000)
    ]
    encoded = TextBatch.from_strings(urls)
    seconds = cpu(lambda: url_keys(encoded))[0]
    yield "URL keys", len(encoded.data) / 1e6 / seconds, "MB/s"
    yield "URL keys, from Python strings", len(urls) / 1e6 / cpu(lambda: url_keys(urls))[0], "M/s"
    high, low = url_keys(encoded)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "urls.bloom")
        yield (
            "Bloom filter at 1e-6, fill",
            len(high) / 1e6 / cpu(lambda: seen.write(path, [(high, low)], len(high), 1e-6))[0],
            "M keys/s",
        )
        filters = seen.SeenUrls.load([path])
        yield "Bloom filter at 1e-6, ask", len(high) / 1e6 / cpu(lambda: filters.contains(high, low))[0], "M keys/s"
    nodes = crowded(rows, generator)
    with tempfile.TemporaryDirectory() as folder:
        for memory in (rows, rows // 4):
            for m in (1, 2):
                seconds, found = cpu(
                    lambda w=memory, m=m: sum(len(c) for c in pairs(lambda: iter([nodes]), rows, 3, Path(folder), w, m))
                )
                chosen = ", chosen" if m == table_count(rows, 3) else ""
                yield (
                    f"{rows} fingerprints, distance 3, {found} pairs, {memory} rows in memory, m = {m}{chosen}",
                    seconds,
                    "s",
                )
        table = survivors(rows, generator)
        for memory in (rows, rows // 4):
            seconds, outcome = cpu(
                lambda w=memory: deduplicate(lambda: iter([table]), Dedup(), Path(folder, "work"), memory_rows=w)
            )
            yield f"deduplicate {rows} survivors, {outcome.kept} kept, {memory} rows in memory", seconds, "s"
    yield "peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"


def main() -> int:
    """Print the figures, and write them when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="fingerprints and survivors")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    arguments = parser.parse_args()
    results = []
    for name, value, unit in measure(arguments.rows):
        print(f"{value:12.2f} {unit:9} {name}", flush=True)
        results.append({"name": name, "value": round(value, 3), "unit": unit})
    if arguments.output:
        write_json(arguments.output, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
