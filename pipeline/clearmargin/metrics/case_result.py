"""What one case says: its instances measured one by one, and what it adds to the numbers of a whole set.

A case is measured and let go; what stays are rows and counts. So memory does not grow with masks, and any process can
measure a case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask, Thresholds
from clearmargin.core.grid import Unit
from clearmargin.metrics.confusion import confusion
from clearmargin.metrics.counting import split_and_merge
from clearmargin.metrics.detection import ImageMatches, match_boxes, match_masks
from clearmargin.metrics.instances import InstanceRow, evaluate_instances
from clearmargin.metrics.matching import Matches, mask_iou
from clearmargin.metrics.measurement import MeasurementProtocol
from clearmargin.metrics.panoptic import PanopticCounts, panoptic_counts, semantic_dice
from clearmargin.metrics.strata import STRATA, instance_strata
from clearmargin.metrics.tables import CaseRow
from clearmargin.metrics.thresholds import ScoredMatches, match_scores

__all__ = ["CaseResult", "Choices", "measure_case"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is chosen once for a whole table.

    Attributes:
        protocol: What is measured of each instance.
        iou_threshold: From which two instances of a class are the same one.
        thresholds: Least scores; what lies below counts for average precision and for curves alone.
        stuff: Labels whose instances are one region.
        strata: Which of `STRATA` are looked at; ``size`` needs all cases and is added later.
    """

    protocol: MeasurementProtocol
    iou_threshold: float = 0.5
    thresholds: Thresholds = field(default_factory=lambda: Thresholds(0.0))
    stuff: frozenset[int] = frozenset()
    strata: tuple[str, ...] = STRATA


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseResult:
    """One measured case. Mappings from a label are of this case's labels, which ``classes`` names.

    Attributes:
        instances: Rows of the instances that reach their score thresholds, and of those that are missed.
        rows: The same as rows of a table, without the stratum ``size``.
        classes: Class names by label.
        masks: What it adds to mask AP.
        boxes: What it adds to box AP; None in a volume, or if predictions carry no score.
        slices: What each of its slices adds to AP in slices; empty in an image, or without scores.
        scores: Matched predictions by label, at every score; empty without scores.
        panoptic: What it adds to panoptic quality.
        dice: Dice of each label's region, of the labels that either side has.
        confused: How many, by reference class and predicted class.
        references: Number of reference instances.
        splits: `split_and_merge`.
        merges: `split_and_merge`.
        scored: Whether predictions carry scores.
        unit: Unit of its lengths.
        ndim: 2 or 3.
    """

    instances: tuple[InstanceRow, ...]
    rows: tuple[CaseRow, ...]
    classes: Mapping[int, str]
    masks: ImageMatches
    boxes: ImageMatches | None
    slices: tuple[ImageMatches, ...]
    scores: Mapping[int, ScoredMatches]
    panoptic: PanopticCounts
    dice: Mapping[int, float]
    confused: Counter[tuple[str, str]]
    references: int
    splits: int
    merges: int
    scored: bool
    unit: Unit
    ndim: int


def measure_case(
    predicted: InstanceSet,
    reference: InstanceSet,
    *,
    case: str,
    group: str,
    classes: Mapping[int, str],
    choices: Choices,
    columns: Mapping[str, str] | None = None,
    ids: tuple[Sequence[str], Sequence[str]] | None = None,
    own: Grid | None = None,
    scored: bool = True,
    whole: bool = False,
) -> CaseResult:
    """Measure one case.

    Args:
        predicted: Instances of all scores; may be empty.
        reference: On the same grid; may be empty.
        case: Case id.
        group: Group's id.
        classes: Class names by label; a label without a name is called by its number.
        choices: Of the whole table.
        columns: Further strata of the case.
        ids: What the instances are called in their files, predicted and reference; None counts them from 1.
        own: The grid that positions are counted on; None for the reference's.
        scored: Whether predictions carry scores; False for a case without a prediction file.
        whole: Whether each label has one region on either side. Regions of a class are paired, however little they
            overlap.

    Raises:
        ValueError: The sets lie on grids of different shape.
    """
    grid = reference.grid
    kept = predicted.select(choices.thresholds.reached(predicted))
    instances = evaluate_instances(
        kept, reference, protocol=choices.protocol, iou_threshold=choices.iou_threshold,
        matches=_match_classes(kept, reference) if whole else None,
    )  # fmt: skip
    present = [int(label) for label in np.union1d(predicted.labels, reference.labels)]
    names = {label: classes.get(label, str(label)) for label in present}
    predicted_ids, reference_ids = ids or (_counted(kept), _counted(reference))
    strata = instance_strata(
        [(reference, instances)], [n for n in choices.strata if n in STRATA and n != "size"]
    )
    rows = tuple(
        CaseRow(
            group=group,
            case=case,
            status=row.status,
            unit=row.unit,
            ndim=grid.ndim,
            values=dict(row.values),
            strata={"class": names.get(row.label, "none"), **known, **(columns or {})},
            about=_about(row, kept, reference, (predicted_ids, reference_ids), own or grid)
            | _chosen(choices),
        )
        for row, known in zip(instances, strata, strict=True)
    )
    ranked = scored or not len(predicted)
    wrong = split_and_merge(kept, reference)
    return CaseResult(
        instances=tuple(instances),
        rows=rows,
        classes=names,
        masks=match_masks(predicted, reference),
        boxes=match_boxes(predicted, reference) if ranked and grid.ndim == 2 else None,
        slices=tuple(
            match_masks(predicted.plane(z)[0], reference.plane(z)[0])
            for z in range(grid.shape[0] if ranked and grid.ndim == 3 else 0)
        ),
        scores=match_scores(predicted, reference) if ranked else {},
        panoptic=panoptic_counts(kept, reference, stuff=choices.stuff),
        # An image without the class in either says nothing: counted as 1, it would reward a model that detects nothing.
        dice={
            label: semantic_dice(kept, reference, label)
            for label in present
            if (kept.labels == label).any() or (reference.labels == label).any()
        },
        confused=confusion(kept, reference, names),
        references=len(reference),
        splits=wrong.splits,
        merges=wrong.merges,
        scored=scored,
        unit=grid.unit,
        ndim=grid.ndim,
    )


