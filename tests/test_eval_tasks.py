"""Readers of the official formats: every odd cell kept as text, every broken file told with its place, nothing scored that is not there."""

from __future__ import annotations

import gzip
import hashlib
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_benchmarks
from small_benchmarks import SHARED, needs_shared

from eval.tasks import TASKS, Subject, files, hub, subjects, variants
from eval.tasks.items import Item, items
from ziya.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_benchmarks.write_all(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "data"))


def quiet(text: str) -> None:
    pass


def all_subjects(data: Path, tasks: tuple[str, ...] = TASKS, **changes: object) -> list[Subject]:
    return subjects(tasks, "ziya2", data, allow_missing=True, warn=quiet, **changes)  # type: ignore[arg-type]


def test_cells_stay_text(data: Path) -> None:
    one = items("mmlu", data)[0]
    assert one.id == "mmlu/anatomy/test/0"
    assert (one.raw["A"], one.raw["B"], one.raw["C"], one.raw["D"]) == ("000", "None", " b ", "c, or d")
    assert one.question == 'Question 0 of "anatomy", test:\nwhich?\nA. 000\nB. None\nC.  b \nD. c, or d'
    two = items("cmmlu", data, "test", subject="ancient_chinese")[1]
    assert two.raw["question"] == "ancient_chinese的第1题：下列“说法”中，\n正确的是____。"
    assert (two.raw["A"], two.raw["C"], two.raw["D"], two.answer) == ("甲,1", "None", "1.50", "C")
    assert [one.answer for one in items("ceval", data, subject="law")] == ["A", "B", "C", "D"]


def test_generation_sets(data: Path) -> None:
    assert [one.answer for one in items("gsm8k", data)] == ["1200", "2400", "3600", "4800"]
    assert len(items("gsm8k", data, "train")) == 8
    math = items("math", data)
    assert [(one.subject, one.answer) for one in math] == [
        ("algebra", "\\frac{1}{3}"),
        ("algebra", "2.5"),
        ("number_theory", "1{,}999"),
        ("number_theory", "(-1, 1)"),
    ]
    assert [one.raw["entry_point"] for one in items("humaneval", data)] == ["double", "shout", "first"]


def test_math_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    (tmp_path / "math" / "test.jsonl").write_text(
        '{"problem": "P", "solution": "so \\\\boxed{\\\\frac{1}{2}}", "answer": "\\\\frac12"}\n'
        '{"question": "Q", "answer": "because.\\\\boxed{7}The answer is: 7"}\n',
        encoding="utf-8",
    )
    assert [(one.subject, one.answer) for one in items("math", tmp_path)] == [("math", "\\frac12"), ("math", "7")]
    assert files.missing_subjects("math", tmp_path, "test") == []


def test_archive_folders_are_looked_into(own: Path) -> None:
    before = items("mmlu", own)
    shutil.move(own / "mmlu", own / "data")
    (own / "mmlu").mkdir()
    shutil.move(own / "data", own / "mmlu" / "data")
    assert items("mmlu", own) == before


@pytest.mark.parametrize("task", TASKS)
def test_an_absent_set_says_what_to_download(task: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"{task}: no {files.SOURCES[task].scored} files below .*Download .*(MIT|CC BY-NC-SA)"
    ):
        subjects([task], "ziya2", tmp_path)


def test_missing_subjects_are_named_and_refused_unless_allowed(data: Path) -> None:
    with pytest.raises(
        UserError, match=r"ceval: 50 subjects have no val file .*: computer_network, .*allow_missing=true"
    ):
        subjects(["ceval"], "ziya2", data)
    told: list[str] = []
    found = subjects(["ceval"], "ziya2", data, allow_missing=True, warn=told.append)
    assert [(one.name, one.category, one.items) for one in found] == [
        ("law", "Humanities", 4),
        ("accountant", "Other", 4),
    ]
    assert "50 subjects have no val file" in told[0]
    assert "files differ from the known full set, so partial or of another version (the first: " in told[-1]


