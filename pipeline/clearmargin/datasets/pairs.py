"""Pairs of a prediction and its reference, from files of any tool: listed at once, read one at a time.

What a pair is read into lies on one grid: grids that share their elements are joined, so that nothing of either side is
lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask
from clearmargin.core.lattice import joined, placed, placement
from clearmargin.datasets.naming import CaseFile, LabelNames, case_files, read_label_names, suggest_pattern
from clearmargin.errors import ConfigError, GeometryError, InputError, nearest
from clearmargin.files import check_readable
from clearmargin.formats.label_files import Objects, masks_by_value, parts_of, read_labels
from clearmargin.privacy import case_id, named_by_case, record_cases

__all__ = ["Listing", "Pair", "Side", "list_pairs", "read_pair", "resample"]

log = logging.getLogger(__name__)

_PLAUSIBLE = 150  # classes in a file; TotalSegmentator has 117
_FEW = 8  # values up to which what they mean is not doubted
_AGREE = 0.5  # share of the common foreground in which classes of one meaning agree


@dataclass(frozen=True, kw_only=True)
class Side:
    """Where one side of a pair lies: files, or one image of a COCO file."""

    files: tuple[CaseFile, ...] = ()
    coco: Path | None = None
    images: Path | None = None
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One pair, not yet read.

    Attributes:
        case: Case id.
        name: The case's name; identifies a patient perhaps, so it is shown where a user asks for it.
        predicted: None where a missing file counts as nothing found.
        reference: The reference.
    """

    case: str
    name: str
    predicted: Side | None
    reference: Side


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All pairs of two folders or files.

    Attributes:
        entries: In order of name.
        without_reference: Predictions that have no reference and are left out.
        typed: Whether the user typed the files' names, which errors then may show.
        names: What the values of label files mean; None if nothing says so.
        names_from: The file's name that says so; empty for none.
        classes: Class names by id, in the order of the ids; empty where values are the classes.
    """

    entries: tuple[Entry, ...]
    without_reference: int
    typed: bool = False
    names: LabelNames | None = None
    names_from: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One image's prediction and reference, on one grid.

    Attributes:
        predicted: Instances, none if a missing file counts as empty.
        reference: Instances.
        predicted_ids: What each predicted instance is called in its file: a value (``value.part`` for a connected
            part), a segment number, an annotation's id.
        reference_ids: The same of the references.
        classes: Names by label; of SEG, COCO, named files and ``dataset.json``.
        own: The reference's grid as its file has it: indices for the user are counted on it.
        moved: Length by which putting the prediction on the reference's grid may have moved its edges, in the grid's
            unit: half of its largest step; 0 if it was not resampled.
        scored: Whether predictions carry scores.
        boxes_only: Whether predictions are boxes without masks.
        whole: Whether each label has at most one instance on either side, which are then a class's region.
        asks: Question about what one object is; empty if the file makes it clear.
    """

    predicted: InstanceSet
    reference: InstanceSet
    predicted_ids: tuple[str, ...]
    reference_ids: tuple[str, ...]
    classes: Mapping[int, str]
    own: Grid
    moved: float
    scored: bool
    boxes_only: bool
    whole: bool
    asks: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """One side, read."""

    instances: InstanceSet
    ids: tuple[str, ...]
    classes: Mapping[int, str] = field(default_factory=dict)
    scored: bool = False
    boxes_only: bool = False
    values: NDArray[np.integer[Any]] | None = None
    codes: tuple[tuple[str, str], ...] = ()


