"""nnU-Net's and the Medical Segmentation Decathlon's ``dataset.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clearmargin.datasets.drafting.layout import DraftOptions, Layout
from clearmargin.datasets.drafting.pairing import file_suffix
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import parse_json
from clearmargin.formats import READERS

__all__ = ["draft_nnunet", "is_nnunet"]

_MODALITIES = {"ct": "CT", "mri": "MR", "mr": "MR", "t1": "MR", "t2": "MR", "flair": "MR", "us": "US"}


def is_nnunet(folder: Path) -> bool:
    """Return whether a folder holds a ``dataset.json`` with labels, and images for training."""
    if not (folder / "dataset.json").is_file() or not (folder / "imagesTr").is_dir():
        return False
    try:
        return "labels" in parse_json((folder / "dataset.json").read_text(encoding="utf-8"))
    except (ValueError, OSError, TypeError):
        return False


def draft_nnunet(folder: Path, options: DraftOptions) -> Layout:
    """Return the layout that ``dataset.json`` describes.

    Source: nnU-Net, documentation/dataset_format.md and region_based_training.md.

    Raises:
        InputError: A label is not a whole number, or there is no image.
    """
    if options.classes:
        raise ConfigError("--class: dataset.json names the classes")
    try:
        content = parse_json((folder / "dataset.json").read_text(encoding="utf-8"))
        channels = list((content.get("channel_names") or content.get("modality") or {"0": ""}).values())
        labels = dict(content["labels"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            "'dataset.json' is not that of nnU-Net: expected \"labels\" with names and values, and channels by number"
        ) from None
    names, regions, ignore = _labels(labels)
    references = {
        p.name[: -len(file_suffix(p.name))]: p.name
        for p in sorted((folder / "labelsTr").glob("*"))
        if file_suffix(p.name) in READERS and not p.name.startswith(".")
    }
    images = {
        p.name[: -len(file_suffix(p.name))]: p.name
        for p in sorted((folder / "imagesTr").glob("*"))
        if file_suffix(p.name) in READERS and not p.name.startswith(".")
    }
    # Version 2 has a file for each channel, NAME_0000; the Decathlon one file with all of them.
    numbered = any(f"{n}_0000" in images for n in references)
    layout = Layout(rows=[], encoding={}, classes=list(names or regions))
    for name, label in references.items():
        stems = [f"{name}_{k:04d}" for k in range(len(channels))] if numbered else [name]
        if not all(stem in images for stem in stems):
            layout.leave_out("labels without all their channels", f"labelsTr/{label}")
            continue
        row = {"id": name, "reference": f"labelsTr/{label}"}
        layout.rows.append(row | {_column(k): f"imagesTr/{images[s]}" for k, s in enumerate(stems)})
        for stem in stems:
            images.pop(stem)
    layout.leave_out("images without labels", *(f"imagesTr/{p}" for p in images.values()))
    testing = [p.name for p in sorted((folder / "imagesTs").glob("*")) if not p.name.startswith(".")]
    layout.leave_out("images for testing, which have no labels here", *(f"imagesTs/{n}" for n in testing))
    if not layout.rows:
        raise InputError(
            "dataset.json is there, but imagesTr and labelsTr hold no pair such as imagesTr/NAME_0000.nii.gz and "
            "labelsTr/NAME.nii.gz"
        )
    picture = READERS[file_suffix(layout.rows[0]["reference"])].startswith("raster")
    table: dict[str, Any] = {"values": {v: n for n, v in names.items()}} if names else {"regions": regions}
    layout.encoding = {"kind": "value_masks" if picture else "label_volume"} | table
    if ignore:
        layout.encoding["ignore"] = ignore
    if options.objects == "parts":
        layout.encoding["split_components"] = True
    layout.images = tuple(f"{{{_column(k)}}}" for k in range(len(channels) if numbered else 1))
    layout.spacing = "unknown" if picture else "file"
    layout.modality = next(
        (m for c in channels for key, m in _MODALITIES.items() if key in str(c).lower()), "OT"
    )
    layout.pattern = "imagesTr and labelsTr as dataset.json says"
    shown = ", ".join(str(c) for c in channels)
    layout.guesses["channels"] = f"{len(channels)}: {shown}"
    parts = "each connected part of a" if options.objects == "parts" else "all of a"
    what = "region, as classes of their own that may overlap" if regions else "value"
    layout.guesses["masks"] = (
        f"{parts} {what} is one object (--objects {'whole' if options.objects == 'parts' else 'parts'} for the other)"
        + (f"; nothing is measured in the value {ignore[0]}" if ignore else "")
    )
    return layout


def _column(channel: int) -> str:
    return "image" if channel == 0 else f"image_{channel}"


def _labels(labels: Any) -> tuple[dict[str, int], dict[str, list[int]], list[int]]:
    """Return names with values, or regions with theirs, and ignored values.

    Version 1 and the Decathlon say ``{"1": "liver"}``, version 2 ``{"liver": 1}`` or ``{"tumour": [1, 2]}``.
    """
    try:
        if all(str(k).isdigit() for k in labels):
            return {str(n): int(v) for v, n in labels.items() if int(v) != 0}, {}, []
        values = {str(n): [int(x) for x in (v if isinstance(v, list) else [v])] for n, v in labels.items()}
    except (TypeError, ValueError):
        raise InputError("dataset.json: labels are names with whole numbers, or with lists of them") from None
    ignore = values.pop("ignore", [])
    values = {n: v for n, v in values.items() if v != [0]}
    if not values:
        raise InputError("dataset.json names no label but the background")
    if all(len(v) == 1 for v in values.values()):
        return {n: v[0] for n, v in values.items()}, {}, ignore
    return {}, values, ignore
