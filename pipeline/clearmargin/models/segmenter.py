"""A network as a segmenter: image in, prediction on the image's own grid out."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clearmargin.core import (
    Grid,
    Image,
    InstanceSet,
    LabelMap,
    Landmarks,
    PointType,
    Prediction,
    Provenance,
    Thresholds,
)
from clearmargin.core.belonging import with_owners
from clearmargin.errors import ConfigError, InputError
from clearmargin.linking.slices import link_slices
from clearmargin.models.clock import Clock
from clearmargin.models.domain import Domain
from clearmargin.models.placing import Crop, place, place_view, threshold
from clearmargin.models.repeats import Suppression, without_repeats
from clearmargin.models.settings import PredictionSettings
from clearmargin.models.tiling import find_in_tiles
from clearmargin.networks.network import Detections, Network, PlaneNetwork, PointDetections
from clearmargin.networks.planning import Sees
from clearmargin.networks.threads import refuse_forked, torch_threads
from clearmargin.transforms.samples import KEYS
from clearmargin.transforms.settings import AugmentSettings, ImageSettings
from clearmargin.transforms.spatial import fitting_view, resample
from clearmargin.transforms.tensors import to_tensor
from clearmargin.transforms.turning import turn_to
from clearmargin.transforms.view import PreparedImage

__all__ = ["Look", "NetworkSegmenter", "PlaneDetections", "View", "placed_points", "with_points"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class View:
    """One way of showing an image to the network, undone exactly afterwards.

    Attributes:
        flip: Whether to mirror ``y`` and ``x``.
        zoom: Factor on the scale that the network was trained at.
    """

    flip: tuple[bool, bool] = (False, False)
    zoom: float = 1.0


class Look(Protocol):
    """What a network found in one plane of an image, or in a volume that it sees whole."""

    @property
    def grid(self) -> Grid:
        """The plane's grid, or the volume's."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """One per detection, ``(N,)``."""
        ...

    @property
    def scores(self) -> NDArray[np.float32]:
        """One per detection, ``(N,)``."""
        ...

    def placed(self, index: int) -> Crop:
        """Return a detection's probabilities on ``grid``."""
        ...

    def instances(self, rule: Suppression) -> InstanceSet:
        """Return the instances on ``grid``, best score first, less those that ``rule`` leaves out."""
        ...

    def landmarks(self) -> Landmarks | None:
        """Return the points on ``grid``, each an object of its own; None if they were not looked for."""
        ...

    def foreground(self) -> Iterator[NDArray[np.float32]]:
        """Yield each plane's probability of each class, ``(K, Y, X)``, in slice order, if maps were asked for."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlaneDetections:
    """What the network found in one plane, and the way back.

    Attributes:
        found: In network pixels.
        matrix: ``(3, 3)``, from network indices to the plane's.
        extent: ``(Y, X)`` of what the network was shown, in its pixels.
        plane: The image that was shown, in [0, 1].
        points: Types of the landmarks that the network looks for.
    """

    found: Detections
    matrix: NDArray[np.float64]
    extent: tuple[int, int]
    plane: Image
    points: tuple[PointType, ...] = ()

    @property
    def grid(self) -> Grid:
        """The plane's."""
        return self.plane.grid

    @property
    def labels(self) -> NDArray[np.int64]:
        """One per detection, ``(N,)``."""
        return self.found.labels.cpu().numpy()

    @property
    def scores(self) -> NDArray[np.float32]:
        """One per detection, ``(N,)``."""
        return self.found.scores.cpu().numpy()

    def placed(self, index: int) -> Crop:
        """Return a detection's probabilities on the plane's grid."""
        shape = (self.grid.shape[0], self.grid.shape[1])
        return place(self.found.masks[index], self.found.regions[index], self.matrix, shape)

    def instances(self, rule: Suppression) -> InstanceSet:
        """Return the instances on the plane's grid, best score first.

        What falls below one pixel there is left out and counted, and so is what shows an object, or a part of it, that
        a better mask of its label shows.
        """
        masks = [threshold(*self.placed(k), self.grid.shape) for k in range(len(self.found.scores))]
        every = InstanceSet(grid=self.grid, masks=tuple(masks), labels=self.labels, scores=self.scores)
        kept = np.array([m.area > 0 for m in masks], bool)
        if not kept.all():
            log.debug("%s: %d detection(s) hold no pixel", self.plane.source.case, int((~kept).sum()))
        return replace(without_repeats(every.select(kept), rule), landmarks=self.landmarks())

    def landmarks(self) -> Landmarks | None:
        """Return the points on the plane's grid, each an object of its own; None if they were not looked for."""
        points = self.found.landmarks
        return None if points is None else placed_points(points, self.points, self.matrix, self.grid)

    def foreground(self) -> Iterator[NDArray[np.float32]]:
        """Yield each pixel's probability of each class, ``(K, Y, X)`` on the plane's grid, once.

        Raises:
            ValueError: The look was made without ``maps``.
        """
        if self.found.foreground is None:
            raise ValueError("a look without maps has no foreground")
        shape = (self.grid.shape[0], self.grid.shape[1])
        yield place_view(self.found.foreground, self.extent, self.matrix, shape)


