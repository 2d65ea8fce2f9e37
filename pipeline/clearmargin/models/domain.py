"""What kind of images a model was trained on, and whether another image is of that kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clearmargin.config import Settings
from clearmargin.core import Grid, Image
from clearmargin.transforms.settings import Percentiles, Window, WindowStack

__all__ = ["Domain", "Mismatch", "domain_of", "mismatch"]

# DICOM modalities whose images look alike. OT and SC say nothing of what is seen.
_ALIKE = (frozenset({"ES", "XC", "GM"}), frozenset({"CR", "DX", "RG", "RF"}), frozenset({"US", "IVUS"}))
_ANY = frozenset({"", "OT", "SC"})

_COLOURED = 0.05  # share of the value range by which the channels of a coloured pixel differ
_COLOUR_SHARE = 0.01  # share of coloured pixels from which an image is in colour: marks and logos have less
_SLACK, _SLACK_RESAMPLED = 1.5, 4.0  # times the training images' least and greatest spacing
_SAMPLES = 200_000  # pixels from which quantiles are taken


class Domain(Settings):
    """The training images in a few facts. Saved with the model."""

    modalities: tuple[str, ...] = Field(description="DICOM modalities; empty if none is known")
    channels: tuple[int, ...] = Field(
        description="numbers of channels that differ: grey stored as colour has one"
    )
    lows: tuple[float, float] = Field(description="least and greatest 0.5 % quantile of an image's values")
    highs: tuple[float, float] = Field(description="least and greatest 99.5 % quantile")
    dimensions: tuple[int, ...] = Field((2, 3), description="2 for pictures, 3 for volumes")
    spacings: tuple[tuple[float, float], ...] = Field(
        (),
        description="least and greatest size in mm of an element on each axis (Z, Y, X of volumes), volumes turned as "
        "the network sees them; empty if not all images state one, or pictures and volumes are mixed",
    )

    def with_spacings(self, grids: Sequence[Grid]) -> Domain:
        """Return the domain with the element sizes of its images' grids."""
        alike = {(grid.ndim, grid.unit) for grid in grids}
        if len(alike) != 1 or grids[0].unit != "mm":
            return self.model_copy(update={"spacings": ()})
        every = np.array([grid.spacing for grid in grids])
        ends = zip(every.min(axis=0).tolist(), every.max(axis=0).tolist(), strict=True)
        return self.model_copy(update={"spacings": tuple(ends)})

    def unlike_spacing(self, grid: Grid, *, planes: bool, resampled: bool) -> str | None:
        """Return how an image's elements differ in size from those of the training images; None if they do not.

        Args:
            grid: The image's, turned as the network sees it.
            planes: The network sees planes: the distance of slices is not compared.
            resampled: The network sees all images at one spacing: only another order of size is told.
        """
        if grid.unit != "mm" or not self.spacings:
            return None
        own, spans = grid.spacing, self.spacings
        if planes or len(own) != len(spans):
            own, spans = own[-2:], spans[-2:]
        slack = _SLACK_RESAMPLED if resampled else _SLACK
        if all(low / slack <= size <= high * slack for size, (low, high) in zip(own, spans, strict=True)):
            return None
        shown = " x ".join(f"{size:.3g}" for size in own)
        seen = " x ".join(
            f"{low:.3g}" if high < 1.01 * low else f"{low:.3g} to {high:.3g}" for low, high in spans
        )
        return f"its elements are {shown} mm, those of the training images {seen} mm" + (
            "" if resampled else ": the model sees each image's own, so objects look larger or smaller to it"
        )


@dataclass(frozen=True)
class Mismatch:
    """How an image differs from a model's training images.

    Attributes:
        refusals: Reasons not to segment it: another modality, colour for grey, values beyond the model's window.
        warnings: Reasons to have a person look at the result.
    """

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def domain_of(images: Iterable[Image]) -> Domain:
    """Return the domain of at least one image; each is looked at once and not kept."""
    modalities, channels, dimensions, lows, highs = set(), set(), set(), [], []
    for image in images:
        modalities.add(image.source.modality)
        channels.add(_channels(image.pixels))
        dimensions.add(image.grid.ndim)
        low, high = _range(image.pixels)
        lows.append(low)
        highs.append(high)
    return Domain(
        modalities=tuple(sorted(modalities - {""})),
        channels=tuple(sorted(channels)),
        lows=(min(lows), max(lows)),
        highs=(min(highs), max(highs)),
        dimensions=tuple(sorted(dimensions)),
    )


