"""The summary as text on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_factory import quarantined
from data_factory.report import verdict as words
from data_factory.report.summary import top


def summary(value: dict[str, Any], out: Path) -> str:
    """Funnel, tiers, reasons, verdict and packs of one run."""
    documents = value["documents"]
    lines = [
        f"documents: {documents['in']} in = {documents['kept']} kept + {documents['dropped']} dropped + "
        f"{documents['quarantined']} quarantined"
    ]
    for step in value["steps"]:
        share = step["out"] / documents["in"] * 100 if documents["in"] else 0.0
        lines.append(f"  {step['name']:<12} {step['in']:>9} -> {step['out']:<9} {share:6.2f} % of all")
    for language, tiers in value["tiers"].items():
        ranked = sum(tiers.values())
        shares = ", ".join(f"{name} {count} ({count / ranked * 100:.1f} %)" for name, count in tiers.items())
        lines.append(f"tiers {language}: {shares}")
    for language, tiers in value["kept"].items():
        size = sum(item["bytes"] for item in tiers.values())
        lines.append(
            f"kept {language}: {sum(item['documents'] for item in tiers.values())} documents, {size / 1e6:.2f} MB of text"
        )
    if value["reasons"]:
        lines.append(
            "most frequent reasons: " + ", ".join(f"{name} {count}" for name, count in top(value["reasons"], 8))
        )
    if documents["quarantined"]:
        most = top(quarantined.errors(out), 4)
        lines.append("most frequent errors in quarantine: " + ", ".join(f"{name} ({count})" for name, count in most))
    verdict = value["evaluation"]
    if verdict.get("passed") is not None:
        lines += [f"evaluation: {words.rate(verdict)}", f"evaluation: {words.certainty(verdict)}"]
    if not value["packs"]:
        lines.append("packs: none (tokenizer.path is not set)")
    for name, pack in value["packs"].items():
        lines.append(
            f"pack {name}: {pack['samples']} samples, {pack['tokens']} tokens, {pack['padding_share']:.3%} padding"
        )
    lines.append(f"report: {out / 'report.html'}   numbers: {out / 'summary.json'}")
    return "\n".join(lines)


def changes(before: dict[str, Any], after: dict[str, Any], out: Path) -> str:
    """What a `decide` changed."""
    if not before:
        return summary(after, out)
    lines = []
    for name in ("kept", "dropped", "quarantined"):
        old, new = before["documents"][name], after["documents"][name]
        lines.append(f"{name}: {old} -> {new}{f' ({new - old:+d})' if new != old else ' (unchanged)'}")
    for rule in sorted(before["reasons"].keys() | after["reasons"].keys()):
        old, new = before["reasons"].get(rule, 0), after["reasons"].get(rule, 0)
        if old != new:
            lines.append(f"  {rule}: {old} -> {new} ({new - old:+d})")
    for rule in sorted(before["changed"].keys() | after["changed"].keys()):
        old, new = before["changed"].get(rule, 0), after["changed"].get(rule, 0)
        if old != new:
            lines.append(f"  kept texts changed by {rule}: {old} -> {new} ({new - old:+d})")
    for language in sorted(before["tiers"].keys() | after["tiers"].keys()):
        for tier in ("high", "medium", "low"):
            old, new = (value["tiers"].get(language, {}).get(tier, 0) for value in (before, after))
            if old != new:
                lines.append(f"  tier {tier} of {language}: {old} -> {new} ({new - old:+d})")
    sizes = [
        sum(tier["bytes"] for tiers in value["kept"].values() for tier in tiers.values()) for value in (before, after)
    ]
    if sizes[0] != sizes[1]:
        lines.append(f"kept text: {sizes[0]} -> {sizes[1]} bytes ({sizes[1] - sizes[0]:+d})")
    verdicts = [value["evaluation"].get("passed") for value in (before, after)]
    if verdicts[0] != verdicts[1]:
        lines.append(f"evaluation passed: {verdicts[0]} -> {verdicts[1]}")
    return "\n".join(lines) + "\n\n" + summary(after, out)
