"""A frame's number is its place in the clip: constant and variable rates, B-frames, cuts and damage."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41

from clearmargin.datasets.phantom import make_clip
from clearmargin.errors import InputError
from clearmargin.formats import is_video, open_video, read_images
from clearmargin.formats.video import write_video


def _picture(k: int) -> np.ndarray:
    """A frame that shows its own number: eight bars, white where the bit is set; survives compression."""
    frame = np.zeros((48, 64, 3), np.uint8)
    for bit in range(8):
        frame[:, bit * 8 : bit * 8 + 8] = 255 * (k >> bit & 1)
    return frame


def _number(pixels: np.ndarray) -> int:
    return sum(int(pixels[0, 24, bit * 8 + 4] > 127) << bit for bit in range(8))


def _encode(path: Path, times: list[int], *, codec: str = "libx264", frames: int = 80, options=None) -> Path:
    """Write numbered frames at given presentation times, in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = options or {"bf": "3", "g": "12"}
        base = Fraction(1, 1000) if times else Fraction(1, 25)  # MPEG and AVI know fixed rates only
        stream.codec_context.time_base = base
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(_picture(k), format="rgb24")
            frame.pts, frame.time_base = (times[k] if times else k), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


VARIABLE = [int(v) for v in np.cumsum(np.random.default_rng(0).integers(10, 120, 80))]
CLIPS = {
    "constant.mp4": {"times": []},
    "variable.mp4": {"times": VARIABLE},
    "variable.mkv": {"times": VARIABLE},
    "reordered.avi": {"times": []},
    "xvid.avi": {"times": [], "codec": "mpeg4", "options": {"g": "12"}},
    "mpeg.mpg": {"times": [], "codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "transport.ts": {"times": []},
    "quick.mov": {"times": []},
}


@pytest.mark.parametrize("name", list(CLIPS))
def test_every_frame_by_its_number(name, tmp_path):
    path = _encode(tmp_path / name, **CLIPS[name])
    clip = open_video(path)
    assert is_video(path) and clip.frame_count == 80 and clip.size == (48, 64)
    shown = [(_number(f.pixels), f.source.frame) for f in clip.frames()]
    assert shown == [(k, k) for k in range(80)]
    assert clip.corrupt == []
    for k in np.random.default_rng(1).permutation(80)[:25]:
        assert _number(clip.frame(int(k)).pixels) == k


def test_frames_by_time_on_a_variable_clock(tmp_path):
    clip = open_video(_encode(tmp_path / "a.mp4", VARIABLE))
    seconds = (np.array(VARIABLE) - VARIABLE[0]) / 1000
    for k in (0, 1, 17, 41, 79):
        assert clip.frame(k).source.time_s == pytest.approx(seconds[k], abs=2e-3)
        assert _number(clip.frame_at(float(seconds[k]) + 0.004).pixels) == k


def test_a_stream_copied_cut_counts_what_it_shows(tmp_path):
    whole = _encode(tmp_path / "whole.mp4", [])
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        source.seek(30 * 512, stream=source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    clip = open_video(cut)
    shown = [_number(f.pixels) for f in clip.frames()]
    assert shown == list(range(shown[0], 80)) and len(shown) == clip.frame_count
    for k in (0, 3, len(shown) - 1):
        assert _number(clip.frame(k).pixels) == shown[k]


@pytest.mark.parametrize(("name", "at"), [("a.mp4", 1 / 3), ("a.ts", 1 / 2)])
def test_damage_is_counted_and_no_wrong_picture_is_shown(name, at, tmp_path):
    path = _encode(tmp_path / name, [], options={"g": "8", "bf": "0"})
    raw = bytearray(path.read_bytes())
    middle = int(len(raw) * at)
    raw[middle : middle + 200] = bytes(200)
    path.write_bytes(raw)
    clip = open_video(path)
    shown = [(f.source.frame, round(f.source.time_s * 25), _number(f.pixels)) for f in clip.frames()]
    assert 60 <= len(shown) < 80
    assert clip.corrupt and len(shown) + len(clip.corrupt) == clip.frame_count
    # Whatever is shown is the picture of its time: no frame painted upon a damaged one.
    assert all(at_time == number for _, at_time, number in shown)
    with pytest.raises(InputError, match="is damaged"):
        clip.frame(clip.corrupt[-1])


def test_a_file_cut_off_is_read_as_far_as_it_goes(tmp_path):
    path = _encode(tmp_path / "a.mkv", [])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = open_video(path)
    numbers = [_number(f.pixels) for f in clip.frames()]
    assert len(numbers) >= 10 and numbers == sorted(numbers)


def test_refusals(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match=r"'a\.mp4' is not readable as a video"):
        open_video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"no file or folder '.*/b\.mp4'"):
        open_video(tmp_path / "b.mp4")
    clip = open_video(_encode(tmp_path / "c.mp4", [], frames=5))
    for k in (5, -1):
        with pytest.raises(InputError, match="frames 0 to 4"):
            clip.frame(k)
    with pytest.raises(InputError, match="at least one frame"):
        write_video(tmp_path / "d.mp4", [], 25)


def test_what_is_written_is_read(tmp_path):
    frames = [_picture(k).transpose(2, 0, 1)[:, :47, :63] for k in range(30)]
    assert write_video(tmp_path / "a.mp4", iter(frames), 12.5) == 30
    clip = open_video(tmp_path / "a.mp4")
    assert (clip.frame_count, clip.fps, clip.size) == (30, pytest.approx(12.5), (48, 64))
    assert [_number(f.pixels) for f in clip.frames()] == list(range(30))
    with av.open(str(tmp_path / "a.mp4")) as container:  # its encoder's licence is permissive
        assert container.streams.video[0].codec_context.name.startswith("vp9")
    with pytest.raises(ValueError, match=r"\.webm"):
        write_video(tmp_path / "a.avi", iter(frames), 12.5)


def test_a_phantom_clip_decodes_to_its_frames(tmp_path):
    clip = make_clip(1, frames=6, size=(64, 64), pixel_mm=4.5)
    write_video(tmp_path / "clip.mp4", np.moveaxis(clip.frames, -1, 1), clip.frame_rate, quality=4)
    decoded = np.stack([f.pixels for f in open_video(tmp_path / "clip.mp4").frames()])
    assert np.abs(np.moveaxis(decoded, 1, -1).astype(int) - clip.frames).mean() < 4


def _cine(path: Path, frames: int = 6) -> Path:
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.3.4"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, "1.2.3.4"
    ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.Modality = "1.2.3", "1.2", "US"
    ds.Rows, ds.Columns, ds.NumberOfFrames, ds.FrameTime = 48, 64, frames, "40"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = b"".join(_picture(k).tobytes() for k in range(frames))
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)
    return path


