"""The decorator of the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile ``function`` on first call, keep the machine code on disk, and release the GIL while it runs.

    Only modules that hold kernels import this one, and they are imported when first computed with, so that
    ``import clearmargin.metrics`` costs neither numba's import nor a compilation.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
