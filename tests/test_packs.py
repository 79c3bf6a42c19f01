from __future__ import annotations

import struct
import warnings
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya.errors import UserError
from ziya.packs import PackReader, bin_path, idx_path, pack_writer, token_dtype

LENGTH = 8


def write(prefix: Path, samples: list[list[list[int]]], dtype: str = "uint16", at_once: int = 2) -> None:
    with pack_writer(prefix, LENGTH, dtype) as writer:
        for first in range(0, len(samples), at_once):
            some = samples[first : first + at_once]
            tokens = np.array([token for sample in some for piece in sample for token in piece], np.int32)
            sizes = np.array([len(piece) for sample in some for piece in sample])
            writer.add(tokens, sizes, np.array([len(sample) for sample in some]))


def random_samples(seed: int, count: int, largest: int) -> list[list[list[int]]]:
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        tokens = generator.integers(0, largest, LENGTH).tolist()
        borders = sorted({0, LENGTH, *generator.integers(1, LENGTH, 2).tolist()})
        samples.append([tokens[a:b] for a, b in pairwise(borders)])
    return samples


@given(seed=st.integers(0, 10**6), count=st.integers(0, 7), at_once=st.integers(1, 4), wide=st.booleans())
@settings(max_examples=30, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, at_once: int, wide: bool) -> None:
    samples = random_samples(seed, count, 100_000 if wide else 65_536)
    prefix = tmp_path_factory.mktemp("pack") / "one"
    write(prefix, samples, "int32" if wide else "uint16", at_once)
    reader = PackReader(prefix)
    assert len(reader) == count
    assert [reader.sample(i).tolist() for i in range(count)] == [[*chain(*sample)] for sample in samples]
    assert [reader.piece_lengths(i).tolist() for i in range(count)] == [[len(p) for p in s] for s in samples]
    pieces = [piece for sample in samples for piece in sample]
    assert [reader.sequence(i).tolist() for i in range(reader.sequences)] == pieces


def test_layout_byte_by_byte(tmp_path: Path) -> None:
    write(tmp_path / "one", [[[1, 2, 3], [4, 5, 6, 7, 8]], [[9] * 8]])
    assert bin_path(tmp_path / "one").read_bytes() == struct.pack("<16H", 1, 2, 3, 4, 5, 6, 7, 8, *[9] * 8)
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 3)
    expected += struct.pack("<3i", 3, 5, 8) + struct.pack("<3q", 0, 6, 16) + struct.pack("<3q", 0, 2, 3)
    assert idx_path(tmp_path / "one").read_bytes() == expected


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_reads_the_same(tmp_path: Path, dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        indexed = pytest.importorskip(
            "megatron.core.datasets.indexed_dataset", reason="megatron-core and torch are not installed"
        )
    samples = random_samples(3, 5, 60_000)
    write(tmp_path / "one", samples, dtype)
    theirs, ours = indexed.IndexedDataset(str(tmp_path / "one")), PackReader(tmp_path / "one")
    pieces = [piece for sample in samples for piece in sample]
    assert len(theirs) == len(pieces) == ours.sequences
    assert [theirs[i].tolist() for i in range(len(theirs))] == pieces
    assert theirs.document_indices.tolist() == ours.borders.tolist()
    assert theirs.sequence_lengths.tolist() == ours.sizes.tolist()
    assert theirs[0].dtype == np.dtype(dtype)


def test_token_types() -> None:
    assert [token_dtype(n).name for n in (32_000, 65_499, 65_500, 128_256)] == ["uint16", "uint16", "int32", "int32"]


@pytest.mark.parametrize(("tokens", "sizes", "pieces"), [
    ([1] * 7, [7], [1]),  # not a whole sample
    ([1] * 8, [3, 4], [2]),  # pieces do not add up
    ([1] * 16, [3, 13], [1, 1]),  # borders between samples
    ([1] * 8, [8, 0], [2]),  # an empty piece
    ([70_000] * 8, [8], [1]),  # does not fit uint16
    ([-1] * 8, [8], [1]),
])
def test_writer_refuses_what_is_no_sample(
    tmp_path: Path, tokens: list[int], sizes: list[int], pieces: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"sample|fit"), pack_writer(tmp_path / "one", LENGTH, "uint16") as writer:
        writer.add(np.array(tokens), np.array(sizes), np.array(pieces))
    assert list(tmp_path.iterdir()) == []  # and leaves nothing behind


def test_a_failed_rewrite_keeps_the_old_pack(tmp_path: Path) -> None:
    write(tmp_path / "one", [[[1] * 8]])
    with pytest.raises(RuntimeError), pack_writer(tmp_path / "one", LENGTH, "uint16") as writer:
        writer.add(np.full(8, 2), np.array([8]), np.array([1]))
        raise RuntimeError
    assert PackReader(tmp_path / "one").sample(0).tolist() == [1] * 8
    write(tmp_path / "one", [[[2] * 8]])
    assert PackReader(tmp_path / "one").sample(0).tolist() == [2] * 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.bin", "one.idx"]


def test_broken_packs_are_refused_by_name(tmp_path: Path) -> None:
    prefix = tmp_path / "one"
    with pytest.raises(UserError, match=r"one\.bin does not exist"):
        PackReader(prefix)
    write(prefix, [[[1] * 8]])
    index, tokens = idx_path(prefix).read_bytes(), bin_path(prefix).read_bytes()
    for broken, message in [
        (b"", "not the index"),
        (b"X" + index[1:], "not the index"),
        (index[:9] + struct.pack("<Q", 2) + index[17:], "version 2"),
        (index[:17] + b"\x63" + index[18:], "token type 99"),
        (index[:-1], "cut short"),
    ]:
        idx_path(prefix).write_bytes(broken)
        with pytest.raises(UserError, match=message):
            PackReader(prefix)
    idx_path(prefix).write_bytes(index)
    bin_path(prefix).write_bytes(tokens[:-2])
    with pytest.raises(UserError, match="14 bytes and its index tells of 16"):
        PackReader(prefix)


def test_samples_have_bounds(tmp_path: Path) -> None:
    write(tmp_path / "one", [[[1] * 8]])
    reader = PackReader(tmp_path / "one")
    for i in (-1, 1):
        with pytest.raises(IndexError):
            reader.sample(i)
        with pytest.raises(IndexError):
            reader.piece_lengths(i)
