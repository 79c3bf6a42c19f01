"""Which row stands where: shares of the sources of a stage, replay of earlier stages, and the global order of rows.

**Shares** (`stages[k].weights`). Keys are names of sources, `language:NAME` or `tier:NAME`; values are relative.
- With `language:` keys the languages share the stage, and all other keys share their own language: {language:zh: 2,
  language:en: 8, zh_web: 7, zh_book: 3} gives zh_web 14 % of all tokens. A language without keys of its own splits by tokens.
- Without them all keys share the stage directly.
- `tier:NAME` stands for all sources of that tier (inside the language, where languages share) that are not named themselves.
- Inside a group whose members have no weights of their own, tokens decide: every token of the group is equally likely.

**Replay** of stage j with ratio r gives r tokens, shared by j's own weights, for each token of the stage's own.

**Order.** Each (source, role) is a stream: the source's rows in a permutation of their own, over and over, a new permutation
each epoch. The next row comes from the stream that worst-case fair weighted fair queueing picks (Bennett & Zhang 1996): among
the streams that are not ahead of their share, the one whose row would reach its share first. So after any number of rows each
stream's non-padding tokens are within one row of share x all tokens. A permutation is a keyed Feistel network with cycle
walking (Black & Rogaway 2002): place -> row and back in constant time, no shuffled list anywhere. The state between batches is
two numbers a stream; snapshots of it make the order random access.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.config import StageSettings
from training.mixture_kernels import queue, walk
from training.packs_index import SourceIndex, Sources
from ziya.errors import UserError
from ziya.files import digest

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

BLOCK_ROWS = 1 << 16  # rows that are ordered at once; never changes the order
KEPT_BLOCKS = 4
WARN_EPOCHS = 4.0  # Muennighoff et al. 2023: more repetitions of a source are worth little


def role_name(role: int) -> str:
    """`own`, or `replay K` for rows of stage K drawn again."""
    return f"replay {role}" if role else "own"


def stream_key(seed: int, stage: int, role: int, source: str) -> np.uint64:
    """Key of a stream's permutations: by the source's name, so that other sources, packs and shares do not change it."""
    return np.uint64(int(digest(f"{seed} stage {stage} {role_name(role)} {source}".encode())[:16], 16))


@dataclass(frozen=True)
class Stream:
    """Rows of one source in one role (0: own; k: replay of stage k), `share` of the stage's tokens."""

    number: int  # of the source
    source: SourceIndex
    role: int
    share: float
    key: np.uint64

    def rows(self, places: I64) -> I64:
        """Row at each place, int64 [n]; place p lies in epoch p // source.rows."""
        rows: I64 = walk(places, self.source.rows, self.key, False)
        if self.role == 0 and self.source.order is not None and len(places) and int(places.min()) < self.source.rows:
            first = places < self.source.rows
            rows[first] = self.source.order[places[first]]
        return rows

    def places(self, rows: I64, epoch: int) -> I64:
        """Place of each row in an epoch, counted from the stage's start, int64 [n]: the inverse of `rows`."""
        start = epoch * self.source.rows
        if self.role == 0 and epoch == 0 and self.source.place is not None:
            return self.source.place[rows].astype(np.int64)
        places: I64 = start + walk(start + rows, self.source.rows, self.key, True)
        return places


