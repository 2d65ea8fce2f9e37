"""The table of outputs: what ``predict --write`` can leave of a case, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image, InstanceSet, LabelMap, Landmarks, Mask, Prediction
from clearmargin.errors import ConfigError, InputError, nearest
from clearmargin.files import write_text
from clearmargin.outputs.landmarks import landmark_rows, write_landmarks
from clearmargin.outputs.packed import write_packed
from clearmargin.report.annotated import class_keys, drawing_keys, with_legend, with_marks
from clearmargin.report.overlay import heat_overlay, overlay
from clearmargin.report.tables import instance_rows, write_rows_csv, write_rows_json

if TYPE_CHECKING:  # importing it loads torch, and the names of outputs are checked before that
    from clearmargin.margins.assessment import Assessment

__all__ = [
    "WRITERS",
    "Footage",
    "Output",
    "Planned",
    "case_rows",
    "chosen_outputs",
    "clip_outputs",
    "named_outputs",
    "picture",
    "point_rows",
    "write_picture",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Footage:
    """What is kept of a clip's frames, to be written once the last one is predicted.

    Attributes:
        image: Any frame, with its grid and source.
        label_map: What the labels mean.
        rows: The instances' rows of all frames.
        point_rows: The landmarks' rows of all frames.
        numbers: Numbers of all frames that were predicted.
        predictions: By frame number, those with an instance; without maps, edges and margins.
        frame: Returns a frame of the clip by its number.
    """

    image: Image
    label_map: LabelMap
    rows: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]
    predictions: Mapping[int, Prediction]
    frame: Callable[[int], Image]
    point_rows: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is to be written of one input.

    Attributes:
        outputs: Names in `WRITERS`, at least one.
        left_out: Outputs that `--write` names and that this input cannot have, with the reason.
    """

    outputs: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Output:
    """One kind of output.

    Attributes:
        holds: What it is, for help and docs.
        write: Writes it of an image or a volume into a case folder, and returns the files' names in it: none if the
            prediction has nothing of the kind. InputError says why this prediction cannot be written.
        write_clip: The same of a clip; None if clips have no such output.
        missing: Says what an image lacks for it; "" if nothing. Asked before time is spent on inference.
        default: Whether it is written of an image if nothing else is asked for, and ``missing`` has nothing to say.
    """

    holds: str
    write: Callable[[Path, Assessment, Image], Sequence[str]]
    write_clip: Callable[[Path, Footage], Sequence[str]] | None = None
    missing: Callable[[Image, LabelMap], str] = lambda image, label_map: ""
    default: Callable[[Image], bool] = lambda image: False


