"""A model folder written as a MONAI bundle: what each of its files holds.

Source: MONAI Bundle Specification, https://docs.monai.io/en/stable/mb_specification.html.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai
import numpy
import torch

from clearmargin import __version__
from clearmargin.config import load_settings
from clearmargin.files import whole, write_text
from clearmargin.models.files import CONFIG_FILE, WEIGHTS_FILE
from clearmargin.models.folder import ModelCard
from clearmargin.networks import network_config
from clearmargin.predicting.bundle import DIGESTS, BundleNetwork, digests_of
from clearmargin.transforms.settings import VolumeView

__all__ = ["CONFIG", "METADATA", "MODELS", "write_bundle"]

CONFIG, METADATA, MODELS = "configs/inference.json", "configs/metadata.json", "models"
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_CALIBRATION = "calibration"
_STEP = 64  # network pixels: extents that all networks of planes take
_NOT_STATED = "not stated in the model folder"
_USE = "Research use only, not for diagnosis."
_OURS = "clearmargin.predicting.bundle"

INFERENCE: dict[str, Any] = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {
        "_target_": f"{_OURS}.BundleNetwork",
        "folder": f"$@bundle_root + '/{MODELS}'",
        "device": "@device",
    },
    "network": "$@network_def.to(@device).eval()",
    "dataset_data": {"_target_": f"{_OURS}.items_in", "folder": "@dataset_dir"},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "clearmargin.transforms.LoadPathd", "keys": "image"}],
    },
    "dataset": {"_target_": "Dataset", "data": "@dataset_data", "transform": "@preprocessing"},
    "inferer": {"_target_": f"{_OURS}.InstanceInferer"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": f"{_OURS}.SaveInstancesd", "keys": "pred", "output_dir": "@output_dir"}],
    },
    "evaluator": {
        "_target_": f"{_OURS}.BundleRun",
        "dataset": "@dataset",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
    },
    "run": ["$@evaluator.run()"],
}


def write_bundle(model: Path, folder: Path) -> None:
    """Write a model folder as a bundle; `folder` is made.

    Raises:
        InputError: It is not a model folder.
    """
    card = load_settings(model / CONFIG_FILE, ModelCard)
    models = folder / MODELS
    models.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(model / name, models / name)
    if (model / _CALIBRATION).is_dir():
        shutil.copytree(model / _CALIBRATION, models / _CALIBRATION)
    _write_json(models / DIGESTS, digests_of(models))
    network = BundleNetwork(models)
    with whole(models / "model.pt") as draft:  # what the specification, and MONAI Label, ask for by this name
        torch.save(network.state_dict(), draft)
    _write_json(models / DIGESTS, digests_of(models))
    _write_json(folder / METADATA, metadata(card))
    _write_json(folder / CONFIG, INFERENCE)
    _write_json(folder / "configs/labels.json", [entry.model_dump(mode="json") for entry in card.classes])
    (folder / "docs").mkdir()
    weights = network.predictor.provenance.weights_sha256
    write_text(folder / "docs/README.md", readme(card, weights, calibrated=(models / _CALIBRATION).is_dir()))


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")


def metadata(card: ModelCard) -> dict[str, Any]:
    """Return ``metadata.json``: what the model folder knows; what it does not know is said to be so."""
    names = [entry.name for entry in card.classes]
    config = network_config(card.model)
    planes = not isinstance(config, VolumeView)
    shape = list(config.patch) if isinstance(config, VolumeView) else [f"{_STEP}*n", f"{_STEP}*n"]
    modalities = card.domain.modalities if card.domain else ()
    tensor = {
        "type": "image",
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": not planes,
    }
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"exported by {card.software}"},
        "monai_version": monai.__version__.partition("+")[0],
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": numpy.__version__,
        "required_packages_version": {"clearmargin": __version__},
        "name": f"{card.model['network']} of {card.trained_card or 'a data card that is not named'}",
        "task": f"Instance segmentation of {', '.join(names)}",
        "description": f"{card.model['network']}, trained by {card.software} on data card "
        f"'{card.trained_card or _NOT_STATED}'. One mask for each object of a picture, a volume or a DICOM series.",
        "authors": _NOT_STATED,
        "copyright": _NOT_STATED,
        "data_source": f"data card '{card.trained_card or _NOT_STATED}'",
        "data_type": "dicom, nifti, nrrd, metaimage, png, tiff, jpeg",
        "image_classes": f"modalities: {', '.join(modalities) or _NOT_STATED}",
        "pred_classes": "; ".join(f"{k}: {name}" for k, name in enumerate(names)),
        "intended_use": _USE,
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "modality": ", ".join(modalities) or "n/a",
                    "num_channels": card.image.channels,
                    "channel_def": {
                        str(k): "prepared by the model's own settings (models/model.yaml, image)"
                        for k in range(card.image.channels)
                    },
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "probabilities",
                    "num_channels": len(names),
                    "channel_def": {str(k): name for k, name in enumerate(names)},
                }
            },
            "post_processed_outputs": {
                "pred": {
                    "type": "image",
                    "format": "labels",
                    "num_channels": 1,
                    "spatial_shape": ["*", "*"] if planes else ["*", "*", "*"],
                    "dtype": "int32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {"0": "instances; a further channel for each overlap"},
                }
            },
        },
    }


def readme(card: ModelCard, weights_sha256: str, *, calibrated: bool) -> str:
    """Return the bundle's page: classes with their codes, what the model was trained on, and how it is run."""
    rows = [f"| {c.id} | {c.name} | {_coded(c.type)} | {_coded(c.category)} |" for c in card.classes]
    domain = card.domain
    seen = (
        _NOT_STATED
        if domain is None
        else f"modalities {', '.join(domain.modalities) or _NOT_STATED}; {' or '.join(map(str, domain.channels))} "
        f"channel(s); {' or '.join(map(str, domain.dimensions))} axes"
    )
    promises = (
        "its promises are in models/calibration"
        if calibrated
        else "it was not calibrated: nothing is promised"
    )
    thresholds = card.prediction.model_dump(mode="json")["score_threshold"]
    return "\n".join(
        [
            f"# {card.model['network']}: {', '.join(c.name for c in card.classes)}",
            "",
            _USE,
            "",
            "| label | class | type | category |",
            "|---|---|---|---|",
            *rows,
            "",
            f"- Trained by {card.software} on data card '{card.trained_card or _NOT_STATED}'.",
            f"- Training images: {seen}. An image of another kind is segmented with a warning in its JSON: look at it.",
            f"- Weights: SHA-256 {weights_sha256}. Their licence, authors and copyright are {_NOT_STATED}.",
            f"- Least score of an instance: {thresholds}.",
            f"- Calibration: {promises}.",
            "",
            "```",
            f"pip install 'clearmargin[bundle]=={__version__}'",
            "python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\",
            "    --bundle_root . --dataset_dir IMAGES --output_dir OUT",
            "```",
            "",
            "IMAGES holds pictures, volumes, and folders with a DICOM series. OUT gets `NAME_instances.png` (`.nii.gz`",
            "of a volume) with a value for each instance, `NAME_instances-2` for what overlaps, and",
            "`NAME_instances.json` with a row for each.",
            "",
        ]
    )


def _coded(triplet: tuple[str, str, str] | None) -> str:
    return "no code" if triplet is None else f"{triplet[2]} ({triplet[1]} {triplet[0]})"
