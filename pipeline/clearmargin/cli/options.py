"""What several verbs take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from clearmargin.privacy import use_names

__all__ = [
    "AllowGaps",
    "AllowTilt",
    "AnyModel",
    "Bands",
    "CardFile",
    "ComputedBy",
    "Device",
    "DisplayWindow",
    "Evaluation",
    "Force",
    "ItemsOut",
    "LeastFree",
    "LeastScore",
    "LedgerPlace",
    "Metrics",
    "Minutes",
    "Model",
    "Names",
    "NoTrack",
    "OfSplit",
    "Overrides",
    "PacsCa",
    "Processes",
    "Runs",
    "Runtime",
    "Sampling",
    "Select",
    "Series",
    "Split",
    "Subvoxel",
    "ThresholdMeasure",
    "Tile",
    "To",
    "Tolerance",
    "Tolerances",
    "Uncertainty",
    "Volume",
    "Writes",
    "asked_outputs",
    "protocol_of",
]

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; repeatable.")
]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs' folders.")]
AnyModel = Annotated[
    str, typer.Argument(help="A model folder, a run's folder, a run id, or models:/NAME@ALIAS.")
]
Series = Annotated[
    str | None,
    typer.Option(
        help="DICOM series, if there are several: list:2 of the listing, number:5 for SeriesNumber 5, a plain "
        "number if only one can be meant, a UID, a modality, words of the description, or `largest`."
    ),
]
Volume = Annotated[
    str | None,
    typer.Option(
        help="Volume of a DICOM series that holds several phases, echoes or stacks: a number or words of its "
        "list (`phase 2`), or `all`."
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Largest distance of a DICOM slice's corners from the volume's grid, in mm; default: 0.01. A series "
        "beyond it is refused.",
    ),
]


NoTrack = Annotated[bool, typer.Option("--no-track", help="Leave out the MLflow run.")]


class Runtime(StrEnum):
    """What computes a network."""

    torch = "torch"
    onnx = "onnx"
    openvino = "openvino"


Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Model folder, run folder, run id, or models:/NAME@ALIAS."),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: CUDA if there is one.")]
ComputedBy = Annotated[
    Runtime, typer.Option("--runtime", help="Runtime of the network: torch, or an export of the model (CPU).")
]
LeastScore = Annotated[
    float | None,
    typer.Option(
        "--score-threshold",
        min=0,
        max=1,
        help="Score threshold; default: the calibration's or the model's.",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(help="Side of the square tiles for large images, in network pixels; default: the model's."),
]
AllowGaps = Annotated[bool, typer.Option("--allow-gaps", help="Resample a series with missing slices.")]
AllowTilt = Annotated[bool, typer.Option("--allow-tilt", help="Straighten a tilted gantry.")]
DisplayWindow = Annotated[
    bool,
    typer.Option(
        "--display-window", help="Values 0..255 show the model's intensity window (captures, clips)."
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Also segment images unlike the model's training images; such cases are referred."
    ),
]
Towards = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Class or landmark to which the distance of other instances is given; repeatable.",
    ),
]
Writes = Annotated[
    list[str] | None,
    typer.Option(
        "--write",
        "-w",
        metavar="NAME,...",
        help="Outputs, repeatable: tables, landmarks, landmarks_sr, prediction, seg, sr, axes, label_map_seg, "
        "rtstruct, masks, nifti, coco, panoptic, dicom_maps, maps, overlay, viewer; 'default' stands for what is "
        "written without this option.",
    ),
]


def asked_outputs(write: list[str] | None) -> list[str] | None:
    """Return the names of a ``--write`` option, which may be repeated and may list several.

    Raises:
        ConfigError: An output is not known.
    """
    if write is None:
        return None
    from clearmargin.outputs.writers import named_outputs

    names = [name.strip() for names in write for name in names.split(",")]
    named_outputs(names)
    return names


class Split(StrEnum):
    """Splits of a card."""

    train = "train"
    validation = "validation"
    calibration = "calibration"
    test = "test"


class CaseNames(StrEnum):
    """What cases are called."""

    hashed = "hashed"
    plain = "plain"


def _set_names(value: CaseNames | None) -> CaseNames | None:
    if value is not None:
        use_names("plain" if value is CaseNames.plain else "hashed")
    return value


Names = Annotated[
    CaseNames | None,
    typer.Option(
        "--names",
        callback=_set_names,
        help="Names of cases: keyed hashes, or for public data the plain names of their files.",
    ),
]


class ThresholdMeasure(StrEnum):
    """What score thresholds are chosen for."""

    pq = "pq"
    f1 = "f1"
    accuracy = "accuracy"


class Uncertainty(StrEnum):
    """Ways to estimate uncertainty."""

    none = "none"
    checkpoints = "checkpoints"
    ensemble = "ensemble"
    tta = "tta"
    dropout = "dropout"


Sampling = Annotated[
    Uncertainty,
    typer.Option(
        help="Source of the samples: epochs that training kept, an ensemble's members, mirrored and scaled views, or "
        "the network's dropout."
    ),
]

Tolerances = Annotated[
    list[float] | None,
    typer.Option("--tolerance", help="Tolerance of NSD, in mm (px without spacing); repeatable."),
]
Bands = Annotated[
    list[float] | None, typer.Option("--band", help="Band of boundary IoU, in the same unit; repeatable.")
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="Metric to measure; repeatable. NSD at each --tolerance, boundary IoU at each --band, AP and PQ come as "
        "well.",
    ),
]
Subvoxel = Annotated[
    bool,
    typer.Option(
        "--subvoxel", help="Measure on an interpolated surface, for curved shapes (docs/metrics.md)."
    ),
]


def protocol_of(
    tolerances: list[float] | None, bands: list[float] | None, metrics: list[str] | None, *, subvoxel: bool
) -> dict[str, Any]:
    """Return what these options say, as `evaluate` and `measure` take it; what is not given has their defaults."""
    given = {"tolerances": tolerances, "bands": bands, "metrics": metrics}
    surface = {"surface": "subvoxel"} if subvoxel else {}
    return {name: value for name, value in given.items() if value} | surface


ItemsOut = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results: OUT/CASE/KEY.")]
LedgerPlace = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Ledger: a file on a local disk, or postgresql://USER:PASSWORD@HOST/DATABASE for several machines (or in "
        "CLEARMARGIN_LEDGER); default: OUT/ledger.sqlite.",
        envvar="CLEARMARGIN_LEDGER",
        show_envvar=False,
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=0,
        help="Worker processes; default: one per GPU, or one per two CPU cores; 0: none but this one.",
    ),
]
Select = Annotated[
    Path | None, typer.Option(help="YAML with rules for the series that are taken (docs/batch.md).")
]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="URL",
        help="Archive that DICOM results are sent to, repeatable: https://... (DICOMweb) or "
        "dimse://CALLED@HOST:PORT?calling=OURS. An item is done once the archive has confirmed them. "
        "Credentials: CLEARMARGIN_PACS_TOKEN, or CLEARMARGIN_PACS_USER and _PASSWORD.",
    ),
]
PacsCa = Annotated[
    Path | None,
    typer.Option(
        "--pacs-ca",
        metavar="FILE",
        help="Certificates that are trusted of archives, in place of the system's.",
        envvar="CLEARMARGIN_PACS_CA",
        show_envvar=False,
    ),
]
LeastFree = Annotated[
    float, typer.Option("--free", min=0, help="Pause while the output disk has less room, in GiB.")
]

CardFile = Annotated[Path, typer.Argument(help="A data card (YAML).")]
Evaluation = Annotated[str, typer.Argument(help="An evaluation: run id or name.")]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.1, help="Minutes that training may take (training.max_minutes)."),
]
OfSplit = Annotated[Split, typer.Option(help="Split of the card.")]
