"""Slow plain-Python reference of the deciding half of a run: every verdict, tier, cut, key, winner and reason again.

Written from the project's README and rule catalogue, not from the code: thresholds are data, everything else (order of
stages, ranks, T2, keys, duplicates, counts) is done again on Python strings, sorted lists and all pairs, and compared
with what the run wrote. Works on any finished OUT folder.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import oracle_dedup
import oracle_spans
import pyarrow.parquet as pq

from data_factory.config import DataConfig
from data_factory.rules import RULES
from data_factory.rules.privacy import MASK_TEXT

STAGES = ("read", "preprocess", "score", "rules", "deduplicate")
LINES = "dedup.lines.max_documents"
RULE = {rule.id: rule for rule in RULES}

Reason = tuple[str, float | None, float | None, str | None]


@dataclass
class Document:
    """One record of the run: its measurement row and, when it has one, its row of documents/ and what follows."""

    place: tuple[int, int]  # unit, row of measurements/
    row: dict[str, Any]
    text: dict[str, Any] | None  # row of documents/
    stage: str = ""
    tier: str = "unranked"
    reasons: list[Reason] = field(default_factory=list)
    t2: str = ""
    protected: list[tuple[int, int]] = field(default_factory=list)  # bytes of T2
    prompt_bytes: int = 0
    applied: set[str] = field(default_factory=set)
    copies: int = 0


def rows(out: Path, folder: str) -> list[list[dict[str, Any]]]:
    """Rows of a table, one list a unit."""
    return [pq.read_table(path).to_pylist() for path in sorted((out / folder).glob("[0-9]*.parquet"))]


def config_of(out: Path) -> DataConfig:
    """The settings that OUT was decided with (the paths of models and word lists are not looked at here)."""
    return DataConfig.model_validate(json.loads((out / "work" / "run.json").read_text(encoding="utf-8"))["config"])


def threshold(config: DataConfig, rule: str, lang: str) -> float | None:
    """The number in force: the user's own, else the preset's; every language but Chinese takes the English one."""
    key = "zh" if lang == "zh" else "en"
    own = getattr(config.rules, rule)
    preset = RULE[rule].thresholds.get(config.rules.preset, {}).get(key)
    value = own.get(key, preset) if isinstance(own, dict) else own if own is not None else preset
    return None if value is None or value == "off" else float(value)


def fails(rule: str, value: float, limit: float | None) -> bool:
    """Compared as float32, which is what was measured: 0.2 measured equals 0.2 configured."""
    if limit is None or math.isnan(value):
        return False
    edge = np.float32(limit)
    return bool(np.float32(value) < edge if RULE[rule].bad == "below" else np.float32(value) > edge)


class Oracle:
    """The reference decisions of one run folder. `seen`: normal URL keys that earlier runs kept."""

    def __init__(self, out: Path, seen: frozenset[int] = frozenset()) -> None:
        self.out, self.seen, self.config = out, seen, config_of(out)
        self.steps = {source.name: set(source.steps) for source in self.config.sources}
        self.documents: list[Document] = []
        for unit, (measured, texts) in enumerate(zip(rows(out, "measurements"), rows(out, "documents"), strict=True)):
            for number, row in enumerate(measured):
                text = texts[row["document_row"]] if row["document_row"] >= 0 else None
                self.documents.append(Document((unit, number), row, text))
        self.with_text = [document for document in self.documents if document.text is not None]
        self.pairs: set[tuple[str, str, float]] = set()

    def decide(self) -> Oracle:
        """All stages in order."""
        self._build_t2()
        past = [document for document in self.documents if self._preprocess(document)]
        past = self._score(past)
        past = [document for document in past if self._rules(document)]
        self._deduplicate(past)
        return self

    def has(self, document: Document, step: str) -> bool:
        """Whether a step applies to the document's source."""
        return step in self.steps[document.row["source"]]

    # T1 -> T2

    def _build_t2(self) -> None:
        settings = self.config.dedup.lines
        lines = {}
        holders: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for document in self.with_text:
            assert document.text is not None
            guard = [(span["start"], span["end"]) for span in document.text["protected"]]
            found = oracle_dedup.line_keys(document.text["text"], guard, settings.min_chars)
            lines[document.place] = found
            whole = oracle_dedup.exact_key(document.text["text"], guard)
            for _, _, key in found:
                holders[key].add(whole)
        frequency = {key: len(those) for key, those in holders.items() if len(those) >= settings.floor}
        for document in self.with_text:
            cuts, masks = self._spans(document)
            if settings.max_documents and self.has(document, "dedup"):
                often = [
                    line for line in lines[document.place] if frequency.get(line[2], 0) > settings.max_documents
                ]
                cuts += [(start, end) for start, end, _ in often]
                document.applied |= {LINES} if often else set()
            self._cut(document, cuts, masks)

    def _spans(self, document: Document) -> tuple[list[tuple[int, int]], list[tuple[int, int, str]]]:
        cuts, masks = [], []
        assert document.text is not None
        for span in document.text["spans"] if self.has(document, "rules") else []:
            rule = span["rule"].removeprefix("rules.")
            if not fails(rule, span["value"], threshold(self.config, rule, document.text["lang"])):
                continue
            document.applied.add(f"rules.{rule}")
            if RULE[rule].effect == "mask":
                masks.append((span["start"], span["end"], MASK_TEXT[rule].decode()))
            else:
                cuts.append((span["start"], span["end"]))
        return cuts, masks

    def _cut(self, document: Document, cuts: list[tuple[int, int]], masks: list[tuple[int, int, str]]) -> None:
        assert document.text is not None
        text = document.text["text"]
        place = {0: 0}  # byte -> character of T1
        at = 0
        for number, character in enumerate(text, start=1):
            at += len(character.encode())
            place[at] = number
        guard = [(place[span["start"]], place[span["end"]]) for span in document.text["protected"]]
        if not cuts and not masks:
            document.t2, before = text, list(range(len(text) + 1))
        else:
            document.t2, before = oracle_spans.build(
                text,
                guard,
                sorted((place[start], place[end]) for start, end in cuts),
                [(place[start], place[end], shown) for start, end, shown in masks],
            )
        offsets = [0]
        for character in document.t2:
            offsets.append(offsets[-1] + len(character.encode()))
        document.prompt_bytes = offsets[before[place[document.text["prompt_bytes"]]]]
        for start, end in guard:
            inside = [place[a] for a, b, _ in masks if place[a] < start < place[b]]
            first, last = offsets[before[min(inside, default=start)]], offsets[before[end]]
            if last > first:
                document.protected.append((first, last))

    # verdicts

    def _fail(self, document: Document, stage: str, reasons: list[Reason]) -> bool:
        """Take over the reasons of a stage; returns whether the document passes."""
        if reasons:
            document.stage, document.reasons = stage, reasons
        return not reasons

    def _preprocess(self, document: Document) -> bool:
        row, url = document.row, self.config.url
        if row["drop"]:
            stage = "preprocess" if row["drop"] == "language.keep" else "read"
            return self._fail(document, stage, [(row["drop"], row["drop_value"], None, None)])
        reasons: list[Reason] = []
        least = self.config.language.min_score.get(row["lang"])
        if least is not None and self.has(document, "language"):
            edge = float(np.float32(least))
            if row["lang_score"] < edge:
                reasons.append(("language.min_score", row["lang_score"], edge, None))
        for rule, value, limit in (
            ("url.domain", row["url_domain"], int(url.domain)),
            ("url.hard_words", row["url_hard_words"], url.hard_words),
            ("url.soft_words", row["url_soft_words"], url.soft_words),
        ):
            if limit and value >= limit:
                reasons.append((rule, value, float(limit), None))
        return self._fail(document, "preprocess", reasons)

    def _score(self, past: list[Document]) -> list[Document]:
        scoring = self.config.scoring
        groups: dict[str, list[Document]] = defaultdict(list)
        for document in past:
            perplexity = document.row["perplexity"]
            if scoring.enabled and self.has(document, "scoring") and not math.isnan(perplexity):
                lang = document.row["lang"]
                groups[lang if scoring.ranking_group == "language" else f"{document.row['source']}/{lang}"].append(document)
        self.groups = groups
        for members in groups.values():
            members.sort(key=lambda document: (document.row["perplexity"], document.row["id"]))
            high, medium = (int(Fraction(str(p)) * len(members) / 100) for p in (scoring.high, scoring.medium))
            edge = members[medium - 1].row["perplexity"] if medium else None
            for rank, document in enumerate(members):
                document.tier = "high" if rank < high else "medium" if rank < medium else "low"
                perplexity, lang = document.row["perplexity"], document.row["lang"]
                reasons: list[Reason] = [("scoring.medium", perplexity, edge, None)] if rank >= medium else []
                most, least = scoring.max_perplexity.get(lang), scoring.min_perplexity.get(lang)
                if most is not None and perplexity > most:
                    reasons.append(("scoring.max_perplexity", perplexity, most, None))
                if least is not None and perplexity < least:
                    reasons.append(("scoring.min_perplexity", perplexity, least, None))
                self._fail(document, "score", reasons)
        return [document for document in past if not document.stage]

    def _rules(self, document: Document) -> bool:
        if not self.has(document, "rules"):
            return True
        reasons: list[Reason] = []
        assert document.text is not None
        before, after = len(document.text["text"]), len(document.t2)
        finals = {"final_chars": after, "removed_share": max(before - after, 0) / max(before, 1)}
        for rule in RULES:
            if rule.effect == "drop":
                limit = threshold(self.config, rule.id, document.row["lang"])
                value = float(np.float32(finals[rule.feature] if rule.text == "T2" else document.row[rule.feature]))
                if fails(rule.id, value, limit):
                    reasons.append((f"rules.{rule.id}", value, limit, None))
        return self._fail(document, "rules", reasons)

    # duplicates

    def _deduplicate(self, past: list[Document]) -> None:
        settings = self.config.dedup
        fuzzy, tiers = settings.fuzzy, {"unranked": 0, "high": 1, "medium": 2, "low": 3}
        competing, by_id = [], {}
        for document in past:
            document.copies = 1
            if not self.has(document, "dedup"):
                continue
            is_zh = document.row["lang"] == "zh"
            window = fuzzy.shingle_zh if is_zh else fuzzy.shingle_en
            value, shingles = oracle_dedup.simhash(document.t2, is_zh, window) if fuzzy.method != "none" else (0, 0)
            signature: tuple[int, ...] = ()
            if fuzzy.method == "minhash":
                signature = tuple(oracle_dedup.minhash(document.t2, is_zh, window, fuzzy.permutations))
            exact, url = oracle_dedup.exact_key(document.t2, document.protected), oracle_dedup.url_key(document.row["url"])
            number = int(document.row["id"], 16)
            by_id[number] = document
            competing.append(
                oracle_dedup.Document(
                    document.place, number, tiers[document.tier], len(document.t2), document.row["date"] or -(2**63),
                    url[0] << 64 | url[1], exact[0] << 64 | exact[1], value, shingles, signature,
                )
            )  # fmt: skip
        bands = None
        if fuzzy.method == "minhash":
            import datasketch

            lsh = datasketch.MinHashLSH(threshold=fuzzy.similarity, num_perm=fuzzy.permutations)
            bands = (lsh.b, lsh.r)
        result = oracle_dedup.deduplicate(competing, settings, self.seen, bands)
        by_place = {document.place: document for document in past}
        limit = float(fuzzy.distance) if fuzzy.method == "simhash" else fuzzy.similarity
        for place, (stage, winner, value) in result.losers.items():
            name = {"seen": "dedup.seen_urls"}.get(stage, f"dedup.{stage}")
            shown = "earlier run 0" if stage == "seen" else f"{winner:032x}"
            reason = (name, value, limit, shown) if stage == "fuzzy" else (name, None, None, shown)
            self._fail(by_place[place], "deduplicate", [reason])
            by_place[place].copies = 0
        for place, copies in result.copies.items():
            by_place[place].copies = copies
        self.pairs = {(f"{a:032x}", f"{b:032x}", float(value)) for a, b, value in result.pairs}

    # comparison

    def compare(self) -> dict[str, int]:
        """Assert that OUT says the same; returns how many things of each kind were compared."""
        counts = Counter(documents=len(self.documents))
        self._compare_decisions(counts)
        self._compare_kept(counts)
        self._compare_keys(counts)
        self._compare_summary()
        return dict(counts)

    def _compare_decisions(self, counts: Counter[str]) -> None:
        written = [row for unit in rows(self.out, "decisions") for row in unit]
        assert [row["id"] for row in written] == [document.row["id"] for document in self.documents]
        for row, document in zip(written, self.documents, strict=True):
            where = f"{row['id']} {row['url']}"
            assert row["url"] == document.row["url"], where
            assert row["stage"] == document.stage, (where, row, document.reasons)
            assert row["kept"] == (document.stage == ""), where
            assert row["tier"] == document.tier, (where, row["tier"], document.tier)
            assert row["copies"] == document.copies, (where, row["copies"], document.copies)
            found = [(r["rule"], r["value"], r["threshold"], r["winner"]) for r in row["reasons"]]
            assert [reason[0] for reason in found] == [reason[0] for reason in document.reasons], (where, found)
            for one, other in zip(found, document.reasons, strict=True):
                assert one[3] == other[3], (where, one, other)
                assert _same(one[1], other[1]) and _same(one[2], other[2]), (where, one, other)
            counts[f"stage {document.stage or 'kept'}"] += 1
            counts.update(reason[0] for reason in document.reasons)

    def _compare_kept(self, counts: Counter[str]) -> None:
        written = [row for unit in rows(self.out, "kept") for row in unit]
        kept = [document for document in self.documents if not document.stage]
        assert [row["id"] for row in written] == [document.row["id"] for document in kept]
        for row, document in zip(written, kept, strict=True):
            assert row["text"] == document.t2, row["id"]
            spans = [(span["start"], span["end"]) for span in row["protected"]]
            assert spans == document.protected, (row["id"], spans, document.protected)
            assert document.text is not None
            assert row["prompt_bytes"] == document.prompt_bytes, row["id"]
            for name in ("url", "lang", "source", "task"):
                assert row[name] == document.text[name]
            assert (row["tier"], row["copies"]) == (document.tier, document.copies)
            assert _same(row["perplexity"], document.row["perplexity"])
            counts["changed texts"] += document.t2 != document.text["text"]

    def _compare_keys(self, counts: Counter[str]) -> None:
        written = [row for unit in rows(self.out, "keys") for row in unit]
        fuzzy = self.config.dedup.fuzzy
        for row, document in zip(written, self.with_text, strict=True):
            assert row["id"] == document.row["id"]
            assert row["final_chars"] == len(document.t2)
            assert set(row["cut_rules"]) == document.applied, (row["id"], row["cut_rules"], document.applied)
            assert (row["exact_hi"], row["exact_lo"]) == oracle_dedup.exact_key(document.t2, document.protected), row["id"]
            assert (row["url_hi"], row["url_lo"]) == oracle_dedup.url_key(document.row["url"]), row["id"]
            is_zh = document.row["lang"] == "zh"
            window = fuzzy.shingle_zh if is_zh else fuzzy.shingle_en
            if fuzzy.method != "none":
                assert (row["simhash"], row["shingles"]) == oracle_dedup.simhash(document.t2, is_zh, window), row["id"]
            if fuzzy.method == "minhash":
                assert row["minhash"] == oracle_dedup.minhash(document.t2, is_zh, window, fuzzy.permutations), row["id"]
            counts.update(document.applied)
        found = pq.read_table(self.out / "duplicates" / "pairs.parquet").to_pylist()
        pairs = {(row["id_a"], row["id_b"]): row["distance"] for row in found}
        assert len(pairs) == len(found)
        assert set(pairs) == {(a, b) for a, b, _ in self.pairs}
        for a, b, value in self.pairs:
            wanted = value if fuzzy.method == "simhash" else float(np.float32(1) - np.float32(value))
            assert abs(pairs[a, b] - wanted) < 1e-6
        counts["near pairs"] = len(found)

    def _compare_summary(self) -> None:
        summary = json.loads((self.out / "summary.json").read_text(encoding="utf-8"))
        quarantined = sum(len(unit) for unit in rows(self.out, "quarantine"))
        lost = Counter(document.stage for document in self.documents)
        kept, total = lost.pop("", 0), len(self.documents)
        assert summary["documents"] == {
            "in": total + quarantined, "kept": kept, "dropped": total - kept, "quarantined": quarantined,
        }  # fmt: skip
        assert summary["reasons"] == dict(
            sorted(Counter(reason[0] for document in self.documents for reason in document.reasons).items())
        )
        entering, steps = total + quarantined, []
        for name in STAGES:
            leaving = entering - lost[name] - (quarantined if name == "read" else 0)
            steps.append({"name": name, "in": entering, "out": leaving})
            entering = leaving
        assert summary["steps"] == steps and entering == kept
        tiers: dict[str, dict[str, int]] = {}
        for members in self.groups.values():
            for document in members:
                into = tiers.setdefault(document.row["lang"], {"high": 0, "medium": 0, "low": 0})
                into[document.tier] += 1
        assert summary["tiers"] == tiers
        assert summary["duplicates"]["kept"] == sum(
            not document.stage and self.has(document, "dedup") for document in self.documents
        )


