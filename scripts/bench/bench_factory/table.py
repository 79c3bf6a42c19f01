"""The Markdown table beside the results: our rates, the peers', the goals, the cost of each step, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOALS = {"four": 100.0, "all": 40.0, "datatrove": 10.0, "data-juicer": 6.0}
Results = dict[str, Any]


def rate(size: float, seconds: float) -> float:
    """MB per CPU second."""
    return size / 1e6 / seconds


def both(rates: dict[str, float]) -> float:
    """Rate over equal bytes of each language: the harmonic mean."""
    return len(rates) / sum(1 / value for value in rates.values())


def show(rates: dict[str, float], digits: int = 2) -> str:
    """`en / zh (both)`."""
    return " / ".join(f"{value:.{digits}f}" for value in rates.values()) + f" ({both(rates):.{digits}f})"


def failures(name: str, value: Any) -> list[str]:
    """Lines for every run inside a part that failed."""
    if not isinstance(value, dict):
        return []
    here = [f"- {name}: {value.get('error', 'failed')} (exit code {value['rc']})"] if value.get("rc") else []
    return here + [line for key, item in value.items() for line in failures(f"{name}, {key}", item)]


def filters(results: Results, entry: str) -> dict[str, float]:
    """datatrove's four filters: language -> MB/s/core; empty where not measured."""
    part = results.get("datatrove-filters", {}).get("result", {})
    if any(part.get(language, {}).get("rc", 1) for language in ("en", "zh")):
        return {}
    if entry == "chain":
        return {language: rate(part[language]["bytes"], part[language]["cpu_s"]) for language in ("en", "zh")}
    alone = {language: part[f"{language}_alone"] for language in ("en", "zh")}
    return {
        language: rate(row["bytes"], row["together_cpu_s"])
        for language, row in alone.items()
        if "together_cpu_s" in row
    }


def kernels(results: Results, entry: str) -> dict[str, float]:
    """Our rules: language -> MB/s/core."""
    part = results.get("kernels", {}).get("result", {})
    return {language: rate(row["bytes"], row[f"{entry}_cpu_s"]) for language, row in part.items()}


def our_run(results: Results, name: str, startup: bool = False) -> float:
    """Our shipped command, without or with start-up, MB/s/core; 0 where not measured."""
    part = results.get(name, {}).get("result", {"rc": 1})
    return 0.0 if part["rc"] else rate(part["bytes"], part["cpu_s"] - (0 if startup else part["startup_cpu_s"]))


def peer_path(results: Results, startup: bool = False) -> float:
    """datatrove's whole path, without or with start-up."""
    part = results.get("datatrove-path", {}).get("result")
    if not part or part["run"]["rc"] or part["startup"]["rc"]:
        return 0.0
    return rate(part["bytes"], part["run"]["tree_cpu_s"] - (0 if startup else part["startup"]["tree_cpu_s"]))


def data_juicer(results: Results, name: str, startup: bool = False) -> float:
    """data-juicer's recipe over both languages, without or with start-up."""
    part = results.get(name, {}).get("result")
    if not part or any(row[key]["rc"] for row in part.values() for key in ("run", "startup")):
        return 0.0
    seconds = sum(row["run"]["cpu_s"] - (0 if startup else row["startup"]["cpu_s"]) for row in part.values())
    return rate(sum(row["bytes"] for row in part.values()), seconds)


def verdict(ours: float, theirs: float, goal: float) -> str:
    """The last cells of a row."""
    if not ours or not theirs:
        return f"not measured | {goal:.0f} | - |"
    ratio = ours / theirs
    return f"{ratio:.1f} | {goal:.0f} | {'met' if ratio >= goal else 'MISSED'} |"


def goals(results: Results) -> list[str]:
    """Ratios against the goals."""
    chain, alone = filters(results, "chain"), filters(results, "alone")
    lines = [
        "MB of text per CPU second of one core, start-up apart. Two figures are English / Chinese, the one in "
        "parentheses holds for equal bytes of both.",
        "",
        "| work | ours | peer | ratio | goal | |",
        "|---|---|---|---|---|---|",
    ]
    for title, entry, goal in (("rules of its four filters", "four_filters", "four"), ("all our rules", "all_rules", "all")):
        mine = kernels(results, entry)
        if not mine:
            continue
        for name, peer in (("its pipeline (a dropped page skips what follows)", chain), ("the four on every page", alone)):
            if len(peer) == 2:
                cells = f"| {title} | {show(mine, 1)} | datatrove, {name}: {show(peer)} | "
                lines.append(cells + verdict(both(mine), both(peer), GOALS[goal]))
    for startup in (False, True):
        word = ", start-up counted" if startup else ""
        few, much = (data_juicer(results, f"data-juicer-{size}", startup) for size in ("subset", "whole"))
        path = peer_path(results, startup)
        rows = (
            ("subset", "run-subset", "datatrove, whole path, subset", path, "datatrove"),
            ("subset", "run-subset", "data-juicer, fused recipe, subset", few, "data-juicer"),
            ("all text", "run-whole", "data-juicer, fused recipe, all text", much, "data-juicer"),
            ("all text", "run-whole", "datatrove, whole path, subset", path, "datatrove"),
        )
        for title, name, peer_name, peer_rate, goal in rows:
            mine_rate = our_run(results, name, startup)
            if mine_rate and peer_rate:
                cells = f"| whole run, {title}{word} | {mine_rate:.2f} | {peer_name}: {peer_rate:.2f} | "
                ending = f"{mine_rate / peer_rate:.1f} | | |" if startup else verdict(mine_rate, peer_rate, GOALS[goal])
                lines.append(cells + ending)
    return lines


