"""`ziya-train plot`: the JSON holds what the run holds, pictures are written, folders that are no runs are refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from training import cli, plot
from ziya.errors import UserError


def write_run(
    run: Path, stages: list[tuple[int, int]], *, base: float | None = 1.0, names: tuple[str, ...] = ("中文",)
) -> Path:
    """`stages`: (steps, tokens a step) of each; validations at each stage's end."""
    run.mkdir(parents=True)
    step = tokens = 0
    lines: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = [validation(0, 1, 0, name, base, base) for name in names if base is not None]
    for stage, (steps, size) in enumerate(stages, 1):
        for index in range(steps):
            step, tokens = step + 1, tokens + size
            lines.append({"step": step, "stage": stage, "tokens": tokens, "loss": 4.0 / step, "skipped": False})
            if index == 0:
                lines.append({"step": step, "stage": stage, "tokens": tokens, "loss": 99.0, "skipped": True})
        held += [validation(step, stage, tokens, name, 1.0 + 0.1 * stage, base) for name in names]
    for name, found in (("metrics", lines), ("validation", held)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
        (run / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return run


def validation(
    step: int, stage: int, tokens: int, name: str, value: float | None, base: float | None
) -> dict[str, Any]:
    return {
        "step": step, "stage": stage, "tokens": tokens, "name": name, "loss": 2.0 * (value or 1.0), "bits_per_byte": value,
        "base_bits_per_byte": base, "targets": 10,
    }  # fmt: skip


def test_two_runs_are_overlaid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "新配方", [(4, 1000), (2, 100), (2, 10)], names=("中文", "english"))
    other = write_run(tmp_path / "other", [(3, 1000)], base=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that no font has
        code = cli.main(["plot", str(one), str(other), "--output", str(tmp_path / "out" / "curves.svg")])
    assert code == 0
    written = [Path(text) for text in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["curves.png", "curves.svg", "curves.json"]
    assert written[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and b"<svg" in written[1].read_bytes()
    first, second = json.loads(written[2].read_text(encoding="utf-8"))["runs"]
    assert (first["name"], second["name"]) == ("新配方", "other")
    assert first["stages"] == [
        {"stage": 1, "first": 0, "last": 4000}, {"stage": 2, "first": 4000, "last": 4200},
        {"stage": 3, "first": 4200, "last": 4220},
    ]  # fmt: skip
    assert first["loss"] == {
        "tokens": [1000, 2000, 3000, 4000, 4100, 4200, 4210, 4220], "loss": [4.0 / n for n in range(1, 9)],
        "steps_per_point": 1,
    }  # fmt: skip
    assert first["validation"]["中文"] == {
        "unit": "bits per byte", "tokens": [0, 4000, 4200, 4220], "value": [1.0, 1.1, 1.2, 1.3], "base": 1.0,
    }  # fmt: skip
    assert second["validation"] == {"中文": {"unit": "bits per byte", "tokens": [3000], "value": [1.1], "base": None}}
    same = plot.draw([plot.read_curves(one, "新配方"), plot.read_curves(other, "other")], tmp_path / "again")
    assert same[1].read_bytes() == written[1].read_bytes()


def test_long_runs_are_thinned_inside_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "POINTS", 4)
    found = plot.read_curves(write_run(tmp_path / "run", [(5, 10), (3, 10)]), "run").loss
    assert found["steps_per_point"] == 2
    assert found["tokens"] == [20, 40, 50, 70, 80]
    assert found["loss"] == pytest.approx([3.0, 4 / 3 / 2 + 0.5, 0.8, (4 / 6 + 4 / 7) / 2, 0.5])


def test_without_bytes_the_loss_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [(2, 10)])
    lines = [json.loads(text) for text in (run / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line | {"bits_per_byte": None, "base_bits_per_byte": None} for line in lines]
    (run / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = plot.read_curves(run, "run").validation["中文"]
    assert found == {"unit": "loss", "tokens": [0, 20], "value": [2.0, 2.2], "base": 2.0}


def test_a_short_stage_has_its_share_of_the_axis(tmp_path: Path) -> None:
    paper = plot.read_curves(write_run(tmp_path / "paper", [(10, 650), (1, 580), (1, 3)]), "paper")
    tokens, places = plot.axis([paper])
    assert tokens.tolist() == [0, 6500, 7080, 7083] and np.diff(places).min() > 0.09 and places[-1] == pytest.approx(1)
    even = plot.read_curves(write_run(tmp_path / "even", [(1, 100), (1, 300)]), "even")
    assert plot.axis([even])[1].tolist() == [0, 0.25, 1.0]
    assert plot.axis([even, paper])[0].tolist() == [0, 100, 7083]
    assert [plot.short(n) for n in (0, 2560, 1.5e6, 650e9, 708.3e9)] == ["0", "2,560", "1.5M", "650B", "708.3B"]


@pytest.mark.parametrize("case", ["missing", "empty", "other", "no steps", "suffix"])
def test_folders_that_are_no_runs(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, more = tmp_path / "run", []
    if case != "missing":
        run.mkdir()
    if case in ("other", "no steps", "suffix"):
        (run / "metrics.jsonl").write_text('{"score": 1}\n' if case == "other" else "")
    if case == "suffix":
        more = ["--output", "x.pdf"]
    assert cli.main(["plot", str(run), *more]) == 2
    said = capsys.readouterr().err.splitlines()
    expected = {
        "missing": "does not exist", "empty": "is no folder of a run: it has no metrics.jsonl",
        "other": "is not the metrics of ziya-train", "no steps": "holds no step yet", "suffix": "leave the suffix .pdf out",
    }  # fmt: skip
    assert len(said) == 1 and expected[case] in said[0], said


def test_names_of_runs(tmp_path: Path) -> None:
    assert plot._names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert plot._names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    with pytest.raises(UserError, match="does not exist"):
        plot.read_curves(tmp_path / "none", "none")
