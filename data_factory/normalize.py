"""T0 -> T1: one canonical form of text, protected spans untouched; then Traditional -> Simplified Chinese.

What `clean` does outside protected spans (rule P15; Ziya2 section DP):

- Unicode form (NFC by default), run only on documents in which some character could change.
- Removed: control, format and zero-width characters, byte order marks, soft hyphens, private use and unassigned
  code points, and variation selectors. Kept: ZWJ and ZWNJ between two Arabic or Indic letters, where they are
  spelling; U+FFFD, because rules count it as evidence of damage.
- Emoji (when `remove_emoji`): characters whose default presentation is emoji, pictographs, regional indicators,
  keycaps, skin tones, joined and tagged sequences, and text symbols such as U+2714 when selector 16 makes them
  emoji. Symbols that text uses as such stay (stars, check marks, arrows, copyright signs, dingbat digits,
  trigrams). Emoticons: :-) :( ;) :D and the like between spaces, Han or marks and never where their bracket closes
  or opens another one; ^_^ -_- T_T >_< o_O; bracketed faces of two equal eyes around a mouth. An emoji between two
  words of a spaced script leaves one space.
- Whitespace: CRLF, CR, NEL, VT, FF, U+2028 and U+2029 become line feeds; runs of other whitespace become one space;
  lines are trimmed; at most one blank line stays. Spaces between two of Han and full-width punctuation go; between
  Han and Latin one stays.
- A run of one punctuation mark or symbol is cut to `max_repeated_punctuation`; … and — (halves of one mark) to two;
  . - = * _ ` ~ to no fewer than three (ellipses, Markdown rules and fences); # that starts a line to six
  (headings); | is left alone in lines that start with | (empty table cells). Brackets, backslashes and U+FFFD are
  never shortened.

Inside protected spans only line ends change: carriage returns before a line feed go. Cleaning a cleaned text
changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt
from opencc import OpenCC

from data_factory import normalize_kernels as k
from data_factory.batches import I64, U8, Spans, TextBatch
from data_factory.config import Normalize
from data_factory.normalize_tables import Form, character_table, face_table

_MAX_ROUNDS = 8  # passes over one document: only nested emoticons need more than three, and nesting is unbounded
_MARKED = re.compile("(\x02[^\x03]*\x03)")


def _pass(batch: TextBatch, settings: Normalize) -> tuple[TextBatch, U8]:
    """One kernel pass over texts with marks; returns the batch and a status per document."""
    out = np.empty(len(batch.data) + 1 + np.count_nonzero(batch.data == 0x02), np.uint8)  # an open mark gets its end
    offsets, status = np.zeros(len(batch) + 1, np.int64), np.zeros(len(batch), np.uint8)
    size = k.clean_pass(
        batch.data, batch.offsets, character_table(settings.unicode_form), face_table(), settings.remove_emoji,
        settings.max_repeated_punctuation, out, offsets, status,
    )  # fmt: skip
    return TextBatch(out[:size], offsets), status


def _in_form(text: bytes, form: Form) -> bytes:
    """`text` with every part outside marks in Unicode `form`."""
    string = text.decode()
    if unicodedata.is_normalized(form, string):
        return text
    parts = _MARKED.split(string)
    return "".join(
        part if number % 2 else unicodedata.normalize(form, part) for number, part in enumerate(parts)
    ).encode()


def _batch(texts: list[bytes]) -> TextBatch:
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return TextBatch(np.frombuffer(b"".join(texts), np.uint8), offsets)


def _settle(batch: TextBatch, status: U8, settings: Normalize) -> TextBatch:
    """Repeat form and pass on the documents that need it until nothing changes."""
    active: I64 = np.flatnonzero(status)
    if not len(active):
        return batch
    data = batch.data.data
    settled: dict[int, bytes] = {}
    texts = [bytes(data[batch.offsets[i] : batch.offsets[i + 1]]) for i in active]
    states = status[active]
    for _ in range(_MAX_ROUNDS):
        again, inputs = [], []
        for i, text, state in zip(active.tolist(), texts, states.tolist(), strict=True):
            formed = text
            if state & k.UNSETTLED and settings.unicode_form != "none":
                formed = _in_form(text, settings.unicode_form)
            settled[i] = formed
            if state & k.DIRTY or formed is not text:
                again.append(i)
                inputs.append(formed)
        if not again:
            break
        passed, status = _pass(_batch(inputs), settings)
        view = passed.data.data
        outputs = [bytes(view[passed.offsets[j] : passed.offsets[j + 1]]) for j in range(len(again))]
        moved = [j for j in range(len(again)) if outputs[j] != inputs[j]]
        active = np.array([again[j] for j in moved], np.int64)
        texts, states = [outputs[j] for j in moved], status[moved]
        settled.update((again[j], outputs[j]) for j in moved)
        if not moved:
            break
    pieces: list[bytes | memoryview] = []
    position = 0
    lengths = batch.lengths()
    for i in sorted(settled):
        pieces += [data[position : batch.offsets[i]], settled[i]]
        position = int(batch.offsets[i + 1])
        lengths[i] = len(settled[i])
    pieces.append(data[position:])
    offsets = np.zeros(len(batch) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return TextBatch(np.frombuffer(b"".join(pieces), np.uint8), offsets)


def clean(t0: TextBatch, settings: Normalize) -> tuple[TextBatch, Spans]:
    """Normalise T0, whose protected texts stand between U+0002 and U+0003; returns T1 without marks and the
    protected spans.

    The module's docstring says what changes. Valid UTF-8 in, valid UTF-8 out; the number of documents stays, texts may
    become empty. clean(clean(x)) = clean(x) when the marks are set again (emoticons nested more than `_MAX_ROUNDS` deep
    aside).
    """
    start = t0.offsets[0]
    marked, status = _pass(TextBatch(t0.data[start : t0.offsets[-1]], t0.offsets - start), settings)
    return strip_marks(_settle(marked, status, settings))


def strip_marks(t0: TextBatch) -> tuple[TextBatch, Spans]:
    """T0 without marks and its protected spans, nothing else changed: T1 of sources that are not normalised.

    An opening mark without a closing one protects nothing.
    """
    marks = int(np.count_nonzero(t0.data == 0x02))
    if marks == 0 and not np.any(t0.data == 0x03):
        return t0, Spans.empty()
    out, offsets = np.empty(len(t0.data), np.uint8), np.zeros(len(t0) + 1, np.int64)
    doc, first, last = (np.zeros(marks, np.int32) for _ in range(3))
    size, spans = k.strip_marks(t0.data, t0.offsets, out, offsets, doc, first, last)
    return TextBatch(out[:size], offsets), Spans.plain(doc[:spans], first[:spans], last[:spans])


@cache
def converter() -> OpenCC:
    """The process's OpenCC converter, configuration t2s (characters and fixed phrases, no regional vocabulary)."""
    return OpenCC("t2s")


