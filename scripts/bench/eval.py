"""Letter tasks with our model and with the harness's own, side by side: processed tokens and CPU time.

    python scripts/bench/eval.py --data BENCHMARKS --tokenizer tokenizer.model [--limit 16] [--rounds 2]
        [--hidden 128 512 --layers 2 8] [--vocabulary 32000] [--write --commit HASH]

Both answer the same requests (C-Eval, CMMLU, MMLU under protocol ziya2, five shots) through `simple_evaluate` with a random
LLaMA in FP32 on one CPU thread, in turns (A B A B ...); medians count. Prompts are built, tokenised and scored in both
times; loading is in neither. Tokens are what enters the model's forward, padding included. The harness's model has its
`logits_cache` on, as by default, and batches of `--batch` rows.

Two things make the difference, and they are told apart: fewer tokens, and fewer logits, because the harness's model computes
those of every position over the whole vocabulary and ours those of the scored positions only. The smaller the model, the more
the second weighs (of LLaMA 2 13B, logits are 1 % of the multiplications), so several sizes are measured.
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


def write_model(folder: Path, tokenizer: Path, hidden: int, layers: int, vocabulary: int | None) -> None:
    """A random LLaMA with grouped keys and the given SentencePiece tokenizer; `vocabulary` may have more rows than that."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    names = LlamaTokenizer.from_pretrained(str(tokenizer.parent), add_bos_token=True)
    names.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=int(hidden * 2.6875), num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=max(vocabulary or 0, len(names)), max_position_embeddings=4096,
        initializer_range=0.2 * (128 / hidden) ** 0.5,  # logits as wide in every size, so that answers differ
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


