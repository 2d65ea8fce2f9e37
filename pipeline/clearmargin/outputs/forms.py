"""A prediction as one file of any kind that is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clearmargin.core import Image, Prediction
from clearmargin.errors import ConfigError, InputError, nearest
from clearmargin.report.annotated import annotated_overlay
from clearmargin.report.tables import instance_rows, write_rows_csv, write_rows_json

__all__ = ["KINDS", "SUFFIXES", "save_prediction"]

SUFFIXES: dict[str, str] = {
    ".dcm": "seg",
    ".nii": "instances",
    ".nii.gz": "instances",
    ".nrrd": "instances",
    ".mha": "instances",
    ".tif": "instances",
    ".tiff": "instances",
    ".png": "instances",
    ".jpg": "overlay",
    ".json": "coco",
    ".csv": "table",
}
"""What a file's suffix means where no kind is named."""


def save_prediction(
    prediction: Prediction, path: Path, *, kind: str | None = None, image: Image | None = None
) -> tuple[Path, ...]:
    """Write a prediction and return the files.

    Args:
        prediction: To be written.
        path: The file; its folder is made. Its suffix says what it holds: ``.dcm`` a DICOM SEG, ``.nii.gz``, ``.nrrd``,
            ``.mha``, ``.tif`` and ``.png`` a label map of the instances (a folder of masks where they overlap),
            ``.json`` COCO, ``.csv`` the table, ``.jpg`` the overlay.
        kind: What it holds, if the suffix does not say it: ``seg``, ``label_map_seg``, ``rtstruct``, ``report`` (a
            DICOM measurement report, beside the SEG that it refers to), ``instances``, ``classes``, ``coco``,
            ``panoptic``, ``overlay``, ``table``, ``rows`` (the table as JSON), or the name of a map.
        image: The segmented image; by default the prediction's own.

    Raises:
        ConfigError: No such kind or suffix. InputError: There is no image and the kind needs one, or the writer
            cannot hold this prediction, such as DICOM without a DICOM source.
    """
    suffix = _suffix(path)
    if kind is None:
        if suffix not in SUFFIXES:
            raise ConfigError(
                f"'{path.name}': {nearest(suffix, SUFFIXES)}; or name a kind: {', '.join(KINDS)}"
            )
        kind = SUFFIXES[suffix]
    known = [*KINDS, *prediction.maps]
    if kind not in known:
        raise ConfigError(f"no kind '{kind}': {nearest(kind, known)}")
    shown = image or prediction.image
    if shown is None:
        if kind in _WITH_IMAGE:
            raise InputError(f"{kind} needs the image that was segmented: save(path, image=image)")
        shown = Image(
            pixels=np.zeros((1, *prediction.instances.grid.shape), np.uint8), grid=prediction.instances.grid
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in prediction.maps:
        return _map(path, prediction, kind, shown)
    return KINDS[kind](path, prediction, shown)


def _suffix(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def _seg(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    from clearmargin.formats.dicom.seg import write_dicom_seg

    return _written(write_dicom_seg(path, prediction, image).path)


def _label_map_seg(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    from clearmargin.formats.dicom.seg_kinds import write_label_map_seg

    return _written(write_label_map_seg(path, prediction, image).path)


def _written(path: Path | None) -> tuple[Path, ...]:
    """Return the file of a SEG, which cannot hold nothing.

    Raises:
        InputError: There is none.
    """
    if path is None:
        raise InputError("nothing was found, and a DICOM SEG cannot hold nothing: none is written")
    return (path,)


def _rtstruct(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    from clearmargin.formats.dicom.rtstruct import write_rtstruct

    write_rtstruct(path, prediction, image)
    return (path,)


def _report(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    from clearmargin.formats.dicom.structured_report import write_structured_report
    from clearmargin.report.quantities import measured_quantities

    (seg,) = _seg(path.with_name(f"{path.stem}_seg.dcm"), prediction, image)
    write_structured_report(path, prediction, image, seg, measured_quantities(prediction))
    return path, seg


def _instances(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    return _masks(path, prediction, list(range(1, len(prediction.instances) + 1)))


def _classes(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    return _masks(path, prediction, prediction.instances.labels.tolist())


def _masks(path: Path, prediction: Prediction, values: list[int]) -> tuple[Path, ...]:
    from clearmargin.formats.mask_files import write_masks

    grid = prediction.instances.grid
    suffix = _suffix(path)
    volumes = (".nii", ".nii.gz", ".nrrd", ".mha")
    fits = suffix in volumes if grid.ndim == 3 else suffix in (".png", ".tif", ".tiff")
    if not fits:
        suffixes = ", ".join(volumes) if grid.ndim == 3 else ".png or .tif"
        raise ConfigError(
            f"'{path.name}': masks of {'a volume' if grid.ndim == 3 else 'a picture'} are written as {suffixes}; "
            "kind='overlay' writes a picture of them"
        )
    stem = path.with_name(path.name[: -len(suffix)])
    names = write_masks(stem, suffix, prediction.instances.masks, values, grid)
    return tuple(path.parent / name for name in names)


def _coco(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    from clearmargin.formats.coco import write_coco

    if prediction.instances.grid.ndim != 2:
        raise InputError("COCO holds pictures, and this is a volume: .nii.gz holds its label map")
    write_coco(path, [(image.source.case, prediction.instances)], prediction.label_map)
    return (path,)


def _panoptic(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    from clearmargin.report.tasks import write_task_forms

    return tuple(
        write_task_forms(path.parent, path.name.split(".")[0], prediction.instances, prediction.label_map)
    )


def _overlay(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    from clearmargin.formats.raster import write_raster

    picture = annotated_overlay(image, prediction.instances, label_map=prediction.label_map)
    write_raster(path, np.moveaxis(picture, -1, 0))
    return (path,)


def _table(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    write_rows_csv(path, instance_rows(image.source, prediction))
    return (path,)


def _rows(path: Path, prediction: Prediction, image: Image) -> tuple[Path, ...]:
    write_rows_json(path, instance_rows(image.source, prediction))
    return (path,)


def _map(path: Path, prediction: Prediction, name: str, image: Image) -> tuple[Path, ...]:
    """Write one of the prediction's maps: a Parametric Map, a volume, or a 32-bit TIFF."""
    values: Any = prediction.maps[name]
    if _suffix(path) == ".dcm":
        from clearmargin.formats.dicom.parametric_map import write_parametric_map

        write_parametric_map(path, prediction, name, image)
    elif prediction.instances.grid.ndim == 3:
        from clearmargin.formats.volume import write_volume

        write_volume(path, values, prediction.instances.grid)
    else:
        from clearmargin.formats.raster import write_raster

        write_raster(path, values)
    return (path,)


KINDS: dict[str, Callable[[Path, Prediction, Image], tuple[Path, ...]]] = {
    "seg": _seg,
    "label_map_seg": _label_map_seg,
    "rtstruct": _rtstruct,
    "report": _report,
    "instances": _instances,
    "classes": _classes,
    "coco": _coco,
    "panoptic": _panoptic,
    "overlay": _overlay,
    "table": _table,
    "rows": _rows,
}
"""What can be written, by name; a new kind is a function and a line here."""

_WITH_IMAGE = ("seg", "label_map_seg", "rtstruct", "report", "overlay")
