"""What it takes to repeat a run: settings, data by file, model, packages, hardware, and what came out, as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clearmargin.core import Prediction
from clearmargin.errors import InputError
from clearmargin.files import file_digest, parse_json
from clearmargin.tracking.surroundings import git_tags, hardware, packages, software

__all__ = ["CAPSULE", "capsule", "model_digests", "prediction_digest", "read_capsule"]

CAPSULE = "capsule.json"
_SCHEMA = 1
_PREDICTS = ("model.yaml", "ensemble.yaml", "weights.safetensors")


def capsule(
    *,
    verb: str,
    settings: Mapping[str, Any],
    card: Mapping[str, str],
    cases: Mapping[str, Mapping[str, str]],
    model: Mapping[str, str],
    seeds: Mapping[str, int],
    predictions: Mapping[str, str],
    calibration: Mapping[str, str],
    label_map: Sequence[Mapping[str, Any]],
) -> str:
    """Return a run's capsule as JSON; nothing in it names a file, a host or a person.

    Args:
        verb: What ran.
        settings: Its options.
        card: Name, version and digest of the data card's files.
        cases: For each case id: its split and the digests of its files (`Dataset.file_digests`).
        model: Digests of the model folder's files (`model_digests`).
        seeds: By what they were for.
        predictions: The digest of each case's prediction (`prediction_digest`).
        calibration: Digests of the model's calibrations.
        label_map: Id, name and codes of each class.
    """
    content = {
        "schema": _SCHEMA,
        "verb": verb,
        "software": software(),
        "git": git_tags(),
        "settings": dict(settings),
        "card": dict(card),
        "cases": {case: dict(of) for case, of in cases.items()},
        "model": dict(model),
        "seeds": dict(seeds),
        "predictions": dict(predictions),
        "calibration": dict(calibration),
        "label_map": [dict(one) for one in label_map],
        "hardware": hardware(),
        "packages": packages(),
    }
    return json.dumps(content, indent=1, sort_keys=True, default=str) + "\n"


def read_capsule(path: Path, run: str) -> dict[str, Any]:
    """Return the capsule of a run, which messages name.

    Raises:
        InputError: It is none of ours.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"the capsule of run '{run}' cannot be read: run it again with this version"
        ) from None
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise InputError(f"the capsule of run '{run}' is of another version: run it again with this one")
    return content


def model_digests(folder: Path, *, snapshots: bool = True) -> dict[str, str]:
    """Return the SHA-256 of what a prediction depends on in a model folder: configurations and weights, by their path.

    Args:
        folder: A model folder, or an ensemble's.
        snapshots: Whether the epochs that training kept belong to it.
    """
    out = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.name not in _PREDICTS or (not snapshots and "snapshots" in inside.parts):
            continue
        out[inside.as_posix()] = file_digest(path)
    return out


def prediction_digest(prediction: Prediction) -> str:
    """Return the SHA-256 of what was found: masks, labels, scores and uncertainty columns, bit for bit."""
    instances = prediction.instances
    total = hashlib.sha256(repr(instances.grid.shape).encode())
    for mask in instances.masks:
        total.update(repr((mask.origin, mask.crop.shape)).encode())
        total.update(np.packbits(mask.crop).tobytes())
    total.update(np.ascontiguousarray(instances.labels, "<i8").tobytes())
    total.update(np.ascontiguousarray(instances.scores, "<f8").tobytes())
    for name, column in sorted(instances.uncertainty.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(column, "<f4").tobytes())
    return total.hexdigest()
