import numpy as np
import pytest

from clearmargin.sampling.maps import MAPS, Moments, entropy

HIGHEST = {"foreground": 0.5, "entropy": 1.0, "mutual_information": 1.0, "variance": 0.25}


def moments(*samples):
    found = Moments.zeros((2, 2))
    for sample in samples:
        found.add(np.full((2, 2), sample))
    return found


@pytest.mark.parametrize("name", [n for n in MAPS if n != "foreground"])
@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_certain_samples_give_zero(name, certain):
    assert (MAPS[name](moments(certain, certain, certain)) == 0).all()


@pytest.mark.parametrize("name", MAPS)
def test_samples_that_disagree_as_much_as_they_can_give_the_maximum(name):
    np.testing.assert_allclose(MAPS[name](moments(0.0, 1.0)), HIGHEST[name], atol=1e-6)


def test_a_coin_toss_that_all_agree_on_is_not_disagreement():
    same = moments(0.5, 0.5)
    np.testing.assert_allclose(MAPS["entropy"](same), 1.0)
    np.testing.assert_allclose(MAPS["mutual_information"](same), 0.0, atol=1e-6)
    np.testing.assert_allclose(MAPS["variance"](same), 0.0, atol=1e-9)


def test_by_hand():
    found = moments(0.2, 0.6)
    np.testing.assert_allclose(MAPS["foreground"](found), 0.4, atol=1e-6)
    np.testing.assert_allclose(MAPS["variance"](found), 0.04, atol=1e-6)
    h = -(0.4 * np.log2(0.4) + 0.6 * np.log2(0.6))
    np.testing.assert_allclose(MAPS["entropy"](found), h, atol=1e-6)
    mean_h = (entropy(np.array(0.2)) + entropy(np.array(0.6))) / 2
    np.testing.assert_allclose(MAPS["mutual_information"](found), h - mean_h, atol=1e-6)


@pytest.mark.parametrize(("compact", "within"), [(False, 1e-9), (True, 5e-4)])
def test_maps_of_many_samples_are_what_their_definitions_give(compact, within):
    """Also in few bits, and where samples agree closely: errors are a share of the value, and noise is none."""
    generator = np.random.default_rng(0)
    centre = generator.random((20, 30))
    samples = [np.clip(centre + generator.normal(0, 10.0 ** -(k % 4), centre.shape), 0, 1) for k in range(3)]
    samples += [np.clip(centre + generator.normal(0, 0.003, centre.shape), 0, 1) for _ in range(9)]
    for chosen in (samples, samples[3:], [centre] * 5):
        found = Moments.zeros(centre.shape, compact=compact)
        for sample in chosen:
            found.add(sample.astype(np.float32))
        every = np.stack(chosen).astype(np.float32).astype(np.float64)
        mean = every.mean(0)
        wanted = {
            "foreground": mean,
            "entropy": entropy(mean),
            "mutual_information": entropy(mean) - np.mean([entropy(p) for p in every], axis=0),
            "variance": every.var(0),
        }
        for name, values in wanted.items():
            np.testing.assert_allclose(
                MAPS[name](found), values, rtol=12 * within, atol=2e-6 if compact else 1e-7, err_msg=name
            )


def test_no_sample_is_no_map():
    with pytest.raises(ValueError, match="no sample"):
        MAPS["entropy"](Moments.zeros((2, 2)))
