"""What lies at a path, as MONAI's dictionary transforms want it; and back, from a tensor to an image of ours.

Loaded tensors are ``(C, *spatial)``, and ``spatial`` is the order in which the program keeps arrays: ``(Z, Y, X)`` of
a volume, ``(Y, X)`` of a picture. The affine maps that order to RAS, so ``Orientationd(axcodes="RAS")`` gives what
MONAI's own readers give. Metadata are text, numbers and tensors alone, which ``PersistentDataset`` can keep.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Source
from clearmargin.core.grid import Unit
from clearmargin.errors import ClearMarginError, ConfigError, InputError
from clearmargin.formats import open_source
from clearmargin.transforms.readers import clip_frame
from clearmargin.transforms.samples import read_instances
from clearmargin.transforms.tensors import grid_of, to_tensor

__all__ = [
    "LoadPathd",
    "described",
    "image_of",
    "instances_of",
    "loaded_tensor",
    "source_grid",
    "tensor_like",
]

log = logging.getLogger(__name__)

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class LoadPathd(MapTransform):  # type: ignore[misc]
    """Load what lies at a path: a DICOM series, a multi-frame object, a volume, a picture, or a frame of a clip.

    The one image is read as ``clearmargin predict`` reads it: right geometry, or an error. In a ``Compose`` the error
    is the cause (``__cause__``) of MONAI's, and no other reader is tried.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        series: str | None = None,
        volume: str | None = None,
        allow_gaps: bool = False,
        allow_tilt: bool = False,
        tolerance_mm: float | None = None,
        series_key: str | None = None,
        frame_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """Make it.

        Args:
            keys: Entries that hold a path; each becomes a ``MetaTensor``, ``(C, *spatial)`` float32. Of a clip the path
                ends in ``#`` and the frame's number from 0 (``clip.mp4#120``).
            series: Which DICOM series, if there are several (`clearmargin.read_image`).
            volume: Which volume of a series that holds several.
            allow_gaps: Resample a series with missing slices.
            allow_tilt: Straighten a tilted gantry.
            tolerance_mm: How far a slice's corners may lie from the grid; None for 0.01 mm.
            series_key: Entry that says ``series`` for each item.
            frame_key: Entry that holds the number of a clip's frame for each item.
            allow_missing_keys: As of all of MONAI's dictionary transforms.
        """
        super().__init__(keys, allow_missing_keys)
        self.series_key, self.frame_key = series_key, frame_key
        self.options: dict[str, Any] = {
            "series": series,
            "volume": volume,
            "allow_gaps": allow_gaps,
            "allow_tilt": allow_tilt,
            "tolerance_mm": tolerance_mm,
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its paths loaded.

        Raises:
            InputError: There is nothing at a path, or it is not one image.
            GeometryError: Its slices are not one regular volume.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            try:
                item[key] = self._load(item, item[key])
            except ClearMarginError as error:
                raise type(error)(_as_arguments(str(error))) from error
        return item

    def __repr__(self) -> str:
        return f"LoadPathd({', '.join(map(repr, self.keys))})"  # what MONAI's error says of it

    def _load(self, item: Mapping[Hashable, Any], given: Any) -> MetaTensor:
        if not isinstance(given, str | PathLike):
            raise InputError(
                f"LoadPathd takes the path of a file or folder, not {type(given).__name__}: the slices of a series lie "
                "in one folder, or LoadImaged(reader=DicomReader()) takes a list of them"
            )
        path, frame = clip_frame(str(given)) or (Path(given), None)
        if self.frame_key is not None and self.frame_key in item:
            frame = int(item[self.frame_key])
        options = dict(self.options)
        if self.series_key is not None and item.get(self.series_key) is not None:
            options["series"] = str(item[self.series_key])
        return loaded_tensor(_read(path.expanduser(), frame, options), name=str(given))


def _as_arguments(message: str) -> str:
    """Return a message that names options of the command line with the arguments of the same names."""
    return re.sub(r"--([a-z][a-z-]*[a-z])", lambda option: option[1].replace("-", "_") + "=", message)


def _read(path: Path, frame: int | None, options: Mapping[str, Any]) -> Image:
    if frame is not None:
        return (
            open_source(path).clip(threads=False).frame(frame)
        )  # a thread would not outlive a loader's fork
    opened = open_source(path)
    if opened.kind == "clip":
        raise InputError(
            f"'{path.name}' is a clip: say which frame, as '{path.name}#0', or by LoadPathd(frame_key=...)"
        )
    return opened.image(**options)


def loaded_tensor(image: Image, *, name: str) -> MetaTensor:
    """Return an image as a loaded tensor.

    Args:
        image: As a reader gives it.
        name: ``filename_or_obj`` of the metadata, after which ``SaveImaged`` names its files.
    """
    return described(to_tensor(image.pixels, image.grid), image, name=name)


def described(tensor: MetaTensor, image: Image, *, name: str) -> MetaTensor:
    """Return the tensor, made on an image's grid, with the metadata of a loaded one."""
    tensor.meta |= {
        "filename_or_obj": name,
        "original_affine": tensor.affine.clone(),
        # Of a picture MONAI cuts an affine down to the plane; this one says where the plane lies.
        "ras_affine": torch.from_numpy(_LPS_TO_RAS @ image.grid.affine),
        "spatial_shape": list(image.grid.shape),
        "original_channel_dim": 0,
        "unit": image.grid.unit,
        "case": image.source.case,
        "modality": image.source.modality,
        "kind": image.source.kind,
        "frame": -1 if image.source.frame is None else image.source.frame,
        "stored_dtype": image.pixels.dtype.name,
    }
    return tensor


def source_grid(tensor: MetaTensor) -> Grid:
    """Return the grid that a tensor of ours was loaded on, whatever was done to it since.

    Raises:
        ConfigError: It was not loaded by us.
    """
    meta = tensor.meta
    if "ras_affine" not in meta:
        raise ConfigError(
            "expected a tensor that LoadPathd or LoadCased loaded, whose grid is known; another reader loaded this one"
        )
    affine = _LPS_TO_RAS @ np.asarray(meta["ras_affine"], np.float64)
    return Grid(shape=tuple(int(n) for n in meta["spatial_shape"]), affine=affine, unit=meta["unit"])


def instances_of(sample: Mapping[str, Any]) -> InstanceSet:
    """Return the instances of a loaded and transformed case, on the grid that its layers lie on now.

    Args:
        sample: What `LoadCased` made, after any transforms by a matrix of ``image``, ``layers`` and ``ignore`` alike
            (``mode="nearest"`` for the last two). One that the resampling missed is its anchor, and one that left the
            field of view is empty, at its place.
    """
    return read_instances(sample, source_grid(sample["layers"]))


def image_of(tensor: MetaTensor) -> Image:
    """Return a tensor as an image that a segmenter takes, at its place: after any of MONAI's transforms.

    Axes come back in the order in which they were loaded, slices first, however they were turned since. A tensor that
    a reader of MONAI's loaded (``LoadImaged`` and the like, channel first) has its axes in the reverse order, and its
    affine is taken for millimetres; of a picture, not if it says nothing of a spacing.

    Raises:
        InputError: It has no channel axis, or neither two nor three axes in space, or its affine has no inverse.
    """
    if not isinstance(tensor, MetaTensor):
        raise InputError(f"expected a MetaTensor, which knows where it lies, not {type(tensor).__name__}")
    if tensor.ndim not in (3, 4):
        raise InputError(
            f"a tensor of shape {tuple(tensor.shape)}: expected (C, Y, X) or (C, Z, Y, X); LoadImaged needs "
            "ensure_channel_first=True, and a batch is decollated first"
        )
    layout = _layout(tensor)
    affine = layout.affine.copy()
    first = 3 - len(layout.order)
    affine[:, first:3] = affine[:, [first + k for k in layout.order]]
    shape = tuple(tensor.shape[1 + k] for k in layout.order)
    for axis, backwards in enumerate(layout.backwards, start=first):
        if backwards:
            affine[:3, 3] += affine[:3, axis] * (shape[axis - first] - 1)
            affine[:3, axis] *= -1
    pixels = tensor.as_tensor().numpy().transpose(0, *(1 + k for k in layout.order))
    pixels = np.flip(pixels, layout.flips)
    try:
        grid = Grid(shape=shape, affine=affine, unit=layout.unit)
    except ValueError as error:
        raise InputError(f"the tensor's affine is not one of a grid: {error}") from None
    meta = tensor.meta
    frame = int(meta.get("frame", -1))
    source = Source(modality=str(meta.get("modality", "")), frame=None if frame < 0 else frame)
    if "ras_affine" in meta:
        source = replace(source, case=str(meta["case"]), kind=meta["kind"])
    return Image(
        pixels=_as_stored(np.ascontiguousarray(pixels), str(meta.get("stored_dtype", pixels.dtype))),
        grid=grid,
        source=source,
    )


def tensor_like(pixels: NDArray[Any], tensor: MetaTensor) -> MetaTensor:
    """Return ``(K, *spatial)`` on the grid of ``image_of(tensor)`` as a tensor that lies as ``tensor`` does.

    Raises:
        InputError: The array is not of that grid's shape.
    """
    layout = _layout(tensor)
    expected = tuple(tensor.shape[1 + k] for k in layout.order)
    if pixels.shape[1:] != expected:
        raise InputError(f"expected an array of (K, {', '.join(map(str, expected))}), got {pixels.shape}")
    turned = np.flip(pixels, layout.flips)
    back = np.argsort(layout.order)
    turned = np.ascontiguousarray(turned.transpose(0, *(1 + int(k) for k in back)))
    return MetaTensor(torch.from_numpy(turned), meta=dict(tensor.meta) | {"stored_dtype": pixels.dtype.name})


class _Layout(NamedTuple):
    """How a tensor lies.

    Attributes:
        order: Which of its axes is the first of the image's, and so on.
        backwards: Of the image's axes, those that the tensor goes along backwards.
        affine: ``(4, 4)`` to LPS; columns in the tensor's order, behind one that is not there of a picture.
        unit: ``mm`` or ``px``.
    """

    order: list[int]
    backwards: list[bool]
    affine: NDArray[np.float64]
    unit: Unit

    @property
    def flips(self) -> tuple[int, ...]:
        """Axes of the image, with its channels, that are turned over."""
        return tuple(1 + axis for axis, backwards in enumerate(self.backwards) if backwards)


def _layout(tensor: MetaTensor) -> _Layout:
    n = tensor.ndim - 1
    if "ras_affine" not in tensor.meta:
        square = np.asarray(tensor.affine, np.float64)
        affine = np.eye(4)
        affine[:n, :n], affine[:n, 3] = square[:n, :n], square[:n, -1]
        known = n == 3 or not np.allclose(np.abs(square[:2, :2]), np.eye(2))
        lps = _LPS_TO_RAS @ (affine if n == 3 else affine[:, [2, 0, 1, 3]])
        return _Layout(list(range(n))[::-1], [False] * n, lps, "mm" if known else "px")
    source = source_grid(tensor)
    if source.ndim != n:
        raise InputError(f"a tensor of {n} axes in space, loaded with {source.ndim}")
    try:
        grid, matrix = grid_of(tensor, source)
    except (ValueError, np.linalg.LinAlgError):
        raise InputError("expected an affine with an inverse: two axes of the tensor fall together") from None
    order, backwards = _alignment(matrix[:-1, :-1] * np.array(source.spacing)[:, None])
    return _Layout(order, backwards, grid.affine, source.unit)


def _alignment(linear: NDArray[np.float64]) -> tuple[list[int], list[bool]]:
    """Return for each row the column that goes along it most, each column once, and whether it goes backwards."""
    steps = linear / np.linalg.norm(linear, axis=0)
    order = [-1] * len(steps)
    left = np.abs(steps)
    for _ in steps:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        order[int(row)] = int(column)
        left[row], left[:, column] = -1, -1
    return order, [bool(steps[row, column] < 0) for row, column in enumerate(order)]


def _as_stored(pixels: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the values in the dtype that they were stored in, if they are still such values."""
    kind = np.dtype(dtype)
    if kind.kind not in "iu" or pixels.dtype == kind:
        return pixels
    if (
        pixels.size
        and pixels.min() >= -1
        and pixels.max() <= 1
        and not np.array_equal(pixels, np.rint(pixels))
    ):
        log.warning(
            "expected values as %s stores them, got fractions from %.3g to %.3g: a model applies the intensities of "
            "its training itself, so leave out ScaleIntensityd and the like before it",
            dtype, pixels.min(), pixels.max(),
        )  # fmt: skip
    info = np.iinfo(kind)
    if pixels.size and not (pixels.min() >= info.min and pixels.max() <= info.max):
        return pixels
    whole = pixels.astype(kind)
    return whole if np.array_equal(whole, pixels) else pixels
