"""Cards drafted from folders: every layout is built here, so that what it holds is known."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import command
from PIL import Image as Pillow

from clearmargin.core import Grid
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.drafting.codes import known_terms, suggest_codes
from clearmargin.datasets.drafting.draft import draft_card
from clearmargin.datasets.drafting.groups import guess_groups
from clearmargin.datasets.drafting.layout import DraftOptions, QuestionError
from clearmargin.datasets.drafting.masks import look_at_mask
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume

SHAPE = (40, 60)
BOXES = [(2, 2), (2, 20), (20, 40)]  # upper left corners of squares of 8 x 8


def picture(path, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, np.full(shape, 90, np.uint8))


def squares(count, value=lambda k: 255, dtype=np.uint8, shape=SHAPE):
    """A mask of so many squares, each with its value."""
    mask = np.zeros(shape, dtype)
    for k, (y, x) in enumerate(BOXES[:count]):
        mask[y : y + 8, x : x + 8] = value(k)
    return mask


def mask_file(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, mask)


def drafted(folder, tmp_path, **options):
    """Draft a card, and return it, its data set as the card file says it, and what each case holds."""
    card = draft_card(folder, tmp_path / "card" / "toy.yaml", options=DraftOptions(**options))
    dataset = open_dataset(card.card)
    return card, dataset, [dataset.read(c)[1] for c in dataset.cases]


def counts(references):
    return [len(r) for r in references]


def test_folders_of_images_and_masks(tmp_path):
    for k in range(6):
        picture(tmp_path / "set" / "images" / f"a{k}.png")
        mask_file(tmp_path / "set" / "masks" / f"a{k}.png", squares(1 + k % 3))
    card, dataset, references = drafted(tmp_path / "set", tmp_path)
    assert counts(references) == [1, 2, 3, 1, 2, 3]
    assert card.instances == {"object": 12} and card.cases == 6
    assert "images/a0.png  <-  masks/a0.png" in card.text and "each connected part" in card.text
    assert f"next: clearmargin data show {card.card}" in card.text
    assert dataset.card.classes[0].type is None


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{k}.png", "{k}_mask.png"),
        ("{k}.png", "{k}_seg.png"),
        ("x {k}.jpg", "x {k}_label.png"),
        ("{k}_image.png", "{k}_labels.tif"),
        ("img{k}.png", "mask_img{k}.png"),
        ("case{k}/image.png", "case{k}/mask.png"),
        ("case{k}/photo.jpg", "case{k}/segmentation.png"),
        ("images/sub/{k}.png", "labels/sub/{k}_label.png"),
        ("train/img/{k}.png", "train/gt/{k}.png"),
        ("images/{k}.png", "Ground Truth/{k}.png"),
        ("photos/{k}.jpg", "drawn/{k}.png"),  # no name says which is which: the files do
        ("{k}.jpg", "{k}.png"),
    ],
)
def test_patterns_of_names_are_guessed(tmp_path, image, mask):
    for k in range(5):
        picture(tmp_path / "set" / image.format(k=k))
        if image.endswith("jpg") and not mask.startswith("x"):
            noise = np.random.default_rng(k).integers(0, 255, (3, *SHAPE)).astype(np.uint8)
            write_raster(tmp_path / "set" / image.format(k=k), noise)
        mask_file(tmp_path / "set" / mask.format(k=k), squares(2))
    _, dataset, references = drafted(tmp_path / "set", tmp_path)
    assert counts(references) == [2] * 5
    assert all(
        c.image.name != c.reference.name or c.image.parent != c.reference.parent for c in dataset.cases
    )


@pytest.mark.parametrize(
    "mask", ["{name}_mask{n}.png", "{name}/masks/{n}abc.png", "masks/{name}_{n}.png", "masks/{name}/{n}.png"]
)
def test_a_mask_file_for_each_object_keeps_overlap(tmp_path, mask):
    for k in range(4):
        name = f"scan{k}"
        place = f"{name}/images/{name}.png" if mask.startswith("{name}/") else f"{name}.png"
        picture(tmp_path / "set" / (f"images/{place}" if mask.startswith("masks") else place))
        for n, box in enumerate([np.s_[2:12, 2:12], np.s_[8:20, 8:20]]):
            one = np.zeros(SHAPE, np.uint8)
            one[box] = 255
            text = mask.format(
                name=name, n="" if n == 0 and "mask{n}" in mask else f"_{n}" if "mask{n}" in mask else n
            )
            mask_file(tmp_path / "set" / text, one)
    _, dataset, references = drafted(tmp_path / "set", tmp_path, classes={0: "polyp"})
    assert dataset.card.encoding.kind == "mask_files"
    assert [[m.area for m in r.masks] for r in references] == [[100, 144]] * 4
    assert references[0].masks[0].intersection(references[0].masks[1]) == 16
    assert dataset.card.label_map.classes[0].type.meaning == "Polyp"


def test_ten_comes_behind_nine_and_is_not_the_mask_of_one(tmp_path):
    for k in (1, 10):
        picture(tmp_path / "set" / f"scan ({k}).png")
        mask_file(tmp_path / "set" / f"scan ({k})_mask.png", squares(1))
    mask_file(tmp_path / "set" / "scan (1)_mask_1.png", squares(2) - squares(1))
    _, _, references = drafted(tmp_path / "set", tmp_path)
    assert sorted(counts(references)) == [1, 2]


def test_a_file_for_each_class(tmp_path):
    for k in range(3):
        picture(tmp_path / "set" / f"s{k}" / "ct.png")
        mask_file(tmp_path / "set" / f"s{k}" / "segmentations" / "liver.png", squares(1))
        mask_file(tmp_path / "set" / f"s{k}" / "segmentations" / "left_kidney.png", squares(2) - squares(1))
        mask_file(tmp_path / "set" / f"s{k}" / "segmentations" / "spleen.png", squares(0))  # nothing there
    card, dataset, references = drafted(tmp_path / "set", tmp_path)
    assert dataset.card.label_map.names == ("left_kidney", "liver", "spleen")
    assert [r.labels.tolist() for r in references] == [[1, 2]] * 3
    assert card.instances == {"left_kidney": 3, "liver": 3, "spleen": 0}
    assert dataset.card.label_map.by_name("left_kidney").type.value == "64033007"


def test_classes_by_folder_and_pictures_without_an_object(tmp_path):
    for kind, count in (("benign", 2), ("malignant", 2), ("normal", 1)):
        for k in range(count):
            picture(tmp_path / "set" / kind / f"{kind} ({k + 1}).png")
            mask_file(tmp_path / "set" / kind / f"{kind} ({k + 1})_mask.png", squares(int(kind != "normal")))
    card, dataset, references = drafted(tmp_path / "set", tmp_path)
    assert dataset.card.label_map.names == ("benign", "malignant")
    assert card.instances == {"benign": 2, "malignant": 2} and "without an object: 1" in card.text
    assert sorted(counts(references)) == [0, 1, 1, 1, 1]


def label_set(folder, values, count=6):
    """A folder whose k-th mask holds what ``values(k)`` says of its squares."""
    for k in range(count):
        picture(folder / "images" / f"a{k}.png")
        mask_file(folder / "labels" / f"a{k}.png", values(k))
    return folder


def test_numbers_of_objects_are_told_from_classes(tmp_path):
    numbers = label_set(tmp_path / "a", lambda k: squares(k % 4, lambda n: n + 1))
    _, dataset, references = drafted(numbers, tmp_path)
    assert dataset.card.encoding.kind == "label_image" and counts(references) == [0, 1, 2, 3, 0, 1]
    both = label_set(tmp_path / "b", lambda k: squares(2, lambda n: n + 1))
    _, dataset, references = drafted(both, tmp_path / "2", classes={1: "liver", 2: "tumour"})
    assert dataset.card.encoding.values == {1: "liver", 2: "tumour"}
    assert [r.labels.tolist() for r in references] == [[1, 2]] * 6


def test_values_that_may_be_either_are_a_question_with_its_answers(tmp_path):
    def tumour_in_organ(k):
        mask = np.zeros(SHAPE, np.uint8)
        mask[4:30, 4:30] = 1
        mask[10:14, 10:14] = 2 * (k % 2)
        mask[10:14, 10:14] += k % 2 == 0
        return mask

    folder = label_set(tmp_path / "a", tumour_in_organ)
    with pytest.raises(
        QuestionError, match=r"could be classes or the numbers.*--objects values.*--class 1=NAME"
    ):
        drafted(folder, tmp_path)
    _, _, references = drafted(folder, tmp_path, objects="whole", classes={1: "liver", 2: "lesion"})
    assert counts(references) == [1, 2] * 3
    _, dataset, _ = drafted(folder, tmp_path / "2", objects="values", classes={0: "lesion"})
    assert dataset.card.label_map.names == ("lesion",)


def blurred(mask, way):
    """A mask as it comes back from a smooth resizing, or from JPEG."""
    if way == "resized":
        small = Pillow.fromarray(mask).resize((45, 30), Pillow.Resampling.BICUBIC)
        return np.asarray(small.resize(SHAPE[::-1], Pillow.Resampling.BICUBIC))
    return mask


@pytest.mark.parametrize("way", ["resized", "jpeg", "jpeg inside png"])
def test_a_blurred_mask_is_a_question_and_a_threshold_its_answer(tmp_path, way):
    suffix = ".jpg" if way == "jpeg" else ".png"
    for k in range(4):
        picture(tmp_path / "set" / "images" / f"a{k}.png")
        path = tmp_path / "set" / "masks" / f"a{k}{suffix}"
        path.parent.mkdir(exist_ok=True)
        if way == "resized":
            write_raster(path, blurred(squares(2), way))
        else:
            Pillow.fromarray(squares(2)).save(tmp_path / "x.jpg", quality=60)
            with Pillow.open(tmp_path / "x.jpg") as opened:
                (path.write_bytes((tmp_path / "x.jpg").read_bytes()) if way == "jpeg" else opened.save(path))
    with pytest.raises(QuestionError, match=r"masks are blurred.*--threshold 12\d takes half") as question:
        drafted(tmp_path / "set", tmp_path)
    assert "a0" not in str(question.value)
    assert not (tmp_path / "card").exists(), "nothing is written before the question is answered"
    _, dataset, references = drafted(tmp_path / "set", tmp_path, threshold=128)
    assert dataset.card.encoding.threshold == 128 and counts(references) == [2] * 4
    assert all(abs(m.area - 64) <= 8 for r in references for m in r.masks)


def test_real_labels_of_small_nuclei_are_not_taken_for_a_blur(data_root):
    files = sorted((data_root / "dsb2018_nuclei" / "labels").glob("*.png"))[::9]
    assert len(files) > 40 and not [f for f in files if look_at_mask(f).problem]


def test_groups_by_name_never_lie_in_two_splits(tmp_path):
    for p in range(8):
        for k in range(3):
            picture(tmp_path / "set" / "images" / f"patient{p:02d}_img{k}.png")
            mask_file(tmp_path / "set" / "masks" / f"patient{p:02d}_img{k}.png", squares(1))
    card, dataset, _ = drafted(tmp_path / "set", tmp_path)
    rows = list(csv.DictReader(card.index.read_text().splitlines()))
    by_group = {}
    for row, case in zip(rows, dataset.cases, strict=True):
        by_group.setdefault(row["image"][7:16], set()).add(case.split)
    assert len(by_group) == 8 and all(len(s) == 1 for s in by_group.values())
    splits = [next(iter(s)) for s in by_group.values()]
    assert {s: splits.count(s) for s in set(splits)} == {
        "train": 4,
        "validation": 1,
        "calibration": 1,
        "test": 2,
    }
    assert "such as 'patient00'" in card.text


@pytest.mark.parametrize(
    ("names", "rule", "groups"),
    [
        (["OP1_img_01.jpg", "OP1_img_02.jpg", "OP2_img_01.jpg"], None, ["OP1", "OP1", "OP2"]),
        (["a/x1.png", "a/x2.png", "b/x1.png"], None, ["a", "a", "b"]),
        (["sub-01_ses-1.nii", "sub-01_ses-2.nii", "sub-02_ses-1.nii"], None, ["sub-01", "sub-01", "sub-02"]),
        (["img_01.png", "img_02.png", "img_03.png"], None, None),
        (["img1_1.png", "img1_2.png", "img2_1.png"], None, None),
        (["benign/1.png", "benign/2.png", "malignant/1.png"], None, None),
        (["train/images/a1.png", "train/images/a2.png", "test/images/a3.png"], None, None),
        (["ab-1.png", "ab-2.png", "cd-1.png"], r"^([a-z]+)", ["ab", "ab", "cd"]),
        (["a/1.png", "a/2.png"], "none", None),
    ],
)
def test_groups_are_guessed_where_names_are_evident(names, rule, groups):
    assert guess_groups(names, rule)[0] == groups


def test_shipped_splits_are_kept_and_the_rest_is_carved(tmp_path):
    for split, count in (("train", 8), ("test", 3)):
        for k in range(count):
            picture(tmp_path / "set" / split / "images" / f"{split}{k}.png")
            mask_file(tmp_path / "set" / split / "masks" / f"{split}{k}.png", squares(1))
    _, dataset, _ = drafted(tmp_path / "set", tmp_path)
    assert {
        s: sum(c.split == s for c in dataset.cases) for s in ("train", "validation", "calibration", "test")
    } == {
        "train": 6,
        "validation": 1,
        "calibration": 1,
        "test": 3,
    }


def test_what_is_left_out_is_named_with_its_reason(tmp_path):
    folder = tmp_path / "set"
    for k in range(4):
        picture(folder / "images" / f"a{k}.png")
        mask_file(folder / "masks" / f"a{k}.png", squares(1))
    picture(folder / "images" / "lonely.png")
    mask_file(folder / "masks" / "orphan.png", squares(1))
    picture(folder / "images" / "odd.png", (40, 50))
    mask_file(folder / "masks" / "odd.png", squares(1))
    picture(folder / "images" / "torn.png")
    (folder / "masks" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    card, dataset, _ = drafted(folder, tmp_path)
    assert len(dataset.cases) == 4
    text = " ".join(card.text.split())
    assert "1 images without a mask: images/lonely.png" in text
    assert "1 masks without an image: masks/orphan.png" in text
    assert "1 images whose mask cannot be read: images/torn.png" in text
    assert "lies on another grid than its image" in text and "images/odd.png" in text


def test_two_sets_of_masks_are_a_question(tmp_path):
    folder = label_set(tmp_path / "a", lambda k: squares(1))
    for k in range(6):
        mask_file(folder / "masks_rater2" / f"a{k}.png", squares(2))
    with pytest.raises(
        QuestionError, match=r"several sets of masks, in labels, masks_rater2: .*--masks labels"
    ):
        drafted(folder, tmp_path)
    _, _, references = drafted(folder, tmp_path, masks="masks_rater2")
    assert counts(references) == [2] * 6


def test_patterns_name_images_and_masks(tmp_path):
    for k in range(3):
        picture(tmp_path / "set" / "x" / f"p{k}-view.png")
        mask_file(tmp_path / "set" / "y" / f"drawn_p{k}.png", squares(1))
    with pytest.raises(InputError, match="--images and --masks"):
        drafted(tmp_path / "set", tmp_path)
    _, dataset, references = drafted(tmp_path / "set", tmp_path, images="x/*-view.png", masks="y/drawn_*.png")
    assert counts(references) == [1] * 3 and dataset.cases[0].image.name == "p0-view.png"
    with pytest.raises(ConfigError, match="--masks z: no picture or volume fits"):
        drafted(tmp_path / "set", tmp_path / "2", masks="z")


def test_coco_with_its_pictures(tmp_path):
    for split in ("train", "val"):
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 3, "name": "Polyp"}, {"id": 7, "name": "x"}],
        }
        for k in range(4):
            picture(tmp_path / "set" / split / f"{k}.png")
            content["images"].append({"id": k, "file_name": f"{k}.png", "height": 40, "width": 60})
            if k:
                square = [2, 2, 10, 2, 10, 10, 2, 10]
                content["annotations"].append(
                    {"id": k, "image_id": k, "category_id": 3, "segmentation": [square], "iscrowd": 0}
                )
        content["images"].append({"id": 9, "file_name": "gone.png", "height": 40, "width": 60})
        (tmp_path / "set" / f"instances_{split}2017.json").write_text(json.dumps(content))
    card, dataset, references = drafted(tmp_path / "set", tmp_path)
    assert dataset.card.label_map.names == ("Polyp",) and dataset.card.classes[0].type.value == "41329004"
    assert counts(references) == [0, 1, 1, 1] * 2 and [m.area for m in references[1].masks] == [64]
    assert [c.split for c in dataset.cases[4:]] == ["validation"] * 4
    assert "2 pictures that the COCO file names and that are not there" in " ".join(card.text.split())


def nnunet_set(folder, labels, channels, values):
    """A dataset in nnU-Net's layout, with one volume for each list of values."""
    grid = Grid.from_spacing((3, 10, 12), (3.0, 1.0, 1.0))
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k, held in enumerate(values):
        for c in range(len(channels)):
            pixels = np.full(grid.shape, 10 * c, np.int16)
            write_volume(folder / "imagesTr" / f"scan_{k:03d}_{c:04d}.nii.gz", pixels, grid)
        label = np.zeros(grid.shape, np.uint8)
        for n, value in enumerate(held):
            label[1, 2 * n : 2 * n + 2, 2:6] = value
        write_volume(folder / "labelsTr" / f"scan_{k:03d}.nii.gz", label, grid)
    described = {"channel_names": {str(c): n for c, n in enumerate(channels)}, "labels": labels}
    (folder / "dataset.json").write_text(json.dumps(described | {"file_ending": ".nii.gz", "numTraining": 3}))
    return folder


