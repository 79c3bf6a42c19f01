from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import oracle_train_data as oracle
import pyarrow as pa
import pytest
from small_tokenizers import CHINESE, ENGLISH, sentencepiece_model

from training.config import DataSettings, StageSettings
from training.data import Dataset, GlobalBatch, ReadAhead, batch, dealt, micro_batches, open_dataset, targets
from training.ledger import Ledger
from training.packs_index import check_same, check_sources, open_sources
from ziya.errors import UserError
from ziya.files import read_json, write_json
from ziya.ledger import read_ledger
from ziya.pack_files import manifest_path, pieces_path, read_manifest, verify_files
from ziya.packs import bin_path, idx_path, pack_writer
from ziya.tokenizer import load_tokenizer

LENGTH, ROWS, SEED = 24, 8, 5


class Recipe:
    def __init__(self, data: DataSettings, stages: list[StageSettings]) -> None:
        self.data, self.stages = data, stages


def stage(number: int, weights: dict[str, float], *replayed: int) -> StageSettings:
    replay = [{"stage": k, "ratio": 1.0} for k in replayed]
    return StageSettings.model_validate({"number": number, "tokens": 1e4, "weights": weights, "replay": replay})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, dict[str, list[oracle.Row]]]:
    """zh in two packs, en by perplexity, qa with prompts, seen by row and answers only."""
    folder = tmp_path_factory.mktemp("packs")
    rng = random.Random(1)
    packs = {
        "zh-1": oracle.splice_rows(rng, 11, LENGTH, "zh1"), "zh-2": oracle.splice_rows(rng, 6, LENGTH, "zh2"),
        "en": oracle.splice_rows(rng, 9, LENGTH, "en"), "qa": oracle.whole_rows(rng, 10, LENGTH, "qa"),
    }  # fmt: skip
    for name, rows in packs.items():
        oracle.write_pack(folder / name, rows, "whole" if name == "qa" else "splice")
    sources = [
        {"name": "zh", "packs": [str(folder / "zh-1"), str(folder / "zh-2")], "language": "zh"},
        {"name": "en", "packs": [str(folder / "en")], "language": "en", "order": "perplexity"},
        {"name": "qa", "packs": [str(folder / "qa")], "answers_only": True, "visible": "row"},
    ]
    data = DataSettings.model_validate({"sources": sources, "sequence_length": LENGTH, "global_batch_rows": ROWS})
    stages = [stage(1, {"zh": 2.0, "en": 1.0}), stage(2, {"qa": 1.0, "zh": 0.5}, 1), stage(3, {"en": 1.0}, 1, 2)]
    return Recipe(data, stages), {"zh": packs["zh-1"] + packs["zh-2"], "en": packs["en"], "qa": packs["qa"]}


def manifests(recipe: Recipe) -> dict[str, list[str]]:
    return {source.name: [f"{path}.json" for path in source.packs] for source in recipe.data.sources}


def same(a: GlobalBatch, b: GlobalBatch) -> bool:
    return all(np.array_equal(value, getattr(b, name)) for name, value in vars(a).items())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_batches_equal_plain_python(made: Any, number: int) -> None:
    recipe, rows = made
    dataset = open_dataset(recipe, SEED, number, vocab_size=500)
    plain = [
        oracle.Stream(
            s.source.name, f"replay {s.role}" if s.role else "own", s.share, rows[s.source.name], s.source.name == "en"
        )
        for s in dataset.order.streams
    ]
    for index in range(9):
        found = batch(manifests(recipe), recipe, SEED, number, index)
        assert same(found, dataset.batch(index))
        expected = [(plain[s].source, plain[s].rows[row]) for s, _, row in oracle.draw(plain, SEED, number, ROWS)]
        assert found.tokens.tolist() == [row.tokens for _, row in expected]
        assert found.weights.tolist() == [oracle.weights_of(row, name == "qa") for name, row in expected]
        assert found.filled.tolist() == [row.filled for _, row in expected]
        assert found.token_count == sum(row.filled for _, row in expected)
        assert targets(found) == sum(sum(oracle.weights_of(row, name == "qa")) for name, row in expected)
        for i, (_, row) in enumerate(expected):
            starts = found.starts[found.pieces[i] : found.pieces[i + 1]].tolist()
            assert np.diff([*starts, LENGTH]).tolist() == [len(piece.tokens) for piece in row.pieces]
        assert dataset.document_ids(found) == [(name, p.id) for name, row in expected for p in row.pieces if p.id]


