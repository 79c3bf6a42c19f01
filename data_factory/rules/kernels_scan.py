"""The scanning kernel: every character of a document is read once and advances five small machines.

They are the character histogram, the phrase automaton, words, lines and sentences. Hashes of words, lines and
paragraphs are left in buffers for `kernels_repetition.py`.
"""

from __future__ import annotations

import numba
import numpy as np

from data_factory.characters import (
    CLOSER,
    DIGIT,
    END_MARK,
    HAN,
    LETTER,
    PUNCTUATION,
    SPACE,
    SYMBOL,
    UPPER,
    decode,
    flags_of,
)
from data_factory.rules.kernels_phrases import BOILERPLATE, JAVASCRIPT, POLICY, TEASER
from data_factory.rules.kernels_repetition import BASE, mix
from data_factory.rules.kernels_tables import AT, COMPARED, COMPLETE_LINE, HASH, HEAD, LONGEST_C4_WORD, SHORT_LINE

_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)


@numba.njit(cache=True)
def url_end(data, i, end):  # type: ignore[no-untyped-def]
    """End of the URL that starts at byte i (http://, https://, www.), or i when none does. URLs are ASCII here and
    stop at quotes and brackets.
    """
    p = i
    if data[p] | 0x20 == 0x68:  # h
        if end - p < 8 or data[p + 1] | 0x20 != 0x74 or data[p + 2] | 0x20 != 0x74 or data[p + 3] | 0x20 != 0x70:
            return i
        p += 4
        if data[p] | 0x20 == 0x73:
            p += 1
        if end - p < 4 or data[p] != 0x3A or data[p + 1] != 0x2F or data[p + 2] != 0x2F:
            return i
        p += 3
    else:
        if end - p < 5 or data[p + 1] | 0x20 != 0x77 or data[p + 2] | 0x20 != 0x77 or data[p + 3] != 0x2E:
            return i
        p += 4
    first = p
    while p < end:
        byte = data[p]
        # space and controls, beyond ASCII, " ' ( ) < > [ ] ` { | } and the backslash end a URL
        if (
            byte <= 0x22
            or byte > 0x7E
            or (0x27 <= byte <= 0x29)
            or byte in (0x3C, 0x3E)
            or (0x5B <= byte <= 0x5D)
            or byte == 0x60
            or (0x7B <= byte <= 0x7D)
        ):
            break
        p += 1
    while p > first and (data[p - 1] in (0x2E, 0x2C, 0x3B, 0x3A, 0x21, 0x3F)):  # . , ; : ! ? belong to the sentence
        p -= 1
    return p if p > first else i


@numba.njit(cache=True)
def phrase_ended(state, end, automaton, line_mask, teaser_end, counts):  # type: ignore[no-untyped-def]
    """Take the phrases that end at byte `end` into account; returns (line_mask, teaser_end)."""
    _, _, columns, first_end, masks, mojibake, filler = automaton
    hit = (np.int64(state) - first_end) // columns
    counts[AT.mojibake_chars] += mojibake[hit]
    counts[AT.filler_chars] += filler[hit]
    if masks[hit] & TEASER:
        teaser_end = end
    return line_mask | masks[hit], teaser_end


