"""Phantom CT studies and clips that are worth looking at: an abdomen with an organ, its vessels and tumours.

Every number is drawn from the seed, so a phantom is its seed. Shapes are painted as soft occupancies on a
grid that is finer along the slice axis, averaged to the slice thickness, blurred and given noise: partial
volume is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import Code, Grid, Image, InstanceSet, LabelClass, LabelMap, Mask, Source
from clearmargin.datasets.phantom_body import AIR, paint_body, paint_chest, paint_neighbours
from clearmargin.datasets.phantom_organ import organ_distance, paint_tumours, paint_vessels
from clearmargin.datasets.phantom_shapes import Canvas, Field, Space, smooth_field

__all__ = ["DISPLAY_WINDOW", "PHANTOM_LABELS", "Clip", "Phantom", "make_clip", "make_phantom"]

DISPLAY_WINDOW = (-160.0, 240.0)
"""Hounsfield units shown as black and as white: the soft-tissue window, width 400 at level 40."""

_ANATOMY = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
_LESION = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")

PHANTOM_LABELS = LabelMap(
    (
        LabelClass(
            id=1, name="organ", type=Code(value="10200004", scheme="SCT", meaning="Liver"), category=_ANATOMY
        ),
        LabelClass(
            id=2,
            name="tumour",
            type=Code(value="108369006", scheme="SCT", meaning="Neoplasm"),
            category=_LESION,
        ),
        LabelClass(
            id=3,
            name="vessel",
            type=Code(value="32764006", scheme="SCT", meaning="Portal vein"),
            category=_ANATOMY,
            kind="stuff",
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A synthetic CT volume and the truth about it.

    Attributes:
        image: One channel, int16 Hounsfield units, on a grid in mm.
        reference: The organ (label 1) first, then the tumours (label 2, each inside the organ's mask, none
            overlapping another), then the vessel tree (label 3) if it was asked for. Scores are 1.
        seed: What it was made from.
    """

    image: Image
    reference: InstanceSet
    seed: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A short phantom video and the truth about each frame.

    Attributes:
        frames: ``(T, Y, X, 3)`` uint8 RGB; grey, the display window from 0 to 255.
        references: T instance sets on the frame's grid, in px.
        frame_rate: Frames a second.
    """

    frames: NDArray[np.uint8]
    references: tuple[InstanceSet, ...]
    frame_rate: float


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = (28, 192, 192),
    spacing: tuple[float, float, float] = (5.0, 1.6, 1.6),
    tumours: tuple[int, int] = (5, 9),
    tumour_radius_mm: tuple[float, float] = (5.0, 19.0),
    noise_hu: float = 9.0,
    vessel: bool = False,
) -> Phantom:
    """Return one phantom; the same arguments give the same voxels.

    Args:
        seed: Of everything random.
        shape: ``(Z, Y, X)``. The anatomy keeps its size in mm: a smaller field of view crops it.
        spacing: Millimetres per axis, slices first.
        tumours: Least and most tumours; what another tumour or the field of view hides is not made up for.
        tumour_radius_mm: Smallest and largest mean radius, drawn evenly in the logarithm.
        noise_hu: Standard deviation of the noise at the body's rim; half as much again in its middle.
        vessel: Whether the vessel tree is an instance of its own.
    """
    rng = np.random.default_rng(seed)
    fold = max(1, math.ceil(spacing[0] / 2.0))
    fine = Space.centred((shape[0] * fold, *shape[1:]), (spacing[0] / fold, spacing[1], spacing[2]))
    edge = (spacing[1] + spacing[2]) / 2
    canvas = Canvas(hu=np.full(fine.shape, AIR, np.float32), space=fine, edge_mm=edge)
    torso = paint_body(canvas, rng)
    paint_chest(canvas, torso, rng)
    bounds = paint_neighbours(canvas, torso, rng)
    organ = np.maximum(organ_distance(fine, rng), bounds)
    texture = smooth_field(rng, fine, 11.0) * np.float32(3.5) + smooth_field(rng, fine, 3.5) * np.float32(3)
    canvas.paint(fine, canvas.occupancy(organ), texture + np.float32(rng.uniform(106, 118)))
    tree = paint_vessels(canvas, organ, rng)
    lesions = paint_tumours(
        canvas, organ, int(rng.integers(tumours[0], tumours[1] + 1)), tumour_radius_mm, rng
    )

    grid = _centred_grid(shape, spacing)
    masks = [_voxels(lesion, where, fold, shape) for where, lesion in lesions]
    masks = [mask for mask in masks if mask.area >= 4]
    # A tumour never fills more of a voxel than the organ does, so its mask lies within the organ's.
    columns = [(1, _voxels(canvas.occupancy(organ), fine, fold, shape)), *((2, mask) for mask in masks)]
    if vessel:
        for where, lesion in lesions:  # a tumour displaces the vessels that ran there
            tree[where.window] *= 1 - lesion
        columns.append((3, _voxels(tree, fine, fold, shape)))
    columns = [(label, mask) for label, mask in columns if mask.area]
    reference = InstanceSet(
        grid=grid,
        masks=tuple(mask for _, mask in columns),
        labels=np.array([label for label, _ in columns], np.int64),
        scores=np.ones(len(columns), np.float32),
    )
    pixels = _acquire(canvas.hu, fold, noise_hu, edge, rng)
    source = Source(case=f"case-phantom-{seed}", kind="array", modality="CT")
    return Phantom(image=Image(pixels=pixels[None], grid=grid, source=source), reference=reference, seed=seed)


def make_clip(
    seed: int,
    *,
    frames: int = 48,
    size: tuple[int, int] = (192, 192),
    pixel_mm: float = 1.6,
    frame_rate: float = 12.0,
) -> Clip:
    """Return a clip that runs through a phantom from foot to head while it breathes.

    Each frame looks as a CT slice does in the display window, so what learned the slices can read the clip.

    Raises:
        ValueError: If there is no frame to make.
    """
    if frames < 1:
        raise ValueError(f"a clip has at least one frame, not {frames}")
    step = 120.0 / max(frames, 24)
    phantom = make_phantom(seed, shape=(frames, *size), spacing=(step, pixel_mm, pixel_mm), tumours=(8, 11))
    low, high = DISPLAY_WINDOW
    grey = np.clip((phantom.image.pixels[0].astype(np.float32) - low) * (255 / (high - low)), 0, 255)
    plane = Grid.from_spacing(size)
    pictures, references = [], []
    for t in range(frames):
        shift = (round(3 * math.sin(2 * math.pi * t / 16)), round(2 * math.sin(2 * math.pi * t / 23)))
        flat, _ = phantom.reference.plane(t)
        moved = [
            Mask.from_crop(m.crop, (m.origin[0] + shift[0], m.origin[1] + shift[1]), size) for m in flat.masks
        ]
        kept = [i for i, mask in enumerate(moved) if mask.area]
        pictures.append(ndimage.shift(grey[t], shift, order=0, mode="nearest"))
        references.append(
            InstanceSet(
                grid=plane,
                masks=tuple(moved[i] for i in kept),
                labels=flat.labels[kept],
                scores=flat.scores[kept],
            )
        )
    video = np.repeat(np.round(np.stack(pictures)).astype(np.uint8)[..., None], 3, axis=-1)
    return Clip(frames=video, references=tuple(references), frame_rate=frame_rate)


def _centred_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    affine = Grid.from_spacing(shape, spacing).affine.copy()
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape[::-1], spacing[::-1], strict=True)]
    return Grid(shape=shape, affine=affine, unit="mm")


def _voxels(occupancy: Field, where: Space, fold: int, shape: tuple[int, int, int]) -> Mask:
    """Return the voxels that are at least half full, from an occupancy on a box of the finer grid."""
    first = where.window[0].start // fold
    last = -(-where.window[0].stop // fold)
    padded = np.zeros(((last - first) * fold, *occupancy.shape[1:]), np.float32)
    start = where.window[0].start - first * fold
    padded[start : start + occupancy.shape[0]] = occupancy
    mean = padded.reshape(last - first, fold, *padded.shape[1:]).mean(1)
    return Mask.from_crop(mean >= 0.5, (first, where.window[1].start, where.window[2].start), shape)


def _acquire(
    hu: Field, fold: int, noise_hu: float, edge_mm: float, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Average to the slice thickness, blur as a scanner does, add its noise, and round to whole HU."""
    slices = hu.reshape(hu.shape[0] // fold, fold, *hu.shape[1:]).mean(1)
    slices = ndimage.gaussian_filter(slices, (0, 0.9 / edge_mm, 0.9 / edge_mm))
    noise = ndimage.gaussian_filter(rng.standard_normal(slices.shape, dtype=np.float32), (0, 0.65, 0.65))
    thick = ndimage.gaussian_filter((slices.max(0) > -600).astype(np.float32), 32 / edge_mm)
    noise *= noise_hu / max(float(noise.std()), 1e-6) * (0.6 + 0.9 * thick)
    whole: NDArray[np.int16] = np.clip(np.round(slices + noise), -1024, 3071).astype(np.int16)
    return whole
