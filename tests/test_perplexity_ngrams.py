"""Compiled n-grams and the segmentation kernel: equality with plain references and with KenLM, files, memory."""

import json
import math
import random
import shutil
from fractions import Fraction

import numpy as np
import oracle_lm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_perplexity import LETTERS, corpus, engines, models, programs  # noqa: F401 (fixtures)

from data_factory import lm_kernels, ngram_arpa, ngram_kernels, ngram_table, perplexity, train_lm
from data_factory.batches import TextBatch
from data_factory.lm_text import lm_lines
from ziya.errors import UserError

# "c b a" is there without its suffix "b a"; "a b" has neither a back-off weight nor followers; "b" has no weight.
ARPA = """\\data\\
ngram 1=6
ngram 2=5
ngram 3=2

\\1-grams:
-1.5\t<unk>
0\t<s>\t-0.25
-7.5e-1\t</s>\t0
-1.25\ta\t-0.5
-1.75\tb
-1e0\tc\t-.125

\\2-grams:
-0.5\t<s> a\t-0.0625
-0.375\ta b
-0.625\tb c\t-0.03125
-0.875\tc b\t-0.75
-0.3\tc </s>

\\3-grams:
-0.1\tc b a
-0.2\t<s> a b

\\end\\
"""


def compiled(tmp_path, text=ARPA):
    path = tmp_path / "model.arpa"
    path.write_bytes(text.encode())
    return ngram_table.compile_arpa(path)


def grams_of(text):
    """The n-grams of ARPA text, read naively."""
    result = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) >= 2:
            result[tuple(fields[1].split(" "))] = (float(fields[0]), float(fields[2]) if len(fields) == 3 else 0.0)
    return result


def score(table, sentences):
    numbers = [table.words.number(word.encode()) for sentence in sentences for word in sentence]
    ends = np.cumsum([len(sentence) for sentence in sentences]).astype(np.int64)
    words = np.array([table.unknown if number < 0 else number for number in numbers], np.int32)
    return ngram_kernels.score(words, ends, table)


def test_scores_of_a_small_model_are_those_of_the_definition(tmp_path):
    table = compiled(tmp_path)
    assert table.order == 3 and len(table.words) == 6
    # p(a | <s>) = -0.5; p(b | <s> a) = -0.2; p(c | a b): a b has no weight; p(c | b) = -0.625; p(</s> | b c): weight
    # of b c, then p(</s> | c).
    assert score(table, [["a", "b", "c"]])[0] == pytest.approx(-0.5 - 0.2 - 0.625 - 0.03125 - 0.3)
    assert score(table, [[]])[0] == pytest.approx(-0.25 - 0.75)
    words = ["a", "b", "c", "x", "<s>", "</s>", "<unk>"]
    rng = random.Random(0)
    sentences = [rng.choices(words, k=rng.randint(0, 9)) for _ in range(2000)]
    expected = [oracle_lm.backoff_score(grams_of(ARPA), sentence) for sentence in sentences]
    np.testing.assert_allclose(score(table, sentences), expected, rtol=1e-6)
    # Alone as among others, for fewer sentences than lanes too.
    together = score(table, sentences[:40])
    assert [score(table, [sentence])[0] for sentence in sentences[:40]] == together.tolist()
    assert len(score(table, [])) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_random_models_score_as_the_definition(tmp_path_factory, seed, order):
    """Any set of n-grams whose contexts are there; suffixes may lack, weights may be 0."""
    rng = random.Random(seed)
    alphabet = ["<s>", "</s>", "<unk>", *"abcdefgh"[: rng.randint(1, 8)]]
    levels = [[(word,) for word in alphabet]]
    for _ in range(1, order):
        longer = {(*rng.choice(levels[-1]), rng.choice(alphabet)) for _ in range(rng.randint(1, 60))}
        levels.append(sorted(longer))
    lines = ["\\data\\", *(f"ngram {n}={len(level)}" for n, level in enumerate(levels, 1))]
    for n, level in enumerate(levels, 1):
        lines += ["", f"\\{n}-grams:"]
        for gram in level:
            weight = f"\t{round(rng.uniform(-2, 1), 4)}" if n < len(levels) and rng.random() < 0.6 else ""
            lines.append(f"{round(rng.uniform(-6, 0), 6)}\t{' '.join(gram)}{weight}")
    text = "\n".join([*lines, "", "\\end\\", ""])
    table = compiled(tmp_path_factory.mktemp("arpa"), text)
    sentences = [rng.choices([*alphabet, "?"], k=rng.randint(0, 12)) for _ in range(60)]
    expected = [oracle_lm.backoff_score(grams_of(text), sentence) for sentence in sentences]
    np.testing.assert_allclose(score(table, sentences), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.floats(-100, 0, width=32), st.integers(-(10**20), 0).map(float)))
