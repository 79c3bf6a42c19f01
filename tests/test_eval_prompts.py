"""Prompts: protocol lm-eval equals the harness's own tasks request by request, protocol ziya2 equals OpenCompass's rendering."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_tokenizers
from small_benchmarks import SHARED, needs_box, needs_shared

from eval.sandbox import Program, Sandbox, bubblewrap_problem
from eval.tasks import Subject, subjects, variants
from eval.tasks.letters import check_letters, letter_places
from eval.tasks.prompts import prompts
from eval.tasks.stock import MATH_FILES
from ziya.errors import UserError

lm_eval = pytest.importorskip("lm_eval", reason="needs the packages of the eval extra")
datasets = pytest.importorskip("datasets")
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

LLAMA = SHARED.parent / "tokenizer" / "llama2" / "tokenizer.model"
STOCK = Path(lm_eval.__file__).parent / "tasks"
LETTER_TASKS = ("ceval", "cmmlu", "mmlu")
RESPONSES = {
    "gsm8k": ["So it is 1200 rolls.\n#### 1,200", "The answer is $2400.", "#### 18", "none"],
    "math": [
        "Final Answer: The final answer is $\\frac{1}{3}$. I hope it is correct.",
        "so $\\boxed{2.5}$",
        "Final Answer: The final answer is $(-1, 1)$. I hope it is correct.",
        "Final Answer: The final answer is $1,999$. I hope it is correct.",
    ],
    "humaneval": [
        "    return 2 * x\n",
        "    return x.upper() + '！'\n",
        "    return x[0] if x else None\n",
        "    oops(\n",
    ],
}


pytestmark = pytest.mark.usefixtures("quiet_harness")


class Answering(LM):
    """Answers by hashes of the requests: the same request, the same answer."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.responses = RESPONSES.get(task, [])

    @staticmethod
    def _number(request: Any) -> int:
        return int.from_bytes(hashlib.sha256(repr(request.args).encode()).digest()[:4], "big")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(-self._number(one) / 2**32, False) for one in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.responses[number % len(self.responses)] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def run(spec: Any, task: str, limit: int | None, manager: TaskManager) -> tuple[dict[str, float], list[dict[str, Any]]]:
    results = lm_eval.simple_evaluate(
        Answering(task), tasks=[spec], task_manager=manager, bootstrap_iters=0, limit=limit, confirm_run_unsafe_code=True,
        num_fewshot=None if isinstance(spec, dict) or task in ("gsm8k", "math", "humaneval") else 5,
    )  # fmt: skip
    (name,) = results["samples"]
    scores = {
        key: float(value) for key, value in results["results"][name].items() if "," in key and "stderr" not in key
    }
    return scores, results["samples"][name]


