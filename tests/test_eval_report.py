"""The report of a finished evaluation: table, curves, page; hostile texts, few data, broken input; a real browser where there is one."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import eval_results
import pytest

from eval import cli, report, statistics
from eval import samples as lines
from eval.report import collect, curves, page, samples, table
from ziya.errors import UserError


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    eval_results.write(folder, items=60)
    report.write(folder)
    return folder


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_table_shows_scores_beside_the_base_and_the_paper(out: Path) -> None:
    text = read(out / "table.md")
    rows = json.loads(read(out / "results.json"))
    lines = text.split("\n")
    header = next(number for number, line in enumerate(lines) if line.startswith("| model | stage"))
    assert cells(lines[header])[3:] == ["C-Eval", "CMMLU", "MMLU", "GSM8K", "MATH", "HumanEval"]
    shown = {cells(line)[0]: cells(line) for line in lines[header + 2 : header + 14]}
    assert shown["*Ziya2-13B*"][3:] == ["*58.84*", "*60.95*", "*61.36*", "*68.46*", "*10.98*", "*28.87*"]
    last = {row["task"]: row for row in rows if row["model"] == "step-700"}
    assert shown["step-700"][:3] == ["step-700", "three", "700 B"]
    assert shown["step-700"][6].startswith(f"{100 * last['gsm8k']['value']:.2f} (+") and "better" in shown["step-700"][6]
    assert "within noise" in shown["step-700"][7]
    assert all(len(cells(line)) == len(cells(lines[header])) for line in lines[header : header + 14])
    averages = next(cells(line) for line in lines if line.startswith("| C-Eval | step-700 | acc"))
    assert averages[3:6] == [f"{100 * last['ceval']['macro']:.2f}", f"{100 * last['ceval']['micro']:.2f}", "120"]
    assert "### C-Eval" in text and "| STEM | high\\_school\\_physics | 60 |" in text


def test_terminal_table_and_page_tell_one_difference_and_its_pairs(tmp_path: Path) -> None:
    world = eval_results.write(tmp_path, items=5, count=2)
    own = world["samples"]["step-100"]
    for place, line in enumerate(own["ceval"]):
        line["sample_hash"] += "" if place % 2 else "/fewer examples"
    for line in own["mmlu"]:
        line["sample_hash"] += "/fewer examples"
    for task in ("ceval", "mmlu"):
        path = tmp_path / "samples" / "step-100" / f"{task}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in own[task]), encoding="utf-8")
    rows = statistics.summarise(world["samples"], world["models"], "base", "ziya2", 1)
    (tmp_path / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    report.write(tmp_path)
    row = next(row for row in rows if row["model"] == "step-100" and row["task"] == "ceval")
    difference, told = f"{100 * row['difference']:+.2f}", "on 5 of 10 items with equal prompts"
    terminal, markdown, html = cli.summary(tmp_path, rows), read(tmp_path / "table.md"), read(tmp_path / "report.html")
    assert f"{difference} to the base {told}, p = " in terminal
    assert f"({difference} within noise, {told})" in markdown and f">{difference} within noise, {told}<" in html
    line = next(cells(line) for line in markdown.split("\n") if line.startswith("| C-Eval | step-100 | acc"))
    assert line[8] == "5 of 10" and line[9].startswith(f"{difference} [")
    assert "not compared with the base: no item has an equal prompt" in terminal
    assert "(not compared: no item has an equal prompt)" in markdown and "not compared: no item has an equal prompt" in html
    assert terminal.count("equal prompt") == 2, "where all items are pairs, nothing is told"


def test_equal_input_gives_equal_bytes(out: Path, tmp_path: Path) -> None:
    for name in ("results.json", "models.json", "samples"):
        (shutil.copytree if (out / name).is_dir() else shutil.copy)(out / name, tmp_path / name)
    report.write(tmp_path)
    for name in ("table.md", "curves.png", "curves.svg", "report.html", "report.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


def test_the_page_is_self_contained_and_escapes_everything(out: Path) -> None:
    text = read(out / "report.html")
    assert "<script>alert" not in text and "<img src=x" not in text
    assert len(re.findall(r"<script[ >]", text)) == len(re.findall("</script>", text)) == 2
    assert not re.findall(r"""(?:src|href|action)=["'](?!data:)""", text)
    assert "@import" not in text and "url(" not in text and "fetch(" not in text
    inside = re.search(r'<script type="application/json" id="samples">(.*?)</script>', text, re.DOTALL)
    assert inside is not None
    data = json.loads(inside.group(1))
    assert any(eval_results.HOSTILE in item["q"] for item in data["items"])
    assert len(data["items"]) == 3 * 120 + 3 * 60 and data["models"][0] == data["base"] == "base"