def test_masks_of_one_row_by_hand(tmp_path: Path) -> None:
    row = oracle.Row([oracle.Piece("问", [10, 11, 12, 2], 2), oracle.Piece("b", [20, 2], 2), oracle.Piece("", [3, 3])])
    oracle.write_pack(tmp_path / "one", [row], "whole")
    for answers_only, expected in ((False, [1, 1, 1, 0, 1, 0, 0, 0]), (True, [0, 1, 1, 0, 0, 0, 0, 0])):
        source = {"name": "one", "packs": [str(tmp_path / "one")], "answers_only": answers_only}
        settings = {"sources": [source], "sequence_length": 8, "global_batch_rows": 1}
        recipe = Recipe(DataSettings.model_validate(settings), [stage(1, {"one": 1.0})])
        assert open_dataset(recipe, SEED, 1).batch(0).weights.tolist() == [expected]


@pytest.mark.parametrize("restart", [True, False])
def test_every_layout_holds_the_same_rows(made: Any, restart: bool) -> None:
    recipe, _ = made
    settings = recipe.data.model_copy(update={"restart_positions": restart})
    whole = open_dataset(recipe, SEED, 2).batch(3)
    shifted = np.concatenate([whole.tokens[:, 1:], np.zeros((ROWS, 1), np.int64)], axis=1)
    by_row = [settings.sources[source].visible == "row" for source in whole.source]
    assert True in by_row and False in by_row
    for data_size in (1, 2, 4):
        for micro in (1, 2):
            met: list[int] = []
            for rank in range(data_size):
                packed = micro_batches(whole, rank, data_size, micro, settings)
                held = dealt(ROWS, rank, data_size, micro)
                assert len(packed) == len(held) == ROWS // data_size // micro
                for part, rows in zip(packed, held.tolist(), strict=True):
                    met += rows
                    assert part.tokens.tolist() == whole.tokens[rows].reshape(-1).tolist()
                    assert part.targets.tolist() == shifted[rows].reshape(-1).tolist()
                    assert part.weights.tolist() == whole.weights[rows].reshape(-1).tolist()
                    borders, positions = [], []
                    for place, row in enumerate(rows):
                        starts = whole.starts[whole.pieces[row] : whole.pieces[row + 1]].tolist()
                        if by_row[row]:
                            starts = [s for s in starts if s in (0, whole.filled[row])]
                        borders += [place * LENGTH + s for s in starts]
                        for position in range(LENGTH):
                            positions.append(
                                position - max(s for s in starts if s <= position) if restart else position
                            )
                    assert part.borders.tolist() == [*borders, micro * LENGTH]
                    assert part.positions.tolist() == positions
                    assert part.longest == max(part.lengths)
            assert sorted(met) == list(range(ROWS))
    with pytest.raises(UserError, match=r"global_batch_rows=8 is not a multiple of data-parallel size 3"):
        micro_batches(whole, 0, 3, 1, settings)


def test_needs_neither_torch_nor_a_model(made: Any) -> None:
    recipe, _ = made
    values = json.dumps(
        {
            "data": json.loads(recipe.data.model_dump_json()),
            "stages": [json.loads(item.model_dump_json()) for item in recipe.stages],
            "manifests": manifests(recipe),
        }
    )
    script = (
        "import json, sys; from types import SimpleNamespace; from training.config import *\n"
        "from training.data import batch\n"
        "v = json.loads(sys.stdin.read())\n"
        "recipe = SimpleNamespace(data=DataSettings.model_validate(v['data']),"
        " stages=[StageSettings.model_validate(s) for s in v['stages']])\n"
        f"b = batch(v['manifests'], recipe, {SEED}, 2, 4)\n"
        "assert not {'torch', 'megatron', 'deepspeed', 'data_factory'} & set(sys.modules)\n"
        "print(json.dumps(b.tokens.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", script], input=values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == batch(manifests(recipe), recipe, SEED, 2, 4).tokens.tolist()


