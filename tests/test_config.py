import math
from pathlib import Path

import pytest
import yaml

from clearmargin.config import Settings, apply_overrides, digest, load_settings, parse_yaml, validate
from clearmargin.errors import ConfigError
from clearmargin.networks import network_config


class Inner(Settings):
    depth: int = 2
    num_classes: int = 1


class Outer(Settings):
    name: str
    inner: Inner = Inner()


def test_all_problems_are_listed_at_once_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        validate({"inner": {"depth": "x", "num_clases": 2}}, Outer, name="ct.yaml")
    message = str(caught.value)
    assert message.startswith("ct.yaml does not fit Outer:")
    assert "name: Field required" in message
    assert "inner.depth: Input should be a valid integer" in message
    assert "inner.num_clases: unknown (did you mean num_classes?)" in message


def test_overrides_pass_the_same_check(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: x\n")
    assert load_settings(path, Outer, ["inner.depth=5"]).inner.depth == 5
    with pytest.raises(ConfigError, match=r"inner\.dept: unknown"):
        load_settings(path, Outer, ["inner.dept=5"])
    with pytest.raises(ConfigError, match=r"expected a\.b=value"):
        apply_overrides({}, ["inner.depth"])


@pytest.mark.parametrize(("text", "message"), [("- 1", "key: value"), ("a: [", "is not YAML")])
def test_what_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(path, Outer)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: {c: 2}\na: 3", 3), ("a:\n- x: 1\n  y: [1, {z: 2}]\n  x: 3", 4), ("{a: {b: 1, 'b': 2}}", 1)],
)
def test_a_key_twice_is_refused_with_its_line(text, line):
    with pytest.raises(ConfigError, match=rf"t.yaml has the key '[axb]' twice \(line {line}\)"):
        parse_yaml(text, "t.yaml")


def test_one_key_in_two_mappings_is_none_twice():
    text = "d: &d {x: 1, y: 2}\na: {<<: *d, x: x}\nb: [{x: 1}, {x: 2}, x, x]\n? {x: 1}\n: 3"
    with pytest.raises(ConfigError, match="is not YAML"):  # a mapping as a key is none in Python
        parse_yaml(text, "t.yaml")
    assert parse_yaml(text.partition("\n?")[0], "t.yaml") == yaml.safe_load(text.partition("\n?")[0])


@pytest.mark.parametrize("network", ["mask_rcnn", "yolact"])
@pytest.mark.parametrize("size", [0, -8, math.inf, math.nan])
def test_sizes_of_anchors_are_above_0_and_finite(network, size):
    with pytest.raises(ConfigError, match=r"anchor_sizes\.2: "):
        network_config({"network": network, "anchor_sizes": [16, 32, size, 64, 128]})


def test_a_missing_file_names_what_was_typed():
    with pytest.raises(ConfigError, match=r"no file 'nowhere.yaml'"):
        load_settings(Path("nowhere.yaml"), Outer)


def test_digest_tells_settings_apart():
    assert digest(Outer(name="a")) == digest(Outer(name="a", inner=Inner(depth=2)))
    assert digest(Outer(name="a")) != digest(Outer(name="a", inner=Inner(depth=3)))


def test_unknown_network_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no model 'maskrcnn': did you mean 'mask_rcnn'\?"):
        network_config({"network": "maskrcnn"})


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_configuration_fits(path):
    from clearmargin.training.experiment import Experiment

    experiment = load_settings(path, Experiment)
    assert network_config(experiment.model).model_dump()["network"] == experiment.model["network"]
    assert (path.parent.parent / experiment.card).is_file()
    assert experiment.name == path.stem
