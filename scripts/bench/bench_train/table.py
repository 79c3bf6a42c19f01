"""`train.json` -> `train.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ziya.files import write_bytes, write_json

OURS = "ours"


def write(folder: Path, results: dict[str, Any]) -> list[str]:
    """Write both files; the lines of the table."""
    write_json(folder / "train.json", results)
    lines = ["# Speed of a training step", "", "Written by `scripts/bench/train.py` from `train.json`.", ""]
    lines += _gpu("On a GPU", results.get("gpu"))
    lines += _cpu(results.get("cpu"))
    if "gpu tiny" in results:
        lines += _gpu(
            "The GPU benchmark's code at a small size: that it runs; its figures mean nothing", results["gpu tiny"]
        )
    write_bytes(folder / "train.md", "\n".join(lines).encode())
    return lines


def _gpu(title: str, entry: dict[str, Any] | None) -> list[str]:
    lines = [f"## {title}", ""]
    if entry is None:
        return [*lines, "**Not run on a GPU yet.** `python scripts/bench/train.py gpu` measures it.", ""]
    lines += _about(entry)
    sheet = entry["result"]["data_sheet_tflops"]
    lines += [
        "| micro-batch | system | tokens/s | model TFLOPS | % of the measured matrix rate | % of the data sheet | peak GiB | ours is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for micro, part in entry["result"].items():
        if not micro.startswith("micro"):
            continue
        ours = part["systems"][OURS].get("tokens_per_s")
        for name, one in part["systems"].items():
            begin = f"| {micro.split()[1]} | {name}, recompute {one['recompute']}"
            if "failed" in one:
                lines.append(f"{begin} | failed: {one['failed']} | | | | | |")
                continue
            rate = f"{100 * one['tflops'] / part['matrix_tflops']:.1f}"
            share = f"{100 * one['tflops'] / sheet:.1f}" if sheet else "-"
            peak = f"{one['peak_gib']:.1f}" if one["peak_gib"] else "-"
            times = f"{ours / one['tokens_per_s']:.2f} times" if ours and name != OURS else ""
            lines.append(
                f"{begin} | {one['tokens_per_s']:,.0f} | {one['tflops']:.3g} | {rate} | {share} | {peak} | {times} |"
            )
        parity = part["parity"]
        notes.append(
            f"- micro-batch {micro.split()[1]}: parity {_parity(parity)}; matrix products {part['matrix_tflops']:.3g} TFLOPS; a "
            f"global batch is read and cut in {1e3 * part['loading_s']:.1f} ms"
        )
    goals = "Goals on a Hopper GPU: 60 % of the measured matrix rate, 1.25 times (a), no slower than (b)."
    return [
        *lines,
        "",
        *notes,
        "",
        goals,
        "",
        "Data-parallel communication is left out; optimizer states are those of one rank of forty.",
        "",
    ]


def _parity(parity: dict[str, Any]) -> str:
    if "failed" in parity:
        return f"failed: {parity['failed']}"
    return (
        f"{'holds' if parity['equal'] else 'DOES NOT HOLD'} (mean loss {parity['mean_loss']:.6f}, transformers "
        f"{parity['mean_loss_transformers']:.6f}, largest difference of a token {parity['largest_difference_of_a_token']:.2g}; "
        f"kernel `{parity['kernel']}`)"
    )


def _cpu(entry: dict[str, Any] | None) -> list[str]:
    lines = ["## On a CPU", ""]
    if entry is None:
        return [*lines, "Not measured yet.", ""]
    lines += _about(entry)
    lines += ["CPU seconds of a step, in turns; medians.", ""]
    lines += [
        "| rows | ours | transformers + torch AdamW | ratio of pairs (range) | goal | loading, of our step |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for kind, one in entry["result"].items():
        if not isinstance(one, dict):
            continue
        if "failed" in one:
            lines.append(f"| {kind} | failed: {one['failed']} | | | | |")
            continue
        mine, plain = one["median_s"].values()
        low, high = one["ratio_range"]
        goal = f"1.1: {'met' if one['ratio'] <= 1.1 else 'MISSED'}"
        loading = f"{100 * one['loading_share']:.3f} % ({'met' if one['loading_share'] < 0.01 else 'MISSED'}: 1 %)"
        lines.append(
            f"| {kind} | {mine:.2f} | {plain:.2f} | {one['ratio']:.3f} ({low:.3f} to {high:.3f}) | {goal} | {loading} |"
        )
        notes.append(f"- {kind}: parity {_parity(one['parity'])}")
    return [*lines, "", *notes, ""]


def _about(entry: dict[str, Any]) -> list[str]:
    about = entry["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    return [
        f"`{entry['command']}`, {about['date'][:10]}, {about['machine']}, load {about['load']:.1f}, commit {about['commit']}, {versions}.",
        "",
    ]
