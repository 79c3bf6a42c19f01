from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import oracle_packing as oracle
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHINESE, ENGLISH, sentencepiece_model, tokenizer_json

from data_factory import packing
from data_factory.batches import TextBatch
from data_factory.config import DataConfig
from data_factory.documents import KEPT, read_table, table_writer
from data_factory.shuffle import Buckets, Sampler, hash_ids
from data_factory.tokenize_unit import open_tokens, token_schema
from data_factory.whole import best_fit
from ziya.errors import UserError
from ziya.files import atomic_path, read_json
from ziya.packs import PackReader
from ziya.tokenizer import load_tokenizer

EOS, PAD, SEED = 2, 3, 7
TOKENIZER = {"kind": "sentencepiece", "fingerprint": "f" * 32, "vocab_size": 500, "eos_id": EOS, "pad_id": PAD}


def config(mode: str = "auto", length: int = 16, ratio: float = 1.0, seed: int = SEED, kind: str = "web") -> DataConfig:
    return DataConfig.model_validate({
        "seed": seed,
        "sources": [{"name": "one", "paths": ["x"], "kind": kind, "ratio": ratio}],
        "packing": {"mode": mode, "sequence_length": length},
    })


def write_tokens(
    path: Path, documents: list[oracle.Document], source: str = "one", tokenizer: dict[str, Any] = TOKENIZER
) -> Path:
    schema = token_schema(tokenizer)
    rows = [
        {
            "id": d.id, "lang": d.lang, "tier": d.tier, "source": source, "task": d.task, "perplexity": 1.5,
            "prompt_tokens": d.prompt_tokens, "length": len(d.tokens), "tokens": d.tokens,
        }
        for d in documents
    ]
    with atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for start in range(0, len(rows), 5):
            file.write_batch(pa.RecordBatch.from_pylist(rows[start : start + 5], schema=schema))
    return path


def make_documents(seed: int, count: int, longest: int) -> list[oracle.Document]:
    generator = random.Random(seed)
    documents = []
    for number in range(count):
        size = generator.choice([0, 1, 3, generator.randrange(longest)])
        tokens = [generator.randrange(10, 500) for _ in range(size)]
        documents.append(
            oracle.Document(
                f"文-{number}", tokens, generator.randint(0, len(tokens)), generator.choice(["qa", "choice"]),
                generator.choice(["en", "zh"]), generator.choice(["high", "medium"]),
            )
        )
    return documents


def pack(
    folder: Path, documents: list[oracle.Document], settings: DataConfig, cut: int = 8, **more: Any
) -> dict[str, Any]:
    """Spread documents over token files of `cut` rows, with rows of another source between them, and pack."""
    other = [oracle.Document("other", [9] * 5)]
    files = []
    for number, start in enumerate(range(0, max(len(documents), 1), cut)):
        files.append(write_tokens(folder / f"tokens-{number}", documents[start : start + cut]))
        files.append(write_tokens(folder / f"other-{number}", other, source="two"))
    return packing.pack_source(files, settings.sources[0], settings, folder / "packs", folder / "work", **more)


def read_pack(folder: Path) -> oracle.Pack:
    reader = PackReader(folder / "packs" / "one")
    table = read_table(folder / "packs" / "one.documents.parquet").to_pylist()
    assert len(table) == reader.sequences
    pieces = []
    for number, row in enumerate(table):
        tokens = reader.sequence(number).tolist()
        assert row["tokens"] == len(tokens)
        pieces.append(
            oracle.Piece(row["sample"], row["piece"], row["id"], tokens, row["prompt_tokens"], row["start"])
        )
    assert Counter(piece.sample for piece in pieces) == Counter(dict(enumerate(np.diff(reader.borders).tolist())))
    dropped = read_table(folder / "packs" / "one.dropped.parquet").to_pylist()
    return oracle.Pack(pieces, [(row["id"], row["rule"]) for row in dropped])


cases = {
    "seed": st.integers(0, 10**6),
    "count": st.integers(1, 40),
    "length": st.integers(8, 40),
    "ratio": st.sampled_from([1.0, 1.0, 0.5, 0.21, 2.0, 2.5]),
    "bucket_tokens": st.sampled_from([20, 150, 10**6]),
    "cut": st.integers(1, 20),
}


