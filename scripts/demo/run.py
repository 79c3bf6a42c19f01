"""`make demo`: generate a small messy bilingual crawl, run the whole data factory on it, check every planted fate, show the report.

Flow: make_crawl.py -> demo_crawl/ -> `ziya-data run configs/data/demo.yaml` -> demo_out/ -> check.py -> the summary on the terminal.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CRAWL, OUT = ROOT / "demo_crawl", ROOT / "demo_out"
DATA = [sys.executable, "-m", "data_factory.cli"]


def step(title: str, command: list[str]) -> None:
    """Run one command of the demo; its failure ends the demo with its exit code."""
    print(
        f"\n== {title}\n   $ {' '.join(Path(part).name if part == sys.executable else part for part in command)}",
        flush=True,
    )
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        print(f"demo: that command failed with exit code {code}", file=sys.stderr)
        sys.exit(code)


def main() -> None:
    """Run the demo from a clean slate."""
    started = time.monotonic()
    for folder in (CRAWL, OUT):
        shutil.rmtree(folder, ignore_errors=True)
    step(
        "1. a small, messy, bilingual crawl with a planted fate for every page",
        [sys.executable, "scripts/demo/make_crawl.py", CRAWL.name],
    )
    step("2. the data factory", [*DATA, "run", "configs/data/demo.yaml", "--output", OUT.name])
    step("3. did every planted page meet its fate?", [sys.executable, "scripts/demo/check.py", OUT.name, CRAWL.name])
    print(f"\ndemo: done in {time.monotonic() - started:.0f} s. Open {OUT.name}/report.html in a browser; try:")
    print(f"  .venv/bin/ziya-data explain {OUT.name} --url URL      # any URL of {OUT.name}/decisions")
    print(f"  .venv/bin/ziya-data decide {OUT.name} rules.min_chars.en=400")


if __name__ == "__main__":
    main()
