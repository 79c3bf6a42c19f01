"""Characters added to a SentencePiece model, and the tokenizer.json with SentencePiece's ids."""

from __future__ import annotations

import gzip
import json
import random
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from small_tokenizers import CHINESE, ENGLISH, sentencepiece_model

from training.hf_tokenizer import PROBES, first_difference, tokenizer_json
from training.vocabulary import check_model, count_tokens, extend, read_characters, read_texts
from ziya.errors import UserError
from ziya.sentencepiece_model import parse_model
from ziya.tokenizer import SentencePieceTokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data"
LLAMA2 = SHARED / "tokenizer" / "llama2" / "tokenizer.model"
DEMO = Path(__file__).parents[1] / "scripts" / "demo" / "models" / "tokenizer.model"
NEW = ["艾", "辉", "\u0301", "𠮷", "👩", "\u2028", "龘", "é", "，"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def block(field: int, data: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(data)) + data


def model_of(
    pieces: list[tuple[str, float, int]], *, dummy_prefix: bool = True, kind: int = 2, **normalizer: Any
) -> bytes:
    """A serialised model of these pieces (after <unk>, <s>, </s> and the bytes): (piece, score, type)."""
    special = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    everything = [*special, *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)), *pieces]
    data = b"".join(
        block(1, block(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + number(kind_))
        for piece, score, kind_ in everything
    )
    trainer = b"\x18" + number(kind) + number(35 << 3) + b"\x01"
    extra = normalizer.get("extra_spaces", False)
    rules = block(1, b"identity") + b"\x18" + number(int(dummy_prefix)) + b"\x20" + number(int(extra)) + b"\x28\x01"
    return data + block(2, trainer) + block(3, rules)


def scored(text: str) -> list[tuple[str, float, int]]:
    """Pieces by falling score, then their characters and ▁."""
    pieces = text.split(" ")
    characters = sorted(set("".join(pieces)) | {"▁"})
    ranked = [*pieces, *(character for character in characters if character not in pieces)]
    return [(piece, -float(rank), NORMAL) for rank, piece in enumerate(ranked)]


def spaces(longest: int) -> list[tuple[str, float, int]]:
    """Runs of spaces as LLaMA2 has them: all at one score, below everything."""
    return [("▁" * count, -1e9, NORMAL) for count in range(2, longest + 1)]


def random_texts(seed: int, count: int, alphabet: str) -> list[str]:
    """Texts of few characters (many merges compete), of any code point, and cut from prose."""
    rng = random.Random(seed)
    prose = (ENGLISH + CHINESE) * 2
    texts = []
    for _ in range(count):
        length, kind = rng.randrange(1, 50), rng.randrange(4)
        if kind < 2:
            texts.append("".join(rng.choices(alphabet, k=length)))
        elif kind == 2:
            points = (rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))) for _ in range(length))
            texts.append("".join(map(chr, points)))
        else:
            start = rng.randrange(len(prose) - length)
            texts.append(prose[start : start + length])
    return texts


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_model(tmp_path_factory.mktemp("sp") / "tokenizer.model")


def processor_of(content: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor


# The list of characters


def test_characters_are_lines_in_order(tmp_path: Path) -> None:
    path = tmp_path / "chars.txt"
    path.write_bytes("\ufeff龘\r\n\u2028\n\u0301\n𠮷\n\u0085x".replace("\u0085x", "\u3000").encode())
    assert read_characters(path) == ["龘", "\u2028", "\u0301", "𠮷", "\u3000"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("龘\n龘\n", "line 2: 龘 stands in line 1 too"),
        ("龘\n艾辉\n", "line 2: 2 characters"),
        ("e\u0301\n", "line 1: 2 characters"),
        ("龘\n\n艾\n", "line 2: nothing"),
        ("龘\n \n", "line 2: ' ' cannot be added"),
        ("▁\n", "line 1: '▁' cannot be added"),
        ("\t\n", "line 1: '\\t' cannot be added"),
        ("", "is empty"),
    ],
)
def test_a_bad_list_is_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "chars.txt"
    path.write_bytes(content.encode())
    with pytest.raises(UserError) as error:
        read_characters(path)
    assert message in str(error.value)


def test_a_list_that_is_missing_or_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gbk.txt").write_bytes("艾\n".encode("gbk"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_characters(tmp_path / "gbk.txt")
    with pytest.raises(UserError, match="no such file"):
        read_characters(tmp_path / "none.txt")


# The extended model