def test_nnunet_with_channels(tmp_path):
    folder = nnunet_set(
        tmp_path / "a", {"background": 0, "liver": 1, "tumour": 2}, ["T1", "FLAIR"], [[1, 2], [1], [1, 2]]
    )
    card, dataset, references = drafted(folder, tmp_path)
    image, _ = dataset.read(dataset.cases[0])
    assert image.pixels.shape == (2, 3, 10, 12) and image.pixels[1].max() == 10 and image.grid.unit == "mm"
    assert dataset.card.modality == "MR"
    assert [r.labels.tolist() for r in references] == [[1, 2], [1], [1, 2]]
    assert card.instances == {"liver": 3, "tumour": 2}


def test_nnunet_with_regions_that_overlap_and_an_ignored_value(tmp_path):
    labels = {
        "background": 0,
        "whole tumour": [1, 2, 3],
        "tumour core": [2, 3],
        "enhancing tumour": 3,
        "ignore": 4,
    }
    folder = nnunet_set(tmp_path / "a", labels, ["T1", "T1c", "T2", "FLAIR"], [[1, 2, 3, 4], [1, 4], []])
    _, dataset, references = drafted(folder, tmp_path)
    assert dataset.card.label_map.names == ("whole tumour", "tumour core", "enhancing tumour")
    assert [[m.area for m in r.masks] for r in references] == [[24, 16, 8], [8], []]
    assert references[0].ignore.area == 8 and references[0].labels.tolist() == [1, 2, 3]


