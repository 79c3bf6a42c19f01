"""The line with which a start tells what memory it will need."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import small_models
import torch
from train_runs import CONFIG, ROOT

from training import device, fused, plan, plan_at_start
from training.config import load_config
from training.layout import Layout, check_layout
from training.plan_memory import GIB
from ziya.errors import UserError

PAPER = ROOT / "configs" / "train" / "ziya2_13b.yaml"
PARTS = re.compile(r"in GiB: (.*); in all ([\d.]+) of (.*)$")


def legal() -> list[Layout]:
    found = []
    for world, tensor, pipeline, chunks in itertools.product((1, 2, 4, 8), (1, 2), (1, 2, 4), (1, 2)):
        for sequence, zero in itertools.product((False, True), range(4)):
            layout = Layout(world, tensor, pipeline, chunks, sequence, zero)
            try:
                check_layout(layout, small_models.architecture(), length=16, microbatches=8 // max(layout.data, 1))
            except UserError:
                continue
            found.append(layout)
    return found


def test_one_line_for_every_legal_layout() -> None:
    layouts = legal()
    assert {layout.zero for layout in layouts} == {1, 2, 3} and {layout.chunks for layout in layouts} == {1, 2}
    config = load_config(CONFIG, ["data.global_batch_rows=8", "data.sequence_length=16"])
    for layout in layouts:
        for precision in ("bf16", "fp32"):
            said: list[str] = []
            model = config.model.model_copy(update={"precision": precision})
            plan_at_start.tell(
                config.model_copy(update={"model": model}), small_models.architecture(), layout, said.append
            )
            (line,) = said
            assert line.startswith("memory plan of a rank") and ("pipeline stage" in line) == (layout.pipeline > 1)
            match = PARTS.search(line)
            assert match is not None and match[3].endswith("which all ranks here share")
            named = [part.rpartition(" ") for part in match[1].split(", ")]
            assert [name for name, _, _ in named][:3] == ["weights", "gradients", "masters and moments"]
            assert "activations" in named[3][0] and named[4][0] == "allowances"
            assert sum(float(size) for _, _, size in named) == pytest.approx(float(match[2]), abs=0.03)


@pytest.mark.parametrize(("memory", "kernels", "total"), [(79.2, True, 73.0), (79.2, False, 83.9), (39.4, True, 73.0)])
def test_a_gpu_with_too_little_memory(
    monkeypatch: pytest.MonkeyPatch, memory: float, kernels: bool, total: float
) -> None:
    """The paper's run, as `ziya-train plan` counts it; without Triton the kernels that model.fused asks for do not count."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused, "available", lambda: kernels)
    monkeypatch.setattr(device, "memory", lambda: int(memory * GIB))
    config = load_config(PAPER)
    shape, _ = plan.shape_of(config, ROOT / "configs" / "models" / "llama2_13b_init.json")
    said: list[str] = []
    plan_at_start.tell(config, shape, Layout(80, 1, 2), said.append)
    match = PARTS.search(said[0])
    assert match is not None and match[3] == f"this GPU's {memory:.1f}"
    assert float(match[2]) == pytest.approx(total, abs=0.05)
    assert "gradients 24." in said[0] and "activations " in said[0]
    warned = total > memory
    assert len(said) == 1 + warned
    if warned:
        assert said[1].startswith(f"warning: the memory plan, {total:.1f} GiB, is above this GPU's {memory:.1f}")


def test_what_counts_when_it_is_not_the_activations() -> None:
    """ZeRO-1 in BF16 with short rows: the reduction's copy is the largest, and is named."""
    config = load_config(PAPER, ["data.sequence_length=8", "data.global_batch_rows=2"])
    shape, _ = plan.shape_of(config, Path(ROOT / "configs" / "models" / "llama2_13b_init.json"))
    said: list[str] = []
    plan_at_start.tell(config, shape, Layout(2), said.append)
    assert "(more than activations) " in said[0]
