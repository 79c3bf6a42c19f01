"""Books of what was trained on: tokens per stage, source and role, first seen or repeated, per epoch; and what was skipped.

Whether a row was seen before needs no list of rows: the order of each stream can be turned around (`Stream.places`), so a row
was trained on by a stream exactly when its place in some epoch lies below the stream's counter and in no skipped range.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data import Dataset, GlobalBatch
from training.mixture import Stream, role_name, stream_key
from ziya.ledger import Mix, StageBook, StreamBook, check_ledger, write_ledger

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Ledger:
    """The books of a run while one stage trains. `book` and `skip` must follow each other without gaps in data_index."""

    def __init__(self, dataset: Dataset, state: Any = None) -> None:
        """`state`: what `state()` gave (from a checkpoint; a stage that starts takes the state of the stage before).

        The dataset's order goes on where the books stand. When the stage's shares changed since (the caller has accepted
        that), the new ones count from here: no row is lost or drawn twice for it.
        """
        self.dataset, self.file = dataset, check_ledger(state if state is not None else {"version": 1}, "the ledger")
        self.stage = self.file.stages.setdefault(str(dataset.stage), StageBook())
        self._names = {source.name: number for number, source in enumerate(dataset.sources.items)}
        streams = dataset.order.streams
        books = {(book.source, book.role): book for book in self.stage.streams}
        for stream in streams:
            key = (stream.source.name, role_name(stream.role))
            if key not in books:
                books[key] = StreamBook(source=key[0], role=key[1])
                self.stage.streams.append(books[key])
        self._books = [books[stream.source.name, role_name(stream.role)] for stream in streams]
        shares = {f"{stream.source.name} {role_name(stream.role)}": stream.share for stream in streams}
        if not self.stage.mixes or self.stage.mixes[-1].shares != shares:
            if self.stage.data_index:
                total = sum(book.spent for book in self.stage.streams)
                for book in self.stage.streams:
                    book.spent = round(total * shares.get(f"{book.source} {book.role}", 0.0))
            self.stage.mixes.append(Mix(data_index=self.stage.data_index, shares=shares))
        dataset.order.remember(
            self.stage.data_index, [book.rows for book in self._books], [book.spent for book in self._books]
        )

    @property
    def tokens(self) -> int:
        """Tokens trained on in all stages."""
        return sum(stage.tokens for stage in self.file.stages.values())

    def reads(self) -> dict[str, float]:
        """Source of the config -> how often the run has read it: tokens trained on, in all stages and roles, by its packs'."""
        booked = dict.fromkeys(self._names, 0)
        for stage in self.file.stages.values():
            for book in stage.streams:
                if book.source in booked:
                    booked[book.source] += book.first_seen + book.repeated
        items = self.dataset.sources.items
        return {name: booked[name] / max(items[number].tokens, 1) for name, number in self._names.items()}

    def planned(self, left: float) -> dict[str, float]:
        """`reads` when `left` more tokens of this stage are trained on, by its shares."""
        found = self.reads()
        for stream in self.dataset.order.streams:
            found[stream.source.name] += stream.share * left / max(stream.source.tokens, 1)
        return found

    def next(self) -> int:
        """The next data_index that is not skipped."""
        index = self.stage.data_index
        for first, last in self.stage.skipped:
            if first <= index < last:
                index = last
        return index

    def skip(self, first: int, last: int) -> None:
        """Never train on the batches from `first` to before `last` of this stage: `first` is not drawn yet."""
        if not self.stage.data_index <= first < last:
            raise ValueError(f"batches {first} to {last} cannot be skipped at {self.stage.data_index}")
        self.stage.skipped = _merged([*self.stage.skipped, [first, last]])
        self._pass(self.next())

    def _pass(self, index: int) -> None:
        """Book the batches before `index` as drawn and not trained on."""
        if index == self.stage.data_index:
            return
        drawn, spent = self.dataset.order.state(index)
        for book, rows, tokens in zip(self._books, drawn.tolist(), spent.tolist(), strict=True):
            if rows > book.rows:
                book.skipped = _merged([*book.skipped, [book.rows, rows]])
            self.stage.skipped_tokens += tokens - book.spent
            book.rows, book.spent = rows, tokens
        self.stage.data_index = index

    def book(self, batch: GlobalBatch) -> None:
        """Count a batch that the model was updated with."""
        if batch.stage != self.dataset.stage or batch.data_index != self.next():
            raise ValueError(
                f"batch {batch.data_index} of stage {batch.stage} came where batch {self.next()} of stage "
                f"{self.dataset.stage} belongs"
            )
        self._pass(batch.data_index)
        seen = self._seen(batch)
        for number, (stream, book) in enumerate(zip(self.dataset.order.streams, self._books, strict=True)):
            mine = batch.stream == number
            places, tokens = batch.place[mine], batch.filled[mine].astype(np.int64)
            if not len(places):
                continue
            if places[0] != book.rows:
                raise ValueError(f"stream {book.source} {book.role} is at row {book.rows}, the batch at {places[0]}")
            repeated = int(tokens[seen[mine]].sum())
            book.repeated += repeated
            book.first_seen += int(tokens.sum()) - repeated
            epochs = np.zeros(max(len(book.epochs), int(places[-1]) // stream.source.rows + 1), np.int64)
            epochs[: len(book.epochs)] = book.epochs
            np.add.at(epochs, places // stream.source.rows, tokens)
            book.epochs = epochs.tolist()
            book.rows += len(places)
            book.spent += int(tokens.sum())
        self.stage.tokens += batch.token_count
        self.stage.data_index = batch.data_index + 1

    def _seen(self, batch: GlobalBatch) -> Mask:
        """Which rows of a batch were trained on before it, or earlier in it, bool [rows]."""
        seen = np.zeros(len(batch.row), np.bool_)
        for number, stage in sorted(self.file.stages.items(), key=lambda item: int(item[0])):
            for book in stage.streams:
                if book.source not in self._names:
                    continue  # a source that the config no longer has
                source = self._names[book.source]
                mine = np.flatnonzero((batch.source == source) & ~seen)
                if not len(mine):
                    continue
                before = np.full(len(mine), book.rows, np.int64)
                current = [i for i, other in enumerate(self._books) if other is book]
                if current:  # a stream of this stage: earlier rows of this batch count as well
                    same = batch.stream == current[0]
                    before += (np.cumsum(same) - same)[mine]
                role = 0 if book.role == "own" else int(book.role.split()[1])
                key = stream_key(self.dataset.seed, int(number), role, book.source)
                stream = Stream(source, self.dataset.sources.items[source], role, 0.0, key)
                seen[mine] = _reached(stream, batch.source_row[mine], before, book.skipped)
        return seen

    def state(self) -> dict[str, Any]:
        """The books as JSON values, for a checkpoint."""
        value: dict[str, Any] = self.file.model_dump()
        return value

    def write(self, path: Path) -> None:
        """Write `RUN/ledger.json` atomically."""
        write_ledger(path, self.file)


def _reached(stream: Stream, rows: I64, before: I64, skipped: list[list[int]]) -> Mask:
    """Which rows a stream trained on at a place below `before`, bool [n]."""
    seen = np.zeros(len(rows), np.bool_)
    epochs = -(-int(before.max()) // stream.source.rows)
    for epoch in range(epochs):
        places = stream.places(rows, epoch)
        hit = places < before
        for first, last in skipped:
            hit &= (places < first) | (places >= last)
        seen |= hit
        if seen.all():
            break
    return seen


def _merged(ranges: list[list[int]]) -> list[list[int]]:
    """Ranges [first, last) in order, joined where they touch or overlap."""
    merged: list[list[int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return merged
