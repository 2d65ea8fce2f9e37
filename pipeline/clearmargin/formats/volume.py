"""NIfTI, NRRD and MetaImage volumes in and out, in array order ``(Z, Y, X)`` and the LPS world."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, Image, Source
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom_pixels import MAX_BYTES
from clearmargin.formats.metaimage import holds_whole_values
from clearmargin.formats.quiet import hushed
from clearmargin.privacy import case_of_file

__all__ = ["read_label_volume", "read_volume", "write_volume"]

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_DEFLATED = 1032  # values in a byte, by zlib's own account of its best case
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
    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    pixels, grid = _read_nifti(path) if _is_nifti(path) else _read_itk(path)
    source = Source(case=case_of_file(path), kind="volume", files=(path,))
    return Image(pixels=pixels, grid=grid, source=source)


def read_label_volume(path: Path) -> tuple[NDArray[np.integer[Any]], Grid]:
    """Return a label volume ``(Z, Y, X)`` of integers and its grid.

    Raises:
        InputError: As :func:`read_volume`; several channels, or values that are not whole numbers.
    """
    image = read_volume(path)
    labels = image.pixels[0]
    if len(image.pixels) != 1:
        raise InputError(f"'{Path(path).name}' has {len(image.pixels)} channels: a label volume has one")
    if not np.issubdtype(labels.dtype, np.integer):
        whole = np.rint(labels.astype(np.float64))
        if not np.array_equal(whole, labels):
            raise InputError(f"'{Path(path).name}' holds fractions: labels are whole numbers")
        if np.abs(whole).max(initial=0) > np.iinfo(np.int32).max:  # infinity, too
            raise InputError(f"'{Path(path).name}' holds values beyond 32 bits: no labels")
        labels = whole.astype(np.int32)
    return labels, image.grid


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


def _read_nifti(path: Path) -> tuple[NDArray[Any], Grid]:
    import nibabel

    try:
        with hushed("nibabel.global"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"nibabel\..*")
            volume: Any = nibabel.load(path)
            shape = tuple(int(n) for n in volume.shape)
            _refuse_size(
                shape, 8 if volume.dataobj.slope not in (1, None) else volume.get_data_dtype().itemsize, path
            )
            data = np.asanyarray(volume.dataobj)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # noqa: BLE001 - nibabel raises many types on damaged files
        raise InputError(f"'{path.name}' is not readable as NIfTI ({type(error).__name__})") from None
    if data.dtype.fields is not None:  # RGB stored as a structure
        data = np.stack([data[name] for name in ("R", "G", "B")], axis=-1)
    if data.ndim == 5 and data.shape[3] == 1:
        data = data[:, :, :, 0]
    if not 2 <= data.ndim <= 4:
        raise InputError(f"'{path.name}' has {data.ndim} dimensions: 2 to 4 are read")
    data = data.reshape(*data.shape, *(1,) * (4 - data.ndim))
    if data.dtype == np.float64:
        data = data.astype(np.float32)
    header = volume.header
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        raise InputError(f"'{path.name}' has a unit of length that NIfTI does not know") from None
    scale = _TO_MM.get(unit, 1.0)
    if not np.isfinite(volume.affine).all():
        raise InputError(f"'{path.name}' has an orientation that is not finite: its place is not known")
    affine = _RAS_TO_LPS @ volume.affine @ np.diag([scale, scale, scale, 1.0])
    affine[:3, 3] = (_RAS_TO_LPS @ volume.affine)[:3, 3] * scale
    placed = header["sform_code"] > 0 or header["qform_code"] > 0
    known = placed or unit != "unknown" or not np.allclose(header.get_zooms()[:3], 1)
    pixels = np.ascontiguousarray(np.transpose(data, (3, 2, 1, 0)))
    return pixels, _grid(pixels.shape[1:], affine[:, [2, 1, 0, 3]], "mm" if known else "px", path)


def _grid(shape: tuple[int, ...], affine: NDArray[np.float64], unit: Any, path: Path) -> Grid:
    try:
        return Grid(shape=shape, affine=affine, unit=unit)
    except ValueError as error:
        raise GeometryError(f"'{path.name}' has no usable geometry: {error}") from None


def _refuse_size(shape: tuple[int, ...], itemsize: int, path: Path) -> None:
    size = math.prod(shape) * itemsize
    if size > MAX_BYTES or min(shape, default=0) < 1:
        raise InputError(f"'{path.name}' claims {' x '.join(map(str, shape))} values: not readable at once")


def _refuse_promise(values: int, path: Path) -> None:
    """Refuse a file that cannot hold what it claims: memory for them is not asked for."""
    held = path.stat().st_size * _MOST_DEFLATED
    if (
        path.suffix.lower() not in (".mhd", ".nhdr") and values > held
    ):  # those keep their values in another file
        raise InputError(f"'{path.name}' claims {values} values and is too short to hold them: it is cut off")


def _write_nifti(path: Path, array: NDArray[Any], grid: Grid) -> None:
    import nibabel

    axes = (2, 1, 0) if array.ndim == 3 else (3, 2, 1, 0)
    data = np.transpose(array, axes)
    if data.dtype in (np.int64, np.uint64):
        data = data.astype(np.int32)
    volume: Any = nibabel.Nifti1Image(data, (_RAS_TO_LPS @ grid.affine)[:, [2, 1, 0, 3]])
    code = 1 if grid.unit == "mm" else 0
    volume.set_sform(volume.affine, code)
    volume.set_qform(volume.affine if grid.is_orthogonal else None, code if grid.is_orthogonal else 0)
    volume.header.set_xyzt_units("mm" if grid.unit == "mm" else 0)
    nibabel.save(volume, path)


def _read_itk(path: Path) -> tuple[NDArray[Any], Grid]:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # its remarks go to stderr and name the path
    try:
        reader.ReadImageInformation()
        size = tuple(int(n) for n in reader.GetSize())
        _refuse_size((*size, reader.GetNumberOfComponents()), 8, path)
        values = math.prod(size) * reader.GetNumberOfComponents()
        _refuse_promise(values, path)
        itemsize = SimpleITK.Image([1] * len(size), reader.GetPixelID()).GetSizeOfPixelComponent()
        if path.suffix.lower() in (".mha", ".mhd") and not holds_whole_values(path, values * itemsize):
            raise InputError(f"'{path.name}' is cut off or damaged: its compressed values are not whole")
        volume = reader.Execute()
    except RuntimeError:
        raise InputError(
            f"'{path.name}' is not readable as a volume: damaged, or not what its suffix says"
        ) from None
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)
    array = SimpleITK.GetArrayFromImage(volume)
    vector = volume.GetNumberOfComponentsPerPixel() > 1
    array = np.moveaxis(array, -1, 0) if vector else array[None]
    if len(size) not in (2, 3):
        raise InputError(f"'{path.name}' has {len(size)} dimensions: 2 or 3 are read")
    n = len(size)
    affine = np.eye(4)
    steps = np.array(volume.GetDirection()).reshape(n, n) * np.array(volume.GetSpacing())
    affine[:n, 3 - n : 3] = steps[:, ::-1]
    if n == 2:
        affine[:3, 0] = (0, 0, 1)
    affine[:n, 3] = volume.GetOrigin()
    spaceless = path.suffix.lower() in (".nrrd", ".nhdr") and "NRRD_space" not in volume.GetMetaDataKeys()
    unit = "px" if spaceless and np.allclose(volume.GetSpacing(), 1) else "mm"
    return np.ascontiguousarray(array), _grid(array.shape[1:], affine, unit, path)


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
    SimpleITK.WriteImage(volume, str(path), useCompression=True)
