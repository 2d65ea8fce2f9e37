"""Inputs in which every text that could name a patient is a canary, and a search for canaries in what was written."""

import base64
import contextlib
import csv
import gzip
import io
import re
import shutil
import sqlite3
import struct
import zipfile
import zlib

import numpy as np
import pydicom
import yaml
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, generate_uid

from clearmargin.core import Grid
from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.deidentification.basic_profile import basic_profile
from clearmargin.formats.video import write_video
from clearmargin.formats.volume import write_volume

MARK = "CNRY"
FILE = f"{MARK}file"
"""What names of files and folders begin with: the private places hold paths, and nothing else that is planted."""
BIRTH_DATE = "19330303"
PRIVATE = ("key", "crosswalk.jsonl", "moved.json", "folders.txt", "review.log")
"""Files of the private folder that may hold paths (docs/privacy.md)."""
SPLITS = ("train", "train", "validation", "test", "calibration", "calibration", "calibration")
_TEXTS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT")


class Planted:
    """A folder of inputs; the names that a user types of them are plain.

    Attributes:
        folder: What the verbs work in.
        marks: One for each place in which an identifier was planted.
        uids: UIDs of the sources.
    """

    def __init__(self, folder):
        self.folder, self.marks, self.uids = folder, set(), set()

    def mark(self, what):
        self.marks.add(what)
        return f"{MARK}{what}"

    def name(self, what):
        self.marks.add(f"file name: {what}")
        return f"{FILE}{what}"


def plant(path, target, planted):
    """Write a copy of a DICOM file with a canary of its own in every text attribute of the confidentiality profile."""
    dataset = pydicom.dcmread(path)
    _plant_header(dataset, planted)
    dataset.save_as(target)
    with target.open("ab") as stream:  # what follows the pixels
        text = planted.mark("behindpixels").encode()
        stream.write(bytes.fromhex("fcff fcff") + b"OB\0\0" + len(text).to_bytes(4, "little") + text)


def _plant_header(dataset, planted):
    nested = pydicom.Dataset()
    for number, (tag, (_, _, keyword)) in enumerate(basic_profile().items()):
        if not tag_for_keyword(keyword) or tag >> 16 <= 2 or dictionary_VR(tag) not in _TEXTS:
            continue
        several = "n" in dictionary_VM(tag) and dictionary_VR(tag) not in ("ST", "LT", "UT")
        mark = planted.mark(f"{number:04d}")
        dataset.add_new(tag, dictionary_VR(tag), [mark, mark] if several else mark)
        if tag >> 16 != 0x0010:
            nested.add_new(tag, dictionary_VR(tag), planted.mark(f"nested{number:04d}")[:16])
    dataset.PatientName, dataset.PatientID = f"{planted.mark('name')}^ANNA", planted.mark("4711")
    dataset.PatientBirthDate = BIRTH_DATE
    dataset.RequestAttributesSequence = [nested]
    dataset.add_new(0x00090010, "LO", planted.mark("creator"))
    dataset.add_new(0x00091001, "UN", planted.mark("private").encode() + b" ")
    planted.uids |= {
        str(dataset.SOPInstanceUID),
        str(dataset.SeriesInstanceUID),
        str(dataset.StudyInstanceUID),
    }


