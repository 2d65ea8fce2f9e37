"""The case folder: what one run wrote of one image, volume or clip, whole, with a summary and a manifest."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clearmargin.core import Image, LabelMap, Landmarks, Prediction, Provenance
from clearmargin.errors import InputError
from clearmargin.files import file_digest, one_run, parse_json, write_text
from clearmargin.formats.listing import MANIFEST
from clearmargin.margins.assessment import Assessment
from clearmargin.outputs.packed import read_packed
from clearmargin.outputs.writers import WRITERS, Footage, Planned

__all__ = [
    "MANIFEST",
    "Written",
    "by_class",
    "check_case",
    "read_case",
    "read_clip",
    "write_case",
    "write_footage",
]

log = logging.getLogger(__name__)

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written of a case.

    Attributes:
        files: Names of the files in the folder, by output.
        left_out: Why an output that was to be written was not, by its name.
    """

    files: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str]


def write_case(folder: Path, assessed: Assessment, image: Image, planned: Planned, **summary: Any) -> Written:
    """Write the outputs of one image or volume, its summary and its manifest; docs/predict.md lists the files.

    Args:
        folder: It is replaced as a whole.
        assessed: A prediction on the image's grid, and what is to be said of it.
        image: The segmented image.
        planned: What to write (`chosen_outputs`).
        summary: Further entries of ``summary.json``.
    """
    prediction = assessed.prediction
    with one_run(folder) as draft:
        written = _written(
            planned, image.source.case, lambda name: WRITERS[name].write(draft, assessed, image)
        )
        content = {
            "instances": len(prediction.instances),
            **summary,
            "referred": sum(bool(why) for why in assessed.reasons),
            **_points(prediction.instances.landmarks, len(assessed.point_reasons)),
            "refer_case": list(assessed.refer_case),
            "warnings": [*assessed.warnings, *_remarks(written)],
        }
        _finish(draft, written, image, prediction.label_map, prediction.provenance, content)
    return written


def write_footage(
    folder: Path,
    footage: Footage,
    provenance: Provenance,
    planned: Planned,
    *,
    refer_case: Sequence[str],
    warnings: Sequence[str],
    **summary: Any,
) -> Written:
    """Write the outputs of a clip into a folder that `one_run` gave, its summary and its manifest.

    Args:
        folder: It may hold pictures of frames already.
        footage: What is kept of the frames.
        provenance: What made the predictions.
        planned: What to write (`clip_outputs`).
        refer_case: Why a person should look at the clip as a whole, of all frames, each once.
        warnings: Warnings of all frames, each once.
        summary: Further entries of ``summary.json``.
    """

    def write(name: str) -> Sequence[str]:
        writer = WRITERS[name].write_clip
        return () if writer is None else writer(folder, footage)

    written = _written(planned, footage.image.source.case, write)
    content = {
        "instances": len(footage.rows),
        "frames": len(footage.numbers),
        **summary,
        "referred": sum(bool(row["refer_because"]) for row in footage.rows),
        **(
            {
                "landmarks": len(footage.point_rows),
                "landmarks_referred": sum(bool(row.get("refer_because")) for row in footage.point_rows),
            }
            if footage.label_map.points
            else {}
        ),
        "refer_case": list(refer_case),
        "warnings": [*warnings, *_remarks(written)],
    }
    _finish(folder, written, footage.image, footage.label_map, provenance, content)
    return written


def by_class(*predictions: Prediction, label_map: LabelMap) -> dict[str, int]:
    """Return the number of instances of each class name, and of points of each type of landmark that was looked for."""
    labels = np.concatenate([np.zeros(0, np.int64), *(p.instances.labels for p in predictions)])
    counts = {c.name: int((labels == c.id).sum()) for c in label_map.classes}
    sets = [p.instances.landmarks for p in predictions if p.instances.landmarks is not None]
    if sets:
        counts |= {
            point.name: sum(int((one.visible[:, k] > 0).sum()) for one in sets)
            for k, point in enumerate(label_map.points)
        }
    return counts


def read_case(folder: Path | str) -> Prediction:
    """Return the prediction that a case folder holds: masks, scores, columns, margins, edges and maps, as they were.

    Not what a folder leaves out: the image, and the frame of reference of its grid (an identifier).

    Args:
        folder: Written by `predict` with the outputs ``prediction`` and, for maps, ``maps``.

    Raises:
        InputError: It is not a case folder, a file is missing or changed, or it is a clip's (`read_clip`).
    """
    folder = Path(folder)
    manifest = check_case(folder)
    if manifest["kind"] == "clip":
        raise InputError(f"expected one image or volume, '{folder.name}' is of a clip: read_clip reads it")
    (prediction,) = read_packed(folder / "prediction.npz").values()
    return replace(prediction, maps=_maps(folder, manifest))


