"""Landmarks as heat maps: one channel per type of point, whose peaks are the points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from clearmargin.errors import ConfigError
from clearmargin.networks.foreground import ForegroundHead
from clearmargin.networks.network import Detections, PlaneNetwork, PointDetections, Targets, learning
from clearmargin.networks.planning import Choice, Facts, Learns, Shown
from clearmargin.networks.pyramid import Pyramid, PyramidSettings

__all__ = ["Heatmap", "HeatmapConfig", "decode_peaks", "gaussian_maps"]

_STRIDE = 2  # network pixels per pixel of a heat map
_LEAST = 0.01  # of a peak, so that noise is not decoded


class HeatmapConfig(PyramidSettings):
    """Options of the network of landmarks."""

    unread: ClassVar[tuple[str, ...]] = (
        "augment.copy_paste",
        "prediction.mask_nms",
        "prediction.containment",
        "prediction.tile",
        "training.early_stopping",
    )
    learns: ClassVar[Learns] = "landmarks"

    network: Literal["heatmap"] = "heatmap"
    sigma: float = Field(
        4.0,
        ge=2,
        description="standard deviation of the Gaussian that a point is in training, in network pixels: about how "
        "far labels scatter, and no less than 2",
    )
    most: int = Field(1, ge=1, description="most points of a type in one image")

    @classmethod
    def objection(cls, facts: Facts, scale: float) -> str | None:
        """Return why the network cannot work on such data; None if it can."""
        return "it sees pictures, and these are volumes" if facts.ndim == 3 else None

    @classmethod
    def choices(cls, facts: Facts, shown: Shown) -> Iterator[Choice]:
        """Yield the settings that fit the data."""
        yield Choice(
            "model.most",
            max(1, facts.most_points),
            f"an image has up to {facts.most_points} point(s) of a type",
        )


class Heatmap(PlaneNetwork):
    """A backbone with its pyramid and a head at half the image's resolution, one channel per type of point.

    It learns the Gaussian around each point by the cross-entropy of every pixel, a proper score, so that the heat map
    tends to the probability-weighted mean of such Gaussians: as wide as the network is in doubt.

    Source: Tompson et al., NeurIPS 2014; several points of a type as the peaks of Zhou et al., "Objects as points",
    arXiv:1904.07850.
    """

    parts = ("pyramid", "heat")
    finds_landmarks = True

    def __init__(self, config: HeatmapConfig, *, classes: int, channels: int, pretrained: bool) -> None:
        """Build it for ``classes`` types of points."""
        super().__init__()
        if classes < 1:
            raise ConfigError(
                "heatmap: expected at least one type of landmark under the card's points, got none"
            )
        self.config, self.classes = config, classes
        width = config.fpn_channels
        self.pyramid = Pyramid(config, channels=channels, pretrained=pretrained, finest=4)
        self.heat = ForegroundHead(channels, (width,) * 4, classes)
        self.eval()

    def losses(self, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        """Return ``heat``: the cross-entropy of the heat maps, summed over pixels and divided by the Gaussians' area.

        Seen and hidden points are learnt alike; a type without a point teaches the background.
        """
        with learning(self.pyramid):
            logits = self._logits(images)
        wanted = torch.stack([self._target(t.points, logits) for t in targets])
        # the entropy of the targets is the least that the loss can be: without it, 0 is perfect
        terms = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") - _entropy(wanted)
        area = 2 * math.pi * (self.config.sigma / _STRIDE) ** 2
        return {"heat": terms.sum() / (area * len(targets) * self.classes)}

    def detect(self, images: Tensor, *, maps: bool = False) -> list[Detections]:
        """Return the peaks of each heat map as landmarks, at most ``most`` of a type; there are no masks."""
        heat = self._logits(images).sigmoid().cpu().numpy()
        return [
            Detections.without_masks(
                decode_peaks(one, sigma=self.config.sigma / _STRIDE, most=self.config.most, stride=_STRIDE),
                images.device,
            )
            for one in heat
        ]

    def _logits(self, images: Tensor) -> Tensor:
        if images.shape[-2] % 32 or images.shape[-1] % 32:
            raise ValueError(f"images of {tuple(images.shape[-2:])}: both extents must be multiples of 32")
        logits: Tensor = self.heat(images, self.pyramid(images)).float()
        return logits

    def _target(self, points: Tensor, logits: Tensor) -> Tensor:
        height, width = logits.shape[-2:]
        return gaussian_maps(
            points, self.classes, (int(height), int(width)), sigma=self.config.sigma / _STRIDE, stride=_STRIDE
        )


def gaussian_maps(points: Tensor, types: int, size: tuple[int, int], *, sigma: float, stride: int) -> Tensor:
    """Return ``(K, h, w)`` heat maps of points: a Gaussian of height 1 at each; the larger one where two overlap.

    Args:
        points: ``(P, 3)``: type, row and column in network pixels.
        types: K.
        size: ``(h, w)`` of the heat maps.
        sigma: In their pixels.
        stride: Network pixels per pixel of a heat map.
    """
    maps = torch.zeros((types, *size), device=points.device)
    # pixel j of the heat map covers the network's pixels from j * stride on
    axes = [(torch.arange(n, device=points.device) + 0.5) * stride - 0.5 for n in size]
    for kind, row, column in points.tolist():
        squares = (axes[0][:, None] - row) ** 2 + (axes[1][None] - column) ** 2
        bump = torch.exp(-squares / (2 * (sigma * stride) ** 2))
        torch.maximum(maps[int(kind)], bump, out=maps[int(kind)])
    return maps


def decode_peaks(heat: NDArray[np.float32], *, sigma: float, most: int, stride: int) -> PointDetections:
    """Return the points of heat maps, best score first.

    A peak is a pixel that no other one within ``2 sigma`` exceeds. The point is the vertex of the paraboloid that fits
    the logarithm of the 5 x 5 pixels around it best, weighted by their values: exact for a Gaussian of any width. If
    there is no vertex within 1.5 pixels, it is their centroid. Within ``3 sigma`` of it, the sum of the heat map over
    the area of a Gaussian is its score, the probability that a point is there, and the second moment is its covariance.

    Args:
        heat: ``(K, h, w)`` in [0, 1].
        sigma: Of the Gaussians in training, in pixels of the heat map.
        most: Most points per type.
        stride: Network pixels per pixel of the heat map.

    Source: the logarithm's Taylor expansion of Zhang et al., "Distribution-aware coordinate representation for human
    pose estimation" (DARK), CVPR 2020, fitted to more pixels.
    """
    from scipy.ndimage import maximum_filter

    reach = max(1, round(2 * sigma))
    types, points, scores, spreads = [], [], [], []
    for k, one in enumerate(heat.astype(np.float64)):
        top = (one == maximum_filter(one, size=2 * reach + 1, mode="constant")) & (one >= _LEAST)
        places = np.argwhere(top)
        order = np.argsort(-one[top], kind="stable")[:most]
        for y, x in places[order]:
            at = _vertex(one, int(y), int(x))
            types.append(k)
            points.append((at + 0.5) * stride - 0.5)
            spread, mass = _spread(one, at, sigma)
            scores.append(min(1.0, mass / (2 * math.pi * sigma**2)))
            spreads.append(spread * stride**2)
    best = np.argsort(-np.array(scores), kind="stable") if scores else np.zeros(0, np.int64)
    return PointDetections(
        types=np.array(types, np.int64)[best],
        points=np.array(points, np.float64).reshape(-1, 2)[best],
        scores=np.array(scores, np.float32)[best],
        covariance=np.array(spreads, np.float64).reshape(-1, 2, 2)[best],
    )


def _vertex(heat: NDArray[np.float64], y: int, x: int) -> NDArray[np.float64]:
    rows, columns, values = _window(heat, (y, x), 2)
    dy, dx = rows - y, columns - x
    weights = values / values.max()
    design = np.stack([np.ones_like(dy), dy, dx, dy**2, dx**2, dy * dx], axis=1)
    _, a, b, p, q, r = np.linalg.lstsq(
        design * weights[:, None], np.log(np.maximum(values, 1e-12)) * weights, rcond=None
    )[0]
    if 4 * p * q > r**2 and p < 0:
        shift = np.linalg.solve(np.array([[2 * p, r], [r, 2 * q]]), -np.array([a, b]))
        if np.abs(shift).max() <= 1.5:
            vertex: NDArray[np.float64] = np.array([y, x]) + shift
            return vertex
    centroid: NDArray[np.float64] = np.array([(rows * values).sum(), (columns * values).sum()]) / values.sum()
    return centroid


def _spread(
    heat: NDArray[np.float64], at: NDArray[np.float64], sigma: float
) -> tuple[NDArray[np.float64], float]:
    """Return the covariance of the heat map about a point, and its sum there."""
    rows, columns, values = _window(heat, (round(at[0]), round(at[1])), math.ceil(3 * sigma))
    away = np.stack([rows - at[0], columns - at[1]], axis=1)
    total = max(float(values.sum()), 1e-12)
    moment: NDArray[np.float64] = (away * values[:, None]).T @ away / total
    return moment, total


def _window(
    heat: NDArray[np.float64], centre: Sequence[int], reach: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return rows, columns and values of the pixels within ``reach`` of a pixel, as flat arrays."""
    low = [max(0, min(c, n - 1) - reach) for c, n in zip(centre, heat.shape, strict=True)]
    high = [min(n, max(c, 0) + reach + 1) for c, n in zip(centre, heat.shape, strict=True)]
    rows, columns = np.mgrid[low[0] : high[0], low[1] : high[1]].astype(np.float64)
    return rows.ravel(), columns.ravel(), heat[low[0] : high[0], low[1] : high[1]].ravel()


def _entropy(probability: Tensor) -> Tensor:
    inside = probability.clamp(1e-7, 1 - 1e-7)
    return -(inside * inside.log() + (1 - inside) * (1 - inside).log())