def mismatch(
    domain: Domain, image: Image, intensity: Window | WindowStack | Percentiles, *, displayed: bool = False
) -> Mismatch:
    """Return how an image differs from the training images; nothing if it does not.

    A modality that the image does not state is not compared. Under a fixed window values are compared closely; under
    percentiles, where each image has a scale of its own, only for their kind (negative ones, another order of size).

    Args:
        domain: Domain of the model.
        image: As it was read.
        intensity: The model's.
        displayed: The values are what a screen shows of the window (`predict --display-window`), so that neither they
            nor the modality of the capture are compared.
    """
    refusals: list[str] = []
    warnings: list[str] = []
    modality = image.source.modality
    if not displayed and not _known(modality, domain.modalities):
        refusals.append(
            f"the model was trained on {' and '.join(domain.modalities)}, and this image is {modality}"
        )
    channels = _channels(image.pixels)
    if channels not in domain.channels:
        kind = {1: "grey", 3: "colour"}
        before = " and ".join(kind.get(n, f"{n}-channel") for n in domain.channels)
        own = kind.get(channels, f"{channels}-channel")
        if image.grid.ndim == 3 and len(image.pixels) > 1:
            own = (
                f"4-D, with {len(image.pixels)} volumes (times, phases, sequences, or values per voxel), of which the "
                "one that is meant has to be written as a file of its own"
            )
        reason = f"the model was trained on {before} images, and this one is {own}"
        (warnings if channels == 1 else refusals).append(reason)
    if not displayed and image.grid.ndim not in domain.dimensions:
        before, own = ("pictures", "a volume") if image.grid.ndim == 3 else ("volumes", "a picture")
        warnings.append(f"the model was trained on {before}, and this is {own}")
    low, high = _range(image.pixels)
    if not displayed and isinstance(intensity, Percentiles):
        span = max(domain.highs[1] - domain.lows[0], 1e-12)
        if (
            low < domain.lows[0] - 0.5 * span
            or not 0.1 * domain.highs[0] <= high <= domain.highs[1] + 2 * span
        ):
            warnings.append(_unlike_values(domain, low, high))
    elif not displayed and not isinstance(intensity, Percentiles):
        windows = (
            intensity.windows if isinstance(intensity, WindowStack) else ((intensity.low, intensity.high),)
        )
        slack = 0.25 * (domain.highs[1] - domain.lows[0])
        if all(high <= bottom or low >= top for bottom, top in windows):
            shown = " and ".join(f"{bottom:g} to {top:g}" for bottom, top in windows)
            refusals.append(f"its values, {low:g} to {high:g}, lie outside the model's window of {shown}")
        elif _outside(low, domain.lows, slack) or _outside(high, domain.highs, slack):
            warnings.append(_unlike_values(domain, low, high))
    return Mismatch(refusals=tuple(refusals), warnings=tuple(warnings))


def _unlike_values(domain: Domain, low: float, high: float) -> str:
    return (
        f"its values, {low:g} to {high:g}, are not like those of the training images, which begin at "
        f"{domain.lows[0]:g} to {domain.lows[1]:g} and end at {domain.highs[0]:g} to {domain.highs[1]:g}"
    )


def _known(modality: str, modalities: tuple[str, ...]) -> bool:
    if modality in _ANY or not modalities or _ANY & set(modalities):
        return True
    alike = next((family for family in _ALIKE if modality in family), frozenset({modality}))
    return bool(alike & set(modalities))


def _channels(pixels: NDArray[np.generic]) -> int:
    """Return the number of channels, 1 for three that are the same but for compression and small marks."""
    if len(pixels) != 3:
        return len(pixels)
    values = pixels.reshape(3, -1)
    values = values[:, :: max(1, values.shape[1] // _SAMPLES)].astype(np.float32)
    spread = values.max(axis=0) - values.min(axis=0)
    coloured = spread > _COLOURED * max(float(np.ptp(values)), 1e-6)
    return 3 if float(coloured.mean()) > _COLOUR_SHARE else 1


def _range(pixels: NDArray[np.generic]) -> tuple[float, float]:
    """Return the 0.5 and 99.5 % quantiles of the finite values; 0 and 0 if none is finite."""
    values = pixels.reshape(-1)
    values = values[:: max(1, len(values) // _SAMPLES)].astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 0.0
    low, high = np.quantile(values, (0.005, 0.995))
    return float(low), float(high)


def _outside(value: float, span: tuple[float, float], slack: float) -> bool:
    return not span[0] - slack <= value <= span[1] + slack