def test_numbers_are_read_like_python_reads_them(tmp_path_factory, value):
    for text in (repr(value), f"{value:.9g}", f"{value:.12e}", f"{value:.20f}"):
        table = compiled(tmp_path_factory.mktemp("arpa"), ARPA.replace("-0.375\ta b", f"{text}\ta b"))
        found = table.slots[:, 1].copy().view(np.float32)
        assert np.float32(float(text)) in found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ARPA, "", "not an ARPA file"),
        (ARPA, "\\data\\\nngram 1=x\n", "not an ARPA file"),
        ("\\2-grams:", "\\3-grams:", "its section of 2-grams is missing"),
        ("ngram 2=5", "ngram 2=4", "its section of 3-grams is missing"),
        ("ngram 2=5", "ngram 2=6", "line 6 of its 2-grams"),
        ("-0.375\ta b", "-0.375\ta z", "line 2 of its 2-grams"),
        ("-0.375\ta b", "-0.375\ta", "line 2 of its 2-grams"),
        ("-0.375\ta b", "-0.375\ta b c", "line 2 of its 2-grams"),
        ("-0.375\ta b", "x\ta b", "line 2 of its 2-grams"),
        ("-1.25\ta\t-0.5", "-1.25\ta\tx", "line 4 of its 1-grams"),
        ("-1.25\ta\t-0.5", "-1.25\tb\t-0.5", "a 1-gram is there twice"),
        ("ngram 1=6", "ngram 1=66666", "not an ARPA file"),
        ("-0.375\ta b", "-0.375\t<s> a", "its 2-gram 2 is there twice"),
        ("-0.1\tc b a", "-0.1\ta a a", "its 3-gram 1 is there twice or lacks its context"),
        ("</s>", "</t>", "not a model of sentences"),
        ("-0.2\t<s> a b\n\n\\end\\\n", "-0.2\t<s> a", "line 2 of its 3-grams"),
    ],
)
def test_a_damaged_arpa_file_is_refused_by_line(tmp_path, old, new, message):
    assert old in ARPA
    with pytest.raises(UserError, match=message):
        compiled(tmp_path, ARPA.replace(old, new))


def test_windows_line_ends_and_spaces_are_read(tmp_path):
    plain = compiled(tmp_path)
    other = compiled(tmp_path, ARPA.replace("\n", "\r\n"))
    assert np.array_equal(plain.slots, other.slots) and np.array_equal(plain.states, other.states)


def test_no_word_has_the_key_of_an_empty_slot():
    odd, empty = int(ngram_table.ODD), int(ngram_table.EMPTY)
    word = (empty * pow(odd, -1, 1 << 32) - 1) % (1 << 32)
    assert ngram_table.key_of(word) == ngram_table.EMPTY and word >= ngram_table.MAX_WORDS


def test_a_saved_table_is_the_same_and_a_cut_one_is_refused(tmp_path):
    table = compiled(tmp_path)
    path, again = tmp_path / "a.ngrams", tmp_path / "b.ngrams"
    ngram_table.save(table, path)
    loaded = ngram_table.load(path)
    for name in ("root", "states", "slots"):
        assert np.array_equal(getattr(table, name), getattr(loaded, name))
    assert (loaded.order, loaded.begin, loaded.end, loaded.unknown) == (3, table.begin, table.end, table.unknown)
    sentence = ["a", "b", "c", "b", "a"]
    assert score(loaded, [sentence]) == score(table, [sentence])
    ngram_table.save(loaded, again)
    assert again.read_bytes() == path.read_bytes()
    for size in (path.stat().st_size - 1, 200, 128):
        again.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match="cut short"):
            ngram_table.load(again)
    for data in (b"", b"x" * 300, bytes(8) + path.read_bytes()[8:]):
        again.write_bytes(data)
        with pytest.raises(UserError, match="not an n-gram table of this version"):
            ngram_table.load(again)


# ---- against KenLM and SentencePiece


def test_documents_score_as_kenlm_scores_them(models):  # noqa: F811
    """Totals of documents over the same pieces: within 1e-6 of the library's words, 1e-4 of its float32 sums."""
    for language in ("en", "zh"):
        kernel, _, reference = engines(models / f"{language}.klm")
        texts = [*corpus("en", 40, 11), *corpus("zh", 40, 11), "桥" * 5000, "the " * 2000, "한국어 ☃☃ 𠀀𠀁 zq </s> <s>"]
        lines = lm_lines(TextBatch.from_strings(texts))
        logs, _ = kernel.score(lines.data, lines.offsets)
        pieces = [reference.segment(line) for line in lines.strings()]
        words = [math.fsum(word[0] for word in reference.kenlm.full_scores(" ".join(line))) for line in pieces]
        total = np.bincount(lines.document, logs)
        np.testing.assert_allclose(total, np.bincount(lines.document, words), rtol=1e-6)
        np.testing.assert_allclose(total, np.bincount(lines.document, reference.score_pieces(pieces)[0]), rtol=1e-4)


def numbers_of(pieces, table):
    found = [table.words.number(piece.encode()) for piece in pieces]
    return [table.unknown if number < 0 else number for number in found]


