"""From a prediction, with or without its reference, to what the viewer shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.metrics.instances import InstanceRow
from clearmargin.report.viewer.page import CaseView
from clearmargin.report.viewer.rows import list_rows

__all__ = ["case_view"]


def case_view(
    prediction: Prediction,
    image: Image,
    *,
    reference: InstanceSet | None = None,
    measured: Sequence[InstanceRow] = (),
    reasons: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
    names: Mapping[int, str] | None = None,
) -> CaseView:
    """Return the view of one case: its title is the case id, and it holds no path, name or date.

    Args:
        prediction: With whatever it has of margins and maps.
        image: The segmented image.
        reference: The truth, if it is known.
        measured: Rows of the prediction against it, by position in both.
        reasons: For each instance, why a person should look.
        notes: Sentences above the controls, such as warnings.
        names: Of labels; None for the prediction's label map.
    """
    known = {c.id: c.name for c in prediction.label_map.classes} if names is None else names
    return CaseView(
        title=image.source.case,
        image=image,
        predicted=prediction.instances,
        reference=reference,
        rows=list_rows(prediction.instances, known, measured=measured, reasons=reasons),
        pairs=[
            (row.predicted, row.reference)
            for row in measured
            if row.status == "tp" and row.predicted is not None and row.reference is not None
        ],
        outer=prediction.outer,
        inner=prediction.inner,
        maps=prediction.maps,
        notes=notes,
    )
