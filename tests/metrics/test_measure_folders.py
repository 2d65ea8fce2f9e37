"""The verb `measure` on folders as people have them: broken pairs, names, dataset.json, lattices, private tables."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from command import command

from clearmargin.core import Grid, InstanceSet
from clearmargin.core.lattice import joined, placed, placement
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.measure import measure, preview

from .shapes import block

SHAPE, SPACING = (12, 24, 24), (2.0, 0.8, 0.8)
GRID = Grid.from_spacing(SHAPE, SPACING)
LIVER = block(SHAPE, (2, 2, 2), (10, 20, 20))
TUMOUR = block(SHAPE, (4, 5, 5), (6, 9, 9))


def labels(*parts):
    out = np.zeros(SHAPE, np.uint8)
    for value, mask in parts:
        out[mask] = value
    return out


def write(path, array, grid=GRID):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, array, grid)


@pytest.fixture
def many(tmp_path):
    """Ten pairs, of which the fourth lies on another grid and the seventh is cut off."""
    for k in range(10):
        for side in ("predicted", "reference"):
            write(tmp_path / side / f"patient_{k:02}.nii.gz", labels((1, LIVER), (2, TUMOUR)))
    write(
        tmp_path / "predicted" / "patient_03.nii.gz",
        np.ones((5, 9, 9), np.uint8),
        Grid.from_spacing((5, 9, 9), (3, 1, 1)),
    )
    file = tmp_path / "predicted" / "patient_06.nii.gz"
    file.write_bytes(file.read_bytes()[:50])
    return tmp_path


def test_a_bad_pair_is_that_cases_failure(many):
    found = measure(many / "predicted", many / "reference", out=many / "tables")
    assert (found.counts["cases"], len(found.failed)) == (8, 2)
    assert all(re.fullmatch(r"case-[0-9a-f]{12}", case) for case in found.failed)
    assert "5 x 9 x 9 at 3 x 1 x 1 mm" in " ".join(found.failed.values())
    with (many / "tables" / "failures.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 2
    assert "2 failed" in (many / "tables" / "summary.md").read_text()


def test_the_command_ends_with_3_and_names_no_file(many):
    code, said = command("measure", many / "predicted", many / "reference", "--out", many / "t")
    assert code == 3
    assert "2 of 10 cases were refused; the others are done" in said
    assert "patient_0" not in said
    assert (many / "t" / "instances.csv").exists()


def test_workers_give_the_same_tables(many):
    one = measure(many / "predicted", many / "reference", out=many / "one")
    two = measure(many / "predicted", many / "reference", out=many / "two", workers=2)
    assert one.failed == two.failed
    for name in ("instances.csv", "summary.csv", "paper.csv", "failures.csv"):
        assert (many / "one" / name).read_bytes() == (many / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "option",
    [
        ("--tolerance", "-1"), ("--tolerance", "nan"), ("--band", "0.5"), ("--band", "-2"), ("--distance-cap", "0"),
        ("--distance-cap", "inf"), ("--iou-threshold", "0"), ("--iou-threshold", "1.5"), ("--workers", "0"),
        ("--metric", "dise"), ("--predicted-pattern", "{id}.nii.gz"), ("--predicted-pattern", "x.nii.gz"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_the_users_fault(tmp_path, option):
    for side in ("predicted", "reference"):
        write(tmp_path / side / "a.nii.gz", labels((1, LIVER)))
    code, said = command("measure", tmp_path / "predicted", tmp_path / "reference", *option)
    assert code == 2, said
    assert "bug" not in said


def test_names_that_differ_by_a_suffix(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "predicted" / f"{name}_seg.nii.gz", labels((1, LIVER)))
        write(tmp_path / "reference" / f"{name}.nii.gz", labels((1, LIVER)))
    folders = tmp_path / "predicted", tmp_path / "reference"
    with pytest.raises(InputError, match=re.escape("--predicted-pattern '{case}_seg'")):
        measure(*folders)
    found = measure(*folders, predicted_pattern="{case}_seg.nii.gz")
    assert [row.values["dice"] for row in found.rows] == [1, 1]
    shown = preview(*folders, predicted_pattern="{case}_seg")
    assert "2 pairs" in shown
    assert "a: a_seg.nii.gz  |  a.nii.gz" in shown
    code, said = command("measure", *folders, "--predicted-pattern", "{case}_seg", "--preview")
    assert (code, "b_seg.nii.gz" in said) == (0, True)


def test_one_folder_per_case_with_one_file_or_a_file_per_class(tmp_path):
    """BraTS and TotalSegmentator."""
    for name in ("s1", "s2"):
        write(tmp_path / "predicted" / name / f"{name}_t1.nii.gz", labels((9, LIVER)))
        write(tmp_path / "predicted" / name / f"{name}_seg.nii.gz", labels((1, LIVER), (2, TUMOUR)))
        for kind, mask in (("liver", LIVER), ("tumour", TUMOUR)):
            write(tmp_path / "reference" / name / "segmentations" / f"{kind}.nii.gz", labels((1, mask)))
            write(tmp_path / "other" / name / f"{kind}.nii.gz", labels((1, mask)))
    with pytest.raises(InputError, match=re.escape("{case}/{case}_seg.nii.gz or {case}/{case}_t1.nii.gz")):
        measure(tmp_path / "predicted", tmp_path / "reference")
    found = measure(tmp_path / "other", tmp_path / "reference", predicted_pattern="{case}/{class}.nii.gz")
    assert [(r.strata["class"], r.values["dice"]) for r in found.rows] == [("liver", 1), ("tumour", 1)] * 2
    with pytest.raises(InputError, match="its values have no names"):
        measure(tmp_path / "predicted", tmp_path / "reference", predicted_pattern="{case}/{case}_seg.nii.gz")
    (tmp_path / "dataset.json").write_text("[1]")  # not nnU-Net's, and not asked for
    assert measure(tmp_path / "reference", tmp_path / "reference").summary[0].counts["tp"] == 4
    names = tmp_path / "dataset.json"
    names.write_text(json.dumps({"labels": {"background": 0, "liver": [1, 2], "tumour": 2}}))
    found = measure(
        tmp_path / "predicted",
        tmp_path / "reference",
        predicted_pattern="{case}/{case}_seg.nii.gz",
        labels=names,
    )
    assert [(r.strata["class"], r.values["dice"]) for r in found.rows] == [("liver", 1), ("tumour", 1)] * 2


def test_one_file_per_instance(tmp_path):
    dots = [block((20, 20), (2, 2), (6, 6)), block((20, 20), (10, 10), (16, 16))]
    for side, masks in (("predicted", dots[:1]), ("reference", dots)):
        for k, mask in enumerate(masks):
            path = tmp_path / side / "image1" / "masks" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_raster(path, mask)
    pattern = "{case}/masks/{instance}.png"
    found = measure(
        tmp_path / "predicted", tmp_path / "reference", predicted_pattern=pattern, reference_pattern=pattern
    )
    assert [(row.status, row.about["reference_id"]) for row in found.rows] == [("tp", "0"), ("fn", "1")]


@pytest.mark.parametrize("version", [1, 2])
def test_names_regions_and_the_ignore_label_of_nnunet(tmp_path, version):
    """Regions overlap as in BraTS; what nobody labelled counts for nothing."""
    hidden = block(SHAPE, (0, 0, 21), (12, 24, 24))
    ours = labels((1, LIVER), (2, TUMOUR), (1, hidden))
    theirs = labels((1, LIVER), (2, TUMOUR), (3, hidden))
    if version == 1:
        ours, theirs = labels((1, LIVER), (2, TUMOUR)), labels((1, LIVER), (2, TUMOUR))
        content = {"labels": {"0": "background", "1": "liver", "2": "tumour"}}
    else:
        content = {"labels": {"background": 0, "whole": [1, 2], "tumour": 2, "ignore": 3}}
    write(tmp_path / "out" / "a.nii.gz", ours)
    write(tmp_path / "labelsTs" / "a.nii.gz", theirs)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = measure(tmp_path / "out", tmp_path / "labelsTs")
    assert [row.strata["class"] for row in found.rows] == ["liver" if version == 1 else "whole", "tumour"]
    assert [row.values["dice"] for row in found.rows] == [1, 1]
    if version == 2:
        assert found.rows[0].about["reference_volume_mm3"] == pytest.approx(LIVER.sum() * 2 * 0.64)
    assert "dataset.json" in " ".join(found.notes)
    write(tmp_path / "out" / "a.nii.gz", labels((7, LIVER)))
    with pytest.raises(InputError, match="holds the value 7"):
        measure(tmp_path / "out", tmp_path / "labelsTs")


def test_an_instance_map_is_not_silently_read_as_classes(tmp_path):
    rng = np.random.default_rng(0)
    maps = []
    for _ in range(2):
        order = rng.permutation(25) + 1
        label = np.zeros((60, 60), np.uint8)
        for k, value in enumerate(order):
            y, x = divmod(k, 5)
            label[12 * y : 12 * y + 9, 12 * x : 12 * x + 9] = value
        maps.append(label)
    for side, label in zip(("predicted", "reference"), maps, strict=True):
        (tmp_path / side).mkdir()
        write_raster(tmp_path / side / "a.png", label)
    folders = tmp_path / "predicted", tmp_path / "reference"
    with pytest.raises(ConfigError, match=r"25 values.*--objects instances"):
        measure(*folders)
    assert measure(*folders, objects="instances").summary[0].counts["tp"] == 25
    assert len(measure(*folders, objects="classes").rows) == 25  # asked for


def test_only_asked_columns_are_read_and_patients_are_keyed(tmp_path):
    for name in ("MILLER_A", "MILLER_B", "JONES"):
        for side in ("predicted", "reference"):
            write(tmp_path / side / f"{name}.nii.gz", labels((1, LIVER)))
    table = tmp_path / "cases.csv"
    table.write_text(
        "\ufeffcase;patient;birth;scanner\nMILLER_A;P-4711;1950-01-02;x\nMILLER_B;P-4711;1950-01-02;y\n"
        "JONES;P-4712;1961-03-04;y\n"
    )
    folders = tmp_path / "predicted", tmp_path / "reference"
    found = measure(*folders, cases=table, by=["scanner"], out=tmp_path / "out")
    assert found.summary[0].interval.groups == 2
    text = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    for secret in ("MILLER", "JONES", "P-47", "19"):
        assert secret not in re.sub(r"[0-9a-f]{12}|\d+\.\d+|-[0-9a-f]+", "", text), secret
    assert {row.strata["scanner"] for row in found.rows} == {"x", "y"}
    assert "birth" not in found.rows[0].strata
    with pytest.raises(ConfigError, match="no column 'birthday'"):
        measure(*folders, cases=table, by=["birthday"])
    measure(*folders, cases=table, out=tmp_path / "plain", names="plain")
    objects = (tmp_path / "plain" / "instances.csv").read_text()
    assert "P-4711,MILLER_A," in objects
    assert "1950" not in objects


def test_tables_lead_back_to_the_object(tmp_path):
    parts = block(SHAPE, (8, 18, 18), (10, 22, 22))
    write(tmp_path / "reference" / "a.nii.gz", labels((1, TUMOUR), (1, parts)))
    write(tmp_path / "predicted" / "a.nii.gz", labels((1, parts)))
    found = measure(tmp_path / "predicted", tmp_path / "reference", objects="components")
    matched, missed = found.rows
    assert (matched.about["reference_id"], missed.about["reference_id"]) == ("1.2", "1.1")
    assert missed.about["reference_volume_mm3"] == pytest.approx(TUMOUR.sum() * 2 * 0.8 * 0.8)
    assert [missed.about[f"{axis}_index"] for axis in "xyz"] == [6.5, 6.5, 4.5]
    assert [missed.about[f"{axis}_mm"] for axis in "xyz"] == pytest.approx([5.2, 5.2, 9.0])
    assert missed.about["predicted_id"] is None
    assert missed.about["surface"] == "surface"


def test_grids_that_share_their_elements_are_joined_and_nothing_is_lost(tmp_path):
    inner = GRID.affine.copy()
    inner[:3, 3] += inner[:3, :3] @ (4, 0, 0)
    cropped = Grid(shape=(4, 24, 24), affine=inner, unit="mm")
    reference = block(SHAPE, (4, 5, 5), (8, 15, 15))
    write(tmp_path / "reference" / "a.nii.gz", reference[4:8].astype(np.uint8), cropped)
    predicted = block(SHAPE, (0, 5, 5), (12, 15, 15))
    write(tmp_path / "predicted" / "a.nii.gz", predicted.astype(np.uint8))
    for resampled in (False, True):
        (row,) = measure(tmp_path / "predicted", tmp_path / "reference", resample_predictions=resampled).rows
        assert row.values["dice"] == pytest.approx(2 * 4 / (4 + 12))
        assert row.about["z_index"] == 1.5  # on the reference's own grid
    notes = measure(tmp_path / "predicted", tmp_path / "reference", resample_predictions=True).notes
    assert not any("nearest neighbour" in note for note in notes)  # elements were not moved
    flipped = GRID.affine @ np.array([[1, 0, 0, 0], [0, -1, 0, 23], [0, 0, 1, 0], [0, 0, 0, 1]])
    write(
        tmp_path / "predicted" / "a.nii.gz",
        predicted[:, ::-1].astype(np.uint8),
        Grid(shape=SHAPE, affine=flipped, unit="mm"),
    )
    (row,) = measure(tmp_path / "predicted", tmp_path / "reference").rows
    assert row.values["dice"] == pytest.approx(0.5)


def test_resampling_loses_nothing_either(tmp_path):
    coarse = Grid.from_spacing((6, 12, 12), (4.0, 1.6, 1.6))
    far = np.zeros((6, 12, 12), np.uint8)
    far[0:2, 2:6, 2:6] = 1
    far[4:6, 6:12, 6:12] = 1
    write(tmp_path / "predicted" / "a.nii.gz", far, coarse)
    near = block((4, 12, 12), (0, 4, 4), (4, 12, 12))
    write(tmp_path / "reference" / "a.nii.gz", near.astype(np.uint8), Grid.from_spacing((4, 12, 12), SPACING))
    with pytest.raises(GeometryError, match="--resample"):
        measure(tmp_path / "predicted", tmp_path / "reference")
    (row,) = measure(tmp_path / "predicted", tmp_path / "reference", resample_predictions=True).rows
    assert row.about["predicted_volume_mm3"] == pytest.approx(far.sum() * 4 * 1.6 * 1.6, rel=0.2)


def test_placement_of_turned_and_shifted_grids():
    rng = np.random.default_rng(1)
    dense = rng.random(SHAPE) < 0.1
    world = GRID.to_world(np.argwhere(dense))
    turned = GRID.affine @ np.array([[0, 0, -1, 11], [0, 1, 0, -3], [1, 0, 0, 2], [0, 0, 0, 1]])
    other = Grid(shape=(24, 24, 12), affine=turned, unit="mm")
    where = placement(GRID, other)
    whole = joined(other, where, SHAPE)
    mask = placed(InstanceSet.from_dense(GRID, [dense]), whole).masks[0]
    moved = whole.to_world(np.argwhere(mask.dense()))
    assert mask.area == dense.sum()
    np.testing.assert_allclose(np.sort(moved, axis=0), np.sort(world, axis=0), atol=1e-9)
    assert placement(Grid.from_spacing(SHAPE, (2.0, 0.8, 0.81)), GRID) is None


def test_segs_of_one_series_are_compared_on_their_union(tmp_path, data_root):
    """The middle slice of three against all three: two thirds of the prediction are false."""
    source = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    pydicom = pytest.importorskip("pydicom")
    whole = measure(source / "seg_liver.dcm", source / "seg_liver.dcm").rows[0]
    dataset = pydicom.dcmread(source / "seg_liver.dcm")
    assert whole.values["dice"] == 1
    frames = int(dataset.NumberOfFrames)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    pixels = bits[: frames * dataset.Rows * dataset.Columns].reshape(frames, -1)
    kept = pixels[:1]
    dataset.PixelData = np.packbits(kept.ravel(), bitorder="little").tobytes() + b"\0" * (
        len(kept.ravel()) // 8 % 2
    )
    dataset.NumberOfFrames = 1
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:1]
    (tmp_path / "one.dcm").parent.mkdir(exist_ok=True)
    dataset.save_as(tmp_path / "one.dcm")
    shutil.copy(source / "seg_liver.dcm", tmp_path / "all.dcm")
    row = measure(tmp_path / "all.dcm", tmp_path / "one.dcm").rows[0]
    assert row.values["dice"] == pytest.approx(2 * kept.sum() / (kept.sum() + pixels.sum()))


def test_average_precision_where_no_image_holds_two_scores(tmp_path):
    square = {"segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]], "category_id": 1}
    other = {"segmentation": [[30, 30, 40, 30, 40, 40, 30, 40]], "category_id": 1}
    truth = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 50, "width": 50} for k in range(6)],
        "categories": [{"id": 1, "name": "polyp"}],
        "annotations": [square | {"id": k + 1, "image_id": k} for k in range(6)],
    }
    results = [(square if k else other) | {"image_id": k, "score": 0.9 - 0.1 * k} for k in range(6)]
    for name, content in (("truth", truth), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = measure(tmp_path / "results.json", tmp_path / "truth.json")
    assert found.precision.ap == pytest.approx(0.6931, abs=1e-4)  # pycocotools
    assert found.box_precision.ap == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize(("spacing", "steps"), [(0.8, 1), (0.1, 10), (0.3, 10), (1.2, 5)])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_nsd_at_whole_voxels_is_that_of_exact_arithmetic_in_every_format(tmp_path, spacing, steps, suffix):
    n = 4 * steps + 12
    reference = block((n,) * 3, (steps + 2,) * 3, (3 * steps + 6, 3 * steps + 6, 2 * steps + 6))
    grid = Grid.from_spacing((n,) * 3, (spacing,) * 3)
    write(tmp_path / "r" / f"a{suffix}", reference.astype(np.uint8), grid)
    write(tmp_path / "p" / f"a{suffix}", np.roll(reference, steps, 2).astype(np.uint8), grid)
    tolerance = round(spacing * steps, 6)
    (row,) = measure(tmp_path / "p", tmp_path / "r", tolerances=[tolerance]).rows
    assert row.values[f"nsd_{tolerance:g}mm"] == 1


def test_what_is_tracked_has_keyed_ids_and_asked_columns_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for side in ("predicted", "reference"):
        for name in ("MILLER_1", "MILLER_2"):
            write(tmp_path / side / f"{name}.nii.gz", labels((1, LIVER)))
    (tmp_path / "cases.csv").write_text(
        "case;patient;birth\nMILLER_1;P-4711;1950-01-02\nMILLER_2;P-4711;1950-01-02\n"
    )
    measure(
        tmp_path / "predicted",
        tmp_path / "reference",
        cases=tmp_path / "cases.csv",
        names="plain",
        track=True,
    )
    held = [path for path in (tmp_path / "mlflow").rglob("*") if path.is_file()]
    assert any(path.name == "instances.csv" for path in held)
    for path in held:
        content = path.read_bytes()
        assert not any(secret in content for secret in (b"MILLER", b"P-4711", b"1950-01-02")), path.name


def test_what_is_ignored_counts_for_nothing_in_sizes_too(tmp_path):
    """Perfect outside the ignored region, which the prediction fills: 4 pixels of 2 x 2, and no more."""
    truth, predicted = np.zeros((12, 12), np.uint8), np.zeros((12, 12), np.uint8)
    truth[2:4, 2:4] = predicted[2:4, 2:4] = 1
    truth[2:4, 4:9], predicted[2:4, 4:9] = 2, 1
    for name, labels in (("predicted", predicted), ("reference", truth)):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "a.png", labels)
    names = {"labels": {"background": 0, "lesion": 1, "ignore": 2}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(names))
    found = measure(tmp_path / "predicted", tmp_path / "reference", labels=tmp_path / "dataset.json")
    (row,) = found.rows
    assert row.values["dice"] == 1 and row.about["matched_iou"] == 1
    assert row.about["reference_area_px"] == row.about["predicted_area_px"] == 4


def test_two_files_of_names_that_disagree_are_refused(tmp_path):
    for side, values in (("predicted", {"liver": 2, "tumour": 1}), ("reference", {"liver": 1, "tumour": 2})):
        write(tmp_path / side / "a.nii.gz", labels((values["liver"], LIVER)))
        content = {"labels": {"background": 0} | values}
        (tmp_path / side / "dataset.json").write_text(json.dumps(content))
    folders = tmp_path / "predicted", tmp_path / "reference"
    with pytest.raises(
        ConfigError, match=r"beside the references says liver 1, tumour 2, and .* liver 2, tumour 1"
    ):
        measure(*folders)
    found = measure(*folders, labels=folders[1] / "dataset.json")
    assert sorted(row.status for row in found.rows) == ["fn", "fp"]


def test_a_place_for_tables_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    write(tmp_path / "predicted" / "a.nii.gz", labels((1, LIVER)))
    write(tmp_path / "reference" / "a.nii.gz", labels((1, LIVER)))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be made for the results"):
        measure(tmp_path / "predicted", tmp_path / "reference", out=tmp_path / "out")


def test_tables_against_a_copy_of_the_references_say_what_differs_and_the_ways_out(many):
    shutil.copytree(many / "reference", many / "copy")
    for name, reference, names in (
        ("a", "reference", "keyed"),
        ("b", "copy", "keyed"),
        ("c", "reference", "plain"),
        ("d", "copy", "plain"),
    ):
        measure(many / "predicted", many / reference, out=many / name, names=names)
    code, said = command("compare", many / "a", many / "b")
    assert code == 4 and "'a' has 8 cases and 'b' 8, and none is in both" in said
    assert "not against a copy of it" in said and "--names plain" in said and "cases --moved" in said
    code, said = command("compare", many / "c", many / "d")
    assert code == 0, said
