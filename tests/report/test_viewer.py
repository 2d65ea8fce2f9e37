"""The case viewer: what it draws lies where it should, in the right colours, and asks nobody for anything."""

import gzip
import json
import re

import nibabel
import numpy as np
import pytest
from browsing import browsing

from clearmargin.core import (
    Grid,
    Image,
    InstanceSet,
    LabelClass,
    LabelMap,
    Mask,
    Prediction,
    Provenance,
    Source,
    Thresholds,
)
from clearmargin.core.colours import class_colour
from clearmargin.margins.assessment import assess
from clearmargin.metrics import MeasurementProtocol, evaluate_instances
from clearmargin.outputs.writers import WRITERS
from clearmargin.report.viewer.case import case_view
from clearmargin.report.viewer.clip import clip_view
from clearmargin.report.viewer.layers import Canvas, error_layer, image_file, mask_layer
from clearmargin.report.viewer.page import CaseView, viewer_page
from clearmargin.report.viewer.rows import list_rows


def discs(grid, places, radius=6):
    z = np.arange(grid.shape[0])[:, None, None]
    y, x = np.mgrid[: grid.shape[1], : grid.shape[2]]
    return tuple(
        Mask.from_dense((np.abs(z - c) <= 1) & ((y - b) ** 2 + (x - a) ** 2 <= radius**2))
        for a, b, c in places
    )


@pytest.fixture(scope="module")
def scene():
    """Three objects of labels 1, 7 and 4000 in a volume, the last one missed, and a false positive."""
    grid = Grid.from_spacing((9, 48, 64), (3.0, 1.0, 1.0))
    image = Image(
        pixels=np.zeros((1, 9, 48, 64), np.int16), grid=grid,
        source=Source(case="case-11112222", kind="volume", modality="CT"),
    )  # fmt: skip
    labels = np.array([1, 7, 4000])
    reference = InstanceSet(
        grid=grid,
        masks=discs(grid, [(12, 12, 4), (32, 12, 4), (52, 36, 2)]),
        labels=labels,
        scores=np.ones(3),
    )
    predicted = InstanceSet(
        grid=grid, masks=discs(grid, [(12, 14, 4), (32, 12, 4), (12, 36, 4)]), labels=labels,
        scores=np.array([0.9, 0.8, 0.5]),
        uncertainty={"margin_outer_mm": np.array([3.0, 3.0, 3.0]), "refer": np.array([0.0, 0.0, 1.0])},
    )  # fmt: skip
    measured = evaluate_instances(
        predicted, reference, protocol=MeasurementProtocol(metrics=("dice", "hd95"), tolerances=(1.0,))
    )
    return CaseView(
        title=image.source.case, image=image, predicted=predicted, reference=reference,
        rows=list_rows(
            predicted, {1: "liver", 7: "tumour", 4000: "vessel"}, measured=measured,
            reasons=[(), (), ("score near the threshold",)],
        ),
        pairs=[(row.predicted, row.reference) for row in measured if row.status == "tp"],
        outer=discs(grid, [(12, 14, 4), (32, 12, 4), (12, 36, 4)], radius=9),
        maps={"entropy": np.zeros(grid.shape, np.float32)},
    )  # fmt: skip


def read_back(file, tmp_path):
    path = tmp_path / "layer.nii.gz"
    path.write_bytes(file)
    return nibabel.load(path)


