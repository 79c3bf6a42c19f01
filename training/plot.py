"""`ziya-train plot RUN [RUN2 ...]`: loss and forgetting over tokens across the stages, runs overlaid.

One panel shows the training loss, one for each held-out name its bits per byte (its loss where no bytes are known), with the
starting model's value as a dashed line, one for all runs that began alike: above it the model has forgotten. Bands are the
stages of the first run; dotted lines show where those of another run end elsewhere. A stage of few tokens is drawn wider than
it is (`FLOOR`), and the axis says so.

FILE.png, FILE.svg and FILE.json are written; the JSON holds every number that is drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.metrics import read_lines
from ziya.errors import UserError
from ziya.files import atomic_path, write_json
from ziya.progress import log

F64 = npt.NDArray[np.float64]

POINTS = 2000  # of a curve; more steps are drawn as the mean of several
FLOOR = 0.12  # least share of the axis that a stage gets
CJK = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Microsoft YaHei",
       "PingFang SC", "SimHei", "Droid Sans Fallback", "Noto Serif CJK SC")  # fmt: skip
COLORS = ("#1f5fa8", "#c4562a", "#2f8f6b", "#8a4fa3", "#a3842c", "#5b6b7a")


@dataclass(frozen=True)
class Curves:
    """What is drawn of one run. `stages`: [{stage, first, last}] in tokens; `loss`: {tokens, loss, steps_per_point};
    `validation`: name -> {tokens, value, base, unit}, `base` None where the starting model was not measured."""

    name: str
    stages: list[dict[str, Any]]
    loss: dict[str, Any]
    validation: dict[str, dict[str, Any]]

    @property
    def last(self) -> float:
        """Tokens at the end."""
        return float(self.stages[-1]["last"])


def read_curves(run: Path, name: str) -> Curves:
    """Read RUN/metrics.jsonl and RUN/validation.jsonl. UserError when the folder is no run, or has no step yet."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        what = "is no folder of a run: it has no metrics.jsonl" if run.is_dir() else "does not exist"
        raise UserError(f"{run} {what}; give the folder that run=FOLDER named in training")
    try:
        steps = [line for line in read_lines(path) if not line["skipped"] and line["loss"] is not None]
        stages = _stages(steps)
        loss = _thinned(steps)
        validation = _validation(run / "validation.jsonl")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not the metrics of ziya-train ({error!r}): give the folder of a run") from error
    if not steps:
        raise UserError(f"{path} holds no step yet: wait for the first one")
    return Curves(name, stages, loss, validation)


