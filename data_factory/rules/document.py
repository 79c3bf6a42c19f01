"""Document rules: thresholds over whole-document features."""

from __future__ import annotations

from data_factory.rules.catalogue import Rule

DOCUMENT_RULES: tuple[Rule, ...] = (
    Rule("min_chars", "document", "too few characters", "MAP-NEO; cc_net min_len", "chars", "below", "drop", {"ziya2": {"zh": 50, "en": 200}}, recalibrated=("zh", "en")),
    Rule("duplicate_line_chars", "document", "characters in repeated lines", "Gopher via datatrove", "duplicate_line_chars", "above", "drop", {"ziya2": {"zh": 0.2, "en": 0.2}}),
)
