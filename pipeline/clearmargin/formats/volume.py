"""NIfTI, NRRD and MetaImage volumes in and out, in array order ``(Z, Y, X)`` and the LPS world."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import ClearMarginError, GeometryError, InputError
from clearmargin.files import check_readable, whole
from clearmargin.formats.label_values import whole_labels
from clearmargin.formats.limits import MOST_DEFLATED, max_bytes, raise_it
from clearmargin.formats.metaimage import holds_whole_values
from clearmargin.formats.quiet import hushed
from clearmargin.formats.volume_headers import (
    nifti_steps,
    read_metaimage_header,
    read_nrrd_header,
)
from clearmargin.privacy import case_of_file

_Read = tuple[NDArray[Any], Grid, tuple[str, ...]]

__all__ = ["read_label_volume", "read_volume", "write_volume"]

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AGREE_MM = 0.01
_INT32 = np.iinfo(np.int32)
_TO_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}


def read_volume(path: Path) -> Image:
    """Return the volume of a NIfTI, NRRD, MHA or MHD file, ``(C, Z, Y, X)``.

    A fourth dimension (or vector pixels) becomes channels. Stored integers stay integers; a NIfTI scale that
    is not the identity gives float32. The unit is px where the file states neither a space nor a spacing.

    Raises:
        InputError: Unreadable, more than four dimensions, or larger than is read at once.
        GeometryError: The stated geometry is not an invertible affine.
    """
    path = Path(path)
    check_readable(path)
    pixels, grid, remarks = _read_nifti(path) if _is_nifti(path) else _read_itk(path)
    source = Source(case=case_of_file(path), kind="volume", files=(path,), remarks=remarks)
    if pixels.dtype == np.float64:  # which matters to labels alone: `read_label_volume` keeps it
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is counted as such
            pixels = pixels.astype(np.float32)
    return Image(pixels=pixels, grid=grid, source=source)


def read_label_volume(path: Path) -> tuple[NDArray[np.integer[Any]], Grid]:
    """Return a label volume ``(Z, Y, X)`` of integers and its grid.

    Raises:
        InputError: As :func:`read_volume`; several channels, or values that are not labels (`whole_labels`).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file '{path.name}'")
    pixels, grid, _ = _read_nifti(path) if _is_nifti(path) else _read_itk(path)
    if len(pixels) != 1:
        raise InputError(
            f"'{path.name}' is 4-D, with {len(pixels)} volumes: labels are one; write it as a file of its own"
        )
    return whole_labels(pixels[0], path.name), grid


