"""The rules of RF: the catalogue of all rules, their settings and their thresholds for a preset."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, create_model

from data_factory.rules.catalogue import Rule
from data_factory.rules.document import DOCUMENT_RULES
from data_factory.rules.paragraph import PARAGRAPH_RULES
from data_factory.rules.sentence import SENTENCE_RULES
from ziya.config import Settings, deciding, measuring
from ziya.files import json_bytes

RULES: tuple[Rule, ...] = DOCUMENT_RULES + PARAGRAPH_RULES + SENTENCE_RULES
RULE = {rule.id: rule for rule in RULES}
RULE_NUMBER = {rule.id: number for number, rule in enumerate(RULES, start=1)}
PRESETS = ("ziya2", "gopher", "c4", "fineweb", "refinedweb", "none")
LANGUAGES = ("en", "zh")


_PRESET = (None, "none", "null", "default", "preset")


def _threshold(value: Any) -> Any:
    """`100`, `off`, null (the preset's), or a mapping of languages to these; YAML reads a bare off as False."""

    def number(item: Any) -> float | str | None:
        if item in _PRESET:
            return None
        if item is False or item == "off":
            return "off"
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            raise ValueError(f"needs a number, off, or null (the preset's threshold), found {item!r}")
        return float(item)

    if isinstance(value, dict):
        unknown = [key for key in value if key not in LANGUAGES]
        if unknown:
            raise ValueError(f"needs the languages {', '.join(LANGUAGES)}, found {unknown[0]!r}")
        own = {key: number(item) for key, item in value.items()}
        return {key: item for key, item in own.items() if item is not None} or None
    return number(value)


# Rules whose measurement is a share, though the name does not end in one.
_SHARES = frozenset(
    "min_letter_words max_capital_words max_bullet_lines max_ellipsis_lines max_teaser_lines min_end_mark_lines "
    "max_short_lines max_short_lines_fineweb max_boilerplate_lines min_distinct_chars max_duplicate_lines "
    "max_duplicate_paragraphs max_duplicate_line_chars max_duplicate_paragraph_chars max_duplicate_line_chars_fineweb "
    "max_top_2gram_chars max_top_3gram_chars max_top_4gram_chars max_duplicate_5gram_chars max_duplicate_6gram_chars "
    "max_duplicate_7gram_chars max_duplicate_8gram_chars max_duplicate_9gram_chars max_duplicate_10gram_chars "
    "max_repeated_13grams uppercase_lines numeric_lines max_remnants max_adverts".split()
)


def _in_bounds(rule: str) -> AfterValidator:
    """A threshold is at least 0, that of a share at most 1: 40 for 40 % would switch the rule off without a word."""
    share = rule in _SHARES or rule.endswith("_share")

    def check(value: Any) -> Any:
        for item in value.values() if isinstance(value, dict) else [value]:
            if isinstance(item, float) and not 0 <= item <= (1 if share else math.inf):
                needed = "it is a share, which lies in 0..1 (0.4 is 40 %)" if share else "it must be at least 0"
                raise ValueError(f"{needed}, found {item:g}; off switches the rule off")
        return value

    return AfterValidator(check)


Threshold = Annotated[float | str | dict[str, float | str] | None, BeforeValidator(_threshold)]


class _RuleBase(Settings):
    """Rules of RF: a preset, the user's lexicons, and one threshold a rule (a number, off, or one per language)."""

    preset: str = deciding(
        "ziya2", f"published thresholds to start from: {', '.join(PRESETS)}", pattern=f"^({'|'.join(PRESETS)})$"
    )
    toxic_lexicons: list[str] = measuring(
        [], "more toxic-word files (one word a line, # comments), added to the shipped ones", is_file=True
    )
    advert_lexicons: list[str] = measuring([], "more advert-phrase files, added to the shipped ones", is_file=True)


RuleSettings: Any = create_model(
    "RuleSettings",
    __base__=_RuleBase,
    **{rule.id: (Annotated[Threshold, _in_bounds(rule.id)], deciding(None, rule.meaning)) for rule in RULES},  # type: ignore[call-overload]
)


def thresholds(settings: Any) -> dict[str, dict[str, float]]:
    """Rule id -> language -> threshold in force; rules and languages that are off are absent."""
    result: dict[str, dict[str, float]] = {}
    for rule in RULES:
        preset = rule.thresholds.get(settings.preset, {})
        own = getattr(settings, rule.id)
        active = {}
        for language in LANGUAGES:
            value = (
                own.get(language, preset.get(language))
                if isinstance(own, dict)
                else (own if own is not None else preset.get(language))
            )
            if value is not None and value != "off":
                active[language] = float(value)
        if active:
            result[rule.id] = active
    return result


def listing(preset: str, as_json: bool) -> str:
    """All rules, one a line: setting, granularity, effect, thresholds of a preset, meaning, source."""
    if as_json:
        rows = [
            {
                "rule": f"rules.{rule.id}",
                "granularity": rule.granularity,
                "effect": rule.effect,
                "bad": rule.bad,
                "feature": rule.feature,
                "text": rule.text,
                "thresholds": dict(rule.thresholds.get(preset, {})),
                "recalibrated": list(rule.recalibrated),
                "meaning": rule.meaning,
                "source": rule.source,
            }
            for rule in RULES
        ]
        return json_bytes(rows).decode().rstrip()
    lines = ["(* = a threshold of ours, recalibrated on clean text; the others are the published ones)"]
    for rule in RULES:
        limits = rule.thresholds.get(preset, {})
        sign = "<" if rule.bad == "below" else ">"
        parts = [
            f"{language} {sign} {limits[language]:g}{'*' if language in rule.recalibrated else ''}"
            for language in LANGUAGES
            if limits.get(language) is not None
        ]
        lines.append(
            f"rules.{rule.id:<34} {rule.granularity:<9} {rule.effect:<4} {', '.join(parts) or 'off':<26} {rule.meaning} [{rule.source}]"
        )
    return "\n".join(lines)
