"""Bits per byte: rolled windows score every token once, equal the harness, and the forgetting table knows noise."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import eval_models
import numpy as np
import pytest
import small_tokenizers

from eval import perplexity
from eval.perplexity import Document
from ziya.errors import UserError


def test_bits_per_byte_by_hand() -> None:
    documents = [Document("ab", "en"), Document("中", "zh"), Document("文字", "zh")]
    bits = perplexity.measure(lambda texts: [-math.log(4) * len(text) for text in texts], documents)
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
    good = b'{"text": "a"}\n'
    packed = gzip.compress(str(random.Random(0).getrandbits(12000)).encode())
    for name, content, message in (
        ("bad.jsonl", b'{"content": 1}', "line 1: no text"),
        ("bad.jsonl", good + b"{", "line 2: not valid JSON"),
        ("bad.jsonl", good + b'{"text": "\xff"}', "line 2: not valid JSON .*UTF-8"),
        ("bad.jsonl", b"", "holds no text"),
        ("bad.jsonl.gz", good, "is not a whole gzip file"),
        ("bad.jsonl.gz", gzip.compress(good)[:-9], "is not a whole gzip file"),
        ("bad.jsonl.gz", packed[:500] + b"\xff" * 200 + packed[700:], "is not a whole gzip file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            perplexity.read_documents(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + good)
    assert perplexity.read_documents(tmp_path / "bom.jsonl") == [Document("a", "(all)")]
    with pytest.raises(UserError, match="no such file"):
        perplexity.read_documents(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="weights are damaged"):
        perplexity.measure(lambda texts: [float("nan")], [Document("x", "en")])


TEXTS = ["The river rises in the hills above the town. 这条河发源于镇北的山里，流过九十英里以后入海。" * 2, "春天", "a"]


def tokenizer_without_bos(folder: Path) -> Path:
    """Nothing is added to a text; the end of the one before is what stands in front."""
    import transformers

    small_tokenizers.tokenizer_json(folder.parent / "made.json")
    names = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder.parent / "made.json"), eos_token="<|end_of_text|>")
    names.backend_tokenizer.post_processor = None
    names.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("has_bos", [True, False])
def test_only_a_document_s_own_tokens_are_scored(tmp_path: Path, has_bos: bool) -> None:
    """By hand, and by the harness's own model: a BOS that the tokenizer adds is context, once, and costs no bits."""
    torch: Any = pytest.importorskip("torch")
    import transformers

    tokenizer = None if has_bos else tokenizer_without_bos(tmp_path / "tokenizer")
    folder = eval_models.write_model(tmp_path / "model", tokenizer=tokenizer, max_position_embeddings=24)
    names = transformers.AutoTokenizer.from_pretrained(folder)
    prefix = names.bos_token_id if has_bos else names.eos_token_id
    assert (names.encode("a")[0] == prefix) is has_bos
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = eval_models.prefix_model(folder)
    found = perplexity.harness_scorer(ours)(TEXTS)
    for text, value in zip(TEXTS, found, strict=True):
        tokens = names.encode(text, add_special_tokens=False)
        assert names.decode(tokens) == text
        total = 0.0
        for start in range(0, len(tokens), 24):  # disjoint windows behind one token of context
            ids = [tokens[start - 1] if start else prefix, *tokens[start : start + 24]]
            with torch.inference_mode():
                logits = model(torch.tensor([ids[:-1]])).logits[0].double()
            if start and len(ids) < 25:  # the last window sees all that fits
                ids = [*tokens[-25:]]
                with torch.inference_mode():
                    logits = model(torch.tensor([ids[:-1]])).logits[0].double()[-(len(tokens) - start) :]
                ids = ids[-(len(tokens) - start) - 1 :]
            total += float(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum())
        assert value == pytest.approx(total, abs=1e-3)
    harness = eval_models.harness_model(folder, batch_size=2, add_bos_token=False)
    assert perplexity.harness_scorer(harness)(TEXTS) == pytest.approx(found, abs=1e-3)


def test_a_prefix_token_that_is_always_added_is_not_scored_and_one_that_is_spelled_out_is(tmp_path: Path) -> None:
    model = eval_models.prefix_model(eval_models.write_model(tmp_path / "model"))
    plain = model.own_tokens("春天 a")
    stubborn = eval_models.prefix_model(tmp_path / "model")
    encode = stubborn.tokenizer.encode
    stubborn.tokenizer.encode = lambda text, **_: encode(text, add_special_tokens=True)
    assert stubborn.own_tokens("春天 a") == plain and plain[0] != model.prefix_token_id
    assert model.own_tokens("<|begin_of_text|>a") == [model.prefix_token_id, *model.own_tokens("a")]