def own_shares(stage: StageSettings, sources: Sources) -> F64:
    """Share of each source in the stage's own tokens, float64 [sources], summing to 1. UserError on what makes no sense."""
    what = f"stage {stage.number}: weights"
    weights = stage.weights
    wrong = [f"{key} = {value}" for key, value in weights.items() if not (math.isfinite(value) and value >= 0)]
    if wrong:
        raise UserError(f"{what} must be finite and not negative, found {', '.join(wrong)}")
    if not any(weights.values()):
        raise UserError(f"{what} are all zero or none are given: give at least one source a weight above 0")
    languages = {key.partition(":")[2]: value for key, value in weights.items() if key.startswith("language:")}
    tiers = {key.partition(":")[2]: value for key, value in weights.items() if key.startswith("tier:")}
    named = {i: weights[source.name] for i, source in enumerate(sources.items) if source.name in weights}
    everyone = list(range(len(sources.items)))
    if languages:
        astray = [sources.items[i].name for i in named if sources.items[i].settings.language not in languages]
        if astray:
            raise UserError(
                f"{what} share the stage by language and name {', '.join(astray)}, whose language has no weight: add "
                "language:NAME for it, or drop all language: keys"
            )
        groups = [
            (value, [i for i in everyone if sources.items[i].settings.language == name])
            for name, value in languages.items()
        ]
    else:
        groups = [(1.0, everyone)]
    shares = np.zeros(len(sources.items))
    met: set[str] = set()
    for value, members in groups:
        if not value:
            continue
        parts = [(named[i], [i]) for i in members if i in named]
        for tier, weight in tiers.items():
            free = [i for i in members if i not in named and sources.items[i].settings.tier == tier]
            if free:
                met.add(tier)
                parts.append((weight, free))
        parts = parts or [(1.0, members)]
        total = math.fsum(weight for weight, _ in parts)
        if not total:
            names = ", ".join(sources.items[i].name for i in members)
            raise UserError(f"{what} of {names} are all zero and their language is not: raise one or drop the language")
        for weight, group in parts:
            if weight:
                tokens = [sources.items[i].tokens for i in group]
                if not sum(tokens):
                    names = ", ".join(sources.items[i].name for i in group)
                    raise UserError(
                        f"{what} give {names} a share and there are no tokens: remove the weight or add packs"
                    )
                shares[group] += value * weight / total * np.array(tokens) / sum(tokens)
    unmet = sorted(set(tiers) - met)
    if unmet:
        raise UserError(
            f"{what} give tier:{unmet[0]} a share and no source is left in it: its sources are named themselves, or their "
            "language has no weight"
        )
    normal: F64 = shares / shares.sum()
    return normal


def stage_streams(stages: Sequence[StageSettings], sources: Sources, seed: int, number: int) -> list[Stream]:
    """The streams of stage `number` with shares that sum to 1: its own sources, then each replayed stage's."""
    by_number = {stage.number: stage for stage in stages}
    if number not in by_number:
        raise UserError(f"stage {number} is not in the config: it has {', '.join(map(str, by_number))}")
    stage = by_number[number]
    replayed = [replay.stage for replay in stage.replay]
    if len(set(replayed)) < len(replayed) or any(other not in by_number or other >= number for other in replayed):
        raise UserError(f"stage {number} replays {replayed}: earlier stages of the config, each once")
    whole = 1.0 + math.fsum(replay.ratio for replay in stage.replay)
    parts = [(0, 1.0, stage), *((replay.stage, replay.ratio, by_number[replay.stage]) for replay in stage.replay)]
    streams = []
    for role, ratio, drawn in parts:
        for i, share in enumerate(own_shares(drawn, sources).tolist()):
            if share > 0:
                source = sources.items[i]
                key = stream_key(seed, number, role, source.name)
                streams.append(Stream(i, source, role, share * ratio / whole, key))
    return streams


def expected_epochs(stages: Sequence[StageSettings], sources: Sources, through: int) -> dict[str, float]:
    """Source -> times that the budgets of stages 1 to `through` read it, replay included."""
    epochs = {source.name: 0.0 for source in sources.items}
    for stage in stages:
        if stage.number <= through:
            for stream in stage_streams(stages, sources, 0, stage.number):
                epochs[stream.source.name] += stream.share * stage.tokens / stream.source.tokens
    return epochs


def epoch_warnings(stages: Sequence[StageSettings], sources: Sources, through: int) -> list[str]:
    """One line for each source that is read more than WARN_EPOCHS times up to the end of stage `through`."""
    return [
        f"source {name} is read {epochs:.1f} times up to the end of stage {through}; beyond {WARN_EPOCHS:g} repeated tokens "
        "teach little: lower its weight or the budget, or add data"
        for name, epochs in expected_epochs(stages, sources, through).items()
        if epochs > WARN_EPOCHS
    ]


@dataclass(frozen=True)
class Drawn:
    """Rows in order. `stream` int32 [n]: number of the stream; `place` int64 [n]: its place there; `row` int64 [n]: of the
    source."""

    stream: I32
    place: I64
    row: I64


