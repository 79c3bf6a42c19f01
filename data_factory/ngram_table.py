"""A back-off n-gram model compiled for scoring: contexts as states of an automaton, in one memory-mapped file.

The model is the textbook one (Katz 1987; Chen and Goodman 1999): the log10 probability of a word after a context is
that of the longest n-gram of the model that ends there, plus the back-off weights of the longer contexts that do not
have the word. A state is a context with followers or with a back-off weight; state 0 is the empty context. Scoring
(`ngram_kernels`) walks from state to state, so that no context is looked up twice.

Layout, all little-endian and 64-byte aligned, behind a header of 16 int64 (magic, version, order, the lengths of the
parts, the numbers of <s>, </s> and <unk>):

- `root`: int32 [words, 2]: float32 log10 probability of a word after the empty context, and the state that follows.
- `states`: uint32 [states + 1, 4]: first slot of its followers, the next shorter state, float32 back-off weight, and
  a set of 32 bits that holds bit (key & 31) of every follower. Ordered by the joint probability of the context, so that
  what is read often lies together. State 0 has no slots: its followers are `root`.
- `slots`: uint32 [slots, 3]: key of a word, float32 log10 probability, the state that follows. A state with n followers
  has n slots for n < 3, else about 3 n / 2, sorted by key, each at or behind the place that its key has in proportion;
  an empty slot has key EMPTY.
- `word_offsets` int64 [words + 1] and `word_data` uint8: the words, most probable first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import I32
from data_factory.ngram_arpa import Grams, Words, read_arpa
from ziya.errors import UserError

VERSION = 1
MAGIC = int.from_bytes(b"ZIYAGRAM", "little")
EMPTY = np.uint32(0xFFFFFFFF)
ODD = np.uint32(0x9E3779B1)
MAX_WORDS = 1 << 24  # EMPTY is the key of no word below this number (tested)
_HEADER = 128
_ALIGN = 64

U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Table:
    """A compiled model; see the module text. `begin`, `end`, `unknown`: numbers of the words <s>, </s> and <unk>;
    `start`: the state after <s>."""

    order: int
    root: I32
    states: U32
    slots: U32
    words: Words
    begin: int
    end: int
    unknown: int

    @property
    def start(self) -> int:
        """The state at the start of a sentence."""
        return int(self.root[self.begin, 1])


@numba.njit(cache=True)
def key_of(word):  # type: ignore[no-untyped-def]
    """uint32 key of a word number: all different, spread over the whole range."""
    return np.uint32((np.uint64(word) + np.uint64(1)) * np.uint64(ODD))


@numba.njit(cache=True)
def _find(nodes, keys, node, word):  # type: ignore[no-untyped-def]
    """The slot of (node, word) in the building table, or -(empty slot) - 1."""
    slots = np.uint64(len(keys))
    key = np.uint64(node) << np.uint64(32) | np.uint64(word)
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    slot = np.int64(((mixed >> np.uint64(32)) * slots) >> np.uint64(32))
    while nodes[slot] != 0:
        if keys[slot] == key:
            return slot
        slot += 1
        if slot == len(keys):
            slot = np.int64(0)
    keys[slot] = key
    return -slot - 1


@numba.njit(cache=True)
def _link(words, first, nodes, keys, parent, suffix):  # type: ignore[no-untyped-def]
    """Enter n-grams words [n, order] as nodes first ... first + n - 1: their contexts into `parent`, their longest
    proper suffixes into `suffix`. Returns the row of the first n-gram that is there twice or lacks its context, else
    -1."""
    order = words.shape[1]
    for row in range(len(words)):
        node = np.int64(words[row, 0]) + 1
        for column in range(1, order - 1):
            slot = _find(nodes, keys, node, words[row, column])
            if slot < 0:
                return row
            node = np.int64(nodes[slot])
        slot = _find(nodes, keys, node, words[row, order - 1])
        if slot >= 0:
            return row
        nodes[-slot - 1] = first + row
        parent[first + row] = node
    for row in range(len(words)):
        word = words[row, order - 1]
        shorter = np.int64(suffix[parent[first + row]])
        while shorter != 0:
            slot = _find(nodes, keys, shorter, word)
            if slot >= 0:
                shorter = np.int64(nodes[slot])
                break
            shorter = np.int64(suffix[shorter])
        else:
            shorter = np.int64(word) + 1
        suffix[first + row] = shorter
    return -1


@numba.njit(cache=True)
def _live(suffix, alive):  # type: ignore[no-untyped-def]
    """Of each node the nearest node that is a state: itself or one of its suffixes."""
    found = np.empty(len(suffix), np.uint32)
    for node in range(len(suffix)):
        found[node] = node if alive[node] else found[suffix[node]]
    return found


@numba.njit(cache=True)
def _place(state_of, keys, values, following, states, slots, fill):  # type: ignore[no-untyped-def]
    """Lay out followers that are sorted by (state, key); returns the number of slots. Without `fill` nothing but
    states[:, 0] is written."""
    used = np.int64(0)
    i = 0
    for state in range(len(states) - 1):
        states[state, 0] = used
        begin = i
        while i < len(state_of) and state_of[i] == state:
            i += 1
        count = i - begin
        if count == 0:
            continue
        size = count if count < 3 else count + count // 2
        while True:  # enlarged until the last key has a slot
            last = np.int64(-1)
            for j in range(begin, i):
                home = np.int64((np.uint64(keys[j]) * np.uint64(size)) >> np.uint64(32))
                last = max(home, last + 1)
            if last < size:
                break
            size += 1
        if fill:
            last = np.int64(-1)
            for j in range(begin, i):
                home = np.int64((np.uint64(keys[j]) * np.uint64(size)) >> np.uint64(32))
                last = max(home, last + 1)
                slots[used + last, 0] = keys[j]
                slots[used + last, 1] = values[j]
                slots[used + last, 2] = following[j]
                states[state, 3] |= np.uint32(1) << (keys[j] & np.uint32(31))
        used += size
    states[len(states) - 1, 0] = used
    return used


def compile_arpa(path: Path) -> Table:
    """The compiled model of an ARPA file. UserError when the file is not sound or lacks <s>, </s> or <unk>."""
    words, grams = read_arpa(path)
    numbers = [words.number(word) for word in (b"<s>", b"</s>", b"<unk>")]
    if min(numbers) < 0:
        raise UserError(f"{path} is not a model of sentences: <s>, </s> or <unk> is not among its words")
    if len(words) >= MAX_WORDS:
        raise UserError(f"{path} has {len(words):,} words; at most {MAX_WORDS - 1:,} are supported")
    root, states, slots = _compile(words, grams, path)
    return Table(len(grams), root, states, slots, words, *numbers)


def _compile(words: Words, grams: list[Grams], path: Path) -> tuple[I32, U32, U32]:
    counts = [len(part.words) for part in grams]
    total = 1 + sum(counts)
    if total >= 1 << 32:
        raise UserError(f"{path} has {total:,} n-grams; at most {2**32 - 2:,} are supported")
    firsts = np.cumsum([1, *counts])
    probability, backoff = np.zeros(total, np.float32), np.zeros(total, np.float32)
    last = np.zeros(total, np.uint32)  # the last word of each node
    parent, suffix = np.zeros(total, np.uint32), np.zeros(total, np.uint32)
    nodes, keys = np.zeros(total + total // 2 + 16, np.uint32), np.zeros(total + total // 2 + 16, np.uint64)
    for order, part in enumerate(grams, 1):
        span = slice(int(firsts[order - 1]), int(firsts[order]))
        probability[span], backoff[span], last[span] = part.probability, part.backoff, part.words[:, -1]
        if order > 1 and (bad := _link(part.words, span.start, nodes, keys, parent, suffix)) >= 0:
            raise UserError(
                f"{path} is not a sound ARPA file: its {order}-gram {bad + 1} is there twice or lacks its context"
            )
    del nodes, keys
    joint = probability.astype(np.float64)
    for order in range(2, len(grams) + 1):
        span = slice(int(firsts[order - 1]), int(firsts[order]))
        joint[span] += joint[parent[span]]
    alive = backoff != 0
    alive[parent[firsts[1] :]] = True
    alive[0] = True
    live = _live(suffix, alive)
    joint[0] = np.inf
    chosen = np.flatnonzero(alive)
    chosen = chosen[np.argsort(-joint[chosen], kind="stable")]
    number = np.zeros(total, np.uint32)
    number[chosen] = np.arange(len(chosen), dtype=np.uint32)
    following = number[live]
    states = np.zeros((len(chosen) + 1, 4), np.uint32)
    states[:-1, 1] = following[suffix[chosen]]
    states[:-1, 2] = backoff[chosen].view(np.uint32)
    root = np.stack([probability[1 : firsts[1]].view(np.int32), following[1 : firsts[1]].view(np.int32)], axis=1)
    owner, key = number[parent[firsts[1] :]], ((last[firsts[1] :] + np.uint32(1)) * ODD).astype(np.uint32)
    order_of = np.argsort(owner.astype(np.uint64) << np.uint64(32) | key, kind="stable")
    columns = (
        owner[order_of],
        key[order_of],
        probability[firsts[1] :].view(np.uint32)[order_of],
        following[firsts[1] :][order_of],
    )
    size = _place(*columns, states, np.zeros((0, 3), np.uint32), False)
    if size >= 1 << 32:
        raise UserError(f"{path} has too many n-grams for one table")
    slots = np.full((size, 3), EMPTY, np.uint32)
    _place(*columns, states, slots, True)
    return root, states, slots


def save(table: Table, path: Path) -> None:
    """Write a compiled model; same model, same bytes."""
    parts: list[npt.NDArray[np.generic]] = [
        table.root,
        table.states,
        table.slots,
        table.words.offsets,
        table.words.data,
    ]
    header = np.zeros(_HEADER // 8, np.int64)
    header[:3] = MAGIC, VERSION, table.order
    header[3:8] = [len(part) for part in parts]
    header[8:11] = table.begin, table.end, table.unknown
    with path.open("wb") as file:
        file.write(header.astype("<i8").tobytes())
        for part in parts:
            file.write(bytes(-file.tell() % _ALIGN))
            np.ascontiguousarray(part).tofile(file)


def load(path: Path) -> Table:
    """Map a compiled model into memory (its pages are shared by all processes). UserError when `path` is not one."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size >= _HEADER else np.zeros(_HEADER, np.uint8)
    header = [int(value) for value in np.asarray(data[:_HEADER]).view("<i8")]
    if header[:2] != [MAGIC, VERSION]:
        raise UserError(f"{path} is not an n-gram table of this version (version {VERSION}): train the model again")
    kinds = ((np.int32, 2), (np.uint32, 4), (np.uint32, 3), (np.int64, 1), (np.uint8, 1))
    parts, at = [], _HEADER
    for count, (kind, columns) in zip(header[3:8], kinds, strict=True):
        at += -at % _ALIGN
        end = at + count * columns * np.dtype(kind).itemsize
        if count < 0 or end > len(data):
            raise UserError(f"{path} is cut short: copy it again or train the model again")
        part = np.asarray(data[at:end]).view(kind)
        parts.append(part.reshape(count, columns) if columns > 1 else part)
        at = end
    root, states, slots, offsets, words = parts
    return Table(header[2], root, states, slots, Words.of(words, offsets), *header[8:11])
