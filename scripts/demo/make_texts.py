"""Write the texts that the demo trains on beside its crawl.

    python scripts/demo/make_texts.py OUT_DIR [--seed 7]

OUT_DIR/english.jsonl    the documentation topics that come with Python, in English: what the demo's base model is trained on
OUT_DIR/questions.jsonl  supervised, for stage 2: which article a passage of the project's own text comes from (en, zh)
OUT_DIR/maths.jsonl      supervised, for stage 3: generated word problems with their working (en, zh)
OUT_DIR/heldout_zh.jsonl, heldout_en.jsonl  heldout/*.txt: prose that nothing else contains, for bits per byte

Equal arguments and an equal Python give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from crawl_pages import topics

PROBLEMS = 700  # a language
CHARACTERS = 1_500  # of a document of the English text


def english() -> Iterator[dict[str, str]]:
    """Python's documentation topics, cut at empty lines into documents of about CHARACTERS characters."""
    from pydoc_data.topics import topics as documentation

    for name in sorted(documentation):
        part: list[str] = []
        for block in [*documentation[name].split("\n\n"), ""]:
            if part and (not block or sum(map(len, part)) + len(block) > CHARACTERS):
                yield {"text": "\n\n".join(part)}
                part = []
            part.append(block.strip("\n"))


def questions() -> Iterator[dict[str, str]]:
    """One question a paragraph of the project's text: which of four articles is it from?"""
    for language, ask in (("en", "Which article is this passage from?"), ("zh", "下面这段话出自哪一篇文章？")):
        found = topics(language)
        for place, topic in enumerate(found):
            for number, section in enumerate(topic.sections):
                titles = [found[(place + step * (number + 1)) % len(found)].title for step in range(4)]
                shift = (place + number) % 4
                titles = titles[shift:] + titles[:shift]
                passage = section[0].split("\n")[0]
                options = "\n".join(f"{letter}. {title}" for letter, title in zip("ABCD", titles, strict=True))
                answer = f"{'ABCD'[titles.index(topic.title)]}. {topic.title}"
                yield {"task": "choice", "prompt": f"{ask}\n{passage}\n{options}", "text": answer}


def _shop(r: random.Random, zh: bool) -> tuple[str, str, int]:
    count, price, paid = r.randint(2, 9), r.randint(2, 19), 0
    paid = count * price + r.randint(1, 30)
    if zh:
        return (
            f"一本练习本 {price} 元，小明买了 {count} 本，付了 {paid} 元，应找回多少元？",
            f"{count} 本一共 {count} × {price} = {count * price} 元。找回 {paid} - {count * price} = {paid - count * price} 元。",
            paid - count * price,
        )
    return (
        f"A notebook costs {price} dollars. Tom buys {count} of them and pays {paid} dollars. How much change does he get?",
        f"{count} notebooks cost {count} * {price} = {count * price} dollars. The change is {paid} - {count * price} = "
        f"{paid - count * price} dollars.",
        paid - count * price,
    )


def _train(r: random.Random, zh: bool) -> tuple[str, str, int]:
    speed, hours, done = r.randint(40, 120), r.randint(2, 9), r.randint(10, 60)
    far = speed * hours
    if zh:
        return (
            f"火车每小时行 {speed} 千米，开了 {hours} 小时，出发前已经走过 {done} 千米，一共走了多少千米？",
            f"{hours} 小时走 {speed} × {hours} = {far} 千米。一共 {far} + {done} = {far + done} 千米。",
            far + done,
        )
    return (
        f"A train runs {speed} km an hour for {hours} hours after it has already covered {done} km. How far is that in all?",
        f"In {hours} hours it runs {speed} * {hours} = {far} km. In all that is {far} + {done} = {far + done} km.",
        far + done,
    )


def _apples(r: random.Random, zh: bool) -> tuple[str, str, int]:
    boxes, each, eaten = r.randint(3, 12), r.randint(4, 15), r.randint(1, 10)
    whole = boxes * each
    if zh:
        return (
            f"有 {boxes} 箱苹果，每箱 {each} 个，吃掉 {eaten} 个，还剩几个？",
            f"原有 {boxes} × {each} = {whole} 个。还剩 {whole} - {eaten} = {whole - eaten} 个。",
            whole - eaten,
        )
    return (
        f"There are {boxes} boxes with {each} apples each, and {eaten} apples are eaten. How many are left?",
        f"There were {boxes} * {each} = {whole} apples. {whole} - {eaten} = {whole - eaten} are left.",
        whole - eaten,
    )


KINDS: tuple[Callable[[random.Random, bool], tuple[str, str, int]], ...] = (_shop, _train, _apples)


def maths(seed: int) -> Iterator[dict[str, str]]:
    """PROBLEMS word problems a language, none twice; answers end as MetaMath's do."""
    for zh in (False, True):
        drawn, seen = random.Random(f"{seed} {zh}"), set()
        while len(seen) < PROBLEMS:
            question, working, answer = KINDS[len(seen) % len(KINDS)](drawn, zh)
            if question not in seen:
                seen.add(question)
                yield {
                    "task": "maths",
                    "prompt": question,
                    "text": f"{working} {'答案是' if zh else 'The answer is'}: {answer}",
                }


def heldout(language: str) -> Iterator[dict[str, str]]:
    """The paragraphs of heldout/LANGUAGE.txt."""
    text = (Path(__file__).parent / "heldout" / f"{language}.txt").read_text(encoding="utf-8")
    for paragraph in text.strip().split("\n\n"):
        yield {"text": paragraph, "domain": language}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    counts = {}
    files = {"english": english(), "questions": questions(), "maths": maths(given.seed)}
    files |= {f"heldout_{language}": heldout(language) for language in ("zh", "en")}
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (given.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts[name] = len(lines)
    print(f"{', '.join(f'{count} {name}' for name, count in counts.items())} in {given.out}")


if __name__ == "__main__":
    main()
