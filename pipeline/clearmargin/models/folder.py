"""A model folder: the resolved configuration, the label map and the weights; what a run's model is on disk.

``model.yaml``: network, image settings, classes, provenance. ``weights.safetensors``: the state dict.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field
from torch import Tensor

from clearmargin.config import Settings, digest, load_settings
from clearmargin.core import Code, LabelClass, LabelMap, PointType, Provenance
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import file_digest, whole, write_text
from clearmargin.models.domain import Domain
from clearmargin.models.files import (
    CONFIG_FILE,
    RUNTIME_FILE,
    SNAPSHOTS,
    WEIGHTS_FILE,
    check_exported,
    snapshots,
)
from clearmargin.models.runtimes import runtime as find_runtime
from clearmargin.models.segmenter import NetworkSegmenter
from clearmargin.models.settings import PredictionSettings
from clearmargin.networks import build_network, learnt_names, network_config
from clearmargin.networks.foreground import forget_foreground
from clearmargin.networks.network import Network
from clearmargin.networks.parts import RuntimePart, replace_parts
from clearmargin.networks.threads import refuse_forked
from clearmargin.transforms.settings import AugmentSettings, ImageSettings

__all__ = [
    "ModelCard",
    "RuntimeCard",
    "label_map_entries",
    "load_segmenter",
    "point_entries",
    "save_model",
    "save_runtime",
    "save_snapshot",
]

_SPARE_BYTES = 2**26  # by which a network may be larger than its weights: parts that earlier versions lack


class ClassEntry(Settings):
    """One class of the label map, codes as ``[value, scheme, meaning]``."""

    id: int
    name: str
    kind: str
    type: tuple[str, str, str] | None = None
    category: tuple[str, str, str] | None = None


class PointEntry(Settings):
    """One type of landmark, its code as ``[value, scheme, meaning]``."""

    name: str
    code: tuple[str, str, str] | None = None
    mirror: str | None = None
    falloff: float = 0.05


class ModelCard(Settings):
    """What ``model.yaml`` holds."""

    software: str = Field(description="clearmargin and the version that trained it")
    model: dict[str, Any]
    image: ImageSettings
    augment: AugmentSettings = Field(
        description="variation in training, which test-time augmentation keeps to"
    )
    classes: tuple[ClassEntry, ...]
    points: tuple[PointEntry, ...] = Field((), description="types of landmarks, in the network's order")
    prediction: PredictionSettings = PredictionSettings()
    domain: Domain | None = Field(None, description="kind of its training images; null if not known")
    map_temperatures: dict[str, float] = Field(
        {},
        description="by class, what the logits of its maps were divided by after training; the weights have it already",
    )
    show_in_tracking: bool = Field(description="whether pictures of its data may go to a tracking server")
    trained_on: tuple[str, ...] = Field(
        (), description="keyed hashes of the groups it was trained or chosen on: none may calibrate it"
    )
    trained_content: tuple[str, ...] = Field(
        (),
        description="hashes of the images of these groups: the same picture under another name is known again",
    )
    trained_key: str = Field("", description="fingerprint of the key that the groups were hashed with")
    trained_card: str = Field("", description="name of the data card, which the groups' hashes depend on")

    @property
    def label_map(self) -> LabelMap:
        """The classes as core's label map."""
        return LabelMap(
            tuple(
                LabelClass(
                    id=c.id,
                    name=c.name,
                    kind="stuff" if c.kind == "stuff" else "thing",
                    type=_code(c.type),
                    category=_code(c.category),
                )
                for c in self.classes
            ),
            tuple(
                PointType(name=p.name, code=_code(p.code), mirror=p.mirror, falloff=p.falloff)
                for p in self.points
            ),
        )


class RuntimeCard(Settings):
    """What ``runtime.yaml`` of an export holds."""

    runtime: str
    weights_sha256: str = Field(description="SHA-256 of the weights that were exported")
    torch: str = Field(description="version that wrote it")
    parts: dict[str, Any] = Field(description="structure of each part's result, by its path in the network")


def label_map_entries(label_map: LabelMap) -> tuple[ClassEntry, ...]:
    """Return a label map as ``model.yaml`` keeps it."""
    return tuple(
        ClassEntry(
            id=c.id,
            name=c.name,
            kind=c.kind,
            type=_triplet(c.type),
            category=_triplet(c.category),
        )
        for c in label_map.classes
    )


