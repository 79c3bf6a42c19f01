"""The start-up checks pass on a sound model of any size in TP2 and PP2, and each fails when what it looks at is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_ranks import run_ranks, tiny
from train_runs import CONFIG


def started(rank: int, folder: Path, tensor: int, faults: tuple[str, ...]) -> dict[str, list[str]]:
    """Fault -> what the checks said, or the error that they raised; "" stands for the sound model."""
    from training import checks, layout, weights
    from training.architecture import Architecture
    from training.config import OptimizerSettings, load_config
    from training.engine import Engine
    from training.model import Numerics, build
    from training.stages import Start
    from training.state import RunState

    layouts = layout.Layout(2, tensor, 2 // tensor)
    layout.start_groups(layouts)
    here = layout.place(layouts)
    Architecture.parameters = property(lambda self: 13_000_000_000)  # type: ignore[assignment,method-assign] - any size
    _, shape, whole = tiny(layers=2)
    chunks = build(shape, layouts, Numerics(bf16="bf16 sums" in faults, kernel="plain", loss_chunk=16))
    weights.fill(chunks, whole.__getitem__, shape, here.tensor, tensor)  # type: ignore[arg-type]
    engine = Engine(chunks, layouts, OptimizerSettings())
    config = load_config(CONFIG)
    start = Start("model", folder, RunState())
    found: dict[str, list[str]] = {}
    for fault in ("", *faults):
        rows = [checks.tiny_row(shape, [5, 3])]
        kernels = {layer: layer.attention.kernel for chunk in chunks for layer in chunk.layers.values()}
        kept = {name: weight.detach().clone() for name, weight in chunks[0].named_parameters()}
        gradients = engine.gradients
        for layer in kernels:
            if fault == "leak":  # every token sees all earlier ones of its row
                layer.attention.kernel = lambda q, k, v, rows: torch.nn.functional.scaled_dot_product_attention(
                    *(x.transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=True
                )[0].transpose(0, 1)
        with torch.no_grad():
            if fault == "blind":  # nothing depends on the tokens
                for name, weight in chunks[0].named_parameters():
                    if name == "embedding.weight":
                        weight.fill_(1.0)
            if fault == "logits":
                for name, weight in chunks[0].named_parameters():
                    if name.endswith("attention.out.weight"):
                        weight.mul_(1.1)
            if fault == "rows":
                rows[0].tokens[3] += rank
            if fault == "bf16 sums":
                halves = [found._replace(values=found.values.bfloat16()) for found in gradients()]
                engine.gradients = lambda halves=halves: iter(halves)  # type: ignore[method-assign,misc]
            said: list[str] = []
            try:
                checks.run(engine, shape, here, config, rows, start, said.append)
            except RuntimeError as error:
                said = [str(error)]
            for name, weight in chunks[0].named_parameters():
                weight.copy_(kept[name])
        for layer, kernel in kernels.items():
            layer.attention.kernel = kernel
        engine.gradients = gradients  # type: ignore[method-assign]
        found[fault] = said
    layout.stop_groups()
    return found


@pytest.mark.parametrize("tensor", [2, 1])
def test_checks_pass_and_fail(tmp_path: Path, tensor: int) -> None:
    model, _, _ = tiny(layers=2)
    model.save_pretrained(tmp_path)
    faults = ("leak", "blind", "rows", "logits") if tensor == 2 else ("leak", "rows", "bf16 sums")
    for found in run_ranks(2, started, tmp_path, tensor, faults):
        said = found.pop("")
        assert len(said) == 3 and said[0].startswith(f"layout: TP{tensor} PP{2 // tensor} DP1 ZeRO-1, 2 processes"), (
            said
        )
        assert said[1] == "comparing the first logits of 13.0 B parameters with transformers', layer by layer"
        assert "documents do not see each other" in said[2] and "first logits equal transformers' within " in said[2]
        expected = {
            "leak": "the attention mask leaks",
            "blind": "the attention mask leaks",
            "rows": "ranks that share a model read different rows",
            "logits": "logits differ from transformers' by ",
            "bf16 sums": "gradients are summed in torch.bfloat16, not in FP32",
        }
        for fault, (text,) in found.items():
            assert text.startswith("start-up check failed: ") and expected[fault] in text


def test_bf16_may_be_off_by_what_it_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice transformers' own rounding where that is more than 5 %; a wrong model and values that are not finite still fail."""
    from training import checks

    generator = torch.Generator().manual_seed(0)
    right, noise = (torch.randn(32, 100, generator=generator) for _ in range(2))
    own = 0.1  # what transformers' BF16 form is off
    monkeypatch.setattr(
        checks, "hf_logits", lambda _, __, dtype=torch.float32: right + (own * noise if dtype == torch.bfloat16 else 0)
    )

    def judged(values: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> tuple[float, float]:
        return checks._judged(values, checks.tiny_row(tiny(layers=2)[1], [32]), tmp_path, dtype)

    assert judged(right + 0.04 * noise) == (pytest.approx(0.04, rel=0.05), 0.05)  # asks no second time
    assert judged(right + 0.15 * noise) == (pytest.approx(0.15, rel=0.05), pytest.approx(0.2, rel=0.05))
    assert judged(right + 0.15 * noise, torch.float32)[1] == 1e-3
    broken = right.clone()
    broken[3, 5] = torch.nan
    assert judged(broken)[0] == float("inf") > judged(broken)[1]
    own = float("nan")
    assert judged(right + 0.15 * noise) == (pytest.approx(0.15, rel=0.05), 0.05)
