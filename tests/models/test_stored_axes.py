"""A model sees volumes in one order of axes: however a file stores them, its objects lie at the same places."""

import nibabel
import numpy as np
import pytest
import torch
import yaml
from toy import write_toy_experiment, write_toy_volumes

from clearmargin.config import load_settings
from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.fingerprint import take_fingerprint
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats.volume import read_volume, write_volume
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.networks import build_network, network_config
from clearmargin.predicting.predictor import Predictor
from clearmargin.sampling.samples import Member, SampledSegmenter, augmented
from clearmargin.train import train
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window
from clearmargin.transforms.turning import axis_codes, turn_to

CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=CODE, category=CODE),))
NETWORKS = {
    "semantic_cc_3d": {"network": "semantic_cc_3d", "filters": 8, "levels": 3, "patch": [8, 32, 32]},
    "semantic_cc": {"network": "semantic_cc", "filters": 8, "levels": 3},
}
GRID = Grid.from_spacing((10, 40, 34), (2.0, 0.8, 0.8))
STORED = ("SPL", "IAR", "LSP", "PRI")


def model_folder(place, name, axes="SPL", **options):
    """A network as it starts: what it marks depends on which axis is which, and on its direction."""
    torch.manual_seed(3)
    config = network_config(NETWORKS[name] | options)
    network = build_network(config, classes=1, channels=1, pretrained=True)
    image = ImageSettings(intensity=Window(low=0, high=1), channels=1, neighbours=0, axes=axes, crop=(64, 64))
    card = ModelCard(
        software="clearmargin test", model=config.model_dump(mode="json"), image=image, augment=AugmentSettings(),
        classes=label_map_entries(LABELS), show_in_tracking=True,
    )  # fmt: skip
    save_model(place / "model", card, network.state_dict())
    return place / "model"


def stored(image, codes):
    turn = turn_to(codes, image.grid)
    return image if turn is None else turn.image(image)


@pytest.fixture
def image():
    return Image(pixels=np.random.default_rng(0).random((1, *GRID.shape), np.float32), grid=GRID)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_objects_at_the_same_places(name, image, tmp_path):
    segmenter = load_segmenter(model_folder(tmp_path, name, smallest=4), device="cpu").with_threshold(0.0)
    expected = segmenter(image).instances
    assert sum(mask.area for mask in expected.masks) > 100
    for codes in STORED[1:]:
        other = stored(image, codes)
        prediction = segmenter(other)
        assert prediction.instances.grid is other.grid and prediction.image is other
        back = turn_to("SPL", other.grid)
        assert len(prediction.instances) == len(expected)
        for mask, before in zip(prediction.instances.masks, expected.masks, strict=True):
            assert (back.array(mask.dense()) == before.dense()).all()
    assert segmenter(stored(image, "SPL")).instances.grid is GRID


def test_a_model_without_axes_sees_what_is_stored(image, tmp_path):
    """Of a model of an earlier version; it shows, too, that the test above could fail."""
    segmenter = load_segmenter(model_folder(tmp_path, "semantic_cc_3d", axes=None), device="cpu")
    segmenter = segmenter.with_threshold(0.0)
    expected = segmenter(image).instances
    other = segmenter(stored(image, "IAR")).instances
    back = turn_to("SPL", other.grid)
    sums = [sum(mask.dense().astype(int) for mask in s.masks) for s in (back.instances(other), expected)]
    assert (sums[0] != sums[1]).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_and_sampled_instances_turn_back(name, image, tmp_path):
    segmenter = augmented(load_segmenter(model_folder(tmp_path, name), device="cpu")).with_threshold(0.0)
    expected, other = segmenter(image), segmenter(stored(image, "LSP"))
    back = turn_to("SPL", other.instances.grid)
    for key, values in other.maps.items():
        assert values.shape == other.instances.grid.shape
        assert np.abs(back.array(values) - expected.maps[key]).max() < 1e-6
    assert len(other.instances) == len(expected.instances) > 0
    for mask, before in zip(other.instances.masks, expected.instances.masks, strict=True):
        assert (back.array(mask.dense()) == before.dense()).all()


