"""Bytes of pages -> text: which encoding, decoding that never fails, and the removal of what no text may hold."""

from __future__ import annotations

import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

REPLACEMENT = "\ufffd"
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_META = re.compile(rb"<meta[^<>]{0,500}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.\-]{1,40})", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^<>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9_:.\-]{1,40})", re.IGNORECASE)
_HEAD = 4096  # bytes searched for a declaration (the standard says 1024; Chinese portals put scripts before it)
_SAMPLE = 1 << 16  # bytes shown to the detector
# GB2312 and GBK are subsets of GB18030 and are what pages in it call it; the same holds for Big5 and its Hong Kong
# extension.
_GB = frozenset(
    {
        "gb2312",
        "gbk",
        "gb18030",
        "gb_2312",
        "gb_2312-80",
        "gb2312-80",
        "x-gbk",
        "cp936",
        "ms936",
        "windows-936",
        "chinese",
        "csgb2312",
        "euc-cn",
        "hz",
    }
)
_BIG5 = frozenset({"big5", "big5-hkscs", "big5hkscs", "cn-big5", "csbig5", "x-x-big5", "cp950", "ms950", "big5-eten"})
_CODECS = {
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "utf-16": "utf-16-le",
    "iso-8859-8-i": "iso-8859-8",
    "windows-1252": "cp1252",
    "x-mac-cyrillic": "mac-cyrillic",
}
_ASCII_BASED = frozenset(
    {"iso-2022-jp", "hz", "utf-16-le", "utf-16-be"}
)  # encodings whose text can pass for ASCII or UTF-8


def sanitise(text: str) -> str:
    """`text` without U+0000, U+0002, U+0003; lone surrogates become U+FFFD."""
    for forbidden in ("\x00", "\x02", "\x03"):
        if forbidden in text:
            text = text.replace(forbidden, "")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def codec(label: str) -> str:
    """The Python codec for a charset label as browsers read it (latin-1 means windows-1252 ...), or "" for an unknown
    label.
    """
    name = label.strip().strip("\"'").lower()
    if name in ("hz-gb-2312", "hz"):
        return "hz"
    if name in _GB:
        return "gb18030"
    if name in _BIG5:
        return "big5hkscs"
    mapped = map_encoding_to_html5(name, fallback_utf8=False)
    if not mapped:
        return ""
    mapped = mapped.lower()
    if mapped in _GB:
        return "gb18030"
    return "big5hkscs" if mapped in _BIG5 else _CODECS.get(mapped, mapped)


def decode_html(payload: bytes, charset: str) -> tuple[str, str]:
    """(text, encoding used) of an HTML page. `charset`: as declared by the HTTP header, or "".

    Order: byte order mark, HTTP, `<meta>` or XML declaration, detection (uchardet). A page that is valid UTF-8 is
    UTF-8 whatever it says of itself; latin-1 from the HTTP header yields to the page's own word, for servers send it
    unasked. A declaration that the bytes contradict yields to the next candidate; bytes that no candidate reads
    become U+FFFD (`text.count("\\ufffd")` tells how many).
    """
    head = payload[:_HEAD]
    match = _META.search(head) or _XML.match(head)
    return _decode(payload, charset, match[1].decode("ascii") if match else "")


def decode_text(payload: bytes, charset: str) -> tuple[str, str]:
    """(sanitised text, encoding used) of plain text: byte order mark, `charset`, detection; see `decode_html`."""
    text, used = _decode(payload, charset, "")
    return sanitise(text), used


def _decode(payload: bytes, declared: str, inner: str) -> tuple[str, str]:
    for mark, name in _BOMS:
        if payload.startswith(mark):
            return payload[len(mark) :].decode(name, "replace"), name
    candidates = [codec(declared) if declared else ""]
    if inner:
        name = codec(inner)
        name = (
            "utf-8" if name.startswith("utf-16") else name
        )  # a declaration that can be read as ASCII is not in UTF-16
        candidates.insert(0 if candidates[0] in ("", "cp1252", "ascii") else 1, name)
    if candidates[0] not in _ASCII_BASED:
        try:
            text = payload.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            if not (candidates[0] in ("gb18030", "big5hkscs") and _is_short_chinese(payload, candidates[0])):
                return text, "utf-8"
    names = list(dict.fromkeys(name for name in candidates if name))
    if not names or names[0] in ("cp1252", "utf-8"):
        detected = codec(detect_encoding(payload, max_len=_SAMPLE) or "")
        if detected and detected not in names:
            # A single-byte label decodes anything, so a Chinese encoding that fits without an error is the better
            # reading.
            names.insert(0 if detected in ("gb18030", "big5hkscs") and names[:1] != ["utf-8"] else len(names), detected)
    for name in names:
        try:
            return payload.decode(name), name
        except (UnicodeDecodeError, LookupError):
            continue
    if "big5hkscs" in names:  # some characters of Microsoft's Big5 are not in the Hong Kong one
        names.append("cp950")
    best, used = "", ""
    for name in names or ["utf-8"]:
        try:
            text = payload.decode(name, "replace")
        except LookupError:
            continue
        if not used or text.count(REPLACEMENT) < best.count(REPLACEMENT):
            best, used = text, name
    return (best, used) if used else (payload.decode("utf-8", "replace"), "utf-8")


def _is_short_chinese(payload: bytes, name: str) -> bool:
    """A few Chinese characters in GBK or Big5 may also be valid UTF-8 (the word 联通 is); with so few the declaration
    decides.
    """
    if len(payload.translate(None, bytes(range(128)))) >= 32:
        return False
    try:
        payload.decode(name)
    except UnicodeDecodeError:
        return False
    return not payload.isascii()