def _stages(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where each stage begins and ends, in tokens of the whole run."""
    found: list[dict[str, Any]] = []
    for line in steps:
        if not found or found[-1]["stage"] != line["stage"]:
            found.append({"stage": line["stage"], "first": found[-1]["last"] if found else 0})
        found[-1]["last"] = line["tokens"]
    return found


def _thinned(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The loss over tokens; of long runs the mean over several steps, never across two stages, at the last of them."""
    size = -(-len(steps) // POINTS) or 1
    tokens: list[int] = []
    means: list[float] = []
    part: list[dict[str, Any]] = []
    for line, after in pairwise([*steps, None]):
        assert line is not None
        part.append(line)
        if len(part) == size or after is None or after["stage"] != line["stage"]:
            tokens.append(line["tokens"])
            means.append(sum(item["loss"] for item in part) / len(part))
            part = []
    return {"tokens": tokens, "loss": means, "steps_per_point": size}


def _validation(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for line in read_lines(path):
        known = line["bits_per_byte"] is not None
        unit = "bits per byte" if known else "loss"
        one = found.setdefault(line["name"], {"unit": unit, "tokens": [], "value": [], "base": None})
        value = line["bits_per_byte"] if known else line["loss"]
        if value is None or one["unit"] != unit:
            continue
        one["tokens"].append(line["tokens"])
        one["value"].append(value)
        base = line["base_bits_per_byte"] if known else (value if line["step"] == 0 else None)
        one["base"] = base if base is not None else one["base"]
    return {name: one for name, one in found.items() if one["tokens"]}


def axis(curves: Sequence[Curves]) -> tuple[F64, F64]:
    """(tokens, places in 0..1) of the corners of the token axis: the stages of the first run, each at least `FLOOR` wide."""
    corners = [0.0, *(float(stage["last"]) for stage in curves[0].stages)]
    corners[-1] = max(run.last for run in curves)  # a longer run goes on in the last band
    widths = np.diff(np.array(corners))
    shares = np.maximum(widths / widths.sum(), FLOOR if len(widths) > 1 else 0.0)
    return np.array(corners), np.concatenate([[0.0], np.cumsum(shares / shares.sum())])


def draw(curves: Sequence[Curves], output: Path) -> list[Path]:
    """Write OUTPUT with suffixes .png, .svg and .json; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for run in curves for name in run.validation))
    tokens, places = axis(curves)
    fonts = _fonts([*names, *(run.name for run in curves)])
    # Shapes of letters instead of their names: the SVG looks alike where the fonts are missing.
    settings = {"font.family": fonts, "svg.fonttype": "path", "svg.hashsalt": "ziya", "axes.unicode_minus": False}
    paths = [output.with_suffix(suffix) for suffix in (".png", ".svg", ".json")]
    with pyplot.rc_context(settings):
        columns = 2 if names else 1
        rows = -(-(1 + len(names)) // columns)
        figure, grid = pyplot.subplots(
            rows, columns, figsize=(7.0 * columns, 3.6 * rows), squeeze=False, layout="constrained"
        )
        panels = list(grid.flat)
        for panel in panels[1 + len(names) :]:
            panel.remove()
        panels = panels[: 1 + len(names)]
        for run, color in zip(curves, cycle(COLORS), strict=False):
            panels[0].plot(run.loss["tokens"], run.loss["loss"], color=color, linewidth=1.1, label=run.name)
        panels[0].set(title="training loss", ylabel="nats per target")
        for panel, name in zip(panels[1:], names, strict=True):
            _held_out(panel, curves, name)
        for panel in panels:
            _dress(panel, curves, tokens, places)
            panel.legend(frameon=False, fontsize=8)
        for path in paths[:2]:
            with atomic_path(path) as temporary:
                form = path.suffix[1:]
                figure.savefig(temporary, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
        pyplot.close(figure)
    write_json(paths[2], {"version": 1, "runs": [vars(run) for run in curves]})
    return paths


def _held_out(panel: Any, curves: Sequence[Curves], name: str) -> None:
    """One name: every run's values, and its starting model; one line where all runs have the same."""
    known = [(run, color) for run, color in zip(curves, cycle(COLORS), strict=False) if name in run.validation]
    for run, color in known:
        one = run.validation[name]
        panel.plot(one["tokens"], one["value"], color=color, linewidth=1.3, marker="o", markersize=3, label=run.name)
    bases = [(run.validation[name]["base"], run, color) for run, color in known]
    bases = [entry for entry in bases if entry[0] is not None]
    # Within what layouts round, it is one model.
    alike = bool(bases) and np.allclose([entry[0] for entry in bases], bases[0][0], rtol=1e-4)
    for base, run, color in bases[:1] if alike else bases:
        label = "starting model" if alike else f"{run.name}: starting model"
        panel.axhline(base, color="#404040" if alike else color, linewidth=1.0, linestyle="--", label=label)
    units = sorted({run.validation[name]["unit"] for run, _ in known})
    panel.set(title=f"held-out: {name}", ylabel=" / ".join(units))


def _dress(panel: Any, curves: Sequence[Curves], tokens: F64, places: F64) -> None:
    """Bands, borders and ticks of the token axis."""
    if len(tokens) > 2:
        panel.set_xscale(
            "function",
            functions=(lambda x: np.interp(x, tokens, places), lambda y: np.interp(y, places, tokens)),
        )
    stretched = bool(np.abs(places - tokens / tokens[-1]).max() > 1e-3)
    panel.set_xlim(0.0, tokens[-1])
    wide = np.diff(places) > 0.3
    inner = [np.linspace(*pair, 5)[1:-1] for pair, room in zip(pairwise(tokens), wide, strict=True) if room]
    ticks = sorted({*tokens.tolist(), *(float(tick) for part in inner for tick in part)})
    panel.set_xticks(ticks, [short(tick) for tick in ticks], fontsize=8)
    panel.minorticks_off()
    panel.set_xlabel("tokens" + (" (stages not to scale)" if stretched else ""))
    for number, (stage, (first, last)) in enumerate(zip(curves[0].stages, pairwise(tokens.tolist()), strict=True)):
        panel.axvspan(first, last, color="#808080", alpha=0.10 if number % 2 else 0.03, linewidth=0)
        panel.text(
            (first + last) / 2, 1.0, f"stage {stage['stage']}", transform=panel.get_xaxis_transform(),
            ha="center", va="top", fontsize=8, color="#606060",
        )  # fmt: skip
    for number, run in enumerate(curves[1:], 1):
        for stage in run.stages[:-1]:
            if stage["last"] not in tokens:
                panel.axvline(stage["last"], color=COLORS[number % len(COLORS)], linewidth=0.8, linestyle=":")
    panel.grid(axis="y", linewidth=0.4, alpha=0.5)
    panel.margins(y=0.12)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def short(tokens: float) -> str:
    """`650B`, `1.5M`, `2,560`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if tokens >= size:
            return f"{tokens / size:.4g}{letter}"
    return f"{tokens:,.0f}"


def _fonts(labels: Sequence[str]) -> list[str]:
    """The plain font, then those for Chinese that this machine has; a warning when labels need one and none is there."""
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in CJK if name in there]
    if not found and any(ord(character) > 0x2E80 for label in labels for character in label):
        log("warning: no font for Chinese is installed, such labels show as boxes: install one (fonts-noto-cjk)")
    return ["DejaVu Sans", *found]


def _names(runs: Sequence[Path]) -> list[str]:
    """Folder names; with the folder above where two are alike."""
    short_names = [run.resolve().name for run in runs]
    if len(set(short_names)) == len(runs):
        return short_names
    longer = [f"{run.resolve().parent.name}/{run.resolve().name}" for run in runs]
    return longer if len(set(longer)) == len(runs) else [str(run) for run in runs]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ziya-train plot`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run; several are overlaid")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="FILE.png, FILE.svg and FILE.json are written (default: plot in the first run's folder)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Draw; prints the paths of what was written."""
    given: Path = args.output if args.output is not None else args.runs[0] / "plot.png"
    if given.suffix not in ("", ".png", ".svg", ".json"):
        raise UserError(f"--output {given}: .png, .svg and .json are written: leave the suffix {given.suffix} out")
    curves = [read_curves(run, name) for run, name in zip(args.runs, _names(args.runs), strict=True)]
    for path in draw(curves, given):
        print(path)
    return 0
