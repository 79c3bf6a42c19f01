"""Benchmark items in training data: planted copies in texts and packs are found, with their documents; others are not."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import eval_results
import oracle_train_data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_tokenizers

from eval import contamination, statistics, training_text
from eval import tasks as eval_tasks
from eval.tasks.items import items
from ziya.errors import UserError
from ziya.tokenizer import load_tokenizer

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "benchmarks"


def prose(rng: random.Random, words: int, zh: bool) -> str:
    if zh:
        return "".join(chr(rng.randrange(0x4E00, 0x8000)) for _ in range(words))
    return " ".join("".join(rng.choice("abcdefghijkl") for _ in range(rng.randrange(2, 8))) for _ in range(words))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 GSM8K and 40 C-Eval items in the official formats; the last GSM8K item is too short to be checked."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    (folder / "gsm8k").mkdir()
    questions = [prose(rng, 30, zh=False) + "?" for _ in range(39)] + ["How many are seven?"]
    lines = [json.dumps({"question": question, "answer": "So.\n#### 7"}) for question in questions]
    (folder / "gsm8k" / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "ceval" / "val").mkdir(parents=True)
    rows = [",".join([str(n), prose(rng, 25, zh=True), *(prose(rng, 4, zh=True) for _ in "ABCD"), "B"]) for n in range(40)]
    header = "id,question,A,B,C,D,answer"
    (folder / "ceval" / "val" / "law_val.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    return folder


def run(*given: object) -> int:
    parser = argparse.ArgumentParser()
    contamination.add_arguments(parser)
    return contamination.main(parser.parse_args([str(part) for part in given]))


def planted(data: Path) -> tuple[list[Any], list[tuple[str, str]]]:
    """(ten items, documents of which ten hold one of them each, in another layout)."""
    rng = random.Random(1)
    chosen = [*items("gsm8k", data)[3:8], *items("ceval", data)[10:15]]
    documents = []
    for number in range(30):
        zh = number % 2 == 1
        text = prose(rng, 80, zh)
        if number % 3 == 0:
            copy = chosen[number // 3].question.upper().replace("\n", "  ").replace(". ", "．")
            text = f"{text}。{copy}\n{prose(rng, 50, not zh)}"
        documents.append((f"文-{number}", text))
    return chosen, documents


def result(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "contamination.json").read_text(encoding="utf-8"))
    return value


def check_ten(out: Path, chosen: list[Any]) -> None:
    value = result(out)
    assert {entry["id"] for entry in value["flagged"]} == {item.id for item in chosen}
    expected = {item.id: f"文-{3 * place}" for place, item in enumerate(chosen)}
    for entry in value["flagged"]:
        assert entry["documents"][0] == {"id": expected[entry["id"]], "share": 1.0} and entry["coverage"] == 1.0
    assert value["tasks"]["gsm8k"] == {"items": 40, "checked": 39, "flagged": 5, "partial": 0}
    assert value["tasks"]["ceval"] == {"items": 40, "checked": 40, "flagged": 5, "partial": 0}


@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface"])
def test_ten_planted_items_are_found_inside_packs(data: Path, tmp_path: Path, kind: str) -> None:
    if kind == "sentencepiece":
        path = small_tokenizers.sentencepiece_model(tmp_path / "t.model")
    else:
        path = small_tokenizers.tokenizer_json(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(path)
    chosen, documents = planted(data)
    ids, offsets = tokenizer.encode_batch([text for _, text in documents])
    length, rows, room = 128, [], [oracle_train_data.Row([])]
    for number, (name, _) in enumerate(documents):
        tokens = [*ids[offsets[number] : offsets[number + 1]].tolist(), tokenizer.eos_id]
        while tokens:  # spliced: joined and cut at the sample's length
            left = length - len(room[0].tokens)
            room[0].pieces.append(oracle_train_data.Piece(name, tokens[:left]))
            tokens = tokens[left:]
            if len(room[0].tokens) == length:
                rows.append(room[0])
                room[0] = oracle_train_data.Row([])
    if room[0].pieces:
        room[0].pieces.append(oracle_train_data.Piece("", [tokenizer.pad_id] * (length - len(room[0].tokens))))
        rows.append(room[0])
    (tmp_path / "packs").mkdir()
    told = {name: getattr(tokenizer, name) for name in ("kind", "fingerprint", "vocab_size", "eos_id", "pad_id")}
    oracle_train_data.write_pack(tmp_path / "packs" / "crawl", rows, "splice", told)
    where = ("--data", data, "--tasks", "gsm8k,ceval", "--output", tmp_path)
    assert run("--packs", tmp_path / "packs", "--tokenizer", path, *where) == 0
    check_ten(tmp_path, chosen)
    assert result(tmp_path)["documents"] == 30
    with pytest.raises(UserError, match="give --tokenizer"):
        run("--packs", tmp_path / "packs", *where)
    (tmp_path / "packs" / "tokenizer").mkdir()
    shutil.copy(path, tmp_path / "packs" / "tokenizer" / f"tokenizer{path.suffix}")
    assert run("--packs", tmp_path / "packs", *where) == 0
    check_ten(tmp_path, chosen)
    other = small_tokenizers.sentencepiece_model(tmp_path / "other.model", vocab_size=600)
    with pytest.raises(UserError, match="fingerprint"):
        run("--packs", tmp_path / "packs", "--tokenizer", other, *where)


def test_packs_become_the_texts_that_they_were_made_of(tmp_path: Path) -> None:
    texts = ["The river isn't large. 它建于1784年，艾辉\n\n    return a + b", "  两次  被烧毁 <0x41> ▁ é 😀"]
    paths = [small_tokenizers.sentencepiece_model(tmp_path / "t.model"), small_tokenizers.tokenizer_json(tmp_path / "t.json")]
    for path in paths:
        tokenizer = load_tokenizer(path)
        spelling = training_text.Spelling.of(tokenizer)
        for text in texts:
            ids, _ = tokenizer.encode_batch([text])
            spelled = spelling.text(ids).tobytes().decode()
            assert spelled.strip().replace("▁", " ") == text.strip().replace("▁", " "), path.name


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_documents_of_every_format(data: Path, tmp_path: Path, kind: str) -> None:
    chosen, documents = planted(data)
    folder = tmp_path / "kept"
    folder.mkdir()
    names, texts = [name for name, _ in documents], [text for _, text in documents]
    if kind == "parquet":
        table = pa.table({"id": names, "text": pa.array(texts, pa.large_string())})
        pq.write_table(table, folder / "000000.parquet", row_group_size=7)
    else:
        content = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in documents).encode()
        (folder / f"part.{kind}").write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    run("--documents", tmp_path, "--data", data, "--tasks", "gsm8k,ceval", "--output", tmp_path / "out")
    check_ten(tmp_path / "out", chosen)


def test_an_item_spread_over_documents_counts_and_parts_are_listed(data: Path, tmp_path: Path) -> None:
    whole, part = (item.question.split() for item in items("gsm8k", data)[:2])
    documents = [" ".join(whole[:20]), "x. " + " ".join(whole[11:]), " ".join(part[:15])]
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"messages": [{"content": text}]}) + "\n" for text in documents), encoding="utf-8")
    run("--documents", path, "--data", data, "--tasks", "gsm8k", "--output", tmp_path)
    value = result(tmp_path)
    assert [(entry["id"], entry["coverage"]) for entry in value["flagged"]] == [("gsm8k/gsm8k/test/0", 1.0)]
    assert [item["id"] for item in value["flagged"][0]["documents"]] == ["two.jsonl:1", "two.jsonl:2"]
    assert [(entry["id"], entry["coverage"]) for entry in value["partial"]] == [("gsm8k/gsm8k/test/1", 6 / 21)]
    run("--documents", path, "--data", data, "--tasks", "gsm8k", "--output", tmp_path, "--threshold", 6 / 21)
    assert len(result(tmp_path)["flagged"]) == 2


def test_scores_without_flagged_items_stand_beside_the_others(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world = eval_results.write(out, items=40, count=2)
    real = items("gsm8k", data)
    for model in ("base", "step-100"):
        lines = world["samples"][model]["gsm8k"]
        for number, line in enumerate(lines):
            line["doc"] = {"question": real[number].question}
        path = out / "samples" / model / "gsm8k.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "a.txt").write_text("\n".join(item.question for item in real[2:8]), encoding="utf-8")
    run("--documents", tmp_path / "a.txt", "--data", data, "--tasks", "gsm8k", "--output", out)
    rows = result(out)["scores"]
    assert [(row["model"], row["n"], row["clean_n"], row["flagged"]) for row in rows] == [("base", 40, 34, 6), ("step-100", 40, 34, 6)]
    for row in rows:
        kept = [line["correct"] for n, line in enumerate(world["samples"][row["model"]]["gsm8k"]) if not 2 <= n < 8]
        assert row["clean_value"] == pytest.approx(sum(kept) / len(kept))
    assert "## Contamination" in (out / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("protocol", ["ziya2", "lm-eval"])
def test_items_with_one_stem_are_told_apart_by_their_options(tmp_path: Path, protocol: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Five items of one stem a subject, the last with the first's options inside its stem; the first's text is in the training data."""
    rng = random.Random(2)
    data, out = tmp_path / "data", tmp_path / "out"
    stems = {"mmlu": "Which of these is right?", "cmmlu": "下列说法中正确的是", "ceval": "下列说法中正确的是"}
    subjects = {"mmlu": "anatomy", "cmmlu": "agronomy", "ceval": "law"}
    seen = []
    for task, stem in stems.items():
        zh = task != "mmlu"
        twins = [[stem, *(prose(rng, 12, zh) for _ in "ABCD"), "A"] for _ in range(4)]
        inside = "\n".join([stem, *(f"{letter}. {option}" for letter, option in zip("ABCD", twins[0][1:5], strict=True))])
        twins.append([inside, "甲", "乙", "丙", "丁", "A"])
        twins[3][1:5] = twins[2][1:5][::-1]  # the third's options in another order
        seen.append(inside)
        header = {"mmlu": [], "cmmlu": [["", "Question", *"ABCD", "Answer"]], "ceval": [["id", "question", *"ABCD", "answer"]]}[task]
        rows = [[*([str(n)] if zh else []), *row] for n, row in enumerate(twins)]
        split = "val" if task == "ceval" else "test"
        path = data / task / split / (f"{subjects[task]}.csv" if task == "cmmlu" else f"{subjects[task]}_{split}.csv")
        path.parent.mkdir(parents=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([*header, *rows])
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {"m": {}}
    for one in eval_tasks.subjects(list(stems), protocol, data, shots=0, allow_missing=True, warn=lambda _: None):  # type: ignore[arg-type]
        docs = next(iter(one.config["custom_dataset"]().values()))
        samples["m"][one.task] = [
            {"doc": dict(doc), "correct": float(n in (0, 4)), "sample_hash": f"{one.task} {n}", "task": one.task, "subject": one.name}
            for n, doc in enumerate(docs)
        ]
        path = out / "samples" / "m" / f"{one.task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in samples["m"][one.task]), encoding="utf-8")
    models = [{"model": "m", "folder": "f", "step": None, "stage": None, "tokens": None, "is_base": False, "run": None}]
    (out / "models.json").write_text(json.dumps(models))
    (out / "results.json").write_text(json.dumps(statistics.summarise(samples, models, None, protocol, 1)))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in seen), encoding="utf-8")
    run("--documents", tmp_path / "a.jsonl", "--data", data, "--tasks", ",".join(stems), "--output", out)
    value = result(out)
    # The fifth holds the first's text and eight units more; the others share with it fewer units than a 10-gram has.
    flagged = {f"{task}/{name}/{'val' if task == 'ceval' else 'test'}/{n}" for task, name in subjects.items() for n in (0, 4)}
    assert {entry["id"] for entry in value["flagged"]} == flagged
    assert {row["task"]: (row["n"], row["value"], row["clean_n"], row["clean_value"]) for row in value["scores"]} == dict.fromkeys(
        stems, (5, 0.4, 3, 0.0)
    )
    assert "no items of --data" not in capfd.readouterr().err
    path = data / "mmlu" / "test" / "anatomy_test.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(stems["mmlu"], "Which was it?"), encoding="utf-8")
    run("--documents", tmp_path / "a.jsonl", "--data", data, "--tasks", "mmlu", "--output", out)
    assert "mmlu m: 5 of 5 samples are no items of --data" in capfd.readouterr().err


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pack `crawl` and its tokenizer."""
    folder = tmp_path_factory.mktemp("packs")
    (folder / "tokenizer").mkdir()
    tokenizer = load_tokenizer(small_tokenizers.tokenizer_json(folder / "tokenizer" / "tokenizer.json"))
    tokens = tokenizer.encode_batch([small_tokenizers.ENGLISH])[0].tolist()[:64]
    told = {name: getattr(tokenizer, name) for name in ("kind", "fingerprint", "vocab_size", "eos_id", "pad_id")}
    oracle_train_data.write_pack(folder / "crawl", [oracle_train_data.Row([oracle_train_data.Piece("a", tokens)])], "splice", told)
    return folder


@pytest.fixture
def files(pack: Path, tmp_path: Path) -> Path:
    """A folder of training data in which every kind of mistake has its place."""
    shutil.copytree(pack, tmp_path / "whole")
    for name, lost in (("no_idx", "crawl.idx"), ("no_bin", "crawl.bin")):
        shutil.copytree(pack, tmp_path / name)
        (tmp_path / name / lost).unlink()
    shutil.copytree(pack, tmp_path / "hole")
    pieces = tmp_path / "hole" / "crawl.documents.parquet"
    content, column = pieces.read_bytes(), pq.ParquetFile(pieces).metadata.row_group(0).column(2)
    begin = column.dictionary_page_offset or column.data_page_offset
    pieces.write_bytes(content[:begin] + b"\xff" * 20 + content[begin + 20 :])
    (tmp_path / "empty").mkdir()
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"text": [f"{n} {small_tokenizers.ENGLISH}" for n in range(500)]}), good)
    content = good.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "hole.parquet").write_bytes(content[:100] + b"\xff" * 2000 + content[2100:])
    (tmp_path / "nothing.parquet").write_bytes(b"")
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "column.parquet")
    pq.write_table(pa.table({"text": [["x"]]}), tmp_path / "lists.parquet")
    line = json.dumps({"text": "x"}).encode() + b"\n"
    packed = gzip.compress(str(random.Random(0).getrandbits(12000)).encode())
    (tmp_path / "bad.jsonl").write_bytes(line + b"{")
    (tmp_path / "bytes.jsonl").write_bytes(line + b'{"text": "\xff"}')
    (tmp_path / "plain.jsonl.gz").write_bytes(line)
    (tmp_path / "short.jsonl.gz").write_bytes(gzip.compress(line * 99)[:-9])
    (tmp_path / "hole.txt.gz").write_bytes(packed[:500] + b"\xff" * 200 + packed[700:])
    (tmp_path / "other.json").write_bytes(b'{"text": ')
    (tmp_path / "no_text.jsonl").write_bytes(b'{"id": 7}\n{}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("--packs", ".", None),
        ("--packs", "whole/crawl", None),
        ("--packs", "whole/crawl.bin", None),
        ("--packs", "whole/..", None),
        ("--packs", "empty", "holds no packs"),
        ("--packs", "none", r"--packs .*none does not exist"),
        ("--packs", "good.parquet", r"good\.parquet is no file of a pack"),
        ("--packs", "no_idx", r"crawl\.idx is missing"),
        ("--packs", "no_idx/crawl", r"crawl\.idx is missing"),
        ("--packs", "no_bin", r"crawl\.bin is missing"),
        ("--packs", "hole", r"crawl\.documents\.parquet is not a whole Parquet file"),
        ("--documents", "empty", "holds no documents"),
        ("--documents", "none", r"--documents .*none does not exist"),
        ("--documents", "cut.parquet", r"cut\.parquet is not a whole Parquet file"),
        ("--documents", "hole.parquet", r"hole\.parquet is not a whole Parquet file"),
        ("--documents", "nothing.parquet", r"nothing\.parquet is not a whole Parquet file"),
        ("--documents", "column.parquet", "no column text"),
        ("--documents", "lists.parquet", r"lists\.parquet is not a whole Parquet file with texts"),
        ("--documents", "bad.jsonl", r"bad\.jsonl, line 2: not valid JSON"),
        ("--documents", "bytes.jsonl", r"bytes\.jsonl, line 2: not valid JSON"),
        ("--documents", "plain.jsonl.gz", r"plain\.jsonl\.gz is not a whole gzip file"),
        ("--documents", "short.jsonl.gz", r"short\.jsonl\.gz is not a whole gzip file"),
        ("--documents", "hole.txt.gz", r"hole\.txt\.gz is not a whole gzip file"),
        ("--documents", "other.json", r"other\.json: not valid JSON"),
        ("--documents", "no_text.jsonl", "holds no text at all"),
    ],
)
def test_every_odd_place_is_searched_or_told_in_one_line(
    data: Path, files: Path, monkeypatch: pytest.MonkeyPatch, option: str, place: str, message: str | None
) -> None:
    for name in ("no_idx", "no_bin", "hole"):
        if not place.startswith(name):
            shutil.rmtree(files / name)
    monkeypatch.chdir(files / "whole" if place == "." else files)
    given = ("--data", data, "--tasks", "gsm8k", option, place)
    if message is None:
        tokenizer = () if place != "whole/.." else ("--tokenizer", files / "whole" / "tokenizer" / "tokenizer.json")
        assert run(*given, *tokenizer) == 0
        return
    with pytest.raises(UserError, match=message) as error:
        run(*given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_a_mistake_in_packs_is_told_before_documents_are_searched(
    data: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contamination.Check, "search", lambda *_: pytest.fail("hours of searching"))
    with pytest.raises(UserError, match="holds no packs"):
        run("--data", data, "--tasks", "gsm8k", "--documents", files / "good.parquet", "--packs", files / "empty")


def test_what_is_no_training_text_and_no_place_for_results_is_refused(data: Path, tmp_path: Path) -> None:
    for folder, files in (("run", ("metrics.jsonl",)), ("model", ("config.json", "tokenizer.json", "model.safetensors", "merges.txt"))):
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).write_text("{}\n")
    (tmp_path / "my.yaml").write_text("a: b\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    for place, told in (("my.yaml", "is no file of documents"), ("model", "folder of a model"), ("run", "folder of a training run")):
        with pytest.raises(UserError, match=told):
            run("--documents", tmp_path / place, "--data", data, "--tasks", "gsm8k")
    for place in ("model", "run"):
        with pytest.raises(UserError, match=f"--output .*{place} is the folder of"):
            run("--documents", tmp_path / "a.jsonl", "--data", data, "--tasks", "gsm8k", "--output", tmp_path / place)
        assert not (tmp_path / place / "contamination.json").exists()


def test_wrong_options_are_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --packs, --documents or both"):
        run("--data", data)
    with pytest.raises(UserError, match="threshold"):
        run("--data", data, "--documents", tmp_path, "--threshold", 80)


@pytest.mark.skipif(not (SHARED / "gsm8k" / "train.jsonl").exists(), reason="the shared benchmark files are not here")
def test_gsm8k_train_does_not_flag_gsm8k_test(tmp_path: Path) -> None:
    run("--documents", SHARED / "gsm8k" / "train.jsonl", "--data", SHARED, "--tasks", "gsm8k", "--output", tmp_path)
    value = result(tmp_path)
    assert value["tasks"]["gsm8k"]["items"] >= 1 and value["flagged"] == []


@pytest.mark.skipif(not (SHARED / "cmmlu").exists(), reason="the shared benchmark files are not here")
def test_every_real_item_finds_itself_and_almost_all_can_be_checked(tmp_path: Path) -> None:
    tasks = [name for name in ("ceval", "cmmlu", "mmlu", "gsm8k", "humaneval", "math") if (SHARED / name).is_dir()]
    texts = [item.question for task in tasks for item in items(task, SHARED)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    run("--documents", tmp_path / "all.jsonl", "--data", SHARED, "--tasks", ",".join(tasks), "--output", tmp_path)
    value = result(tmp_path)
    assert all(counts["flagged"] == counts["checked"] > 0 for counts in value["tasks"].values())
    checked, every = (sum(counts[name] for counts in value["tasks"].values()) for name in ("checked", "items"))
    assert checked >= 0.99 * every, "short problems of MATH aside, every item has 10-grams of its own"