def point_entries(label_map: LabelMap) -> tuple[PointEntry, ...]:
    """Return a label map's types of landmarks as ``model.yaml`` keeps them."""
    return tuple(
        PointEntry(name=p.name, code=_triplet(p.code), mirror=p.mirror, falloff=p.falloff)
        for p in label_map.points
    )


def save_model(folder: Path, card: ModelCard, state: Mapping[str, Tensor]) -> None:
    """Write a model folder; a reader never sees half of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_weights(folder / WEIGHTS_FILE, state)
    write_text(folder / CONFIG_FILE, yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False))


def save_snapshot(folder: Path, epoch: int, state: Mapping[str, Tensor], *, keep: int) -> None:
    """Keep the weights of an epoch in a model folder, with at most ``keep - 1`` earlier ones of the last half so far.

    They are spread about evenly: members of a checkpoint ensemble. Fewer if there were fewer epochs.

    Source: Chen et al., "Checkpoint ensembles", arXiv:1710.03282.
    """
    held = folder / SNAPSHOTS
    held.mkdir(parents=True, exist_ok=True)
    _save_weights(held / f"epoch-{epoch:05d}.safetensors", state)
    known = {int(path.stem.removeprefix("epoch-")): path for path in snapshots(folder)}
    while len(known) > keep:
        known.pop(_least_wanted(sorted(known))).unlink()


def _least_wanted(epochs: list[int]) -> int:
    """Return the epoch without which the others are spread most evenly over the last half; never the newest.

    Evenness is the sum of squares of the gaps, that to the middle of the training so far among them: of equal gaps in a
    row the first would go each time, and the last few epochs, which hardly differ, be left.
    """
    middle = epochs[-1] / 2

    def unevenness(without: int) -> float:
        left = [epoch for epoch in epochs if epoch != without]
        gaps = [later - earlier for earlier, later in itertools.pairwise(left)]
        return sum(gap**2 for gap in (*gaps, left[0] - middle))

    return min(epochs[:-1], key=unevenness)


def _save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with whole(
        path
    ) as draft:  # which gives the weights the mode of any file: safetensors makes them the owner's alone
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, draft)


def load_segmenter(
    folder: Path,
    *,
    device: str | None = None,
    runtime: str = "torch",
    runtime_folder: Path | None = None,
    weights_file: Path | None = None,
) -> NetworkSegmenter:
    """Return the segmenter of a model folder; arguments as of ``clearmargin.models.load_segmenter``.

    ``weights_file`` takes other weights of the same network, such as one of its ``snapshots``.

    Raises:
        InputError: It is not a model folder, its weights are of another network, or its export is of other weights.
        ConfigError: It was not exported to the runtime, or the device does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(
            f"'{folder.name}' is not a model folder: it lacks {CONFIG_FILE} or {WEIGHTS_FILE}; "
            "`clearmargin train` writes one under its run's folder, in model/"
        )
    card = load_settings(folder / CONFIG_FILE, ModelCard)
    _refuse_other_classes(folder, card)
    refuse_forked()
    weights_path = weights_file or folder / WEIGHTS_FILE
    _refuse_larger_than(weights_path, card)
    network = _network_of(card)
    try:
        state = load_file(weights_path)
        forget_foreground(network, state)
        network.load_state_dict(state)
    except SafetensorError:
        raise InputError(
            f"the weights in '{folder.name}' cannot be read: {weights_path.name} has {weights_path.stat().st_size} "
            "bytes and is cut off, damaged or not safetensors: copy it anew"
        ) from None
    except RuntimeError as error:
        raise InputError(
            f"the weights in '{folder.name}' do not fit its configuration; they are of another network, or of "
            f"a version with other defaults (CHANGELOG.md): {error}"
        ) from None
    broken = sum(
        int((~torch.isfinite(v)).sum()) for v in network.state_dict().values() if v.is_floating_point()
    )
    if broken:
        raise InputError(
            f"{broken} of the weights in '{folder.name}' are not finite: the training that wrote them went astray; "
            "take another model"
        )
    default = "cuda" if torch.cuda.is_available() and runtime == "torch" else "cpu"
    where = torch.device(device or default)
    if where.type == "cuda" and runtime != "torch":
        raise ConfigError(f"runtime '{runtime}' runs on the CPU: leave the device out")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but no CUDA device is there: leave the option out")
    weights = file_digest(weights_path)
    if runtime != "torch":
        _use_runtime(network, runtime, runtime_folder or folder / runtime, weights)
    elif network.dimensions == 2:
        network.to(memory_format=network.layout)
    return segmenter_of(
        network.to(where),
        image=card.image,
        label_map=card.label_map,
        provenance=Provenance(
            model=card.model["network"],
            weights_sha256=weights,
            config_sha256=digest(card),
            software=card.software,
            runtime=runtime,
        ),
        device=where,
        choice=card.prediction,
        augment=card.augment,
        domain=card.domain,
        threads=None if runtime == "torch" else 1,
    )


