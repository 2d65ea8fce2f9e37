"""A MONAI pipeline around our transforms: geometry as MONAI's own readers have it, cases, caches, refusals."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from bright import bright_segmenter
from monai.data import CacheDataset, DataLoader, MetaTensor, PersistentDataset, ThreadDataLoader
from monai.transforms import (
    Compose,
    Flipd,
    LoadImaged,
    Orientationd,
    RandRotate90d,
    Rotate90d,
    Spacingd,
    SpatialPadd,
    Transform,
)
from toy import write_toy_set

import clearmargin.transforms
from clearmargin.core import Grid, Image, InstanceSet, Mask
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.loading import case_sample
from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.errors import ConfigError, GeometryError, InputError
from clearmargin.formats import open_video, read_image
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.formats.volume import write_volume
from clearmargin.transforms import (
    DicomReader,
    LoadCased,
    LoadPathd,
    card_items,
    image_of,
    instances_of,
    tensor_like,
)
from clearmargin.transforms.loading import loaded_tensor

CASE_KEYS = ("image", "layers", "ignore")


@pytest.fixture
def volume(tmp_path):
    """A NIfTI volume with three different extents, spacings and an oblique affine; its path and its values."""
    turn = np.array([[0.0, 0.0995, 0.695], [0.05, 0.796, -0.08], [2.5, -0.02, 0.02]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn, (-30, 15, 4)
    values = np.random.default_rng(0).integers(-900, 1200, (4, 5, 6)).astype(np.int16)
    grid = Grid(shape=values.shape, affine=affine, unit="mm")
    write_volume(tmp_path / "a.nii.gz", values, grid)
    return tmp_path / "a.nii.gz", values, grid


def test_a_volume_lies_where_monais_own_reader_puts_it(volume):
    """After one Orientationd both give one array and one affine."""
    path, _, _ = volume
    turn = Orientationd("image", axcodes="RAS", labels=None)
    ours = turn(LoadPathd("image")({"image": path}))["image"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        load = LoadImaged("image", reader="NibabelReader", ensure_channel_first=True)
    theirs = turn(load({"image": path}))["image"]
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    np.testing.assert_allclose(ours.affine.numpy(), theirs.affine.numpy(), atol=1e-5)


def test_a_tensor_comes_back_as_the_image_however_its_axes_were_turned(volume):
    path, values, grid = volume
    turns = Compose(
        [
            LoadPathd("image"),
            Orientationd("image", axcodes="PIL", labels=None),
            Flipd("image", spatial_axis=1),
            Rotate90d("image", spatial_axes=(0, 2)),
            SpatialPadd("image", spatial_size=(8, 9, 9), method="end"),
        ]
    )
    image = image_of(turns({"image": path})["image"])
    inside = np.rint(image.grid.to_index(grid.to_world(np.argwhere(np.ones(grid.shape))))).astype(int)
    np.testing.assert_allclose(
        image.grid.to_world(inside), grid.to_world(np.argwhere(np.ones(grid.shape))), atol=1e-3
    )
    assert image.pixels.dtype == np.int16  # whole values come back in their own dtype
    np.testing.assert_array_equal(image.pixels[0][tuple(inside.T)], values.ravel())
    assert (np.diff(inside.reshape(4, 5, 6, 3)[:, 0, 0, 0]) == 1).all()  # slices first, in their order
    assert image.source.case == read_image(path).source.case
    turned = turns({"image": path})["image"]
    again = tensor_like(image.pixels, turned)
    np.testing.assert_array_equal(again.numpy(), turned.numpy())
    np.testing.assert_array_equal(again.affine.numpy(), turned.affine.numpy())


def test_what_monais_readers_loaded_becomes_an_image_with_slices_first(volume):
    path, values, grid = volume
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        load = LoadImaged("image", reader="NibabelReader", ensure_channel_first=True)
    image = image_of(load({"image": path})["image"])
    np.testing.assert_array_equal(image.pixels[0], values)
    assert image.grid.same_as(grid)
    theirs = load({"image": path})["image"]
    np.testing.assert_array_equal(tensor_like(image.pixels, theirs).numpy(), theirs.numpy())
    write_raster(path.with_name("p.png"), np.arange(24, dtype=np.uint8).reshape(4, 6))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        load = LoadImaged("image", reader="PILReader", ensure_channel_first=True)
    picture = image_of(load({"image": path.with_name("p.png")})["image"])
    np.testing.assert_array_equal(picture.pixels[0], np.arange(24).reshape(4, 6))
    assert picture.grid.unit == "px"
    for wrong, message in (
        (torch.zeros(1, 4, 4), "MetaTensor"),
        (MetaTensor(torch.zeros(4, 4)), "ensure_channel_first=True"),
        (MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.zeros(4, 4)), "affine"),
    ):
        with pytest.raises(InputError, match=message):
            image_of(wrong)


def test_a_resampled_tensor_is_an_image_at_the_new_spacing(volume):
    path, _, grid = volume
    move = Spacingd("image", pixdim=(1.25, 1.0, 0.5), mode="bilinear")
    image = image_of(move(LoadPathd("image")({"image": path}))["image"])
    np.testing.assert_allclose(image.grid.spacing, (1.25, 1.0, 0.5), rtol=1e-4)
    np.testing.assert_allclose(image.grid.to_world((0, 0, 0)), grid.to_world((0, 0, 0)), atol=0.7)


def test_pictures_frames_and_series_are_named_by_their_paths(tmp_path, data_root):
    colour = np.zeros((3, 16, 32), np.uint8)
    colour[0, :, :16] = 200
    write_raster(tmp_path / "a.png", colour)
    write_video(tmp_path / "b.mp4", [np.full((3, 16, 32), 20 * k, np.uint8) for k in range(10)], 25)
    picture = LoadPathd("image")({"image": tmp_path / "a.png"})["image"]
    np.testing.assert_array_equal(picture.numpy(), colour)
    assert image_of(picture).grid.unit == "px" and picture.dtype == torch.float32
    exact = open_video(tmp_path / "b.mp4").frame(6).pixels
    for item, load in (
        ({"image": f"{tmp_path / 'b.mp4'}#6"}, LoadPathd("image")),
        ({"image": tmp_path / "b.mp4", "number": 6}, LoadPathd("image", frame_key="number")),
    ):
        frame = load(item)["image"]
        np.testing.assert_array_equal(frame.numpy(), exact)
        assert frame.meta["frame"] == 6 and image_of(frame).source.frame == 6
    with pytest.raises(InputError, match=r"'b.mp4#0'"):
        LoadPathd("image")({"image": tmp_path / "b.mp4"})
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    series = LoadPathd("image")({"image": str(folder)})["image"]
    image = read_image(folder)
    np.testing.assert_array_equal(series.numpy(), image.pixels)
    again = image_of(series)
    assert again.grid.same_as(image.grid) and again.pixels.dtype == image.pixels.dtype
    number = LoadPathd("image", series_key="which")({"image": str(folder), "which": "CT"})["image"]
    assert torch.equal(number.as_tensor(), series.as_tensor())


def test_a_refused_series_is_our_error_inside_monais(data_root, capsys):
    folder = data_root / "dicom_ct_gantry_tilt"
    with pytest.raises(RuntimeError, match=r"applying transform LoadPathd\('image'\)") as caught:
        Compose([LoadPathd("image")])({"image": str(folder)})
    assert isinstance(caught.value.__cause__, GeometryError) and "gantry tilt" in str(caught.value.__cause__)
    assert Compose([LoadPathd("image", allow_tilt=True)])({"image": str(folder)})["image"].shape[1] == 10
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        through = Compose([LoadImaged("image", reader="clearmargin.transforms.DicomReader")])
        also = Compose([LoadImaged("image", reader=DicomReader())])
    for chain in (through, also):
        with pytest.raises(RuntimeError) as caught:
            chain({"image": str(folder)})
        assert isinstance(caught.value.__cause__, GeometryError)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return write_toy_set(tmp_path_factory.mktemp("card") / "data", cases=6)


def test_a_case_is_what_the_program_reads(card):
    items = card_items(card, "train")
    dataset = open_dataset(card)
    assert [item["case"] for item in items] == [case.case for case in dataset.split("train")]
    assert {item["split"] for item in card_items(card)} == {"train", "validation", "calibration", "test"}
    for item, case in zip(items, dataset.split("train"), strict=True):
        loaded = LoadCased(card)(item)
        image, reference = dataset.read(case)
        np.testing.assert_array_equal(loaded["image"].numpy(), image.pixels)
        assert loaded["image"].meta["filename_or_obj"] == case.case and loaded["group"] == case.group
        same = instances_of(loaded)
        np.testing.assert_array_equal(same.labels, reference.labels)
        for ours, theirs in zip(same.masks, reference.masks, strict=True):
            np.testing.assert_array_equal(ours.dense(), theirs.dense())
        assert loaded["ignore"].sum() == 0


def test_the_ignored_region_comes_along():
    grid = Grid.from_spacing((20, 30))
    mask = np.zeros(grid.shape, bool)
    mask[2:5, 3:9] = True
    reference = InstanceSet.from_dense(grid, [mask])
    reference = replace(reference, ignore=Mask.from_dense(np.roll(mask, 10, axis=1)))
    sample = case_sample(Image(pixels=mask[None].astype(np.uint8), grid=grid), reference)
    moved = RandRotate90d(CASE_KEYS, prob=1.0, max_k=1)(sample)
    np.testing.assert_array_equal(moved["layers"][0].numpy(), np.rot90(mask).astype(np.float32))
    np.testing.assert_array_equal(moved["ignore"][0].numpy(), np.rot90(np.roll(mask, 10, axis=1)))
    back = image_of(moved["image"])
    np.testing.assert_array_equal(back.pixels[0], mask)


def test_caches_and_loaders_of_monai_take_cases(card, tmp_path):
    items = card_items(card)
    chain = Compose(
        [LoadCased(card), Spacingd(CASE_KEYS, pixdim=(2.0, 2.0), mode=("bilinear", "nearest", "nearest"))]
    )
    plain = [chain(item) for item in items]
    assert pickle.loads(pickle.dumps(chain))(items[0])["image"].equal(plain[0]["image"])
    cached = CacheDataset(items, chain, num_workers=2, progress=False)
    # MONAI's record of Spacingd holds a type that torch.load refuses by default, so that this cache says otherwise.
    options = {"track_meta": True, "weights_only": False}
    kept = PersistentDataset(items, chain, cache_dir=tmp_path / "cache", **options)
    list(kept)
    again = PersistentDataset(items, LoadNothing(), cache_dir=tmp_path / "cache", **options)
    for one, two, three, four in zip(plain, cached, kept, again, strict=True):
        for other in (two, three, four):
            same_case(one, other)
    threads = ThreadDataLoader(cached, batch_size=1, num_workers=0)
    assert [batch["case"][0] for batch in threads] == [item["case"] for item in items]
    processes = DataLoader(cached, batch_size=1, num_workers=1)
    assert [batch["image"].shape for batch in processes] == [(1, *one["image"].shape) for one in plain]


def same_case(one, other):
    assert torch.equal(one["image"].as_tensor(), other["image"].as_tensor())
    assert torch.equal(one["labels"], other["labels"])
    for ours, theirs in zip(instances_of(one).masks, instances_of(other).masks, strict=True):
        np.testing.assert_array_equal(ours.dense(), theirs.dense())


def test_what_we_load_is_kept_by_a_persistent_dataset_as_it_comes(card, tmp_path):
    """Under torch.load's own restrictions: text, numbers and tensors."""
    items = card_items(card)
    list(PersistentDataset(items, LoadCased(card), cache_dir=tmp_path, track_meta=True))
    again = PersistentDataset(items, LoadNothing(), cache_dir=tmp_path, track_meta=True)
    for item, kept in zip(items, again, strict=True):
        same_case(LoadCased(card)(item), kept)


