"""The fused forms of RMSNorm, RoPE and SwiGLU equal the plain ones, forward and backward.

The GPU's kernels cannot run here; the graphs that they are made from can: traced, differentiated and run by torch, and, in
`make soak`, compiled by Inductor for the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training import fused  # noqa: E402 - it imports torch
from training.activation import swiglu  # noqa: E402
from training.norm import rms_norm  # noqa: E402
from training.rotary import rotate, tables  # noqa: E402


def cases(tokens: int, dtype: Any) -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """name -> (plain function, its arguments; tensors that require gradients first)."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(tokens))
    turns = tables(torch.arange(tokens), 1.0 / 10000 ** (torch.arange(0, 16, 2) / 16))
    return {
        "norm": (rms_norm, [draw(tokens, 1, 48).to(dtype), draw(48).to(dtype), 1e-5]),
        "rotary": (rotate, [draw(tokens, 3, 16).to(dtype), *turns]),
        "swiglu": (swiglu, [draw(tokens, 1, 96).to(dtype)]),
    }


def results(function: Callable[..., Any], given: list[Any], dtype: Any) -> list[Any]:
    """Output and gradients of the inputs in `dtype` (float32 tables are no weights)."""
    inputs = [
        value.detach().clone().requires_grad_(value.dtype == dtype and place < 2) if torch.is_tensor(value) else value
        for place, value in enumerate(given)
    ]
    output = function(*inputs)
    output.backward(torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype))
    return [output.detach(), *(v.grad for v in inputs if torch.is_tensor(v) and v.grad is not None)]


def check(name: str, bf16: bool, backend: str) -> None:
    dtype = torch.bfloat16 if bf16 else torch.float32
    for tokens in (12, 7):  # another length is the same function
        plain, given = cases(tokens, dtype)[name]
        wanted = results(plain, given, dtype)
        found = results(fused.compiled(plain, backend), given, dtype)
        exact = results(plain, [v.double() if torch.is_tensor(v) else v for v in given], torch.float64)
        assert len(found) == len(wanted) > 1
        for ours, theirs, true in zip(found, wanted, exact, strict=False):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            size = float(true.abs().max())
            assert float((ours - theirs).abs().max()) <= (2e-2 if bf16 else 2e-6) * size
            # Never further from the truth than the plain form, but for a rounding.
            worst, allowed = float((ours - true).abs().max()), float((theirs - true).abs().max())
            assert worst <= allowed + (4e-3 if bf16 else 5e-7) * size


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["norm", "rotary", "swiglu"])
def test_the_traced_graph_equals_the_plain_function(name: str, bf16: bool) -> None:
    check(name, bf16, "aot_eager")


@pytest.mark.soak
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["norm", "rotary", "swiglu"])
def test_the_compiled_kernel_equals_the_plain_function(name: str, bf16: bool) -> None:
    check(name, bf16, "inductor")


def test_without_a_gpu_the_plain_function_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "available", lambda: False)
    assert fused.choose(swiglu, True) is swiglu
    monkeypatch.setattr(fused, "available", lambda: True)
    assert fused.choose(swiglu, False) is swiglu and fused.choose(swiglu, True) is fused.compiled(swiglu)


@pytest.mark.parametrize("works", [True, False])
def test_a_node_without_a_compiler_trains_with_the_plain_forms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], works: bool
) -> None:
    def compile_one() -> None:
        if not works:
            raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused, "find_spec", lambda _: True)
    monkeypatch.setattr(fused, "_works", compile_one)
    fused.available.cache_clear()
    assert fused.available() is works and fused.available() is works
    fused.available.cache_clear()
    told = capsys.readouterr().err
    assert told.count("Failed to find C compiler. Please specify one") == (0 if works else 1)
