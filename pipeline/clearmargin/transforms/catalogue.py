"""Which of MONAI's dictionary transforms may vary a training window, by name: found in the MONAI that is installed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

from monai import transforms as monai_transforms
from monai.transforms import MapTransform
from monai.transforms.transform import Randomizable

from clearmargin.errors import ConfigError, nearest

__all__ = ["Listing", "allowed", "find", "unknown_argument"]

Kind = Literal["intensity", "spatial"]

_PREFIX = "monai.transforms."
_KINDS: dict[str, Kind] = {"intensity.dictionary": "intensity", "spatial.dictionary": "spatial"}
# Where MONAI keeps a transform in another module than that of its kind.
_ODD: dict[str, Kind] = {
    "RandSimulateLowResolutiond": "intensity",  # the image is coarser for a moment; nothing moves
    "RandSmoothFieldAdjustContrastd": "intensity",
    "RandSmoothFieldAdjustIntensityd": "intensity",
    "RandSmoothDeformd": "spatial",
    "RandImageFilterd": "intensity",
}
_BY_MODULE = {
    "croppad.dictionary": "it changes the window's extents, which image.crop (of volumes model.patch) sets",
    "regularization.dictionary": "it mixes the images of a batch, and their instances could not follow; "
    "augment.copy_paste lays instances of one window over another",
}
_REFUSED = {
    "ComputeHoVerMapsd": "it makes maps of labels, not a varied image",
    "ForegroundMaskd": "it makes a mask, not a varied image",
    "MaskIntensityd": "it wants a mask beside the image",
    "ConvertBoxToPointsd": "it is for boxes, and instances are masks",
    "ConvertPointsToBoxesd": "it is for points, and instances are masks",
    "GridPatchd": "it changes the window's extents, which image.crop (of volumes model.patch) sets",
    "GridSplitd": "it changes the window's extents, which image.crop (of volumes model.patch) sets",
    "RandGridPatchd": "it changes the window's extents, which image.crop (of volumes model.patch) sets",
    "Resized": "it changes the window's extents, which image.crop (of volumes model.patch) sets",
    "ResampleToMatchd": "it wants another image beside the window",
    "SpatialResampled": "it wants an affine of its own for each window",
    "Spacingd": "the window's spacing is image.spacing_mm's",
    "Orientationd": "the window's axes have an order, slices first",
    "RandLambdad": "it runs code, and a configuration holds data alone",
    "Lambdad": "it runs code, and a configuration holds data alone",
}
_ELSE = "it does not vary an image"


class Listing(NamedTuple):
    """A transform that may vary a window.

    Attributes:
        name: MONAI's.
        kind: ``intensity`` changes the image alone, ``spatial`` moves its instances too.
        make: The class.
        random: Whether it draws at random itself, with a ``prob`` of its own.
    """

    name: str
    kind: Kind
    make: type[Any]
    random: bool

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What its constructor takes."""
        return inspect.signature(self.make.__init__).parameters


@cache
def _listed() -> dict[str, type[Any]]:
    """Return MONAI's dictionary transforms by the names that end in a small d."""
    return {
        name: thing
        for name, thing in vars(monai_transforms).items()
        if inspect.isclass(thing)
        and issubclass(thing, MapTransform)
        and thing.__name__ == name
        and name[-1] == "d"
    }


def _module(make: type[Any]) -> str:
    return str(make.__module__).removeprefix(_PREFIX)


def _kind(name: str, make: type[Any]) -> Kind | None:
    if name in _REFUSED:
        return None
    return _ODD.get(name) or _KINDS.get(_module(make))


@cache
def allowed() -> tuple[str, ...]:
    """Return the names of all that may vary a window, in alphabetical order."""
    return tuple(sorted(name for name, make in _listed().items() if _kind(name, make) is not None))


def find(name: str) -> Listing:
    """Return a transform by its name.

    Raises:
        ConfigError: MONAI has none of that name, or it cannot vary a window: the message says why.
    """
    every = _listed()
    if name not in every:
        known = allowed()
        other = f"{name}d"
        hint = f"did you mean '{other}'?" if other in known else nearest(name, known)
        raise ConfigError(f"augment.transforms: MONAI has no dictionary transform '{name}': {hint}")
    make = every[name]
    kind = _kind(name, make)
    if kind is None:
        reason = _REFUSED.get(name) or _BY_MODULE.get(_module(make), _ELSE)
        raise ConfigError(f"augment.transforms: {name} is not for training windows: {reason}")
    has_prob = "prob" in inspect.signature(make.__init__).parameters
    return Listing(name=name, kind=kind, make=make, random=issubclass(make, Randomizable) and has_prob)


def unknown_argument(listing: Listing, argument: str) -> str:
    """Return what is said of an argument that a transform does not take."""
    known = [name for name in listing.parameters if name not in ("self", "keys", "allow_missing_keys")]
    return f"augment.transforms: {listing.name} takes no '{argument}': {nearest(argument, known)}"
