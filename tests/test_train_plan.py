"""`ziya-train plan`: figures of the paper's run, and bytes that are counted in real engines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from train_runs import CONFIG, ROOT

from training import plan, plan_memory, plan_speed
from training.architecture import parse_architecture
from training.config import ModelSettings, load_config
from training.gpus import GPUS
from training.layout import Layout, check_layout
from ziya.errors import UserError

PAPER = ROOT / "configs" / "train" / "ziya2_13b.yaml"


def planned(capsys: Any, *given: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    code = plan.main(parser.parse_args(list(given)))
    return code, capsys.readouterr().out


def test_the_papers_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """82.4 GFLOP a token; TP1 PP2 DP40 fits 80 GB and not 40; 81 GPUs do not divide."""
    monkeypatch.chdir(ROOT)
    out = tmp_path / "plan.json"
    code, said = planned(capsys, "--config", str(PAPER), "--gpus", "80", "--gpu", "a100-80g", "--json", str(out))
    assert code == 0 and "13.09 B parameters" in said and " 82.4 GFLOP a token" in said
    found = json.loads(out.read_text())
    assert found["flops_per_token"]["causal"] == pytest.approx(82.4e9, rel=1e-3)
    own = found["config"]
    assert "\nActivations: derived from what fused kernels must keep, not measured on a GPU (" in said
    assert own["fits"] and own["layout"]["data"] == 40 and own["layout"]["pipeline"] == 2
    # Half of 13.09 B weights, less what the head and embedding weigh together on each side: 4 bytes each, on every rank.
    assert own["memory"]["states"]["gradients"] == pytest.approx(4 * 13.09e9 / 2, rel=2e-3)
    assert own["memory"]["states"]["masters"] * 10 == pytest.approx(own["memory"]["states"]["gradients"] / 4, rel=1e-6)
    # The paper measured 163 TFLOPS; an estimate that leaves out what UNKNOWN names lies above it, and not twice.
    assert 163 < own["step"]["tflops"] < 1.4 * 163
    tokens = sum(stage["tokens"] for stage in found["stages"])
    assert tokens == 708.3e9 and 20 < sum(stage["days"] for stage in found["stages"]) < 52
    assert all(one["fits"] and one["layout"]["zero"] >= 1 for one in found["best"])
    rates = [one["tokens_per_s"] for one in found["best"]]
    assert rates == sorted(rates, reverse=True) and rates[0] >= own["tokens_per_s"]
    code, said = planned(capsys, "--config", str(PAPER), "--gpus", "80", "--gpu", "a100-40g")
    assert code == 0 and "DOES NOT FIT" in said
    code, said = planned(capsys, "--config", str(PAPER), "--gpus", "81", "--gpu", "h100")
    assert "The config's layout cannot run: 81 processes are not a multiple" in said
    code, said = planned(capsys, "--config", str(PAPER), "--gpus", "1", "--gpu", "h100", "parallel.pipeline=1")
    assert code == 1 and "No layout fits" in said and "\nActivations: derived " in said
    code, said = planned(capsys, "--config", str(PAPER), "--gpus", "80", "--gpu", "a100-80g", "model.fused=false")
    assert code == 0 and "\nActivations: of the plain kernels, " in said and "derived" not in said


def test_tiny_models_have_digits_and_the_paper_none_more(tmp_path: Path, capsys: Any) -> None:
    shape = tmp_path / "config.json"
    shape.write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 64,
    }))  # fmt: skip
    code, said = planned(capsys, "--config", str(CONFIG), "--gpus", "1", "--gpu", "h100", "--shape", str(shape))
    assert code == 0 and "28.83 K parameters" in said, said
    assert " 2.56 K tokens   20 steps " in said and " 0.00 " not in said.partition("a step takes")[2].partition("\n")[0]
    assert "0.00 days" not in said and "0.0 GFLOP" not in said and "kFLOP a token" in said
    assert [plan._amount(value, "KMB", 2) for value in (13.09e9, 0.3e9, 7e7, 950)] == ["13.09 B", "0.30 B", "70.00 M", "0.95 K"]
    assert [plan._days(days) for days in (12.0, 0.05, 1e-6)] == ["12.00 days", "1.20 hours", "0.086 seconds"]


def test_a_shape_named_in_a_config_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        planned(capsys, "--config", str(PAPER), "--gpus", "80", "--gpu", "h100")
    said = str(error.value)
    assert said.startswith("model.shape configs/models/") and f"does not exist in {tmp_path} (paths in a config" in said


def test_where_the_shape_comes_from(tmp_path: Path, capsys: Any) -> None:
    config = load_config(CONFIG, [f"model.base={tmp_path / 'none'}"])
    with pytest.raises(UserError, match=r"name the shape with --shape FILE or model\.shape=FILE"):
        plan.shape_of(config, None)
    with pytest.raises(UserError, match=r"does not exist: give a config\.json"):
        plan.shape_of(config, tmp_path / "other.json")
    seven = ROOT / "configs" / "models" / "llama2_7b_init.json"
    thirteen = ROOT / "configs" / "models" / "llama2_13b_init.json"
    named = load_config(CONFIG, [f"model.base={tmp_path}", f"model.shape={seven}"])
    assert plan.shape_of(named, None)[0].hidden == 4096
    (tmp_path / "config.json").write_text(thirteen.read_text())
    assert plan.shape_of(named, None) == (plan.shape_of(named, thirteen)[0], tmp_path / "config.json")
    assert plan.shape_of(named, seven)[0].hidden == 4096
    with pytest.raises(UserError, match="--gpu h1000: known are a100-80g"):
        planned(capsys, "--config", str(CONFIG), "--gpus", "1", "--gpu", "h1000")
    with pytest.raises(UserError, match="--gpus 0: give 1 or more"):
        planned(capsys, "--config", str(CONFIG), "--gpus", "0", "--gpu", "h100")


LLAMA2 = json.loads((ROOT / "configs" / "models" / "llama2_7b_init.json").read_text())
MISTRAL = LLAMA2 | {
    "architectures": ["MistralForCausalLM"], "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": None,
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "use_sliding_window": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "change", "gib"),
    [(LLAMA2, [], 72), (MISTRAL, [], 76), (QWEN2, [], 84), (QWEN2, ["model.recompute=layer"], 68)],
)
def test_what_the_7b_config_says_of_its_models(raw: dict[str, Any], change: list[str], gib: int) -> None:
    path = ROOT / "configs" / "train" / "7b.yaml"
    config = load_config(path, change)
    one = plan.judge(config, parse_architecture(raw, path), Layout(8), 1, config.model, GPUS["a100-80g"])
    assert round(one.memory.total / plan_memory.GIB) == gib and one.fits == (gib < 80)
    assert f"{gib} GiB" in path.read_text()


def test_a_sliding_window_is_refused() -> None:
    """Mistral-7B-v0.1, which the 7B config does not name."""
    with pytest.raises(UserError, match="sliding_window 4096; only full attention is trained"):
        parse_architecture(MISTRAL | {"sliding_window": 4096}, Path("config.json"))


def test_every_layout_that_is_offered_can_run() -> None:
    config = load_config(PAPER)
    shape, _ = plan.shape_of(config, ROOT / "configs" / "models" / "llama2_13b_init.json")
    found = list(plan.candidates(config, shape, 16, GPUS["h100"]))
    assert {one.layout.pipeline for one in found} >= {1, 2, 4, 8} and {one.layout.tensor for one in found} == {
        1,
        2,
        4,
        8,
    }
    for one in found:
        rows = 640 // (one.layout.data * one.micro)
        check_layout(one.layout, shape, length=4096 * one.micro, microbatches=rows)
        assert rows * one.layout.data * one.micro == 640
        assert one.step.seconds > one.step.compute > 0


def test_estimates_move_as_they_must() -> None:
    """Recomputation trades memory for time, pipelines bubble, more micro-batches bubble less, tensor groups exchange."""
    shape, _ = plan.shape_of(load_config(PAPER), ROOT / "configs" / "models" / "llama2_13b_init.json")
    gpu = GPUS["h100"]

    def step(layout: Layout, recompute: str = "none", rows: int = 640) -> plan_speed.Step:
        model = ModelSettings(base="x", recompute=recompute)  # type: ignore[arg-type]
        return plan_speed.estimate(shape, layout, model, gpu, length=4096, micro=1, rows=rows)

    def kept(recompute: str) -> int:
        model = ModelSettings(base="x", recompute=recompute)  # type: ignore[arg-type]
        return plan_memory.activation_bytes(shape, Layout(16, 1, 2), model, 0, 4096, 16)

    assert kept("none") > kept("attention") > kept("layer") > 0
    two, four = step(Layout(16, 1, 2)), step(Layout(16, 1, 4))
    assert step(Layout(16, 1, 2), "layer").compute > step(Layout(16, 1, 2), "attention").compute > two.compute
    assert step(Layout(16)).bubble == step(Layout(16)).pipeline == 0 < two.bubble < four.bubble
    assert step(Layout(16, 1, 4, 2)).bubble < four.bubble
    # One micro-batch on two stages: half of the time is bubble.
    single = step(Layout(2, 1, 2), rows=1)
    assert single.bubble == pytest.approx(single.compute + single.pipeline)
    assert two.tensor == 0 < step(Layout(16, 2, 2)).tensor < step(Layout(16, 4, 2)).tensor
    assert step(Layout(1)).data == 0


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([6_000_000_000, 200_000_000, 1000], 200_001_000),  # the engine's order: only the small ones are copied
        ([200_000_000, 6_000_000_000, 1000], 6_200_000_000),
        ([400, 200, 100], 700),
        ([700], 0),
    ],
)
def test_what_a_reduction_copies(groups: list[int], expected: int) -> None:
    assert plan_memory.largest_bucket(groups) == expected


# --- counted in real engines --------------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "DP2": {}, "TP2": {"tensor": 2}, "PP2": {"pipeline": 2}, "PP2x2": {"pipeline": 2, "chunks": 2},
    "ZeRO-2": {"zero": 2}, "ZeRO-3": {"zero": 3},
}  # fmt: skip
SPLITS = {"alone": (1, False), "TP2": (2, False), "TP2+SP": (2, True)}
RECOMPUTE = ("none", "attention", "layer")


def storages(tensors: Any) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def states(layout: Layout, bf16: bool) -> dict[str, int]:
    """Bytes of what a rank's engine holds after a step, by kind; each memory once."""
    shape = small_models.architecture()
    engine, here = small_models.engine(shape, layout, bf16=bf16)
    small_models.train(engine, here, shape, range(1))
    optimizer, state = engine.optimizer, engine.adam.state.values()
    weights = [weight for chunk in engine.chunks for weight in chunk.parameters()]
    found = {
        "weights": storages(weights),
        "moments": storages(tensor for entry in state for key, tensor in entry.items() if key != "step"),
    }
    if layout.zero > 1:
        from training import partitioned

        found["masters"] = storages(partitioned.masters(engine))
        if layout.zero == 3:  # norms and biases stay whole, matrices are cut up
            found["weights"] = storages(weight.ds_tensor for weight in weights)
    elif bf16:
        found["masters"] = storages(optimizer.fp32_groups_flat_partition)
        found["gradients"] = storages(optimizer.fp32_groups_gradients_flat)
        assert all(weight.grad is None for weight in weights)
    else:
        found["masters"] = storages(optimizer.single_partition_of_fp32_groups)
    engine.deepspeed.destroy()
    return found


