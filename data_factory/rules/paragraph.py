"""Paragraph (line) rules: candidate cuts of whole lines. `spans.py` measures their features."""

from __future__ import annotations

from data_factory.rules.catalogue import Rule

PARAGRAPH_RULES: tuple[Rule, ...] = (
    Rule(
        "javascript_lines", "paragraph", "lines that name JavaScript (1) or ask to switch it on (2)", "C4",
        "javascript_line", "above", "cut", {"c4": {"en": 0, "zh": 0}, "ziya2": {"en": 1, "zh": 1}},
    ),
    Rule(
        "policy_lines", "paragraph",
        "lines that name a cookie, privacy or usage policy (1), or are its notice (3)", "C4",
        "policy_line", "above", "cut", {"c4": {"en": 0, "zh": 0}, "ziya2": {"en": 2, "zh": 2}}, recalibrated=("zh",),
    ),
    Rule(
        "unterminated_lines", "paragraph", "lines that do not end in . ! ? or a quote, or their Chinese forms", "C4",
        "unterminated_line", "above", "cut", {"c4": {"en": 0, "zh": 0}}, recalibrated=("zh",),
    ),
    Rule(
        "short_lines", "paragraph", "lines with fewer words (en: between spaces; zh: Han characters and other words)",
        "C4, RefinedWeb (DCLM)", "line_words", "below", "cut",
        {"c4": {"en": 3, "zh": 4}, "refinedweb": {"en": 2, "zh": 2}}, recalibrated=("zh",),
    ),
    Rule(
        "overlong_word_lines", "paragraph",
        "lines with a longer run of characters without space, Han or wide punctuation",
        "C4", "line_longest_run", "above", "cut",
        {"c4": {"en": 1000, "zh": 200}, "ziya2": {"en": 1000, "zh": 500}}, recalibrated=("zh",),
    ),
    Rule(
        "uppercase_lines", "paragraph", "lines with a larger share of upper-case characters", "RefinedWeb (DCLM)",
        "line_uppercase", "above", "cut", {"refinedweb": {"en": 0.5}},
    ),
    Rule(
        "numeric_lines", "paragraph", "lines with a larger share of digits among their characters", "RefinedWeb (DCLM)",
        "line_digits", "above", "cut", {"refinedweb": {"en": 0.999999, "zh": 0.999999}},
    ),
    Rule(
        "counter_lines", "paragraph", "lines that are only counters (12 likes, 浏览 34 次)", "RefinedWeb (DCLM)",
        "counter_line", "above", "cut", {"refinedweb": {"en": 0, "zh": 0}, "ziya2": {"en": 0, "zh": 0}},
        recalibrated=("zh",),
    ),
    Rule(
        "action_lines", "paragraph",
        "short lines with a larger share of calls to action (Sign in, Read more, 加入购物车)",
        "RefinedWeb (DCLM)", "action_line", "above", "cut",
        {"refinedweb": {"en": 0.5, "zh": 0.5}, "ziya2": {"en": 0.7, "zh": 0.7}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "symbol_lines", "paragraph",
        "lines without letter or digit: rules and marks (1), other symbols (2); no brackets, | or `",
        "datatrove SymbolLinesFormatter", "symbol_line", "above", "cut", {"ziya2": {"en": 1, "zh": 1}},
    ),
    Rule(
        "breadcrumb_lines", "paragraph",
        "navigation paths: by shape (1), or from a home page or of menu words (2)", "ours",
        "breadcrumb_line", "above", "cut", {"ziya2": {"en": 1, "zh": 1}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "pager_lines", "paragraph",
        "lines with a larger share of pager words (上一篇, Next post), or that start with one",
        "ours", "pager_line", "above", "cut", {"ziya2": {"en": 0.7, "zh": 0.7}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "copyright_lines", "paragraph",
        "copyright, licence number and reprint lines (版权所有, ICP备, All rights reserved)",
        "P05 of C4 in Chinese; NeMo Curator boilerplate", "copyright_line", "above", "cut",
        {"ziya2": {"en": 2, "zh": 2}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "share_lines", "paragraph", "short lines that ask to follow, share or scan (Follow us on, 扫码关注)", "ours",
        "share_line", "above", "cut", {"ziya2": {"en": 2, "zh": 2}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "placeholder_lines", "paragraph",
        "short lines with a larger share of placeholders (Loading..., 暂无评论, 404)", "ours",
        "placeholder_line", "above", "cut", {"ziya2": {"en": 0.8, "zh": 0.8}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "link_lines", "paragraph", "lines with a larger share of bare URLs", "datatrove, MAP-NEO (bare links)",
        "link_line", "above", "cut", {"ziya2": {"en": 0.9, "zh": 0.9}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "remnant_lines", "paragraph",
        "lines with a larger share of HTML tags, entities and template code", "Ziya2 (DE)",
        "remnant_line", "above", "cut", {"ziya2": {"en": 0.75, "zh": 0.75}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "byline_lines", "paragraph", "lines that are only a date (1), or a labelled byline or time stamp (2)", "ours",
        "byline_line", "above", "cut", {"ziya2": {"en": 1, "zh": 1}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "advert_lines", "paragraph",
        "lines with a larger weight of distinct advert phrases; 2 at most unless more than half of it is adverts",
        "Ziya2 (RF); L10",
        "advert_line", "above", "cut", {"ziya2": {"en": 6, "zh": 6}}, recalibrated=("en", "zh"),
    ),
    Rule(
        "unfinished_end", "paragraph", "the last sentence, when it has no end mark", "MNBVC",
        "unfinished_end", "above", "cut", {},
    ),
    Rule(
        "max_remnants", "document", "largest share of bytes in HTML tags, entities and template code", "Ziya2 (DE)",
        "remnant_share", "above", "drop", {"ziya2": {"en": 0.3, "zh": 0.3}}, recalibrated=("en", "zh"),
    ),
)
