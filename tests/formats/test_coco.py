"""COCO files: run lengths, polygons and crowds; pycocotools is the oracle where it is installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hotcoco import mask as hotcoco_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from clearmargin.core import Crowd, Grid, InstanceSet, LabelMap, Mask
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats.coco import (
    _from_polygons,
    _from_run_lengths,
    _outlines,
    _uncompressed,
    read_coco,
    read_coco_images,
    write_coco,
)

GRID = Grid.from_spacing((12, 17))


def _set(*masks: np.ndarray, labels=None, ignore=None) -> InstanceSet:
    found = InstanceSet.from_dense(GRID, masks, labels=labels, scores=np.linspace(0.1, 0.9, len(masks)))
    if ignore is None:
        return found
    return InstanceSet(
        grid=GRID, masks=found.masks, labels=found.labels, scores=found.scores, ignore=Mask.from_dense(ignore)
    )


@settings(deadline=None)  # the first call loads machine code
@given(hnp.arrays(bool, (12, 17)))
def test_any_mask_survives_run_lengths(dense):
    mask = Mask.from_dense(dense)
    assert_array_equal(_from_run_lengths(mask.run_lengths(), (12, 17)).dense(), dense)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("text", [False, True], ids=["counts", "text"])
def test_run_lengths_are_unpacked_as_cocos_own_decoder_does(share, text, tmp_path):
    rng = np.random.default_rng(3)
    dense = rng.random((40, 61, 83)) < share
    packed = [hotcoco_mask.encode(np.asfortranarray(array, np.uint8)) for array in dense]
    counts = [
        p["counts"].decode() if text else Mask.from_dense(d).run_lengths()
        for p, d in zip(packed, dense, strict=True)
    ]
    content = {
        "images": [{"id": 1, "file_name": "x.png", "height": 61, "width": 83}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {
                "id": k,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"size": [61, 83], "counts": c},
            }
            for k, c in enumerate(counts, start=1)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (image,) = read_coco_images(tmp_path / "a.json")
    for mask, theirs in zip(image.instances.masks, packed, strict=True):
        assert_array_equal(mask.dense(), hotcoco_mask.decode(theirs).astype(bool))
        assert mask.crop.shape == Mask.from_dense(mask.dense()).crop.shape  # tight


def test_many_small_objects_of_a_large_picture_cost_what_they_cover(monkeypatch, tmp_path):
    """Dense, 200 masks of 20,000 x 10,000 pixels would be 40 GB."""
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.001")
    square = np.array([0, 0, 4, 0, 4, 4, 0, 4])
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "segmentation": [(square + 40 * k).tolist()]}
        for k in range(1, 201)
    ]
    image = {"id": 1, "file_name": "x.png", "height": 20000, "width": 10000}
    content = {"images": [image], "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (image,) = read_coco_images(tmp_path / "a.json")
    assert [m.area for m in image.instances.masks] == [16] * 200
    assert image.instances.masks[-1].origin == (8000, 8000)


@pytest.mark.parametrize("polygons", [False, True])
def test_round_trip(polygons, label_map, tmp_path):
    rng = np.random.default_rng(0)
    masks = [
        ndimage.binary_fill_holes(ndimage.gaussian_filter(rng.random((12, 17)), 1) > 0.5) for _ in range(5)
    ]
    masks.append(np.zeros((12, 17), bool))
    masks[-1][3, 4] = True  # one pixel
    ours = _set(*masks, labels=[1, 2, 1, 2, 1, 2])
    write_coco(
        tmp_path / "a.json",
        [("x.png", ours), ("y.png", InstanceSet.empty(GRID))],
        label_map,
        polygons=polygons,
    )
    theirs = read_coco(tmp_path / "a.json", image="x.png", grid=GRID, label_map=label_map)
    for a, b in zip(ours.masks, theirs.masks, strict=True):
        assert_array_equal(a.dense(), b.dense())
    assert_array_equal(ours.labels, theirs.labels)
    assert_allclose(ours.scores, theirs.scores, atol=1e-6)
    images = read_coco_images(tmp_path / "a.json")
    assert [(i.file_name, len(i.instances)) for i in images] == [("x.png", 6), ("y.png", 0)]


def test_scores_are_told_apart_as_the_file_does(label_map, tmp_path):
    first, second = np.zeros((2, *GRID.shape), bool)
    first[:3], second[9:] = True, True
    scores = np.array([1 - 2e-9, 1 - 1e-9])
    ours = InstanceSet.from_dense(GRID, [first, second], [1, 1], scores)
    write_coco(tmp_path / "a.json", [("x.png", ours)], label_map)
    theirs = read_coco(tmp_path / "a.json", image="x.png", grid=GRID, label_map=label_map)
    assert theirs.scores.tolist() == scores.tolist()


def test_crowds_stay_apart_and_keep_their_class(label_map, tmp_path):
    first, second = np.zeros((2, 12, 17), bool)
    first[:3], second[9:] = True, True
    ours = replace(
        _set(~(first | second)),
        crowds=(Crowd(mask=Mask.from_dense(first), label=2), Crowd(mask=Mask.from_dense(second), label=1)),
    )
    write_coco(tmp_path / "a.json", [("x.png", ours)], label_map)
    theirs = read_coco(tmp_path / "a.json", image="x.png", grid=GRID, label_map=label_map)
    assert len(theirs) == 1
    assert theirs.ignore is None
    assert [crowd.label for crowd in theirs.crowds] == [2, 1]
    assert_array_equal(theirs.crowds[0].mask.dense(), first)
    assert_array_equal(theirs.unmeasured(1).dense(), second)
    assert_array_equal(theirs.unmeasured().dense(), first | second)


def test_an_ignored_region_is_written_as_a_crowd_of_every_class(label_map, tmp_path):
    region = np.zeros((12, 17), bool)
    region[:3] = True
    write_coco(tmp_path / "a.json", [("x.png", _set(~region, ignore=region))], label_map)
    theirs = read_coco(tmp_path / "a.json", image="x.png", grid=GRID, label_map=label_map)
    for class_id in (c.id for c in label_map.classes):
        assert_array_equal(theirs.unmeasured(class_id).dense(), region)


@given(hnp.arrays(bool, (9, 11)))
def test_outlines_give_back_every_mask_without_holes(dense):
    dense = ~_enclosed(~dense)
    outlines = _outlines(Mask.from_dense(dense))
    assert_array_equal(_from_polygons(outlines, (9, 11)).dense(), dense)


def _enclosed(background):
    """The background that is reached from the edge, corners included."""
    parts, _ = ndimage.label(np.pad(background, 1, constant_values=True), np.ones((3, 3)))
    return (parts == parts[0, 0])[1:-1, 1:-1]


def test_polygons_are_rasterised_as_pycocotools_does():
    golden = json.loads((Path(__file__).parents[1] / "golden" / "coco_ap.json").read_text())["polygons"]
    for flat, counts in zip(golden["polygons"], golden["counts"], strict=True):
        theirs = _from_run_lengths(_uncompressed(counts), tuple(golden["size"]))
        assert_array_equal(_from_polygons([flat], tuple(golden["size"])).dense(), theirs.dense())


def test_a_list_of_results_is_read_beside_the_file_that_it_refers_to(tmp_path):
    truth = _file(tmp_path, [[2, 3, 6, 3, 6, 8, 2, 8]])
    results = tmp_path / "results.json"

    def write(*entries):
        results.write_text(json.dumps([{"image_id": 7, "category_id": 3, "score": 0.5} | e for e in entries]))

    write({"segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]}, {"bbox": [1, 1, 4, 2], "category_id": 90})
    (image,) = read_coco_images(results, images=truth)
    assert [m.area for m in image.instances.masks] == [20, 8]
    assert image.instances.labels.tolist() == [1, 2]
    assert (image.scored, image.boxes_only, image.file_name) == (True, True, "sub/x.png")
    results.write_text("[]")
    assert len(read_coco_images(results, images=truth)[0].instances) == 0
    with pytest.raises(InputError, match="list of COCO results, which lists no images"):
        read_coco_images(results)
    write({"bbox": [1, 1, 4, 2], "image_id": 8})
    with pytest.raises(InputError, match=r"result 1 of 'results\.json' has an image_id"):
        read_coco_images(results, images=truth)
    write({"bbox": [1, 1, 4, 2], "score": 3.2})
    with pytest.raises(InputError, match=r"has the score 3.2; .* sigmoid"):
        read_coco_images(results, images=truth)


def _file(tmp_path, segmentation, **changes):
    content = {
        "images": [{"id": 7, "file_name": "sub/x.png", "height": 12, "width": 17}],
        "categories": [{"id": 90, "name": "liver"}, {"id": 3, "name": "tumour"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 90, "segmentation": segmentation}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content | changes))
    return tmp_path / "a.json"


def test_polygons_by_hand(label_map, tmp_path):
    square = [[2, 3, 6, 3, 6, 8, 2, 8], [10.4, 1.4, 11.6, 1.4, 11.6, 2.6, 10.4, 2.6]]
    found = read_coco(_file(tmp_path, square), image="x.png", grid=GRID, label_map=label_map)
    expected = np.zeros((12, 17), bool)
    expected[3:8, 2:6] = True
    expected[1:3, 10:12] = True
    assert_array_equal(found.masks[0].dense(), expected)
    assert_array_equal(found.labels, [2])  # by name, whatever the ids are


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_compressed_run_lengths(counts):
    """Encode as pycocotools documents it, and decode with ours."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            digit = value & 0x1F
            value >>= 5
            more = value != -1 if digit & 0x10 else value != 0
            text += chr((digit | 0x20 if more else digit) + 48)
    assert _uncompressed(text).tolist() == counts


def test_refusals(label_map, tmp_path):
    good = {"size": [12, 17], "counts": [0, 12 * 17]}

    def read(path, image="x.png", grid=GRID):
        return read_coco(path, image=image, grid=grid, label_map=label_map)

    assert read(_file(tmp_path, good)).masks[0].area == 12 * 17
    with pytest.raises(InputError, match="lists 0 images of that name"):
        read(_file(tmp_path, good), image="z.png")
    with pytest.raises(GeometryError, match="12 x 17"):
        read(_file(tmp_path, good), grid=Grid.from_spacing((17, 12)))
    for bad in (
        {"size": [12, 17], "counts": [3]},
        {"size": [1, 1], "counts": [1]},
        [[1, 2]],
        None,
        {"size": [12, 17]},
    ):
        with pytest.raises(InputError, match="annotation 1 is damaged"):
            read(_file(tmp_path, bad))
    with pytest.raises(InputError, match="no class 'spleen'"):
        read(_file(tmp_path, good, categories=[{"id": 90, "name": "spleen"}]))
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="neither a COCO file"):
        read(tmp_path / "a.json")
    assert isinstance(label_map, LabelMap) and not issubclass(InputError, ConfigError)
