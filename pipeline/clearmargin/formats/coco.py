"""COCO JSON in and out: polygons, run lengths, crowds, lists of results (cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core import Crowd, Grid, InstanceSet, LabelMap, Mask
from clearmargin.errors import GeometryError, InputError, nearest
from clearmargin.files import parse_json, write_text
from clearmargin.formats.limits import max_bytes, raise_it

__all__ = ["CocoFile", "CocoImage", "open_coco", "read_coco", "read_coco_images", "write_coco"]

_DAMAGE = (KeyError, TypeError, ValueError, IndexError, OverflowError)
_MAX_PIXELS = 2**28  # of one picture: a mask of it is a quarter of a GiB while it is read
_RASTER = 5  # points that a polygon's edge becomes per pixel


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoImage:
    """One image of a COCO file.

    Attributes:
        file_name: As the file says.
        instances: Its annotations, crowds apart. Labels are 1..K in the order of ``classes``, whatever the
            category ids are.
        classes: Category names in order of their ids.
        ids: ``(N,)`` int64, ids of the annotations, in the order of the instances; positions from 1 where the file
            has none.
        scored: Whether the annotations carry scores.
        boxes_only: Whether some have no segmentation: their mask is their box.
    """

    file_name: str
    instances: InstanceSet
    classes: tuple[str, ...]
    ids: NDArray[np.int64]
    scored: bool
    boxes_only: bool


def read_coco_images(path: Path, *, images: Path | None = None) -> list[CocoImage]:
    """Return every image of a COCO file with its instances, on grids in px; images without annotations are
    empty.

    Args:
        path: A COCO file, or a list of results.
        images: As for `open_coco`.

    Raises:
        InputError: As `open_coco`, or an annotation that does not fit its image.
    """
    file = open_coco(path, images=images)
    held = _Work()  # all of them at once
    return [file.read(k, held) for k in range(len(file.names))]


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoFile:
    """A COCO file, whose images are read one at a time.

    Attributes:
        names: ``file_name`` of each image.
        classes: Category names in order of their ids.
        results: Whether it is a list of results, which says nothing of images without any.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    results: bool
    content: Mapping[str, Any] = field(repr=False)

    def read(self, k: int, held: _Work | None = None) -> CocoImage:
        """Return image ``k`` with its instances.

        Raises:
            InputError: An annotation that does not fit the image.
        """
        return _image(self.content, self.content["images"][k], self.classes, held)


def open_coco(path: Path, *, images: Path | None = None) -> CocoFile:
    """Return a COCO file, or a list of results as detectors write it.

    Args:
        path: The JSON file.
        images: The COCO file that a list of results refers to by ``image_id`` and ``category_id``.

    Raises:
        InputError: Neither, or results that name an image or a category that ``images`` lacks.
    """
    content = _content(Path(path), None if images is None else Path(images))
    names = tuple(str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"]))
    return CocoFile(
        names=tuple(str(e["file_name"]) for e in content["images"]),
        classes=names,
        results=bool(content.get("results")),
        content=content,
    )


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
    entries = content["by_last_part"].get(_last_part(image), [])
    ends = [e for e in entries if f"/{image}".endswith(f"/{e['file_name']}")]
    # the one that says most of the path
    entries = sorted(ends, key=lambda e: len(str(e["file_name"])))[-1:] or entries
    if len(entries) != 1:
        raise InputError(
            f"the COCO file lists {len(entries)} images of that name; it has {len(content['images'])}"
        )
    size = _size(entries[0])
    if size != grid.shape:
        raise GeometryError(f"the COCO file says {size[0]} x {size[1]}, the image is {grid}")
    names = [str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])]
    instances = _image(content, entries[0], names).instances
    unknown = sorted({names[int(k) - 1] for k in instances.labels} - set(label_map.names))
    if unknown:
        raise InputError(f"no class '{unknown[0]}': {nearest(unknown[0], label_map.names)}")
    labels = [label_map.by_name(names[int(k) - 1]).id for k in instances.labels]
    return InstanceSet(
        grid=grid,
        masks=instances.masks,
        labels=np.array(labels, np.int64),
        scores=instances.scores,
        crowds=tuple(
            Crowd(mask=crowd.mask, label=label_map.by_name(names[crowd.label - 1]).id)
            for crowd in instances.crowds
            if names[crowd.label - 1] in label_map.names
        ),
    )