def test_reading_ahead_changes_nothing_and_leaves_no_thread(made: Any) -> None:
    recipe, _ = made
    dataset = open_dataset(recipe, SEED, 2)
    asked = [3, 4, 5, 5, 6, 9, 10, 4, 5, 6, 7, 100, 101, 0]  # resumed, repeated, skipped, rolled back

    def slow(index: int) -> Any:
        time.sleep(0.01 * (index % 3))
        return dataset.batch(index).tokens.tolist()

    for workers in (0, 1, 3):
        with ReadAhead(slow, workers) as ahead:
            assert [ahead.read(index) for index in asked] == [dataset.batch(index).tokens.tolist() for index in asked]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]

    unasked = threading.Event()

    def broken(index: int) -> int:
        if index == 2:
            unasked.set()
            raise UserError("the disk went away")
        return index

    with ReadAhead(broken, 2) as ahead:
        assert ahead.read(0) == 0
        assert unasked.wait(60)  # made before anybody asked for it; its error waits
        assert ahead.read(1) == 1
        with pytest.raises(UserError, match="went away"):
            ahead.read(2)


def brute(dataset: Dataset, trained: list[int], seen: set[tuple[int, int]], books: Counter[tuple[str, ...]]) -> None:
    """Count by remembering every row: what the ledger must find without."""
    for index in trained:
        found = dataset.batch(index)
        for i in range(ROWS):
            stream = dataset.order.streams[found.stream[i]]
            role = f"replay {stream.role}" if stream.role else "own"
            row = (int(found.source[i]), int(found.source_row[i]))
            kind = "repeated" if row in seen else "first_seen"
            books[str(dataset.stage), stream.source.name, role, kind] += int(found.filled[i])
            seen.add(row)


def test_ledger_equals_a_list_of_rows(made: Any, tmp_path: Path) -> None:
    recipe, _ = made
    sources = open_sources(recipe.data)
    seen: set[tuple[int, int]] = set()
    books: Counter[tuple[str, ...]] = Counter()
    state = None
    skips = {1: [(1, 2)], 2: [(0, 1), (5, 9)], 3: [(2, 3)]}
    for number, count in ((1, 3), (2, 14), (3, 5)):
        dataset = Dataset(recipe, SEED, number, sources)
        ledger = Ledger(dataset, state)
        trained = [i for i in range(count) if not any(a <= i < b for a, b in skips[number])]
        brute(dataset, trained, seen, books)
        for first, last in skips[number][:-1]:  # known ahead
            ledger.skip(first, last)
        while ledger.next() < count:
            if ledger.next() == skips[number][-1][0]:  # found on the way, with a resume in between
                ledger.skip(*skips[number][-1])
                ledger = Ledger(Dataset(recipe, SEED, number, sources), json.loads(json.dumps(ledger.state())))
                continue
            ledger.book(dataset.batch(ledger.next()))
        state = ledger.state()
        assert ledger.stage.data_index == count and [tuple(p) for p in ledger.stage.skipped] == skips[number]
    read = {
        source.name: sum(size for key, size in books.items() if key[1] == source.name) / source.tokens
        for source in sources.items
    }
    assert ledger.reads() == read and max(read.values()) > 1
    ahead = {name: times - read[name] for name, times in ledger.planned(1e6).items()}
    assert sum(ahead[source.name] * source.tokens for source in sources.items) == pytest.approx(1e6)
    ledger.write(tmp_path / "ledger.json")
    file = read_ledger(tmp_path / "ledger.json")
    found: Counter[tuple[str, ...]] = Counter()
    for number, booked in file.stages.items():
        for book in booked.streams:
            found[number, book.source, book.role, "first_seen"] += book.first_seen
            found[number, book.source, book.role, "repeated"] += book.repeated
    assert +found == books
    assert sum(books.values()) == ledger.tokens
    total = sum(Dataset(recipe, SEED, 2, sources).batch(i).token_count for i in [0, *range(5, 9)])
    assert file.stages["2"].skipped_tokens == total
    assert any(book.first_seen and book.repeated and "replay" in book.role for book in file.stages["2"].streams)


