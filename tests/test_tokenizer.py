from __future__ import annotations

import gzip
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import oracle_packing as oracle
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHINESE, ENGLISH, sentencepiece_model, tokenizer_json

from ziya import bpe
from ziya import tokenizer as module
from ziya.errors import UserError
from ziya.sentencepiece_model import parse_model
from ziya.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data"
LLAMA2 = SHARED / "tokenizer" / "llama2" / "tokenizer.model"
HARD = [
    "", " ", "  ", "\n", "\t", "▁", " ▁ a", "a", " a", "a ", "the", "\u0000", "a\u0000b", "</s>", "<s> <0x41> <unk>",
    "�", "艾辉", "\U0001f600", "é", "e\u0301", "\U00020000", "the  river   the", "河水很冷", "1784年 the", "\r\n\r\n",
    "don't",
    ENGLISH, CHINESE, ENGLISH + CHINESE, "the" * 300, "=" * 500, " " * 300, "a" * 400, "天" * 300, "\n " * 100,
]
texts = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet="the rivansdo ▁\n'河水天人们的。", max_size=60),
        st.lists(st.sampled_from([*ENGLISH.split(), *CHINESE, " ", "\n", "\U0001f600"]), max_size=30).map("".join),
    ),
    max_size=4,
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bpe": sentencepiece_model(folder / "bpe.model"),
        "frozen": sentencepiece_model(folder / "frozen.model", user_defined_symbols=["e", "艾", "河"]),
        "no prefix": sentencepiece_model(folder / "no_prefix.model", add_dummy_prefix=False, split_by_whitespace=False),
        "json": tokenizer_json(folder / "tokenizer.json"),
    }


def rows(tokenizer: Tokenizer, items: list[str]) -> list[list[int]]:
    ids, offsets = tokenizer.encode_batch(items)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64 and len(ids) == offsets[-1]
    return [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(len(items))]


