"""The cases of a card: found, split by group, read with their reference instances."""

from __future__ import annotations

import hashlib
import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, InstanceSet, Mask
from clearmargin.csv_files import read_csv
from clearmargin.datasets.card import (
    SPLITS,
    Card,
    LabelImage,
    LabelVolume,
    MaskFiles,
    RtStruct,
    Split,
    ValueMasks,
    VideoMasks,
    cards_are_trusted,
    read_card,
)
from clearmargin.datasets.clips import Clips, nearest_levels
from clearmargin.datasets.landmark_card import PointTable
from clearmargin.datasets.landmark_readers import read_landmarks
from clearmargin.datasets.splits import assign_splits
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.files import below, uncell
from clearmargin.formats import case_of, read_image
from clearmargin.privacy import case_id, named_by_case, naming, plain_name, record_case, record_cases
from clearmargin.transforms.turning import turned_case

__all__ = ["Case", "Dataset", "build_dataset", "open_dataset"]


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image with its reference.

    Attributes:
        case: Case id, a keyed hash (or plain, if the card says so); the only name that leaves this process.
        group: Keyed hash of the group: the patient, surgery or image.
        split: The split its group belongs to.
        strata: Values of the card's stratifying columns.
        image: The image's file or folder, of several sequences the first; or the clip it is a frame of.
        further: The other sequences, further channels on the grid of ``image``.
        references: The reference's files; one, but for masks in files of their own.
        series: Which DICOM series of ``image``; None if there is only one.
        frame: Number of the frame from 0; None where the image is not a frame of a clip.
        landmarks: The landmarks' file, if it is not the reference's.
    """

    case: str
    group: str
    split: Split
    strata: dict[str, str]
    image: Path = field(repr=False)
    references: tuple[Path, ...] = field(repr=False)
    ignore: Path | None = field(repr=False, default=None)
    further: tuple[Path, ...] = field(repr=False, default=())
    series: str | None = field(repr=False, default=None)
    frame: int | None = None
    landmarks: Path | None = field(repr=False, default=None)
    row: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def reference(self) -> Path:
        """The reference's one file; ConfigError if there are several."""
        if len(self.references) != 1:
            raise ConfigError(f"{self.case} has {len(self.references)} references; its encoding takes one")
        return self.references[0]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A card and its cases, all splits together.

    Attributes:
        card: What is known of them.
        cases: In the card's order.
        clips: Those that frames are read from.
        axes: Order of axes that volumes are turned to as they are read (`ImageSettings.axes`); None: as they are.
    """

    card: Card
    cases: tuple[Case, ...]
    clips: Clips = field(repr=False, compare=False, default_factory=Clips)
    axes: str | None = None

    def __repr__(self) -> str:
        counts = {s: sum(c.split == s for c in self.cases) for s in SPLITS}
        held = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
        return f"Dataset({self.card.name}, {len(self.cases)} cases: {held})"

    def split(self, name: Split) -> tuple[Case, ...]:
        """Return the cases of one split; ConfigError if it is empty."""
        cases = tuple(c for c in self.cases if c.split == name)
        if not cases:
            counts = {s: sum(c.split == s for c in self.cases) for s in SPLITS}
            raise ConfigError(f"card '{self.card.name}' has no case in split '{name}' (it has {counts})")
        return cases

    def read(self, case: Case) -> tuple[Image, InstanceSet]:
        """Return a case's image and its reference instances on the image's grid.

        Raises:
            InputError: A file is missing or does not hold what the card says; GeometryError: its reference
                lies on another grid.
        """
        with named_by_case(case.case, "its image", case.image):
            image = (
                _read_frame(self, case, case.image)
                if case.frame is not None
                else read_image(case.image, series=case.series)
            )
            grid = _with_spacing(image.grid, self.card)
        image = replace(
            image,
            pixels=_with_further(case, image),
            grid=grid,
            source=replace(
                image.source, case=case.case, modality=image.source.modality or self.card.modality
            ),
        )
        _tell(image)
        with named_by_case(case.case, "its reference", *case.references):
            reference = _REFERENCE_READERS[self.card.encoding.kind](self, case, image.grid)
        if case.ignore is not None:
            with named_by_case(case.case, "its ignored region", case.ignore):
                reference = replace(reference, ignore=Mask.from_dense(_read_labels(case.ignore, image.grid)))
        return turned_case(self.axes, image, self._with_landmarks(case, image, reference))

    def _with_landmarks(self, case: Case, image: Image, reference: InstanceSet) -> InstanceSet:
        source = self.card.landmarks
        if source is None:
            return reference
        path = case.landmarks or case.reference
        name = None
        if isinstance(source, PointTable) and source.case is not None:
            name = _fill(source.case, case.row, self.card)
        with named_by_case(case.case, "its landmarks", path):
            landmarks = read_landmarks(
                source,
                path,
                reference=reference,
                label_map=self.card.label_map,
                image=image,
                path_of_image=case.image.as_posix(),
                frame=case.frame,
                case=name,
            )
        return replace(reference, landmarks=landmarks)

    def digest(self) -> str:
        """Return the SHA-256 over every image and reference file, in case order: what "the same data" means."""
        total = hashlib.sha256()
        known: dict[Path, bytes] = {}  # a clip's file is read once, not once for each of its frames
        for case in self.cases:
            total.update(f"{case.split}\0".encode())
            if case.frame is not None:
                total.update(f"{case.frame}\0".encode())
            for path in (case.image, *case.further, *case.references, case.ignore, case.landmarks):
                if path is not None and path not in known:
                    known[path] = b"".join(_digest(file) for file in _files(path))
                total.update(b"" if path is None else known[path])
        return total.hexdigest()

    def file_digests(self, cases: Sequence[Case]) -> dict[str, dict[str, str]]:
        """Return the SHA-256 of each case's ``image`` and ``reference`` files, by case id: which file has changed."""
        known: dict[Path, bytes] = {}
        out = {}
        for case in cases:
            sides = {
                "image": (case.image, *case.further),
                "reference": (*case.references, case.ignore, case.landmarks),
            }
            out[case.case] = {"split": str(case.split)}
            for side, paths in sides.items():
                total = hashlib.sha256()
                for path in paths:
                    if path is not None and path not in known:
                        known[path] = b"".join(_digest(file) for file in _files(path))
                    total.update(b"" if path is None else known[path])
                out[case.case][side] = total.hexdigest()
        return out


