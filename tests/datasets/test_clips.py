"""Frames of clips as cases: exact frames, masks by the nearest level, and what does not fit."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets.test_cases import card_dict

from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.clips import Clips, nearest_levels
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats import open_video
from clearmargin.formats.video import write_video

CARDS = Path(__file__).parents[2] / "data_cards"
FRAMES, SHAPE = 12, (64, 96)
LEVELS = {70: "blob", 160: "blob"}


def picture(frame, *squares):
    """A frame in which squares of 16 x 16 have gone 4 pixels a frame to the right: (row, level)."""
    pixels = np.zeros((1, *SHAPE), np.uint8)
    for row, level in squares:
        pixels[0, row : row + 16, 4 * frame + 8 : 4 * frame + 24] = level
    return pixels


def write_clips(folder, masks=None, **changes):
    """Write a card of one clip with two mask videos; ``masks`` replaces the second one's frames."""
    upper = [picture(k, (8, 70)) for k in range(FRAMES)]
    lower = [picture(k, (40, 160)) for k in range(FRAMES)] if masks is None else masks
    both = [picture(k, (8, 200), (40, 200)) for k in range(FRAMES)]
    for name, frames in (("secret.mp4", both), ("secret_1.mp4", upper), ("secret_2.mp4", lower)):
        write_video(folder / name, frames, 25, quality=4)
    cases = {
        "rows": [{"clip": "secret", "masks": "secret_1.mp4; secret_2.mp4"}],
        "frames": 5,
        "id": "{clip}_{frame:03d}",
        "image": "{clip}.mp4",
        "reference": "{masks}",
        "group": "{clip}",
    }
    encoding = {"kind": "video_masks", "levels": LEVELS}
    card = card_dict(cases=cases | changes, encoding=encoding, group="surgery", splits={})
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


def test_every_nth_frame_is_a_case_and_its_masks_are_of_that_frame(tmp_path):
    dataset = open_dataset(write_clips(tmp_path))
    assert [c.frame for c in dataset.cases] == [0, 5, 10] and len({c.group for c in dataset.cases}) == 1
    for case in (*dataset.cases, *reversed(dataset.cases)):
        image, reference = dataset.read(case)
        assert image.source.frame == case.frame and image.source.case == case.case
        assert [mask.box for mask in reference.masks] == [
            ((row, 4 * case.frame + 8), (row + 16, 4 * case.frame + 24)) for row in (8, 40)
        ]
        assert [mask.area for mask in reference.masks] == [256, 256]
        assert list(reference.labels) == [1, 1]
        seen = image.pixels[0] > 100
        assert np.array_equal(seen, reference.masks[0].dense() | reference.masks[1].dense())


def test_an_empty_mask_is_no_instance(tmp_path):
    dataset = open_dataset(write_clips(tmp_path, [picture(k) for k in range(FRAMES)]))
    assert [len(dataset.read(case)[1]) for case in dataset.cases] == [1, 1, 1]


def test_levels_of_one_class_are_one_instance_and_halfway_is_the_lower_one():
    row = np.array([[[0, 34, 35, 36, 70, 115, 116, 160, 180]]], np.uint8)
    parts = nearest_levels(row, {70: "tip", 160: "shaft"}, 20)
    assert parts["tip"].tolist() == [[False, False, False, True, True, True, False, False, False]]
    assert parts["shaft"].tolist() == [[False, False, False, False, False, False, True, True, True]]
    (whole,) = nearest_levels(row, LEVELS, 20).values()
    assert whole.sum() == 6
    assert nearest_levels(np.zeros((3, 4, 5), np.uint8), LEVELS, 20) == {}


def test_thin_lines_between_levels_are_blur_and_a_patch_is_a_level_that_is_not_listed():
    pixels = np.zeros((3, 20, 30), np.uint8)
    pixels[:, 5:15, 5:15], pixels[:, 4, 4:16], pixels[:, 15, 4:16] = 160, 110, 40
    assert nearest_levels(pixels, LEVELS, 20)["blob"].sum() == 100 + 12 + 12
    pixels[:, 5:8, 20:23] = 110
    with pytest.raises(InputError, match=r"33 of 600 .* more than 20 off .*\[0, 70, 160\] .most often 110"):
        nearest_levels(pixels, LEVELS, 20)
    coloured = np.zeros((3, 20, 30), np.uint8)
    coloured[0, 5:15, 5:15] = 210  # red, whose mean is 70
    with pytest.raises(InputError, match="100 of 600"):
        nearest_levels(coloured, LEVELS, 20)
    with pytest.raises(InputError, match="8 bits per channel, not uint16"):
        nearest_levels(pixels.astype(np.uint16), LEVELS, 20)


def unlisted():
    return [picture(k, (40, 112)) for k in range(FRAMES)]


def short():
    return [picture(k, (40, 160)) for k in range(FRAMES - 2)]


def narrow():
    return [picture(k, (40, 160))[..., :90] for k in range(FRAMES)]


@pytest.mark.parametrize(
    ("masks", "kind", "message"),
    [
        (unlisted, InputError, r"of 6144 pixels are more than 20 off .* list it in encoding.levels"),
        (short, InputError, "a mask video has 10 frames, its clip 12"),
        (narrow, GeometryError, r"a mask video is \(64, 90\), its clip \(64, 96\)"),
    ],
)
def test_a_mask_video_that_does_not_fit_is_named_by_its_case(tmp_path, masks, kind, message):
    dataset = open_dataset(write_clips(tmp_path, masks()))
    case = dataset.cases[0]
    with pytest.raises(kind, match=f"^{case.case}: .*{message}") as error:
        dataset.read(case)
    assert "secret" not in str(error.value)