def _refuse_other_classes(folder: Path, card: ModelCard) -> None:
    """Refuse thresholds and nested classes of names that the card does not have."""
    try:
        card.prediction.thresholds(card.label_map)
        for name in card.prediction.nested or ():
            card.label_map.by_name(name)
    except ConfigError as error:
        raise InputError(f"prediction in {CONFIG_FILE} of '{folder.name}': {error}") from None


def _network_of(card: ModelCard) -> Network:
    config = network_config(card.model)
    return build_network(
        config,
        classes=len(learnt_names(config, card.label_map)),
        channels=card.image.channels,
        points=len(card.points),
        pretrained=False,
    )


def _refuse_larger_than(weights: Path, card: ModelCard) -> None:
    """Refuse a configuration whose network would be far larger than the weights beside it: it is not built at all.

    Raises:
        InputError: The network's outline, which has no memory, is larger.
    """
    with torch.device("meta"):
        outline = _network_of(card)
    size = sum(v.numel() * v.element_size() for v in outline.state_dict().values())
    if size > weights.stat().st_size + _SPARE_BYTES:
        raise InputError(
            f"the network that '{CONFIG_FILE}' describes has {size / 2**20:.0f} MiB of weights, and '{weights.name}' "
            f"holds {weights.stat().st_size / 2**20:.0f}: they are of another network"
        )


def save_runtime(folder: Path, card: RuntimeCard) -> None:
    """Write what an export is beside its parts."""
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False)
    write_text(folder / RUNTIME_FILE, text)


def _use_runtime(network: Network, name: str, folder: Path, weights: str) -> None:
    """Let a runtime compute the network's parts."""
    target = find_runtime(name)
    check_exported(folder, name)
    card = load_settings(folder / RUNTIME_FILE, RuntimeCard)
    if card.weights_sha256 != weights:
        raise InputError(f"the export to '{name}' is of other weights than the model's: export it again")
    threads, parts = torch.get_num_threads(), {}
    for part, outputs in card.parts.items():
        if part not in dict(network.named_modules()):
            raise InputError(
                f"the export to '{name}' holds a part that the network does not have: export it again"
            )
        path = folder / f"{part}{target.suffix}"
        try:
            parts[part] = RuntimePart(target.load(path, threads), outputs)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no class in common
            raise InputError(
                f"'{path.name}' of the export to '{name}' is missing or damaged ({type(error).__name__}): "
                "export it again"
            ) from None
    replace_parts(network, parts)
    network.beside_runtime()


def segmenter_of(network: Network, **options: Any) -> NetworkSegmenter:
    """Return the segmenter for what a network sees: planes or volumes.

    Args:
        network: On its device.
        options: Further fields of `NetworkSegmenter`.
    """
    from clearmargin.models.segmenter import PlaneSegmenter
    from clearmargin.models.volume_segmenter import VolumeSegmenter, WindowSegmenter
    from clearmargin.networks.network import PlaneNetwork, VolumeNetwork, WindowNetwork

    if isinstance(network, WindowNetwork):
        return WindowSegmenter(network=network, **options)
    if isinstance(network, VolumeNetwork):
        return VolumeSegmenter(network=network, **options)
    if isinstance(network, PlaneNetwork):
        return PlaneSegmenter(network=network, **options)
    raise TypeError(f"expected a network of planes or volumes, got {type(network).__name__}")


def _code(triplet: tuple[str, str, str] | None) -> Code | None:
    return None if triplet is None else Code(value=triplet[0], scheme=triplet[1], meaning=triplet[2])


def _triplet(code: Code | None) -> tuple[str, str, str] | None:
    return None if code is None else (code.value, code.scheme, code.meaning)
