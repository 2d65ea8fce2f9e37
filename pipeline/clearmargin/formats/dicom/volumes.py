"""The volumes that one series or object holds: phases, echoes, b-values, stacks; told apart and named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.boundary import items_of
from clearmargin.formats.dicom.geometry import OTHER_DIRECTION, Plane, stack_planes
from clearmargin.formats.dicom.headers import Elements, Header
from clearmargin.formats.dicom.planes import Picture, frame_count, group_of, is_mosaic, placed

__all__ = ["MARKS", "VolumeEntry", "select_volume", "several", "split_volumes"]

# What tells pictures at one place apart, in the order tried: words, functional group ("" for the head), element.
_MARKS = (
    ("stack", "FrameContentSequence", "StackID"),
    ("phase", "FrameContentSequence", "TemporalPositionIndex"),
    ("phase", "", "TemporalPositionIdentifier"),
    ("echo", "", "EchoNumbers"),
    ("echo time", "MREchoSequence", "EffectiveEchoTime"),
    ("echo time", "", "EchoTime"),
    ("b-value", "MRDiffusionSequence", "DiffusionBValue"),
    ("b-value", "", "DiffusionBValue"),
    ("directionality", "MRDiffusionSequence", "DiffusionDirectionality"),
    ("direction", "MRDiffusionSequence", "DiffusionGradientDirectionSequence.DiffusionGradientOrientation"),
    ("direction", "", "DiffusionGradientOrientation"),
    ("inversion time", "MRModifierSequence", "InversionTimes"),
    ("inversion time", "", "InversionTime"),
    ("trigger delay", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("cardiac phase", "CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("cardiac phase", "", "NominalPercentageOfCardiacPhase"),
    ("respiratory phase", "RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase"),
    ("trigger time", "", "TriggerTime"),
    ("flip angle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("flip angle", "", "FlipAngle"),
    ("component", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("type", "MRImageFrameTypeSequence", "FrameType"),
    ("type", "CTImageFrameTypeSequence", "FrameType"),
    ("type", "PETFrameTypeSequence", "FrameType"),
    ("type", "XRay3DFrameTypeSequence", "FrameType"),
    ("type", "", "ImageType"),
    ("kernel", "CTReconstructionSequence", "ConvolutionKernel"),
    ("kernel", "", "ConvolutionKernel"),
    ("tube voltage", "CTXRayDetailsSequence", "KVP"),
    ("tube voltage", "", "KVP"),
    ("time offset", "TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ("frame time", "", "FrameReferenceTime"),
    ("acquisition", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("acquisition", "", "AcquisitionNumber"),
)
MARKS = tuple(element for _, group, element in _MARKS if not group)
"""Elements of an object's head that an index keeps."""
_VECTORS = (  # of nuclear medicine, one value per frame (PS3.3, C.8.4.8)
    ("energy window", "EnergyWindowVector"),
    ("phase", "PhaseVector"),
    ("time slot", "TimeSlotVector"),
    ("detector", "DetectorVector"),
)
_PLACES = {0x0020_0032, 0x0020_9057, 0x0020_9056, 0x0020_0037}  # dimensions that are a matter of place
_TIMES = ("trigger delay", "trigger time", "cardiac phase", "time offset", "frame time")
_KINDS = (  # what slices of one volume have in common; numbers of acquisitions and times may alternate in it
    "stack", "phase", "echo", "echo time", "b-value", "inversion time", "flip angle", "component", "kernel",
    "tube voltage", "energy window",
)  # fmt: skip
_SETS = ("stack", "size", "orientation")  # these part pictures that do not lie on each other, too


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeEntry:
    """One volume of a series.

    Attributes:
        number: From 1, in the order of the listing.
        label: What tells it from the others, such as ``phase 2``; ``""`` if it is the only one.
        pictures: Its slices, in no order.
        shape: ``(Z, Y, X)``, as many slices as there are.
        reason: Why they are not one regular volume; ``""`` if they are.
    """

    number: int
    label: str
    pictures: tuple[Picture, ...] = field(repr=False)
    shape: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        size = " x ".join(str(n) for n in self.shape)
        return f"{self.number}: {self.label or 'the only one'}, {size}"


