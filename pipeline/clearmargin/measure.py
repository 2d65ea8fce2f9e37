"""Measure predictions of any tool against references: two folders of label files, or two COCO files; no model."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.errors import GeometryError, InputError, nearest
from clearmargin.metrics import (
    AveragePrecision,
    Matches,
    PanopticQuality,
    Protocol,
    evaluate_instances,
    mask_average_precision,
    panoptic_quality,
)
from clearmargin.metrics.matching import mask_iou
from clearmargin.metrics.statistics import size_strata
from clearmargin.metrics.tables import (
    CaseRow,
    SummaryRow,
    rows_csv,
    summarise,
    summary_csv,
    summary_json,
    summary_markdown,
)
from clearmargin.privacy import case_id, record_case

__all__ = ["DEFAULT_METRICS", "Measured", "Objects", "measure", "render", "resample", "write_tables"]

log = logging.getLogger(__name__)

Objects = Literal["classes", "components", "instances"]
"""What one object is in a label file: all elements of a value, each connected part of them, or a value itself."""

DEFAULT_METRICS = ("dice", "iou", "hd95", "assd", "surface_bias", "volume_error")

_MOST_VALUES = 100_000  # up to which boxes are listed by value

_LABEL_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".png",
    ".tif",
    ".tiff",
    ".bmp",
    ".dcm",
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured.

    Attributes:
        rows: One for each object, found or missed.
        summary: Means over patients with their intervals, all together and by stratum.
        panoptic: Panoptic quality over all images.
        precision: COCO mask AP where predictions carry scores; None where all scores are equal.
        unit: Of the lengths: ``mm`` or ``px``.
        cases: Number of pairs of files (images, for COCO).
        without_reference: Predictions that have no reference beside them and were left out.
    """

    rows: tuple[CaseRow, ...]
    summary: tuple[SummaryRow, ...]
    panoptic: PanopticQuality
    precision: AveragePrecision | None
    unit: str
    cases: int
    without_reference: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    case: str
    name: str
    predicted: InstanceSet
    reference: InstanceSet
    classes: Mapping[int, str] = field(default_factory=dict)


def measure(
    predicted: Path,
    reference: Path,
    *,
    objects: Objects = "classes",
    tolerances: Sequence[float] = (1.0, 2.0, 3.0),
    bands: Sequence[float] = (),
    metrics: Sequence[str] = DEFAULT_METRICS,
    surface: Literal["surface", "subvoxel"] = "surface",
    iou_threshold: float = 0.5,
    distance_cap: float | None = None,
    resample_predictions: bool = False,
    missing_as_empty: bool = False,
    cases: Path | None = None,
    by: Sequence[str] = (),
    seed: int = 0,
    out: Path | None = None,
) -> Measured:
    """Compare two folders of NIfTI, NRRD, MetaImage, PNG, TIFF or DICOM SEG, or two files of any of them or COCO.

    Files of two folders belong together by name, whatever their suffix. A COCO file has its images paired by
    ``file_name`` and its categories by name.

    Args:
        predicted: Folder or file.
        reference: Folder or file.
        objects: What one object is in label files; SEG and COCO name their objects themselves.
        tolerances: Of NSD, in mm (px where files carry no spacing).
        bands: Of boundary IoU, in the same unit.
        metrics: Names in ``clearmargin.metrics.METRICS``.
        surface: The surface model.
        iou_threshold: From which two objects of a class are the same one; classes as a whole always are.
        distance_cap: What each distance of a miss counts; None for the diagonal of the case's grid.
        resample_predictions: Put predictions on the reference's grid (nearest neighbour) where grids differ.
        missing_as_empty: Count a reference without a prediction file as one with nothing found.
        cases: CSV with the columns ``case`` (file name without suffix), ``patient`` and any others to split
            by; None takes each case for a patient of its own.
        by: Columns to split the summary by: ``class``, ``size`` (tertiles) or a column of ``cases``.
        seed: Of the bootstrap.
        out: Folder for ``summary.csv``, ``summary.json``, ``summary.md`` and ``objects.csv``; None writes
            nothing.

    Raises:
        InputError: Nothing to compare, files without a partner, files that cannot be read.
        GeometryError: Two grids differ and ``resample_predictions`` is off.
        ConfigError: An unknown metric.
    """
    protocol = Protocol(
        metrics=tuple(metrics),
        tolerances=tuple(tolerances),
        bands=tuple(bands),
        distance_cap=distance_cap,
        surface=surface,
    )
    pairs, extra = _pairs(Path(predicted), Path(reference), objects, missing_as_empty)
    if resample_predictions:
        pairs = [
            _Pair(case=p.case, name=p.name, predicted=resample(p.predicted, p.reference.grid), reference=p.reference,
                  classes=p.classes)
            for p in pairs
        ]  # fmt: skip
    notes = _notes(cases, pairs)
    rows = _measured_rows(pairs, protocol, objects, iou_threshold, notes)
    sets = [(p.predicted, p.reference) for p in pairs]
    scored = any(np.unique(p.predicted.scores).size > 1 for p in pairs)
    found = Measured(
        rows=tuple(rows),
        summary=tuple(summarise(rows, rng=np.random.default_rng(seed), by=by)),
        panoptic=panoptic_quality(sets),
        precision=mask_average_precision(sets) if scored else None,
        unit=pairs[0].reference.grid.unit,
        cases=len(pairs),
        without_reference=extra,
    )
    if out is not None:
        write_tables(found, Path(out))
    return found


