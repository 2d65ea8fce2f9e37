"""Data cards: the only way data enters. One YAML a data set; docs/data-cards.md explains each key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from clearmargin.config import Settings, load_settings
from clearmargin.core import Code, LabelClass, LabelMap, PointType
from clearmargin.core.groups import GroupKind
from clearmargin.datasets.landmark_card import LabelPoints, LandmarkSource, PointEntry
from clearmargin.errors import ConfigError, nearest
from clearmargin.files import below, write_text
from clearmargin.privacy import Naming, home, writing_home

__all__ = [
    "SPLITS",
    "Card",
    "Encoding",
    "Split",
    "cards_are_trusted",
    "data_root",
    "note_folder",
    "public",
    "read_card",
    "trust_cards",
]

_TRUST = "CLEARMARGIN_TRUST_CARDS"
_NAMED = "folders.txt"

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")


# DICOM's defined terms for what makes pictures (PS3.3, C.7.3.1.1.1), and GM and SM for microscopy.
_MODALITIES = (
    "BI", "BMD", "CR", "CT", "CFM", "DG", "DMS", "DX", "ECG", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", "MG", "MR", "NM",
    "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PA", "PT", "PX", "RF", "RG", "RTIMAGE",
    "SC", "SM", "TG", "US", "XA", "XC",
)  # fmt: skip


class CodeEntry(Settings):
    """A code triplet: value, coding scheme (``SCT`` is SNOMED CT), meaning."""

    value: str
    scheme: str = "SCT"
    meaning: str


class ClassEntry(Settings):
    """One class: id 1..K, name, codes (which only writing DICOM asks for), thing or stuff."""

    id: int = Field(ge=1)
    name: str = Field(min_length=1)
    kind: Literal["thing", "stuff"] = "thing"
    type: CodeEntry | None = None
    category: CodeEntry | None = None

    @model_validator(mode="after")
    def _codes_come_in_pairs(self) -> ClassEntry:
        if (self.type is None) != (self.category is None):
            raise ValueError("type and category go together")
        return self


class LabelImage(Settings):
    """A 2-D label image: 0 is background, each other value is one instance."""

    kind: Literal["label_image"]
    label: str = Field(description="class name, or a template over the index's columns such as '{class}'")


class ValueTable(Settings):
    """What the values of a label image or volume mean; each value or region, or each part of it, is an instance."""

    values: dict[int, str] = Field(default_factory=dict, description="value -> class name; 0 is background")
    regions: dict[str, Annotated[tuple[int, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="class name -> values that it is made of, in place of values; regions may share values",
    )
    ignore: tuple[int, ...] = Field((), description="values in which nothing is measured")
    split_components: bool = Field(
        False, description="each face-connected component is an instance of its own"
    )

    @model_validator(mode="after")
    def _one_table(self) -> ValueTable:
        if bool(self.values) == bool(self.regions):
            raise ValueError("give values or regions: what the values of the reference mean")
        return self


class ValueMasks(ValueTable):
    """A 2-D image in which each value of a table is one instance, in one piece or several."""

    kind: Literal["value_masks"]


class LabelVolume(ValueTable):
    """A NIfTI, NRRD or MHA label volume with a value table."""

    kind: Literal["label_volume"]


class MaskFiles(Settings):
    """Masks, pictures or volumes, any number for a case; each is one object, or each of its parts; they may overlap."""

    kind: Literal["mask_files"]
    label: str = Field(
        description="class name, or a template over the index's columns; names parted by ';' go with the files"
    )
    split_components: bool = Field(False, description="each connected part is an instance of its own")
    threshold: int | None = Field(
        None, ge=1, description="for blurred masks: least value that is object; default: every value but 0"
    )


class Coco(Settings):
    """A COCO JSON; ``cases.reference`` names it, its file names are matched with the cases' images."""

    kind: Literal["coco"]


class DicomSeg(Settings):
    """A DICOM SEG of one segment per instance; classes are found by their type codes."""

    kind: Literal["dicom_seg"]


class RtStruct(Settings):
    """A DICOM RT structure set; each region is one instance."""

    kind: Literal["rtstruct"]
    regions: dict[str, str] = Field(min_length=1, description="region name -> class name")
    left_out: tuple[str, ...] = Field((), description="names of regions that are not instances")


