"""The guard against leakage: by name, by content, and a sentence about what could not be checked."""

import numpy as np
import pytest

from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.contents import image_content
from clearmargin.errors import InputError
from clearmargin.margins.groups import check_unseen
from clearmargin.sampling.seen import Seen

KEY, CARD = "key-0a", "nuclei"


def seen(groups=("u1",), contents=("c1",), keys=(KEY,), cards=(CARD,)):
    return Seen(
        groups=frozenset(groups), contents=frozenset(contents), keys=frozenset(keys), cards=frozenset(cards)
    )


def check(groups, contents, known):
    return check_unseen(groups, contents, known, key=KEY, card=CARD)


def test_a_groups_is_refused_by_name_and_an_image_by_content_without_their_names():
    assert (
        check(["u2"], ["c2"], seen()) == "no group was trained on, by name and by the content of its images"
    )
    for groups, contents in ((["u1", "u2"], ["c8", "c9"]), (["u8", "u9"], ["c1", "c2"])):
        with pytest.raises(InputError, match="trained or chosen on 1 of 2 calibration groups") as caught:
            check(groups, contents, seen())
        assert "u1" not in str(caught.value) and "c1" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"keys": ("key-0b",)}, "another user's key"), ({"cards": ("cells",)}, "another name")],
)
def test_another_key_or_card_is_checked_by_content_and_that_is_said(changed, why):
    said = check(["u2"], ["c2"], seen(**changed))
    assert "could not be compared by name" in said and why in said and "same patients would pass" in said
    with pytest.raises(InputError, match="trained or chosen on"):
        check(["u2"], ["c1"], seen(**changed))
    with pytest.raises(InputError, match=r"cannot be checked.*train it again"):
        check(["u2"], ["c2"], seen(contents=(), **changed))


def test_a_model_without_contents_is_checked_by_name_and_that_is_said():
    assert "images could not be compared" in check(["u2"], ["c2"], seen(contents=()))


def test_the_content_is_that_of_the_values():
    grid = Grid.from_spacing((4, 5))
    values = np.arange(20, dtype=np.uint8).reshape(1, 4, 5)

    def content(pixels, case="a", own=grid):
        return image_content(Image(pixels=pixels, grid=own, source=Source(case=case)))

    assert content(values) == content(values.astype(np.float64), case="another name")
    changed = values.copy()
    changed[0, 0, 0] += 1
    assert (
        len(
            {
                content(values),
                content(changed),
                content(values.reshape(1, 5, 4), own=Grid.from_spacing((5, 4))),
            }
        )
        == 3
    )
    volume = Grid.from_spacing((2, 2, 5))
    assert len(content(values.reshape(1, 2, 2, 5), own=volume)) == 16
