"""Plan a training: from what a data set is like to a complete configuration, with the reason for each choice."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clearmargin.config import validate
from clearmargin.datasets.card import Card
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.fingerprint import Fingerprint, take_fingerprint
from clearmargin.errors import ConfigError, nearest
from clearmargin.networks import NETWORKS, config_class, network_config
from clearmargin.networks.planning import Sees, Shown
from clearmargin.report.progress import progress
from clearmargin.training.experiment import Experiment
from clearmargin.training.schedule import mostly_single, step_memory_mb, training_choices, workers
from clearmargin.transforms.planned import planned_transforms

__all__ = ["Plan", "objection", "plan", "render_plan"]

_NEED = 16.0  # network pixels across the smallest twentieth of the objects: four cells of the finest stride
_LIMIT = {"cpu": 512, "cuda": 1024}  # longest side of a view that is shown at once
_CROP = {"cpu": 256, "cuda": 768}
_ANISOTROPIC = (
    3.0  # slice distance over pixel size above which a volume is seen slice by slice: nnU-Net's limit
)
_DEEP = 8  # slices that a volume must have to be seen in space: two halvings
_THROUGH = 2  # slices that objects must reach through for the neighbours of a slice to tell anything


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration and why it is so.

    Attributes:
        experiment: Complete and valid.
        reasons: By a setting's path, such as ``image.scale``.
        fingerprint: What it was made from.
    """

    experiment: Experiment
    reasons: dict[str, str]
    fingerprint: Fingerprint


def plan(
    card: Path,
    *,
    network: str | None = None,
    device: str | None = None,
    minutes: float | None = None,
    cases: int = 100,
) -> Plan:
    """Look at a card's training cases and return a configuration for them.

    Args:
        card: A data card.
        network: Which one; None chooses ``mask_rcnn``, ``semantic_cc_3d`` or ``semantic_cc``; for a card
            with landmarks ``heatmap``, of volumes ``heatmap_3d``, and with masks of pictures ``mask_rcnn``.
        device: ``cpu`` or ``cuda``; None is what is there.
        minutes: Time that training may take; None for a number of epochs.
        cases: Most training cases that are looked at.

    Raises:
        ConfigError: The network cannot work on such data: the message says why and what can.
    """
    dataset = open_dataset(card)
    with progress("look at the data", min(cases, len(dataset.split("train")))) as bar:
        fingerprint = take_fingerprint(dataset, most=cases, advance=bar.advance)
    if not len(fingerprint.areas):
        raise ConfigError(
            f"card '{dataset.card.name}': no instance in {fingerprint.cases} training cases, and no landmark"
        )
    where = device or _device()
    choices = _Choices()
    scale = _scale(fingerprint, where)
    network_name = _choose_network(choices, fingerprint, scale, network)
    own = config_class(network_name)
    _choose_view(choices, fingerprint, dataset.card, where, own.sees)
    crop: list[int] = choices.tree["image"]["crop"]
    cores = len(os.sched_getaffinity(0))
    shown = Shown(
        scale=scale,
        crop=(crop[0], crop[1]),
        device=where,
        minutes=minutes,
        cores=max(1, cores - workers(cores)),
        memory_mb=step_memory_mb(where),
    )
    for choice in own.choices(fingerprint, shown):
        choices.set(*choice)
    _choose_augmentation(choices, fingerprint, dataset.card)
    _choose_transforms(choices, dataset.card, where, minutes)
    model = choices.tree["model"]
    for choice in training_choices(fingerprint, dataset, where, minutes, own, model):
        choices.set(*choice)
    choices.drop(own.unread)
    raw = choices.tree | {"name": f"{dataset.card.name}_{network_name}", "card": str(card), "seed": 0}
    raw["model"] = network_config(raw["model"]).model_dump(mode="json")
    return Plan(
        experiment=validate(raw, Experiment, name="the plan"),
        reasons=choices.reasons,
        fingerprint=fingerprint,
    )


