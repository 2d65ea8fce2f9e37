"""Tables of results as pandas frames, for notebooks. pandas comes with MLflow; nothing else here needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clearmargin.core import Prediction
from clearmargin.errors import ConfigError

__all__ = ["as_frame"]


def as_frame(rows: Prediction | Sequence[Any]) -> Any:
    """Return results as a ``pandas.DataFrame``, one column for each value.

    Args:
        rows: A prediction, whose instances are the rows; rows of `evaluate_instances`; or any of the package's rows,
            whose tables within (``values``, ``strata``) become columns of their own.

    Raises:
        ConfigError: pandas is not installed. TypeError: Something that is not a row.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigError("frames need 'pandas', which comes with mlflow: pip install pandas") from None
    if isinstance(rows, Prediction):
        from clearmargin.core import Source
        from clearmargin.report.tables import instance_rows

        return pandas.DataFrame(instance_rows(rows.image.source if rows.image else Source(), rows))
    return pandas.DataFrame([_flat(row) for row in rows])


def _flat(row: Any) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return {name: row[name] for name in row.keys()}  # noqa: SIM118 - a row of instances has keys, not items
    if not dataclasses.is_dataclass(row):
        raise TypeError(f"expected a row of a table, not {type(row).__name__}")
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}_{name}": v for name, v in _flat(value).items()}
        elif isinstance(value, Mapping):
            flat |= {str(name): v for name, v in value.items()}
        else:
            flat[field.name] = value
    return flat
