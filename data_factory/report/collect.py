"""Everything the page shows, as one JSON value: counts, histograms, samples with private data masked, clusters, damage."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_factory import finish
from data_factory.config import DataConfig
from data_factory.documents import read_rows, read_table
from data_factory.rules import RULE, RULES
from data_factory.sources.record import DROPS

SAMPLES = 3
SAMPLE_CHARS = 280
CLUSTERS = 15
DAMAGES = 15
_LOG_BINS = 20  # histogram bins per factor of ten of perplexity


class Smallest:
    """The `k` smallest keys seen per group, with a value each: a sample that does not depend on the order of units."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.groups: dict[str, list[tuple[_Reversed, Any]]] = {}

    def add(self, group: str, key: str, value: Any) -> None:
        """Offer one item."""
        heap = self.groups.setdefault(group, [])
        if len(heap) < self.k:
            heapq.heappush(heap, (_Reversed(key), value))
        elif key < heap[0][0].key:
            heapq.heapreplace(heap, (_Reversed(key), value))

    def items(self, group: str) -> list[Any]:
        """The values of a group, smallest key first."""
        return [value for _, value in sorted(self.groups.get(group, []), key=lambda item: item[0].key)]

    def all(self) -> list[Any]:
        """The values of all groups."""
        return [value for heap in self.groups.values() for _, value in heap]