def write_inputs(folder):
    """Write a card with seven patients, pictures, volumes, a clip and a zip, and a table of patients."""
    planted = Planted(folder)
    rows = [["id", "split", "name", "patient"]]
    for number, split in enumerate(SPLITS, start=1):
        phantom = make_phantom(number, shape=(6, 64, 64), spacing=(12.0, 4.5, 4.5))
        plain = write_phantom_study(folder / "plain", phantom, number)
        case = planted.name(f"-{number}")
        target = folder / "data" / case
        (target / "ct").mkdir(parents=True)
        for k, file in enumerate(sorted(plain.ct.iterdir())):
            plant(file, target / "ct" / f"{planted.name('slice')}_{k}.dcm", planted)
        plant(plain.truth, target / "truth.dcm", planted)
        rows.append([case, split, f"{planted.mark('column')}^{number}", planted.mark(f"pid{number}")])
    shutil.rmtree(folder / "plain")
    with (folder / "data" / "index.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    _write_card(planted)
    (folder / "in").symlink_to(folder / "data" / f"{FILE}-4" / "ct")
    _write_others(planted)
    _write_set(planted)
    table = [["case", "patient"], *([f"{FILE}-{k}", planted.mark(f"pid{k}")] for k in range(1, 8))]
    with (folder / "patients.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(table)
    return planted


def _write_card(planted):
    folder = planted.folder
    card = {
        "schema": 1, "name": "canaries", "version": "1", "title": "Canaries", "origin": "computed",
        "licence": "none", "citation": "none", "modality": "CT",
        "classes": [
            {
                "id": k, "name": name, "kind": "thing",
                "type": {"value": value, "meaning": name},
                "category": {"value": "123037004", "meaning": "Anatomical Structure"},
            }
            for k, (name, value) in enumerate(
                [("organ", "10200004"), ("tumour", "108369006"), ("vessel", "59820001")], start=1
            )
        ],
        "root": ".",
        "cases": {
            "index": "index.csv", "id": "{id}", "image": "{id}/ct", "reference": "{id}/truth.dcm",
            "group": "{patient}",
        },
        "encoding": {"kind": "dicom_seg"}, "spacing": {"source": "file"}, "group": "patient",
        "splits": {"column": "split", "values": {s: s for s in set(SPLITS)}},
        "faults": [f"{planted.mark('fault')} is mirrored"], "show_in_tracking": True,
    }  # fmt: skip
    comment = f"# without {planted.mark('comment')}\n"
    (folder / "data" / "card.yaml").write_text(comment + yaml.safe_dump(card))
    experiment = {
        "name": "canaries", "card": "data/card.yaml",
        "model": {
            "network": "mask_rcnn", "fpn_channels": 32, "box_features": 64, "mask_channels": 32,
            "rpn_proposals": 20, "box_samples": 16, "score_threshold": 0.0, "detections": 5,
        },
        "image": {"intensity": {"kind": "window", "low": -150, "high": 250}, "crop": [64, 64]},
        "training": {
            "epochs": 1, "steps_per_epoch": 2, "batch_size": 1, "warmup_steps": 1, "workers": 0, "threads": 1,
        },
        "prediction": {"score_threshold": 0.0},
    }  # fmt: skip
    (folder / "config.yaml").write_text(comment + yaml.safe_dump(experiment))
    broken = {**experiment, "card": f"{planted.name('folder')}/no.yaml"}
    (folder / "broken.yaml").write_text(comment + yaml.safe_dump(broken))
    gate = {"name": "canaries", "numbers": [{"number": "ap50", "at_least": 0.0}], "replay": False}
    (folder / "gate.yaml").write_text(comment + yaml.safe_dump(gate))
    gate["numbers"] = [{"number": "ap50", "at_least": 2.0}]
    (folder / "strict.yaml").write_text(comment + yaml.safe_dump(gate))


def _write_others(planted):
    """Write inputs of each kind whose container has room for text."""
    folder = planted.folder / "others"
    folder.mkdir()
    grey = np.tile(np.arange(96, dtype=np.uint8), (64, 1))
    grey[20:40, 30:60] = 250
    picture = Picture.fromarray(grey)
    text = PngInfo()
    text.add_text("Title", planted.mark("pngtext"))
    text.add_text("Comment", planted.mark("pngztext"), zip=True)
    picture.save(folder / f"{planted.name('a')}.png", pnginfo=text)
    exif = Picture.Exif()
    exif[0x010E], exif[0x013B] = planted.mark("exif"), planted.mark("artist")
    picture.save(folder / f"{planted.name('b')}.jpg", comment=planted.mark("jpegcomment").encode(), exif=exif)
    picture.save(
        folder / f"{planted.name('c')}.tif", tiffinfo={270: planted.mark("tiff"), 315: planted.mark("tiffby")}
    )
    grid = Grid.from_spacing((4, 64, 64), (12.0, 4.5, 4.5))
    values = np.random.default_rng(0).normal(40, 20, grid.shape).astype(np.int16)
    nifti = folder / f"{planted.name('d')}.nii"
    write_volume(nifti, values, grid)
    header = bytearray(nifti.read_bytes())
    for offset, length, what in ((4, 10, "db"), (14, 18, "dbname"), (148, 80, "descrip"), (228, 24, "aux")):
        header[offset : offset + length] = struct.pack(f"{length}s", planted.mark(what).encode())
    nifti.write_bytes(header)
    nrrd = folder / f"{planted.name('e')}.nrrd"
    write_volume(nrrd, values, grid)
    head, _, rest = nrrd.read_bytes().partition(b"\n\n")
    text = f"\n# {planted.mark('nrrdcomment')}\npatient:={planted.mark('nrrdkey')}".encode()
    nrrd.write_bytes(head + text + b"\n\n" + rest)
    clip = folder / f"{planted.name('g')}.mp4"
    write_video(clip, np.stack([np.stack([grey] * 3)] * 3), 5.0, quality=10)
    _title(clip, planted.mark("cliptitle"))
    _write_capture(picture, exif, planted)
    with zipfile.ZipFile(folder / f"{planted.name('h')}.zip", "w") as held:
        held.comment = planted.mark("zipcomment").encode()
        for file in sorted((planted.folder / "data" / f"{FILE}-3" / "ct").iterdir()):
            held.write(file, f"{planted.name('inzip')}/{file.name}")


def _title(clip, title):
    """Write a clip's container anew, with a title, a comment and an artist."""
    import av

    target = clip.with_suffix(".part.mp4")
    with av.open(str(clip)) as source, av.open(str(target), "w") as out:
        out.metadata.update(title=title, comment=title, artist=title)
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    target.replace(clip)


def _write_capture(picture, exif, planted):
    """Write a photograph in DICOM, whose compressed frame has a comment and EXIF of its own."""
    frame = io.BytesIO()
    picture.convert("RGB").save(frame, "JPEG", comment=planted.mark("framecomment").encode(), exif=exif)
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = (
        "1.2.840.10008.5.1.4.1.1.77.1.4",
        generate_uid(entropy_srcs=["1"]),
    )
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (generate_uid(entropy_srcs=[k]) for k in "23")
    dataset.Modality, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = "XC", 3, "YBR_FULL_422"
    dataset.Rows, dataset.Columns, dataset.PlanarConfiguration = picture.height, picture.width, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.LossyImageCompression = 7, 0, "01"
    _plant_header(dataset, planted)
    dataset.BurnedInAnnotation = "NO"
    dataset.PixelData = encapsulate([frame.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.file_meta.SourceApplicationEntityTitle = planted.mark("meta")
    (planted.folder / "capture").mkdir()
    dataset.save_as(
        planted.folder / "capture" / f"{planted.name('photo')}.dcm",
        enforce_file_format=True,
        little_endian=True,
    )


def _write_set(planted):
    """Write pictures and masks for `data new`, in folders and as COCO."""
    for kind in ("images", "masks"):
        (planted.folder / "set" / kind).mkdir(parents=True)
    labels = np.zeros((48, 48), np.uint8)
    labels[10:20, 10:30] = 255
    for k in range(6):
        name = f"{planted.name('set')}_{k}.png"
        Picture.fromarray((labels // 2 + k).astype(np.uint8)).save(planted.folder / "set" / "images" / name)
        Picture.fromarray(labels).save(planted.folder / "set" / "masks" / name)


def damage(folder):
    """Take a slice away, cut a file off, and write files that are none, as they come from a broken transfer."""
    for number in (1, 3, 4):
        files = sorted((folder / "data" / f"{FILE}-{number}" / "ct").iterdir())
        files[2].unlink()
        files[1].write_bytes(files[1].read_bytes()[:900])
    for name in ("mixed", "pictures"):
        (folder / name).mkdir()
    slices = sorted((folder / "data" / f"{FILE}-5" / "ct").iterdir())
    for k in (0, 1, 4):
        shutil.copy(slices[k], folder / "mixed" / f"{FILE}{k}.dcm")
    cut = (folder / "data" / f"{FILE}-1" / "truth.dcm").read_bytes()[:2000]  # its header is whole
    (folder / "pictures" / f"{FILE}c.dcm").write_bytes(cut)
    for name, content in (
        (f"{FILE}a.png", b"no picture"),
        (f"{FILE}b.nii", b"no volume"),
        (f"{FILE}d.mp4", b"no clip"),
        (f"{FILE}e.zip", b"PK\x03\x04 no zip"),
        (f"{FILE}f.nrrd", f"NRRD0004\n# {MARK}nrrd\ntype: {MARK}type\ndimension: 3\n\n".encode()),
        (f"{FILE}g.mha", f"ObjectType = Image\nComment = {MARK}mha\nNDims = {MARK}\n".encode()),
        (f"{FILE}h.jpg", b"\xff\xd8\xff\xfe\0\x10" + f"{MARK}jpeg".encode()),
        (f"{FILE}i.json", json_of(f"{MARK}json")),
    ):
        (folder / "pictures" / name).write_bytes(content)


def json_of(text):
    return f'{{"images": [{{"file_name": "{text}.png"}}]}}'.encode()


def contents(path):
    """Yield what a file holds: its bytes, and what is packed, compressed or encoded in them."""
    data = path.read_bytes()
    yield data
    yield from _unpacked(data)
    if data.startswith(b"SQLite format 3"):
        # a text can lie in two pages of the file
        with contextlib.closing(sqlite3.connect(path)) as database:
            yield "\n".join(database.iterdump()).encode()


def _unpacked(data):
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    elif data.startswith(b"PK\x03\x04"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as held:
            for name in held.namelist():
                yield name.encode()
                inside = held.read(name)
                yield inside
                yield from _unpacked(inside)
    elif data.startswith(b"\x89PNG"):
        with Picture.open(io.BytesIO(data)) as picture:
            yield repr(getattr(picture, "text", picture.info)).encode()
    elif b"<html" in data[:2000].lower():
        for text in re.findall(rb"[A-Za-z0-9+/]{200,}={0,2}", data):
            with contextlib.suppress(ValueError, zlib.error, OSError, EOFError):
                inside = base64.b64decode(text)
                yield inside
                yield from _unpacked(inside)


def texts_below(folder, skipped):
    """Yield the path and the content of each file below a folder, and the names of all, but for what is skipped."""
    for path in sorted(folder.rglob("*")):
        if any(path.is_relative_to(place) for place in skipped):
            continue
        yield path, str(path.relative_to(folder)).encode()
        if path.is_file():
            for data in contents(path):
                yield path, data
