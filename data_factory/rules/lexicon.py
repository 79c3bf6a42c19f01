"""Word lists and their search: one Aho-Corasick automaton over all groups, run over the UTF-8 buffer of a whole batch.

A list is a text file in UTF-8: one entry a line, `#` starts a comment line, an optional tab and weight follow the
entry: 3 (the default) = enough alone, 2 and 1 = counts together with others. Case is ignored. An end of an entry that
is a letter or digit of a script with spaces needs a border there (`porn` is not in `spornosaurus`), Han ends need
none; an entry that ends in `*` needs none behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt

from data_factory import characters
from data_factory.batches import F32, I32, I64, TextBatch
from data_factory.rules.automaton import build
from ziya.errors import UserError

GROUPS = (
    "toxic", "advert", "policy", "copyright", "share", "action", "pager", "placeholder", "navigation",
    "javascript", "counter", "byline", "remnant", "url", "label",
)  # fmt: skip
GROUP = {name: number for number, name in enumerate(GROUPS)}
MAX_ENTRY_BYTES = 200


@dataclass(frozen=True)
class Matches:
    """Occurrences of entries in a batch, sorted by (start, longest first, entry).

    `entry`: int32 [m], row of `Lexicon.weights`; `start`, `end`: int64 [m], bytes from the start of the batch's buffer.
    """

    entry: I32
    start: I64
    end: I64

    def __len__(self) -> int:
        return len(self.entry)

    def take(self, index: npt.NDArray[np.bool_]) -> Matches:
        """The matches that `index` marks."""
        return Matches(self.entry[index], self.start[index], self.end[index])


class Lexicon:
    """All entries of all groups.

    `entries`: their lower-cased bytes; `weights`: float32 [entries, groups], 0 = not in the group.
    """

    def __init__(self, lists: Sequence[tuple[str, str, float]]) -> None:
        """`lists`: (group, entry, weight); an entry listed twice in a group keeps the larger weight."""
        weights: dict[bytes, dict[int, float]] = {}
        open_ended = {fold(entry[:-1]) for _, entry, _ in lists if entry.endswith("*")}
        for group, entry, weight in lists:
            row = weights.setdefault(fold(entry.removesuffix("*")), {})
            row[GROUP[group]] = max(weight, row.get(GROUP[group], 0.0))
        self.entries = sorted(weights)
        self.weights: F32 = np.zeros((len(self.entries), len(GROUPS)), np.float32)
        for number, key in enumerate(self.entries):
            for group_number, weight in weights[key].items():
                self.weights[number, group_number] = weight
        borders = [
            [_needs_border(entry.decode()[0]), entry not in open_ended and _needs_border(entry.decode()[-1])]
            for entry in self.entries
        ]
        self._borders = np.array(borders, np.bool_).reshape(-1, 2)
        self._lengths = np.array([len(entry) for entry in self.entries], np.int32)
        self._machine = build(self.entries)

    @classmethod
    def load(cls, toxic: Sequence[str] = (), advert: Sequence[str] = ()) -> Lexicon:
        """The shipped lists and the user's files; a bad file raises `UserError`."""
        lists: list[tuple[str, str, float]] = []
        folder = resources.files("data_factory.rules") / "lexicons"
        for item in sorted(folder.iterdir(), key=lambda path: path.name):
            if item.name.endswith(".txt"):
                group = item.name.rsplit("_", 1)[0]
                lists += [(group, *entry) for entry in parse(item.read_text(encoding="utf-8"), item.name)]
        for group, paths in (("toxic", toxic), ("advert", advert)):
            for path in paths:
                lists += [(group, *entry) for entry in read(Path(path))]
        return cls(lists)

    def search(self, batch: TextBatch) -> Matches:
        """Every occurrence of every entry, overlapping too, none across two documents and none inside a longer word."""
        entry, start, end = _search(
            batch.data, batch.offsets, characters.table(), self._machine, self._lengths, self._borders
        )
        order = np.lexsort((entry, -end, start))
        return Matches(entry[order], start[order], end[order])