def write_coco(
    path: Path, images: Iterable[tuple[str, InstanceSet]], label_map: LabelMap, *, polygons: bool = False
) -> None:
    """Write instances of pictures as one COCO file, run lengths by default, scores included.

    Args:
        path: The JSON file.
        images: ``(file_name, instances)`` with masks ``(Y, X)``.
        label_map: Becomes the categories.
        polygons: Outlines along the pixels' edges, without holes, for tools that read no run lengths; masks without
            holes come back exactly, as here and in pycocotools.
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
            content["annotations"].append(entry | {"score": float(f"{instances.scores[i]:.9g}")})
        crowds = list(instances.crowds)
        if instances.ignore is not None:  # COCO has no region of every class
            crowds += [Crowd(mask=instances.ignore, label=c.id) for c in label_map.classes]
        for crowd in crowds:
            entry = _annotation(crowd.mask, polygons=False)
            entry |= {"image_id": number, "category_id": crowd.label, "iscrowd": 1}
            content["annotations"].append(entry)
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


def _content(path: Path, images: Path | None = None) -> dict[str, Any]:
    for file in (path, images):
        if file is not None and not file.is_file():
            raise InputError(f"there is no file '{file}'")
    content = _parsed(path, path.stat().st_mtime_ns)
    if "results" not in content:
        return content
    if images is None:
        raise InputError(
            f"'{path.name}' is a list of COCO results, which lists no images: give it as the prediction beside a COCO "
            "file as the reference"
        )
    truth = _content(images)
    return _placed(path, content["results"], truth)


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


class _Annotation(NamedTuple):
    """What is kept of an annotation: a file may hold a million."""

    id: Any
    image_id: Any
    category_id: Any
    iscrowd: Any
    score: Any
    scored: bool
    segmentation: Any
    bbox: Any

    @property
    def is_box(self) -> bool:
        return not self.segmentation and self.bbox is not None


def _packed(entry: dict[str, Any]) -> Any:
    """Return an annotation as it is kept, another object of JSON as it is; called as soon as each is parsed."""
    counts = entry.get("counts")
    if type(counts) is list:
        with suppress(TypeError, OverflowError):  # what is damaged is refused when its image is read
            entry["counts"] = array("q", counts)
    if "image_id" not in entry or "file_name" in entry:  # not an annotation
        return entry
    segmentation = entry.get("segmentation")
    if type(segmentation) is list:
        with suppress(TypeError):
            segmentation = [array("d", polygon) for polygon in segmentation]
    return _Annotation(
        entry.get("id"), entry["image_id"], entry.get("category_id"), entry.get("iscrowd"), entry.get("score", 1.0),
        "score" in entry, segmentation, entry.get("bbox"),
    )  # fmt: skip


@lru_cache(maxsize=4)
def _parsed(path: Path, _modified: int) -> dict[str, Any]:
    """Parse a file once for all its images: they are read one by one."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"), _packed)
        if isinstance(content, list):
            if not all(isinstance(e, _Annotation) and isinstance(e.image_id, int | str) for e in content):
                raise TypeError("a list of something else")
            return {"results": content}
        by_image: dict[int, list[_Annotation]] = {}
        for annotation in content.pop("annotations"):
            by_image.setdefault(annotation.image_id, []).append(annotation)
        content["by_image"] = by_image
        by_last_part: dict[str, list[dict[str, Any]]] = {}
        content["by_last_part"] = by_last_part
        for entry in content["images"]:
            by_last_part.setdefault(_last_part(str(entry["file_name"])), []).append(entry)
        _ = [(by_image.get(e["id"]), e["file_name"], _size(e)) for e in content["images"]]
        _ = sorted({c["id"]: c["name"] for c in content["categories"]})
        alike = len(content["images"]) - len({str(e["file_name"]) for e in content["images"]})
        if alike:
            raise InputError(
                f"'{path.name}' lists {alike} image(s) under the file_name of another: images are paired by name, so "
                "give each its own (a folder in front of it, say)"
            )
    except (*_DAMAGE, AttributeError, RecursionError) as error:
        raise InputError(
            f"'{path.name}' is neither a COCO file nor a list of COCO results ({type(error).__name__})"
        ) from None
    return dict(content)


