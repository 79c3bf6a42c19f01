"""Sentence and clause rules: candidate cuts inside lines, and private data to mask."""

from __future__ import annotations

from data_factory.rules.catalogue import Rule

SENTENCE_RULES: tuple[Rule, ...] = ()
