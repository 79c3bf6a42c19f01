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
    """Documents over perplexity (logarithmic), with the cuts of the high and medium tiers as lines.

    The cuts' names stand above the bars, a row each, so that neither bars nor the other name lie under them.
    """
    if not bins:
        return Markup("")
    width, height, base, row = 560.0, 150.0, 24.0, 22.0
    widest = 180.0  # of a name, in the larger type of narrow screens
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
    shown = {name: (cut.get(name) or [0.0])[0] for name in ("high", "medium")}
    shown = {name: value for name, value in shown.items() if value and 10**low <= value <= 10**high}
    for number, (name, value) in enumerate(shown.items()):
        x, top = place(value), row * (number - len(shown))
        figure = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
        anchor, shift = ("end", -5) if x > width - widest else ("start", 5)
        parts.append(
            f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.0f}" y2="{height}"/>'
            f'<text class="cutname" text-anchor="{anchor}" x="{x + shift:.1f}" y="{top + row - 6:.0f}">{name} \u2264 {figure}</text>'
        )
    above = row * len(shown) + 4
    return Markup(
        f'<svg role="img" aria-label="documents over perplexity" viewBox="-12 {-above:.0f} {width + 24:.0f} '
        f'{height + base + above:.0f}" class="histogram">{"".join(parts)}</svg>'
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