def named_outputs(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of a ``--write`` option in the table's order; None for the default.

    ``default`` among them adds those that are written by default.

    Raises:
        ConfigError: An output is not known.
    """
    if names is None:
        return None
    for name in names:
        if not name:
            raise ConfigError("--write: a name is empty; names are parted by single commas")
        if name != "default" and name not in WRITERS:
            raise ConfigError(f"--write {name}: {nearest(name, ['default', *WRITERS])}")
    return tuple(name for name in ("default", *WRITERS) if name in names)


def chosen_outputs(names: Sequence[str] | None, image: Image, label_map: LabelMap) -> Planned:
    """Return what is written of one image or volume.

    Args:
        names: As `named_outputs` returns them.
        image: Before inference.
        label_map: The model's.

    Raises:
        InputError: This image can have none of the outputs. ConfigError: One needs codes, and a class has none.
    """
    return _planned(names, image, label_map, WRITERS)


def _planned(
    names: Sequence[str] | None, image: Image, label_map: LabelMap, writers: Mapping[str, Output]
) -> Planned:
    """Return what of ``writers`` is written; the other outputs in ``names`` are left out already."""
    able = []
    left_out = {}
    for name, output in writers.items():
        asked = names is not None and name in names
        by_default = output.default(image) and (names is None or "default" in names)
        if not asked and not by_default:
            continue
        lacks = output.missing(image, label_map)
        if not lacks:
            able.append(name)
        elif asked:
            left_out[name] = lacks
    planned = Planned(outputs=tuple(able), left_out=left_out)
    if not able:
        _refuse(planned, image)
    return planned


def _refuse(planned: Planned, image: Image) -> None:
    """Refuse an image of which nothing can be written, before time is spent on it."""
    reasons = "; ".join(f"--write {name}: {why}" for name, why in planned.left_out.items())
    raise InputError(f"{image.source.case}: {reasons}")


def clip_outputs(names: Sequence[str] | None, image: Image, label_map: LabelMap) -> Planned:
    """Return what is written of a clip, given its first frame; as `chosen_outputs`."""
    can = {name: output for name, output in WRITERS.items() if output.write_clip}
    cannot = {
        name: f"clips have {', '.join(can)}" for name in names or () if name != "default" and name not in can
    }
    if names is not None and not {"default", *can} & set(names):
        _refuse(Planned(outputs=(), left_out=cannot), image)
    planned = _planned(names, image, label_map, can)
    return replace(planned, left_out={**cannot, **planned.left_out})


def case_rows(assessed: Assessment, image: Image) -> list[dict[str, Any]]:
    """Return the instances' rows (`instance_rows`), each with ``refer_because``, empty if no rule refers it."""
    rows = instance_rows(image.source, assessed.prediction)
    return [row | {"refer_because": "; ".join(why)} for row, why in zip(rows, assessed.reasons, strict=True)]


def point_rows(assessed: Assessment, image: Image) -> list[dict[str, Any]]:
    """Return the rows of the landmarks (`landmark_rows`), with why a person should look; none if nobody looked."""
    landmarks = assessed.prediction.instances.landmarks
    if landmarks is None:
        return []
    return landmark_rows(landmarks, image.grid, frame=image.source.frame, reasons=assessed.point_reasons)


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


def _tables(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    names = _rows(folder, case_rows(assessed, image))
    if assessed.prediction.edges:
        _write_edges(folder / "edges.csv", assessed.prediction)
        names.append("edges.csv")
    return names


def _clip_tables(folder: Path, footage: Footage) -> list[str]:
    return _rows(folder, footage.rows)


def _rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    write_rows_csv(folder / "instances.csv", rows)
    write_rows_json(folder / "instances.json", rows)
    return ["instances.csv", "instances.json"]


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


def _landmarks(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    landmarks = assessed.prediction.instances.landmarks
    if landmarks is None:
        return []
    rows = point_rows(assessed, image)
    return write_landmarks(folder, [(image.source.case, None, landmarks)], landmarks.types, image.grid, rows)


def _clip_landmarks(folder: Path, footage: Footage) -> list[str]:
    images: list[tuple[str, int | None, Landmarks]] = []
    for number in footage.numbers:
        prediction = footage.predictions.get(number)
        landmarks = None if prediction is None else prediction.instances.landmarks
        if landmarks is not None:
            images.append((f"frame-{number:06d}", number, landmarks))
    if not images:
        return []
    return write_landmarks(folder, images, images[0][2].types, footage.image.grid, footage.point_rows)


def _landmark_report(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.dicom.landmark_report import write_landmark_report

    prediction = assessed.prediction
    if prediction.instances.landmarks is None:
        return []
    landmarks, rows = prediction.instances.landmarks, point_rows(assessed, image)
    return _made(
        write_landmark_report(folder / "landmarks.dcm", landmarks, rows, prediction.provenance, image)
    )


def _clip_landmark_report(folder: Path, footage: Footage) -> list[str]:
    from clearmargin.formats.dicom.landmark_report import write_landmark_report

    frames = {
        number: one.instances.landmarks
        for number, one in footage.predictions.items()
        if one.instances.landmarks is not None
    }
    if not frames:
        return []
    provenance = next(iter(footage.predictions.values())).provenance
    rows = footage.point_rows
    return _made(write_landmark_report(folder / "landmarks.dcm", frames, rows, provenance, footage.image))


def _packed(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    write_packed(folder / "prediction.npz", {0: assessed.prediction})
    return ["prediction.npz"]


def _packed_clip(folder: Path, footage: Footage) -> list[str]:
    if not footage.predictions:
        return []
    write_packed(folder / "prediction.npz", footage.predictions)
    return ["prediction.npz"]


def _masks(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.mask_files import mask_suffix

    source = image.source.files[0] if image.source.files and image.source.kind != "dicom" else Path()
    return _label_maps(folder, assessed.prediction, mask_suffix(source, image.grid))


def _nifti(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    return _label_maps(folder, assessed.prediction, ".nii.gz")


def _label_maps(folder: Path, prediction: Prediction, suffix: str) -> list[str]:
    """Write masks by instance and by class, and the margins' regions by instance."""
    from clearmargin.formats.mask_files import write_masks

    instances = prediction.instances
    numbers = range(1, len(instances) + 1)
    parts: list[tuple[str, Sequence[Mask], Sequence[int]]] = [
        ("instances", instances.masks, numbers),
        ("classes", instances.masks, instances.labels.tolist()),
    ]
    parts += [(f"margin_{side}", masks, numbers) for side, masks in _margins(prediction)]
    return [
        name
        for stem, masks, values in parts
        for name in write_masks(folder / stem, suffix, masks, values, instances.grid)
    ]


def _margins(prediction: Prediction) -> list[tuple[str, tuple[Mask, ...]]]:
    return [
        (side, masks) for side, masks in (("outer", prediction.outer), ("inner", prediction.inner)) if masks
    ]


def _coco(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.coco import write_coco

    prediction = assessed.prediction
    write_coco(folder / "coco.json", [(image.source.case, prediction.instances)], prediction.label_map)
    return ["coco.json"]


def _clip_coco(folder: Path, footage: Footage) -> list[str]:
    from clearmargin.formats.coco import write_coco

    empty = InstanceSet.empty(footage.image.grid)
    frames = [
        (f"frame-{n:06d}", footage.predictions[n].instances if n in footage.predictions else empty)
        for n in footage.numbers
    ]
    write_coco(folder / "coco.json", frames, footage.label_map)
    return ["coco.json"]


def _panoptic(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.panoptic import write_panoptic
    from clearmargin.report.tasks import write_task_forms

    prediction = assessed.prediction
    files = list(write_task_forms(folder / "panoptic", "case", prediction.instances, prediction.label_map))
    if image.grid.ndim == 2:
        coco = folder / "panoptic" / "case_coco.png"
        write_panoptic(coco, prediction.instances, prediction.label_map)
        files += [coco, coco.with_suffix(".json")]
    return [f"panoptic/{file.name}" for file in files]


def _seg(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.dicom.seg import write_dicom_seg

    prediction = assessed.prediction
    if write_dicom_seg(folder / "seg.dcm", prediction, image).path is None:
        return []
    names = ["seg.dcm"]
    for side, masks in _margins(prediction):
        regions = _as_regions(prediction, masks, side)
        if write_dicom_seg(folder / f"margin_{side}.dcm", regions, image).path is not None:
            names.append(f"margin_{side}.dcm")
    return names


def _clip_seg(folder: Path, footage: Footage) -> list[str]:
    from clearmargin.formats.dicom.seg import write_clip_seg

    if not footage.predictions:
        return []
    return _made(write_clip_seg(folder / "seg.dcm", footage.predictions, footage.image).path)


def _made(path: Path | None) -> list[str]:
    return [] if path is None else [path.name]


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


def _sr(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    """Write the measurement report, which refers to the SEG: that is written if it is not there yet."""
    from clearmargin.formats.dicom.seg import write_dicom_seg
    from clearmargin.formats.dicom.structured_report import write_structured_report
    from clearmargin.report.quantities import measured_quantities

    prediction, names = assessed.prediction, ["report.dcm"]
    if not (folder / "seg.dcm").exists():
        if write_dicom_seg(folder / "seg.dcm", prediction, image).path is None:
            return []
        names.append("seg.dcm")
    quantities = measured_quantities(prediction)
    write_structured_report(folder / "report.dcm", prediction, image, folder / "seg.dcm", quantities)
    return names


def _axes(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    """Write the axes as lines; the geometry is worked out here, as formats know no metrics."""
    from clearmargin.formats.dicom.axes import DrawnAxes, write_axes
    from clearmargin.metrics.diameters import drawn_axes

    lines = []
    for i, mask in enumerate(assessed.prediction.instances.masks):
        drawn = drawn_axes(mask.crop, image.grid.spacing)
        if drawn is not None:
            corner = np.array(mask.origin[-2:]) * image.grid.spacing[-2:]
            lines.append(DrawnAxes(instance=i, z=mask.origin[0] + drawn[0], ends=drawn[1] + corner))
    return _made(write_axes(folder / "axes.dcm", assessed.prediction, image, lines))


def _label_map_seg(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.dicom.seg_kinds import write_label_map_seg

    return _made(write_label_map_seg(folder / "label_map_seg.dcm", assessed.prediction, image).path)


def _rtstruct(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.dicom.rtstruct import write_rtstruct

    if not any(mask.area for mask in assessed.prediction.instances.masks):
        return []
    write_rtstruct(folder / "rtstruct.dcm", assessed.prediction, image)
    return ["rtstruct.dcm"]


def _dicom_maps(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.formats.dicom.parametric_map import write_parametric_map
    from clearmargin.formats.dicom.seg_kinds import write_fractional_seg

    prediction, names = assessed.prediction, []
    for name in prediction.maps:
        # A fractional segment is the probability of one class; the largest over several is no class's own.
        if name == "foreground" and len(prediction.label_map) == 1:
            label = prediction.label_map.classes[0].id
            names += _made(write_fractional_seg(folder / f"{name}.dcm", prediction, name, label, image).path)
        else:
            write_parametric_map(folder / f"{name}.dcm", prediction, name, image)
            names.append(f"{name}.dcm")
    return names


def _maps(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    """Write each map with its geometry: NIfTI for a volume, 32-bit TIFF for a picture."""
    names = []
    for name, values in assessed.prediction.maps.items():
        if image.grid.ndim == 3:
            from clearmargin.formats.volume import write_volume

            write_volume(folder / f"{name}.nii.gz", values, image.grid)
            names.append(f"{name}.nii.gz")
        else:
            from clearmargin.formats.raster import write_raster

            write_raster(folder / f"{name}.tif", values)
            names.append(f"{name}.tif")
    return names


def _overlay(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    """Write an overlay for a picture; for a volume one for each slice with an instance or a landmark."""
    prediction = assessed.prediction
    if image.grid.ndim == 2:
        write_picture(folder / "overlay.png", picture(prediction, image))
        return ["overlay.png"]
    (folder / "overlay").mkdir(exist_ok=True)
    names = []
    for z in range(image.grid.shape[0]):
        cut, _ = prediction.instances.plane(z)
        if len(cut) or (cut.landmarks is not None and cut.landmarks.count):
            names.append(f"overlay/slice-{z:04d}.png")
            write_picture(folder / names[-1], picture(prediction, image, z))
    return names


def _viewer(folder: Path, assessed: Assessment, image: Image) -> list[str]:
    from clearmargin.report.viewer.case import case_view
    from clearmargin.report.viewer.page import viewer_page

    notes = [*assessed.warnings, *image.source.remarks]
    view = case_view(assessed.prediction, image, reasons=assessed.reasons, notes=notes)
    write_text(folder / "viewer.html", viewer_page(view))
    return ["viewer.html"]


def _clip_viewer(folder: Path, footage: Footage) -> list[str]:
    from clearmargin.report.viewer.clip import clip_view
    from clearmargin.report.viewer.page import viewer_page

    view = clip_view(footage.frame, footage.numbers, footage.predictions, footage.label_map)
    write_text(folder / "viewer.html", viewer_page(view))
    return ["viewer.html"]


def _clip_overlay(folder: Path, footage: Footage) -> list[str]:
    """Return the pictures and the video, which are written while frames are predicted (`outputs.clip`)."""
    return ["overlay.mp4", *sorted(f"overlay/{p.name}" for p in (folder / "overlay").iterdir())]


def _always(image: Image) -> bool:
    return True


def _no_seg(image: Image) -> bool:
    return image.source.kind != "dicom"


def _no_seg_or_frame(image: Image) -> bool:
    return _no_seg(image) or image.source.frame is not None


def _dicom(image: Image, label_map: LabelMap) -> str:
    if image.source.kind != "dicom":
        return "the input is not DICOM, and a DICOM result has nothing to refer to"
    _ = [c.codes for c in label_map.classes]
    return ""


def _dicom_points(image: Image, label_map: LabelMap) -> str:
    if image.source.kind != "dicom":
        return "the input is not DICOM, and a DICOM result has nothing to refer to"
    if image.grid.ndim == 3 and image.grid.unit != "mm":
        return "the input is not in mm"
    without = [point.name for point in label_map.points if point.code is None]
    return f"the model's points {', '.join(without)} have no code (docs/landmarks.md)" if without else ""


def _dicom_volume(image: Image, label_map: LabelMap) -> str:
    if image.grid.ndim != 3 or image.grid.unit != "mm":
        return "the input is not a volume in mm"
    return _dicom(image, label_map)


def _volume(image: Image, label_map: LabelMap) -> str:
    return "" if image.grid.ndim == 3 else "the input is not a volume: masks writes pictures"


def _picture(image: Image, label_map: LabelMap) -> str:
    return "" if image.grid.ndim == 2 else "COCO holds pictures, and the input is a volume"


WRITERS: dict[str, Output] = {
    "tables": Output(
        holds="instances.csv and .json, edges.csv: a row per instance",
        write=_tables,
        write_clip=_clip_tables,
        default=_always,
    ),
    "landmarks": Output(
        holds="landmarks.csv and .json: a row per point; landmarks_coco.json of pictures, landmarks.mrk.json in mm",
        write=_landmarks,
        write_clip=_clip_landmarks,
        default=_always,
    ),
    "landmarks_sr": Output(
        holds="landmarks.dcm: DICOM SR (TID 1500) of landmarks, if their types have codes",
        write=_landmark_report,
        write_clip=_clip_landmark_report,
        missing=_dicom_points,
        default=_always,
    ),
    "prediction": Output(
        holds="prediction.npz: masks, scores, margins and edges without loss, for read_case",
        write=_packed,
        write_clip=_packed_clip,
        default=_always,
    ),
    "seg": Output(
        holds="seg.dcm: DICOM SEG, a segment per instance; margin_outer.dcm and margin_inner.dcm",
        write=_seg,
        write_clip=_clip_seg,
        missing=_dicom,
        default=_always,
    ),
    "sr": Output(
        holds="report.dcm: DICOM SR (TID 1500) of the SEG's instances",
        write=_sr,
        missing=_dicom_volume,
        default=_always,
    ),
    "axes": Output(
        holds="axes.dcm: DICOM SR with long and short axis of each instance as lines, which OHIF shows as measurements",
        write=_axes,
        missing=_dicom_volume,
    ),
    "label_map_seg": Output(
        holds="label_map_seg.dcm: DICOM SEG of the LABELMAP type, if no instances overlap",
        write=_label_map_seg,
        missing=_dicom,
    ),
    "rtstruct": Output(
        holds="rtstruct.dcm: RT structure set, a contour set per instance",
        write=_rtstruct,
        missing=_dicom_volume,
    ),
    "masks": Output(
        holds="instances.*, classes.*, margin_*.*: label maps in the input's own kind (PNG or NIfTI for DICOM)",
        write=_masks,
        default=_no_seg,
    ),
    "nifti": Output(holds="the same as NIfTI, whatever the input is", write=_nifti, missing=_volume),
    "coco": Output(
        holds="coco.json: COCO run lengths with scores",
        write=_coco,
        write_clip=_clip_coco,
        missing=_picture,
        default=_no_seg_or_frame,
    ),
    "panoptic": Output(
        holds="panoptic/: semantic, instance, panoptic and detection forms; of a picture COCO's too",
        write=_panoptic,
    ),
    "dicom_maps": Output(
        holds="uncertainty maps as DICOM Parametric Maps (foreground of one class: fractional SEG)",
        write=_dicom_maps,
        missing=_dicom_volume,
        default=_always,
    ),
    "maps": Output(
        holds="uncertainty maps as NIfTI or 32-bit TIFF",
        write=_maps,
        default=_always,
    ),
    "overlay": Output(
        holds="overlay.png or overlay/: outlines on the image; overlay.mp4 of a clip",
        write=_overlay,
        write_clip=_clip_overlay,
        default=_always,
    ),
    "viewer": Output(
        holds="viewer.html: image, masks, margins, maps and the list of instances, to leaf through in a browser",
        write=_viewer,
        write_clip=_clip_viewer,
    ),
}
"""Every output; a new one is a function and an entry here."""