def test_every_voxel_lies_where_the_image_says(tmp_path):
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * (3.0, 0.7, 0.8)
    affine[:3, 3] = (12.0, -30.0, 5.0)
    grid = Grid(shape=(4, 6, 8), affine=affine, unit="mm")
    values = rng.integers(-100, 300, (1, 4, 6, 8)).astype(np.int16)
    for step in ((1, 1, 1), (1, 2, 2), (2, 3, 4)):
        loaded = read_back(
            image_file(Canvas(grid=grid, step=step), Image(pixels=values, grid=grid), (-100, 300)), tmp_path
        )
        z, y, x = (n // s for n, s in zip(grid.shape, step, strict=True))
        for at in np.ndindex(x, y, z):
            middle = [s * v + (s - 1) / 2 for s, v in zip(step, at[::-1], strict=True)]
            world = grid.to_world(middle) * (-1, -1, 1)
            np.testing.assert_allclose(nibabel.affines.apply_affine(loaded.affine, at), world, atol=1e-4)
        mean = values[0].reshape(z, step[0], y, step[1], x, step[2]).mean(axis=(1, 3, 5)).T
        np.testing.assert_allclose(loaded.get_fdata(), mean, atol=0.5 * 400 / 255 + 1e-6)


def test_an_error_is_the_distance_between_edges(tmp_path):
    grid = Grid.from_spacing((1, 20, 20), (2.0, 0.5, 0.5))
    square = np.zeros((2, 1, 20, 20), bool)
    square[0, 0, 4:12, 4:12] = square[1, 0, 4:12, 6:14] = True  # moved by two elements: 1 mm
    ours, theirs = (InstanceSet.from_dense(grid, [one]) for one in square)
    layer = error_layer(Canvas(grid=grid), ours, theirs, [(0, 0)])
    values = np.asarray(read_back(layer.file, tmp_path).dataobj).T[0]
    low, top, unit = layer.scale
    errors = (values.astype(float) - 1) / 253 * top
    assert (low, unit) == (0.0, "mm")
    assert errors[8, 4] == pytest.approx(1.0, abs=0.01)  # the left side lies 1 mm outside
    assert errors[8, 11] == pytest.approx(1.0, abs=0.01)
    assert errors[4, 8] == pytest.approx(0.0, abs=0.01)  # the upper side lies on the other's
    assert not values[8, 8]


def test_false_positives_and_false_negatives_have_a_colour_of_their_own_in_the_error(tmp_path):
    grid = Grid.from_spacing((1, 20, 20), (2.0, 0.5, 0.5))
    masks = np.zeros((4, 1, 20, 20), bool)
    masks[0, 0, 1:7, 1:7] = masks[1, 0, 1:7, 1:7] = True  # found
    masks[2, 0, 12:18, 1:7] = True  # a false positive
    masks[3, 0, 12:18, 12:18] = True  # a false negative
    ours, theirs = (InstanceSet.from_dense(grid, [masks[i], masks[i + 2]]) for i in (0, 1))
    layer = error_layer(Canvas(grid=grid), ours, theirs, [(0, 0)])
    values = np.asarray(read_back(layer.file, tmp_path).dataobj).T[0]
    assert tuple(layer.colours[255]) == (255, 0, 200, 255)
    for rows, columns in ((slice(12, 18), slice(1, 7)), (slice(12, 18), slice(12, 18))):
        square = values[rows, columns]
        assert (square == 255).sum() == 20 and not square[1:-1, 1:-1].any(), "its edge alone"
    assert (values == 1).sum() == 20, "the edge of what was found lies on the reference's"
    alone = error_layer(Canvas(grid=grid), ours, InstanceSet.empty(grid), [])
    assert (np.asarray(read_back(alone.file, tmp_path).dataobj) == 255).sum() == 40
    assert error_layer(Canvas(grid=grid), InstanceSet.empty(grid), InstanceSet.empty(grid), []) is None


def test_more_instances_than_bytes_are_all_drawn(tmp_path):
    grid = Grid.from_spacing((40, 40))
    masks = [Mask.from_crop(np.ones((1, 1), bool), (i // 20 * 2, i % 20 * 2), (40, 40)) for i in range(400)]
    layer = mask_layer(Canvas(grid=grid), "prediction", "prediction", masks, np.ones(400, np.int64))
    values = np.asarray(read_back(layer.file, tmp_path).dataobj).T[0]
    assert np.count_nonzero(values) == 400
    assert (layer.colours[values[values > 0], 3] == 255).all()


def test_a_large_case_is_drawn_coarser_and_says_so():
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((20, 200, 200), (1.0, 1.0, 1.0))
    image = Image(pixels=rng.integers(-900, 900, (1, *grid.shape)).astype(np.int16), grid=grid)
    small = np.zeros(grid.shape, bool)
    small[10, 101, 101] = True  # less than half of any larger element: kept all the same
    predicted = InstanceSet.from_dense(grid, [small])
    view = CaseView(title="case-1", image=image, predicted=predicted, rows=list_rows(predicted, {1: "a"}))
    whole = viewer_page(view)
    page = viewer_page(view, most_bytes=1_800_000)
    assert len(page.encode()) <= 1_800_000 < len(whole.encode())
    assert "coarser grid" in page and "coarser grid" not in whole
    assert "256 grey levels" in whole
    drawn = json.loads(re.search(r'id="page">(.*?)</script>', page)[1])
    assert drawn["rows"][0]["at"] is not None and drawn["drawn"] != [20, 200, 200]
    with pytest.raises(ValueError, match="does not fit"):
        viewer_page(view, most_bytes=1000)


def test_a_page_names_only_the_case_and_lets_nothing_in(scene, tmp_path):
    page = viewer_page(scene)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", page)
    named = CaseView(
        title=scene.title, predicted=scene.predicted,
        image=Image(
            pixels=scene.image.pixels, grid=scene.image.grid,
            source=Source(case=scene.title, files=(tmp_path / "CANARY.nii",), kind="volume"),
        ),
    )  # fmt: skip
    assert "CANARY" not in viewer_page(named)


def test_a_hostile_name_stays_text(scene):
    label_map = LabelMap((LabelClass(id=1, name="</script><script>alert(1)</script>"),))
    grid = scene.predicted.grid
    one = InstanceSet(
        grid=grid, masks=scene.predicted.masks[:1], labels=np.array([1]), scores=np.array([0.5])
    )
    made = Provenance(model="m", weights_sha256="", config_sha256="", software="s")
    page = viewer_page(
        case_view(Prediction(instances=one, label_map=label_map, provenance=made), scene.image)
    )
    assert "<script>alert" not in page


def test_a_browser_draws_labels_1_7_and_4000_in_their_colours(scene, tmp_path):
    path = tmp_path / "case.html"
    path.write_text(viewer_page(scene))
    with browsing(dark=True) as watched:
        watched.open(path.as_uri()).ready()
        page = watched.page
        page.uncheck("#on-reference")
        page.uncheck("#on-outer")
        page.wait_for_timeout(1500)
        drawn = watched.drawn()
        height, width = drawn.shape[:2]
        middles = {}
        for label in (1, 7, 4000):
            near = np.abs(drawn.astype(int) - class_colour(label)).max(axis=-1) <= 3
            assert near.sum() > 50, f"label {label} is not drawn in {class_colour(label)}"
            middles[label] = np.argwhere(near).mean(axis=0) / (height, width)
        # x grows to the patient's left, which is at the right; y to the back, which is below
        assert middles[1][1] < middles[7][1] and middles[1][0] < middles[4000][0]
        assert abs(middles[1][1] - middles[4000][1]) < 0.05
        # keys: up a slice; right to the first row, the missed instance on slice 2
        start = page.evaluate("window.viewer.here()")
        page.keyboard.press("ArrowUp")
        assert page.evaluate("window.viewer.here()") == [start[0], start[1], start[2] + 1]
        page.keyboard.press("ArrowRight")
        assert page.evaluate("window.viewer.here()") == [52, 36, 2]
        assert "false negative" in page.inner_text("#facts") and "slice 2 of 0-8" in page.inner_text("#where")
        page.click("#rows tr:nth-child(2)")  # the false positive
        assert page.evaluate("window.viewer.here()") == [12, 36, 4]
        assert "score near the threshold" in page.inner_text("#facts")
        before = page.evaluate("document.documentElement.dataset.theme")
        assert before == "dark"
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme") != before
        page.click("text=all planes")
        page.check("#on-error")
        page.wait_for_timeout(1000)
        assert not watched.complaints and not watched.requests


def test_predict_writes_a_viewer(scene, tmp_path):
    label_map = LabelMap((LabelClass(id=1, name="liver"),))
    one = InstanceSet(
        grid=scene.predicted.grid,
        masks=scene.predicted.masks[:1],
        labels=np.array([1]),
        scores=np.array([0.4]),
    )
    made = Provenance(model="m", weights_sha256="", config_sha256="", software="s")
    prediction = Prediction(instances=one, label_map=label_map, provenance=made)
    assessed = assess(
        prediction, scene.image, None, thresholds=Thresholds(0.1), unlike=("unlike the training images",)
    )
    assert WRITERS["viewer"].write(tmp_path, assessed, scene.image) == ["viewer.html"]
    page = (tmp_path / "viewer.html").read_text()
    (row,) = json.loads(re.search(r'id="page">(.*?)</script>', page)[1])["rows"]
    assert row["cells"] == ["1", "predicted", "liver", "0.40", "yes"]
    assert ["refer because", "score near the threshold: 0.40, under 0.60"] in row["facts"]
    assert "unlike the training images" in page


def test_frames_of_a_clip_are_slices(tmp_path):
    plane = Grid.from_spacing((24, 32))
    frames = {
        k: Image(
            pixels=np.full((3, 24, 32), k, np.uint8),
            grid=plane,
            source=Source(case="case-clip", kind="video", frame=k),
        )
        for k in range(200)
    }
    square = np.zeros((24, 32), bool)
    square[4:9, 20:26] = True
    label_map = LabelMap((LabelClass(id=1, name="grasper"),))
    made = Provenance(model="m", weights_sha256="", config_sha256="", software="s")
    first = Prediction(
        instances=InstanceSet.from_dense(plane, [square]), label_map=label_map, provenance=made
    )
    view = clip_view(frames.__getitem__, range(200), {0: first, 1: first}, label_map)
    assert view.image.grid.shape == (60, 24, 32) and view.image.pixels[0, -1, 0, 0] == 199
    (row,) = view.rows  # of frame 0; frame 1 is not among the 60
    assert row.cells["frame"] == "0" and view.predicted.masks[0].box == ((0, 4, 20), (1, 9, 26))
    assert "60 of 200 frames" in view.notes[0]
    drawn = json.loads(re.search(r'id="page">(.*?)</script>', viewer_page(view))[1])
    assert drawn["sliceName"] == "frame" and drawn["rows"][0]["at"][2] == 0


def test_a_picture_in_colour_stands_upright(tmp_path):
    pixels = np.zeros((3, 40, 60), np.uint8)
    pixels[0, :10, :10] = 255  # red: above, at the left
    pixels[2, -10:, -10:] = 255  # blue: below, at the right
    grid = Grid.from_spacing((40, 60))
    view = CaseView(title="case-1", image=Image(pixels=pixels, grid=grid), predicted=InstanceSet.empty(grid))
    path = tmp_path / "picture.html"
    path.write_text(viewer_page(view))
    assert gzip.decompress(image_file(Canvas(grid=grid), view.image, (0, 255)))[352:355] == b"\xff\0\0"
    with browsing() as watched:
        drawn = watched.open(path.as_uri()).ready().drawn().astype(int)
        red = np.argwhere((drawn[..., 0] > 200) & (drawn[..., 1] < 50)).mean(axis=0)
        blue = np.argwhere((drawn[..., 2] > 200) & (drawn[..., 1] < 50)).mean(axis=0)
        assert (red < blue).all()
        assert not watched.complaints and not watched.requests