def test_curves_have_bands_stages_and_the_base(out: Path) -> None:
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    charts = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", read(out / "report.html"))
    assert len(charts) == 6
    first = base64.b64decode(charts[0]).decode()
    assert "C-Eval" in first and "stroke-dasharray" in first and "base" in first and "tokens of training, billions" in first
    value = json.loads(read(out / "report.json"))
    places, _, numeric = curves.axis(value["models"])
    assert numeric and places["step-697"] == 697
    numbered = [{**model, "stage": n} for n, model in enumerate(value["models"][-2:], start=1)]
    assert [name for name, _, _ in curves.stages(numbered, places)] == ["stage 1", "stage 2"]
    assert curves.shortened("a-long-model-name-step-100", 16) == "a-lon…e-step-100" and curves.shortened("short", 16) == "short"
    assert curves.stages(value["models"], places) == [("one", 0.0, 650.0), ("two 监督", 650.0, 697.0), ("three", 697.0, 700.0)]


@pytest.mark.parametrize("runs", [1, 3])
def test_the_legend_hides_nothing(out: Path, runs: int) -> None:
    """It lies outside the panel: beside the title, or below where several runs need the room."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    value = json.loads(read(out / "report.json"))
    for number, model in enumerate(value["models"]):
        model["run"] = None if model["is_base"] else f"/runs/a-run-{number % runs}"
    with mpl.rc_context({"font.family": curves.fonts(), "font.size": 9}):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        curves.panel(axes, value, "gsm8k")
        figure.draw_without_rendering()
    box, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    assert legend.y0 >= box.y1 - 1 or legend.y1 <= box.y0
    labels = [text.get_window_extent() for text in [*axes.get_xticklabels(), axes.xaxis.label, axes._left_title]]
    assert not any(legend.overlaps(label) for label in labels)
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0 and legend.y1 <= figure.bbox.y1
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == (["base", "checkpoints"] if runs == 1 else ["base", *(f"a-run-{n}" for n in (1, 2, 0))])


def test_models_without_tokens_are_points_in_their_order() -> None:
    listed = [{"model": name, "step": None, "tokens": None, "stage": None, "is_base": name == "b"} for name in ("b", "y", "x")]
    assert curves.axis(listed) == ({"y": 0.0, "x": 1.0}, "", False)
    assert curves.axis([{**model, "step": 5} for model in listed])[2] is False, "two models at one place are no curve"


@pytest.mark.parametrize("count", [1, 2])
def test_one_model_with_and_without_a_base(tmp_path: Path, count: int) -> None:
    eval_results.write(tmp_path, items=4, count=count, protocol="lm-eval")
    report.write(tmp_path)
    assert "micro averages" in read(tmp_path / "table.md")


def test_an_evaluation_without_base_or_samples(tmp_path: Path) -> None:
    world = eval_results.write(tmp_path, items=3, count=2)
    shutil.rmtree(tmp_path / "samples")
    models = [{**model, "is_base": False, "tokens": None, "step": None} for model in world["models"]]
    (tmp_path / "models.json").write_text(json.dumps(models), encoding="utf-8")
    report.write(tmp_path)
    text = read(tmp_path / "report.html")
    assert "base: none" in text and "0 of 0 items" in text


def test_more_results_are_shown_where_they_are(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    domain = {"model": "step-700", "domain": "新闻|<b>", "documents": 3, "bytes": 900, "bits_per_byte": 1.5, "low": 1.4, "high": 1.6}
    changed = {"base": 1.25, "change": 0.25, "change_low": 0.2, "change_high": 0.3, "verdict": "forgotten"}
    (tmp_path / "out" / "perplexity.json").write_text(json.dumps([{**domain, **changed}]), encoding="utf-8")
    counts = {"items": 1319, "checked": 1310, "flagged": 7, "partial": 12}
    scores = [{"task": "gsm8k", "model": "step-700", "value": 0.5, "n": 1319, "clean_value": 0.49, "clean_n": 1312}]
    found = {"threshold": 0.8, "tasks": {"gsm8k": counts}, "scores": scores}
    (tmp_path / "out" / "contamination.json").write_text(json.dumps(found), encoding="utf-8")
    spread = [{"task": "ceval", "model": "step-700", "values": [0.5, 0.7], "mean": 0.6, "least": 0.5, "greatest": 0.7}]
    (tmp_path / "out" / "variants.json").write_text(json.dumps(spread), encoding="utf-8")
    report.write(tmp_path / "out")
    text, markdown = read(tmp_path / "out" / "report.html"), read(tmp_path / "out" / "table.md")
    assert "新闻|&lt;b&gt;" in text and "+0.2500 [+0.2000, +0.3000]" in text and "forgotten" in text
    assert "| 新闻\\|\\<b\\> | step-700 | 3 | 900 | 1.5000 |" in markdown
    assert "| GSM8K | 1319 | 1310 | 7 | 12 |" in markdown and "| GSM8K | step-700 | 50.00 | 1319 | 49.00 | 1312 |" in markdown
    assert "| C-Eval | step-700 | 2 | 60.00 | 50.00 | 70.00 |" in markdown and "Spread over wordings" in text
    assert ">1312<" in text.replace("\u202f", "")


def test_what_is_not_a_result_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no results.json"):
        report.write(tmp_path)
    eval_results.write(tmp_path, items=2, count=1)
    path = tmp_path / "samples" / "base" / "gsm8k.jsonl"
    path.write_text('{"correct": 1, "sample_hash": "x"}\n{"correct": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"gsm8k.jsonl, line 2: no field sample_hash"):
        collect.collect(tmp_path)
    path.write_text('{"correct": 1, "samp', encoding="utf-8")
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        collect.collect(tmp_path)


def test_a_large_run_shows_a_part_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"ceval": 900, "math": 100}
    lines = {task: [{"sample_hash": f"{task}{n}", "correct": 1} for n in range(count)] for task, count in counts.items()}
    monkeypatch.setattr(samples, "ITEMS", 100)
    chosen, total = samples.choose({"m": lines}, ["m"])
    assert total == 1000
    assert [task for task, _ in chosen] == ["ceval"] * 90 + ["math"] * 10
    monkeypatch.setattr(samples, "ANSWERS", 100)
    chosen, total = samples.choose({"m": lines, "n": lines}, ["m", "n"])
    assert total == 1000 and len(chosen) == 50 and all(one is other for _, (one, other) in chosen)


def test_answers_are_told_in_words() -> None:
    assert samples.answer({"filtered_resps": [[-2.0, False], [-0.5, True]]}).startswith("B (log-probabilities A -2.00, B -0.50")
    assert samples.answer({"filtered_resps": ["7"], "resps": [["It is 7."]]}) == "7\n--- output ---\nIt is 7."
    assert samples.answer({"filtered_resps": ["7"], "resps": [["7"]]}) == "7"
    letters = {"filtered_resps": [[-2.0, False], [-0.5, True]]}
    assert samples.gold({**letters, "target": "1"}) == samples.gold({**letters, "target": 1}) == "B", "a letter, as the answers"
    assert samples.gold({**letters, "target": "A"}) == "A" and samples.gold({**letters, "target": "7"}) == "7"
    assert samples.gold({"filtered_resps": ["3"], "target": "1"}) == "1"
    assert samples.gold({"doc": {"answer": "18"}, "target": "9*2=18"}) == "18\n--- solution ---\n9*2=18"
    assert samples.gold({"doc": {"answer": "s"}, "target": "s"}) == "s"
    assert samples.gold({"doc": {"canonical_solution": "    return 1"}, "target": "def check(): ..."}) == "    return 1"
    verdict = {"program": "def f(): pass", "status": "failed", "detail": "AssertionError", "scores": {"pass@1": 0.0}}
    assert samples.answer({"filtered_resps": [verdict], "resps": [["    pass"]]}) == "failed AssertionError\n--- output ---\n    pass"
    math = {"answer": "\\frac12", "timeout": False, "scores": {"math": 1.0}}
    assert samples.answer({"filtered_resps": [math], "resps": [["So it is."]]}).startswith("\\frac12\n--- output")
    assert samples.answer({"filtered_resps": [{**math, "answer": ""}]}) == "(no answer found)" == samples.answer({"filtered_resps": [""]})
    assert samples.question({"doc": {"problem": "若 x=1"}}) == "若 x=1"
    assert samples.question({"doc": {}, "arguments": {"gen_args_0": {"arg_0": "the prompt", "arg_1": {}}}}) == "the prompt"
    choices = {"Question": "选", "choices": ["甲", "乙"]}
    assert samples.question({"doc": choices}) == "选\nA. 甲\nB. 乙"
    assert samples.question({"arguments": [["the prompt", " A"]]}) == "the prompt"


def test_a_line_keeps_its_scores_and_its_place(tmp_path: Path) -> None:
    docs = [{"Question": "选", "choices": ["甲", "乙"]}, {"question": "第二 题\u2028?", "A": "x"}]
    written = [
        {"doc": doc, "correct": n, "sample_hash": f"h{n}", "scores": {"acc,none": n, "acc_norm,none": 1.0}, "arguments": ["x" * 9999]}
        for n, doc in enumerate(docs)
    ]
    path = tmp_path / "m" / "mmlu.jsonl"
    path.parent.mkdir()
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in written), encoding="utf-8")
    first, second = lines.read_all(tmp_path)["m"]["mmlu"]
    assert first["item"] == lines.item_key("选\nA. 甲\nB. 乙") and first.get("nothing") is None and first["subject"] is None
    assert [dict(line)["correct"] for line in (first, second)] == [0.0, 1.0] and second["scores"] == written[1]["scores"]
    assert list(lines.whole(path, [second.place, first.place])) == written[::-1]
    tracemalloc.start()
    path.write_text("".join(json.dumps(written[n % 2] | {"sample_hash": f"{n}"}) + "\n" for n in range(2000)), encoding="utf-8")
    many = [lines.read_all(tmp_path) for _ in range(2)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 4000 < 400 and len(many[1]["m"]["mmlu"]) == 2000, "20 MB of prompts do not stay in memory"


def test_markdown_and_json_are_escaped() -> None:
    assert table.escape("a|b\n<c> *d*") == "a\\|b \\<c\\> \\*d\\*"
    assert json.loads(page.embedded({"x": eval_results.HOSTILE}))["x"] == eval_results.HOSTILE
    assert "<" not in page.embedded({"x": eval_results.HOSTILE})
    assert [collect.tokens(n) for n in (None, 0, 1500, 12.5e6, 650e9)] == ["", "0", "1.5 k", "12.5 M", "650 B"]
    assert [collect.p_value(p) for p in (None, 0.00001, 0.034, 1.0)] == ["", "< 0.0001", "0.034", "1"]


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = """
<script>
const set = (id, value) => {
  const field = document.getElementById(id);
  field.value = value;
  field.dispatchEvent(new Event(id === 'query' ? 'input' : 'change'));
};
const place = () => document.querySelector('.pager .place').textContent;
const steps = [place()];
set('task', 'ceval'); steps.push(place());
document.querySelector('.pager .next').click(); steps.push(place());
set('outcome', 'differ'); set('outcome', 'all');
set('query', '第3题 LAW');
setTimeout(() => {
  steps.push(place());
  steps.push(document.querySelectorAll('.sample mark').length > 1);
  steps.push(document.querySelectorAll('#list script, #list img').length);
  document.title = JSON.stringify(steps);
}, 400);
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to run the page's script in")
def test_search_and_paging_in_a_real_browser(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(read(out / "report.html").replace("</body>", SCRIPT), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done: Any = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None
    assert json.loads(found.group(1)) == [
        "540 found · page 1 of 27", "120 found · page 1 of 6", "120 found · page 2 of 6", "1 found · page 1 of 1", True, 0,
    ]  # fmt: skip
