"""What a card says of landmarks: types of points, and where they are read from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clearmargin.config import Settings

__all__ = [
    "CocoKeypoints",
    "DicomReport",
    "LabelPoint",
    "LabelPoints",
    "LandmarkSource",
    "Markups",
    "PointEntry",
    "PointTable",
    "PoseFrames",
]


class PointCode(Settings):
    """A code triplet of a landmark."""

    value: str
    scheme: str = "SCT"
    meaning: str


class PointEntry(Settings):
    """One type of landmark: name, code (which only writing DICOM asks for), its other side in a mirror."""

    name: str = Field(min_length=1)
    code: PointCode | None = None
    mirror: str | None = Field(None, description="the point that it becomes in a mirror; null: itself")
    falloff: float = Field(0.05, gt=0, le=1, description="COCO's k of this point, for OKS")


class _Source(Settings):
    file: str | None = Field(
        None, description="template of the landmarks' file under the root; null: cases.reference"
    )
    outside: Literal["refuse", "absent"] = Field(
        "refuse", description="rule for points outside the image: an error, or an absent point"
    )


class _NamedPoints(_Source):
    names: dict[str, str] = Field(
        default_factory=dict, description="name in the file -> point of the card; null: they are the same"
    )
    left_out: tuple[str, ...] = Field((), description="names in the file that are not landmarks")


class CocoKeypoints(_NamedPoints):
    """COCO key points; the file's own order of names counts."""

    kind: Literal["coco_keypoints"]


class PointTable(_NamedPoints):
    """CSV or JSON, a row per point: ``point``, ``x``, ``y``, ``z`` of volumes; ``object``, ``visible``, ``case``."""

    kind: Literal["point_table"]
    coordinates: Literal["index", "LPS", "RAS"] = Field(
        "index", description="array indices (centre of the first pixel is 0), or mm of the patient"
    )
    case: str | None = Field(
        None, description="template of what the column 'case' holds, if the file is of several cases"
    )


class PoseFrames(_NamedPoints):
    """JSON list with an entry per frame, whose annotations have class, id, x and y."""

    kind: Literal["pose_frames"]


class Markups(_NamedPoints):
    """3D Slicer's ``.mrk.json``; LPS or RAS as the file says. Control points are known by their labels."""

    kind: Literal["markups"]


class DicomReport(_NamedPoints):
    """DICOM SR (TID 1500), a measurement group per point, known by its code, or by its tracking identifier or meaning.

    SCOORD3D is in the image's frame of reference; SCOORD names the image, or its frame, by its UID.
    """

    kind: Literal["dicom_sr"]


class LabelPoint(Settings):
    """One point of a label map's region: its centroid, or its end along an axis."""

    class_: str = Field(alias="class")
    at: Literal["centroid", "first", "last"] = Field(
        "centroid", description="first and last: the mean of the elements with the least or largest index"
    )
    axis: Literal["z", "y", "x"] | None = Field(None, description="axis of first and last")

    model_config = Settings.model_config | {"populate_by_name": True}

    @model_validator(mode="after")
    def _axis_of_ends(self) -> LabelPoint:
        if (self.at == "centroid") != (self.axis is None):
            raise ValueError("first and last need an axis, centroid has none")
        return self


class LabelPoints(_Source):
    """Points of the reference's masks: the masks of a class together are one region."""

    kind: Literal["label_points"]
    points: dict[str, LabelPoint] = Field(
        min_length=1, description="point name -> its label value and place in the label map"
    )


LandmarkSource = Annotated[
    CocoKeypoints | PointTable | PoseFrames | Markups | DicomReport | LabelPoints, Field(discriminator="kind")
]
