"""Language identification: scripts are counted first and decide where they can, then fastText lid.176 is asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numba
import numpy as np
import numpy.typing as npt

from data_factory import language_model
from data_factory.batches import F32, I64, U8, TextBatch
from data_factory.characters import HAN, HANGUL, KANA, LETTER, decode, table
from data_factory.config import Language

LANG_EN, LANG_ZH = 0, 1
UNDETERMINED = "und"

MIN_WEIGHT = 20  # letters, those of Chinese, Japanese and Korean counted twice: shorter texts are misread (rule Q03)
KANA_SHARE = 0.05  # of Han and kana; above it the text is Japanese (rule Q04)
MAJORITY = 0.5
PURE = 0.8  # share of letters from which one script decides alone
WINDOWS = 4  # a long document is sampled in so many places

# Scripts that one language of the model owns: (first, last, language). Ranges are Unicode blocks.
_OWNED = (
    (0x0370, 0x03FF, "el"), (0x1F00, 0x1FFF, "el"), (0x0530, 0x058F, "hy"), (0x10A0, 0x10FF, "ka"),
    (0x1C90, 0x1CBF, "ka"), (0x0A00, 0x0A7F, "pa"), (0x0A80, 0x0AFF, "gu"), (0x0B00, 0x0B7F, "or"),
    (0x0B80, 0x0BFF, "ta"), (0x0C00, 0x0C7F, "te"), (0x0C80, 0x0CFF, "kn"), (0x0D00, 0x0D7F, "ml"),
    (0x0D80, 0x0DFF, "si"), (0x0E00, 0x0E7F, "th"), (0x0E80, 0x0EFF, "lo"), (0x0F00, 0x0FFF, "bo"),
    (0x1000, 0x109F, "my"), (0x1780, 0x17FF, "km"), (0x0780, 0x07BF, "dv"),
)  # fmt: skip
_OWNERS = tuple(dict.fromkeys(owner for _, _, owner in _OWNED))
_AROUND = tuple(b'.,;:!?()[]"*`')  # may stand before and after a word
_BETWEEN = tuple(b"'-")
_NONE, _SHARED, _HAN, _KANA, _HANGUL, _FIRST_OWNED = 0, 1, 2, 3, 4, 5
_SCRIPTS = _FIRST_OWNED + len(_OWNERS)


@cache
def _script_table() -> npt.NDArray[np.uint8]:
    """uint8 [0x20000]: script class of every letter of the first two planes (0: no letter; 1: a script that
    languages share).
    """
    flags = table()
    scripts = np.where(flags & LETTER, _SHARED, _NONE).astype(np.uint8)
    for first, last, owner in _OWNED:
        block = scripts[first : last + 1]
        block[block == _SHARED] = _FIRST_OWNED + _OWNERS.index(owner)
    scripts[(flags & HAN) > 0] = _HAN
    scripts[0x3100:0x3130][scripts[0x3100:0x3130] > 0] = _HAN  # Bopomofo: written beside Han, by Chinese only
    scripts[((flags & KANA) > 0) & ((flags & LETTER) > 0)] = _KANA
    scripts[((flags & HANGUL) > 0) & ((flags & LETTER) > 0)] = _HANGUL
    scripts.setflags(write=False)
    return scripts


@numba.njit(cache=True)
def _count_scripts(data, offsets, scripts, counts, characters):  # type: ignore[no-untyped-def]
    """counts[i, s]: letters of script class s in document i; characters[i]: its characters."""
    for i in range(len(offsets) - 1):
        j, end, total = offsets[i], offsets[i + 1], 0
        shared = 0
        while j < end:
            byte = data[j]
            total += 1
            if byte < 0x80:
                shared += scripts[byte]  # ASCII letters are class 1, all else is 0
                j += 1
                continue
            point, size = decode(data, j)
            if point < 0x20000:
                counts[i, scripts[point]] += 1
            elif point <= 0x323AF:
                counts[i, _HAN] += 1
            j += size
        counts[i, _SHARED] += shared
        characters[i] = total


@numba.njit(cache=True)
def _prose(data, offsets, scripts, out, out_offsets):  # type: ignore[no-untyped-def]
    """Write what reads as sentences of every document: `out`, as long as `data`, and `out_offsets` [n + 1].

    A token is a run without whitespace and without Han; it is a word when its ASCII is letters with marks around
    them, or - and ' between them. Other tokens (paths, URLs, calls, numbers) are left out, and so are lines without
    Han in which such tokens with letters are a third or more. Documents that keep fewer than 20 letters this way
    (pure code, lists of names) stay whole.
    """
    o = 0
    for d in range(len(offsets) - 1):
        out_offsets[d] = o
        i, end = offsets[d], offsets[d + 1]
        kept_letters = 0
        while i < end:
            line_start, letters, words, others, han, apart = o, 0, 0, 0, False, False
            while i < end and data[i] != 0x0A:
                byte = data[i]
                if byte <= 0x20:
                    apart = True
                    i += 1
                    continue
                token, found, bad, ended = i, 0, False, False
                while i < end and data[i] > 0x20:
                    byte = data[i]
                    size = 1
                    if byte >= 0x80:
                        point, size = decode(data, i)
                        script = scripts[point] if point < 0x20000 else _HAN
                        if script == _HAN:
                            break
                        found += script > 0
                        bad = bad or (script > 0 and ended)
                    elif scripts[byte]:
                        bad = bad or ended
                        found += 1
                    elif byte in _AROUND:
                        ended = found > 0
                    elif byte not in _BETWEEN:
                        bad = True
                    i += size
                if i > token:
                    if bad or found == 0:
                        others += found > 0
                        apart = True
                    else:
                        words += 1
                        letters += found
                        if apart and o > line_start:
                            out[o] = 0x20
                            o += 1
                        apart = False
                        for k in range(token, i):
                            out[o] = data[k]
                            o += 1
                while i < end and data[i] >= 0xE0:  # Han
                    point, size = decode(data, i)
                    if (scripts[point] if point < 0x20000 else _HAN) != _HAN:
                        break
                    for k in range(i, i + size):
                        out[o] = data[k]
                        o += 1
                    han, apart = True, False
                    letters += 1
                    i += size
            if not han and others > 0 and 2 * others >= words:
                o = line_start
            else:
                kept_letters += letters
                if o > line_start:
                    out[o] = 0x0A
                    o += 1
            i += 1
        if kept_letters < MIN_WEIGHT:
            o = out_offsets[d]
            for k in range(offsets[d], end):
                out[o] = data[k]
                o += 1
    out_offsets[len(offsets) - 1] = o
    return o


@numba.njit(cache=True)
def _sample(data, start, end, characters, wanted, windows, out):  # type: ignore[no-untyped-def]
    """Write the sample of one document to `out` and return its length.

    All of it when it has at most `wanted` characters. Else `windows` pieces of wanted / windows characters whose
    starts are spread evenly from the head to the last piece, each moved on to the next word (at most 32 bytes).
    ASCII controls become spaces; so does what stands between pieces.
    """
    length = 0
    pieces = 1 if characters <= wanted else windows
    share = characters if pieces == 1 else wanted // windows
    piece_bytes = (end - start) * share // max(characters, 1)
    position = start
    for piece in range(pieces):
        if piece > 0:
            position = max(position, start + (end - start - piece_bytes) * piece // (pieces - 1))
            while position < end and data[position] & 0xC0 == 0x80:
                position += 1
            limit = min(position + 32, end)
            skipped = position
            while skipped < limit and data[skipped] > 0x20:
                skipped += 1
            if skipped < limit:  # a word ends here; a longer run is Chinese
                position = skipped
            out[length] = 0x20
            length += 1
        taken = 0
        while position < end and taken < share:
            byte = data[position]
            out[length] = byte if byte >= 0x20 else 0x20
            length += 1
            position += 1
            while position < end and data[position] & 0xC0 == 0x80:
                out[length] = data[position]
                length += 1
                position += 1
            taken += 1
    return length


@numba.njit(cache=True)
def _samples(data, offsets, rows, characters, wanted, windows, out, out_offsets):  # type: ignore[no-untyped-def]
    """`_sample` of the documents `rows`, end to end in `out`; `out_offsets` [rows + 1]."""
    for i in range(len(rows)):
        row, start = rows[i], out_offsets[i]
        room = out[start:]
        out_offsets[i + 1] = start + _sample(
            data, offsets[row], offsets[row + 1], characters[row], wanted, windows, room
        )


def _ask(
    data: U8, offsets: I64, rows: I64, characters: I64, han: I64, kana: I64, settings: Language
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Codes and scores that the model gives to the documents `rows` (`identify`, step 4)."""
    room = np.minimum(np.diff(offsets)[rows], 4 * settings.sample_chars) + WINDOWS
    samples, bounds = np.empty(int(room.sum()), np.uint8), np.zeros(len(rows) + 1, np.int64)
    _samples(data, offsets, rows, characters, settings.sample_chars, WINDOWS, samples, bounds)
    codes = [*language_model.codes(), UNDETERMINED]
    chance = np.zeros((len(rows), len(codes)))
    chance[:, :-1] = language_model.probabilities(samples, bounds)
    japanese = codes.index("ja")
    without_kana = kana[rows] <= KANA_SHARE * han[rows]
    for chosen, code in ((without_kana & (han[rows] > 0), "zh"), (without_kana & (han[rows] == 0), UNDETERMINED)):
        chance[chosen, codes.index(code)] += chance[chosen, japanese]
        chance[chosen, japanese] = 0

    kept = np.isin(codes, settings.keep)
    together = np.zeros(len(rows))
    for column in np.flatnonzero(kept):  # not `sum`: its rounding may depend on the shape
        together += chance[:, column]
    other = np.where(kept, -1.0, chance)
    wanted = together >= other.max(1)
    best = np.where(wanted, np.where(kept, chance, -1.0).argmax(1), other.argmax(1))
    return [codes[column] for column in best], np.minimum(np.where(wanted, together, other.max(1)), 1.0)


