"""What docs/security.md says, sentence by sentence; bounds and whole files are in test_faults.py."""

import os
import pickle
import resource
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
import yaml
from command import command
from toy import train_toy, write_toy_set

from clearmargin.config import parse_yaml
from clearmargin.core import Grid, Image
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.drafting.layout import DraftOptions
from clearmargin.datasets.drafting.nnunet import draft_nnunet
from clearmargin.datasets.naming import read_label_names
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import write_text
from clearmargin.formats import open_video, read_image
from clearmargin.formats.coco import read_coco_images
from clearmargin.formats.keypoints import read_coco_keypoints, read_point_rows, read_pose_frame
from clearmargin.formats.markups import read_markups
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.models import load_segmenter
from clearmargin.networks.backbones import build_backbone, read_weights
from clearmargin.outputs.folder import read_case
from clearmargin.report.run_page import report_page
from clearmargin.tracking.capsule import read_capsule
from clearmargin.training.checkpoint import restore_checkpoint


class Touch:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return train_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def no_network(monkeypatch):
    """Fail whatever looks up a host or connects to one."""

    def refuse(*_, **__):
        raise AssertionError("a server was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def changed(model, tmp_path, change):
    """Return a copy of a model folder with its model.yaml changed."""
    content = yaml.safe_load((model / "model.yaml").read_text())
    change(content)
    folder = tmp_path / "changed"
    folder.mkdir()
    (folder / "model.yaml").write_text(yaml.safe_dump(content))
    (folder / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
    return folder


# --- a model folder ---


def test_loading_and_using_a_model_asks_nobody(toy, no_network):
    folder, _, model = toy
    segmenter = load_segmenter(model, device="cpu")
    segmenter(read_image(folder / "data" / "t0.png"))


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18.a1_in1k",
        "hf_hub:x/y",
        "local-dir:/etc",
        "../x",
        "resnet18.a1_in1k",
        "ResNet18",
        "no_such",
    ],
)
def test_a_backbone_is_a_plain_name_of_timms(toy, tmp_path, no_network, name):
    _, _, model = toy
    with pytest.raises(ConfigError, match="plain name"):
        build_backbone(name, weights=None, pretrained=False, freeze_norm=True)
    folder = changed(model, tmp_path, lambda content: content["model"].update(backbone=name))
    write_raster(tmp_path / "a.png", np.zeros((32, 32), np.uint8))
    code, said = command("predict", tmp_path / "a.png", tmp_path / "out", "--model", folder)
    assert code == 2 and "no backbone" in said


def test_weights_that_are_a_pickle_are_refused_with_words(tmp_path):
    bait = tmp_path / "bait"
    for name, content in (("a.pth", {"state_dict": Touch(bait)}), ("b.pt", Touch(bait))):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match="pickle that holds more than tensors"):
            read_weights(tmp_path / name)
    with (tmp_path / "c.pth").open("wb") as stream:
        pickle.dump(Touch(bait), stream, protocol=2)
    (tmp_path / "d.safetensors").write_bytes(b"junk" * 40)
    (tmp_path / "e.pth").write_bytes(b"junk" * 40)
    torch.save([1, 2], tmp_path / "f.pth")
    for name in ("c.pth", "d.safetensors", "e.pth", "f.pth"):
        with pytest.raises(InputError, match=name):
            read_weights(tmp_path / name)
    assert not bait.exists()
    torch.save({"a": torch.zeros(2)}, tmp_path / "g.pth")
    assert list(read_weights(tmp_path / "g.pth")) == ["a"]


def test_a_checkpoint_that_is_a_pickle_is_refused(tmp_path):
    torch.save({"config": Touch(tmp_path / "bait")}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="more than tensors"):
        restore_checkpoint(None, tmp_path)  # type: ignore[arg-type]
    assert not (tmp_path / "bait").exists()


