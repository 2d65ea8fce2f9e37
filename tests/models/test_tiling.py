"""A view that is looked at in tiles shows the objects of the view looked at as a whole."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from bright import LABELS, bright_segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap
from clearmargin.models.placing import place, place_view
from clearmargin.models.repeats import Suppression
from clearmargin.models.settings import PredictionSettings
from clearmargin.models.tiles import lay_tiles
from clearmargin.models.tiling import find_in_tiles
from clearmargin.networks.network import Detections
from clearmargin.sampling.samples import augmented, tta_views
from clearmargin.transforms.settings import AugmentSettings

VIEW = (97, 131)


def detections(found):
    """Detections of ``(label, score, (y, x), mask)``, each mask a crop of ones and zeros in network pixels."""
    regions = [[x, y, x + m.shape[1], y + m.shape[0]] for _, _, (y, x), m in found]
    boxes = torch.tensor(regions, dtype=torch.float32).reshape(-1, 4)
    return Detections(
        boxes=boxes,
        labels=torch.tensor([label for label, *_ in found], dtype=torch.int64),
        scores=torch.tensor([score for _, score, *_ in found], dtype=torch.float32),
        masks=tuple(torch.from_numpy(m.astype(np.float32)) for *_, m in found),
        regions=boxes,
    )


def visible(values):
    """What a perfect network finds: each connected part of each value; a value's parity is its label."""
    found = []
    for value in np.unique(values[values > 0]):
        numbered, count = ndimage.label(values == value, np.ones((3, 3)))
        for k, box in enumerate(ndimage.find_objects(numbered)):
            corner = (box[0].start, box[1].start)
            found.append((1 + int(value) % 2, 0.5 + int(value) / 100, corner, numbered[box] == k + 1))
        assert count == k + 1
    return detections(found)


def in_tiles(values, tile, overlap):
    def look(corner, size):
        return visible(values[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]])

    return find_in_tiles(look, values.shape, tile, (overlap,) * len(tile), rule=Suppression(iou=0.5))


def shown(found, view):
    """A set of (label, score, mask), each mask as its bytes on the view."""
    every = []
    for k in range(len(found.labels)):
        crop, (y, x) = place(found.masks[k], found.regions[k], np.eye(3), view)
        dense = np.zeros(view, bool)
        dense[y : y + crop.shape[0], x : x + crop.shape[1]] = crop >= 0.5
        every.append((int(found.labels[k]), round(float(found.scores[k]), 4), dense.tobytes()))
    return sorted(every)


@st.composite
def scenes(draw):
    """Discs, bars, rings, single pixels and snakes, each of its own value; later ones lie on earlier ones."""
    y, x = np.mgrid[: VIEW[0], : VIEW[1]]
    values = np.zeros(VIEW, np.int64)
    for value in range(1, draw(st.integers(1, 9)) + 1):
        cy, cx = draw(st.integers(0, VIEW[0] - 1)), draw(st.integers(0, VIEW[1] - 1))
        far = np.hypot(y - cy, x - cx)
        size = draw(st.integers(2, 60))
        kind = draw(st.sampled_from(["disc", "bar", "slanted bar", "ring", "pixel", "snake"]))
        values[
            {
                "disc": far < size / 3,
                "bar": (abs(y - cy) < 3) & (abs(x - cx) < 2 * size),
                "slanted bar": (abs(y - cy - (x - cx) * 0.7) < 4) & (abs(x - cx) < size),
                "ring": abs(far - size / 2) < 1.5,
                "pixel": far < 0.5,
                "snake": (abs(y - cy - 12 * np.sin((x - cx) / 4)) < 5) & (abs(x - cx) < size),
            }[kind]
        ] = value
    return values


TILES = st.tuples(st.integers(16, 90), st.integers(16, 90))


@settings(max_examples=40, deadline=None)
@given(values=scenes(), tile=TILES, share=st.floats(0.02, 0.5))
def test_tiles_find_what_the_whole_view_shows(values, tile, share):
    overlap = max(1, int(share * min(tile)))
    assert shown(in_tiles(values, tile, overlap), VIEW) == shown(visible(values), VIEW)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(values=scenes(), tile=TILES, share=st.floats(0.02, 0.6))
def test_many_tiles_find_what_the_whole_view_shows(values, tile, share):
    overlap = max(1, int(share * min(tile)))
    assert shown(in_tiles(values, tile, overlap), VIEW) == shown(visible(values), VIEW)


