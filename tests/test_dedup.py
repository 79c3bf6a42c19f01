"""Deduplication: equality with the plain-Python reference, accounting, winners are kept, independence of memory, tables
and chunks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle_dedup as oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_factory.batches import TextBatch
from data_factory.config import Dedup, Fuzzy
from data_factory.dedup import seen as seen_urls
from data_factory.dedup import simhash
from data_factory.dedup.keys import minhash as minhash_of
from data_factory.dedup.minhash import bands
from data_factory.dedup.order import by, external_sort, winners_first
from data_factory.dedup.outcome import Outcome, write_pairs
from data_factory.dedup.resolve import deduplicate
from data_factory.dedup.rows import COPIES, LOSER, SURVIVOR, RowFile
from data_factory.dedup.simhash import NODE, pairs, table_count, tables
from data_factory.documents import read_table

MASK = (1 << 64) - 1


def documents(seed: int, count: int, *, flips: int = 5, seeds: int = 6, permutations: int = 0) -> list[oracle.Document]:
    """Crowded documents: few URLs, few exact keys, fingerprints around a few centres, many equal tiers, lengths and
    dates.
    """
    generator = random.Random(seed)
    centres = [generator.getrandbits(64) for _ in range(seeds)]
    signatures = [[generator.getrandbits(32) for _ in range(permutations)] for _ in range(seeds)]
    places = generator.sample([(unit, row) for unit in range(4) for row in range(count)], count)
    result = []
    for place in places:
        value = generator.choice(centres)
        for _ in range(generator.randrange(flips + 1)):
            value ^= 1 << generator.randrange(64)
        signature = list(generator.choice(signatures)) if permutations else []
        for _ in range(generator.choice([0, 0, 1, 3, permutations // 3]) if permutations else 0):
            signature[generator.randrange(permutations)] = generator.getrandbits(32)
        result.append(
            oracle.Document(
                place,
                generator.getrandbits(128),
                tier=generator.randrange(2),
                chars=generator.choice([100, 200, 2**32 - 1]),
                date=generator.choice([-(2**63), 0, 1_700_000_000]),
                url=0 if generator.random() < 0.4 else generator.randrange(1, count + 2) << 60,
                exact=0 if generator.random() < 0.1 else generator.randrange(1, 2 * count + 2) << 50,
                simhash=value,
                shingles=generator.choice([0, 5, 40]),
                signature=tuple(signature),
            )
        )
    return result


def rows_of(items: list[oracle.Document]) -> np.ndarray[Any, Any]:
    out = np.zeros(len(items), SURVIVOR)
    for i, item in enumerate(items):
        halves = [half for value in (item.id, item.url, item.exact) for half in (value >> 64, value & MASK)]
        out[i] = (*item.place, item.tier, item.chars, item.date, *halves, item.simhash, item.shingles)
    return out


def chunked(items: list[oracle.Document], size: int) -> Callable[[], Iterator[Any]]:
    rows = rows_of(items)
    return lambda: (rows[i : i + size] for i in range(0, len(rows), size))


def as_result(outcome: Outcome, items: list[oracle.Document]) -> oracle.Result:
    """The tables of an outcome in the oracle's shape; checks that every unit's rows are sorted and its own."""
    result = oracle.Result()
    names = {1: "seen", 2: "url", 3: "exact", 4: "fuzzy"}
    for unit in range(5):
        losers, copies = outcome.for_unit(unit)
        assert losers.dtype == LOSER and copies.dtype == COPIES
        for table in (losers, copies):
            assert (table["unit"] == unit).all() and (np.diff(table["row"].astype(np.int64)) > 0).all()
        for row in losers.tolist():
            result.losers[row[0], row[1]] = (names[row[2]], row[3] << 64 | row[4], row[5])
        for row in copies.tolist():
            assert row[2] > 1
            result.copies[row[0], row[1]] = row[2]
    for item in items:
        if item.place not in result.losers:
            result.copies.setdefault(item.place, 1)
    for chunk in outcome.near_pairs(7):
        for a_hi, a_lo, b_hi, b_lo, value in chunk.tolist():
            pair = (a_hi << 64 | a_lo, b_hi << 64 | b_lo, value)
            assert pair not in result.pairs, "a pair was told twice"
            result.pairs.add(pair)
    return result


def rounded(result: oracle.Result) -> oracle.Result:
    """Values as float32, which the tables hold."""
    losers = {
        place: (stage, winner, float(np.float32(value))) for place, (stage, winner, value) in result.losers.items()
    }
    return oracle.Result(losers, result.copies, {(a, b, float(np.float32(value))) for a, b, value in result.pairs})


def check(items: list[oracle.Document], config: Dedup, work: Path, expected: oracle.Result, **how: Any) -> Outcome:
    outcome = deduplicate(chunked(items, how.pop("chunk", 9)), config, work, **how)
    found = as_result(outcome, items)
    assert found == rounded(expected)
    # Accounting, and every named winner is itself kept.
    lost = sum(outcome.losers.values())
    assert outcome.survivors == len(items) == outcome.kept + lost and lost == len(found.losers)
    assert sum(found.copies.values()) == outcome.survivors - outcome.losers["seen"]
    place = {item.id: item.place for item in items}
    for stage, winner, _ in found.losers.values():
        assert stage == "seen" or place[winner] in found.copies
    assert not (work / "temporary").exists()
    return outcome


ORDERS = st.permutations(["tier", "length", "date", "id"]).flatmap(
    lambda names: st.integers(1, 4).map(lambda n: names[:n])
)


@given(
    st.integers(0, 10**6), st.integers(0, 60), st.integers(1, 3), ORDERS, st.integers(0, 7), st.integers(0, 7),
    st.booleans(), st.booleans(),
    st.sampled_from([1, 7, 10**6]), st.sampled_from([3, 16, 10**6]), st.sampled_from([1, 2, 3]),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_outcome_equals_the_oracle(
    tmp_path: Path,
    seed: int,
    count: int,
    copies: int,
    order: Any,
    far: int,
    near: int,
    url: bool,
    exact: bool,
    chunk: int,
    memory: int,
    blocks: int,
) -> None:
    near, far = sorted((near, far))
    fuzzy = Fuzzy(distance=near, search_distance=far, min_shingles=5)
    config = Dedup(keep_copies=copies, order=order, url=url, exact=exact, fuzzy=fuzzy)
    items = documents(seed, count)
    check(
        items,
        config,
        tmp_path / "work",
        oracle.deduplicate(items, config),
        chunk=chunk,
        memory_rows=memory,
        blocks_in_front=blocks,
    )


def test_chains_end_in_a_kept_document(tmp_path: Path) -> None:
    """a loses by URL to b, b by exact key to c, c (and its equal, d) by fingerprint to e: all name e."""

    def document(row: int, identity: int, chars: int, url: int, exact: int, sketch: int) -> oracle.Document:
        return oracle.Document((0, row), identity, 0, chars, 0, url, exact, sketch, 40)

    items = [
        document(0, 9, 10, 7, 1, 0),
        document(1, 8, 20, 7, 2, 0),
        document(2, 7, 30, 0, 2, 1),
        document(3, 6, 29, 0, 3, 1),
        document(4, 5, 99, 0, 4, 3),
    ]
    outcome = deduplicate(chunked(items, 2), Dedup(), tmp_path / "work", memory_rows=2)
    losers, copies = outcome.for_unit(0)
    assert losers.tolist() == [(0, 0, 2, 0, 5, 0.0), (0, 1, 3, 0, 5, 0.0), (0, 2, 4, 0, 5, 1.0), (0, 3, 4, 0, 5, 1.0)]
    assert copies.tolist() == [(0, 4, 5)]
    assert Outcome.load(tmp_path / "work") == outcome
    assert as_result(outcome, items) == rounded(oracle.deduplicate(items, Dedup()))


def test_bytes_do_not_depend_on_memory_tables_or_chunks(tmp_path: Path) -> None:
    items = documents(5, 160, seeds=30)
    config = Dedup(keep_copies=2, fuzzy=Fuzzy(min_shingles=1, search_distance=4))
    outputs = set()
    for number, (chunk, memory, blocks) in enumerate(
        [(400, 10**6, None), (1, 20, 1), (13, 70, 2), (400, 33, 3), (90, 159, 4)]
    ):
        work = tmp_path / str(number)
        deduplicate(chunked(items, chunk), config, work, memory_rows=memory, blocks_in_front=blocks)
        outputs.add(tuple((path.name, path.read_bytes()) for path in sorted(work.iterdir())))
        random.Random(number).shuffle(items)
    assert len(outputs) == 1


def test_short_texts_compete_by_exact_key_only(tmp_path: Path) -> None:
    """Trap: texts shorter than one window share a fingerprint; they must not be near duplicates of each other."""
    items = [oracle.Document((0, row), row + 1, 0, 10, 0, 0, row + 1, 0, 0) for row in range(50)]
    for minimum in (1, 20):
        outcome = deduplicate(chunked(items, 50), Dedup(fuzzy=Fuzzy(min_shingles=minimum)), tmp_path / "work")
        assert outcome.kept == 50 and outcome.pairs == 0


def test_earlier_runs_win_and_leave_the_competition(tmp_path: Path) -> None:
    """Trap: a run must never see its own filter; here the filter holds URLs of an earlier run only."""
    items = documents(6, 120)
    old = sorted({item.url for item in items if item.url})[::3]
    path = tmp_path / "urls.bloom"
    seen_urls.write(
        path,
        [(np.array([u >> 64 for u in old], np.uint64), np.array([u & MASK for u in old], np.uint64))],
        len(old),
        1e-9,
    )
    other = tmp_path / "other.bloom"
    seen_urls.write(other, [], 0, 1e-9)
    config = Dedup(fuzzy=Fuzzy(min_shingles=1))
    expected = oracle.deduplicate(items, config, seen=set(old))
    expected.losers = {
        place: (stage, 1 if stage == "seen" else winner, value)
        for place, (stage, winner, value) in expected.losers.items()
    }
    outcome = check_seen(items, config, tmp_path / "work", expected, seen_urls.SeenUrls.load([other, path]))
    assert outcome.losers["seen"] > 0 and 0 < outcome.expected_false_drops < 1e-5


def check_seen(
    items: list[oracle.Document], config: Dedup, work: Path, expected: oracle.Result, filters: seen_urls.SeenUrls
) -> Outcome:
    outcome = deduplicate(chunked(items, 11), config, work, seen=filters, memory_rows=40)
    found = as_result(outcome, items)
    assert found == rounded(expected)
    assert sum(found.copies.values()) == outcome.survivors - outcome.losers["seen"]
    return outcome


def test_repeated_ids_and_no_survivors(tmp_path: Path) -> None:
    items = documents(7, 20)
    twin = oracle.Document((9, 9), items[0].id, *list(vars(items[0]).values())[2:])
    with pytest.raises(ValueError, match=f"{items[0].id:032x}"):
        deduplicate(chunked([*items, twin], 4), Dedup(), tmp_path / "work")
    outcome = deduplicate(lambda: iter(()), Dedup(), tmp_path / "work")
    assert (outcome.survivors, outcome.kept, outcome.pairs) == (0, 0, 0) and outcome.losers == {
        "seen": 0,
        "url": 0,
        "exact": 0,
        "fuzzy": 0,
    }
    assert len(outcome.for_unit(0)[0]) == 0


def test_a_finished_folder_is_replaced(tmp_path: Path) -> None:
    items = documents(8, 60)
    deduplicate(chunked(items, 60), Dedup(), tmp_path / "work")
    check(items[:30], Dedup(), tmp_path / "work", oracle.deduplicate(items[:30], Dedup()))


@pytest.mark.parametrize("distance", range(8))
@pytest.mark.parametrize("m", [1, 2])
def test_all_pairs_are_found_once(tmp_path: Path, distance: int, m: int) -> None:
    generator = random.Random(10 * distance + m)
    values = [generator.getrandbits(64) for _ in range(25)]
    for _ in range(150):
        value = generator.choice(values)
        for _ in range(generator.randrange(distance + 2)):
            value ^= 1 << generator.randrange(64)
        values.append(value)
    values = list(dict.fromkeys([*values, 0, MASK, 1 << 63, 1]))
    nodes = np.array([(value, rank) for rank, value in enumerate(values)], NODE)
    expected = sorted(
        (a, b, (values[a] ^ values[b]).bit_count())
        for b in range(len(values))
        for a in range(b)
        if (values[a] ^ values[b]).bit_count() <= distance
    )
    for memory in (60, 10**6):
        found = [
            pair
            for chunk in pairs(
                lambda: iter([nodes[:60], nodes[60:]]), len(nodes), distance, tmp_path / "sort", memory, m
            )
            for pair in chunk.tolist()
        ]
        assert sorted(found) == expected


def test_tables_are_chosen_by_row_count() -> None:
    for rows, m, count, bits in ((10**6, 1, 4, 16), (10**7, 2, 10, 25), (10**8, 2, 10, 25), (10**10, 3, 20, 31)):
        moves, masks = tables(3, table_count(rows, 3))
        assert table_count(rows, 3) == m and len(moves) == count
        assert min(int(mask).bit_count() for mask in masks) >= bits
    for distance in range(8):
        for m in (1, 2, 3, 4):
            moves, masks = tables(distance, m)
            assert (moves[:, :, 1].sum(axis=1) == 64).all() and len(set(masks.tolist())) == len(masks)


def test_external_sort_is_stable_and_bounded(tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    for skew in (1, 3, 10**6):
        rows = np.zeros(5000, np.dtype([("key", "<u8"), ("place", "<i8")]))
        rows["key"], rows["place"] = generator.integers(0, skew, 5000), np.arange(5000)
        expected = rows[np.argsort(rows["key"], kind="stable")]
        for memory in (10**6, 1000, 300):
            chunks = list(
                external_sort((rows[i : i + 77] for i in range(0, 5000, 77)), by("key"), tmp_path / "sort", memory)
            )
            assert (np.concatenate(chunks) == expected).all()
            assert max(map(len, chunks)) <= memory + 5000 // memory + 1
        assert not (tmp_path / "sort").exists()


def test_total_order_breaks_all_ties() -> None:
    items = documents(10, 200)
    for order in (["tier", "length", "date", "id"], ["date"], ["id"], ["length", "tier"]):
        rows = rows_of(items)
        columns = winners_first(order)(rows)
        found = [int(rows["id_hi"][i]) << 64 | int(rows["id_lo"][i]) for i in np.lexsort(columns[::-1])]
        assert found == [item.id for item in sorted(items, key=lambda item: oracle.winners_first(item, order))]


def test_row_files_return_rows_by_position(tmp_path: Path) -> None:
    for width in (1, 3):
        file = RowFile(tmp_path / "rows", "<u4", width)
        table = np.arange(100_000 * width, dtype=np.uint32).reshape((100_000, width) if width > 1 else 100_000)
        assert file.write(iter([table[:10], table[10:]])) == 100_000 == len(file)
        at = np.random.default_rng(1).integers(0, 100_000, 500)
        assert (file.take(at) == table[at]).all() and len(file.take(at[:0])) == 0
        assert (np.concatenate(list(file.chunks(30_000))) == table).all()


@pytest.mark.parametrize("copies", [1, 2])
def test_minhash_equals_the_oracle(tmp_path: Path, copies: int) -> None:
    fuzzy = Fuzzy(method="minhash", permutations=16, similarity=0.7, min_shingles=5)
    config = Dedup(keep_copies=copies, fuzzy=fuzzy)
    items = documents(11, 150, permutations=16)
    signatures = {unit: np.zeros((150, 16), np.uint32) for unit in range(4)}
    for item in items:
        signatures[item.place[0]][item.place[1]] = item.signature
    expected = oracle.deduplicate(items, config, bands=bands(0.7, 16))
    assert {stage for stage, _, _ in expected.losers.values()} == {"url", "exact", "fuzzy"}
    outputs = set()
    for memory in (40, 10**6):
        outcome = check(
            items, config, tmp_path / "work", expected, signatures=signatures.__getitem__, memory_rows=memory
        )
        outputs.add(tuple((path.name, path.read_bytes()) for path in sorted(outcome.work.iterdir())))
    assert len(outputs) == 1
    with pytest.raises(ValueError, match="signatures"):
        deduplicate(chunked(items, 50), config, tmp_path / "work")


@pytest.mark.parametrize("method", ["simhash", "minhash"])
def test_near_texts_in_both_languages_merge_and_others_stay(tmp_path: Path, method: Any) -> None:
    generator = random.Random(12)
    zh = ["".join(chr(0x4E00 + generator.randrange(2000)) for _ in range(1500)) for _ in range(5)]
    en = [" ".join(f"w{generator.randrange(5000)}" for _ in range(800)) for _ in range(5)]
    texts = [*zh, zh[2] + "转载请注明", zh[4][:-1], *en, en[1] + " the end", "short text", "short text too"]
    langs = np.array([1] * 7 + [0] * 8, np.uint8)
    fuzzy = Fuzzy(method=method, permutations=64)
    batch = TextBatch.from_strings(texts)
    values, counts = simhash_of(batch, langs, fuzzy)
    items = [
        oracle.Document((0, i), i + 1, 0, len(texts[i]), 0, 0, i + 1, values[i], counts[i]) for i in range(len(texts))
    ]
    signatures = minhash_of(batch, langs, fuzzy)
    outcome = deduplicate(chunked(items, 50), Dedup(fuzzy=fuzzy), tmp_path / "work", signatures=lambda unit: signatures)
    losers, _ = outcome.for_unit(0)
    assert [(row["row"], int(row["winner_lo"]) - 1) for row in losers] == [(2, 5), (6, 4), (8, 12)]


def simhash_of(batch: TextBatch, langs: Any, fuzzy: Fuzzy) -> tuple[list[int], list[int]]:
    from data_factory.dedup.keys import simhash as fingerprints

    values, counts = fingerprints(batch, langs, fuzzy)
    return values.tolist(), counts.tolist()


def test_one_crowded_bucket_is_emitted_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More pairs in one bucket than the kernel's output buffer holds."""
    values = [i ^ j << 32 for i in (0, 1, 2) for j in range(8)]
    nodes = np.array([(value, rank) for rank, value in enumerate(values)], NODE)
    whole = [
        pair for chunk in pairs(lambda: iter([nodes]), len(nodes), 3, tmp_path, 10**6, 1) for pair in chunk.tolist()
    ]
    chunks = list(simhash.pairs(lambda: iter([nodes]), len(nodes), 3, tmp_path, 5, 1))
    assert max(map(len, chunks)) <= 5 and len(whole) > 100
    assert sorted(pair for chunk in chunks for pair in chunk.tolist()) == sorted(whole)


def test_pairs_are_written_by_id(tmp_path: Path) -> None:
    items = documents(13, 60)
    config = Dedup(fuzzy=Fuzzy(min_shingles=1))
    outcome = deduplicate(chunked(items, 60), config, tmp_path / "work")
    write_pairs(outcome, tmp_path / "pairs.parquet")
    rows = read_table(tmp_path / "pairs.parquet").to_pylist()
    expected = oracle.deduplicate(items, config).pairs
    assert len(rows) == outcome.pairs == len(expected) > 0
    assert {(int(row["id_a"], 16), int(row["id_b"], 16), row["distance"]) for row in rows} == expected
    assert {len(row["id_a"]) for row in rows} == {32}
    ranked = sorted(items, key=lambda item: oracle.winners_first(item, config.order))
    ranks = {item.id: i for i, item in enumerate(ranked)}
    order = [(ranks[int(row["id_b"], 16)], ranks[int(row["id_a"], 16)]) for row in rows]
    assert order == sorted(order)
    write_pairs(outcome, tmp_path / "pairs.parquet", is_similarity=True)
    assert read_table(tmp_path / "pairs.parquet")["distance"].to_pylist() == [1 - row["distance"] for row in rows]
