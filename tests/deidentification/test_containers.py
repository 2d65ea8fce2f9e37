"""What a JPEG frame holds that no decoder needs: gone, and the picture as Pillow decodes it is the same."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import JPEGBaseline8Bit

from clearmargin.deidentification.containers import blank, idle_spans
from clearmargin.errors import InputError

TEXT = b"ANNA" * 16


def jpeg(seed=0, **options):
    picture = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def written(tmp_path, frames, *, table=True, extended=False, name="a.dcm"):
    """A DICOM file of such frames; return its path, its header without pixels, and where these lie."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated = 24, 32, 3, 8
    dataset.NumberOfFrames = len(frames)
    if extended:
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = (
            encapsulate_extended(frames)
        )
    else:
        dataset.PixelData = encapsulate(frames, has_bot=table)
    dataset["PixelData"].is_undefined_length = True
    path = tmp_path / name
    dataset.save_as(path, enforce_file_format=True)
    return path


def cleaned(path):
    """The file's bytes with what is idle blanked."""
    content = path.read_bytes()
    header = pydicom.dcmread(path, stop_before_pixels=True)
    at = content.index(b"\xe0\x7f\x10\x00OB")
    return blank(content, 0, idle_spans(header, path, (at, len(content))))


@pytest.mark.parametrize("marker", [0x02, 0xC8, 0xF0, 0xF5, 0xFD, 0xE1, 0xFE])
def test_segments_that_no_decoder_needs(tmp_path, marker):
    whole = jpeg()
    (tmp_path / "out.dcm").write_bytes(
        cleaned(written(tmp_path, [whole[:2] + segment(marker, TEXT) + whole[2:]]))
    )
    assert b"ANNA" not in (tmp_path / "out.dcm").read_bytes()
    frame = next(
        pydicom.encaps.generate_frames(pydicom.dcmread(tmp_path / "out.dcm").PixelData, number_of_frames=1)
    )
    assert frame.endswith(whole[2:] + b"\0" * (len(frame) - 2 - len(segment(marker, TEXT)) - len(whole[2:])))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 40}])
@pytest.mark.parametrize(
    "unused",
    [
        segment(0xDB, b"\x03" + TEXT),  # a quantisation table of no component
        segment(0xDB, b"\x00" + TEXT),  # one that the picture's own replaces
        segment(0xDB, b"\x13" + 2 * TEXT),  # of 16 bits
        segment(0xC4, b"\x03" + bytes([0] * 8 + [64] + [0] * 7) + TEXT),  # codes of no scan
        segment(0xC4, b"\x13" + bytes([0] * 8 + [64] + [0] * 7) + TEXT),
    ],
)
def test_tables_that_no_scan_uses(tmp_path, options, unused):
    whole = jpeg(**options)
    out = cleaned(written(tmp_path, [whole[:2] + unused + whole[2:]]))
    assert b"ANNA" not in out
    (tmp_path / "out.dcm").write_bytes(out)
    frame = next(
        pydicom.encaps.generate_frames(pydicom.dcmread(tmp_path / "out.dcm").PixelData, number_of_frames=1)
    )
    assert whole[2:] in frame  # what the picture needs is untouched
    before, after = (np.asarray(Image.open(io.BytesIO(one))) for one in (whole, frame))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("extended", [False, True])
def test_offsets_are_offsets(tmp_path, extended):
    frames = [jpeg(k) for k in range(3)]
    right = written(tmp_path, frames, extended=extended)
    assert cleaned(right) == right.read_bytes()
    table = pydicom.dcmread(right).get("ExtendedOffsetTable")
    second = len(frames[0]) + len(frames[0]) % 2 + 8
    known = table[8:16] if extended else second.to_bytes(4, "little")
    assert int.from_bytes(known, "little") == second
    content = right.read_bytes()
    assert content.count(known) >= 1
    at = content.index(known)
    right.write_bytes(content[:at] + b"ANNA".ljust(len(known)) + content[at + len(known) :])
    with pytest.raises(InputError, match="OffsetTable does not say where its frames lie"):
        cleaned(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"Rows": 65535, "Columns": 65535}, "the file holds"),
        ({"BitsAllocated": 7}, "of 7 bits"),
        ({"SamplesPerPixel": 60000}, "60000 sample"),
        ({"NumberOfFrames": "-5"}, "-5 frames"),
        ({"Rows": 0}, "0 x 8"),
    ],
)
def test_pixels_that_the_header_describes_wrongly(tmp_path, wrong, message):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Rows = dataset.Columns = dataset.BitsAllocated = 8
    for name, value in wrong.items():
        setattr(dataset, name, value)
    dataset.add_new(0x7FE00010, "OW", bytes(64))
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    header = pydicom.dcmread(tmp_path / "a.dcm", stop_before_pixels=True)
    with pytest.raises(InputError, match=message):
        idle_spans(header, tmp_path / "a.dcm", (at, len(content)))
