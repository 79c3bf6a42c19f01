"""The run on one screen: which models, which tasks, what is finished already; ask, write samples, summarise, report.

OUT/eval.json                    the fixed settings of this folder
OUT/models.json                  every model evaluated into it
OUT/samples/<model>/<task>.jsonl per-sample lines; <task>.json beside it, written last, says what they were made from
OUT/variants/<k>/<model>/...     the same for other wordings; OUT/variants.json the spread
OUT/cache/                       answers (eval/cache.py)
OUT/results.json, table.md ...   eval/statistics.py, eval/report
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import ask, held_out, loading, models_found, output, results, samples, workers
from eval.cache import Digests, model_identity
from eval.config import EvalConfig
from eval.models_found import Found
from ziya.errors import UserError
from ziya.files import digest, file_digest, json_bytes, read_json, write_json
from ziya.progress import Progress, counted, log

if TYPE_CHECKING:
    from eval.tasks import Subject

POLL_S = 5.0  # between two looks for a new export


def run(config: EvalConfig, *, restart: bool = False) -> list[dict[str, Any]]:
    """Evaluate every model that the settings name and is not finished; the rows of results.json.

    UserError: nothing to evaluate, files missing, or OUT holds scores of other fixed settings (`restart` discards them; stored
    answers stay, they know what they answer).
    """
    if config.model is None:
        raise UserError("no model: give a Hugging Face folder, a hub id or a ziya run")
    if not config.allow_hub:
        loading.offline()
    out = Path(config.output)
    check_names(config)
    wanted = wanted_subjects(config)
    found = models_found.find(
        config.model, config.base, every=config.every, allow_hub=config.allow_hub, waiting=config.wait_s > 0
    )
    with output.claimed(out):
        output.open_output(out, config, restart)
        return _run(config, out, wanted, found)


def _run(
    config: EvalConfig, out: Path, wanted: dict[tuple[str, int], list[Subject]], found: Sequence[Found]
) -> list[dict[str, Any]]:
    assert config.model is not None
    session = Session(config, out, wanted)
    for model in found:  # before hours of work
        output.check_name(out, model, functools.partial(session.digests.weights, Path(model.folder)))
    for model in found:
        session.evaluate(model)
    rows = results.finish(out, config, session.documents) if found else []
    if config.wait_s and models_found.is_run(Path(config.model)):
        return _wait(session, Path(config.model), rows)
    return rows


def _wait(session: Session, run: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluate what the run exports from now on: each n-th; when no new export came for `wait_s` seconds, the last one, and end.

    UserError: there was never one.
    """
    config = session.config
    known: list[str] | None = None
    deadline = 0.0
    while True:
        there = [one.name for one in models_found.exports(run)]
        if there != known:
            known, deadline = there, time.monotonic() + config.wait_s
        ended = time.monotonic() >= deadline
        if ended and not there:
            raise models_found.no_exports(run)
        chosen = models_found.exports(run, config.every, last=ended)
        new = [one for one in chosen if one.name not in session.seen]
        for model in new:
            session.evaluate(model)
        if new:
            rows = results.finish(session.out, config, session.documents)
            if not ended:
                deadline = time.monotonic() + config.wait_s
        if ended and [one.name for one in models_found.exports(run)] == there:
            return rows
        time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))


def check_names(config: EvalConfig) -> None:
    """Refuse unknown tasks, and models that are not there, before a benchmark file is read; nothing is fetched."""
    from eval.tasks import files

    assert config.model is not None
    for task in config.tasks:
        files.check_names(task, config.split)
    models_found.find(
        config.model, config.base, allow_hub=config.allow_hub, waiting=config.wait_s > 0, fetch=False, tell=lambda _: None
    )


def wanted_subjects(config: EvalConfig) -> dict[tuple[str, int], list[Subject]]:
    """(task, wording) -> subjects; every mistake in tasks or data comes to light before a model is loaded."""
    from eval.tasks import variants

    found = {}
    for task in dict.fromkeys(config.tasks):
        for variant in range(min(config.prompt_variants, variants(task, config.protocol))):
            warn: Callable[[str], None] = log if variant == 0 else (lambda _: None)
            found[task, variant] = ask.subjects_of(task, config, variant, warn)
    if not found:
        raise UserError("no tasks: give --tasks, for example ceval,gsm8k")
    return found


