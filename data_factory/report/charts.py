"""Inline SVG for the report: the funnel in the shape of the paper's Figure 2, histograms with cuts, bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

_TITLES = {
    "read": "Read",
    "preprocess": "Preprocess (DP)",
    "score": "Score (AS)",
    "rules": "Rules (RF)",
    "deduplicate": "Deduplicate (CD)",
}


def funnel(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a step: a trapezoid as wide as its share of all documents in (SVG that stretches), title and numbers."""
    total = max(1, steps[0]["in"] if steps else 1)
    rows = []
    for step in steps:
        top, bottom = (max(1.0, 100 * step[name] / total) for name in ("in", "out"))
        corners = [(50 - top / 2, 0), (50 + top / 2, 0), (50 + bottom / 2, 40), (50 - bottom / 2, 40)]
        points = " ".join(f"{x:.2f},{y}" for x, y in corners)
        shape = Markup(
            f'<svg aria-hidden="true" viewBox="0 0 100 40" preserveAspectRatio="none"><polygon points="{points}"/></svg>'
        )
        rows.append(
            {"shape": shape, "title": _TITLES.get(step["name"], step["name"]), "share": step["out"] / total, **step}
        )
    return rows


def histogram(bins: Sequence[Sequence[float]], cut: dict[str, Any]) -> Markup:
    """Documents over perplexity (logarithmic), with the cuts of the high and medium tiers as lines."""
    if not bins:
        return Markup("")
    width, height, base = 560.0, 150.0, 24.0
    low, high = math.log10(bins[0][0]), math.log10(bins[-1][1])
    tallest = max(count for *_, count in bins)

    def place(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * width

    parts = [
        f'<rect x="{place(left):.1f}" y="{height - height * count / tallest:.1f}" '
        f'width="{max(1.0, place(right) - place(left) - 1):.1f}" height="{height * count / tallest:.1f}">'
        f"<title>{left:.0f} to {right:.0f}: {count:.0f} documents</title></rect>"
        for left, right, count in bins
    ]
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        parts.append(
            f'<text class="note" text-anchor="middle" x="{place(10.0**exponent):.1f}" y="{height + 16}">{10**exponent:g}</text>'
        )
    for name in ("high", "medium"):
        value = (cut.get(name) or [0.0])[0]
        if value and 10**low <= value <= 10**high:
            x = place(value)
            anchor = "end" if x > width - 90 else "start"
            shift = -5 if anchor == "end" else 5
            parts.append(
                f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
                f'<text class="cutname" text-anchor="{anchor}" x="{x + shift:.1f}" '
                f'y="{12 if name == "high" else 28}">{name} \u2264 {value:.4g}</text>'
            )
    return Markup(
        f'<svg role="img" aria-label="documents over perplexity" viewBox="-12 -4 {width + 24:.0f} '
        f'{height + base + 4:.0f}" class="histogram">{"".join(parts)}</svg>'
    )


def bars(rows: Sequence[tuple[str, int]]) -> Markup:
    """Labelled horizontal bars."""
    if not rows:
        return Markup("")
    largest = max(count for _, count in rows) or 1
    parts = []
    for number, (label, count) in enumerate(rows):
        y, wide = number * 24, max(1.0, 300 * count / largest)
        parts.append(
            f'<text class="note" x="0" y="{y + 16}">{escape(label)}</text>'
            f'<rect x="90" y="{y + 4}" width="{wide:.1f}" height="16"/>'
            f'<text class="note" x="{96 + wide:.1f}" y="{y + 16}">{count}</text>'
        )
    return Markup(
        f'<svg role="img" aria-label="cluster sizes" viewBox="0 0 470 {len(rows) * 24}" class="bars">{"".join(parts)}</svg>'
    )
