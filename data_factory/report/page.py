"""report.json and report.html: one self-contained page (no script, no network) and the same content as JSON.

`ziya-data run` writes both without timings, so that equal runs leave equal bytes; `ziya-data report` adds throughput and memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_factory.config import DataConfig
from data_factory.report import charts, verdict
from data_factory.report.collect import collect
from data_factory.run_state import stored_config
from ziya.files import read_json, write_bytes, write_json


def write(config: DataConfig, out: Path, summary: dict[str, Any], timings: dict[str, Any] | None = None) -> None:
    """Collect and write both files."""
    value = collect(config, out, summary)
    if timings is not None:
        value["timings"] = timings
    write_json(out / "report.json", value)
    write_bytes(out / "report.html", render(value).encode())


def rewrite(out: Path, summary: dict[str, Any]) -> None:
    """Write both files again, with the timings of the run."""
    path = out / "timings.json"
    write(stored_config(out), out, summary, read_json(path)["steps"] if path.exists() else None)


def render(value: dict[str, Any]) -> str:
    """The page. Every text is escaped by the template engine; charts are inline SVG."""
    import jinja2  # slow to import, and needed here only

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}".replace(",", "\u202f")
    environment.filters["share"] = lambda number: f"{number:.2%}"
    environment.filters["short"] = lambda number: "" if number is None else f"{number:.4g}"
    environment.filters["megabytes"] = lambda number: f"{number / 1e6:.1f}"
    evaluation = value["evaluation"]
    evaluated = evaluation["passed"] is not None
    return environment.get_template("page.html").render(
        report=value,
        verdict_rate=verdict.rate(evaluation) if evaluated else "",
        verdict_certainty=verdict.certainty(evaluation) if evaluated else "",
        funnel=charts.funnel(value["steps"]),
        histograms={
            language: charts.histogram(bins, value["rank_cuts"].get(language, {}))
            for language, bins in value["perplexity_histogram"].items()
        },
        clusters=charts.bars([(f"{size} copies", count) for size, count in list(value["cluster_sizes"].items())[:12]]),
    )
