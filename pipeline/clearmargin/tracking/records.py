"""A prediction as plain records: what the served model returns."""

from __future__ import annotations

from typing import Any

from clearmargin.core import Mask, Prediction

__all__ = ["records"]


def records(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as lists of equal length, one entry per instance; all empty if nothing was found.

    Returns:
        ``labels`` and ``names``; ``scores``; ``boxes``, first and one-past-last index of each axis in array
        order (``[y0, x0, y1, x1]``, with z in front for a volume); ``masks``, each a list of planes
        ``{"z", "size", "counts"}`` with COCO's uncompressed run lengths (one plane, z 0, for an image);
        ``unit`` of the grid; and each uncertainty column under ``uncertainty``.
    """
    instances = prediction.instances
    return {
        "labels": [int(label) for label in instances.labels],
        "names": [prediction.label_map.by_id(int(label)).name for label in instances.labels],
        "scores": [round(float(score), 6) for score in instances.scores],
        "boxes": [[*mask.box[0], *mask.box[1]] for mask in instances.masks],
        "masks": [_planes(mask) for mask in instances.masks],
        "unit": instances.grid.unit,
        "uncertainty": {
            name: [round(float(v), 6) for v in column] for name, column in instances.uncertainty.items()
        },
    }


def _planes(mask: Mask) -> list[dict[str, Any]]:
    """Return the run lengths of each plane that the mask cuts; none for an empty mask of a volume."""
    size = list(mask.shape[-2:])
    if len(mask.shape) == 2:
        return [{"z": 0, "size": size, "counts": mask.run_lengths()}]
    first, last = mask.box[0][0], mask.box[1][0]
    return [{"z": z, "size": size, "counts": mask.plane(z).run_lengths()} for z in range(first, last)]
