"""Did the three stages teach Chinese? Reads what `ziya-eval run --ppl` left and prints bits per byte beside the base's.

    python scripts/demo/check_training.py SCORES

Exit code 1 unless held-out Chinese costs at least MIN_FALL fewer bits per byte than in the base model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MIN_FALL = 0.2


def fall(rows: list[dict[str, object]], domain: str) -> float:
    """Share of the base's bits per byte that the last checkpoint saves in a domain."""
    here = [row for row in rows if row["domain"] == domain]
    last = here[-1]
    return 1 - float(str(last["bits_per_byte"])) / float(str(last["base"]))


def main() -> int:
    """Print a line a model and domain, then the verdict."""
    rows = json.loads((Path(sys.argv[1]) / "perplexity.json").read_text(encoding="utf-8"))
    for row in rows:
        if row["domain"] in ("zh", "en"):
            print(f"{row['domain']}  {row['model']:<12} {row['bits_per_byte']:.3f} bits per byte")
    found = {domain: fall(rows, domain) for domain in ("zh", "en")}
    print(f"Chinese costs {found['zh']:.0%} fewer bits per byte than in the base (English {found['en']:.0%})")
    if found["zh"] < MIN_FALL:
        print(f"demo: at least {MIN_FALL:.0%} were expected", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