def render(found: Measured) -> str:
    """Return what a console shows: counts, then the summary as a Markdown table."""
    counts = found.summary[0].counts
    lines = [
        f"{found.cases} cases, {len(found.rows)} objects: {counts['tp']} matched, {counts['fn']} missed, "
        f"{counts['fp']} spurious; {counts['tn']} cases rightly empty; lengths in {found.unit}",
        f"panoptic quality {found.panoptic.pq:.4f}",
    ]
    if found.precision is not None:
        lines.append(f"mask AP {found.precision.ap:.4f}, AP50 {found.precision.ap50:.4f}")
    if found.without_reference:
        lines.append(f"{found.without_reference} predictions without a reference were left out")
    return "\n".join(lines) + "\n\n" + summary_markdown(found.summary)


def write_tables(found: Measured, folder: Path) -> None:
    """Write ``summary.csv``, ``summary.json``, ``summary.md`` and ``objects.csv`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.csv").write_text(summary_csv(found.summary), encoding="utf-8")
    (folder / "summary.json").write_text(summary_json(found.summary), encoding="utf-8")
    (folder / "summary.md").write_text(render(found), encoding="utf-8")
    (folder / "objects.csv").write_text(rows_csv(found.rows), encoding="utf-8")


def resample(instances: InstanceSet, grid: Grid) -> InstanceSet:
    """Return the instances on another grid of the same unit and dimension, by nearest neighbour.

    Grids that already agree give the same set back. What lies outside ``grid`` is lost.

    Raises:
        GeometryError: One grid is in px and the other in mm, or one is an image and the other a volume.
    """
    from scipy.ndimage import affine_transform

    if instances.grid.same_as(grid):
        return instances
    if instances.grid.unit != grid.unit or instances.grid.ndim != grid.ndim or grid.unit == "px":
        raise GeometryError(
            f"cannot resample {instances.grid} to {grid}: only grids in mm of one dimension can be put on each other"
        )
    n = grid.ndim
    to_index = (np.linalg.inv(instances.grid.affine) @ grid.affine)[3 - n : 3, [*range(3 - n, 3), 3]]
    matrix, shift = to_index[:, :n], to_index[:, n]
    masks = []
    for mask in instances.masks:
        corners = np.stack(
            np.meshgrid(*[(a - 1, b) for a, b in zip(*mask.box, strict=True)], indexing="ij"), -1
        )
        reached = grid.to_index(instances.grid.to_world(corners)).reshape(-1, n)
        low = np.clip(np.floor(reached.min(axis=0)).astype(int), 0, grid.shape)
        high = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 1, 0, grid.shape)
        size = tuple(int(v) for v in np.maximum(high - low, 0))
        crop = np.zeros(size, bool)
        if mask.area and min(size) > 0:
            offset = matrix @ low + shift - mask.origin
            crop = affine_transform(
                mask.crop.astype(np.uint8), matrix, offset, output_shape=size, order=0, mode="grid-constant"
            ).astype(bool)
        masks.append(Mask.from_crop(crop, tuple(int(v) for v in low), grid.shape))
    return InstanceSet(grid=grid, masks=tuple(masks), labels=instances.labels, scores=instances.scores)


def _pairs(
    predicted: Path, reference: Path, objects: Objects, missing_as_empty: bool
) -> tuple[list[_Pair], int]:
    for path in (predicted, reference):
        if not path.exists():
            raise InputError(f"there is no file or folder '{path.name}'")
    if predicted.is_dir() != reference.is_dir():
        raise InputError("give two folders or two files: one of each cannot be paired")
    if predicted.suffix.lower() == ".json" or reference.suffix.lower() == ".json":
        return _coco_pairs(predicted, reference, missing_as_empty)
    if not predicted.is_dir():
        return [_read_pair(reference.stem, predicted, reference, objects)], 0
    ours, theirs = _label_files(predicted), _label_files(reference)
    if not theirs:
        raise InputError(f"no label file in '{reference.name}': expected {', '.join(_LABEL_SUFFIXES)}")
    missing = sorted(set(theirs) - set(ours))
    if missing and not missing_as_empty:
        for name in missing:
            record_case(_case(theirs[name]), theirs[name])
        names = ", ".join(_case(theirs[name]) for name in missing[:5])
        raise InputError(
            f"{len(missing)} of {len(theirs)} references have no prediction of the same name ({names}; the private "
            "crosswalk gives their files): add them, or count them as empty with missing_as_empty"
        )
    extra = len(set(ours) - set(theirs))
    if extra:
        log.warning("%d predictions without a reference of the same name are left out", extra)
    return [_read_pair(name, ours.get(name), theirs[name], objects) for name in sorted(theirs)], extra


def _label_files(folder: Path) -> dict[str, Path]:
    """Return the label files of a folder by name without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in _LABEL_SUFFIXES if path.name.lower().endswith(s)), None)
        if suffix is None or not path.is_file():
            continue
        name = path.name[: -len(suffix)]
        if name in found:
            raise InputError(f"folder '{folder.name}' has two files for one case ({_case(path)}): keep one")
        found[name] = path
    return found