def split_volumes(pictures: Sequence[Picture], headers: Sequence[Header], name: str) -> list[VolumeEntry]:
    """Return the volumes that pictures with a place make: one, or several by what their headers say.

    Pictures are parted only if they are not one stack of slices: if some lie in one place, in several directions or
    sizes, or in stacks that the object names. What distinguishes phases repeats at every place; what differs from
    slice to slice (a number) does not part them; times that do are taken in turn at every place.

    Args:
        pictures: All with a plane.
        headers: Headers of the series' files.
        name: What an error calls the series.
    """
    marked = _Marked(pictures, headers)
    parts = _parted(list(range(len(pictures))), marked, name)
    parts.sort(key=lambda part: [_sortable(v) for _, v in part[1]])
    entries = []
    for number, (members, marks) in enumerate(parts, start=1):
        members_of = tuple(pictures[i] for i in members)
        reason = _refusal(members_of, name)
        shape = (len(members_of), *placed(members_of)[0].shape)
        label = ", ".join(marked.words(key, value) for key, value in marks) if len(parts) > 1 else ""
        entries.append(
            VolumeEntry(number=number, label=label, pictures=members_of, shape=shape, reason=reason)
        )
    return entries


def select_volume(entries: Sequence[VolumeEntry], rule: str, name: str) -> VolumeEntry:
    """Return the one volume that ``rule`` picks.

    Args:
        entries: From :func:`split_volumes`.
        rule: A number of the listing, or words of its label, such as ``phase 2``.
        name: What an error calls the series.

    Raises:
        InputError: None or several fit; the message lists them.
    """
    words = rule.strip().lower().replace("=", " ")
    if words.isdigit():
        fitting = [e for e in entries if e.number == int(words)]
    else:
        parts = [part.strip() for part in words.split(",")]
        fitting = [e for e in entries if set(parts) <= set(e.label.lower().split(", "))]
    if len(fitting) != 1:
        count = "none" if not fitting else str(len(fitting))
        raise InputError(
            f"{count} of the volumes of {name} fit the --volume that was given: {_listing(entries)}"
        )
    return fitting[0]


def several(entries: Sequence[VolumeEntry], name: str) -> str:
    """Return the message for a series of several volumes: why they are not one, and what there is to choose from."""
    together = [p for e in entries for p in e.pictures]
    why = _refusal(together, name) or f"{name} holds stacks of slices that lie within each other"
    return (
        f"{why}: it holds {len(entries)} volumes, choose one with --volume (a number or words), or all with "
        f"--volume all: {_listing(entries)}"
    )


def _listing(entries: Sequence[VolumeEntry]) -> str:
    shown = " | ".join(str(e) for e in entries[:20])
    return shown + (f" | and {len(entries) - 20} more" if len(entries) > 20 else "")


def _refusal(pictures: Sequence[Picture], name: str) -> str:
    try:
        stack_planes(placed(pictures), name)
    except GeometryError as error:
        return str(error)
    return ""


_Mark = int | float | str | tuple[float | str, ...] | tuple[int, str] | None  # what tells pictures apart
_Place = tuple[int, tuple[int, int], tuple[int, str]]  # rank along the normal, size, direction
_Part = tuple[list[int], list[tuple[str, _Mark]]]


