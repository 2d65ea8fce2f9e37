"""Samples of a prediction: other weights, other views, or dropout, behind one segmenter.

Each member is a network with a view of the image. They go through a volume plane by plane, side by side, so that
the memory for probabilities is a plane's, and not a volume's times members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clearmargin.config import load_settings, read_yaml
from clearmargin.core import Grid, Image, InstanceSet, LabelMap, Prediction, Provenance, Thresholds
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import below
from clearmargin.memory import trim_heap
from clearmargin.models import load_segmenter
from clearmargin.models.domain import Domain
from clearmargin.models.files import CONFIG_FILE, ENSEMBLE_FILE, check_choice, is_ensemble, snapshots
from clearmargin.models.folder import ModelCard
from clearmargin.models.folder import load_segmenter as load_weights
from clearmargin.models.segmenter import Look, NetworkSegmenter, View, with_points
from clearmargin.models.settings import PredictionSettings
from clearmargin.networks.dropout import dropping, has_dropout
from clearmargin.networks.foreground import knows_foreground
from clearmargin.sampling.clusters import agreed_mask, find_clusters
from clearmargin.sampling.maps import MAPS, Moments
from clearmargin.sampling.points import agreed_points
from clearmargin.sampling.seen import Seen
from clearmargin.sampling.spread import Spread, measure_spread
from clearmargin.transforms.settings import AugmentSettings, ImageSettings
from clearmargin.transforms.turning import turn_to
from clearmargin.transforms.view import PreparedImage

__all__ = [
    "Member",
    "Mode",
    "SampledSegmenter",
    "augmented",
    "open_segmenter",
    "seen_by",
    "tta_views",
]

Mode = Literal["none", "checkpoints", "ensemble", "tta", "dropout"]

_ZOOM = 1.2
_TRIM_EVERY = 2  # slices
_DRAWS = 10  # of dropout
_MOST_MEMBERS = 100

Adjust = Callable[[NetworkSegmenter], NetworkSegmenter]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A network and how it is shown the image."""

    segmenter: NetworkSegmenter
    view: View = field(default_factory=View)


