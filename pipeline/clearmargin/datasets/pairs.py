"""Pairs of a prediction and its reference, from two folders of label files or two COCO files of any tool."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.errors import GeometryError, InputError, nearest
from clearmargin.formats.label_files import LABEL_SUFFIXES, Objects, read_label_file
from clearmargin.privacy import case_id, case_of_file, named_by_case, record_case

__all__ = ["Pair", "read_pairs", "resample"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One image's prediction and reference.

    Attributes:
        case: Case id.
        name: The file's name without suffix; identifies a patient perhaps, so it is shown nowhere.
        predicted: Instances, none where a missing file counts as empty.
        reference: Instances.
        classes: Names by label, where the files have them (COCO).
    """

    case: str
    name: str
    predicted: InstanceSet
    reference: InstanceSet
    classes: Mapping[int, str] = field(default_factory=dict)


def read_pairs(
    predicted: Path, reference: Path, *, objects: Objects, missing_as_empty: bool
) -> tuple[list[Pair], int]:
    """Return the pairs in order of name, and how many predictions have no reference.

    Files of two folders belong together by name, whatever their suffix; a COCO file has its images paired by
    ``file_name`` and its categories by name.

    Raises:
        InputError: Nothing to compare, files without a partner, files that cannot be read.
    """
    for path in (predicted, reference):
        if not path.exists():
            raise InputError(f"there is no file or folder '{path}'")
    if predicted.is_dir() != reference.is_dir():
        raise InputError("give two folders or two files: one of each cannot be paired")
    if predicted.suffix.lower() == ".json" or reference.suffix.lower() == ".json":
        return _coco_pairs(predicted, reference, missing_as_empty)
    if not predicted.is_dir():
        return [_read_pair(reference.stem, predicted, reference, objects, typed=True)], 0
    ours, theirs = _label_files(predicted), _label_files(reference)
    if not theirs:
        raise InputError(f"no label file in '{reference.name}': expected {', '.join(LABEL_SUFFIXES)}")
    missing = sorted(set(theirs) - set(ours))
    if missing and not missing_as_empty:
        for name in missing:
            record_case(_case(theirs[name]), theirs[name])
        names = ", ".join(_case(theirs[name]) for name in missing[:5])
        raise InputError(
            f"{len(missing)} of {len(theirs)} references have no prediction of the same name ({names}; "
            "`clearmargin cases` gives their files): add them, or count them as empty with missing_as_empty"
        )
    extra = len(set(ours) - set(theirs))
    if extra:
        log.warning("%d predictions without a reference of the same name are left out", extra)
    return [_read_pair(name, ours.get(name), theirs[name], objects) for name in sorted(theirs)], extra


def _label_files(folder: Path) -> dict[str, Path]:
    """Return the label files of a folder by name without suffix."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in LABEL_SUFFIXES if path.name.lower().endswith(s)), None)
        if suffix is None or not path.is_file():
            continue
        name = path.name[: -len(suffix)]
        if name in found:
            raise InputError(f"folder '{folder.name}' has two files for one case ({_case(path)}): keep one")
        found[name] = path
    return found


def _read_pair(
    name: str, predicted: Path | None, reference: Path, objects: Objects, *, typed: bool = False
) -> Pair:
    """Return a pair; what is ``typed`` by the user is named in errors as it was, and else by its case."""
    case = _case(reference)
    record_case(case, reference)

    def read(path: Path, what: str) -> InstanceSet:
        with nullcontext() if typed else named_by_case(case, what, path):
            return read_label_file(path, objects)

    truth = read(reference, "its reference")
    found = InstanceSet.empty(truth.grid) if predicted is None else read(predicted, "its prediction")
    return Pair(case=case, name=name, predicted=found, reference=truth)


def _coco_pairs(predicted: Path, reference: Path, missing_as_empty: bool) -> tuple[list[Pair], int]:
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
        pairs.append(Pair(case=case, name=Path(name).stem, predicted=found, reference=truth, classes=classes))
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


def _case(path: Path) -> str:
    return case_of_file(path)
