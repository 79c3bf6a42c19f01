"""128-bit keys of normalised URLs.

Two spellings of one address get one key. The normal form, in order:
- blanks and one pair of <> around the URL are cut (wget writes `<http://...>` into WARC headers);
- the schemes http and https are dropped (both serve the same pages today), others stay, lower-case; no scheme means
  http;
- host: lower-case, without a leading `www.` and a final dot; the scheme's default port (or an empty one) is dropped;
- percent-encoding: letters, digits and -._~ are never encoded, every other encoded byte is written %XX in upper case,
  and bytes that may not stand in a URL (non-ASCII, blanks, quotes, a bare %) are encoded:
  中 and %E4%B8%AD are the same;
- path: `.` and `..` are resolved, session parameters (`;jsessionid=...`) and final slashes are dropped;
- query: empty, tracking and session parameters are dropped, the rest is sorted by name (equal names keep their order),
  `+` is %20;
- the fragment is dropped, unless it starts with `!` (`#!` addresses pages).
Kept apart on purpose: `index.html`, the case of paths, repeated slashes, other sub-domains (m., en.).
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_factory.batches import TextBatch
from data_factory.dedup.hashing import SEED_URL, murmur128

U64 = npt.NDArray[np.uint64]

# Parameters that tell where a reader came from, not which page it is. Names are compared in lower case.
TRACKING = (
    "gclid", "gclsrc", "dclid", "fbclid", "msclkid", "yclid", "twclid", "ttclid", "gbraid", "wbraid", "igshid",
    "li_fat_id", "mc_cid", "mc_eid", "_ga", "_gl", "_hsenc", "_hsmi", "mkt_tok", "vero_id", "spm", "scm", "bd_vid",
    "hmsr", "hmpl", "hmcu", "hmkw", "hmci", "isappinstalled", "share_source", "share_medium",
)  # fmt: skip
SESSION = ("phpsessid", "jsessionid", "sessionid", "session_id", "cfid", "cftoken")
PREFIXES = ("utm_", "aspsessionid")
# `sid` names a session or a story: it is dropped only when its value has at least this many letters and digits and
# nothing else.
SID_CHARS = 16
_PATH_SESSION = ("jsessionid=", "phpsessid=")
SORTED_PARAMETERS = 1024  # a query with more parameters keeps their order

# Classes of bytes: never encoded; allowed as they are; letters and digits; the same in every part of a URL (allowed,
# not +).
_UNRESERVED, _ALLOWED, _ALNUM, _PLAIN = 1, 2, 4, 8


def _classes() -> npt.NDArray[np.uint8]:
    classes = np.zeros(256, np.uint8)
    for byte in range(128):
        character = chr(byte)
        if character.isalnum():
            classes[byte] = _UNRESERVED | _ALLOWED | _ALNUM | _PLAIN
        elif character in "-._~":
            classes[byte] = _UNRESERVED | _ALLOWED | _PLAIN
        elif character in ":/?#[]@!$&'()*+,;=":
            classes[byte] = _ALLOWED if character == "+" else _ALLOWED | _PLAIN
    return classes


_CLASSES = _classes()
# All words that the kernels look for, end to end; group g is words _GROUPS[g] to _GROUPS[g + 1]. Compiled code holds
# these arrays and the classes as constants.
_NAMES, _STARTS, _PATHS, _SID, _HTTP, _HTTPS, _WWW = range(7)
_LISTS = ((*TRACKING, *SESSION), PREFIXES, _PATH_SESSION, ("sid",), ("http",), ("https",), ("www.",))
_WORDS = TextBatch.from_strings([word for words in _LISTS for word in words])
_LETTERS, _OFFSETS = _WORDS.data, _WORDS.offsets
_GROUPS = np.cumsum([0, *map(len, _LISTS)])


@numba.njit(cache=True, inline="always")
def _lower(c):  # type: ignore[no-untyped-def]
    return c + 32 if 65 <= c <= 90 else c


@numba.njit(cache=True)
def _hex_value(c):  # type: ignore[no-untyped-def]
    if 48 <= c <= 57:
        return c - 48
    c = _lower(c)
    return c - 87 if 97 <= c <= 102 else -1


@numba.njit(cache=True)
def _digit(value):  # type: ignore[no-untyped-def]
    return value + 48 if value < 10 else value + 55


@numba.njit(cache=True)
def _encode(data, i, end, out, o, is_query):  # type: ignore[no-untyped-def]
    """One byte or one %XX of data[i:end] in normal form into `out`; returns the positions after it."""
    c = int(data[i])
    i += 1
    raw = False
    if c == 37:  # %
        first = _hex_value(int(data[i])) if i + 1 < end else -1
        second = _hex_value(int(data[i + 1])) if i + 1 < end else -1
        if first >= 0 and second >= 0:
            c = first * 16 + second
            i += 2
            raw = (_CLASSES[c] & _UNRESERVED) != 0
    elif is_query and c == 43:  # +
        c = 32
    else:
        raw = (_CLASSES[c] & _ALLOWED) != 0
    if raw:
        out[o] = c
        return i, o + 1
    out[o] = 37
    out[o + 1] = _digit(c >> 4)
    out[o + 2] = _digit(c & 15)
    return i, o + 3


@numba.njit(cache=True)
def _matches(data, begin, end, group, is_prefix):  # type: ignore[no-untyped-def]
    """Whether data[begin:end], lower-cased, is (or starts with) a word of the group."""
    size = end - begin
    for k in range(_GROUPS[group], _GROUPS[group + 1]):
        word = _OFFSETS[k]
        length = _OFFSETS[k + 1] - word
        if length > size or (not is_prefix and length != size):
            continue
        j = 0
        while j < length and _lower(data[begin + j]) == _LETTERS[word + j]:
            j += 1
        if j == length:
            return True
    return False


@numba.njit(cache=True)
def _host(data, i, stop, is_http, is_https, out, o):  # type: ignore[no-untyped-def]
    """User info, host and port of data[i:stop] into `out`; returns the position after them."""
    host = i
    for j in range(i, stop):
        if data[j] == 64:  # @
            host = j + 1
    while i < host:
        i, o = _encode(data, i, host, out, o, False)
    host_end = stop
    port = stop
    for j in range(stop - 1, host - 1, -1):
        if data[j] == 58:  # :
            host_end, port = j, j + 1
            break
        if not 48 <= data[j] <= 57:
            break
    is_default = port >= stop
    if is_http and stop - port == 2 and data[port] == 56 and data[port + 1] == 48:
        is_default = True
    if is_https and stop - port == 3 and data[port] == 52 and data[port + 1] == 52 and data[port + 2] == 51:
        is_default = True
    if host_end > host and data[host_end - 1] == 46:
        host_end -= 1
    if host_end - host > 4 and _matches(data, host, host + 4, _WWW, False):
        host += 4
    i = host
    while i < host_end:
        if _CLASSES[data[i]] & _PLAIN:
            out[o] = _lower(data[i])
            i += 1
            o += 1
            continue
        before = o
        i, o = _encode(data, i, host_end, out, o, False)
        if o == before + 1:
            out[before] = _lower(out[before])
    if not is_default:
        out[o] = 58
        o += 1
        for j in range(port, stop):
            out[o] = data[j]
            o += 1
    return o


@numba.njit(cache=True)
def _path(data, i, stop, out, o):  # type: ignore[no-untyped-def]
    """Path data[i:stop] (empty or starting with /) into `out`; returns the position after it."""
    first = o
    while i < stop:
        slash = o
        out[o] = 47
        o += 1
        i += 1
        while i < stop and data[i] != 47:
            if data[i] == 59 and _matches(data, i + 1, stop, _PATHS, True):  # ;jsessionid=
                i += 1
                while i < stop and data[i] != 47 and data[i] != 59:
                    i += 1
                continue
            if _CLASSES[data[i]] & _PLAIN:
                out[o] = data[i]
                i += 1
                o += 1
            else:
                i, o = _encode(data, i, stop, out, o, False)
        size = o - slash
        if size == 2 and out[slash + 1] == 46:
            o = slash
        elif size == 3 and out[slash + 1] == 46 and out[slash + 2] == 46:
            o = slash
            while o > first and out[o - 1] != 47:
                o -= 1
            o = max(first, o - 1)
    while o > first and out[o - 1] == 47:
        o -= 1
    return o


@numba.njit(cache=True)
def _less(text, a, a_end, b, b_end):  # type: ignore[no-untyped-def]
    while a < a_end and b < b_end:
        if text[a] != text[b]:
            return text[a] < text[b]
        a += 1
        b += 1
    return a >= a_end and b < b_end


@numba.njit(cache=True)
def _query(data, i, stop, out, o, scratch):  # type: ignore[no-untyped-def]
    """Query data[i:stop] (without ?) into `out`; returns the position after it."""
    most = 1
    for j in range(i, stop):
        most += data[j] == 38
    places = np.empty((most, 3), np.int64)  # of every parameter kept: begin, end of the name, end
    count = 0
    s = 0
    while i < stop:
        begin = s
        name_end = -1
        while i < stop and data[i] != 38:
            if data[i] == 61 and name_end < 0:
                name_end = s
            if _CLASSES[data[i]] & _PLAIN:
                scratch[s] = data[i]
                i += 1
                s += 1
            else:
                i, s = _encode(data, i, stop, scratch, s, True)
        i += 1
        if name_end < 0:
            name_end = s
        if s == begin or _matches(scratch, begin, name_end, _NAMES, False):
            continue
        if _matches(scratch, begin, name_end, _STARTS, True):
            continue
        if s - name_end - 1 >= SID_CHARS and _matches(scratch, begin, name_end, _SID, False):
            plain = True
            for j in range(name_end + 1, s):
                plain = plain and (_CLASSES[scratch[j]] & _ALNUM) != 0
            if plain:
                continue
        slot = count
        while slot > 0 and most <= SORTED_PARAMETERS:
            before = slot - 1
            if not _less(scratch, begin, name_end, places[before, 0], places[before, 1]):
                break
            for j in range(3):
                places[slot, j] = places[before, j]
            slot = before
        places[slot, 0], places[slot, 1], places[slot, 2] = begin, name_end, s
        count += 1
    for k in range(count):
        out[o] = 63 if k == 0 else 38
        o += 1
        for j in range(places[k, 0], places[k, 2]):
            out[o] = scratch[j]
            o += 1
    return o


@numba.njit(cache=True)
def _normal(data, i, end, out, scratch):  # type: ignore[no-untyped-def]
    """Normal form of the URL data[i:end] into `out`; returns its size."""
    while i < end and data[i] <= 32:
        i += 1
    while i < end and data[end - 1] <= 32:
        end -= 1
    if end - i >= 2 and data[i] == 60 and data[end - 1] == 62:
        i += 1
        end -= 1
    if i >= end:
        return 0
    o = 0
    j = i
    while j < end and ((_CLASSES[data[j]] & _ALNUM) != 0 or data[j] == 43 or data[j] == 45 or data[j] == 46):
        j += 1
    is_http = True
    is_https = False
    if j > i and j + 2 < end and data[j] == 58 and data[j + 1] == 47 and data[j + 2] == 47:
        is_http = _matches(data, i, j, _HTTP, False)
        is_https = _matches(data, i, j, _HTTPS, False)
        if not is_http and not is_https:
            for k in range(i, j):
                out[o] = _lower(data[k])
                o += 1
            for k in range(3):
                out[o] = data[j + k]
                o += 1
        i = j + 3
    elif end - i >= 2 and data[i] == 47 and data[i + 1] == 47:
        i += 2
    stop = i
    while stop < end and data[stop] != 47 and data[stop] != 63 and data[stop] != 35:
        stop += 1
    o = _host(data, i, stop, is_http, is_https, out, o)
    i = stop
    while stop < end and data[stop] != 63 and data[stop] != 35:
        stop += 1
    o = _path(data, i, stop, out, o)
    if stop < end and data[stop] == 63:
        i = stop + 1
        stop = i
        while stop < end and data[stop] != 35:
            stop += 1
        o = _query(data, i, stop, out, o, scratch)
    if stop + 2 < end and data[stop + 1] == 33:  # #! and something after it
        while stop < end:
            stop, o = _encode(data, stop, end, out, o, False)
    return o


@numba.njit(cache=True)
def _keys(data, offsets, seed):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    high = np.zeros(n, np.uint64)
    low = np.zeros(n, np.uint64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    out = np.empty(3 * longest + 1, np.uint8)  # every byte may become %XX
    scratch = np.empty(3 * longest + 1, np.uint8)
    for i in range(n):
        size = _normal(data, offsets[i], offsets[i + 1], out, scratch)
        if size > 0:
            high[i], low[i] = murmur128(out, 0, size, seed)
    return high, low


def url_keys(urls: Sequence[str] | TextBatch) -> tuple[U64, U64]:
    """128-bit keys of normalised URLs as (high, low) uint64 [n]; an empty URL has the key (0, 0), which never competes."""
    batch = urls if isinstance(urls, TextBatch) else TextBatch.from_arrow(pa.array(urls, pa.large_string()))
    result: tuple[U64, U64] = _keys(batch.data, batch.offsets, SEED_URL)
    return result


def normal_url(url: str) -> str:
    """The normal form that `url_keys` hashes."""
    data = np.frombuffer(url.encode(), np.uint8)
    out, scratch = np.empty(3 * len(data) + 1, np.uint8), np.empty(3 * len(data) + 1, np.uint8)
    size = _normal(data, 0, len(data), out, scratch)
    return bytes(out[:size]).decode("ascii")
