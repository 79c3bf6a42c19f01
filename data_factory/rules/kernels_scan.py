"""The scanning kernel: every character of a document is decoded once and advances five small machines.

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
def stop_value(packed, keys, values):  # type: ignore[no-untyped-def]
    """Value of a packed word in the stop-word table; 0 = absent."""
    slot = np.int64((packed * HASH) >> np.uint64(55))
    while keys[slot] != 0:
        if keys[slot] == packed:
            return values[slot]
        slot = (slot + 1) & 511
    return np.uint8(0)


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
def scan(data, start, end, zh, flags, tables, automaton, buffers, counts):  # type: ignore[no-untyped-def]
    """Scan data[start:end]; fills `counts` and `buffers` (`Tables`, `Automaton`, `Buffers`).

    Returns the numbers of (units, lines, paragraphs, distinct characters).
    """
    zh_stop, stop_keys, stop_values, bullets = tables
    classes, moves, columns, first_end, masks, mojibake, filler = automaton
    histogram, kinds, prefix_hash, prefix_chars, line_hashes, line_lengths, paragraph_hashes, paragraph_lengths = (
        buffers
    )
    short_line = SHORT_LINE[1] if zh else SHORT_LINE[0]
    n_units = n_lines = n_paragraphs = n_kinds = 0
    chars = solid = head_kinds = ellipses = newlines = tokens = url_chars = bracketed_chars = mojibake_chars = (
        filler_chars
    ) = 0
    words = word_chars = letter_words = capital_words = stop_words = 0
    stop_kinds = np.int64(0)
    lines = line_chars = longest_line = bullet_lines = ellipsis_lines = teaser_lines = end_mark_lines = short_lines = (
        boilerplate_lines
    ) = complete_lines = short_open_lines = 0
    sentences = c4_sentences = c4_curly_lines = 0
    frozen = False
    compared_chars = compared_newlines = 0
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
    sentence_words = 0
    url_until = start
    bracket = -1  # characters since 【, or -1
    state = np.int32(0)
    # the current line; "last" = at its last character that is no whitespace
    first_point = numba.int32(-1)
    line_hash = _SEED
    length = last_length = 0
    last_hash = _SEED
    last_ended = 0
    last_ellipsis = False
    last_point = numba.int32(-1)
    last_end = teaser_end = np.int64(0)
    line_mask = 0
    line_words = line_units = longest_word = solid_run = line_curly = line_sentences = 0
    # the current paragraph
    paragraph_hash = _SEED
    paragraph_length = paragraph_lines = 0

    i = start
    while i <= end:
        if i < end:
            point, width = decode(data, i)
            kind = flags_of(flags, point)
            chars += 1
            seen = histogram[point]
            histogram[point] = seen + 1
            if seen == 0:
                kinds[n_kinds] = point
                n_kinds += 1
            for b in range(i, i + width):
                state = moves[state + classes[data[b]]]
        else:  # a last newline, not counted, closes what is open
            point, width, kind, seen = numba.int32(10), 1, flags_of(flags, 10), 1
            state = np.int32(0)
        space = (kind & SPACE) != 0

        # 1. words: close, then open or extend
        letter = (kind & (LETTER | DIGIT)) != 0
        close = False
        if in_word:
            if letter and not kind & HAN:
                if joiner != 0:
                    if joiner in (0x2E, 0x2C) and not kind & DIGIT:  # 3.14 is one word, 3.a is two
                        close = True
                    else:
                        word_hash = (word_hash ^ np.uint64(joiner)) * _PRIME
                        packed = np.uint64(0xFF)  # no stop word has a joiner
                        word_length += 1
                        tokens -= 1  # the joiner was counted as a mark
            else:  # ' - ’ ‐ ‑, and . , after a digit, wait for the next character
                inner = point in (0x27, 0x2D, 0x2019, 0x2010, 0x2011) or (last_digit and point in (0x2E, 0x2C))
                close = joiner != 0 or not inner
        if close:
            in_word = False
            words += 1
            tokens += 1
            line_units += 1
            sentence_words += 1
            word_chars += word_length
            letter_words += word_letters > 0
            capital_words += word_letters >= 2 and word_capitals == word_letters
            if not zh and word_length <= 7 and packed != np.uint64(0xFF):
                value = stop_value(packed, stop_keys, stop_values)
                if value > 0:
                    stop_words += 1
                    if value > 1:
                        stop_kinds |= np.int64(1) << np.int64(value - 2)
            if not frozen:
                prefix_hash[n_units + 1] = prefix_hash[n_units] * BASE + mix(word_hash)
                prefix_chars[n_units + 1] = prefix_chars[n_units] + word_length
                n_units += 1
        if letter:
            if kind & HAN:
                words += 1
                tokens += 1
                line_units += 1
                word_chars += 1
                letter_words += 1
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
            frozen, compared_chars, compared_newlines = True, chars, newlines

        # 2. marks: runs of one character, URLs, lenticular brackets
        if kind & (PUNCTUATION | SYMBOL):
            tokens += point != previous
        if point != previous:
            ellipses += previous == 0x2026 or (previous == 0x2E and run >= 3) or (previous == 0x3002 and run >= 2)
            run = 1
        else:
            run += 1
        if (
            (point | 0x20 == 0x68 or point | 0x20 == 0x77)
            and i >= url_until
            and word_length == 1
            and in_word
            and i < end
        ):
            url_until = url_end(data, i, end)
            # the target of a Markdown link, ](http...), is markup, not text
            target = i >= start + 2 and data[i - 1] == 0x28 and data[i - 2] == 0x5D
            url_chars += url_until - i if url_until > i and not target else 0
        if bracket >= 0:
            if point == 0x3011:
                bracketed_chars += bracket
                bracket = -1
            else:
                bracket += 1
        elif point == 0x3010:
            bracket = 0

        # 3. sentences
        if kind & END_MARK:
            if point >= 0x80:
                ended = 2
            elif ended == 0:
                ended = 1
        elif ended > 0 and not kind & CLOSER:
            if (ended == 2 or space) and sentence_words >= 2:
                sentences += 1
                line_sentences += 1
                sentence_words = 0
            ended = 0
        sentence_words += (kind & HAN) != 0  # a Han character that follows an end mark belongs to the next sentence

        # 4. lines and phrases
        if state >= first_end:
            hit = (state - first_end) // columns
            line_mask |= masks[hit]
            mojibake_chars += mojibake[hit]
            filler_chars += filler[hit]
            if masks[hit] & TEASER:
                teaser_end = i + width
        if not space:
            solid += 1
            if seen == 0 and solid <= HEAD:
                head_kinds += 1
            if first_point < 0:
                first_point = point
            length += 1
            line_hash = (line_hash ^ np.uint64(point)) * _PRIME
            last_length, last_hash, last_ended, last_end = length, line_hash, ended, i + width
            last_ellipsis = point == 0x2026 or (point == 0x2E and run >= 3) or (point == 0x3002 and run >= 2)
            last_point = point
            line_words += solid_run == 0
            solid_run += 1
            longest_word = max(longest_word, solid_run)
            line_curly += point == 0x7B
        else:
            solid_run = 0
            if first_point >= 0:
                length += 1
                line_hash = (line_hash ^ np.uint64(point)) * _PRIME
            if point == 10:
                newlines += i < end
                if first_point >= 0:
                    lines += 1
                    line_chars += last_length
                    longest_line = max(longest_line, last_length)
                    for bullet in bullets:
                        if bullet == first_point:
                            bullet_lines += 1
                            break
                    ellipsis_lines += last_ellipsis
                    teaser_lines += last_ellipsis or teaser_end == last_end
                    end_mark_lines += last_ended > 0
                    marked = last_ended > 0 or last_point in (0x2C, 0x3B, 0x2014, 0xFF0C, 0xFF1B)  # , ; — ， ；
                    complete = marked and not last_ellipsis and last_length >= COMPLETE_LINE
                    complete_lines += complete
                    short_lines += last_length <= short_line
                    short_open_lines += last_length <= short_line and not complete
                    boilerplate_lines += (line_mask & BOILERPLATE) != 0
                    enough = line_units >= 3 if zh else (line_words >= 3 and longest_word <= LONGEST_C4_WORD)
                    if enough and last_ended > 0 and not last_ellipsis and not line_mask & JAVASCRIPT:
                        c4_curly_lines += line_curly > 0
                        c4_sentences += 0 if line_mask & POLICY else line_sentences
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
                length = 0
                line_mask = line_words = line_units = longest_word = line_curly = line_sentences = 0
                bracket = -1
        previous = point
        i += width
    if not frozen:
        compared_chars, compared_newlines = chars, newlines
    stop_word_kinds = 0
    while stop_kinds:
        stop_word_kinds += 1
        stop_kinds &= stop_kinds - 1

    counts[AT.chars], counts[AT.words], counts[AT.word_chars], counts[AT.tokens] = chars, words, word_chars, tokens
    counts[AT.letter_words], counts[AT.capital_words], counts[AT.stop_words] = letter_words, capital_words, stop_words
    counts[AT.stop_word_kinds], counts[AT.ellipses], counts[AT.newlines] = stop_word_kinds, ellipses, newlines
    counts[AT.lines], counts[AT.line_chars], counts[AT.longest_line] = lines, line_chars, longest_line
    counts[AT.bullet_lines], counts[AT.ellipsis_lines], counts[AT.teaser_lines] = (
        bullet_lines,
        ellipsis_lines,
        teaser_lines,
    )
    counts[AT.end_mark_lines], counts[AT.short_lines], counts[AT.boilerplate_lines] = (
        end_mark_lines,
        short_lines,
        boilerplate_lines,
    )
    counts[AT.complete_lines], counts[AT.short_open_lines] = complete_lines, short_open_lines
    counts[AT.sentences], counts[AT.c4_sentences], counts[AT.c4_curly_lines] = sentences, c4_sentences, c4_curly_lines
    counts[AT.url_chars], counts[AT.bracketed_chars] = url_chars, bracketed_chars
    counts[AT.mojibake_chars], counts[AT.filler_chars] = mojibake_chars, filler_chars
    counts[AT.head_chars], counts[AT.head_kinds] = min(solid, HEAD), head_kinds
    counts[AT.compared_chars], counts[AT.compared_newlines] = compared_chars, compared_newlines
    return n_units, n_lines, n_paragraphs, n_kinds
