"""The patterns that decide on the few lines which a kernel or the lexicon proposes: plain Python, line by line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np

from data_factory.rules.lexicon import parse

# 12, 1,234, 1.2k, 3.4万; not a section number (2.1.3.)
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?(?=\s?[kKmMwW万千亿])|\d+)(?![\d.])\s?(?:[kKmMwW]\b|[万千亿])?\+?)"
_EN_COUNTED = (
    r"(?:likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?|upvotes?|downvotes?|downloads?|views?|followers?|following|"
    r"repl(?:y|ies)|reads?|votes?|ratings?|reviews?|points?|subscribers?|members online)"
)
_ZH_COUNTED = (
    r"(?:阅读|浏览|评论|点赞|转发|收藏|回复|关注|人气|点击|播放|下载|粉丝|分享|喜欢|访问|观看|围观|热度"
    r"|讨论|楼层|推荐|反对|在看|赞)"
)
_EN_COUNTER = rf"(?:{_NUMBER}\s*{_EN_COUNTED}|{_EN_COUNTED}\s*[:(]?\s*{_NUMBER}\)?)"
_ZH_COUNTER = (
    rf"(?:{_ZH_COUNTED}(?:量|数|次数|人数)?\s*[:：(（]?\s*{_NUMBER}\s*(?:次|人|条|个)?\s*[)）]?"
    rf"|{_NUMBER}\s*(?:次|人|条|个|位)?\s*(?:已)?{_ZH_COUNTED}(?:过|量|数)?|{_NUMBER}\s*人看过)"
)
_GAP = r"[\s|·•,，、/;；\-]*"
_COUNTER = re.compile(rf"{_GAP}(?:(?:{_EN_COUNTER}|{_ZH_COUNTER}){_GAP})+\Z", re.IGNORECASE)


def counter(line: str) -> float:
    """1 for a line of counters only (12 likes · 3 comments, 浏览 34 次), else 0."""
    return 1.0 if _COUNTER.match(line) else 0.0


_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec)[a-z]{0,6}\.?"
_DATE = (
    rf"(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{4}}|\d{{4}}\s?年\s?\d{{1,2}}\s?月(?:\s?\d{{1,2}}\s?日)?"
    rf"|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}|\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH},?\s+\d{{4}})"
)
_WEEKDAY = (
    r"(?:(?:mon|tues?|wed(?:nes)?|thurs?|fri|sat(?:ur)?|sun)(?:day)?,?|星期[一二三四五六日天]|周[一二三四五六日])"
)
_CLOCK = (
    r"(?:(?:at\s+|上午|下午|@\s*)?\d{1,2}:\d{2}(?::\d{2})?(?:\s?[ap]\.?m\.?)?"
    r"(?:\s?(?:utc|gmt|est|edt|pst|pdt|cst|cet))?)"
)
MONTHS = np.array([int.from_bytes(month.encode()) for month in re.findall("[a-z]{3}", _MONTH)], np.int64)
_DATE_ONLY = re.compile(rf"{_GAP}(?:{_WEEKDAY}\s*)?{_DATE}(?:\s*{_WEEKDAY})?{_GAP}\Z", re.IGNORECASE)
_STAMP = re.compile(rf"{_GAP}(?:{_WEEKDAY}\s*)?{_DATE}(?:\s*{_WEEKDAY})?[\s,T|·-]*{_CLOCK}{_GAP}\Z", re.IGNORECASE)
_EN_BYLINE = re.compile(
    rf"(?:(?:posted|published|last (?:updated|modified|edited)|updated|submitted|created|written)"
    rf"(?:\s+(?:on|at|in|by))?:?\s+|date:\s*|by\s+\S+(?:\s+\S+)?\s+(?:on|at|[|·,-])\s*)"
    rf"(?:(?:by\s+)?[^.!?]{{0,40}}?\s*(?:on|at|[|·,-])?\s*)?(?:{_WEEKDAY}\s*)?{_DATE}(?:[\s,T|·-]*{_CLOCK})?"
    rf"(?:\s*(?:by|in|under|[|·,-])\s*[^.!?]{{0,60}})?\.?\Z",
    re.IGNORECASE,
)
_EN_LABELS = re.compile(
    r"(?:filed under|tagged with|posted in|tags|categories|category|posted by|submitted by)\s*:?\s+[^.!?]{1,80}\Z", re.I
)
_ZH_LABEL = (
    r"(?:发布时间|发布日期|发布于|发表于|发表时间|更新时间|更新日期|更新于|最后更新|录入时间|日期|时间|文章来源|信息来源|稿源|来源|"
    r"责任编辑|责编|编辑|小编|作者|记者|通讯员|供稿|审核|校对|发布者|发布人|录入|标签|分类|栏目|字体|浏览次数|点击次数|阅读次数)"
)
_ZH_BYLINE = re.compile(
    rf"[\[【(（]?(?:{_ZH_LABEL}\s*[:：]\s*[^\s。！？，]{{0,20}}(?:\s+{_CLOCK})?[\s|/·,，;；\]】)）]*)+\Z"
)
_ZH_DATED = re.compile(rf"(?:(?:发布|发表|更新)于)\s*[:：]?\s*{_DATE}(?:\s*{_CLOCK})?\Z")
_ZH_TWO = re.compile(rf"{_ZH_LABEL}\s*[:：]")


def byline(line: str) -> float:
    """2 for a byline (label and date, or two Chinese labels) or a date with a time, 1 for a bare date, else 0."""
    if _STAMP.match(line) or _ZH_DATED.match(line):
        return 2.0
    if _DATE_ONLY.match(line):
        return 1.0
    if _EN_BYLINE.match(line):
        return 2.0
    if _ZH_BYLINE.match(line):
        # One label alone (作者：某某, 时间：周六) may be data of a text: it needs a date beside it, or a second label.
        return 2.0 if len(_ZH_TWO.findall(line)) >= 2 or re.search(_DATE, line) else 1.0
    return 1.0 if _EN_LABELS.match(line) else 0.0


def _navigation(weight: float) -> frozenset[str]:
    from importlib import resources

    folder = resources.files("data_factory.rules") / "lexicons"
    names = ("navigation_en.txt", "navigation_zh.txt")
    entries = [entry for name in names for entry in parse((folder / name).read_text(encoding="utf-8"), name)]
    return frozenset(entry.lower() for entry, own in entries if own >= weight)


_HOMES, _MENU = _navigation(3.0), _navigation(1.0)
# The first three bytes of what may stand at the start of a path (for `span_kernels.paths`).
PATH_OPENERS = np.array(
    sorted({int.from_bytes(word.encode()[:3]) for word in (*_HOMES, "现", "当", "所", "的", "位", "您", "你", "you")}),
    np.int64,
)
LONGEST_PART = 40
_SEPARATOR = re.compile(r"\s*(?:>>|＞＞|[»›→＞|]|(?<![-=<])>)\s*")
_HERE = re.compile(
    r"(?:(?:您|你)?(?:现在|当前|所在)?的?(?:所在)?位置(?:是|为)?|you(?: are|'re) here)\s*[:：]?\s*", re.IGNORECASE
)


def breadcrumb(line: str) -> float:
    """2 for a path from a home page or a row of menu entries, 1 for a path's shape (File > Save > PDF), else 0."""
    here = _HERE.match(line)
    parts = [part.strip(" .-·") for part in _SEPARATOR.split(line[here.end() :] if here else line)]
    parts = [part for part in parts if part]
    if (
        len(parts) < 2
        or max(map(len, parts)) > LONGEST_PART
        or line.rstrip().endswith(("。", "！", "？", "!", "?", ";", "；"))
    ):
        return 0.0
    if here or parts[0].lower() in _HOMES:
        return 2.0
    if len(parts) >= 3:
        menu = sum(part.lower() in _MENU for part in parts)
        return 2.0 if menu >= 2 and menu * 5 >= len(parts) * 3 else 1.0
    return 0.0


