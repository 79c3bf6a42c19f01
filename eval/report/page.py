"""`report.html`: one self-contained page; no request leaves it, so it opens from a disk without network.

Texts of models and benchmarks are hostile input: the template engine escapes what it writes, the samples travel as JSON whose
`<`, `>` and `&` are escaped, and the script writes them by `textContent` alone.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import orjson

from eval.report import table
from eval.report.collect import p_value, points, title, tokens, versus_base
from eval.report.samples import Shown


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element."""
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def render(value: dict[str, Any], shown: Shown, charts: dict[str, bytes]) -> str:
    """The page of `value` (see `collect`) with samples and one SVG a task."""
    import jinja2
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "points": points, "signed": lambda number: points(number, signed=True), "tokens": tokens, "p": p_value, "title": title,
        "count": lambda number: f"{number:,}".replace(",", "\u202f"), "change": table.change,
        "mark": table.mark, "pairs": table.pairs,
    }  # fmt: skip
    names = [model["model"] for model in value["models"]]
    return environment.get_template("page.html").render(
        report=value,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup((folder / "page.js").read_text(encoding="utf-8")),
        charts={task: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for task, svg in charts.items()},
        stages=list(dict.fromkeys(model["stage"] for model in value["models"] if model["stage"])),
        scored={(row["model"], row["task"]): row for row in value["rows"]},
        tested=versus_base(value),
        previous=[row for row in value["comparisons"] if row["family"] == "previous"],
        pairs_note=table.PAIRS_NOTE,
        shown=table.shown_models(value),
        scorers=table.scorer_tables(value),
        unsafe=table.UNSAFE_NOTE if any(map(table.mark, value["rows"])) else "",
        subjects={item["task"]: table.subject_rows(value, item["task"]) for item in value["tasks"]},
        samples_shown=len(shown.items),
        samples_total=shown.total,
        data=Markup(
            embedded(
                {
                    "models": names,
                    "base": value["base"],
                    "titles": {t: title(t) for t in {i["t"] for i in shown.items}},
                    "items": shown.items,
                }
            )
        ),
    )
