"""Slow plain-Python references: lines and their counts, lexicon search, and T2 by characters."""

from __future__ import annotations

import re

from data_factory import characters

TABLE = characters.table()


def flags(character: str) -> int:
    return int(characters.flags_of.py_func(TABLE, ord(character)))


def lines(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(line without outer blanks, (characters, words, units, upper, digits)) of every line that is not blank."""
    found = []
    for raw in text.split("\n"):
        line = raw
        while line and flags(line[0]) & characters.SPACE:
            line = line[1:]
        while line and flags(line[-1]) & characters.SPACE:
            line = line[:-1]
        if not line:
            continue
        words, units, inside, unit = 0, 0, False, False
        for character in line:
            flag = flags(character)
            if flag & characters.SPACE:
                inside = unit = False
                continue
            words += not inside
            inside = True
            if flag & characters.HAN:
                units += 1
                unit = False
            elif flag & (characters.LETTER | characters.DIGIT):
                units += not unit
                unit = True
            else:
                unit = False
        letters = [flags(character) for character in line]
        upper = sum(bool(f & characters.UPPER and f & 6 and not f & 1) for f in letters)
        digits = sum(bool(f & characters.DIGIT and not f & 1) for f in letters)
        found.append((line, (len(line), words, units, upper, digits)))
    return found


def search(text: str, entries: list[str]) -> set[tuple[str, int, int]]:
    """(entry, start, end) in characters, by comparing everywhere. Entries are lower-case ASCII or Han."""
    lower = "".join(c.lower() if c.isascii() else c for c in text)

    def wordy(index: int) -> bool:
        return 0 <= index < len(text) and bool(flags(text[index]) & 6) and not flags(text[index]) & 1

    found = set()
    for entry in entries:
        ends = [character.isalnum() and character.isascii() for character in (entry[0], entry[-1])]
        for start in range(len(text) - len(entry) + 1):
            end = start + len(entry)
            borders = not (ends[0] and wordy(start - 1)) and not (ends[1] and wordy(end))
            if lower[start:end] == entry and borders:
                found.add((entry, start, end))
    return found


CLAUSE, END = set("，、；,;"), set("。！？….!?")
OPENERS, CLOSERS = dict(zip("([（【《「『“", ")]）】》」』”", strict=True)), set(")]）】》」』”")
BLANK = set(" \t\r\u3000")

INSIDE_WORDS = re.compile(  # inline tags, soft hyphen and joiners
    r"(</?(a|b|i|u|s|em|strong|span|font|small|big|tt|strike|sup|sub|ins|del)(\s[^<>]*)?>|&(shy|zwj|zwnj);?)+", re.I
)

Span = tuple[int, int]


def build(
    text: str, protected: list[Span], cuts: list[Span], masks: list[tuple[int, int, str]]
) -> tuple[str, list[int]]:
    """T2, and for every position of T1 (0 to len) the characters of T2 before it; all positions in characters."""
    n = len(text)
    guard = [any(s <= i < e for s, e in protected) for i in range(n)]
    dead = [False] * n
    pending = sorted(span for span in cuts if span[0] < span[1])

    def blank(i: int) -> bool:
        return text[i] in BLANK and not guard[i]

    def kind(i: int, last: int) -> str:
        character = text[i]
        behind = text[i + 1 : min(i + 2, last)]  # what the cut takes away counts for nothing
        if guard[i] or (character in ",;.!?" and behind.isascii() and behind.isalnum()):
            return ""
        for name, group in (("clause", CLAUSE), ("end", END), ("closer", CLOSERS), ("opener", set(OPENERS))):
            if character in group:
                return name
        return ""

    while pending:
        s, e = pending.pop(0)
        while True:
            left, right = s, e
            while left > 0 and not dead[left - 1] and blank(left - 1):
                left -= 1
            if left > 0 and dead[left - 1]:
                e = max(e, left)
                s = left - 1
                while s > 0 and dead[s - 1]:
                    s -= 1
                while e < n and dead[e]:
                    e += 1
                continue
            while right < n and blank(right):
                right += 1
            if pending and pending[0][0] <= right:
                e = max(e, pending.pop(0)[1])
                continue
            opens, closes = left == 0 or text[left - 1] == "\n", right == n or text[right] == "\n"
            if opens and closes:
                above, below = left, right
                while above > 0 and text[above - 1] == "\n" and not dead[above - 1] and not guard[above - 1]:
                    above -= 1
                while (
                    below < n and text[below] == "\n" and not guard[below] and not (pending and below >= pending[0][0])
                ):
                    below += 1
                s, e = (left, below) if left - above >= below - right else (above, right)
                break
            p = "" if opens else kind(left - 1, left)
            q = "" if closes else kind(right, n)
            if opens:
                if q in ("clause", "end"):
                    e = right + 1
                    continue
                e = right
            elif closes:
                if p == "clause":
                    s = left - 1
                    continue
                s, e = left, right
            elif p == "opener" and OPENERS[text[left - 1]] == text[right] and q == "closer":
                s, e = left - 1, right + 1
                continue
            elif p == "clause" and q == "end":
                s = left - 1
                continue
            elif (p == "clause" and q == "clause") or (p == "end" and q in ("clause", "end")):
                e = right + 1
                continue
            elif left < s:
                s = left if q in ("clause", "end", "closer") else s
                e = right
            elif p == "opener":
                e = right
            break
        for i in range(s, e):
            dead[i] = True
    for order in (range(n), range(n - 1, -1, -1)):
        for i in order:
            if not dead[i]:
                if (text[i] != "\n" and text[i] not in BLANK) or guard[i]:
                    break
                dead[i] = True
    texts: dict[int, str] = {}
    masked = [any(s <= i < e for s, e, _ in masks) and not dead[i] for i in range(n)]
    for i in range(1, n):
        if dead[i] and not dead[i - 1]:
            end = next((j for j in range(i, n) if not dead[j]), n)
            words = end < n and all(flags(text[j]) & 6 and not flags(text[j]) & 1 for j in (i - 1, end))
            if words and not masked[i - 1] and not masked[end] and not INSIDE_WORDS.fullmatch(text[i:end]):
                texts[i] = " "
    groups: list[list[tuple[int, int, str]]] = []
    for mask in sorted(masks, key=lambda mask: mask[:2]):
        if groups and mask[0] < max(end for _, end, _ in groups[-1]):
            groups[-1].append(mask)
        else:
            groups.append([mask])
    for group in groups:
        best = max(group, key=lambda mask: len(text[mask[0] : mask[1]].encode()))
        alive = [i for i in range(group[0][0], max(end for _, end, _ in group)) if not dead[i]]
        if alive:
            texts[alive[0]] = best[2]
        for i in alive:
            dead[i] = True
    out, before = "", []
    for i in range(n):
        before.append(len(out))
        out += texts.get(i, "") if dead[i] else text[i]
    return out, [*before, len(out)]
