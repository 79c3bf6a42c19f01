"""Bits per byte: rolled windows score every token once, equal the harness, and the forgetting table knows noise."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tokenizers

from eval import perplexity
from eval.perplexity import Document
from ziya.errors import UserError


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 20, 31])
@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 4), (8, 1), (3, 2), (1, 1)])
def test_windows_score_every_token_once_with_all_context_that_fits(size: int, length: int, stride: int) -> None:
    tokens = list(range(100, 100 + size))
    found = list(perplexity.windows(tokens, 7, length, stride))
    assert [target for _, targets in found for target in targets] == tokens
    whole = [7, *tokens]
    for context, targets in found:
        last = whole.index(targets[-1])
        assert whole[last - len(targets) - len(context) + 1 : last + 1] == [*context, *targets]
        assert context and len(context) + len(targets) <= length + 1
        assert len(context) + len(targets) == min(last + 1, length + 1), "no context that fits is left out"
    if size > length:
        assert all(len(context) > length - stride for context, _ in found[1:])


def test_a_stride_beyond_the_window_would_skip_tokens() -> None:
    for stride in (0, 9):
        with pytest.raises(UserError, match="between 1 and the window's 8"):
            list(perplexity.windows([1, 2], 0, 8, stride))
    assert list(perplexity.windows([], 0, 8, 8)) == []


def test_bits_per_byte_by_hand() -> None:
    documents = [Document("ab", "en"), Document("中", "zh"), Document("文字", "zh")]
    score = perplexity.rolling(
        lambda parts: [-math.log(4) * len(targets) for _, targets in parts], lambda text: [ord(c) for c in text], 0, 1, batch=2
    )
    bits = perplexity.measure(score, documents)
    assert bits == pytest.approx([4, 2, 4])
    rows = perplexity.table(documents, {"m": bits}, None, 0)
    assert [(row["domain"], row["documents"], row["bytes"]) for row in rows] == [("(all)", 3, 11), ("en", 1, 2), ("zh", 2, 9)]
    assert [row["bits_per_byte"] for row in rows] == pytest.approx([10 / 11, 2.0, 6 / 9])
    assert all(row["change"] is None and row["verdict"] is None for row in rows)


def test_the_forgetting_table_tells_loss_from_noise() -> None:
    rng = np.random.default_rng(2)
    documents = [Document("x" * int(rng.integers(50, 400)), "新闻" if n % 2 else "code") for n in range(80)]
    base = [document.size * 1.5 + float(rng.normal(0, 20)) for document in documents]
    noise = [value + float(rng.normal(0, 4)) for value in base]
    moved = [value * (1.1 if d.domain == "code" else 0.9) + float(rng.normal(0, 4)) for value, d in zip(base, documents, strict=True)]
    rows = perplexity.table(documents, {"base": base, "noise": noise, "moved": moved}, "base", 1)
    verdicts = {(row["domain"], row["model"]): row["verdict"] for row in rows}
    assert verdicts["code", "moved"] == "forgotten" and verdicts["新闻", "moved"] == "learned"
    assert {verdicts[name, "noise"] for name in ("(all)", "code", "新闻")} == {"within noise"}
    for row in rows:
        assert row["low"] <= row["bits_per_byte"] <= row["high"]
        if row["model"] != "base":
            assert row["change"] == pytest.approx(row["bits_per_byte"] - row["base"])
            assert row["change_low"] <= row["change"] <= row["change_high"]
    one = perplexity.table(documents[:1], {"base": base[:1], "moved": moved[:1]}, "base", 1)
    assert one[1]["verdict"] == "within noise", "one document is no sample"


def test_documents_are_read_and_broken_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "held.jsonl.gz"
    rows = [{"text": "a", "domain": "web"}, {"text": "中", "lang": "zh"}, {"text": ""}, {"text": "c"}]
    path.write_bytes(gzip.compress("\n\n".join(json.dumps(row) for row in rows).encode()))
    assert perplexity.read_documents(path) == [Document("a", "web"), Document("中", "zh"), Document("c", "(all)")]
    assert len(perplexity.read_documents(path, limit=1)) == 1
    for content, message in ((b'{"content": 1}', "line 1: no text"), (b"{", "must be JSONL"), (b"", "holds no text")):
        (tmp_path / "bad.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            perplexity.read_documents(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match="no such file"):
        perplexity.read_documents(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="weights are damaged"):
        perplexity.measure(lambda texts: [float("nan")], [Document("x", "en")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaMA with a byte-level tokenizer, as a Hugging Face folder."""
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("model")
    small_tokenizers.tokenizer_json(path / "made.json")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "made.json"), eos_token="<|end_of_text|>")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


TEXTS = ["The river rises in the hills above the town. 这条河发源于镇北的山里，流过九十英里以后入海。" * 2, "春天", "a"]


def test_a_model_folder_is_scored_like_one_token_after_the_other(folder: Path) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = perplexity.folder_scorer(folder, stride=6, batch=3)(TEXTS)
    for text, value in zip(TEXTS, found, strict=True):
        ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        total = 0.0
        for context, targets in perplexity.windows(ids[1:], ids[0], 24, 6):
            for place in range(len(targets)):
                with torch.inference_mode():
                    logits = model(torch.tensor([[*context, *targets[:place]]])).logits[0, -1]
                total += float(torch.log_softmax(logits.double(), 0)[targets[place]])
        assert value == pytest.approx(total, abs=1e-3)


def test_disjoint_windows_equal_the_harness(folder: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=str(folder), device="cpu", batch_size=2, max_length=24, dtype="float32", add_bos_token=False)
    expected = perplexity.harness_scorer(harness)(TEXTS)
    assert perplexity.folder_scorer(folder, stride=24)(TEXTS) == pytest.approx(expected, abs=1e-3)


def test_a_folder_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="is no model folder"):
        perplexity.folder_scorer(tmp_path)