class _Marked:
    """What the headers say of each picture, looked up when it is asked for."""

    def __init__(self, pictures: Sequence[Picture], headers: Sequence[Header]) -> None:
        self._pictures, self._headers = pictures, headers
        self._planes = placed(pictures)
        self._directions = dict(zip(pictures, _directions(self._planes), strict=True))
        self._columns: dict[str, list[_Mark]] = {}
        self._readers: dict[str, Callable[[Picture], _Mark]] = {
            "orientation": lambda p: self._directions[p],
            "size": lambda p: p.plane.shape if p.plane is not None else None,
        }
        self._readers |= {
            f"{words}|{group}|{element}": _reader(headers, group, element) for words, group, element in _MARKS
        }
        self._readers |= {
            f"{words}||{element}": _vector_reader(headers, element) for words, element in _VECTORS
        }
        dimensions = max(
            (
                len(items_of(h.elements, "DimensionIndexSequence"))
                for h in headers
                if frame_count(h.elements) > 1
            ),
            default=0,
        )
        self._readers |= {f"dimension {d + 1}": _dimension_reader(headers, d) for d in range(dimensions)}
        if any(frame_count(h.elements) > 1 or is_mosaic(h) for h in headers):
            self._readers["file"] = lambda p: _acquired(headers[p.file].elements, p.file)

    @property
    def keys(self) -> list[str]:
        stack = next(iter(k for k in self._readers if k.startswith("stack|")))
        return [stack, *(k for k in self._readers if k != stack)]

    def groups(self, members: Sequence[int], key: str) -> dict[_Mark, list[int]]:
        if key not in self._columns:
            read = self._readers[key]
            self._columns[key] = [read(p) for p in self._pictures]
        column = self._columns[key]
        groups: dict[_Mark, list[int]] = {}
        for i in members:
            groups.setdefault(column[i], []).append(i)
        return groups

    def places(self, members: Sequence[int]) -> list[_Place]:
        """Return for each picture where it lies, by size, direction and height along the normal."""
        planes = [self._planes[i] for i in members]
        heights = np.array([p.position @ planes[0].normal for p in planes])
        unit = max(1e-3 * min(planes[0].spacing), 1e-6)
        order = np.argsort(heights, kind="stable")
        ranks = np.empty(len(members), np.int64)
        ranks[order] = np.cumsum(np.concatenate(([0], np.diff(heights[order]) > unit)))
        return [
            (int(rank), planes[k].shape, self._directions[self._pictures[i]])
            for k, (rank, i) in enumerate(zip(ranks, members, strict=True))
        ]

    def multiplicity(self, members: Sequence[int]) -> int:
        """Return how many pictures lie in one place at most."""
        return max(Counter(self.places(members)).values())

    def turns(self, members: Sequence[int], key: str) -> dict[int, list[int]]:
        """Return the pictures that come first at their places by ``key``, those that come second, and so on.

        Nothing if some places have more pictures than others, or two of a place the same value.
        """
        self.groups(members, key)
        column = self._columns[key]
        at: dict[_Place, list[tuple[float, int]]] = {}
        for place, i in zip(self.places(members), members, strict=True):
            number = _number(column[i])
            if number is None:
                return {}
            at.setdefault(place, []).append((number, i))
        sizes = {len(pictures) for pictures in at.values()}
        if len(sizes) > 1 or any(len({n for n, _ in pictures}) < len(pictures) for pictures in at.values()):
            return {}
        turns: dict[int, list[int]] = {}
        for pictures in at.values():
            for turn, (_, i) in enumerate(sorted(pictures), start=1):
                turns.setdefault(turn, []).append(i)
        return turns

    def words(self, key: str, value: Any) -> str:
        """Return a mark in words that quote no free text."""
        name = key.split("|", maxsplit=1)[0]
        if name.startswith("turn by "):
            return f"{name.removeprefix('turn by ')} no. {value}"
        if name == "orientation":
            names = [v[1] for v in sorted(set(self._directions.values()))]
            return str(value[1]) if names.count(value[1]) == 1 else f"{value[1]} no. {value[0] + 1}"
        if name == "size":
            return f"size {value[0]}x{value[1]}"
        if name == "file":
            return f"file {sorted(set(self._columns[key]), key=_sortable).index(value) + 1}"
        return f"{name} {_shown(value) or self._rank(key, value)}"

    def _rank(self, key: str, value: _Mark) -> str:
        """Return a value's place among the others, for values that may be anything."""
        return f"no. {sorted({str(v) for v in self._columns[key]}).index(str(value)) + 1}"


def _shown(value: Any) -> str:
    """Return a value as text if it consists of numbers or code strings, else nothing."""
    values = value if isinstance(value, tuple) else (value,)
    if value is None or value == "":
        return "none"
    if all(_number(v) is not None for v in values):
        return "/".join(f"{float(v):.6g}" for v in values)
    text = "/".join(str(v).strip() for v in values)
    return text if re.fullmatch(r"[A-Z0-9_/ ]{1,64}", text) else ""


def _interleaved(members: list[int], marked: _Marked, name: str) -> tuple[str, dict[_Mark, list[int]]] | None:
    """Return what parts slices that all lie in places of their own into regular stacks that lie within each other.

    Two phases half a slice apart fit one grid, and would be read as one volume of twice as many slices.
    """
    for key in (k for k in marked.keys if k.split("|", maxsplit=1)[0] in _KINDS):
        groups = marked.groups(members, key)
        if len(groups) < 2 or any(len(group) < 2 for group in groups.values()):
            continue
        ranks = marked.places(members)
        at = {i: rank for (rank, _, _), i in zip(ranks, members, strict=True)}
        spans = sorted((min(at[i] for i in g), max(at[i] for i in g)) for g in groups.values())
        apart = all(high < low for (_, high), (low, _) in pairwise(spans))
        if not apart and not any(_refusal([marked._pictures[i] for i in g], name) for g in groups.values()):
            return key, groups
    return None