WORDS = st.lists(st.lists(LETTERS, max_size=40).map("".join), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(WORDS)
def test_pieces_are_those_of_the_exact_best_path(models, texts):  # noqa: F811
    lines = lm_lines(TextBatch.from_strings([*texts, *texts, " ".join(texts)]))
    for language in ("en", "zh"):
        kernel, library, reference = engines(models / f"{language}.klm")
        found, ends = kernel._pieces.numbers(lines.data, lines.offsets)
        expected = [reference.segment(line) for line in lines.strings()]
        assert found.tolist() == [number for line in expected for number in numbers_of(line, kernel._table)]
        assert ends.tolist() == np.cumsum(list(map(len, expected))).tolist()
        # The library's path is as good: where it is another one, its sum is the same within its float32.
        for line, ours in zip(lines.strings(), expected, strict=True):
            theirs = library._processor.encode(line, out_type=str)
            if theirs != ours:
                totals = [path_sum(pieces, reference.scores) for pieces in (ours, theirs)]
                assert totals[0] >= totals[1] and float(totals[0] - totals[1]) <= 1e-6 * abs(totals[0]), line


def path_sum(pieces, scores):
    unknown = min(scores.values()) - 10
    return sum((scores[piece] if piece in scores else unknown * len(piece) for piece in pieces), Fraction(0))


def test_pieces_do_not_depend_on_what_is_remembered(models):  # noqa: F811
    kernel = engines(models / "en.klm")[0]
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghiklmnorstuvw0.的桥☃", k=rng.randint(1, 30))) for _ in range(3000)]
    lines = lm_lines(TextBatch.from_strings([" ".join(rng.choices(words, k=30)) for _ in range(400)]))
    pieces = kernel._pieces

    def of(memory, order):
        fresh = lm_kernels.Pieces(
            pieces.codes, pieces.trie, pieces.space, pieces.unknown, pieces.words, pieces.other, memory
        )
        result = {}
        for line in order:
            result[line] = fresh.numbers(lines.data, lines.offsets[line : line + 2])[0].tolist()
        return [result[line] for line in sorted(result)]

    count = len(lines)
    expected = of(np.zeros((1, 16), np.int64), range(count))
    assert of(np.zeros((1 << 12, 16), np.int64), range(count)) == expected
    large = np.zeros((1 << 12, 16), np.int64)
    assert of(large, [*range(count - 1, -1, -1), *range(count)]) == expected
    assert np.count_nonzero(large[:, 3]) > 500  # words were remembered


def test_an_empty_word_is_a_space_of_its_own(models):  # noqa: F811
    kernel, _, reference = engines(models / "en.klm")
    data = np.frombuffer(b"the  river\n\n the \n", np.uint8)
    found, ends = kernel._pieces.numbers(data, np.array([0, 11, 12, 18]))
    expected = [reference.segment(line) for line in ("the  river", "", " the ")]
    assert found.tolist() == [number for line in expected for number in numbers_of(line, kernel._table)]
    assert ends.tolist() == np.cumsum(list(map(len, expected))).tolist()


# ---- with and without a table


def test_a_model_without_table_is_scored_by_the_libraries(models, tmp_path):  # noqa: F811
    for suffix in ("", ".spm", ".json"):
        shutil.copy(models / f"en.klm{suffix}", tmp_path / f"en.klm{suffix}")
    manifest = json.loads((tmp_path / "en.klm.json").read_text())
    del manifest[perplexity.TABLE]
    (tmp_path / "en.klm.json").write_text(json.dumps(manifest))
    old, new = (perplexity.Scorer({"en": str(folder / "en.klm")}) for folder in (tmp_path, models))
    assert old._models["en"]._pieces is None and new._models["en"]._pieces is not None
    assert old.fingerprint != new.fingerprint
    batch = TextBatch.from_strings([*corpus("en", 30, 9), "</s> <s> <unk> ☃"])
    for a, b in zip(old.measure(batch, ["en"] * 31), new.measure(batch, ["en"] * 31), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_training_without_a_table_removes_the_old_one(models, tmp_path):  # noqa: F811
    for suffix in ("", ".spm", ".ngrams", ".json"):
        shutil.copy(models / f"en.klm{suffix}", tmp_path / f"en.klm{suffix}")
    manifest = train_lm.train(
        "en", [str(models / "en.jsonl")], tmp_path / "en.klm", memory="64M", vocab_size=400, table=False
    )
    assert perplexity.TABLE not in manifest and not (tmp_path / "en.klm.ngrams").exists()
    assert (tmp_path / "en.klm").read_bytes() == (models / "en.klm").read_bytes()
    assert perplexity.Scorer({"en": str(tmp_path / "en.klm")}).languages == ["en"]


def test_words_are_found_by_all_their_bytes():
    words = ["a", "b", "ab", "ba", "", "的", "a" * 100]
    offsets = np.cumsum([0, *(len(word.encode()) for word in words)]).astype(np.int64)
    index = ngram_arpa.Words.of(np.frombuffer("".join(words).encode(), np.uint8), offsets)
    assert [index.number(word.encode()) for word in words] == list(range(7))
    assert index.number(b"c") == index.number(b"a" * 99) == -1
