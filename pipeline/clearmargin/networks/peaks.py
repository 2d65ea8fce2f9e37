"""Points as Gaussians in heat maps, of pictures and volumes: how they are drawn, learnt and found again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from clearmargin.config import Settings
from clearmargin.core.landmarks import HIDDEN, SEEN
from clearmargin.networks.network import PointDetections

__all__ = [
    "HeatSettings",
    "decode_peaks",
    "gaussian_maps",
    "heat_channels",
    "heat_losses",
]

_LEAST = 0.01  # of a peak, so that noise is not decoded

Width = float | Sequence[float]
"""Standard deviation of a Gaussian: one for all axes, or one for each."""


class HeatSettings(Settings):
    """Options of heat maps, whatever network makes them."""

    most: int = Field(1, ge=1, description="most points of a type in one image")
    visibility: bool = Field(
        False, description="whether hidden points are told from seen ones, by channels of their own"
    )


def heat_channels(settings: HeatSettings, types: int) -> int:
    """Return the channels of so many types of points: their heat maps, and then how likely each is hidden."""
    return types * (2 if settings.visibility else 1)


def gaussian_maps(
    points: Tensor, types: int, size: Sequence[int], *, sigma: Width, stride: float = 1
) -> Tensor:
    """Return ``(K, *size)`` heat maps of points: a Gaussian of height 1 at each; the larger one where two overlap.

    Args:
        points: ``(P, 1 + ndim)`` or wider: type, and indices in network pixels (voxels).
        types: K.
        size: ``(h, w)`` or ``(d, h, w)`` of the heat maps.
        sigma: In their pixels.
        stride: Network pixels per pixel of a heat map.
    """
    maps = torch.zeros((types, *size), device=points.device)
    widths = _widths(sigma, len(size))
    for kind, *at in points[:, : 1 + len(size)].tolist():
        bump = torch.ones((), device=points.device)
        for n, centre, width in zip(size, at, widths, strict=True):
            # pixel j of the heat map covers the network's pixels from j * stride on
            away = (torch.arange(n, device=points.device) + 0.5) * stride - 0.5 - centre
            bump = bump[..., None] * torch.exp(-(away**2) / (2 * (width * stride) ** 2))
        torch.maximum(maps[int(kind)], bump, out=maps[int(kind)])
    return maps


def heat_losses(
    logits: Tensor, points: Sequence[Tensor], sigmas: Sequence[Width], types: int, *, stride: float = 1
) -> dict[str, Tensor]:
    """Return ``heat``: the cross-entropy of the heat maps, summed over pixels and divided by the Gaussians' volume.

    With channels for them also ``hidden``: the cross-entropy of whether a point is hidden, in the pixels of its
    Gaussian and weighted by it; the mean over points, 0 without any.

    Args:
        logits: ``(B, K, *size)``, or ``(B, 2 K, *size)``.
        points: ``(P, 2 + ndim)`` each: type, indices in network pixels, visibility.
        sigmas: Widths of each image's Gaussians, in pixels of its heat maps.
        types: K.
        stride: Network pixels per pixel of a heat map.
    """
    size = logits.shape[2:]
    targets = torch.stack(
        [gaussian_maps(p, types, size, sigma=s, stride=stride) for p, s in zip(points, sigmas, strict=True)]
    )
    # the entropy of the targets is the least that the loss can be: without it, 0 is perfect
    terms = F.binary_cross_entropy_with_logits(logits[:, :types], targets, reduction="none") - _entropy(
        targets
    )
    areas = torch.tensor([_volume(s, len(size)) for s in sigmas], device=logits.device)
    losses = {"heat": (terms.flatten(1).sum(1) / areas).mean() / types}
    if logits.shape[1] > types:
        of_points = [
            _hidden_loss(one[types:], at, sigma, stride)
            for one, p, sigma in zip(logits, points, sigmas, strict=True)
            for at in p
        ]
        losses["hidden"] = torch.stack(of_points).mean() if of_points else logits[:, types:].sum() * 0
    return losses


def _hidden_loss(logits: Tensor, point: Tensor, sigma: Width, stride: float) -> Tensor:
    kind = int(point[0])
    at = torch.cat([point.new_zeros(1), point[1:-1]])[None]
    weight = gaussian_maps(at, 1, logits.shape[1:], sigma=sigma, stride=stride)[0]
    truth = torch.full_like(logits[kind], float(point[-1] == HIDDEN))
    terms = F.binary_cross_entropy_with_logits(logits[kind], truth, reduction="none")
    return (terms * weight).sum() / weight.sum().clamp_min(1e-6)


def decode_peaks(
    heat: NDArray[np.float32],
    *,
    sigma: Width,
    most: int,
    stride: float = 1,
    hidden: NDArray[np.float32] | None = None,
) -> PointDetections:
    """Return the points of heat maps, best score first.

    A peak is a pixel that no other one within ``2 sigma`` exceeds. The point is the vertex of the paraboloid that fits
    the logarithm of the pixels around it best, five along each axis, weighted by their values: exact for a Gaussian of
    any width. If there is no vertex within 1.5 pixels, it is their centroid. Within ``3 sigma`` of it, the sum of the
    heat map over that of a Gaussian there is its score, the probability that a point is there, and the second moment is
    its covariance.

    Args:
        heat: ``(K, h, w)`` or ``(K, d, h, w)`` in [0, 1].
        sigma: Of the Gaussians in training, in pixels of the heat map.
        most: Most points per type.
        stride: Network pixels per pixel of the heat map.
        hidden: As ``heat``: how likely a point there is hidden; None if it is not known, and all are seen.

    Source: the logarithm's Taylor expansion of Zhang et al., "Distribution-aware coordinate representation for human
    pose estimation" (DARK), CVPR 2020, fitted to more pixels.
    """
    from scipy.ndimage import maximum_filter

    ndim = heat.ndim - 1
    widths = _widths(sigma, ndim)
    around = [2 * max(1, round(2 * width)) + 1 for width in widths]
    types, points, scores, spreads, seen = [], [], [], [], []
    for k, one in enumerate(heat):
        top = (one == maximum_filter(one, size=around, mode="constant")) & (one >= _LEAST)
        places = np.argwhere(top)
        order = np.argsort(-one[top], kind="stable")[:most]
        for place in places[order].tolist():
            at = _vertex(one, place, widths)
            spread, score, share = _spread(one, at, widths, None if hidden is None else hidden[k])
            types.append(k)
            points.append((at + 0.5) * stride - 0.5)
            scores.append(score)
            spreads.append(spread * stride**2)
            seen.append(HIDDEN if share > 0.5 else SEEN)
    best = np.argsort(-np.array(scores), kind="stable") if scores else np.zeros(0, np.int64)
    return PointDetections(
        types=np.array(types, np.int64)[best],
        points=np.array(points, np.float64).reshape(-1, ndim)[best],
        scores=np.array(scores, np.float32)[best],
        covariance=np.array(spreads, np.float64).reshape(-1, ndim, ndim)[best],
        visible=np.array(seen, np.int8)[best],
    )


def _vertex(heat: NDArray[np.float32], place: Sequence[int], widths: Sequence[float]) -> NDArray[np.float64]:
    # beyond a narrow Gaussian's neighbours there is nothing but noise
    reach = [2 if width >= 1 else 1 for width in widths]
    indices, values = _window(heat, place, reach)
    away = indices - np.array(place)
    weights = values / values.max()
    ndim = len(place)
    pairs = [(i, j) for i in range(ndim) for j in range(i, ndim)]
    design = np.column_stack([np.ones(len(away)), away, *(away[:, i] * away[:, j] for i, j in pairs)])
    fit = np.linalg.lstsq(design * weights[:, None], np.log(np.maximum(values, 1e-12)) * weights, rcond=None)[
        0
    ]
    slope, curvature = fit[1 : 1 + ndim], np.zeros((ndim, ndim))
    for (i, j), value in zip(pairs, fit[1 + ndim :], strict=True):
        curvature[i, j] += value
        curvature[j, i] += value
    if np.linalg.eigvalsh(curvature).max() < -1e-6:
        shift = np.linalg.solve(curvature, -slope)
        if np.abs(shift).max() <= 1.5:
            vertex: NDArray[np.float64] = np.array(place) + shift
            return vertex
    centroid: NDArray[np.float64] = (indices * values[:, None]).sum(axis=0) / values.sum()
    return centroid


def _spread(
    heat: NDArray[np.float32],
    at: NDArray[np.float64],
    widths: Sequence[float],
    hidden: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float64], float, float]:
    """Return the covariance of the heat map about a point, its score, and how likely it is hidden."""
    place, reach = [round(v) for v in at.tolist()], [math.ceil(3 * width) for width in widths]
    indices, values = _window(heat, place, reach)
    away = indices - at
    total = max(float(values.sum()), 1e-12)
    moment: NDArray[np.float64] = (away * values[:, None]).T @ away / total
    whole = float(np.exp(-0.5 * ((away / np.array(widths)) ** 2).sum(axis=1)).sum())
    share = 0.0 if hidden is None else float((_window(hidden, place, reach)[1] * values).sum() / total)
    return moment, min(1.0, total / max(whole, 1e-12)), share


def _window(
    heat: NDArray[np.float32], centre: Sequence[int], reach: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return indices ``(P, ndim)`` and values of the pixels within ``reach`` of a pixel."""
    low = [max(0, min(c, n - 1) - r) for c, n, r in zip(centre, heat.shape, reach, strict=True)]
    high = [min(n, max(c, 0) + r + 1) for c, n, r in zip(centre, heat.shape, reach, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    indices = np.mgrid[box].reshape(len(box), -1).T.astype(np.float64)
    return indices, heat[box].ravel().astype(np.float64)


def _widths(sigma: Width, ndim: int) -> list[float]:
    widths = [float(sigma)] * ndim if isinstance(sigma, int | float) else [float(v) for v in sigma]
    if len(widths) != ndim:
        raise ValueError(f"{len(widths)} widths for {ndim} axes")
    return widths


def _volume(sigma: Width, ndim: int) -> float:
    return math.prod(math.sqrt(2 * math.pi) * width for width in _widths(sigma, ndim))


def _entropy(probability: Tensor) -> Tensor:
    inside = probability.clamp(1e-7, 1 - 1e-7)
    return -(inside * inside.log() + (1 - inside) * (1 - inside).log())
