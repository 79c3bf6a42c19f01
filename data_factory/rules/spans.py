"""Every candidate cut and mask of a batch, whatever the thresholds, and the document measurements over the lexicons.

A candidate is stored when its value passes the floor of its rule; so a threshold looser than the floor cannot be
decided from what is stored, and `check_floors` refuses it. Line rules skip lines that overlap protected spans or
stand in a Markdown code fence; sentence rules skip spans that do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_factory import characters
from data_factory.batches import F32, I64, U8, Spans, TextBatch
from data_factory.rules import LANGUAGES, RULE, RULE_NUMBER, RULES, privacy
from data_factory.rules import lines as ln
from data_factory.rules import span_kernels as kernels
from data_factory.rules.lexicon import GROUP, Lexicon, Matches
from data_factory.rules.lines import LineTable
from data_factory.rules.patterns import LONGEST_PART, MONTHS, PATH_OPENERS, breadcrumb, byline, citation, counter
from data_factory.rules.remnants import remnants
from ziya.errors import UserError

Bools = npt.NDArray[np.bool_]
Found = tuple[I64, I64, F32]  # start, end, value of sentences or clauses
MOSTLY = 0.5  # share of a sentence or line in adverts above which all of it is an advert

# Rule -> language -> the loosest threshold that stored candidates can answer (stored: above it, or below it where
# `bad` is "below").
FLOORS: dict[str, dict[str, float]] = {
    rule.id: dict.fromkeys(LANGUAGES, 0.0) for rule in RULES if rule.effect != "drop"
} | {
    "short_lines": {"en": 6.0, "zh": 8.0},  # longer "short" lines would store most headings and list items twice
    "overlong_word_lines": {"en": 100.0, "zh": 100.0},
    "uppercase_lines": {"en": 0.3, "zh": 0.3},
    "numeric_lines": {"en": 0.8, "zh": 0.8},
    "action_lines": {"en": 0.3, "zh": 0.3},  # below a third the line says something of its own
    "pager_lines": {"en": 0.3, "zh": 0.3},
    "placeholder_lines": {"en": 0.5, "zh": 0.5},
    "link_lines": {"en": 0.5, "zh": 0.5},
    "remnant_lines": {"en": 0.1, "zh": 0.1},
    "advert_lines": {"en": 2.0, "zh": 2.0},
    "advert_sentences": {"en": 1.0, "zh": 1.0},  # a single weak word is everywhere
    "advert_clauses": {"en": 1.0, "zh": 1.0},
    "toxic_sentences": {"en": 1.0, "zh": 1.0},
}
FEATURES = (
    "toxic_hits", "toxic_share", "advert_share", "remnant_share", "private_density",
)  # fmt: skip


def check_floors(thresholds: Mapping[str, Mapping[str, float]]) -> None:
    """Raise `UserError` for thresholds (`rules.thresholds()`) that are looser than what is stored."""
    problems = []
    for rule_id, row in FLOORS.items():
        for language, value in thresholds.get(rule_id, {}).items():
            floor = row[language]
            loose = value < floor if RULE[rule_id].bad == "above" else value > floor
            if loose:
                word = "at least" if RULE[rule_id].bad == "above" else "at most"
                problems.append(f"rules.{rule_id} = {value:g} for {language}; it needs {word} {floor:g}, or off")
    if problems:
        raise UserError(f"thresholds looser than what is stored: {'; '.join(problems)}")


def _passes(rule: str, values: npt.NDArray[Any]) -> Bools:
    """bool: values that the looser of the rule's two floors lets through."""
    floors = FLOORS[rule].values()
    return values > np.float32(min(floors)) if RULE[rule].bad == "above" else values < np.float32(max(floors))