@cache
def _traditional() -> npt.NDArray[np.bool_]:
    """bool [0x30000]: characters that only Traditional text uses: t2s changes them and GB 2312 lacks them.

    Characters of GB 2312 that t2s changes too (乾 於 後 夥 ...) are also Simplified ones: alone they prove nothing.
    """
    points = [*range(0x2E80, 0x2FE0), *range(0x3400, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x30000)]
    before = "".join(chr(point) for point in points)
    after = "".join(converter().convert("\n".join(before)).split("\n"))
    if len(before) != len(after):
        raise RuntimeError("OpenCC t2s does not map one character to one character")
    found = np.zeros(0x30000, np.bool_)
    for old, new in zip(before, after, strict=True):
        if old != new and not old.encode("gb2312", "ignore"):
            found[ord(old)] = True
    found.setflags(write=False)
    return found


_SEPARATOR = 0x02  # T1 has none; no dictionary entry holds a control character, so that no phrase is matched across it


def simplify(t1: TextBatch, protected: Spans, zh: npt.NDArray[np.bool_]) -> tuple[TextBatch, Spans]:
    """Traditional -> Simplified in the documents where `zh` (bool [n]) holds, outside protected spans; spans are
    moved along.

    Documents without a character that only Traditional text uses keep their bytes. All others go through OpenCC t2s
    in one call.
    """
    rows = protected.row_offsets(len(t1))
    chosen = np.zeros(len(t1), np.bool_)
    k.find_documents(t1.data, t1.offsets, zh, rows, protected.start, protected.end, _traditional(), chosen)
    if not chosen.any():
        return t1, protected
    outside = np.empty(int(t1.lengths()[chosen].sum()) + int(chosen.sum()) + len(protected), np.uint8)
    size, pieces = k.gather_unprotected(
        t1.data, t1.offsets, chosen, rows, protected.start, protected.end, _SEPARATOR, outside
    )
    text = outside[:size].tobytes()
    converted = np.frombuffer(super(OpenCC, converter()).convert(text, size).encode(), np.uint8)
    if np.count_nonzero(converted == _SEPARATOR) != pieces:
        raise ValueError("T1 holds U+0002 outside protected spans: it did not come from clean()")
    out = np.empty(len(t1.data) + max(0, len(converted) - size), np.uint8)
    offsets = np.zeros(len(t1) + 1, np.int64)
    start, end = protected.start.copy(), protected.end.copy()
    total = k.scatter_unprotected(
        t1.data,
        t1.offsets,
        chosen,
        rows,
        protected.start,
        protected.end,
        _SEPARATOR,
        converted,
        out,
        offsets,
        start,
        end,
    )
    return TextBatch(out[:total], offsets), Spans(protected.doc, start, end, protected.rule, protected.value)