def test_new_pieces_follow_the_old_ones(small: Path) -> None:
    content = small.read_bytes()
    before = parse_model(content)
    extended = extend(content, [*NEW, "河"], small)
    after = parse_model(extended.content)
    assert (extended.added, extended.already) == ([c for c in NEW if c != "，"], ["，", "河"])
    assert after.pieces == before.pieces + extended.added
    assert after.scores[: len(before.scores)] == before.scores and after.types[: len(before.types)] == before.types
    tail = [min(before.scores), *after.scores[len(before.scores) :]]
    assert all(high > low for high, low in pairwise(tail))
    assert processor_of(extended.content).get_piece_size() == len(after.pieces)
    again = extend(extended.content, NEW, small)
    assert again.content == extended.content and again.added == []


def test_the_size_in_the_model_file_follows(small: Path) -> None:
    pytest.importorskip("google.protobuf", reason="the reference reader of the format needs protobuf")
    from sentencepiece import sentencepiece_model_pb2

    extended = extend(small.read_bytes(), NEW, small)
    proto = sentencepiece_model_pb2.ModelProto.FromString(extended.content)
    assert proto.trainer_spec.vocab_size == len(proto.pieces) == len(parse_model(extended.content).pieces)
    assert proto.trainer_spec.byte_fallback and [p.type for p in proto.pieces[-8:]] == [NORMAL] * 8


def test_scores_fall_where_single_precision_is_coarse() -> None:
    content = model_of([*scored("ab a b"), *spaces(4)])
    scores = parse_model(extend(content, NEW, Path("m")).content).scores[-len(NEW) - 1 :]
    assert scores[0] == -1e9 and all(high > low for high, low in pairwise(scores))
    assert [np.float32(score) for score in scores] == scores


def test_texts_without_new_characters_keep_their_ids_and_all_decode(small: Path) -> None:
    content = small.read_bytes()
    extended = extend(content, NEW, small)
    old, new = processor_of(content), processor_of(extended.content)
    ids = {new.piece_to_id(character) for character in extended.added}
    touched = 0
    for text in random_texts(1, 3000, "the rai 河水艾辉é，\n\t"):
        encoded = new.encode(text)
        if ids.isdisjoint(encoded):
            assert encoded == old.encode(text)
        else:
            touched += 1
            assert len(encoded) < len(old.encode(text))
        # U+2581 is how a model of this kind spells a space: it cannot come back, before or after.
        assert new.decode(encoded) == text.replace("▁", " ")
    assert 300 < touched < 2700


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "unigram"}, "is no BPE model"),
        ({"byte_fallback": False}, "has no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises its text"),
        ({"remove_extra_whitespaces": True}, "removes extra spaces"),
        ({"treat_whitespace_as_suffix": True}, "writes spaces otherwise"),
    ],
)
def test_models_that_lose_text_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = sentencepiece_model(tmp_path / "m.model", **changes)
    with pytest.raises(UserError, match=message):
        extend(path.read_bytes(), NEW, path)


def test_a_broken_model_is_refused(small: Path) -> None:
    with pytest.raises(UserError, match="is no SentencePiece model"):
        check_model(small.read_bytes()[:-3], small)


def test_tokens_per_character(small: Path, tmp_path: Path) -> None:
    extended = extend(small.read_bytes(), NEW, small)
    before, after = (SentencePieceTokenizer(content, small) for content in (small.read_bytes(), extended.content))
    texts = ["艾辉", "", "河é"]
    counts = count_tokens(before, texts), count_tokens(after, texts)
    expected = [sum(len(processor_of(c).encode(t)) for t in texts) for c in (small.read_bytes(), extended.content)]
    assert [c.tokens for c in counts] == expected == [7 + 3, 3 + 2]
    assert (counts[0].documents, counts[0].characters, counts[0].bytes) == (3, 4, 11)
    assert counts[1].tokens_per_character == 5 / 4


def test_texts_are_read_from_plain_and_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一\r\n二\n".encode())
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "艾辉"}\n\n{"text": "河\\ud800水"}\n')
    assert read_texts(tmp_path / "a.txt", 100) == ["一\r\n二\n"]
    assert read_texts(tmp_path / "a.txt", 3) == ["一\r\n"]
    assert read_texts(tmp_path / "b.jsonl.gz", 100) == ["艾辉", "河?水"]
    assert read_texts(tmp_path / "b.jsonl.gz", 3) == ["艾辉", "河"]
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    for name, message in (("bad.jsonl", "line 2"), ("none.txt", "no such file"), ("empty.txt", "is empty")):
        (tmp_path / "empty.txt").touch()
        with pytest.raises(UserError, match=message):
            read_texts(tmp_path / name, 100)


# tokenizer.json


