"""Kernels of `spans.py`: phrases summed per line, URLs, sentences and clauses around phrases."""

from __future__ import annotations

import numba
import numpy as np

from data_factory import characters
from data_factory.rules import lines as ln


@numba.njit(cache=True)
def per_line(line_start, line_of, entry, start, end, weights):  # type: ignore[no-untyped-def]
    """The fields of `_Hits`; matches are sorted by start, so those of a line stand together."""
    groups = weights.shape[1]
    k = 0
    for i in range(len(line_of)):
        if i == 0 or line_of[i] != line_of[i - 1]:
            k += 1
    line = np.empty(k, np.int64)
    best, cover = np.zeros((k, groups), np.float32), np.zeros((k, groups), np.float32)
    strong, weak = np.zeros((k, groups), np.float32), np.zeros((k, groups), np.float32)
    kinds, opens = np.zeros((k, groups), np.float32), np.zeros((k, groups), np.float32)
    covered = np.zeros(groups, np.int64)
    seen = np.full(len(weights), -1, np.int64)
    k = -1
    for i in range(len(line_of)):
        if i == 0 or line_of[i] != line_of[i - 1]:
            k += 1
            line[k] = line_of[i]
            covered[:] = 0
        new = seen[entry[i]] != line_of[i]
        seen[entry[i]] = line_of[i]
        for g in range(groups):
            weight = weights[entry[i], g]
            if weight == 0:
                continue
            if end[i] <= covered[g]:  # inside a longer match of the group
                continue
            best[k, g] = max(best[k, g], weight)
            cover[k, g] += end[i] - max(start[i], covered[g])
            covered[g] = end[i]
            if start[i] == line_start[line_of[i]]:
                opens[k, g] = max(opens[k, g], weight)
            if new:
                kinds[k, g] += 1
                if weight > 1:
                    strong[k, g] += weight
                else:
                    weak[k, g] += weight
    return line, best, cover, strong, weak, kinds, opens


@numba.njit(cache=True)
def urls(data, line_start, line_end, start, end):  # type: ignore[no-untyped-def]
    """(start, end, linked) of the URLs that the scheme matches open; start == end where one lies inside an earlier URL.

    A URL goes on to a blank, a quote, < > or a byte above 0x7F (Han and full-width marks follow a URL without a
    space), less ASCII punctuation at its end. Brackets right around it belong to it; `linked` marks targets of
    Markdown links and attributes.
    """
    first, last = start.copy(), start.copy()
    linked = np.zeros(len(start), np.bool_)
    done = 0
    for k in range(len(start)):
        if start[k] < done:
            continue
        i, stop, depth = end[k], line_end[k], 0
        while i < stop:
            byte = data[i]
            if byte <= 32 or byte >= 0x7F or byte in (34, 60, 62, 92, 94, 96, 123, 124, 125):
                break
            if byte == 40:
                depth += 1
            elif byte == 41:
                if depth == 0:
                    break
                depth -= 1
            elif byte == 93 and depth == 0:  # ]
                break
            i += 1
        while i > end[k] and data[i - 1] in (33, 39, 44, 46, 58, 59, 63, 42, 95):  # ! ' , . : ; ? * _
            i -= 1
        if i - end[k] < 3:
            continue
        done = i
        s, e = start[k], i
        before = data[s - 1] if s > line_start[k] else 10
        if before in (34, 39, 43, 45, 46, 47, 61, 91, 96) or 48 <= before <= 57 or 97 <= (before | 32) <= 122:
            linked[k] = True  # " ' + - . / = [ ` or a letter or digit: part of something else
        elif (before == 40 and s - 1 > line_start[k] and data[s - 2] == 93) or (
            before in (40, 60) and s - 2 > line_start[k] and data[s - 2] == 40 and data[s - 3] == 93
        ):
            linked[k] = True  # ]( ](< ]((
        elif e < line_end[k] and ((before == 60 and data[e] == 62) or (before == 40 and data[e] == 41)):  # <> ()
            s -= 1
            e += 1
        elif (
            s - 3 >= line_start[k]
            and e + 3 <= line_end[k]
            and data[s - 3] == 0xEF
            and data[s - 2] == 0xBC
            and data[s - 1] == 0x88
        ):
            wide = data[e] == 0xEF and data[e + 1] == 0xBC and data[e + 2] == 0x89  # （）
            s, e = (s - 3, e + 3) if wide else (s, e)
        first[k], last[k] = s, e
    return first, last, linked


