"""From packs to batches. `batch(manifests, data_settings, seed, stage, data_index)` is a pure function: the same rows in the
same order for any layout, any number of loader threads, and whatever was asked before.

A global batch is cut into micro-batches only afterwards: micro-batch m of data-parallel rank r holds rows
(m * data_size + r) * micro_rows and the next ones, so all ranks together hold each row once in any layout.

Targets. Position i of a row predicts token i + 1 and counts (weight 1) unless i is the row's last, token i + 1 belongs to
another piece (so the first token after an EOS is nobody's target), it is padding, or, for sources with `answers_only`, it
belongs to a prompt. Pieces are the borders that the model sees; `visible: row` drops those between texts of a row, never that
before padding nor the row's end, and never changes which targets count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numba
import numpy as np
import numpy.typing as npt

from training.config import DataSettings, StageSettings
from training.mixture import Order
from training.packs_index import PackIndex, Sources, open_sources
from ziya.errors import UserError
from ziya.files import digest
from ziya.pack_files import manifest_path, piece_rows
from ziya.packs import bin_path, idx_path

if TYPE_CHECKING:  # torch is needed by `micro_batches` alone
    from training.rows import Packed

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
T = TypeVar("T")


class Recipe(Protocol):
    """What decides the rows of a run, apart from the packs; `training.config.TrainConfig` is one."""

    @property
    def data(self) -> DataSettings: ...
    @property
    def stages(self) -> list[StageSettings]: ...


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimizer step, R rows of L tokens with P pieces in all.

    `tokens` int64 [R, L]; `weights` float32 [R, L]: whether position i's target, token i + 1, counts; `filled` int32 [R]:
    tokens that are not padding; `pieces` int64 [R + 1]: first piece of each row; `starts` int64 [P]: first token of each piece
    in its row; `documents` int64 [P]: its row in the table of pieces (plain datasets: its sequence, -1 for padding);
    `source`, `pack` int32 [R]: number of the source in the settings and of the pack in the source; `row` int64 [R]: row of
    that pack; `source_row` int64 [R]: row of the source; `stream` int32 [R], `place` int64 [R]: see `mixture.Stream`.
    """

    stage: int
    data_index: int
    tokens: I64
    weights: F32
    filled: I32
    pieces: I64
    starts: I64
    documents: I64
    source: I32
    pack: I32
    row: I64
    source_row: I64
    stream: I32
    place: I64

    @property
    def token_count(self) -> int:
        """Non-padding tokens."""
        return int(self.filled.sum(dtype=np.int64))

    @property
    def target_count(self) -> float:
        """Unmasked targets, see `targets`."""
        return targets(self)


@numba.njit(cache=True, nogil=True)
def _weigh(weights, pieces, starts, prompts, filled):  # type: ignore[no-untyped-def]
    """Fill `weights` [R, L] from the pieces of each row; see the module's text for which targets count."""
    rows, length = weights.shape
    for r in range(rows):
        for p in range(pieces[r], pieces[r + 1]):
            end = starts[p + 1] if p + 1 < pieces[r + 1] else length
            counts = starts[p] < filled[r]
            first = starts[p] + max(prompts[p] - 1, 0)
            for i in range(starts[p], end):
                weights[r, i] = 1.0 if counts and first <= i < end - 1 else 0.0


def read_rows(sources: Sources, source: I32, rows: I64) -> dict[str, Any]:
    """Rows `rows` of the sources number `source`, int [R] each: the columns of a `GlobalBatch` that packs fill."""
    count, length = len(rows), sources.length
    tokens = np.empty((count, length), np.int64)
    filled = np.empty(count, np.int32)
    pack, row = np.empty(count, np.int32), np.empty(count, np.int64)
    parts = []
    for i in range(count):
        index = sources.items[source[i]]
        number = int(np.searchsorted(index.first, rows[i], "right")) - 1
        opened = index.packs[number]
        pack[i], row[i] = number, rows[i] - index.first[number]
        filled[i] = opened.read(int(row[i]), tokens[i])
        parts.append(opened.pieces(int(row[i]), tokens[i], int(filled[i]), prompts=index.settings.answers_only))
    pieces = np.zeros(count + 1, np.int64)
    np.cumsum([len(starts) for starts, _, _ in parts], out=pieces[1:])
    starts, documents, prompts = (np.concatenate(column) for column in zip(*parts, strict=True))
    weights = np.empty((count, length), np.float32)
    _weigh(weights, pieces, starts, prompts, filled)
    names = ("tokens", "weights", "filled", "pieces", "starts", "documents", "pack", "row")
    return dict(zip(names, (tokens, weights, filled, pieces, starts, documents, pack, row), strict=True))


