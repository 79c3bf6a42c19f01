"""Private data: what is masked, where, and what stands for it.

A cheap kernel proposes positions (an @, a digit run of the right length, ...), patterns on those few decide. Borders
are tested by bytes and never by \\b, since Han characters count as word characters. E-mail addresses, telephone,
identity and bank card numbers are masked in protected text (code) too: a person's data is no less private there; IP
addresses and labelled accounts are not, since in code they are mostly configuration. Addresses in reserved domains
(example.com) are masked like others.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterator

import numpy as np

from data_factory.batches import Spans, TextBatch
from data_factory.rules.privacy_anchors import AT, COLON, HASH, OPEN, PLUS, TRIGGER, WORDY_AT, anchors

MASK_TEXT: dict[str, bytes] = {
    "mask_email": b"<EMAIL>",
    "mask_phone": b"<PHONE>",
    "mask_id_card": b"<ID>",
    "mask_ip": b"<IP>",
    "mask_bank_card": b"<CARD>",
    "mask_account": b"<ACCOUNT>",
}
OUTSIDE_CODE = frozenset({"mask_ip", "mask_account"})  # never inside protected spans

_LOCAL = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._%+\-]*\Z")
_DOMAIN = re.compile(
    rb"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.)+(?:xn--[A-Za-z0-9\-]{2,59}|[A-Za-z]{2,24})"
)
_LABELS = frozenset({b"this", b"super", b"return", b"break", b"continue"})  # this@Outer.field of Kotlin
_NOT_DOMAIN = re.compile(rb"\.(?:png|jpe?g|gif|webp|svg|css|js|mp4|pdf|service|target|socket)\Z", re.IGNORECASE)
_TLD = rb"(?:com|net|org|edu|gov|mil|int|info|biz|name|dev|app|xyz|top|club|site|online|asia|[a-z]{2})"
_DOT = rb"(?:\.|\s?[\[({]\s?dot\s?[\])}]\s?|\s(?:dot)\s)"
_WORDY_DOMAIN = re.compile(
    rb"(?:[\[({]|\xef\xbc\x88)\s?(?:at|@)\s?(?:[\])}]|\xef\xbc\x89)\s?(?:[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?"
    + _DOT
    + rb"){1,4}"
    + _TLD,
    re.IGNORECASE,
)
_HASH_IS_AT = re.compile(  # （ ） 把 将 请 用 以; 换 替 改 代; 成 为 作 ＠
    rb"\s?(?:[\[(]|\xef\xbc\x88)[^\n@#()\[\]]{0,24}#[^\n@#()\[\]]{0,24}"
    rb"(?:=|->|\xe6\x8d\xa2|\xe6\x9b\xbf|\xe6\x94\xb9|\xe4\xbb\xa3|replace|change|with|by|to\b|is\b)[^\n@#()\[\]]{0,24}(?:@|\xef\xbc\xa0)"
    rb"[^\n@#()\[\]]{0,12}?(?:[\])]|\xef\xbc\x89)",
    re.IGNORECASE,
)
_MOBILE = re.compile(rb"(?:86[- ]?)?1[3-9]\d(?:\d{8}|([- ])\d{4}\1\d{4})")
_LANDLINE = re.compile(
    rb"0(?:10|2\d|[3-9]\d\d)(?:[- ]|\xe2\x80\x93|\xe2\x80\x94)?[2-9]\d{2,3}[- ]?\d{4}(?:[- ]\d{1,4})?"
)
_LANDLINE_OPEN = re.compile(rb"(?:\(|\xef\xbc\x88)0(?:10|2\d|[3-9]\d\d)(?:\)|\xef\xbc\x89)[- ]?[2-9]\d{2,3}[- ]?\d{4}")
_NANP = re.compile(rb"(?:1[-. ])?[2-9]\d\d([-.])[2-9]\d\d\1\d{4}")
_NANP_OPEN = re.compile(rb"\([2-9]\d\d\) ?[2-9]\d\d[- ]\d{4}")
_INTERNATIONAL = re.compile(rb"\+[1-9]\d{0,2}(?:[-. ]?\(0?\d{1,4}\))?(?:[-. ]?\d){6,12}")
_LABEL = re.compile(
    rb"(?:tel|phone|fax|mobile|cell|call|whatsapp|\xe7\x94\xb5\xe8\xaf\x9d|\xe4\xbc\xa0\xe7\x9c\x9f|\xe6\x89\x8b\xe6\x9c\xba"
    rb"|\xe7\x83\xad\xe7\xba\xbf)[^\n\d]{0,24}\Z",  # 电话 传真 手机 热线
    re.IGNORECASE,
)
_IPV4 = re.compile(rb"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")
_IPV6 = re.compile(rb"[0-9A-Fa-f:]{6,39}")
_VERSION = re.compile(  # 版本 固件 型号 第
    rb"(?:(?<![a-z])(?:version|ver|release|firmware|build|revision|rev|section|chapter|v)(?![a-z])|\xe7\x89\x88\xe6\x9c\xac|\xe5\x9b\xba\xe4\xbb\xb6"
    rb"|\xe5\x9e\x8b\xe5\x8f\xb7|\xe7\xac\xac)[^\n]{0,16}\Z",
    re.IGNORECASE,
)
_VERSION_AFTER = re.compile(rb"\W{0,6}(?:version|release|\xe7\x89\x88)", re.IGNORECASE)  # 版
_ADDRESS = re.compile(
    rb"(?:\bip|ipv4|address|server|host|dns|ping|\xe5\x9c\xb0\xe5\x9d\x80)[^\n]{0,16}\Z", re.IGNORECASE
)  # 地址
_ID_CARD = re.compile(rb"[1-9]\d{16}[0-9Xx]")
_QQ = re.compile(  # 号 群 是 ：
    rb"(?:\s*(?:\xe5\x8f\xb7|\xe7\xbe\xa4))*\s*(?::|\xef\xbc\x9a|\xe6\x98\xaf)?\s*([1-9]\d{4,10})"
)
_WECHAT_NUMBERED = re.compile(  # 号 ： 是 为; an identifier with a digit, or a number behind one of these
    rb"(?:\s*(?:\xe5\x8f\xb7|id))?\s*(?::|\xef\xbc\x9a|\xe6\x98\xaf|\xe4\xb8\xba)?\s*"
    rb"((?=[A-Za-z_\-]*\d)[A-Za-z][A-Za-z0-9_\-]{5,19}|(?<=[:\x9a\xb7\xaf\xba])[1-9]\d{4,10})",
    re.IGNORECASE,
)
_WECHAT_LABELLED = re.compile(
    rb"\s*(?:\xe5\x8f\xb7)\s*(?::|\xef\xbc\x9a|\xe6\x98\xaf|\xe4\xb8\xba)\s*([A-Za-z][A-Za-z0-9_\-]{5,19})"
)
_CARD = re.compile(rb"[^\d\n]{0,12}(\d(?:[ -]?\d){14,18})(?!\d)")


def mask_texts() -> dict[int, bytes]:
    """Rule number -> what stands for the masked text, for `cut.build`."""
    from data_factory.rules import RULE_NUMBER

    return {RULE_NUMBER[rule]: text for rule, text in MASK_TEXT.items()}


def find(t1: TextBatch, labels: list[tuple[int, int, bytes]]) -> list[tuple[str, int, int]]:
    """(rule id, start, end) of all private data, batch positions, in no particular order.

    `labels`: (start, end, folded label) of words that announce an account or a card (the lexicon's group "label").
    """
    text = t1.data.tobytes()
    found: list[tuple[str, int, int]] = []
    for i, what, low, high in zip(*(column.tolist() for column in anchors(t1.data, t1.offsets, TRIGGER)), strict=True):
        if what == AT:
            found += _email(text, i, low, high)
        elif what == WORDY_AT:
            found += _wordy_email(text, i, low, high)
        elif what == HASH:
            found += _hash_email(text, i, low, high)
        elif what == COLON:
            found += _ipv6(text, i, low, high)
        else:
            found += _number(text, i, what, low, high)
    if labels:
        docs = np.searchsorted(t1.offsets, [label[0] for label in labels], side="right")
        for (start, end, label), high in zip(labels, t1.offsets[docs].tolist(), strict=True):
            if start == 0 or text[start - 1 : start] not in (
                b"/",
                b"[",
                b"@",
                b".",
                b"_",
                b"-",
            ):  # a user name in a URL
                found += _labelled(text, end, label, high)
    return found


def _email(text: bytes, i: int, low: int, high: int) -> Iterator[tuple[str, int, int]]:
    local = _LOCAL.search(text[max(low, i - 64) : i])
    domain = _DOMAIN.match(text, i + (1 if text[i] == 64 else 3), high)  # @ or ＠
    if (
        local
        and domain
        and local.group() not in _LABELS
        and not _NOT_DOMAIN.search(domain.group())
        and _free_after(text, domain.end(), high)
    ):
        yield "mask_email", i - len(local.group()), domain.end()


def _wordy_email(text: bytes, i: int, low: int, high: int) -> Iterator[tuple[str, int, int]]:
    """name [at] host.tld, name(at)host dot tld: the last label must be a top-level domain that people have."""
    blank = text[i - 1 : i] == b" "
    local = _LOCAL.search(text[max(low, i - 64) : i - blank])
    domain = _WORDY_DOMAIN.match(text, i, high)
    if local and len(local.group()) > 1 and domain and _free_after(text, domain.end(), high):
        yield "mask_email", i - blank - len(local.group()), domain.end()


def _hash_email(text: bytes, i: int, low: int, high: int) -> Iterator[tuple[str, int, int]]:
    """name#host.com(把#换成@), with what tells that # is @."""
    local = _LOCAL.search(text[max(low, i - 64) : i])
    domain = _DOMAIN.match(text, i + 1, high)
    told = _HASH_IS_AT.match(text, domain.end(), high) if domain else None
    if local and told:
        yield "mask_email", i - len(local.group()), told.end()


def _ipv6(text: bytes, i: int, low: int, high: int) -> Iterator[tuple[str, int, int]]:
    match = _IPV6.match(text, i, high)
    if match and _free_before(text, i, low) and _free_after(text, match.end(), high):
        value = match.group().rstrip(b":") if not match.group().endswith(b"::") else match.group()
        try:
            address = ipaddress.IPv6Address(value.decode())
        except ValueError:
            return
        if address.is_global and address in _GLOBAL_UNICAST:
            yield "mask_ip", i, i + len(value)


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def _number(text: bytes, i: int, what: int, low: int, high: int) -> Iterator[tuple[str, int, int]]:
    if what == PLUS:
        patterns: tuple[re.Pattern[bytes], ...] = (_INTERNATIONAL,)
    elif what == OPEN:
        patterns = (_LANDLINE_OPEN, _NANP_OPEN)
    else:
        card = _ID_CARD.match(text, i, high)
        if card and _free_before(text, i, low) and _free_after(text, card.end(), high) and id_card_valid(card.group()):
            yield "mask_id_card", i, card.end()
            return
        address = _IPV4.match(text, i, high)
        if address:
            if _ipv4(text, i, address.end(), low, high):
                yield "mask_ip", i, address.end()
            return
        patterns = (_MOBILE, _LANDLINE, _NANP)
    for pattern in patterns:
        match = pattern.match(text, i, high)
        if match and _free_before(text, i, low) and _free_after(text, match.end(), high):
            bare = match.group().isdigit() and pattern is not _MOBILE
            if bare and not _LABEL.search(text[max(low, i - 40) : i]):
                continue  # 0101234567 without a separator or a label may be anything
            yield "mask_phone", i, match.end()
            return


def _ipv4(text: bytes, i: int, end: int, low: int, high: int) -> bool:
    if not _free_before(text, i, low) or not _free_after(text, end, high):
        return False
    try:
        address = ipaddress.IPv4Address(text[i:end].decode())
    except ValueError:
        return False
    before = text[max(low, i - 24) : i]
    if address.packed[3] == 0 or (end < high and text[end : end + 1] == b"/" and text[end + 1 : end + 2].isdigit()):
        return False  # a network, not a host
    if (
        not address.is_global
        or address.is_multicast
        or _VERSION.search(before)
        or _VERSION_AFTER.match(text, end, high)
    ):
        return False
    # 4.2.13.4 is a section or a version more often than a host: small numbers need a label.
    return max(address.packed) >= 32 or bool(_ADDRESS.search(before))


def _labelled(text: bytes, end: int, label: bytes, high: int) -> Iterator[tuple[str, int, int]]:
    if label.startswith(b"q"):
        patterns = [(_QQ, "mask_account")]
    elif label[:1] in (b"v", b"w") or label.startswith((b"\xe5\xbe\xae", b"\xe8\x96\x87", b"\xe5\xa8\x81")):  # 微 薇 威
        patterns = [(_WECHAT_NUMBERED, "mask_account"), (_WECHAT_LABELLED, "mask_account")]
        if label.endswith(b"\xe5\x8f\xb7"):  # 号
            end -= 3
    else:
        patterns = [(_CARD, "mask_bank_card")]
    for pattern, rule in patterns:
        match = pattern.match(text, end, high)
        if match and _free_after(text, match.end(), high) and (rule != "mask_bank_card" or luhn_valid(match.group(1))):
            yield rule, match.start(1), match.end(1)
            return


def _free_before(text: bytes, i: int, low: int) -> bool:
    """Whether no ASCII letter or digit, and none of . - + _ / = # % & : stands right before i (Han may)."""
    return i == low or not (text[i - 1 : i].isalnum() or text[i - 1 : i] in b".-+_/=#%&@$")


def _free_after(text: bytes, i: int, high: int) -> bool:
    """Whether no ASCII letter, digit or _ follows, nor a . or - that goes on with one."""
    if i >= high:
        return True
    after = text[i : i + 1]
    if after.isalnum() or after == b"_":
        return False
    return not (after in b".-" and i + 1 < high and text[i + 1 : i + 2].isalnum())


def id_card_valid(card: bytes) -> bool:
    """Whether 18 characters are a Chinese identity card number: a birth date from 1900 on, the checksum of GB 11643."""
    try:
        birth = datetime.date(int(card[6:10]), int(card[10:12]), int(card[12:14]))
    except ValueError:
        return False
    if not 1900 <= birth.year <= 2100 or not 11 <= int(card[:2]) <= 82:
        return False
    total = sum((byte - 48) * weight for byte, weight in zip(card, _ID_WEIGHTS, strict=False))
    return b"10X98765432"[total % 11] == card.upper()[17]


_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def luhn_valid(number: bytes) -> bool:
    """Whether the digits (spaces and hyphens apart) pass the Luhn check and are not all equal."""
    digits = [byte - 48 for byte in number if 48 <= byte <= 57]
    total = sum(digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits)))
    return total % 10 == 0 and len(set(digits)) > 1