def test_missing_files_and_files_that_are_no_video(tmp_path):
    path = write_clips(tmp_path)
    (tmp_path / "secret_2.mp4").write_bytes(b"no video")
    dataset = open_dataset(path)
    with pytest.raises(InputError, match=f"^{dataset.cases[1].case}: .*not readable as a video") as error:
        dataset.read(dataset.cases[1])
    assert "secret" not in str(error.value)
    (tmp_path / "secret_2.mp4").unlink()
    with pytest.raises(InputError, match="3 of 3 cases lack a file"):
        open_dataset(path)
    (tmp_path / "secret.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"^case-.*its clip is not readable as a video") as error:
        open_dataset(path)
    assert "secret" not in str(error.value)
    (tmp_path / "secret.mp4").unlink()
    with pytest.raises(InputError, match="1 of 1 cases lack a file"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": None}, "video_masks needs cases.frames"),
        ({"frames": 0}, "frames"),
        ({"id": "{clip}"}, "same id to several cases"),
        ({"rows": [{"clip": "secret", "masks": "secret_1.mp4", "frame": "3"}]}, "column 'frame'"),
    ],
)
def test_a_card_of_clips_that_does_not_fit_says_why(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        open_dataset(write_clips(tmp_path, **change))


def test_one_reference_is_meant_where_the_encoding_takes_one(tmp_path):
    path = write_clips(tmp_path)
    card = yaml.safe_load(path.read_text()) | {"encoding": {"kind": "label_image", "label": "blob"}}
    path.write_text(yaml.safe_dump(card))
    dataset = open_dataset(path)
    with pytest.raises(ConfigError, match="has 2 references; its encoding takes one"):
        dataset.read(dataset.cases[0])


def test_the_digest_knows_the_frames_and_the_bytes(tmp_path):
    path = write_clips(tmp_path)
    before = open_dataset(path).digest()
    assert open_dataset(path).digest() == before
    write_video(tmp_path / "secret_2.mp4", unlisted(), 25)
    changed = open_dataset(path).digest()
    path.write_text(path.read_text().replace("frames: 5", "frames: 6"))
    assert len({before, changed, open_dataset(path).digest()}) == 3


def test_frames_in_any_order_are_the_ones_asked_for(tmp_path):
    write_clips(tmp_path)
    clips, path = Clips(), tmp_path / "secret.mp4"
    for number in (0, 0, 5, 10, 11, 3, 4, 11, 0, 1, 7):
        image = clips.frame(path, number)
        assert image.source.frame == number
        assert np.flatnonzero((image.pixels[0] > 100).any(axis=0))[0] == 4 * number + 8
    with pytest.raises(InputError, match="frame 12 is damaged or not there"):
        clips.frame(path, 12)


def test_reading_in_order_decodes_once_and_few_clips_stay_open(tmp_path, monkeypatch):
    write_clips(tmp_path)
    opened = []
    monkeypatch.setattr(
        "clearmargin.datasets.clips.open_video", lambda p, **more: opened.append(p) or open_video(p, **more)
    )
    clips, path = Clips(), tmp_path / "secret.mp4"
    monkeypatch.setattr("clearmargin.formats.video.VideoClip.frame", lambda *_: pytest.fail("a seek"))
    for number in (0, 5, 10, 11):
        clips.frame(path, number)
    assert opened == [path]
    copies = [tmp_path / f"{k}.mp4" for k in range(9)]
    for copy in copies:
        copy.write_bytes(path.read_bytes())
        clips.frame(copy, 0)
    clips.frame(copies[1], 1)
    assert opened == [path, *copies]
    clips.frame(path, 0)
    assert opened == [path, *copies, path]


def _read_in_child(clips, path):
    found = clips.frame(path, 6)
    raise SystemExit(0 if found.source.frame == 6 and found.pixels[0, 10, 33] > 100 else 3)


def test_a_forked_process_and_a_copy_read_for_themselves(tmp_path):
    write_clips(tmp_path)
    clips, path = Clips(), tmp_path / "secret.mp4"
    clips.frame(path, 2)
    child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(clips, path))
    child.start()
    child.join(30)
    ended = child.exitcode
    child.kill()
    assert ended == 0
    assert clips.frame(path, 3).source.frame == 3
    assert pickle.loads(pickle.dumps(clips)).frame(path, 4).source.frame == 4


def test_the_real_clips_hold_what_was_counted_by_hand(data_root):
    import av

    dataset = open_dataset(CARDS / "endovis2015_robotic_video.yaml")
    assert (len(dataset.split("train")), len(dataset.split("test"))) == (74, 75)
    assert [c.frame for c in dataset.split("train")] == list(range(0, 370, 5))
    with pytest.raises(ConfigError, match="no case in split 'validation'"):
        dataset.split("validation")
    case = dataset.split("train")[2]
    image, instruments = dataset.read(case)
    planes = []
    for path in (case.image, *case.references):
        with av.open(str(path)) as container:
            frames = [f for f, _ in zip(container.decode(video=0), range(11), strict=False)]
        planes.append(np.moveaxis(frames[10].to_ndarray(format="rgb24"), -1, 0))
    assert np.array_equal(image.pixels, planes[0])
    assert [m.area for m in instruments.masks] == [int((p[0] > 35).sum()) for p in planes[1:]]
    assert list(instruments.labels) == [1, 1] and image.grid.unit == "px"


@pytest.mark.slow
def test_every_frame_of_the_real_clips_has_its_instruments(data_root):
    dataset = open_dataset(CARDS / "endovis2015_robotic_video.yaml")
    found = [dataset.read(case)[1] for case in dataset.cases]
    assert [len(f) for f in found] == [2] * 74 + [1] * 75
    assert sum(f.masks[0].overlaps(f.masks[1]) for f in found[:74]) == 9
    assert min(m.area for f in found for m in f.masks) > 20_000