def check_accounts(manifest: dict[str, Any], documents: list[oracle.Document], found: oracle.Pack, length: int) -> None:
    """Identities that hold for every pack, whatever the mode."""
    packed = {piece.id for piece in found.pieces if piece.id}
    assert manifest["documents"] == len(documents) == manifest["packed"] + sum(manifest["dropped"].values())
    assert manifest["packed"] == len(packed) and not packed & {identifier for identifier, _ in found.dropped}
    assert manifest["dropped"] == dict(Counter(rule for _, rule in found.dropped))
    assert manifest["samples"] * length == manifest["tokens"] == sum(len(piece.tokens) for piece in found.pieces)
    padding = sum(len(piece.tokens) for piece in found.pieces if not piece.id)
    assert (manifest["padding_tokens"], manifest["padding_share"]) == (padding, padding / max(manifest["tokens"], 1))
    assert manifest["copies"] == manifest["eos_tokens"]
    groups: Counter[tuple[str, str]] = Counter()
    by_id = {document.id: document for document in documents}
    for piece in found.pieces:
        if piece.id:
            groups[by_id[piece.id].lang, by_id[piece.id].tier] += len(piece.tokens)
    expected: dict[str, dict[str, int]] = {}
    for (lang, tier), tokens in groups.items():
        expected.setdefault(lang, {})[tier] = tokens
    assert manifest["tokens_by"] == expected
    assert manifest["prompt_tokens"] == sum(piece.prompt_tokens for piece in found.pieces)


@given(**cases)
@settings(max_examples=40, deadline=None)
def test_splice_equals_plain_python(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    length: int,
    ratio: float,
    bucket_tokens: int,
    cut: int,
) -> None:
    folder = tmp_path_factory.mktemp("splice")
    documents = make_documents(seed, count, 3 * length)
    manifest = pack(folder, documents, config("splice", length, ratio), cut, bucket_tokens=bucket_tokens)
    found = read_pack(folder)
    assert found == oracle.splice(documents, length, EOS, PAD, ratio, SEED)
    check_accounts(manifest, documents, found, length)
    # No token lost, none repeated: the pieces of each copy join to the document and its EOS, in neighbouring samples.
    padding = [piece for piece in found.pieces if not piece.id]
    assert len(padding) <= 1 and (not padding or (padding[0] is found.pieces[-1] and padding[0].piece > 0))
    joined: list[tuple[str, list[int], int]] = []
    for before, piece in itertools.pairwise([None, *found.pieces]):
        assert piece is not None
        if piece.start:  # a border cut it: it goes on where the last sample ended
            assert before is not None and (before.id, before.sample + 1, 0) == (piece.id, piece.sample, piece.piece)
            assert joined[-1][0] == piece.id and len(joined[-1][1]) == piece.start
            joined[-1][1].extend(piece.tokens)
            joined[-1] = (piece.id, joined[-1][1], joined[-1][2] + piece.prompt_tokens)
        elif piece.id:
            joined.append((piece.id, list(piece.tokens), piece.prompt_tokens))
    times = oracle.sample(documents, ratio, SEED)
    wanted = [(d.id, [*d.tokens, EOS], d.prompt_tokens) for d in documents for _ in range(times[d.id])]
    assert sorted(joined) == sorted(wanted)


