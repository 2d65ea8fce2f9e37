"""Frames of a clip as the slices of one view."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from clearmargin.core import Grid, Image, InstanceSet, LabelMap, Mask, Prediction
from clearmargin.report.viewer.page import CaseView
from clearmargin.report.viewer.rows import list_rows

__all__ = ["MOST_FRAMES", "clip_view"]

MOST_FRAMES = 60
"""Of a clip: more would not fit into a page that opens at once."""


def clip_view(
    frame: Callable[[int], Image],
    numbers: Sequence[int],
    predictions: Mapping[int, Prediction],
    label_map: LabelMap,
) -> CaseView:
    """Return the view of a clip: frames evenly over its length, with a row in the list for each of their instances.

    Args:
        frame: Returns a frame by its number.
        numbers: Of the frames that were predicted, at least one.
        predictions: By frame number, those with an instance.
        label_map: What the labels mean.
    """
    shown = sorted(
        {numbers[round(k)] for k in np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_FRAMES))}
    )
    images = [frame(number) for number in shown]
    height, width = images[0].grid.shape
    pixels = np.stack([image.pixels for image in images], axis=1)
    grid = Grid.from_spacing((len(shown), height, width))
    masks, labels, scores, frames = [], [], [], []
    for t, number in enumerate(shown):
        if number not in predictions:
            continue
        instances = predictions[number].instances
        for mask, label, score in zip(instances.masks, instances.labels, instances.scores, strict=True):
            masks.append(Mask(shape=grid.shape, origin=(t, *mask.origin), crop=mask.crop[None]))
            labels.append(int(label))
            scores.append(float(score))
            frames.append(number)
    predicted = InstanceSet(
        grid=grid, masks=tuple(masks), labels=np.array(labels, np.int64), scores=np.array(scores, np.float32)
    )
    rows = [
        replace(row, cells={"frame": str(number), **row.cells}, facts={"frame": str(number), **row.facts})
        for row, number in zip(
            list_rows(predicted, {c.id: c.name for c in label_map.classes}), frames, strict=True
        )
    ]
    left_out = (
        f"{len(shown)} of {len(numbers)} frames, evenly over the clip; frames "
        if len(shown) < len(numbers)
        else "Frames "
    )
    return CaseView(
        title=images[0].source.case,
        image=Image(pixels=pixels, grid=grid, source=replace(images[0].source, frame=None, time_s=None)),
        predicted=predicted,
        rows=rows,
        notes=[f"{left_out}{', '.join(map(str, shown[:3]))}{', ...' if len(shown) > 3 else ''}."],
        slice_name="frame",
    )