def _parted(members: list[int], marked: _Marked, name: str) -> list[_Part]:
    times = marked.multiplicity(members)
    within = _interleaved(members, marked, name) if times == 1 else None
    if within is not None:
        key, groups = within
        return [(group, [(key, value)]) for value, group in groups.items()]
    if not _refusal([marked._pictures[i] for i in members], name):
        return [(members, [])]
    for key in marked.keys:
        groups = marked.groups(members, key)
        if len(groups) < 2:
            continue
        if key.split("|")[0] not in _SETS:
            repeats = max(marked.multiplicity(g) for g in groups.values())
            if times < 2 or len(groups) > times or repeats >= times:
                continue
        return [
            (inner, [(key, value), *marks])
            for value, group in groups.items()
            for inner, marks in _parted(group, marked, name)
        ]
    for key in (k for k in marked.keys if k.split("|", maxsplit=1)[0] in _TIMES and times > 1):
        turns = marked.turns(members, key)  # a heart does not beat alike for every slice
        if len(turns) > 1:
            return [(group, [(f"turn by {key.split('|')[0]}", turn)]) for turn, group in turns.items()]
    return [(members, [])]


def _directions(planes: Sequence[Plane]) -> list[tuple[int, str]]:
    """Return for each plane the number of its direction, and the plane of the body that it lies closest to."""
    known: list[NDArray[np.float64]] = []
    directions = []
    for plane in planes:
        axes = np.stack([plane.right, plane.down])
        number = next(
            (k for k, other in enumerate(known) if np.abs(axes - other).max() <= OTHER_DIRECTION), len(known)
        )
        if number == len(known):
            known.append(axes)
        name = ("sagittal", "coronal", "axial")[int(np.abs(plane.normal).argmax())]
        directions.append((number, name))
    return directions


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _sortable(value: _Mark) -> tuple[int, tuple[float, ...], str]:
    numbers = [_number(v) for v in (value if isinstance(value, tuple) else (value,))]
    known = tuple(n for n in numbers if n is not None)
    return (0, known, "") if len(known) == len(numbers) else (1, (), str(value))


def _plain(value: Any) -> _Mark:
    """Return an element's value as something that can be compared and looked up."""
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    try:
        return tuple(float(v) if _number(v) is not None else str(v) for v in value)
    except TypeError:
        return str(value)


def _reader(headers: Sequence[Header], group: str, element: str) -> Callable[[Picture], _Mark]:
    def read(picture: Picture) -> _Mark:
        header = headers[picture.file].elements
        if not group:
            return _plain(_get(header, element)) if frame_count(header) == 1 else None
        each = items_of(header, "PerFrameFunctionalGroupsSequence")
        shared = items_of(header, "SharedFunctionalGroupsSequence")
        item = group_of(
            each[picture.frame] if picture.frame < len(each) else None, shared[0] if shared else None, group
        )
        for keyword in element.split("."):
            value = _get(item, keyword)
            item = value[0] if keyword.endswith("Sequence") and value else None
        return _plain(value)

    return read


def _get(item: Elements | None, keyword: str) -> Any:
    try:
        return None if item is None else item.get(keyword)
    except Exception:  # noqa: BLE001 - a malformed element may raise anything on conversion, and tells nothing apart
        return None


def _vector_reader(headers: Sequence[Header], element: str) -> Callable[[Picture], _Mark]:
    def read(picture: Picture) -> _Mark:
        values = _plain(_get(headers[picture.file].elements, element))
        return values[picture.frame] if isinstance(values, tuple) and picture.frame < len(values) else None

    return read


def _dimension_reader(headers: Sequence[Header], dimension: int) -> Callable[[Picture], _Mark]:
    def read(picture: Picture) -> _Mark:
        header = headers[picture.file].elements
        described = items_of(header, "DimensionIndexSequence")
        each = items_of(header, "PerFrameFunctionalGroupsSequence")
        if dimension >= len(described) or picture.frame >= len(each):
            return None
        pointer = _get(described[dimension], "DimensionIndexPointer")
        if pointer is None or int(pointer) in _PLACES:
            return None
        content = group_of(each[picture.frame], None, "FrameContentSequence")
        values = _plain(_get(content, "DimensionIndexValues"))
        return values[dimension] if isinstance(values, tuple) and dimension < len(values) else None

    return read


def _acquired(header: Elements, file: int) -> tuple[float, int]:
    """Return the number by which a file of many slices follows others in its series."""
    number = _number(_get(header, "InstanceNumber"))
    return (0 if number is None else number, file)
