"""Masks to measure."""

from __future__ import annotations


def blobs(shape, seed, widths):
    """Return two masks of smooth random blobs that differ by a little."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    base, change = (gaussian_filter(rng.standard_normal(shape).astype(np.float32), widths) for _ in range(2))
    base, change = base / base.std(), change / change.std()
    return base + 0.15 * change > 0.9, base > 0.9


def discs(count: int, size: tuple[int, int], seed: int, low: float, high: float):
    """Return ``count`` pairs of an ellipse and a slightly moved and resized one, as dense masks."""
    import numpy as np

    height, width = size
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:height, :width]

    def ellipse(cy, cx, a, b):
        return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1

    for _ in range(count):
        cy, cx = rng.uniform(high, height - high), rng.uniform(high, width - high)
        a, b = rng.uniform(low, high, 2)
        moved = (
            cy + rng.normal(0, 2),
            cx + rng.normal(0, 2),
            a * rng.uniform(0.92, 1.08),
            b * rng.uniform(0.92, 1.08),
        )
        yield ellipse(*moved), ellipse(cy, cx, a, b)
