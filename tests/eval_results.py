"""A finished evaluation folder made of random scores: a base, checkpoints of three stages, six tasks, hostile texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from eval import statistics

HOSTILE = "</script><script>alert('owned')</script><img src=x onerror=alert(1)> & \u2028 | `code`"
SUBJECTS = {
    "ceval": {"law": "Social Science", "high_school_physics": "STEM"},
    "cmmlu": {"agronomy": "Other", "ancient_chinese": "Humanities"},
    "mmlu": {"abstract_algebra": "STEM", "world_religions": "Humanities"},
}
CHANCE = {"ceval": 0.3, "cmmlu": 0.3, "mmlu": 0.45, "gsm8k": 0.2, "math": 0.05, "humaneval": 0.15}
TOKENS = (0, 100, 300, 500, 650, 697, 700)


def models(count: int = len(TOKENS)) -> list[dict[str, Any]]:
    stages = ["one", "one", "one", "one", "two 监督", "three"]
    listed = [{"model": "base", "folder": "b", "step": None, "stage": None, "tokens": 0, "is_base": True, "run": None}]
    for number, tokens in enumerate(TOKENS[1:count]):
        listed.append({
            "model": f"step-{tokens}", "folder": "f", "step": tokens * 10, "stage": stages[number], "tokens": tokens * 10**9,
            "is_base": False, "run": "run",
        })  # fmt: skip
    return listed


def sample(rng: random.Random, task: str, subject: str, number: int, chance: float) -> dict[str, Any]:
    correct = float(rng.random() < chance)
    gold = "ABCD"[number * 7 % 4]
    letter = task in SUBJECTS
    chinese = task in ("ceval", "cmmlu")
    question = f"第{number}题：下列关于{subject}的说法，哪一项正确？" if chinese else f"Question {number} of {task}?"
    if number == 3:
        question = f"{question} {HOSTILE}"
    doc: dict[str, Any] = {"question": question, "answer": gold}
    if letter:
        doc |= {option: f"选项 {option}{number}" for option in "ABCD"}
    right = "ABCD".index(gold)
    values = [[-3.0 if (place == right) != bool(correct) else -1.0, False] for place in range(4)]
    said = str(number if correct else number + 1)
    return {
        "doc_id": number, "doc": doc, "target": gold if letter else str(number), "subject": subject,
        "category": SUBJECTS.get(task, {}).get(subject, ""), "task": task, "correct": correct,
        "sample_hash": f"{task}/{subject}/{number}",
        "filtered_resps": values if letter else [said],
        "resps": [values] if letter else [[f"Let me think. The answer is {said}. {HOSTILE if number == 5 else ''}"]],
    }  # fmt: skip


def write(out: Path, items: int = 40, count: int = len(TOKENS), protocol: str = "ziya2") -> dict[str, Any]:
    """Write results.json, models.json and samples/ under `out`; returns {models, samples, rows}."""
    listed = models(count)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for place, model in enumerate(listed):
        for task, chance in CHANCE.items():
            lines = []
            for subject in SUBJECTS.get(task, {"": ""}):
                rng = random.Random(f"{task} {subject} {place // 2}")  # neighbours agree often
                shift = 0.45 * place / 7 if task in ("ceval", "gsm8k") else 0.02 * place
                lines += [sample(rng, task, subject, number, chance + shift) for number in range(items)]
            samples.setdefault(model["model"], {})[task] = lines
            path = out / "samples" / model["model"] / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    rows = statistics.summarise(samples, listed, "base", protocol, 1)
    (out / "models.json").write_text(json.dumps(listed), encoding="utf-8")
    (out / "results.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"models": listed, "samples": samples, "rows": rows}
