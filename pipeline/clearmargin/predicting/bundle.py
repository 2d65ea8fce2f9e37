"""What a MONAI bundle of a model runs: its network, its inferer, and the loop over its images.

``configs/inference.json`` names these by their paths, so that ``python -m monai.bundle run`` finds them in the package.
The same `Predictor` answers as in ``clearmargin predict``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor, nn

from clearmargin.core.layers import pack_layers
from clearmargin.errors import BatchError, ConfigError, InputError
from clearmargin.files import file_digest, parse_json, write_text
from clearmargin.formats import READERS, open_source
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.margins.assessment import Assessment
from clearmargin.networks.foreground import knows_foreground
from clearmargin.networks.semantic_cc_3d import SemanticCC3D
from clearmargin.predicting.predictor import Predictor
from clearmargin.transforms.loading import image_of, tensor_like

__all__ = [
    "DIGESTS",
    "BundleNetwork",
    "BundleRun",
    "InstanceInferer",
    "SaveInstancesd",
    "digests_of",
    "items_in",
]

log = logging.getLogger(__name__)

DIGESTS = "digests.json"
"""The file beside a bundle's model that holds the SHA-256 of the others."""


class BundleNetwork(nn.Module):
    """A model folder's network as MONAI wants one: from windows to the probability of each class.

    Instances are made of more than that, and `InstanceInferer` asks the whole `predictor` for them.
    """

    def __init__(self, folder: str | PathLike[str], device: str | torch.device = "cpu") -> None:
        """Load the model.

        Args:
            folder: The bundle's ``models``, which is a model folder.
            device: Where it runs; `to` moves it.

        Raises:
            InputError: It is not a model folder, or its files are not those that were exported. ConfigError: The device
                is not there.
        """
        super().__init__()
        _check_digests(Path(folder))
        self.predictor = Predictor(model=Path(folder), device=str(device))
        self.network = _module(self.predictor)

    def forward(self, images: Tensor) -> Tensor:
        """Return each class's probability, ``(B, K, *spatial)`` float32, of ``(B, C, *spatial)`` in [0, 1].

        Raises:
            ConfigError: The network was trained without a head that can tell.
        """
        if isinstance(self.network, SemanticCC3D):
            volume: Tensor = self.network.unet(images)[:, : self.network.classes].float().sigmoid()
            return volume
        if not knows_foreground(self.network):
            raise ConfigError(
                "expected a network with a probability for each pixel: InstanceInferer gives this one's instances"
            )
        detections = self.network.detect(images, maps=True)  # type: ignore[operator]
        maps = [one.foreground.float()[None] for one in detections]
        size = images.shape[2:]
        return torch.cat(
            [
                m if m.shape[2:] == size else F.interpolate(m, size, mode="bilinear", align_corners=False)
                for m in maps
            ]
        )

    def assess(self, tensor: MetaTensor) -> Assessment:
        """Return the prediction of a loaded image, ``(C, *spatial)``, as ``clearmargin predict`` makes it.

        Raises:
            InputError: The image is of another kind than the training images, or not one that the model can take.
        """
        where = next(self.network.parameters()).device
        if torch.device(str(self.predictor.device)).type != where.type:  # it was moved since
            self.predictor = replace(self.predictor, device=str(where))
            self.network = _module(self.predictor)
        return self.predictor.predict_case(image_of(tensor))


