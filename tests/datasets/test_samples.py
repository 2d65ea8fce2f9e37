import numpy as np
import pytest
import torch

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.datasets.samples import Windows, collate, window_centre
from clearmargin.transforms.intensity import Window
from clearmargin.transforms.view import AugmentSettings, ImageSettings


class Shapes:
    """A data set of bright boxes, as pictures or as volumes."""

    def __init__(self, shape):
        self.shape = shape

    def read(self, case):
        rng = np.random.default_rng(case)
        grid = Grid.from_spacing(self.shape, (1.0,) * len(self.shape))
        masks = []
        for _ in range(3):
            low = rng.integers([n // 4 for n in self.shape], [n // 2 for n in self.shape])
            dense = np.zeros(self.shape, bool)
            dense[tuple(slice(int(a), int(a) + n // 4) for a, n in zip(low, self.shape, strict=True))] = True
            masks.append(dense)
        pixels = np.any(masks, axis=0)[None].astype(np.float32)
        return Image(pixels=pixels, grid=grid), InstanceSet.from_dense(grid, masks, labels=[1, 2, 1])


def windows(shape=(80, 100), seed=0, cache=2**20, **augment):
    return Windows(
        Shapes(shape),
        range(5),
        ImageSettings(intensity=Window(low=0, high=1), crop=(64, 64)),
        AugmentSettings(noise=0, brightness=0, contrast=0, gamma=0, **augment),
        seed=seed,
        cache_bytes=cache,
    )


@pytest.mark.parametrize("shape", [(80, 100), (9, 80, 100)])
def test_masks_stay_on_what_they_mark(shape):
    """The image is bright just where the masks are, so after any augmentation they must still agree."""
    rows = windows(shape, rotate_degrees=40, scale=1.5)
    for k in range(12):
        pixels, targets = rows[k]
        assert pixels.shape == (3, 64, 64) and targets.masks.shape[1:] == (64, 64)
        drawn = targets.masks.amax(0).bool() if len(targets.masks) else torch.zeros(64, 64, dtype=torch.bool)
        bright = pixels[1] > 0.5
        assert (drawn != bright).float().mean() < 0.02  # nearest and linear edges differ by less than a pixel
        for box, mask in zip(targets.boxes, targets.masks, strict=True):
            x1, y1, x2, y2 = box.int().tolist()
            assert mask.sum() == mask[y1:y2, x1:x2].sum() and mask[y1].any() and mask[:, x2 - 1].any()


def test_a_window_is_a_function_of_seed_and_position():
    first, again, other = windows(), windows(cache=0), windows(seed=1)
    again[7]  # another order of asking
    for k in (3, 4):
        assert torch.equal(first[k][0], again[k][0])
        assert torch.equal(first[k][1].masks, again[k][1].masks)
    assert not torch.equal(first[3][0], other[3][0])


def test_every_case_is_seen_once_a_walk():
    rows = windows()
    walks = [[rows._case_of(5 * w + k) for k in range(5)] for w in range(4)]
    assert all(sorted(walk) == list(range(5)) for walk in walks)
    assert len({tuple(walk) for walk in walks}) > 1


def test_the_cache_keeps_to_its_budget():
    one = 80 * 100 * 4
    rows = windows(cache=2 * one)
    for k in range(5):
        rows[k]
    assert len(rows._cache) == 2


def test_windows_hold_what_they_aim_at():
    generator = np.random.default_rng(0)
    for _ in range(200):
        anchor = float(generator.integers(0, 100))
        centre = window_centre(100, 40.0, anchor, generator)
        assert abs(centre - anchor) <= 20
        assert 19.5 <= window_centre(100, 40.0, None, generator) <= 79.5
    assert window_centre(20, 40.0, None, np.random.default_rng(0)) == pytest.approx(9.5, abs=10)


def test_a_batch_is_stacked():
    rows = windows()
    images, targets = collate([rows[0], rows[1]])
    assert images.shape == (2, 3, 64, 64) and len(targets) == 2