def list_pairs(
    predicted: Path,
    reference: Path,
    *,
    missing_as_empty: bool = False,
    predicted_pattern: str | None = None,
    reference_pattern: str | None = None,
    labels: Path | None = None,
) -> Listing:
    """Return which files belong together; no label file is read.

    Files of two folders belong together by case, which is their name without suffix unless a pattern says otherwise; a
    COCO file has its images paired by ``file_name`` and its categories by name.

    Args:
        predicted: Folder or file.
        reference: Folder or file.
        missing_as_empty: Count a reference without a prediction as one with nothing found.
        predicted_pattern: Where files lie below ``predicted`` (`clearmargin.datasets.naming.case_files`).
        reference_pattern: The same below ``reference``.
        labels: A ``dataset.json`` of nnU-Net; None takes the one in or above either folder, if there is one.

    Raises:
        InputError: Nothing to compare, or references without a prediction.
        ConfigError: A pattern that says nothing of cases.
    """
    for path in (predicted, reference):
        check_readable(path)
    if predicted.is_dir() != reference.is_dir():
        raise InputError("give two folders or two files: one of each cannot be paired")
    if not predicted.is_dir() and ".json" in (predicted.suffix.lower(), reference.suffix.lower()):
        return _coco_listing(predicted, reference, missing_as_empty)
    names, source = _label_names(predicted, reference, labels)
    if not predicted.is_dir():
        entry = Entry(
            case=case_id(str(reference.resolve())),
            name=reference.stem,
            predicted=Side(files=(CaseFile(path=predicted),)),
            reference=Side(files=(CaseFile(path=reference),)),
        )
        record_cases({entry.case: reference})
        return Listing(
            entries=(entry,), without_reference=0, typed=True, names=names, names_from=source,
            classes=() if names is None else tuple(names.regions),
        )  # fmt: skip
    theirs = case_files(reference, reference_pattern)
    ours = case_files(predicted, predicted_pattern)
    cases = {name: _case(files) for name, files in theirs.items()}
    record_cases({cases[name]: files[0].path for name, files in theirs.items()})
    missing = sorted(set(theirs) - set(ours))
    if missing and not missing_as_empty:
        raise InputError(_without_prediction(missing, cases, sorted(ours), sorted(theirs)))
    extra = len(set(ours) - set(theirs))
    if extra:
        log.warning("%d predictions without a reference of the same name are left out", extra)
    kinds = {f.kind for files in (*ours.values(), *theirs.values()) for f in files if f.kind is not None}
    entries = tuple(
        Entry(
            case=cases[name],
            name=name,
            predicted=Side(files=tuple(ours[name])) if name in ours else None,
            reference=Side(files=tuple(theirs[name])),
        )
        for name in sorted(theirs)
    )
    named = () if names is None else tuple(names.regions)
    return Listing(
        entries=entries,
        without_reference=extra,
        names=names,
        names_from=source,
        classes=(*named, *sorted(kinds - set(named))),
    )


def read_pair(
    entry: Entry, listing: Listing, *, objects: Objects | None = None, resample_predictions: bool = False
) -> Pair:
    """Return one pair on one grid.

    Args:
        entry: Entry of the listing.
        listing: What values mean, and whether names may be shown.
        objects: What one object is in a label file; None reads values as classes, and says in ``asks`` if they are
            hardly that.
        resample_predictions: Put a prediction of another grid on the reference's, by nearest neighbour; that grid is
            continued to hold all of it.

    Raises:
        InputError: A file that cannot be read, or holds values that have no name.
        GeometryError: Two grids that do not share their elements, if ``resample_predictions`` is off.
    """
    with _naming(entry, listing, "its reference", entry.reference):
        theirs = _read(entry.reference, listing, objects)
    ours = _Read(
        instances=InstanceSet.empty(theirs.instances.grid), ids=(), scored=entry.reference.coco is not None
    )
    if entry.predicted is not None:
        with _naming(entry, listing, "its prediction", entry.predicted):
            ours = _read(entry.predicted, listing, objects)
    with _naming(entry, listing, "it"):
        ours, theirs = _named_alike(ours, theirs)
        asks = "" if objects or listing.classes else _doubt(ours, theirs)
        own, moved = theirs.instances.grid, 0.0
        if not ours.instances.grid.same_as(own):
            ours, theirs, moved = _on_one_grid(entry, ours, theirs, resample_predictions)
    plain = objects in (None, "classes") and entry.reference.coco is None
    plain = plain and not any(file.instance for file in entry.reference.files)
    return Pair(
        predicted=ours.instances,
        reference=theirs.instances,
        predicted_ids=ours.ids,
        reference_ids=theirs.ids,
        classes={**ours.classes, **theirs.classes},
        own=own,
        moved=moved,
        scored=ours.scored or bool((ours.instances.scores < 1).any()),
        boxes_only=ours.boxes_only,
        whole=plain and _one_each(ours.instances) and _one_each(theirs.instances),
        asks=asks,
    )