class Session:
    """The models of one call: what is finished, what is asked."""

    def __init__(self, config: EvalConfig, out: Path, wanted: dict[tuple[str, int], list[Subject]]) -> None:
        self.config, self.out, self.wanted = config, out, wanted
        self.seen: set[str] = set()
        self.digests = Digests(out / "cache" / "weights.json")
        self.processes = loading.process_count(config)
        data = Path(config.data)
        self.documents = held_out.read(config.ppl)
        self.data = {task: self.digests.tree(data / task) for task in {task for task, _ in wanted}}

    def evaluate(self, found: Found) -> None:
        """Every task of a model that is not finished."""
        self.seen.add(found.name)
        config, folder = self.config, Path(found.folder)
        tokenizer = loading.tokenizer_folder(found, config)
        identity = model_identity(
            self.digests, folder, tokenizer, loading.dtype_name(config, folder), config.max_length
        )
        output.register(self.out, found, identity["weights"])
        output.discard_stale(self.out, found.name, identity)
        pending = []
        for (task, variant), subjects in self.wanted.items():
            path, key = self._place(found, task, variant), self._key(identity, task, subjects)
            if not finished(path, key):
                pending.append((task, variant, subjects, path, key))
        bits = held_out.key(identity, self.documents)
        measured = not self.documents or held_out.is_finished(self.out, found.name, bits)
        if not pending and measured:
            log(f"{found.name}: {'its task is' if len(self.wanted) == 1 else f'all {len(self.wanted)} tasks are'} finished")
            return
        loading.limit_threads(config, 1)
        with ask.quiet():
            from eval.model import context_length
            from eval.tasks.letters import check_letters

        versions = {one.config["task"]: one.version for _, _, subjects, _, _ in pending for one in subjects}
        model = ask.open_model(found, config, identity, versions)
        own = context_length(model.config, model.tokenizer)
        for text in loading.notices(folder, tokenizer, model.tokenizer, config.max_length, own):
            log(f"{found.name}: {text}")
        with ask.quiet():
            for subject in (one for _, _, subjects, _, _ in pending for one in subjects if one.letters):
                check_letters(subject, model.tok_encode)
        if self.processes > 1:
            self._answer_in_processes(
                found, identity, {(task, variant): subjects for task, variant, subjects, _, _ in pending}
            )
        for task, variant, subjects, path, key in pending:
            label = f"{found.name} {task}{f' wording {variant}' if variant else ''}"
            total = _requests(subjects)
            start, before = time.monotonic(), model.processed
            with Progress(label, total, "request") as bar:
                model.advance = bar.advance
                entries, record = ask.ask(subjects, model)
            for name, what in record["shortened"].items():
                log(f"{label}: {name}: {_shortened(what, model.max_length)}")
            samples.write(path, entries)
            record |= {"key": key, "model": found.to_json(), "identity": identity, "sandbox": sandbox_of(subjects)}
            record |= {"samples": file_digest(path), "seconds": round(time.monotonic() - start, 3)}
            write_json(path.with_suffix(".json"), {**record, "tokens_processed": model.processed - before})

        if not measured:
            with Progress(f"{found.name} held-out documents", len(self.documents), "document") as bar:
                model.advance = bar.advance
                held_out.ask(self.out, found.name, model, self.documents, bits, identity)

    def _answer_in_processes(
        self, found: Found, identity: dict[str, Any], wanted: dict[tuple[str, int], list[Subject]]
    ) -> None:
        from eval.model import BLOCK

        hands = workers.deal(workers.units(wanted, BLOCK), self.processes)
        label = f"{found.name} in {len(hands)} process{'es' if len(hands) > 1 else ''}"
        with Progress(label, sum(map(_requests, wanted.values())), "request") as bar:
            workers.answer(hands, found, self.config, identity, bar.advance)

    def _place(self, found: Found, task: str, variant: int) -> Path:
        folder = self.out / "samples" if variant == 0 else self.out / "variants" / str(variant)
        return folder / found.name / f"{task}.jsonl"

    def _key(self, identity: dict[str, Any], task: str, subjects: Sequence[Subject]) -> str:
        """All that a task's lines depend on. A tokenizer or weights that changed, a mended data file: another key."""
        import importlib.metadata

        asked = [[one.name, one.version, one.items] for one in subjects]
        harness = importlib.metadata.version("lm-eval")
        box = sandbox_of(subjects)
        return digest(json_bytes([identity, harness, self.data[task], asked, *([box] if box is not None else [])]))


def _requests(subjects: Sequence[Subject]) -> int:
    return sum(one.items * max(1, len(one.letters)) for one in subjects)


def sandbox_of(subjects: Sequence[Subject]) -> str | None:
    """Where a task's generated programs run: `bubblewrap`, `none` (--unsafe-code), None where there are no programs."""
    names = [one.config["metadata"]["sandbox"] for one in subjects if "sandbox" in one.config.get("metadata", {})]
    return None if not names else "bubblewrap" if all(name == "bubblewrap" for name in names) else "none"


def finished(path: Path, key: str) -> bool:
    """Whether a task's lines are there, whole, and made from the same things."""
    about = path.with_suffix(".json")
    if not about.is_file() or not path.is_file():
        return False
    record = read_json(about)
    return bool(record.get("key") == key and record.get("samples") == file_digest(path))


def _shortened(what: dict[str, int], length: int) -> str:
    parts = []
    if "fewest_shots" in what:
        few = what["items_with_fewer_shots"]
        parts.append(
            f"{counted(few, 'prompt')} {'does' if few == 1 else 'do'} not fit into {length} tokens and "
            f"{'has' if few == 1 else 'have'} fewer than {counted(what['shots'], 'example')}, "
            f"{what['fewest_shots']} at least (the first ones are left out)"
        )
    if "items_cut" in what:
        cut = what["items_cut"]
        lost = "does not fit even alone and lost its beginning" if cut == 1 else "do not fit even alone and lost their beginning"
        parts.append(f"{counted(cut, 'question')} {lost}")
    if "generated_at_most" in what:
        parts.append(f"answers have at most {counted(what['generated_at_most'], 'token')}, half of the context")
    return "; ".join(parts)


__all__ = ["Session", "finished", "run", "sandbox_of", "wanted_subjects"]