def test_the_decathlons_layout_has_one_file_of_all_channels(tmp_path):
    folder = nnunet_set(tmp_path / "a", {"0": "background", "1": "hippocampus"}, ["MRI"], [[1], [1]])
    for path in list((folder / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace("_0000", "")))
    content = json.loads((folder / "dataset.json").read_text())
    content["modality"] = content.pop("channel_names")
    (folder / "dataset.json").write_text(json.dumps(content))
    _, dataset, references = drafted(folder, tmp_path)
    assert counts(references) == [1, 1] and dataset.card.classes[0].type.meaning == "Hippocampus"


def test_a_structure_set_of_real_slices(data_root, tmp_path):
    import pydicom

    folder = data_root / "dicom_ct_seg_rtstruct_small" / "rt_utils" / "mock_data"
    card, dataset, references = drafted(folder, tmp_path)
    (row,) = csv.DictReader(card.index.read_text().splitlines())
    structure = pydicom.dcmread(folder / row["reference"])
    assert len(references[0]) == sum("ContourSequence" in r for r in structure.ROIContourSequence) > 0
    assert list(dataset.card.encoding.regions) == [str(r.ROIName) for r in structure.StructureSetROISequence]
    assert dataset.card.modality == "CT" and dataset.read(dataset.cases[0])[0].grid.unit == "mm"
    assert row["group"] == "p1", "a pseudonym, not the PatientID"


