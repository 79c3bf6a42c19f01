"""Letter tasks with our model and with the harness's own, side by side: processed tokens and CPU time.

    python scripts/bench/eval.py --data BENCHMARKS --tokenizer tokenizer.model [--limit 16] [--rounds 2] [--write --commit HASH]

Both answer the same requests (C-Eval, CMMLU, MMLU under protocol ziya2, five shots) through `simple_evaluate` with a random
LLaMA in FP32 on one CPU thread, in turns (A B A B ...); medians count. Prompts are built, tokenised and scored in both
times; loading is in neither. Tokens are what enters the model's forward, padding included. The harness's model has its
`logits_cache` on, as by default, and batches of 8.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# This folder stands first on the path of its scripts, where this file would hide the package of the same name.
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

TASKS = ("ceval", "cmmlu", "mmlu")
GOALS = {"tokens": 4.0, "speed": 3.0}


def write_model(folder: Path, tokenizer: Path, hidden: int, layers: int) -> None:
    """A random LLaMA with grouped keys and the given SentencePiece tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    names = LlamaTokenizer.from_pretrained(str(tokenizer.parent), add_bos_token=True)
    names.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=int(hidden * 2.6875), num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=len(names), max_position_embeddings=4096, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def measured(model: Any, network: Any, subjects: list[Any]) -> dict[str, Any]:
    """CPU seconds, tokens and answers of one run of all subjects."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from eval import ask

    tokens = 0

    def count(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += (options["input_ids"] if "input_ids" in options else arguments[0]).numel()

    hook = network.register_forward_pre_hook(count, with_kwargs=True)
    start = time.process_time()
    with ask.quiet():
        found = simple_evaluate(
            model=model, tasks=[one.config for one in subjects], task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )  # fmt: skip
    seconds = time.process_time() - start
    hook.remove()
    answers = {
        (name, entry["doc_id"]): ([float(answer[0][0]) for answer in entry["resps"]], entry["acc"])
        for name, entries in found["samples"].items()
        for entry in entries
    }
    return {"cpu_s": seconds, "tokens": tokens, "answers": answers}


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole measurement."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from eval import ask, loading
    from eval.config import EvalConfig
    from eval.models_found import Found

    torch.set_num_threads(1)
    write_model(folder, args.tokenizer, args.hidden, args.layers)
    config = EvalConfig(
        model=str(folder), data=str(args.data), output=str(folder / "out"), limit=args.limit, allow_missing=True, dtype="float32"
    )
    subjects = [one for task in TASKS for one in ask.subjects_of(task, config)]
    with ask.quiet():
        from lm_eval.models.huggingface import HFLM

        from eval.model import PrefixLM

    forward = loading.load_forward(Found("bench", str(folder)), config, "float32")
    settings, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours = PrefixLM(tokenizer, settings, lambda: forward)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=args.batch)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "harness": []}
    for number in range(args.rounds):
        for name, model, network in (("harness", theirs, theirs.model), ("ours", ours, forward.model)):
            runs[name].append(measured(model, network, subjects))
            print(f"{number + 1}  {name:8} {runs[name][-1]['cpu_s']:8.1f} s  {runs[name][-1]['tokens']:,} tokens", file=sys.stderr)
    one, two = runs["ours"][0]["answers"], runs["harness"][0]["answers"]
    differences = [abs(a - b) for key in one for a, b in zip(one[key][0], two[key][0], strict=True)]
    seconds = {name: statistics.median(run["cpu_s"] for run in found) for name, found in runs.items()}
    tokens = {name: found[0]["tokens"] for name, found in runs.items()}
    options = f"--limit {args.limit} --rounds {args.rounds} --hidden {args.hidden} --layers {args.layers} --batch {args.batch}"
    weights = sum(tensor.numel() for tensor in forward.model.parameters())
    return {
        "date": datetime.date.today().isoformat(), "machine": f"{_processor()}, 1 thread", "commit": args.commit,
        "command": f"python scripts/bench/eval.py --data BENCHMARKS --tokenizer tokenizer.model {options}",
        "torch": torch.__version__, "model": f"LLaMA, hidden {args.hidden}, {args.layers} layers, {weights:,} weights",
        "subjects": len(subjects), "items": len(one), "tokens": tokens,
        "cpu_s": {name: [round(run["cpu_s"], 2) for run in found] for name, found in runs.items()},
        "median_cpu_s": {name: round(value, 2) for name, value in seconds.items()},
        "fewer_tokens": round(tokens["harness"] / tokens["ours"], 2), "faster": round(seconds["harness"] / seconds["ours"], 2),
        "goals": GOALS, "largest_difference": max(differences),
        "equal_scores": all(one[key][1] == two[key][1] for key in one),
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(found: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    lines = [
        "# Letter tasks: our model beside the harness's own", "",
        f"{found['date']}, {found['machine']}, torch {found['torch']}, commit {found['commit'] or 'unknown'}. `{found['command']}`", "",
        f"{found['items']} items of {found['subjects']} subjects (C-Eval, CMMLU, MMLU, five shots), {found['model']}, FP32, "
        f"{len(found['cpu_s']['ours'])} rounds in turns, medians; CPU time of prompts, tokens, forwards and scores.", "",
        "| | tokens | CPU s | each round |", "|---|---:|---:|---|",
    ]  # fmt: skip
    for name, title in (("harness", "HFLM, logits_cache"), ("ours", "ziya-eval")):
        rounds = ", ".join(f"{value:.1f}" for value in found["cpu_s"][name])
        lines.append(f"| {title} | {found['tokens'][name]:,} | {found['median_cpu_s'][name]:.1f} | {rounds} |")
    lines.append(f"| ratio | {found['fewer_tokens']:.1f} (goal {GOALS['tokens']:g}) | {found['faster']:.1f} (goal {GOALS['speed']:g}) | |")
    equal = f"Largest difference of a log-probability: {found['largest_difference']:.1e}; every score equal: {found['equal_scores']}."
    return "\n".join([*lines, "", equal, ""])


def main() -> None:
    """Measure, print, and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="benchmarks in their official formats")
    parser.add_argument("--tokenizer", type=Path, required=True, help="LLaMA's tokenizer.model")
    parser.add_argument("--limit", type=int, default=16, help="items of a subject")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8, help="the harness's batch size")
    parser.add_argument("--write", action="store_true", help="write results/eval.json and .md")
    parser.add_argument("--commit", default="", help="what was measured, for the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = compare(args, Path(name))
    if args.write:
        from ziya.files import write_bytes, write_json

        write_json(HERE / "results" / "eval.json", found)
        write_bytes(HERE / "results" / "eval.md", table(found).encode())
    print(table(found))


if __name__ == "__main__":
    main()
