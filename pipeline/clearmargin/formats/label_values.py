"""Which numbers are labels: whole, not negative, and told apart by the type that holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError

__all__ = ["whole_labels"]

_MOST = int(np.iinfo(np.int32).max)
_EXACT = {np.dtype(np.float32): 2**24, np.dtype(np.float16): 2**11}  # up to where neighbours are told apart


def whole_labels(values: NDArray[Any], name: str) -> NDArray[np.integer[Any]]:
    """Return labels as integers: in their own dtype, or int32 for fractions that are whole.

    Args:
        values: As a file holds them.
        name: What messages call the file.

    Raises:
        InputError: Fractions, negative values, values beyond 31 bits, or beyond what the file's type tells apart.
    """
    if not len(values.reshape(-1)):
        return values.astype(np.int32)
    least, most = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (np.isfinite(least) and np.isfinite(most)):
            raise InputError(f"'{name}' holds values that are not finite: labels are whole numbers from 0 on")
        if not np.array_equal(np.rint(values), values):
            raise InputError(f"'{name}' holds fractions: labels are whole numbers from 0 on")
        exact = _EXACT.get(values.dtype, _MOST)
        if most > exact:
            raise InputError(
                f"'{name}' holds labels up to {most:.0f} as {values.dtype}, which tells whole numbers apart only up to "
                f"{exact}: save it as integers"
            )
    if least < 0:
        hint = "; a type of signed 8 bits turns 200 into -56: save it unsigned" if least >= -128 else ""
        raise InputError(
            f"'{name}' holds negative values (the least is {least:.0f}): labels are 0 or more{hint}"
        )
    if most > _MOST:
        raise InputError(
            f"'{name}' holds the label {most:.0f}, beyond 31 bits: number its objects anew from 1"
        )
    return values.astype(np.int32) if values.dtype.kind == "f" else values
