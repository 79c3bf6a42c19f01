"""A rule is data: id, granularity, meaning, source, feature, direction, effect, thresholds per preset and language.

This module holds the types; the rules themselves stand in `document.py`, `paragraph.py` and `sentence.py` as tuples of `Rule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Granularity = Literal["document", "paragraph", "sentence"]
Thresholds = Mapping[str, float | None]  # language -> threshold; None or absent = off in that language


@dataclass(frozen=True)
class Rule:
    """One rule.

    `feature` names the measurement column it compares (drop rules) or the detector that proposes its spans (cut and mask rules).
    `bad` says which side of the threshold fails: "below" (value < threshold) or "above" (value > threshold).
    `effect`: "drop" the document, "cut" the span, or "mask" the span.
    `thresholds`: preset -> language -> number. A preset without an entry leaves the rule off.
    `text`: which text the feature sees, T1 or T2.
    `recalibrated`: languages whose number is ours, calibrated on clean text, not the published one.
    """

    id: str
    granularity: Granularity
    meaning: str
    source: str
    feature: str
    bad: Literal["below", "above"]
    effect: Literal["drop", "cut", "mask"]
    thresholds: Mapping[str, Thresholds]
    text: Literal["T1", "T2"] = "T1"
    recalibrated: tuple[str, ...] = ()