def test_a_region_that_the_card_does_not_list_is_refused_without_its_name(data_root, tmp_path):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "rt_utils" / "mock_data"
    card, _, _ = drafted(folder, tmp_path)
    content = yaml.safe_load(card.card.read_text())
    names = list(content["encoding"]["regions"])
    content["encoding"]["regions"] = {"other": content["classes"][0]["name"]}
    card.card.write_text(yaml.safe_dump(content))
    dataset = open_dataset(card.card)
    with pytest.raises(InputError, match=rf"{len(names)} of {len(names)} regions") as refusal:
        dataset.read(dataset.cases[0])
    assert not any(name in str(refusal.value) for name in names)
    content["encoding"]["left_out"] = names
    card.card.write_text(yaml.safe_dump(content))
    dataset = open_dataset(card.card)
    assert len(dataset.read(dataset.cases[0])[1]) == 0


def test_a_seg_of_real_slices_brings_its_codes(data_root, tmp_path):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    card, dataset, references = drafted(folder, tmp_path)
    shipped = open_dataset(Path(__file__).parents[2] / "data_cards" / "dcmqi_liver.yaml")
    _, theirs = shipped.read(shipped.cases[0])
    assert [m.area for m in references[0].masks] == [m.area for m in theirs.masks]
    assert dataset.card.label_map.classes[0].type.meaning == "Liver"
    assert "further SEG files of a series that has one already" in " ".join(card.text.split())


