"""COCO JSON in and out: polygons, run lengths, crowds as ignore regions (cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, LabelMap, Mask
from clearmargin.errors import GeometryError, InputError, nearest
from clearmargin.files import write_text
from clearmargin.formats.limits import max_bytes, raise_it

__all__ = ["CocoImage", "read_coco", "read_coco_images", "write_coco"]

_DAMAGE = (KeyError, TypeError, ValueError, IndexError, OverflowError)
_MAX_PIXELS = 2**28  # of one picture: a mask of it is a quarter of a GiB while it is read
_MAX_SHIFT = 60
_BLOCK = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoImage:
    """One image of a COCO file.

    Attributes:
        file_name: As the file says.
        instances: Its annotations; ``ignore`` is the union of its crowds. Labels are 1..K in the order of
            ``classes``, whatever the category ids are.
        classes: Category names in order of their ids.
    """

    file_name: str
    instances: InstanceSet
    classes: tuple[str, ...]


def read_coco_images(path: Path) -> list[CocoImage]:
    """Return every image of a COCO file with its instances, on grids in px; images without annotations are
    empty.

    Raises:
        InputError: Not a COCO file, or an annotation that does not fit its image.
    """
    content = _content(Path(path))
    names = [str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])]
    work = _Work()
    return [_image(content, entry, names, work) for entry in content["images"]]


def read_coco(path: Path, *, image: str, grid: Grid, label_map: LabelMap) -> InstanceSet:
    """Return the instances of one image.

    Args:
        path: The JSON file.
        image: ``file_name``, or a path that ends with it; its last part alone also fits if only one image has it.
        grid: The image's grid, of the size that the file states.
        label_map: Its names are the file's category names.

    Raises:
        InputError: No such image, or a category that the label map does not name.
        GeometryError: The file states another size.
    """
    content = _content(Path(path))
    ends = [e for e in content["images"] if f"/{image}".endswith(f"/{e['file_name']}")]
    entries = sorted(ends, key=lambda e: len(str(e["file_name"])))[-1:]  # the one that says most of the path
    last = image.rsplit("/", 1)[-1]
    entries = entries or [e for e in content["images"] if str(e["file_name"]).rsplit("/", 1)[-1] == last]
    if len(entries) != 1:
        raise InputError(
            f"the COCO file lists {len(entries)} images of that name; it has {len(content['images'])}"
        )
    size = _size(entries[0])
    if size != grid.shape:
        raise GeometryError(f"the COCO file says {size[0]} x {size[1]}, the image is {grid}")
    names = [str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])]
    found = _image(content, entries[0], names, _Work()).instances
    unknown = sorted({names[int(k) - 1] for k in found.labels} - set(label_map.names))
    if unknown:
        raise InputError(f"no class '{unknown[0]}': {nearest(unknown[0], label_map.names)}")
    labels = [label_map.by_name(names[int(k) - 1]).id for k in found.labels]
    return InstanceSet(
        grid=grid,
        masks=found.masks,
        labels=np.array(labels, np.int64),
        scores=found.scores,
        ignore=found.ignore,
    )


def write_coco(
    path: Path, images: Iterable[tuple[str, InstanceSet]], label_map: LabelMap, *, polygons: bool = False
) -> None:
    """Write instances of pictures as one COCO file, run lengths by default, scores included.

    Args:
        path: The JSON file.
        images: ``(file_name, instances)`` with masks ``(Y, X)``.
        label_map: Becomes the categories.
        polygons: Outlines without holes, for tools that read no run lengths; masks without holes come back
            exactly where a polygon holds the pixels whose centres lie inside.
    """
    content: dict[str, Any] = {"info": {"description": "Clear Margin; research use only"}}
    content["categories"] = [
        {"id": c.id, "name": c.name, "isthing": int(c.kind == "thing")} for c in label_map.classes
    ]
    content["images"], content["annotations"] = [], []
    for number, (name, instances) in enumerate(images, start=1):
        height, width = instances.grid.shape
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for i, mask in enumerate(instances.masks):
            entry = _annotation(mask, polygons=polygons)
            entry |= {"image_id": number, "category_id": int(instances.labels[i]), "iscrowd": 0}
            content["annotations"].append(entry | {"score": round(float(instances.scores[i]), 6)})
        if instances.ignore is not None:
            crowd = _annotation(instances.ignore, polygons=False)
            content["annotations"].append(crowd | {"image_id": number, "category_id": 1, "iscrowd": 1})
    for k, entry in enumerate(content["annotations"], start=1):
        entry["id"] = k
    write_text(Path(path), json.dumps(content))


def _annotation(mask: Mask, *, polygons: bool) -> dict[str, Any]:
    (top, left), (bottom, right) = mask.box
    segmentation: Any = {"size": list(mask.shape), "counts": mask.run_lengths()}
    if polygons:
        segmentation = _outlines(mask)
    return {
        "segmentation": segmentation,
        "bbox": [left, top, right - left, bottom - top],
        "area": mask.area,
    }


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _parsed(path: Path, _modified: int) -> dict[str, Any]:
    """Parse a file once for all its images: they are read one by one."""
    try:
        content = json.loads(path.read_text())
        by_image: dict[int, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        content["by_image"] = by_image
        _ = [(by_image.get(e["id"]), e["file_name"], _size(e)) for e in content["images"]]
        _ = sorted({c["id"]: c["name"] for c in content["categories"]})
    except (*_DAMAGE, RecursionError) as error:
        raise InputError(f"'{path.name}' is not a COCO file ({type(error).__name__})") from None
    return dict(content)


def _size(entry: dict[str, Any]) -> tuple[int, int]:
    """Return rows and columns; ValueError where they are none."""
    size = (int(entry["height"]), int(entry["width"]))
    if min(size) < 1:
        raise ValueError("a picture without pixels")
    if size[0] * size[1] > _MAX_PIXELS:
        raise InputError(
            f"the COCO file claims a picture of {size[0]} x {size[1]}: more than is read at once"
        )
    return size


class _Work:
    """Counts pixels that are looked at for a file: a few numbers in it can ask for any number of them."""

    def __init__(self) -> None:
        self._pixels = 0

    def take(self, pixels: int) -> None:
        """Count some more, before they are made.

        Raises:
            InputError: There are more than bytes in the limit.
        """
        self._pixels += pixels
        if self._pixels > max_bytes():
            raise InputError(
                f"the annotations of the COCO file cover {self._pixels / 2**30:.3g} Gi pixels: {raise_it()}"
            )


def _image(content: dict[str, Any], entry: dict[str, Any], names: Sequence[str], work: _Work) -> CocoImage:
    size = _size(entry)
    order = {c["id"]: k + 1 for k, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
    masks, labels, scores = [], [], []
    crowd: NDArray[np.bool_] | None = None
    for k, annotation in enumerate(content["by_image"].get(entry["id"], [])):
        try:
            mask = _mask(annotation["segmentation"], size, work)
            label = order[annotation["category_id"]]
            score = _score(annotation)
        except _DAMAGE as error:
            number = annotation.get("id")
            shown = number if isinstance(number, int) else f"{k + 1} of its image"
            raise InputError(f"annotation {shown} is damaged ({type(error).__name__})") from None
        if annotation.get("iscrowd"):
            crowd = np.zeros(size, bool) if crowd is None else crowd
            crowd[mask.slices] |= mask.crop
            continue
        masks.append(mask)
        labels.append(label)
        scores.append(score)
    instances = InstanceSet(
        grid=Grid.from_spacing(size),
        masks=tuple(masks),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
        ignore=None if crowd is None else Mask.from_dense(crowd),
    )
    return CocoImage(file_name=str(entry["file_name"]), instances=instances, classes=tuple(names))


def _score(annotation: dict[str, Any]) -> float:
    score = float(annotation.get("score", 1.0))
    if not 0 <= score <= 1:
        raise ValueError("a score lies in [0, 1]")
    return score


def _mask(segmentation: Any, size: tuple[int, int], work: _Work) -> Mask:
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, size, work)
    if tuple(segmentation["size"]) != size:
        raise ValueError("a mask of another size than its image")
    counts = segmentation["counts"]
    return _from_run_lengths(_uncompressed(counts) if isinstance(counts, str) else counts, size, work)


def _from_run_lengths(counts: Sequence[int], size: tuple[int, int], work: _Work | None = None) -> Mask:
    """Return the mask of column-major run lengths that start with zeros; only its columns are unpacked."""
    runs = np.asarray(counts, np.int64)
    total = size[0] * size[1]  # each is held against it first: a sum can wrap round
    if runs.ndim != 1 or (runs < 0).any() or (runs > total).any() or runs.sum() != total:
        raise ValueError("run lengths do not add up to the image")
    ends = np.cumsum(runs)
    inside = np.flatnonzero((np.arange(len(runs)) % 2 == 1) & (runs > 0))
    if not len(inside):
        return Mask.from_crop(np.zeros((0, 0), bool), (0, 0), size)
    first = int(ends[inside[0]] - runs[inside[0]]) // size[0]
    stop = -(-int(ends[inside[-1]]) // size[0])
    (work or _Work()).take(2 * (stop - first) * size[0])  # unpacked, and turned over
    clipped = np.clip(ends, first * size[0], stop * size[0])
    within = np.diff(clipped, prepend=first * size[0]).astype(np.int64)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, within).reshape(stop - first, size[0])
    dense = np.empty(columns.shape[::-1], bool)
    for k in range(
        0, len(columns), _BLOCK
    ):  # in blocks: turning a large array over whole is ten times slower
        for row in range(0, size[0], _BLOCK):
            dense[row : row + _BLOCK, k : k + _BLOCK] = columns[k : k + _BLOCK, row : row + _BLOCK].T
    return Mask.from_crop(dense, (0, first), size)


def _uncompressed(text: str) -> list[int]:
    """Return the counts of COCO's compressed run lengths: 5 bits a character, from the third on as
    differences.

    Source: pycocotools, ``common/maskApi.c``, ``rleFrString``.

    >>> _uncompressed("22")
    [2, 2]
    """
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            digit = ord(text[position]) - 48
            value |= (digit & 0x1F) << shift
            more = bool(digit & 0x20)
            position, shift = position + 1, shift + 5
            if shift > _MAX_SHIFT:
                raise ValueError("a run longer than any picture")
            if not more and digit & 0x10:
                value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def _from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int], work: _Work) -> Mask:
    """Return the pixels whose centres the polygons hold; x and y count from the picture's corner."""
    shapes = []
    for flat in polygons:
        points = np.asarray(flat, np.float64).reshape(-1, 2)
        if len(points) < 3 or not np.isfinite(points).all() or np.abs(points).max() > _MAX_PIXELS:
            raise ValueError("a polygon has at least three points, and near its image")
        low = np.floor(points.min(axis=0)).astype(int).clip(0, (size[1], size[0]))
        high = np.ceil(points.max(axis=0)).astype(int).clip(0, (size[1], size[0]))
        if (high > low).all():
            shapes.append((points, low, high))
    if not shapes:
        return Mask.from_crop(np.zeros((0, 0), bool), (0, 0), size)
    left, top = np.min([low for _, low, _ in shapes], axis=0)
    right, bottom = np.max([high for _, _, high in shapes], axis=0)
    work.take(int(right - left) * int(bottom - top))
    dense = np.zeros((bottom - top, right - left), bool)
    for points, low, high in shapes:
        work.take(int((high - low).prod()) + len(points) * int(high[1] - low[1]))
        rows, columns = slice(low[1] - top, high[1] - top), slice(low[0] - left, high[0] - left)
        _fill_polygon(dense[rows, columns], points[:, ::-1] - low[::-1] - 0.5)
    return Mask.from_crop(dense, (int(top), int(left)), size)


