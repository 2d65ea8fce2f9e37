"""A slice is shown as radiologists see it, whatever the order and direction of the file's axes."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from clearmargin.core import Grid, Image, InstanceSet, Mask
from clearmargin.report.orientation import Turn, upright
from clearmargin.report.overlay import heat_overlay, overlay

# Slices along z, y, x; then what rises down the rows and along the columns: x to the left, y back, z to the head.
VIEWS = {2: ((1, 1), (0, 1)), 1: ((2, -1), (0, 1)), 0: ((2, -1), (1, 1))}


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_the_front_the_head_and_the_patients_right_are_where_they_belong(
    order: tuple[int, ...], signs: tuple[int, ...], tilt: float
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (axis + 1)
    turned = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine[:3, :3] = turned @ affine[:3, :3]
    grid = Grid(shape=(2, 5, 7), affine=affine, unit="mm")
    index = np.stack(np.meshgrid(0, np.arange(5), np.arange(7), indexing="ij"), -1)[0]
    world = upright(grid).array(grid.to_world(index))
    (down, way), (right, along) = VIEWS[order[0]]
    assert (np.diff(world[..., down], axis=0) * way > 0).all()
    assert (np.diff(world[..., right], axis=1) * along > 0).all()


def test_an_image_and_a_volume_in_lps_order_stay_as_they_are() -> None:
    assert upright(Grid.from_spacing((4, 5))) == Turn()
    assert upright(Grid.from_spacing((3, 4, 5), (2, 1, 1))) == Turn()


def test_masks_and_maps_turn_with_their_image() -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])[:, [2, 1, 0, 3]]  # rows to the front, columns to the right
    grid = Grid(shape=(2, 600, 700), affine=affine, unit="mm")
    pixels = np.zeros((1, *grid.shape), np.uint8)
    pixels[0, 1, 100:120, 50:90] = 200
    image = Image(pixels=pixels, grid=grid)
    mask = Mask.from_dense(pixels[0] > 0)
    (turned,) = [upright(grid).mask(mask.plane(1))]
    assert turned.box == ((480, 610), (500, 650))
    one = InstanceSet.from_dense(grid, [mask.dense()])
    for picture in (overlay(image, one), heat_overlay(image, (pixels[0] > 0).astype(np.float32))[:, :700]):
        lit = np.argwhere(picture.max(axis=2) > 100)
        lit = lit[lit[:, 1] < 690]
        assert lit.min(axis=0).tolist() == [480, 610] and lit.max(axis=0).tolist() == [499, 649]
