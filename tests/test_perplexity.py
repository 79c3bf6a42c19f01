"""lm_text, train_lm and perplexity: equality with plain references, one normaliser, refusals, same bytes."""

import functools
import io
import json
import random
import shutil

import kenlm
import numpy as np
import oracle_lm
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_factory import lm_inputs, lm_text, perplexity, train_lm
from data_factory.batches import TextBatch
from data_factory.lm_text import lm_lines
from ziya.errors import UserError

EN = [
    "the",
    "a",
    "small",
    "old",
    "river",
    "town",
    "house",
    "keeps",
    "water",
    "under",
    "its",
    "stone",
    "bridge",
    "and",
    "people",
    "walk",
    "slowly",
    "home",
    "every",
    "evening",
    "after",
    "work",
]
ZH = [
    "我们",
    "昨天",
    "在",
    "河边",
    "看见",
    "一座",
    "石桥",
    "城市",
    "的",
    "历史",
    "很",
    "长",
    "工程师",
    "修建",
    "了",
    "水库",
    "，",
    "并且",
    "研究",
    "语言",
]


def corpus(language, count, seed):
    """`count` documents of random sentences from a small grammar of each language."""
    rng = random.Random(f"{language} {seed}")
    join, words, end = (" ", EN, ". ") if language == "en" else ("", ZH, "。")

    def sentence():
        return join.join(rng.choice(words) for _ in range(rng.randint(4, 14))) + end

    return [
        "\n".join("".join(sentence() for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 6)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def programs():
    """KenLM's programs, which no package brings: what trains a model is skipped without them."""
    try:
        train_lm.find_program("lmplz")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def models(programs, tmp_path_factory):
    """A model of each language, trained through the command's engine on generated text."""
    folder = tmp_path_factory.mktemp("models")
    for language in ("en", "zh"):
        rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in corpus(language, 300, 0))
        (folder / f"{language}.jsonl").write_text(rows, encoding="utf-8")
        train_lm.train(
            language, [str(folder / f"{language}.jsonl")], folder / f"{language}.klm", memory="64M", vocab_size=400
        )
    return folder


# ---- lm_text


def test_normaliser_on_known_texts():
    texts = [
        "Ünïcödé ＡＢ１２ “Hi”…。\u200b x\r\n\n  ß e\u0301 한국 が",
        "他说：“２０２３年，（约３％）！”\t好",
        "",
        " \n\t\n",
    ]
    found = lm_lines(TextBatch.from_strings(texts))
    assert found.strings() == ['unicode ab00 "hi".. x', "ß e 한국 が", '他说:"0000年,(约0%)!" 好']
    assert found.document.tolist() == [0, 0, 1]
    assert len(found) == 3 and found.offsets[-1] == len(found.data)


def test_every_character_maps_like_the_reference_and_only_once():
    points = [point for point in range(0x323B0) if not 0xD800 <= point < 0xE000]
    # The letter on both sides keeps spaces and dropped characters visible.
    texts = [f"a{chr(point)}b" for point in points]
    found = lm_lines(TextBatch.from_strings(texts))
    expected = [(i, line) for i, text in enumerate(texts) for line in oracle_lm.lines(text)]
    assert list(zip(found.document.tolist(), found.strings(), strict=True)) == expected
    again = lm_lines(TextBatch.from_strings(found.strings())).strings()
    assert again == found.strings()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet=st.sampled_from("aÉ0９。！? \n\t\u3000\u2028\u0301漢汉😀é𠀀Ⱥ"), max_size=40), max_size=6),
    st.integers(1, 400),
)
def test_lines_equal_the_reference_also_when_long(texts, repeat):
    texts = [text * (repeat if i == 0 else 1) for i, text in enumerate(texts)]
    found = lm_lines(TextBatch.from_strings(texts))
    expected = [(i, line) for i, text in enumerate(texts) for line in oracle_lm.lines(text)]
    assert list(zip(found.document.tolist(), found.strings(), strict=True)) == expected
    assert all(len(line.encode()) <= train_lm.LONGEST_LINE for line in found.strings())


def test_a_page_without_line_breaks_is_cut_where_sentences_end():
    text = "我们研究语言。" * 3000
    lines = lm_lines(TextBatch.from_strings([text])).strings()
    assert len(lines) == 21 and all(line.endswith(".") for line in lines)
    assert "".join(lines) == text.replace("。", ".")