def _placed(path: Path, results: Sequence[_Annotation], truth: dict[str, Any]) -> dict[str, Any]:
    """Return a list of results as the content of a COCO file with the images and categories of ``truth``."""
    images, categories = {e["id"] for e in truth["images"]}, {c["id"] for c in truth["categories"]}
    by_image: dict[int, list[_Annotation]] = {}
    for k, entry in enumerate(results, start=1):
        if entry.image_id not in images or not _is_one_of(entry.category_id, categories):
            what = "image_id" if entry.image_id not in images else "category_id"
            raise InputError(
                f"result {k} of '{path.name}' has an {what} that the reference does not list: it is of another data set"
            )
        by_image.setdefault(entry.image_id, []).append(entry._replace(iscrowd=0))  # as loadRes does
    return {
        "images": truth["images"], "categories": truth["categories"], "by_image": by_image, "results": True,
    }  # fmt: skip


def _is_one_of(value: Any, known: set[Any]) -> bool:
    """Return whether a value of a JSON file, which may be a list, is one of some ids."""
    return isinstance(value, int | str) and value in known


def _size(entry: dict[str, Any]) -> tuple[int, int]:
    """Return rows and columns; ValueError if the value is not a size."""
    size = (int(entry["height"]), int(entry["width"]))
    if min(size) < 1:
        raise ValueError("a picture without pixels")
    if size[0] * size[1] > _MAX_PIXELS:
        raise InputError(
            f"the COCO file claims a picture of {size[0]} x {size[1]}: more than is read at once"
        )
    return size


class _Work:
    """Counts pixels that are looked at for an image: a few numbers in it can ask for any number of them."""

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


def _image(
    content: Mapping[str, Any], entry: dict[str, Any], names: Sequence[str], held: _Work | None = None
) -> CocoImage:
    size = _size(entry)
    order = {c["id"]: k + 1 for k, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
    masks, labels, scores, ids = [], [], [], []
    crowds: list[Crowd] = []
    work = _Work()
    of_image = content["by_image"].get(entry["id"], [])
    for k, annotation in enumerate(of_image):
        number = annotation.id
        shown = number if isinstance(number, int) else f"{k + 1} of its image"
        try:
            mask = _mask(annotation, size, work)
            (held or work).take(mask.crop.size)
            label = order[annotation.category_id]
            score = float(annotation.score)
        except _DAMAGE as error:
            raise InputError(f"annotation {shown} is damaged ({type(error).__name__})") from None
        if not 0 <= score <= 1:
            raise InputError(
                f"annotation {shown} has the score {score:g}; scores lie in [0, 1]: put logits through a sigmoid first"
            )
        if annotation.iscrowd:
            crowds.append(Crowd(mask=mask, label=label))
            continue
        masks.append(mask)
        labels.append(label)
        scores.append(score)
        ids.append(number if isinstance(number, int) else k + 1)
    instances = InstanceSet(
        grid=Grid.from_spacing(size),
        masks=tuple(masks),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float64),
        crowds=tuple(crowds),
    )
    return CocoImage(
        file_name=str(entry["file_name"]),
        instances=instances,
        classes=tuple(names),
        ids=np.array(ids, np.int64),
        scored=any(annotation.scored for annotation in of_image),
        boxes_only=any(annotation.is_box for annotation in of_image),
    )


