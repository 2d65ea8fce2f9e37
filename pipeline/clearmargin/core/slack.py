"""The slack with which every distance is compared with a limit."""

from __future__ import annotations

__all__ = ["SLACK", "with_slack"]

SLACK = 1e-6
"""Relative. Formats keep a spacing in 32 bits (NIfTI: 0.8 becomes 0.800000012) or in six digits: both are within."""


def with_slack(limit: float) -> float:
    """Return the largest distance that counts as within ``limit``: the limit and a millionth of it.

    A distance that equals the limit in exact arithmetic is within it, whatever the rounding of the spacing that
    a file format allows.

    >>> 0.1 + 0.2 <= 0.3, 0.1 + 0.2 <= with_slack(0.3)
    (False, True)
    """
    return limit * (1 + SLACK)