def test_rolling_back_forgets_what_came_after(made: Any) -> None:
    recipe, _ = made
    dataset = open_dataset(recipe, SEED, 1)
    ledger = Ledger(dataset)
    for index in range(5):
        ledger.book(dataset.batch(index))
        if index == 1:
            kept = json.dumps(ledger.state())
    ledger = Ledger(dataset, json.loads(kept))  # back to before batch 2, and past 4 and 5
    ledger.skip(4, 6)
    while ledger.next() < 7:
        ledger.book(dataset.batch(ledger.next()))
    books: Counter[tuple[str, ...]] = Counter()
    brute(dataset, [0, 1, 2, 3, 6], set(), books)
    found = {(b.source, k): getattr(b, k) for b in ledger.stage.streams for k in ("first_seen", "repeated")}
    assert {(source, kind): tokens for (_, source, _, kind), tokens in books.items()} == {
        k: v for k, v in found.items() if v
    }
    assert any(kind == "repeated" for _, kind in found) and ledger.next() == 7


def test_ledger_refuses_gaps_and_broken_files(made: Any, tmp_path: Path) -> None:
    recipe, _ = made
    dataset = open_dataset(recipe, SEED, 1)
    ledger = Ledger(dataset)
    with pytest.raises(ValueError, match="batch 1 of stage 1 came where batch 0"):
        ledger.book(dataset.batch(1))
    ledger.book(dataset.batch(0))
    with pytest.raises(ValueError, match="batch 0 of stage 1 came where batch 1"):
        ledger.book(dataset.batch(0))
    with pytest.raises(ValueError, match="cannot be skipped"):
        ledger.skip(0, 2)
    ledger.skip(2, 4)
    ledger.skip(4, 5)
    assert ledger.next() == 1 and ledger.stage.skipped == [[2, 5]]
    ledger.book(dataset.batch(1))
    assert ledger.next() == 5
    ledger.write(tmp_path / "ledger.json")
    value = read_json(tmp_path / "ledger.json")
    value["stages"]["1"]["tokens"] += 1
    write_json(tmp_path / "ledger.json", value)
    with pytest.raises(UserError, match=r"ledger\.json does not add up: stage 1: its streams do not sum"):
        read_ledger(tmp_path / "ledger.json")


def test_an_accepted_change_of_weights_repeats_and_loses_no_row(made: Any) -> None:
    recipe, rows = made
    dataset = open_dataset(recipe, SEED, 1)
    ledger = Ledger(dataset)
    ledger.book(dataset.batch(0))
    changed = Recipe(recipe.data, [stage(1, {"zh": 3.0, "en": 1.0})])
    for _ in range(2):  # change once, resume once
        dataset = open_dataset(changed, SEED, 1)
        ledger = Ledger(dataset, ledger.state())
        ledger.book(dataset.batch(ledger.next()))
    books = {book.source: book for book in ledger.stage.streams}
    assert sum(book.repeated for book in books.values()) == 0
    assert books["zh"].rows + books["en"].rows == 3 * ROWS
    assert [mix.data_index for mix in ledger.stage.mixes] == [0, 1]
    # Three to one counts from the change on, within a row of each.
    since = Counter(source for i in (1, 2) for source in dataset.batch(i).source.tolist())
    assert abs(since[0] - 12) <= 1 and abs(since[1] - 4) <= 1
    assert sum(map(len, rows.values())) > 3 * ROWS


