"""`make demo`: the whole product on one small machine, from a messy crawl to a model that was measured.

1. make_crawl.py -> demo_crawl/ -> `ziya-data run` -> demo_out/, and check.py: did every planted page meet its fate?
2. make_texts.py, make_base.py -> `ziya-train`: a tiny English base model of its own -> demo_train/base
3. `ziya-data vocab`, `ziya-train init`, `ziya-data pack`: the crawl's Chinese characters, and packs in the new vocabulary
4. `ziya-train --stage 1, 2, 3` -> demo_train/run, an export at the end of each stage
5. `ziya-train plot`, `ziya-eval run`: bits per byte on prose that nobody trained on, and six made-up benchmarks in the official
   formats, of each stage against the base -> demo_train/scores/report.html
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CRAWL, OUT, TRAIN = "demo_crawl", "demo_out", "demo_train"
TEXTS = f"{TRAIN}/texts_out"
PYTHON = sys.executable
DATA = [PYTHON, "-m", "data_factory.cli"]
TRAINING = [PYTHON, "-m", "training.cli"]
EVALUATION = [PYTHON, "-m", "eval.cli"]
CHARACTERS = 1200
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # a demo on the CPU, and the same one on machines with GPUs
NAMES = {"data_factory.cli": "ziya-data", "training.cli": "ziya-train", "eval.cli": "ziya-eval"}


def shown(command: list[str]) -> str:
    """The command as a person would type it."""
    if command[:2] == [PYTHON, "-m"]:
        return " ".join([f".venv/bin/{NAMES[command[2]]}", *command[3:]])
    return " ".join(["python" if part == PYTHON else part for part in command])


def step(title: str, *commands: list[str]) -> None:
    """Run commands of the demo; the first failure ends the demo with its exit code."""
    print(f"\n== {title}", flush=True)
    for command in commands:
        print(f"   $ {shown(command)}", flush=True)
        code = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False).returncode
        if code:
            print(f"demo: that command failed with exit code {code}", file=sys.stderr)
            sys.exit(code)


def remove(*folders: str) -> None:
    """Clear the slate."""
    for folder in folders:
        shutil.rmtree(ROOT / folder, ignore_errors=True)


def factory() -> None:
    """A crawl becomes clean, accounted token packs."""
    step(
        "1. a small, messy, bilingual crawl with a planted fate for every page",
        [PYTHON, "scripts/demo/make_crawl.py", CRAWL],
    )
    step("2. the data factory", [*DATA, "run", "configs/data/demo.yaml", "--output", OUT])
    step("3. did every planted page meet its fate?", [PYTHON, "scripts/demo/check.py", OUT, CRAWL])


def base_model() -> str:
    """Train the English base from drawn weights; its Hugging Face folder."""
    start = f"{TRAIN}/start"
    step(
        "4. a tiny English base model: from drawn weights, on the documentation that comes with Python",
        [PYTHON, "scripts/demo/make_texts.py", f"{TRAIN}/texts"],
        [PYTHON, "scripts/demo/make_base.py", f"{TRAIN}/texts/english.jsonl", start],
        [*DATA, "run", "configs/data/demo_texts.yaml", "--output", TEXTS, f"tokenizer.path={start}/tokenizer.model"],
        [*TRAINING, "--stage", "1", "--config", "configs/train/demo_base.yaml"],
        [*TRAINING, "export", f"{TRAIN}/base", "--out", f"{TRAIN}/base_model"],
    )
    return f"{TRAIN}/base_model"


def extend(base: str) -> None:
    """Give the base the crawl's Chinese characters, and pack everything with them."""
    extended = f"tokenizer.path={TRAIN}/extended/tokenizer.model"
    step(
        "5. the characters that its tokenizer lacks, and the packs in the new vocabulary",
        [*DATA, "vocab", OUT, "--size", str(CHARACTERS), "--tokenizer", f"{base}/tokenizer.model"],
        [
            *TRAINING,
            *("init", "--base", base, "--chars", f"{OUT}/chars.txt", "--output", f"{TRAIN}/extended"),
            *("--text", "scripts/demo/heldout/zh.txt"),
        ],
        *([*DATA, "pack", out, extended, "--replace"] for out in (OUT, TEXTS)),
    )


def stages() -> None:
    """The three stages, an export after each."""
    for number, what in enumerate(["unsupervised, spliced", "supervised, whole, with replay", "maths, with replay"], 1):
        step(
            f"{5 + number}. stage {number}: {what}",
            [*TRAINING, "--stage", str(number), "--config", "configs/train/demo.yaml"],
            [*TRAINING, "export", f"{TRAIN}/run"],
        )


def measured(base: str) -> None:
    """Is it better than what it started from?"""
    texts, benchmarks, scores = f"{TRAIN}/texts", f"{TRAIN}/benchmarks", f"{TRAIN}/scores"
    step(
        "9. loss and forgetting over the three stages",
        [*TRAINING, "plot", f"{TRAIN}/run", "--output", f"{TRAIN}/curves.png"],
    )
    step(
        "10. each stage against the base",
        [PYTHON, "scripts/demo/make_benchmarks.py", benchmarks],
        [
            *EVALUATION,
            *("run", f"{TRAIN}/run", "--base", base, "--data", benchmarks, "--output", scores, "allow_missing=true"),
            *("--ppl", f"{texts}/heldout_zh.jsonl,{texts}/heldout_en.jsonl"),
        ],
        [PYTHON, "scripts/demo/check_training.py", scores],
    )


def main() -> None:
    """Run the demo from a clean slate."""
    started = time.monotonic()
    remove(CRAWL, OUT, TRAIN)
    factory()
    base = base_model()
    extend(base)
    stages()
    measured(base)
    print(
        f"\ndemo: done in {time.monotonic() - started:.0f} s. Open {OUT}/report.html and {TRAIN}/scores/report.html in a"
    )
    print("browser; try:")
    print(f"  .venv/bin/ziya-data explain {OUT} --url URL      # any URL of {OUT}/decisions")
    print(f"  .venv/bin/ziya-data decide {OUT} rules.min_chars.en=400")


if __name__ == "__main__":
    main()