@dataclass(frozen=True, kw_only=True)
class SampledSegmenter:
    """Several looks at an image as one segmenter.

    Attributes:
        members: One or more, all with one label map, all of planes or all of volumes.
        mode: Where they come from.
        choice: Which of the clusters become instances.
    """

    members: tuple[Member, ...]
    mode: Mode
    choice: PredictionSettings

    def __post_init__(self) -> None:
        first = self.members[0].segmenter
        for member in self.members:
            if not knows_foreground(member.segmenter.network):
                raise ConfigError(
                    f"the {member.segmenter.provenance.model} model was trained by an earlier version, whose maps "
                    "showed the boxes of what it found: train it again, or predict with --uncertainty none"
                )
        for member in self.members[1:]:
            if member.segmenter.label_map.names != first.label_map.names:
                raise ConfigError(
                    f"one member of the ensemble knows the classes {', '.join(first.label_map.names)}, another "
                    f"{', '.join(member.segmenter.label_map.names)}: an ensemble has one label map"
                )
            if _finds(member.segmenter) != _finds(first):
                raise ConfigError(
                    f"one member of the ensemble finds {_finds(first)}, another {_finds(member.segmenter)}: an "
                    "ensemble's members are trained alike"
                )
            if member.segmenter.image.axes != first.image.axes:
                raise ConfigError(
                    f"one member of the ensemble sees volumes with the axes {first.image.axes}, another with "
                    f"{member.segmenter.image.axes}: train them with one image.axes"
                )

    @property
    def label_map(self) -> LabelMap:
        """What the labels mean."""
        return self.members[0].segmenter.label_map

    @property
    def finds_masks(self) -> bool:
        """Whether the members look for instances."""
        return self.members[0].segmenter.finds_masks

    @property
    def finds_landmarks(self) -> bool:
        """Whether the members look for landmarks."""
        return self.members[0].segmenter.finds_landmarks

    @property
    def image(self) -> ImageSettings:
        """How the first member is shown an image."""
        return self.members[0].segmenter.image

    @property
    def augment(self) -> AugmentSettings:
        """What the first member's training varied."""
        return self.members[0].segmenter.augment

    @property
    def domain(self) -> Domain | None:
        """What the first member's training images were like."""
        return self.members[0].segmenter.domain

    def unlike_spacing(self, grid: Grid) -> str | None:
        """Return how an image's elements differ in size from those of the first member's training images."""
        return self.members[0].segmenter.unlike_spacing(grid)

    @property
    def provenance(self) -> Provenance:
        """What it is: the hashes are of all members' together, and of the mode and the views."""
        made_by = [member.segmenter.provenance for member in self.members]
        views = f"{self.mode} " + " ".join(f"{m.view.flip} {m.view.zoom}" for m in self.members)
        return Provenance(
            model="+".join(dict.fromkeys(p.model for p in made_by)),
            weights_sha256=_digest([p.weights_sha256 for p in made_by]),
            config_sha256=_digest([*(p.config_sha256 for p in made_by), views]),
            software=made_by[0].software,
            runtime=made_by[0].runtime,
        )

    @property
    def thresholds(self) -> Thresholds:
        """Least existence of the instances that are returned."""
        return self.choice.thresholds(self.label_map)

    def with_threshold(self, score_threshold: float) -> SampledSegmenter:
        """Return this segmenter with one score threshold for all classes; 0 returns all it has found."""
        return replace(self, choice=self.choice.model_copy(update={"score_threshold": score_threshold}))

    def __call__(self, image: Image) -> Prediction:
        """Segment one image or volume.

        Returns:
            An instance for each object that the members find, best first. Its score is its existence
            probability, the mean of the members' scores, 0 where a member misses it; its mask is the one that
            they agree on (`agreed_mask`). Columns: those of `Spread`, with the grid's unit in ``edge_sd_mm`` and
            the smallest and largest size, and ``mean_entropy``, the mean of that map within the mask. Maps:
            ``foreground`` (mean probability), ``entropy``, ``mutual_information`` (bits) and ``variance``,
            each the largest over the classes; none of members that find landmarks alone. ``edges``: how far the
            members' edges lie apart. Landmarks: `agreed_points`.

        Raises:
            InputError: Channels or spacing are not what a member needs.
        """
        turn = turn_to(self.image.axes, image.grid)
        with self._drawing():
            samples, maps = self._sample(image if turn is None else turn.image(image))
        if turn is not None:
            samples = [turn.back.instances(sample) for sample in samples]
            maps = {name: turn.back.array(values) for name, values in maps.items()}
        clusters = [
            c for c in find_clusters(samples) if c.existence >= self.thresholds.of(c.label) - _ROUNDING
        ]
        masks = [agreed_mask(cluster) for cluster in clusters]
        thresholds = [member.segmenter.thresholds for member in self.members]
        spreads = [
            measure_spread(c, mask, image.grid, thresholds=[t.of(c.label) for t in thresholds])
            for c, mask in zip(clusters, masks, strict=True)
        ]
        instances = InstanceSet(
            grid=image.grid,
            masks=tuple(masks),
            labels=np.array([c.label for c in clusters], np.int64),
            scores=np.array([min(c.existence, 1.0) for c in clusters], np.float32),
        )
        if self.finds_masks:
            columns = _columns(spreads, instances)
            columns |= {"mean_entropy": _mean_within(instances, maps["entropy"])}
            instances = replace(instances, uncertainty=columns)
        points = [s.landmarks for s in samples if s.landmarks is not None]
        if points:
            instances = replace(instances, landmarks=agreed_points(points))
        return Prediction(
            instances=with_points(instances, self.thresholds.landmarks, grouped=self.finds_masks),
            label_map=self.label_map,
            provenance=self.provenance,
            maps=maps,
            edges=tuple(spread.edge for spread in spreads),
            image=image,
        )

    def _sample(self, image: Image) -> tuple[list[InstanceSet], dict[str, NDArray[np.float32]]]:
        """Return each member's instances, down to the lowest score, and the maps of all members together."""
        classes = len(self.label_map)
        walks = [
            member.segmenter.looks(ready, member.view, maps=self.finds_masks)
            for member, ready in zip(self.members, self._prepared(image), strict=True)
        ]
        parts: list[list[InstanceSet]] = [[] for _ in self.members]
        names = tuple(MAPS) if self.finds_masks else ()
        maps = {name: np.zeros(image.grid.shape, np.float32) for name in names}
        depth = image.grid.shape[0] if image.grid.ndim == 3 else 1
        z = 0
        while z < depth:
            seen: list[Moments] = []  # of one plane, or of all, as far as a look reaches
            # One look at a time: what a member saw of a plane, or of a volume, is gone before the next looks.
            for member, walk, part in zip(self.members, walks, parts, strict=True):
                look = next(walk)
                whole = look.grid.ndim == 3
                if maps:
                    _add(seen, look, classes)
                part.append(look.instances(member.segmenter.suppression))
                del look
                if len(seen) > 1:  # a volume's
                    trim_heap()
            z += _fill(maps, seen, z) if maps else depth if whole else 1
        every = [
            member.segmenter.with_threshold(0.0).merge(part, image)
            for member, part in zip(self.members, parts, strict=True)
        ]
        return every, maps

    def _prepared(self, image: Image) -> Iterator[PreparedImage]:
        """Yield the image as each member takes it; those that take it alike share one."""
        known: list[tuple[ImageSettings, PreparedImage]] = []
        for member in self.members:
            settings = member.segmenter.image
            ready = next((made for one, made in known if one == settings), None)
            if ready is None:
                ready = member.segmenter.prepared(image)
                known.append((settings, ready))
            yield ready

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Switch dropout on if it is what samples; the same image is then seen with the same draws."""
        with ExitStack() as stack:
            if self.mode == "dropout":
                stack.enter_context(torch.random.fork_rng())
                torch.manual_seed(0)
                for member in self.members:
                    stack.enter_context(dropping(member.segmenter.network))
            yield


_ROUNDING = 1e-9  # of a mean of equal scores


def open_segmenter(
    model: Path,
    mode: Mode,
    *,
    device: str | None = None,
    runtime: str = "torch",
    adjust: Adjust | None = None,
) -> NetworkSegmenter | SampledSegmenter:
    """Return the segmenter of a model folder, or of an ensemble's, that samples as ``mode`` says.

    Args:
        model: A model folder; for ``ensemble`` one with ``ensemble.yaml``, as crossvalidate writes it.
        mode: ``none``: the network alone. ``checkpoints``: the epochs that training kept, one training for all.
            ``ensemble``: several trainings, which is best. ``tta``: mirrored and scaled views, as far as training
            varied them. ``dropout``: the network's own dropout, drawn ten times.
        device: ``cpu`` or ``cuda``; None takes CUDA if there is one.
        runtime: ``torch``, or what the model was exported to; other weights were not.
        adjust: Applied to each network's segmenter, such as another size of tiles.

    Raises:
        ConfigError: The model cannot be sampled like that; with the reason and what can be done.
        InputError: It is not a model folder.
    """
    change = adjust or (lambda segmenter: segmenter)
    if mode == "ensemble":
        members = [change(load_segmenter(m, device=device, runtime=runtime)) for m in _members(model)]
        return _sampled(members, mode)
    check_choice(model, mode, runtime)
    if mode == "checkpoints":
        return _sampled(
            [change(load_weights(model, device=device, weights_file=path)) for path in snapshots(model)], mode
        )
    segmenter = change(load_segmenter(model, device=device, runtime=runtime))
    if mode == "tta":
        return augmented(segmenter)
    if mode == "dropout":
        if not has_dropout(segmenter.network):
            raise ConfigError(
                f"{segmenter.provenance.model} was trained without dropout, so that drawing it anew gives the same "
                "answer each time: take --uncertainty checkpoints or tta"
            )
        return _sampled([segmenter] * _DRAWS, mode)
    return segmenter


def augmented(segmenter: NetworkSegmenter, views: tuple[View, ...] | None = None) -> SampledSegmenter:
    """Return a network's segmenter that looks at several views; None for `tta_views` of its training."""
    member_views = tta_views(segmenter.augment) if views is None else views
    members = tuple(Member(segmenter=segmenter, view=view) for view in member_views)
    return SampledSegmenter(members=members, mode="tta", choice=segmenter.choice)