class Order:
    """The order of one stage: `batch(data_index)` is the same whoever asks and whatever was asked before. Thread-safe."""

    def __init__(
        self, stages: Sequence[StageSettings], sources: Sources, seed: int, stage: int, rows_per_batch: int
    ) -> None:
        self.stage, self.rows = stage, rows_per_batch
        self.streams = stage_streams(stages, sources, seed, stage)
        self._shares = np.array([stream.share for stream in self.streams])
        self._block = max(1, BLOCK_ROWS // rows_per_batch)  # batches
        zero = np.zeros(len(self.streams), np.int64)
        self._known: list[int] = [0]  # data_index of each snapshot, rising
        self._states: list[tuple[I64, I64]] = [(zero, zero)]
        self._blocks: OrderedDict[int, Drawn] = OrderedDict()
        self._lock = threading.Lock()

    def batch(self, data_index: int) -> Drawn:
        """Rows of one global batch, [rows_per_batch] each."""
        with self._lock:
            start, block = self._block_of(data_index)
        part = slice((data_index - start) * self.rows, (data_index - start + 1) * self.rows)
        return Drawn(block.stream[part], block.place[part], block.row[part])

    def state(self, data_index: int) -> tuple[I64, I64]:
        """(rows, non-padding tokens) drawn from each stream by the batches before `data_index`, int64 [streams] each."""
        with self._lock:
            drawn, spent = self._before(data_index)
            start = self._known[bisect.bisect_right(self._known, data_index) - 1]
            if start < data_index:
                _, (drawn, spent) = self._draw(start, data_index, drawn, spent)
            return drawn.copy(), spent.copy()

    def remember(self, data_index: int, drawn: Sequence[int], spent: Sequence[int]) -> None:
        """Go on from a state that `state(data_index)` told an earlier process, so that the rows before it need not be ordered
        again; states and blocks after it are forgotten."""
        with self._lock:
            at = bisect.bisect_left(self._known, data_index)
            self._known[at:] = [data_index]
            self._states[at:] = [(np.array(drawn, np.int64), np.array(spent, np.int64))]
            self._blocks.clear()

    def _before(self, data_index: int) -> tuple[I64, I64]:
        """State at the last snapshot not after `data_index`, made on the way up to the block that holds it."""
        if data_index < 0:
            raise ValueError(f"data_index {data_index} is negative")
        while True:
            at = bisect.bisect_right(self._known, data_index) - 1
            start = self._known[at]
            stop = (start // self._block + 1) * self._block
            if data_index < stop:
                return self._states[at]
            if at + 1 == len(self._known) or self._known[at + 1] > stop:
                _, state = self._draw(start, stop, *self._states[at])
                self._known.insert(at + 1, stop)
                self._states.insert(at + 1, state)

    def _block_of(self, data_index: int) -> tuple[int, Drawn]:
        """(first data_index, rows) of the block that holds a batch."""
        drawn, spent = self._before(data_index)
        start = self._known[bisect.bisect_right(self._known, data_index) - 1]
        if start not in self._blocks:
            self._blocks[start] = self._draw(start, (start // self._block + 1) * self._block, drawn, spent)[0]
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(start)
        return start, self._blocks[start]

    def _draw(self, start: int, stop: int, drawn: I64, spent: I64) -> tuple[Drawn, tuple[I64, I64]]:
        """Rows of the batches from `start` to `stop`, from the state before them; and the state after them."""
        count = (stop - start) * self.rows
        drawn, spent = drawn.copy(), spent.copy()
        rows = [
            stream.rows(first + np.arange(int(stream.share * count * 1.02) + 8))
            for stream, first in zip(self.streams, drawn.tolist(), strict=True)
        ]
        sizes = [stream.source.filled(part) for stream, part in zip(self.streams, rows, strict=True)]
        out = np.empty(count, np.int32)
        used = np.zeros(len(rows), np.int64)
        done = 0
        while True:
            begin = np.concatenate([[0], np.cumsum([len(part) for part in rows])])
            cursor = begin[:-1] + used
            done, short = queue(out, done, self._shares, spent, np.concatenate(sizes), cursor, begin[1:])
            used = cursor - begin[:-1]
            if short < 0:
                break
            stream, have = self.streams[short], len(rows[short])
            more = stream.rows(drawn[short] + np.arange(have, 2 * have + 64))
            rows[short] = np.concatenate([rows[short], more])
            sizes[short] = np.concatenate([sizes[short], stream.source.filled(more)])
        place, row = np.empty(count, np.int64), np.empty(count, np.int64)
        for number, part in enumerate(rows):
            mine = out == number
            place[mine] = drawn[number] + np.arange(used[number])
            row[mine] = part[: used[number]]
        return Drawn(out, place, row), (drawn + used, spent)
