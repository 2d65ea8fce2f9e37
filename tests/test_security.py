"""What docs/security.md says, sentence by sentence; bounds and whole files are in test_faults.py."""

import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command import command
from toy import write_toy_experiment, write_toy_set

from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats import open_video, read_image
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.models import load_segmenter
from clearmargin.models.backbones import build_backbone, read_weights
from clearmargin.train import train
from clearmargin.training.checkpoint import restore_checkpoint


class Touch:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    before = Path.cwd()
    os.chdir(folder)
    try:
        card = write_toy_set(folder / "data")
        model = train(write_toy_experiment(folder, card, epochs=1)).model.resolve()
    finally:
        os.chdir(before)
    return folder, card, model


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
