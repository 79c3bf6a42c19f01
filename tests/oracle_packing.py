"""Plain Python for all that packing computes: hashes, sampling, order, splice, whole, and BPE. Slow and obvious."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from ziya.files import digest

MASK = (1 << 64) - 1


@dataclass
class Document:
    """One kept document as ids."""

    id: str
    tokens: list[int]
    prompt_tokens: int = 0
    task: str = ""
    lang: str = "en"
    tier: str = "high"


@dataclass
class Piece:
    """One sequence of a pack; `id` is empty for padding."""

    sample: int
    piece: int
    id: str
    tokens: list[int]
    prompt_tokens: int
    start: int


@dataclass
class Pack:
    """A pack and what is not in it: (id, rule)."""

    pieces: list[Piece]
    dropped: list[tuple[str, str]] = field(default_factory=list)


def finish(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash_id(identifier: str, seed: int, purpose: str) -> tuple[int, int]:
    halves = []
    for half in (1, 2):
        value = int(digest(f"{seed} {purpose} {half}".encode())[:16], 16)
        for byte in identifier.encode():
            value = ((value ^ byte) * 0x100000001B3) & MASK
        halves.append(finish(value))
    return halves[0], halves[1]


def sample(documents: list[Document], ratio: float, seed: int) -> dict[str, int]:
    """id -> how often it is packed."""
    copies = math.floor(ratio)
    wanted = math.floor((ratio - copies) * len(documents) + 0.5)
    ranked = sorted(documents, key=lambda document: hash_id(document.id, seed, "ratio"))
    once_more = {document.id for document in ranked[:wanted]}
    return {document.id: copies + (document.id in once_more) for document in documents}


def shuffled(
    documents: list[Document], times: dict[str, int], seed: int
) -> list[tuple[tuple[int, int], int, Document]]:
    """(hash, copy, document) of every copy in the order of the pack; documents that are left out are absent."""
    rows = []
    for document in documents:
        for copy in range(times[document.id]):
            rows.append((hash_id(document.id, seed, f"order {copy}"), copy, document))
    return sorted(rows, key=lambda row: row[:2])


def left_out(documents: list[Document], times: dict[str, int], seed: int) -> list[tuple[tuple[int, int], str, str]]:
    return [
        (hash_id(document.id, seed, "order 0"), document.id, "sources.ratio")
        for document in documents
        if times[document.id] == 0
    ]


def splice(documents: list[Document], length: int, eos: int, pad: int, ratio: float, seed: int) -> Pack:
    times = sample(documents, ratio, seed)
    pieces: list[Piece] = []
    room, number, inside = length, 0, 0
    for _, _, document in shuffled(documents, times, seed):
        tokens = [*document.tokens, eos]
        start = 0
        while start < len(tokens):
            part = tokens[start : start + room]
            prompt = min(max(document.prompt_tokens - start, 0), len(part))
            pieces.append(Piece(number, inside, document.id, part, prompt, start))
            start += len(part)
            room -= len(part)
            inside += 1
            if room == 0:
                room, number, inside = length, number + 1, 0
    if 0 < room < length:
        pieces.append(Piece(number, inside, "", [pad] * room, 0, 0))
    dropped = [(identifier, rule) for _, identifier, rule in sorted(left_out(documents, times, seed))]
    return Pack(pieces, dropped)


def best_fit(sizes: list[int], capacity: int) -> list[int]:
    """Bin of each size: least room that suffices, the one that came to this room first among equals."""
    bins: list[tuple[int, int]] = []  # room, when it came to it
    chosen = []
    for now, size in enumerate(sizes):
        fitting = [(room, since, number) for number, (room, since) in enumerate(bins) if room >= size]
        if fitting:
            room, _, number = min(fitting)
        else:
            room, number = capacity, len(bins)
            bins.append((capacity, now))
        bins[number] = (room - size, now)
        chosen.append(number)
    return chosen


def whole(
    documents: list[Document], length: int, eos: int, pad: int, ratio: float, seed: int, buckets: int
) -> Pack:
    times = sample(documents, ratio, seed)
    rows = shuffled(documents, times, seed)
    result = Pack([])
    drops = left_out(documents, times, seed)
    number = 0
    for bucket in range(buckets):
        mine = [row for row in rows if (row[0][0] >> 32) * buckets >> 32 == bucket]
        samples = []
        for task in sorted({row[2].task for row in mine}):
            fitting = [row for row in mine if row[2].task == task and len(row[2].tokens) + 1 <= length]
            fitting.sort(key=lambda row: -len(row[2].tokens))
            bins = best_fit([len(row[2].tokens) + 1 for row in fitting], length)
            for one in range(max(bins, default=-1) + 1):
                samples.append([row for row, chosen in zip(fitting, bins, strict=True) if chosen == one])
        samples.sort(key=lambda rows: finish(rows[0][0][1]))
        for members in samples:
            room = length
            for inside, (_, _, document) in enumerate(sorted(members, key=lambda row: row[:2])):
                tokens = [*document.tokens, eos]
                result.pieces.append(Piece(number, inside, document.id, tokens, document.prompt_tokens, 0))
                room -= len(tokens)
            if room:
                result.pieces.append(Piece(number, len(members), "", [pad] * room, 0, 0))
            number += 1
    drops += [
        (key, document.id, "packing.sequence_length")
        for key, copy, document in rows
        if copy == 0 and len(document.tokens) + 1 > length
    ]
    result.dropped = [(identifier, rule) for _, identifier, rule in sorted(drops)]
    return result


def bpe(text: str, ids: dict[str, int], scores: list[float], byte_ids: list[int]) -> list[int]:
    """SentencePiece BPE as defined: merge the neighbours of the best score, the leftmost of equals, until none do."""
    if not text:
        return []
    symbols = list(("▁" + text).replace(" ", "▁"))
    while True:
        candidates = [
            (-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in ids
        ]
        if not candidates:
            break
        _, i = min(candidates)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    result = []
    for symbol in symbols:
        result.extend([ids[symbol]] if symbol in ids else [byte_ids[byte] for byte in symbol.encode()])
    return result
