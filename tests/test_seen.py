"""The Bloom filter of earlier runs' URLs: pybloom-live's own bits, its error rate, its file, and refusals."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pybloom_live
import pytest

from data_factory.dedup.seen import MAGIC, SeenUrls, write
from data_factory.dedup.url_keys import url_keys
from ziya.errors import UserError

Keys = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


def random_keys(seed: int, count: int) -> Keys:
    generator = np.random.default_rng(seed)
    return generator.integers(1, 2**64, count, np.uint64), generator.integers(0, 2**64, count, np.uint64)


def texts(keys: Keys) -> list[str]:
    return [f"{high:016x}{low:016x}" for high, low in zip(keys[0].tolist(), keys[1].tolist(), strict=True)]


# Hash functions of pybloom-live: XXH128 (few slices), SHA-1, SHA-256, SHA-384, SHA-512; 16- and 32-bit words.
@pytest.mark.parametrize(
    ("count", "error_rate"),
    [
        (1, 1e-6),
        (300, 0.4),
        (300, 1e-2),
        (300, 1e-3),
        (300, 1e-5),
        (3000, 1e-6),
        (60_000, 1e-2),
        (60_000, 1e-6),
        (500, 1e-15),
    ],
)
def test_the_bits_and_answers_are_those_of_pybloom_live(tmp_path: Path, count: int, error_rate: float) -> None:
    keys = random_keys(count, min(count, 2000))
    repeated = (np.resize(keys[0], count), np.resize(keys[1], count))
    path = tmp_path / "urls.bloom"
    write(path, [repeated], count, error_rate)
    theirs = pybloom_live.BloomFilter(count, error_rate)
    for text in texts(keys):
        theirs.add(text, skip_check=True)
    theirs.count = count
    expected = io.BytesIO()
    theirs.tofile(expected)
    assert path.read_bytes()[len(MAGIC) + 32 :] == expected.getvalue()
    asked = random_keys(7, 500)
    both = (np.concatenate([keys[0], asked[0]]), np.concatenate([keys[1], asked[1]]))
    answers = SeenUrls.load([path]).contains(*both)
    assert answers[: len(keys[0])].all()
    assert answers.tolist() == [text in theirs for text in texts(both)]


def test_pybloom_live_reads_the_file(tmp_path: Path) -> None:
    keys = random_keys(1, 1000)
    write(tmp_path / "urls.bloom", [keys], 1000, 1e-4)
    with (tmp_path / "urls.bloom").open("rb") as file:
        file.seek(len(MAGIC) + 32)
        theirs = pybloom_live.BloomFilter.fromfile(io.BytesIO(file.read()))
    assert len(theirs) == 1000 and all(text in theirs for text in texts(keys))


@pytest.mark.parametrize("count", [1023, 1024, 4096, 10_000])
def test_false_positives_stay_near_the_error_rate(tmp_path: Path, count: int) -> None:
    """Trap: a slot computed by `hash AND size` leaves a filter of a power-of-two size with a handful of slots."""
    for error_rate in (0.1, 0.01):
        write(tmp_path / "urls.bloom", [random_keys(1, count)], count, error_rate)
        filters = SeenUrls.load([tmp_path / "urls.bloom"])
        asked = 30_000
        wrong = int(filters.contains(*random_keys(2, asked)).sum())
        expected = filters.expected_false_drops(asked)
        assert 0.5 * error_rate * asked < expected < 1.1 * error_rate * asked
        assert abs(wrong - expected) < 5 * expected**0.5 + 0.1 * expected


def test_expected_false_drops_of_several_filters(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [random_keys(ord(name), 500)], 500, 0.2)
    both = SeenUrls.load([tmp_path / "a", tmp_path / "b"])
    wrong = int(both.contains(*random_keys(3, 20_000)).sum())
    assert abs(wrong - both.expected_false_drops(20_000)) < 0.05 * wrong
    assert SeenUrls.load([]).expected_false_drops(100) == 0
    write(tmp_path / "empty", [], 0, 1e-6)
    empty = SeenUrls.load([tmp_path / "empty"])
    assert empty.expected_false_drops(10**9) == 0 and not empty.contains(*random_keys(1, 100)).any()


def test_order_and_batches_do_not_change_the_bytes(tmp_path: Path) -> None:
    high, low = random_keys(4, 5000)
    order = np.random.default_rng(5).permutation(5000)
    write(tmp_path / "one", [(high, low)], 5000, 1e-6)
    write(tmp_path / "two", ((high[part], low[part]) for part in np.array_split(order, 7)), 5000, 1e-6)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_bytes_and_answers_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    """Trap: a filter over salted hash() is useless in the next process."""
    program = (
        "import sys; from pathlib import Path; from data_factory.dedup.seen import *\n"
        "from data_factory.dedup.url_keys import url_keys\n"
        "k = url_keys(['http://a.b/%d' % i for i in range(300)]); write(Path(sys.argv[1]), [k], 300, 1e-6)"
    )
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / seed)], env=environment, check=True)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    urls = [f"https://www.a.b/{i}/" for i in range(300)]
    random.Random(1).shuffle(urls)
    assert SeenUrls.load([tmp_path / "0"]).contains(*url_keys(urls)).all()


def test_no_url_is_never_seen_and_the_first_filter_is_named(tmp_path: Path) -> None:
    one, two = random_keys(6, 50), random_keys(7, 50)
    zero = (np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    write(tmp_path / "one", [one, zero], 51, 1e-9)
    write(tmp_path / "two", [two, one], 100, 1e-9)
    asked = tuple(np.concatenate(parts) for parts in zip(one, two, random_keys(8, 50), zero, strict=True))
    which = SeenUrls.load([tmp_path / "one", tmp_path / "two"]).which(*asked)  # type: ignore[arg-type]
    assert which.tolist() == [0] * 50 + [1] * 50 + [-1] * 51


def test_a_filter_must_not_fill_up_silently(tmp_path: Path) -> None:
    for count in (99, 101):
        with pytest.raises(ValueError, match="100 keys were given"):
            write(tmp_path / "urls.bloom", [random_keys(1, 100)], count, 1e-6)
    assert not list(tmp_path.iterdir())


def test_missing_foreign_and_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "urls.bloom"
    with pytest.raises(UserError, match=r"urls.bloom cannot be read .*dedup.seen_urls"):
        SeenUrls.load([path])
    for content in (b"", b"something else", b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"urls.bloom is not a filter"):
            SeenUrls.load([path])
    write(path, [random_keys(1, 100)], 100, 1e-3)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole[:50] + b"\xff" + whole[51:], whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"urls.bloom is damaged"):
            SeenUrls.load([path])