def compare(args: argparse.Namespace, folder: Path, hidden: int, layers: int) -> dict[str, Any]:
    """The whole measurement of one size."""
    from transformers import AutoConfig, AutoTokenizer

    from eval import ask, loading
    from eval.config import EvalConfig
    from eval.models_found import Found

    write_model(folder, args.tokenizer, hidden, layers, args.vocabulary)
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
            print(
                f"{hidden} x {layers}  {number + 1}  {name:8} {runs[name][-1]['cpu_s']:8.1f} s  {runs[name][-1]['tokens']:,} tokens",
                file=sys.stderr,
            )
    one, two = runs["ours"][0]["answers"], runs["harness"][0]["answers"]
    differences = [abs(a - b) for key in one for a, b in zip(one[key][0], two[key][0], strict=True)]
    seconds = {name: statistics.median(run["cpu_s"] for run in found) for name, found in runs.items()}
    tokens = {name: found[0]["tokens"] for name, found in runs.items()}
    weights = sum(tensor.numel() for tensor in forward.model.parameters())
    table = settings.vocab_size * hidden
    return {
        "hidden": hidden, "layers": layers, "vocabulary": settings.vocab_size, "weights": weights,
        # Of the multiplications with weights that a token costs the harness's model; the embedding is looked up.
        "logits_share": round(table / (weights - table), 3),
        "subjects": len(subjects), "items": len(one), "tokens": tokens,
        "cpu_s": {name: [round(run["cpu_s"], 2) for run in found] for name, found in runs.items()},
        "median_cpu_s": {name: round(value, 2) for name, value in seconds.items()},
        "fewer_tokens": round(tokens["harness"] / tokens["ours"], 2), "faster": round(seconds["harness"] / seconds["ours"], 2),
        "largest_difference": max(differences), "equal_scores": all(one[key][1] == two[key][1] for key in one),
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(found: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    first = found["sizes"][0]
    lines = [
        "# Letter tasks: our model beside the harness's own", "",
        f"{found['date']}, {found['machine']}, torch {found['torch']}, commit {found['commit'] or 'unknown'}. `{found['command']}`", "",
        f"{first['items']:,} items of {first['subjects']} subjects (C-Eval, CMMLU, MMLU, five shots), random LLaMA in FP32, "
        f"{len(first['cpu_s']['ours'])} rounds in turns, medians; CPU time of prompts, tokens, forwards and scores. HFLM has its "
        f"logits_cache and batches of {found['batch']}.", "",
        "| hidden x layers | weights | logits | | tokens | CPU s | each round | tokens a CPU s |", "|---|---:|---:|---|---:|---:|---|---:|",
    ]  # fmt: skip
    for size in found["sizes"]:
        head = f"| {size['hidden']} x {size['layers']} | {size['weights'] / 1e6:.1f} M | {size['logits_share']:.0%} |"
        for name, title in (("harness", "HFLM"), ("ours", "ziya-eval")):
            rounds = ", ".join(f"{value:.1f}" for value in size["cpu_s"][name])
            seconds, tokens = size["median_cpu_s"][name], size["tokens"][name]
            lines.append(f"{head} {title} | {tokens:,} | {seconds:.1f} | {rounds} | {tokens / seconds:,.0f} |")
            head = "| | | |"
        fewer, faster = f"{size['fewer_tokens']:.1f} (goal {GOALS['tokens']:g})", f"{size['faster']:.1f} (goal {GOALS['speed']:g})"
        lines.append(f"{head} **ratio** | **{fewer}** | **{faster}** | | {size['faster'] / size['fewer_tokens']:.1f} |")
    worst = max(size["largest_difference"] for size in found["sizes"])
    equal = all(size["equal_scores"] for size in found["sizes"])
    text = (
        "`logits`: their share of the multiplications with weights of HFLM, which computes them at every position; ziya-eval does where "
        "a letter is scored. They are 1 % of LLaMA 2 13B's: the larger a model, the nearer its speed comes to the ratio of tokens."
    )
    end = f"Largest difference of a log-probability: {worst:.1e}; every score equal: {equal}."
    return "\n".join([*lines, "", text, "", end, ""])


def main() -> None:
    """Measure, print, and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="benchmarks in their official formats")
    parser.add_argument("--tokenizer", type=Path, required=True, help="LLaMA's tokenizer.model")
    parser.add_argument("--limit", type=int, help="items of a subject (all)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512], help="of each model")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8], help="of each model")
    parser.add_argument("--vocabulary", type=int, help="rows of the embedding, where more than the tokenizer's pieces")
    parser.add_argument("--batch", type=int, default=8, help="the harness's batch size")
    parser.add_argument("--write", action="store_true", help="write results/eval.json and .md")
    parser.add_argument("--commit", default="", help="what was measured, for the record")
    args = parser.parse_args()
    if len(args.hidden) != len(args.layers):
        parser.error("--hidden and --layers need as many values as there are models")
    import torch

    torch.set_num_threads(1)
    sizes = []
    for hidden, layers in zip(args.hidden, args.layers, strict=True):
        with tempfile.TemporaryDirectory() as name:
            sizes.append(compare(args, Path(name), hidden, layers))
    options = {
        "limit": args.limit, "rounds": args.rounds, "hidden": " ".join(map(str, args.hidden)),
        "layers": " ".join(map(str, args.layers)), "vocabulary": args.vocabulary, "batch": args.batch,
    }  # fmt: skip
    given = " ".join(f"--{name} {value}" for name, value in options.items() if value is not None)
    found = {
        "date": datetime.date.today().isoformat(), "machine": f"{_processor()}, 1 thread", "commit": args.commit,
        "command": f"python scripts/bench/eval.py --data BENCHMARKS --tokenizer tokenizer.model {given}",
        "torch": torch.__version__, "batch": args.batch, "goals": GOALS, "sizes": sizes,
    }  # fmt: skip
    if args.write:
        from ziya.files import write_bytes, write_json

        write_json(HERE / "results" / "eval.json", found)
        write_bytes(HERE / "results" / "eval.md", table(found).encode())
    print(table(found))


if __name__ == "__main__":
    main()