def _mask(annotation: _Annotation, size: tuple[int, int], work: _Work) -> Mask:
    """Return an annotation's mask; what it costs is counted before it is made."""
    if annotation.is_box:
        left, top, width, height = (float(v) for v in annotation.bbox)
        corners = (left, top, left, top + height, left + width, top + height, left + width, top)
        return _from_polygons([corners], size, work)
    segmentation = annotation.segmentation
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, size, work)
    if tuple(segmentation["size"]) != size:
        raise ValueError("a mask of another size than its image")
    counts = segmentation["counts"]
    return _from_run_lengths(_uncompressed(counts) if isinstance(counts, str) else counts, size, work)


def _from_run_lengths(counts: ArrayLike, size: tuple[int, int], work: _Work | None = None) -> Mask:
    """Return the mask of column-major run lengths that start with zeros; only its box is unpacked."""
    from clearmargin.formats.coco_kernels import box_of_runs, unpack_runs

    runs = np.asarray(counts, np.int64)
    if runs.ndim != 1:
        raise ValueError("run lengths that are not a list")
    top, left, bottom, right = box = box_of_runs(runs, *size)
    if bottom < 0:
        raise ValueError("run lengths do not add up to the image")
    (work or _Work()).take((bottom - top) * (right - left))
    return Mask(shape=size, origin=(top, left), crop=unpack_runs(runs, size[0], box))


def _uncompressed(text: str | bytes) -> NDArray[np.int64]:
    """Return the counts of COCO's compressed run lengths.

    >>> _uncompressed("22").tolist()
    [2, 2]
    """
    from clearmargin.formats.coco_kernels import runs_of_text

    packed = text.encode("ascii") if isinstance(text, str) else text
    counts, whole = runs_of_text(np.frombuffer(packed, np.uint8))
    if not whole:
        raise ValueError("run lengths that are cut off, or a run longer than any picture")
    return counts


def _from_polygons(polygons: Sequence[ArrayLike], size: tuple[int, int], work: _Work | None = None) -> Mask:
    """Return the pixels that pycocotools gives polygons, in x and y from the picture's corner; by hotcoco.

    Source: pycocotools, ``common/maskApi.c``, ``rleFrPoly``: points on a raster five times as fine.
    """
    from hotcoco import mask as coco

    from clearmargin.formats.coco_kernels import outline_length

    parts = []
    for flat in polygons:
        points = np.asarray(flat, np.float64).reshape(-1, 2)
        length = outline_length(points)
        if len(points) < 3 or not length < _MAX_PIXELS or np.abs(points).max() > _MAX_PIXELS:
            raise ValueError("a polygon has at least three points, and near its image")
        (work or _Work()).take(_RASTER * int(length))
        parts.append(coco.fr_poly(points.ravel().tolist(), *size))
    if not parts:
        return Mask(shape=size, origin=(0, 0), crop=np.zeros((0, 0), bool))
    together = coco.merge(parts) if len(parts) > 1 else parts[0]
    return _from_run_lengths(_uncompressed(together["counts"]), size, work)


def _outlines(mask: Mask) -> list[list[float]]:
    """Return the outer outline of each part of a mask (by faces) along the edges of its pixels."""
    from scipy import ndimage

    parts, count = ndimage.label(mask.crop)
    top, left = mask.origin
    return [
        [float(v) for y, x in _walk(np.pad(parts == k, 1)) for v in (x - 1 + left, y - 1 + top)]
        for k in range(1, count + 1)
    ]


def _walk(held: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the corners ``(y, x)`` at which the outline of one part turns, walked with the part on the right."""
    y, x = (int(v) for v in np.argwhere(held)[0])
    start = (y, x)
    dy, dx = 0, 1  # along the upper edge of its first pixel
    corners: list[tuple[int, int]] = []
    while True:
        y, x = y + dy, x + dx
        ahead_left = held[y - (dy < dx), x - (dx + dy < 0)]
        ahead_right = held[y - (dy + dx < 0), x - (dx < dy)]
        if ahead_right and not ahead_left:
            continue
        corners.append((y, x))
        dy, dx = (-dx, dy) if ahead_right else (dx, -dy)
        if (y, x) == start:
            return corners
