"""Every candidate cut and mask of a batch, whatever the thresholds, and the document measurements over the lexicons."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_factory.batches import F32, U8, Spans, TextBatch


class Detectors:
    """The detectors of all paragraph and sentence rules."""

    @classmethod
    def load(cls, settings: Any) -> Detectors:
        """With the shipped lists and `settings.toxic_lexicons`, `settings.advert_lexicons`."""
        raise NotImplementedError

    def measure(self, t1: TextBatch, langs: U8, protected: Spans) -> tuple[Spans, dict[str, F32]]:
        """`candidates` and `document_hits` in one pass."""
        raise NotImplementedError

    def candidates(self, t1: TextBatch, langs: U8, protected: Spans) -> Spans:
        """All candidate spans."""
        return self.measure(t1, langs, protected)[0]

    def document_hits(self, t1: TextBatch, langs: U8) -> dict[str, F32]:
        """Document features."""
        return self.measure(t1, langs, Spans.empty())[1]
