"""Document rules: thresholds over whole-document features (`statistics.FEATURES`, and two of T2 from `finish`).

Presets. `gopher`, `c4`, `fineweb` and `refinedweb` carry the published numbers for English. Their word-based numbers
mean nothing for Chinese, so these presets judge Chinese by script-neutral rules only; `fineweb` has FineWeb-2's
numbers for Chinese, which were made for words as the jieba segmenter cuts them and are looser on our units.
`ziya2`, the default, starts from the published numbers and moves those that drop clean text; `recalibrated` names the
languages where the number is ours. `README.md` tells how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from data_factory.rules.catalogue import Rule

_GOPHER = "Gopher (arXiv 2112.11446), read as in datatrove"
_C4 = "C4 (arXiv 1910.10683), read as in datatrove"
_FINEWEB = "FineWeb (datatrove); FineWeb-2 for zh"

Numbers = Mapping[str, float | None]


def _both(value: float) -> Numbers:
    return {"en": value, "zh": value}


def _en_zh(en: float | None = None, zh: float | None = None) -> Numbers:
    return {language: value for language, value in (("en", en), ("zh", zh)) if value is not None}


def _gopher(en: float, zh: float | None = None, fineweb_zh: float | None = None) -> dict[str, Numbers]:
    """Gopher's number, which RefinedWeb and English FineWeb apply too; `zh` where the rule is script-neutral;
    FineWeb-2's own for Chinese.
    """
    return {"gopher": _en_zh(en, zh), "refinedweb": _en_zh(en, zh), "fineweb": _en_zh(en, fineweb_zh)}


def _rule(
    id_: str,
    meaning: str,
    source: str,
    feature: str,
    ziya2: Numbers,
    others: Mapping[str, Numbers] | None = None,
    ours: tuple[str, ...] = (),
    text: Literal["T1", "T2"] = "T1",
) -> Rule:
    bad: Literal["below", "above"] = "below" if id_.startswith("min_") else "above"
    return Rule(id_, "document", meaning, source, feature, bad, "drop", {"ziya2": ziya2, **(others or {})}, text, ours)


# fmt: off
_SIZE = (
    _rule("min_chars", "too few characters", "MAP-NEO (zh); cc_net min_len", "chars", _en_zh(150, 50), ours=("en",)),
    _rule("max_chars", "too many characters", "DCLM (190,000), MAP-NEO (10,000)", "chars", _en_zh(1_000_000, 500_000),
          ours=("en", "zh")),
    _rule("min_words", "too few words", _GOPHER, "words", _en_zh(30), _gopher(50, fineweb_zh=50), ours=("en",)),
    _rule("max_words", "too many words", _GOPHER, "words", _en_zh(100_000, 200_000),
          _gopher(100_000, fineweb_zh=100_000), ours=("zh",)),
    _rule("min_sentences", "too few sentences", "C4, DCLM (3), MAP-NEO rule 1 (zh: more than 1)", "sentences",
          _both(2), {"fineweb": _en_zh(5)}, ours=("en",)),
    _rule("min_c4_sentences", "too few sentences in lines that C4 would keep", _C4, "c4_sentences", {},
          {"c4": _en_zh(5)}),
)

_WORDS = (
    _rule("min_mean_word_length", "words too short on average", _GOPHER, "mean_word_length", _en_zh(2.5),
          _gopher(3, fineweb_zh=1), ours=("en",)),
    _rule("max_mean_word_length", "words too long on average", _GOPHER, "mean_word_length", _en_zh(10, 7),
          _gopher(10, fineweb_zh=5), ours=("zh",)),
    _rule("max_hashes_per_word", "too many # signs", _GOPHER, "hashes_per_word", _both(0.1),
          _gopher(0.1, fineweb_zh=0.1), ours=("zh",)),
    _rule("max_ellipses_per_word", "too many ellipses", _GOPHER, "ellipses_per_word", _both(0.1),
          _gopher(0.1, fineweb_zh=0.1), ours=("zh",)),
    _rule("min_letter_words", "too few words among words and marks", _GOPHER, "letter_words", _en_zh(0.45, 0.45),
          _gopher(0.8, fineweb_zh=0.735), ours=("en", "zh")),
    _rule("min_stop_words", "too few different stop words", _GOPHER, "stop_words", _en_zh(2, 1),
          _gopher(2, fineweb_zh=2), ours=("zh",)),
    _rule("min_stop_word_share", "function words too rare: lists, keywords, tables",
          "BigScience (0.30 en); uzushio's Hiragana share", "stop_word_share", _en_zh(0.06, 0.02), ours=("en", "zh")),
    _rule("max_capital_words", "too many words in capitals", "RedPajama v2 signal", "capital_words", _both(0.3),
          ours=("en", "zh")),
)

_LINES = (
    _rule("max_bullet_lines", "lines that start with a bullet", _GOPHER, "bullet_lines", _both(0.9),
          _gopher(0.9, 0.9, 0.9)),
    _rule("max_ellipsis_lines", "lines that end in an ellipsis", _GOPHER, "ellipsis_lines", _en_zh(0.35, 0.5),
          _gopher(0.3, 0.3, 0.3), ours=("en", "zh")),
    _rule("max_teaser_lines", "lines that end in an ellipsis, 更多, read more ...", "MAP-NEO rule 8 (0.3)",
          "teaser_lines", _en_zh(0.4, 0.5), ours=("en", "zh")),
    _rule("min_end_mark_lines", "too few lines end in an end mark", _FINEWEB, "end_mark_lines", _en_zh(0.05, 0.03),
          {"fineweb": _en_zh(0.12, 0.106)}, ours=("en", "zh")),
    _rule("max_short_lines",
          "too many short lines (30 characters, zh 12) without a mark at their end: menus, not verse",
          "FineWeb; the mark ours", "short_lines", _en_zh(0.87, 0.85), ours=("en", "zh")),
    _rule("max_short_lines_fineweb", "too many short lines (30 characters, zh 12), whatever their end", _FINEWEB,
          "short_lines_fineweb", {}, {"fineweb": _en_zh(0.67)}),
    _rule("max_newlines_per_word", "a list, not a text", _FINEWEB, "newlines_per_word", _en_zh(0.5, 0.4),
          {"fineweb": _en_zh(0.3, 0.178)}, ours=("en", "zh")),
    _rule("min_mean_line_length", "lines too short on average: characters over lines without a mark at their end",
          "ChineseWebText (10)", "mean_line_length", _en_zh(15, 8), ours=("en", "zh")),
    _rule("max_longest_line", "a line without end", "Data-Juicer CC recipe (5,000)", "longest_line", _both(20_000),
          ours=("en", "zh")),
    _rule("max_boilerplate_lines", "lines of site furniture (cookies, log in, 版权所有, 上一篇)", "NeMo, zh list ours",
          "boilerplate_lines", _both(0.4)),
)

_CHARACTERS = (
    _rule("min_han_share", "too little Chinese", "ChineseWebText (0.30), MNBVC (0.70)", "han_share", _en_zh(zh=0.05),
          ours=("zh",)),
    _rule("min_alphanumeric_share", "too few letters and digits", "NeMo (0.75), any script here",
          "alphanumeric_share", _en_zh(0.65, 0.65), ours=("en", "zh")),
    _rule("max_symbol_share", "too many symbols", "BigScience (en 0.4, zh 0.3 with marks and digits)", "symbol_share",
          _both(0.15), ours=("en", "zh")),
    _rule("max_digit_share", "too many digits", "NeMo (0.15), MAP-NEO rule 7 (0.30)", "digit_share", _en_zh(0.4, 0.5),
          ours=("en", "zh")),
    _rule("max_space_share", "too much whitespace", "NeMo (0.25)", "space_share", _both(0.35), ours=("en", "zh")),
    _rule("max_parenthesis_share", "too many parentheses", "NeMo", "parenthesis_share", _both(0.1)),
    _rule("max_bracketed_share", "too many characters inside 【】", "MAP-NEO rule 6", "bracketed_share",
          _en_zh(zh=0.1)),
    _rule("max_url_share", "too many URLs in the text", "NeMo (0.2)", "url_share", _en_zh(0.2, 0.35), ours=("zh",)),
    _rule("min_punctuation_share", "hardly any punctuation", "MAP-NEO rule 10 (above 0)", "punctuation_share",
          _en_zh(0.003, 0.005), ours=("en", "zh")),
    _rule("max_punctuation_share", "mostly punctuation", "ours", "punctuation_share", _en_zh(0.25, 0.35),
          ours=("en", "zh")),
    _rule("max_curly_share", "too many curly brackets outside code", "C4 (any), RedPajama v2 as ratio", "curly_share",
          _both(0.05), {"fineweb": _en_zh(0)}, ours=("en", "zh")),
    _rule("max_c4_curly_lines", "a curly bracket in a line that C4 would keep", _C4, "c4_curly_lines", {},
          {"c4": _both(0)}),
    _rule("max_filler_share", "placeholder text (lorem ipsum, 测试测试)", "C4 (any)", "filler_share", _both(0.02),
          {"c4": _both(0), "fineweb": _en_zh(0)}, ours=("en", "zh")),
    _rule("max_replacement_share", "characters lost in decoding (U+FFFD), the first five apart", "ours",
          "replacement_share", _both(0.005), ours=("en", "zh")),
    _rule("max_mojibake_share", "decoded with the wrong encoding (锟斤拷, Ã©), the first nine characters apart", "ours",
          "mojibake_share", _en_zh(0.015, 0.005), ours=("en", "zh")),
    _rule("min_distinct_chars", "few different characters in the first 2,000", "MAP-NEO rule 11 (0.1, of the page)",
          "distinct_chars", _en_zh(zh=0.05), ours=("zh",)),
    _rule("min_char_entropy", "entropy of characters too low (nats)", "MAP-NEO rule 12 (zh)", "char_entropy",
          _en_zh(2.3, 2.5), ours=("en", "zh")),
)
# fmt: on

# n -> (ziya2 en, ziya2 zh, Gopher, FineWeb-2 zh). Our zh units are characters: a short page names its subject often
# (数据透视图, eight times in 108 characters).
_TOP = {2: (0.30, 0.32, 0.20, 0.256), 3: (0.28, 0.32, 0.18, 0.201), 4: (0.25, 0.32, 0.16, 0.171)}
# n -> (ziya2, Gopher, FineWeb-2 zh). References of functions say the same of each parameter.
_DUPLICATE = {
    5: (0.45, 0.15, 0.198),
    6: (0.43, 0.14, 0.182),
    7: (0.41, 0.13, 0.167),
    8: (0.39, 0.12, 0.154),
    9: (0.37, 0.11, 0.140),
    10: (0.35, 0.10, 0.127),
}

# fmt: off
_REPETITION = (
    _rule("max_duplicate_lines", "repeated lines", _GOPHER, "duplicate_lines", _both(0.6), _gopher(0.3, 0.3, 0.287),
          ours=("en", "zh")),
    _rule("max_duplicate_paragraphs", "repeated paragraphs", _GOPHER, "duplicate_paragraphs", _both(0.6),
          _gopher(0.3, 0.3), ours=("en", "zh")),
    _rule("max_duplicate_line_chars", "characters in repeated lines", _GOPHER, "duplicate_line_chars", _both(0.45),
          _gopher(0.2, 0.2), ours=("en", "zh")),
    _rule("max_duplicate_paragraph_chars", "characters in repeated paragraphs", _GOPHER, "duplicate_paragraph_chars",
          _both(0.45), _gopher(0.2, 0.2), ours=("en", "zh")),
    _rule("max_duplicate_line_chars_fineweb", "characters in repeated lines, line breaks apart", _FINEWEB,
          "duplicate_line_chars_fineweb", {}, {"fineweb": _en_zh(0.01, 0.1)}),
    *(
        _rule(f"max_top_{n}gram_chars", f"the most frequent {n}-gram covers too much", _GOPHER, f"top_{n}gram_chars",
            _en_zh(en, zh), _gopher(gopher, fineweb_zh=fineweb_zh), ours=("en", "zh"))
        for n, (en, zh, gopher, fineweb_zh) in _TOP.items()
    ),
    *(
        _rule(f"max_duplicate_{n}gram_chars", f"characters in repeated {n}-grams", _GOPHER,
            f"duplicate_{n}gram_chars", _both(ours), _gopher(gopher, fineweb_zh=fineweb_zh), ours=("en", "zh"))
        for n, (ours, gopher, fineweb_zh) in _DUPLICATE.items()
    ),
    _rule("max_repeated_13grams", "13-grams that occur more than once", "ChineseWebText (0.5, of characters)",
          "repeated_13grams", _both(0.5), ours=("en",)),
)

_FINAL = (
    _rule("min_final_chars", "too few characters left after cuts and masks", "ours", "final_chars", _en_zh(100, 40),
          ours=("en", "zh"), text="T2"),
    _rule("max_removed_share", "too much of the text was cut", "RefinedWeb (0.05 of the words)", "removed_share",
          _both(0.5), {"refinedweb": _en_zh(0.05)}, ours=("en", "zh"), text="T2"),
)
# fmt: on

DOCUMENT_RULES: tuple[Rule, ...] = _SIZE + _WORDS + _LINES + _CHARACTERS + _REPETITION + _FINAL
