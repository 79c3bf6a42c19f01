"""Where private data may start: the kernel that proposes the few positions on which the patterns of `privacy.py` decide."""

from __future__ import annotations

import numba
import numpy as np

AT, DIGITS, PLUS, OPEN, COLON, WORDY_AT, HASH = range(7)

TRIGGER = np.zeros(256, np.bool_)
TRIGGER[list(b"@+([{#:0123456789\xef")] = True
_REACH = 100  # bytes behind name#host.com in which it must be told that # is @
_BOUND = tuple(b".-+_/=#%&@$")  # before a number, these bind it to something else


@numba.njit(cache=True)
def _is_digit(byte):  # type: ignore[no-untyped-def]
    return 48 <= byte <= 57


@numba.njit(cache=True)
def _is_word(byte):  # type: ignore[no-untyped-def]
    return 48 <= byte <= 57 or 97 <= byte | 0x20 <= 122


@numba.njit(cache=True)
def _is_hex(byte):  # type: ignore[no-untyped-def]
    return 48 <= byte <= 57 or 65 <= byte <= 70 or 97 <= byte <= 102


@numba.njit(cache=True)
def _at(data, i, last):  # type: ignore[no-untyped-def]
    return data[i] if i < last else np.uint8(10)


@numba.njit(cache=True)
def _run(data, i, last):  # type: ignore[no-untyped-def]
    """Digits from i on."""
    j = i
    while j < last and 48 <= data[j] <= 57:
        j += 1
    return j - i


@numba.njit(cache=True)
def _grouped_mobile(data, i, last):  # type: ignore[no-untyped-def]
    """138-1234-5678 and 138 1234 5678."""
    mark = _at(data, i + 3, last)
    return (
        _run(data, i, last) == 3
        and data[i] == 49
        and data[i + 1] >= 51
        and mark in (45, 32)
        and _run(data, i + 4, last) == 4
        and _at(data, i + 8, last) == mark
        and _run(data, i + 9, last) == 4
    )


@numba.njit(cache=True)
def _grouped_north(data, i, last):  # type: ignore[no-untyped-def]
    """212-555-0134 and 212.555.0134."""
    mark = _at(data, i + 3, last)
    return (
        _run(data, i, last) == 3
        and data[i] >= 50
        and mark in (45, 46)
        and _run(data, i + 4, last) == 3
        and data[i + 4] >= 50
        and _at(data, i + 7, last) == mark
        and _run(data, i + 8, last) == 4
    )


@numba.njit(cache=True)
def _number(data, i, j, last):  # type: ignore[no-untyped-def]
    """Whether the digits [i, j) may open an identity card or telephone number, or an IPv4 address."""
    length, byte, after = j - i, data[i], _at(data, j, last)
    second = _at(data, i + 1, last)
    if length == 18 or (length == 17 and after in (88, 120)):  # X, x
        return True
    if length >= 10:
        if length == 13:
            return byte == 56 and second == 54 and data[i + 2] == 49
        return length <= 12 and (byte == 48 or (length == 11 and byte == 49 and second >= 51))
    if length > 4:
        return False
    following = _at(data, j + 1, last)
    if after == 46 and length <= 3 and _is_digit(following):
        second_run = _run(data, j + 1, last)
        third = j + 2 + second_run
        if second_run <= 3 and _at(data, third - 1, last) == 46:
            third_run = _run(data, third, last)
            if 1 <= third_run <= 3 and _at(data, third + third_run, last) == 46:
                return _is_digit(_at(data, third + third_run + 1, last))
        return _grouped_north(data, i, last)
    if byte == 48:  # 010-62345678, 0755 – 26123456
        wide = after == 0xE2 and following == 0x80
        number = j + 3 if wide else j + 1
        return 3 <= length <= 4 and (wide or after in (45, 32)) and 50 <= _at(data, number, last) <= 57
    if after not in (45, 32):
        return False
    if length == 2 and byte == 56 and second == 54:  # 86
        return _grouped_mobile(data, j + 1, last) or (following == 49 and _run(data, j + 1, last) == 11)
    if length == 1 and byte == 49:
        return _grouped_north(data, j + 1, last)
    return _grouped_mobile(data, i, last) or _grouped_north(data, i, last)


