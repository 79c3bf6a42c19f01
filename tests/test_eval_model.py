"""The evaluation model against the harness's own: same log-probabilities, argmax and greedy texts, fewer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_models import harness_model, letter_requests, prefix_model, request, write_model
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CHINESE, ENGLISH

from eval.prefixes import GROUP_COST, common, partition


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def harness(folder: Path) -> Any:
    return harness_model(folder)


def assert_same(ours: list[Any], theirs: list[Any], tolerance: float = 1e-4) -> None:
    assert len(ours) == len(theirs)
    for (value, greedy), (other, top) in zip(ours, theirs, strict=True):
        assert value == pytest.approx(other, abs=tolerance)
        assert greedy == top


def mixed_requests() -> list[Any]:
    """Two subjects of letters, continuations of several tokens, an empty context, trailing spaces, one context inside another."""
    words = ENGLISH.split()
    found = letter_requests(12, task="one") + letter_requests(5, ("A", "B", "C", "D"), task="two")
    for context in ("", "The river", "The river rises ", CHINESE[:40], " ".join(words[:30])):
        for rest in (" in the hills above", "河水很冷", " A", " the town and reaches the sea after ninety miles"):
            found.append(request("loglikelihood", context, rest, task="three"))
    return found


def test_log_probabilities_equal_the_harness(folder: Path, harness: Any) -> None:
    requests = mixed_requests()
    theirs = harness.loglikelihood(requests, disable_tqdm=True)
    assert len({round(value, 3) for value, _ in theirs}) > 60, "the questions must have different answers"
    for options in ({}, {"batch_tokens": 150}, {"share": False}):
        assert_same(prefix_model(folder, **options).loglikelihood(requests), theirs)
    best = [max(range(4), key=lambda letter: theirs[4 * item + letter][0]) for item in range(17)]
    ours = prefix_model(folder).loglikelihood(requests)
    assert best == [max(range(4), key=lambda letter: ours[4 * item + letter][0]) for item in range(17)]
    assert len(set(best)) > 1


def test_a_greedy_continuation_is_seen_as_such(folder: Path, harness: Any) -> None:
    model = prefix_model(folder)
    contexts = [requested.args[0] for requested in letter_requests(6)[::4]]
    texts = model.generate_until([request("generate_until", text, {"until": [], "max_gen_toks": 1}) for text in contexts])
    requests = [request("loglikelihood", *pair) for pair in zip(contexts, texts, strict=True) if pair[1].strip()]
    assert_same(model.loglikelihood(requests), harness.loglikelihood(requests, disable_tqdm=True))
    assert any(greedy for _, greedy in model.loglikelihood(requests))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": 24}),  # cannot share: runs every row whole
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024}),
    ],
)
def test_other_models(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    folder = write_model(tmp_path, kind=kind, **changes)
    requests = letter_requests(6)
    theirs = harness_model(folder)
    assert_same(prefix_model(folder).loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True))
    prompts = [
        request("generate_until", requested.args[0], {"until": ["zzz"], "max_gen_toks": 9}) for requested in requests[::4]
    ]
    assert prefix_model(folder).generate_until(prompts) == theirs.generate_until(prompts, disable_tqdm=True)


def test_bf16_keeps_to_fp32_within_its_rounding(tmp_path: Path) -> None:
    import torch

    folder = write_model(tmp_path, dtype=torch.bfloat16, initializer_range=0.05)
    requests = letter_requests(8)
    exact = prefix_model(folder).loglikelihood(requests)
    shared = prefix_model(folder, dtype=torch.bfloat16).loglikelihood(requests)
    plain = prefix_model(folder, dtype=torch.bfloat16, share=False).loglikelihood(requests)
    for (one, _), (two, _), (three, _) in zip(exact, shared, plain, strict=True):
        assert one == pytest.approx(two, abs=0.1)
        assert two == pytest.approx(three, abs=0.1)


def test_shared_prefixes_cost_a_fraction(folder: Path) -> None:
    requests = letter_requests(40)
    shared, plain = prefix_model(folder), prefix_model(folder, share=False)
    shared.loglikelihood(requests), plain.loglikelihood(requests)
    assert plain.processed > 4 * shared.processed
    pairs = [shared.pair(*requested.args) for requested in requests]
    rows = {(*context, *continuation[:-1]) for context, continuation in pairs}
    assert len(rows) < len(requests), "letters of one question share a row"
    first = min(common(list(a), list(b)) for a in rows for b in rows)
    assert shared.processed <= 1.25 * (first + sum(len(row) - first for row in rows)), "one row a question, one prefix"


def test_rolling_equals_the_harness(tmp_path: Path) -> None:
    folder = write_model(tmp_path, max_position_embeddings=48)
    texts = [ENGLISH, CHINESE, "河", ENGLISH[:30] + CHINESE[:9]]
    requests = [request("loglikelihood_rolling", text) for text in texts]
    ours = prefix_model(folder).loglikelihood_rolling(requests)
    harness = harness_model(folder, add_bos_token=False)  # else it scores the BOS token too, as if it were the text's
    assert ours == pytest.approx(harness.loglikelihood_rolling(requests, disable_tqdm=True), abs=2e-3)
    assert ours[2] > harness_model(folder).loglikelihood_rolling(requests, disable_tqdm=True)[2]


def generation_requests() -> list[Any]:
    contexts = [requested.args[0] for requested in letter_requests(14)[::4]] + ["", "The", CHINESE[:60]]
    return [request("generate_until", text or "河", {"until": stops, "max_gen_toks": most}, task=name)
            for text in contexts for stops, most, name in ((["e", "。"], 24, "one"), (["zzz"], 17, "two"))]  # fmt: skip


def test_greedy_texts_equal_the_harness(folder: Path, harness: Any) -> None:
    requests = generation_requests()
    theirs = harness.generate_until(requests, disable_tqdm=True)
    assert len(set(theirs)) > 10
    assert any("e" in text for text in theirs), "the second kind of request has other stop strings"
    for options in ({}, {"batch_tokens": 200}, {"share": False}):
        assert prefix_model(folder, **options).generate_until(requests) == theirs


def test_generation_ends_at_the_end_of_the_text(folder: Path) -> None:
    model = prefix_model(folder)
    requests = generation_requests()[1::2]
    prompts = [model.tok_encode(requested.args[0]) for requested in requests]
    free = model.forward.greedy(prompts, 17, lambda tokens: False)
    assert {len(tokens) for tokens in free} == {17}
    end = free[0][3]  # what the model itself says becomes the end
    ended = prefix_model(folder, end_ids=[end])
    ends = {end, model.eot_token_id}
    cuts = [next((place for place, token in enumerate(tokens) if token in ends), 16) for tokens in free]
    expected = [tokens[: cut + 1] for tokens, cut in zip(free, cuts, strict=True)]
    assert ended.generate_until(requests) == [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected]
    assert ended.processed < model.processed


def test_too_long_contexts_are_cut_as_in_the_harness(tmp_path: Path) -> None:
    folder = write_model(tmp_path, max_position_embeddings=64)
    requests = letter_requests(6)
    assert_same(prefix_model(folder).loglikelihood(requests), harness_model(folder).loglikelihood(requests, disable_tqdm=True))


def test_a_batch_too_large_for_the_device_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    requests = mixed_requests()
    expected = prefix_model(folder).loglikelihood(requests)
    model = prefix_model(folder)
    run, sizes = model.forward._run, []

    def small(ids: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(ids))
        if len(ids) > 3:
            raise torch.OutOfMemoryError("no")
        return run(ids, *arguments, **options)

    monkeypatch.setattr(model.forward, "_run", small)
    assert_same(model.loglikelihood(requests), expected, 1e-5)
    assert max(sizes) > 3


def test_sampling_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="greedy"):
        prefix_model(folder).generate_until([request("generate_until", "a", {"do_sample": True, "temperature": 1.0})])


def cost(rows: list[list[int]], groups: list[Any]) -> int:
    """Tokens that a partition runs, a group's overhead included."""
    return sum(
        group.prefix + GROUP_COST * bool(group.prefix) + sum(len(rows[n]) - group.prefix for n in group.rows)
        for group in groups
    )