class Dataset:
    """The batches of one stage over opened packs; safe to use from several threads."""

    def __init__(
        self, recipe: Recipe, seed: int, stage: int, sources: Sources, *, vocab_size: int | None = None
    ) -> None:
        """`vocab_size`: ids from it on are refused in every batch (a broken pack); None does not look."""
        self.recipe, self.seed, self.stage, self.sources, self.vocab_size = recipe, seed, stage, sources, vocab_size
        self.rows, self.length = recipe.data.global_batch_rows, recipe.data.sequence_length
        self.order = Order(recipe.stages, sources, seed, stage, self.rows)
        self._source = np.array([stream.number for stream in self.order.streams], np.int32)

    def batch(self, data_index: int) -> GlobalBatch:
        """Global batch number `data_index` of the stage."""
        drawn = self.order.batch(data_index)
        source = self._source[drawn.stream]
        columns = read_rows(self.sources, source, drawn.row)
        batch = GlobalBatch(
            self.stage, data_index, **columns, source=source, source_row=drawn.row, stream=drawn.stream, place=drawn.place
        )
        if self.vocab_size is not None:
            self._check_ids(batch, self.vocab_size)
        return batch

    def _check_ids(self, batch: GlobalBatch, vocab_size: int) -> None:
        wrong = (batch.tokens < 0) | (batch.tokens >= vocab_size)
        if wrong.any():
            i = int(np.flatnonzero(wrong.any(axis=1))[0])
            pack = self._pack(batch, i)
            raise UserError(
                f"{pack.prefix}: row {batch.row[i]} holds token id {batch.tokens[i][wrong[i]][0]} and the model knows 0 to "
                f"{vocab_size - 1}: the pack is damaged; copy it again or pack again"
            )

    def _pack(self, batch: GlobalBatch, row: int) -> PackIndex:
        return self.sources.items[int(batch.source[row])].packs[int(batch.pack[row])]

    def document_ids(self, batch: GlobalBatch) -> list[tuple[str, str]]:
        """(source, id) of every text of a batch, in order; of plain datasets `PREFIX#sequence`. Reads the tables of pieces:
        meant for the few batches that a log names."""
        found: dict[int, list[tuple[str, str]]] = {}
        groups: dict[tuple[int, int], list[int]] = {}
        for i in range(self.rows):
            groups.setdefault((int(batch.source[i]), int(batch.pack[i])), []).append(i)
        for rows in groups.values():
            pack, name = self._pack(batch, rows[0]), self.sources.items[batch.source[rows[0]]].name
            wanted = [batch.documents[batch.pieces[i] : batch.pieces[i + 1]].tolist() for i in rows]
            if pack.manifest is None:
                for i, documents in zip(rows, wanted, strict=True):
                    found[i] = [(name, f"{pack.prefix.name}#{number}") for number in documents if number >= 0]
                continue
            flat = [number for documents in wanted for number in documents]
            ids = iter(piece_rows(pack.prefix, flat, ["id"]))
            for i, documents in zip(rows, wanted, strict=True):
                names = [next(ids)["id"] for _ in documents]
                found[i] = [(name, identifier) for identifier in names if identifier]
        return [pair for i in range(self.rows) for pair in found[i]]


def open_dataset(
    recipe: Recipe,
    seed: int,
    stage: int,
    *,
    cache: Path | None = None,
    eos_id: int | None = None,
    vocab_size: int | None = None,
    manifests: Mapping[str, Sequence[str | Path]] | None = None,
) -> Dataset:
    """Open the packs of a recipe for one stage; see `packs_index.open_sources` and `Dataset`."""
    sources = open_sources(recipe.data, eos_id=eos_id, cache=cache, manifests=manifests)
    return Dataset(recipe, seed, stage, sources, vocab_size=vocab_size)


def batch(
    manifests: Mapping[str, Sequence[str | Path]], data_settings: Recipe, seed: int, stage: int, data_index: int
) -> GlobalBatch:
    """The rows of global batch `data_index` of a stage, a pure function of its arguments and the packs' content.

    `manifests`: source -> paths of its packs' manifests (or prefixes); `data_settings`: anything with `data` and `stages`, such
    as a `TrainConfig`. Opened packs are kept between calls until their files change.
    """
    places = tuple(
        (source.name, tuple(str(path) for path in manifests.get(source.name, source.packs)))
        for source in data_settings.data.sources
    )
    settings = [data_settings.data, *data_settings.stages]
    text = " ".join(item.model_dump_json() for item in settings)
    stamp = tuple(_stamp(path) for _, paths in places for path in paths)
    key = digest(repr((places, text, stamp, seed, stage)).encode())
    return _datasets(_Opening(key, places, data_settings, seed, stage)).batch(data_index)


