"""Curves over training tokens: one panel a task, stages as bands, intervals as bands, the base as a dashed line."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.collect import title

COLUMNS = 3
COLOURS = ("#2f6f8f", "#b4412f", "#2c7a4b", "#8a5aa8")
BANDS = ("#eef3f8", "#fbf1e3", "#e9f4ec", "#f3ecf7")
INK, SOFT = "#1c2430", "#5b6675"
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """All panels as PNG and SVG, and each panel as an SVG of its own (task -> bytes)."""

    png: bytes
    svg: bytes
    single: dict[str, bytes]


def fonts() -> list[str]:
    """DejaVu Sans, then the installed fonts that have Chinese characters: matplotlib asks them in turn, glyph by glyph."""
    from matplotlib import font_manager

    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]


def draw(value: dict[str, Any]) -> Drawn:
    """Draw `value` (see `collect`); the same value gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # no pyplot: no global state, no window system

    tasks = [item["task"] for item in value["tasks"]]
    settings = {
        "font.family": fonts(),
        "font.size": 9,
        "svg.hashsalt": "ziya",
        "axes.edgecolor": SOFT,
        "text.color": INK,
    }
    with mpl.rc_context(settings):
        columns = min(COLUMNS, max(len(tasks), 1))
        lines = -(-max(len(tasks), 1) // columns)
        figure = Figure(figsize=(4.4 * columns, 3.3 * lines + 0.3), layout="constrained")
        for number, task in enumerate(tasks, start=1):
            panel(figure.add_subplot(lines, columns, number), value, task)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        single = {}
        with mpl.rc_context({"svg.fonttype": "none"}):  # the page's browser has fonts
            for task in tasks:
                alone, buffer = Figure(figsize=(4.4, 3.1), layout="constrained"), io.BytesIO()
                panel(alone.add_subplot(), value, task)
                alone.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
                single[task] = buffer.getvalue()
    return Drawn(png.getvalue(), svg.getvalue(), single)


def axis(models: list[dict[str, Any]]) -> tuple[dict[str, float], str, bool]:
    """(model -> place on the x axis, the axis' label, whether places are numbers): tokens, else steps, else the order of models."""
    others = [model for model in models if not model["is_base"]]
    for name in ("tokens", "step"):
        if (
            others
            and all(model[name] is not None for model in others)
            and len({model[name] for model in others}) == len(others)
        ):
            largest = max(model[name] for model in others)
            scale, unit = 1.0, ""
            if name == "tokens":
                unit = " of training"
                for size, word in ((1e9, ", billions"), (1e6, ", millions"), (1e3, ", thousands")):
                    if largest >= size:
                        scale, unit = size, f" of training{word}"
                        break
            return {model["model"]: model[name] / scale for model in others}, f"{name}{unit}", True
    return {model["model"]: float(place) for place, model in enumerate(others)}, "", False


def stages(models: list[dict[str, Any]], places: dict[str, float]) -> list[tuple[str, float, float]]:
    """(stage, begin, end) along the axis: a stage begins where the one before it ends."""
    bands: list[tuple[str, float, float]] = []
    begin = 0.0
    named = sorted(
        (places[model["model"]], stage_name(model["stage"])) for model in models if model["model"] in places and model["stage"]
    )
    for place, stage in named:
        if bands and bands[-1][0] == stage:
            bands[-1] = (stage, bands[-1][1], place)
        else:
            bands.append((stage, begin, place))
        begin = place
    return bands


def stage_name(stage: int | str) -> str:
    """`stage 2` of the number in an export's ziya.json; a name stays."""
    return f"stage {stage}" if isinstance(stage, int) else str(stage)


def shortened(name: str, limit: int) -> str:
    """At most `limit` characters; the end stays, for names of checkpoints differ there."""
    return name if len(name) <= limit else f"{name[: limit // 3]}…{name[len(name) - (limit - limit // 3 - 1) :]}"


def shade(axes: Any, bands: list[tuple[str, float, float]], width: float) -> None:
    """Stages as coloured columns with their names, upright where a column is narrow."""
    for number, (stage, begin, end) in enumerate(bands):
        axes.axvspan(begin, end, color=BANDS[number % len(BANDS)], zorder=0, linewidth=0)
        share = (end - begin) / width if width else 1
        if share > 0.03:
            name = shortened(stage, 14)
            axes.text(
                (begin + end) / 2, 0.985, name, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=7.5,
                color=SOFT, parse_math=False, rotation=0 if share > 0.15 else 90,
            )  # fmt: skip


def panel(axes: Any, value: dict[str, Any], task: str) -> None:
    """One task's panel."""
    from matplotlib.ticker import MaxNLocator

    models = value["models"]
    places, label, numeric = axis(models)
    rows = {row["model"]: row for row in value["rows"] if row["task"] == task}
    axes.set_title(title(task), loc="left", fontweight="bold", color=INK)
    if numeric:
        shade(axes, stages(models, places), max(places.values()))
    base = rows.get(value["base"])
    if base is not None:
        axes.axhspan(100 * base["low"], 100 * base["high"], color=SOFT, alpha=0.10, linewidth=0, zorder=1)
        axes.axhline(100 * base["value"], color=SOFT, linestyle="--", linewidth=1.3, label="base", zorder=2)
    runs = list(dict.fromkeys(model["run"] for model in models if model["model"] in places))
    for number, run in enumerate(runs):
        members = [model["model"] for model in models if model["run"] == run]
        found = [(places[name], rows[name]) for name in members if name in places and name in rows]
        if numeric and base is not None:
            found.append((0.0, base))  # training starts at the base
        found.sort(key=lambda pair: pair[0])
        if not found:
            continue
        colour = COLOURS[number % len(COLOURS)]
        x = [place for place, _ in found]
        y, low, high = ([100 * row[name] for _, row in found] for name in ("value", "low", "high"))
        name = shortened(Path(run).name, 24) if run is not None and len(runs) > 1 else "checkpoints" if run is not None else "models"
        if numeric and len(found) > 1:
            axes.plot(x, y, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name, zorder=4)
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, zorder=3)
        else:
            spread = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            axes.errorbar(x, y, yerr=spread, fmt="o", color=colour, markersize=4.5, capsize=3, label=name, zorder=4)
    if numeric:
        axes.set_xlim(0, max(places.values()) * 1.03 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label, color=SOFT, fontsize=8)
    else:
        names = [shortened(name, 16) for name in places]
        axes.set_xticks(list(places.values()), names, rotation=20 if len(names) > 2 else 0, parse_math=False)
        axes.set_xlim(-0.6, max(len(places) - 0.4, 0.6))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1), min(high + 0.12 * (high - low), 102))  # room for the stages' names
    axes.set_ylabel(f"{rows_metric(rows)}, %", color=SOFT, fontsize=8)
    axes.grid(axis="y", color="#d9dee6", linewidth=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=SOFT)
    _legend(axes)


def _legend(axes: Any) -> None:
    """Beside the title, where it hides neither curves nor stages; below the panel when many runs need the room."""
    count = len(axes.get_legend_handles_labels()[0])
    shared: dict[str, Any] = {"fontsize": 7.5, "frameon": False, "borderaxespad": 0.1, "handlelength": 1.8, "columnspacing": 1.2}
    if 0 < count <= 2:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.01), ncols=2, **shared)
    elif count:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, **shared)


def rows_metric(rows: dict[str, dict[str, Any]]) -> str:
    """The metric's name for the y axis."""
    names = {"acc": "accuracy", "exact_match": "exact match"}
    return next((names.get(row["metric"], row["metric"]) for row in rows.values()), "score")
