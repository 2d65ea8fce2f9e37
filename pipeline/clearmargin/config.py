"""Settings: pydantic models that refuse what they do not know, read from YAML, with overrides."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from clearmargin.errors import ConfigError

__all__ = ["Settings", "apply_overrides", "digest", "dump_yaml", "load_settings", "read_yaml", "validate"]

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A section of a configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_settings(path: Path, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Read a YAML file and check it against ``schema``.

    Args:
        path: The file.
        schema: The settings class; its fields are the only list of options.
        overrides: ``a.b=value`` items; values are read as YAML and pass the same check.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not fit; all misfits are listed at once.
    """
    return validate(apply_overrides(read_yaml(path), overrides), schema, name=path.name)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}': give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"'{path}' is a folder: give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} holds {type(content).__name__}, expected 'key: value' lines")
    return content


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``content`` with each ``a.b=value`` set; sections on the way are made where they are missing.

    >>> apply_overrides({"model": {"depth": 2}}, ["model.depth=3", "seed=1"])
    {'model': {'depth': 3}, 'seed': 1}
    """
    result: dict[str, Any] = json.loads(json.dumps(content, default=str))
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: expected a.b=value")
        section = result
        *parents, last = key.strip().split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--set {item}: '{parent}' is a value, not a section")
        try:
            section[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item}: the value is not YAML: {error}") from None
    return result


def validate(content: Mapping[str, Any], schema: type[S], *, name: str) -> S:
    """Return ``content`` as ``schema``.

    Raises:
        ConfigError: Names ``name`` and the schema, and lists every unknown key (with the nearest known one)
            and every wrong value.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = [_explain(problem, schema) for problem in error.errors()]
        raise ConfigError("\n".join([f"{name} does not fit {schema.__name__}:", *lines])) from None


def dump_yaml(settings: Settings) -> str:
    """Return the resolved settings as YAML, every default written out."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def digest(settings: Settings) -> str:
    """Return the SHA-256 of the resolved settings; equal settings give equal digests."""
    return hashlib.sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _explain(problem: Any, schema: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "(top)"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(schema, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        return f"  {where}: unknown ({hint})"
    return f"  {where}: {problem['msg']}"


def _fields_at(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Return the field names of the settings class that ``location`` leads to."""
    models = [schema]
    for part in location:
        inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        stepped = [model for annotation in inner for model in _models_in(annotation)]
        models = stepped or models
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
