"""Video in and out: every frame by its exact index, whatever the container's clock does; constant memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import InputError
from clearmargin.files import whole as whole_file
from clearmargin.formats.limits import max_bytes, raise_it

__all__ = ["Clip", "VideoClip", "video_writer", "write_video"]

# Of FFmpeg's demuxers those of one file; not the playlists and scripts, which name other files and addresses.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,h264,hevc,m4v,asf,ogg,flv,mxf,dv,ivf,vc1"
)
_VP9_SUFFIXES = (".mp4", ".mkv", ".webm")


# Most of FFmpeg's errors derive from the others too; what it has not implemented does not.
def _damage() -> tuple[type[Exception], ...]:
    """Return what decoders raise on damaged frames; looked up when it is met, since PyAV is an extra."""
    from av.error import FFmpegError

    return FFmpegError, OSError, ValueError, EOFError, LookupError


class Clip(Protocol):
    """Frames in order, from a video file or a DICOM cine.

    Attributes:
        case: Case id of the whole clip.
        frame_count: Number of frames that the container holds, damaged ones included.
        fps: Mean frames a second; 0 where the file states no time.
        size: ``(Y, X)``.
        corrupt: Numbers of frames found damaged so far; they are left out of :meth:`frames`.
    """

    case: str
    frame_count: int
    fps: float
    size: tuple[int, int]
    corrupt: list[int]

    def frames(self) -> Iterator[Image]:
        """Yield the frames from the first to the last; ``source.frame`` is each one's number."""
        ...

    def frame(self, number: int) -> Image:
        """Return one frame by its number from 0."""
        ...


