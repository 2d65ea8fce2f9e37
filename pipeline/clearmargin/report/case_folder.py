"""What a prediction leaves of one case: tables, DICOM, maps with their geometry, pictures, a summary."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image, LabelMap, Mask, Prediction
from clearmargin.files import write_text
from clearmargin.report.annotated import class_keys, drawing_keys, with_legend, with_marks
from clearmargin.report.overlay import heat_overlay, overlay
from clearmargin.report.tables import instance_rows, write_rows_csv, write_rows_json
from clearmargin.uncertainty.assessment import Assessment

__all__ = [
    "by_class",
    "case_rows",
    "one_run",
    "picture",
    "write_case",
    "write_picture",
    "write_rows",
    "write_summary",
]

log = logging.getLogger(__name__)


def write_case(folder: Path, assessed: Assessment, image: Image, **summary: Any) -> None:
    """Write everything of one image or volume into ``folder``; docs/predict.md lists the files.

    Args:
        folder: Made where it is not there.
        assessed: A prediction on the image's grid, and what is to be said of it.
        image: The segmented image.
        summary: Further entries of ``summary.json``.

    Raises:
        OutputError: DICOM cannot hold the prediction.
    """
    with one_run(folder) as draft:
        _write_case(draft, assessed, image, summary)


@contextmanager
def one_run(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of ``folder`` once everything is written.

    So a case folder holds the files of one run, whole: never some of an earlier one, and an earlier one stays if this
    one fails.
    """
    draft, old = (folder.with_name(f".{folder.name}.{state}") for state in ("part", "old"))
    for left in (draft, old):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if folder.exists():
        folder.replace(old)
    draft.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_case(folder: Path, assessed: Assessment, image: Image, summary: dict[str, Any]) -> None:
    prediction = assessed.prediction
    write_rows(folder, case_rows(assessed, image))
    if prediction.edges:
        _write_edges(folder / "edges.csv", prediction)
    if image.source.kind == "dicom":
        _write_dicom(folder, prediction, image)
    else:
        summary["masks"] = _write_masks(folder, prediction, image)
    _write_maps(folder, prediction, image)
    _write_pictures(folder, prediction, image)
    write_summary(
        folder,
        prediction,
        image,
        len(prediction.instances),
        referred=sum(bool(why) for why in assessed.reasons),
        refer_case=list(assessed.refer_case),
        warnings=list(assessed.warnings),
        **summary,
    )


def case_rows(assessed: Assessment, image: Image) -> list[dict[str, Any]]:
    """Return the instances' rows (`instance_rows`), each with ``refer_because``, empty where nothing speaks for it."""
    rows = instance_rows(image.source, assessed.prediction)
    return [row | {"refer_because": "; ".join(why)} for row, why in zip(rows, assessed.reasons, strict=True)]


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``instances.csv`` and ``.json``."""
    write_rows_csv(folder / "instances.csv", rows)
    write_rows_json(folder / "instances.json", rows)


def write_summary(folder: Path, prediction: Prediction, image: Image, instances: int, **further: Any) -> None:
    """Write ``summary.json``: counts, the grid, what made it, and what else there is to say."""
    made_by = prediction.provenance
    summary = {
        "case": image.source.case,
        "instances": instances,
        "shape": list(image.grid.shape),
        "spacing": list(image.grid.spacing),
        "unit": image.grid.unit,
        **_accepted(image),
        "model": made_by.model,
        "weights_sha256": made_by.weights_sha256,
        "config_sha256": made_by.config_sha256,
        "runtime": made_by.runtime,
        "software": made_by.software,
        **further,
        "use": "research only; not for diagnosis or treatment",
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _accepted(image: Image) -> dict[str, float]:
    """Return how far DICOM slices lie from the grid, and the tolerance that was needed to accept it."""
    source = image.source
    stated = {"deviation_mm": source.deviation_mm, "tolerance_mm": source.tolerance_mm}
    return {name: value for name, value in stated.items() if value is not None}


def picture(prediction: Prediction, image: Image, z: int | None = None) -> NDArray[np.uint8]:
    """Return the overlay with marks and a legend, the margins dotted, the entropy map on its right if there is one.

    Pictures of the frames of a clip have one size.
    """
    instances = prediction.instances
    margins = [replace(instances, masks=masks) for masks in (prediction.outer, prediction.inner) if masks]
    drawn = overlay(image, instances, z=z, label_map=prediction.label_map, margins=margins)
    drawn = with_marks(drawn, image.grid, z)
    if "entropy" in prediction.maps:
        entropy = prediction.maps["entropy"]
        heat = heat_overlay(image, entropy, z=z, limit=1.0, name="predictive entropy", unit="bit")
        drawn = np.concatenate([drawn, heat], axis=1)
    # Of a frame the legend lists every class, whatever is seen: a clip's frames have one size.
    keys = class_keys(prediction.label_map, *(() if image.source.frame is not None else (instances,)))
    return with_legend(drawn, keys + drawing_keys(instances, margins=bool(margins)))


def write_picture(path: Path, drawn: NDArray[np.uint8]) -> None:
    """Write a picture, ``(Y, X, 3)``."""
    from clearmargin.formats.raster import write_raster

    write_raster(path, np.moveaxis(drawn, -1, 0))


def by_class(prediction: Prediction) -> dict[str, int]:
    """Return the number of instances of each class name."""
    labels = prediction.instances.labels
    return {c.name: int((labels == c.id).sum()) for c in prediction.label_map.classes}


def _write_edges(path: Path, prediction: Prediction) -> None:
    """Write a row for each edge element of each instance: where it lies, and the edge's standard deviation there."""
    grid = prediction.instances.grid
    axes = "zyx"[3 - grid.ndim :]
    rows = [
        {"instance": i + 1}
        | {axis: int(v) for axis, v in zip(axes, point, strict=True)}
        | {f"sd_{grid.unit}": round(float(sd), 4)}
        for i, edge in enumerate(prediction.edges)
        for point, sd in zip(edge.points, edge.sigma, strict=True)
    ]
    write_rows_csv(path, rows, ("instance", *axes, f"sd_{grid.unit}"))