def resample(instances: InstanceSet, grid: Grid) -> InstanceSet:
    """Return the instances on another grid of the same unit and dimension, by nearest neighbour.

    Grids that already agree give the same set back. What lies outside ``grid`` is lost.

    Raises:
        GeometryError: One grid is in px and the other in mm, or one is an image and the other a volume.
    """
    from scipy.ndimage import affine_transform

    if instances.grid.same_as(grid):
        return instances
    if instances.grid.unit != grid.unit or instances.grid.ndim != grid.ndim or grid.unit == "px":
        raise GeometryError(
            f"cannot resample {instances.grid} to {grid}: only grids in mm of one dimension can be put on each other"
        )
    n = grid.ndim
    to_index = (np.linalg.inv(instances.grid.affine) @ grid.affine)[3 - n : 3, [*range(3 - n, 3), 3]]
    matrix, shift = to_index[:, :n], to_index[:, n]
    masks = []
    for mask in instances.masks:
        reached = _reached(mask, instances.grid, grid)
        low = np.clip(np.floor(reached.min(axis=0)).astype(int), 0, grid.shape)
        high = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 1, 0, grid.shape)
        size = tuple(int(v) for v in np.maximum(high - low, 0))
        crop = np.zeros(size, bool)
        if mask.area and min(size) > 0:
            offset = matrix @ low + shift - mask.origin
            crop = affine_transform(
                mask.crop.astype(np.uint8), matrix, offset, output_shape=size, order=0, mode="grid-constant"
            ).astype(bool)
        masks.append(Mask.from_crop(crop, tuple(int(v) for v in low), grid.shape))
    return InstanceSet(grid=grid, masks=tuple(masks), labels=instances.labels, scores=instances.scores)


def _reached(mask: Mask, own: Grid, grid: Grid) -> NDArray[np.float64]:
    """Return the indices on ``grid`` of the corners of a mask's box."""
    corners = np.stack(np.meshgrid(*[(a - 1, b) for a, b in zip(*mask.box, strict=True)], indexing="ij"), -1)
    return grid.to_index(own.to_world(corners)).reshape(-1, grid.ndim)


def _on_one_grid(
    entry: Entry, ours: _Read, theirs: _Read, resample_predictions: bool
) -> tuple[_Read, _Read, float]:
    """Return both sides on a grid that holds both, and by how much edges may have moved (`Pair.moved`)."""
    ours, theirs = _on_finer_slices(entry, ours, theirs)
    grid, other = theirs.instances.grid, ours.instances.grid
    if not grid.shares_frame(other):
        raise GeometryError(
            "prediction and reference are of two frames of reference, in which equal coordinates are other places: "
            "register them first"
        )
    where = placement(other, grid)
    if where is not None:
        whole = joined(grid, where, other.shape)
        ours, theirs = (replace(side, instances=placed(side.instances, whole)) for side in (ours, theirs))
        return ours, theirs, 0.0
    if not resample_predictions:
        apart = float(np.abs(other.affine[:3, 3] - grid.affine[:3, 3]).max())
        raise GeometryError(
            f"the prediction lies on {other}, the reference on {grid}, and their first elements are {apart:.4g} "
            f"{grid.unit} apart: put them on one grid with --resample (resample_predictions=True)"
        )
    if other.unit == grid.unit == "mm" and other.ndim == grid.ndim:
        reached = [_reached(m, other, grid) for m in ours.instances.masks if m.area]
        if reached:
            ends = np.concatenate(reached)
            low = np.minimum(np.floor(ends.min(axis=0)), 0).astype(np.int64)
            high = np.maximum(np.ceil(ends.max(axis=0)), np.array(grid.shape) - 1).astype(np.int64)
            affine = grid.affine.copy()
            affine[:3, 3] += affine[:3, 3 - grid.ndim : 3] @ low
            grid = Grid(shape=tuple(int(v) for v in high - low + 1), affine=affine, unit="mm")
    return (
        replace(ours, instances=resample(ours.instances, grid)),
        replace(theirs, instances=placed(theirs.instances, grid)),
        max(other.spacing) / 2,
    )


