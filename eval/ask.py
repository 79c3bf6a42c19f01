"""Ask one model one task through the harness: subjects -> harness tasks -> `simple_evaluate` -> per-sample lines."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval import loading
from eval.cache import AnswerCache
from eval.config import EvalConfig
from eval.models_found import Found
from eval.samples import lines

if TYPE_CHECKING:
    from eval.model import PrefixLM
    from eval.tasks import Subject

SEED = 1234  # the harness's default for drawn examples: part of its numbers


def subjects_of(
    task: str, config: EvalConfig, variant: int = 0, warn: Callable[[str], None] = lambda _: None
) -> list[Subject]:
    """A task's subjects as the settings ask for them."""
    from eval.tasks import subjects

    return subjects(
        [task], config.protocol, Path(config.data), shots=config.shots, limit=config.limit, variant=variant,
        split=config.split, allow_missing=config.allow_missing, unsafe_code=config.unsafe_code, hub=config.allow_hub, warn=warn,
    )  # fmt: skip


def open_model(
    found: Found,
    config: EvalConfig,
    identity: dict[str, Any],
    versions: dict[str, str],
    place: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> PrefixLM:
    """The harness's model of a folder. Its weights are loaded when the first answer is missing."""
    with quiet():
        from eval.model import PrefixLM

        folder = Path(found.folder)
        settings, ends = loading.load_settings(folder)
        return PrefixLM(
            loading.load_tokenizer(loading.tokenizer_folder(found, config)),
            settings,
            lambda: loading.load_forward(found, config, identity["dtype"], place),
            max_length=config.max_length,
            end_ids=ends,
            answers=AnswerCache(Path(config.output) / "cache", identity, versions),
            advance=advance,
        )


def harness_tasks(subjects: Sequence[Subject], model: PrefixLM) -> list[Any]:
    """The subjects as harness tasks whose prompts fit the model."""
    from eval.shots import FittingTask

    return [FittingTask(subject.config, model) for subject in subjects]


def fill_cache(subjects: Sequence[tuple[Subject, Sequence[int] | None]], model: PrefixLM) -> None:
    """Answer the requests of subjects, so that `ask` finds them stored. With each subject: which of its portions (None: all).

    Builds the requests that the harness builds.
    """
    with quiet():
        from eval.model import portions

        for subject, wanted in subjects:
            [task] = harness_tasks([subject], model)
            if task.config.num_fewshot is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEED)
            task.build_all_requests(rank=0, world_size=1)
            kinds: dict[str, list[Any]] = {}
            for request in task.instances:
                kinds.setdefault(request.request_type, []).extend([request] * request.repeats)
            for kind, requests in kinds.items():
                for number, (_, some) in enumerate(portions(requests, kind)):
                    if wanted is None or number in wanted:
                        getattr(model, kind)([requests[place] for place in some])


def ask(subjects: Sequence[Subject], model: PrefixLM) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(per-sample lines in the subjects' order, what is worth a record: the harness's own scores, what was left out)."""
    with quiet():
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager

        tasks = harness_tasks(subjects, model)
        results = simple_evaluate(
            model=model,
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,  # intervals are eval/statistics.py's
            fewshot_random_seed=SEED,
            confirm_run_unsafe_code=True,  # eval/tasks decides: a sandbox, or --unsafe-code
        )
    found: list[dict[str, Any]] = []
    shortened = {}
    for subject, task in zip(subjects, tasks, strict=True):
        found += lines(subject, results["samples"][task.config.task], task.shortened.shots)
        report = task.shortened.report()
        if report:
            shortened[subject.name] = report
    record = {
        "harness": {
            subject.name: plain(results["results"][task.config.task])
            for subject, task in zip(subjects, tasks, strict=True)
        },
        "shortened": shortened,
    }
    return found, record


def plain(scores: dict[str, Any]) -> dict[str, Any]:
    """The harness's numbers without its labels."""
    return {key: value for key, value in scores.items() if isinstance(value, (int, float))}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's bar for every subject, its log, its look at the machine (10 s a call, never used here) and at the
    current folder's git commit (never used either; git complains on our stderr where there is no repository)."""
    with contextlib.ExitStack() as stack:
        import lm_eval.api.task
        import lm_eval.evaluator

        stack.enter_context(mock.patch.object(lm_eval.api.task, "tqdm", lambda items, **_: items))
        stack.enter_context(mock.patch.object(lm_eval.evaluator, "add_env_info", lambda _: None))
        stack.enter_context(mock.patch.object(lm_eval.evaluator, "get_git_commit_hash", lambda: None))
        logger = logging.getLogger("lm_eval")
        level = logger.level
        logger.setLevel(logging.ERROR)
        stack.callback(logger.setLevel, level)
        yield


__all__ = ["ask", "fill_cache", "open_model", "quiet", "subjects_of"]