_told: set[str] = set()


def _tell(image: Image) -> None:
    """Log what a reader had to decide or leave out of a case, once per process.

    Raises:
        InputError: No value is finite.
    """
    case = image.source.case
    if case in _told:
        return
    if image.not_finite == image.pixels.size:
        raise InputError(f"{case}: none of its {image.pixels.size} values is finite")
    _told.add(case)
    if image.not_finite:
        log.warning("%s: %d of %d values are not finite: left out", case, image.not_finite, image.pixels.size)
    for remark in image.source.remarks:
        log.warning("%s: %s", case, remark)


def open_dataset(card_path: Path) -> Dataset:
    """Read a card and find its cases.

    Raises:
        ConfigError: The card, its index or a template does not fit. InputError: files named by it are missing;
            all are counted.
    """
    card, root = read_card(card_path)
    rows = list(card.cases.rows)
    if card.cases.index is not None:
        beside = card.cases.index.startswith(".")
        index = _place(card_path.resolve().parent if beside else root, card.cases.index, card)
        rows = _read_index(index, card)
    return build_dataset(card, root, rows)


def build_dataset(card: Card, root: Path, rows: Sequence[dict[str, str]]) -> Dataset:
    """Return the cases of a card whose rows are known.

    Args:
        card: The card.
        root: The folder that its templates begin in.
        rows: A row for each case, or for each clip.

    Raises:
        ConfigError, InputError: As for :func:`open_dataset`.
    """
    absent = [c for c in (*card.cases.strata, *filter(None, [card.splits.column])) if c not in rows[0]]
    if absent:
        raise ConfigError(f"card '{card.name}': the index has no column {absent}; it has {list(rows[0])}")
    _refuse_repeats(card, rows)
    groups = [_fill(card.cases.group, row, card) for row in rows]
    assigned = assign_splits(card, rows, groups)
    clips = Clips()
    cases = []
    for row, group in zip(rows, groups, strict=True):
        for full in _frame_rows(row, card, root, clips):
            cases.append(_case(full, group, assigned[group], card, root))
    cases = _told_apart(cases)
    record_cases({re.sub(r"-f\d+$", "", c.case): c.image for c in cases})
    missing = [(c.case, what, p) for c in cases for what, p in _paths(c) if not p.exists()]
    if missing:
        case, what, path = missing[0]
        record_case(case, path)
        count = len({case for case, _, _ in missing})
        raise InputError(
            f"card '{card.name}': {count} of {len(cases)} cases lack a file (first: {case}); {what} was tried under "
            f"'{root}' (`clearmargin cases {case}` gives the whole path): check the template, and root"
        )
    return Dataset(card=card, cases=tuple(cases), clips=clips)