def digests_of(models: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a bundle's model folder, by its path in it, but for `DIGESTS` itself."""
    files = sorted(path for path in models.rglob("*") if path.is_file() and path.name != DIGESTS)
    return {path.relative_to(models).as_posix(): file_digest(path) for path in files}


def _check_digests(models: Path) -> None:
    """Refuse files that were changed since the parity gate saw them.

    Raises:
        InputError: A file is missing, was changed or was added.
    """
    path = models / DIGESTS
    if not path.is_file():
        raise InputError(f"'{path.name}' is missing in the bundle's '{models.name}': export the bundle again")
    present = digests_of(models)
    try:
        expected = dict(parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise InputError(f"'{path.name}' of the bundle is damaged: export the bundle again") from None
    changed = sorted(name for name in {*expected, *present} if expected.get(name) != present.get(name))
    if changed:
        raise InputError(
            f"{', '.join(changed)} of the bundle are not the files that were exported and compared with the model: "
            "change the model folder and export the bundle again"
        )


def _module(predictor: Predictor) -> nn.Module:
    network: Any = predictor.segmenter.network  # type: ignore[union-attr]
    if not isinstance(network, nn.Module):
        raise TypeError(f"{type(network).__name__} is no nn.Module")
    return network


class InstanceInferer(Inferer):  # type: ignore[misc]
    """From a loaded image to label layers: MONAI's inferer for instances."""

    def __call__(self, inputs: Tensor, network: BundleNetwork, *args: Any, **kwargs: Any) -> MetaTensor:
        """Return the instances of a batch of one, ``(1, L, *spatial)`` int32, that lie as ``inputs`` do.

        ``i + 1`` in some layer marks instance ``i``; the fewest layers in which no two share a pixel. The metadata
        hold a row for each in ``instances``, and why a person should look in ``warnings``.

        Args:
            inputs: ``(1, C, *spatial)`` as loaded: intensities, scale and tiles are the model's affair.
            network: As of the bundle.
            args: Not used; MONAI's engines may give more.
            kwargs: Not used.

        Raises:
            InputError: More images than one, or one that the model cannot take.
        """
        if inputs.shape[0] != 1:
            raise InputError(
                f"InstanceInferer takes one image at a time, not {inputs.shape[0]}: batch_size=1"
            )
        tensor = inputs[0]
        assessed = network.assess(tensor)
        prediction = assessed.prediction
        layers = tensor_like(pack_layers(prediction.instances), tensor)
        classes = {c.id: c for c in prediction.label_map.classes}
        layers.meta["instances"] = [
            {
                "instance": k + 1,
                "label": int(label),
                "name": classes[int(label)].name,
                "score": float(score),
                "refer_because": list(reasons),
            }
            for k, (label, score, reasons) in enumerate(
                zip(prediction.instances.labels, prediction.instances.scores, assessed.reasons, strict=True)
            )
        ]
        layers.meta["warnings"] = list(assessed.warnings)
        return layers[None]


class SaveInstancesd(MapTransform):  # type: ignore[misc]
    """Write label layers, ``NAME_instances.png`` of a picture or ``.nii.gz`` of a volume, and their rows as JSON.

    A further layer, where instances overlap, is ``NAME_instances-2``, and so on.
    """

    def __init__(self, keys: Any, output_dir: str | PathLike[str], allow_missing_keys: bool = False) -> None:
        """Name the entries that `InstanceInferer` made, ``(L, *spatial)``, and the folder to write into."""
        super().__init__(keys, allow_missing_keys)
        self.folder = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write, and return the item as it is."""
        item = dict(data)
        for key in self.key_iterator(item):
            layers: MetaTensor = item[key]
            self.folder.mkdir(parents=True, exist_ok=True)
            name = Path(str(layers.meta["filename_or_obj"])).name
            stem = name if name.rpartition(".")[0] == "" else name.removesuffix(".gz").rpartition(".")[0]
            image = image_of(layers)
            for number, layer in enumerate(image.pixels, start=1):
                whole = np.asarray(layer, np.int32)
                target = self.folder / f"{stem}_instances{'' if number == 1 else f'-{number}'}"
                if image.grid.ndim == 3:
                    write_volume(target.with_name(f"{target.name}.nii.gz"), whole, image.grid)
                else:
                    write_raster(target.with_name(f"{target.name}.png"), whole.astype(np.uint16))
            rows = {"instances": layers.meta["instances"], "warnings": layers.meta["warnings"]}
            write_text(self.folder / f"{stem}_instances.json", json.dumps(rows, indent=1) + "\n")
        return item


@dataclass
class BundleRun:
    """The bundle's loop: every image is loaded, segmented and written; those that are refused are told at the end.

    Attributes:
        dataset: Items with ``image`` loaded.
        network: `BundleNetwork`.
        inferer: `InstanceInferer`.
        postprocessing: Of an item with ``pred``.
    """

    dataset: Any
    network: BundleNetwork
    inferer: Inferer
    postprocessing: Any

    def run(self) -> None:
        """Go through the data set.

        Raises:
            SystemExit: Images were refused, and the others are written; its code is 3. The log says which, and why.
        """
        refused: list[str] = []
        for k in range(len(self.dataset)):
            try:
                item = self.dataset[k]
                item["pred"] = self.inferer(item["image"][None], self.network)[0]
                self.postprocessing(item)
            except Exception as error:
                cause = error if isinstance(error, InputError) else error.__cause__
                if not isinstance(cause, InputError):
                    raise
                refused.append(str(cause))
        if refused:
            shown = "\n".join(f"  {why}" for why in refused)
            log.error(
                "%d of %d images were refused; the others are done:\n%s",
                len(refused),
                len(self.dataset),
                shown,
            )
            raise SystemExit(BatchError.exit_code)


def items_in(folder: str | PathLike[str]) -> Sequence[dict[str, str]]:
    """Return an item for each image in a folder: its pictures and volumes, and its folders with a DICOM series.

    Raises:
        InputError: There is no such folder, or nothing in it that can be read.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"no folder '{folder}' (dataset_dir): expected one with images in it")
    items = []
    for path in sorted(place.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() or path.name.lower().endswith(tuple(READERS)):
            if path.is_dir() and open_source(path).kind != "dicom":
                continue
            items.append({"image": str(path)})
    if not items:
        raise InputError(f"no picture, volume or folder with a DICOM series in '{folder}' (dataset_dir)")
    return items