@dataclass
class _Table:
    """Collects candidates of a batch."""

    t1: TextBatch
    chinese: Bools  # [n]: language of each document is zh
    parts: list[Spans] = field(default_factory=list)

    def add(self, rule: str, start: I64, end: I64, value: npt.ArrayLike) -> None:
        """Store the spans (batch positions) of a cut rule whose value passes its floor."""
        values = np.broadcast_to(np.asarray(value, np.float32), start.shape)
        keep = _passes(rule, values) & (end > start)
        start, end, values = start[keep], end[keep], values[keep]
        doc = np.searchsorted(self.t1.offsets, start, side="right") - 1
        floor = np.where(self.chinese[doc], FLOORS[rule]["zh"], FLOORS[rule]["en"]).astype(np.float32)
        keep = values > floor if RULE[rule].bad == "above" else values < floor
        base = self.t1.offsets[doc[keep]]
        number = np.full(len(base), RULE_NUMBER[rule], np.int16)
        relative = (start[keep] - base).astype(np.int32), (end[keep] - base).astype(np.int32)
        self.parts.append(Spans(doc[keep].astype(np.int32), *relative, number, values[keep]))


@dataclass(frozen=True)
class _Hits:
    """Lexicon matches summed per line that has one. `line`: int64 [k]; the rest float32 [k, groups].

    `best`: largest weight; `cover`: bytes under matches; `strong`, `weak`: summed weights of distinct entries of
    weight above 1, and 1; `kinds`: distinct entries; `opens`: largest weight of a match at the line's start.
    """

    line: I64
    best: F32
    cover: F32
    strong: F32
    weak: F32
    kinds: F32
    opens: F32

    def of(self, group: str) -> tuple[F32, F32, F32, F32]:
        """best, cover, kinds, opens of one group."""
        g = GROUP[group]
        return self.best[:, g], self.cover[:, g], self.kinds[:, g], self.opens[:, g]


