"""Two sets of instances on one grid, measured instance by instance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clearmargin.core import InstanceSet, Mask
from clearmargin.core.grid import Unit
from clearmargin.errors import GeometryError
from clearmargin.metrics.matching import Matches, match_instances
from clearmargin.metrics.measurement import MeasurementProtocol, measure_mask_pair
from clearmargin.metrics.pair import MaskPair, Status

__all__ = ["InstanceRow", "evaluate_instances"]


class InstanceRow:
    """One line of the per-instance table. It does not change once it is made.

    ``pandas.DataFrame(rows)`` reads its columns by key: the attributes (``iou`` as ``matched_iou``), and each of
    ``values`` by its own name.

    Attributes:
        status: Outside the ignored region: ``tp`` for a matched pair, ``fn`` for a miss, ``fp`` for a
            false positive, ``tn`` for the one row of an image in which nothing is, and nothing was
            found.
        label: Class id; 0 in a ``tn`` row.
        score: Score of the prediction; None for a miss and a true negative.
        predicted: Position in the predicted set, None if there is none.
        reference: Position in the reference set, None if there is none.
        iou: IoU of the matched pair; 0 for a miss or a false positive, 1 for a true negative.
        size: Volume (area) of the reference, of the prediction of a false positive, in cubed (squared)
            units.
        unit: Unit of the distances.
        values: By name, all finite (`measure_pair`).
    """

    # Not a dataclass: pandas takes those apart by itself, and leaves ``values`` in one cell.
    status: Status
    label: int
    score: float | None
    predicted: int | None
    reference: int | None
    iou: float
    size: float
    unit: Unit
    values: Mapping[str, float]
    __slots__ = ("iou", "label", "predicted", "reference", "score", "size", "status", "unit", "values")

    def __init__(
        self,
        *,
        status: Status,
        label: int,
        score: float | None,
        predicted: int | None,
        reference: int | None,
        iou: float,
        size: float,
        unit: Unit,
        values: Mapping[str, float],
    ) -> None:
        given = locals()
        for name in self.__slots__:
            object.__setattr__(self, name, given[name])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a row does not change: make a new one with another {name}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"values": dict(self.values)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def keys(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._columns())

    def __getitem__(self, column: str) -> Any:
        return self._columns()[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns())

    def __len__(self) -> int:
        return len(self._columns())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InstanceRow) and self._columns() == other._columns()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.3g}"
        return f"InstanceRow({self.status}, label {self.label}{score}, {len(self.values)} values)"

    def _columns(self) -> dict[str, Any]:
        own = ("status", "label", "score", "predicted", "reference")
        row: dict[str, Any] = {name: getattr(self, name) for name in own}
        row |= {"matched_iou": self.iou, "size": self.size, "unit": self.unit}
        return row | dict(self.values)


Mapping.register(InstanceRow)


def evaluate_instances(
    predicted: InstanceSet,
    reference: InstanceSet,
    *,
    protocol: MeasurementProtocol | None = None,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.0,
    matches: Matches | None = None,
) -> list[InstanceRow]:
    """Return one row for each matched pair, each miss and each false positive, in this order.

    Args:
        predicted: Instances with scores; may be empty.
        reference: Instances on the same grid; its ignored region is honoured: predictions that lie in it by
            half or more give no row, and what lies in it counts for no number.
        protocol: What to measure; None for the default metrics.
        iou_threshold: IoU from which a pair counts as the same object.
        score_threshold: Predictions below it are left out.
        matches: A matching made elsewhere, such as by `match_optimally`; None for COCO's greedy one. It
            refers to positions in ``predicted``, whose scores are then not looked at.

    Returns:
        Rows whose values are all finite. A miss has NSD and overlaps 0, and every distance is the cap. An
        image without any instance, found or there, gives one row of status ``tn``.

    Raises:
        GeometryError: The two sets lie on different grids.

    Examples:
        >>> import numpy as np
        >>> from clearmargin.core import Grid
        >>> grid = Grid.from_spacing((8, 8), (1.0, 1.0))
        >>> square = np.zeros((8, 8), bool); square[2:6, 2:6] = True
        >>> rows = evaluate_instances(InstanceSet.empty(grid), InstanceSet.from_dense(grid, [square]))
        >>> [(row.status, row.values["dice"], round(row.values["hd95"], 3)) for row in rows]
        [('fn', 0.0, 11.314)]
    """
    if not predicted.grid.same_as(reference.grid):
        raise GeometryError(
            f"the prediction and the reference lie on two grids, {predicted.grid.unlike(reference.grid)}: resample one "
            "of them to the other's grid first"
        )
    kept = (
        np.flatnonzero(predicted.scores >= score_threshold) if matches is None else np.arange(len(predicted))
    )
    pairing = matches or match_instances(predicted.select(kept), reference, iou_threshold=iou_threshold)
    measured_by = protocol or MeasurementProtocol()
    nothing = Mask(
        shape=reference.grid.shape,
        origin=(0,) * reference.grid.ndim,
        crop=np.zeros((0,) * reference.grid.ndim, bool),
    )

    def row(i: int | None, j: int | None, iou: float) -> InstanceRow:
        ours = nothing if i is None else predicted.masks[i]
        theirs = nothing if j is None else reference.masks[j]
        pair = MaskPair.from_masks(
            ours, theirs, reference.grid, ignore=reference.ignore, distance_cap=measured_by.distance_cap
        )
        label = reference.labels[j] if j is not None else predicted.labels[i] if i is not None else 0
        return InstanceRow(
            status=pair.status,
            label=int(label),
            score=None if i is None else float(predicted.scores[i]),
            predicted=i,
            reference=j,
            iou=iou,
            size=(theirs if j is not None else ours).area * reference.grid.voxel_size,
            unit=reference.grid.unit,
            values=measure_mask_pair(pair, measured_by).values,
        )

    rows = [
        row(int(kept[i]), int(j), float(iou)) for (i, j), iou in zip(pairing.pairs, pairing.ious, strict=True)
    ]
    rows += [row(None, int(j), 0.0) for j in pairing.false_negatives]
    rows += [row(int(kept[i]), None, 0.0) for i in pairing.false_positives]
    measured = [
        r for r in rows if r.status != "tn"
    ]  # what lies in the ignored region as a whole says nothing
    return measured or [row(None, None, 1.0)]
