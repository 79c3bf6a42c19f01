"""YAML -> typed settings: strict keys with suggestions, every problem in one error, dotted overrides, help from the fields.

A settings class is a pydantic model that derives from `Settings`; each field is made by `measuring` or `deciding`, which
carry its help text and say whether changing it needs the input again (measuring) or only the stored columns (deciding).
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ziya.errors import UserError

MEASURING, DECIDING = "measuring", "deciding"


class Settings(BaseModel):
    """Base of every settings class: unknown keys and wrong types fail, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_other_defaults(cls, values: Any) -> Any:
        """A mapping such as {en: 0.5} changes the keys it names; the default's other keys (zh) stay."""
        if not isinstance(values, dict):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(default, dict) and isinstance(values.get(name), dict):
                merged[name] = {**default, **values[name]}
        return merged


S = TypeVar("S", bound=Settings)


def _field(phase: str, default: Any, text: str, is_file: bool, **constraints: Any) -> Any:
    extra: dict[str, Any] = {"phase": phase, "file": is_file}
    if isinstance(default, (list, dict)) or (isinstance(default, type) and issubclass(default, Settings)):
        factory = default if isinstance(default, type) else lambda: type(default)(default)
        return Field(default_factory=factory, description=text, json_schema_extra=extra, **constraints)
    return Field(default=default, description=text, json_schema_extra=extra, **constraints)


def measuring(default: Any, text: str, *, is_file: bool = False, **constraints: Any) -> Any:
    """Declare a setting that shapes measurements: changing it needs a new run. `is_file` marks paths whose content counts."""
    return _field(MEASURING, default, text, is_file, **constraints)


def deciding(default: Any, text: str, *, is_file: bool = False, **constraints: Any) -> Any:
    """Declare a setting that only shapes decisions over stored measurements: `decide` may change it."""
    return _field(DECIDING, default, text, is_file, **constraints)


def required(text: str, *, phase: str = MEASURING, is_file: bool = False, **constraints: Any) -> Any:
    """Declare a setting without a default."""
    return Field(description=text, json_schema_extra={"phase": phase, "file": is_file}, **constraints)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e9 and 6.5e11 are numbers, as YAML 1.2 and people have them, not texts."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; errors name the file and line."""
    try:
        value = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist: give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise UserError(f"config {path} is not valid YAML: {told}") from error
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"config {path} holds a {type(value).__name__}: it needs a mapping of settings")
    return value


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `dotted.key=value` overrides (values are YAML; list items by number) to a copy of a raw mapping."""
    result: dict[str, Any] = _copy(raw)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {override!r} is not of the form key=value, for example rules.min_chars=100")
        try:
            value = _yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML") from error
        _set(result, key.strip().split("."), value, override)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _set(target: Any, keys: list[str], value: Any, override: str) -> None:
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                raise UserError(f"override {override!r}: {'.'.join(keys[:depth])} has items 0 to {len(target) - 1}")
            if last:
                target[int(key)] = value
            else:
                target = target[int(key)]
        elif last:
            target[key] = value
        else:
            below = target.get(key)
            if not isinstance(below, (dict, list)):  # a scalar such as `min_chars: 100` gives way to a mapping
                below = target[key] = {}
            target = below


def parse(cls: type[S], raw: dict[str, Any], origin: str) -> S:
    """Parse a raw mapping into `cls`; every problem is told in one error, unknown keys with the nearest known one."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "(top level)"
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown key {where}{_suggestion(cls, item['loc'])}")
            elif item["type"] == "missing":
                problems.append(f"{where} is missing: it is required")
            elif not item["loc"]:  # of all settings together: their values would bury what is wrong
                problems.append(item["msg"].removeprefix("Value error, "))
            elif item["type"] == "value_error" and isinstance(item["input"], dict):  # the same of one group
                problems.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
            else:
                problems.append(f"{where} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
        unique = list(dict.fromkeys(problems))
        joined = "; ".join(unique)
        count = f"{len(unique)} problems: " if len(unique) > 1 else ""
        raise UserError(f"{origin}: {count}{joined}") from error


def load(cls: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file, apply overrides and parse it."""
    return parse(cls, apply_overrides(read_yaml(path), overrides), str(path))


def _suggestion(cls: type[Settings], location: tuple[int | str, ...]) -> str:
    known = list(_names_at(cls, location[:-1]))
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]}?)"
    return f" (known here: {', '.join(known)})" if 0 < len(known) <= 12 else ""


def _names_at(cls: type[Settings], location: tuple[int | str, ...]) -> Iterator[str]:
    for part in location:
        if isinstance(part, int) or part not in cls.model_fields:
            continue
        inner = settings_class(cls.model_fields[part].annotation)
        if inner is None:
            return
        cls = inner
    yield from cls.model_fields


def settings_class(annotation: Any) -> type[Settings] | None:
    """The settings class inside an annotation such as `X`, `list[X]` or `X | None`."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, Settings)
    ):
        return annotation
    for inner in typing.get_args(annotation):
        found = settings_class(inner)
        if found is not None:
            return found
    return None


def walk(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf setting of a class as (dotted name, field), in order; list items appear as `name[]`."""
    for name, field in cls.model_fields.items():
        inner = settings_class(field.annotation)
        if inner is None:
            yield prefix + name, field
        else:
            yield from walk(inner, f"{prefix}{name}{'[]' if 'list' in str(field.annotation) else ''}.")


def phase(field: FieldInfo) -> str:
    """`measuring` or `deciding`."""
    extra = field.json_schema_extra
    return str(extra.get("phase", MEASURING)) if isinstance(extra, dict) else MEASURING


def is_file(field: FieldInfo) -> bool:
    """Whether the field names files whose content, not whose path, is the setting."""
    extra = field.json_schema_extra
    return bool(extra.get("file")) if isinstance(extra, dict) else False


def describe(cls: type[Settings]) -> list[str]:
    """One help line a setting: name, phase, default, meaning."""
    lines = []
    for name, field in walk(cls):
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        shown = default if default == "required" else f"default {default!r}"
        lines.append(f"  {name}  [{phase(field)}; {shown}]  {field.description}")
    return lines


def leaves(settings: Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every leaf of a settings object as (dotted name with list numbers, field, value), in order."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Settings):
            for number, item in enumerate(value):
                yield from leaves(item, f"{prefix}{name}.{number}.")
        else:
            yield prefix + name, field, value


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of the leaves that differ between two flat mappings, with both values: `a.b: 1 -> 2`."""
    missing = object()
    found = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, missing), new.get(name, missing)
        if before != after:
            text = ["(none)" if value is missing else repr(value) for value in (before, after)]
            found.append(f"{name}: {text[0]} -> {text[1]}")
    return found