@numba.njit(cache=True)
def _wordy_at(data, i, width, last):  # type: ignore[no-untyped-def]
    """Whether (at) or [@], of any bracket of `width` bytes and any case, stands at i."""
    j = i + width
    j += _at(data, j, last) == 32
    if _at(data, j, last) == 64:
        j += 1
    elif _at(data, j, last) | 0x20 == 97 and _at(data, j + 1, last) | 0x20 == 116:
        j += 2
    else:
        return False
    j += _at(data, j, last) == 32
    return _at(data, j, last) in (41, 93, 125, 0xEF)


@numba.njit(cache=True)
def anchors(data, offsets, trigger):  # type: ignore[no-untyped-def]
    """(position int64, kind uint8, start and end of its document int64): where private data may start (its @, for
    e-mail). Too many, never too few. `trigger`: `TRIGGER`.
    """
    room = 1024
    position, kind = np.empty(room, np.int64), np.empty(room, np.uint8)
    lows, highs = np.empty(room, np.int64), np.empty(room, np.int64)
    n, doc, first, last = 0, -1, 0, 0
    colon_end, done = 0, 0
    for i in range(len(data)):
        if not trigger[data[i]] or i < done:
            continue
        byte = data[i]
        wide = 0
        if byte == 0xEF:  # （ and ＠
            if i + 2 >= len(data) or data[i + 1] != 0xBC or (data[i + 2] != 0x88 and data[i + 2] != 0xA0):
                continue
            wide = data[i + 2]
        while i >= last:
            doc += 1
            first, last = offsets[doc], offsets[doc + 1]
        free = i == first or not (_is_word(data[i - 1]) or data[i - 1] in _BOUND)
        what, at = -1, i
        if byte == 64:  # @
            if i > first and i + 1 < last and data[i - 1] > 36 and data[i + 1] > 44:
                what = AT
        elif byte == 43:  # +
            if free and 49 <= _at(data, i + 1, last) <= 57:
                digits, j = 0, i + 1
                while j < last and digits < 7 and (_is_digit(data[j]) or data[j] in (32, 40, 41, 45, 46)):
                    digits += _is_digit(data[j])
                    j += 1
                what = PLUS if digits == 7 else -1
        elif wide == 0xA0:
            if i > first and data[i - 1] > 36 and _at(data, i + 3, last) > 44:
                what = AT
        elif byte in (40, 91, 123) or wide == 0x88:  # ( [ { （
            width = 3 if wide else 1
            j = i + width
            run = _run(data, j, last) if free and byte not in (91, 123) else 0
            if run == 3 or (run == 4 and data[j] == 48):
                what = OPEN
            elif i > first and (data[i - 1] == 32 or _is_word(data[i - 1])) and _wordy_at(data, i, width, last):
                what = WORDY_AT
        elif byte == 35:  # #
            if i > first and _is_word(data[i - 1]) and _is_word(_at(data, i + 1, last)):
                told, j = False, i + 4
                while j < min(last, i + _REACH) and not told:
                    told = data[j] == 64 or (data[j] == 0xA0 and data[j - 1] == 0xBC and data[j - 2] == 0xEF)
                    j += 1
                what = HASH if told else -1
        elif byte == 58:  # :
            if i >= colon_end:
                start = i
                while start > first and i - start < 4 and _is_hex(data[start - 1]):
                    start -= 1
                end, colons = i, 0
                while end < last and (_is_hex(data[end]) or data[end] == 58):
                    colons += data[end] == 58
                    end += 1
                if colons >= 2 and end - start >= 6 and start < i and (data[start] == 50 or data[start] == 51):
                    what = COLON  # starts with 2 or 3: 2000::/3
                    at = start
                colon_end = end
        else:
            done = i + _run(data, i, last)
            if free and _number(data, i, done, last):
                what = DIGITS
        if what >= 0:
            if n == room:
                position, kind = np.concatenate((position, position)), np.concatenate((kind, kind))
                lows, highs = np.concatenate((lows, lows)), np.concatenate((highs, highs))
                room *= 2
            position[n], kind[n], lows[n], highs[n] = at, what, first, last
            n += 1
    return position[:n].copy(), kind[:n].copy(), lows[:n].copy(), highs[:n].copy()