def library(path: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("name", ["bpe", "frozen", "no prefix"])
@given(items=texts)
@settings(max_examples=60, deadline=None)
def test_compiled_engine_equals_the_library(models: dict[str, Path], name: str, items: list[str]) -> None:
    tokenizer = load_tokenizer(models[name])
    assert tokenizer.engine == "compiled"
    assert rows(tokenizer, [*items, *HARD]) == library(models[name]).encode([*items, *HARD])


@given(items=texts)
@settings(max_examples=40, deadline=None)
def test_compiled_engine_equals_bpe_by_its_definition(models: dict[str, Path], items: list[str]) -> None:
    model = parse_model(models["bpe"].read_bytes())
    ids = {piece: i for i, piece in enumerate(model.pieces) if model.types[i] == 1}
    byte_ids = [model.pieces.index(f"<0x{byte:02X}>") for byte in range(256)]
    expected = [oracle.bpe(text, ids, model.scores, byte_ids) for text in items]
    assert rows(load_tokenizer(models["bpe"]), items) == expected


def test_equal_scores_merge_from_the_left(models: dict[str, Path]) -> None:
    model = parse_model(models["bpe"].read_bytes())
    flat = [0.0 if kind == 1 else score for score, kind in zip(model.scores, model.types, strict=True)]
    changed = type(model)(**{**model.__dict__, "scores": flat})
    tables = bpe.build_tables(changed)
    assert tables is not None
    ids = {piece: i for i, piece in enumerate(model.pieces) if model.types[i] == 1}
    byte_ids = [model.pieces.index(f"<0x{byte:02X}>") for byte in range(256)]
    for text in HARD:
        data = np.frombuffer(text.encode(), np.uint8)
        found, _ = bpe.encode(tables, bpe.empty_cache(), data, np.array([0, len(data)]))
        assert found.tolist() == oracle.bpe(text, ids, flat, byte_ids)


def test_a_full_cache_changes_nothing(models: dict[str, Path]) -> None:
    tables = bpe.build_tables(parse_model(models["bpe"].read_bytes()))
    assert tables is not None
    items = [ENGLISH + CHINESE, *HARD, ENGLISH[::-1], CHINESE[::-1]]
    data, offsets = module._utf8(items)
    expected, _ = bpe.encode(tables, bpe.empty_cache(), data, offsets)
    for slots, keys, ids in ((4, 1000, 1000), (64, 60, 1000), (64, 1000, 48)):
        arrays = [np.zeros(n, kind) for n, kind in (((slots, 3), "i8"), (keys, "u1"), (ids, "i4"), (3, "i8"))]
        cache = bpe.Cache(*arrays)
        for _ in range(2):
            found, _ = bpe.encode(tables, cache, data, offsets)
            assert found.tolist() == expected.tolist()
        assert cache.used[0] <= slots // 2


def test_long_segments_cost_n_log_n(models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(models["bpe"])
    tokenizer.encode_batch(["warm"])
    seconds = []
    for n in (1 << 16, 1 << 19):  # eight times the text: a quadratic encoder needs 64 times the time
        start = time.process_time()
        (one,) = rows(tokenizer, ["the" * n])
        seconds.append(time.process_time() - start)
        assert one[:1000] == library(models["bpe"]).encode("the" * 4000)[:1000]
    assert seconds[1] < 24 * max(seconds[0], 0.01)


@pytest.mark.parametrize("changes", [
    {"model_type": "unigram"},
    {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    {"byte_fallback": False},
    {"user_defined_symbols": ["the river"]},
    {"treat_whitespace_as_suffix": True},
])
def test_models_outside_the_proven_case_use_the_library(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = sentencepiece_model(tmp_path / "other.model", **changes)
    tokenizer = load_tokenizer(path)
    assert tokenizer.engine == "sentencepiece"
    assert rows(tokenizer, HARD) == library(path).encode(HARD)


@given(items=texts.filter(bool), data=st.data())
@settings(max_examples=60, deadline=None)
def test_prompt_tokens_lie_inside_the_prompt(models: dict[str, Path], items: list[str], data: st.DataObject) -> None:
    cuts = [data.draw(st.integers(0, len(text))) for text in items]
    prompt_bytes = np.array([len(text[:cut].encode()) for text, cut in zip(items, cuts, strict=True)])
    utf8, offsets = module._utf8(items)
    for name in ("bpe", "no prefix", "json"):
        tokenizer = load_tokenizer(models[name])
        ids, ends, prompts = tokenizer.encode_utf8(utf8, offsets, prompt_bytes)
        assert ids.tolist() == tokenizer.encode_batch(items)[0].tolist()  # the prompt does not change the ids
        for i, text in enumerate(items):
            row = ids[ends[i] : ends[i + 1]].tolist()
            assert prompts[i] == sum(end <= prompt_bytes[i] for end in byte_ends(tokenizer, text, row)) * (cuts[i] > 0)


def byte_ends(tokenizer: Tokenizer, text: str, ids: list[int]) -> list[int]:
    """Where the text of each id ends, in bytes of the document, from the spelling of the pieces."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        decode = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        assert all(character in decode for piece in tokenizer.pieces(ids) for character in piece)
        ends = np.cumsum([len(piece) for piece in tokenizer.pieces(ids)]).tolist()
        # A character that several ids spell belongs to the answer until its last byte: an id inside it counts with it.
        starts = {len(text[:i].encode()) for i in range(len(text) + 1)}
        return [end if end in starts else next(s for s in sorted(starts) if s > end) for end in ends]
    source = text.encode()
    prefix = 0 if source == b"" or ids != library_ids_without_prefix(tokenizer, text) else 1
    position, result, spaces = 0, [], prefix
    for piece in tokenizer.pieces(ids):
        if piece.startswith("<0x") and piece.endswith(">"):
            position += 1
        else:
            for _ in piece:
                if spaces:
                    spaces -= 1
                    continue
                position += len(source[position:].decode()[0].encode())
        result.append(position)
    assert position == len(source)
    return result


def library_ids_without_prefix(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """`text`'s ids when the model adds a space before texts, else None."""
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return rows(tokenizer, [text])[0] if tokenizer._model.add_dummy_prefix else None


def test_library_counts_prompts_like_the_compiled_engine(models: dict[str, Path]) -> None:
    fast, slow = load_tokenizer(models["bpe"]), load_tokenizer(models["bpe"])
    assert isinstance(slow, SentencePieceTokenizer)
    slow._compiled = None
    items = [text for text in HARD if text]
    data, offsets = module._utf8(items)
    for share in (0.0, 0.3, 0.5, 1.0):
        prompt_bytes = np.array([len(text[: round(len(text) * share)].encode()) for text in items])
        assert fast.encode_utf8(data, offsets, prompt_bytes)[2].tolist() == (
            slow.encode_utf8(data, offsets, prompt_bytes)[2].tolist()
        )


@pytest.mark.skipif(not LLAMA2.exists(), reason="the LLaMA2 tokenizer model is not on this machine")
def test_llama2_on_real_text() -> None:
    processor, tokenizer = library(LLAMA2), load_tokenizer(LLAMA2)
    assert (tokenizer.engine, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == ("compiled", 32_000, 2, 2)
    items = list(HARD)
    for name in ("en_wikitext2", "zh_articles"):
        with gzip.open(SHARED / "text" / f"{name}.jsonl.gz", "rt") as file:
            items += [json.loads(line)["text"] for _, line in zip(range(25), file, strict=False)]
    assert rows(tokenizer, items) == processor.encode(items)
    chinese = [chr(point) for point in range(0x4E00, 0x9FA6)]
    missing = tokenizer.missing_characters(chinese)
    assert missing == [c for c in chinese if processor.piece_to_id(c) == processor.unk_id()]
    assert {"艾", "辉"} <= set(missing) < set(chinese)


@given(items=texts)
@settings(max_examples=30, deadline=None)
def test_tokenizer_json_equals_the_library(models: dict[str, Path], items: list[str]) -> None:
    tokenizer = load_tokenizer(models["json"])
    plain = tokenizers.Tokenizer.from_file(str(models["json"]))
    plain.encode_special_tokens = True
    items = [*items, *HARD]
    assert rows(tokenizer, items) == [plain.encode(text, add_special_tokens=False).ids for text in items]
    assert (tokenizer.kind, tokenizer.engine) == ("huggingface", "tokenizers")
    assert tokenizer.pieces([tokenizer.eos_id, tokenizer.pad_id]) == ["<|end_of_text|>", "<|finetune_right_pad_id|>"]


def test_special_pieces_in_a_page_stay_text(models: dict[str, Path]) -> None:
    for name, text in (("json", "a<|end_of_text|>b"), ("bpe", "a</s>b<s>")):
        tokenizer = load_tokenizer(models[name])
        (row,) = rows(tokenizer, [text])
        assert tokenizer.eos_id not in row and len(row) > 3


def test_long_documents_are_cut_where_that_is_exact(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ENGLISH + CHINESE + "x  y\n\n z 12345 don't !? \r\n") * 5
    (expected,) = rows(load_tokenizer(models["json"]), [text])
    monkeypatch.setattr(module, "LONG_CHARACTERS", 10)
    tokenizer = load_tokenizer(models["json"])
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer._cut is not None
    parts: list[str] = []
    encode = tokenizer._encode
    monkeypatch.setattr(tokenizer, "_encode", lambda part: (parts.append(part), encode(part))[1])
    assert rows(tokenizer, [text]) == [expected]
    assert "".join(parts) == text and len(parts) > 20
    other = models["json"].with_name("other.json")
    tokenizer_json(other, split=r"\S+ \S+|\s")  # here a piece may hold "letter space letter"
    tokenizer = load_tokenizer(other)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer._cut is None


def test_errors_name_the_file_and_the_setting(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"missing\.model does not exist.*tokenizer\.path"):
        load_tokenizer(tmp_path / "missing.model")
    with pytest.raises(UserError, match="is a folder: give"):
        load_tokenizer(tmp_path)
    for content in (b"", b"hello", b"{}", b'{"model": 1}', models["bpe"].read_bytes()[:1000], b"\x0a\x03\x0a\x01a"):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(UserError, match="broken is no tokenizer"):
            load_tokenizer(tmp_path / "broken")
    for name in ("bpe", "json"):
        with pytest.raises(UserError, match=r"no piece '<end>'.*tokenizer\.eos"):
            load_tokenizer(models[name], eos="<end>")
        with pytest.raises(UserError, match=r"no piece '<p>'.*tokenizer\.pad"):
            load_tokenizer(models[name], pad="<p>")
    without = sentencepiece_model(tmp_path / "no_eos.model", eos_id=-1)
    with pytest.raises(UserError, match=r"names no end-of-text piece: set tokenizer\.eos"):
        load_tokenizer(without)
    assert load_tokenizer(without, eos="<s>").eos_id == 1


def test_special_ids_and_fingerprint(tmp_path: Path, models: dict[str, Path]) -> None:
    one = load_tokenizer(models["bpe"])
    assert one.pieces([one.eos_id, one.pad_id]) == ["</s>", "</s>"]  # no padding piece: EOS pads
    padded = load_tokenizer(sentencepiece_model(tmp_path / "padded.model", pad_id=3))
    assert padded.pieces([padded.pad_id]) == ["<pad>"]
    shutil.copy(models["bpe"], tmp_path / "copy.model")
    assert load_tokenizer(tmp_path / "copy.model").fingerprint == one.fingerprint
    others = [load_tokenizer(models["bpe"], eos="<s>"), load_tokenizer(models["bpe"], pad="<unk>"), padded]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_missing_characters(models: dict[str, Path]) -> None:
    for name in ("bpe", "json"):
        assert load_tokenizer(models[name]).missing_characters(["龘", "e", "艾", "a"]) == ["龘", "艾"]
    assert load_tokenizer(models["frozen"]).missing_characters(["龘", "艾"]) == ["龘"]
