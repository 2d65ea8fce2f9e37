"""What a measurement report says of each instance: what the prediction knows, and its diameters."""

from __future__ import annotations

import numpy as np

from clearmargin.core import Code, Prediction
from clearmargin.formats.dicom.structured_report import Quantity, own_quantities
from clearmargin.metrics.diameters import slice_axes

__all__ = ["measured_quantities"]

_MILLIMETRE = Code(value="mm", scheme="UCUM", meaning="millimeter")
_AXES = (
    Code(value="103339001", scheme="SCT", meaning="Long axis"),
    Code(value="103340004", scheme="SCT", meaning="Short axis"),
)


def measured_quantities(prediction: Prediction) -> list[Quantity]:
    """Return volume, score and uncertainty (`own_quantities`), then long and short axis in mm (`slice_axes`).

    Without a spacing in mm there are no axes.
    """
    instances = prediction.instances
    quantities = own_quantities(prediction)
    if instances.grid.unit != "mm":
        return quantities
    axes = [slice_axes(mask.crop, instances.grid.spacing) for mask in instances.masks]
    columns = np.array(axes, np.float64).reshape(len(axes), 2)
    return quantities + [
        Quantity(name=name, unit=_MILLIMETRE, values=columns[:, k]) for k, name in enumerate(_AXES)
    ]
