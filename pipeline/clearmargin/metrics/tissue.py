"""What a mask is worth over a box: how much tissue each would enclose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.core.slack import with_slack

__all__ = ["TissueRow", "dilated", "enclosed_tissue"]


@dataclass(frozen=True, kw_only=True)
class TissueRow:
    """The tissue that one instance's mask and box enclose, in cubed (squared) units of the grid.

    Attributes:
        label: Class id.
        mask: Volume of the mask; 0 when empty, and so are all others.
        box: Volume of its bounding box.
        mask_with_margin: Volume of all that lies within the margin of the mask, inside the image.
        box_with_margin: Volume of the box widened by the margin on each side, inside the image.
    """

    label: int
    mask: float
    box: float
    mask_with_margin: float
    box_with_margin: float

    @property
    def spared(self) -> float:
        """``box_with_margin - mask_with_margin``; never negative."""
        return self.box_with_margin - self.mask_with_margin


def enclosed_tissue(instances: InstanceSet, *, margin: float) -> list[TissueRow]:
    """Return one row for each instance: the table of what a mask is worth over a box.

    Args:
        instances: Predictions or references; may be none.
        margin: In the grid's unit, 0 for none; distances run from element centre to element centre.

    Raises:
        ValueError: The margin is negative.

    Source: by definition.
    """
    if margin < 0:
        raise ValueError(f"a margin is at least 0, not {margin}")
    size = instances.grid.voxel_size
    steps = [int(with_slack(margin) / s) for s in instances.grid.spacing]
    rows = []
    for mask, label in zip(instances.masks, instances.labels, strict=True):
        start, stop = mask.box
        sides = [
            min(b + m, n) - max(a - m, 0) for a, b, m, n in zip(start, stop, steps, mask.shape, strict=True)
        ]
        rows.append(
            TissueRow(
                label=int(label),
                mask=mask.area * size,
                box=int(np.prod(mask.crop.shape)) * size,
                mask_with_margin=dilated(mask, instances.grid, margin).area * size,
                box_with_margin=(int(np.prod(sides)) if mask.area else 0) * size,
            )
        )
    return rows


def dilated(mask: Mask, grid: Grid, margin: float) -> Mask:
    """Return all elements of the grid whose centre lies within ``margin`` of the centre of one of the mask's.

    Empty stays empty. ``margin`` is in the grid's unit.
    """
    from clearmargin.metrics.bands import round_band

    steps = [int(with_slack(margin) / s) for s in grid.spacing]
    if not mask.area or not any(steps):
        return mask
    wide = np.pad(mask.crop, [(m, m) for m in steps])
    ring = round_band(~wide, grid.spacing, margin, edge=False)
    return Mask.from_crop(
        wide | ring, tuple(o - m for o, m in zip(mask.origin, steps, strict=True)), mask.shape
    )