def _refuse_repeats(card: Card, rows: Sequence[dict[str, str]]) -> None:
    """Refuse ids that several rows or frames share, before anything is looked for on the disk."""
    framed = card.cases.frames is not None
    if framed and "frame" in rows[0]:
        raise ConfigError(
            f"card '{card.name}': cases.frames makes the column 'frame', which the index has too"
        )
    first: dict[str, int] = {}
    repeats = []
    for number, row in enumerate(rows, start=1):
        ids = [_fill(card.cases.id, row | ({"frame": k} if framed else {}), card) for k in range(1 + framed)]
        if framed and ids[0] == ids[1]:
            raise ConfigError(
                f"card '{card.name}': cases.id gives the same id to several cases: frames need {{frame}}"
            )
        if first.setdefault(ids[0], number) != number:
            repeats.append(number)
    if repeats:
        number = repeats[0]
        before = first[_fill(card.cases.id, rows[number - 1] | ({"frame": 0} if framed else {}), card)]
        raise ConfigError(
            f"card '{card.name}': cases.id gives the same id to several rows: {len(repeats)} repeat an earlier one "
            f"(first: row {number}, as row {before}): remove them, or name another column in cases.id"
        )


def _paths(case: Case) -> Iterator[tuple[str, Path]]:
    """Yield the paths of a case, each with the card's key that it comes from."""
    yield from (("cases.image", path) for path in (case.image, *case.further))
    yield from (("cases.reference", path) for path in case.references)
    if case.landmarks is not None:
        yield "landmarks.file", case.landmarks


def _told_apart(cases: list[Case]) -> list[Case]:
    """Return the cases with ids of their own: the second one of a picture, such as another reader's, gets ``-2``."""
    seen: Counter[str] = Counter()
    apart = []
    for case in cases:
        seen[case.case] += 1
        again = seen[case.case]
        apart.append(case if again == 1 else replace(case, case=f"{case.case}-{again}"))
    return apart


def _frame_rows(row: dict[str, str], card: Card, root: Path, clips: Clips) -> Iterator[dict[str, Any]]:
    """Yield the row itself, or where cases are frames, one with its ``frame`` for each; one where no clip is."""
    every = card.cases.frames
    if every is None:
        yield row
        return
    clip = _place(root, _fill(card.cases.images[0], row, card), card)
    try:
        # a missing one is counted with the others
        count = clips.frame_count(clip) if clip.exists() else card.cases.first_frame + 1
    except InputError:
        name = case_of(clip)
        record_case(name, clip)
        raise InputError(
            f"{name}: its clip is not readable as a video (cases.frames is set; `clearmargin cases {name}` "
            "gives the file)"
        ) from None
    yield from (row | {"frame": number} for number in range(card.cases.first_frame, count, every))