class VideoClip:
    """A video read with FFmpeg through PyAV.

    The presentation times of all packets are listed once, without decoding; a frame's number is the rank of
    its time. A seek is verified: decoding starts at a key frame before the wanted time and ends at exactly
    that time.

    AVI and raw streams carry no presentation times. With reordered (B) frames the decoder's order alone is
    then
    right: numbers count what it puts out, and the first random access decodes the clip once to learn that
        order.
    """

    def __init__(self, file: Path | Any, *, name: str, case: str, threads: bool = True) -> None:
        """Index ``file``, a path or an open binary file that can seek; errors call it ``name``."""
        self._file, self._name, self.case = file, name, case
        self._threads = threads
        self._path = file if isinstance(file, Path) else None
        self.corrupt: list[int] = []
        self._pts, self._time_base, self.fps, size, self._clocked = self._index()
        self._quarters = self._turn()
        self.size = size[::-1] if self._quarters % 2 else size
        self._number = {pts: k for k, pts in enumerate(self._pts)}
        self._zero = self._pts[0]
        self._ordered = self._clocked
        self.frame_count = len(self._pts)

    def frames(self) -> Iterator[Image]:
        """Yield frames ``(3, Y, X)`` uint8 RGB in order; damaged ones are counted and left out."""
        seen: set[int] = set()
        shown = 0
        with self._open() as container:
            for decoded, whole in _decode(container):
                number = self._number.get(decoded.pts) if self._clocked else shown
                shown += 1
                if number is None or number in seen or not whole:
                    continue
                seen.add(number)
                yield self._image(decoded, number)
        self.corrupt = sorted(set(range(self.frame_count)) - seen)

    def frame(self, number: int) -> Image:
        """Return frame ``number`` from 0; negative numbers are an error.

        Raises:
            InputError: No such frame, or it is damaged.
        """
        if not 0 <= number < self.frame_count:
            raise InputError(f"'{self._name}' has frames 0 to {self.frame_count - 1}, not {number}")
        if not self._ordered:
            self._pts, self._ordered = self._times_by_decoding(), True
        if number >= len(self._pts):
            raise InputError(f"frame {number} of '{self._name}' is damaged")
        stamp = self._pts[number]
        for back in (0, 1, 4, 16, None):
            with self._open() as container:
                video_frame = self._seek(container, stamp, back)
                if video_frame is not None:
                    return self._image(video_frame, number)
        if number not in self.corrupt:
            self.corrupt = sorted([*self.corrupt, number])
        raise InputError(f"frame {number} of '{self._name}' is damaged")

    def frame_at(self, time_s: float) -> Image:
        """Return the frame that is on screen ``time_s`` seconds after the first one."""
        times = np.array([self._time(k) for k in range(self.frame_count)])
        number = int(np.searchsorted(times, time_s + 1e-9, side="right")) - 1
        return self.frame(min(max(number, 0), self.frame_count - 1))

    def _seek(self, container: Any, stamp: int, back: int | None) -> Any:
        """Return the frame at ``stamp``, starting ``back`` seconds earlier (None: at the start), or None."""
        stream = container.streams.video[0]
        target = min(self._zero, 0) if back is None else stamp - round(back / self._time_base)
        # An AVI may state its decoder's parameters in the first packet only: seeking in a fresh container
        # without having decoded it gives wrong pictures with no error.
        for packet in _demux(container):
            with contextlib.suppress(*_damage()):
                packet.decode()
            break
        try:
            container.seek(max(target, min(self._zero, 0)), stream=stream, backward=True)
        except _damage():
            return None
        for decoded, whole in _decode(container):
            if decoded.pts is None:
                continue
            if decoded.pts == stamp:
                return decoded if whole else None
            if self._clocked and decoded.pts > stamp:
                return None
        return None

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        import av

        source = self._file
        if isinstance(source, Path):
            source = os.fspath(source.absolute())  # never taken for an address
        else:
            source.seek(0)
        try:
            container = av.open(
                source,
                metadata_errors="replace",
                options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
            )
        except _damage():
            raise InputError(f"'{self._name}' is not readable as a video") from None
        try:
            if not container.streams.video:
                raise InputError(f"'{self._name}' holds no video")
            if container.streams.video[0].codec_context is None:
                raise InputError(f"'{self._name}' is in a codec that no installed decoder reads")
            container.streams.video[0].thread_type = "AUTO" if self._threads else "NONE"
            # Raise on damage instead of painting over it.
            container.streams.video[0].codec_context.options = {
                "err_detect": "explode",
                "max_pixels": str(min(max_bytes() // 3, 2**31 - 1)),
            }
            yield container
        finally:
            container.close()

    def _index(self) -> tuple[list[int], Fraction, float, tuple[int, int], bool]:
        with self._open() as container:
            stream = container.streams.video[0]
            size = (int(stream.height), int(stream.width))
            base = cast(Fraction, stream.time_base)
            times = [p.pts for p in _demux(container) if p.size and not p.is_discard]
            rate = float(stream.average_rate or 0)
            reordered = bool(stream.codec_context.has_b_frames)
            clocked = not (container.format.name == "avi" and reordered) and None not in times
        kept = sorted(set(times)) if clocked else list(range(len(times)))
        if clocked and len(kept) < len(times):
            clocked, kept = False, list(range(len(times)))
        if not kept or min(size) < 1:
            raise InputError(f"'{self._name}' holds no video frame")
        if 3 * size[0] * size[1] > max_bytes():
            raise InputError(f"'{self._name}' claims frames of {size[0]} x {size[1]}: {raise_it()}")
        span = (kept[-1] - kept[0]) * float(base) if clocked else 0.0
        return kept, base, (len(kept) - 1) / span if span > 0 else rate, size, clocked

    def _turn(self) -> int:
        """Return how many quarters the frames are turned to the left before they are shown.

        Raises:
            InputError: They are turned by an angle that no array can be.
        """
        with self._open() as container:
            degrees = next((int(getattr(f, "rotation", 0) or 0) for f, _ in _decode(container)), 0)
        if degrees % 90:
            raise InputError(f"'{self._name}' is shown turned by {degrees} degrees: only quarters are read")
        return degrees // 90 % 4

    def _times_by_decoding(self) -> list[int]:
        """Return the labels that the decoder gives the frames, in the order in which it puts them out."""
        with self._open() as container:
            return [f.pts for f, _ in _decode(container) if f.pts is not None]

    def _time(self, number: int) -> float:
        if self._clocked:
            return float((self._pts[number] - self._zero) * self._time_base)
        return number / self.fps if self.fps else 0.0

    def _image(self, decoded: Any, number: int) -> Image:
        # Converting to RGB has threads of its own; 0 is as many as there are cores.
        rgb = decoded.to_ndarray(format="rgb24", threads=0 if self._threads else 1)
        # A phone writes its picture lying and how to turn it beside it; players turn it, and so photographs are.
        pixels = np.ascontiguousarray(np.moveaxis(np.rot90(rgb, self._quarters), -1, 0))
        return Image(
            pixels=pixels,
            grid=Grid.from_spacing(pixels.shape[1:]),
            source=Source(
                case=self.case,
                kind="video",
                files=() if self._path is None else (self._path,),
                frame=number,
                time_s=self._time(number),
            ),
        )


def _demux(container: Any) -> Iterator[Any]:
    """Yield packets, past damaged stretches that the demuxer can leave behind, to the end."""
    failures = 0
    while failures < 8:
        try:
            for packet in container.demux(container.streams.video[0]):
                failures = 0
                yield packet
        except _damage():
            failures += 1
        else:
            return


def _decode(container: Any) -> Iterator[tuple[Any, bool]]:
    """Yield decoded frames, and whether each is whole.

    A packet that the decoder rejects yields nothing; what follows is drawn upon wrong ones up to the next key
    frame, and the decoder does not say so.
    """
    whole = True
    for packet in _demux(container):
        whole = whole and not packet.is_corrupt
        try:
            decoded = packet.decode()
        except _damage():
            whole = False
            continue
        for frame in decoded:
            whole = whole or bool(frame.key_frame)
            yield frame, whole and not frame.is_corrupt


def write_video(
    path: Path, frames: Iterable[Image | NDArray[np.uint8]], fps: float, *, quality: int = 20
) -> int:
    """Write RGB frames as VP9 and return how many; arguments and errors as for `video_writer`."""
    count = 0
    with video_writer(path, fps, quality=quality) as add:
        for frame in frames:
            add(frame.pixels if isinstance(frame, Image) else frame)
            count += 1
    return count


@contextlib.contextmanager
def video_writer(
    path: Path, fps: float, *, quality: int = 20
) -> Iterator[Callable[[NDArray[np.generic]], None]]:
    """Give a function that takes frames ``(3, Y, X)`` uint8 RGB one by one; the file is whole when the block is left.

    VP9 plays in browsers and its encoder's licence is permissive; the H.264 encoder that comes with PyAV is GPL. Odd
    sizes are padded by one pixel; grey frames ``(1, Y, X)`` are repeated.

    Args:
        path: ``.mp4``, ``.mkv`` or ``.webm``.
        fps: Frames a second; 0, of a clip that states no time, plays at 25.
        quality: libvpx's constant quality, 0 (best) to 63 (smallest).

    Raises:
        InputError: No frame, or frames of several sizes. ValueError: another suffix.
    """
    import av

    if path.suffix.lower() not in _VP9_SUFFIXES:
        raise ValueError(f"video is written as {', '.join(_VP9_SUFFIXES)}, not '{path.suffix}'")
    with whole_file(path) as draft, av.open(os.fspath(draft), "w") as container:
        stream: Any = container.add_stream("libvpx-vp9", rate=Fraction(fps or 25).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {
            "crf": str(quality),
            "b": "0",
            "deadline": "realtime",
            "cpu-used": "6",
            "row-mt": "1",
        }
        sizes: list[tuple[int, ...]] = []

        def add(pixels: NDArray[np.generic]) -> None:
            if not sizes:
                stream.height, stream.width = (n + n % 2 for n in pixels.shape[1:])
            sizes.append(pixels.shape[1:])
            if pixels.dtype != np.uint8 or sizes[-1] != sizes[0]:
                raise InputError(
                    f"frame {len(sizes) - 1} is {pixels.dtype} of {pixels.shape}; video holds uint8 of one size"
                )
            for packet in stream.encode(_video_frame(np.asarray(pixels, np.uint8))):
                container.mux(packet)

        yield add
        if not sizes:
            raise InputError("a video needs at least one frame")
        for packet in stream.encode():
            container.mux(packet)


def _video_frame(pixels: NDArray[np.uint8]) -> Any:
    import av

    colour = np.repeat(pixels, 3, axis=0) if len(pixels) == 1 else pixels
    padded = np.pad(colour, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2)), mode="edge")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(np.moveaxis(padded, 0, -1)), format="rgb24")