def _read_pair(name: str, predicted: Path | None, reference: Path, objects: Objects) -> _Pair:
    truth = _read(reference, objects)
    found = InstanceSet.empty(truth.grid) if predicted is None else _read(predicted, objects)
    case = _case(reference)
    record_case(case, reference)
    return _Pair(case=case, name=name, predicted=found, reference=truth)


def _read(path: Path, objects: Objects) -> InstanceSet:
    name = path.name.lower()
    if name.endswith(".dcm"):
        from clearmargin.formats.dicom_seg_content import read_dicom_seg

        return read_dicom_seg(path)
    if name.endswith((".png", ".bmp", ".tif", ".tiff")):
        from clearmargin.formats.raster import read_label_raster

        labels = read_label_raster(path)
        return _SPLIT[objects](labels, Grid.from_spacing(labels.shape))
    from clearmargin.formats.volume import read_label_volume

    return _SPLIT[objects](*read_label_volume(path))


def _classes(labels: NDArray[np.integer], grid: Grid) -> InstanceSet:
    """Return one object for each value; the value is its class."""
    found = _by_value(labels, grid)
    return InstanceSet(
        grid=grid,
        masks=tuple(found.values()),
        labels=np.array(list(found), np.int64),
        scores=np.ones(len(found), np.float32),
    )


def _by_value(labels: NDArray[np.integer], grid: Grid) -> dict[int, Mask]:
    """Return the mask of each positive value, in order, at the cost of the boxes and not of a sort of the volume."""
    from scipy.ndimage import find_objects

    if labels.max(initial=0) > _MOST_VALUES:  # a list of boxes by value would be long and empty
        values = np.unique(labels[labels > 0])
        return {int(v): Mask.from_dense(labels == v) for v in values}
    positive = labels if labels.min(initial=0) >= 0 else np.maximum(labels, 0)
    return {
        value: Mask.from_crop(labels[box] == value, tuple(s.start for s in box), grid.shape)
        for value, box in enumerate(find_objects(positive), start=1)
        if box is not None
    }


def _components(labels: NDArray[np.integer], grid: Grid) -> InstanceSet:
    """Return one object for each part of each value that hangs together by faces, edges or corners."""
    from scipy.ndimage import generate_binary_structure, label

    classes = _classes(labels, grid)
    masks: list[Mask] = []
    values: list[int] = []
    for mask, value in zip(classes.masks, classes.labels, strict=True):
        parts, count = label(mask.crop, generate_binary_structure(grid.ndim, grid.ndim))
        masks += [Mask.from_crop(parts == k, mask.origin, mask.shape) for k in range(1, count + 1)]
        values += [int(value)] * count
    return InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.array(values, np.int64),
        scores=np.ones(len(masks), np.float32),
    )


def _instances(labels: NDArray[np.integer], grid: Grid) -> InstanceSet:
    """Return one object for each value, all of one class."""
    by_value = _classes(labels, grid)
    ones = np.ones(len(by_value), np.int64)
    return InstanceSet(grid=grid, masks=by_value.masks, labels=ones, scores=by_value.scores)


_SPLIT: dict[str, Callable[[NDArray[np.integer], Grid], InstanceSet]] = {
    "classes": _classes,
    "components": _components,
    "instances": _instances,
}