def hub_rows(task: str, name: str, data: Path) -> dict[str, list[dict[str, Any]]]:
    """The local items as the harness's datasets hold them, read with nothing of ours."""

    def table(path: Path) -> list[list[str]]:
        return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))

    if task == "mmlu":
        splits = {split: table(data / "mmlu" / split / f"{name}_{split}.csv") for split in ("dev", "test")}
        return {
            split: [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in rows]
            for split, rows in splits.items()
        }
    if task in ("ceval", "cmmlu"):
        ending = ".csv" if task == "cmmlu" else "_{}.csv"
        names = ("dev", "test") if task == "cmmlu" else ("dev", "val")
        tables = {split: table(data / task / split / f"{name}{ending.format(split)}") for split in names}
        return {split: [dict(zip(rows[0], row, strict=True)) for row in rows[1:]] for split, rows in tables.items()}
    if task == "gsm8k":
        texts = {split: (data / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8") for split in ("train", "test")}
        return {split: [json.loads(line) for line in text.split("\n") if line] for split, text in texts.items()}
    if task == "humaneval":
        lines = gzip.decompress((data / "humaneval" / "HumanEval.jsonl.gz").read_bytes()).decode().splitlines()
        return {"test": [json.loads(line) for line in lines]}
    if name == "math":
        lines = (data / "math" / "math500_first60.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        return {
            "test": [
                {"problem": row["question"], "solution": row["answer"].rpartition("The answer is: ")[0]} for row in rows
            ]
        }
    paths = sorted((data / "math" / "test" / name).glob("*.json"), key=lambda path: int(path.stem))
    return {"test": [json.loads(path.read_text(encoding="utf-8")) for path in paths]}


class SandboxedCodeEval:
    """Stands for the metric that the harness loads from the hub."""

    def compute(self, references: list[str], predictions: list[list[str]], k: list[int]) -> Any:
        programs = [Program(codes[0], test) for codes, test in zip(predictions, references, strict=True)]
        return {"pass@1": float(Sandbox().run(programs)[0].passed)} if len(programs) == 1 else {}, {}


class EvaluateModule:
    @staticmethod
    def load(name: str) -> Any:
        class Loaded:
            def compute(self, **values: Any) -> Any:
                return [*[SandboxedCodeEval().compute(**values)][0]]

        return Loaded()


CASES = [
    ("ceval", "law"), ("cmmlu", "ancient_chinese"), ("mmlu", "world_religions"),
    ("gsm8k", "gsm8k"), ("math", "algebra"), ("math", "number_theory"), ("humaneval", "humaneval"),
]  # fmt: skip
FOLDERS = {"mmlu": "mmlu/default", "math": "minerva_math"}
NAMES = {"ceval": "ceval-valid_{}", "cmmlu": "cmmlu_{}", "mmlu": "mmlu_{}", "math": "minerva_math_{}"}


def check_equal(task: str, name: str, data: Path, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if task == "humaneval" and bubblewrap_problem():
        pytest.skip(bubblewrap_problem())
    import evaluate

    ours = subjects([task], "lm-eval", data, allow_missing=True, limit=limit, warn=lambda text: None)
    (subject,) = [one for one in ours if one.name == name]
    rows = hub_rows(task, name, data)
    kept = {split: datasets.Dataset.from_list(some) for split, some in rows.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(kept))
    monkeypatch.setattr(evaluate, "load", EvaluateModule.load)
    manager = TaskManager(include_path=STOCK / FOLDERS.get(task, task), include_defaults=False)
    stock_name = NAMES.get(task, "{}" if task != name else task).format(
        "algebra" if name == "math" else MATH_FILES.get(name, name)
    )
    theirs = run(stock_name, task, limit, manager)
    mine = run(subject.config, task, None, TaskManager(include_defaults=False))
    assert mine[0] == theirs[0]
    assert subject.metric in theirs[0]
    assert len(mine[1]) == len(theirs[1]) > 0
    for one, other in zip(mine[1], theirs[1], strict=True):
        assert one["arguments"] == other["arguments"]
        assert (one["doc_id"], one["filter"], one["target"]) == (other["doc_id"], other["filter"], other["target"])
        assert [float(one[key]) for key in one["metrics"]] == [float(other[key]) for key in one["metrics"]]


@pytest.mark.parametrize(("task", "name"), CASES)
def test_lm_eval_equals_the_stock_task(task: str, name: str, made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal(task, name, made_up, None, monkeypatch)


@needs_shared
@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("ceval", "advanced_mathematics"),
        ("cmmlu", "college_actuarial_science"),
        ("mmlu", "college_computer_science"),
        ("gsm8k", "gsm8k"),
        ("math", "math"),
        ("humaneval", "humaneval"),
    ],
)
def test_lm_eval_equals_the_stock_task_on_real_items(task: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_equal(task, name, SHARED, 3, monkeypatch)


def built(subject: Subject) -> Any:
    task = ConfigurableTask(config=dict(subject.config))
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    return task


def ziya2(task: str, data: Path, name: str = "", **changes: Any) -> Subject:
    found = subjects([task], "ziya2", data, allow_missing=True, warn=lambda text: None, **changes)
    return next(one for one in found if not name or one.name == name)


def options(row: dict[str, str]) -> str:
    return "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD")


def test_ziya2_letter_prompts_are_opencompass(made_up: Path) -> None:
    """The contexts written out by hand from OpenCompass's templates and its rule for base models: turns joined by a newline."""
    (dev, test) = (hub_rows("ceval", "law", made_up)[split] for split in ("dev", "val"))
    hint = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n"
    shots = [f"{hint}{row['question']}{options(row)}\n答案: \n{row['answer']}\n" for row in dev]
    args = built(ziya2("ceval", made_up, "law")).instances[0].args
    assert args == ("".join(shots) + f"{hint}{test[0]['question']}{options(test[0])}\n答案: ", "\nA")

    (dev, test) = (hub_rows("cmmlu", "agronomy", made_up)[split] for split in ("dev", "test"))
    hint = "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n题目："
    shots = [f"{hint}{row['Question']}{options(row)}\n答案是: {row['Answer']}\n" for row in dev]
    args = built(ziya2("cmmlu", made_up, "agronomy")).instances[1].args
    assert args == ("".join(shots) + f"{hint}{test[0]['Question']}{options(test[0])}\n答案是:", " B")

    table = {split: hub_rows("mmlu", "world_religions", made_up)[split] for split in ("dev", "test")}
    asked = {
        split: [row["question"] + options(dict(zip("ABCD", row["choices"], strict=True))) + "\nAnswer:" for row in rows]
        for split, rows in table.items()
    }
    shots = [f"{text} {'ABCD'[row['answer']]}\n\n" for text, row in zip(asked["dev"], table["dev"], strict=True)]
    head = "The following are multiple choice questions (with answers) about  world religions.\n\n"
    args = built(ziya2("mmlu", made_up, "world_religions")).instances[7].args
    assert args == (head + "".join(shots) + asked["test"][1], " D")


@pytest.mark.parametrize(
    ("task", "size", "digest"),
    [
        ("gsm8k", 4667, "0834c2f792472816d0b8317c0f89b2798fb948cc93e2c26f7a6fbcb7f4129488"),
        ("math", 1893, "afe9d70ddc4ff3351a801a9a4f19063f0ff1e38f0792f162411fb7c75051a57c"),
        ("humaneval", 55, "af26a9613e22a089d575313de03cbeb34280d88ba4fd24bb4f5819c57227d43c"),
    ],
)
@needs_box
def test_ziya2_generation_prompts_are_opencompass(task: str, size: int, digest: str, made_up: Path) -> None:
    """Length and hash of the prompt that OpenCompass's file itself renders for this question (its strings read by ast)."""
    asked = "What is $1+1$? 一加一？"
    subject = ziya2(task, made_up)
    harness_task = built(subject)
    doc = {**harness_task.eval_docs[0], "question": asked, "prompt": asked}
    text = harness_task.fewshot_context(doc, subject.config["num_fewshot"])
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()) == (size, digest)
    assert subject.config["num_fewshot"] == {"gsm8k": 4, "math": 4, "humaneval": 0}[task]


def test_every_wording_names_source_and_licence_and_renders_apart(made_up: Path) -> None:
    for task in (*LETTER_TASKS, "gsm8k", "math"):
        contexts = {
            built(ziya2(task, made_up, variant=number, limit=1)).instances[0].args[0]
            for number in range(variants(task))
        }
        assert len(contexts) == variants(task)
    for task in (*LETTER_TASKS, "gsm8k", "math", "humaneval"):
        for wording in prompts(task).variants:
            assert wording.licence in ("Apache-2.0", "MIT")
            assert wording.source == "this project" or re.match(
                r"https://github\.com/.+/blob/[0-9a-f]{40}/", wording.source
            )
        assert prompts(task).variants[0].source.startswith("https://github.com/open-compass/opencompass/")


def test_limit_and_shots_reach_the_harness(made_up: Path) -> None:
    task = built(ziya2("ceval", made_up, "law", limit=2, shots=1))
    assert len(task.instances) == 2 * 4
    assert task.instances[0].args[0].count("答案: ") == 2
    bare = built(subjects(["gsm8k"], "lm-eval", made_up, shots=0, warn=lambda text: None)[0])
    assert bare.instances[0].args[0].startswith("Question: A baker sells 1 boxes")


def letter_subjects(data: Path) -> list[Subject]:
    found = subjects(LETTER_TASKS, "lm-eval", data, allow_missing=True, warn=lambda text: None)
    for number in range(4):
        found += subjects(LETTER_TASKS, "ziya2", data, allow_missing=True, variant=number, warn=lambda text: None)
    return found


def test_letter_places_are_the_shots(made_up: Path) -> None:
    context, places = letter_places(ziya2("cmmlu", made_up, "agronomy"))
    assert [letter for _, letter in places] == ["B", "C", "D", "A", "B"]
    assert all(context.startswith(head) and head.endswith(f"\n答案是: {letter}") for head, letter in places)


def test_letters_are_one_token_in_shots_and_scoring(made_up: Path, tmp_path: Path) -> None:
    import sentencepiece

    path = LLAMA if LLAMA.exists() else small_tokenizers.sentencepiece_model(tmp_path / "tokenizer.model")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for subject in letter_subjects(made_up):
        found = check_letters(subject, tokenizer.encode)
        assert {tokenizer.decode([token]).strip() for token in found.values()} == set("ABCD")


def test_letters_that_differ_are_refused(made_up: Path) -> None:
    subject = ziya2("mmlu", made_up, "anatomy")

    def by_character(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def with_space(
        text: str,
    ) -> list[int]:  # " A" is a token at the end only, as if shots and scoring were joined apart
        tokens = by_character(text)
        return [*tokens[:-2], 1_000_000 + tokens[-1]] if text.endswith((" A", " B", " C", " D")) else tokens

    def joined(text: str) -> list[int]:
        return by_character(re.sub("([ABCD])\n\n", lambda match: chr(0x4E00 + ord(match[1])), text))

    def one_for_all(text: str) -> list[int]:
        return [min(ord(letter), 60) for letter in text]

    assert check_letters(subject, by_character) == {letter: ord(letter) for letter in "ABCD"}
    for encode, message in [
        (with_space, "joins"),
        (joined, "joins . to what follows"),
        (one_for_all, "two of A, B, C, D one token"),
    ]:
        with pytest.raises(UserError, match=message):
            check_letters(subject, encode)
    apart = Subject(**{**subject.__dict__, "letters": ("A", "B", "C", "D")})

    def llama_like(text: str) -> list[int]:  # "A" and " A" are two tokens
        return [ord(one[-1]) + 1000 * len(one) for one in re.findall(r" [ABCD]|.|\n", text)]

    assert check_letters(subject, llama_like)
    with pytest.raises(UserError, match="must join alike"):
        check_letters(apart, llama_like)
