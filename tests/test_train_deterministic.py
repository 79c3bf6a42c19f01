"""What is asked of a GPU so that it gives the same bits each time, which kernels are chosen there, and what is refused.

No GPU is here: the calls are held against what they must pass on. What a step computes is known here too, so that no
operation of it is one of those that torch has no deterministic form of on GPUs, which would end a run there.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import golden_debug
import pytest
import small_models
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train_ranks import run_ranks
from train_runs import CONFIG, lines

from training import attention, device
from training.config import load_config
from training.rows import Packed
from ziya.errors import UserError

# torch.use_deterministic_algorithms: raise on CUDA (cumsum with floating numbers only).
WITHOUT_A_FORM = {
    "put", "put_", "histc", "bincount", "median", "nanmedian", "kthvalue", "mode", "cumsum", "nll_loss2d_forward",
    "scatter_reduce", "scatter_reduce_", "index_reduce", "_embedding_bag", "grid_sampler_2d", "reflection_pad1d",
    "reflection_pad2d", "adaptive_avg_pool2d", "upsample_bilinear2d", "max_unpool2d", "_ctc_loss",
}  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and flash-attn, as far as it is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def row(heads: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Packed]:
    rows = small_models.batch(0, small_models.architecture())[1]
    query, key = torch.randn(small_models.ROW, heads, 8), torch.randn(small_models.ROW, groups, 8)
    return query, key, key.clone(), rows


# --- asked for ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [1, 2])
def test_products_add_in_fp32_and_tensor_ranks_queue_in_order(
    monkeypatch: pytest.MonkeyPatch, gpu: None, tensor: int
) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "")  # so that it is as before at the end
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    try:
        matmul.allow_bf16_reduced_precision_reduction = True
        device.prepare(tensor)
        assert matmul.allow_bf16_reduced_precision_reduction is False
        assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == (None if tensor == 1 else "1")
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def test_a_gpu_is_asked_before_it_starts(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *given, **named: asked.append((given, named)))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filling = torch.utils.deterministic.fill_uninitialized_memory
    try:
        device.ask_deterministic(False)
        assert not asked and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        device.ask_deterministic(True)
        assert asked == [((True,), {})]  # not warn_only: torch's flash-attention backward would stay as it is
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.utils.deterministic.fill_uninitialized_memory
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        device.ask_deterministic(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # deterministic too: a user's choice stands
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filling


def test_a_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    device.ask_deterministic(True)
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize("deterministic", [True, False])
def test_flash_attention_is_told(monkeypatch: pytest.MonkeyPatch, gpu: None, deterministic: bool) -> None:
    calls: list[tuple[Any, ...]] = []
    sys.modules["flash_attn"].flash_attn_varlen_func = lambda *given, **named: calls.append((given, named))  # type: ignore[attr-defined]
    query, key, value, rows = row(4, 2)
    attention.choose("auto", deterministic=deterministic)(query, key, value, rows)
    ((given, named),) = calls
    assert named == {"causal": True, "deterministic": deterministic}
    assert all(a is b for a, b in zip(given[:5], (query, key, value, rows.borders, rows.borders), strict=True))
    assert given[5:] == (rows.longest, rows.longest)


def test_torchs_kernel_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backward pass obeys `torch.use_deterministic_algorithms`, so it is told nothing of its own."""
    from torch.nn.attention import varlen

    calls: list[tuple[Any, ...]] = []

    def varlen_attn(*given: Any, window_size: tuple[int, int] = (-1, -1)) -> torch.Tensor:
        calls.append((given, window_size))
        return given[0]

    attention._causal_arguments.cache_clear()
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    query, key, value, rows = row(4, 2)
    attention.torch_varlen(query, key, value, rows)
    ((given, window),) = calls
    assert window == (-1, 0) and given[1].shape == given[2].shape == query.shape
    assert torch.equal(given[1][:, 0], key[:, 0]) and torch.equal(given[1][:, 1], key[:, 0])
    attention._causal_arguments.cache_clear()


# --- which kernel -------------------------------------------------------------------------------------------------------