@numba.njit(cache=True)
def sentences(data, flags, line_start, line_end, entry, start, end, weights):  # type: ignore[no-untyped-def]
    """((start, end, value), (start, end, value)) of the sentences and of the clauses with matches.

    value: weights above 1 of distinct entries, plus at most 2 for all of weight 1, so that weak words alone never
    pass 2.
    """
    size = len(entry)
    s_start, s_end = np.empty(size, np.int64), np.empty(size, np.int64)
    c_start, c_end = np.empty(size, np.int64), np.empty(size, np.int64)
    s_strong, s_weak = np.zeros(size, np.float32), np.zeros(size, np.float32)
    c_strong, c_weak = np.zeros(size, np.float32), np.zeros(size, np.float32)
    s_seen, c_seen = np.full(len(weights), -1, np.int64), np.full(len(weights), -1, np.int64)
    n, m = 0, 0
    mark, done = 0, 0
    for k in range(size):
        if end[k] <= done:  # inside a longer match
            continue
        done = end[k]
        if n == 0 or end[k] > s_end[n - 1] or start[k] < s_start[n - 1]:
            low, high, mark = ln.sentence_bounds(data, flags, line_start[k], line_end[k], start[k], end[k])
            if n and low < s_end[n - 1]:
                low = s_end[n - 1]
            s_start[n], s_end[n] = low, high
            n += 1
        if m == 0 or end[k] > c_end[m - 1]:
            low, high = ln.clause_bounds(data, s_start[n - 1], s_end[n - 1], mark, start[k], end[k])
            if m and low < c_end[m - 1]:
                low = c_end[m - 1]
            c_start[m], c_end[m] = low, max(high, end[k])
            m += 1
        weight = weights[entry[k]]
        if s_seen[entry[k]] != n:
            s_seen[entry[k]] = n
            if weight > 1:
                s_strong[n - 1] += weight
            else:
                s_weak[n - 1] += weight
        if c_seen[entry[k]] != m:
            c_seen[entry[k]] = m
            if weight > 1:
                c_strong[m - 1] += weight
            else:
                c_weak[m - 1] += weight
    sentences = (s_start[:n].copy(), s_end[:n].copy(), s_strong[:n] + np.minimum(s_weak[:n], np.float32(2)))
    clauses = (c_start[:m].copy(), c_end[:m].copy(), c_strong[:m] + np.minimum(c_weak[:m], np.float32(2)))
    return sentences, clauses


@numba.njit(cache=True)
def toxic(offsets, entry, start, end, weights):  # type: ignore[no-untyped-def]
    """(float64 [n], float64 [n]): distinct entries of weight 3 per document, and bytes under entries of any weight."""
    hard, covered = np.zeros(len(offsets) - 1, np.float64), np.zeros(len(offsets) - 1, np.float64)
    seen = np.full(len(weights), -1, np.int64)
    doc, done = 0, 0
    for k in range(len(entry)):
        weight = weights[entry[k]]
        if weight == 0:
            continue
        while offsets[doc + 1] <= start[k]:
            doc += 1
        if weight > 2 and seen[entry[k]] != doc:
            seen[entry[k]] = doc
            hard[doc] += 1
        covered[doc] += max(0, end[k] - max(start[k], done))
        done = max(done, end[k])
    return hard, covered


@numba.njit(cache=True)
def last_sentence(data, flags, start, end):  # type: ignore[no-untyped-def]
    """int64 [k]: where the last sentence of each line [start, end) begins."""
    out = start.copy()
    for k in range(len(start)):
        out[k] = ln.sentence_bounds(data, flags, start[k], end[k], end[k], end[k])[0]
    return out


@numba.njit(cache=True)
def _opens(data, i, end, openers):  # type: ignore[no-untyped-def]
    """Whether the three bytes at i, lower-cased, are one of `openers`."""
    if i + 3 > end:
        return False
    key = np.int64(0)
    for j in range(i, i + 3):
        key = key << 8 | np.int64(data[j] | 0x20 if 65 <= data[j] <= 90 else data[j])
    known = False
    for opener in openers:
        known |= opener == key
    return known


