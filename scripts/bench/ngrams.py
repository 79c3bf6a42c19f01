"""Rate of the n-gram scanner (`ziya/ngrams.py`) on real text against an index of the size of the six benchmarks.

    python scripts/bench/ngrams.py --text FILE.jsonl[.gz] ... [--ngrams 2000000] [--output results/ngrams.json]

CPU time of one process. The index holds random n-grams (what is scanned for hardly ever occurs in a crawl) and those of 20
pieces of the text itself, so that hits are paid for too. Start-up and the compilation of the kernels are told apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from pathlib import Path
from typing import Any


def texts(path: Path) -> list[str]:
    """The texts of a JSONL file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def cpu(action: Any) -> tuple[float, Any]:
    """CPU seconds and result."""
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--ngrams", type=int, default=2_000_000)
    parser.add_argument("--megabytes", type=int, default=40, help="text a file that is scanned; short files are repeated")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ngrams.json")
    args = parser.parse_args()

    import_s, ngrams = cpu(lambda: __import__("ziya.ngrams", fromlist=["ngrams"]))
    kernels_s, _ = cpu(lambda: ngrams.Index.build(["a b c d e f g h i j k"]).best(*ngrams.utf8(["x"])))
    files = {path.name.split(".")[0]: texts(path) for path in args.text}
    rng = random.Random(0)
    every = [text for found in files.values() for text in found]
    pieces = []
    for _ in range(20):
        text = rng.choice(every)
        start = rng.randrange(max(1, len(text) - 300))
        pieces.append(text[start : start + 300])

    import numpy as np

    def build() -> Any:
        planted = ngrams.Index.build(pieces)
        noise = np.random.default_rng(0).integers(1, 2**63, args.ngrams, np.int64).astype(np.uint64)
        keys = np.unique(np.concatenate([planted.keys, noise]))
        first, owners = np.arange(len(keys) + 1), np.zeros(len(keys), np.int32)
        one = np.ones(1, np.int64)
        return ngrams.Index(keys, first, owners, one * len(keys), one, one, ngrams.LENGTH)

    build_s, index = cpu(build)
    rows = {}
    for name, found in files.items():
        data, offsets = ngrams.utf8(found)
        repeats = max(1, args.megabytes * 1_000_000 // max(len(data), 1))
        times = []
        for _ in range(3):
            start = time.process_time()
            for _ in range(repeats):
                hits = index.scan(data, offsets)
            times.append(time.process_time() - start)
        megabytes = len(data) * repeats / 1e6
        rows[name] = {
            "megabytes": round(megabytes, 1), "documents": len(found), "units": int(hits.units.sum()), "hits": len(hits.ngram),
            "mb_per_s": [round(megabytes / seconds, 1) for seconds in times],
        }  # fmt: skip
        print(f"{name}: {max(rows[name]['mb_per_s'])} MB/s of one core (three passes: {rows[name]['mb_per_s']})")
    value = {
        "ngrams": len(index.keys), "files": rows, "import_s": round(import_s, 2),
        "kernels_s": round(kernels_s, 2), "index_s": round(build_s, 2),
    }  # fmt: skip
    print(f"{len(index.keys):,} n-grams; import {import_s:.2f} s, kernels {kernels_s:.2f} s, index {build_s:.2f} s of CPU")
    args.output.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