class _Choices:
    """Settings as a tree, and the reason for each."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def set(self, path: str, value: Any, reason: str) -> None:
        *above, last = path.split(".")
        branch = self.tree
        for name in above:
            branch = branch.setdefault(name, {})
        branch[last] = value
        self.reasons[path] = reason

    def drop(self, paths: Sequence[str]) -> None:
        """Leave out settings that the network does not read."""
        for path in set(paths) & set(self.reasons):
            *above, last = path.split(".")
            branch = self.tree
            for name in above:
                branch = branch[name]
            del branch[last], self.reasons[path]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _scale(fingerprint: Fingerprint, device: str) -> float:
    """Return network pixels per image pixel: what small objects need, and no more than large images allow."""
    need = _NEED / max(1.0, float(np.quantile(fingerprint.sides, 0.05)))
    fits = _LIMIT[device] / float(fingerprint.shapes.max())
    scale = min(need, 2.0) if need > 1 else max(need, min(1.0, fits))
    return max(0.25, round(scale * 20) / 20)


def _choose_view(choices: _Choices, fingerprint: Fingerprint, card: Card, device: str, sees: Sees) -> None:
    scale = _scale(fingerprint, device)
    small, large = np.quantile(fingerprint.sides, (0.05, 0.95))
    size = f"5 % of the objects are under {small:.0f} px across, images up to {fingerprint.shapes.max()} px"
    spread = fingerprint.spacings.max() / fingerprint.spacings.min()
    if fingerprint.unit == "mm" and spread > 1.1:
        spacing = float(np.median(fingerprint.spacings)) / scale
        choices.set(
            "image.spacing_mm",
            round(spacing, 3),
            f"spacing varies {spread:.1f} times between cases; at the median one {size}",
        )
    else:
        choices.set("image.scale", scale, size)
    needed = 32 * math.ceil(max(64.0, 1.5 * large * scale) / 32)
    crop = [
        min(needed, _CROP[device], 32 * math.ceil(float(extent) * scale / 32))
        for extent in np.median(fingerprint.shapes, axis=0)
    ]
    choices.set(
        "image.crop",
        [max(64, n) for n in crop],
        f"1.5 times the largest objects ({large * scale:.0f} network px), within the image and {device}'s memory",
    )
    channels = 3 if fingerprint.channels in (1, 3) else fingerprint.channels
    why = f"the images have {fingerprint.channels}"
    if fingerprint.ndim == 3 and sees == "volumes":
        channels = fingerprint.channels
    elif fingerprint.ndim == 3:
        neighbours, reason = _neighbours(fingerprint)
        choices.set("image.neighbours", neighbours, reason)
        if neighbours:
            channels, why = 3 * fingerprint.channels, f"{why}, and three slices are seen"
    choices.set("image.channels", channels, why)
    choices.set("image.intensity", *_intensity(fingerprint, card))
    view = fingerprint.shapes.max() * scale
    if view > 1.5 * _LIMIT[device]:
        tile = 32 * (_LIMIT[device] // 32)
        choices.set("prediction.tile", [tile, tile], f"a whole image would be {view:.0f} network px")


def _neighbours(fingerprint: Fingerprint) -> tuple[int, str]:
    """Return how many slices on each side a slice of a volume is seen with, and why."""
    span = float(np.median(fingerprint.spans)) if len(fingerprint.spans) else 0.0
    if span < _THROUGH:
        return 0, f"objects reach through {span:.0f} slices in the median: the ones beside them tell nothing"
    return 1, f"objects reach through {span:.0f} slices in the median: each is seen with the ones beside it"


def _intensity(fingerprint: Fingerprint, card: Card) -> tuple[dict[str, Any], str]:
    if card.modality == "CT" and fingerprint.values:
        low, high = fingerprint.values[0], fingerprint.values[-1]
        margin = 0.25 * (high - low)
        window = {"kind": "window", "low": 10.0 * math.floor((low - margin) / 10)}
        window["high"] = 10.0 * math.ceil((high + margin) / 10)
        return (
            window,
            f"Hounsfield units mean the same in each case; objects lie within {low:.0f}..{high:.0f}",
        )
    if fingerprint.bits == 8 and fingerprint.channels == 3:
        return {"kind": "window", "low": 0.0, "high": 255.0}, "8-bit colour"
    per_channel = fingerprint.channels not in (1, 3)
    choice = {"kind": "percentiles", "low": 0.5, "high": 99.5}
    if per_channel:
        choice["per_channel"] = True
    return choice, f"values of {card.modality} have no scale of their own"


def objection(network: str, fingerprint: Fingerprint, scale: float) -> str | None:
    """Return why a network cannot work on such data; None if it can."""
    learns = config_class(network).learns
    if not (fingerprint.has_masks if learns == "masks" else fingerprint.most_points):
        return f"the card has no {learns}"
    return config_class(network).objection(fingerprint, scale)


def _choose_network(choices: _Choices, fingerprint: Fingerprint, scale: float, asked: str | None) -> str:
    if asked is not None:
        if asked not in NETWORKS:
            raise ConfigError(f"no model '{asked}': {nearest(asked, NETWORKS)}")
        reason = objection(asked, fingerprint, scale)
        if reason:
            able = [name for name in NETWORKS if objection(name, fingerprint, scale) is None]
            raise ConfigError(f"{asked} does not fit this data: {reason}; {', '.join(able)} can")
        choices.set("model.network", asked, "asked for")
        return asked
    network, reason = (
        _landmark_network(fingerprint) if fingerprint.most_points else _fitting_network(fingerprint, scale)
    )
    choices.set("model.network", network, reason)
    return network


def _landmark_network(fingerprint: Fingerprint) -> tuple[str, str]:
    """Return the network of a card with landmarks, and why."""
    if not fingerprint.has_masks:
        return ("heatmap_3d" if fingerprint.ndim == 3 else "heatmap"), "the card has landmarks and no masks"
    if fingerprint.ndim == 3:
        return "heatmap_3d", (
            "the card has landmarks, and no network of volumes learns them beside masks: the masks take a training of "
            "their own, such as --network semantic_cc_3d"
        )
    return "mask_rcnn", "the card has masks and landmarks, and it learns both"


def _fitting_network(fingerprint: Fingerprint, scale: float) -> tuple[str, str]:
    """Return a network and why.

    A network that starts from pretrained weights finds objects within minutes, where one that starts from nothing may
    find none: the rules were held against runs of equal minutes (docs/plan.md).
    """
    # Asked of volumes alone: the network of volumes loads MONAI.
    flat = _flatness(fingerprint) if fingerprint.ndim == 3 else None
    if fingerprint.ndim == 3 and flat is None and objection("semantic_cc_3d", fingerprint, scale) is None:
        return "semantic_cc_3d", (
            f"volumes whose slices lie at most {_ANISOTROPIC:g} pixels apart are seen in space, and "
            f"{100 * fingerprint.touching:.0f} % of the objects touch another of their class"
        )
    if (
        mostly_single(fingerprint, "planes")
        and fingerprint.touching == 0
        and float(np.median(fingerprint.thickness)) * scale < 4
    ):
        return (
            "semantic_cc",
            "one thin object of a class per image, which the coarse masks of a box would lose",
        )
    several = f"{100 * (1 - _single(fingerprint)):.0f} % of the images have several objects of a class"
    return "mask_rcnn", (
        f"its backbone is pretrained, so that it detects objects within minutes; {several}, "
        f"{100 * fingerprint.touching:.0f} % of the objects touch" + (f"; {flat}" if flat else "")
    )


def _flatness(fingerprint: Fingerprint) -> str | None:
    """Return why volumes are seen slice by slice; None if they are seen in space."""
    if fingerprint.elongation > _ANISOTROPIC:
        return f"slices lie {fingerprint.elongation:.1f} pixels apart, over {_ANISOTROPIC:g}: they are seen one by one"
    depth = float(np.median(fingerprint.depths))
    if depth < _DEEP:
        return f"volumes have {depth:.0f} slices in the median, under {_DEEP}: they are seen one by one"
    return None


def _single(fingerprint: Fingerprint) -> float:
    """Return the share of the planes that hold at most one object per class."""
    return float((fingerprint.counts <= len(fingerprint.classes)).mean())


def _choose_augmentation(choices: _Choices, fingerprint: Fingerprint, card: Card) -> None:
    free = card.modality in ("SM", "GM", "XC", "OT")
    names = [c.name for c in card.classes] + [p.name.lower() for p in card.points if p.mirror is None]
    sided = any(word in name for name in names for word in ("left", "right"))
    choices.set(
        "augment.flip_x",
        not sided,
        "names say left and right" if sided else "mirrored anatomy is as likely",
    )
    up = f"{card.modality} pictures have" + (" no" if free else " an") + " upper side"
    choices.set("augment.flip_y", free, up)
    choices.set("augment.rotate90", free, up)
    counts = np.array([n for n in fingerprint.classes.values() if n])
    if len(counts) > 1 and counts.max() > 10 * counts.min():
        choices.set(
            "augment.repeat_threshold",
            0.1,
            f"the most frequent class has {counts.max() / counts.min():.0f} times the objects of the rarest",
        )


_LONG_CPU = 60.0  # minutes from which on a CPU, too, sees enough windows to tire of them


def _choose_transforms(choices: _Choices, card: Card, device: str, minutes: float | None) -> None:
    """Choose MONAI's transforms by modality, for trainings that are long enough to need them.

    In minutes on a CPU models were not better with them (docs/lab/planning.md).
    """
    transforms, reason = planned_transforms(card.modality)
    if transforms and device == "cpu" and (minutes is None or minutes < _LONG_CPU):
        names = ", ".join(name for step in transforms for name in step)
        reason = f"in minutes on a CPU more variation did not help; a longer training gets {names}: {reason}"
        transforms = ()
    choices.set("augment.transforms", list(transforms), reason)


def render_plan(done: Plan) -> str:
    """Return the plan as YAML: complete, with the fingerprint above and each choice's reason beside it."""
    fingerprint = done.fingerprint
    low, middle, high = np.quantile(fingerprint.sides, (0.05, 0.5, 0.95))
    spacings = sorted({f"{value:.3g}" for value in fingerprint.spacings.flatten()})
    head = [
        f"Planned from {fingerprint.cases} of {fingerprint.of} training cases by `clearmargin plan`.",
        f"images: {fingerprint.shapes.min(axis=0).tolist()} to {fingerprint.shapes.max(axis=0).tolist()} px, "
        f"{fingerprint.channels} channel(s) of {fingerprint.bits} bits, "
        f"spacing {', '.join(spacings[:3])} {fingerprint.unit}",
        f"objects: {len(fingerprint.areas)} in planes, {low:.0f} / {middle:.0f} / {high:.0f} px across (5, 50, 95 %), "
        f"{fingerprint.counts.min()} to {fingerprint.counts.max()} an image",
        f"of them {100 * fingerprint.touching:.0f} % touch one of their class, "
        f"{100 * fingerprint.overlapping:.0f} % overlap another one, {100 * fingerprint.nested:.0f} % lie in one",
    ]
    lines = [f"# {line}" for line in head]
    lines += _lines(done.experiment.model_dump(mode="json"), done.reasons, "")
    return "\n".join(lines) + "\n"


def _lines(tree: dict[str, Any], reasons: dict[str, str], path: str) -> list[str]:
    lines = []
    indent = "  " * path.count(".")
    for name, value in tree.items():
        where = f"{path}{name}"
        nested = isinstance(value, dict) and where not in reasons and value
        shown = "" if nested else " " + _flow(value)
        reason = f"  # {reasons[where]}" if where in reasons else ""
        lines.append(f"{indent}{name}:{shown}{reason}")
        if nested:
            lines += _lines(value, reasons, f"{where}.")
    return lines


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()