def _on_finer_slices(entry: Entry, ours: _Read, theirs: _Read) -> tuple[_Read, _Read]:
    """Return both with the finer slice distance, if the other is a SEG, which lacks slices that hold nothing."""
    sides = [(ours, entry.predicted), (theirs, entry.reference)]
    for k, (side, where) in enumerate(sides):
        other = sides[1 - k][0].instances.grid
        grid = side.instances.grid
        if not side.codes or where is None or grid.ndim != 3 or other.ndim != 3 or grid.unit != other.unit:
            continue
        along = np.abs(np.linalg.inv(other.affine)[:3, :3] @ grid.affine[:3, 0])
        if grid.shape[0] > 1 and abs(along.max() - 1) < 0.01:
            continue  # the same distance
        inside = other.to_index(
            grid.to_world([(0, 0, 0), (grid.shape[0] - 1, *(n - 1 for n in grid.shape[1:]))])
        )
        low = np.floor(inside.min(axis=0) + 0.5).astype(np.int64)
        high = np.ceil(inside.max(axis=0) - 0.5).astype(np.int64)
        affine = other.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ low
        try:
            finer = Grid(shape=tuple(int(v) for v in high - low + 1), affine=affine, unit=grid.unit)
            read = _read_seg(where.files[0].path, finer).instances
            sides[k] = (replace(side, instances=replace(read, labels=side.instances.labels)), where)
        except (GeometryError, ValueError):
            continue  # its frames do not lie there: the grids differ, and are refused as such
    return sides[0][0], sides[1][0]


def _read(side: Side, listing: Listing, objects: Objects | None) -> _Read:
    if side.coco is not None:
        return _read_coco(side)
    if len(side.files) == 1 and side.files[0].path.name.lower().endswith(".dcm"):
        return _read_seg(side.files[0].path, None)
    parts = [_read_labels(file, listing, objects) for file in side.files]
    grids = [part.instances.grid for part in parts]
    other = next((grid for grid in grids[1:] if not grid.same_as(grids[0])), None)
    if other is not None:
        raise GeometryError(f"its {len(parts)} files lie on different grids: {grids[0].unlike(other)}")
    together = InstanceSet(
        grid=grids[0],
        masks=tuple(mask for part in parts for mask in part.instances.masks),
        labels=np.concatenate([part.instances.labels for part in parts]),
        scores=np.concatenate([part.instances.scores for part in parts]),
        ignore=parts[0].instances.ignore,
    )
    return replace(
        parts[0],
        instances=together,
        ids=tuple(name for part in parts for name in part.ids),
        classes={k: v for part in parts for k, v in part.classes.items()},
        values=parts[0].values if len(parts) == 1 else None,
    )


