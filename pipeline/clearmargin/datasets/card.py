"""Data cards: the only way data enters. One YAML a data set; docs/data-cards.md explains each key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from clearmargin.config import Settings, load_settings
from clearmargin.core import Code, LabelClass, LabelMap
from clearmargin.errors import ConfigError

__all__ = ["SPLITS", "Card", "Encoding", "Split", "data_root", "public", "read_card"]

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")


class CodeEntry(Settings):
    """A code triplet: value, coding scheme (``SCT`` is SNOMED CT), meaning."""

    value: str
    scheme: str = "SCT"
    meaning: str


class ClassEntry(Settings):
    """One class: id 1..K, name, codes, thing or stuff."""

    id: int = Field(ge=1)
    name: str = Field(min_length=1)
    kind: Literal["thing", "stuff"] = "thing"
    type: CodeEntry
    category: CodeEntry


class LabelImage(Settings):
    """A 2-D label image: 0 is background, each other value is one instance."""

    kind: Literal["label_image"]
    label: str = Field(description="class name, or a template over the index's columns such as '{class}'")


class ValueMasks(Settings):
    """A 2-D image in which each value of a table is one instance, in one piece or several."""

    kind: Literal["value_masks"]
    values: dict[int, str] = Field(description="pixel value -> class name; 0 is background")


class LabelVolume(Settings):
    """A NIfTI, NRRD or MHA label volume with a value table; each value, or each connected part, is an instance."""

    kind: Literal["label_volume"]
    values: dict[int, str]
    split_components: bool = Field(
        False, description="each face-connected component is an instance of its own"
    )


class Coco(Settings):
    """A COCO JSON; ``cases.reference`` names it, its file names are matched with the cases' images."""

    kind: Literal["coco"]


class DicomSeg(Settings):
    """A DICOM SEG of one segment an instance; classes are found by their type codes."""

    kind: Literal["dicom_seg"]


class VideoMasks(Settings):
    """Mask videos beside a clip; all pixels of one class in one of them are one instance."""

    kind: Literal["video_masks"]
    levels: dict[Annotated[int, Field(ge=1, le=255)], str] = Field(
        min_length=1, description="grey level -> class name; 0 is background; a pixel takes the nearest level"
    )
    tolerance: int = Field(
        20, ge=0, le=127, description="grey levels by which the codec may blur; what is further off is stray"
    )


Encoding = Annotated[
    LabelImage | ValueMasks | LabelVolume | Coco | DicomSeg | VideoMasks, Field(discriminator="kind")
]


class Cases(Settings):
    """Where the cases lie: an index with a row a case, and path templates over its columns."""

    index: str | None = Field(None, description="CSV under the root; templates use its columns as {column}")
    rows: tuple[dict[str, str], ...] = Field((), description="the rows themselves, where no index is shipped")
    id: str = Field(description="template of the case's id within this data set")
    image: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="template of the image's path under the root; several are channels of one image, on one grid"
    )
    reference: str = Field(
        description="template of the reference's path under the root; several paths are parted by ';'"
    )
    frames: int | None = Field(
        None, ge=1, description="image is a clip, and every n-th frame of it is a case; templates use {frame}"
    )
    ignore: str | None = Field(None, description="template of a mask; what is not 0 is never measured")
    unit: str = Field(description="template of the unit of independence: patient, surgery, or the image")
    strata: tuple[str, ...] = Field((), description="columns by which tables are stratified")

    @property
    def images(self) -> tuple[str, ...]:
        """The templates of the image, one or several."""
        return (self.image,) if isinstance(self.image, str) else self.image

    @model_validator(mode="after")
    def _one_source(self) -> Cases:
        if (self.index is None) == (not self.rows):
            raise ValueError("give either index or rows")
        if self.frames is not None and len(self.images) > 1:
            raise ValueError("frames are of one clip: image is one template then")
        return self


class Spacing(Settings):
    """Physical spacing: from the file's own geometry, a constant, or unknown (results are then in px)."""

    source: Literal["file", "constant", "unknown"]
    mm: tuple[float, ...] | None = Field(None, description="per array axis, for a constant")

    @model_validator(mode="after")
    def _constant_has_value(self) -> Spacing:
        if (self.source == "constant") != (self.mm is not None):
            raise ValueError("mm goes with source: constant, and only with it")
        return self


class Splits(Settings):
    """Which case belongs to which split, always by unit."""

    column: str | None = Field(None, description="index column that holds a shipped split")
    values: dict[str, Split] = Field(default_factory=dict, description="its values -> our splits")
    carve: dict[Split, float] = Field(
        default_factory=dict, description="share of the train units that goes to another split"
    )
    seed: int = 0

    @field_validator("carve")
    @classmethod
    def _shares(cls, carve: dict[Split, float]) -> dict[Split, float]:
        if "train" in carve or any(not 0 < share < 1 for share in carve.values()) or sum(carve.values()) >= 1:
            raise ValueError(
                "carve takes shares between 0 and 1 for validation, calibration, test; below 1 in all"
            )
        return carve


class Card(Settings):
    """A data set, described."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: str
    title: str
    origin: str
    licence: str
    citation: str
    modality: str = Field(description="DICOM modality, e.g. CT, MR, US, ES, SM")
    classes: tuple[ClassEntry, ...] = Field(min_length=1)
    root: str = Field(description="folder under CLEARMARGIN_DATA; '.' is the card's own folder")
    cases: Cases
    encoding: Encoding
    spacing: Spacing
    unit: Literal["patient", "surgery", "image"]
    splits: Splits
    faults: tuple[str, ...] = ()
    show_in_tracking: bool = Field(description="whether pictures of it may be shown in a tracking server")

    model_config = Settings.model_config | {"populate_by_name": True}

    @model_validator(mode="after")
    def _videos_have_frames(self) -> Card:
        if self.encoding.kind == "video_masks" and self.cases.frames is None:
            raise ValueError("encoding video_masks needs cases.frames: every how many frames one is a case")
        return self

    @property
    def label_map(self) -> LabelMap:
        """The classes as core's label map."""
        return LabelMap(
            tuple(
                LabelClass(
                    id=c.id,
                    name=c.name,
                    kind=c.kind,
                    type=Code(**c.type.model_dump()),
                    category=Code(**c.category.model_dump()),
                )
                for c in self.classes
            )
        )


def public(card: Card) -> Card:
    """Return the card without the rows of its cases, which may name patients: what a tracking server may hold."""
    return card.model_copy(update={"cases": card.cases.model_copy(update={"rows": ()})})


def read_card(path: Path) -> tuple[Card, Path]:
    """Return the card and the folder its data lie in.

    Raises:
        ConfigError: The card does not fit the schema, or its data folder is not there.
    """
    card = load_settings(path, Card)
    _ = card.label_map  # ids and names are checked here, before any data is touched
    folder = path.resolve().parent if card.root == "." else data_root() / card.root
    if not folder.is_dir():
        raise ConfigError(
            f"card '{card.name}': no folder '{card.root}' under the data root: "
            "set CLEARMARGIN_DATA to the folder that holds it"
        )
    return card, folder


def data_root() -> Path:
    """Return ``CLEARMARGIN_DATA``, by default ``../shared/data`` beside the working directory."""
    return Path(os.environ.get("CLEARMARGIN_DATA", "../shared/data"))