def tta_views(augment: AugmentSettings) -> tuple[View, ...]:
    """Return the views of test-time augmentation, the image as it is first.

    Only what training varied: a network that never saw mirrored anatomy does not know it, and its silence on a
    mirrored view would say nothing about the image. Zooms go as far as training did, and to 1.2 at most.

    >>> len(tta_views(AugmentSettings())), len(tta_views(AugmentSettings(flip_y=False)))
    (8, 6)
    """
    flips = [(y, x) for y in (False, True)[: 1 + augment.flip_y] for x in (False, True)[: 1 + augment.flip_x]]
    most = min(augment.scale, _ZOOM)
    zooms = sorted({most**power for power in (-1.0, -0.5, 0.5, 1.0)} - {1.0})
    return (*(View(flip=flip) for flip in flips), *(View(zoom=zoom) for zoom in zooms))


def seen_by(model: Path) -> Seen:
    """Return what a model, or all members of an ensemble together, was trained or chosen on.

    Raises:
        InputError: A model does not say, since an earlier version trained it.
    """
    folders = _members(model) if is_ensemble(model) else [model]
    cards = [load_settings(folder / CONFIG_FILE, ModelCard) for folder in folders]
    for folder, card in zip(folders, cards, strict=True):
        if not card.trained_on:
            raise InputError(f"'{folder.name}' does not say which groups it was trained on: train it again")
    recorded = all(card.trained_content for card in cards)
    return Seen(
        groups=frozenset(group for card in cards for group in card.trained_on),
        contents=frozenset(c for card in cards for c in card.trained_content) if recorded else frozenset(),
        keys=frozenset(card.trained_key for card in cards),
        cards=frozenset(card.trained_card for card in cards),
    )