def test_members_that_learnt_other_axes_are_no_ensemble(tmp_path):
    folders = [model_folder(tmp_path / codes, "semantic_cc_3d", axes=codes) for codes in STORED[:2]]
    members = tuple(Member(segmenter=load_segmenter(folder, device="cpu")) for folder in folders)
    with pytest.raises(ConfigError, match="sees volumes with the axes SPL, another with IAR"):
        SampledSegmenter(members=members, mode="ensemble", choice=members[0].segmenter.choice)


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """Six volumes; every other one is stored in another order, at the same place in the world."""
    monkeypatch.chdir(tmp_path)
    card = write_toy_volumes(tmp_path / "data", spacing=(1.0, 1.5, 2.0), shape=(20, 40, 36))
    for k in (1, 5):
        for end in ("", "_labels"):
            path = tmp_path / "data" / f"t{k}{end}.nii.gz"
            image = read_volume(path)
            turned = turn_to("LAS", image.grid).image(image)
            write_volume(path, turned.pixels[0], turned.grid)
    return card


def test_training_reads_all_volumes_in_the_most_common_order(mixed, tmp_path):
    fingerprint = take_fingerprint(open_dataset(mixed))
    assert np.ptp(fingerprint.distances) == 0 and np.ptp(fingerprint.spacings, axis=0).max() == 0
    path = write_toy_experiment(tmp_path, mixed, epochs=1, steps_per_epoch=1)
    experiment = yaml.safe_load(path.read_text())
    experiment["model"] = NETWORKS["semantic_cc_3d"]
    experiment["image"] = {"intensity": {"kind": "window", "low": 0, "high": 255}, "channels": 1}
    path.write_text(yaml.safe_dump(experiment))
    model = train(path, track=False).model
    card = load_settings(model / "model.yaml", ModelCard)
    assert card.image.axes == axis_codes(read_volume(tmp_path / "data" / "t0.nii.gz").grid)
    assert card.domain.spacings == ((1.0, 1.0), (1.5, 1.5), (2.0, 2.0))


def test_volumes_of_other_channels_are_refused_by_name(mixed, tmp_path):
    path = tmp_path / "data" / "t2.nii.gz"
    image = read_volume(path)
    held = nibabel.load(path)
    both = np.stack([np.asarray(held.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(both, held.affine, held.header), path)
    assert read_volume(path).pixels.shape[0] == 2 and image.pixels.shape[0] == 1
    dataset = open_dataset(mixed)
    case = next(c for c in dataset.cases if c.image.name == "t2.nii.gz").case
    with pytest.raises(
        InputError, match=rf"^{case}: its image has 2 channel\(s\), other volumes of the card have 1"
    ):
        take_fingerprint(dataset)


@pytest.mark.parametrize(
    ("spacing", "options", "told"),
    [
        ((2.0, 0.8, 0.8), {}, None),
        ((2.9, 0.8, 0.8), {}, None),
        (
            (6.0, 0.8, 0.8),
            {},
            "its elements are 6 x 0.8 x 0.8 mm, those of the training images 2 x 0.8 x 0.8 mm: the",
        ),
        ((0.002, 0.0008, 0.0008), {}, "its elements are 0.002 x 0.0008 x 0.0008 mm"),
        ((6.0, 0.8, 0.8), {"spacing_mm": [2.0, 0.8, 0.8]}, None),
        ((2.0, 0.8, 80.0), {"spacing_mm": [2.0, 0.8, 0.8]}, "its elements are 2 x 0.8 x 80 mm"),
    ],
)
def test_other_voxels_than_in_training_are_told(spacing, options, told, tmp_path, image):
    folder = model_folder(tmp_path, "semantic_cc_3d", **options)
    card = yaml.safe_load((folder / "model.yaml").read_text())
    card["domain"] = {
        "modalities": [], "channels": [1], "lows": [0, 0.1], "highs": [0.9, 1], "dimensions": [3],
        "spacings": [[2.0, 2.0], [0.8, 0.8], [0.8, 0.8]],
    }  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    other = Image(pixels=image.pixels, grid=Grid.from_spacing(GRID.shape, spacing))
    warnings = Predictor(model=folder, device="cpu")._unlike(other)
    assert list(warnings) == [] if told is None else (len(warnings) == 1 and told in warnings[0])
    turned = stored(other, "LIP")  # the order in which it is stored is no difference
    assert Predictor(model=folder, device="cpu")._unlike(turned) == warnings
