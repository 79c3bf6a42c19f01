"""Plain Python for the way from packs to batches, and packs made from nothing. Slow and obvious."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ziya.files import digest, file_digest
from ziya.pack_files import PIECES, pieces_path, write_manifest
from ziya.packs import bin_path, idx_path, pack_writer

EOS, PAD = 2, 3
MASK = (1 << 64) - 1


@dataclass
class Piece:
    """A text or a part of one; an empty id is padding."""

    id: str
    tokens: list[int]
    prompt: int = 0
    perplexity: float = math.nan


@dataclass
class Row:
    """One sample."""

    pieces: list[Piece]

    @property
    def tokens(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.tokens]

    @property
    def filled(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces if piece.id)

    @property
    def perplexity(self) -> float:
        known = [(p.perplexity, len(p.tokens)) for p in self.pieces if p.id and not math.isnan(p.perplexity)]
        return sum(p * n for p, n in known) / sum(n for _, n in known) if known else math.inf


def weights_of(row: Row, answers_only: bool) -> list[float]:
    """Whether the target of each position counts."""
    owner = [(number, place) for number, piece in enumerate(row.pieces) for place in range(len(piece.tokens))]
    weights = []
    for position in range(len(owner)):
        counts = position + 1 < len(owner) and owner[position + 1][0] == owner[position][0]
        if counts:
            piece, place = row.pieces[owner[position + 1][0]], owner[position + 1][1]
            counts = bool(piece.id) and not (answers_only and place < piece.prompt)
        weights.append(1.0 if counts else 0.0)
    return weights


def splice_rows(rng: random.Random, count: int, length: int, name: str, vocab: int = 500) -> list[Row]:
    """Rows without padding but for the last one."""
    rows: list[Row] = []
    for number in range(count):
        real = length if number < count - 1 else rng.randint(1, length)
        cuts = sorted(rng.sample(range(1, real), min(rng.randint(0, 3), real - 1)))
        pieces = [
            Piece(f"{name}-文-{number}-{start}", [rng.randrange(10, vocab) for _ in range(start, end - 1)] + [EOS])
            for start, end in zip([0, *cuts], [*cuts, real], strict=True)
        ]
        for piece in pieces:
            piece.perplexity = rng.choice([math.nan, round(rng.uniform(5, 900), 2), 33.5])
        if real < length:
            pieces.append(Piece("", [PAD] * (length - real)))
        rows.append(Row(pieces))
    return rows


def whole_rows(rng: random.Random, count: int, length: int, name: str, vocab: int = 500) -> list[Row]:
    """Rows of whole documents with prompts, padding at the end of most."""
    rows = []
    for number in range(count):
        room, pieces = length, []
        while room > 1 and (not pieces or rng.random() < 0.7):
            size = rng.randint(1, room)
            tokens = [rng.randrange(10, vocab) for _ in range(size - 1)] + [EOS]
            pieces.append(Piece(f"{name}-题-{number}-{room}", tokens, rng.randint(0, size)))
            room -= size
        if room:
            pieces.append(Piece("", [PAD] * room))
        rows.append(Row(pieces))
    return rows


def write_pack(prefix: Path, rows: list[Row], mode: str, tokenizer: dict[str, Any] | None = None) -> Path:
    """The files of a pack as the data factory lays them out."""
    length = len(rows[0].tokens)
    with pack_writer(prefix, length, np.uint16) as writer:
        for row in rows:
            sizes = np.array([len(piece.tokens) for piece in row.pieces])
            writer.add(np.array(row.tokens, np.uint16), sizes, np.array([len(sizes)]))
    table = [
        {
            "sample": sample, "piece": number, "id": piece.id, "source": prefix.name if piece.id else "", "lang": "",
            "tier": "", "perplexity": piece.perplexity, "task": "", "tokens": len(piece.tokens),
            "prompt_tokens": piece.prompt, "start": 0,
        }
        for sample, row in enumerate(rows)
        for number, piece in enumerate(row.pieces)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table, schema=PIECES), pieces_path(prefix), row_group_size=7)
    files = [bin_path(prefix), idx_path(prefix), pieces_path(prefix)]
    manifest = {
        "version": 1, "source": prefix.name, "mode": mode, "sequence_length": length,
        "tokenizer": tokenizer or {
            "kind": "sentencepiece", "fingerprint": "f" * 32, "vocab_size": 500, "eos_id": EOS, "pad_id": PAD,
        },
        "samples": len(rows), "sequences": len(table), "tokens": len(rows) * length,
        "padding_tokens": sum(length - row.filled for row in rows),
        "prompt_tokens": sum(piece.prompt for row in rows for piece in row.pieces),
        "files": {f.name: {"bytes": f.stat().st_size, "xxh3_128": file_digest(f)} for f in files},
    }  # fmt: skip
    write_manifest(prefix, manifest)
    return prefix


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def row_at(place: int, rows: int, salt: str, rounds: int = 6) -> int:
    """Row at a place of a stream."""
    golden = 0x9E3779B97F4A7C15
    bits = max(2, (rows - 1).bit_length())
    low = bits // 2
    key = _mix((int(digest(salt.encode())[:16], 16) + (place // rows + 1) * golden) & MASK)
    value = place % rows
    while True:
        left, right = value >> low, value % (1 << low)
        for turn in range(rounds):
            salted = (key + turn * golden) & MASK
            if turn % 2 == 0:
                left ^= _mix((right + salted) & MASK) % (1 << (bits - low))
            else:
                right ^= _mix((left + salted) & MASK) % (1 << low)
        value = (left << low) | right
        if value < rows:
            return value


@dataclass
class Stream:
    """One source in one role."""

    source: str
    role: str
    share: float
    rows: list[Row]
    by_perplexity: bool = False
    drawn: int = 0
    spent: int = 0
    trained: set[int] = field(default_factory=set)

    def row(self, place: int, seed: int, stage: int) -> int:
        if self.by_perplexity and self.role == "own" and place < len(self.rows):
            # float32 as stored; ties by number
            return sorted(range(len(self.rows)), key=lambda r: (float(np.float32(self.rows[r].perplexity)), r))[place]
        return row_at(place, len(self.rows), f"{seed} stage {stage} {self.role} {self.source}")


def draw(streams: list[Stream], seed: int, stage: int, count: int) -> list[tuple[int, int, int]]:
    """(stream, place, row) of the next `count` rows; the streams move on."""
    out = []
    for _ in range(count):
        total = sum(stream.spent for stream in streams)
        rows = [stream.row(stream.drawn, seed, stage) for stream in streams]
        sizes = [stream.rows[row].filled for stream, row in zip(streams, rows, strict=True)]
        ready = [i for i, stream in enumerate(streams) if stream.spent <= stream.share * total]
        if ready:
            chosen = min(ready, key=lambda i: ((streams[i].spent + sizes[i]) / streams[i].share, i))
        else:
            chosen = max(range(len(streams)), key=lambda i: (streams[i].share * total - streams[i].spent, -i))
        out.append((chosen, streams[chosen].drawn, rows[chosen]))
        streams[chosen].drawn += 1
        streams[chosen].spent += sizes[chosen]
    return out
