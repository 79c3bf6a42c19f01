from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_tokenizers import sentencepiece_model, tokenizer_json

from data_factory import documents, vocab
from data_factory.batches import TextBatch
from data_factory.vocab_counts import Differences
from ziya.errors import UserError
from ziya.files import read_json
from ziya.tokenizer import load_tokenizer


def write_run(out: Path, *units: dict[str, int], dropped: str = "", converted: tuple[str, str] = ("", "")) -> None:
    """What `vocab` reads of a run: a kept document a unit with these characters, and one that was dropped; in the kept
    document of the last unit the character converted[0] became converted[1] wherever it stood.
    """
    for number, unit in enumerate(units):
        name = f"{number:06d}.parquet"
        before = "".join(character * count for character, count in unit.items())
        after = before.replace(*converted) if number == len(units) - 1 and converted[0] else before
        texts = [dropped, after]
        columns = {name: ["", ""] for name in documents.DOCUMENTS.names} | {"text": texts, "prompt_bytes": [0, 0]}
        with documents.table_writer(out / "documents" / name, documents.DOCUMENTS) as writer:
            writer.write(pa.table({**columns, "protected": [[], []], "spans": [[], []]}, documents.DOCUMENTS))
        rows = pa.schema([("document_row", pa.int32())])
        with documents.table_writer(out / "measurements" / name, rows) as writer:
            writer.write(pa.table({"document_row": [-1, 0, -1, 1]}, rows))
        kept = pa.schema([("kept", pa.bool_())])
        with documents.table_writer(out / "decisions" / name, kept) as writer:
            writer.write(pa.table({"kept": [False, False, False, True]}, kept))
        pair = (TextBatch.from_strings([dropped.lower(), text]) for text in (before, after))
        Differences.between(*pair).write(out / "work" / "characters" / f"{number:06d}.npz")
    for path in (out / "summary.json", out / "work" / "run.json"):
        path.write_text("{}", encoding="utf-8")


def run(out: Path, tokenizer: Path, size: int, min_count: int = 1) -> int:
    parser = argparse.ArgumentParser()
    vocab.add_arguments(parser)
    arguments = [str(out), "--size", str(size), "--min-count", str(min_count)]
    return vocab.main(parser.parse_args([*arguments, "--tokenizer", str(tokenizer)]))


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
def test_most_frequent_missing_characters_then_the_standards(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = (sentencepiece_model if kind == "sentencepiece" else tokenizer_json)(tmp_path / "tokenizer")
    # 河 and ， are pieces already; é, Я and あ are not Chinese; U+3000 is a space
    one = {"龍": 5, "é": 90, "河": 50, "艾": 2, "\u3000": 9}
    two = {"龍": 4, "，": 3, "艾": 1, "辉": 3, "Я": 8, "あ": 8, "〖": 4}
    write_run(tmp_path, one, two, dropped="锟斤拷烫" * 90, converted=("龍", "龙"))
    assert run(tmp_path, tokenizer, 10) == 0
    lines = (tmp_path / "chars.txt").read_text().split("\n")[:-1]
    assert lines[:4] == ["龍", "〖", "艾", "辉"]  # equally frequent: by code point
    assert len(lines) == len(set(lines)) == 10
    result = read_json(tmp_path / "chars.json")
    assert (result["from"]["counted"], result["from"]["gb2312_level_1"]) == (4, 6)
    rest = [c for c in vocab.gb2312(1) if c not in {"艾", "辉"}]
    assert lines[4:] == load_tokenizer(tokenizer).missing_characters(rest)[:6]
    assert result["occurrences"] == 50 + 9 + 3 + 3 + 3 + 4
    assert result["single_piece_share_before"] == 53 / 72
    assert result["single_piece_share_after"] == 1.0 > result["single_piece_share_before"]
    assert "10 characters" in capsys.readouterr().out


def test_standards_are_complete_and_in_order() -> None:
    one, two = list(vocab.gb2312(1)), list(vocab.gb2312(2))
    assert (len(one), len(two), len(set(one + two))) == (3755, 3008, 6763)
    assert "".join(one[:5]) == "啊阿埃挨哎" and one[-1] == "座" and two[0] == "亍" and two[-1] == "齄"
    first, second = list(vocab.big5(1)), list(vocab.big5(2))
    assert (len(first), len(second)) == (5401, 7652)
    assert "".join(first[:4]) == "一乙丁七" and first[-1] == "籲" and second[0] == "乂"


def test_everything_is_used_up_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = sentencepiece_model(tmp_path / "tokenizer")
    write_run(tmp_path, {"龍": 1, "艾": 7})
    assert run(tmp_path, tokenizer, 30_000, min_count=2) == 0
    lines = (tmp_path / "chars.txt").read_text().split("\n")[:-1]
    every = ["艾", *vocab.gb2312(1), *vocab.gb2312(2), *vocab.big5(1), *vocab.big5(2)]
    assert lines == load_tokenizer(tokenizer).missing_characters(list(dict.fromkeys(every)))
    origin = read_json(tmp_path / "chars.json")["from"]
    assert origin["counted"] == 1 and sum(origin.values()) == len(lines) and min(origin.values()) > 0
    assert "of the 30,000 asked for" in capsys.readouterr().out


def test_candidates_are_han_and_chinese_punctuation() -> None:
    chinese = "河龍々〇，。、《》「」！？：；（）“”‘’—…·￥\U00020000\U00030000"
    kinds = Counter(vocab.is_candidate(ord(c)) for c in chinese)
    assert kinds == {True: sum(kinds.values())}
    assert not any(vocab.is_candidate(ord(c)) for c in "aé1Яあア가.,!?()-\u3000\u200b\n１Ａ\U0001f600")


def test_converted_characters_count_as_they_were(tmp_path: Path) -> None:
    write_run(tmp_path, {"龙": 2}, {"龍": 7, "龙": 1, "河": 3}, dropped="龍龍", converted=("龍", "龙"))
    counts = vocab.read_counts(tmp_path)
    assert {chr(point): int(counts[point]) for point in np.flatnonzero(counts)} == {"龙": 3, "龍": 7, "河": 3}


def test_errors(tmp_path: Path) -> None:
    tokenizer = sentencepiece_model(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="holds no run: give the --output folder"):
        run(tmp_path, tokenizer, 10)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="no finished run"):
        run(tmp_path, tokenizer, 10)
    write_run(tmp_path, {"龍": 1})
    with pytest.raises(UserError, match="--size 0"):
        run(tmp_path, tokenizer, 0)
    with pytest.raises(UserError, match="no tokenizer: name the one to extend with --tokenizer"):
        run(tmp_path, tmp_path / "none.model", 10)
    (tmp_path / "work" / "characters" / "000000.npz").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"000000\.npz holds no character counts"):
        run(tmp_path, tokenizer, 10)
