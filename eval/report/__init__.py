"""The report of an evaluation folder: `table.md`, `curves.png`, `curves.svg`, `report.html` and all of it as `report.json`.

`collect.py` reads OUT, `table.py` writes Markdown, `curves.py` draws, `samples.py` and `page.py` make the page.
"""

from __future__ import annotations

from pathlib import Path

from eval.report import collect, curves, page, table
from eval.report import samples as shown
from eval.samples import Lines
from ziya.files import write_bytes, write_json


def write(out: Path, samples: Lines | None = None) -> None:
    """Write the report of OUT: `results.json`, `models.json`, `samples/`, and `perplexity.json`, `contamination.json` where they are.

    `samples`: its sample lines, where they are read already. Equal input gives equal bytes. UserError when OUT holds no results.
    """
    value, found = collect.collect(out, samples)
    write_bytes(out / "table.md", table.render(value).encode())
    drawn = curves.draw(value)
    write_bytes(out / "curves.png", drawn.png)
    write_bytes(out / "curves.svg", drawn.svg)
    write_bytes(out / "report.html", page.render(value, shown.of(out, value, found), drawn.single).encode())
    write_json(out / "report.json", value)