class LoadNothing(Transform):
    """In place of a transform whose result is on the disk already."""

    def __call__(self, item):
        raise AssertionError("the case was not kept")


def test_batches_of_several_pictures_are_collated_with_their_metadata(tmp_path):
    for k in range(3):
        write_raster(tmp_path / f"{k}.png", np.full((8, 12), 10 * k, np.uint8))
    rows = CacheDataset(
        [{"image": str(tmp_path / f"{k}.png")} for k in range(3)], LoadPathd("image"), progress=False
    )
    (batch,) = DataLoader(rows, batch_size=3, num_workers=0)
    assert batch["image"].shape == (3, 1, 8, 12) and len(batch["image"].meta["case"]) == 3


def test_mistakes_are_said(card, tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        card_items(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        card_items(card, "trian")
    with pytest.raises(ConfigError, match="has no case 'case-0'"):
        LoadCased(card)({"case": "case-0"})
    with pytest.raises(ConfigError, match="card_items"):
        LoadCased(card)({"image": "a.png"})
    with pytest.raises(InputError, match="no file or folder"):
        LoadPathd("image")({"image": tmp_path / "absent.png"})
    with pytest.raises(InputError, match="not int"):
        LoadPathd("image")({"image": 3})
    with pytest.raises(ConfigError, match="another reader loaded"):
        instances_of({"layers": MetaTensor(torch.zeros(1, 4, 4))})
    with pytest.raises(InputError, match="not list: the slices of a series lie in one folder"):
        LoadPathd("image")({"image": ["a.dcm", "b.dcm"]})
    with pytest.raises(TypeError, match=r"not MetaTensor: clearmargin\.transforms\.image_of\(tensor\)"):
        bright_segmenter()(MetaTensor(torch.zeros(1, 4, 4)))
    with pytest.raises(AttributeError, match="did you mean 'LoadCased'"):
        _ = clearmargin.transforms.LoadCase


def test_layers_that_were_interpolated_are_refused(tmp_path):
    """MONAI's default mode is linear: masks would grow without a word."""
    card = write_toy_set(tmp_path)
    case = LoadCased(card)(card_items(card, "train")[0])
    moved = Spacingd(("image", "layers", "ignore"), pixdim=(1.7, 1.7))(dict(case))
    with pytest.raises(InputError, match="mode='nearest'"):
        instances_of(moved)
    right = Spacingd(
        ("image", "layers", "ignore"), pixdim=(1.7, 1.7), mode=("bilinear", "nearest", "nearest")
    )(dict(case))
    assert len(instances_of(right)) == len(instances_of(case))


def test_an_array_of_another_shape_does_not_become_a_tensor(tmp_path):
    write_raster(tmp_path / "a.png", np.zeros((20, 30), np.uint8))
    tensor = LoadPathd("image")({"image": tmp_path / "a.png"})["image"]
    assert tensor_like(np.zeros((2, 20, 30), np.float32), tensor).shape == (2, 20, 30)
    with pytest.raises(InputError, match=r"expected an array of \(K, 20, 30\), got \(1, 5, 5\)"):
        tensor_like(np.zeros((1, 5, 5), np.float32), tensor)


def test_refusals_name_the_arguments_of_python(tmp_path):
    study = write_phantom_study(tmp_path / "study", make_phantom(seed=1), 1)
    sorted(study.ct.iterdir())[5].unlink()
    with pytest.raises(GeometryError) as caught:
        LoadPathd("image")({"image": str(study.ct)})
    assert "allow_gaps=" in str(caught.value) and "--" not in str(caught.value)


def test_values_that_were_scaled_are_warned_of(caplog):
    grid = Grid.from_spacing((4, 8, 8), (1, 1, 1))
    image = Image(pixels=np.arange(256, dtype=np.int16).reshape(1, 4, 8, 8), grid=grid)
    tensor = loaded_tensor(image, name="x")
    image_of(tensor)
    assert not caplog.text
    image_of(tensor / 255)
    assert "expected values as int16 stores them, got fractions from 0 to 1" in caplog.text
