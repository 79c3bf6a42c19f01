"""128-bit keys of normalised URLs.

Two spellings of one address get one key. The normal form, in order:
- blanks and one pair of <> around the URL are cut (wget writes `<http://...>` into WARC headers);
- the schemes http and https are dropped (both serve the same pages today), others stay, lower-case; no scheme means http;
- host: lower-case, without a leading `www.` and a final dot; the scheme's default port (or an empty one) is dropped;
- percent-encoding: letters, digits and -._~ are never encoded, every other encoded byte is written %XX in upper case, and bytes that
  may not stand in a URL (non-ASCII, blanks, quotes, a bare %) are encoded: 中 and %E4%B8%AD are the same;
- path: `.` and `..` are resolved, session parameters (`;jsessionid=...`) and final slashes are dropped;
- query: empty, tracking and session parameters are dropped, the rest is sorted by name (equal names keep their order), `+` is %20;
- the fragment is dropped, unless it starts with `!` (`#!` addresses pages).
Kept apart on purpose: `index.html`, the case of paths, repeated slashes, other sub-domains (m., en.).
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import TextBatch
from data_factory.dedup.hashing import SEED_URL, murmur128

U64 = npt.NDArray[np.uint64]

# Parameters that tell where a reader came from, not which page it is. Names are compared in lower case.
TRACKING = (
    "gclid", "gclsrc", "dclid", "fbclid", "msclkid", "yclid", "twclid", "ttclid", "gbraid", "wbraid", "igshid", "li_fat_id", "mc_cid", "mc_eid",
    "_ga", "_gl", "_hsenc", "_hsmi", "mkt_tok", "vero_id", "spm", "scm", "bd_vid", "hmsr", "hmpl", "hmcu", "hmkw", "hmci", "isappinstalled", "share_source", "share_medium",
)  # fmt: skip
SESSION = ("phpsessid", "jsessionid", "sessionid", "session_id", "cfid", "cftoken")
PREFIXES = ("utm_", "aspsessionid")
# `sid` names a session or a story: it is dropped only when its value has at least this many letters and digits and nothing else.
SID_CHARS = 16
_PATH_SESSION = ("jsessionid=", "phpsessid=")
SORTED_PARAMETERS = 1024  # a query with more parameters keeps their order

_UNRESERVED, _ALLOWED, _ALNUM = 1, 2, 4


def _classes() -> npt.NDArray[np.uint8]:
    classes = np.zeros(256, np.uint8)
    for byte in range(128):
        character = chr(byte)
        if character.isalnum():
            classes[byte] = _UNRESERVED | _ALLOWED | _ALNUM
        elif character in "-._~":
            classes[byte] = _UNRESERVED | _ALLOWED
        elif character in ":/?#[]@!$&'()*+,;=":
            classes[byte] = _ALLOWED
    return classes


_CLASSES = _classes()
_HEX = np.frombuffer(b"0123456789ABCDEF", np.uint8)


def _pack(names: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    batch = TextBatch.from_strings(names)
    return batch.data, batch.offsets


_NAMES = _pack([*TRACKING, *SESSION])
_STARTS = _pack(PREFIXES)
_PATHS = _pack(_PATH_SESSION)
_SID = _pack(["sid"])


@numba.njit(cache=True, inline="always")
def _lower(c):  # type: ignore[no-untyped-def]
    return c + 32 if 65 <= c <= 90 else c


@numba.njit(cache=True, inline="always")
def _hex_value(c):  # type: ignore[no-untyped-def]
    if 48 <= c <= 57:
        return c - 48
    c = _lower(c)
    return c - 87 if 97 <= c <= 102 else -1


@numba.njit(cache=True)
def _encode(data, i, end, out, o, is_query, classes, hexadecimal):  # type: ignore[no-untyped-def]
    """One byte or one %XX of data[i:end] in normal form into `out`; returns the positions after it."""
    c = np.int64(data[i])
    i += 1
    raw = False
    if c == 37:  # %
        first = _hex_value(np.int64(data[i])) if i + 1 < end else -1
        second = _hex_value(np.int64(data[i + 1])) if i + 1 < end else -1
        if first >= 0 and second >= 0:
            c = first * 16 + second
            i += 2
            raw = (classes[c] & 1) != 0
    elif is_query and c == 43:  # +
        c = 32
    else:
        raw = (classes[c] & 2) != 0
    if raw:
        out[o] = c
        return i, o + 1
    out[o] = 37
    out[o + 1] = hexadecimal[c >> 4]
    out[o + 2] = hexadecimal[c & 15]
    return i, o + 3


@numba.njit(cache=True)
def _matches(data, begin, end, names, offsets, is_prefix):  # type: ignore[no-untyped-def]
    """Whether data[begin:end], lower-cased, is (or starts with) one of the names."""
    size = end - begin
    for k in range(len(offsets) - 1):
        length = offsets[k + 1] - offsets[k]
        if length > size or (not is_prefix and length != size):
            continue
        j = 0
        while j < length and _lower(data[begin + j]) == names[offsets[k] + j]:
            j += 1
        if j == length:
            return True
    return False


@numba.njit(cache=True)
def _host(data, i, stop, is_http, is_https, out, o, classes, hexadecimal):  # type: ignore[no-untyped-def]
    """User info, host and port of data[i:stop] into `out`; returns the position after them."""
    host = i
    for j in range(i, stop):
        if data[j] == 64:  # @
            host = j + 1
    while i < host:
        i, o = _encode(data, i, host, out, o, False, classes, hexadecimal)
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
    if host_end - host > 4 and _lower(data[host]) == 119 and _lower(data[host + 1]) == 119 and _lower(data[host + 2]) == 119 and data[host + 3] == 46:
        host += 4
    i = host
    while i < host_end:
        before = o
        i, o = _encode(data, i, host_end, out, o, False, classes, hexadecimal)
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
def _path(data, i, stop, out, o, paths, path_offsets, classes, hexadecimal):  # type: ignore[no-untyped-def]
    """Path data[i:stop] (empty or starting with /) into `out`; returns the position after it."""
    first = o
    while i < stop:
        slash = o
        out[o] = 47
        o += 1
        i += 1
        while i < stop and data[i] != 47:
            if data[i] == 59 and _matches(data, i + 1, stop, paths, path_offsets, True):  # ;jsessionid=
                i += 1
                while i < stop and data[i] != 47 and data[i] != 59:
                    i += 1
                continue
            i, o = _encode(data, i, stop, out, o, False, classes, hexadecimal)
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
def _query(data, i, stop, out, o, scratch, names, name_offsets, starts, start_offsets, sid, sid_offsets, classes, hexadecimal):  # type: ignore[no-untyped-def]
    """Query data[i:stop] (without ?) into `out`; returns the position after it."""
    most = 1
    for j in range(i, stop):
        most += data[j] == 38
    begins = np.empty(most, np.int64)
    name_ends = np.empty(most, np.int64)
    ends = np.empty(most, np.int64)
    count = 0
    s = 0
    while i < stop:
        begin = s
        name_end = -1
        while i < stop and data[i] != 38:
            if data[i] == 61 and name_end < 0:
                name_end = s
            i, s = _encode(data, i, stop, scratch, s, True, classes, hexadecimal)
        i += 1
        if name_end < 0:
            name_end = s
        if s == begin or _matches(scratch, begin, name_end, names, name_offsets, False) or _matches(scratch, begin, name_end, starts, start_offsets, True):
            continue
        if _matches(scratch, begin, name_end, sid, sid_offsets, False) and s - name_end - 1 >= 16:  # SID_CHARS
            plain = True
            for j in range(name_end + 1, s):
                plain = plain and (classes[scratch[j]] & 4) != 0
            if plain:
                continue
        slot = count
        while 0 < slot and most <= 1024 and _less(scratch, begin, name_end, begins[slot - 1], name_ends[slot - 1]):  # SORTED_PARAMETERS
            begins[slot], name_ends[slot], ends[slot] = begins[slot - 1], name_ends[slot - 1], ends[slot - 1]
            slot -= 1
        begins[slot], name_ends[slot], ends[slot] = begin, name_end, s
        count += 1
    for k in range(count):
        out[o] = 63 if k == 0 else 38
        o += 1
        for j in range(begins[k], ends[k]):
            out[o] = scratch[j]
            o += 1
    return o


@numba.njit(cache=True)
def _normal(data, i, end, out, scratch, tables):  # type: ignore[no-untyped-def]
    """Normal form of the URL data[i:end] into `out`; returns its size."""
    names, name_offsets, starts, start_offsets, paths, path_offsets, sid, sid_offsets, classes, hexadecimal = tables
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
    while j < end and ((classes[data[j]] & 4) != 0 or data[j] == 43 or data[j] == 45 or data[j] == 46):
        j += 1
    is_http = True
    is_https = False
    if j > i and j + 2 < end and data[j] == 58 and data[j + 1] == 47 and data[j + 2] == 47:
        is_http = j - i == 4 and _lower(data[i]) == 104 and _lower(data[i + 1]) == 116 and _lower(data[i + 2]) == 116 and _lower(data[i + 3]) == 112
        if j - i == 5 and _lower(data[i]) == 104 and _lower(data[i + 1]) == 116 and _lower(data[i + 2]) == 116 and _lower(data[i + 3]) == 112:
            is_https = _lower(data[i + 4]) == 115
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
    o = _host(data, i, stop, is_http, is_https, out, o, classes, hexadecimal)
    i = stop
    while stop < end and data[stop] != 63 and data[stop] != 35:
        stop += 1
    o = _path(data, i, stop, out, o, paths, path_offsets, classes, hexadecimal)
    if stop < end and data[stop] == 63:
        i = stop + 1
        stop = i
        while stop < end and data[stop] != 35:
            stop += 1
        o = _query(data, i, stop, out, o, scratch, names, name_offsets, starts, start_offsets, sid, sid_offsets, classes, hexadecimal)
    if stop + 2 < end and data[stop + 1] == 33:  # #! and something after it
        while stop < end:
            stop, o = _encode(data, stop, end, out, o, False, classes, hexadecimal)
    return o


@numba.njit(cache=True)
def _keys(data, offsets, seed, tables):  # type: ignore[no-untyped-def]
    n = len(offsets) - 1
    high = np.zeros(n, np.uint64)
    low = np.zeros(n, np.uint64)
    longest = 0
    for i in range(n):
        longest = max(longest, offsets[i + 1] - offsets[i])
    out = np.empty(3 * longest + 1, np.uint8)  # every byte may become %XX
    scratch = np.empty(3 * longest + 1, np.uint8)
    for i in range(n):
        size = _normal(data, offsets[i], offsets[i + 1], out, scratch, tables)
        if size > 0:
            high[i], low[i] = murmur128(out, 0, size, seed)
    return high, low


_TABLES = (*_NAMES, *_STARTS, *_PATHS, *_SID, _CLASSES, _HEX)


def url_keys(urls: Sequence[str]) -> tuple[U64, U64]:
    """128-bit keys of normalised URLs as (high, low) uint64 [n]; an empty URL has the key (0, 0), which never competes."""
    batch = TextBatch.from_strings(urls)
    result: tuple[U64, U64] = _keys(batch.data, batch.offsets, SEED_URL, _TABLES)
    return result


def normal_url(url: str) -> str:
    """The normal form that `url_keys` hashes."""
    data = np.frombuffer(url.encode(), np.uint8)
    out, scratch = np.empty(3 * len(data) + 1, np.uint8), np.empty(3 * len(data) + 1, np.uint8)
    size = _normal(data, 0, len(data), out, scratch, _TABLES)
    return bytes(out[:size]).decode("ascii")
