"""Objects that one set of tables does worse than another, drawn side by side in one slice and one window."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.metrics.comparison import ComparedSets, Regression
from clearmargin.report.annotated import annotated_overlay
from clearmargin.report.picture import Picture, display_window
from clearmargin.report.web import picture_image, text

__all__ = ["regression_pictures"]

_MOST = 8


def regression_pictures(
    done: ComparedSets,
    read: Callable[[str], tuple[Image, InstanceSet] | None],
    predictions: Mapping[str, Callable[[str], Prediction | None]],
) -> dict[int, str]:
    """Return HTML of a pair of pictures for the first regressions that can be drawn, by position.

    Args:
        done: The comparison.
        read: Returns image and reference of a case id; None if there is no such case.
        predictions: For each set, returns the prediction of a case; None if it was not kept.
    """
    out: dict[int, str] = {}
    for k, one in enumerate(done.regressions[:_MOST]):
        sample = read(one.case)
        both = [(name, predictions[name](one.case)) for name in (done.first, one.name)]
        if sample is None:
            continue
        drawn = []
        for name, prediction in both:
            if prediction is not None:
                shown = picture_image(_drawn(one, *sample, prediction), name, side=520)
                drawn.append(f'<div class="card">{shown}<p>{text(name)}</p></div>')
        if len(drawn) == 2:
            out[k] = f'<div class="cards">{"".join(drawn)}</div>'
    return out


def _drawn(one: Regression, image: Image, reference: InstanceSet, prediction: Prediction) -> Picture:
    z = None
    if image.grid.ndim == 3:
        mask = reference.masks[int(one.reference_id) - 1]
        z = (
            mask.origin[0] + int(mask.crop.sum(axis=(1, 2)).argmax())
            if mask.area
            else image.grid.shape[0] // 2
        )
    return annotated_overlay(
        image, prediction.instances, z, label_map=prediction.label_map, reference=reference,
        window=display_window(image),
    )  # fmt: skip