def _read_labels(file: CaseFile, listing: Listing, objects: Objects | None) -> _Read:
    """Return the objects of a label file with what each is called in it."""
    labels, grid = read_labels(file.path)
    by_value = masks_by_value(labels, grid)
    ignore = None
    if listing.names is not None and listing.names.ignore is not None:
        ignore = by_value.pop(listing.names.ignore, None)
    classes = dict(enumerate(listing.classes, start=1))
    if file.kind is not None or file.instance:  # all of the file is one thing
        label = 1 if file.kind is None else listing.classes.index(file.kind) + 1
        whole = Mask.union(list(by_value.values()), grid.shape)
        objects_of = {file.path.name.split(".")[0]: (label, whole)} if by_value else {}
        if file.instance:
            return _read_of(objects_of, grid, classes if file.kind else {}, ignore)
        objects_of = {str(listing.classes[label - 1]): (label, whole)} if by_value else {}
    elif listing.names is not None and objects != "instances":
        regions = listing.names.regions
        known = {v for values in regions.values() for v in values}
        unknown = sorted(set(by_value) - known)
        if unknown:
            raise InputError(
                f"it holds the value {unknown[0]}, and '{listing.names_from}' names "
                f"{', '.join(str(v) for v in sorted(known))}: they are not of one data set"
            )
        objects_of = {}
        for k, values in enumerate(regions.values(), start=1):
            held = [by_value[v] for v in values if v in by_value]
            if held:
                objects_of["+".join(str(v) for v in values)] = (k, Mask.union(held, grid.shape))
    elif objects == "instances":
        return _read_of({str(v): (1, m) for v, m in by_value.items()}, grid, {}, ignore, labels)
    elif listing.classes and by_value:
        raise InputError(
            f"its values have no names, and the other side's files are named by class ({', '.join(listing.classes[:5])}"
            f"{', ...' if len(listing.classes) > 5 else ''}): say what the values are with --labels dataset.json"
        )
    else:
        objects_of, classes = {str(v): (v, m) for v, m in by_value.items()}, {}
    if objects == "components":
        objects_of = {
            f"{name}.{k}": (label, part)
            for name, (label, mask) in objects_of.items()
            for k, part in enumerate(parts_of(mask), start=1)
        }
    return _read_of(objects_of, grid, classes, ignore, labels)


def _read_of(
    objects_of: Mapping[str, tuple[int, Mask]],
    grid: Grid,
    classes: Mapping[int, str],
    ignore: Mask | None,
    values: NDArray[np.integer[Any]] | None = None,
) -> _Read:
    return _Read(
        instances=InstanceSet(
            grid=grid,
            masks=tuple(mask for _, mask in objects_of.values()),
            labels=np.array([label for label, _ in objects_of.values()], np.int64),
            scores=np.ones(len(objects_of), np.float32),
            ignore=ignore,
        ),
        ids=tuple(objects_of),
        classes=classes,
        values=values,
    )


def _read_seg(path: Path, grid: Grid | None) -> _Read:
    from clearmargin.formats.dicom.seg_content import read_seg_content

    content = read_seg_content(path, grid=grid)
    return _Read(
        instances=content.instances,
        ids=tuple(str(segment.number) for segment in content.segments),
        classes={c.id: c.name for c in content.label_map.classes},
        codes=tuple((c.codes[1].value, c.codes[1].scheme) for c in content.label_map.classes),
    )


def _read_coco(side: Side) -> _Read:
    from clearmargin.formats.coco import open_coco

    image = open_coco(side.coco or Path(), images=side.images).read(side.number)
    return _Read(
        instances=image.instances,
        ids=tuple(str(v) for v in image.ids),
        classes=dict(enumerate(image.classes, start=1)),
        scored=image.scored,
        boxes_only=image.boxes_only,
    )