def _members(model: Path) -> list[Path]:
    """Return the model folders of an ensemble."""
    path = model / ENSEMBLE_FILE
    if not path.is_file():
        raise ConfigError(
            f"'{model.name}' is not an ensemble: it has no {ENSEMBLE_FILE}; `clearmargin crossvalidate` writes one, "
            "and --uncertainty checkpoints needs one training alone"
        )
    names = read_yaml(path).get("members")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{ENSEMBLE_FILE} in '{model.name}' lists no members: it needs 'members', a list of folders"
        )
    if len(names) > _MOST_MEMBERS:
        raise InputError(
            f"{ENSEMBLE_FILE} in '{model.name}' lists {len(names)} members, the limit is {_MOST_MEMBERS}: list fewer"
        )
    folders = [below(model, name) for name in names]
    if any(folder is None for folder in folders):
        raise InputError(
            f"{ENSEMBLE_FILE} in '{model.name}' lists a member outside its own folder: put the models into one folder"
        )
    members = [folder for folder in folders if folder is not None]
    if len({folder.resolve() for folder in members}) < len(members):
        raise InputError(
            f"{ENSEMBLE_FILE} in '{model.name}' lists a member more than once: one model, asked twice, says nothing of "
            "uncertainty: list each once"
        )
    return members


def _sampled(segmenters: list[NetworkSegmenter], mode: Mode) -> SampledSegmenter:
    members = tuple(Member(segmenter=segmenter) for segmenter in segmenters)
    return SampledSegmenter(members=members, mode=mode, choice=segmenters[0].choice)


def _finds(segmenter: NetworkSegmenter) -> str:
    """Return what it finds: masks, and its types of landmarks by name."""
    names = [point.name for point in segmenter.label_map.points] if segmenter.finds_landmarks else []
    return " and ".join(["masks"] * segmenter.finds_masks + [f"landmarks ({', '.join(names)})"] * bool(names))


def _add(seen: list[Moments], look: Look, classes: int) -> None:
    """Count a member's look in the moments of each of its planes, which the first look makes."""
    whole = look.grid.ndim == 3
    depth = look.grid.shape[0] if whole else 1
    if not seen:
        shape = (classes, *look.grid.shape[-2:])
        seen += [Moments.zeros(shape, compact=whole) for _ in range(depth)]
    if len(seen) != depth:
        raise ConfigError("expected members that all see planes or all see volumes, got both")
    for moments, plane in zip(seen, look.foreground(), strict=True):
        moments.add(plane)


def _fill(maps: dict[str, NDArray[np.float32]], seen: list[Moments], z: int) -> int:
    """Write the maps of the planes from ``z`` on; return how many. Moments go as maps come: never are both whole."""
    depth = len(seen)
    for k in range(z, z + depth):
        moments = seen.pop(0)
        for name, values in maps.items():
            plane = values if values.ndim == 2 else values[k]
            plane[...] = MAPS[name](moments).max(axis=0)
        if k % _TRIM_EVERY == 0:
            trim_heap()
    return depth


def _columns(spreads: list[Spread], instances: InstanceSet) -> dict[str, NDArray[np.float32]]:
    grid = instances.grid
    columns = {
        "found_by": [s.found_by for s in spreads],
        "pairwise_dice": [s.pairwise_dice for s in spreads],
        f"edge_sd_{grid.unit}": [s.edge_sd for s in spreads],
        "predicted_nsd": [s.predicted_nsd for s in spreads],
        f"least_{grid.size_name}": [s.size[0] * grid.voxel_size for s in spreads],
        f"most_{grid.size_name}": [s.size[1] * grid.voxel_size for s in spreads],
    }
    return {name: np.array(values, np.float32) for name, values in columns.items()}


def _mean_within(instances: InstanceSet, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of a map over each instance's mask, ``(N,)``."""
    return np.array([values[m.slices][m.crop].mean() for m in instances.masks], np.float32)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