def read_clip(folder: Path | str) -> dict[int, Prediction]:
    """Return the predictions that a clip's case folder holds, by frame number; frames without an instance are left out.

    Raises:
        InputError: It is not a clip's case folder, or a file is missing or changed.
    """
    folder = Path(folder)
    manifest = check_case(folder)
    if manifest["kind"] != "clip":
        raise InputError(f"expected a clip, '{folder.name}' is of one {manifest['kind']}: read_case reads it")
    held = manifest["instances"] or manifest.get("landmarks")
    return read_packed(folder / "prediction.npz") if held else {}


def check_case(folder: Path | str) -> dict[str, Any]:
    """Return a case folder's manifest, once its files are as they were written.

    Raises:
        InputError: There is no manifest, or a file is missing or changed; the first is named.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        files = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
        _ = manifest["kind"], manifest["instances"], manifest["case"]
    except FileNotFoundError:
        raise InputError(f"'{folder.name}' is not a case folder: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{MANIFEST} in '{folder.name}' is damaged: predict again") from None
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"'{name}' is missing in '{folder.name}': predict again")
        if file_digest(file) != digest:
            raise InputError(f"'{name}' in '{folder.name}' was changed after it was written: predict again")
    return manifest


def _maps(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    maps: dict[str, Any] = {}
    for name, entry in manifest["files"].items():
        if entry["output"] != "maps":
            continue
        from clearmargin.formats import read_image

        maps[name.split(".")[0]] = read_image(folder / name).pixels[0]
    return maps


def _written(planned: Planned, case: str, write: Any) -> Written:
    """Write each output; one that this input or prediction does not allow is said, and the others are written."""
    files: dict[str, tuple[str, ...]] = {}
    left_out = dict(planned.left_out)
    for name in planned.outputs:
        try:
            names = tuple(write(name))
        except InputError as error:
            left_out[name] = str(error)
            continue
        if names:
            files[name] = names
    for name, why in left_out.items():
        log.warning("%s: --write %s: %s", case, name, why)
    return Written(files=files, left_out=left_out)


def _points(landmarks: Landmarks | None, referred: int) -> dict[str, int]:
    """Return the number of landmarks and of those that are referred; nothing if they were not looked for."""
    return {} if landmarks is None else {"landmarks": landmarks.count, "landmarks_referred": referred}


def _remarks(written: Written) -> list[str]:
    return [f"{name} was not written: {reason}" for name, reason in written.left_out.items()]


def _finish(
    folder: Path,
    written: Written,
    image: Image,
    label_map: LabelMap,
    made_by: Provenance,
    content: Mapping[str, Any],
) -> None:
    """Write ``summary.json``, for people, and ``manifest.json``: every file with its SHA-256."""
    case, kind = image.source.case, _kind(image)
    summary = {
        "case": case,
        "shape": list(image.grid.shape),
        "spacing": list(image.grid.spacing),
        "unit": image.grid.unit,
        **_accepted(image),
        "model": made_by.model,
        "weights_sha256": made_by.weights_sha256,
        "config_sha256": made_by.config_sha256,
        "runtime": made_by.runtime,
        "software": made_by.software,
        "classes": {str(c.id): c.name for c in label_map.classes},
        **content,
        "files": {name: _short(names) for name, names in written.files.items()},
        "use": "research only; not for diagnosis or treatment",
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    entries = [(output, name) for output, names in written.files.items() for name in names]
    files = {
        name: {
            "output": output,
            "bytes": (folder / name).stat().st_size,
            "sha256": file_digest(folder / name),
        }
        for output, name in [*entries, ("summary", "summary.json")]
    }
    unlisted = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} - files.keys()
    if unlisted:
        raise ValueError(f"a writer did not name what it wrote: {sorted(unlisted)[:3]}")
    manifest = {
        "schema": _SCHEMA,
        "case": case,
        "kind": kind,
        **{name: content[name] for name in ("instances", "landmarks") if name in content},
        "made_by": asdict(made_by),
        "files": files,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _kind(image: Image) -> str:
    if image.source.frame is not None:
        return "clip"
    return "image" if image.grid.ndim == 2 else "volume"


def _short(names: Sequence[str]) -> list[str]:
    """Return names for a person: of many files in a folder of the case the folder alone."""
    folders = dict.fromkeys(f"{name.rpartition('/')[0]}/" if "/" in name else name for name in names)
    return list(names) if len(names) <= 8 else list(folders)


def _accepted(image: Image) -> dict[str, float]:
    """Return how far DICOM slices lie from the grid, and the tolerance that was needed to accept it."""
    source = image.source
    stated = {"deviation_mm": source.deviation_mm, "tolerance_mm": source.tolerance_mm}
    return {name: value for name, value in stated.items() if value is not None}