def test_suggested_codes_mean_what_the_terms_say():
    from pydicom.sr._concepts_dict import concepts

    meanings = {}
    for entries in concepts["SCT"].values():
        for value, (meaning, _) in entries.items():
            meanings.setdefault(value, set()).add(meaning.lower().split(" (")[0])
    unknown = []
    for term in known_terms():
        category, code = suggest_codes(term)
        assert category.value in {"91723000", "49755003", "260787004", "85756007", "91720002"}
        if code.value not in meanings:
            unknown.append(code.value)
        else:
            assert code.meaning.lower().split(" (")[0] in meanings[code.value], code
    assert set(unknown) == {
        "41329004",
        "3898006",
    }  # morphologies that pydicom's table does not list: polyp, benign
    assert len(known_terms()) > 150 and suggest_codes("zebra") is None
    assert suggest_codes("Left-Kidney") == suggest_codes("kidneys") == suggest_codes("kidney")


def test_the_card_is_short_and_moves_with_its_data(tmp_path):
    folder = label_set(tmp_path / "a" / "set", lambda k: squares(1))
    card = draft_card(folder, tmp_path / "a" / "toy.yaml")
    assert len(card.card.read_text().splitlines()) <= 20
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(open_dataset(tmp_path / "b" / "toy.yaml").cases) == 6


