"""Bytes that tokens spell, against the bytes of the texts themselves, in Chinese and English."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_tokenizers
from hypothesis import given
from hypothesis import strategies as st

from training.bytes_per_token import bytes_per_token, of_json, of_sentencepiece
from training.vocabulary import extend
from ziya.errors import UserError
from ziya.sentencepiece_model import parse_model
from ziya.tokenizer import Tokenizer, load_tokenizer

LLAMA2 = Path(__file__).parents[1].parent / "shared" / "data" / "tokenizer" / "llama2" / "tokenizer.model"
TEXTS = [
    small_tokenizers.ENGLISH,
    small_tokenizers.CHINESE,
    "中英文 mixed，两个  空格 and\ta tab\r\n\n",
    "生僻字：龘𠮷、emoji 👩‍👩‍👧 and accents: é ñ",
    " ",
    "a",
    "</s><0x41> is text",
]
SURROGATES = ("Cs",)
texts = st.text(st.characters(exclude_categories=SURROGATES, exclude_characters="▁"), max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizers")
    small_tokenizers.sentencepiece_model(made / "tokenizer.model")
    (made / "bytes").mkdir()
    small_tokenizers.tokenizer_json(made / "bytes" / "tokenizer.json")
    return made


@pytest.fixture(scope="module")
def pieces(folder: Path) -> Tokenizer:
    return load_tokenizer(folder / "tokenizer.model")


@pytest.fixture(scope="module")
def byte_level(folder: Path) -> Tokenizer:
    return load_tokenizer(folder / "bytes" / "tokenizer.json", eos="<|end_of_text|>")


def total(sizes: np.ndarray, tokenizer: Tokenizer, text: str) -> int:
    return int(sizes[tokenizer.encode_batch([text])[0]].sum())


@given(text=texts)
def test_the_tokens_of_a_text_spell_its_bytes(folder: Path, pieces: Tokenizer, text: str) -> None:
    sizes = bytes_per_token(folder, pieces.vocab_size)
    assert sizes is not None and total(sizes, pieces, text) == len(text.encode()) + (
        1 if text else 0
    )  # the space before it


@given(text=texts)
def test_byte_level_tokens_spell_its_bytes(folder: Path, byte_level: Tokenizer, text: str) -> None:
    sizes = bytes_per_token(folder / "bytes", byte_level.vocab_size)
    assert sizes is not None and total(sizes, byte_level, text) == len(text.encode())


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_both_languages(folder: Path, pieces: Tokenizer, byte_level: Tokenizer, text: str) -> None:
    one, other = bytes_per_token(folder, pieces.vocab_size), bytes_per_token(folder / "bytes", byte_level.vocab_size)
    assert one is not None and other is not None
    size = len(text.encode())
    assert (total(one, pieces, text), total(other, byte_level, text)) == (size + 1, size)
    assert one[[pieces.eos_id, 0, 1]].tolist() == [0, 0, 0] and other[byte_level.eos_id] == 0
    # Of a document every token but the first is a target: together they spell all that the first one has left.
    ids = pieces.encode_batch([text])[0]
    first = pieces.pieces(ids[:1])[0].replace("▁", " ")[1:]
    assert int(one[ids[1:]].sum()) == size - len(first.encode())


@pytest.mark.skipif(not LLAMA2.is_file(), reason="the LLaMA2 tokenizer is not beside the project")
@pytest.mark.parametrize("text", TEXTS)
def test_llama2_and_its_extension(text: str) -> None:
    plain = parse_model(LLAMA2.read_bytes())
    assert total(of_sentencepiece(plain), load_tokenizer(LLAMA2), text) == len(text.encode()) + 1
    extended = parse_model(extend(LLAMA2.read_bytes(), ["磨", "坊", "龘"], LLAMA2).content)
    assert of_sentencepiece(extended)[len(plain.pieces) :].tolist() == [3] * (len(extended.pieces) - len(plain.pieces))


def test_a_converted_tokenizer_counts_alike(folder: Path) -> None:
    from training.hf_tokenizer import tokenizer_json

    content = (folder / "tokenizer.model").read_bytes()
    model = parse_model(content)
    found = of_json(json.loads(tokenizer_json(content, model, folder)))
    assert found is not None and found.tolist() == of_sentencepiece(model).tolist()


def test_which_tokenizer_counts(folder: Path, pieces: Tokenizer, byte_level: Tokenizer, tmp_path: Path) -> None:
    assert bytes_per_token(tmp_path, 10) is None
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    padded = bytes_per_token(tmp_path, pieces.vocab_size + 5)
    assert padded is not None and padded[-5:].tolist() == [0] * 5
    (tmp_path / "tokenizer.json").write_bytes((folder / "bytes" / "tokenizer.json").read_bytes())
    both = bytes_per_token(tmp_path, pieces.vocab_size)
    assert both is not None and both.tolist() == padded[:-5].tolist()
    other = bytes_per_token(tmp_path, byte_level.vocab_size + 3)  # the .model does not cover this vocabulary
    assert other is not None and total(other, byte_level, "河水 river") == len("河水 river".encode())
    assert of_json({"decoder": {"type": "WordPiece"}, "model": {"vocab": {"a": 0}}}) is None and of_json([]) is None
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match="is no SentencePiece model"):
        bytes_per_token(tmp_path, 10)