def _case(row: dict[str, Any], group: str, split: Split, card: Card, root: Path) -> Case:
    references = _fill(card.cases.reference, row, card).split(";")
    image = _place(root, _fill(card.cases.images[0], row, card), card)
    series = None if card.cases.series is None else _fill(card.cases.series, row, card) or None
    own = None if card.landmarks is None else card.landmarks.file
    return Case(
        case=_name_of_case(row, card, image, series),
        group=case_id(card.name, "unit", group),  # the word is part of the hashes that models record
        split=split,
        strata={name: row[name] for name in card.cases.strata},
        image=image,
        further=tuple(_place(root, _fill(template, row, card), card) for template in card.cases.images[1:]),
        references=tuple(_place(root, name.strip(), card) for name in references),
        series=series,
        ignore=None if card.cases.ignore is None else _place(root, _fill(card.cases.ignore, row, card), card),
        frame=row["frame"] if card.cases.frames is not None else None,
        landmarks=None if own is None else _place(root, _fill(own, row, card), card),
        row=row,
    )


def _place(root: Path, name: str, card: Card) -> Path:
    """Return what a card's template names under its root.

    Raises:
        ConfigError: It lies elsewhere, and the command line does not say that it may.
    """
    path = root / name if cards_are_trusted() else below(root, name)
    if path is None:
        raise ConfigError(
            f"card '{card.name}' names a file outside its folder '{card.root}': correct its templates or index, or "
            "say `clearmargin --trust-cards ...` if the card is yours"
        )
    return path


def _name_of_case(row: Mapping[str, Any], card: Card, image: Path, series: str | None) -> str:
    """Return the id that any verb gives the picture (a frame's number behind its clip's), or the card's plain one."""
    if card.names == "plain" or naming() == "plain":
        return plain_name(_fill(card.cases.id, row, card))
    frame = f"-f{row['frame']}" if card.cases.frames is not None else ""
    return f"{case_of(image, series=series)}{frame}"


def _read_index(path: Path, card: Card) -> list[dict[str, str]]:
    if not path.is_file():
        raise ConfigError(f"card '{card.name}': no index '{path}'")
    rows = [{name: uncell(value) for name, value in row.items()} for row in read_csv(path, error=ConfigError)]
    if not rows:
        raise ConfigError(f"card '{card.name}': the index '{path.name}' has no rows")
    return rows