def _write_masks(folder: Path, prediction: Prediction, image: Image) -> dict[str, Any]:
    """Write masks by instance and by class in the input's own kind, for a picture COCO too; return their names."""
    from clearmargin.formats.coco import write_coco
    from clearmargin.formats.mask_files import mask_suffix, write_masks

    instances, grid = prediction.instances, image.grid
    suffix = mask_suffix(image.source.files[0] if image.source.files else Path(), grid)
    numbers = range(1, len(instances) + 1)
    names: dict[str, Any] = {
        "instances": write_masks(folder / "instances", suffix, instances.masks, numbers, grid),
        "classes": write_masks(folder / "classes", suffix, instances.masks, instances.labels.tolist(), grid),
        "values_of_classes": {str(c.id): c.name for c in prediction.label_map.classes},
    }
    for side, masks in (("outer", prediction.outer), ("inner", prediction.inner)):
        if masks:
            names[f"margin_{side}"] = write_masks(folder / f"margin_{side}", suffix, masks, numbers, grid)
    if grid.ndim == 2:
        write_coco(folder / "coco.json", [(image.source.case, instances)], prediction.label_map)
        names["coco"] = "coco.json"
    return names


def _write_dicom(folder: Path, prediction: Prediction, image: Image) -> None:
    """Write the SEG, for volumes a report beside it, and the maps of a volume."""
    from clearmargin.formats.dicom_seg import write_dicom_seg

    written = write_dicom_seg(folder / "seg.dcm", prediction, image)
    if written.path is None:
        log.info(
            "%s: nothing was found, and a DICOM SEG cannot hold nothing: none is written", image.source.case
        )
    elif image.grid.ndim == 3 and image.grid.unit == "mm":
        from clearmargin.formats.structured_report import write_structured_report
        from clearmargin.report.quantities import measured_quantities

        quantities = measured_quantities(prediction)
        write_structured_report(folder / "report.dcm", prediction, image, written.path, quantities)
    for side, masks in (("outer", prediction.outer), ("inner", prediction.inner)):
        if masks:
            write_dicom_seg(folder / f"margin_{side}.dcm", _as_regions(prediction, masks, side), image)
    if image.grid.ndim == 3:
        _write_dicom_maps(folder, prediction, image)


def _as_regions(prediction: Prediction, masks: tuple[Mask, ...], side: str) -> Prediction:
    """Return the margins' regions as instances whose classes are named after what they are."""
    classes = tuple(replace(c, name=f"{c.name}, {side} margin") for c in prediction.label_map.classes)
    return replace(
        prediction,
        instances=replace(prediction.instances, masks=masks),
        label_map=LabelMap(classes),
        edges=(),
        outer=(),
        inner=(),
    )


def _write_dicom_maps(folder: Path, prediction: Prediction, image: Image) -> None:
    from clearmargin.formats.dicom_seg_kinds import write_fractional_seg
    from clearmargin.formats.parametric_map import write_parametric_map

    for name in prediction.maps:
        # A fractional segment is the probability of one class; the largest over several is no class's own.
        if name == "foreground" and len(prediction.label_map) == 1:
            label = prediction.label_map.classes[0].id
            write_fractional_seg(folder / f"{name}.dcm", prediction, name, label, image)
        else:
            write_parametric_map(folder / f"{name}.dcm", prediction, name, image)


def _write_maps(folder: Path, prediction: Prediction, image: Image) -> None:
    """Write each map with its geometry: NIfTI for a volume, 32-bit TIFF for a picture."""
    for name, values in prediction.maps.items():
        if image.grid.ndim == 3:
            from clearmargin.formats.volume import write_volume

            write_volume(folder / f"{name}.nii.gz", values, image.grid)
        else:
            from clearmargin.formats.raster import write_raster

            write_raster(folder / f"{name}.tif", values)


def _write_pictures(folder: Path, prediction: Prediction, image: Image) -> None:
    """Write an overlay for a picture; for a volume one for each slice in which something was found."""
    if image.grid.ndim == 2:
        write_picture(folder / "overlay.png", picture(prediction, image))
        return
    (folder / "overlay").mkdir(exist_ok=True)
    for z in range(image.grid.shape[0]):
        if len(prediction.instances.plane(z)[0]):
            write_picture(folder / "overlay" / f"slice-{z:04d}.png", picture(prediction, image, z))
