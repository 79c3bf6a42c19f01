"""Slow plain-Python reference of `normalize.clean`: characters, lists and regular expressions instead of bytes and
tables.
"""

from __future__ import annotations

import re
import unicodedata

from data_factory.characters import HAN, flags_of, table
from data_factory.config import Normalize


def _set(ranges: str) -> set[str]:
    pairs = [item.split("-") for item in ranges.split()]
    return {chr(point) for pair in pairs for point in range(int(pair[0], 16), int(pair[-1], 16) + 1)}


EMOJI = _set("""
231A-231B 23E9-23EC 23F0 23F3 25FD-25FE 2600-2604 2614-2615 2618 261D 2620 2639-263A 2648-2653 2668 267F 2693
26A1 26AA-26AB 26BD-26BE 26C4-26C5 26C8 26CE-26CF 26D1 26D3-26D4 26E9-26EA 26F0-26F5 26F7-26FA 26FD 2705
270A-270D 2728 2744 274C 274E 2753-2755 2757 2763-2764 2795-2797 27B0 27BF 2B1B-2B1C 2B50 2B55 1F004 1F0CF 1F18E
1F191-1F19A 1F1E6-1F1FF 1F201 1F21A 1F22F 1F232-1F236 1F238-1F23A 1F250-1F251 1F300-1F64F 1F680-1F6FF
1F7E0-1F7EB 1F7F0 1F90C-1F9FF 1FA70-1FAFF
""")
BY_SELECTOR = _set("""
2328 23CF 23ED-23EF 23F1-23F2 23F8-23FA 24C2 25AA-25AB 25B6 25C0 25FB-25FC 260E 2611 2622-2623 2626 262A
262E-262F 2638 2640 2642 265F-2660 2663 2665-2666 267B 267E 2692 2694-2697 2699 269B-269C 26A0 26A7 26B0-26B1
2702 2708-2709 270F 2712 2714 2716 271D 2721 2733-2734 2747 1F170-1F171 1F17E-1F17F 1F202 1F237
""")
SHAPED = _set("0600-06FF 0700-074F 0750-077F 08A0-08FF 0900-0DFF 1000-109F 1780-17FF 1820-18AF")
UNSPACED = _set("0E00-0EFF 1000-109F 1780-17FF 3040-30FF 3100-312F 31F0-31FF FF66-FF9F")
LINE_ENDS = "\n\r\x0b\x0c\x85\u2028\u2029"


def _class(characters: str) -> str:
    return "[" + "".join(map(re.escape, characters)) + "]"


_base = _class("".join(sorted(EMOJI)))
_selected = _class("".join(sorted(BY_SELECTOR)))
_extra = "[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"
EMOJI_SEQUENCE = re.compile(
    f"[0-9#*]\ufe0f?\u20e3|(?:{_base}|{_selected}\ufe0f){_extra}(?:\u200d(?:{_base}|{_selected}){_extra})*"
)

MOUTH = "_＿▽ω.oO︿∀Дз‿∇﹏-ー口皿益ε▿◡ᴗᆺ^・。ェ~д□▂⌣ㅂㅁ"
WIDE_MOUTH = "_" + "".join(character for character in MOUTH if character > "\x7f")
CHEEK = _class("*#=~;'\"/\\!`´｡。ノﾉ＼／☆★σ✿❀✧・゜゚･ﾟ๑ง۶٩凸っつシ彡づ♡♥╯╰｀＊")
_eyes = [f"{re.escape(eye)}{_class(MOUTH)}{{1,3}}{re.escape(eye)}" for eye in "＾￣¯´°•・◕⊙●◉≧ಠಥ╥ᵔ˘¬﹏>"]
_eyes += [f"\\^{_class(MOUTH)}{{0,3}}\\^"]
_eyes += [f"{re.escape(eye)}{_class(WIDE_MOUTH)}{{1,3}}{re.escape(eye)}" for eye in "-T;=+~@oO."]
_eyes += [f"{a}{_class(MOUTH)}{{1,3}}{b}" for a, b in ("><", "≧≦", "＞＜", "´`", "`´")]
_eyes += [f"{a}{_class(WIDE_MOUTH)}{{1,3}}{b}" for a, b in ("oO", "Oo")]
FACE = re.compile(f"{CHEEK}{{0,3}}(?:{'|'.join(_eyes)}){CHEEK}{{0,3}}")
BRACKETED = re.compile(r"[ヽヾ╰╮╭٩ლ]?[(（]([^()（）\x02\x03]*)[)）][ノﾉ╯ゞ۶و♡♥☆～]{0,2}(?:︵ ?┻━┻)?")
SHRUG = re.compile(r"¯\\{1,2}_?\(ツ\)_?/¯")
STRAIGHT = re.compile(r"\^_\^|-_-|T_T|;_;|>_<|o_O|O_o|\^[.o-]\^|>\.<")


