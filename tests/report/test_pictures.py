"""Pictures: where colour falls can be read off by eye."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clearmargin.core import (
    Code,
    Grid,
    Image,
    InstanceSet,
    LabelClass,
    LabelMap,
    Landmarks,
    Mask,
    PointType,
    Source,
)
from clearmargin.core.colours import class_colour, instance_colours
from clearmargin.report.annotated import (
    Key,
    annotated_overlay,
    class_keys,
    drawing_keys,
    side_marks,
    with_legend,
    with_marks,
)
from clearmargin.report.contact import contact_sheet
from clearmargin.report.figures import precision_recall, reliability, training_curves
from clearmargin.report.lettering import write_labels, write_text
from clearmargin.report.overlay import heat_overlay, overlay
from clearmargin.report.picture import display, enlarge, enlargement

CODE = Code(value="1", scheme="SCT", meaning="x")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=CODE, category=CODE),))
GREY = 100


def colour(number: int) -> tuple[int, ...]:
    """The colour of an instance of class 1 by its rank."""
    return tuple(int(v) for v in instance_colours(np.ones(number + 1, np.int64))[number])


def _image(shape: tuple[int, ...] = (600, 700)) -> Image:
    return Image(pixels=np.full((1, *shape), GREY, np.uint8), grid=Grid.from_spacing(shape))


def _square(grid: Grid, *boxes: tuple[slice, ...]) -> InstanceSet:
    masks = []
    for box in boxes:
        dense = np.zeros(grid.shape, bool)
        dense[box] = True
        masks.append(dense)
    return InstanceSet.from_dense(grid, masks)


def test_the_window_is_black_below_and_white_above() -> None:
    pixels = np.array([[[-1000, -160, 40, 240, 3000]]], np.int16)
    image = Image(pixels=pixels, grid=Grid.from_spacing((1, 5), (1, 1)), source=Source(modality="CT"))
    assert display(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert display(image, window=(-1000, 3000))[0, :, 2].tolist() == [0, 54, 66, 79, 255]
    with pytest.raises(ValueError, match="black up to white"):
        display(image, window=(5, 5))


def test_rgb_stays_as_it_is_and_a_constant_float_is_grey() -> None:
    rgb = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    shown = display(Image(pixels=rgb, grid=Grid.from_spacing((4, 5))))
    assert np.array_equal(shown, np.moveaxis(rgb, 0, -1))
    flat = Image(pixels=np.full((1, 4, 5), 7.0, np.float32), grid=Grid.from_spacing((4, 5)))
    assert (display(flat) == 128).all()
    nan = Image(pixels=np.full((1, 4, 5), np.nan, np.float32), grid=Grid.from_spacing((4, 5)))
    assert (display(nan) == 0).all()


def test_a_slice_outside_the_volume_is_named() -> None:
    with pytest.raises(ValueError, match="slice 4 of a volume of 4"):
        display(_image((4, 5, 6)), 4)


def test_the_outline_is_the_instances_colour_and_the_inside_translucent() -> None:
    image = _image()
    drawn = overlay(image, _square(image.grid, (slice(100, 200), slice(300, 400))))
    assert drawn.shape == (600, 700, 3) and drawn.dtype == np.uint8
    assert tuple(drawn[100, 350]) == tuple(drawn[199, 350]) == tuple(drawn[150, 399]) == colour(0)
    inside = drawn[150, 350].astype(int)
    assert (np.sign(inside - GREY) == np.sign(np.array(colour(0)) - GREY)).all()
    assert np.abs(inside - GREY).max() < 60
    assert (drawn[99, 350] == GREY).all() and (drawn[150, 400] == GREY).all(), "outside nothing changes"


def test_overlapping_instances_both_show_and_the_small_one_is_on_top() -> None:
    image = _image()
    large, small = (slice(50, 550), slice(50, 650)), (slice(200, 260), slice(200, 260))
    for boxes in ((large, small), (small, large)):
        drawn = overlay(image, _square(image.grid, *boxes))
        assert tuple(drawn[200, 230]) == colour(boxes.index(small))
        assert tuple(drawn[50, 300]) == colour(boxes.index(large))


def test_the_reference_is_dashed_white() -> None:
    image = _image()
    truth = _square(image.grid, (slice(100, 200), slice(300, 400)))
    edge = overlay(image, InstanceSet.empty(image.grid), reference=truth)[100, 300:400]
    white = (edge == 255).all(axis=1)
    assert 0.35 < white.mean() < 0.65 and (edge[~white] == GREY).all()


def test_a_volume_shows_the_slice_in_which_instances_fill_most() -> None:
    image = _image((5, 600, 600))
    instances = _square(image.grid, (slice(2, 4), slice(10, 20), slice(10, 20)))
    drawn = overlay(image, instances)
    assert tuple(drawn[10, 15]) == colour(0)
    assert (overlay(image, instances, 0) == GREY).all()
    truth_alone = overlay(image, InstanceSet.empty(image.grid), reference=instances)
    assert (truth_alone[10, 10:20] == 255).any()
    assert (overlay(image, InstanceSet.empty(image.grid)) == GREY).all()


def test_an_instance_keeps_its_colour_from_slice_to_slice() -> None:
    image = _image((2, 600, 600))
    instances = _square(
        image.grid,
        (slice(0, 1), slice(10, 20), slice(10, 20)),
        (slice(0, 2), slice(100, 120), slice(100, 120)),
    )
    assert tuple(overlay(image, instances, 1)[100, 110]) == colour(1)


def test_small_pictures_are_enlarged_by_repeating_pixels() -> None:
    image = _image((100, 120))
    drawn = overlay(image, _square(image.grid, (slice(10, 20), slice(30, 40))))
    factor, same = enlargement((100, 120))
    assert factor == same
    assert drawn.shape == (100 * factor, 120 * factor, 3) and min(drawn.shape[:2]) >= 512
    assert tuple(drawn[10 * factor, 35 * factor]) == colour(0)
    assert (drawn[10 * factor - 1, 35 * factor] == GREY).all()
    assert enlarge(np.array([[1, 2]]), (2, 2)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_names_are_written_beside_and_not_over_the_instance() -> None:
    image = _image()
    instances = _square(image.grid, (slice(100, 200), slice(300, 400)))
    bare, named = overlay(image, instances), overlay(image, instances, label_map=LABELS)
    changed = (bare != named).any(axis=2)
    assert changed.any() and not changed[100:200, 300:400].any()
    rows = np.flatnonzero(changed.any(axis=1))
    assert rows.min() > 70 and rows.max() < 230


def test_a_score_of_one_is_written_unless_all_are_one_as_a_references_are() -> None:
    image = _image()
    reference = _square(image.grid, (slice(100, 200), slice(300, 400)), (slice(400, 500), slice(300, 400)))
    predicted = replace(reference, scores=np.array([1, 0.5], np.float32))
    bare = overlay(image, reference)
    first = [
        np.count_nonzero((overlay(image, one, label_map=LABELS) != bare).any(axis=2)[:300].any(axis=0))
        for one in (reference, predicted)
    ]
    assert first[1] > first[0] + 10  # columns that the first instance's label takes


def test_labels_of_neighbours_do_not_hide_each_other() -> None:
    blank = np.full((200, 300, 3), GREY, np.uint8)
    box = (80, 80, 120, 120)
    alone = (write_labels(blank, [("first", box, (255, 0, 0))]) != blank).any(axis=2)
    both = write_labels(blank, [("first", box, (255, 0, 0)), ("second", box, (0, 0, 255))])
    assert np.array_equal(both[alone], write_labels(blank, [("first", box, (255, 0, 0))])[alone])


def test_text_at_the_edge_stays_inside() -> None:
    blank = np.zeros((40, 120, 3), np.uint8)
    drawn = write_text(blank, "tumour 0.93", (35, 115), (255, 255, 255))
    assert drawn.any() and drawn.shape == blank.shape and not blank.any()


def test_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="over an image"):
        overlay(_image(), InstanceSet.empty(Grid.from_spacing((5, 5))))
    with pytest.raises(ValueError, match="over an image"):
        heat_overlay(_image(), np.zeros((5, 5), np.float32))


def test_heat_leaves_zero_as_it_is_and_is_brightest_at_the_limit() -> None:
    image = _image()
    entropy = np.zeros((600, 700), np.float32)
    entropy[300, 300:310] = 0.3
    entropy[300, 310:320] = 0.6
    entropy[300, 320] = np.nan
    drawn = heat_overlay(image, entropy, limit=0.6)
    assert drawn.shape[0] == 600 and drawn.shape[1] > 700, "a bar beside it"
    assert (drawn[0, :700] == GREY).all() and (drawn[300, 320] == GREY).all()
    low, high = drawn[300, 305].astype(int), drawn[300, 315].astype(int)
    assert high.sum() > low.sum() and high[0] > 220
    assert (heat_overlay(image, np.zeros((600, 700), np.float32))[:, :700] == GREY).all()


def test_heat_of_a_volume_shows_its_hottest_slice() -> None:
    image = _image((3, 600, 600))
    entropy = np.zeros((3, 600, 600), np.float32)
    entropy[2, 5, 5] = 1
    assert (heat_overlay(image, entropy)[5, 5] != GREY).any()
    assert (heat_overlay(image, entropy, 0)[:, :600] == GREY).all()


def test_a_contact_sheet_holds_every_picture_whole() -> None:
    reds = np.zeros((40, 80, 3), np.uint8)
    reds[..., 0] = 255
    greens = np.zeros((80, 40, 3), np.uint8)
    greens[..., 1] = 255
    sheet = contact_sheet(
        [(reds, "wide"), (greens, "tall, with a caption that is far too long for it")] * 2, tile=100
    )
    assert (sheet == (255, 0, 0)).all(axis=2).sum() == 2 * 50 * 100
    assert (sheet == (0, 255, 0)).all(axis=2).sum() == 2 * 50 * 100
    titled = contact_sheet([(reds, "a")], title="phantoms", columns=3, tile=100)
    assert (
        titled.shape[1] > 300 and titled.shape[0] > contact_sheet([(reds, "a")], columns=3, tile=100).shape[0]
    )
    assert contact_sheet([], title="none").ndim == 3


def test_a_contact_sheet_takes_rgb_only() -> None:
    with pytest.raises(ValueError, match="'grey' is uint8"):
        contact_sheet([(np.zeros((4, 4), np.uint8), "grey")])


def test_curves_share_a_panel_by_metric() -> None:
    figure = training_curves(
        {
            "train/loss": [(1, 2.0), (2, 1.0)],
            "validation/loss": [(2, 1.5)],
            "lr": [(1, 0.1), (2, float("nan"))],
        }
    )
    assert [a.get_title() for a in figure.axes] == ["loss", "lr"]
    loss = figure.axes[0]
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert loss.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert training_curves({}).axes == []


def test_figures_can_be_saved() -> None:
    import io

    for figure in (
        precision_recall({"tumour": ([0, 0.5, 1], [1, 0.8, 0.4])}),
        precision_recall({}),
        reliability([0.2, 0.8], [float("nan"), 0.7], [0, 9]),
        training_curves({"a/b": []}),
    ):
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        assert stream.getvalue().startswith(b"\x89PNG")


def test_masks_at_the_border_are_drawn() -> None:
    image = _image()
    whole = InstanceSet.from_dense(image.grid, [np.ones((600, 700), bool)])
    drawn = overlay(image, whole)
    assert tuple(drawn[300, 300]) != (GREY,) * 3
    empty = Mask.from_dense(np.zeros((600, 700), bool))
    none = InstanceSet(grid=image.grid, masks=(empty,), labels=np.ones(1), scores=np.ones(1))
    assert (overlay(image, none, label_map=LABELS) == GREY).all()


def test_an_instance_has_a_shade_of_its_class() -> None:
    image = _image()
    boxes = [np.s_[100:150, 100 * k : 100 * k + 50] for k in range(1, 5)]
    instances = replace(_square(image.grid, *boxes), labels=np.array([1, 2, 1, 2]))
    drawn = overlay(image, instances)
    assert tuple(drawn[100, 120]) == class_colour(1) and tuple(drawn[100, 220]) == class_colour(2)
    outlines = [tuple(drawn[100, 100 * k + 20]) for k in range(1, 5)]
    assert len(set(outlines)) == 4


def test_many_instances_are_not_named_one_by_one() -> None:
    image = _image()
    boxes = [np.s_[10 + 40 * k : 30 + 40 * k, 300:330] for k in range(13)]
    some, many = _square(image.grid, *boxes[:12]), _square(image.grid, *boxes)
    assert (overlay(image, some, label_map=LABELS) != overlay(image, some)).any()
    assert (overlay(image, many, label_map=LABELS) == overlay(image, many)).all()


@pytest.mark.parametrize(
    "axes",
    [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1)],
    ids=lambda a: "".join(map(str, a)),
)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1)])
def test_sides_of_the_patient_are_those_that_another_library_names(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    from nibabel.orientations import aff2axcodes

    from clearmargin.report.orientation import upright

    affine = np.zeros((4, 4))
    for k in range(3):
        affine[axes[k], k] = signs[k] * (2.0, 1.0, 1.0)[k]
    affine[3, 3] = 1
    grid = Grid(shape=(3, 40, 50), affine=affine, unit="mm")
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    names = {"L": "L", "R": "R", "A": "A", "P": "P", "S": "H", "I": "F"}
    opposite = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
    down, right = (names[str(code)] for code in aff2axcodes(ras)[1:])
    turn = upright(grid)
    if turn.transpose:
        down, right = right, down
    down = opposite[down] if turn.reverse[0] else down
    right = opposite[right] if turn.reverse[1] else right
    assert side_marks(grid) == (opposite[right], right, opposite[down], down)


def test_an_oblique_slice_names_both_sides() -> None:
    half = np.sqrt(0.5)
    affine = np.array([[0, 0, half, 0], [0, 1, 0, 0], [1, 0, half, 0], [0, 0, 0, 1.0]])
    assert side_marks(Grid(shape=(3, 4, 5), affine=affine, unit="mm"))[1] in ("LH", "HL")


def _bar(picture: np.ndarray) -> int:
    """The length of the scale in pixels: the longest run of its ink in the last rows."""
    lit = (picture[-24:, : picture.shape[1] * 2 // 5] == 235).all(
        axis=2
    )  # the side mark stands in the middle
    return max(int(row.sum()) for row in lit)


@pytest.mark.parametrize(
    ("spacing", "length_mm"), [((2.0, 1.0, 1.0), 100), ((2.0, 0.5, 0.5), 50), ((1.0, 0.31, 0.31), 20)]
)
def test_the_scale_is_as_long_as_it_says(spacing: tuple[float, ...], length_mm: float) -> None:
    grid = Grid.from_spacing((3, 600, 600), spacing)
    blank = np.zeros((600, 600, 3), np.uint8)
    assert _bar(with_marks(blank, grid, 1)) == pytest.approx(length_mm / spacing[2], abs=1)
    assert _bar(with_marks(np.zeros((1200, 1200, 3), np.uint8), grid, 1)) == pytest.approx(
        2 * length_mm / spacing[2], abs=1
    ), "an enlarged picture"


def test_a_picture_in_pixels_has_a_scale_in_pixels_and_no_sides() -> None:
    blank = np.zeros((600, 600, 3), np.uint8)
    marked = with_marks(blank, Grid.from_spacing((600, 600)))
    assert _bar(marked) == 100 and not marked[:500].any()


@pytest.mark.parametrize("shape", [(520, 180, 3), (512, 512, 3), (300, 2000, 3), (60, 60, 3)])
def test_marks_stay_inside_narrow_and_small_pictures(shape: tuple[int, ...]) -> None:
    grid = Grid.from_spacing((40, shape[0], shape[1]), (3.0, 0.7, 0.7))
    marked = with_marks(np.zeros(shape, np.uint8), grid, 12)
    assert marked.shape == shape and marked.any()
    assert not marked[:, -1].any() and not marked[-1].any(), "nothing is cut off at the edge"


def test_the_legend_hides_nothing_and_names_every_class() -> None:
    image = _image()
    truth = _square(image.grid, np.s_[100:200, 300:400], np.s_[400:500, 300:400])
    bare = overlay(image, truth.select([0]), label_map=LABELS, reference=truth)
    whole = annotated_overlay(image, truth.select([0]), label_map=LABELS, reference=truth)
    assert whole.shape[0] > 600 and (whole[50:560, 200:] == bare[50:560, 200:]).all()
    assert [k.text for k in class_keys(LABELS, truth.select([0]), truth)] == ["tumour: 1 / 2"]
    strip = whole[600:].reshape(-1, 3)
    assert (strip == class_colour(1)).all(axis=1).any() and (strip == 255).all(axis=1).any()
    assert class_keys(LABELS, InstanceSet.empty(image.grid)) == []
    assert [k.text for k in class_keys(LABELS)] == ["tumour"]


def test_a_long_legend_takes_rows_and_never_leaves_the_paper() -> None:
    blank = np.zeros((200, 300, 3), np.uint8)
    keys = [Key(f"a class with quite a long name {k}", class_colour(k)) for k in range(1, 90)]
    drawn = with_legend(blank, keys)
    assert drawn.shape[1] == 300 and (drawn[:200] == 0).all()
    assert not (drawn[200:, -1] != (24, 26, 30)).any()
    assert with_legend(blank, []).shape == blank.shape


def test_the_colour_bar_is_named_with_unit_and_range() -> None:
    image = _image()
    entropy = np.zeros((600, 700), np.float32)
    plain, named = (
        heat_overlay(image, entropy, limit=1.0, **k) for k in ({}, {"name": "entropy", "unit": "bit"})
    )
    assert named.shape[1] > plain.shape[1] and (named[:, plain.shape[1] :] > 200).any()


def test_a_picture_has_true_proportions():
    """Pixels of 2.0 x 1.3 mm: a square of 52 mm is as high as it is wide, to 3 %, and the bar is right both ways."""
    grid = Grid.from_spacing((1, 130, 200), (5.0, 2.0, 1.3))
    pixels = np.zeros((1, 1, 130, 200), np.int16)
    pixels[0, 0, 20:46, 40:80] = 1000  # 52 mm x 52 mm
    image = Image(pixels=pixels, grid=grid)
    drawn = overlay(image, InstanceSet.empty(grid), z=0, window=(0, 1000))
    rows, columns = (np.flatnonzero((drawn[..., 0] > 128).any(axis=a)) for a in (1, 0))
    assert (np.ptp(rows) + 1) / (np.ptp(columns) + 1) == pytest.approx(1, abs=0.03)
    square = overlay(
        replace(image, grid=Grid.from_spacing((1, 130, 200), (5.0, 1.3, 1.3))), InstanceSet.empty(grid), z=0
    )
    assert square.shape[0] / square.shape[1] == pytest.approx(130 / 200)


def test_the_legend_counts_landmarks() -> None:
    types = (PointType(name="tip"),)
    labels, image = LabelMap(classes=LABELS.classes, points=types), _image()
    bare, masks = InstanceSet.empty(image.grid), _square(image.grid, np.s_[100:200, 300:400])
    two, one = (Landmarks.of(types, [[(50.0, 60.0 + 9 * i)] for i in range(n)], [[2]] * n) for n in (2, 1))
    found, truth = replace(bare, landmarks=two), replace(bare, landmarks=one)
    assert [k.text for k in class_keys(labels, found, truth)] == ["tip: 2 / 1"]
    assert [k.text for k in drawing_keys(found, truth)] == [
        "prediction: 2 landmarks",
        "ground truth (white): 1 landmark",
    ]
    keys = drawing_keys(found, replace(masks, landmarks=one))
    assert [k.text for k in keys] == ["prediction: 0, 2 landmarks", "ground truth (white): 1, 1 landmark"]