class _Template(string.Formatter):
    """Fills ``{column}`` and ``{frame:06d}``, and nothing else that Python's templates can do."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        # The whole name is a column's, dots and brackets included: nothing is looked up in a value.
        return kwargs[field_name], field_name

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion:
            raise ValueError(f"'!{conversion}' is not understood: expected {{column}} or {{frame:06d}}")
        return value

    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec and not (re.fullmatch(r"0?\d?d?", format_spec) and isinstance(value, int)):
            raise ValueError(f"':{format_spec}' is not understood: expected such as {{frame:06d}}")
        return str(format(value, format_spec))


_TEMPLATE = _Template()


def _fill(template: str, row: Mapping[str, Any], card: Card) -> str:
    try:
        return _TEMPLATE.vformat(template, (), row)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"card '{card.name}': template '{template}' does not fit the index ({error}); it has {list(row)}"
        ) from None


def _with_spacing(grid: Grid, card: Card) -> Grid:
    if card.spacing.source == "unknown":
        return Grid.from_spacing(grid.shape) if grid.unit == "mm" else grid
    if card.spacing.source == "constant":
        return Grid.from_spacing(grid.shape, card.spacing.mm)
    if grid.unit != "mm":
        raise GeometryError(f"card '{card.name}' says spacing comes from the file, but the file has none")
    return grid


def _with_further(case: Case, image: Image) -> NDArray[np.generic]:
    """Return the channels of all sequences of a case, whose first is ``image``."""
    channels = [image.pixels]
    for number, path in enumerate(case.further, start=2):
        with named_by_case(case.case, f"its sequence {number}", path):
            further = read_image(path)
            if not further.grid.same_as(image.grid):
                raise GeometryError(
                    f"sequence {number} of {1 + len(case.further)} lies on another grid than the first: "
                    f"{further.grid.unlike(image.grid)}; resample them to one grid before they enter a card"
                )
        channels.append(further.pixels)
    return np.concatenate(channels) if case.further else image.pixels


def _read_labels(path: Path, grid: Grid) -> NDArray[np.integer[Any]]:
    from clearmargin.formats.raster import read_label_raster
    from clearmargin.formats.volume import read_label_volume

    labels, own_grid = (read_label_raster(path), None) if grid.ndim == 2 else read_label_volume(path)
    if labels.shape != grid.shape or (own_grid is not None and not own_grid.same_as(grid)):
        unlike = f"{labels.shape} and {grid}" if own_grid is None else own_grid.unlike(grid)
        raise GeometryError(
            f"'{path.name}' lies on another grid than its image: {unlike}; resample one of them before it enters a "
            "card, or, if both are of the same elements, mend the header that is wrong"
        )
    return labels


def _label_image(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    card, encoding = dataset.card, dataset.card.encoding
    if not isinstance(encoding, LabelImage):
        raise TypeError(encoding)
    instances = InstanceSet.from_label_image(grid, _read_labels(case.reference, grid))
    if len(instances) == 0:  # a class template may then name no class at all ("normal")
        return instances
    label = card.label_map.by_name(_fill(encoding.label, case.row, card)).id
    return replace(instances, labels=np.full(len(instances), label))


def _value_table(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    card, encoding = dataset.card, dataset.card.encoding
    if not isinstance(encoding, ValueMasks | LabelVolume):
        raise TypeError(encoding)
    labels = _read_labels(case.reference, grid)
    if labels.min() < 0:
        raise InputError("its reference holds negative values; label values are 0 or more")
    values = [int(v) for v in np.unique(labels) if v != 0]
    listed = {*encoding.values, *encoding.ignore, *(v for parts in encoding.regions.values() for v in parts)}
    unknown = [v for v in values if v not in listed]
    if unknown:
        raise InputError(f"its reference holds the values {unknown} that card '{card.name}' does not list")
    masks: list[Mask] = []
    names: list[str] = []
    for value, mask in zip(values, InstanceSet.from_label_image(grid, labels).masks, strict=True):
        if value in encoding.values:
            masks.append(mask)
            names.append(encoding.values[value])
    for name, parts in encoding.regions.items():
        region = Mask.from_dense(np.isin(labels, parts))
        if region.area:
            masks.append(region)
            names.append(name)
    instances = InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.array([card.label_map.by_name(name).id for name in names], np.int64),
        scores=np.ones(len(masks), np.float32),
        ignore=Mask.from_dense(np.isin(labels, encoding.ignore)) if encoding.ignore else None,
    )
    return _components(instances) if encoding.split_components else instances


def _mask_files(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    card, encoding = dataset.card, dataset.card.encoding
    if not isinstance(encoding, MaskFiles):
        raise TypeError(encoding)
    names = [name.strip() for name in _fill(encoding.label, case.row, card).split(";")]
    names = names * len(case.references) if len(names) == 1 else names
    if len(names) != len(case.references):
        raise ConfigError(
            f"{case.case} has {len(case.references)} mask files and {len(names)} class names; give one name per file, "
            "or one for all"
        )
    masks = [_read_mask(path, grid, encoding.threshold) for path in case.references]
    kept = [k for k, mask in enumerate(masks) if mask.area]  # a file may say that nothing is there
    instances = InstanceSet(
        grid=grid,
        masks=tuple(masks[k] for k in kept),
        labels=np.array([card.label_map.by_name(names[k]).id for k in kept], np.int64),
        scores=np.ones(len(kept), np.float32),
    )
    return _components(instances) if encoding.split_components else instances


def _read_mask(path: Path, grid: Grid, threshold: int | None) -> Mask:
    """Return what is not 0 in a mask file, or at least ``threshold``: with one, JPEG and fractions are read, too."""
    if threshold is None:
        return Mask.from_dense(_read_labels(path, grid))
    image = read_image(path)
    if image.grid.shape != grid.shape or (image.grid.unit == "mm" and not image.grid.same_as(grid)):
        raise GeometryError(f"'{path.name}' lies on another grid than its image: {image.grid.unlike(grid)}")
    return Mask.from_dense(image.pixels.max(axis=0) >= threshold)


def _components(instances: InstanceSet) -> InstanceSet:
    """Return one instance for each face-connected component."""
    from scipy import ndimage

    masks, labels = [], []
    for mask, label in zip(instances.masks, instances.labels, strict=True):
        parts, count = ndimage.label(mask.crop)
        for k in range(1, count + 1):
            masks.append(Mask.from_crop(parts == k, mask.origin, mask.shape))
            labels.append(label)
    return InstanceSet(
        grid=instances.grid,
        masks=tuple(masks),
        labels=np.array(labels, np.int64),
        scores=np.ones(len(masks), np.float32),
    )


def _coco(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    from clearmargin.formats.coco import read_coco

    return read_coco(case.reference, image=case.image.as_posix(), grid=grid, label_map=dataset.card.label_map)


def _dicom_seg(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    from clearmargin.formats.dicom.seg_content import read_dicom_seg

    return read_dicom_seg(case.reference, grid=grid, label_map=dataset.card.label_map)


def _rtstruct(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    from clearmargin.formats.dicom.rtstruct import read_rtstruct

    encoding = dataset.card.encoding
    if not isinstance(encoding, RtStruct):
        raise TypeError(encoding)
    structure = read_rtstruct(case.reference, grid=grid)
    unknown = [n for n in structure.names if n not in encoding.regions and n not in encoding.left_out]
    if unknown:  # the names are free text of the file
        raise InputError(
            f"its reference holds {len(unknown)} of {len(structure.names)} regions that card '{dataset.card.name}' "
            "names neither in regions nor in left_out"
        )
    kept = [k for k, name in enumerate(structure.names) if name in encoding.regions]
    classes = [dataset.card.label_map.by_name(encoding.regions[structure.names[k]]).id for k in kept]
    return replace(structure.instances.select(kept), labels=np.array(classes, np.int64))


def _video_masks(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    encoding = dataset.card.encoding
    if not isinstance(encoding, VideoMasks):
        raise TypeError(encoding)
    masks, labels = [], []
    for path in case.references:
        frame = _read_frame(dataset, case, path)
        if frame.grid.shape != grid.shape:
            raise GeometryError(f"a mask video is {frame.grid.shape}, its clip {grid.shape}")
        try:
            levels = nearest_levels(frame.pixels, encoding.levels, encoding.tolerance)
        except InputError as error:
            raise InputError(f"{error}; list it in encoding.levels") from None
        masks += [Mask.from_dense(mask) for mask in levels.values()]
        labels += [dataset.card.label_map.by_name(name).id for name in levels]
    return InstanceSet(
        grid=grid,
        masks=tuple(masks),
        labels=np.array(labels, np.int64),
        scores=np.ones(len(masks), np.float32),
    )


def _read_frame(dataset: Dataset, case: Case, path: Path) -> Image:
    """Return the case's frame of its clip, or of a mask video, which has as many."""
    if case.frame is None:
        raise TypeError(f"{case.case} is not a frame of a clip")
    counts = [dataset.clips.frame_count(p) for p in (case.image, path)]
    if counts[0] != counts[1]:
        raise InputError(f"a mask video has {counts[1]} frames, its clip {counts[0]}")
    return dataset.clips.frame(path, case.frame)


def _no_masks(dataset: Dataset, case: Case, grid: Grid) -> InstanceSet:
    return InstanceSet.empty(grid)


# A new encoding is one class in card.py, one reader here, one line.
_REFERENCE_READERS: dict[str, Callable[[Dataset, Case, Grid], InstanceSet]] = {
    "label_image": _label_image,
    "value_masks": _value_table,
    "label_volume": _value_table,
    "mask_files": _mask_files,
    "coco": _coco,
    "dicom_seg": _dicom_seg,
    "rtstruct": _rtstruct,
    "video_masks": _video_masks,
    "none": _no_masks,
}


def _files(path: Path | None) -> list[Path]:
    if path is None:
        return []
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _digest(file: Path) -> bytes:
    stat = file.stat()
    return _digest_of(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digest_of(file: Path, _size: int, _modified: int) -> bytes:
    """Read a file once for the digest of the data and for its own, as long as it does not change."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
