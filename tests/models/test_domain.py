"""What a model was trained on, and what is not of that kind."""

import numpy as np
import pytest

from clearmargin.core import Grid, Image, Source
from clearmargin.models.domain import domain_of, mismatch
from clearmargin.transforms.settings import Percentiles, Window

HOUNSFIELD = Window(low=-150, high=250)


def image(low, high, *, channels=1, modality="", colour=False, seed=0):
    rng = np.random.default_rng(seed)
    grey = rng.uniform(low, high, (1, 64, 64))
    pixels = np.repeat(grey, channels, axis=0)
    if colour:
        pixels[0, 10:40, 10:40] = high
        pixels[1:, 10:40, 10:40] = low
    return Image(pixels=pixels, grid=Grid.from_spacing((64, 64)), source=Source(modality=modality))


CT = domain_of(image(-1000, high, modality="CT", seed=k) for k, high in enumerate((900, 1500, 1200)))


def test_a_domain_holds_the_training_images_in_a_few_facts():
    assert CT.modalities == ("CT",) and CT.channels == (1,)
    assert CT.lows == pytest.approx((-1000, -1000), abs=30)
    assert CT.highs == pytest.approx((900, 1500), abs=30)


def test_an_image_of_the_kind_passes():
    difference = mismatch(CT, image(-1000, 1100, modality="CT"), HOUNSFIELD)
    assert difference.refusals == difference.warnings == ()


def test_another_modality_is_refused():
    (reason,) = mismatch(CT, image(-1000, 1100, modality="MR"), HOUNSFIELD).refusals
    assert reason == "the model was trained on CT, and this image is MR"


def test_a_colour_doppler_picture_is_refused_and_grey_stored_as_colour_is_not():
    doppler = image(-1000, 1100, channels=3, colour=True)
    assert "grey images, and this one is colour" in mismatch(CT, doppler, HOUNSFIELD).refusals[0]
    assert mismatch(CT, image(-1000, 1100, channels=3), HOUNSFIELD).refusals == ()


def test_grey_for_colour_is_looked_at_by_a_person():
    domain = domain_of([image(0, 255, channels=3, colour=True, modality="ES")])
    difference = mismatch(domain, image(0, 255), Percentiles())
    assert difference.refusals == () and "colour images, and this one is grey" in difference.warnings[0]


def test_values_beyond_the_window_are_refused_and_eight_bits_for_hounsfield_units_are_warned_of():
    beyond = mismatch(CT, image(4000, 9000), HOUNSFIELD)
    assert "lie outside the model's window of -150 to 250" in beyond.refusals[0]
    eight_bits = mismatch(CT, image(0, 255), HOUNSFIELD)
    assert eight_bits.refusals == () and "are not like those of the training images" in eight_bits.warnings[0]
    assert mismatch(CT, image(0, 255), HOUNSFIELD, displayed=True).warnings == ()
    assert mismatch(CT, image(4000, 9000), Percentiles()).refusals == ()


@pytest.mark.parametrize("values", [(-1100, 1207), (0, 3057), (0, 1)])
def test_values_of_another_kind_are_warned_of_under_percentiles_too(values):
    """CT, MR and fractions given to a model of 8-bit ultrasound pictures; another ultrasound picture passes."""
    ultrasound = domain_of(image(5 * k, 200 + 20 * k, modality="US", seed=k) for k in range(3))
    (reason,) = mismatch(ultrasound, image(*values), Percentiles()).warnings
    assert "not like those of the training images" in reason
    assert mismatch(ultrasound, image(0, 255), Percentiles()).warnings == ()


def test_a_volume_given_to_a_model_of_pictures_is_warned_of():
    ultrasound = domain_of([image(0, 255, modality="US")])
    volume = Image(pixels=np.repeat(image(0, 255).pixels[:, None], 4, 1), grid=Grid.from_spacing((4, 64, 64)))
    (reason,) = mismatch(ultrasound, volume, Percentiles()).warnings
    assert reason == "the model was trained on pictures, and this is a volume"


@pytest.mark.parametrize(("trained", "own"), [("ES", "XC"), ("CR", "DX"), ("CT", "OT"), ("OT", "CT")])
def test_modalities_that_look_alike_or_say_nothing_pass(trained, own):
    domain = domain_of([image(0, 255, modality=trained)])
    assert mismatch(domain, image(0, 255, modality=own), Percentiles()).refusals == ()


def test_an_image_without_a_finite_value_has_a_range_of_zero():
    empty = Image(pixels=np.full((1, 8, 8), np.nan), grid=Grid.from_spacing((8, 8)))
    assert domain_of([empty]).lows == (0, 0)


def test_a_volume_of_volumes_is_told_as_one():
    (reason,) = mismatch(CT, image(-1000, 1100, channels=2), HOUNSFIELD).refusals
    assert "colour" not in reason and "2-channel" in reason  # a picture
    volume = Grid.from_spacing((2, 8, 8), (2.0, 1.0, 1.0))
    noise = np.random.default_rng(0).uniform(-1000, 1100, (2, *volume.shape)).astype(np.float32)
    (reason,) = mismatch(CT, Image(pixels=noise, grid=volume), HOUNSFIELD).refusals
    assert "this one is 4-D, with 2 volumes" in reason and "a file of its own" in reason
