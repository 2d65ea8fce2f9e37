"""What the viewer shows, as NIfTI files of bytes: the windowed image, and masks and maps with a colour for each byte.

A mask's bytes are places in a table of colours, never label values: so a label 4000 needs no table of 4001 colours, and
every label has its own colour whatever its number is.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import Grid, Image, InstanceSet, Mask
from clearmargin.core.colours import instance_colours

__all__ = [
    "ALONE",
    "Canvas",
    "Layer",
    "edge_errors",
    "error_layer",
    "heat_layer",
    "image_file",
    "mask_layer",
    "reference_layer",
]

Bytes = NDArray[np.uint8]

_SLOTS = 120  # colours of a layer: each has a byte for its fill and one for its edge
_FILL = 70  # opacity of a fill, of 255
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
ALONE = (255, 0, 200)
"""The colour of an object without a partner in the other set."""
_ERROR = np.array([(49, 130, 189), (120, 198, 121), (254, 217, 54), (240, 59, 32), (150, 0, 70)], np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One overlay.

    Attributes:
        key: Its name in the page's code.
        title: Its name on the page.
        file: A NIfTI file, compressed by gzip.
        colours: ``(256, 4)`` uint8 RGBA, one for each byte of the file.
        shown: Whether it is drawn when the page opens.
        scale: Lowest and highest value with the unit, of a layer that shows numbers.
    """

    key: str
    title: str
    file: bytes
    colours: Bytes
    shown: bool = True
    scale: tuple[float, float, str] | None = None

    def to_data(self) -> dict[str, object]:
        """Return what the page's code reads, without the file."""
        return {
            "key": self.key,
            "title": self.title,
            "colours": base64.b64encode(self.colours.tobytes()).decode(),
            "shown": self.shown,
            "scale": self.scale,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """The grid that the viewer draws on: the image's, or a coarser one where that would make the page too large.

    Attributes:
        grid: The image's.
        step: How many elements of it make one of the viewer's, by axis ``(z, y, x)``.
    """

    grid: Grid
    step: tuple[int, int, int] = (1, 1, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)`` of what is drawn; an image has one slice."""
        z, y, x = (-(-n // s) for n, s in zip(_three(self.grid.shape), self.step, strict=True))
        return z, y, x

    @property
    def has_patient(self) -> bool:
        """Whether the grid says where it lies in a patient; else it is a picture, or a stack of pictures."""
        return self.grid.ndim == 3 and self.grid.unit == "mm"

    def affine(self) -> NDArray[np.float64]:
        """Return NIfTI's affine, from ``(x, y, z)`` to RAS; a picture's rows go down and its columns to the right."""
        if not self.has_patient:
            spacing = [1.0, *self.grid.spacing][-3:]
            return np.diag(
                [spacing[2] * self.step[2], -spacing[1] * self.step[1], spacing[0] * self.step[0], 1]
            )
        affine = self.grid.affine.copy()
        affine[:3, 3] = self.grid.to_world([(s - 1) / 2 for s in self.step])
        affine[:3, :3] *= self.step
        affine[:, :3] = affine[:, 2::-1]
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def place(self, mask: Mask) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
        """Return where a mask lies on the canvas and its crop there; an element is held that is so by half.

        What would vanish so keeps every element that it touches.
        """
        origin = (0,) * (3 - len(mask.shape)) + mask.origin
        crop = mask.crop.reshape((1,) * (3 - mask.crop.ndim) + mask.crop.shape)
        if self.step != (1, 1, 1) and crop.size:
            low = [o // s for o, s in zip(origin, self.step, strict=True)]
            high = [-(-(o + n) // s) for o, n, s in zip(origin, crop.shape, self.step, strict=True)]
            full = np.zeros([(b - a) * s for a, b, s in zip(low, high, self.step, strict=True)], bool)
            full[
                tuple(
                    slice(o - a * s, o - a * s + n)
                    for o, a, s, n in zip(origin, low, self.step, crop.shape, strict=True)
                )
            ] = crop
            share = _blocks(full.astype(np.float32), self.step)
            origin, crop = tuple(low), share >= (0.5 if (share >= 0.5).any() else 1e-6)
        return tuple(slice(o, o + n) for o, n in zip(origin, crop.shape, strict=True)), crop

    def centre(self, mask: Mask) -> tuple[int, int, int] | None:
        """Return the element ``(x, y, z)`` of the mask nearest to the middle of its fullest slice; None if empty."""
        where, crop = self.place(mask)
        if not crop.any():
            return None
        sums = crop.sum(axis=(1, 2))
        fullest = np.flatnonzero(sums == sums.max())
        z = int(fullest[len(fullest) // 2])
        points = np.argwhere(crop[z])
        y, x = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        return int(x) + where[2].start, int(y) + where[1].start, z + where[0].start

    def file(self, values: Bytes, *, slope: float = 1.0, shift: float = 0.0) -> bytes:
        """Return ``(Z, Y, X)`` or ``(Z, Y, X, 3)`` bytes of the canvas as a compressed NIfTI file."""
        from nibabel import Nifti1Header

        header = Nifti1Header()
        header.set_data_shape(values.shape[2::-1])
        header["datatype"], header["bitpix"] = (128, 24) if values.ndim == 4 else (2, 8)
        header.set_sform(self.affine(), code=1)
        header.set_qform(self.affine(), code=0)
        header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, shift, 352
        header.set_xyzt_units("mm")
        content = header.binaryblock + bytes(4) + np.ascontiguousarray(values).tobytes()
        return gzip.compress(content, compresslevel=6, mtime=0)


def image_file(canvas: Canvas, image: Image, window: tuple[float, float]) -> bytes:
    """Return the image as bytes from 0 (``window``'s low end and below) to 255; three channels are RGB."""
    low, high = window
    channels = image.pixels if image.pixels.shape[0] == 3 else image.pixels[:1]
    planes = []
    for channel in channels:
        values = np.nan_to_num(channel.reshape(_three(image.grid.shape)).astype(np.float32))
        if canvas.step != (1, 1, 1):
            values = _blocks(_padded(values, canvas.step), canvas.step)
        planes.append(
            np.clip(np.round((values - low) * np.float32(255 / (high - low))), 0, 255).astype(np.uint8)
        )
    if len(planes) == 3:
        return canvas.file(np.stack(planes, axis=-1))
    return canvas.file(planes[0], slope=(high - low) / 255, shift=low)


def mask_layer(
    canvas: Canvas,
    key: str,
    title: str,
    masks: Sequence[Mask],
    labels: NDArray[np.int64],
    *,
    dotted: bool = False,
    shown: bool = True,
) -> Layer:
    """Return masks with a fill and an edge in the colours of their instances; small ones lie on top.

    Args:
        canvas: What is drawn on.
        key: As in `Layer`.
        title: As in `Layer`.
        masks: On the canvas's grid.
        labels: ``(N,)`` of their instances: any positive numbers.
        dotted: Draw the edges alone, as dots: so margins are told from masks.
        shown: As in `Layer`.
    """
    rgb = instance_colours(labels)
    slots = np.arange(len(masks)) % _SLOTS
    colours = np.zeros((256, 4), np.uint8)
    for slot, colour in zip(slots[::-1], rgb[::-1], strict=True):
        colours[1 + 2 * slot] = (*colour, _FILL)
        colours[2 + 2 * slot] = (*colour, 255)
    drawn = np.zeros(canvas.shape, np.uint8)
    order = sorted(range(len(masks)), key=lambda i: -masks[i].area)
    if not dotted:
        for i in order:
            where, crop = canvas.place(masks[i])
            drawn[where][crop] = 1 + 2 * slots[i]
    for i in order:
        where, crop = canvas.place(masks[i])
        drawn[where][_edge(crop, where, dotted=dotted)] = 2 + 2 * slots[i]
    return Layer(key=key, title=title, file=canvas.file(drawn), colours=colours, shown=shown)


def reference_layer(canvas: Canvas, reference: InstanceSet, missed: Sequence[int]) -> Layer:
    """Return the edges of the reference's instances: white, and of those at the positions ``missed`` magenta."""
    colours = np.zeros((256, 4), np.uint8)
    colours[1], colours[2], colours[3] = (255, 255, 255, 255), (*ALONE, 255), (*ALONE, _FILL)
    drawn = np.zeros(canvas.shape, np.uint8)
    for i, mask in enumerate(reference.masks):
        where, crop = canvas.place(mask)
        if i in missed:
            drawn[where][crop] = 3
    for i, mask in enumerate(reference.masks):
        where, crop = canvas.place(mask)
        drawn[where][_edge(crop, where)] = 2 if i in missed else 1
    return Layer(key="reference", title="reference", file=canvas.file(drawn), colours=colours)


def error_layer(
    canvas: Canvas, predicted: InstanceSet, reference: InstanceSet, pairs: Sequence[tuple[int, int]]
) -> Layer | None:
    """Return how far each predicted edge lies from its reference's (`edge_errors`); None if nothing has an edge.

    False positives and false negatives, whose edge lies near no other, are magenta.
    """
    values = edge_errors(predicted, reference, pairs, canvas)
    if values is None:
        return None
    spacing = min([1.0, *canvas.grid.spacing][-3:])
    top = max(float(values[np.isfinite(values)].max()), spacing)
    colours = _ramp(_ERROR, opaque=True)
    colours[255] = (*ALONE, 255)
    levels = 1 + np.clip(np.round(np.where(np.isfinite(values), values, 0) * (253 / top)), 0, 253)
    drawn = np.where(values >= 0, np.where(np.isinf(values), 255, levels), 0).astype(np.uint8)
    return Layer(
        key="error", title="boundary error (magenta: false positive or negative)", file=canvas.file(drawn),
        colours=colours, shown=False, scale=(0.0, top, canvas.grid.unit),
    )  # fmt: skip


def edge_errors(
    predicted: InstanceSet,
    reference: InstanceSet,
    pairs: Sequence[tuple[int, int]],
    canvas: Canvas | None = None,
) -> NDArray[np.float32] | None:
    """Return how far each element of a predicted edge lies from the reference's edge, in the grid's unit.

    Distances go between the centres of edge elements, in space for a volume: 0 where both edges are one.

    Args:
        predicted: On one grid with ``reference``.
        reference: The truth.
        pairs: Positions of matched predictions and references.
        canvas: What is drawn on; None for the grid itself.

    Returns:
        Of the canvas's shape, or of the grid's without one; -1 away from edges, and infinite at the edge of a
        prediction or a reference that is in no pair. None if nothing has an edge.

    Source: exact Euclidean distance transform (`scipy.ndimage.distance_transform_edt`).
    """
    on = canvas or Canvas(grid=predicted.grid)
    values = np.full(on.shape, -1.0, np.float32)
    spacing = [v * s for v, s in zip([1.0, *on.grid.spacing][-3:], on.step, strict=True)]
    for i, j in pairs:
        (here, ours), (there, theirs) = on.place(predicted.masks[i]), on.place(reference.masks[j])
        if not ours.any() or not theirs.any():
            continue
        low = [min(a.start, b.start) for a, b in zip(here, there, strict=True)]
        high = [max(a.stop, b.stop) for a, b in zip(here, there, strict=True)]
        target = np.zeros([b - a for a, b in zip(low, high, strict=True)], bool)
        target[tuple(slice(s.start - a, s.stop - a) for s, a in zip(there, low, strict=True))] = _edge(
            theirs, there
        )
        away = ndimage.distance_transform_edt(~target, sampling=spacing)
        edge = _edge(ours, here)
        inner = away[tuple(slice(s.start - a, s.stop - a) for s, a in zip(here, low, strict=True))]
        region = values[here]
        region[edge] = np.maximum(region[edge], inner[edge])
    for masks, side in ((predicted.masks, 0), (reference.masks, 1)):
        matched = {pair[side] for pair in pairs}
        for k, mask in enumerate(masks):
            where, crop = on.place(mask)
            if k not in matched and crop.any():
                region = values[where]
                region[_edge(crop, where) & (region < 0)] = np.inf  # what is measured is not hidden
    if not (values >= 0).any():
        return None
    return values if canvas is not None else values.reshape(on.grid.shape)


def heat_layer(canvas: Canvas, name: str, values: NDArray[np.float32]) -> Layer:
    """Return a map such as the predictive entropy, 0 and NaN clear, its largest value brightest."""
    plain = np.nan_to_num(np.asarray(values, np.float32)).reshape(_three(canvas.grid.shape))
    if canvas.step != (1, 1, 1):
        plain = _blocks(_padded(plain, canvas.step), canvas.step)
    top = float(plain.max())
    top = top if top > 0 else 1.0
    drawn = np.clip(np.round(plain * (255 / top)), 0, 255).astype(np.uint8)
    title = name.replace("_", " ")
    return Layer(
        key=f"map-{name}", title=title, file=canvas.file(drawn), colours=_ramp(_HEAT, opaque=False),
        shown=False, scale=(0.0, top, "bit" if name == "entropy" else ""),
    )  # fmt: skip


def _edge(crop: NDArray[np.bool_], where: Sequence[slice], *, dotted: bool = False) -> NDArray[np.bool_]:
    """Return the elements of a crop at its edge within each slice, all that lie at the crop's own border among them."""
    if not crop.size:
        return crop
    inner = ndimage.binary_erosion(crop, structure=ndimage.generate_binary_structure(2, 1)[None])
    edge = crop & ~inner
    if dotted:
        y, x = np.ogrid[where[1].start : where[1].stop, where[2].start : where[2].stop]
        edge &= (y + x) % 2 == 0
    return np.asarray(edge)


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (*(1,) * (3 - len(shape)), *shape)
    return z, y, x


def _padded(values: NDArray[np.float32], step: Sequence[int]) -> NDArray[np.float32]:
    return np.pad(values, [(0, -n % s) for n, s in zip(values.shape, step, strict=True)], mode="edge")


def _blocks(values: NDArray[np.float32], step: Sequence[int]) -> NDArray[np.float32]:
    """Return the mean of each block of ``step`` elements."""
    (z, y, x), (a, b, c) = values.shape, step
    means: NDArray[np.float32] = values.reshape(z // a, a, y // b, b, x // c, c).mean(axis=(1, 3, 5))
    return means


def _ramp(stops: NDArray[np.float64], *, opaque: bool) -> Bytes:
    """Return 256 colours along ``stops``; byte 0 is clear, and the others are opaque or so by their number."""
    at, places = np.linspace(0, 1, 255), np.linspace(0, 1, len(stops))
    colours = np.zeros((256, 4), np.uint8)
    for c in range(3):
        colours[1:, c] = np.interp(at, places, stops[:, c])
    colours[1:, 3] = 255 if opaque else 230 * np.sqrt(at)
    return colours