class _Line:
    """What has been written: characters and whole protected texts, with what the rules ask about the current line."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.gap = False
        self.pending = ""
        self.run = 0

    def tail(self) -> int:
        text = "".join(self.items[-4:]).replace("\x02", "").replace("\x03", "")
        return len(text) - len(text.rstrip("\n"))

    def current(self) -> list[str]:
        """Items of the line so far; a protected text with a line feed inside stands at its start."""
        line: list[str] = []
        for item in reversed(self.items):
            if item == "\n" or item.endswith("\n\x03"):
                break
            line.insert(0, item)
            if "\n" in item:
                break
        return line

    def starts_line(self) -> bool:
        return not self.items or "\n" in self.pending or self.tail() > 0

    def last(self) -> str:
        """The character before, "" after protected text or at the start; pending whitespace is not looked at."""
        return self.items[-1] if self.items and len(self.items[-1]) == 1 else ""


def _han(character: str) -> bool:
    return bool(character) and bool(int(flags_of.py_func(table(), ord(character))) & HAN)


def wide(character: str) -> bool:
    if not character:
        return False
    marks = unicodedata.category(character)[0] == "P" and ("、" <= character <= "〿" or "！" <= character <= "･")
    return _han(character) or (marks and character not in BY_SELECTOR and character not in EMOJI)


def word(character: str) -> bool:
    if not character or _han(character) or character in UNSPACED or character in EMOJI:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd"


def removed(character: str) -> bool:
    if "\ufe00" <= character <= "\ufe0f" or ord(character) > 0x323AF:
        return True
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Cn") and not _han(character)


def _shaped(character: str) -> bool:
    return character in SHAPED and unicodedata.category(character)[0] in "LM"


def _limit(character: str, first: str, setting: int) -> float:
    if character in "…—―":
        return 2
    if character == "#" and first == "#":
        return max(6, setting)
    if character == "|" and first == "|":
        return float("inf")
    return max(3, setting) if character in ".-=*_`~" else setting


def _closed(rest: str) -> bool:
    return not rest or rest[0] in ".,!?" or rest[0].isspace() or wide(rest[0]) or rest[0] in EMOJI


def _space(character: str) -> bool:
    return character == "\t" or unicodedata.category(character) == "Zs"


def _western(rest: str, opened: int) -> int:
    head = re.match(
        r"(?:[:;]-?|:')(?P<mouth>\)+)|(?:[:;]-?|:')(?P<sad>\(+)|[:;]-(?P<other>[DPpOo/\\*])|:(?P<plain>[DP])", rest
    )
    if not head or (head["sad"] and rest[0] == ";"):
        return 0
    end = head.end()
    if not head["sad"] and opened:
        return 0
    if head["sad"]:
        window = re.split("[\n\r]", rest.encode()[end : end + 99].decode(errors="ignore"))[0]
        if ")" in window:
            return 0
    if head["plain"] and rest[end:].lstrip(" ")[:1] in tuple("=|{(<:,"):
        return 0
    return end if _closed(rest[end:]) else 0


def emoticon(rest: str, alone: int, after_word: bool, opened: int) -> int:
    """Length of the emoticon that `rest` starts with, 0 if none."""
    found = BRACKETED.match(rest)
    if found:
        inner = re.sub("[\u0300-\u036f]", "", found[1])
        if 2 <= len(inner) <= 12 and FACE.fullmatch(inner) and not (after_word and inner[0] in "TOo"):
            return found.end()
        return 0
    found = SHRUG.match(rest)
    if found:
        return found.end()
    if not alone or (alone < 2 and rest[0] == ">"):  # <a>.<b> between Han
        return 0
    found = STRAIGHT.match(rest)
    if found:
        return found.end() if _closed(rest[found.end() :]) else 0
    return _western(rest, opened) if rest[:1] in (":", ";") else 0


def one_pass(text: str, settings: Normalize) -> str:
    out = _Line()
    i = 0
    while i < len(text):
        character = text[i]
        if character == "\x03":
            i += 1
            continue
        if character == "\x02":
            stop = text.find("\x03", i)
            stop = len(text) if stop < 0 else stop
            content = text[i + 1 : stop]
            if content:
                _protected(out, content)
            i = stop + 1
            continue
        if character in LINE_ENDS:
            i += 2 if text[i : i + 2] == "\r\n" else 1
            out.pending = "\n\n" if "\n" in out.pending else "\n"
            continue
        if _space(character):
            out.pending = out.pending or " "
            i += 1
            continue
        emoji = EMOJI_SEQUENCE.match(text, i)
        if emoji and settings.remove_emoji:
            out.gap = True
            i = emoji.end()
            continue
        if emoji:
            _whitespace(out, "")
            out.items += emoji[0]
            out.items.append("")  # no rule looks past a kept emoji
            i = emoji.end()
            continue
        if character in "\u200c\u200d":
            kept = (
                _shaped(out.last()) and not out.pending and not out.gap and i + 1 < len(text) and _shaped(text[i + 1])
            )
            if kept:
                out.items.append(character)
            i += 1
            continue
        if removed(character):
            i += 1
            continue
        line = [] if out.starts_line() else [item for item in out.current() if item]
        if settings.remove_emoji:
            alone = 2 if out.pending or out.starts_line() else int(wide(out.last()))
            opened = 0
            for item in line:
                opened = opened + 1 if item == "(" else max(0, opened - 1) if item == ")" else opened
            length = emoticon(text[i:], alone, not out.pending and word(out.last()), opened)
            if length:
                out.gap = True
                i += length
                continue
        first = line[0] if line else character
        if unicodedata.category(character)[0] in "PS" and character not in "()[]{}\\\ufffd":
            both = wide(character) and wide(out.last())
            if "\n" not in out.pending and out.last() == character and (not out.pending or both):
                if out.run >= _limit(character, first, settings.max_repeated_punctuation):
                    out.pending, out.gap = "", False
                    i += 1
                    continue
                out.run += 1
            else:
                out.run = 1
        _whitespace(out, character)
        out.items.append(character)
        i += 1
    return "".join(out.items)


def _whitespace(out: _Line, character: str) -> None:
    if "\n" in out.pending:
        if out.items:
            out.items += "\n" * max(0, min(len(out.pending), 2 - out.tail()))
    elif out.pending:
        together = wide(out.last()) and wide(character)
        if out.items and not out.tail() and not together and not (out.gap and character and character in ".,!?"):
            out.items.append(" ")
    elif out.gap and word(out.last()) and word(character):
        out.items.append(" ")
    out.pending, out.gap = "", False


def _protected(out: _Line, content: str) -> None:
    if "\n" in out.pending:
        if out.items:
            out.items += "\n" * max(0, min(len(out.pending), 2 - out.tail()))
    elif out.pending and out.items and not out.tail() and content[0] not in "\r\n":
        out.items.append(" ")
    out.items.append("\x02" + re.sub("\r+\n", "\n", content).replace("\x02", "") + "\x03")
    out.pending, out.gap = "", False


def in_form(text: str, form: str) -> str:
    if form == "none":
        return text
    parts = re.split("(\x02[^\x03]*\x03)", text)
    return "".join(part if part[:1] == "\x02" else unicodedata.normalize(form, part) for part in parts)  # type: ignore[arg-type]


def clean(text: str, settings: Normalize) -> str:
    """T0 with marks -> T1 with marks."""
    text = one_pass(text, settings)
    for _ in range(8):
        formed = in_form(text, settings.unicode_form)
        text = one_pass(formed, settings)
        if text == formed:
            return text
    return text


def split_marks(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Text without marks, and byte ranges of what stood between them."""
    plain, spans, position = "", [], 0
    for part in re.split("(\x02[^\x03]*\x03)", text):
        inner = part.strip("\x02\x03") if part[:1] == "\x02" else part
        size = len(inner.encode())
        if part[:1] == "\x02" and size:
            spans.append((position, position + size))
        plain += inner
        position += size
    return plain, spans
