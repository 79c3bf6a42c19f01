"""Slow plain-Python references of the deduplication keys, the stages, their resolution, the Bloom filter's key and the
line counts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

import datasketch

from data_factory.characters import CONTROL, DIGIT, EMOJI, LETTER, PUNCTUATION, SPACE, SYMBOL, table

MASK = (1 << 64) - 1
BASE, WORD = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


def rotate(x: int, r: int) -> int:
    return ((x << r) | (x >> (64 - r))) & MASK


def mix64(x: int) -> int:
    x = ((x ^ (x >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    x = ((x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return x ^ (x >> 33)


def murmur128(data: bytes, seed: int) -> tuple[int, int]:
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = seed
    whole = len(data) // 16 * 16
    for i in range(0, whole, 16):
        k1, k2 = int.from_bytes(data[i : i + 8], "little"), int.from_bytes(data[i + 8 : i + 16], "little")
        h1 ^= rotate(k1 * c1 & MASK, 31) * c2 & MASK
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & MASK
        h2 ^= rotate(k2 * c2 & MASK, 33) * c1 & MASK
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & MASK
    tail = data[whole:]
    k1, k2 = int.from_bytes(tail[:8], "little"), int.from_bytes(tail[8:], "little")
    h2 ^= rotate(k2 * c2 & MASK, 33) * c1 & MASK
    h1 ^= rotate(k1 * c1 & MASK, 31) * c2 & MASK
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    h1, h2 = mix64(h1), mix64(h2)
    h1 = (h1 + h2) & MASK
    return h1, (h2 + h1) & MASK


def flags(character: str) -> int:
    point = ord(character)
    if point < 0x20000:
        return int(table()[point])
    return 3 if point <= 0x323AF else CONTROL


def lower(character: str) -> str:
    mapped = character.lower()
    return mapped if len(mapped) == 1 and ord(character) < 0x20000 else character


def strip(text: str, protected: list[tuple[int, int]], dropped: int) -> tuple[bytes, int]:
    out, count, at = b"", 0, 0
    for character in text:
        encoded = character.encode()
        if any(start <= at < end for start, end in protected):
            out += encoded
            count += 1
        elif not flags(character) & dropped:
            out += lower(character).encode()
            count += 1
        at += len(encoded)
    return out, count


def exact_key(text: str, protected: list[tuple[int, int]]) -> tuple[int, int]:
    key, count = strip(text, protected, PUNCTUATION | SYMBOL | SPACE | EMOJI | CONTROL)
    seed = 0
    if count < 20:
        key, seed = strip(text, protected, SPACE | CONTROL)[0], 1
    return murmur128(key, seed) if key else (0, 0)


def shingles(text: str, is_zh: bool, window: int) -> list[int]:
    kept = "".join(lower(c) if flags(c) & (LETTER | DIGIT) else " " for c in text)
    if is_zh:
        tokens = [mix64(ord(c)) for c in kept.replace(" ", "")]
    else:
        tokens = []
        for word in kept.split(" "):
            if word:
                value = 0
                for c in word:
                    value = (value + ord(c)) * WORD & MASK
                tokens.append(mix64(value))
    result = []
    for i in range(len(tokens) - window + 1):
        value = 0
        for token in tokens[i : i + window]:
            value = (value * BASE + token) & MASK
        result.append(mix64(value))
    return result


def simhash(text: str, is_zh: bool, window: int) -> tuple[int, int]:
    hashes = shingles(text, is_zh, window)
    value = 0
    for bit in range(64):
        if 2 * sum(h >> bit & 1 for h in hashes) > len(hashes):
            value |= 1 << bit
    return value, len(hashes)


def minhash(text: str, is_zh: bool, window: int, permutations: int) -> list[int]:
    sketch = datasketch.MinHash(permutations, seed=1, scheme="affine32", hashfunc=lambda value: value)
    for value in shingles(text, is_zh, window):
        sketch.update(value & 0xFFFFFFFF)
    return [int(value) for value in sketch.hashvalues]


TRACKING = set(
    [
        "gclid",
        "gclsrc",
        "dclid",
        "fbclid",
        "msclkid",
        "yclid",
        "twclid",
        "ttclid",
        "gbraid",
        "wbraid",
        "igshid",
        "li_fat_id",
        "mc_cid",
        "mc_eid",
        "_ga",
        "_gl",
        "_hsenc",
        "_hsmi",
        "mkt_tok",
        "vero_id",
        "spm",
        "scm",
        "bd_vid",
        "hmsr",
        "hmpl",
        "hmcu",
        "hmkw",
        "hmci",
        "isappinstalled",
        "share_source",
        "share_medium",
        "phpsessid",
        "jsessionid",
        "sessionid",
        "session_id",
        "cfid",
        "cftoken",
    ]
)


def percent(text: str, is_query: bool = False) -> str:
    def one(match: re.Match[bytes]) -> bytes:
        piece = match.group()
        if len(piece) == 3:
            byte = bytes([int(piece[1:], 16)])
            return byte if re.fullmatch(rb"[A-Za-z0-9._~-]", byte) else b"%%%02X" % byte[0]
        if is_query and piece == b"+":
            return b"%20"
        return piece if re.fullmatch(rb"[A-Za-z0-9._~\-:/?#\[\]@!$&'()*+,;=]", piece) else b"%%%02X" % piece[0]

    return re.sub(rb"(?s)%[0-9A-Fa-f]{2}|.", one, text.encode()).decode()


def lower_ascii(text: str) -> str:
    return re.sub("[A-Z]", lambda match: match.group().lower(), text)


def normal_url(url: str) -> str:
    url = url.strip("".join(map(chr, range(33))))
    if len(url) >= 2 and url[0] == "<" and url[-1] == ">":
        url = url[1:-1]
    if not url:
        return ""
    match = re.match(r"([A-Za-z0-9+.\-]+)://", url)
    scheme = lower_ascii(match.group(1)) if match else "http"
    url = url[match.end() :] if match else url.removeprefix("//")
    authority, rest = re.fullmatch(r"(?s)([^/?#]*)(.*)", url).groups()
    path, query, fragment = re.fullmatch(r"(?s)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", rest).groups()
    at = authority.rfind("@") + 1
    user, host = authority[:at], authority[at:]
    port = re.search(r":([0-9]*)$", host)
    if port:
        host = host[: port.start()]
    shown = port.group(1) if port else ""
    if (scheme, shown) in (("http", "80"), ("https", "443")):
        shown = ""
    host = host.removesuffix(".")
    if len(host) > 4 and host[:4].lower() == "www.":
        host = host[4:]
    encoded = re.sub(
        r"%[0-9A-F]{2}|[A-Z]",
        lambda found: found.group() if len(found.group()) == 3 else found.group().lower(),
        percent(host),
    )
    result = (
        ("" if scheme in ("http", "https") else scheme + "://")
        + percent(user)
        + encoded
        + (":" + shown if shown else "")
    )
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        value = percent(re.sub(r"(?i);(?:jsessionid=|phpsessid=)[^/;]*", "", segment))
        if value == "..":
            segments[-1:] = []
        elif value != ".":
            segments.append(value)
    result += "".join("/" + segment for segment in segments).rstrip("/")
    parameters = []
    for parameter in (query or "").split("&"):
        value = percent(parameter, is_query=True)
        name = value.split("=")[0]
        known = lower_ascii(name)
        tracked = known in TRACKING or known.startswith(("utm_", "aspsessionid"))
        session = known == "sid" and re.fullmatch(r"[A-Za-z0-9]{16,}", value[4:])
        if value and not tracked and not session:
            parameters.append((name, value))
    if parameters:
        if len((query or "").split("&")) <= 1024:
            parameters.sort(key=lambda item: item[0])
        result += "?" + "&".join(value for _, value in parameters)
    if fragment and fragment.startswith("!") and len(fragment) > 1:
        result += percent("#" + fragment)
    return result


def url_key(url: str) -> tuple[int, int]:
    normal = normal_url(url)
    return murmur128(normal.encode(), 2) if normal else (0, 0)


def line_keys(text: str, protected: list[tuple[int, int]], min_chars: int) -> list[tuple[int, int, int]]:
    found, start = [], 0
    for line in text.split("\n"):
        end = start + len(line.encode())
        kept = "".join(
            "0" if flags(c) & DIGIT else lower(c)
            for c in line
            if not flags(c) & (PUNCTUATION | SYMBOL | SPACE | EMOJI | CONTROL)
        )
        chars = sum(1 for c in kept if flags(c) & (LETTER | DIGIT))
        if end > start and chars >= min_chars and not any(a < end and b > start for a, b in protected):
            found.append((start, end, murmur128(kept.encode(), 3)[0]))
        start = end + 1
    return found


@dataclass
class Document:
    """One survivor; `place` = (unit, row), `id` a 128-bit number, keys 0 = none."""

    place: tuple[int, int]
    id: int
    tier: int
    chars: int
    date: int
    url: int
    exact: int
    simhash: int
    shingles: int
    signature: tuple[int, ...] = ()


@dataclass
class Result:
    losers: dict[tuple[int, int], tuple[str, int, float]] = field(
        default_factory=dict
    )  # place -> stage, winner id, value
    copies: dict[tuple[int, int], int] = field(default_factory=dict)  # kept place -> copies
    pairs: set[tuple[int, int, float]] = field(default_factory=set)  # ids, the better one first


def winners_first(document: Document, order: list[str]) -> tuple[int, ...]:
    values = {"tier": document.tier, "length": -document.chars, "date": -document.date, "id": document.id}
    return tuple(values[name] for name in [*order, "id"])


def similarity(one: Document, other: Document) -> float:
    return sum(a == b for a, b in zip(one.signature, other.signature, strict=True)) / len(one.signature)


def shares_band(one: Document, other: Document, bands: int, rows: int) -> bool:
    return any(
        one.signature[i * rows : (i + 1) * rows] == other.signature[i * rows : (i + 1) * rows] for i in range(bands)
    )


def deduplicate(documents, settings, seen=frozenset(), bands=None) -> Result:  # type: ignore[no-untyped-def]
    """All stages by their definition, all pairs compared. `bands`: (bands, rows) of minhash."""
    fuzzy, copies = settings.fuzzy, settings.keep_copies
    ranked = sorted(documents, key=lambda document: winners_first(document, settings.order))
    lost: dict[int, tuple[str, int, float]] = {}  # id -> stage, named id, value
    for document in ranked:
        if document.url and document.url in seen:
            lost[document.id] = ("seen", 0, 0.0)
    for stage in ("url", "exact"):
        groups: dict[int, list[int]] = defaultdict(list)
        for document in ranked:
            key = getattr(document, stage)
            if getattr(settings, stage) and key and document.id not in lost:
                groups[key].append(document.id)
        for members in groups.values():
            for loser in members[copies:]:
                lost[loser] = (stage, members[0], 0.0)
    result = Result()
    if fuzzy.method != "none":
        competing = [d for d in ranked if d.id not in lost and d.shingles >= max(1, fuzzy.min_shingles)]
        by_sketch: dict[object, list[Document]] = defaultdict(list)
        nodes = []
        for document in competing:
            members = by_sketch[document.simhash if fuzzy.method == "simhash" else document.signature]
            members.append(document)
            if len(members) <= copies:
                nodes.append(document)
            else:
                result.pairs.add((members[0].id, document.id, 0.0 if fuzzy.method == "simhash" else 1.0))
        neighbours: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for j, later in enumerate(nodes):
            for earlier in nodes[:j]:
                if fuzzy.method == "simhash":
                    value: float = (earlier.simhash ^ later.simhash).bit_count()
                    found, near = value <= fuzzy.search_distance, value <= fuzzy.distance
                else:
                    value = similarity(earlier, later)
                    found = near = shares_band(earlier, later, *bands) and value >= fuzzy.similarity
                if found:
                    result.pairs.add((earlier.id, later.id, value))
                if near:
                    neighbours[later.id].append((earlier.id, value))
        for node in nodes:
            winners = [pair for pair in neighbours[node.id] if pair[0] not in lost]
            if len(winners) >= copies:
                lost[node.id] = ("fuzzy", *winners[0])
        for members in by_sketch.values():
            for document in members[copies:]:
                lost[document.id] = ("fuzzy", members[0].id, 0.0 if fuzzy.method == "simhash" else 1.0)
    kept = {document.id for document in ranked} - set(lost)
    if fuzzy.method == "simhash":  # the definition itself, without collapsing equal fingerprints
        for j, later in enumerate(competing):
            ahead = [d.simhash for d in competing[:j] if d.id in kept]
            near = [value for value in ahead if (value ^ later.simhash).bit_count() <= fuzzy.distance]
            assert (later.id in kept) == (len(near) < copies)
    stands = dict.fromkeys(kept, 1)
    place = {document.id: document.place for document in ranked}
    for identity, (stage, named, value) in lost.items():
        if stage != "seen":
            while named in lost:
                value = lost[named][2] if stage == "fuzzy" else value
                named = lost[named][1]
            stands[named] += 1
        result.losers[place[identity]] = (stage, named, value)
    result.copies = {place[identity]: count for identity, count in stands.items()}
    return result
