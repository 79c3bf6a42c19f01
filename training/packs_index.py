"""Packs as rows: how full each is, where its texts begin, which tokens are prompts, and what identifies it.

Nothing here grows with a pack in memory: tokens and borders are memory maps; what must be computed once (rows with padding,
prompts, order by perplexity: `packs_columns`) lies in files of `cache` that are named by the pack's content. Packs of mode
splice need none of it: their manifest says how full the only short row is.

A pack without a manifest is a plain Megatron dataset. Its documents are texts of any length; their tokens, end to end, are
cut into rows of `sequence_length` as `splice` does, the last one padded. A text begins where a sequence of the index begins
and after every EOS, whichever the dataset has. A text that a row's end cuts is two texts to the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from training.config import DataSettings, SourceSettings
from training.packs_columns import I32, I64, U32, pack_columns, rows_by_perplexity
from ziya.errors import UserError
from ziya.files import digest, file_digest, read_json, write_json
from ziya.pack_files import Manifest, pack_identity, pieces_path, read_manifest, tokenizer_fingerprint
from ziya.packs import PackReader, bin_path, idx_path
from ziya.progress import Progress

_CHUNK = 1 << 24  # tokens or sequences in memory at once


class PackIndex:
    """One pack. `rows`; `tokens`: non-padding ones; `largest`: no token id is above it; `identity`: of its content."""

    def __init__(
        self, prefix: Path, length: int, eos_id: int | None, cache: Path | None, *, perplexity: bool = False
    ) -> None:
        """`eos_id` is for plain datasets; `perplexity` makes the mean of each row known. UserError on what does not fit."""
        self.prefix, self.length = prefix, length
        self.manifest = read_manifest(prefix)
        reader = PackReader(prefix)
        self._tokens = np.asarray(reader.tokens)
        self._sizes, self._pointers, self._borders = map(np.asarray, (reader.sizes, reader.pointers, reader.borders))
        self._item = reader.dtype.itemsize
        self._columns: dict[str, npt.NDArray[Any]] = {}
        if self.manifest is not None:
            self._open_pack(self.manifest, cache, perplexity)
        else:
            self._open_plain(eos_id, cache)
        if perplexity and self.manifest is None:
            raise UserError(f"{prefix} has no manifest, so no perplexities: set order=shuffled for its source")

    def _open_pack(self, manifest: Manifest, cache: Path | None, perplexity: bool) -> None:
        self.rows, self.largest = manifest.samples, manifest.tokenizer.vocab_size - 1
        self.eos_id, self.pad_id = manifest.tokenizer.eos_id, manifest.tokenizer.pad_id
        self.tokens = manifest.tokens - manifest.padding_tokens
        self.identity = pack_identity(self.prefix, manifest)
        if manifest.sequence_length != self.length:
            raise UserError(
                f"{self.prefix} has samples of {manifest.sequence_length} tokens and data.sequence_length is {self.length}: "
                f"pack again, or set data.sequence_length={manifest.sequence_length}"
            )
        if (len(self._borders) - 1, len(self._sizes), len(self._tokens)) != (
            manifest.samples,
            manifest.sequences,
            manifest.tokens,
        ):
            raise UserError(f"{self.prefix}.json does not tell of the pack beside it: copy all its files again")
        wanted = {"prompts"} if manifest.prompt_tokens else set()
        wanted |= {"perplexity"} if perplexity else set()
        self._last = self.length - (manifest.padding_tokens if manifest.mode == "splice" else 0)
        if manifest.mode == "whole" and manifest.padding_tokens:
            wanted |= {"filled"}
        elif self._last != self.length and (self._last <= 0 or self._sizes[-1] != manifest.padding_tokens):
            raise UserError(f"{self.prefix}.json tells of padding that its last sample does not have: pack again")
        self._columns = pack_columns(self.prefix, self.identity, self._sizes, self._borders, wanted, cache)
        if "filled" in wanted and int(self._columns["filled"].sum(dtype=np.int64)) != self.tokens:
            raise UserError(f"{pieces_path(self.prefix)} and the manifest disagree on padding: pack again")

    def _open_plain(self, eos_id: int | None, cache: Path | None) -> None:
        if eos_id is None:
            raise UserError(f"{self.prefix} has no manifest, so the border of its texts is unknown: set data.eos_id")
        self.eos_id = self.pad_id = eos_id
        self.tokens = len(self._tokens)
        self.rows = -(-self.tokens // self.length)
        self._last = self.tokens - (self.rows - 1) * self.length
        paths = [bin_path(self.prefix), idx_path(self.prefix)]
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        known = cache / f"plain-{digest(repr(stats).encode())}.json" if cache is not None else None
        if known is not None and known.is_file():
            facts = read_json(known)
        else:
            facts = self._scan(paths[1])
            if known is not None:
                write_json(known, facts)
        self.identity, self.largest = str(facts["identity"]), int(facts["largest"])

    def _scan(self, index: Path) -> dict[str, Any]:
        """Read a plain dataset once: its digest, its largest id, and that its sequences follow each other without gaps."""
        expected = 0
        for first in range(0, len(self._sizes), _CHUNK):
            sizes = self._sizes[first : first + _CHUNK].astype(np.int64) * self._item
            ends = expected + np.cumsum(sizes)
            if (sizes < 0).any() or (self._pointers[first : first + _CHUNK] != ends - sizes).any():
                raise UserError(f"{index}: its sequences do not follow each other in the .bin: make the dataset again")
            expected = int(ends[-1])
        state = xxhash.xxh3_128()
        smallest = largest = 0
        with Progress(f"read {self.prefix.name}.bin", -(-self.tokens // _CHUNK), "piece") as bar:
            for first in range(0, self.tokens, _CHUNK):
                piece = self._tokens[first : first + _CHUNK]
                state.update(np.ascontiguousarray(piece).data)
                smallest, largest = min(smallest, int(piece.min())), max(largest, int(piece.max()))
                bar.advance()
        if smallest < 0:
            raise UserError(f"{self.prefix}.bin holds the token id {smallest}: ids must not be negative")
        return {"identity": digest(f"{state.hexdigest()} {file_digest(index)}".encode()), "largest": largest}

    def filled(self, rows: I64) -> I32:
        """Non-padding tokens of each row, int32 [n]; they stand first in the row."""
        if "filled" in self._columns:
            return self._columns["filled"][rows]
        return np.where(rows == self.rows - 1, np.int32(self._last), np.int32(self.length))

    def perplexity(self) -> npt.NDArray[np.float32]:
        """Mean perplexity of each row's documents, weighted by tokens; NaN where none is known."""
        return self._columns["perplexity"]

    def read(self, row: int, out: I64) -> int:
        """Copy the tokens of a row to `out` int64 [length], padding included; returns how many are not padding."""
        filled = int(self.filled(np.array([row]))[0])
        found = self._tokens[row * self.length : (row + 1) * self.length]
        out[: len(found)] = found
        out[len(found) :] = self.pad_id
        return filled

    def pieces(self, row: int, tokens: I64, filled: int, *, prompts: bool) -> tuple[I64, I64, I64]:
        """(starts, documents, prompts), int64 [pieces] each, of a row whose `tokens` were read.

        `starts`: first token of each piece in the row; padding, where there is any, is the last piece and starts at
        `filled`. `documents`: row of the piece in the table of pieces; in plain datasets the sequence it begins in, -1 for
        padding. `prompts`: leading tokens of the piece that are a prompt's (zeros unless `prompts`).
        """
        if self.manifest is not None:
            first, last = int(self._borders[row]), int(self._borders[row + 1])
            starts = np.zeros(last - first, np.int64)
            np.cumsum(self._sizes[first : last - 1], out=starts[1:])
            masked = np.zeros(last - first, np.int64)
            if prompts and "prompts" in self._columns:
                masked[:] = self._columns["prompts"][first:last]
            return starts, np.arange(first, last), masked
        begin = row * self.length
        first = int(np.searchsorted(self._pointers, begin * self._item, "right")) - 1
        last = int(np.searchsorted(self._pointers, (begin + filled) * self._item, "left"))
        sequences = self._pointers[first + 1 : last] // self._item - begin
        after_eos = np.flatnonzero(tokens[: filled - 1] == self.eos_id) + 1
        starts = np.unique(np.concatenate([np.zeros(1, np.int64), sequences, after_eos]))
        documents = first + np.searchsorted(sequences, starts, "right")
        if filled < self.length:
            starts, documents = np.append(starts, filled), np.append(documents, -1)
        return starts, documents, np.zeros(len(starts), np.int64)