def identify(t1: TextBatch, settings: Language) -> tuple[list[str], F32]:
    """Language code and score of every document of T1; returns (codes [n], scores float32 [n]).

    Measured is the prose of a document (`_prose`): code, paths and URLs are English in every language. In this order
    (`letters` counts those of all scripts):

    1. too few letters (fewer than 20, Chinese, Japanese and Korean ones counted twice): `und`, 0.
    2. Han and kana are the majority of letters and kana more than 5 % of them: `ja`; Hangul is the majority: `ko`.
    3. Han is at least 80 % of letters: `zh`; a script that one language owns (Greek, Thai, Tamil ...) likewise.
    4. else fastText on about `settings.sample_chars` characters from four places of the prose, the head and the end
       among them. What it gives to `ja` where there is Han but hardly kana is given to `zh`: the model takes short
       Chinese for Japanese. The languages of `settings.keep` stand together, for a page in two of them is wanted:
       when their probabilities add up to at least that of the best other language, the code is the likeliest of them
       and the score is their sum; else both are those of that other language.

    Scores of 2 and 3 are the share of letters that decided. Traditional, Simplified, Cantonese, Wu and Classical Chinese
    are all `zh`.
    """
    n = len(t1)
    counts = np.zeros((n, _SCRIPTS), np.int64)
    characters = np.zeros(n, np.int64)
    data, offsets = np.empty(len(t1.data) + n, np.uint8), np.zeros(n + 1, np.int64)
    _prose(t1.data, t1.offsets, _script_table(), data, offsets)
    _count_scripts(data, offsets, _script_table(), counts, characters)
    letters = counts[:, 1:].sum(1)
    han, kana, hangul = counts[:, _HAN], counts[:, _KANA], counts[:, _HANGUL]
    whole = np.maximum(letters, 1)
    owned = counts[:, _FIRST_OWNED:]
    cases = (
        letters + han + kana + hangul < MIN_WEIGHT,
        (han + kana > MAJORITY * whole) & (kana > KANA_SHARE * (han + kana)),
        hangul > MAJORITY * whole,
        han >= PURE * whole,
        owned.max(1) >= PURE * whole,
    )
    case = np.select(cases, range(len(cases)), len(cases))
    deciding = (np.zeros(n, np.int64), han + kana, hangul, han, owned.max(1), np.zeros(n, np.int64))
    scores = np.choose(case, deciding) / whole
    names = (UNDETERMINED, "ja", "ko", "zh")
    codes = [
        names[kind] if kind < len(names) else _OWNERS[owner]
        for kind, owner in zip(case.tolist(), owned.argmax(1).tolist(), strict=True)
    ]
    rows = np.flatnonzero(case == len(cases))
    if len(rows):
        found, scores[rows] = _ask(data, offsets, rows, characters, han, kana, settings)
        for row, code in zip(rows.tolist(), found, strict=True):
            codes[row] = code
    return codes, scores.astype(np.float32)


def language_codes(langs: Sequence[str]) -> npt.NDArray[np.uint8]:
    """uint8 [n]: LANG_ZH for Chinese, LANG_EN for every other language (rules measure those like English)."""
    return np.fromiter((LANG_ZH if lang == "zh" else LANG_EN for lang in langs), np.uint8, len(langs))