def kept(layout: Layout, recompute: str) -> int:
    """Bytes that autograd keeps for one layer in BF16, weights and rotary tables not counted: two layers less one."""
    from training import weights as cuts
    from training.layout import place
    from training.model import Numerics, build

    rows = small_models.batch(0, small_models.architecture())[0]
    assert len(rows.lengths) == 1
    found = []
    for layers in (1, 2):
        shape = small_models.architecture(layers=layers)
        (chunk,) = build(shape, layout, Numerics(bf16=True, kernel="plain", recompute=recompute))
        whole = small_models.whole_weights(shape)
        cuts.fill([chunk], whole.__getitem__, shape, place(layout).tensor, layout.tensor)
        own = {weight.untyped_storage().data_ptr() for weight in chunk.parameters()}
        tables = (len(rows.tokens), 1, shape.head_dim)
        seen: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor, own: Any = own, seen: Any = seen, tables: Any = tables) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own and tensor.shape != tables:  # the rotary tables serve all layers
                seen[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            chunk(rows)
        found.append(sum(storage.nbytes() for storage in seen.values()))
    return found[1] - found[0]


def count(rank: int) -> dict[str, Any]:
    from training.layout import start_groups, stop_groups

    found: dict[str, Any] = {}
    for name, settings in LAYOUTS.items():
        layout = Layout(world=2, **settings)
        start_groups(layout)
        found |= {f"{name} {bf16}": states(layout, bf16) for bf16 in (True, False)}
        stop_groups()
    for name, (tensor, sequence) in SPLITS.items():
        layout = Layout(world=2, tensor=tensor, sequence=sequence)
        start_groups(layout)
        found |= {f"{name} {recompute}": kept(layout, recompute) for recompute in RECOMPUTE}
        stop_groups()
    return found


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return small_models.run_world(count, 2, tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("name", LAYOUTS)
def test_states_are_those_of_a_real_engine(counts: list[dict[str, Any]], name: str, bf16: bool) -> None:
    layout = Layout(world=2, **LAYOUTS[name])
    model = ModelSettings(base="x", precision="bf16" if bf16 else "fp32")
    for rank, found in enumerate(counts):
        stage = rank if layout.pipeline == 2 else 0
        shape = small_models.architecture()
        expected = plan_memory.of_stage(shape, layout, model, stage=stage, tokens=16, microbatches=4).states
        assert {kind: expected[kind] for kind in found[f"{name} {bf16}"]} == found[f"{name} {bf16}"]


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("name", SPLITS)
def test_activations_are_what_autograd_keeps(counts: list[dict[str, Any]], name: str, recompute: str) -> None:
    layout = Layout(2, *SPLITS[name][:1], sequence=SPLITS[name][1])
    shape = small_models.architecture()
    expected = small_models.ROW * plan_memory.layer_bytes(shape, layout, bf16=True, recompute=recompute, fused=False)
    for found in counts:
        assert found[f"{name} {recompute}"] == pytest.approx(expected, rel=0.02)