@numba.njit(cache=True)
def paths(data, flags, start, end, openers, longest):  # type: ignore[no-untyped-def]
    """bool [k]: lines that may be a breadcrumb: three parts between > » › → | ＞, or two after an opener, none longer
    than `longest` characters and no mark of a sentence at the end. Too many, never too few.

    `openers`: int64, the first three bytes, lower-cased, of what may stand at the start of a path.
    """
    keep = np.zeros(len(start), np.bool_)
    for k in range(len(start)):
        i, stop = start[k], end[k]
        if data[stop - 1] in (33, 59, 63):  # ! ; ?
            continue
        if stop - i >= 3 and (
            (data[stop - 3] == 0xEF and data[stop - 2] == 0xBC and data[stop - 1] in (0x81, 0x9F, 0x9B))  # ！ ？ ；
            or (data[stop - 3] == 0xE3 and data[stop - 2] == 0x80 and data[stop - 1] == 0x82)  # 。
        ):
            continue
        parts, chars = 0, 0
        filled, fits, opened = False, True, False
        first, last = -1, -1
        while i <= stop:
            separator = 1
            if i < stop:
                byte = data[i]
                point, width = characters.decode(data, i)
                if byte == 62:  # not in -> => <>, but in >>
                    joined = i > start[k] and data[i - 1] in (45, 60, 61)
                    separator = 0 if joined and not (i + 1 < stop and data[i + 1] == 62) else 1
                else:
                    separator = 1 if byte == 124 or point in (0xBB, 0x203A, 0x2192, 0xFF1E) else 0
                if separator == 0:
                    trimmed = point <= 32 or point in (45, 46, 0xB7) or characters.flags_of(flags, point) & 32
                    filled |= point not in (32, 45, 46, 0xB7)
                    if not trimmed:
                        if first < 0:
                            first = chars
                            opened |= parts == 0 and _opens(data, i, stop, openers)
                        last = chars
                    chars += 1
                i += width
            else:
                i += 1
            if separator:
                parts += filled
                fits &= first < 0 or last - first < longest
                first, last, filled = -1, -1, False
        keep[k] = opened or (fits and parts >= 3)
    return keep


@numba.njit(cache=True)
def dated(data, start, end, digits, months):  # type: ignore[no-untyped-def]
    """bool [k]: lines that `patterns.byline` may accept though they hold none of its labels: with a date, or a colon
    behind Han, or a first word that may be a label. Too many, never too few.

    `digits`: digits of each line (others than 0-9 are not looked at here: such lines are kept); `months`: int64, the
    three letters of each month as one number.
    """
    keep = np.zeros(len(start), np.bool_)
    for k in range(len(start)):
        stop = end[k]
        found = data[start[k]] | 0x20 in (99, 102, 112, 115, 116)  # c f p s t
        wide, colon = False, False
        plain, before, length, behind = 0, 0, 0, -1  # ASCII digits; the last two runs joined by . / - and their end
        i = start[k]
        while i < stop:
            byte = data[i]
            if 48 <= byte <= 57:
                j = i + 1
                while j < stop and 48 <= data[j] <= 57:
                    j += 1
                joined = behind == i - 1 and data[i - 1] in (45, 46, 47)
                found |= joined and before > 0 and length <= 2 and (before >= 4 or j - i >= 4)
                before, length, behind = length if joined else 0, j - i, j
                plain += j - i
                i = j
                continue
            wide |= byte >= 0x80
            colon |= byte == 58
            if byte == 0xE5:
                found |= data[i + 1] == 0xB9 and data[i + 2] == 0xB4  # 年
            elif byte == 0xC5:
                found |= data[i + 1] == 0xBF  # the long s, in any case
            elif byte == 0xEF and data[i + 1] == 0xBC and data[i + 2] == 0x9A:  # ：
                colon = True
            elif 97 <= byte | 0x20 <= 122 and i + 2 < stop:
                key = np.int64(byte | 0x20) << 16 | np.int64(data[i + 1] | 0x20) << 8 | np.int64(data[i + 2] | 0x20)
                for m in range(len(months)):
                    found |= months[m] == key
            i += 1
        keep[k] = found or plain != digits[k] or (wide and colon)
    return keep


@numba.njit(cache=True)
def brackets(data):  # type: ignore[no-untyped-def]
    """int64: every [ that may open a citation mark: numbers up to the ], or the first letters of a named mark."""
    out = np.empty(256, np.int64)
    n, size = 0, len(data)
    for i in range(size - 2):
        if data[i] != 91:
            continue
        a, b = data[i + 1], data[i + 2]
        if 48 <= a <= 57:
            j = i + 1
            while j < size and (48 <= data[j] <= 57 or data[j] in (44, 45, 32) or 9 <= data[j] <= 13):
                j += 1
            found = j < size and data[j] == 93
        else:  # edit, citation, clarification, note, nb, who, when, 编 来 注
            found = (
                (a == 101 and b == 100)
                or (a == 99 and b in (105, 108))
                or (a == 110 and b in (111, 98))
                or (a == 119 and b == 104)
                or (a == 0xE7 and b == 0xBC)
                or (a == 0xE6 and b in (0x9D, 0xB3))
            )
        if found:
            if n == len(out):
                out = np.concatenate((out, out))
            out[n] = i
            n += 1
    return out[:n].copy()
