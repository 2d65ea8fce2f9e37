"""What becomes of an error: one case's failure, the end of a run for want of a disk or memory, or a bug."""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path

from clearmargin.errors import ClearMarginError

__all__ = ["EXTRAS", "missing_extra", "place_of", "reason_of", "refusal_of"]

EXTRAS = {
    "train": ("torch", "torchvision", "timm", "monai", "safetensors"),
    "tracking": ("mlflow", "pandas"),
    "video": ("av",),
    "batch": ("sqlalchemy", "pg8000", "dicomweb_client", "pynetdicom", "tenacity"),
    "transformers": ("transformers",),
    "export": ("onnx", "onnxruntime", "openvino"),
    "ray": ("ray",),
    "bundle": ("fire", "jsonschema"),
    "text": ("rapidocr_onnxruntime",),
}
"""Packages that the base installation lacks, by the extra that brings them."""

# What the machine, not the program, says no to. Each with the way out.
_MACHINE = {
    errno.ENOSPC: "free space, or name a folder on another disk",
    errno.EDQUOT: "free space, or name a folder on another disk",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or name a folder on another disk",
    errno.EACCES: "name a folder that you may write to, and files that you may read",
    errno.EPERM: "name a folder that you may write to, and files that you may read",
    errno.EROFS: "name a folder that you may write to",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EISDIR: "name a file, not a folder",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "remove the links that lead in a circle",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "end other programs: the system has no open files left",
    errno.ENOMEM: "give it smaller images, tiles (--tile), or a larger machine",
}
# Torch's own errors of memory, on the CPU and on a GPU, have no type or are a RuntimeError.
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
# No other case could be done either.
_FOR_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)


def missing_extra(error: BaseException) -> str | None:
    """Return which package is missing and how to install it; None if the error is of another kind."""
    if not isinstance(error, ImportError) or not error.name:
        return None
    package = error.name.split(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"this needs '{package}', which is not installed: pip install 'clearmargin[{extra}]'"
    return None


def refusal_of(error: BaseException) -> str | None:
    """Return what the machine refuses and the way out, without a path; None if the error is of another kind."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "there is not enough memory: give it smaller images, tiles (--tile), or a larger machine"
    if isinstance(error, FileNotFoundError) and _in_tempfile(error):
        return (
            "the system refused: no folder for temporary files can be written to: free space, or set TMPDIR"
        )
    if isinstance(error, OSError) and error.errno in _MACHINE:
        # By the number: what an error says of itself may hold a path.
        return f"the system refused: {os.strerror(error.errno)}: {_MACHINE[error.errno]}; what was finished is kept"
    return None


def reason_of(error: Exception) -> str:
    """Return why one case of many failed, with the error's type if it is not one of ours.

    Messages of other errors are left out: they may hold a header's values or a path.

    Raises:
        Exception: The error itself, if the rest would fail as well, as on a full disk.
    """
    if isinstance(error, ClearMarginError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FOR_ALL:
        raise error
    missing = missing_extra(error)
    if missing is not None:
        return missing
    refused = refusal_of(error)
    if refused is not None:
        return f"{type(error).__name__}: {refused}"
    if isinstance(error, OSError):
        words = os.strerror(error.errno) if error.errno else "the file cannot be read"
        return f"{type(error).__name__}: {words}"
    return f"{type(error).__name__} at {place_of(error)}: this is a bug, or a file of a kind not met before"


def place_of(error: BaseException) -> str:
    """Return where an error arose, the innermost place first: files of the program and lines, no values."""
    frames = traceback.extract_tb(error.__traceback__)
    return " <- ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))


def _in_tempfile(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name == "tempfile.py"
