"""Scorers: gold answers score 100 %, wrong ones 0, in every spelling that readers take for the same; nothing hangs."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from small_benchmarks import SHARED, needs_box, needs_shared

from eval.tasks import Subject, math_worker, score_math, subjects
from eval.tasks.items import items, last_boxed
from eval.tasks.score_gsm8k import flexible, numbers, strict
from eval.tasks.score_humaneval import completion
from eval.tasks.scoring import cut

lm_eval = pytest.importorskip("lm_eval", reason="needs the packages of the eval extra")
from lm_eval.api.task import ConfigurableTask  # noqa: E402

pytestmark = pytest.mark.usefixtures("quiet_harness")


def task_subjects(task: str, protocol: str, data: Path, **changes: Any) -> list[Subject]:
    """Without shots: they are seconds of templates, and scorers do not see them."""
    return subjects([task], protocol, data, shots=0, allow_missing=True, warn=lambda text: None, **changes)  # type: ignore[arg-type]


def scores(subject: Subject, answer: Callable[[dict[str, Any]], Any]) -> dict[str, float]:
    """Means of every metric and filter when `answer` responds to each document: what `simple_evaluate` would print."""
    task: Any = ConfigurableTask(config=dict(subject.config))
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    for one in task.instances:
        one.resps = [answer(one)]
    task.apply_filters()
    by_doc: dict[int, list[Any]] = {}
    for one in task.instances:
        by_doc.setdefault(one.doc_id, []).append(one)
    found: dict[str, list[float]] = {}
    for name in task.instances[0].filtered_resps:
        for several in by_doc.values():
            for metric, value in task.process_results(
                several[0].doc, [one.filtered_resps[name] for one in several]
            ).items():
                found.setdefault(f"{metric},{name}", []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("protocol", ["ziya2", "lm-eval"])
@pytest.mark.parametrize("task", ["ceval", "cmmlu", "mmlu"])
def test_letters(task: str, protocol: str, made_up: Path) -> None:
    def gold(one: Any) -> tuple[float, bool]:
        doc = one.doc
        right = doc["answer"] if "answer" in doc else doc["Answer"]
        return (0.0 if one.idx == (right if isinstance(right, int) else "ABCD".index(right)) else -1.0, False)

    for subject in task_subjects(task, protocol, made_up):
        assert scores(subject, gold)[subject.metric] == 1.0
        assert scores(subject, lambda one: (-gold(one)[0], False))[subject.metric] == 0.0


@pytest.mark.parametrize(
    ("text", "last", "stated"),
    [
        ("16-3 is 13, so 13 * $2 = $26.\nThe answer is 26", "26", "26"),
        ("The answer is $1,234.50.", "1234.50", "1234.50"),
        ("#### -7", "-7", "-7"),
        ("答案是18。", "18", "18"),
        ("一共有１８个", "18", None),
        ("so x=-3 or (4)-3", "3", None),
        ("The answer is 12\nCheck: 5 + 7", "7", "12"),
        ("1, 2345 and 3,4", "4", None),
        ("Answer: .5 kg", "0.5", "0.5"),
        ("The answer is no number at all", None, None),
        ("", None, None),
    ],
)
def test_gsm8k_numbers(text: str, last: str | None, stated: str | None) -> None:
    assert flexible(text) == (None if last is None else Decimal(last))
    assert strict(text) == (None if stated is None else Decimal(stated))


def test_gsm8k_numbers_survive_odd_text() -> None:
    assert numbers("2² is ④ and ½, 1.2.3 - -") == [Decimal("2"), Decimal("1.2"), Decimal("0.3")]
    assert len(numbers("9" * 5000)) == 1


def test_the_next_question_is_cut_off() -> None:
    assert cut("The answer is 4\nQuestion: 5\nThe answer is 6", ["Question:"]) == "The answer is 4\n"
    assert cut("问题：五", ["答案", "题"]) == "问"
    assert cut("as it is", ["Question:"]) == "as it is"


@pytest.mark.parametrize("where", ["made_up", pytest.param("shared", marks=needs_shared)])
@pytest.mark.parametrize("protocol", ["ziya2", "lm-eval"])
def test_gsm8k_gold_and_wrong(protocol: str, where: str, made_up: Path) -> None:
    (subject,) = task_subjects("gsm8k", protocol, made_up if where == "made_up" else SHARED)
    field = "solution" if protocol == "ziya2" else "answer"

    def wrong(one: Any) -> str:
        number = str(one.doc[field]).rpartition("#### ")[2].replace(",", "")
        return f"#### {int(number) + 1}\n\nQuestion: what is {number}?\nAnswer: #### {number}"[
            : None if protocol == "ziya2" else 20
        ]

    gold = scores(subject, lambda one: one.doc[field])
    assert len(gold) == 2 and set(gold.values()) == {1.0}
    assert set(scores(subject, wrong).values()) == {0.0}
    if protocol == "ziya2":
        said = scores(subject, lambda one: f"We count.\nThe answer is {one.doc['answer']}.00\nQuestion: How many? 5")
        assert set(said.values()) == {1.0}


def test_last_boxed() -> None:
    assert last_boxed("\\boxed{1} and \\boxed{\\frac{1}{2}} end") == "\\frac{1}{2}"
    assert last_boxed("\\boxed 5$ metres") == "5"
    assert last_boxed("\\fbox{甲}") == "甲"
    assert last_boxed("\\boxed{never closed") == last_boxed("no box") == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{{24}}.", "24"),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
        ("The answer is 7.", "7"),
        ("所以答案是：$\\frac{1}{2}$。", "\\frac{1}{2}"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("I do not know", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert score_math.final_answer(text) == answer


SAME = [
    ("\\dfrac{1}{2}", "\\frac{1}{2}"), ("1/2", "\\frac{1}{2}"), ("\\frac12", "\\tfrac{1}{2}"), ("-1/2", "\\frac{-1}{2}"),
    ("5.0", "5"), ("2.50", "2.5"), (".5", "0.5"), ("1,234", "1234"), ("1{,}234", "1,234"), ("1,234,567", "1234567"),
    ("(3, 4)", "(3,4)"), ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"), ("90^\\circ", "90"), ("90^{\\circ}", "90"),
    ("\\$32", "32"), ("10\\%", "10"), ("x=5", "5"), ("x \\in [1,2]", "[1,2]"), ("f(x)=x^2", "x^2"), ("\\text{Evelyn}", "Evelyn"),
    ("5\\text{ cm}", "5"), ("6\\mbox{ cm}^2", "6"), ("\\sqrt2", "\\sqrt{2}"), ("{24}", "24"), ("12.", "12"), ("$7$", "7"), ("−3", "-3"),
]  # fmt: skip
DIFFERENT = [
    ("1", "2"), ("(1,2)", "(2,1)"), ("1,2", "12"), ("1,23", "123"), ("105", "10.5"), ("100", "1"), ("x", "y"), ("", ""),
    ("\\frac{1}{2}", "\\frac{2}{1}"), ("-1", "1"), ("[1,2]", "(1,2)"), ("10.50", "10.05"), ("1.20", "120"), ("\\sqrt{2}", "2"),
]  # fmt: skip


def test_same_text() -> None:
    assert [pair for pair in SAME if not score_math.same_text(*pair) or not score_math.same_text(*reversed(pair))] == []
    assert [pair for pair in DIFFERENT if score_math.same_text(*pair)] == []


def gold_spellings(gold: str) -> dict[str, str]:
    """The variants that `spec/eval.md` measured, where they apply to a gold answer."""
    found = {}
    if "\\frac" in gold:
        found["dfrac"] = gold.replace("\\frac", "\\dfrac")
    if simple := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", gold):
        found["a/b"] = f"{simple[1]}{simple[2]}/{simple[3]}"
    if re.fullmatch(r"-?\d+", gold):
        found["n.0"] = f"{gold}.0"
        if len(gold.lstrip("-")) > 3:
            found["comma"] = f"{int(gold):,}"
    if re.fullmatch(r"\(.*,.*\)", gold) or gold.startswith("\\left("):
        found["tuple"] = re.sub(r",\s*", ",", gold)
        found["tuple with spaces"] = re.sub(r",\s*", ",   ", gold)
    return found


@pytest.mark.parametrize("where", ["made_up", pytest.param("shared", marks=needs_shared)])
def test_math_gold_in_every_spelling_and_wrong(where: str, made_up: Path) -> None:
    golds = [one.answer for one in items("math", made_up if where == "made_up" else SHARED)]
    golds += ["\\frac{3}{4}", "-12", "12345", "(1, -2)", "\\left(0, \\frac{1}{2}\\right)"] if where == "made_up" else []
    asked = [(f"so \\boxed{{{said}}}", gold) for gold in golds for said in [gold, *gold_spellings(gold).values()]]
    asked += [
        (f"Final Answer: The final answer is ${gold}$. I hope it is correct.\nProblem: \\boxed{{0}}", gold)
        for gold in golds
    ]
    told = score(asked)
    assert [pair for pair, one in zip(asked, told, strict=True) if not one["math"]] == []
    assert sum(one["minerva"] for one in told[-len(golds) :]) >= len(golds) - 1  # Minerva needs these very words
    wrong = score([(f"so \\boxed{{7{gold}+1}}", gold) for gold in golds] + [("no idea", gold) for gold in golds])
    assert [one for one in wrong if any(one.values())] == []


def score(pairs: list[tuple[str, str]]) -> list[dict[str, float]]:
    (harness_filter,) = score_math.scoring(["Problem:"])
    apply = harness_filter["filter"][0]["filter_fn"]
    return [one["scores"] for one in apply([[text] for text, _ in pairs], [{"answer": gold} for _, gold in pairs])]


def test_math_through_the_harness(made_up: Path) -> None:
    for protocol, metrics in [("ziya2", {"math", "math_verify", "string"}), ("lm-eval", {"math_verify"})]:
        subject = task_subjects("math", protocol, made_up)[0]
        gold = scores(subject, lambda one: one.doc["solution"])
        assert {name for name, value in gold.items() if value == 1.0} == {f"{name},none" for name in metrics}
        said = scores(
            subject,
            lambda one: f"Final Answer: The final answer is ${last_boxed(one.doc['solution'])}$. I hope it is correct.",
        )
        assert set(said.values()) == {1.0}
        assert set(scores(subject, lambda one: "The final answer is $77$.").values()) == {0.0}


def test_a_comparison_that_never_ends_is_killed_and_the_next_one_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = score_math._Pool(1)
    assert score_math.scoring([])  # the filter itself starts nothing
    try:
        request = {"kind": "ziya2", "text": "", "answer": "2", "gold": "2"}
        assert pool.ask([request])[0]["math_verify"] == 1.0
        monkeypatch.setattr(score_math, "WAIT_FOR_ANSWER", 3.0)  # the worker is warm, its own limit is longer
        assert pool.ask([{**request, "answer": "10^{10^{10^{10}}}"}]) == [{"timeout": True}]
        monkeypatch.undo()
        assert pool.ask([request])[0]["math_verify"] == 1.0
    finally:
        pool.close()


def test_cpu_seconds_of_a_comparison_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_worker, "SECONDS", 0.1)
    before = signal.signal(signal.SIGPROF, math_worker._late)

    def stubborn() -> bool:
        while True:
            try:
                time.process_time()
            except Exception:  # as sympy's parsers do
                continue

    try:
        assert math_worker.limited(stubborn) is None
        assert math_worker.limited(lambda: True) == 1.0
        assert math_worker.limited(lambda: bool(1 / 0)) == 0.0
    finally:
        signal.signal(signal.SIGPROF, before)


DOC = {"prompt": 'import math\n\n\ndef 面积(r):\n    """圆"""\n', "entry_point": "面积"}
BODY = "    return math.pi * r * r"


@pytest.mark.parametrize(
    "response",
    [
        f"{BODY}\n\ndef other():\n    pass\n",
        f"{BODY}\nprint(面积(1))",
        f" {BODY[2:]}\n",  # the tokenizer lost the first space
        f"Here it is:\n```python\n{BODY}\n```\nDone.",
        f"```python\ndef 面积(r):\n{BODY}\n```",
        f"```\n{BODY}",
    ],
)
def test_responses_become_programs(response: str) -> None:
    until = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
    names: dict[str, Any] = {}
    exec(completion(response, DOC, until), names)
    assert names["面积"](1) == pytest.approx(3.14159, abs=1e-4)
    assert "other" not in names


@needs_box
@pytest.mark.parametrize("protocol", ["ziya2", "lm-eval"])
def test_humaneval_canonical_and_wrong(protocol: str, made_up: Path) -> None:
    (subject,) = task_subjects("humaneval", protocol, made_up)
    assert scores(subject, lambda one: one.doc["canonical_solution"]) == {subject.metric: 1.0}
    assert scores(subject, lambda one: "    return 'wrong'\n") == {subject.metric: 0.0}
    assert scores(subject, lambda one: "    import os\n    os._exit(0)\n") == {subject.metric: 0.0}
    assert subject.config["metadata"]["sandbox"] == "bubblewrap"


@needs_box
@needs_shared
@pytest.mark.parametrize("protocol", ["ziya2", "lm-eval"])
def test_real_canonical_solutions_through_the_harness(protocol: str) -> None:
    """Every one of the 164 runs in test_eval_sandbox; here the prompts and cuts of the protocols are around them."""
    (subject,) = task_subjects("humaneval", protocol, SHARED, limit=40)
    assert scores(subject, lambda one: one.doc["canonical_solution"]) == {subject.metric: 1.0}