def test_partition_of_a_subject_with_two_prefixes() -> None:
    first, second = list(range(100)), list(range(50, 250))
    rows = [first + [1000 + i] * (i + 1) for i in range(5)] + [[*second, 2000 + i] for i in range(4)] + [[7], [8, 9]]
    groups = partition(rows, [len(row) - 1 for row in rows])
    assert [(group.prefix, sorted(group.rows)) for group in groups] == [
        (100, [0, 1, 2, 3, 4]), (200, [5, 6, 7, 8]), (0, [9, 10]),
    ]  # fmt: skip


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=7), st.data())
def test_partition_is_whole_lawful_and_the_cheapest(short: list[list[int]], data: st.DataObject) -> None:
    rows = [[token for token in row for _ in range(40)] for row in short]  # long enough to be worth a group
    limits = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    groups = partition(rows, limits)
    assert sorted(number for group in groups for number in group.rows) == list(range(len(rows)))
    for group in groups:
        for number in group.rows:
            assert group.prefix <= limits[number]
            assert rows[number][: group.prefix] == rows[group.rows[0]][: group.prefix]
    order = sorted(range(len(rows)), key=lambda number: rows[number])

    def cheapest(begin: int) -> int:
        """By brute force over all cuts of the sorted rows."""
        if begin == len(order):
            return 0
        options = []
        for end in range(begin + 1, len(order) + 1):
            some = order[begin:end]
            prefix = min(min(limits[n] for n in some), *(common(rows[some[0]], rows[n]) for n in some), 10**9)
            total = sum(len(rows[n]) for n in some)
            options.append(min(total, total - (len(some) - 1) * prefix + GROUP_COST) + cheapest(end))
        return min(options)

    assert cost(rows, groups) == cheapest(0)
