"""Losses by source, held-out rows and bits per byte under layouts of two ranks, against transformers on each document alone."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")
pytest.importorskip("deepspeed")
pytest.importorskip("transformers")

import small_tokenizers  # noqa: E402
import train_runs  # noqa: E402
from train_ranks import run_ranks  # noqa: E402 - it imports torch

from training import flops  # noqa: E402
from training.architecture import Architecture, read_architecture  # noqa: E402
from training.config import TrainConfig, load_config  # noqa: E402
from training.data import open_dataset  # noqa: E402
from training.metrics import TIMED, read_lines  # noqa: E402
from training.preflight import prepare  # noqa: E402
from training.state import RunState  # noqa: E402
from training.telemetry import bits_per_byte, squares  # noqa: E402
from ziya.errors import UserError  # noqa: E402
from ziya.packs import pack_writer  # noqa: E402
from ziya.tokenizer import load_tokenizer  # noqa: E402

LENGTH = train_runs.LENGTH
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tensor": 2},
    "TP2+SP": {"tensor": 2, "sequence": True},
    "PP2": {"pipeline": 2},
    "PP2 interleaved": {"pipeline": 2, "chunks": 2},
    "DP2": {},
}
HELD = {"中文": "held_zh", "english": "held_en"}


def write_texts(prefix: Path, tokenizer: Any, seed: int, rows: int, *, chinese: bool) -> None:
    """Rows of whole small texts in one language, each with its EOS; the last one is cut by the row's end."""
    texts = [text for text in small_tokenizers.lines(seed) if (ord(text[0]) > 0x2E80) == chinese]
    ids, offsets = tokenizer.encode_batch(texts)
    documents = [[*ids[a:b].tolist(), tokenizer.eos_id] for a, b in pairwise(offsets.tolist())]
    with pack_writer(prefix, LENGTH, np.uint16) as writer:
        for _ in range(rows):
            row: list[int] = []
            sizes = []
            while len(row) < LENGTH:
                part = documents.pop()[: LENGTH - len(row)]
                row, sizes = row + part, [*sizes, len(part)]
            writer.add(np.array(row, np.uint16), np.array(sizes), np.array([len(sizes)]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("telemetry")
    (folder / "base").mkdir()
    small_tokenizers.sentencepiece_model(folder / "base" / "tokenizer.model")
    tokenizer = load_tokenizer(folder / "base" / "tokenizer.model")
    size = tokenizer.vocab_size + tokenizer.vocab_size % 2
    train_runs.write_base(
        folder / "base", num_hidden_layers=4, vocab_size=size, eos_token_id=tokenizer.eos_id, num_key_value_heads=2
    )
    for seed, (name, rows) in enumerate((("zh", 24), ("en", 24), ("held_zh", 5), ("held_en", 7))):
        write_texts(folder / name, tokenizer, seed, rows, chinese="zh" in name)
    return folder


def config(folder: Path, run: Path, *more: str) -> TrainConfig:
    held = ", ".join(f"{name}: {folder / path}" for name, path in HELD.items())
    parts = [
        f"run={run}", f"model.base={folder / 'base'}", f"telemetry.validation={{{held}}}", "telemetry.validation_rows=6",
        "telemetry.peak_tflops=1e-3", "model.recompute=layer",
        f"data.sources=[{{name: 中文, packs: [{folder / 'zh'}]}}, {{name: english, packs: [{folder / 'en'}]}}]",
        "stages.0.weights={中文: 1, english: 1}", "stages.1.weights={中文: 1}", "stages.2.weights={中文: 1}",
    ]  # fmt: skip
    return load_config(train_runs.CONFIG, [*parts, *more])


def measured(rank: int, folder: str, run: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Two steps under a layout with everything told, and held-out rows before and after."""
    from training.config import OptimizerSettings
    from training.data import micro_batches
    from training.engine import Engine
    from training.layout import Layout, place, start_groups, stop_groups
    from training.model import Numerics, build
    from training.telemetry import Telemetry
    from training.trainer import fill_from_model
    from training.validation import open_for_run

    made = config(Path(folder), Path(run))
    layout = Layout(world=2, **settings)
    start_groups(layout)
    here, shape = place(layout), read_architecture(Path(made.model.base))
    engine = Engine(build(shape, layout, Numerics(bf16=False, loss_chunk=12)), layout, OptimizerSettings())
    fill_from_model(engine, Path(made.model.base), shape, here)
    dataset = open_dataset(made, made.seed, 1, eos_id=2, vocab_size=shape.vocab_used)
    telemetry = Telemetry(made, shape, here)
    told: list[dict[str, Any]] = []
    validation = open_for_run(made, shape, here, telemetry.spelled, told.append)
    validation.rewind(RunState())
    before = validation.measure(engine, RunState())
    lines = []
    for index in range(2):
        batch = dataset.batch(index)
        rows = micro_batches(batch, here.data, layout.data, 1, made.data)
        result = engine.step(rows, batch.target_count, 1e-3)
        state = RunState(step=index + 1, tokens=(index + 1) * batch.token_count, data_index=index)
        lines.append(telemetry.line(state, batch, telemetry.count(batch), rows, result, 1e-3, 0.5, 0.1 * (rank + 1)))
    end = RunState(step=2, tokens=lines[-1]["tokens"])
    after = validation.measure(engine, end)
    assert validation.measure(engine, end) == []  # once a step
    # A name that comes later: the starting model is loaded again, and its line goes before the others.
    more = config(Path(folder), Path(run), f"telemetry.validation={{late: {Path(folder) / 'held_en'}}}")
    late = open_for_run(more, shape, here, telemetry.spelled, told.append)
    late.rewind(end)
    assert late.without_base == ["late"]
    fill_from_model(engine, Path(made.model.base), shape, here)
    late_lines = late.measure_base(engine)
    assert late.without_base == []
    engine.deepspeed.destroy()
    stop_groups()
    return {"lines": lines, "before": before, "after": after, "told": told, "late": late_lines}


class Reference:
    """transformers on each document alone; sentencepiece's own word on what a piece spells."""

    def __init__(self, folder: Path) -> None:
        import sentencepiece
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "base" / "tokenizer.model"))

    def spelled(self, token: int) -> int:
        if self.pieces.is_control(token) or self.pieces.is_unknown(token):
            return 0
        return 1 if self.pieces.is_byte(token) else len(self.pieces.id_to_piece(token).replace("▁", " ").encode())

    def rows(self, tokens: np.ndarray) -> tuple[float, int, int]:
        """(summed loss, targets, their bytes) of rows [n, LENGTH] whose documents end with EOS or the row."""
        loss, targets, size = 0.0, 0, 0
        for row in tokens.tolist():
            cuts = [0, *(i + 1 for i, token in enumerate(row) if token == 2 and i + 1 < len(row)), len(row)]
            for first, last in pairwise(cuts):
                document = torch.tensor(row[first:last])
                with torch.no_grad():
                    logits = self.model(document[None]).logits[0, :-1].double()
                if len(document) > 1:
                    loss += float(torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum"))
                targets += len(document) - 1
                size += sum(self.spelled(token) for token in document[1:].tolist())
        return loss, targets, size


@pytest.fixture(scope="module")
def reference(made: Path) -> Reference:
    return Reference(made)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_told_under_a_layout(made: Path, reference: Reference, name: str, tmp_path: Path) -> None:
    found = run_ranks(2, measured, str(made), str(tmp_path / "run"), LAYOUTS[name])
    one, other = found
    for key in ("lines", "before", "after", "late"):
        assert one[key] == other[key], key  # to the last bit
    # Of the first step: every source, and both together.
    batch = open_dataset(config(made, tmp_path), 1234, 1, eos_id=2).batch(0)
    line, sums = one["lines"][0], []
    assert set(batch.source.tolist()) == {0, 1}
    for number, source in enumerate(("中文", "english")):
        loss, targets, size = reference.rows(batch.tokens[batch.source == number])
        assert line["loss_by_source"][source] == pytest.approx(loss / targets, abs=2e-6)
        sums.append((loss, targets, size))
    loss, targets, size = np.sum(sums, axis=0)
    assert line["loss"] == pytest.approx(loss / targets, abs=2e-6)
    assert line["bits_per_byte"] == pytest.approx(loss / math.log(2) / size, abs=2e-6)
    assert line["data_wait_s"] == pytest.approx(0.2) and line["memory_gib"] > 0.05
    assert line["tokens_per_s"] == batch.token_count / 0.5 == 2 * line["tokens_per_s_per_gpu"]
    shape, data = read_architecture(made / "base"), config(made, tmp_path).data
    work = batch.token_count, squares(batch, data)
    assert line["tflops"] == pytest.approx(flops.of_rows(shape, *work) / 0.5 / 2 / 1e12)
    assert line["recompute_tflops"] == pytest.approx(flops.recomputed(shape, "layer", *work) / 0.5 / 2 / 1e12)
    assert line["mfu"] == pytest.approx(line["tflops"] / 1e-3) and set(TIMED) <= set(line)
    # Held-out rows, evenly spread; and the starting model's line.
    for held, now, path in zip(one["before"], one["after"], HELD.values(), strict=True):
        rows = np.fromfile(made / f"{path}.bin", np.uint16).reshape(-1, LENGTH).astype(np.int64)
        chosen = rows[np.arange(min(6, len(rows))) * len(rows) // min(6, len(rows))]
        loss, targets, size = reference.rows(chosen)
        assert (held["step"], held["stage"], held["tokens"], held["targets"]) == (0, 1, 0, targets)
        assert held["loss"] == pytest.approx(loss / targets, abs=2e-6)
        assert held["bits_per_byte"] == pytest.approx(loss / math.log(2) / size, abs=2e-6)
        assert held["base_bits_per_byte"] == held["bits_per_byte"] == now["base_bits_per_byte"]
        assert now["step"] == 2 and now["loss"] != held["loss"] and now["targets"] == targets
    # The file holds them in order, the late name's starting line before what was trained.
    assert one["told"] == [*one["before"], *one["after"]] and other["told"] == []
    assert read_lines(tmp_path / "run" / "validation.jsonl") == [*one["before"], *one["late"], *one["after"]]
    late = {key: value for key, value in one["late"][0].items() if key != "name"}
    assert late == {key: value for key, value in one["before"][1].items() if key != "name"}


class Alone:
    """`torch.distributed` of one process."""

    @staticmethod
    def get_rank() -> int:
        return 0

    @staticmethod
    def broadcast_object_list(values: list[Any], src: int) -> None:
        pass


def test_held_out_lines_are_rewound(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import validation
    from training.layout import Layout, Place

    monkeypatch.setattr(validation, "dist", Alone)
    settings = config(made, tmp_path)
    sources = validation.open_validation(settings, 1000, made / "base", cache=tmp_path / "index", eos_id=2)
    one = validation.Validation(settings, Place(0, 0, 0, Layout()), sources, 1000, None, lambda line: None)
    data = {held.name: held.data for held in one.sets}
    steps = [(1, 0), (1, 5), (1, 8), (2, 8), (2, 10)]
    lines = [
        {"stage": stage, "step": step, "name": name, "data": data[name], "bits_per_byte": float(step)}
        for stage, step in steps
        for name in data
    ]
    for (stage, step), kept in {(2, 10): 10, (2, 9): 8, (2, 8): 8, (1, 8): 6, (1, 6): 4, (1, 0): 0}.items():
        one.file.rewrite(lines)
        with one.file.path.open("a") as file:
            file.write('{"step": 11, "sta')  # cut short by a kill
        one.rewind(RunState(stage=stage, step=step))
        assert one.file.read() == lines[:kept]
        assert one.last == (tuple(steps[kept // 2 - 1]) if kept else None)
        assert one.without_base == ([] if kept else list(data))
    one.file.rewrite([line | {"data": "other rows"} for line in lines])
    one.rewind(RunState(stage=2, step=8))
    assert one.without_base == list(data)  # the pack was made anew: the old figure is not of these rows
    alike = validation.Validation(settings, Place(0, 0, 0, Layout(2)), sources, 1000, None, lambda line: None)
    assert [held.data for held in alike.sets] == list(data.values())
    assert [len(held.batch.tokens) for held in alike.sets] == [6, 6] and [held.rows for held in alike.sets] == [5, 6]


def test_held_out_packs_are_checked_before_the_launch(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert prepare(config(made, run), 1, 1).notes == []
    same = prepare(config(made, run, f"telemetry.validation={{同: {made / 'zh'}}}"), 1, 1).notes
    assert len(same) == 1 and "同 holds the rows of source 中文" in same[0]
    with pytest.raises(UserError, match=r"telemetry\.validation: .*nowhere"):
        prepare(config(made, run, f"telemetry.validation={{a: {made / 'nowhere'}}}"), 1, 1)
    train_runs.write_pack(tmp_path / "large", largest=9000)
    with pytest.raises(UserError, match=r"telemetry\.validation: .*token ids up to 9000"):
        prepare(config(made, run, f"telemetry.validation={{a: {tmp_path / 'large'}}}"), 1, 1)


def test_flops_of_what_is_computed_again() -> None:
    shape = Architecture("llama", 64, 128, 4, 4, 2, 16, 512, 512, 64)
    tokens, pairs = 100.0, 1000.0
    head = 6 * 512 * 64 * tokens
    whole = flops.of_rows(shape, tokens, pairs)
    scores = flops.of_rows(shape, 0.0, pairs)
    assert flops.recomputed(shape, "none", tokens, pairs) == 0
    assert flops.recomputed(shape, "attention", tokens, pairs) == pytest.approx(scores / 3)
    assert flops.recomputed(shape, "layer", tokens, pairs) == pytest.approx((whole - head) / 3)


def test_squared_lengths_are_of_what_sees_itself(made: Path, tmp_path: Path) -> None:
    for visible in ("document", "row"):
        settings = config(made, tmp_path, f"data.sources.0.visible={visible}")
        batch = open_dataset(settings, 1234, 1, eos_id=2).batch(0)
        expected = 0
        for i, row in enumerate(batch.tokens.tolist()):
            if batch.source[i] == 0 and visible == "row":
                expected += LENGTH**2
                continue
            cuts = [0, *(j + 1 for j, token in enumerate(row) if token == 2 and j + 1 < LENGTH), LENGTH]
            expected += sum((b - a) ** 2 for a, b in pairwise(cuts))
        assert squares(batch, settings.data) == expected
        half = batch.filled // 2  # the rest is padding, a piece of its own
        pieces, starts = [0], []
        for i in range(len(half)):
            inside = [s for s in batch.starts[batch.pieces[i] : batch.pieces[i + 1]] if s < half[i]]
            starts += [*inside, half[i]]
            pieces.append(len(starts))
        padded = batch.__class__(**{
            **vars(batch), "filled": half, "pieces": np.array(pieces), "starts": np.array(starts)
        })  # fmt: skip
        alone = batch.__class__(**{
            **vars(batch), "tokens": batch.tokens[:, : LENGTH // 2], "filled": half,
            "pieces": np.array(pieces) - np.arange(len(pieces)),
            "starts": np.array([s for i in range(len(half)) for s in starts[pieces[i] : pieces[i + 1] - 1]]),
        })  # fmt: skip
        assert squares(padded, settings.data) == squares(alone, settings.data) < expected


def test_bits_per_byte_by_hand() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
    assert bits_per_byte(1.0, 0) is None and bits_per_byte(1.0, None) is None