def spans(t1: TextBatch, found: list[tuple[str, int, int]], protected: Spans) -> Spans:
    """What `find` found as spans with value 1, without what protected text keeps (`OUTSIDE_CODE`)."""
    from data_factory.rules import RULE_NUMBER

    found = sorted(set(found))  # two labels may announce one account
    start = np.array([item[1] for item in found], np.int64)
    end = np.array([item[2] for item in found], np.int64)
    doc = (np.searchsorted(t1.offsets, start, side="right") - 1).astype(np.int32)
    rule = np.array([RULE_NUMBER[item[0]] for item in found], np.int16)
    table = Spans(
        doc,
        (start - t1.offsets[doc]).astype(np.int32),
        (end - t1.offsets[doc]).astype(np.int32),
        rule,
        np.ones(len(found), np.float32),
    )
    inside = np.isin(rule, [RULE_NUMBER[name] for name in sorted(OUTSIDE_CODE)]) & overlaps(t1, table, protected)
    return Spans.concatenate([table.take(~inside)])


def overlaps(t1: TextBatch, spans: Spans, others: Spans) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """bool [m]: spans that share a byte with one of `others` (sorted and disjoint)."""
    base = t1.offsets[others.doc]
    starts, ends = base + others.start, base + others.end
    low = t1.offsets[spans.doc] + spans.start
    high = t1.offsets[spans.doc] + spans.end
    if not len(starts):
        return np.zeros(len(spans), np.bool_)
    first = np.searchsorted(ends, low, side="right")
    return (first < len(starts)) & (starts[np.minimum(first, len(starts) - 1)] < high)
