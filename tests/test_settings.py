"""Strict settings: every problem in one error, suggestions, overrides, and every shipped config parses."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_factory.config import DataConfig, load_config
from data_factory.rules import RULES, thresholds
from ziya import config as settings
from ziya.errors import UserError

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs" / "data").glob("*.yaml"))


def parse(**values: object) -> DataConfig:
    return settings.parse(DataConfig, {"sources": [{"name": "crawl", "paths": ["x"]}], **values}, "test.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_parses(path: Path) -> None:
    assert load_config(path, []).sources


def test_shipped_configs_exist() -> None:
    assert {"ziya2.yaml", "demo.yaml"} <= {path.name for path in SHIPPED}


def test_all_problems_in_one_error_with_suggestions() -> None:
    with pytest.raises(UserError) as caught:
        parse(seeds=1, rules={"min_char": 3}, read={"unit_bytes": "big"}, scoring={"high": 70.0})
    message = str(caught.value)
    for part in (
        "unknown key seeds (did you mean seed?)",
        "unknown key rules.min_char (did you mean",
        "read.unit_bytes = 'big'",
        "high (70.0) must not exceed",
    ):
        assert part in message
    assert "problems:" in message


def test_a_rule_setting_takes_a_number_off_or_languages() -> None:
    both = thresholds(parse(rules={"min_chars": 7}).rules)["min_chars"]
    assert both == {"en": 7.0, "zh": 7.0}
    assert "min_chars" not in thresholds(parse(rules={"min_chars": "off"}).rules)
    mixed = thresholds(parse(rules={"min_chars": {"zh": 5, "en": "off"}}).rules)["min_chars"]
    assert mixed == {"zh": 5.0}
    assert thresholds(parse(rules={"min_chars": None}).rules) == thresholds(parse().rules)
    assert thresholds(parse(rules={"min_chars": "none"}).rules) == thresholds(parse().rules)
    preset = thresholds(parse().rules)["min_chars"]["zh"]
    assert thresholds(parse(rules={"min_chars": {"en": 9, "zh": None}}).rules)["min_chars"] == {"en": 9, "zh": preset}
    with pytest.raises(UserError, match="min_chars"):
        parse(rules={"min_chars": "many"})
    with pytest.raises(UserError, match="needs the languages"):
        parse(rules={"min_chars": {"fr": 3}})


def test_overrides_reach_nested_keys_and_list_items() -> None:
    raw = settings.apply_overrides(
        {"sources": [{"name": "a", "paths": ["x"]}]}, ["rules.min_chars.zh=80", "sources.0.ratio=0.5", "seed=3"]
    )
    config = settings.parse(DataConfig, raw, "x")
    assert config.sources[0].ratio == 0.5
    assert config.seed == 3
    assert thresholds(config.rules)["min_chars"]["zh"] == 80
    with pytest.raises(UserError, match="key=value"):
        settings.apply_overrides({}, ["rules.min_chars"])
    with pytest.raises(UserError, match="items 0 to 0"):
        settings.apply_overrides(raw, ["sources.4.ratio=1"])


def test_yaml_errors_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1,\nb: 2", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        settings.read_yaml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        settings.read_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(UserError, match="mapping"):
        settings.read_yaml(tmp_path / "list.yaml")


def test_every_setting_has_a_phase_and_help() -> None:
    for name, field in settings.walk(DataConfig):
        assert settings.phase(field) in (settings.MEASURING, settings.DECIDING), name
        assert field.description, name
    text = "\n".join(settings.describe(DataConfig))
    assert all(f"rules.{rule.id} " in text for rule in RULES)


def test_names_and_sources_are_checked() -> None:
    with pytest.raises(UserError, match="source names must differ"):
        parse(sources=[{"name": "a", "paths": ["x"]}, {"name": "a", "paths": ["y"]}])
    with pytest.raises(UserError, match="should match pattern"):
        parse(sources=[{"name": "a b", "paths": ["x"]}])


def test_a_partial_mapping_keeps_the_other_defaults() -> None:
    assert parse(language={"min_score": {"en": 0.5}}).language.min_score == {"en": 0.5, "zh": 0.4}


def test_thresholds_below_what_is_stored_are_refused() -> None:
    with pytest.raises(UserError, match="rarer lines are not stored"):
        parse(dedup={"lines": {"max_documents": 1, "floor": 3}})
    assert parse(dedup={"lines": {"max_documents": 2, "floor": 3}}).dedup.lines.max_documents == 2