def placed_points(
    detections: PointDetections, types: tuple[PointType, ...], matrix: NDArray[np.float64], grid: Grid
) -> Landmarks:
    """Return points that a network found on the source's grid, each an object of its own; those outside are left out.

    Args:
        detections: In network pixels.
        types: That the network looks for.
        matrix: From network indices to the grid's.
        grid: Of the source.
    """
    n, k, ndim = len(detections.types), len(types), grid.ndim
    at, spread = np.full((n, k, ndim), np.nan), np.full((n, k, ndim, ndim), np.nan)
    visible, scores = np.zeros((n, k), np.int8), np.zeros((n, k), np.float32)
    rows = np.arange(n)
    at[rows, detections.types], spread[rows, detections.types] = detections.points, detections.covariance
    visible[rows, detections.types], scores[rows, detections.types] = detections.visible, detections.scores
    shown = Landmarks.of(types, at, visible, scores=scores, covariance=spread)
    # A mirrored view shows the left one as a right one, and is turned back as training turned it.
    return shown.moved(matrix).inside(grid.shape)


@dataclass(frozen=True, kw_only=True)
class NetworkSegmenter(ABC):
    """A trained network with what it needs to be shown an image.

    Attributes:
        network: The network.
        image: How images are shown to it.
        label_map: What its labels mean.
        provenance: What it is.
        device: Where it runs.
        choice: Which of its detections become instances.
        augment: What its training varied, and so what it can be asked to see differently.
        domain: What its training images were like; None if that is not known.
        threads: Of torch's, for what is done around the network; none: as many as torch has. Beside a runtime one: its
            threads wait by spinning when they are done, and would hold the cores of the runtime's.
        clock: Counts the time of ``transform``, ``network`` and ``masks``.
    """

    network: Network
    image: ImageSettings
    label_map: LabelMap
    provenance: Provenance
    device: torch.device
    choice: PredictionSettings = field(default_factory=PredictionSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    domain: Domain | None = None
    threads: int | None = None
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def __call__(self, image: Image) -> Prediction:
        """Segment one image or volume.

        Args:
            image: With the channels that the model takes, or one.

        Raises:
            InputError: Channels or spacing are not what the model needs.
            TypeError: It is not an image.
        """
        if not isinstance(image, Image):
            raise TypeError(
                f"a segmenter takes an Image, not {type(image).__name__}: clearmargin.transforms.image_of(tensor) "
                "makes one of a MetaTensor, clearmargin.read_image(path) one of a file"
            )
        turn = turn_to(self.image.axes, image.grid)
        seen = image if turn is None else turn.image(image)
        parts = []
        for look in self.looks(self.prepared(seen), View()):
            with self.stage("masks"):
                parts.append(look.instances(self.suppression))
        with self.stage("masks"):
            whole = self.merge(parts, seen)
            return replace(self.predicted(whole if turn is None else turn.back.instances(whole)), image=image)

    def unlike_spacing(self, grid: Grid) -> str | None:
        """Return how an image's elements differ in size from those of the training images; None if they do not."""
        if self.domain is None:
            return None
        turn = turn_to(self.image.axes, grid)
        return self.domain.unlike_spacing(
            grid if turn is None else turn.grid, planes=self.sees == "planes", resampled=self.resamples
        )

    @property
    @abstractmethod
    def sees(self) -> Sees:
        """Whether the network sees planes or volumes."""

    @property
    @abstractmethod
    def resamples(self) -> bool:
        """Whether it sees every image at one spacing in mm."""

    @property
    def finds_landmarks(self) -> bool:
        """Whether the network looks for landmarks."""
        return bool(getattr(self.network, "finds_landmarks", False))

    @property
    def finds_masks(self) -> bool:
        """Whether the network looks for instances."""
        return bool(getattr(self.network, "finds_masks", True))

    def refuse(self, what: str, way_out: str) -> None:
        """Refuse what landmarks cannot go through.

        Raises:
            ConfigError: The network finds landmarks.
        """
        if self.finds_landmarks:
            raise ConfigError(f"{self.provenance.model} finds landmarks, and {what}: {way_out}")

    def timed(self, clock: Clock) -> NetworkSegmenter:
        """Return this segmenter with another clock."""
        return replace(self, clock=clock)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of what is done around the network, with the threads that are for it."""
        refuse_forked()
        with self.clock(name), torch_threads(self.threads):
            yield

    @property
    def thresholds(self) -> Thresholds:
        """Least scores of the instances that are returned."""
        return self.choice.thresholds(self.label_map)

    @property
    def suppression(self) -> Suppression:
        """Which masks are left out for better ones of their class."""
        nested = frozenset(self.label_map.by_name(name).id for name in self.choice.nested or ())
        return Suppression(iou=self.choice.mask_nms, share=self.choice.containment, nested=nested)

    def with_threshold(self, score_threshold: float) -> NetworkSegmenter:
        """Return this segmenter with one score threshold for all classes; 0 returns all it has found."""
        return replace(self, choice=self.choice.model_copy(update={"score_threshold": score_threshold}))

    def predicted(self, instances: InstanceSet, **maps: NDArray[np.float32]) -> Prediction:
        """Return instances and maps as this segmenter's prediction."""
        return Prediction(
            instances=instances, label_map=self.label_map, provenance=self.provenance, maps=maps
        )

    def merge(self, parts: list[InstanceSet], image: Image) -> InstanceSet:
        """Return the looks' instances as the image's: linked, in a volume; those that reach their score threshold."""
        if parts[0].grid.ndim == image.grid.ndim:
            whole = parts[0]
        else:
            choice = self.choice
            whole = link_slices(parts, image.grid, min_iou=choice.link_iou, gap=choice.link_gap)
        reached = whole.select(self.thresholds.reached(whole))
        return with_points(reached, self.thresholds.landmarks, grouped=self.finds_masks)

    def prepared(self, image: Image) -> PreparedImage:
        """Return the image with the intensities that the network is shown; the same for every view of it.

        A volume's axes are left as they are: `turn_to` the model's first.

        Raises:
            InputError: Its channels are not what the model needs.
        """
        with self.stage("transform"):
            return PreparedImage(image, self.image)

    @abstractmethod
    def looks(self, ready: PreparedImage, view: View, *, maps: bool = False) -> Iterator[Look]:
        """Yield what the network finds in each plane of a ``prepared`` image, or in all of it.

        Args:
            ready: As ``prepared`` returns it.
            view: How it is shown.
            maps: Whether a look can tell its ``foreground``.

        Raises:
            InputError: The spacing is not what the model needs.
        """


def with_points(instances: InstanceSet, least: float, *, grouped: bool) -> InstanceSet:
    """Return instances with their landmarks of at least a score; ``grouped``: as objects that belong to instances."""
    if instances.landmarks is None:
        return instances
    points = instances.landmarks.at_least(least)
    return replace(instances, landmarks=with_owners(points, instances) if grouped else points)


@dataclass(frozen=True, kw_only=True)
class PlaneSegmenter(NetworkSegmenter):
    """A network of planes with what it needs to be shown an image: pictures whole, volumes slice by slice."""

    network: PlaneNetwork

    @property
    def sees(self) -> Sees:
        """Planes."""
        return "planes"

    @property
    def resamples(self) -> bool:
        """Whether ``image.spacing_mm`` is set."""
        return self.image.spacing_mm is not None

    def looks(self, ready: PreparedImage, view: View, *, maps: bool = False) -> Iterator[Look]:
        """Yield what the network finds in each plane of a ``prepared`` image, in slice order; a picture is its own."""
        if self.finds_landmarks and ready.grid.ndim == 3:
            raise InputError(
                f"{ready.source.case}: {self.provenance.model} finds landmarks of pictures, and the input is a volume: "
                "give it slices"
            )
        beyond = 0
        for z in range(ready.grid.shape[0] if ready.grid.ndim == 3 else 1):
            with self.stage("transform"):
                plane = ready.plane(z)
            seen = self._detect_plane(plane, view, maps=maps)
            beyond += seen.found.beyond
            yield seen
        if beyond:
            log.warning(
                "%s: %d instance(s) more than model.detections allows are left out", ready.source.case, beyond
            )

    def _detect_plane(self, plane: Image, view: View, *, maps: bool) -> PlaneDetections:
        scale = self.image.scale_for(plane.grid) * view.zoom
        matrix, size = fitting_view((plane.grid.shape[0], plane.grid.shape[1]), scale, flip=view.flip)
        sample = {"image": to_tensor(plane.pixels, plane.grid)}

        def look(corner: tuple[int, ...], extent: tuple[int, ...]) -> Detections:
            window = matrix @ np.array([[1, 0, corner[0]], [0, 1, corner[1]], [0, 0, 1]], np.float64)
            with self.stage("transform"):
                shown: Tensor = resample(sample, window, extent, keys=KEYS[:1])["image"].as_tensor()
            with self.clock("network"), torch.inference_mode():
                (detections,) = self.network.detect(shown[None].to(self.device), maps=maps)
            return detections

        if self.choice.tile is None:
            detections = look((0, 0), size)
        else:
            detections = find_in_tiles(
                look,
                size,
                self.choice.tile,
                (self.choice.tile_overlap,) * 2,
                rule=self.suppression,
            )
        return PlaneDetections(
            found=detections, matrix=matrix, extent=size, plane=plane, points=self.label_map.points
        )