@given(**cases)
@settings(max_examples=40, deadline=None)
def test_whole_equals_plain_python(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    length: int,
    ratio: float,
    bucket_tokens: int,
    cut: int,
) -> None:
    folder = tmp_path_factory.mktemp("whole")
    documents = make_documents(seed, count, length + 4)
    manifest = pack(folder, documents, config("whole", length, ratio), cut, bucket_tokens=bucket_tokens)
    found = read_pack(folder)
    total = sum(len(document.tokens) + 1 for document in documents)
    buckets = max(1, -(-int(total * max(ratio, 1.0)) // bucket_tokens))
    assert found == oracle.whole(documents, length, EOS, PAD, ratio, SEED, buckets)
    check_accounts(manifest, documents, found, length)
    by_id = {document.id: document for document in documents}
    for _, group in itertools.groupby(found.pieces, key=lambda piece: piece.sample):
        pieces = list(group)
        texts = [piece for piece in pieces if piece.id]
        assert texts and all(piece.tokens == [*by_id[piece.id].tokens, EOS] and not piece.start for piece in texts)
        assert len({by_id[piece.id].task for piece in texts}) == 1
        assert [piece.id for piece in pieces[:-1]] == [piece.id for piece in texts][: len(pieces) - 1]  # padding last
    too_long = {d.id for d in documents if len(d.tokens) + 1 > length}
    assert {i for i, rule in found.dropped if rule == "packing.sequence_length"} <= too_long
    assert not too_long & {piece.id for piece in found.pieces}


@pytest.mark.parametrize("mode", ["splice", "whole"])
def test_bytes_do_not_depend_on_how_documents_are_spread(tmp_path: Path, mode: str) -> None:
    documents = make_documents(1, 60, 30)
    results = []
    for number, (cut, order) in enumerate([(60, 0), (7, 0), (1, 1), (13, 2)]):
        shuffled = list(documents)
        random.Random(order).shuffle(shuffled)
        folder = tmp_path / str(number)
        pack(folder, shuffled, config(mode, ratio=1.3), cut, bucket_tokens=200)
        results.append({path.name: path.read_bytes() for path in (folder / "packs").iterdir()})
        assert not any((folder / "work").iterdir())
    assert len(results[0]) == 5
    assert all(result == results[0] for result in results)
    pack(tmp_path / "seed", documents, config(mode, ratio=1.3, seed=8), bucket_tokens=200)
    assert (tmp_path / "seed" / "packs" / "one.bin").read_bytes() != results[0]["one.bin"]


@given(sizes=st.lists(st.integers(1, 130), max_size=60), room=st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_best_fit_equals_plain_python(sizes: list[int], room: int) -> None:
    sizes = sorted(sizes, reverse=True)
    capacity = max(sizes, default=1) + room
    bins, count = best_fit(np.array(sizes, np.int64), capacity)
    assert bins.tolist() == oracle.best_fit(sizes, capacity)
    assert count == len(set(bins.tolist()))


@given(
    ids=st.lists(st.text(max_size=12), max_size=8),
    seed=st.integers(0, 2**63),
    purpose=st.sampled_from(["ratio", "order 3"]),
)
@settings(max_examples=50, deadline=None)
def test_hash_equals_plain_python(ids: list[str], seed: int, purpose: str) -> None:
    h1, h2 = hash_ids(TextBatch.from_strings(ids), seed, purpose)
    assert list(zip(h1.tolist(), h2.tolist(), strict=True)) == [oracle.hash_id(i, seed, purpose) for i in ids]


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.5, 0.999, 1.0, 3.25])
def test_ratio_is_exact_and_nested(ratio: float) -> None:
    ids = [f"id {i}" for i in range(3000)]
    batches = [TextBatch.from_strings(ids[i : i + 700]) for i in range(0, 3000, 700)]
    sampler = Sampler(ratio, SEED)
    sampler.fit(batches, batches)
    times = np.concatenate([sampler.times(batch) for batch in batches])
    assert times.sum() == round(ratio * 3000)
    more = Sampler(ratio + 0.1, SEED)
    more.fit(batches, batches)
    assert (np.concatenate([more.times(batch) for batch in batches]) >= times).all()  # a larger share only adds


def test_buckets_follow_the_order_of_the_hash(tmp_path: Path) -> None:
    h1 = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64)
    buckets = Buckets(tmp_path / "buckets", 7)
    for start in range(0, 500, 90):
        buckets.add(pa.table({"h1": h1[start : start + 90]}))
        buckets.flush()
    seen = [table.column("h1").to_numpy() for table in buckets]
    assert 1 < len(seen) <= 7 and all(a.max() < b.min() for a, b in itertools.pairwise(seen))
    assert sorted(np.concatenate(seen).tolist()) == sorted(h1.tolist())
    assert not any((tmp_path / "buckets").iterdir())


def test_without_documents_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "one.json").write_text("{}")  # of an earlier run
    assert pack(tmp_path, [], config())["documents"] == 0
    assert packing.pack_source([], config().sources[0], config(), tmp_path / "packs", tmp_path / "work")["samples"] == 0
    assert not any((tmp_path / "packs").iterdir())


def test_all_documents_dropped(tmp_path: Path) -> None:
    manifest = pack(tmp_path, [oracle.Document("a", [5] * 20)], config("whole"))
    assert (manifest["samples"], manifest["packed"], manifest["dropped"]) == (0, 0, {"packing.sequence_length": 1})
    assert len(PackReader(tmp_path / "packs" / "one")) == 0
    (row,) = read_table(tmp_path / "packs" / "one.dropped.parquet").to_pylist()
    assert row == {"id": "a", "source": "one", "rule": "packing.sequence_length", "value": 21.0, "threshold": 16.0}


def test_mode_follows_the_kind_of_source(tmp_path: Path) -> None:
    documents = make_documents(0, 5, 8)
    assert pack(tmp_path / "a", documents, config(kind="supervised"))["mode"] == "whole"
    assert pack(tmp_path / "b", documents, config(kind="reference"))["mode"] == "splice"
    assert pack(tmp_path / "c", documents, config("splice", kind="supervised"))["mode"] == "splice"


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    pack(tmp_path, make_documents(0, 5, 8), config())
    other = TOKENIZER | {"fingerprint": "0" * 32}
    files = [write_tokens(tmp_path / "new", make_documents(0, 5, 8), tokenizer=other)]
    with pytest.raises(UserError, match=r"one\.json was packed with a tokenizer of fingerprint ffff.*tokenizer\.path"):
        packing.pack_source(files, config().sources[0], config(), tmp_path / "packs", tmp_path / "work")
    files.append(tmp_path / "tokens-0")
    with pytest.raises(UserError, match="another tokenizer than"):
        packing.pack_source(files, config().sources[0], config(), tmp_path / "elsewhere", tmp_path / "work")
    (tmp_path / "broken").write_bytes(b"no arrow")
    with pytest.raises(UserError, match="broken is not a token file"):
        packing.pack_source([tmp_path / "broken"], config().sources[0], config(), tmp_path / "x", tmp_path / "work")