@numba.njit(cache=True)
def scan(data, start, end, zh, flags, tables, automaton, buffers, counts):  # type: ignore[no-untyped-def]
    """Scan data[start:end]; fills `counts` (zeros before) and `buffers` (`Tables`, `Automaton`, `Buffers`).

    Returns the numbers of (units, lines, paragraphs, distinct characters).
    """
    zh_stop, stop_keys, stop_values, bullets = tables
    classes, moves, _, first_end, _, _, _ = automaton
    histogram, kinds, prefix_hash, prefix_chars, line_hashes, line_lengths, paragraph_hashes, paragraph_lengths = (
        buffers
    )
    short_line = SHORT_LINE[1] if zh else SHORT_LINE[0]
    # Few things are counted by every character: lengths are differences of `chars` or `words` between two places.
    n_units = n_lines = n_paragraphs = n_kinds = 0
    chars = solid = words = han = marks = sentences = newlines = 0
    word_chars = letter_words = capital_words = stop_words = 0
    stop_kinds = np.int64(0)
    frozen = False
    # words
    in_word = False
    joiner = numba.int32(0)
    last_digit = False
    word_length = word_letters = word_capitals = 0
    word_hash = _SEED
    packed = np.uint64(0)
    # runs of one character, sentences, URLs, brackets, phrases
    previous = numba.int32(-1)
    run = 0
    ended = 0  # 1 after an ASCII end mark, 2 after another one; closing quotes and brackets keep it
    sentence_base = 0  # words before the sentence
    url_until = start
    bracket = -1  # characters up to and with 【, or -1
    state = np.uint32(0)
    # the current line; "last" = at its last character that is no whitespace
    first_point = numba.int32(-1)
    line_hash = last_hash = _SEED  # of the words and the other characters
    line_base = run_base = 0  # characters before the line's text, before the run without blank
    in_run = False
    last_length = last_ended = 0
    last_ellipsis = False
    last_point = numba.int32(-1)
    last_end = teaser_end = np.int64(0)
    line_mask = 0
    line_words = longest_word = line_curly = 0
    line_units_base = line_sentences_base = 0  # words and sentences before the line
    # the current paragraph
    paragraph_hash = _SEED
    paragraph_length = paragraph_lines = 0

    kind = numba.uint16(0)
    i = start
    while i <= end:
        # 0. Most of a text is a-z inside a word, one space before the next, and Han behind Han. Little can begin or end
        # there, so these advance only what they change.
        if in_word and joiner == 0:  # the last character was a letter or digit
            first = i
            while i < end:
                byte = data[i]
                if byte < 97 or byte > 122:
                    break
                seen = histogram[byte]
                histogram[byte] = seen + 1
                if seen == 0:
                    kinds[n_kinds] = byte
                    n_kinds += 1
                    counts[AT.head_kinds] += solid + i - first < HEAD
                state = moves[state + classes[byte]]
                i += 1
                if state >= first_end:
                    line_mask, teaser_end = phrase_ended(state, i, automaton, line_mask, teaser_end, counts)
                word_hash = (word_hash ^ np.uint64(byte)) * _PRIME
                packed = (packed << np.uint64(8)) | np.uint64(byte)
            passed = i - first
            if passed:
                chars += passed
                solid += passed
                word_length += passed
                word_letters += passed
                if word_length > 7:
                    packed = np.uint64(0xFF)
                last_digit = False
                previous = numba.int32(data[i - 1])
        elif kind & HAN and not frozen:  # U+5000 to U+9FFF
            first = i
            while i < end and 0xE5 <= data[i] <= 0xE9 and n_units + 1 < COMPARED:
                point = numba.int32(((data[i] & 0x0F) << 12) | ((data[i + 1] & 0x3F) << 6) | (data[i + 2] & 0x3F))
                seen = histogram[point]
                histogram[point] = seen + 1
                if seen == 0:
                    kinds[n_kinds] = point
                    n_kinds += 1
                    counts[AT.head_kinds] += solid + (i - first) // 3 < HEAD
                state = moves[state + classes[data[i]]]
                state = moves[state + classes[data[i + 1]]]
                state = moves[state + classes[data[i + 2]]]
                i += 3
                if state >= first_end:
                    line_mask, teaser_end = phrase_ended(state, i, automaton, line_mask, teaser_end, counts)
                if zh:
                    value = zh_stop[point]
                    if value > 0:
                        stop_words += 1
                        if value > 1:
                            stop_kinds |= np.int64(1) << np.int64(value - 2)
                prefix_hash[n_units + 1] = prefix_hash[n_units] * BASE + mix(_SEED ^ np.uint64(point))
                prefix_chars[n_units + 1] = prefix_chars[n_units] + 1
                n_units += 1
                line_hash = (line_hash ^ np.uint64(point)) * _PRIME
            passed = (i - first) // 3
            if passed:
                chars += passed
                solid += passed
                words += passed
                han += passed
                previous = point
        between = (
            in_word and joiner == 0 and i + 2 < end and data[i] == 32 and 97 <= data[i + 1] <= 122
            and not ((data[i + 1] == 0x68 or data[i + 1] == 0x77) and data[i + 2] | 0x23 == 0x77)  # ht, ww: a URL?
            and n_units + 1 < COMPARED
        )  # fmt: skip
        before = chars
        if i < end:
            if data[i] < 0x80:
                point, width, kind = numba.int32(data[i]), 1, flags[data[i]]
            else:
                point, width = decode(data, i)
                kind = flags_of(flags, point)
            chars += 1
            seen = histogram[point]
            histogram[point] = seen + 1
            if seen == 0:
                kinds[n_kinds] = point
                n_kinds += 1
                counts[AT.head_kinds] += (kind & SPACE) == 0 and solid < HEAD
            for b in range(i, i + width):
                state = moves[state + classes[data[b]]]
            if state >= first_end:
                line_mask, teaser_end = phrase_ended(state, i + width, automaton, line_mask, teaser_end, counts)
        else:  # a last newline, not counted, closes what is open
            point, width, kind = numba.int32(10), 1, flags_of(flags, 10)
            state = np.uint32(0)
        space = (kind & SPACE) != 0

        # 1. words: close, then open or extend
        letter = (kind & (LETTER | DIGIT)) != 0
        close = between
        if in_word and not between:
            if letter and not kind & HAN:
                if joiner != 0:
                    if joiner in (0x2E, 0x2C) and not kind & DIGIT:  # 3.14 is one word, 3.a is two
                        close = True
                    else:
                        word_hash = (word_hash ^ np.uint64(joiner)) * _PRIME
                        packed = np.uint64(0xFF)  # no stop word has a joiner
                        word_length += 1
                        marks -= 1  # the joiner was counted as a mark
            else:  # ' - ’ ‐ ‑, and . , after a digit, wait for the next character
                inner = point in (0x27, 0x2D, 0x2019, 0x2010, 0x2011) or (last_digit and point in (0x2E, 0x2C))
                close = joiner != 0 or not inner
        if close:
            in_word = False
            words += 1
            line_hash = (line_hash ^ word_hash ^ (np.uint64(joiner) << np.uint64(32))) * _PRIME  # u' is not 'u
            word_chars += word_length
            letter_words += word_letters > 0
            capital_words += word_letters >= 2 and word_capitals == word_letters
            if not zh and word_length <= 7 and packed != np.uint64(0xFF):
                slot = np.int64((packed * HASH) >> np.uint64(55))
                while stop_keys[slot] != 0 and stop_keys[slot] != packed:
                    slot = (slot + 1) & 511
                value = stop_values[slot]  # 0 in a free slot
                if value > 0:
                    stop_words += 1
                    if value > 1:
                        stop_kinds |= np.int64(1) << np.int64(value - 2)
            if not frozen:
                prefix_hash[n_units + 1] = prefix_hash[n_units] * BASE + mix(word_hash)
                prefix_chars[n_units + 1] = prefix_chars[n_units] + word_length
                n_units += 1
        if between:  # the next word is open already
            longest_word = max(longest_word, before - run_base)
            line_hash = (line_hash ^ np.uint64(32)) * _PRIME
            run_base = chars
            line_words += 1
            in_word = True
            word_length = word_letters = word_capitals = 0
            word_hash = _SEED
            packed = np.uint64(0)
            i += 1
            continue
        if letter:
            if kind & HAN:
                words += 1
                han += 1
                if zh and point < 0x10000:
                    value = zh_stop[point]
                    if value > 0:
                        stop_words += 1
                        if value > 1:
                            stop_kinds |= np.int64(1) << np.int64(value - 2)
                if not frozen and n_units < COMPARED:
                    prefix_hash[n_units + 1] = prefix_hash[n_units] * BASE + mix(_SEED ^ np.uint64(point))
                    prefix_chars[n_units + 1] = prefix_chars[n_units] + 1
                    n_units += 1
            else:
                if not in_word:
                    in_word = True
                    word_length = word_letters = word_capitals = 0
                    word_hash = _SEED
                    packed = np.uint64(0)
                joiner = numba.int32(0)
                word_length += 1
                word_hash = (word_hash ^ np.uint64(point)) * _PRIME
                lower = np.uint64(point | 0x20) if kind & UPPER else np.uint64(point)
                packed = (packed << np.uint64(8)) | lower if point < 0x80 and word_length <= 7 else np.uint64(0xFF)
                last_digit = (kind & DIGIT) != 0
                if not last_digit:
                    word_letters += 1
                    word_capitals += (kind & UPPER) != 0
        elif in_word:
            joiner = point
        if not frozen and (n_units >= COMPARED or n_lines >= COMPARED):
            frozen = True
            counts[AT.compared_chars], counts[AT.compared_newlines] = chars, newlines
        if space and in_run:  # before a blank, the line may end
            in_run = False
            longest_word = max(longest_word, before - run_base)
            last_length, last_hash, last_ended, last_end, last_point = before - line_base, line_hash, ended, i, previous
            last_ellipsis = previous == 0x2026 or (previous == 0x2E and run >= 3) or (previous == 0x3002 and run >= 2)

        # 2. marks: runs of one character, URLs, lenticular brackets
        if kind & (PUNCTUATION | SYMBOL):
            marks += point != previous
        if point != previous:
            counts[AT.ellipses] += (
                previous == 0x2026 or (previous == 0x2E and run >= 3) or (previous == 0x3002 and run >= 2)
            )
            run = 1
        else:
            run += 1
        if (
            (point | 0x20 == 0x68 or point | 0x20 == 0x77)
            and i >= url_until
            and word_length == 1
            and in_word
            and i + 1 < end
            and data[i + 1] | 0x23 == 0x77  # t, w
        ):
            url_until = url_end(data, i, end)
            # the target of a Markdown link, ](http...), is markup, not text
            target = i >= start + 2 and data[i - 1] == 0x28 and data[i - 2] == 0x5D
            counts[AT.url_chars] += url_until - i if url_until > i and not target else 0
        if bracket >= 0:
            if point == 0x3011:
                counts[AT.bracketed_chars] += before - bracket
                bracket = -1
        elif point == 0x3010:
            bracket = chars

        # 3. sentences; a Han character that follows an end mark belongs to the next sentence
        if kind & END_MARK:
            if point >= 0x80:
                ended = 2
            elif ended == 0:
                ended = 1
        elif ended > 0 and not kind & CLOSER:
            own = words - 1 if kind & HAN else words
            if (ended == 2 or space) and own - sentence_base >= 2:
                sentences += 1
                sentence_base = own
            ended = 0

        # 4. lines
        if not space:
            solid += 1
            if first_point < 0:
                first_point = point
                line_base = before
            if not in_run:
                in_run = True
                run_base = before
                line_words += 1
            if not letter or kind & HAN:
                line_hash = (line_hash ^ np.uint64(point)) * _PRIME
            line_curly += point == 0x7B
        else:
            if first_point >= 0:
                line_hash = (line_hash ^ np.uint64(point)) * _PRIME
            if point == 10:
                newlines += i < end
                if first_point >= 0:
                    counts[AT.lines] += 1
                    counts[AT.line_chars] += last_length
                    counts[AT.longest_line] = max(counts[AT.longest_line], last_length)
                    for bullet in bullets:
                        if bullet == first_point:
                            counts[AT.bullet_lines] += 1
                            break
                    counts[AT.ellipsis_lines] += last_ellipsis
                    counts[AT.teaser_lines] += last_ellipsis or teaser_end == last_end
                    counts[AT.end_mark_lines] += last_ended > 0
                    marked = last_ended > 0 or last_point in (0x2C, 0x3B, 0x2014, 0xFF0C, 0xFF1B)  # , ; — ， ；
                    complete = marked and not last_ellipsis and last_length >= COMPLETE_LINE
                    counts[AT.complete_lines] += complete
                    counts[AT.short_lines] += last_length <= short_line
                    counts[AT.short_open_lines] += last_length <= short_line and not complete
                    counts[AT.boilerplate_lines] += (line_mask & BOILERPLATE) != 0
                    enough = (
                        words - line_units_base >= 3 if zh else (line_words >= 3 and longest_word <= LONGEST_C4_WORD)
                    )
                    if enough and last_ended > 0 and not last_ellipsis and not line_mask & JAVASCRIPT:
                        counts[AT.c4_curly_lines] += line_curly > 0
                        counts[AT.c4_sentences] += 0 if line_mask & POLICY else sentences - line_sentences_base
                    if not frozen:
                        line_hashes[n_lines] = mix(last_hash)
                        line_lengths[n_lines] = last_length
                        n_lines += 1
                    paragraph_hash = (paragraph_hash ^ mix(last_hash)) * BASE
                    paragraph_length += last_length + (paragraph_lines > 0)
                    paragraph_lines += 1
                if (first_point < 0 or i == end) and paragraph_lines > 0:
                    if not frozen:
                        paragraph_hashes[n_paragraphs] = mix(paragraph_hash)
                        paragraph_lengths[n_paragraphs] = paragraph_length
                        n_paragraphs += 1
                    paragraph_hash = _SEED
                    paragraph_length = paragraph_lines = 0
                first_point = numba.int32(-1)
                line_hash = _SEED
                line_mask = line_words = longest_word = line_curly = 0
                line_units_base, line_sentences_base = words, sentences
                bracket = -1
        previous = point
        i += width
    if not frozen:
        counts[AT.compared_chars], counts[AT.compared_newlines] = chars, newlines
    while stop_kinds:
        counts[AT.stop_word_kinds] += 1
        stop_kinds &= stop_kinds - 1
    counts[AT.chars], counts[AT.words], counts[AT.tokens], counts[AT.newlines] = chars, words, words + marks, newlines
    counts[AT.word_chars], counts[AT.letter_words] = word_chars + han, letter_words + han
    counts[AT.capital_words], counts[AT.stop_words] = capital_words, stop_words
    counts[AT.sentences], counts[AT.head_chars] = sentences, min(solid, HEAD)
    return n_units, n_lines, n_paragraphs, n_kinds