def _named_alike(ours: _Read, theirs: _Read) -> tuple[_Read, _Read]:
    """Return both with the same label for the same class."""
    if ours.codes and theirs.codes:
        known = list(dict.fromkeys((*theirs.codes, *ours.codes)))
        names: dict[int, str] = {}
        for side in (ours, theirs):
            names |= {_of_code(code): side.classes[k] for k, code in enumerate(side.codes, start=1)}
        if len({_of_code(code) for code in known}) < len(known):
            raise InputError("two types of segments cannot be told apart by their codes")
        return (
            _relabelled(ours, {k: _of_code(code) for k, code in enumerate(ours.codes, start=1)}, names),
            _relabelled(theirs, {k: _of_code(code) for k, code in enumerate(theirs.codes, start=1)}, names),
        )
    if ours.codes or theirs.codes:
        return _seg_and_labels(ours, theirs)
    if ours.classes and theirs.classes and dict(ours.classes) != dict(theirs.classes):
        labels = {name: label for label, name in theirs.classes.items()}
        unknown = sorted({ours.classes[int(v)] for v in ours.instances.labels} - set(labels))
        if unknown:
            raise InputError(
                f"the prediction's category '{unknown[0]}' is not in the reference: {nearest(unknown[0], labels)}"
            )
        return _relabelled(
            ours, {k: labels.get(n, 0) for k, n in ours.classes.items()}, theirs.classes
        ), theirs
    return ours, theirs


def _seg_and_labels(ours: _Read, theirs: _Read) -> tuple[_Read, _Read]:
    """Return a SEG and label values of one class each as that class, or values as segment numbers."""
    seg, other = (ours, theirs) if ours.codes else (theirs, ours)
    present = np.unique(other.instances.labels)
    if len(seg.codes) == 1 and len(present) <= 1:
        mapping, names = {int(v): 1 for v in present}, dict(seg.classes)
    else:
        numbers = {int(n): int(label) for n, label in zip(seg.ids, seg.instances.labels, strict=True)}
        of_name = {name.lower(): label for label, name in seg.classes.items()}
        mapping = {
            int(v): of_name.get(other.classes.get(int(v), "").lower(), numbers.get(int(v), 0))
            for v in present
        }
        names = dict(seg.classes)
        lost = [v for v, label in mapping.items() if not label]
        if lost:
            shown = other.classes.get(lost[0], f"value {lost[0]}")
            raise InputError(
                f"'{shown}' of the label file is not a segment of the SEG, neither by name nor by number "
                f"({', '.join(seg.ids)})"
            )
    other = _relabelled(other, mapping, names)
    return (seg, other) if ours.codes else (other, seg)


def _relabelled(side: _Read, labels: Mapping[int, int], names: Mapping[int, str]) -> _Read:
    instances = side.instances
    changed = np.array([labels.get(int(v), int(v)) for v in instances.labels], np.int64)
    crowds = tuple(replace(c, label=labels.get(c.label, c.label)) for c in instances.crowds)
    return replace(side, instances=replace(instances, labels=changed, crowds=crowds), classes=dict(names))


def _of_code(code: tuple[str, str]) -> int:
    """Return the label of a coded type, the same in every file."""
    import hashlib

    return int(hashlib.sha256("^".join(code).encode()).hexdigest()[:8], 16) + 1


def _doubt(ours: _Read, theirs: _Read) -> str:
    """Return why values are hardly classes; empty where they may be."""
    if theirs.values is None:
        return ""
    most = max(len(theirs.instances), len(ours.instances))
    if most > _PLAUSIBLE:
        return f"a file holds {most} values, more than classes are plausible"
    if most <= _FEW or ours.values is None or ours.values.shape != theirs.values.shape:
        return ""
    both = (ours.values > 0) & (theirs.values > 0)
    alike = int(np.count_nonzero(ours.values[both] == theirs.values[both])) / max(
        int(np.count_nonzero(both)), 1
    )
    if alike >= _AGREE:
        return ""
    return f"a file holds {most} values, and both sides agree in {100 * alike:.0f} % of what both hold"


def _one_each(instances: InstanceSet) -> bool:
    return len(np.unique(instances.labels)) == len(instances)