def _fill_polygon(target: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
    """Set what of ``target`` (Y, X) lies in a polygon of (y, x), by the parity of crossings, or on its outline.

    Row by row, so that memory stays small whatever the polygon's size.
    """
    ends = np.roll(points, -1, axis=0)
    (y0, x0), (y1, x1) = points.T, ends.T
    order = np.argsort(np.minimum(y0, y1))
    lows, highs = np.minimum(y0, y1)[order], np.maximum(y0, y1)[order]
    for row in range(len(target)):
        near = order[: np.searchsorted(lows, row, side="right")][
            highs[: np.searchsorted(lows, row, side="right")] >= row
        ]
        if not len(near):
            continue
        ya, xa, yb, xb = y0[near], x0[near], y1[near], x1[near]
        crossing = (ya > row) != (yb > row)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = np.sort((xa + (row - ya) * (xb - xa) / (yb - ya))[crossing])
        level = (ya == row) & (yb == row)
        spans = [*zip(at[::2], at[1::2], strict=True)]
        spans += zip(np.minimum(xa, xb)[level], np.maximum(xa, xb)[level], strict=True)
        spans += [(x, x) for x in xa[ya == row]]
        for start, stop in spans:
            target[row, max(0, math.ceil(start)) : max(0, math.floor(stop) + 1)] = True


def _outlines(mask: Mask) -> list[list[float]]:
    """Return the outer outlines of a mask, half way between the centres of inner and outer pixels."""
    from scipy import ndimage
    from skimage.measure import find_contours

    filled = np.pad(ndimage.binary_fill_holes(mask.crop), 1)
    corner = np.array(mask.origin) - 1 + 0.5
    return [
        [float(v) for v in (contour[:-1] + corner)[:, ::-1].ravel()]
        for contour in find_contours(filled.astype(np.float32), 0.5)
    ]
