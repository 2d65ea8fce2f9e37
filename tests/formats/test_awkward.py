"""Every awkward file decodes to the pixels that pydicom gives, or is refused: the table says which."""

from __future__ import annotations

import csv
import hashlib
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.pixels import apply_color_lut, apply_modality_lut

from clearmargin.errors import InputError
from clearmargin.formats import is_video, open_video, read_image
from clearmargin.formats.dicom.pixels import decode_frames

_UNDECODABLE = "no installed decoder reads"
_NO_OBJECT = "no readable DICOM"

# What is refused, and with which words; every other file of the manifest must decode.
REFUSED = {
    "highdicom/seg_image_": "DICOM SEG, which holds masks: read_dicom_seg",
    "highdicom/sm_annotations": "annotations, which hold no picture",
    "highdicom/sm_image": "tiled whole-slide image",
    "highdicom/sr_document": "structured report",
    "pydicom_data/emri_small_jpeg_2k_lossless_too_short": "no usable Rows",  # its header is cut off, too
    "pydicom_data/liver.dcm": "DICOM SEG",
    "pydicom_test_files/ExplVR_BigEndNoMeta": "RT plan",
    "pydicom_test_files/ExplVR_LitEndNoMeta": "RT plan",
    "pydicom_test_files/JPEG2000-embedded-sequence-delimiter": _UNDECODABLE,
    "pydicom_test_files/MR_truncated": "cut off: 8130 bytes of 8192",
    "pydicom_test_files/UN_sequence": _NO_OBJECT,
    "pydicom_test_files/badVR": "not a whole number",
    "pydicom_test_files/empty_charset_LEI": _NO_OBJECT,
    "pydicom_test_files/liver_": "DICOM SEG",
    "pydicom_test_files/meta_missing_tsyntax": _NO_OBJECT,
    "pydicom_test_files/nested_priv_SQ": _NO_OBJECT,
    "pydicom_test_files/no_meta": _NO_OBJECT,
    "pydicom_test_files/priv_SQ": _NO_OBJECT,
    "pydicom_test_files/reportsi": "structured report",
    "pydicom_test_files/rtdose": "RT dose",
    "pydicom_test_files/rtplan": "RT plan",
    "pydicom_test_files/rtstruct": "RT structure set",
    "pydicom_test_files/test-SR": "structured report",
    "pydicom_test_files/waveform_ecg": "waveform",
}


# Which pydicom does not decode: the digest of DCMTK's pixels stands for them.
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "jpeg_12.json").read_text())


def _stored(path: Path, ds: pydicom.Dataset) -> np.ndarray:
    """What pydicom gives as the stored values, or our own where DCMTK vouches for them."""
    if path.name not in GOLDEN:
        return ds.pixel_array
    (frame,) = decode_frames(ds)
    assert hashlib.sha256(frame.tobytes()).hexdigest() == GOLDEN[path.name], path.name
    return frame


def _oracle(path: Path) -> np.ndarray:
    """What pydicom gives, with its own look-up tables applied: ``(frames, C, Y, X)``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        pixels = _stored(path, ds)
        if ds.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, ds)[..., :3]
        elif ds.SamplesPerPixel == 1:
            groups = ds.get("SharedFunctionalGroupsSequence")
            holder = groups[0].PixelValueTransformationSequence[0] if groups else ds
            pixels = apply_modality_lut(pixels, holder)
            if ds.PhotometricInterpretation == "MONOCHROME1":  # ours are turned over: larger is brighter
                pixels = 2**ds.BitsStored - 1 - pixels
    frames = int(ds.get("NumberOfFrames") or 1)
    groups = ds.get("PerFrameFunctionalGroupsSequence")
    if groups and "PlanePositionSequence" in groups[0]:  # ours are in order along the growing normal
        turn = np.array(
            ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
        )
        normal = np.cross(turn[:3], turn[3:])
        places = [np.array(g.PlanePositionSequence[0].ImagePositionPatient) @ normal for g in groups]
        pixels = pixels[np.argsort(places)]
    if ds.SamplesPerPixel == 1 and ds.PhotometricInterpretation != "PALETTE COLOR":
        return pixels.reshape(frames, 1, ds.Rows, ds.Columns)
    return pixels.reshape(frames, ds.Rows, ds.Columns, 3).transpose(0, 3, 1, 2)


def _paddings(path: Path, values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(path)
        padding = ds.get("PixelPaddingValue")
    return (
        np.zeros(values.shape, bool)
        if padding is None
        else (_stored(path, ds) == padding).reshape(values.shape)
    )


def test_the_table(data_root):
    folder = data_root / "dicom_awkward"
    decoded, refused = 0, set()
    with (folder / "manifest.csv").open() as file:
        names = [row["path"] for row in csv.DictReader(file)]
    for name in names:
        path = folder / name
        reason = next((words for prefix, words in REFUSED.items() if name.startswith(prefix)), None)
        start = time.perf_counter()
        if reason is not None:
            with pytest.raises(InputError, match=reason):
                open_video(path) if is_video(path) else read_image(path)
            refused.add(next(prefix for prefix in REFUSED if name.startswith(prefix)))
        else:
            if is_video(path):
                ours = np.stack([frame.pixels for frame in open_video(path).frames()])
            else:
                image = read_image(path)
                ours = image.pixels.transpose(1, 0, 2, 3) if image.grid.ndim == 3 else image.pixels[None]
            theirs = _oracle(path)
            measured = ~_paddings(path, theirs)
            assert ours.shape == theirs.shape, name
            if ours.dtype == np.float32:
                np.testing.assert_allclose(ours[measured], theirs[measured], rtol=1e-6, err_msg=name)
            else:
                assert_array_equal(ours[measured], theirs[measured], err_msg=name)
            decoded += 1
        assert time.perf_counter() - start < 60, name
    assert refused == set(REFUSED)
    assert decoded > 90
    assert decoded + sum(any(n.startswith(p) for p in REFUSED) for n in names) == len(names)


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        # Ultrasound: one region in centimetres is a calibration, several different ones are none.
        ("pydicom_test_files/examples_palette.dcm", (0.262288, 0.262288)),
        ("pydicom_data/JPGLosslessP14SV1_1s_1f_8b.dcm", (0.254767, 0.254767)),
        ("pydicom_data/US1_J2KR.dcm", None),
        # A projection's spacing at the detector is not the patient's.
        ("highdicom/dx_image.dcm", None),
        # Nuclear medicine states the patient's.
        ("pydicom_test_files/JPEG2000.dcm", (2.26, 2.26)),
    ],
)
def test_spacing_means_millimetres_in_the_patient(name, spacing, data_root):
    grid = read_image(data_root / "dicom_awkward" / name).grid
    assert grid.unit == ("px" if spacing is None else "mm")
    assert grid.spacing == pytest.approx(spacing or (1, 1), rel=1e-4)


def test_no_message_holds_what_the_files_say(data_root):
    """Values of patient attributes never reach an error's words, whatever pydicom put into its own."""
    folder = data_root / "dicom_awkward"
    for path in sorted(folder.rglob("*.dcm")):
        try:
            read_image(path)
        except InputError as error:
            message = str(error)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ds = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                said = [
                    str(ds.get(k, ""))
                    for k in ("PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
                ]
            assert not any(len(v) > 4 and v in message for v in said), path.name