def read(path: Path) -> list[tuple[str, float]]:
    """Entries of a user's list; a file that cannot be used raises `UserError` with its line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"lexicon {path} is not UTF-8 (byte {error.start}): save it as UTF-8, one entry a line"
        ) from error
    except OSError as error:
        raise UserError(f"lexicon {path} cannot be read ({error.strerror}): give the path of a text file") from error
    entries = parse(text, str(path))
    if not entries:
        raise UserError(f"lexicon {path} holds no entry: put one entry on a line, or take the file out of the config")
    return entries


def parse(text: str, name: str) -> list[tuple[str, float]]:
    """(entry, weight) of every line that is neither empty nor a comment; `name` is the file's, for errors."""
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        entry, tab, weight = line.partition("\t")
        entry, weight = entry.strip(), weight.strip()
        if tab and weight not in ("1", "2", "3"):
            raise UserError(f"lexicon {name}, line {number}: weight {weight!r} found; after the tab it needs 1, 2 or 3")
        if len(entry.encode()) < 2 or len(entry.encode()) > MAX_ENTRY_BYTES or len(entry) < 2:
            found = f"an entry of {len(entry)} characters found"
            raise UserError(f"lexicon {name}, line {number}: {found}; it needs 2 characters to {MAX_ENTRY_BYTES} bytes")
        entries.append((entry, float(weight) if tab else 3.0))
    return entries


def fold(entry: str) -> bytes:
    """An entry as it is searched: UTF-8, lower-cased as `fold_bytes` does."""
    return bytes(fold_bytes(np.frombuffer(entry.encode(), np.uint8)))


@numba.njit(cache=True)
def fold_bytes(data):  # type: ignore[no-untyped-def]
    """uint8 [n]: a copy with A-Z, Latin-1 and full-width capitals lower-cased; every position stays where it was."""
    out = np.empty(len(data), np.uint8)
    for i in range(len(data)):
        byte = data[i]
        if 65 <= byte <= 90:
            byte += 32
        elif byte >= 0x80 and i >= 1:
            if data[i - 1] == 0xC3 and 0x80 <= byte <= 0x9E and byte != 0x97:
                byte += 32
            elif i >= 2 and data[i - 2] == 0xEF and data[i - 1] == 0xBC and 0xA1 <= byte <= 0xBA:
                # full-width A is EF BC A1, full-width a EF BD 81
                out[i - 1] = 0xBD
                byte -= 32
        out[i] = byte
    return out


def _needs_border(character: str) -> bool:
    return character.isalnum() and not characters.flags_of(characters.table(), ord(character)) & characters.HAN


@numba.njit(cache=True)
def word_before(data, flags, first, i):  # type: ignore[no-untyped-def]
    """Whether a letter (not Han) or digit ends right before position i of the text that starts at `first`."""
    if i <= first:
        return False
    j = i - 1
    while data[j] & 0xC0 == 0x80:
        j -= 1
    point, _ = characters.decode(data, j)
    flag = characters.flags_of(flags, point)
    return (flag & 6) != 0 and (flag & 1) == 0  # LETTER | DIGIT, HAN


@numba.njit(cache=True)
def word_after(data, flags, last, i):  # type: ignore[no-untyped-def]
    """Whether a letter (not Han) or digit starts at position i of the text that ends at `last`."""
    if i >= last:
        return False
    point, _ = characters.decode(data, i)
    flag = characters.flags_of(flags, point)
    return (flag & 6) != 0 and (flag & 1) == 0


@numba.njit(cache=True)
def _search(data, offsets, flags, machine, lengths, borders):  # type: ignore[no-untyped-def]
    """(entry, start, end) of the occurrences inside one document that have the borders which their entries need."""
    classes, moves, columns, first_end, own, shorter = machine
    room = 1024
    entry = np.empty(room, np.int32)
    start, end = np.empty(room, np.int64), np.empty(room, np.int64)
    n = 0
    for doc in range(len(offsets) - 1):
        first, last = offsets[doc], offsets[doc + 1]
        state = np.uint32(0)
        for i in range(first, last):
            byte = data[i]
            if byte >= 0x80 and i > first:  # folded as `fold_bytes` does; the classes fold ASCII
                before = data[i - 1]
                if before == 0xC3:
                    if byte <= 0x9E and byte != 0x97:
                        byte += 32
                elif before == 0xEF:
                    if byte == 0xBC and 0xA1 <= data[i + 1] <= 0xBA:
                        byte += 1
                elif before == 0xBC and 0xA1 <= byte <= 0xBA and data[i - 2] == 0xEF:
                    byte -= 32
            state = moves[state + classes[byte]]
            if state < first_end:
                continue
            row = (np.int64(state) - first_end) // columns
            while row >= 0:
                number = own[row]
                row = shorter[row]
                if number < 0:
                    continue
                low = i + 1 - lengths[number]
                if borders[number, 0] and word_before(data, flags, first, low):
                    continue
                if borders[number, 1] and word_after(data, flags, last, i + 1):
                    continue
                if n == room:
                    entry, start, end = (
                        np.concatenate((entry, entry)),
                        np.concatenate((start, start)),
                        np.concatenate((end, end)),
                    )
                    room *= 2
                entry[n], start[n], end[n] = number, low, i + 1
                n += 1
    return entry[:n], start[:n], end[:n]