def sizes(results: Results) -> list[str]:
    """What was measured, documents a second, start-up, memory."""
    lines = ["| part | documents | MB | CPU s | start-up CPU s | documents/s/core | peak MiB |", "|---|---|---|---|---|---|---|"]

    def add(name: str, documents: int, size: float, cpu: float, startup: float | None, peak: float | None) -> None:
        net = cpu - (startup or 0.0)
        cells = (
            name, str(documents), f"{size / 1e6:.1f}", f"{net:.1f}", "-" if startup is None else f"{startup:.1f}",
            f"{documents / net:.0f}", "-" if peak is None else f"{peak / 2**20:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")

    for language, row in results.get("kernels", {}).get("result", {}).items():
        for entry in ("four_filters", "all_rules"):
            title = f"our kernels, {entry.replace('_', ' ')}, {language}"
            add(title, row["documents"], row["bytes"], row[f"{entry}_cpu_s"], None, None)
    for name in ("run-subset", "run-whole"):
        row = results.get(name, {}).get("result", {"rc": 1})
        if not row["rc"]:
            add(f"our {name}", row["documents"], row["bytes"], row["cpu_s"], row["startup_cpu_s"], row["peak_rss"])
    for language in ("en", "zh"):
        row = results.get("datatrove-filters", {}).get("result", {}).get(language, {"rc": 1})
        if not row["rc"]:
            add(f"datatrove, four filters, {language}", row["documents"], row["bytes"], row["cpu_s"], None, row["peak_rss"])
    row = results.get("datatrove-path", {}).get("result")
    if row and peer_path(results):
        run, startup = row["run"], row["startup"]["tree_cpu_s"]
        add("datatrove, whole path", row["documents"], row["bytes"], run["tree_cpu_s"], startup, run["peak_rss"])
    for name in ("data-juicer-subset", "data-juicer-whole"):
        for language, row in results.get(name, {}).get("result", {}).items():
            run, startup = row["run"], row["startup"].get("cpu_s", 0.0)
            if not run["rc"]:
                add(f"{name}, {language}", row["documents"], row["bytes"], run["cpu_s"], startup, run["peak_rss"])
    return lines


def steps(results: Results, name: str) -> list[str]:
    """CPU of every step of our run."""
    part = results.get(name, {}).get("result", {"rc": 1})
    if part["rc"]:
        return []
    net = part["cpu_s"]
    lines = [
        f"### Steps of `{name}`: {part['bytes'] / 1e6:.1f} MB of text, {net:.1f} CPU s with start-up ({part['startup_cpu_s']:.1f})",
        "",
        "| step | CPU s | share | MB/s/core of the text in | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for step, row in sorted(part["steps"].items(), key=lambda item: -item[1]["cpu_s"]):
        if row["cpu_s"] >= 0.005 * net:
            lines.append(
                f"| {step} | {row['cpu_s']:.2f} | {row['cpu_s'] / net:.1%} | {rate(part['bytes'], row['cpu_s']):.1f} "
                f"| {row['peak_rss'] / 2**20:.0f} |"
            )
    outer = sum(row["cpu_s"] for step, row in part["steps"].items() if "." not in step)
    lines.append(f"| outside of steps (imports, models, report) | {net - outer:.2f} | {(net - outer) / net:.1%} | | |")
    return lines


def memory(results: Results) -> list[str]:
    """Peak memory of once and four times the corpus."""
    part = results.get("memory", {}).get("result", {})
    if "peak_ratio" not in part:
        return []
    one, four = part["1x"], part["4x"]
    lines = [
        f"### Peak memory, {one['bytes'] / 1e6:.0f} MB and {four['bytes'] / 1e6:.0f} MB of text",
        "",
        f"Largest process: {one['peak_rss'] / 2**20:.0f} and {four['peak_rss'] / 2**20:.0f} MiB, ratio "
        f"{part['whole_peak_ratio']:.3f} (goal: at most 1.10).",
        "",
        "| step | once, MiB | four times, MiB | ratio |",
        "|---|---|---|---|",
    ]
    for step, ratio in part["peak_ratio"].items():
        if "." not in step:
            cells = f"| {step} | {one['steps'][step]['peak_rss'] / 2**20:.0f} | {four['steps'][step]['peak_rss'] / 2**20:.0f} |"
            lines.append(f"{cells} {ratio:.3f} |")
    return lines


def write(folder: Path) -> str:
    """Write data_factory.md from data_factory.json; the text."""
    results = json.loads((folder / "data_factory.json").read_text())
    about = {name: (part["machine"], part["versions"]) for name, part in results.items()}
    machine, versions = next(iter(about.values()))
    lines = ["# Speed of the data factory and its peers", ""]
    lines += ["Written by `scripts/bench/data_factory.py` from `data_factory.json`; see `../peers/README.md` for the peers.", ""]
    lines += [*goals(results), "", "### What was measured", "", *sizes(results), ""]
    for name in ("run-whole", "run-subset"):
        lines += [*steps(results, name), ""]
    lines += [*memory(results), ""]
    problems = [line for name, part in results.items() for line in failures(name, part["result"])]
    lines += ["### Failures", "", *(problems or ["None."]), ""]
    lines += [
        "### Where and with what",
        "",
        f"CPU {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, shared with other work: CPU "
        "seconds count, wall time does not. " + ", ".join(f"{key} {value}" for key, value in sorted(versions.items())) + ".",
        "",
        "| part | date | commit | load when it ended |",
        "|---|---|---|---|",
        *(f"| {name} | {part['date']} | {part['commit'] or '-'} | {part['load']:.1f} |" for name, part in results.items()),
    ]
    text = "\n".join(lines).replace("\n\n\n", "\n\n").replace("\n\n\n", "\n\n") + "\n"
    (folder / "data_factory.md").write_text(text)
    return text