# ---- scoring


def test_scores_equal_the_word_by_word_reference(models):
    scorer = perplexity.Scorer({language: str(models / f"{language}.klm") for language in ("zh", "en")})
    assert scorer.languages == ["en", "zh"]
    for language in ("en", "zh"):
        # Unknown characters and words, <s> and </s> as text, long lines, other scripts, empty documents.
        texts = [
            *corpus(language, 20, 1),
            "",
            " \n ",
            "한국어 텍스트 ☃ 𠀀𠀁",
            "<s> the </s> <unk> bridge",
            "the\x00bridge",
            "桥" * 5000,
            "the " * 2000,
        ]
        expected = [oracle_lm.Reference(models / f"{language}.klm").score(text) for text in texts]
        found = scorer.score(TextBatch.from_strings(texts), [language] * len(texts))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=3e-4)  # KenLM adds a line in float32
        assert np.isnan(found[20:22]).all() and not np.isnan(found[:20]).any()


LETTERS = st.sampled_from([*"abcdefgh tow rivn.,0", "的", "我们", "桥", "。", "한", "☃", "𠀀", "é", "\n"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(LETTERS, max_size=150).map("".join), min_size=1, max_size=8))
def test_scores_equal_one_call_of_the_libraries_a_line(models, texts):
    lines = lm_lines(TextBatch.from_strings(texts + texts[:2]))
    for language in ("en", "zh"):
        kernel, library, reference = engines(models / f"{language}.klm")
        logs, counts = library.score(lines.data, lines.offsets)
        assert (logs.tolist(), counts.tolist()) == reference.score_lines(lines.strings())
        logs, counts = kernel.score(lines.data, lines.offsets)
        expected = reference.score_pieces([reference.segment(line) for line in lines.strings()])
        assert counts.tolist() == expected[1]
        np.testing.assert_allclose(logs, expected[0], rtol=1e-4)  # KenLM adds a line in float32


@functools.cache
def engines(model):
    """(engine with the kernels, engine of the libraries, plain reference)."""
    spm = perplexity.side_cars(model)[0]
    kernel, library = perplexity.Engine(model, spm, perplexity.table_path(model)), perplexity.Engine(model, spm)
    assert kernel._pieces is not None and library._pieces is None
    return kernel, library, oracle_lm.Reference(model)


def test_a_trie_model_gives_the_same_scores(tmp_path, models):
    texts = [*corpus("zh", 30, 7), *corpus("en", 30, 7), "桥" * 5000, "the " * 2000, "한국어 ☃☃ 𠀀𠀁 zq"]
    lines = lm_lines(TextBatch.from_strings(texts))
    train_lm.train(
        "zh", [str(models / "zh.jsonl")], tmp_path / "zh.klm", memory="64M", vocab_size=400, structure="trie"
    )
    found, expected = (engines(path / "zh.klm")[1].score(lines.data, lines.offsets) for path in (tmp_path, models))
    assert (tmp_path / "zh.klm.ngrams").read_bytes() == (models / "zh.klm.ngrams").read_bytes()
    assert found[0].tolist() == expected[0].tolist() and found[1].tolist() == expected[1].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe"},
        {"byte_fallback": True, "vocab_size": 400},
        {"user_defined_symbols": ["river"]},
        {"treat_whitespace_as_suffix": True},
        {"add_dummy_prefix": False},
        {"normalization_rule_name": "nfkc"},
    ],
)
def test_other_sentencepiece_models_are_left_to_the_library(models, tmp_path, options):
    settings = {"model_type": "unigram", "normalization_rule_name": "identity", "vocab_size": 60, **options}
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus("en", 100, 5)),
        model_writer=out,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    (tmp_path / "other.spm").write_bytes(out.getvalue())
    engine = perplexity.Engine(models / "en.klm", tmp_path / "other.spm", models / "en.klm.ngrams")
    assert engine._pieces is None
    lines = lm_lines(TextBatch.from_strings(corpus("en", 3, 6)))
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    model = kenlm.Model(str(models / "en.klm"))
    expected = [model.score(" ".join(processor.encode(line, out_type=str))) for line in lines.strings()]
    assert engine.score(lines.data, lines.offsets)[0].tolist() == expected