def test_from_the_command_line_to_a_contact_sheet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    label_set(tmp_path / "ultrasound", lambda k: squares(1 + k % 2))
    code, said = command("data", "new", "ultrasound", "--class", "lesion", "--group", "none", "--seed", "3")
    assert code == 0 and "modality: US" in said and "52988006" in said, said
    assert command("data", "new", "ultrasound")[0] == 2, "a card that is there is not replaced"
    code, said = command("data", "show", "ultrasound.yaml")
    assert code == 0 and "lesion (thing; 52988006 SCT): 9 instances" in said, said
    assert (tmp_path / "ultrasound.png").exists()
    for words, message in (
        (("--shares", "0.5,0.5,0.5"), "leave something for training"),
        (("--class", "a", "--class", "b"), "VALUE=NAME"),
        (("--group", "("), "neither 'folder', 'none' nor an expression"),
    ):
        code, said = command("data", "new", "ultrasound", "--overwrite", *words)
        assert code == 2 and message in said, said
    code, said = command("data", "new", "nowhere")
    assert code == 4 and "there is no folder 'nowhere'" in said
    (tmp_path / "empty").mkdir()
    code, said = command("data", "new", "empty")
    assert code == 4 and "holds no picture and no volume" in said


def test_a_class_without_a_code_is_named_when_dicom_is_written():
    from clearmargin.core import LabelClass

    assert LabelClass(id=1, name="liver").code_text == ""
    with pytest.raises(ConfigError, match=r"class 'liver' has no code.*model.yaml.*data card"):
        _ = LabelClass(id=1, name="liver").codes


