"""What the rules do to good text: reference articles through `ziya-data run` with scoring off, as JSON.

    python scripts/bench/keeps_good.py --en wikitext.jsonl.gz --zh articles.jsonl.gz --output results/keeps_good.json

Input: JSONL with a `text` field. The English file is tokenised Wikipedia text (WikiText): it is detokenised, and its
`<unk>` are removed, before anything sees it. Bar: at most 2 % of the documents of a language fall to any rule. The
share of bytes that each cut rule removes stands beside it; `--texts` adds the largest cuts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from typing import Any

from bench_factory.texts import read_texts

from data_factory import finish, run_state
from data_factory.documents import read_batches, read_table

BAR = 0.02
SHOWN = 200  # characters of a cut text in the result


def detokenise(text: str) -> str:
    """Text as WikiText spaces it -> text as it was written, headings as plain lines, `<unk>` removed."""
    text = re.sub(r" @(.)@ ", r"\1", text)
    text = re.sub(r"(?<=\w)[-‐‑](?=<unk>)|(?<=<unk>)[-‐‑](?=\w)", "-", text).replace("<unk>", "\x00")
    lines = [_line(line) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _line(line: str) -> str:
    line = re.sub(r"^\s*((?:= )+)(.*?)((?: =)+)\s*$", r"\2", line)  # = = Heading = =
    line = re.sub(r"\x00(?=\w)|[-‐‑]?\x00[-‐‑]?", "", line)
    line = re.sub(r"\( *[,;]* *\)|\" *\"|\[ *\]", "", line)  # pairs around nothing but <unk>
    line = re.sub(r" +([,.;:!?%)\]’”°′″])", r"\1", line)
    line = re.sub(r"([(\[$£€¥₤“]) +", r"\1", line)
    line = re.sub(r" +('(?:s|t|d|m|re|ve|ll)\b)", r"\1", line)
    line = re.sub(r"(?<=\w)s ' (?=\w)", "s' ", line)
    line = re.sub(r"(?<=[\w)]) / (?=[\w(])", "/", line)
    line = re.sub(r"(?<=\d) [–−] (?=\d)", "–", line)
    for quote in "\"'":  # quotes come in pairs inside a line: the first of a pair opens
        parts = re.split(rf"(?<!\S){quote}(?!\S)|(?<=\s){quote}(?=[,.;:!?)])", line)
        if len(parts) % 2:
            line = parts[0]
            for number, part in enumerate(parts[1:], start=1):
                line = line.rstrip(" ") + quote + part if number % 2 == 0 else line + quote + part.strip(" ")
    return re.sub(r" {2,}", " ", re.sub(r"^[ ,;]+(?=\S)", "", line)).strip()


def run_factory(texts: dict[str, list[str]], work: Path, overrides: list[str]) -> Path:
    """Run the shipped command over one JSONL file a language, scoring off; its output folder."""
    sources = []
    for language, rows in texts.items():
        path = work / f"{language}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number, text in enumerate(rows):
                file.write(json.dumps({"id": f"{language}-{number}", "text": text}, ensure_ascii=False) + "\n")
        sources.append({"name": language, "paths": [str(path)], "id_field": "id"})
    config = work / "config.yaml"
    settings = {"sources": sources, "scoring": {"enabled": False}, "rules": {"preset": "ziya2"}}
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    command = [
        sys.executable,
        "-m",
        "data_factory.cli",
        "run",
        str(config),
        *overrides,
        "--output",
        str(work / "out"),
        "--workers",
        "1",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return work / "out"


def collect(out: Path, texts: bool) -> dict[str, Any]:
    """Per source: documents, those that fell (with reasons), and the bytes that each rule cut."""
    config = run_state.stored_config(out)
    sources: dict[str, dict[str, Any]] = {}
    reasons: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((out / "decisions").glob("*.parquet")):
        measured = read_table(out / "measurements" / path.name, ["id", "source", "key"]).to_pylist()
        for decision, row in zip(read_table(path).to_pylist(), measured, strict=True):
            empty = {"documents": 0, "fell": [], "cut": Counter(), "cut_documents": defaultdict(list), "bytes": 0}
            source = sources.setdefault(row["source"], empty)
            source["documents"] += 1
            reasons[decision["id"]] = decision["reasons"]
            if not decision["kept"]:
                why = [_reason(reason) for reason in decision["reasons"]]
                source["fell"].append(
                    {"id": decision["id"], "key": row["key"], "stage": decision["stage"], "reasons": why}
                )
        for table in read_batches(out / "documents" / path.name):
            _collect_cuts(table, config, out, sources)
    return {name: _summary(source, texts) for name, source in sorted(sources.items())}


def _collect_cuts(table: Any, config: Any, out: Path, sources: dict[str, dict[str, Any]]) -> None:
    _, _, _, applied = finish.build(table, config, out)
    rows = table.select(["id", "source", "text"]).to_pylist()
    raw = [row["text"].encode() for row in rows]
    for row, text in zip(rows, raw, strict=True):
        sources[row["source"]]["bytes"] += len(text)
    for doc, number, start, end, value in zip(
        applied.doc, applied.rule, applied.start, applied.end, applied.value, strict=True
    ):
        source = sources[rows[doc]["source"]]
        rule = finish.span_rule_id(int(number))
        source["cut"][rule] += int(end - start)
        shown = "" if rule.startswith("rules.mask_") else raw[doc][start:end].decode()
        share = round(float(end - start) / len(raw[doc]), 4)
        item = {"id": rows[doc]["id"], "share": share, "value": round(float(value), 3), "text": shown}
        source["cut_documents"][rule].append(item)


def _reason(reason: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in reason.items()
        if value is not None
    }


def _summary(source: dict[str, Any], texts: bool) -> dict[str, Any]:
    fell_to_rules = [item for item in source["fell"] if item["stage"] == "rules"]
    rules = Counter(reason["rule"] for item in fell_to_rules for reason in item["reasons"])
    cuts = {}
    for rule, size in sorted(source["cut"].items(), key=lambda item: (-item[1], item[0])):
        spans = source["cut_documents"][rule]
        largest = sorted(spans, key=lambda item: (-item["share"], item["id"]))[: 5 if texts else 0]
        cuts[rule] = {
            "spans": len(spans),
            "documents": len({item["id"] for item in spans}),
            "byte_share": round(size / source["bytes"], 6),
            **({"largest": [item | {"text": item["text"][:SHOWN]} for item in largest]} if texts else {}),
        }
    share = len(fell_to_rules) / source["documents"]
    return {
        "documents": source["documents"],
        "bytes": source["bytes"],
        "fell_to_rules": len(fell_to_rules),
        "share": round(share, 5),
        "meets_bar": share <= BAR,
        "by_rule": dict(sorted(rules.items())),
        "documents_that_fell": source["fell"],
        "fell_before_rules": sum(item["stage"] in ("read", "preprocess", "score") for item in source["fell"]),
        "duplicates": sum(item["stage"] == "deduplicate" for item in source["fell"]),
        "cut_byte_share": round(sum(source["cut"].values()) / source["bytes"], 6),
        "cuts": cuts,
    }


def main() -> int:
    """Measure, print, write; exit status 1 when a language misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--en", type=Path, required=True)
    parser.add_argument("--zh", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--texts", action="store_true", help="show the five largest cuts of every rule")
    parser.add_argument("--full", type=Path, help="also keep the run's folder, for `ziya-data explain`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")
    arguments = parser.parse_args()
    texts = {"en": [detokenise(text) for text in read_texts([arguments.en])], "zh": read_texts([arguments.zh])}
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.full or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        result = collect(run_factory(texts, work, arguments.overrides), arguments.texts)
    command = " ".join(
        ["python scripts/bench/keeps_good.py --en", arguments.en.name, "--zh", arguments.zh.name, *arguments.overrides]
    )
    document = {"date": date.today().isoformat(), "command": command, "bar": BAR, "languages": result}
    text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    for language, row in result.items():
        fell = (
            f"{row['fell_to_rules']} of {row['documents']} documents fall to a rule ({row['share']:.2%}; bar {BAR:.0%})"
        )
        print(f"{language}: {fell}, {row['cut_byte_share']:.3%} of the bytes cut")
        for item in row["documents_that_fell"]:
            print(f"  {item['key']} {item['stage']}: {item['reasons']}")
        for rule, cut in row["cuts"].items():
            print(f"  {rule}: {cut['spans']} spans in {cut['documents']} documents, {cut['byte_share']:.4%}")
    return 0 if all(row["meets_bar"] for row in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