class _Reversed:
    """Orders keys backwards, so that a min-heap gives up its largest."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __lt__(self, other: _Reversed) -> bool:
        return self.key > other.key


def collect(config: DataConfig, out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """report.json without timings: reads every unit once, keeps counters and samples only."""
    languages: dict[str, Counter[str]] = {"read": Counter(), "kept": Counter()}
    histogram: dict[str, Counter[int]] = {}
    dropped, cut = Smallest(SAMPLES), Smallest(SAMPLES)
    clusters: list[tuple[int, str, str]] = []
    sizes: Counter[int] = Counter()
    damages: list[dict[str, Any]] = []
    errors: Counter[str] = Counter()
    touched: Counter[str] = Counter()
    for path in sorted((out / "decisions").glob("*.parquet")):
        decisions = read_table(path)
        measured = read_table(out / "measurements" / path.name, ["lang", "perplexity", "document_row"])
        _count_languages(languages, measured["lang"], decisions["kept"])
        _histogram(histogram, measured)
        place = measured["document_row"].to_pylist()
        ids, urls = decisions["id"].to_pylist(), decisions["url"].to_pylist()
        unit = path.stem
        owners, reasons = _flat(decisions["reasons"])
        for rule, numbers in _by_rule(reasons.field("rule")):
            for number in heapq.nsmallest(SAMPLES, numbers, key=lambda number: ids[owners[number]]):
                row, reason = owners[number], reasons[number].as_py()
                where = {"unit": unit, "row": place[row], "id": ids[row], "url": urls[row], **reason}
                dropped.add(rule, ids[row], where)
        copies = np.asarray(decisions["copies"])
        for row in np.flatnonzero(copies > 1).tolist():
            clusters.append((-int(copies[row]), ids[row], urls[row]))
        clusters = heapq.nsmallest(CLUSTERS, clusters)
        values, counts = np.unique(copies[copies > 0], return_counts=True)
        sizes.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        keys = read_table(out / "keys" / path.name, ["id", "cut_rules"])
        key_ids = keys["id"].to_pylist()
        owners, rules = _flat(keys["cut_rules"])
        for rule, numbers in _by_rule(rules):
            touched[rule] += len(numbers)
            for number in heapq.nsmallest(SAMPLES, numbers, key=lambda number: key_ids[owners[number]]):
                row = owners[number]
                cut.add(rule, key_ids[row], {"unit": unit, "row": row, "id": key_ids[row]})
        quarantine = read_table(out / "quarantine" / path.name)
        errors.update(re.split(r"[:(]", error)[0].strip() for error in quarantine["error"].to_pylist())
        damages += quarantine.slice(0, max(0, DAMAGES - len(damages))).to_pylist()
    texts = _fetch(out, dropped, cut)
    return {
        **summary,
        "languages": {
            name: dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
            for name, counts in languages.items()
        },
        "perplexity_histogram": {
            language: [
                [10 ** (number / _LOG_BINS), 10 ** ((number + 1) / _LOG_BINS), count]
                for number, count in sorted(bins.items())
            ]
            for language, bins in sorted(histogram.items())
        },
        "rules": _rules(texts, summary["reasons"], dropped),
        "cuts": [
            {
                "rule": rule,
                "documents": touched[rule],
                "meaning": _meaning(rule),
                "samples": _cut_samples(config, out, texts, rule, cut),
            }
            for rule in sorted(touched, key=lambda rule: (-touched[rule], rule))
        ],
        "clusters": [{"copies": -count, "id": document, "url": url} for count, document, url in clusters],
        "cluster_sizes": {str(size): count for size, count in sorted(sizes.items())},
        "quarantine": {"errors": dict(sorted(errors.items(), key=lambda item: (-item[1], item[0]))), "first": damages},
    }


def _flat(column: pa.ChunkedArray) -> tuple[list[int], pa.Array]:
    """(row of each element, elements) of a column of lists."""
    lists = column.combine_chunks()
    lengths = np.asarray(lists.value_lengths().fill_null(0)).astype(np.int64)
    return np.repeat(np.arange(len(lists)), lengths).tolist(), lists.flatten()


def _by_rule(rules: pa.Array) -> Iterator[tuple[str, list[int]]]:
    """(rule, its positions in `rules`) for each rule, sorted by name."""
    encoded = rules.dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
    for code in sorted(range(len(names)), key=names.__getitem__):
        yield names[code], np.flatnonzero(codes == code).tolist()


def _count_languages(languages: dict[str, Counter[str]], lang: pa.ChunkedArray, kept: pa.ChunkedArray) -> None:
    for name, column in (("read", lang), ("kept", lang.filter(kept))):
        languages[name].update(
            {item["values"]: item["counts"] for item in column.value_counts().to_pylist() if item["values"]}
        )


def _histogram(histogram: dict[str, Counter[int]], measured: pa.Table) -> None:
    perplexity = np.asarray(measured["perplexity"]).astype(np.float64)
    lang = np.array(measured["lang"].to_pylist(), dtype=object)
    for language in sorted(set(lang[~np.isnan(perplexity)])):
        values = perplexity[(lang == language) & (perplexity > 0)]
        numbers, counts = np.unique(np.floor(np.log10(values) * _LOG_BINS).astype(int), return_counts=True)
        histogram.setdefault(language, Counter()).update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))


_MEANINGS = {
    **{rule: text.split(":")[0] for rule, text in DROPS.items()},
    "language.keep": "a language that is not wanted",
    "language.min_score": "language uncertain",
    "url.domain": "listed domain",
    "url.hard_words": "listed word in the URL",
    "url.soft_words": "several suspect words in the URL",
    "scoring.medium": "perplexity rank behind the medium tier",
    "scoring.max_perplexity": "perplexity above the cap",
    "scoring.min_perplexity": "perplexity below the floor",
    "decontaminate.threshold": "holds a benchmark item",
    "dedup.url": "same URL as a better document",
    "dedup.exact": "same text as a better document",
    "dedup.fuzzy": "nearly the same text as a better document",
    "dedup.seen_urls": "URL kept by an earlier run",
    finish.LINE_RULE_ID: "line that stands in many documents",
    **{f"rules.{rule.id}": rule.meaning for rule in RULES},
}


def _meaning(rule: str) -> str:
    return _MEANINGS.get(rule, "")


Texts = dict[tuple[str, int], pa.Table]


def _fetch(out: Path, *samples: Smallest) -> Texts:
    """(unit, row of documents/) -> that row, for all samples; every row group is read once."""
    wanted: dict[str, set[int]] = {}
    for sample in samples:
        for where in sample.all():
            if where["row"] >= 0:
                wanted.setdefault(where["unit"], set()).add(where["row"])
    return {
        (unit, row): table
        for unit in sorted(wanted)
        for row, table in read_rows(out / "documents" / f"{unit}.parquet", wanted[unit])
    }


def _rules(texts: Texts, reasons: dict[str, int], dropped: Smallest) -> list[dict[str, Any]]:
    rows = []
    shown = _masked_texts(texts, {(where["unit"], where["row"]) for where in dropped.all()})
    for rule, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        samples = []
        for where in dropped.items(rule):
            text = shown.get((where["unit"], where["row"]), "")
            samples.append(
                {
                    "id": where["id"],
                    "url": where["url"],
                    "value": where["value"],
                    "threshold": where["threshold"],
                    "winner": where["winner"],
                    "text": text[:SAMPLE_CHARS],
                }
            )
        rows.append({"rule": rule, "documents": count, "meaning": _meaning(rule), "samples": samples})
    return rows


def _masked_texts(texts: Texts, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """T1 of rows of documents/ with private data masked (cuts left in): what may be shown. Without pruned ones."""
    places = [place for place in sorted(wanted & texts.keys()) if not texts[place]["text"].null_count]
    if not places:
        return {}
    masked = finish.masked_only(pa.concat_tables([texts[place] for place in places]))
    return dict(zip(places, masked.strings(), strict=True))


def _cut_samples(config: DataConfig, out: Path, texts: Texts, rule: str, cut: Smallest) -> list[str]:
    """What the rule removed in its sample documents. Private data is never shown: a mask rule shows its replacement only."""
    name = rule.removeprefix("rules.")
    if name in RULE and RULE[name].effect == "mask":
        return [finish.mask_token(name)]
    samples = []
    for where in cut.items(rule):
        table = texts[where["unit"], where["row"]]
        if not table["text"].null_count:
            samples += finish.cut_texts(table, config, out, rule)[:1]
    return [text[:SAMPLE_CHARS] for text in samples]