class VideoMasks(Settings):
    """Mask videos beside a clip; all pixels of one class in one of them are one instance."""

    kind: Literal["video_masks"]
    levels: dict[Annotated[int, Field(ge=1, le=255)], str] = Field(
        min_length=1, description="grey level -> class name; 0 is background; a pixel takes the nearest level"
    )
    tolerance: int = Field(
        20, ge=0, le=127, description="grey levels by which the codec may blur; what is further off is stray"
    )


class NoMasks(Settings):
    """No masks: the cases hold landmarks alone, in the file that ``cases.reference`` names."""

    kind: Literal["none"]


Encoding = Annotated[
    LabelImage | ValueMasks | LabelVolume | MaskFiles | Coco | DicomSeg | RtStruct | VideoMasks | NoMasks,
    Field(discriminator="kind"),
]


class Cases(Settings):
    """Where the cases lie: an index with a row per case, and path templates over its columns."""

    index: str | None = Field(
        None,
        description="CSV under the root, or from ./ on beside the card; templates use its columns as {column}",
    )
    rows: tuple[dict[str, str], ...] = Field((), description="the rows themselves, where no index is shipped")
    id: str = Field(description="template of the case's id within this data set")
    image: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="template of the image's path under the root; several are channels of one image, on one grid"
    )
    reference: str = Field(
        description="template of the reference's path under the root; several paths are parted by ';'"
    )
    series: str | None = Field(
        None, description="template of the DICOM series that is the image, where the folder holds several"
    )
    frames: int | None = Field(
        None, ge=1, description="image is a clip, and every n-th frame of it is a case; templates use {frame}"
    )
    first_frame: int = Field(0, ge=0, description="the first frame that is a case, with frames")
    ignore: str | None = Field(None, description="template of a mask; what is not 0 is never measured")
    group: str = Field(
        description="template of the group that no two splits share: patient, surgery or image"
    )
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
    """Which case belongs to which split, always by group."""

    column: str | None = Field(None, description="index column that holds a shipped split")
    values: dict[str, Split] = Field(default_factory=dict, description="value of the column -> split")
    carve: dict[Split, float] = Field(
        default_factory=dict, description="share of the train groups that goes to another split"
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
    version: str = "1"
    title: str = ""
    origin: str = ""
    licence: str = ""
    citation: str = ""
    modality: str = Field(description="DICOM modality, e.g. CT, MR, US, ES, SM")
    classes: tuple[ClassEntry, ...] = Field(min_length=1)
    points: tuple[PointEntry, ...] = Field((), description="types of landmarks, with landmarks")
    landmarks: LandmarkSource | None = Field(None, description="source of the points")
    root: str = Field(
        description="folder under CLEARMARGIN_DATA; from the card's own folder on if it begins with a dot"
    )
    cases: Cases
    encoding: Encoding
    spacing: Spacing
    group: GroupKind
    splits: Splits
    faults: tuple[str, ...] = ()
    names: Naming = Field(
        "hashed", description="names of cases in results: keyed hashes, or for public data plain ids"
    )
    show_in_tracking: bool = Field(
        False, description="whether pictures of it may be shown in a tracking server"
    )

    model_config = Settings.model_config | {"populate_by_name": True}

    @field_validator("modality")
    @classmethod
    def _of_dicom(cls, modality: str) -> str:
        stated = modality.strip().upper()
        if stated not in _MODALITIES:
            raise ValueError(f"no DICOM modality '{modality}': {nearest(stated, _MODALITIES)}")
        return stated

    @model_validator(mode="after")
    def _videos_have_frames(self) -> Card:
        if self.encoding.kind == "video_masks" and self.cases.frames is None:
            raise ValueError("encoding video_masks needs cases.frames: every how many frames one is a case")
        return self

    @model_validator(mode="after")
    def _landmarks_have_types(self) -> Card:
        if bool(self.points) != (self.landmarks is not None):
            raise ValueError("points and landmarks go together: the types, and where they are read from")
        if self.encoding.kind == "none" and self.landmarks is None:
            raise ValueError("encoding none needs landmarks: else the card has no reference")
        names = [p.name for p in self.points]
        if isinstance(self.landmarks, LabelPoints) and sorted(self.landmarks.points) != sorted(names):
            raise ValueError(f"landmarks.points says where each of points is: expected {', '.join(names)}")
        return self

    def __repr__(self) -> str:
        classes = ", ".join(c.name for c in self.classes[:8]) + ", ..." * (len(self.classes) > 8)
        return f"Card({self.name}, {self.modality}, {self.encoding.kind}, classes {classes})"

    @property
    def label_map(self) -> LabelMap:
        """The classes as core's label map."""
        return LabelMap(
            tuple(
                LabelClass(
                    id=c.id,
                    name=c.name,
                    kind=c.kind,
                    type=None if c.type is None else Code(**c.type.model_dump()),
                    category=None if c.category is None else Code(**c.category.model_dump()),
                )
                for c in self.classes
            ),
            tuple(
                PointType(
                    name=p.name,
                    code=None if p.code is None else Code(**p.code.model_dump()),
                    mirror=p.mirror,
                    falloff=p.falloff,
                )
                for p in self.points
            ),
        )

    def check_model(self, label_map: LabelMap, *, model: str, task: str) -> None:
        """Refuse a model that knows other classes or landmarks, or knows them in another order.

        Args:
            label_map: The model's classes and landmark types.
            model: What the message calls it, such as ``the model``.
            task: Verb for the way out, such as ``evaluate``.

        Raises:
            ConfigError: With both lists. Landmarks are compared if both have some.
        """
        ours, theirs = label_map.names, self.label_map.names
        what = "classes"
        if ours == theirs and label_map.points and self.label_map.points:
            ours, theirs = (tuple(p.name for p in one.points) for one in (label_map, self.label_map))
            what = "points"
        if ours != theirs:
            raise ConfigError(
                f"{model} knows the {what} {', '.join(ours)}, card '{self.name}' has {', '.join(theirs)}: "
                f"{task} on a card with the model's {what}, in the model's order"
            )


def public(card: Card) -> Card:
    """Return the card without rows, faults and paths outside the data root, which may name patients.

    That is what a tracking server may hold.
    """
    update: dict[str, object] = {"cases": card.cases.model_copy(update={"rows": ()}), "faults": ()}
    if card.root.startswith(".") or Path(card.root).is_absolute():
        update["root"] = "."
    return card.model_copy(update=update)


def read_card(path: Path) -> tuple[Card, Path]:
    """Return the card and the folder its data lie in.

    Raises:
        ConfigError: The card does not fit the schema, or its data folder is not there.
    """
    card = load_settings(path, Card)
    _ = card.label_map  # ids and names are checked here, before any data is touched
    start = path.resolve().parent if card.root.startswith(".") else data_root()
    folder = start / card.root
    if not (below(start, card.root) or cards_are_trusted() or _was_named(folder)):
        where = "its own folder" if card.root.startswith(".") else "CLEARMARGIN_DATA"
        raise ConfigError(
            f"card '{card.name}' says that its data lie outside {where}: "
            "move both together, or say `clearmargin --trust-cards ...` if the card is yours"
        )
    if card.root.startswith("."):
        if not folder.is_dir():
            raise ConfigError(
                f"card '{card.name}': no folder '{card.root}' beside the card: correct its root"
            )
        return card, folder
    if not folder.is_dir():
        raise ConfigError(
            f"card '{card.name}': no folder '{card.root}' under the data root '{data_root()}': "
            "set CLEARMARGIN_DATA to the folder that holds it"
        )
    return card, folder


def cards_are_trusted() -> bool:
    """Return whether cards may name files anywhere: ``--trust-cards``, or ``CLEARMARGIN_TRUST_CARDS=1``."""
    return os.environ.get(_TRUST) == "1"


def trust_cards() -> None:
    """Let cards name files anywhere from here on, in this process and in those that it starts."""
    os.environ[_TRUST] = "1"


def note_folder(folder: Path) -> None:
    """Note that the user named a folder of data on the command line: cards may have it as their root."""
    named = _named_folders()
    if str(folder.resolve()) not in named:
        with writing_home():
            write_text(home() / _NAMED, "".join(f"{one}\n" for one in (*named, str(folder.resolve()))))


def _was_named(folder: Path) -> bool:
    """Return whether a folder is one that the user named, or below it, or below CLEARMARGIN_DATA."""
    place = folder.resolve()
    return any(place.is_relative_to(known) for known in (str(data_root().resolve()), *_named_folders()))


def _named_folders() -> list[str]:
    path = home() / _NAMED
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def data_root() -> Path:
    """Return ``CLEARMARGIN_DATA``, by default ``../shared/data`` beside the working directory."""
    return Path(os.environ.get("CLEARMARGIN_DATA", "../shared/data"))
