"""Stored answers: equal keys give equal answers, and nothing of another checkpoint is ever served."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from eval_models import letter_requests, prefix_model, request, write_model

from eval.cache import AnswerCache, Digests, model_identity, weights_files
from ziya.errors import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return write_model(root / "first"), write_model(root / "second", seed=1)


def cache(root: Path, folder: Path, *, dtype: str = "float32", version: str = "1", length: int | None = None) -> AnswerCache:
    identity = model_identity(Digests(root / "weights.json"), folder, folder, dtype, length)
    return AnswerCache(root, identity, {"task": version})


def test_another_checkpoint_never_gets_the_answers(tmp_path: Path, models: tuple[Path, Path]) -> None:
    requests = letter_requests(4)
    first = prefix_model(models[0], answers=cache(tmp_path, models[0]))
    second = prefix_model(models[1], answers=cache(tmp_path, models[1]))
    expected = prefix_model(models[1]).loglikelihood(requests)
    answers = first.loglikelihood(requests)
    assert second.loglikelihood(requests) == expected != answers
    # The same folder, the same name, other weights written over it, with the times of the old files.
    same = tmp_path / "same"
    shutil.copytree(models[0], same)
    times = {path.name: path.stat() for path in same.iterdir()}
    assert prefix_model(same, answers=cache(tmp_path, same)).loglikelihood(requests) == answers
    for path in weights_files(models[1]):
        shutil.copyfile(path, same / path.name)
        os.utime(same / path.name, ns=(times[path.name].st_atime_ns, times[path.name].st_mtime_ns))
    assert (same / "model.safetensors").stat().st_mtime_ns == times["model.safetensors"].st_mtime_ns
    assert prefix_model(same, answers=cache(tmp_path, same)).loglikelihood(requests) == expected


def test_stored_answers_are_served_without_the_weights(tmp_path: Path, models: tuple[Path, Path]) -> None:
    requests = [*letter_requests(3), *letter_requests(2, task="other")]
    texts = [request("generate_until", "The river", {"until": ["."], "max_gen_toks": 5})]
    first = prefix_model(models[0], answers=cache(tmp_path, models[0]))
    answers, said = first.loglikelihood(requests), first.generate_until(texts)
    again = prefix_model(models[0], answers=cache(tmp_path, models[0]))
    again._load = None
    told: list[int] = []
    again.advance = told.append
    assert again.loglikelihood(requests) == answers
    assert again.generate_until(texts) == said
    assert again.processed == 0 and sum(told) == len(requests) + 1
    assert all(isinstance(value, float) and isinstance(greedy, bool) for value, greedy in again.loglikelihood(requests))


@pytest.mark.parametrize(
    "change", [{"dtype": "bfloat16"}, {"version": "2"}, {"length": 64}, {"requests": True}, {"kind": True}, {"tokenizer": True}]
)
def test_whatever_an_answer_depends_on_is_in_its_key(
    tmp_path: Path, models: tuple[Path, Path], change: dict[str, Any]
) -> None:
    requests = letter_requests(2)
    one = cache(tmp_path, models[0])
    one.store("task", "loglikelihood", requests, [[-1.0, False]] * 8)
    assert one.find("task", "loglikelihood", requests) == [[-1.0, False]] * 8
    kind = "loglikelihood"
    folder = models[0]
    if change.pop("requests", False):
        requests = [*requests[:-1], request("loglikelihood", requests[-1].args[0] + " ", " D")]
    if change.pop("kind", False):
        kind = "generate_until"
    if change.pop("tokenizer", False):
        folder = tmp_path / "copy"
        shutil.copytree(models[0], folder)
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text(encoding="utf-8").replace("{", '{"note": 1,', 1), encoding="utf-8")
    assert cache(tmp_path, folder, **change).find("task", kind, requests) is None


def test_a_copy_of_the_model_has_the_same_answers(tmp_path: Path, models: tuple[Path, Path]) -> None:
    copied = tmp_path / "elsewhere" / "other-name"
    shutil.copytree(models[0], copied)
    requests = letter_requests(1)
    cache(tmp_path, models[0]).store("task", "loglikelihood", requests, [[-1.0, True]] * 4)
    assert cache(tmp_path, copied).find("task", "loglikelihood", requests) == [[-1.0, True]] * 4


def test_damaged_answers_are_asked_again(tmp_path: Path, models: tuple[Path, Path]) -> None:
    requests = letter_requests(1)
    one = cache(tmp_path, models[0])
    for damage in (b"", b"[[-1.0", b"{}", b"[[-1.0, true]]"):
        one.store("task", "loglikelihood", requests, [[-1.0, True]] * 4)
        one.path("task", "loglikelihood", requests).write_bytes(damage)
        assert one.find("task", "loglikelihood", requests) is None


def test_weights_are_read_once(tmp_path: Path, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import eval.cache as module

    monkeypatch.setattr(module, "REMEMBERED", 0)
    read: list[Path] = []
    digest = module.file_digest
    monkeypatch.setattr(module, "file_digest", lambda path: read.append(path) or digest(path))
    first = Digests(tmp_path / "weights.json").weights(models[0])
    count = len(read)
    assert count >= 2
    assert Digests(tmp_path / "weights.json").weights(models[0]) == first and len(read) == count
    (tmp_path / "weights.json").write_bytes(b"{damaged")
    assert Digests(tmp_path / "weights.json").weights(models[0]) == first and len(read) == 2 * count


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"safetensors"):
        weights_files(tmp_path)