RUNS = [f"{left}{' ' * count}{right}" for count in range(40) for left, right in (("", ""), ("a", "b"), (" b", "\n"))]
MODELS = {
    "like LLaMA2, spaces at one score": model_of([*scored("ab ▁a ba bab ▁ab abab aba"), *spaces(16)]),
    "spaces in powers of two": model_of([*scored("ab ▁a"), *((("▁" * n), -1e9, NORMAL) for n in (2, 4, 8, 16))]),
    "spaces with gaps": model_of([*scored("ab ▁a"), *((("▁" * n), -1e9, NORMAL) for n in (2, 3, 6, 12))]),
    "no prefix": model_of([*scored("ba ab ▁a a▁ aab"), *spaces(5)], dummy_prefix=False),
    "long pieces first": model_of(scored("aa aaaa aaa ba baa ▁b aabaa ab")),
    "short pieces last": model_of(scored("ba ab aa aab baa bab abba aaa")),
    "a user-defined character": model_of([*scored("ab ▁a bb"), ("é", 0.0, USER_DEFINED), ("é艾", -1.0, NORMAL)]),
}


@pytest.mark.parametrize("name", MODELS)
def test_ids_equal_on_hand_made_models(name: str) -> None:
    content = extend(MODELS[name], ["艾", "辉"], Path(name)).content
    data = tokenizer_json(content, check_model(content, Path(name)), Path(name))
    texts = [*PROBES, *RUNS, *random_texts(len(name), 1500, "ab"), *random_texts(2, 1500, "aaab  é艾▁\n")]
    assert first_difference(content, data, texts) is None


def test_a_wrong_order_of_merges_is_found() -> None:
    content = MODELS["like LLaMA2, spaces at one score"]
    settings = json.loads(tokenizer_json(content, check_model(content, Path("m")), Path("m")))
    ids = settings["model"]["vocab"]
    settings["model"]["merges"].sort(key=lambda pair: ids["".join(pair)])  # as transformers reads a bare model
    assert first_difference(content, json.dumps(settings).encode(), RUNS) is not None


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([*scored("ab ba"), ("bb", -1.0, NORMAL)], "2 pieces share one score"),
        ([*scored("ab"), ("ac", -9.0, NORMAL)], "'ac' holds 'c'"),
        ([*scored("ab"), ("abc", 0.0, USER_DEFINED)], "special kind"),
        ([*scored("ab"), ("c", 0.0, CONTROL)], "special kind"),
    ],
)
def test_models_that_no_ranked_merges_express_are_refused(pieces: list[Any], message: str) -> None:
    content = model_of(pieces)
    with pytest.raises(UserError, match=message):
        tokenizer_json(content, check_model(content, Path("m")), Path("m"))


@pytest.mark.parametrize("path", [DEMO, LLAMA2, None], ids=["demo", "llama2", "trained here"])
def test_ids_equal_on_trained_models(path: Path | None, small: Path) -> None:
    path = path or small
    if not path.is_file():
        pytest.skip(f"{path} is not here: LLaMA2's own tokenizer is not part of the repository")
    content = extend(path.read_bytes(), NEW, path).content
    data = tokenizer_json(content, check_model(content, path), path)
    texts = [*PROBES, *RUNS, *random_texts(3, 3000, "the riv 河水 是艾辉é，\n\t▁")]
    texts += [" " * 50_000, "a" * 50_000, "艾 " * 20_000, "\n" * 30_000, (ENGLISH + CHINESE) * 30]
    assert first_difference(content, data, texts) is None
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    processor = processor_of(content)
    for text in texts[:1500]:
        ids = processor.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == processor.decode(ids) == text.replace("▁", " ")


def test_ids_equal_on_real_documents() -> None:
    files = sorted((SHARED / "text").glob("*.jsonl.gz"))
    if not files or not LLAMA2.is_file():
        pytest.skip("LLaMA2's tokenizer or the real documents are not here")
    texts = [text for path in files for text in read_texts(path, 150_000)]
    content = extend(LLAMA2.read_bytes(), ["艾", "辉", "，"], LLAMA2).content
    data = tokenizer_json(content, check_model(content, LLAMA2), LLAMA2)
    assert first_difference(content, data, texts) is None


def test_special_tokens_stand_around_a_text_only_when_asked(small: Path) -> None:
    content = small.read_bytes()
    model = check_model(content, small)
    for bos, eos in ((True, False), (False, True), (True, True), (False, False)):
        tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json(content, model, small, add_bos=bos, add_eos=eos))
        ids = processor_of(content).encode("the river")
        assert tokenizer.encode("the river").ids == [1] * bos + ids + [2] * eos
        assert tokenizer.encode("the river", "the river").ids == ([1] * bos + ids + [2] * eos) * 2
        assert tokenizer.encode("the river", add_special_tokens=False).ids == ids
        assert tokenizer.decode([1, *ids, 2]) == "the river"