@dataclass(frozen=True, eq=False)
class _Opening:
    """Arguments of a data set, equal when their `key` is."""

    key: str
    places: tuple[tuple[str, tuple[str, ...]], ...]
    recipe: Recipe
    seed: int
    stage: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opening) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=4)
def _datasets(opening: _Opening) -> Dataset:
    manifests = {name: list(paths) for name, paths in opening.places}
    return open_dataset(opening.recipe, opening.seed, opening.stage, manifests=manifests)


def _stamp(path: str) -> list[tuple[int, int] | None]:
    """Sizes and times of a pack's files, so that a changed pack is opened again."""
    prefix = Path(path).with_suffix("") if Path(path).suffix == ".json" else Path(path)
    stats = [
        file.stat() if file.exists() else None for file in (manifest_path(prefix), bin_path(prefix), idx_path(prefix))
    ]
    return [(stat.st_size, stat.st_mtime_ns) if stat else None for stat in stats]


def targets(global_batch: GlobalBatch) -> float:
    """Unmasked targets of a global batch: what its loss is divided by. Every rank knows it without asking the others."""
    return float(global_batch.weights.sum(dtype=np.float64))


def dealt(rows: int, data_rank: int, data_size: int, micro_rows: int) -> I64:
    """Rows of the global batch in each micro-batch of one data-parallel rank, int64 [micro-batches, micro_rows]."""
    if rows % (data_size * micro_rows):
        raise UserError(
            f"data.global_batch_rows={rows} is not a multiple of data-parallel size {data_size} x data.micro_batch_rows="
            f"{micro_rows}: change the layout or data.micro_batch_rows, or the recipe"
        )
    return np.arange(rows).reshape(-1, data_size, micro_rows)[:, data_rank]


def micro_batches(
    global_batch: GlobalBatch, data_rank: int, data_size: int, micro_rows: int, settings: DataSettings
) -> list[Packed]:
    """The micro-batches of one data-parallel rank on CPU, `micro_rows` rows flattened into each; see `training.rows.Packed`.

    The target at a row's last position is 0 with weight 0. `dealt` tells which rows a micro-batch holds.
    """
    import torch

    from training.rows import Packed, positions_of

    length = global_batch.tokens.shape[1]
    targets_of = np.zeros_like(global_batch.tokens)
    targets_of[:, :-1] = global_batch.tokens[:, 1:]
    by_row = np.array([source.visible == "row" for source in settings.sources])
    packed = []
    for rows in dealt(len(global_batch.tokens), data_rank, data_size, micro_rows):
        starts = []
        for place, row in enumerate(rows.tolist()):
            inside = global_batch.starts[global_batch.pieces[row] : global_batch.pieces[row + 1]]
            if by_row[global_batch.source[row]]:
                inside = inside[(inside == 0) | (inside == global_batch.filled[row])]
            starts.append(inside + place * length)
        edges = np.concatenate([*starts, [micro_rows * length]]).astype(np.int32)
        borders = torch.from_numpy(edges)
        packed.append(
            Packed(
                torch.from_numpy(global_batch.tokens[rows].reshape(-1)),
                torch.from_numpy(targets_of[rows].reshape(-1)),
                torch.from_numpy(global_batch.weights[rows].reshape(-1)),
                positions_of(borders, length, restart=settings.restart_positions),
                borders,
                int(np.diff(edges).max()),
            )
        )
    return packed


class ReadAhead(Generic[T]):
    """`read(data_index)` gives `make(data_index)`, which `workers` threads have made ready when indices are asked for in order
    (0: made when asked). Any index may be asked for; threads change what is ready, never what is read.

    Close it, or use it in a `with` block: threads end then. An error of `make` is raised where its item is asked for.
    """

    def __init__(self, make: Callable[[int], T], workers: int) -> None:
        self._make, self._workers = make, workers
        self._ready: dict[int, Future[T]] = {}
        self._pool = ThreadPoolExecutor(workers, "read-ahead") if workers else None

    def read(self, data_index: int) -> T:
        """Item `data_index`; the next ones are started."""
        if self._pool is None:
            return self._make(data_index)
        wanted = range(data_index, data_index + self._workers + 1)
        for index in [index for index in self._ready if index not in wanted]:
            self._ready.pop(index).cancel()
        for index in wanted:
            if index not in self._ready:
                self._ready[index] = self._pool.submit(self._make, index)
        return self._ready.pop(data_index).result()

    def close(self) -> None:
        """Drop what was read ahead and wait for the threads to end."""
        self._ready.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