def test_a_subject_without_examples_counts_as_missing(own: Path) -> None:
    (own / "mmlu" / "dev" / "anatomy_dev.csv").unlink()
    told: list[str] = []
    found = subjects(["mmlu"], "ziya2", own, allow_missing=True, warn=told.append)
    assert [one.name for one in found] == ["world_religions"]
    assert "56 subjects have no dev file" in told[1]
    assert [one.name for one in all_subjects(own, ("mmlu",), shots=0)] == ["anatomy", "world_religions"]


def test_ceval_test_is_explained_and_never_scored(data: Path) -> None:
    assert [one.answer for one in items("ceval", data, "test")] == [""] * 8
    for protocol in ("ziya2", "lm-eval"):
        with pytest.raises(UserError, match=r"split test carries no answers.*evaluate split val"):
            subjects(["ceval"], protocol, data, split="test")  # type: ignore[arg-type]


def broken(own: Path, task: str, path: str, text: str | bytes, message: str) -> None:
    target = own / path
    target.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        all_subjects(own, (task,))
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert target.name in str(error.value)


HEADER = ",Question,A,B,C,D,Answer\n"
LONG = "q,1,2,3,4,A\n" * 20000  # behind a quote that is never closed
_PACKED = gzip.compress(str(random.Random(0).getrandbits(12000)).encode(), mtime=0)
DAMAGED = _PACKED[:500] + b"\xff" * 200 + _PACKED[700:]


