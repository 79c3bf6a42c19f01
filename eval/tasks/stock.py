"""Protocol `lm-eval`: the harness's own task files, read from the installed package, with local items as their dataset.

Nothing of a task is restated here but what cannot run offline: the items come from the official files, HumanEval's metric (the
harness loads it from the hub) is our sandbox, MATH's two metrics are the harness's own functions in processes with a time limit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.sandbox import Sandbox
from eval.tasks import score_humaneval, score_math
from eval.tasks.items import LETTER_TASKS, LETTERS, Item
from eval.tasks.scoring import metrics, scores_of_filter
from eval.tasks.ziya2 import dataset, template
from ziya.errors import UserError

SHOTS = {"ceval": 5, "cmmlu": 5, "mmlu": 5, "gsm8k": 5, "math": 4, "humaneval": 0}
METRIC = {
    **dict.fromkeys(LETTER_TASKS, "acc,none"),
    "gsm8k": "exact_match,strict-match",
    "math": "exact_match,none",
    "humaneval": "pass@1,create_test",
}
MATH_FILES = {"counting_and_probability": "counting_and_prob", "number_theory": "num_theory", "precalculus": "precalc"}
SHOT_SPLIT = {"ceval": "dev", "cmmlu": "dev", "mmlu": "dev", "gsm8k": "train"}
DROPPED = ("dataset_path", "dataset_name", "dataset_kwargs", "tag", "task_alias", "include", "group")


def config(
    task: str, subject: str, tests: Sequence[Item], dev: Sequence[Item], shots: int, sandbox: Sandbox | None
) -> dict[str, Any]:
    """The stock task's config with our items under its names of splits and fields."""
    if task not in SHOT_SPLIT and shots > SHOTS[task]:
        raise UserError(
            f"{task}: {shots} shots are asked for, protocol lm-eval has {SHOTS[task]} worked examples for it: leave shots out, or "
            f"evaluate {task} by itself"
        )
    stock = {key: value for key, value in stock_yaml(task, subject).items() if key not in DROPPED}
    scored = stock.get("test_split") or stock["validation_split"]
    if task in LETTER_TASKS or task == "gsm8k":
        stock = _compiled(stock)
    elif task == "math":
        stock = _math(stock)
    elif sandbox is not None:
        stock = _humaneval(stock, sandbox)
    splits = {scored: [doc(item) for item in tests]}
    if task in SHOT_SPLIT and dev:
        splits[stock["fewshot_split"]] = [doc(item) for item in dev]
    elif task in SHOT_SPLIT:  # no shots are asked for, so the split is not read
        stock = {**stock, "fewshot_split": None, "training_split": None}
    return {**stock, "num_fewshot": shots, "custom_dataset": dataset(splits)}


def stock_yaml(task: str, subject: str) -> dict[str, Any]:
    """The harness's YAML of one subject, its includes merged, functions as their names."""
    import lm_eval

    folder = Path(lm_eval.__file__).parent / "tasks"
    name = {
        "ceval": f"ceval/ceval-valid_{subject}.yaml",
        "cmmlu": f"cmmlu/cmmlu_{subject}.yaml",
        "mmlu": f"mmlu/default/mmlu_{subject}.yaml",
        "gsm8k": "gsm8k/gsm8k.yaml",
        "math": f"minerva_math/minerva_math_{'algebra' if subject == 'math' else MATH_FILES.get(subject, subject)}.yaml",
        "humaneval": "humaneval/humaneval.yaml",
    }[task]
    return _read(folder / name)


class _Loader(yaml.SafeLoader):
    """The harness's YAML: `!function module.name` stays a name."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"the installed lm-evaluation-harness has no {path.name}: protocol lm-eval needs lm-eval 0.4.13"
        )
    value: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if "include" in value:
        value = {**_read(path.parent / value["include"]), **value}
    return value


def doc(item: Item) -> dict[str, Any]:
    """An item under the field names of the dataset that the stock task was written for."""
    raw = item.raw
    if item.task == "mmlu":
        choices = [raw[letter] for letter in LETTERS]
        return {
            "question": raw["question"],
            "subject": item.subject,
            "choices": choices,
            "answer": LETTERS.index(raw["answer"]),
        }
    if item.task == "cmmlu":
        return {"Question": raw["question"], **{letter: raw[letter] for letter in LETTERS}, "Answer": raw["answer"]}
    if item.task in LETTER_TASKS:
        return {key: raw[key] for key in ("question", *LETTERS, "answer")}
    if item.task == "gsm8k":
        return {"question": raw["question"], "answer": raw["solution"]}
    if item.task == "math":
        return _math_doc(raw)
    return dict(raw)


def _compiled(stock: dict[str, Any]) -> dict[str, Any]:
    """The same templates, compiled once: the harness compiles one for every shot of every question, 13 ms a question of CMMLU."""
    changed: dict[str, Any] = {"doc_to_text": template(stock["doc_to_text"])}
    if "{{" in stock["doc_to_target"]:  # else it is a field's name
        target = template(stock["doc_to_target"])
        changed["doc_to_target"] = (lambda doc: int(target(doc))) if "doc_to_choice" in stock else target
    return {**stock, **changed}


def _math_doc(raw: dict[str, str]) -> dict[str, Any]:
    """What the harness's `process_docs` makes of a problem; where a solution has no box, the stated answer takes its place."""
    from lm_eval.tasks.minerva_math import utils

    box = utils.last_boxed_only_string(raw["solution"])
    answer = utils.remove_boxed(box) if box else raw["answer"]
    return {"problem": raw["question"], "solution": raw["solution"], "answer": utils.normalize_final_answer(answer)}


def _math(stock: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.tasks.minerva_math import utils

    return {
        **stock,
        "process_docs": None,  # `doc` has done it: datasets' own map would write a cache
        "doc_to_text": utils.doc_to_text,
        "fewshot_config": {**stock["fewshot_config"], "samples": utils.list_fewshot_samples()},
        "filter_list": score_math.stock_scoring(),
        "process_results": scores_of_filter,
    }


def _humaneval(stock: dict[str, Any], sandbox: Sandbox) -> dict[str, Any]:
    def program(response: str, doc: dict[str, Any]) -> str:
        return str(doc["prompt"]) + response

    return {
        **stock,
        "unsafe_code": False,  # the harness asks for consent to run code outside a sandbox
        **score_humaneval.scoring(sandbox, "create_test", program),
        "process_results": scores_of_filter,
        "metric_list": metrics("pass@1"),
    }