@pytest.mark.parametrize(
    "place", ["{case}/{case}_{what}.nii.gz", "{case}/{what}.nii.gz", "{case}_{what}.nii.gz"]
)
@pytest.mark.parametrize("sequences", [("flair", "t1"), ("ct",)])
def test_sequences_of_a_case_share_its_mask(tmp_path, place, sequences):
    grid = Grid.from_spacing((3, 10, 12), (3.0, 1.0, 1.0))
    for k in range(3):
        for n, what in enumerate((*sequences, "seg")):
            path = tmp_path / "set" / place.format(case=f"brain_{k}", what=what)
            path.parent.mkdir(parents=True, exist_ok=True)
            values = np.full(grid.shape, 5 * n, np.int16)
            if what == "seg":
                values = np.zeros(grid.shape, np.uint8)
                values[1, 2:5, 2:5] = 1
            write_volume(path, values, grid)
    card, dataset, references = drafted(tmp_path / "set", tmp_path, classes={0: "tumour"})
    image, _ = dataset.read(dataset.cases[0])
    assert image.pixels.shape[0] == len(sequences) and counts(references) == [1] * 3
    assert all(f"brain_{k}" in c.row["id"] for k, c in enumerate(dataset.cases))
    assert ("channels: 2 images of a case, on one grid: flair, t1" in card.text) == (len(sequences) == 2)
    if len(sequences) == 2:
        (tmp_path / "set" / place.format(case="brain_1", what="t1")).unlink()
        with pytest.raises(QuestionError, match=r"not the same ones .*--images '\*_NAME"):
            drafted(tmp_path / "set", tmp_path / "2", classes={0: "tumour"})
        _, _, references = drafted(
            tmp_path / "set", tmp_path / "3", classes={0: "tumour"}, images="*flair.nii.gz"
        )
        assert counts(references) == [1] * 3


def test_specks_are_counted_and_said(tmp_path):
    def speckled(k):
        mask = squares(1)
        mask[30, 50] = 255 * (k == 2)
        return mask

    card, _, references = drafted(label_set(tmp_path / "a", speckled), tmp_path, classes={0: "lesion"})
    text = " ".join(card.text.split())
    assert "1 objects have fewer than 10 px" in text and "lesion: 7 objects, 1 / 64 / 64 px" in text
    assert counts(references)[2] == 2
    card, _, references = drafted(tmp_path / "a", tmp_path / "2", classes={0: "lesion"}, objects="whole")
    assert counts(references) == [1] * 6 and "fewer than" not in card.text
