"""The six benchmarks as lm-evaluation-harness tasks over local files: what `ziya-eval run` evaluates.

`subjects` turns names of tasks, a protocol and a data folder into one harness config a subject; `eval/runner.py` runs them.
`eval/tasks/items.py` reads the official files, `ziya2.py` and `stock.py` write the configs of the two protocols.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval.sandbox import Sandbox
from eval.tasks import files, score_gsm8k, score_humaneval, score_math, stock, ziya2
from eval.tasks.items import LETTER_TASKS, LETTERS, Item, read_subject
from eval.tasks.prompts import prompt
from ziya.errors import UserError
from ziya.files import digest, json_bytes
from ziya.progress import counted

TASKS = tuple(files.SOURCES)
Protocol = Literal["ziya2", "lm-eval"]
SCORER_VERSION = {"gsm8k": score_gsm8k.VERSION, "math": score_math.VERSION, "humaneval": score_humaneval.VERSION}


@dataclass(frozen=True)
class Subject:
    """One subject of one task under one protocol: a harness task and what is told about it.

    `config` is a harness task config with a unique "task" name, an in-memory `custom_dataset` and the scorer; `metric` is the
    harness metric that is the score, with its filter ("exact_match,strict-match"); `version` changes with prompt or scorer and is
    part of a cache's key; `items` counts the scored items; `letters` are the continuations that a letter task compares.
    """

    task: str
    name: str
    category: str
    config: dict[str, Any]
    metric: str
    version: str
    items: int
    letters: tuple[str, ...] = ()


def _to_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def variants(task: str, protocol: Protocol = "ziya2") -> int:
    """How many wordings a task has under a protocol: 1 for lm-eval, whose point is the stock wording."""
    files.check_names(task, None)
    return ziya2.variants(task) if protocol == "ziya2" else 1


def subjects(
    tasks: Sequence[str],
    protocol: Protocol,
    data: Path,
    *,
    shots: int | None = None,
    limit: int | None = None,
    variant: int = 0,
    split: str | None = None,
    allow_missing: bool = False,
    unsafe_code: bool = False,
    hub: bool = False,
    warn: Callable[[str], None] = _to_stderr,
) -> list[Subject]:
    """Every subject of the named tasks, in the official order.

    `shots`, `split`: other than the protocol's; `limit`: the first items of each subject only; `variant`: another wording;
    `allow_missing`: evaluate the subjects that are there; `unsafe_code`: run HumanEval without bubblewrap; `hub`: download what is
    absent into `data` first. A set that is absent, an unlabelled split, a broken row or a missing subject is a UserError; unknown
    hashes are told to `warn`.
    """
    if protocol not in ("ziya2", "lm-eval"):
        raise UserError(f"protocol {protocol!r} is unknown: it is ziya2 or lm-eval")
    asked = _Asked(protocol, data, shots, limit, variant, split, allow_missing, unsafe_code, hub, warn)
    return [subject for task in dict.fromkeys(tasks) for subject in _task(task, asked)]


@dataclass(frozen=True)
class _Asked:
    """The arguments of `subjects`."""

    protocol: Protocol
    data: Path
    shots: int | None
    limit: int | None
    variant: int
    split: str | None
    allow_missing: bool
    unsafe_code: bool
    hub: bool
    warn: Callable[[str], None]


def _task(task: str, asked: _Asked) -> list[Subject]:
    protocol, data = asked.protocol, asked.data
    scored = files.check_names(task, asked.split)
    wordings = variants(task, protocol)
    if not 0 <= asked.variant < wordings:
        raise UserError(f"{task} has {wordings} wordings under protocol {protocol}: variant {asked.variant} is not one")
    shots = asked.shots
    if shots is None:
        shots = stock.SHOTS[task] if protocol == "lm-eval" else ziya2.default_shots(task)
    shot_split = (stock if protocol == "lm-eval" else ziya2).SHOT_SPLIT.get(task) if shots else None
    splits = [scored, *([shot_split] if shot_split else [])]
    if asked.hub and any(_lacks(task, data, split) for split in splits):
        from eval.tasks.hub import fetch

        fetch(task, data)
    tests = files.subject_files(task, data, scored)
    _refuse_unlabelled(task, tests, scored)
    names = _present(task, asked, splits)
    examples = files.subject_files(task, data, shot_split) if shot_split else {}
    sandbox = Sandbox(unsafe_code=asked.unsafe_code) if task == "humaneval" else None
    if sandbox is not None and not sandbox.safe:
        asked.warn(f"humaneval: {sandbox.name}")
    result = []
    for name in names:
        items = read_subject(task, name, tests[name], scored)[: asked.limit or None]
        dev = read_subject(task, name, examples[name], shot_split) if shot_split else []
        if shot_split and len(dev) < shots:
            raise UserError(f"{task}, {name}: {shots} shots are asked for, its {shot_split} split has {counted(len(dev), 'item')}")
        result.append(_subject(task, name, asked, items, dev, shots, sandbox))
    read = [path for found in (tests, examples) for name in names for path in found.get(name, [])]
    strange = files.unknown_files(task, data, read)
    if strange:
        what = f"{len(strange)} of {counted(len(read), 'file')}" if len(read) > 1 else "its file"
        verb = "differ" if len(strange) > 1 else "differs"
        first = f"the first: {strange[0]}" if len(strange) > 1 else str(strange[0])
        asked.warn(f"{task}: {what} {verb} from the known full set, so partial or of another version ({first})")
    return result


def _refuse_unlabelled(task: str, tests: dict[str, list[Path]], split: str) -> None:
    """C-Eval publishes its test split without answers: that is no score of 0."""
    for name, paths in tests.items():
        if not read_subject(task, name, paths, split)[0].answer:
            raise UserError(
                f"{task}: split {split} carries no answers (the benchmark's own server scores it), so it has no score here: "
                f"evaluate split {files.SOURCES[task].scored}"
            )
        return


def _lacks(task: str, data: Path, split: str) -> bool:
    return not files.subject_files(task, data, split) or bool(files.missing_subjects(task, data, split))


def _present(task: str, asked: _Asked, splits: Sequence[str]) -> list[str]:
    """The subjects that have files in every split; others are refused, or told where missing ones are allowed."""
    data = asked.data
    names = list(files.subject_files(task, data, splits[0]))
    for split in splits:
        here = files.subject_files(task, data, split)
        if not here:
            raise files.absent(task, data, split, "" if asked.hub else ", or set allow_hub=true to fetch it")
        lacking = files.missing_subjects(task, data, split)
        if not lacking:
            continue
        text = f"{task}: {counted(len(lacking), 'subject')} {'has' if len(lacking) == 1 else 'have'} no {split} file below {data / task}"
        if not asked.allow_missing:
            fetched = "" if asked.hub else ", set allow_hub=true to fetch them"
            raise UserError(
                f"{text}: {_some(lacking)}. {files.by_hand(task, data)}{fetched}, or set allow_missing=true to evaluate the others"
            )
        asked.warn(f"{text} and {'is' if len(lacking) == 1 else 'are'} left out")
        names = [name for name in names if name in here]
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _subject(
    task: str, name: str, asked: _Asked, tests: list[Item], dev: list[Item], shots: int, sandbox: Sandbox | None
) -> Subject:
    protocol, variant = asked.protocol, asked.variant
    wording: dict[str, Any] = {}
    if protocol == "lm-eval":
        config, metric = stock.config(task, name, tests, dev, shots, sandbox), stock.METRIC[task]
        wording = stock.stock_yaml(task, name)
    else:
        config, metric = ziya2.config(task, name, tests, dev, shots, variant, sandbox), ziya2.METRIC[task]
        wording = prompt(task, variant).model_dump()
    said = {**{key: value for key, value in config.items() if _is_plain(value)}, "wording": wording}
    version = f"{protocol}.{variant}.{SCORER_VERSION.get(task, 0)}.{digest(json_bytes(said))[:12]}"
    parts = ["ziya", protocol.replace("-", ""), task]
    parts += [name] if name != task else []
    parts += [f"v{variant}"] if variant else []
    box = {"sandbox": sandbox.name} if sandbox is not None else {}
    config = {**config, "task": "_".join(parts), "metadata": {"version": version, **box}}
    letters = tuple(config.get("target_delimiter", " ") + letter for letter in LETTERS) if task in LETTER_TASKS else ()
    category = files.catalog()[task][name][0] if task in files.catalog() else task
    return Subject(task, name, category, config, metric, version, len(tests), letters)


def _is_plain(value: Any) -> bool:
    """Whether a setting is data: functions are named by the scorer's version instead."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else not callable(value)
