"""Cards, splits by group, and the encodings of references."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from clearmargin.config import dump_yaml, load_settings
from clearmargin.core import Grid
from clearmargin.datasets.card import Card, public, read_card
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.privacy import recorded_cases

TUMOUR = {"value": "108369006", "meaning": "Tumor"}
CATEGORY = {"value": "49755003", "meaning": "Morphologically Altered Structure"}


def card_dict(**changes):
    card = {
        "schema": 1,
        "name": "toy",
        "version": "1",
        "title": "Toy",
        "origin": "made here",
        "licence": "CC0-1.0",
        "citation": "none",
        "modality": "OT",
        "classes": [{"id": 1, "name": "blob", "type": TUMOUR, "category": CATEGORY}],
        "root": ".",
        "cases": {
            "index": "index.csv",
            "id": "{id}",
            "image": "{id}.png",
            "reference": "{id}_labels.png",
            "group": "{patient}",
        },
        "encoding": {"kind": "label_image", "label": "blob"},
        "spacing": {"source": "unknown"},
        "group": "patient",
        "splits": {"carve": {"validation": 0.2, "calibration": 0.2, "test": 0.2}},
        "show_in_tracking": True,
    }
    return card | changes


def write_set(folder, rows, card, labels=None):
    folder.mkdir(exist_ok=True)
    labels = np.zeros((32, 48), np.uint16) if labels is None else labels
    with (folder / "index.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        write_raster(folder / f"{row['id']}.png", np.zeros((32, 48), np.uint8))
        write_raster(folder / f"{row['id']}_labels.png", labels)
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def rows(patients=10, each=2, **more):
    return [{"id": f"p{p}_{k}", "patient": f"p{p}", **more} for p in range(patients) for k in range(each)]


def test_splits_are_disjoint_by_unit_and_of_the_asked_size(tmp_path):
    dataset = open_dataset(write_set(tmp_path, rows(), card_dict()))
    groups = {
        split: {c.group for c in dataset.split(split)}
        for split in ("train", "validation", "calibration", "test")
    }
    assert {split: len(u) for split, u in groups.items()} == {
        "train": 4,
        "validation": 2,
        "calibration": 2,
        "test": 2,
    }
    assert len(set.union(*groups.values())) == 10
    assert all(len(dataset.split(s)) == 2 * len(u) for s, u in groups.items())


def test_a_unit_keeps_its_place_when_others_are_added(tmp_path):
    few = open_dataset(write_set(tmp_path / "a", rows(10), card_dict()))
    many = open_dataset(write_set(tmp_path / "b", rows(11), card_dict()))
    moved = [c.case for c, d in zip(few.cases, many.cases, strict=False) if c.split != d.split]
    assert len(moved) <= 6  # a border group or two, not a new shuffle


def test_the_shipped_split_is_kept_and_its_leak_refused(tmp_path):
    splits = {"column": "set", "values": {"a": "train", "b": "test"}, "carve": {"validation": 0.2}}
    shipped = [*rows(5, 1, set="a"), {"id": "q", "patient": "q", "set": "b"}]
    dataset = open_dataset(write_set(tmp_path, shipped, card_dict(splits=splits)))
    assert [c.split for c in dataset.cases].count("test") == 1 and dataset.cases[-1].split == "test"
    leak = [*shipped, {"id": "again", "patient": "q", "set": "a"}]
    with pytest.raises(ConfigError, match="one patient lies in two splits"):
        open_dataset(write_set(tmp_path, leak, card_dict(splits=splits)))


def test_an_empty_split_says_what_there_is(tmp_path):
    dataset = open_dataset(write_set(tmp_path, rows(), card_dict(splits={"carve": {"validation": 0.2}})))
    with pytest.raises(ConfigError, match="no case in split 'test'"):
        dataset.split("test")


def test_ids_and_paths_are_not_shown(tmp_path):
    dataset = open_dataset(write_set(tmp_path, rows(), card_dict()))
    assert "p0_0" not in repr(dataset.cases[0]) and str(tmp_path) not in repr(dataset.cases[0])
    assert dataset.cases[0].case.startswith("case-")


def test_label_values_are_instances(tmp_path):
    labels = np.zeros((32, 48), np.uint16)
    labels[2:5, 3:9], labels[20:30, 10:20], labels[0, 47] = 7, 300, 65535
    dataset = open_dataset(write_set(tmp_path, rows(), card_dict(), labels))
    image, reference = dataset.read(dataset.cases[0])
    assert image.grid.unit == "px" and image.source.modality == "OT"
    assert [m.area for m in reference.masks] == [18, 100, 1]
    assert list(reference.labels) == [1, 1, 1]


def test_value_table_names_each_value_and_refuses_others(tmp_path):
    labels = np.zeros((32, 48), np.uint8)
    labels[2:5, 3:9], labels[20:30, 10:20], labels[25, 40:44] = 20, 40, 20
    encoding = {"kind": "value_masks", "values": {20: "blob", 40: "tool"}}
    classes = [*card_dict()["classes"], {"id": 2, "name": "tool", "type": TUMOUR, "category": CATEGORY}]
    card = card_dict(encoding=encoding, classes=classes)
    dataset = open_dataset(write_set(tmp_path, rows(), card, labels))
    _, reference = dataset.read(dataset.cases[0])
    assert [(int(k), m.area) for k, m in zip(reference.labels, reference.masks, strict=True)] == [
        (1, 22),
        (2, 100),
    ]
    labels[0, 0] = 60
    dataset = open_dataset(write_set(tmp_path, rows(), card, labels))
    with pytest.raises(InputError, match=r"values \[60\]"):
        dataset.read(dataset.cases[0])


def test_label_volume_keeps_geometry_and_splits_components(tmp_path):
    grid = Grid.from_spacing((6, 20, 24), (3.0, 0.5, 0.5))
    labels = np.zeros(grid.shape, np.uint8)
    labels[1:3, 4:8, 4:8], labels[4, 12, 12] = 1, 1
    write_volume(tmp_path / "x.nii.gz", np.zeros(grid.shape, np.int16), grid)
    write_volume(tmp_path / "x_labels.nii.gz", labels, grid)
    cases = {
        "rows": [{"id": "x"}],
        "id": "{id}",
        "image": "{id}.nii.gz",
        "reference": "{id}_labels.nii.gz",
        "group": "{id}",
    }
    card = card_dict(
        cases=cases,
        spacing={"source": "file"},
        encoding={"kind": "label_volume", "values": {1: "blob"}, "split_components": True},
        splits={},
    )
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card))
    dataset = open_dataset(path)
    image, reference = dataset.read(dataset.cases[0])
    assert image.grid.same_as(grid) and reference.grid.same_as(grid)
    assert [m.area for m in reference.masks] == [32, 1]
    write_volume(tmp_path / "x_labels.nii.gz", labels, Grid.from_spacing(grid.shape, (3.0, 0.5, 0.6)))
    with pytest.raises(GeometryError, match="another grid"):
        dataset.read(dataset.cases[0])


def test_coco_overlap_is_kept(tmp_path):
    square = [2, 2, 12, 2, 12, 12, 2, 12]
    inner = [4, 4, 8, 4, 8, 8, 4, 8]
    coco = {
        "images": [{"id": 1, "file_name": "p0_0.png", "height": 32, "width": 48}],
        "categories": [{"id": 9, "name": "blob"}],
        "annotations": [
            {
                "id": k,
                "image_id": 1,
                "category_id": 9,
                "segmentation": [p],
                "iscrowd": 0,
                "area": 1,
                "bbox": [0, 0, 1, 1],
            }
            for k, p in enumerate([square, inner], start=1)
        ],
    }
    card = card_dict(encoding={"kind": "coco"})
    card["cases"] = card["cases"] | {"reference": "annotations.json"}
    path = write_set(
        tmp_path, rows(1, 1), card_dict(splits={}) | {"encoding": card["encoding"], "cases": card["cases"]}
    )
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    dataset = open_dataset(path)
    _, reference = dataset.read(dataset.cases[0])
    assert [m.area for m in reference.masks] == [100, 16]
    assert reference.masks[0].overlaps(reference.masks[1])


def test_ignore_regions_travel_with_the_reference(tmp_path):
    card = card_dict()
    card["cases"] = card["cases"] | {"ignore": "{id}_ignore.png"}
    path = write_set(tmp_path, rows(), card)
    ignore = np.zeros((32, 48), np.uint8)
    ignore[10:20] = 255
    for row in rows():
        write_raster(tmp_path / f"{row['id']}_ignore.png", ignore)
    dataset = open_dataset(path)
    assert dataset.read(dataset.cases[0])[1].ignore.area == 480


def test_the_digest_follows_the_bytes(tmp_path):
    path = write_set(tmp_path, rows(), card_dict())
    before = open_dataset(path).digest()
    assert open_dataset(path).digest() == before
    write_raster(tmp_path / "p3_1.png", np.ones((32, 48), np.uint8))
    assert open_dataset(path).digest() != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clases": []}, "clases: unknown .did you mean classes"),
        ({"spacing": {"source": "constant"}}, "mm goes with source: constant"),
        ({"splits": {"carve": {"test": 1.5}}}, "shares between 0 and 1"),
        ({"classes": [{"id": 2, "name": "a", "type": TUMOUR, "category": CATEGORY}]}, "class ids are 1..1"),
        ({"encoding": {"kind": "magic"}}, "encoding"),
        ({"root": "nowhere"}, "no folder 'nowhere' under the data root"),
    ],
)
def test_a_card_that_does_not_fit_says_why(tmp_path, change, message):
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(card_dict(**change)))
    with pytest.raises(ConfigError, match=message):
        read_card(path)


def test_missing_files_and_columns_are_counted_and_named(tmp_path):
    path = write_set(tmp_path, rows(), card_dict())
    (tmp_path / "p3_1.png").unlink()
    with pytest.raises(InputError, match="1 of 20 cases lack a file"):
        open_dataset(path)
    card = card_dict()
    card["cases"] = card["cases"] | {"group": "{surgery}"}
    with pytest.raises(ConfigError, match="surgery"):
        open_dataset(write_set(tmp_path, rows(), card))


@pytest.mark.parametrize(
    ("name", "cases", "test_cases"),
    [
        ("dsb2018_nuclei", 453, 79),
        ("endovis2015_rigid", 120, 40),
        ("busi_subset", 84, 21),
        ("mr_tumour_volumes", 3, 1),
        ("totalsegmentator_ct", 1, 1),
        ("totalsegmentator_mr", 1, 1),
        ("endovis2015_robotic_video", 149, 75),
        ("dcmqi_liver", 1, 1),
        ("dcmqi_overlaps", 1, 1),
    ],
)
def test_the_shipped_cards_fit_the_real_data(data_root, name, cases, test_cases):
    dataset = open_dataset(Path(__file__).parents[2] / "data_cards" / f"{name}.yaml")
    assert (len(dataset.cases), len(dataset.split("test"))) == (cases, test_cases)
    image, reference = dataset.read(dataset.split("test")[0])
    assert len(reference) and reference.grid.same_as(image.grid)


def test_endovis_instruments_split_by_occlusion_stay_one(data_root):
    dataset = open_dataset(Path(__file__).parents[2] / "data_cards" / "endovis2015_rigid.yaml")
    total = sum(len(dataset.read(c)[1]) for c in dataset.cases)
    assert total == 164
    assert {c.strata["surgery"] for c in dataset.split("test")} == {"OP3"}


def test_organs_of_a_ct_left_and_right_are_instances_of_one_class(data_root):
    dataset = open_dataset(Path(__file__).parents[2] / "data_cards" / "totalsegmentator_ct.yaml")
    _, organs = dataset.read(dataset.cases[0])
    kidney = dataset.card.label_map.by_name("kidney")
    assert len(organs) == 41
    assert [organs.masks[i].area for i in np.flatnonzero(organs.labels == kidney.id)] == [3947, 3676]
    assert kidney.type.value == "64033007"


def test_the_mr_lies_where_another_reader_puts_it(data_root):
    import nibabel

    dataset = open_dataset(Path(__file__).parents[2] / "data_cards" / "totalsegmentator_mr.yaml")
    image, structures = dataset.read(dataset.cases[0])
    theirs = nibabel.load(dataset.cases[0].image)
    labels = np.asarray(nibabel.load(dataset.cases[0].reference).dataobj)
    assert np.array_equal(image.pixels[0], np.asarray(theirs.dataobj).transpose())
    # Ours maps (z, y, x) to LPS, theirs (x, y, z) to RAS; theirs is in single precision.
    corners = np.array([(0, 0, 0), (19, 90, 116), (3, 50, 7)])
    ras = corners[:, ::-1] @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]
    np.testing.assert_allclose(image.grid.to_world(corners), ras * (-1, -1, 1), atol=1e-3)
    values = [v for v in np.unique(labels) if v]
    assert len(structures) == 23 and set(structures.labels.tolist()) == {1}
    for value, mask in zip(values, structures.masks, strict=True):
        assert np.array_equal(mask.dense(), labels.transpose() == value)
    assert sorted(m.area for m in structures.masks)[::22] == [6, 18480]


def test_a_public_card_names_no_case():
    shipped = Path(__file__).parents[2] / "data_cards" / "mr_tumour_volumes.yaml"
    card = load_settings(shipped, Card)
    assert "brain1" in dump_yaml(card)
    assert "brain1" not in dump_yaml(public(card)) and "label_volume" in dump_yaml(public(card))


def sequences_set(folder, grids):
    """A volume case of two sequences, each on its grid."""
    for name, spacing in zip(("t1", "t2"), grids, strict=True):
        values = np.full((3, 8, 8), 100 if name == "t1" else 30000, np.int16)
        write_volume(folder / f"SECRET-{name}.nii.gz", values, Grid.from_spacing((3, 8, 8), spacing))
    labels = np.zeros((3, 8, 8), np.uint8)
    labels[1, 2:5, 2:5] = 1
    write_volume(folder / "labels.nii.gz", labels, Grid.from_spacing((3, 8, 8), grids[0]))
    card = card_dict(
        cases={
            "rows": [{"id": "a"}],
            "id": "{id}",
            "image": ["SECRET-t1.nii.gz", "SECRET-t2.nii.gz"],
            "reference": "labels.nii.gz",
            "group": "{id}",
        },
        encoding={"kind": "label_volume", "values": {1: "blob"}},
        spacing={"source": "file"},
        splits={},
    )
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def test_sequences_of_a_case_are_channels(tmp_path):
    dataset = open_dataset(sequences_set(tmp_path, [(2, 1, 1), (2, 1, 1)]))
    image, reference = dataset.read(dataset.cases[0])
    assert image.pixels.shape == (2, 3, 8, 8) and image.pixels.dtype == np.int16
    assert (image.pixels[0] == 100).all() and (image.pixels[1] == 30000).all()
    assert reference.masks[0].area == 9
    before = dataset.digest()
    write_volume(
        tmp_path / "SECRET-t2.nii.gz", np.zeros((3, 8, 8), np.int16), Grid.from_spacing((3, 8, 8), (2, 1, 1))
    )
    assert dataset.digest() != before


def test_sequences_on_different_grids_are_refused_by_case_not_by_path(tmp_path):
    dataset = open_dataset(sequences_set(tmp_path, [(2, 1, 1), (2, 1, 1.2)]))
    with pytest.raises(GeometryError, match="sequence 2 of 2 lies on another grid") as refusal:
        dataset.read(dataset.cases[0])
    assert dataset.cases[0].case in str(refusal.value) and "SECRET" not in str(refusal.value)
    (tmp_path / "SECRET-t2.nii.gz").unlink()
    with pytest.raises(InputError, match="lack a file"):
        open_dataset(tmp_path / "card.yaml")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("image", "its image is not readable as a picture"),
        ("reference", "its reference is not readable as a picture"),
        ("size", "its reference lies on another grid than its image"),
        ("ignore", "its ignored region lies on another grid"),
    ],
)
def test_a_case_that_cannot_be_read_is_named_by_its_id_and_the_crosswalk_knows_its_file(
    tmp_path, broken, message
):
    card = card_dict()
    card["cases"] = card["cases"] | {"ignore": "{id}_ignore.png"}
    listed = [{"id": "MILLER", "patient": "MILLER"}, *rows()]
    path = write_set(tmp_path, listed, card)
    files = {name: tmp_path / f"MILLER{end}.png" for name, end in (("image", ""), ("reference", "_labels"))}
    files |= {"size": files["reference"], "ignore": tmp_path / "MILLER_ignore.png"}
    write_raster(files["ignore"], np.zeros((9, 9) if broken == "ignore" else (32, 48), np.uint8))
    if broken == "size":
        write_raster(files["reference"], np.zeros((9, 9), np.uint8))
    elif broken != "ignore":
        files[broken].write_bytes(files[broken].read_bytes()[:45])
    dataset = open_dataset(path)
    with pytest.raises(InputError) as refusal:
        dataset.read(dataset.cases[0])
    said = str(refusal.value)
    assert said.startswith(f"{dataset.cases[0].case}: {message}") and "MILLER" not in said
    assert type(refusal.value) is (GeometryError if broken in ("size", "ignore") else InputError)
    assert recorded_cases()[dataset.cases[0].case] == str(files[broken].resolve())


@pytest.mark.parametrize(
    "content", ["id,patient\nM\xfcller,p\n".encode("latin-1"), b'id,patient\n"a,p\n', b"id,\0\n"]
)
def test_an_index_that_is_not_a_table_is_a_fault_of_the_card(content, tmp_path):
    path = write_set(tmp_path, rows(), card_dict())
    (tmp_path / "index.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=r"'index.csv'.*(not UTF-8|line 2 is not|line 1 holds NUL)"):
        open_dataset(path)


def test_repeated_rows_are_refused_before_any_case_is_named(tmp_path, monkeypatch):
    path = write_set(tmp_path, rows(), card_dict())
    (tmp_path / "index.csv").write_text("id,patient\nx,p\n" + "a,p\n" * 3000)
    monkeypatch.setattr(
        "clearmargin.datasets.cases.case_of", lambda *_, **__: pytest.fail("a case was named")
    )
    with pytest.raises(ConfigError, match=r"2999 repeat an earlier one \(first: row 3, as row 2\)"):
        open_dataset(path)