def write_volume(path: Path, array: NDArray[np.generic], grid: Grid) -> None:
    """Write ``(Z, Y, X)`` or ``(C, Z, Y, X)`` as NIfTI, NRRD or MHA, by the suffix.

    bool becomes uint8. NRRD and MHA hold no sheared grid; NIfTI does.

    Raises:
        InputError: A suffix that is none of these.
        GeometryError: The array is not on the grid, or the format cannot hold it.
    """
    path = Path(path)
    if grid.ndim != 3 or array.shape[-3:] != grid.shape or array.ndim not in (3, 4):
        raise GeometryError(f"an array of shape {array.shape} is not on a volume grid of {grid.shape}")
    values = array.astype(np.uint8) if array.dtype == np.bool_ else np.asarray(array)
    if _is_nifti(path):
        _write_nifti(path, values, grid)
    elif path.suffix.lower() in (".nrrd", ".mha", ".mhd"):
        _write_itk(path, values, grid)
    else:
        raise InputError(f"'{path.name}': volumes are written as .nii, .nii.gz, .nrrd or .mha")


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _load_nifti(path: Path) -> tuple[Any, NDArray[Any]]:
    """Return nibabel's image and its values."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        with hushed("nibabel.global"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"nibabel\..*")
            volume: Any = nibabel.load(path)
            if not isinstance(volume, nibabel.Nifti1Image | nibabel.Nifti2Image):
                raise InputError(
                    f"'{path.name}' is {type(volume).__name__.removesuffix('Image')}, not a volume: give the "
                    "NIfTI volume that it was made from"
                )
            shape = tuple(int(n) for n in volume.shape)
            _refuse_size(
                shape, 8 if volume.dataobj.slope not in (1, None) else volume.get_data_dtype().itemsize, path
            )
            packed = path.name.lower().endswith(".gz")
            _refuse_promise(
                math.prod(shape) * volume.get_data_dtype().itemsize, path, MOST_DEFLATED if packed else 1
            )
            return volume, np.asanyarray(volume.dataobj)
    except (MemoryError, ClearMarginError):
        raise
    except ImageFileError:
        with path.open("rb") as stream:
            start = stream.read(2)
        packed = start == b"\x1f\x8b"
        why = (
            "is empty: it has 0 bytes"
            if not start
            else "is cut off or damaged, or no NIfTI is packed in it: its header cannot be unpacked"
            if packed
            else "does not begin as NIfTI does: it is another format, or damaged"
        )
        raise InputError(f"'{path.name}' {why}") from None
    except (EOFError, OSError, zlib.error):
        raise InputError(
            f"'{path.name}' is cut off or damaged: it holds fewer values than it claims"
        ) from None
    except Exception as error:  # noqa: BLE001 - nibabel raises many types on damaged files
        raise InputError(
            f"'{path.name}' is not readable as NIfTI: its header or values are damaged ({type(error).__name__})"
        ) from None


def _read_nifti(path: Path) -> _Read:
    volume, data = _load_nifti(path)
    if data.dtype.fields is not None:  # RGB stored as a structure
        data = np.stack([data[name] for name in ("R", "G", "B")], axis=-1)
    if data.dtype.kind == "c":
        raise InputError(
            f"'{path.name}' holds complex numbers: save their magnitude, or what you need of them"
        )
    if data.ndim == 5 and data.shape[3] == 1:
        data = data[:, :, :, 0]
    if not 2 <= data.ndim <= 4:
        raise InputError(f"'{path.name}' has {data.ndim} dimensions: 2 to 4 are read")
    steps = nifti_steps(path)
    dimensions = min(data.ndim, 3)
    data = data.reshape(*data.shape, *(1,) * (4 - data.ndim))
    header = volume.header
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        raise InputError(f"'{path.name}' has a unit of length that NIfTI does not know") from None
    scale = _TO_MM.get(unit, 1.0)
    pixels = np.ascontiguousarray(np.transpose(data, (3, 2, 1, 0)))
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    by_sform = header["sform_code"] > 0
    # nibabel puts 1 in the place of a voxel size of 0: what is not known must not become a millimetre
    lost = not by_sform and (steps is None or not all(np.isfinite(s) and s != 0 for s in steps[:dimensions]))
    if lost:
        return (
            pixels,
            Grid.from_spacing(pixels.shape[1:]),
            ("its voxel size is 0 in the file: results are in voxels",),
        )
    if not np.isfinite(volume.affine).all():
        raise InputError(f"'{path.name}' has an orientation that is not finite: its place is not known")
    affine = _RAS_TO_LPS @ volume.affine @ np.diag([scale, scale, scale, 1.0])
    affine[:3, 3] = (_RAS_TO_LPS @ volume.affine)[:3, 3] * scale
    placed = by_sform or header["qform_code"] > 0
    known = placed or unit != "unknown" or not np.allclose(header.get_zooms()[:3], 1)
    grid = _grid(pixels.shape[1:], affine[:, [2, 1, 0, 3]], "mm" if known else "px", path)
    return pixels, grid, _two_places(header, pixels.shape[1:], scale)


def _two_places(header: Any, shape: tuple[int, ...], scale: float) -> tuple[str, ...]:
    """Return a remark if a NIfTI states two places that differ: the sform is taken, as the standard prefers it."""
    if header["sform_code"] <= 0 or header["qform_code"] <= 0:
        return ()
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape[::-1]], indexing="ij"), -1).reshape(-1, 3)
    try:
        affines = (header.get_sform(), header.get_qform())
    except Exception:  # noqa: BLE001 - nibabel raises several types on a quaternion that is none
        return ("its qform is damaged: the sform was taken",)
    places = [corners @ affine[:3, :3].T + affine[:3, 3] for affine in affines]
    distance = float(np.linalg.norm(places[0] - places[1], axis=1).max()) * scale
    if distance <= _AGREE_MM:
        return ()
    return (
        f"the file states two places, up to {distance:.3g} mm apart: the sform was taken and the qform was not",
    )


def _grid(shape: tuple[int, ...], affine: NDArray[np.float64], unit: Any, path: Path) -> Grid:
    try:
        return Grid(shape=shape, affine=affine, unit=unit)
    except ValueError as error:
        raise GeometryError(f"'{path.name}' has no usable geometry: {error}") from None


def _refuse_size(shape: tuple[int, ...], itemsize: int, path: Path) -> None:
    size = math.prod(shape) * itemsize
    claimed = f"'{path.name}' claims {' x '.join(map(str, shape))} values"
    if min(shape, default=0) < 1:
        raise InputError(f"{claimed}: it holds none")
    if size > max_bytes():
        raise InputError(f"{claimed}, {size / 2**30:.3g} GiB: {raise_it()}")


def _refuse_promise(size: int, path: Path, packed: float, files: Sequence[Path] = ()) -> None:
    """Refuse files that cannot hold the bytes of values that they claim: memory for them is not asked for.

    ``packed``: how many bytes of values a byte of theirs can hold.
    """
    held = sum(file.stat().st_size for file in files or (path,))
    if size > held * packed:
        raise InputError(
            f"'{path.name}' claims {size} bytes of values and is too short to hold them: it is cut off"
        )


def _write_nifti(path: Path, array: NDArray[Any], grid: Grid) -> None:
    import nibabel

    axes = (2, 1, 0) if array.ndim == 3 else (3, 2, 1, 0)
    data = np.transpose(array, axes)
    if (
        data.dtype in (np.int64, np.uint64)
        and data.size
        and data.min() >= _INT32.min
        and data.max() <= _INT32.max
    ):
        data = data.astype(np.int32)  # which every tool reads
    volume: Any = nibabel.Nifti1Image(data, (_RAS_TO_LPS @ grid.affine)[:, [2, 1, 0, 3]], dtype=data.dtype)
    code = 1 if grid.unit == "mm" else 0
    volume.set_sform(volume.affine, code)
    volume.set_qform(volume.affine if grid.is_orthogonal else None, code if grid.is_orthogonal else 0)
    volume.header.set_xyzt_units("mm" if grid.unit == "mm" else 0)
    with whole(path) as draft:
        nibabel.save(volume, draft)


def _read_itk(path: Path) -> _Read:
    import SimpleITK

    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    text = read_nrrd_header(path) if nrrd else read_metaimage_header(path)
    _refuse_elsewhere(text.files, path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # its remarks go to stderr and name the path
    try:
        reader.ReadImageInformation()
        size = tuple(int(n) for n in reader.GetSize())
        _refuse_size((*size, reader.GetNumberOfComponents()), 8, path)
        values = math.prod(size) * reader.GetNumberOfComponents()
        itemsize = SimpleITK.Image([1] * len(size), reader.GetPixelID()).GetSizeOfPixelComponent()
        if not any("%" in name for name in text.files):
            beside = [path.parent / name for name in text.files]
            _refuse_promise(
                values * itemsize, path, itemsize / 2 if text.packed == "text" else text.packed, beside
            )
        if path.suffix.lower() in (".mha", ".mhd") and not holds_whole_values(path, values * itemsize):
            raise InputError(f"'{path.name}' is cut off or damaged: its compressed values are not whole")
        volume = reader.Execute()
    except RuntimeError:
        raise InputError(
            f"'{path.name}' is not readable as a volume: it is damaged, or not what its suffix says"
        ) from None
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)
    if "complex" in volume.GetPixelIDTypeAsString():
        raise InputError(
            f"'{path.name}' holds complex numbers: save their magnitude, or what you need of them"
        )
    array = SimpleITK.GetArrayFromImage(volume)
    vector = volume.GetNumberOfComponentsPerPixel() > 1
    array = np.moveaxis(array, -1, 0) if vector else array[None]
    if len(size) not in (2, 3):
        raise InputError(f"'{path.name}' has {len(size)} dimensions: 2 or 3 are read")
    n = len(size)
    affine = np.eye(4)
    steps = np.array(volume.GetDirection()).reshape(n, n) * np.array(volume.GetSpacing())
    affine[:n, 3 - n : 3] = steps[:, ::-1]
    affine[:n, 3] = volume.GetOrigin()
    affine[:3] *= text.to_mm
    if n == 2:
        affine[:3, 0] = (0, 0, 1)
    pixels = np.ascontiguousarray(array)
    if text.lost or not (text.spaced or (nrrd and not np.allclose(volume.GetSpacing(), 1))):
        return pixels, Grid.from_spacing(pixels.shape[1:] if n == 3 else (1, *pixels.shape[2:])), ()
    return pixels, _grid(pixels.shape[1:], affine, "mm", path), ()


def _refuse_elsewhere(names: Sequence[str], path: Path) -> None:
    """Refuse a header whose values lie anywhere but beside it: it could name any file of this machine."""
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise InputError(
                f"'{path.name}' takes its values from a file in another folder: expected one beside it; "
                "move both together"
            )
        beside = path.parent / name
        if "%" not in name and not beside.is_file():
            raise InputError(f"'{path.name}' takes its values from '{name}', which is not beside it")
        if beside.is_symlink() and beside.resolve().parent != path.resolve().parent:
            raise InputError(f"'{path.name}' takes its values from a link that leads to another folder")


def _write_itk(path: Path, array: NDArray[Any], grid: Grid) -> None:
    import SimpleITK

    if not grid.is_orthogonal:
        raise GeometryError(
            f"'{path.name}': the grid is sheared, which {path.suffix} cannot hold; .nii.gz can"
        )
    data = array if array.ndim == 3 else np.moveaxis(array, 0, -1)
    volume = SimpleITK.GetImageFromArray(np.ascontiguousarray(data), isVector=array.ndim == 4)
    steps = grid.affine[:3, [2, 1, 0]]
    lengths = np.linalg.norm(steps, axis=0)
    volume.SetSpacing([float(v) for v in lengths])
    volume.SetDirection([float(v) for v in (steps / lengths).ravel()])
    volume.SetOrigin([float(v) for v in grid.affine[:3, 3]])
    with whole(path) as draft:
        SimpleITK.WriteImage(volume, str(draft), useCompression=True)