@pytest.mark.parametrize("place", ["weights.safetensors", "snapshots/epoch-00002.safetensors"])
def test_weights_under_the_right_name_that_are_a_pickle_run_nothing(toy, tmp_path, place):
    _, _, model = toy
    folder = changed(model, tmp_path, lambda content: None)
    (folder / "snapshots").mkdir()
    for epoch in (1, 2, 3):
        shutil.copy(folder / "weights.safetensors", folder / "snapshots" / f"epoch-0000{epoch}.safetensors")
    with (folder / place).open("wb") as stream:
        pickle.dump(Touch(tmp_path / "bait"), stream)
    write_raster(tmp_path / "a.png", np.zeros((32, 32), np.uint8))
    mode = ("--uncertainty", "checkpoints") if "snapshots" in place else ()
    code, said = command("predict", tmp_path / "a.png", tmp_path / "out", "--model", folder, *mode)
    assert code == 4 and "do not fit its configuration" in said
    assert not (tmp_path / "bait").exists()


@pytest.mark.parametrize("width", [64, 4096])
def test_weights_of_another_network_are_refused(toy, tmp_path, width):
    _, _, model = toy
    folder = changed(model, tmp_path, lambda content: content["model"].update(fpn_channels=width))
    with pytest.raises(InputError, match="of another network"):
        load_segmenter(folder, device="cpu")


