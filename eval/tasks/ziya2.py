"""Protocol `ziya2`: OpenCompass's prompts and shots as the paper used them, as harness task configs over local items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from eval.sandbox import Sandbox
from eval.tasks import files, score_gsm8k, score_humaneval, score_math
from eval.tasks.items import LETTER_TASKS, LETTERS, Item
from eval.tasks.prompts import Prompt, prompt, prompts
from eval.tasks.scoring import metrics, scores_of_filter
from ziya.errors import UserError

SHOT_SPLIT = {"ceval": "dev", "cmmlu": "dev", "mmlu": "dev"}


def default_shots(task: str) -> int:
    """The protocol's number of shots."""
    return prompts(task).shots


def variants(task: str) -> int:
    """How many wordings a task has."""
    return len(prompts(task).variants)


def subject_name(task: str, subject: str) -> str:
    """A subject as prompts say it: its Chinese name for C-Eval and CMMLU, plain words for the others."""
    return files.catalog().get(task, {}).get(subject, ("", ""))[1] or subject.replace("_", " ")


def config(
    task: str,
    subject: str,
    tests: Sequence[Item],
    dev: Sequence[Item],
    shots: int,
    variant: int,
    sandbox: Sandbox | None = None,
) -> dict[str, Any]:
    """A harness task config; `tests` are scored, the first `shots` of `dev` (letter tasks) are the worked examples."""
    wording = prompt(task, variant)
    name = subject_name(task, subject)
    common = {
        "test_split": "test",
        "doc_to_text": template(wording.text),
        "description": wording.description,
        "target_delimiter": wording.target_delimiter,
        "fewshot_delimiter": wording.fewshot_delimiter,
        "num_fewshot": shots,
        "custom_dataset": dataset(
            {"test": [doc(item, name) for item in tests], "dev": [doc(item, name) for item in dev]}
        ),
    }
    if task in LETTER_TASKS:
        return {
            **common,
            "output_type": "multiple_choice",
            "doc_to_choice": list(LETTERS),
            "doc_to_target": letter_index,
            "fewshot_split": "dev" if shots else None,
            "fewshot_config": {"sampler": "first_n"},
            "metric_list": metrics("acc"),
        }
    common["output_type"] = "generate_until"
    common["generation_kwargs"] = {"until": list(wording.until), "max_gen_toks": wording.max_tokens, "do_sample": False}
    common["fewshot_config"] = {"sampler": "first_n", "samples": _examples(task, wording, shots)}
    if sandbox is not None:
        return {**common, **humaneval_scoring(wording, sandbox)}
    return {**common, **_SCORING[task](wording)}


def _examples(task: str, wording: Prompt, shots: int) -> list[dict[str, str]]:
    if shots > len(wording.examples):
        raise UserError(
            f"{task}: {shots} shots are asked for, protocol ziya2 has {len(wording.examples)} worked examples"
        )
    return [{"question": one.question, "solution": one.solution} for one in wording.examples]


def _gsm8k(wording: Prompt) -> dict[str, Any]:
    return {
        "doc_to_target": "solution",
        "filter_list": score_gsm8k.filters(wording.until),
        "process_results": score_gsm8k.process_results,
        "metric_list": metrics("exact_match"),
    }


def _math(wording: Prompt) -> dict[str, Any]:
    return {
        "doc_to_target": "solution",
        "filter_list": score_math.scoring(wording.until),
        "process_results": scores_of_filter,
        "metric_list": metrics("math", "math_verify", "string", "minerva"),
    }


def humaneval_scoring(wording: Prompt, sandbox: Sandbox) -> dict[str, Any]:
    """HumanEval's target and scorer."""

    def program(response: str, doc: dict[str, Any]) -> str:
        return score_humaneval.completion(response, doc, wording.until)

    return {
        "doc_to_target": score_humaneval.tests,
        **score_humaneval.scoring(sandbox, "sandbox", program),
        "process_results": scores_of_filter,
        "metric_list": metrics("pass@1"),
    }


_SCORING: dict[str, Callable[[Prompt], dict[str, Any]]] = {"gsm8k": _gsm8k, "math": _math}
METRIC = {
    **dict.fromkeys(LETTER_TASKS, "acc,none"),
    "gsm8k": "exact_match,flexible",
    "math": "math,none",
    "humaneval": "pass@1,sandbox",
}


def template(text: str) -> Callable[[dict[str, Any]], str]:
    """A Jinja template over a document's fields, compiled once: the harness compiles one anew for every shot of every question."""
    compiled = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(text)

    def render(doc: dict[str, Any]) -> str:
        return compiled.render(doc)

    return render


def letter_index(doc: dict[str, Any]) -> int:
    """The place of the right letter among the choices."""
    return LETTERS.index(doc["answer"])


def doc(item: Item, name: str) -> dict[str, Any]:
    """What a task's templates see of an item."""
    return {**item.raw, "id": item.id, "subject": name}


def dataset(splits: dict[str, list[dict[str, Any]]]) -> Callable[..., Any]:
    """The harness's `custom_dataset`: splits as in-memory datasets. Empty splits are left out."""

    def build(**_: Any) -> Any:
        import datasets

        return {name: datasets.Dataset.from_list(rows) for name, rows in splits.items() if rows}

    return build