_CITATION = re.compile(  # 编辑 来源请求 注 1
    rb"\[(?:\d{1,3}(?:[-,]\s?\d{1,3})*|edit|citation needed|clarification needed|note \d{1,2}|who\?|when\?|nb \d{1,2}"
    rb"|\xe7\xbc\x96\xe8\xbe\x91|\xe6\x9d\xa5\xe6\xba\x90\xe8\xaf\xb7\xe6\xb1\x82|\xe6\xb3\xa8 ?\d{1,2})\]"
)


_STACKED = re.compile(rb"(?:\[[\d,\- ]{1,12}\])+\Z")  # [1][2]: what stands before the first


def citation(text: bytes, i: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, value) of the citation mark whose [ stands at i of the document text[first:last]: 2 after prose,
    else 1; none of a Markdown link.

    Prose is a mark, a closer or Han before it; a word too before named marks ([edit]). Numbers behind an ASCII letter,
    a blank or a wide colon, or not ascending, may be indices or values: 1.
    """
    match = _CITATION.match(text, i, last)
    if not match or (match.end() < last and text[match.end() : match.end() + 1] in (b"(", b":")):
        return
    head = _STACKED.sub(b"", text[max(first, i - 40) : i])
    before = head[-1:]
    named = not match.group()[1:2].isdigit()
    prose = (
        before >= b"\x80"
        or (before != b"" and before in b".,;\"'" and text[match.end() : match.end() + 1] != before)
        or (named and (before.isalnum() or before == b")"))
    )
    if not named:
        numbers = [int(number) for number in re.findall(rb"\d+", match.group())]
        ascending = len(numbers) <= 5 and all(low < high for low, high in itertools.pairwise(numbers))
        prose = (
            prose and ascending and numbers[0] > 0 and not head.endswith(b"\xef\xbc\x9a")
        )  # no list of values behind ：
    yield i, match.end(), 2 if prose else 1