class SourceIndex:
    """One source: its packs end to end. `rows`, `tokens` (non-padding), `first` int64 [packs + 1]: first row of each pack."""

    def __init__(self, settings: SourceSettings, packs: Sequence[PackIndex], cache: Path | None) -> None:
        self.settings, self.name, self.packs = settings, settings.name, list(packs)
        self.first = np.concatenate([[0], np.cumsum([pack.rows for pack in packs], dtype=np.int64)])
        self.rows, self.tokens = int(self.first[-1]), sum(pack.tokens for pack in packs)
        self.order: U32 | None = None  # order: perplexity: row at each place, and place of each row
        self.place: U32 | None = None
        if settings.order == "perplexity":
            name = digest(" ".join(self.identity).encode())
            known = rows_by_perplexity([pack.perplexity() for pack in self.packs], name, cache)
            if known is None:
                raise UserError(f"no document of source {self.name} has a perplexity: set its order=shuffled")
            self.order, self.place = known

    @property
    def identity(self) -> list[str]:
        """What a resume compares: the content of each pack, wherever it lies."""
        return [pack.identity for pack in self.packs]

    def locate(self, rows: I64) -> tuple[I64, I64]:
        """(number of the pack, row inside it) of each row of the source, int64 [n] each."""
        pack = np.searchsorted(self.first, rows, "right") - 1
        return pack, rows - self.first[pack]

    def filled(self, rows: I64) -> I32:
        """Non-padding tokens of each row of the source, int32 [n]."""
        if len(self.packs) == 1:
            return self.packs[0].filled(rows)
        pack, local = self.locate(rows)
        filled = np.empty(len(rows), np.int32)
        for number in np.unique(pack).tolist():
            filled[pack == number] = self.packs[number].filled(local[pack == number])
        return filled


