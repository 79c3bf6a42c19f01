"""What is saved is what is loaded; what is damaged, of another model or no JSON is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small_models
import torch
from train_checkpoints import (
    PlainEngine,
    cut_short,
    extras,
    flip,
    opened,
    saved,
    small,
)

from training import reshard
from training.checkpoint import find, whole_checkpoints
from training.reshard import KINDS, MANIFEST, Stored, native_names, native_size
from training.weights import whole_to_native
from ziya.errors import UserError


def test_what_is_loaded_is_what_was_saved_and_training_goes_on_alike(tmp_path: Path) -> None:
    engine, _ = saved(tmp_path)
    state = engine.state()
    engine.step(3)
    other = PlainEngine(small(), seed=1)
    assert opened(tmp_path, other).load() == extras(2)
    assert all(torch.equal(a, b) for a, b in zip(state, other.state(), strict=True))
    other.step(3)
    assert all(torch.equal(a, b) for a, b in zip(engine.state(), other.state(), strict=True))
    assert opened(tmp_path, other).load(1) == extras(1)
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are: 1, 2"):
        opened(tmp_path, other).load(7)


def test_a_background_save_holds_the_moment_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    engine = PlainEngine(small())
    checkpoints = opened(tmp_path, engine)
    go, write = threading.Event(), reshard.write_fragments
    monkeypatch.setattr(reshard, "write_fragments", lambda *a: go.wait(30) and write(*a))
    engine.step(1)
    state = engine.state()
    checkpoints.save(1, extras(1), wait=False)
    assert checkpoints.poll() is None and find(tmp_path) is None
    engine.step(2)
    go.set()
    assert checkpoints.wait() == 1 and checkpoints.wait() is None and checkpoints.poll() is None
    other = PlainEngine(small(), seed=1)
    opened(tmp_path, other).load()
    assert all(torch.equal(a, b) for a, b in zip(state, other.state(), strict=True))
    # A second save waits for the first: both end whole.
    checkpoints.save(2, extras(2), wait=False)
    checkpoints.save(3, extras(3), wait=False)
    checkpoints.wait()
    assert [stored.step for stored in whole_checkpoints(tmp_path)] == [1, 2, 3]


def test_before_the_first_step_moments_are_zero(tmp_path: Path) -> None:
    engine = PlainEngine(small())
    opened(tmp_path, engine).save(0, extras(0), wait=True)
    other = PlainEngine(small(), seed=1)
    other.step(9)
    opened(tmp_path, other).load()
    for one in (engine, other):
        one.step(1)
    assert all(torch.equal(a, b) for a, b in zip(engine.state(), other.state(), strict=True))


@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip, "does not have the bytes"), (cut_short, "is cut short"), (Path.unlink, "is missing")],
)
def test_damage_is_found_before_anything_is_loaded(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    engine, checkpoints = saved(tmp_path)
    state = engine.state()
    damage(tmp_path / "checkpoints" / "step-2" / "rank-0000.safetensors")
    with pytest.raises(UserError, match=message):
        checkpoints.load()
    assert all(torch.equal(a, b) for a, b in zip(state, engine.state(), strict=True))
    shutil.rmtree(tmp_path / "checkpoints" / "step-2")  # what the message advises
    assert checkpoints.load() == extras(1)


def test_manifests_that_are_wrong_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "checkpoints" / "step-2" / MANIFEST
    whole = Stored(path.parent).manifest
    text = path.read_text()
    for bad in ("{", "{}", text.replace('"version": 1', '"version": 2')):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"manifest.json"):
            Stored(path.parent)
    entry = whole.files["rank-0000.safetensors"]
    entry.weights["final_norm.weight"][1] -= 1
    whole.write(path.parent)
    with pytest.raises(UserError, match=r"lacks values 15 to 16 of final_norm.weight, tensor rank 0"):
        Stored(path.parent).covers()


def test_another_model_or_precision_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    wider = PlainEngine(replace(small(), ffn=12, rope_base=5e5))
    with pytest.raises(UserError, match=r"another model \(ffn: 8 -> 12; rope_base: 10000.0 -> 500000.0\)"):
        opened(tmp_path, wider).load()
    with pytest.raises(UserError, match=r"was trained in fp32, model.precision is bf16"):
        opened(tmp_path, PlainEngine(small(), bf16=True)).load()


def test_extras_must_be_json_of_the_same_step(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, PlainEngine(small()))
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(1, {**extras(1), "loss": float("nan")}, wait=True)
    with pytest.raises(ValueError, match="step 2"):
        checkpoints.save(2, extras(1), wait=True)


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    engine, _ = saved(tmp_path)
    tensors = load_file(tmp_path / "checkpoints" / "step-2" / "rank-0000.safetensors")
    assert set(tensors) == {f"{name}:{kind}:0" for name in native_names(small()) for kind in KINDS}
    weight = engine.chunks[0].weights["layers.0.mlp.up.weight"]
    assert torch.equal(tensors["layers.0.mlp.up.weight:master:0"], weight.detach().view(-1))


def test_native_sizes_are_those_of_the_parts() -> None:
    shape = small_models.architecture()
    whole = small_models.whole_weights(shape)
    for name in native_names(shape):
        for ranks in (1, 2):
            part = whole_to_native(name, whole.__getitem__, shape, 1 if ranks == 2 else 0, ranks)
            assert native_size(name, shape, ranks) == part.shape
