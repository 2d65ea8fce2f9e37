"""Comprehensive 3D SR by TID 1500: what was measured of each instance, tied to its SEG segment (PS3.16)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Code, Image, Prediction, Provenance
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.boundary import quiet_pydicom, read_header
from clearmargin.formats.dicom.output import (
    MANUFACTURER,
    RESEARCH_USE,
    coded,
    derived_uid,
    provenance_parts,
    save,
    source_headers,
    write_dates,
)

__all__ = [
    "SCHEME",
    "Quantity",
    "model_of",
    "own_quantities",
    "quantity_code",
    "unit_code",
    "write_report",
    "write_structured_report",
]

SCHEME = "99CLEARMARGIN"
"""Designator of our own codes, for what no standard scheme names."""

_IMAGING = Code(value="363679005", scheme="SCT", meaning="Imaging")
_ONE = Code(value="1", scheme="UCUM", meaning="no units")
_UNITS = {  # of a column, by how its name ends
    "_mm": Code(value="mm", scheme="UCUM", meaning="millimeter"),
    "_mm2": Code(value="mm2", scheme="UCUM", meaning="square millimeter"),
    "_mm3": Code(value="mm3", scheme="UCUM", meaning="cubic millimeter"),
    "_px": Code(value="{pixels}", scheme="UCUM", meaning="pixels"),
}
_MOST = 16  # characters of a code's value


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantity:
    """One number for each instance.

    Attributes:
        name: What is measured, coded, such as ``118565006, SCT, "Volume"``.
        unit: In UCUM.
        values: ``(N,)``; NaN if it is not defined, and is then left out.
    """

    name: Code
    unit: Code
    values: NDArray[np.floating[Any]]


def own_quantities(prediction: Prediction) -> list[Quantity]:
    """Return what a prediction itself knows: volume (area in the plane), score, each uncertainty column."""
    instances = prediction.instances
    quantities = []
    if instances.grid.unit == "mm":
        volume = instances.grid.ndim == 3
        size = np.array([mask.area for mask in instances.masks]) * instances.grid.voxel_size
        name = ("118565006", "Volume") if volume else ("42798000", "Area")
        quantities.append(
            Quantity(
                name=Code(value=name[0], scheme="SCT", meaning=name[1]),
                unit=_UNITS["_mm3" if volume else "_mm2"],
                values=size,
            )
        )
    for column, values in {"score": instances.scores, **instances.uncertainty}.items():
        quantities.append(Quantity(name=quantity_code(column), unit=unit_code(column), values=values))
    return quantities


def unit_code(column: str) -> Code:
    """Return the unit that a column's name ends with; 1 without one."""
    return _UNITS.get(_ending(column), _ONE)


def quantity_code(column: str, *, meaning: str | None = None) -> Code:
    """Return a column's name without its unit as a code of our own; a long one is cut, and told apart by its hash."""
    stem = column.removesuffix(_ending(column))
    value = stem
    if len(stem) > _MOST:
        value = f"{stem[: _MOST - 5]}_{hashlib.sha256(stem.encode()).hexdigest()[:4]}"
    return Code(value=value, scheme=SCHEME, meaning=meaning or stem.replace("_", " ").capitalize())


def _ending(column: str) -> str:
    return next((end for end in _UNITS if column.endswith(end)), "")


@quiet_pydicom()
def write_structured_report(
    path: Path, prediction: Prediction, image: Image, seg: Path, quantities: Sequence[Quantity] | None = None
) -> str:
    """Write one measurement group for each instance and return the SOP instance UID.

    Args:
        path: The file to write.
        prediction: What was written as ``seg``.
        image: Read from DICOM.
        seg: From :func:`clearmargin.formats.dicom.seg.write_dicom_seg`, of this prediction.
        quantities: Columns of N values; None for :func:`own_quantities`.

    Raises:
        InputError: The image does not come from DICOM, or ``seg`` is of another prediction.
        GeometryError: The image is not a volume in millimetres: segments then have no place to be measured in.
    """
    if image.grid.ndim != 3 or image.grid.unit != "mm":
        raise GeometryError(
            f"{image.source.case} is not a volume in millimetres: a report of volumes needs one"
        )
    headers = source_headers(image)
    segmentation = read_header(Path(seg))
    kept = [i for i, mask in enumerate(prediction.instances.masks) if mask.area]
    if len(segmentation.SegmentSequence) != len(kept):
        raise InputError(
            f"the SEG holds {len(segmentation.SegmentSequence)} segments, "
            f"the prediction {len(kept)} instances"
        )
    columns = own_quantities(prediction) if quantities is None else list(quantities)
    groups = [_group(prediction, i, segmentation, k + 1, columns) for k, i in enumerate(kept)]
    values = [q.values[kept].round(6).tolist() for q in columns]
    identity = (segmentation.SOPInstanceUID, *provenance_parts(prediction.provenance), repr(values))
    evidence = [segmentation, *headers]
    return write_report(Path(path), "sr", 903, evidence, headers, groups, prediction.provenance, identity)