@pytest.mark.parametrize(
    ("task", "path", "text", "message"),
    [
        (
            "cmmlu",
            "cmmlu/test/agronomy.csv",
            HEADER + "0,问,1,2,3,4,A\n1,问,1,2,3,B\n",
            r"row 3 \(ends on line 3\): 6 columns, the format has 7",
        ),
        (
            "cmmlu",
            "cmmlu/test/agronomy.csv",
            HEADER + '0,"问\n题",1,2,3,4,E\n',
            r"row 2 \(ends on line 3\): the answer is 'E'",
        ),
        ("cmmlu", "cmmlu/dev/agronomy.csv", "问,1,2,3,4,A\n", "row 1: the header is"),
        (
            "cmmlu",
            "cmmlu/dev/agronomy.csv",
            ",Question,A,B,C,D\n0,问,1,2,3,4\n",
            "row 1: the header has no answer column",
        ),
        (
            "ceval",
            "ceval/val/law_val.csv",
            "id,question,A,B,C,D,answer\n0, ,,,,,A\n",
            "row 2 .*question and options are empty",
        ),
        ("ceval", "ceval/val/law_val.csv", "id,question,A,B,C,D,answer\n", "holds no item"),
        ("ceval", "ceval/val/law_val.csv", "id,question,A,B,C,D,answer\n0,问".encode()[:-1], "line 2: not UTF-8"),
        ("mmlu", "mmlu/test/anatomy_test.csv", "q,1,2,3,4,A\nq,1,2,3,4\n", r"row 2 .*5 columns, the format has 6"),
        (
            "gsm8k",
            "gsm8k/test.jsonl",
            '{"question": "q", "answer": "#### 1"}\n{"question": "q"',
            "line 2: not valid JSON",
        ),
        (
            "gsm8k",
            "gsm8k/test.jsonl",
            '{"question": "q", "answer": "1"}\n',
            "line 1: the answer does not end in '#### <number>'",
        ),
        ("gsm8k", "gsm8k/test.jsonl", '{"query": "q"}\n', r"line 1: no text under answer \(found query\)"),
        ("gsm8k", "gsm8k/test.jsonl", "[1]\n", "line 1: holds a list"),
        ("math", "math/test/algebra/9.json", '{"problem": "p", "solution": "no box"}', r"no \\boxed answer"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", b"\x1f\x8b\x08\x00", "not a whole gzip file"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", DAMAGED, "not a whole gzip file"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", gzip.compress(b"[1]\n", mtime=0)[:-9], "not a whole gzip file"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", gzip.compress(b'{"task_id": "x"}', mtime=0), "line 1: no text under prompt"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", gzip.compress(b'\n{"task_id": "\xff"}', mtime=0), "line 2: not valid JSON"),
        ("mmlu", "mmlu/test/anatomy_test.csv", 'q,1,2,3,4,A\nq,"1,2,3,4,B\n' + LONG, r"row 2 \(begins on line 2\): .*limit"),
        ("cmmlu", "cmmlu/test/agronomy.csv", '"' + LONG, r"row 1 \(begins on line 1\): .*limit"),
        ("mmlu", "mmlu/test/anatomy_test.csv", 'q,1,2,3,4,"A\n' + LONG[:90000], "row 1 .*the answer is '"),
        ("math", "math/test/algebra/9.json", b'{"problem": "\xff"}', "not valid JSON"),
        ("gsm8k", "gsm8k/test.jsonl", "{" + ", ".join(f'"k{n}": 1' for n in range(9999)) + "}", "line 1: no text under answer"),
    ],
)
def test_broken_files_are_told_with_their_place(
    own: Path, task: str, path: str, text: str | bytes, message: str
) -> None:
    broken(own, task, path, text, message)


def test_wrong_names_and_counts(data: Path) -> None:
    for call, message in [
        (lambda: all_subjects(data, ("mlu",)), r"task 'mlu' is unknown \(did you mean mmlu\?\): the tasks are ceval, cmmlu, mmlu"),
        (lambda: subjects(["mmlu"], "oc", data), "protocol 'oc' is unknown"),  # type: ignore[arg-type]
        (lambda: all_subjects(data, ("gsm8k",), split="val"), "gsm8k has no split 'val': it has train, test"),
        (lambda: all_subjects(data, ("mmlu",), variant=9), "mmlu has 4 wordings"),
        (lambda: subjects(["mmlu"], "lm-eval", data, variant=1), "mmlu has 1 wordings"),
        (
            lambda: all_subjects(data, ("mmlu",), shots=6),
            "mmlu, anatomy: 6 shots are asked for, its dev split has 5 items",
        ),
        (
            lambda: all_subjects(data, ("gsm8k",), shots=5),
            "5 shots are asked for, protocol ziya2 has 4 worked examples",
        ),
        (
            lambda: subjects(["math"], "lm-eval", data, shots=5, allow_missing=True, warn=quiet),
            "math: 5 shots are asked for, protocol lm-eval has 4 worked examples",
        ),
        (
            lambda: subjects(["humaneval"], "lm-eval", data, shots=1, unsafe_code=True, warn=quiet),
            "humaneval: 1 shots are asked for, protocol lm-eval has 0 worked examples",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_what_a_subject_says(data: Path) -> None:
    found = all_subjects(data)
    assert Counter(one.task for one in found) == {
        "ceval": 2,
        "cmmlu": 2,
        "mmlu": 2,
        "gsm8k": 1,
        "math": 2,
        "humaneval": 1,
    }
    assert len({one.config["task"] for one in found}) == len(found)
    assert all(bool(one.letters) == (one.task in ("ceval", "cmmlu", "mmlu")) for one in found)
    by_name = {(one.task, one.name): one for one in found}
    assert by_name["cmmlu", "ancient_chinese"].category == "China specific"
    assert by_name["gsm8k", "gsm8k"].metric == "exact_match,flexible"
    assert [one.items for one in all_subjects(data, limit=3)] == [3, 3, 3, 3, 3, 3, 3, 2, 2, 3]
    assert min(variants(task) for task in ("ceval", "cmmlu", "mmlu", "gsm8k")) >= 4
    assert variants("mmlu", "lm-eval") == 1


def test_versions_change_with_wording_and_protocol_and_not_with_items(data: Path) -> None:
    def version(**changes: object) -> str:
        return all_subjects(data, ("mmlu",), **changes)[0].version

    assert version() == version(limit=1)
    stock = subjects(["mmlu"], "lm-eval", data, allow_missing=True, warn=quiet)[0].version
    assert len({version(), version(variant=1), version(variant=2), stock}) == 4


def test_subject_lists_are_whole() -> None:
    assert {task: len(names) for task, names in files.catalog().items()} == {"ceval": 52, "cmmlu": 67, "mmlu": 57}
    assert all(chinese for task in ("ceval", "cmmlu") for _, chinese in files.catalog()[task].values())
    assert set(files.known_hashes()) >= {
        f"cmmlu/{split}/{name}.csv" for split in ("dev", "test") for name in files.catalog()["cmmlu"]
    }
    assert set(files.known_hashes()) >= {
        f"mmlu/{split}/{name}_{split}.csv" for split in ("dev", "test") for name in files.catalog()["mmlu"]
    }


def test_known_bytes_are_known_anywhere_but_in_anothers_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gsm8k" / "test.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"one")
    known = {
        "gsm8k/test.jsonl": hashlib.sha256(b"one").hexdigest(),
        "gsm8k/train.jsonl": hashlib.sha256(b"two").hexdigest(),
    }
    monkeypatch.setattr(files, "known_hashes", lambda: known)
    assert files.unknown_files("gsm8k", tmp_path, [path]) == []
    path.write_bytes(b"two")  # the train set under the test set's name
    assert files.unknown_files("gsm8k", tmp_path, [path]) == [path]


def hub_of(monkeypatch: pytest.MonkeyPatch, own: Path) -> tuple[Any, list[Any]]:
    """(a hub of the sets that the harness's tasks name: the items below `own` under the hub's fields, what it was asked for)."""
    monkeypatch.setattr(files, "catalog", lambda: CATALOG)
    monkeypatch.setattr(files, "MATH_TYPES", ("algebra", "number_theory"))
    asked = []

    def load(path: str, name: str | None) -> dict[str, list[dict[str, Any]]]:
        asked.append((path, name))
        task = next(task for task, repository in HUB.items() if repository == path)
        subject = name if task in ("ceval", "cmmlu", "mmlu", "math") else task
        splits = [split for split in files.SOURCES[task].splits if files.subject_files(task, own, split)]
        return {split: [hub_row(one) for one in items(task, own, split, subject=subject)] for split in splits}

    return load, asked


def test_an_absent_set_comes_from_the_hub_in_its_official_layout(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, asked = hub_of(monkeypatch, own)
    fresh = own / "fresh"
    for task in TASKS:
        hub.fetch(task, fresh, load)
        for split in files.SOURCES[task].splits:
            if files.subject_files(task, own, split):
                assert items(task, fresh, split) == [drop_extras(one) for one in items(task, own, split)]
    assert ("openai/gsm8k", "main") in asked

    def fails(**_: Any) -> Any:
        raise ConnectionError("no route\nto the hub")

    with pytest.raises(
        UserError, match=r"mmlu: cais/mmlu could not be loaded from the hub \(no route to the hub\)\. Download https"
    ):
        hub.fetch("mmlu", own / "other", fails)


@pytest.mark.parametrize(
    ("task", "protocol", "lost"),
    [
        ("mmlu", "ziya2", "dev"),
        ("cmmlu", "ziya2", "dev/agronomy.csv"),
        ("gsm8k", "lm-eval", "train.jsonl"),
        ("mmlu", "ziya2", "test/anatomy_test.csv"),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_examples_that_are_missing_come_from_the_hub_too(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, protocol: Any, lost: str, inner: bool
) -> None:
    """They join the user's files, which stay the ones that are read, in whatever folder of the archive they lie."""
    load, _ = hub_of(monkeypatch, Path(shutil.copytree(own, tmp_path / "hub")))
    monkeypatch.setattr("datasets.load_dataset", load)
    before = {split: items(task, own, split) for split in files.SOURCES[task].splits}
    place = own / task / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if inner:
        folder = own / task / files.SOURCES[task].inner[1]
        shutil.move(own / task, own / "moved")
        folder.parent.mkdir(parents=True)
        shutil.move(own / "moved", folder)
    kept = {path: path.stat().st_mtime_ns for path in (own / task).rglob("*") if path.is_file()}
    shots = {"gsm8k": 5}.get(task)
    common: dict[str, Any] = {"warn": quiet, "shots": shots}
    with pytest.raises(UserError, match=r"Download .*allow_hub=true"):
        subjects([task], protocol, own, **common)
    found = subjects([task], protocol, own, hub=True, **common)
    assert len(found) == len(CATALOG.get(task, {task: 0}))
    assert {split: items(task, own, split) for split in before} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_the_hub_lacks_too_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, _ = hub_of(monkeypatch, own)
    monkeypatch.setattr("datasets.load_dataset", load)
    shutil.rmtree(own / "mmlu" / "dev")
    with pytest.raises(UserError, match=r"mmlu: no dev files below .*Download https") as error:
        subjects(["mmlu"], "ziya2", own, hub=True, warn=quiet)
    assert "allow_hub" not in str(error.value)


CATALOG = {
    "ceval": {"accountant": ("Other", "注册会计师"), "law": ("Humanities", "法学")},
    "cmmlu": {"agronomy": ("Other", "农学"), "ancient_chinese": ("China specific", "古汉语")},
    "mmlu": {"anatomy": ("Other", ""), "world_religions": ("Humanities", "")},
}
HUB = {
    "ceval": "ceval/ceval-exam",
    "cmmlu": "haonan-li/cmmlu",
    "mmlu": "cais/mmlu",
    "gsm8k": "openai/gsm8k",
    "math": "EleutherAI/hendrycks_math",
    "humaneval": "openai/openai_humaneval",
}


def hub_row(one: Item) -> dict[str, Any]:
    raw = one.raw
    if one.task == "mmlu":
        choices = [raw[letter] for letter in "ABCD"]
        return {"question": raw["question"], "choices": choices, "answer": "ABCD".index(raw["answer"])}
    if one.task == "cmmlu":
        return {"Question": raw["question"], "Answer": raw["answer"], **{letter: raw[letter] for letter in "ABCD"}}
    if one.task == "gsm8k":
        return {"question": raw["question"], "answer": raw["solution"]}
    if one.task == "math":
        return {"problem": raw["question"], "solution": raw["solution"], "level": raw["level"], "type": raw["type"]}
    return dict(raw)


def drop_extras(one: Item) -> Item:
    """C-Eval's explanations are not written again: no prompt uses them."""
    return replace(one, raw={key: value for key, value in one.raw.items() if key != "explanation"})


@needs_shared
def test_real_items_are_read_whole_and_known() -> None:
    for task, expected in {"ceval": 130, "cmmlu": 643, "mmlu": 371, "gsm8k": 200, "math": 60, "humaneval": 164}.items():
        assert len(items(task, SHARED)) == expected
    actuarial = items("cmmlu", SHARED, subject="college_actuarial_science")
    assert {one.answer for one in actuarial} == set("ABCD")
    assert all(isinstance(one.raw[letter], str) for one in actuarial for letter in "ABCD")
    told: list[str] = []
    subjects(["ceval", "cmmlu", "mmlu", "humaneval"], "ziya2", SHARED, allow_missing=True, warn=told.append)
    assert not [text for text in told if "known full set" in text]
    subjects(["gsm8k"], "ziya2", SHARED, warn=told.append)  # its first 200 items only
    assert "gsm8k: its file differs from the known full set, so partial or of another version" in told[-1]