class Detectors:
    """The detectors of all paragraph and sentence rules."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    @classmethod
    def load(cls, settings: Any) -> Detectors:
        """With the shipped lists, `settings.toxic_lexicons` and `.advert_lexicons`; a bad file raises `UserError`."""
        return cls(Lexicon.load(settings.toxic_lexicons, settings.advert_lexicons))

    def candidates(self, t1: TextBatch, langs: U8, protected: Spans) -> Spans:
        """All candidate cuts and masks, sorted. `langs`: uint8 [n], 1 = zh; `protected`: sorted, disjoint."""
        return self.measure(t1, langs, protected)[0]

    def document_hits(self, t1: TextBatch, langs: U8) -> dict[str, F32]:
        """The document features over lexicons and private data, float32 [n] each; their names are `FEATURES`."""
        return self.measure(t1, langs, Spans.empty())[1]

    def measure(self, t1: TextBatch, langs: U8, protected: Spans) -> tuple[Spans, dict[str, F32]]:
        """`candidates` and `document_hits` from one search."""
        if not len(t1):
            return Spans.empty(), {name: np.zeros(0, np.float32) for name in FEATURES}
        lines = LineTable.of(t1)
        matches = self.lexicon.search(t1)
        line_of = np.searchsorted(lines.start, matches.start, side="right") - 1
        hits = _Hits(
            *kernels.per_line(lines.start, line_of, matches.entry, matches.start, matches.end, self.lexicon.weights)
        )
        fenced = (lines.counts[:, ln.FLAGS] & ln.FENCED) != 0
        guarded = fenced | lines.overlapping(t1, protected)
        table = _Table(t1, langs == 1)
        chinese = table.chinese[lines.doc]
        text = t1.data.tobytes()

        _shape_rules(table, lines, guarded, chinese)
        _phrase_rules(table, lines, hits, guarded, chinese)
        _pattern_rules(table, lines, hits, guarded, text)
        self._url_rules(table, lines, matches, line_of, guarded)
        parts = self._sentence_rules(table, lines, matches, line_of, hits, fenced, guarded, text)
        inside = Spans.concatenate([part.take(~privacy.overlaps(t1, part, protected)) for part in parts])
        private = privacy.spans(t1, privacy.find(t1, self._labels(matches)), protected)
        features = self._features(t1, lines, matches, inside, private)
        return Spans.concatenate([*table.parts, inside, private]), features

    def _labels(self, matches: Matches) -> list[tuple[int, int, bytes]]:
        rows = np.flatnonzero(self.lexicon.weights[matches.entry, GROUP["label"]] > 0)
        entries = self.lexicon.entries
        return [(int(matches.start[i]), int(matches.end[i]), entries[matches.entry[i]]) for i in rows.tolist()]

    def _url_rules(self, table: _Table, lines: LineTable, matches: Matches, line_of: I64, guarded: Bools) -> None:
        chosen = self.lexicon.weights[matches.entry, GROUP["url"]] > 0
        line = line_of[chosen]
        start, end, linked = kernels.urls(
            table.t1.data, lines.start[line], lines.end[line], matches.start[chosen], matches.end[chosen]
        )
        keep = (end > start) & ~guarded[line]
        line, start, end, linked = line[keep], start[keep], end[keep], linked[keep]
        line, start, end = line[~linked], start[~linked], end[~linked]
        covered = np.bincount(line, weights=end - start, minlength=len(lines))
        rows = np.unique(line)
        table.add(
            "link_lines", lines.start[rows], lines.end[rows], covered[rows] / (lines.end[rows] - lines.start[rows])
        )
        table.add("inline_urls", start, end, end - start)

    def _sentence_rules(
        self,
        table: _Table,
        lines: LineTable,
        matches: Matches,
        line_of: I64,
        hits: _Hits,
        fenced: Bools,
        guarded: Bools,
        text: bytes,
    ) -> list[Spans]:
        """The spans inside lines, protected text not yet left out; lines of adverts go to `table`."""
        t1, weights = table.t1, self.lexicon.weights
        own = _Table(t1, table.chinese)
        for group in ("toxic", "advert"):
            weight = weights[:, GROUP[group]]
            chosen = (weight[matches.entry] > 0) & ~fenced[line_of]
            found, line = matches.take(chosen), line_of[chosen]
            borders = lines.start[line], lines.end[line]
            whole, clauses = kernels.sentences(
                t1.data, characters.table(), *borders, found.entry, found.start, found.end, weight
            )
            if group == "advert":
                _advert_rules(table, own, lines, hits, guarded, whole, clauses)
            else:
                own.add("toxic_sentences", *whole)

        rows = hits.line[hits.of("remnant")[0] > 0]
        ranges = [(int(lines.start[row]), int(lines.end[row])) for row in rows[~fenced[rows]].tolist()]
        pieces = np.array([piece for low, high in ranges for piece in remnants(text, low, high)], np.int64).reshape(
            -1, 3
        )
        own.add("remnants", *pieces.T.copy())
        start, end, _ = pieces[pieces[:, 2] > 1].T.copy()
        line = np.searchsorted(lines.start, start, side="right") - 1
        covered = np.bincount(line, weights=end - start, minlength=len(lines))
        rows = np.unique(line)
        low, high = lines.start[rows], lines.end[rows]
        own.add("remnant_lines", low, high, covered[rows] / (high - low))

        brackets = kernels.brackets(t1.data)
        brackets = brackets[~fenced[np.searchsorted(lines.start, brackets, side="right") - 1]]
        doc = np.searchsorted(t1.offsets, brackets, side="right") - 1
        places = zip(brackets.tolist(), t1.offsets[doc].tolist(), t1.offsets[doc + 1].tolist(), strict=True)
        marks = [mark for place in places for mark in citation(text, *place)]
        own.add("citation_marks", *np.array(marks, np.int64).reshape(-1, 3).T.copy())
        return own.parts

    def _features(
        self, t1: TextBatch, lines: LineTable, matches: Matches, inside: Spans, private: Spans
    ) -> dict[str, F32]:
        n = len(t1)
        size = np.maximum(t1.lengths(), 1)
        chars = np.bincount(lines.doc, weights=lines.counts[:, ln.CHARS], minlength=n)
        thousands = np.maximum(chars / 1000.0, 1.0)
        weight = self.lexicon.weights[:, GROUP["toxic"]]
        hard, covered = kernels.toxic(t1.offsets, matches.entry, matches.start, matches.end, weight)

        def sure(rule: str, limit: float) -> Spans:
            return inside.take((inside.rule == RULE_NUMBER[rule]) & (inside.value > limit))

        def size_of(rows: Spans) -> npt.NDArray[np.float64]:
            return np.asarray(np.bincount(rows.doc, weights=rows.end - rows.start, minlength=n), np.float64)

        sentences, clauses = sure("advert_sentences", 2), sure("advert_clauses", 2)
        if len(sentences):  # clauses of a sentence that counts whole do not count again
            start, end = t1.offsets[sentences.doc] + sentences.start, t1.offsets[sentences.doc] + sentences.end
            at = t1.offsets[clauses.doc] + clauses.start
            clauses = clauses.take(at >= np.append(0, end)[np.searchsorted(start, at, side="right")])
        values = (
            hard / np.sqrt(thousands),  # the number of distinct words grows about as the root of a text's length
            np.where(hard >= 2, covered / size, 0.0),
            (size_of(sentences) + size_of(clauses)) / size,
            size_of(sure("remnants", 1)) / size,
            np.bincount(private.doc, minlength=n) / thousands,
        )
        return {name: value.astype(np.float32) for name, value in zip(FEATURES, values, strict=True)}


def _shape_rules(table: _Table, lines: LineTable, guarded: Bools, chinese: Bools) -> None:
    """Rules over the counts of a line."""
    counts = lines.counts
    flags, chars, free = counts[:, ln.FLAGS], np.maximum(counts[:, ln.CHARS], 1), ~guarded

    def emit(rule: str, value: npt.ArrayLike, rows: Bools) -> None:
        index = np.flatnonzero(rows & free & _passes(rule, np.asarray(value, np.float32)))
        table.add(rule, lines.start[index], lines.end[index], np.asarray(value)[index])

    open_end = (flags & ln.TERMINAL) == 0
    everywhere = np.ones(len(lines), np.bool_)
    emit("unterminated_lines", everywhere, open_end)
    emit("short_lines", np.where(chinese, counts[:, ln.UNITS], counts[:, ln.WORDS]), everywhere)
    emit("overlong_word_lines", counts[:, ln.RUN], everywhere)
    emit("uppercase_lines", counts[:, ln.UPPER] / chars, everywhere)
    emit("numeric_lines", counts[:, ln.DIGITS] / chars, everywhere)
    emit("symbol_lines", 1 + ((flags & ln.ODD) != 0), (flags & (ln.WORDY | ln.CODE_LIKE)) == 0)
    last = np.flatnonzero((np.append(lines.doc[1:], -1) != lines.doc) & open_end & ~guarded)
    start = kernels.last_sentence(table.t1.data, characters.table(), lines.start[last], lines.end[last])
    table.add("unfinished_end", start, lines.end[last], 1.0)


def _phrase_rules(table: _Table, lines: LineTable, hits: _Hits, guarded: Bools, chinese: Bools) -> None:
    """Rules over the phrases of a line."""
    rows, counts = hits.line, lines.counts[hits.line]
    chars, solid = counts[:, ln.CHARS], np.maximum(counts[:, ln.SOLID], 1)
    zh, free = chinese[rows], ~guarded[rows]
    headings = (counts[:, ln.FLAGS] & ln.HEADING) != 0  # ## More, 5.3. Show all
    short = ~headings & np.where(zh, counts[:, ln.UNITS] <= 20, counts[:, ln.WORDS] <= 10)

    def emit(rule: str, value: npt.NDArray[Any], seen: Bools) -> None:
        index = rows[seen & free]
        table.add(rule, lines.start[index], lines.end[index], value[seen & free])

    best, *_ = hits.of("javascript")
    emit("javascript_lines", np.where((best > 2) & (chars <= np.where(zh, 60, 160)), 2, 1), best > 0)
    best, *_ = hits.of("policy")
    emit("policy_lines", np.where((best > 2) & (chars <= np.where(zh, 120, 400)), 3, 1), best > 0)
    best, cover, _, opens = hits.of("copyright")
    near = (best > 2) & (chars <= np.where(zh, 100, 200))
    emit("copyright_lines", np.where(near, 3, 1), best > 0)
    best, cover, _, opens = hits.of("share")
    asks = (best > 2) & ((opens > 2) | (cover > 0.4 * solid)) & (chars <= np.where(zh, 60, 120))
    emit("share_lines", np.where(asks, 3, 1), best > 0)
    # Generic words (Print, Next, 评论) are headings too: alone they reach 0.6, some kinds together count in full.
    for group, rule, kinds_needed in (
        ("action", "action_lines", 3),
        ("pager", "pager_lines", 2),
        ("placeholder", "placeholder_lines", 3),
    ):
        best, cover, kinds, opens = hits.of(group)
        share = np.minimum(cover / solid, 1.0) * np.where((best > 1) | (kinds >= kinds_needed), 1.0, 0.6)
        if group == "pager":
            share = np.where((opens > 2) & (chars <= np.where(zh, 40, 80)), 1.0, share)
        emit(rule, share, (best > 0) & (short | (opens > 2)))


def _advert_rules(
    table: _Table, own: _Table, lines: LineTable, hits: _Hits, guarded: Bools, whole: Found, clauses: Found
) -> None:
    """Adverts at three sizes. The larger cut needs that most of it is advert: else its value is at most 2, and a
    smaller one applies (in Chinese the clause, in English the sentence).
    """
    start, end, value = whole
    row = np.searchsorted(lines.start, start, side="right") - 1
    inside = np.searchsorted(start, clauses[0], side="right") - 1
    covered = np.bincount(inside, weights=(clauses[1] - clauses[0]) * (clauses[2] > 1), minlength=len(start))
    mixed = table.chinese[lines.doc[row]] & (covered <= MOSTLY * (end - start))
    value = np.where(mixed, np.minimum(value, 2), value)
    own.add("advert_sentences", start, end, value)
    own.add("advert_clauses", *clauses)

    found = np.bincount(row, weights=np.where(mixed, covered, (end - start) * (value > 1)), minlength=len(lines))
    g = GROUP["advert"]
    rows = hits.line[hits.best[:, g] > 0]
    strong, weak = hits.strong[hits.best[:, g] > 0, g], hits.weak[hits.best[:, g] > 0, g]
    rare = np.where(
        table.chinese[lines.doc[rows]],
        150 / np.maximum(lines.counts[rows, ln.CHARS], 1),
        60 / np.maximum(lines.counts[rows, ln.WORDS], 1),
    )
    weight = (strong + np.minimum(weak, 2)) * np.minimum(rare, 1.0)
    mostly = found[rows] > MOSTLY * (lines.end[rows] - lines.start[rows])
    weight = np.where(mostly, weight, np.minimum(weight, 2))[~guarded[rows]]
    rows = rows[~guarded[rows]]
    table.add("advert_lines", lines.start[rows], lines.end[rows], weight)


def _pattern_rules(table: _Table, lines: LineTable, hits: _Hits, guarded: Bools, text: bytes) -> None:
    """Rules whose few candidate lines a pattern decides."""
    counts = lines.counts
    flags, chars, digits = counts[:, ln.FLAGS], counts[:, ln.CHARS], counts[:, ln.DIGITS]

    def emit(rule: str, rows: npt.NDArray[np.int64], test: Any) -> None:
        values = [test(text[int(lines.start[row]) : int(lines.end[row])].decode()) for row in rows.tolist()]
        table.add(rule, lines.start[rows], lines.end[rows], np.array(values, np.float32).reshape(-1))

    with_counter = hits.line[hits.of("counter")[0] > 0]
    emit(
        "counter_lines",
        with_counter[(digits[with_counter] > 0) & (chars[with_counter] <= 80) & ~guarded[with_counter]],
        counter,
    )
    labelled = hits.line[hits.of("byline")[0] > 0]
    dated = np.flatnonzero((digits >= 3) & (chars <= 40) & (digits * 4 >= chars) & ~guarded)
    dated = dated[kernels.dated(table.t1.data, lines.start[dated], lines.end[dated], digits[dated], MONTHS)]
    rows = np.union1d(labelled[(chars[labelled] <= 150) & ~guarded[labelled]], dated)
    emit("byline_lines", rows, byline)
    rows = np.flatnonzero(((flags & (ln.SEPARATED | ln.TABLE_ROW)) == ln.SEPARATED) & (chars <= 150) & ~guarded)
    borders = lines.start[rows], lines.end[rows]
    rows = rows[kernels.paths(table.t1.data, characters.table(), *borders, PATH_OPENERS, LONGEST_PART)]
    emit("breadcrumb_lines", rows, breadcrumb)