@pytest.mark.parametrize(
    "sizes",
    [
        {"mask_layers": 10**9},
        {"mask_layers": 900, "mask_channels": 10**6},
        {"fpn_channels": 16 * 10**9},
        {"fpn_channels": 960_000, "box_features": 10**6},
        {"detections": 10**12},
        {"anchor_ratios": [1.0] * 90_000, "fpn_channels": 960_000},
    ],
    ids=" ".join,
)
def test_absurd_sizes_of_a_network_are_refused_before_it_is_built(toy, tmp_path, sizes):
    _, _, model = toy
    folder = changed(model, tmp_path, lambda content: content["model"].update(sizes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises((ConfigError, InputError), match=r"beyond any network|of another network"):
        load_segmenter(folder, device="cpu")
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_an_enlargement_beyond_the_limit_is_refused(toy, tmp_path):
    _, _, model = toy
    folder = changed(model, tmp_path, lambda content: content["image"].update(spacing_mm=1e-5))
    segmenter = load_segmenter(folder, device="cpu")
    image = Image(pixels=np.zeros((1, 64, 64), np.uint8), grid=Grid.from_spacing((64, 64), (1.0, 1.0)))
    with pytest.raises(InputError, match=r"wants the image enlarged by .*CLEARMARGIN_MAX_GIB"):
        segmenter(image)


@pytest.mark.parametrize("member", ["../other/model", "/etc", "a/../../b"])
def test_members_of_an_ensemble_lie_below_it(tmp_path, member):
    folder = tmp_path / "ensemble"
    folder.mkdir()
    (folder / "ensemble.yaml").write_text(yaml.safe_dump({"members": ["a/model", member]}))
    write_raster(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    code, said = command(
        "predict", tmp_path / "a.png", tmp_path / "out", "--model", folder, "--uncertainty", "ensemble"
    )
    assert code == 4 and "outside its own folder" in said


def test_the_folder_that_a_run_leaves_names_no_other_folder(toy):
    folder, _, model = toy
    for path in (model / "model.yaml",):
        assert str(folder) not in path.read_text()


# --- a data card ---


def card_with(tmp_path, **changes):
    folder = tmp_path / "given"
    card = write_toy_set(folder, cases=5)
    content = yaml.safe_load(card.read_text())
    for key, value in changes.items():
        section = content["cases"] if key in content["cases"] or key == "ignore" else content
        section[key] = value
    card.write_text(yaml.safe_dump(content))
    return card


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "../secret.png"},
        {"image": "/etc/{id}.png"},
        {"reference": "{id}_labels.png;../secret.png"},
        {"ignore": "../secret.png"},
        {"index": "../secret.csv"},
        {"index": "./../secret.csv"},
        {"root": ".."},
        {"root": "./../.."},
        {"root": "/"},
        {"root": "../../.."},
    ],
    ids=lambda c: next(f"{k} {v}" for k, v in c.items()),
)
def test_a_card_stays_below_its_root(tmp_path, monkeypatch, changes):
    monkeypatch.setenv("CLEARMARGIN_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    write_raster(tmp_path / "secret.png", np.ones((96, 128), np.uint8))
    (tmp_path / "secret.csv").write_text("id,split\nt0,train\n")
    card = card_with(tmp_path, **changes)
    code, said = command("data", "show", card, "--out", tmp_path / "sheet.png")
    assert code == 2 and "outside" in said and "--trust-cards" in said
    with pytest.raises(ConfigError, match="outside"):
        open_dataset(card)


def test_the_owner_of_a_card_may_say_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_TRUST_CARDS", "0")
    card = card_with(tmp_path, image="../{id}.png")
    for k in range(5):
        (tmp_path / f"t{k}.png").write_bytes((tmp_path / "given" / f"t{k}.png").read_bytes())
    assert command("data", "show", card, "--out", tmp_path / "sheet.png")[0] == 2
    code, said = command("--trust-cards", "data", "show", card, "--out", tmp_path / "sheet.png")
    assert code == 0 and (tmp_path / "sheet.png").is_file(), said


def test_a_folder_that_was_given_to_data_new_may_be_a_root(tmp_path, monkeypatch):
    write_toy_set(tmp_path / "images", cases=5)
    place = tmp_path / "cards"
    place.mkdir()
    monkeypatch.chdir(place)
    pictures = tmp_path / "pictures"
    (pictures / "img").mkdir(parents=True)
    (pictures / "msk").mkdir()
    for k in range(5):
        (pictures / "img" / f"t{k}.png").write_bytes((tmp_path / "images" / f"t{k}.png").read_bytes())
        (pictures / "msk" / f"t{k}.png").write_bytes((tmp_path / "images" / f"t{k}_labels.png").read_bytes())
    code, said = command(
        "data", "new", pictures, "--images", "img", "--masks", "msk", "--class", "disc", "--objects", "values",
        "--group", "none", "--modality", "OT", "--out", "card.yaml",
    )  # fmt: skip
    assert code == 0, said
    assert yaml.safe_load(Path("card.yaml").read_text())["root"].startswith("..")
    assert len(open_dataset(place / "card.yaml").cases) == 5


def test_data_lie_below_the_data_root_or_below_the_card(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_DATA", str(tmp_path / "data"))
    card = card_with(tmp_path)
    assert len(open_dataset(card).cases) == 5
    (tmp_path / "given").rename(tmp_path / "data")
    content = yaml.safe_load((tmp_path / "data" / "card.yaml").read_text())
    (tmp_path / "data").rename(tmp_path / "set")
    (tmp_path / "data").mkdir()
    (tmp_path / "set").rename(tmp_path / "data" / "set")
    elsewhere = tmp_path / "card.yaml"
    elsewhere.write_text(yaml.safe_dump(content | {"root": "set"}))
    assert len(open_dataset(elsewhere).cases) == 5


def test_links_in_the_datas_folder_are_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_DATA", str(tmp_path / "data"))
    card = card_with(tmp_path)
    (tmp_path / "given" / "t0.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "given" / "t0.png").symlink_to(tmp_path / "elsewhere.png")
    dataset = open_dataset(card)
    assert dataset.read(dataset.cases[0])[0].pixels.shape == (1, 96, 128)


@pytest.mark.parametrize(
    "template",
    [
        "{id.__class__}.png",
        "{id[0]}.png",
        "{id!r}.png",
        "{id:>99999999}.png",
        "{id:{split}}.png",
        "{0}.png",
        "{}.png",
        "{nothing}",
    ],
)
def test_templates_take_columns_and_nothing_else(tmp_path, template):
    with pytest.raises(ConfigError, match="template"):
        open_dataset(card_with(tmp_path, image=template))


# --- clips ---


def test_playlists_and_scripts_are_no_clips(tmp_path, no_network):
    write_video(tmp_path / "secret.mp4", [np.zeros((3, 32, 32), np.uint8)] * 3, 25)
    texts = {
        "a.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "b.mp4": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1.0,\n{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n",
        "c.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "d.mkv": "[playlist]\nFile1=secret.mp4\nNumberOfEntries=1\n",
        "e.ts": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "f.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period/></MPD>',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="not readable as a video"):
            open_video(tmp_path / name)
    assert open_video(tmp_path / "secret.mp4").frame_count == 3


def test_a_clip_whose_name_is_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", [np.zeros((3, 32, 32), np.uint8)] * 3, 25)
    for name in ("concat:a.mp4", "file:a.mp4", "%d.mp4"):
        (tmp_path / name).write_bytes((tmp_path / "a.mp4").read_bytes())
        assert open_video(Path(name)).frame_count == 3


# --- archives and texts ---


@pytest.mark.parametrize(("filler", "fits"), [("noise", True), ("zeros", False)])
def test_a_zip_beyond_the_limit_is_read_if_it_hardly_shrinks(tmp_path, monkeypatch, filler, fits):
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.001")
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.9.1"
    ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = "OT", "1.2.826.9.2", "1.2.826.9.3"
    ds.Rows = ds.Columns = ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 7, 0, 1
    ds.PhotometricInterpretation, ds.PixelData = "MONOCHROME2", bytes(64)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    other = os.urandom(2**21) if filler == "noise" else bytes(2**21)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.dcm", "a.dcm")
        archive.writestr("other.bin", other)
    if fits:
        assert read_image(tmp_path / "a.zip").grid.shape == (8, 8)
    else:
        with pytest.raises(InputError, match="CLEARMARGIN_MAX_GIB"):
            read_image(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "read",
    [
        read_coco_images,
        lambda path: read_coco_keypoints(path, "a.png"),
        lambda path: read_pose_frame(path, 0),
        lambda path: read_point_rows(path, ndim=2),
        read_markups,
        read_label_names,
        lambda path: read_capsule(path, "run"),
        lambda path: draft_nnunet(path.parent, DraftOptions()),
        lambda path: read_case(path.parent),
        lambda path: report_page(path.parent, title="a"),
    ],
)
@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a":' * 100_000, "[1, 2", "null", "[[]]", "{}", '{"labels": 1}']
)
def test_json_of_any_other_kind_is_refused_by_every_reader(tmp_path, read, content):
    for name in ("dataset.json", "manifest.json", "numbers.json", "points.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError):
        read(tmp_path / "dataset.json")


def test_how_deep_and_how_long_a_yaml_may_be():
    assert parse_yaml("a: " + "[" * 49 + "]" * 49, "it")
    with pytest.raises(ConfigError, match="over 50 levels deep"):
        parse_yaml("a: " + "[" * 50 + "]" * 50, "it")
    hundred = "a: &a [" + ", ".join(["1"] * 100) + "]\n"
    assert len(parse_yaml(hundred + "b: [" + ", ".join(["*a"] * 980) + "]", "it")["b"]) == 980
    with pytest.raises(ConfigError, match="more than 100000 values"):
        parse_yaml(hundred + "b: [" + ", ".join(["*a"] * 1000) + "]", "it")
    plain = "a: [" + ", ".join(["1"] * 150_000) + "]"  # as many as it has characters
    assert len(parse_yaml(plain, "it")["a"]) == 150_000


def test_a_draft_that_a_killed_run_left_is_replaced(tmp_path):
    """The draft is found by stopping midway, as a kill does: without a chance to tidy up."""
    stopped = f"""
import os
from pathlib import Path
from clearmargin.files import whole
with whole(Path({str(tmp_path / "a.txt")!r})) as draft:
    draft.write_text("half")
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", stopped], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    write_text(tmp_path / "a.txt", "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "whole"
