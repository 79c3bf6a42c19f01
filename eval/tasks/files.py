"""Where the six benchmarks' official files lie below a data folder, and whether their bytes are the known ones.

Layouts (`DIR/<task>/`, also with the folder that the official archive adds):
  ceval      {dev,val,test}/<subject>_<split>.csv
  cmmlu      {dev,test}/<subject>.csv
  mmlu       {dev,val,test}/<subject>_<split>.csv
  gsm8k      {train,test}.jsonl
  math       {train,test}/<type>/<number>.json, or one *<split>*.jsonl
  humaneval  HumanEval.jsonl.gz or HumanEval.jsonl
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import yaml

from ziya.errors import UserError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """One benchmark's official files: `inner` are the folders that its archive may add above the splits."""

    inner: tuple[str, ...]
    splits: tuple[str, ...]
    scored: str  # the split that both protocols score
    download: str


SOURCES = {
    "ceval": Source(
        ("", "ceval-exam"),
        ("dev", "val", "test"),
        "val",
        "https://huggingface.co/datasets/ceval/ceval-exam (ceval-exam.zip; CC BY-NC-SA 4.0, non-commercial), "
        "unpacked as ceval/{dev,val,test}/<subject>_<split>.csv",
    ),
    "cmmlu": Source(
        ("", "data", "cmmlu_v1_0_1"),
        ("dev", "test"),
        "test",
        "https://huggingface.co/datasets/haonan-li/cmmlu (cmmlu_v1_0_1.zip; CC BY-NC-SA 4.0, non-commercial), "
        "unpacked as cmmlu/{dev,test}/<subject>.csv",
    ),
    "mmlu": Source(
        ("", "data"),
        ("dev", "val", "test"),
        "test",
        "https://people.eecs.berkeley.edu/~hendrycks/data.tar (MIT; named by github.com/hendrycks/test), "
        "unpacked as mmlu/{dev,val,test}/<subject>_<split>.csv",
    ),
    "gsm8k": Source(
        ("", "grade_school_math/data"),
        ("train", "test"),
        "test",
        "github.com/openai/grade-school-math (MIT), its files grade_school_math/data/{train,test}.jsonl as gsm8k/*.jsonl",
    ),
    "math": Source(
        ("", "MATH"),
        ("train", "test"),
        "test",
        "https://huggingface.co/datasets/hendrycks/competition_math or the MATH.tar that github.com/hendrycks/math names "
        "(MIT, contested), unpacked as math/{train,test}/<type>/<number>.json; or a math/test.jsonl with problem and solution",
    ),
    "humaneval": Source(
        ("", "data"),
        ("test",),
        "test",
        "github.com/openai/human-eval (MIT), its file data/HumanEval.jsonl.gz as humaneval/HumanEval.jsonl.gz",
    ),
}
MATH_TYPES = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


@functools.cache
def catalog() -> dict[str, dict[str, tuple[str, str]]]:
    """Task -> subject -> (category, Chinese name or ""), in the official order."""
    raw = yaml.safe_load((HERE / "subjects.yaml").read_text(encoding="utf-8"))
    return {
        task: {name: (row[0], row[1] if len(row) > 1 else "") for name, row in rows.items()}
        for task, rows in raw.items()
    }


@functools.cache
def known_hashes() -> dict[str, str]:
    """Path below the data folder -> sha256 of the known full sets."""
    return dict(orjson.loads((HERE / "sha256.json").read_bytes()))


def check_names(task: str, split: str | None) -> str:
    """The split to score, after checking both names."""
    if task not in SOURCES:
        near = difflib.get_close_matches(task, SOURCES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"task {task!r} is unknown{hint}: the tasks are {', '.join(SOURCES)}")
    if split is not None and split not in SOURCES[task].splits:
        raise UserError(f"{task} has no split {split!r}: it has {', '.join(SOURCES[task].splits)}")
    return split or SOURCES[task].scored


def subject_files(task: str, data: Path, split: str) -> dict[str, list[Path]]:
    """Subject -> its files of one split, in the official order; empty when the set is absent.

    A letter task's subject and a MATH type in folders of JSON have their name, the sets in one file the task's.
    """
    return next((found for root in _roots(task, data) if (found := _in_root(task, root, split))), {})


def split_root(task: str, data: Path, split: str) -> Path:
    """The folder below which a split's files lie, the task's own where there are none."""
    return next((root for root in _roots(task, data) if _in_root(task, root, split)), data / task)


def _in_root(task: str, root: Path, split: str) -> dict[str, list[Path]]:
    if task in catalog():
        ending = ".csv" if task == "cmmlu" else f"_{split}.csv"
        files = {name: root / split / f"{name}{ending}" for name in catalog()[task]}
        return {name: [path] for name, path in files.items() if path.is_file()}
    if task == "math" and (root / split).is_dir():
        folders = {name: sorted((root / split / name).glob("*.json"), key=_number) for name in MATH_TYPES}
        found = {name: paths for name, paths in folders.items() if paths}
        if found:
            return found
    return _single(task, root, split)


def _single(task: str, root: Path, split: str) -> dict[str, list[Path]]:
    """The files of a set that lies in one JSON lines file."""
    if task == "humaneval":
        names = [root / "HumanEval.jsonl.gz", root / "HumanEval.jsonl"]
    elif task == "gsm8k":
        names = [root / f"{split}.jsonl", root / f"{split}.jsonl.gz"]
    else:  # MATH-500 and its kin have no fixed name; one that says neither train nor test is a test set
        files = sorted([*root.glob("*.jsonl"), *root.glob("*.jsonl.gz")]) if root.is_dir() else []
        names = [path for path in files if ("train" if "train" in path.name else "test") == split]
    names = [path for path in names if path.is_file()]
    return {task: names[:1]} if names else {}


def _roots(task: str, data: Path) -> list[Path]:
    return [data / task / inner if inner else data / task for inner in SOURCES[task].inner]


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem), "") if path.stem.isdigit() else (1 << 62, path.stem)


def absent(task: str, data: Path, split: str, hint: str = "") -> UserError:
    """The error for a set that is not there: where it was looked for, where it comes from, how to lay it out."""
    return UserError(f"{task}: no {split} files below {data / task}. {by_hand(task, data)}{hint}")


def by_hand(task: str, data: Path) -> str:
    """What to download and how to lay it out."""
    return f"Download {SOURCES[task].download} (below {data})"


def missing_subjects(task: str, data: Path, split: str) -> list[str]:
    """Subjects of which the split has no file, in the official order."""
    found = subject_files(task, data, split)
    expected: Sequence[str] = list(catalog().get(task, MATH_TYPES if task == "math" and task not in found else found))
    return [name for name in expected if name not in found]


def unknown_files(task: str, data: Path, files: Sequence[Path]) -> list[Path]:
    """Those files whose sha256 is not the one shipped for their place: an edited, partial or newer set."""
    known = known_hashes()
    by_bytes = set(known.values())
    unknown = []
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        relative = path.relative_to(data / task).as_posix()
        for inner in SOURCES[task].inner[1:]:
            relative = relative.removeprefix(f"{inner}/")
        place = known.get(f"{task}/{relative}")
        if place != digest and (place is not None or digest not in by_bytes):
            unknown.append(path)
    return unknown