def _same(one: float | None, other: float | None) -> bool:
    """Equal numbers; a missing one equals NaN."""
    missing = [value is None or math.isnan(value) for value in (one, other)]
    if any(missing):
        return all(missing)
    assert one is not None and other is not None
    return one == other or math.isclose(one, other, rel_tol=1e-9)


def check_properties(out: Path) -> None:
    """What must hold of every finished run, whatever its settings."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    documents, config = summary["documents"], config_of(out)
    decisions = [row for unit in rows(out, "decisions") for row in unit]
    quarantined = sum(len(unit) for unit in rows(out, "quarantine"))
    assert documents["in"] == documents["kept"] + documents["dropped"] + documents["quarantined"]
    assert (len(decisions), quarantined) == (documents["in"] - documents["quarantined"], documents["quarantined"])
    entering = documents["in"]
    lost = Counter(row["stage"] for row in decisions)
    for step in summary["steps"]:
        assert step["in"] == entering
        entering = step["out"]
        assert step["in"] - step["out"] == lost[step["name"]] + (quarantined if step["name"] == "read" else 0)
    assert [step["name"] for step in summary["steps"]] == list(STAGES) and entering == documents["kept"]
    ids = [row["id"] for row in decisions]
    assert len(set(ids)) == len(ids), "ids repeat"
    kept = {row["id"]: row["copies"] for row in decisions if row["kept"]}
    assert all(row["kept"] != bool(row["reasons"]) for row in decisions), "a drop without a reason, or a reason kept"
    assert all(row["kept"] == (row["stage"] == "") for row in decisions)
    assert [row["id"] for row in decisions if row["kept"]] == [r["id"] for unit in rows(out, "kept") for r in unit]
    stands: Counter[str] = Counter()
    for row in decisions:
        for reason in row["reasons"]:
            assert stage_of(reason["rule"]) == row["stage"], (reason, row["stage"])
            if reason["rule"] in ("dedup.url", "dedup.exact", "dedup.fuzzy"):
                assert reason["winner"] in kept and reason["winner"] != row["id"]
                stands[reason["winner"]] += 1
            elif reason["rule"] != "dedup.seen_urls":
                assert reason["winner"] is None
        if row["stage"] == "deduplicate":
            assert len(row["reasons"]) == 1
    assert kept == {identity: 1 + stands[identity] for identity in kept}
    assert summary["reasons"] == dict(sorted(Counter(r["rule"] for row in decisions for r in row["reasons"]).items()))
    if config.scoring.ranking_group == "language":
        for counts in summary["tiers"].values():
            ranked = sum(counts.values())
            shares = (config.scoring.high, config.scoring.medium - config.scoring.high, 100 - config.scoring.medium)
            for tier, share in zip(("high", "medium", "low"), shares, strict=True):
                assert abs(counts[tier] - ranked * share / 100) <= 1, (tier, counts)


def stage_of(rule: str) -> str:
    """The stage whose reason a rule id is."""
    if rule == "language.keep":
        return "preprocess"
    return {
        "read": "read", "language": "preprocess", "url": "preprocess", "scoring": "score", "rules": "rules",
        "dedup": "deduplicate",
    }[rule.split(".", maxsplit=1)[0]]  # fmt: skip
