"""DICOM cine: the frames of a multi-frame object, or of the video stream inside one (PS3.5, 8.2.5 on)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.core import Image, Source
from clearmargin.errors import InputError
from clearmargin.formats.dicom.boundary import dicom_boundary, modality_of, read_header
from clearmargin.formats.dicom.headers import syntax_of
from clearmargin.formats.dicom.images import frame_time, object_case, read_picture
from clearmargin.formats.dicom.index import SeriesEntry
from clearmargin.formats.dicom.pixels import pixel_layout
from clearmargin.formats.video import Clip, VideoClip

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DicomClip", "dicom_clip"]

# MPEG-2, MPEG-4 AVC/H.264 and HEVC/H.265, with their fragmentable variants.
_VIDEO_SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (100, 101, 102, 103, 104, 105, 106, 107, 108))

_HOPELESS = 256  # as many frames in a row without a picture: the header claims more than there is


@dicom_boundary()
def dicom_clip(entry: SeriesEntry, *, threads: bool = True) -> Clip:
    """Return the clip in a scanned DICOM object; ``threads`` as for :func:`~clearmargin.formats.open_video`.

    Raises:
        InputError: The object is not a clip (a volume, a single picture, no picture), or is damaged.
    """
    path = entry.files[0]
    dataset = read_header(path, pixels=True)
    syntax = str(syntax_of(dataset) or "")
    if any(syntax == known or syntax.startswith(known + ".") for known in _VIDEO_SYNTAXES):
        return _EncapsulatedVideo(dataset, path, threads=threads)
    if entry.kind != "clip":
        raise InputError(f"expected a video, '{path.name}' is one {entry.kind}: read_image reads it")
    return DicomClip(dataset, path)


class DicomClip:
    """A multi-frame object without positions: ultrasound cine, multi-frame secondary capture, endoscopy.

    Frames are ``(C, Y, X)`` in their own dtype: RGB for colour and palettes, one channel for grey.
    """

    def __init__(self, dataset: Dataset, path: Path) -> None:
        """Take an object that was read with its pixels; frames are decoded when asked for."""
        self._dataset = dataset
        self._path = path
        layout = pixel_layout(self._dataset)
        self.frame_count = layout.frames
        self.size = (layout.rows, layout.columns)
        self.corrupt: list[int] = []
        last = self._time(layout.frames - 1)
        self.fps = (layout.frames - 1) / last if last else 0.0
        self.case = object_case(self._dataset, path)

    def frame(self, number: int) -> Image:
        """Return frame ``number`` from 0.

        Raises:
            InputError: No such frame, or it is damaged.
        """
        if not 0 <= number < self.frame_count:
            raise InputError(f"'{self._path.name}' has frames 0 to {self.frame_count - 1}, not {number}")
        return read_picture(self._dataset, self._path, frame=number)

    def frames(self) -> Iterator[Image]:
        """Yield the frames in order; damaged ones are counted in ``corrupt`` and left out."""
        shown: list[int] = []
        for number in range(self.frame_count):
            if number - (shown[-1] if shown else -1) > _HOPELESS:
                break
            with contextlib.suppress(InputError):
                image = self.frame(number)
                shown.append(number)
                yield image
        self.corrupt = sorted(set(range(self.frame_count)) - set(shown))

    def _time(self, number: int) -> float:
        return frame_time(self._dataset, number) or 0.0


class _EncapsulatedVideo(VideoClip):
    """A video stream inside a DICOM object: the fragments joined are the stream."""

    def __init__(self, dataset: Dataset, path: Path, *, threads: bool) -> None:
        from pydicom.encaps import generate_fragments

        if "PixelData" not in dataset:
            raise InputError(f"'{path.name}' holds no pixel data")
        fragments = list(generate_fragments(dataset.PixelData))
        stream = io.BytesIO(b"".join(fragments[1:] if len(fragments) > 1 else fragments))
        self._dicom_path, self._modality = path, modality_of(dataset)
        super().__init__(stream, name=path.name, case=object_case(dataset, path), threads=threads)

    def _image(self, decoded: Any, number: int) -> Image:
        image = super()._image(decoded, number)
        source = Source(
            case=self.case,
            kind="dicom",
            modality=self._modality,
            files=(self._dicom_path,),
            frame=number,
            time_s=image.source.time_s,
        )
        return Image(pixels=image.pixels, grid=image.grid, source=source)