def test_a_file_that_is_no_model_is_named(tmp_path, models):
    (tmp_path / "a.klm").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"a\.klm cannot be loaded"):
        perplexity.Engine(tmp_path / "a.klm", models / "en.klm.spm")
    with pytest.raises(UserError, match="cannot be loaded"):
        perplexity.Engine(models / "en.klm", tmp_path / "a.klm")
    with pytest.raises(UserError, match=r"a\.klm is not an n-gram table of this version"):
        perplexity.Engine(models / "en.klm", models / "en.klm.spm", tmp_path / "a.klm")


def test_a_document_scores_alone_as_in_any_batch(models, monkeypatch):
    scorer = perplexity.Scorer({language: str(models / f"{language}.klm") for language in ("en", "zh")})
    texts = [text for pair in zip(corpus("en", 12, 2), corpus("zh", 12, 2), strict=True) for text in pair]
    langs = ["en", "zh"] * 12
    together = scorer.score(TextBatch.from_strings(texts), langs)
    alone = [scorer.score(TextBatch.from_strings([text]), [lang])[0] for text, lang in zip(texts, langs, strict=True)]
    assert together.tolist() == alone
    monkeypatch.setattr(perplexity, "_CHUNK_BYTES", 50)
    assert scorer.score(TextBatch.from_strings(texts), langs).tolist() == alone
    monkeypatch.setattr(scorer, "_models", {lang: engines(models / f"{lang}.klm")[1] for lang in ("en", "zh")})
    by_library = scorer.score(TextBatch.from_strings(texts), langs)
    np.testing.assert_allclose(by_library, alone, rtol=1e-5)
    monkeypatch.setattr(perplexity, "_CHUNK_BYTES", 1 << 20)
    assert scorer.score(TextBatch.from_strings(texts), langs).tolist() == by_library.tolist()
    assert np.isnan(scorer.score(TextBatch.from_strings(texts), ["ja"] * 24)).all()
    assert len(scorer.score(TextBatch.from_strings([]), [])) == 0


def test_known_perplexities_are_not_computed_again(models):
    scorer = perplexity.Scorer({language: str(models / f"{language}.klm") for language in ("en", "zh")})
    texts, langs = [*corpus("en", 4, 8), *corpus("zh", 4, 8), "", "x"], ["en"] * 4 + ["zh"] * 4 + ["en", "ja"]
    batch = TextBatch.from_strings(texts)
    value, bits = scorer.measure(batch, langs)
    assert np.array_equal(value, scorer.score(batch, langs), equal_nan=True)
    known = np.where(np.arange(10) % 2 == 0, value, np.float32(np.nan)).astype(np.float32)
    again = scorer.measure(batch, langs, known)
    assert np.array_equal(again[0], value, equal_nan=True) and np.array_equal(again[1], bits, equal_nan=True)
    known[0] = 2.0  # taken as it is
    other = scorer.measure(batch, langs, known)
    assert other[0][0] == 2 and other[1][0] < bits[0] and other[0][1:8].tolist() == value[1:8].tolist()


def test_training_text_scores_better_than_shuffled_words(models):
    scorer = perplexity.Scorer({"en": str(models / "en.klm")})
    good = corpus("en", 5, 3)
    bad = ["".join(random.Random(1).sample(text, len(text))) for text in good]
    value, bits = scorer.measure(TextBatch.from_strings(good + bad), ["en"] * 10)
    assert value[:5].max() < value[5:].min() and bits[:5].max() < bits[5:].min()


def test_training_and_scoring_use_one_normaliser(models, tmp_path, monkeypatch):
    """Any change of `lm_lines` must change both what is trained and what is scored: neither may hold a copy."""
    calls = []
    real = lm_text.lm_lines
    monkeypatch.setattr(lm_text, "lm_lines", lambda batch: calls.append(len(batch)) or real(batch))
    (tmp_path / "a.txt").write_text("\n".join(corpus("en", 40, 4)), encoding="utf-8")
    train_lm.train("en", [str(tmp_path / "a.txt")], tmp_path / "en.klm", memory="64M", vocab_size=100, order=2)
    trained = len(calls)
    perplexity.Scorer({"en": str(tmp_path / "en.klm")}).score(TextBatch.from_strings(["a"]), ["en"])
    assert trained == 1 and len(calls) == 2


