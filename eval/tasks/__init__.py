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

from eval.tasks import files, stock, ziya2
from eval.tasks.items import LETTER_TASKS, LETTERS, Item, read_subject
from eval.tasks.prompts import prompt
from ziya.errors import UserError
from ziya.files import digest, json_bytes

TASKS = tuple(files.SOURCES)
Protocol = Literal["ziya2", "lm-eval"]


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
    warn: Callable[[str], None] = _to_stderr,
) -> list[Subject]:
    """Every subject of the named tasks, in the official order.

    `shots`, `split`: other than the protocol's; `limit`: the first items of each subject only; `variant`: another wording;
    `allow_missing`: evaluate the subjects that are there; `unsafe_code`: run HumanEval without bubblewrap. A set that is absent,
    an unlabelled split, a broken row or a missing subject is a UserError; unknown hashes are told to `warn`.
    """
    if protocol not in ("ziya2", "lm-eval"):
        raise UserError(f"protocol {protocol!r} is unknown: it is ziya2 or lm-eval")
    found: list[Subject] = []
    for task in dict.fromkeys(tasks):
        found += _task(task, protocol, data, shots, limit, variant, split, allow_missing, unsafe_code, warn)
    return found


def _task(
    task: str,
    protocol: Protocol,
    data: Path,
    shots: int | None,
    limit: int | None,
    variant: int,
    split: str | None,
    allow_missing: bool,
    unsafe_code: bool,
    warn: Callable[[str], None],
) -> list[Subject]:
    scored = files.check_names(task, split)
    if not 0 <= variant < variants(task, protocol):
        raise UserError(
            f"{task} has {variants(task, protocol)} wordings under protocol {protocol}: variant {variant} is not one"
        )
    if shots is None:
        shots = stock.SHOTS[task] if protocol == "lm-eval" else ziya2.default_shots(task)
    shot_split = (stock if protocol == "lm-eval" else ziya2).SHOT_SPLIT.get(task) if shots else None
    names = _present(task, data, [scored, *([shot_split] if shot_split else [])], allow_missing, warn)
    result = []
    read: list[Path] = []
    for name in names:
        paths = files.subject_files(task, data, scored)[name]
        tests = read_subject(task, name, paths, scored)[: limit or None]
        if not tests[0].answer:
            raise UserError(
                f"{task}: split {scored} carries no answers (they are scored by the benchmark's own server), so it has no score "
                f"here: evaluate split {files.SOURCES[task].scored}"
            )
        shot_paths = files.subject_files(task, data, shot_split)[name] if shot_split else []
        dev = read_subject(task, name, shot_paths, shot_split) if shot_split else []
        if shot_split and len(dev) < shots:
            raise UserError(f"{task}, {name}: {shots} shots are asked for, its {shot_split} split has {len(dev)} items")
        result.append(_subject(task, name, protocol, tests, dev, shots, variant))
        read += [*paths, *shot_paths]
    strange = files.unknown_files(task, data, read)
    if strange:
        warn(f"{task}: {len(strange)} of {len(read)} files are not those of the known full set (first: {strange[0]})")
    return result


def _present(
    task: str, data: Path, splits: Sequence[str], allow_missing: bool, warn: Callable[[str], None]
) -> list[str]:
    """The subjects that have files in every split; others are refused, or told where missing ones are allowed."""
    names = list(files.subject_files(task, data, splits[0]))
    if not names:
        raise files.absent(task, data, splits[0])
    for split in splits:
        here = files.subject_files(task, data, split)
        if not here:
            raise files.absent(task, data, split)
        lacking = files.missing_subjects(task, data, split)
        if not lacking:
            continue
        text = f"{task}: {len(lacking)} subjects have no {split} file below {data / task}: {', '.join(lacking)}"
        if not allow_missing:
            raise UserError(f"{text}. Add them, or set allow_missing=true to evaluate the others")
        warn(text)
        names = [name for name in names if name in here]
    return names


def _subject(
    task: str, name: str, protocol: Protocol, tests: list[Item], dev: list[Item], shots: int, variant: int
) -> Subject:
    wording: dict[str, Any]
    if protocol == "lm-eval":
        config, metric, scorer = stock.config(task, name, tests, dev, shots), stock.METRIC[task], 0
        wording = {}
    else:
        config, metric = ziya2.config(task, name, tests, dev, shots, variant), ziya2.METRIC[task]
        scorer = ziya2.SCORER_VERSION.get(task, 0)
        wording = prompt(task, variant).model_dump()
    said = {**{key: value for key, value in config.items() if _is_plain(value)}, "wording": wording}
    version = f"{protocol}.{variant}.{scorer}.{digest(json_bytes(said))[:12]}"
    config = {
        **config,
        "task": "_".join(
            [
                "ziya",
                protocol.replace("-", ""),
                task,
                *([] if name == task else [name]),
                *([f"v{variant}"] if variant else []),
            ]
        ),
        "metadata": {"version": version},
    }
    letters = tuple(config.get("target_delimiter", " ") + letter for letter in LETTERS) if task in LETTER_TASKS else ()
    category = files.catalog()[task][name][0] if task in files.catalog() else task
    return Subject(task, name, category, config, metric, version, len(tests), letters)


def _is_plain(value: Any) -> bool:
    """Whether a setting is data: functions are named by the scorer's version instead."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else not callable(value)
