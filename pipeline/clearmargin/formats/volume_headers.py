"""What the headers of NIfTI, NRRD and MetaImage say that their readers do not pass on: units, absence, other files."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clearmargin.errors import InputError
from clearmargin.formats.limits import MOST_DEFLATED

__all__ = ["VolumeHeader", "nifti_steps", "read_metaimage_header", "read_nrrd_header"]

_HEADER = 2**16  # bytes; real ones have a few KiB at most

_TO_MM = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "millimetres": 1.0,
    "cm": 10.0, "centimeter": 10.0, "centimeters": 10.0, "centimetre": 10.0, "centimetres": 10.0,
    "m": 1000.0, "meter": 1000.0, "meters": 1000.0, "metre": 1000.0, "metres": 1000.0,
    "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "micrometers": 1e-3,
    "micrometre": 1e-3, "micrometres": 1e-3, "nm": 1e-6, "nanometer": 1e-6, "nanometers": 1e-6, "nanometre": 1e-6,
    "nanometres": 1e-6, "in": 25.4, "inch": 25.4, "inches": 25.4,
}  # fmt: skip
_UNSTATED = ("", "?", "none", "???", "unknown")


@dataclass(frozen=True, kw_only=True)
class VolumeHeader:
    """The part of an NRRD or MetaImage header that ITK leaves unread.

    Attributes:
        to_mm: Millimetres in one unit of its lengths; 1 if it states none.
        spaced: Whether it states a space (NRRD) or how far voxels lie apart (MetaImage); ITK takes 1 mm if it does not.
        lost: Whether it says that a distance of voxels is not known (NRRD's NaN), for which ITK takes 1.
        files: Files that hold its values, as the header names them; none if they follow the header.
        packed: Bytes of values that a byte of the file can hold; ``text`` if the values are written as numbers.
    """

    to_mm: float
    spaced: bool
    lost: bool = field(default=False, kw_only=True)
    files: tuple[str, ...]
    packed: int | Literal["text"] = 1


def read_nrrd_header(path: Path) -> VolumeHeader:
    """Return what an NRRD file's header says.

    Raises:
        InputError: Lengths in a unit that is not one of length, or in several units.
    """
    with path.open("rb") as stream:
        text = stream.read(_HEADER).decode("utf-8", "replace")
    lines = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0].splitlines()[1:]
    fields: dict[str, str] = {}
    rest: list[str] = []
    for number, line in enumerate(lines):
        if line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon:
            continue
        fields[name.strip().lower()] = value.lstrip("= ").strip()
        if name.strip().lower() in ("data file", "datafile") and value.strip().upper().startswith("LIST"):
            rest = [row.strip() for row in lines[number + 1 :] if row.strip()]
            break
    data = fields.get("data file", fields.get("datafile", ""))
    files = tuple(rest) if rest else () if not data else (data.split()[0] if "%" in data else data,)
    placed = "space" in fields or "space dimension" in fields
    units = re.findall(r'"([^"]*)"', fields.get("space units", "" if placed else fields.get("units", "")))
    lengths = units[:3] if placed else [u for u in units if u.lower() in _TO_MM or u.lower() in _UNSTATED]
    encoding = fields.get("encoding", "raw").lower()
    packed: int | Literal["text"] = MOST_DEFLATED
    if encoding in ("raw", "hex"):
        packed = 1
    elif encoding in ("txt", "text", "ascii"):
        packed = "text"
    lost = "nan" in (fields.get("spacings", "") + fields.get("space directions", "")).lower()
    return VolumeHeader(to_mm=_one_unit(lengths, path), spaced=placed, files=files, packed=packed, lost=lost)


def read_metaimage_header(path: Path) -> VolumeHeader:
    """Return what a MetaImage file's header says.

    Raises:
        InputError: Lengths in a unit that is not one of length.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER)
    fields: dict[str, str] = {}
    names: tuple[str, ...] = ()
    lines = head.split(b"\n")
    for number, line in enumerate(lines):
        name, _, value = line.decode("latin-1").partition("=")
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            what = value.strip()
            if what.upper().startswith("LIST"):
                names = tuple(row.decode("latin-1").strip() for row in lines[number + 1 :] if row.strip())
            elif what.upper() != "LOCAL":
                names = (what.split()[0] if "%" in what and what else what,)
            break
    return VolumeHeader(
        to_mm=_one_unit([fields.get("DistanceUnits", "")], path),
        spaced="ElementSpacing" in fields or "ElementSize" in fields,
        files=names,
        packed=_packed(fields),
    )


def _packed(fields: dict[str, str]) -> int | Literal["text"]:
    if fields.get("CompressedData", "")[:1] in ("T", "t", "1"):  # as MetaIO reads it
        return MOST_DEFLATED
    return 1 if fields.get("BinaryData", "True")[:1] in ("T", "t", "1") else "text"


def nifti_steps(path: Path) -> tuple[float, float, float] | None:
    """Return a NIfTI file's voxel sizes as stored, before a reader mends them; None if its header cannot be read.

    Source: nifti1.h, ``pixdim`` at byte 76 (float32); nifti2.h, at byte 104 (float64).
    """
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            head = file.read(540)
    except (OSError, EOFError, zlib.error):
        return None
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(order + "i", head, 0)[0] == 348:
            return struct.unpack_from(order + "3f", head, 80)
        if len(head) >= 540 and struct.unpack_from(order + "i", head, 0)[0] == 540:
            return struct.unpack_from(order + "3d", head, 112)
    return None


def _one_unit(names: list[str], path: Path) -> float:
    known = {name.strip().lower() for name in names} - set(_UNSTATED)
    if not known:
        return 1.0
    factors = {_TO_MM.get(name) for name in known}
    factor = factors.pop()
    if factors or factor is None:
        raise InputError(
            f"'{path.name}' states lengths in {' and '.join(sorted(known))}: expected one unit of length, such as mm "
            "or um"
        )
    return factor