@dataclass(frozen=True)
class Sources:
    """All sources of a run, in the order of the settings."""

    items: list[SourceIndex]
    length: int

    def number(self, name: str) -> int:
        """Place of a source by its name."""
        return next(i for i, source in enumerate(self.items) if source.name == name)

    def identity(self) -> dict[str, list[str]]:
        """Source -> identity of each of its packs: part of the run's identity."""
        return {source.name: source.identity for source in self.items}


def open_sources(
    data: DataSettings,
    *,
    eos_id: int | None = None,
    cache: Path | None = None,
    manifests: Mapping[str, Sequence[str | Path]] | None = None,
) -> Sources:
    """Open every pack of every source.

    `eos_id`: the tokenizer's, for plain datasets where `data.eos_id` is null; `cache`: folder of what is computed once (call
    this once before many processes do); `manifests`: source -> prefixes (or paths of manifests) in place of the settings'.
    """
    border = data.eos_id if data.eos_id is not None else eos_id
    items = []
    for settings in data.sources:
        paths = manifests.get(settings.name, settings.packs) if manifests is not None else settings.packs
        if not paths:
            raise UserError(f"source {settings.name} has no packs: give the prefix of one at least")
        by_perplexity = settings.order == "perplexity"
        packs = [
            PackIndex(_prefix(path), data.sequence_length, border, cache, perplexity=by_perplexity) for path in paths
        ]
        items.append(SourceIndex(settings, packs, cache))
        if items[-1].rows >= 1 << 32:
            raise UserError(f"source {settings.name} has {items[-1].rows} rows: cut it into sources of less than 2^32")
    return Sources(items, data.sequence_length)


def _prefix(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in {".json", ".bin", ".idx"} else path


def check_sources(sources: Sources, vocab_size: int, model: Path | None = None) -> None:
    """Refuse packs that a model cannot read: UserError names every pack with ids from `vocab_size` (rows that are not
    padding) on, or whose tokenizer is not the one in the Hugging Face folder `model`; packs with one trouble stand together."""
    problems = []
    absent: dict[str, list[str]] = {}
    other: dict[str, list[str]] = {}
    files = {"sentencepiece": "tokenizer.model", "huggingface": "tokenizer.json"}
    contents: dict[str, bytes | None] = {}
    for source in sources.items:
        for pack in source.packs:
            if pack.largest >= vocab_size:
                problems.append(
                    f"{pack.prefix} holds token ids up to {pack.largest} and the model knows 0 to {vocab_size - 1}: "
                    "use the packs' tokenizer with `ziya-train init`, or pack again with the model's"
                )
            if model is None or pack.manifest is None:
                continue
            spelled = pack.manifest.tokenizer
            name = files.get(spelled.kind, "tokenizer.json")
            if name not in contents:
                contents[name] = (model / name).read_bytes() if (model / name).is_file() else None
            content = contents[name]
            if content is None:
                absent.setdefault(name, []).append(str(pack.prefix))
            elif tokenizer_fingerprint(spelled.kind, content, spelled.eos_id, spelled.pad_id) != spelled.fingerprint:
                other.setdefault(name, []).append(str(pack.prefix))
    problems += [
        f"{model} has no {name}, which {_and(packs)} packed with: copy it there" for name, packs in absent.items()
    ]
    for name, packs in other.items():
        problems.append(
            f"{_and(packs)} packed with another {name} than {model}/{name}: pack again with the model's, or start from the "
            "model that has the packs' tokenizer"
        )
    if problems:
        raise UserError("; ".join(problems))


def _and(names: Sequence[str]) -> str:
    """`a was`, `a and b were`, `a, b and c were`; of a name given twice one."""
    once = list(dict.fromkeys(names))
    return f"{once[0]} was" if len(once) == 1 else f"{', '.join(once[:-1])} and {once[-1]} were"


def check_same(before: Mapping[str, Sequence[str]], sources: Sources) -> None:
    """Refuse to resume over other data: UserError names the sources whose packs are not those of `before`."""
    now = sources.identity()
    changed = [name for name in sorted({*before, *now}) if list(before.get(name, [])) != now.get(name, [])]
    if changed:
        raise UserError(
            f"the packs of {', '.join(changed)} are not those that the run began with: bring them back, or start another run"
        )