_KINDS = {"sr": "measurements", "axes": "axes", "landmarks": "landmarks"}


def write_report(
    path: Path,
    kind: str,
    series_number: int,
    evidence: Sequence[Any],
    headers: Sequence[Any],
    groups: Sequence[Any],
    provenance: Provenance,
    identity: Sequence[object],
) -> str:
    """Write measurement groups as a report of their own series and return its SOP instance UID.

    Args:
        path: The file to write.
        kind: ``sr``, ``axes`` or ``landmarks``: part of the UIDs, and of the series' description.
        series_number: Of the new series.
        evidence: What the groups refer to.
        headers: Of the source (`source_headers`), which gives the dates.
        groups: highdicom's measurement groups.
        provenance: Of what measured.
        identity: What the UIDs are a function of.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    report = highdicom.sr.MeasurementReport(
        observation_context=_observer_of(provenance),
        procedure_reported=coded(_IMAGING),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=None,
    )
    dataset = highdicom.sr.Comprehensive3DSR(
        evidence=evidence,
        content=report[0],
        series_instance_uid=derived_uid(f"{kind} series", *identity),
        series_number=series_number,
        sop_instance_uid=derived_uid(kind, *identity),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model[:64],
        software_versions=provenance.software[:64],
        device_serial_number=provenance.weights_sha256[:64],
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=f"Clear Margin {_KINDS[kind]} ({RESEARCH_USE})"[:64],
    )
    write_dates(dataset, headers)
    if "ObservationDateTime" in dataset:
        dataset.ObservationDateTime = f"{dataset.ContentDate}{dataset.ContentTime}"
    save(dataset, path)
    return str(dataset.SOPInstanceUID)


def _observer_of(provenance: Provenance) -> Any:
    """Return who measured: the model, as a device (highdicom)."""
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.sr.ObservationContext(
        observer_device_context=highdicom.sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=highdicom.sr.DeviceObserverIdentifyingAttributes(
                uid=derived_uid("device", *provenance_parts(provenance)),
                name=provenance.software[:64],
                manufacturer_name=MANUFACTURER,
                model_name=provenance.model[:64],
            ),
        )
    )


def model_of(provenance: Provenance) -> Any:
    """Return which algorithm a group is by (highdicom)."""
    import highdicom

    return highdicom.sr.AlgorithmIdentification(
        name=provenance.model[:64],
        version=f"{provenance.software} weights {provenance.weights_sha256[:16]}"[:64],
        parameters=[f"weights_sha256={provenance.weights_sha256}", RESEARCH_USE],
    )


def _group(
    prediction: Prediction, i: int, segmentation: Any, number: int, columns: Sequence[Quantity]
) -> Any:
    import highdicom

    kind = prediction.label_map.by_id(int(prediction.instances.labels[i]))
    segment = segmentation.SegmentSequence[number - 1]
    measurements = [
        highdicom.sr.Measurement(name=coded(q.name), value=float(q.values[i]), unit=coded(q.unit))
        for q in columns
        if np.isfinite(q.values[i])
    ]
    return highdicom.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=highdicom.sr.TrackingIdentifier(
            uid=segment.TrackingUID, identifier=segment.TrackingID
        ),
        referenced_segment=highdicom.sr.ReferencedSegment.from_segmentation(segmentation, number),
        finding_type=coded(kind.codes[1]),
        finding_category=coded(kind.codes[0]),
        algorithm_id=model_of(prediction.provenance),
        measurements=measurements,
    )
