"""Plain references of `lm_text`, `perplexity` and `tiers`: one character, one line, one sorted list at a time."""

import math
import unicodedata
from fractions import Fraction
from pathlib import Path

import kenlm
import sentencepiece

from data_factory.lm_text import _PUNCTUATION

BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
END_MARKS = ".!?…。！？；．｡‼⁇⁈⁉︒︕︖"


def character(c: str) -> str:
    """What becomes of one character; " " for a space, "" for nothing."""
    once = _once(c)
    return _once(once) if once else once


def _once(c: str) -> str:
    category = unicodedata.category(c)
    if ord(c) >= 0x20000:
        return c
    if c in "\t▁" or category == "Zs":
        return " "
    if category in ("Cc", "Cf", "Co", "Cs", "Cn") or 0x300 <= ord(c) <= 0x36F or 0xFE00 <= ord(c) <= 0xFE0F:
        return ""
    if category == "Nd":
        return "0"
    if c in _PUNCTUATION:
        return _PUNCTUATION[c]
    lower = c.lower() if len(c.lower()) == 1 else c
    if 0xFF21 <= ord(lower) <= 0xFF5A and category[0] == "L":
        return chr(ord(lower) - 0xFEE0)
    if category[0] == "L" and ord(c) < 0x2000:
        parts = unicodedata.normalize("NFD", c.lower())
        if all(0x300 <= ord(mark) <= 0x36F for mark in parts[1:]):
            return parts[0]
    return lower


def lines(text: str) -> list[str]:
    """The lines of one document."""
    for c in BREAKS[1:]:
        text = text.replace(c, "\n")
    result = []
    for whole in text.split("\n"):
        while whole:
            size = cut = 0
            for number, c in enumerate(whole):
                length = len(c.encode())
                soft = size >= 3000 and (character(c) == " " or whole[number - 1] in END_MARKS)
                if soft or (size >= 3000 and size + length > 4000):
                    break
                size += length
                cut = number + 1
            line = " ".join("".join(map(character, whole[:cut])).split(" "))
            line = " ".join(part for part in line.split(" ") if part)
            if line:
                result.append(line)
            whole = whole[cut:]
    return result


def best_path(word: str, scores: dict[str, Fraction]) -> tuple[Fraction, list[str]]:
    """(sum, pieces) of the best path through a word; a character that is no piece costs 10 more than the worst one."""
    unknown = min(scores.values()) - 10
    longest = max(map(len, scores))
    best: list[tuple[Fraction, list[str]]] = [(Fraction(0), [])]
    for end in range(1, len(word) + 1):
        found: tuple[Fraction, list[str]] | None = None
        for start in range(max(0, end - longest), end):  # the longest last piece first
            piece = word[start:end]
            if piece in scores or end - start == 1:
                total = best[start][0] + scores.get(piece, unknown)
                if found is None or total > found[0]:
                    found = total, [*best[start][1], piece]
        assert found is not None
        best.append(found)
    return best[-1]


def backoff_score(grams: dict[tuple[str, ...], tuple[float, float]], words: list[str]) -> float:
    """log10 probability of a sentence, with its start and end, under the n-grams of an ARPA file: the probability of
    the longest n-gram that ends at each word, plus the back-off weights of the longer contexts."""
    order = max(map(len, grams))
    known = [word if (word,) in grams else "<unk>" for word in ["<s>", *words, "</s>"]]
    total = 0.0
    for i in range(1, len(known)):
        for size in range(min(order - 1, i), -1, -1):
            gram = tuple(known[i - size : i + 1])
            if gram in grams:
                total += grams[gram][0]
                break
            total += grams.get(gram[:-1], (0.0, 0.0))[1]
    return total


class Reference:
    """cc_net's perplexity with the two libraries, word by word."""

    def __init__(self, model: Path) -> None:
        self.kenlm = kenlm.Model(str(model))
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=f"{model}.spm")
        self.scores = {
            self.pieces.id_to_piece(i): Fraction(self.pieces.get_score(i))
            for i in range(self.pieces.get_piece_size())
            if not self.pieces.is_control(i) and not self.pieces.is_unknown(i)
        }

    def score(self, text: str) -> float:
        """Perplexity of a document, NaN when empty."""
        total, length = 0.0, 0
        for line in lines(text):
            pieces = self.pieces.encode(line, out_type=str)
            total += math.fsum(probability for probability, _, _ in self.kenlm.full_scores(" ".join(pieces)))
            length += len(pieces) + 1
        return 10 ** (-total / length) if length else math.nan

    def score_lines(self, texts: list[str]) -> tuple[list[float], list[int]]:
        """(log10 probability, pieces) of each line, one call of each library a line."""
        return self.score_pieces([self.pieces.encode(text, out_type=str) for text in texts])

    def score_pieces(self, pieces: list[list[str]]) -> tuple[list[float], list[int]]:
        """(log10 probability, pieces) of each line of pieces, one call of the library a line."""
        return [self.kenlm.score(" ".join(line), bos=True, eos=True) for line in pieces], list(map(len, pieces))

    def segment(self, line: str) -> list[str]:
        """The pieces of a line: of each word (with its ▁) the path of the largest sum, in exact numbers; of equal sums
        that with the longest last piece, and so on towards the front. Unknown neighbours are one piece."""
        result = []
        for word in line.split(" "):
            path = best_path("▁" + word, self.scores)[1]
            known = False
            for i, piece in enumerate(path):
                if piece not in self.scores and i and not known:
                    result[-1] += piece
                else:
                    result.append(piece)
                known = piece in self.scores
        return result


def tiers(rows: list[tuple[str, float, str]], high: float, medium: float) -> list[int]:
    """Tier codes by sorting each group in memory."""
    codes = [3] * len(rows)
    for group in {row[0] for row in rows}:
        order = sorted((row[1], row[2], i) for i, row in enumerate(rows) if row[0] == group and not math.isnan(row[1]))
        limits = [math.floor(Fraction(str(percent)) * len(order) / 100) for percent in (high, medium)]
        for place, (_, _, i) in enumerate(order):
            codes[i] = 0 if place < limits[0] else 1 if place < limits[1] else 2
    return codes
