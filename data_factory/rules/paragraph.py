"""Paragraph (line) rules: candidate cuts of whole lines."""

from __future__ import annotations

from data_factory.rules.catalogue import Rule

PARAGRAPH_RULES: tuple[Rule, ...] = (
    Rule("counter_lines", "paragraph", "lines that are only a counter (12 likes, 浏览 34)", "RefinedWeb", "counter_line", "above", "cut", {"ziya2": {"zh": 0, "en": 0}}),
)
