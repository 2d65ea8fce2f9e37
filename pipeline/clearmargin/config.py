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

__all__ = [
    "Settings",
    "apply_overrides",
    "digest",
    "dump_yaml",
    "load_settings",
    "parse_yaml",
    "read_yaml",
    "validate",
]

S = TypeVar("S", bound="Settings")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_BYTES = 64 * 2**20
_MOST_NODES = 100_000
_DEEPEST = 50


class Settings(BaseModel):
    """A section of a configuration: frozen, and an unknown key, an infinite number or NaN is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ConfigError(f"{path.name} has over {_MOST_BYTES // 2**20} MiB: no configuration is so long")
        content = parse_yaml(raw.decode("utf-8"), path.name)
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}': give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"'{path}' is a folder: give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path.name}: expected 'key: value' lines, got {'nothing' if content is None else type(content).__name__}"
        )
    return content


def parse_yaml(text: str, name: str) -> Any:
    """Return what a YAML text holds; the only place where YAML is read.

    Its size is counted before anything is built, an alias as often as it is used: a few hundred bytes of aliases of
    aliases would otherwise become more than fits into memory.

    Args:
        text: The text.
        name: What messages call it.

    Raises:
        ConfigError: It is not YAML, nests or repeats itself too much, has a key twice, or asks for a Python object.
    """
    try:
        _count_nodes(text, name)
        _refuse_repeated_keys(text, name)
        return yaml.load(text, Loader=_Loader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        OverflowError,
    ) as error:  # of dates and numbers: ValueError
        raise ConfigError(f"{name} is not YAML: {error}") from None


def _count_nodes(text: str, name: str) -> None:
    """Refuse a text that has more nodes, with each alias written out, than a text of its length or 100,000."""
    most = max(_MOST_NODES, len(text))
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ConfigError(f"{name}: the alias *{event.anchor} stands within what it names")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // 100
            total += size
            if event.anchor:
                sizes[event.anchor] = size
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            open_nodes.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - start + 1
        if len(open_nodes) > _DEEPEST:
            raise ConfigError(f"{name} nests over {_DEEPEST} levels deep: no configuration does")
        if total > most:
            raise ConfigError(
                f"{name} becomes more than {most} values with its aliases written out: write fewer"
            )


def _refuse_repeated_keys(text: str, name: str) -> None:
    """Refuse a mapping with one key twice: YAML forbids it, and the parser would take the last without a word."""
    # What is open: the keys of a mapping and whether a key comes next; None of a list.
    open_nodes: list[tuple[set[str], bool] | None] = []

    def value_ends() -> None:
        if open_nodes and open_nodes[-1] is not None:
            keys, is_key = open_nodes[-1]
            open_nodes[-1] = (keys, not is_key)

    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.MappingStartEvent):
            open_nodes.append((set(), True))
        elif isinstance(event, yaml.SequenceStartEvent):
            open_nodes.append(None)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
            value_ends()
        elif isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            if isinstance(event, yaml.ScalarEvent) and open_nodes and open_nodes[-1] is not None:
                keys, is_key = open_nodes[-1]
                if is_key and event.value in keys:
                    line = event.start_mark.line + 1 if event.start_mark is not None else 0
                    raise ConfigError(f"{name} has the key '{event.value}' twice (line {line}): remove one")
                if is_key and event.value != "<<":
                    keys.add(event.value)
            value_ends()


def apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``content`` with each ``a.b=value`` set; sections on the way are made if they are missing.

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
            section[last] = parse_yaml(text, "the value")
        except ConfigError as error:
            raise ConfigError(f"--set {item}: {error}") from None
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
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(schema, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        return f"  {where}: unknown ({hint})"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"  {where}: {reason}" if where else f"  {reason}"


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