def megatron(prefix: Path, texts: list[list[int]]) -> None:
    """A plain dataset: one sequence a document, of any length."""
    longest = 1
    with pack_writer(prefix, longest, np.uint16) as writer:  # then the index is replaced: lengths differ
        flat = np.array([t for text in texts for t in text], np.uint16)
        writer.add(flat, np.ones(len(flat), np.int64), np.ones(len(flat), np.int64))
    import struct

    sizes = np.array([len(text) for text in texts], "<i4")
    pointers = (np.cumsum(sizes) - sizes).astype("<i8") * 2
    head = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, len(texts), len(texts) + 1)
    body = sizes.tobytes() + pointers.tobytes() + np.arange(len(texts) + 1, dtype="<i8").tobytes()
    idx_path(prefix).write_bytes(head + body)


def test_plain_megatron_packs_are_cut_like_splice(tmp_path: Path) -> None:
    rng = random.Random(2)
    texts = [[rng.randrange(10, 500) for _ in range(rng.randrange(0, 60))] for _ in range(40)]
    texts = [[*text, oracle.EOS] if rng.random() < 0.8 else text for text in texts]  # some without EOS, some empty
    texts[7] = [10, 11, oracle.EOS, 12, 13, oracle.EOS, 14]  # two texts that only EOS parts
    megatron(tmp_path / "plain", texts)
    source = {"name": "plain", "packs": [str(tmp_path / "plain")]}
    settings = {"sources": [source], "sequence_length": LENGTH, "global_batch_rows": 1, "eos_id": oracle.EOS}
    recipe = Recipe(DataSettings.model_validate(settings), [stage(1, {"plain": 1.0})])
    cache = tmp_path / "cache"
    dataset = open_dataset(recipe, SEED, 1, cache=cache)
    stream = [(number, token) for number, text in enumerate(texts) for token in text]
    count = -(-len(stream) // LENGTH)
    met = set()
    for index in range(count):
        found = dataset.batch(index)
        row = int(found.row[0])
        met.add(row)
        part = stream[row * LENGTH : (row + 1) * LENGTH]
        tokens = [token for _, token in part] + [oracle.EOS] * (LENGTH - len(part))
        assert found.tokens[0].tolist() == tokens and found.filled[0] == len(part)
        weights = [
            float(
                i + 1 < len(part) and part[i][0] == part[i + 1][0] and part[i][1] != oracle.EOS
            )
            for i in range(LENGTH)
        ]  # fmt: skip
        assert found.weights[0].tolist() == weights
        starts = [i for i in range(len(part)) if not i or not weights[i - 1]]
        documents = [part[i][0] for i in starts]
        if len(part) < LENGTH:
            starts, documents = [*starts, len(part)], [*documents, -1]
        assert found.starts.tolist() == starts and found.documents.tolist() == documents
        assert dataset.document_ids(found) == [("plain", f"plain#{d}") for d in documents if d >= 0]
    assert met == set(range(count))
    assert dataset.sources.items[0].tokens == len(stream)
    again = open_sources(recipe.data, cache=cache)
    check_same(dataset.sources.identity(), again)
    texts[3] = [*texts[3][:-1], 499] if texts[3] else [499]
    megatron(tmp_path / "plain", texts)
    with pytest.raises(UserError, match="the packs of plain are not those that the run began with"):
        check_same(again.identity(), open_sources(recipe.data, cache=cache))
    with pytest.raises(UserError, match=r"set data\.eos_id"):
        open_sources(recipe.data.model_copy(update={"eos_id": None}))
    with pytest.raises(UserError, match=r"plain holds token ids up to 499 and the model knows 0 to 498"):
        check_sources(open_sources(recipe.data), 499)


def test_cache_changes_nothing(made: Any, tmp_path: Path) -> None:
    recipe, _ = made
    plain = open_dataset(recipe, SEED, 2)
    for _ in range(2):  # made, then found
        cached = open_dataset(recipe, SEED, 2, cache=tmp_path / "cache")
        assert all(same(plain.batch(i), cached.batch(i)) for i in range(4))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".tmp")]
    assert (np.asarray(plain.sources.items[1].order) == np.asarray(cached.sources.items[1].order)).all()


def one(folder: Path) -> DataSettings:
    source = {"name": "qa", "packs": [str(folder / "qa")]}
    return DataSettings.model_validate({"sources": [source], "sequence_length": LENGTH, "global_batch_rows": 2})