def test_wide_vocabularies_use_four_bytes(tmp_path: Path) -> None:
    wide = TOKENIZER | {"vocab_size": 128_256}
    files = [write_tokens(tmp_path / "t", [oracle.Document("a", [128_000, 9])], tokenizer=wide)]
    manifest = packing.pack_source(files, config().sources[0], config(), tmp_path / "packs", tmp_path / "work")
    assert manifest["dtype"] == "int32"
    assert PackReader(tmp_path / "packs" / "one").sequence(0).tolist() == [128_000, 9, EOS]


def kept_rows() -> list[dict[str, Any]]:
    rows = []
    pairs = [
        ("问题:春天的河水怎么样?回答:", "很冷，因为山上的雪化得晚。"),
        ("Question:Where does it rise? Answer:", "In the hills."),
    ]
    for number in range(40):
        prompt, answer = pairs[number % 2]
        text = f"{prompt}{number} {answer}" if number % 4 < 2 else (ENGLISH, CHINESE)[number % 2] * (number % 5 + 1)
        rows.append({
            "id": f"id-{number}", "url": "", "text": text, "lang": ("zh", "en")[number % 2], "tier": "high",
            "source": "one", "task": "qa", "perplexity": 9.5 if number % 3 else None, "copies": 1, "protected": [],
            "prompt_bytes": len(prompt.encode()) if number % 4 < 2 else 0,
        })
    return rows


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
def test_from_kept_texts_to_packs(tmp_path: Path, kind: str) -> None:
    make = sentencepiece_model if kind == "sentencepiece" else tokenizer_json
    path = make(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(path)
    rows, files = kept_rows(), []
    for number, start in enumerate((0, 15)):
        kept = tmp_path / f"kept-{number}.parquet"
        with table_writer(kept, KEPT) as writer:
            writer.write(pa.Table.from_pylist(rows[start : (15, 40)[number]], schema=KEPT))
        files.append(tmp_path / f"tokens-{number}")
        counts = packing.tokenize_unit(kept, files[-1], path)
        assert counts["documents"] == (15, 25)[number]
        assert packing.token_files(files[-1]) == [files[-1]] and files[-1].is_file()
    with open_tokens(files[0]) as file:
        tokens = pa.Table.from_batches(list(file)).to_pylist()
        assert file.tokenizer["fingerprint"] == tokenizer.fingerprint
    for row, kept_row in zip(tokens, rows, strict=False):
        ids = tokenizer.encode_batch([kept_row["text"]])[0].tolist()
        assert (row["id"], row["tokens"], row["length"]) == (kept_row["id"], ids, len(ids))
        prompt = len(tokenizer.encode_batch([kept_row["text"].encode()[: kept_row["prompt_bytes"]].decode()])[0])
        assert abs(row["prompt_tokens"] - prompt) <= 1 and (row["prompt_tokens"] > 5) == (kept_row["prompt_bytes"] > 0)
    chosen = config("splice", 64)
    manifest = packing.pack_source(files, chosen.sources[0], chosen, tmp_path / "packs", tmp_path / "work")
    reader = PackReader(tmp_path / "packs" / "one")
    assert manifest == read_json(tmp_path / "packs" / "one.json")
    assert manifest["documents"] == 40 and manifest["padding_tokens"] < 64
    stream = np.concatenate([reader.sample(i) for i in range(len(reader))])
    padded_by_eos = manifest["padding_tokens"] if tokenizer.pad_id == tokenizer.eos_id else 0
    assert np.count_nonzero(stream == tokenizer.eos_id) == 40 + padded_by_eos
    table = read_table(tmp_path / "packs" / "one.documents.parquet").to_pylist()
    assert {row["perplexity"] for row in table} == {9.5, None}
    assert str(tmp_path) not in (tmp_path / "packs" / "one.json").read_text()
    first = {path.name: path.read_bytes() for path in (tmp_path / "packs").iterdir()}
    packing.pack_source(files[::-1], chosen.sources[0], chosen, tmp_path / "packs", tmp_path / "work")
    assert {path.name: path.read_bytes() for path in (tmp_path / "packs").iterdir()} == first