def test_dicom_cine(tmp_path):
    path = _cine(tmp_path / "a.dcm")
    assert is_video(path)
    clip = open_video(path)
    assert (clip.frame_count, clip.size) == (6, (48, 64)) and clip.fps == pytest.approx(25)
    frames = list(clip.frames())
    assert [_number(f.pixels) for f in frames] == list(range(6))
    assert [f.source.time_s for f in frames] == pytest.approx([0.04 * k for k in range(6)])
    assert _number(clip.frame(4).pixels) == 4
    assert [_number(f.pixels) for f in read_images(path)] == list(range(6))


def test_video_inside_dicom(tmp_path):
    stream = _encode(tmp_path / "a.mp4", [], frames=30).read_bytes()
    ds = pydicom.dcmread(_cine(tmp_path / "b.dcm"))
    ds.file_meta.TransferSyntaxUID = MPEG4HP41
    ds.PhotometricInterpretation, ds.NumberOfFrames = "YBR_PARTIAL_420", 30
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert is_video(tmp_path / "b.dcm")
    clip = open_video(tmp_path / "b.dcm")
    frames = list(clip.frames())
    assert [_number(f.pixels) for f in frames] == list(range(30))
    assert frames[3].source.kind == "dicom" and frames[3].source.modality == "US"
    assert _number(clip.frame(17).pixels) == 17


def test_real_clips(data_root):
    clip = open_video(
        data_root / "endovis2015_robotic_video" / "dataset1_gt_Left_Instrument_Segmentation.avi"
    )
    assert (clip.frame_count, clip.fps, clip.size) == (370, 25.0, (576, 720))
    wanted = {5, 251, 369}  # 251 is the second key frame, which needs the first packet's parameters
    frames = {f.source.frame: f.pixels for f in clip.frames() if f.source.frame in wanted}
    for k in wanted:
        assert_array_equal(clip.frame(k).pixels, frames[k])


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        (
            (0, 1, -1, 0),
            (slice(0, 8), slice(-8, None)),
        ),  # a quarter to the right: top left goes to the top right
        ((-1, 0, 0, -1), (slice(-8, None), slice(-8, None))),
        ((0, -1, 1, 0), (slice(-8, None), slice(0, 8))),
    ],
)
def test_a_turned_clip_is_read_as_players_show_it(tmp_path, matrix, corner):
    """A phone's way: the track header's matrix says how frames are turned (ISO 14496-12, 8.3.2)."""
    frame = np.full((3, 64, 96), 16, np.uint8)
    frame[:, :8, :8] = 240
    path = tmp_path / "a.mp4"
    write_video(path, [frame] * 5, 25)
    raw = bytearray(path.read_bytes())
    start = raw.index(b"tkhd") + 4 + 40
    a, b, c, d = (65536 * v for v in matrix)
    raw[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(raw)
    clip = open_video(path)
    assert clip.size == ((96, 64) if a == 0 else (64, 96))
    for image in (next(clip.frames()), clip.frame(3)):
        assert image.grid.shape == clip.size == image.pixels.shape[1:]
        assert image.pixels[0][corner].mean() > 200
        assert np.median(image.pixels) < 40