def test_which_kernel_is_chosen(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    def name(*given: Any, **named: Any) -> Any:
        kernel = attention.choose(*given, **named)
        return kernel.func if isinstance(kernel, partial) else kernel

    assert name("auto") is name("flash") is attention.flash
    assert name("auto", bf16=False) is name("plain") is attention.per_document  # the others know no FP32
    monkeypatch.delitem(sys.modules, "flash_attn")
    assert name("auto") is name("torch") is attention.torch_varlen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert name("auto") is attention.per_document


def test_a_kernel_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    for kernel in ("auto", "plain"):
        attention.check(kernel, bf16=False)
    for kernel in ("flash", "torch"):
        attention.check(kernel, bf16=True)
        with pytest.raises(
            UserError, match=rf"model\.kernel={kernel} computes in BF16 only, and model\.precision is fp32"
        ):
            attention.check(kernel, bf16=False)
    monkeypatch.delitem(sys.modules, "flash_attn")
    with pytest.raises(
        UserError, match=r"needs the package flash-attn, .*: pip install 'ziya\[gpu\]', or set model\.kernel=auto"
    ):
        attention.check("flash", bf16=True)
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.kernel=torch needs torch 2\.10 or later, and this is "):
        attention.check("torch", bf16=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for kernel in ("flash", "torch"):
        with pytest.raises(UserError, match=rf"model\.kernel={kernel} runs on GPUs only, .*: set model\.kernel=auto"):
            attention.check(kernel, bf16=True)
        attention.check(kernel, bf16=True, here=False)  # what other machines have is not known here
        with pytest.raises(UserError, match="computes in BF16 only"):
            attention.check(kernel, bf16=False, here=False)


# --- what a step computes -----------------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):  # type: ignore[misc]
    """Names of the operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name != "cumsum" or args[0].is_floating_point():
            self.names.add(name)
        return func(*args, **(kwargs or {}))


LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2+SP": {"tensor": 2, "sequence": True},
    "ZeRO-2": {"zero": 2},
    "ZeRO-3": {"zero": 3},
}


def steps(rank: int, name: str, bf16: bool) -> tuple[set[str], list[list[tuple[float, float]]]]:
    """(operations of a step; losses and norms of two steps: as they are, and told to be deterministic)."""
    from training.layout import Layout, start_groups
    from training.model import Numerics, core_config

    layout, shape = Layout(2, **LAYOUTS[name]), small_models.architecture()
    for wanted in (True, False):  # megatron-core's setting, on GPUs
        assert not core_config(shape, layout, Numerics(deterministic=wanted)).deterministic_mode
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            assert core_config(shape, layout, Numerics(deterministic=wanted)).deterministic_mode == wanted
    start_groups(layout)
    seen, found = Seen(), []
    for wanted in (False, True):
        torch.use_deterministic_algorithms(wanted)  # raises where a CPU has no such form
        engine, here = small_models.engine(shape, layout, bf16=bf16)
        engine.chunks[0].embedding.deterministic_mode = wanted
        with seen:
            found.append(small_models.train(engine, here, shape, range(2)))
        engine.deepspeed.destroy()
    return seen.names, found


@pytest.mark.parametrize(("name", "bf16"), [("TP2+SP", True), ("ZeRO-2", True), ("ZeRO-3", False)])
def test_no_operation_of_a_step_lacks_a_deterministic_form(name: str, bf16: bool) -> None:
    for names, (plain, told) in run_ranks(2, steps, name, bf16):
        assert {
            "embedding_dense_backward",
            "index_put",
            "scatter_add_",
            "mm",
        } <= names  # both forms, forward and backward
        assert not names & WITHOUT_A_FORM
        for ours, theirs in zip(told, plain, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-2 if bf16 else 1e-6)


def whole_run(rank: int, folder: Path, told: bool) -> tuple[set[str], list[dict[str, Any]]]:
    """(operations, metrics) of a stage from its start-up checks over validation to its checkpoint."""
    from training.layout import Layout, start_groups
    from training.trainer import Trainer

    changes = [f"run={folder / str(told)}", f"model.base={folder / 'base'}", f"data.sources.0.packs=[{folder / 'text'}]"]
    changes += ["stages.0.tokens=512.0", f"telemetry.validation={{held: {folder / 'text'}}}", "model.precision=bf16"]
    torch.use_deterministic_algorithms(told)
    start_groups(Layout())
    config = load_config(CONFIG, changes)
    trainer = Trainer(config, 1, Layout(), SimpleNamespace(asked=False, launch=None))  # type: ignore[arg-type]
    with Seen() as seen:
        trainer.train()
    return seen.names, lines(folder / str(told))


def test_no_operation_of_a_run_lacks_a_deterministic_form(tmp_path: Path) -> None:
    golden_debug.write_inputs(tmp_path)
    (_, plain), (names, told) = (run_ranks(1, whole_run, tmp_path, wanted)[0] for wanted in (False, True))
    assert {"embedding_dense_backward", "scatter_add_", "index_put_"} <= names and not names & WITHOUT_A_FORM
    assert len(told) == 4 and told == plain  # a CPU has no other forms


def test_it_is_on_unless_it_is_turned_off() -> None:
    assert (
        load_config(CONFIG).model.deterministic
        and not load_config(CONFIG, ["model.deterministic=false"]).model.deterministic
    )