def break_manifest(folder: Path, **changes: Any) -> None:
    write_json(manifest_path(folder / "qa"), read_json(manifest_path(folder / "qa")) | changes)


def resize(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0\0")


def other_pieces(folder: Path, change: Any) -> None:
    """Replace the table of pieces and what the manifest tells of it."""
    import pyarrow.parquet as pq

    path = pieces_path(folder / "qa")
    pq.write_table(change(pq.read_table(path)), path)
    files = read_json(manifest_path(folder / "qa"))["files"]
    files[path.name]["bytes"] = path.stat().st_size
    break_manifest(folder, files=files)


def padding_first(table: pa.Table) -> pa.Table:
    rows = table.to_pylist()
    rows[0]["id"] = ""
    return pa.Table.from_pylist(rows, table.schema)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: break_manifest(f, sequence_length=4096), "contradicts itself"),
        (lambda f: break_manifest(f, mode="sorted"), r"is not the manifest of a pack: mode"),
        (lambda f: break_manifest(f, version=9), "has version 9 and 1 can be read"),
        (lambda f: manifest_path(f / "qa").write_text("{"), "is not valid JSON"),
        (lambda f: manifest_path(f / "qa").unlink(), "packing was not finished"),
        (lambda f: bin_path(f / "qa").unlink(), "is missing"),
        (lambda f: pieces_path(f / "qa").unlink(), "is missing"),
        (lambda f: resize(bin_path(f / "qa")), r"has \d+ bytes and .* tells of \d+"),
        (lambda f: other_pieces(f, lambda t: t.slice(1)), "does not fit its pack"),
        (lambda f: other_pieces(f, lambda t: t.drop_columns(["id"])), "column id missing"),
        (lambda f: other_pieces(f, lambda t: t.take(list(range(t.num_rows))[::-1])), "does not tell of the pieces"),
        (lambda f: other_pieces(f, padding_first), "padding before the end of a sample"),
        (lambda f: break_manifest(f, padding_tokens=1), "disagree on padding"),
    ],
)
def test_bad_packs_are_told_in_one_line(tmp_path: Path, harm: Any, message: str) -> None:
    rng = random.Random(8)
    rows = oracle.whole_rows(rng, 6, LENGTH, "qa")
    rows[0] = oracle.Row([oracle.Piece("甲", [10, 11, 2]), oracle.Piece("乙", [12] * (LENGTH - 4) + [2])])
    oracle.write_pack(tmp_path / "qa", rows, "whole")
    open_sources(one(tmp_path))
    harm(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_sources(one(tmp_path))
    assert "\n" not in str(caught.value)


def test_packs_are_checked_against_the_model(tmp_path: Path) -> None:
    model = sentencepiece_model(tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(model)
    facts = {name: getattr(tokenizer, name) for name in ("kind", "fingerprint", "vocab_size", "eos_id", "pad_id")}
    oracle.write_pack(tmp_path / "qa", oracle.whole_rows(random.Random(1), 4, LENGTH, "qa"), "whole", facts)
    sources = open_sources(one(tmp_path))
    check_sources(sources, tokenizer.vocab_size, tmp_path)
    with pytest.raises(UserError, match="ids up to"):
        check_sources(sources, tokenizer.vocab_size - 1, tmp_path)
    sentencepiece_model(tmp_path / "tokenizer.model", vocab_size=600)
    with pytest.raises(UserError, match=r"packed with another tokenizer\.model"):
        check_sources(sources, tokenizer.vocab_size, tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.model"):
        check_sources(sources, tokenizer.vocab_size, tmp_path)
    with pytest.raises(UserError, match=r"samples of 24 tokens and data\.sequence_length is 32"):
        open_sources(one(tmp_path).model_copy(update={"sequence_length": 32}))
    recipe = Recipe(one(tmp_path), [stage(1, {"qa": 1.0})])
    with pytest.raises(UserError, match=r"qa: row \d+ holds token id .* the pack is damaged"):
        open_dataset(recipe, SEED, 1, vocab_size=50).batch(0)
    manifest = read_manifest(tmp_path / "qa")
    assert manifest is not None
    verify_files(tmp_path / "qa", manifest)
    data = bytearray(bin_path(tmp_path / "qa").read_bytes())
    data[0] ^= 1
    bin_path(tmp_path / "qa").write_bytes(data)
    with pytest.raises(UserError, match=r"qa\.bin is not what"):
        verify_files(tmp_path / "qa", manifest)


@pytest.mark.parametrize("mode", ["splice", "whole"])
def test_packs_of_the_data_factory(tmp_path: Path, mode: str) -> None:
    """Texts of both languages through tokenizer, packing and files to batches: every text comes back, once an epoch."""
    from data_factory.config import DataConfig
    from data_factory.packing import pack_source
    from data_factory.tokenize_unit import token_schema
    from ziya.files import atomic_path

    tokenizer = load_tokenizer(sentencepiece_model(tmp_path / "tokenizer.model"))
    facts = {name: getattr(tokenizer, name) for name in ("kind", "fingerprint", "vocab_size", "eos_id", "pad_id")}
    rng = random.Random(3)
    texts = {}
    for number in range(30):
        text = CHINESE if number % 2 else ENGLISH
        start = rng.randrange(len(text) - 40)
        texts[f"文档-{number}"] = text[start : start + rng.randrange(3, 40)]
    ids, offsets = tokenizer.encode_batch(list(texts.values()))
    table = [
        {
            "id": name, "lang": "zh" if i % 2 else "en", "tier": "high", "source": "web", "task": "qa", "perplexity": 2.0 + i,
            "prompt_tokens": 1, "length": int(offsets[i + 1] - offsets[i]), "tokens": ids[offsets[i] : offsets[i + 1]],
        }
        for i, name in enumerate(texts)
    ]  # fmt: skip
    schema = token_schema(facts)
    with (
        atomic_path(tmp_path / "tokens") as path,
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, schema) as f,
    ):
        f.write_batch(pa.RecordBatch.from_pylist(table, schema=schema))
    config = DataConfig.model_validate({
        "seed": 7, "sources": [{"name": "web", "paths": ["x"]}], "packing": {"mode": mode, "sequence_length": 64},
    })  # fmt: skip
    pack_source([tmp_path / "tokens"], config.sources[0], config, tmp_path / "packs", tmp_path / "work")
    source = {"name": "web", "packs": [str(tmp_path / "packs" / "web")], "answers_only": True, "order": "perplexity"}
    data = DataSettings.model_validate({"sources": [source], "sequence_length": 64, "global_batch_rows": 1})
    dataset = open_dataset(Recipe(data, [stage(1, {"web": 1.0})]), SEED, 1, vocab_size=tokenizer.vocab_size)
    check_sources(dataset.sources, tokenizer.vocab_size, tmp_path)
    parts: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    counted, means = 0.0, []
    for index in range(dataset.sources.items[0].rows):
        found = dataset.batch(index)
        counted += targets(found)
        ids_here = iter(dataset.document_ids(found))
        ends = [*found.starts[1:].tolist(), 64]
        for start, end, document in zip(found.starts.tolist(), ends, found.documents.tolist(), strict=True):
            if start < found.filled[0]:
                parts[document] = found.tokens[0, start:end].tolist()
                names[document] = next(ids_here)[1]
        means.append(float(dataset.sources.items[0].packs[0].perplexity()[found.row[0]]))
    assert means == sorted(means)
    joined: dict[str, list[int]] = {}
    for document in sorted(parts):  # pieces in the order of the pack: parts of a text follow each other
        joined.setdefault(names[document], []).extend(parts[document])
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert {name: model.decode(tokens[:-1]) for name, tokens in joined.items()} == texts
    assert all(tokens[-1] == tokenizer.eos_id for tokens in joined.values())
    # One prompt token a text, which no position predicts anyway: all tokens but the first of each piece are targets.
    assert counted == sum(len(part) - 1 for part in parts.values())
