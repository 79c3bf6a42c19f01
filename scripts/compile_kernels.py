"""Compile all Numba kernels once, into their caches, so that the first run need not wait for it (and not once per worker).

Stale caches go first: Numba watches the file of the outermost kernel only, not those of the kernels that it calls.
Runs the shipped demo config on a handful of generated pages in a temporary folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Remove stale caches and run a few pages through every step."""
    for house in ("ziya", "data_factory"):
        for cache in [*(ROOT / house).rglob("*.nbi"), *(ROOT / house).rglob("*.nbc")]:
            cache.unlink()
    started = time.monotonic()
    print("compiling kernels (once, a minute or two)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        crawl, out = Path(folder) / "crawl", Path(folder) / "out"
        subprocess.run([sys.executable, "scripts/demo/make_crawl.py", str(crawl)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        sources = [f"sources.{number}.paths=[{crawl / name}]" for number, name in enumerate(("web", "board", "curated", "supervised"))]
        command = [sys.executable, "-m", "data_factory.cli", "run", "configs/data/demo.yaml", "--output", str(out)]
        command += ["--workers", "1", *sources]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        scan = "from ziya import ngrams; ngrams.Index.build(['a']).best(*ngrams.utf8(['a']))"  # not part of that config
        subprocess.run([sys.executable, "-c", scan], cwd=ROOT, check=True)
    print(f"kernels compiled in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