def _coco_pairs(predicted: Path, reference: Path, missing_as_empty: bool) -> tuple[list[_Pair], int]:
    from clearmargin.formats.coco import read_coco_images

    ours = {image.file_name: image for image in read_coco_images(predicted)}
    theirs = {image.file_name: image for image in read_coco_images(reference)}
    missing = set(theirs) - set(ours)
    if missing and not missing_as_empty:
        raise InputError(
            f"{len(missing)} of {len(theirs)} images of the reference are not in the prediction: list them there "
            "without annotations, or count them as empty with missing_as_empty"
        )
    pairs = []
    for name, image in theirs.items():
        truth = image.instances
        found = ours[name].instances if name in ours else InstanceSet.empty(truth.grid)
        if name in ours and ours[name].classes != image.classes:
            found = _renamed(found, ours[name].classes, image.classes)
        classes = dict(enumerate(image.classes, start=1))
        case = case_id(str(reference.resolve()), name)
        pairs.append(
            _Pair(case=case, name=Path(name).stem, predicted=found, reference=truth, classes=classes)
        )
    if not pairs:
        raise InputError(f"'{reference.name}' lists no image")
    return pairs, len(set(ours) - set(theirs))


def _renamed(instances: InstanceSet, own: Sequence[str], wanted: Sequence[str]) -> InstanceSet:
    """Return the set with labels that follow ``wanted``, by name."""
    for name in own:
        if name not in wanted:
            raise InputError(
                f"the prediction's category '{name}' is not in the reference: {nearest(name, wanted)}"
            )
    labels = np.array([wanted.index(own[int(v) - 1]) + 1 for v in instances.labels], np.int64)
    return InstanceSet(grid=instances.grid, masks=instances.masks, labels=labels, scores=instances.scores)


def _notes(table: Path | None, pairs: Sequence[_Pair]) -> dict[str, dict[str, str]]:
    """Return patient and further columns of each case, by the case's file name without suffix."""
    if table is None:
        return {}
    with Path(table).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not {"case", "patient"} <= set(rows[0]):
        raise InputError(f"'{Path(table).name}' needs the columns 'case' and 'patient' and at least one row")
    notes = {row["case"]: {k: v for k, v in row.items() if k != "case"} for row in rows}
    unlisted = [p.case for p in pairs if p.name not in notes]
    if unlisted:
        raise InputError(
            f"'{Path(table).name}' does not list {len(unlisted)} cases, such as {unlisted[0]}: add them"
        )
    return notes


def _measured_rows(
    pairs: Sequence[_Pair],
    protocol: Protocol,
    objects: Objects,
    iou_threshold: float,
    notes: Mapping[str, Mapping[str, str]],
) -> list[CaseRow]:
    found = []
    for pair in pairs:
        by_class = (
            objects == "classes"
            and not pair.classes
            and _one_each(pair.predicted)
            and _one_each(pair.reference)
        )
        rows = evaluate_instances(
            pair.predicted,
            pair.reference,
            protocol=protocol,
            iou_threshold=iou_threshold,
            matches=_match_classes(pair.predicted, pair.reference) if by_class else None,
        )
        found += [(pair, row) for row in rows]
    grid = pairs[0].reference.grid
    strata = size_strata([row.size for _, row in found], f"{grid.unit}^{grid.ndim}")
    out = []
    for (pair, row), size in zip(found, strata, strict=True):
        note = notes.get(pair.name, {})
        name = pair.classes.get(row.label, str(row.label)) if row.label else "none"
        others = {k: v for k, v in note.items() if k != "patient"}
        out.append(
            CaseRow(
                patient=note.get("patient", pair.case),
                case=pair.case,
                status=row.status,
                unit=row.unit,
                ndim=pair.reference.grid.ndim,
                values=row.values,
                strata={"class": name, "size": size, **others},
            )
        )
    return out


def _one_each(instances: InstanceSet) -> bool:
    return len(np.unique(instances.labels)) == len(instances)


def _match_classes(predicted: InstanceSet, reference: InstanceSet) -> Matches | None:
    """Pair the regions of each class, however little they overlap."""
    if predicted.grid.shape != reference.grid.shape:
        return None  # evaluate_instances refuses them and names both grids
    common, ours, theirs = np.intersect1d(predicted.labels, reference.labels, return_indices=True)
    pairs = np.stack([ours, theirs], axis=1).astype(np.int64).reshape(len(common), 2)
    return Matches(
        pairs=pairs,
        ious=np.array([mask_iou(predicted.masks[i], reference.masks[j]) for i, j in pairs], np.float64),
        spurious=np.setdiff1d(np.arange(len(predicted)), ours),
        missed=np.setdiff1d(np.arange(len(reference)), theirs),
        ignored=np.zeros(0, np.int64),
    )


def _case(path: Path) -> str:
    return case_id(str(path.resolve()))
