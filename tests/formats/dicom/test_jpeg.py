"""12-bit JPEG: pictures worked out by hand, DCMTK's numbers, and damage that must never reach the decoder."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGExtended12Bit

from clearmargin.errors import InputError
from clearmargin.formats.dicom.jpeg import decode_jpeg_12
from clearmargin.formats.dicom.pixels import decode_frames

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "jpeg_12.json").read_text())


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def _flat_blocks(steps: list[int], rows: int, columns: int) -> bytes:
    """A JPEG whose 8 x 8 blocks are flat: each block's level is the last one's plus its step, from 2048.

    With all quantization steps 8, one unit of the DC coefficient is one grey level. The DC codes are 0 for a
    step of 0 and 10 for one of category 7 (64..127 up or down); the only AC code, 0, ends the block.
    """
    bits = ""
    for step in steps:
        magnitude = step if step > 0 else step + 127
        bits += "00" if step == 0 else f"10{magnitude:07b}0"
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    counts_dc, counts_ac = bytes([1, 1, *[0] * 14]), bytes([1, *[0] * 15])
    return (
        b"\xff\xd8"
        + _segment(0xDB, bytes([0, *[8] * 64]))
        + _segment(0xC1, bytes([12, 0, rows, 0, columns, 1, 1, 0x11, 0]))
        + _segment(0xC4, bytes([0x00]) + counts_dc + bytes([0, 7]))
        + _segment(0xC4, bytes([0x10]) + counts_ac + bytes([0]))
        + _segment(0xDA, bytes([1, 1, 0x00, 0, 63, 0]))
        + coded
        + b"\xff\xd9"
    )


FLAT = _flat_blocks([100, 0, -127, 64], 16, 16)


def test_flat_blocks_have_the_levels_that_were_coded():
    expected = np.kron([[2148, 2148], [2021, 2085]], np.ones((8, 8))).astype(int)
    np.testing.assert_array_equal(decode_jpeg_12(FLAT, 16, 16), expected)
    # A picture that ends within a block.
    np.testing.assert_array_equal(
        decode_jpeg_12(_flat_blocks([100, 0, -127, 64], 11, 13), 11, 13), expected[:11, :13]
    )


def test_the_numbers_of_dcmtk():
    """Two values besides, of pydicom's own tests: tests/pixels/pixels_reference.py, JPGE_16_12_1_0_1F_M2."""
    dataset = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    (frame,) = decode_frames(dataset)
    assert frame.dtype == np.uint16
    assert (frame[420, 140], frame[230, 120]) == (244, 95)
    assert hashlib.sha256(frame.tobytes()).hexdigest() == GOLDEN["JPGExtended.dcm"]


def test_a_lossy_picture_is_near_its_original(data_root):
    folder = data_root / "dicom_awkward" / "wg04"
    for name, mean in (("MR1", 12), ("MR4", 4)):  # of 4096 levels
        datasets = (pydicom.dcmread(folder / f"{name}_{kind}.dcm") for kind in ("JPLY", "UNC"))
        lossy, original = (next(decode_frames(dataset)).astype(int) for dataset in datasets)
        assert np.abs(lossy - original).mean() < mean


def _two_frames() -> pydicom.Dataset:
    dataset = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    dataset.Rows = dataset.Columns = 16
    dataset.NumberOfFrames = 2
    dataset.PixelData = encapsulate([FLAT, _flat_blocks([0, 0, 0, 0], 16, 16)])
    dataset["PixelData"].is_undefined_length = True
    assert dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit
    return dataset


def test_frames_are_told_apart():
    dataset = _two_frames()
    assert [int(frame[15, 15]) for frame in decode_frames(dataset)] == [2085, 2048]
    assert [int(frame[15, 15]) for frame in decode_frames(dataset, [1])] == [2048]


@pytest.mark.parametrize(
    ("name", "value"), [("PixelRepresentation", 1), ("BitsStored", 10), ("BitsStored", 16)]
)
def test_headers_that_12_bits_cannot_have(name, value):
    dataset = _two_frames()
    setattr(dataset, name, value)
    with pytest.raises(InputError, match="unsigned grey values of 12 bits"):
        list(decode_frames(dataset))


def _replaced(old: bytes, new: bytes) -> bytes:
    assert FLAT.count(old) == 1
    return FLAT.replace(old, new)