# ---- models on disk


def test_same_text_gives_the_same_bytes_in_another_folder(models, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    source = shutil.copy(models / "zh.jsonl", tmp_path / "elsewhere" / "x.jsonl")
    train_lm.train("zh", [str(source)], tmp_path / "zh.klm", memory="80M", vocab_size=400)
    for suffix in ("", ".spm", ".ngrams", ".json"):
        assert (tmp_path / f"zh.klm{suffix}").read_bytes() == (models / f"zh.klm{suffix}").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_fingerprint_follows_content_not_paths(models, tmp_path):
    for suffix in ("", ".spm", ".ngrams", ".json"):
        shutil.copy(models / f"en.klm{suffix}", tmp_path / f"moved.klm{suffix}")
    here, there = (
        perplexity.Scorer({"en": str(models / "en.klm")}),
        perplexity.Scorer({"en": str(tmp_path / "moved.klm")}),
    )
    both = perplexity.Scorer({"zh": str(models / "zh.klm"), "en": str(models / "en.klm")})
    assert here.fingerprint == there.fingerprint != both.fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "en.klm").unlink(), "the KenLM model .* is missing; train it with"),
        (lambda folder: (folder / "en.klm.spm").unlink(), "SentencePiece model .* is missing"),
        (lambda folder: (folder / "en.klm.json").unlink(), "manifest .* is missing"),
        (lambda folder: (folder / "en.klm.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "en.klm.json").write_text('{"format": 0}'), "train the model again"),
        (
            lambda folder: (folder / "en.klm.spm").write_bytes((folder / "en.klm.spm").read_bytes() + b"x"),
            "is not the file that en.klm.json describes",
        ),
        (lambda folder: (folder / "en.klm").write_bytes((folder / "en.klm").read_bytes()[:-1]), "copy all files"),
        (lambda folder: (folder / "en.klm.ngrams").unlink(), "n-gram table .* is missing; copy all files"),
        (lambda folder: (folder / "en.klm.ngrams").write_bytes(b"x"), "is not the file that en.klm.json describes"),
        (lambda folder: edit(folder, "normaliser", 0), "normaliser version 0, this program has"),
        (lambda folder: edit(folder, "language", "zh"), "trained for 'zh'"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(models, tmp_path, damage, message):
    for suffix in ("", ".spm", ".ngrams", ".json"):
        shutil.copy(models / f"en.klm{suffix}", tmp_path / f"en.klm{suffix}")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        perplexity.Scorer({"en": str(tmp_path / "en.klm")})


def edit(folder, key, value):
    manifest = json.loads((folder / "en.klm.json").read_text())
    (folder / "en.klm.json").write_text(json.dumps({**manifest, key: value}))


# ---- train-lm


def test_inputs_of_every_kind_give_the_same_model(models, tmp_path):
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    texts = [json.loads(line)["text"] for line in (models / "en.jsonl").read_text(encoding="utf-8").splitlines()]
    raw = (models / "en.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(raw))
    pq.write_table(pa.table({"body": texts}), tmp_path / "a.parquet")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.txt").write_text("\n".join(texts[150:]), encoding="utf-8")
    (tmp_path / "folder" / "a.txt").write_text("\n".join(texts[:150]), encoding="utf-8")
    (tmp_path / "folder" / "notes.md").write_text("not read", encoding="utf-8")
    for name, field in (("a.jsonl.gz", "text"), ("a.jsonl.zst", "text"), ("a.parquet", "body"), ("folder", "text")):
        train_lm.train(
            "en", [str(tmp_path / name)], tmp_path / "out.klm", memory="64M", vocab_size=400, text_field=field
        )
        assert (tmp_path / "out.klm").read_bytes() == (models / "en.klm").read_bytes(), name


def test_a_wikipedia_dump_trains_a_model(programs, tmp_path):
    import bz2

    def page(i, namespace=0):
        lead = f"'''石桥{i}'''是[[河流|河边]]的桥。{{{{引用}}}}[[工程师]]修建了水库。"
        text = f"{lead}\n\n== 历史 ==\n城市的历史很长，人们研究语言。"
        revision = f"<revision><id>1</id><timestamp>2020-01-01T00:00:00Z</timestamp><text>{text}</text></revision>"
        return f"<page><title>桥{i}</title><ns>{namespace}</ns><id>{i}</id>{revision}</page>"

    site = "<siteinfo><dbname>zhwiki</dbname><base>https://zh.wikipedia.org/wiki/X</base></siteinfo>"
    pages = "".join(page(i) for i in range(60)) + page(99, namespace=1)
    dump = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{site}{pages}</mediawiki>'
    (tmp_path / "zhwiki.xml.bz2").write_bytes(bz2.compress(dump.encode()))
    texts = [text for batch in lm_inputs.read_texts([str(tmp_path / "zhwiki.xml.bz2")], "text") for text in batch]
    assert len(texts) == 60 and not any("[[" in text or "{{" in text for text in texts)
    manifest = train_lm.train("zh", [str(tmp_path / "zhwiki.xml.bz2")], tmp_path / "zh.klm", memory="64M")
    assert manifest["documents"] == 60
    scorer = perplexity.Scorer({"zh": str(tmp_path / "zh.klm")})
    good, bad = scorer.score(TextBatch.from_strings(["石桥7是河边的桥。", "的桥边河是7桥石。"]), ["zh", "zh"])
    assert good < bad


def test_small_input_falls_back_and_says_so(programs, tmp_path):
    (tmp_path / "a.txt").write_text("a small river town\nkeeps its water\n", encoding="utf-8")
    with pytest.raises(UserError, match="discount"):
        train_lm.train("en", [str(tmp_path / "a.txt")], tmp_path / "en.klm", memory="64M", discount_fallback="off")
    assert not (tmp_path / "en.klm").exists() and not (tmp_path / "en.klm.spm").exists()
    manifest = train_lm.train("en", [str(tmp_path / "a.txt")], tmp_path / "en.klm", memory="64M", structure="trie")
    assert manifest["discount_fallback"] is True
    assert perplexity.Scorer({"en": str(tmp_path / "en.klm")}).score(TextBatch.from_strings(["a town"]), ["en"])[0] > 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "does not exist"),
        ("a.pdf", b"x", "unknown kind"),
        ("a.txt", b" \n\t\n", "no text for the en model"),
        ("a.txt", b"good\nbad \xff\n", "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        ("a.jsonl", b'{"body": "a"}\n', "--text-field"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00broken", "damaged"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_bad_input_gives_one_clear_line(monkeypatch, tmp_path, name, content, message):
    stand_ins(monkeypatch, tmp_path / "bin")  # input is read before the programs run
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        train_lm.train("en", [str(tmp_path / name)], tmp_path / "en.klm", memory="64M")


def stand_ins(monkeypatch, folder):
    """Make `folder` the place of KenLM's programs, which do nothing there."""
    folder.mkdir()
    for name in ("lmplz", "build_binary"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("ZIYA_LMPLZ", str(folder / "lmplz"))


def test_missing_programs_name_the_script(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ZIYA_LMPLZ", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"scripts/install_lmplz\.sh"):
        train_lm.find_program("lmplz")
    stand_ins(monkeypatch, tmp_path / "bin")
    assert train_lm.find_program("build_binary") == str(tmp_path / "bin" / "build_binary")


def test_wikitext_becomes_prose():
    text = (
        ' = Title = \n \n The " main " game @-@ play ( <unk> ) cost $ 1 @,@ 000 in '
        "3 @.@ 5 years , it 's <unk> .\n = = Part = = \n players ' wish"
    )
    assert (
        train_lm.detokenise_wikitext(text)
        == "Title\nThe \"main\" game-play cost $1,000 in 3.5 years, it's.\nPart\nplayers' wish"
    )


def test_command_prints_its_summary(models, tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    train_lm.add_arguments(parser)
    args = parser.parse_args(
        [
            "--lang",
            "en",
            "--input",
            str(models / "en.jsonl"),
            "--output",
            str(tmp_path / "en.klm"),
            "--memory",
            "64M",
            "--prune",
            "0",
            "0",
            "1",
        ]
    )
    assert train_lm.main(args) == 0
    out = capsys.readouterr().out
    assert "trained on 300 documents" in out and "held out" in out and "bits per character" in out
