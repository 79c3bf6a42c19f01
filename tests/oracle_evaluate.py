"""Plain references of the evaluation's kernels: one document, one regular expression, one set at a time."""

import re
from collections.abc import Sequence

from data_factory.evaluate_detectors import garbled
from data_factory.evaluate_places import LONGEST_SENTENCE

_SENTENCE = re.compile(r"[^.!?。！？；;…,，、\n]+")
_LONG_WORD = re.compile(r"[A-Za-z]{45,}")
_INLINE_CODE = re.compile(r"`[^`\n]{1,300}`")


def unreadable_share(text: str) -> float:
    """Share of characters that a reader cannot use: ten a garbled sequence, sentences above LONGEST_SENTENCE, endless
    words.

    Code and formulas belong cut out of `text` before.
    """
    if not text:
        return 0.0
    bad = 10 * garbled(text)
    bad += sum(len(m[0]) for m in _LONG_WORD.finditer(text))
    if len(text) > LONGEST_SENTENCE:
        bad += sum(len(m[0]) for m in _SENTENCE.finditer(text) if len(m[0]) > LONGEST_SENTENCE)
    return min(1.0, bad / len(text))


def distinct_share(text: str, width: int = 12) -> float:
    """Distinct `width`-byte windows over all windows; 1 for texts shorter than a window."""
    data = text.encode()
    windows = [data[i : i + width] for i in range(len(data) - width + 1)]
    return len(set(windows)) / len(windows) if windows else 1.0


def outside(text: str, protected: Sequence[tuple[int, int]]) -> str:
    """`text` with protected byte ranges and `inline code` blanked, character for character, so that positions stay."""
    if not protected:
        return _INLINE_CODE.sub(lambda match: " " * len(match[0]), text) if "`" in text else text
    data = text.encode()
    parts, last = [], 0
    for start, end in protected:
        parts.append(data[last:start].decode(errors="ignore"))
        parts.append("".join("\n" if c == "\n" else " " for c in data[start:end].decode(errors="ignore")))
        last = end
    return outside("".join(parts) + data[last:].decode(errors="ignore"), ())
