"""Strata: the columns by which tables of instances are split, from the instances themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clearmargin.core import InstanceSet
from clearmargin.metrics.counting import Surroundings, surroundings
from clearmargin.metrics.instances import InstanceRow
from clearmargin.metrics.intervals import size_strata

__all__ = ["STRATA", "instance_strata"]

_TOUCHING = 2.0  # elements, centre to centre: nothing but an edge's own element lies between two instances


def _crowding(around: Surroundings, j: int) -> str:
    return "touching" if around.neighbours[j] else "apart"


def _occlusion(around: Surroundings, j: int) -> str:
    if around.overlap[j] > 0:
        return "overlapped"
    return "in pieces" if around.pieces[j] > 1 else "whole"


_OF_REFERENCES: dict[str, Callable[[Surroundings, int], str]] = {
    "crowding": _crowding,
    "occlusion": _occlusion,
}

STRATA = ("size", *_OF_REFERENCES)
"""What `instance_strata` knows."""


def instance_strata(
    images: Sequence[tuple[InstanceSet, Sequence[InstanceRow]]], names: Sequence[str] = STRATA
) -> list[dict[str, str]]:
    """Return for each row, over all images in their order, the stratum it is in, by column.

    ``size`` is a tertile of the sizes in the table: small, medium or large, with the limits. ``crowding`` is
    ``touching`` where another reference lies within two elements, centre to centre, else ``apart``.
    ``occlusion`` is ``overlapped`` where others hold a part of the reference, ``in pieces`` where it has
    several face-connected parts, else ``whole``. The last two are of references: a row without one (a false
    prediction, a true negative) has ``no reference``.

    Args:
        images: The references of each image and its rows from `evaluate_instances`; may be none.
        names: Names in `STRATA`; others are left to the caller.

    Source: by definition.
    """
    rows = [row for _, of_image in images for row in of_image]
    out: list[dict[str, str]] = [{} for _ in rows]
    if rows and "size" in names:
        grid = images[0][0].grid
        for known, size in zip(
            out,
            size_strata(
                [r.size for r in rows], f"{grid.unit}^{grid.ndim}", objects=[r.status != "tn" for r in rows]
            ),
            strict=True,
        ):
            known["size"] = size
    columns = {name: rule for name, rule in _OF_REFERENCES.items() if name in names}
    if not columns:
        return out
    at = iter(out)
    for reference, of_image in images:
        around = surroundings(reference, reach=_TOUCHING * max(reference.grid.spacing, default=1.0))
        for row, known in zip(of_image, at, strict=False):
            for name, rule in columns.items():
                known[name] = "no reference" if row.reference is None else rule(around, row.reference)
    return out