DAMAGED = {
    "cut off": FLAT[:-2],
    "cut within a table": FLAT[:40],
    "nothing": b"",
    "no start": FLAT[2:],
    "bytes after the end": FLAT + bytes(9),
    "precision 8": _replaced(b"\x0b\x0c\x00\x10", b"\x0b\x08\x00\x10"),
    "precision 16": _replaced(b"\x0b\x0c\x00\x10", b"\x0b\x10\x00\x10"),
    "other rows": _replaced(b"\x0b\x0c\x00\x10", b"\x0b\x0c\x00\x11"),
    "three components": _replaced(b"\x10\x01\x01\x11", b"\x10\x03\x01\x11"),
    "no sampling": _replaced(b"\x10\x01\x01\x11", b"\x10\x01\x01\x00"),
    "lossless": _replaced(b"\xff\xc1", b"\xff\xc3"),
    "progressive": _replaced(b"\xff\xc1", b"\xff\xc2"),
    "arithmetic": _replaced(b"\xff\xc1", b"\xff\xc9"),
    "two frame headers": _replaced(b"\xff\xc1", FLAT[FLAT.index(b"\xff\xc1") :][:13] + b"\xff\xc1"),
    "no quantization": FLAT[:2] + FLAT[71:],
    "short quantization": _replaced(bytes([0xFF, 0xDB, 0, 67]), bytes([0xFF, 0xDB, 0, 66])),
    "another component's scan": _replaced(b"\xff\xda\x00\x08\x01\x01", b"\xff\xda\x00\x08\x01\x02"),
    "short scan header": _replaced(b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x03\x01\x01\x00"),
    "tables that are not there": _replaced(b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x08\x01\x01\x11"),
    "more codes than there are": _replaced(b"\x00\x01\x01\x00\x00\x00", b"\x00\x03\x01\x00\x00\x00"),
    "a restart that none announced": FLAT[:-3] + b"\xff\xd0" + FLAT[-3:],
    "another scan": FLAT[:-2] + FLAT[FLAT.index(b"\xff\xda") :],
    "no coded data": FLAT[: FLAT.index(b"\xff\xda") + 10] + b"\xff\xd9",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused(name):
    with pytest.raises(InputError, match=r"damaged|no grey 12-bit picture"):
        decode_jpeg_12(DAMAGED[name], 16, 16)


def test_restarts_must_be_the_announced_ones():
    """Four blocks of ten bits or two, an interval of two blocks: one restart, numbered 0."""
    interval = _segment(0xDD, bytes([0, 2]))
    scan = FLAT.index(b"\xff\xda")
    first = _flat_blocks([100, 0], 16, 16)[scan + 10 : -2]
    for number, right in ((0xD0, True), (0xD1, False)):
        frame = FLAT[:scan] + interval + FLAT[scan : scan + 10] + first
        frame += bytes([0xFF, number]) + first + b"\xff\xd9"
        if right:
            np.testing.assert_array_equal(decode_jpeg_12(frame, 16, 16), np.full((16, 16), 2148))
        else:
            with pytest.raises(InputError, match="damaged"):
                decode_jpeg_12(frame, 16, 16)


_MUTATE = """
import random
import sys
import pydicom
from pydicom.encaps import encapsulate, generate_frames
from clearmargin.errors import InputError
from clearmargin.formats.dicom.pixels import decode_frames

dataset = pydicom.dcmread(sys.argv[1])
(whole,) = generate_frames(dataset.PixelData, number_of_frames=1)
scan = whole.index(b"\\xff\\xda") + 10
read = refused = 0
for case in range(1000):
    rng = random.Random(case)
    frame = bytearray(whole)
    first, last = (2, scan) if case % 3 else (scan, len(whole))
    for _ in range(rng.randrange(1, 6)):
        frame[rng.randrange(first, last)] = rng.randrange(256)
    dataset.PixelData = encapsulate([bytes(frame)])
    try:
        (pixels,) = decode_frames(dataset)
        assert pixels.shape == (dataset.Rows, dataset.Columns)
        read += 1
    except InputError:
        refused += 1
sys.stdout.write(f"{read} {refused}")
"""


def _mutate(path: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MUTATE, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    read, refused = map(int, done.stdout.split())
    assert read > 0 and refused > 50  # a short header leaves little room for harmless changes


def test_damage_never_ends_the_process():
    """Unchecked, GDCM aborts or faults on about one in thirty of those with a damaged header."""
    _mutate(get_testdata_file("JPGExtended.dcm"))


@pytest.mark.parametrize("name", ["pydicom_data/JPEG-LL.dcm", "wg04/MR1_JLSL.dcm"])
def test_other_damaged_frames_never_end_the_process(name, data_root):
    _mutate(data_root / "dicom_awkward" / name)


def test_a_jpeg_ls_frame_without_an_end_never_reaches_its_decoder(monkeypatch):
    """CharLS reads on behind a cut: ten seconds for 64 x 64 pixels."""
    import jpeg_ls

    dataset = pydicom.dcmread(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    assert next(decode_frames(dataset)).shape == (64, 64)
    monkeypatch.setattr(jpeg_ls, "decode_pixel_data", lambda *_: pytest.fail("it was decoded"))
    for kept in (2, 30, 750, len(frame) - 3):
        dataset.PixelData = encapsulate([frame[:kept]])
        with pytest.raises(InputError, match=r"cut off|damaged"):
            next(decode_frames(dataset))
