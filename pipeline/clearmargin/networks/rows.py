"""Regions in numbers that repeat: a GPU's convolutions are planned anew for each number of rows that they meet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["by_rows", "round_number"]

_FEWEST = 16


def round_number(rows: int) -> int:
    """Return the power of two from 16 on that holds so many rows; 0 for none."""
    return max(_FEWEST, 1 << (rows - 1).bit_length()) if rows else 0


def by_rows(module: nn.Module, *inputs: Tensor, rows: int | None = None) -> Tensor:
    """Return what a module that treats each row by itself makes of inputs ``(R, ...)``.

    On a GPU they are filled up to a round number of rows: how many objects a picture holds differs from step to
    step, and each new number cost half a second of planning.

    Args:
        module: From the inputs to one output with a row for each.
        inputs: Of R rows each.
        rows: To so many they are filled up; None: to ``round_number`` on a GPU, and not at all elsewhere.
    """
    count = len(inputs[0])
    if rows is None:
        rows = round_number(count) if inputs[0].is_cuda else count
    filled = [
        F.pad(one, (0, 0) * (one.ndim - 1) + (0, rows - count)) if rows > count else one for one in inputs
    ]
    output: Tensor = module(*filled)
    return output[:count]