@settings(max_examples=60, deadline=None)
@given(
    view=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    overlap=st.integers(1, 7),
)
def test_tiles_cover_the_view_and_share_what_is_asked(view, tile, overlap):
    seen = np.zeros(view, np.int64)
    tiles = lay_tiles(view, tile, (overlap,) * 2)
    for t in tiles:
        assert t.size == tuple(min(a, b) for a, b in zip(tile, view, strict=True))
        seen[t.low[0] : t.high[0], t.low[1] : t.high[1]] += 1
    assert seen.min() == 1 or len(tiles) > 1
    assert seen.min() >= 1
    for axis in range(2):
        along = sorted({(t.low[axis], t.high[axis]) for t in tiles})
        assert all(b[0] <= a[1] - overlap for a, b in pairwise(along))


TWO = ((64, 160), (64, 96), 32)  # a view, and tiles of it that share the columns 64..96


def from_two_tiles(left, right):
    view, tile, overlap = TWO
    sides = {0: left, 64: right}
    return find_in_tiles(
        lambda corner, _: detections(sides[corner[1]]),
        view,
        tile,
        (overlap,) * len(tile),
        rule=Suppression(iou=0.5),
    )


def box(height, width):
    return np.ones((height, width))


def test_a_joined_score_is_weighted_by_area_and_masks_by_the_distance_to_the_cut():
    # 20 x 46 seen left (columns 50..96), 20 x 16 seen right (64..80); the right one ends at 80
    found = from_two_tiles([(1, 0.9, (10, 50), box(20, 46))], [(1, 0.6, (10, 0), box(20, 26))])
    assert len(found.labels) == 1
    assert float(found.scores[0]) == pytest.approx((0.9 * 46 + 0.6 * 26) / 72)
    crop, (y, x) = place(found.masks[0], found.regions[0], np.eye(3), TWO[0])
    values = np.zeros(TWO[0])
    values[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert values[15, 60] == 1 and values[15, 80] == 1 and values[15, 100] == 0
    # pixel 92 is held by the left tile alone: 3.5 from its cut edge at 96, 28.5 from the right tile's at 64
    assert values[15, 92] == pytest.approx(3.5 / 32)
    assert values[15, 64:90].min() == pytest.approx(1)


def test_a_foreground_goes_over_from_tile_to_tile_without_an_edge():
    """One tile says 0.8 everywhere, the other 0.2: between them it is their distances to the cuts that decide."""
    view, tile, overlap = TWO

    def look(corner, size):
        said = 0.8 if corner[1] == 0 else 0.2
        return replace(detections([]), foreground=torch.full((1, size[0] // 4, size[1] // 4), said))

    found = find_in_tiles(look, view, tile, (overlap,) * len(tile), rule=Suppression(iou=0.5))
    (values,) = place_view(found.foreground, view, np.eye(3), view)
    np.testing.assert_allclose(values[:, :64], 0.8, atol=1e-6)
    np.testing.assert_allclose(values[:, 96:], 0.2, atol=1e-6)
    far = np.arange(32) + 0.5  # from the right tile's cut
    np.testing.assert_allclose(values[7, 64:96], 0.8 - 0.6 * far / 32, atol=1e-6)
    assert (
        find_in_tiles(
            lambda *_: detections([]), view, tile, (overlap,) * len(tile), rule=Suppression(iou=0.5)
        ).foreground
        is None
    )


def test_touching_objects_and_a_disagreement_in_the_strip_are_not_joined():
    left = [(1, 0.9, (10, 40), box(20, 56))]
    # the same rows but another object: in the strip it holds a third of what the left one does
    assert len(from_two_tiles(left, [(1, 0.8, (10, 20), box(20, 40))]).labels) == 2
    assert len(from_two_tiles(left, [(2, 0.8, (10, 0), box(20, 40))]).labels) == 2
    assert len(from_two_tiles(left, [(1, 0.8, (30, 0), box(20, 40))]).labels) == 2
    assert len(from_two_tiles(left, [(1, 0.8, (14, 0), box(20, 40))]).labels) == 1


def test_what_a_tile_cut_and_another_sees_whole_and_does_not_find_is_left_out():
    sliver, long, whole = (
        [(1, 0.7, (10, 90), box(8, 6))],
        [(1, 0.7, (10, 40), box(8, 56))],
        [(1, 0.7, (10, 80), box(8, 6))],
    )
    assert len(from_two_tiles(sliver, []).labels) == 0
    assert len(from_two_tiles(long, []).labels) == 1  # the right tile does not see all of it
    assert len(from_two_tiles(whole, []).labels) == 1  # not cut: both tiles saw it alike
    assert len(from_two_tiles([], []).labels) == 0


def test_what_two_tiles_cut_alike_is_left_out_where_those_that_see_it_whole_do_not_find_it():
    """Four tiles of 96 over 160: rows 64 to 96 and columns 64 to 96 are shared."""

    def found(lower):
        sliver = [(1, 0.7, (90, 70), box(6, 8))]  # at the upper tiles' cut edge, in the strip between them
        seen = {(0, 0): sliver, (0, 64): [(1, 0.7, (90, 6), box(6, 8))], (64, 0): lower, (64, 64): []}
        return find_in_tiles(
            lambda corner, _: detections(seen[corner]),
            (160, 160),
            (96, 96),
            (32, 32),
            rule=Suppression(iou=0.5),
        )

    assert len(found([]).labels) == 0
    assert len(found([(1, 0.7, (26, 70), box(20, 8))]).labels) == 1  # its tile sees it, and more of it


def test_a_second_look_within_a_tile_does_not_survive_the_joining():
    again = [(1, 0.9, (10, 50), box(20, 46)), (1, 0.5, (10, 49), box(20, 46))]
    assert len(from_two_tiles(again, [(1, 0.6, (10, 0), box(20, 26))]).labels) == 1


def test_tiles_that_cannot_work_are_refused():
    with pytest.raises(ValidationError, match="multiples of 32"):
        PredictionSettings(tile=(100, 128), tile_overlap=32)
    with pytest.raises(ValidationError, match="half a tile"):
        PredictionSettings(tile=(128, 128), tile_overlap=96)
    with pytest.raises(ValueError, match="cannot share"):
        find_in_tiles(lambda *_: detections([]), VIEW, (32, 32), (32, 32), rule=Suppression(iou=0.5))


class Values:
    """Finds each connected part of each grey value; sees value k as k / 100."""

    def detect(self, images, *, maps=False):
        values = np.rint(images[0, 1].numpy() * 100).astype(np.int64)
        score = np.where(values > 0, 0.5 + values / 100, 0)
        by_class = np.stack([score * (values % 2 == label) for label in (0, 1)])
        return [replace(visible(values), foreground=torch.from_numpy(by_class) if maps else None)]


TWO_CLASSES = LabelMap(
    (
        *LABELS.classes,
        LabelClass(
            id=2,
            name="other",
            type=Code(value="1", scheme="SCT", meaning="Other"),
            category=LABELS.classes[0].category,
        ),
    )
)


def segmenter(**choice):
    whole = replace(bright_segmenter(0.0, 100.0), network=Values(), label_map=TWO_CLASSES)
    return replace(whole, choice=PredictionSettings(score_threshold=0, **choice))


@pytest.mark.parametrize("shape", [(150, 170), (2, 150, 170)])
def test_a_segmenter_in_tiles_gives_the_whole_images_prediction_and_maps(shape):
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    pixels = np.zeros((1, *shape), np.float32)
    pixels[..., abs(np.hypot(y - 75, x - 85) - 60) < 4] = 11
    pixels[..., abs(y - 70) < 5] = 22
    pixels[..., np.hypot(y - 64, x - 120) < 14] = 33
    image = Image(pixels=pixels, grid=Grid.from_spacing(shape, (1.0,) * len(shape)))
    views = tta_views(AugmentSettings(scale=1))
    whole = augmented(segmenter(), views)(image)
    tiled = augmented(segmenter(tile=(64, 96), tile_overlap=32), views)(image)
    assert len(whole.instances) >= 4
    assert [m.run_lengths() for m in _planes(tiled)] == [m.run_lengths() for m in _planes(whole)]
    for name in ("foreground", "entropy"):
        np.testing.assert_allclose(tiled.maps[name], whole.maps[name], atol=1e-5)


def _planes(prediction):
    instances = prediction.instances
    flat = instances if instances.grid.ndim == 2 else instances.plane(0)[0]
    return sorted(flat.masks, key=lambda m: (m.area, m.origin))


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_instances_beyond_what_a_network_returns_are_counted_by_case(tile, caplog):
    """Two of each look at each of three slices; one slice is four looks, with tiles."""
    segmenter = bright_segmenter()
    network = segmenter.network

    class Full:
        finds_masks, finds_landmarks = True, False

        def detect(self, images, *, maps=False):
            return [replace(one, beyond=2) for one in network.detect(images, maps=maps)]

    choice = PredictionSettings(tile=tile, tile_overlap=32)
    full = replace(segmenter, network=Full(), choice=choice)
    pixels = np.linspace(0, 1, 3 * 96 * 96, dtype=np.float32).reshape(1, 3, 96, 96)
    image = Image(pixels=pixels, grid=Grid.from_spacing((3, 96, 96), (3, 1, 1)))
    with caplog.at_level("WARNING"):
        full(image)
    count = 3 * 2 * (1 if tile is None else 4)
    assert f"{image.source.case}: {count} instance(s) more than model.detections allows" in caplog.text