def _counted(instances: InstanceSet) -> list[str]:
    return [str(k + 1) for k in range(len(instances))]


def _chosen(choices: Choices) -> dict[str, str | float | None]:
    """Return the columns by which `compare` sees that two tables were measured alike."""
    return {
        "surface": choices.protocol.surface,
        "iou_threshold": choices.iou_threshold,
        "distance_cap": choices.protocol.distance_cap,
    }


def _about(
    row: InstanceRow,
    predicted: InstanceSet,
    reference: InstanceSet,
    ids: tuple[Sequence[str], Sequence[str]],
    own: Grid,
) -> dict[str, str | float | None]:
    """Return by what an instance is found again: what files call it, score, sizes, and where its middle is."""
    grid = reference.grid
    ours = None if row.predicted is None else predicted.masks[row.predicted]
    theirs = None if row.reference is None else reference.masks[row.reference]
    # what lies in the ignored region counts for nothing, in sizes too
    ours, theirs = _outside(ours, reference.ignore), _outside(theirs, reference.ignore)
    about: dict[str, str | float | None] = {
        "reference_id": None if row.reference is None else ids[1][row.reference],
        "predicted_id": None if row.predicted is None else ids[0][row.predicted],
        "score": row.score,
        "matched_iou": row.iou if row.status == "tp" else None,
        f"reference_{grid.size_name}": None if theirs is None else theirs.area * grid.voxel_size,
        f"predicted_{grid.size_name}": None if ours is None else ours.area * grid.voxel_size,
    }
    return about | _position(theirs if theirs is not None else ours, grid, own)


def _outside(mask: Mask | None, ignore: Mask | None) -> Mask | None:
    """Return what of a mask lies outside the ignored region."""
    if mask is None or ignore is None or not mask.crop.size:
        return mask
    return Mask.from_crop(mask.crop & ~ignore.within(mask.slices), mask.origin, mask.shape)


def _position(mask: Mask | None, grid: Grid, own: Grid) -> dict[str, str | float | None]:
    """Return the mean place of a mask as indices on the reference's own grid, and in mm in DICOM's LPS."""
    axes = "xyz"[: own.ndim]
    index: dict[str, str | float | None] = {f"{axis}_index": None for axis in axes}
    world: dict[str, str | float | None] = {f"{axis}_mm": None for axis in "xyz"} if own.unit == "mm" else {}
    if mask is None or not mask.area:
        return index | world
    middle = grid.to_world(np.argwhere(mask.crop).mean(axis=0) + mask.origin)
    there: NDArray[np.float64] = own.to_index(middle)
    index = {f"{axis}_index": round(float(v), 2) for axis, v in zip(axes, there[::-1], strict=True)}
    return index | {name: round(float(v), 3) for name, v in zip(world, middle, strict=False)}


def _match_classes(predicted: InstanceSet, reference: InstanceSet) -> Matches:
    """Pair the regions of each class, however little they overlap."""
    predicted, reference = (
        replace(side, masks=tuple(_outside(mask, reference.ignore) or mask for mask in side.masks))
        for side in (predicted, reference)
    )
    _, ours, theirs = np.intersect1d(predicted.labels, reference.labels, return_indices=True)
    pairs = np.stack([ours, theirs], axis=1).astype(np.int64).reshape(len(ours), 2)
    return Matches(
        pairs=pairs,
        ious=np.array([mask_iou(predicted.masks[i], reference.masks[j]) for i, j in pairs], np.float64),
        false_positives=np.setdiff1d(np.arange(len(predicted)), ours),
        false_negatives=np.setdiff1d(np.arange(len(reference)), theirs),
        ignored=np.zeros(0, np.int64),
    )
