"""The benchmark of the data factory: the package stays importable beside it, and its table says what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"
sys.path.append(str(BENCH))

from bench_factory import parts, table  # noqa: E402


@pytest.mark.parametrize("position", [0, 1])
def test_the_script_does_not_hide_the_package(position: int) -> None:
    code = f"import sys; sys.path.insert({position}, {str(BENCH)!r}); import data_factory.batches as b; print(b.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=BENCH.parents[1], capture_output=True, text=True, check=False)
    assert run.stdout.strip().endswith("data_factory/batches.py"), run.stderr
    assert "bench" not in run.stdout


def results() -> dict[str, Any]:
    """20 MB in 4 CPU s of ours, 1 of them start-up; datatrove 10 times as slow and data-juicer 5 times."""
    step = {"cpu_s": 2.0, "peak_rss": 2**30, "bytes": 1}
    ours = {"rc": 0, "documents": 90, "bytes": 30_000_000, "cpu_s": 4.0, "startup_cpu_s": 1.0, "peak_rss": 2**30}
    filters = {
        language: {"rc": 0, "documents": 9, "bytes": 10_000_000, "cpu_s": seconds, "peak_rss": 2**30}
        for language, seconds in (("en", 50.0), ("zh", 40.0))
    }
    alone = {f"{language}_alone": {"rc": 0, "bytes": 1_000_000, "together_cpu_s": 10.0} for language in ("en", "zh")}
    kernel = {"documents": 9, "bytes": 10_000_000, "four_filters_cpu_s": 0.5, "all_rules_cpu_s": 1.0}
    juicer = {"documents": 9, "bytes": 15_000_000, "run": {"rc": 0, "cpu_s": 9.5, "peak_rss": 1}, "startup": {"rc": 0, "cpu_s": 2.0}}
    path = {"rc": 0, "tree_cpu_s": 33.0, "peak_rss": 1}
    parts_of = {
        "kernels": {"en": kernel, "zh": kernel},
        "run-subset": {**ours, "steps": {"measure": step, "measure.spans": step}},
        "datatrove-filters": {**filters, **alone},
        "datatrove-path": {"documents": 9, "bytes": 30_000_000, "run": path, "startup": {"rc": 0, "tree_cpu_s": 3.0}},
        "data-juicer-subset": {"en": juicer, "zh": juicer},
        "data-juicer-whole": {"en": {**juicer, "run": {"rc": 1, "error": "no memory"}}, "zh": juicer},
    }
    about = {"date": "2026-01-01", "commit": "", "load": 0.5, "machine": parts.machine(), "versions": {"python": "3"}}
    return {name: {**about, "result": result} for name, result in parts_of.items()}


def test_the_table_compares_rates_without_startup(tmp_path: Path) -> None:
    (tmp_path / "data_factory.json").write_text(json.dumps(results()))
    lines = table.write(tmp_path).splitlines()
    assert (tmp_path / "data_factory.md").read_text().splitlines() == lines

    def row(*words: str) -> str:
        return next(line for line in lines if line.startswith("|") and all(word in line for word in words))

    # ours 20 MB/s; datatrove 0.2 and 0.25 (equal bytes of both: 0.222)
    assert row("rules of its four", "pipeline").endswith("| 90.0 | 100 | MISSED |")
    assert row("all our rules", "pipeline").endswith("| 45.0 | 40 | met |")
    assert row("whole run, subset", "datatrove").endswith("| 10.0 | 10 | met |")
    assert row("whole run, subset", "data-juicer").endswith("| 5.0 | 6 | MISSED |")
    assert "| 10.00 |" in row("whole run, subset", "datatrove")
    assert not any("all text: " in line and "data-juicer" in line for line in lines)
    assert "- data-juicer-whole, en, run: no memory (exit code 1)" in lines
    assert any(line.startswith("| outside of steps") and "| 2.00 |" in line for line in lines)


def test_copies_for_the_memory_check_are_other_documents() -> None:
    one, two = "a 1\nb 2\nc 3\nd 9", "q 1\nr 2\ns 3\nt 4"
    assert parts.other_document(one, two, 1) == "a 2\nb 3\ns 4\nt 5"
    assert len({parts.other_document(one, two, copy) for copy in range(4)}) == 4


def test_the_cost_of_a_command_is_that_of_its_whole_tree() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('done')"
    cost = parts.run_command([sys.executable, "-c", code])
    assert (cost.rc, cost.output.strip()) == (0, "done")
    assert 0.4 <= cost.cpu_s < 4
