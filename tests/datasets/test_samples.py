import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.datasets.balance import repeat_factors
from clearmargin.datasets.samples import Windows, _aimed_at, collate, window_centre
from clearmargin.networks.network import Targets
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window


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
    walks = [[rows.walks.case_at(5 * w + k) for k in range(5)] for w in range(4)]
    assert all(sorted(walk) == list(range(5)) for walk in walks)
    assert len({tuple(walk) for walk in walks}) > 1


def held_bytes(rows):
    held = 0
    for read in rows._cache.values():
        held += read.image.pixels.nbytes + sum(m.crop.nbytes for m in read.instances.masks)
        if read.sample is not None:
            held += read.sample["layers"].nbytes
            assert read.sample["image"].data_ptr() == read.image.pixels.ctypes.data  # the same memory
    return held


@pytest.mark.parametrize("shape", [(80, 100), (9, 80, 100)])
@pytest.mark.parametrize("kept", [0, 2, 5])
def test_the_cache_keeps_to_its_budget_and_changes_no_window(shape, kept):
    every, never = windows(shape, cache=2**30), windows(shape, cache=0)
    for k in range(8):
        every[k]
    sizes = [read.bytes for read in every._cache.values()]  # in the order that they are read in
    least = np.prod(shape) * 4 + 3 * np.prod(
        [n // 4 for n in shape]
    )  # float32 pixels, and three boxes of bool
    if len(shape) == 2:
        least += np.prod(shape) * 4  # seen whole: layers too, one where no boxes overlap
    assert len(sizes) == 5 and min(sizes) >= least and held_bytes(every) == sum(sizes)
    rows = windows(shape, cache=int(sum(sizes[:kept])))
    for k in range(8):
        assert torch.equal(rows[k][0], never[k][0]) and torch.equal(rows[k][1].masks, never[k][1].masks)
    assert len(rows._cache) == kept and len(never._cache) == 0
    assert held_bytes(rows) == sum(sizes[:kept])
    short = windows(shape, cache=int(sizes[0]) - 1)
    short[0]
    assert not short._cache


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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_comes_from_a_worker_as_it_was_made(workers):
    rows = windows()
    batches = [[0, 1, 2], [3]]
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=collate, num_workers=workers)
    for (images, targets), chosen in zip(loader, batches, strict=True):
        assert len(targets) == len(chosen)
        for k, position in enumerate(chosen):
            pixels, wanted = rows[position]
            assert torch.equal(images[k], pixels)
            for name in ("boxes", "labels", "masks"):
                assert torch.equal(getattr(targets[k], name), getattr(wanted, name))
    empty = Targets(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, 8, 8)
    )
    (again,) = pickle.loads(pickle.dumps(collate([(torch.zeros(3, 8, 8), empty)])))[1]
    assert again.masks.shape == (0, 8, 8)


def test_a_class_is_aimed_at_as_often_as_any_other():
    labels = np.array([1] * 98 + [2, 3])
    generator = np.random.default_rng(0)
    rare = {
        aim: np.mean([_aimed_at(labels, AugmentSettings(aim=aim), generator) >= 98 for _ in range(2000)])
        for aim in ("instance", "class")
    }
    assert rare["instance"] == pytest.approx(0.02, abs=0.01)
    assert rare["class"] == pytest.approx(2 / 3, abs=0.04)


def test_pasting_shows_each_instance_where_its_mask_is():
    """Pasted or not, the picture is bright just where some mask is."""
    rows, plain = windows(copy_paste=1.0, foreground=0.5), windows(foreground=0.5)
    more = 0
    for k in range(12):
        pixels, targets = rows[k]
        drawn = targets.masks.amax(0).bool() if len(targets.masks) else torch.zeros(64, 64, dtype=torch.bool)
        assert (drawn != (pixels[1] > 0.5)).float().mean() < 0.03
        more += len(targets.masks) > len(plain[k][1].masks)
    assert more >= 4


def test_pasting_is_a_function_of_seed_and_position_and_none_changes_nothing():
    first, again, never = windows(copy_paste=0.5), windows(copy_paste=0.5, cache=0), windows()
    again[9]
    same = []
    for k in range(10):
        assert torch.equal(first[k][0], again[k][0]) and torch.equal(first[k][1].masks, again[k][1].masks)
        same.append(torch.equal(first[k][0], never[k][0]))
    assert 0 < sum(same) < 10  # what is not pasted on is the window of a run without pasting


def test_grey_is_pasted_on_colour():
    class Mixed(Shapes):
        def read(self, case):
            image, instances = super().read(case)
            return replace(image, pixels=image.pixels.repeat(1 + 2 * (case % 2), axis=0)), instances

    rows = windows(copy_paste=1.0)
    rows.dataset = Mixed((80, 100))
    assert {tuple(rows[k][0].shape) for k in range(6)} == {(3, 64, 64)}


def test_a_case_with_a_rare_class_comes_more_often():
    class Rare(Shapes):
        def read(self, case):
            image, instances = super().read(case)
            return image, replace(instances, labels=np.array([1, 2 if case == 3 else 1, 1]))

    rows = windows()
    rows.dataset = Rare((80, 100))
    held = [rows.classes_of(k) for k in range(5)]
    assert held == [{1}, {1}, {1}, {1, 2}, {1}] and len(rows._cache) == 5
    rows.repeat_by(repeat_factors(held, 0.8))  # sqrt(0.8 / 0.2)
    assert sorted(rows.walks.case_at(k) for k in range(6)) == [0, 1, 2, 3, 3, 4]