@contextmanager
def _naming(entry: Entry, listing: Listing, what: str, side: Side | None = None) -> Iterator[None]:
    """Name an error's case, unless the user typed the files."""
    if listing.typed:
        yield
        return
    paths = [] if side is None else [file.path for file in side.files]
    try:
        with named_by_case(entry.case, what, *paths):
            yield
    except ConfigError as error:
        raise ConfigError(f"{entry.case}: {error}") from None


def _label_names(predicted: Path, reference: Path, labels: Path | None) -> tuple[LabelNames | None, str]:
    if labels is not None:
        return read_label_names(labels), labels.name
    folders = [path if path.is_dir() else path.parent for path in (reference, predicted)]
    known: dict[str, LabelNames] = {}
    for where, folder in (
        ("beside the references", folders[0]), ("above the references", folders[0].parent),
        ("beside the predictions", folders[1]),
    ):  # fmt: skip
        path = folder / "dataset.json"
        if path.is_file():
            with suppress(InputError):  # another tool's file of that name: nobody asked for it
                known[f"dataset.json {where}"] = read_label_names(path)
    if not known:
        return None, ""
    source, names = next(iter(known.items()))
    for other, theirs in known.items():
        if theirs.regions != names.regions:
            raise ConfigError(
                f"the {source} says {_said(names)}, and the {other} {_said(theirs)}: give both sides the same values "
                "for the same classes, or name the file that holds for both with --labels"
            )
    return names, source


def _said(names: LabelNames) -> str:
    """Return a few of the names with their values."""
    shown = [f"{name} {'+'.join(map(str, values))}" for name, values in list(names.regions.items())[:5]]
    return ", ".join(shown) + (", ..." if len(names.regions) > 5 else "")


def _without_prediction(
    missing: Sequence[str], cases: Mapping[str, str], ours: Sequence[str], theirs: Sequence[str]
) -> str:
    shown = ", ".join(cases[name] for name in missing[:5])
    pattern = suggest_pattern(ours, theirs)
    if pattern:
        return (
            f"{len(missing)} of {len(theirs)} references have no prediction of the same name, but all have one "
            "named as in "
            f"--predicted-pattern '{pattern}': give that, and --preview to see the pairs"
        )
    pattern = suggest_pattern(theirs, ours)
    if pattern:
        return (
            f"{len(missing)} of {len(theirs)} references have no prediction of the same name, but references "
            "are named as in "
            f"--reference-pattern '{pattern}': give that, and --preview to see the pairs"
        )
    return (
        f"{len(missing)} of {len(theirs)} references have no prediction of the same name ({shown}; the private "
        "crosswalk "
        "gives their files): add them, say by a pattern how files are named, or count them as empty with "
        "--missing-as-empty (missing_as_empty=True)"
    )


def _coco_listing(predicted: Path, reference: Path, missing_as_empty: bool) -> Listing:
    from clearmargin.formats.coco import open_coco

    theirs, ours = open_coco(reference), open_coco(predicted, images=reference)
    numbers = {name: k for k, name in enumerate(ours.names)}
    missing = set(theirs.names) - set(numbers)
    if missing and not missing_as_empty:
        raise InputError(
            f"{len(missing)} of {len(theirs.names)} images of the reference are not in the prediction: list them there "
            "without annotations, or count them as empty with --missing-as-empty (missing_as_empty=True)"
        )
    if not theirs.names:
        raise InputError(f"'{reference.name}' lists no image")
    entries = tuple(
        Entry(
            case=case_id(str(reference.resolve()), name),
            name=Path(name).stem,
            predicted=Side(coco=predicted, images=reference, number=numbers[name])
            if name in numbers
            else None,
            reference=Side(coco=reference, number=k),
        )
        for k, name in enumerate(theirs.names)
    )
    return Listing(
        entries=entries,
        without_reference=len(set(numbers) - set(theirs.names)),
        classes=theirs.classes,
    )


def _case(files: Sequence[CaseFile]) -> str:
    return case_id(str(files[0].path.resolve()))
