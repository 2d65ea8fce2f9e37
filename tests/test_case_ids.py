"""One picture has one id in every verb, and its owner finds the file again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from bright import bright_segmenter
from command import command

from clearmargin.core import Grid
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats import case_of, open_video, read_image, read_images
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.formats.volume import write_volume
from clearmargin.predict import predict
from clearmargin.privacy import use_names


def write_card(folder, name="toy", **changes):
    """A card beside its data: pictures a and b, with their masks."""
    cases = {"rows": [{"id": "MILLER a"}, {"id": "MILLER b"}], "id": "{id}", "group": "{id}"}
    card = {
        "schema": 1,
        "name": name,
        "modality": "OT",
        "classes": [{"id": 1, "name": "blob"}],
        "root": ".",
        "cases": cases | {"image": "{id}.png", "reference": "{id}_m.png"} | changes.pop("cases", {}),
        "encoding": {"kind": "mask_files", "label": "blob"},
        "spacing": {"source": "unknown"},
        "group": "image",
        "splits": {},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(card | changes))
    return path


@pytest.fixture
def pictures(tmp_path):
    for name in ("a", "b"):
        write_raster(tmp_path / f"MILLER {name}.png", np.full((8, 9), 7, np.uint8))
        write_raster(tmp_path / f"MILLER {name}_m.png", np.eye(8, 9, dtype=np.uint8))
    return tmp_path


def test_a_picture_has_one_id_in_two_cards_and_without_a_card(pictures):
    one, two = (open_dataset(write_card(pictures, name)) for name in ("one", "two"))
    ids = [c.case for c in one.cases]
    assert ids == [c.case for c in two.cases] == [read_image(c.image).source.case for c in one.cases]
    assert len(set(ids)) == 2 and one.read(one.cases[0])[0].source.case == ids[0]


def test_volumes_series_and_clips(tmp_path, data_root):
    write_volume(
        tmp_path / "v.nii.gz", np.zeros((2, 4, 5), np.int16), Grid.from_spacing((2, 4, 5), (1, 1, 1))
    )
    assert case_of(tmp_path / "v.nii.gz") == read_image(tmp_path / "v.nii.gz").source.case
    dicom = data_root / "dicom_ct_seg_rtstruct_small"
    for place in (dicom / "dcmqi_liver", dicom / "rt_utils" / "mock_data" / "ct_1.dcm"):
        assert case_of(place) == read_image(place).source.case
    still = next(read_images(data_root / "dicom_awkward" / "wg04" / "US1_UNC.dcm"))
    assert case_of(data_root / "dicom_awkward" / "wg04" / "US1_UNC.dcm") == still.source.case
    frames = [np.full((3, 32, 48), 60 * k, np.uint8) for k in range(4)]
    write_video(tmp_path / "clip.mp4", iter(frames), 25.0)
    write_video(tmp_path / "mask.mp4", iter(frames), 25.0)
    card = write_card(
        tmp_path,
        cases={
            "rows": [{"clip": "clip"}],
            "id": "{clip}_{frame}",
            "image": "{clip}.mp4",
            "reference": "mask.mp4",
            "group": "{clip}",
            "frames": 2,
        },
        encoding={"kind": "video_masks", "levels": {60: "blob"}},
    )
    clip = open_video(tmp_path / "clip.mp4").case
    assert [c.case for c in open_dataset(card).cases] == [f"{clip}-f0", f"{clip}-f2"]


def test_two_readers_of_one_picture_are_two_cases(pictures):
    rows = [{"id": r, "reader": r} for r in ("x", "y")]
    cases = {"rows": rows, "image": "MILLER a.png", "reference": "MILLER {reader}_m.png"}
    for name in ("x", "y"):
        write_raster(pictures / f"MILLER {name}_m.png", np.eye(8, 9, dtype=np.uint8))
    first, second = (c.case for c in open_dataset(write_card(pictures, cases=cases)).cases)
    assert second == f"{first}-2" and first == case_of(pictures / "MILLER a.png")


def test_a_card_of_public_data_shows_its_own_ids(pictures):
    dataset = open_dataset(write_card(pictures, names="plain"))
    assert [c.case for c in dataset.cases] == ["MILLER_a", "MILLER_b"]
    assert dataset.cases[0].group.startswith("case-"), "what a model was trained on stays hashed"


def test_plain_names_for_one_command(pictures, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_NAMES", "hashed")  # put back afterwards
    monkeypatch.chdir(pictures)
    card = write_card(pictures)
    assert command("data", "show", card, "--names", "plain")[0] == 0
    assert [c.case for c in open_dataset(card).cases] == ["MILLER_a", "MILLER_b"]
    assert read_image(pictures / "MILLER a.png").source.case == "MILLER_a"


def test_the_owner_looks_cases_up(pictures):
    dataset = open_dataset(write_card(pictures))
    first = dataset.cases[0]
    code, said = command("cases", first.case)
    assert code == 0 and said.split(None, 1) == [first.case, f"{first.image}\n"]
    code, said = command("cases", first.case.removeprefix("case-"), "case-0123456789ab")
    assert code == 4 and str(first.image) in said and "knows no case case-0123456789ab" in said
    code, said = command("cases")
    assert code == 0 and all(c.case in said for c in dataset.cases)


def test_a_missing_file_is_found_by_what_the_message_says(pictures):
    card = write_card(pictures)
    gone = pictures / "MILLER b_m.png"
    gone.unlink()
    with pytest.raises(
        InputError, match=r"1 of 2 cases lack a file.*cases\.reference was tried under"
    ) as refusal:
        open_dataset(card)
    case = case_of(pictures / "MILLER b.png")
    assert f"clearmargin cases {case}" in str(refusal.value) and "MILLER" not in str(refusal.value).replace(
        str(pictures), ""
    )
    assert f"{gone}  (not there)" in command("cases", case)[1]
    assert str(pictures / "nothing.png") in command("inspect", pictures / "nothing.png")[1]


def test_predict_names_a_picture_as_a_card_does(pictures, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_NAMES", "hashed")
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 255)
    )
    images = pictures / "images"
    images.mkdir()
    for name in ("a", "b"):
        (pictures / f"MILLER {name}.png").rename(images / f"MILLER {name}.png")
    (images / "MILLER c.png").write_bytes(b"no picture")
    cases = {"image": "images/{id}.png"}
    report = predict(images, pictures / "out", model=Path("any"))
    dataset = open_dataset(write_card(pictures, cases=cases))
    assert [d.case for d in report.done] == [c.case for c in dataset.cases]
    (refused,) = report.failed
    assert refused == case_of(images / "MILLER c.png") and "MILLER" not in report.failed[refused]
    assert command("cases", refused)[1].split(None, 1)[1].strip() == str(images / "MILLER c.png")
    use_names("plain")
    write_raster(images / "MILLER a.bmp", np.full((8, 9), 7, np.uint8))
    report = predict(images, pictures / "plain", model=Path("any"))
    assert {d.case for d in report.done} == {"MILLER_a", "MILLER_b"} and (
        pictures / "plain" / "MILLER_a"
    ).is_dir()
    assert "MILLER_c" in report.failed or "MILLER_a" in report.failed


def test_dicom_without_codes_is_refused_before_it_is_segmented(tmp_path, monkeypatch):
    from clearmargin.core import Image, LabelClass, LabelMap, Source
    from clearmargin.datasets.phantom_study import write_ct_series

    grid = Grid.from_spacing((5, 64, 64), (5.0, 0.8, 0.7))
    pixels = np.zeros((1, 5, 64, 64), np.int16)
    write_ct_series(tmp_path / "ct", Image(pixels=pixels, grid=grid, source=Source(modality="CT")), 1, 1)
    uncoded = replace(bright_segmenter(0, 400), label_map=LabelMap((LabelClass(id=1, name="lesion"),)))
    monkeypatch.setattr("clearmargin.sampling.samples.load_segmenter", lambda *_, **__: uncoded)
    with pytest.raises(ConfigError, match="class 'lesion' has no code"):
        predict(tmp_path / "ct", tmp_path / "out", model=Path("any"))
