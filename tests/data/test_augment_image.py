"""Flips, windows, squares and colours, each against its definition written out one image at a time."""

import colorsys

import numpy as np
import pytest

from jaxbig.data import Draw
from jaxbig.data.augment_image import Crop, Cutout, Flip, Jitter, Pack
from jaxbig.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.random((400, 8, 6, 3), np.float32)
DRAW = Draw(0, 0, np.arange(400))
GREY = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize(("vertical", "axis"), [(False, 1), (True, 0)])
def test_flip_mirrors_its_share(vertical, axis):
    flipped = Flip(0.3, vertical)({"image": X}, DRAW)["image"]
    turned = [np.array_equal(one, np.flip(other, axis)) for one, other in zip(flipped, X, strict=True)]
    kept = [np.array_equal(one, other) for one, other in zip(flipped, X, strict=True)]
    assert all(np.add(turned, kept, dtype=int) == 1)
    assert abs(np.mean(turned) - 0.3) < 5 * np.sqrt(0.21 / 400)


@pytest.mark.parametrize(("mode", "pad"), [("constant", "constant"), ("nearest", "edge"), ("reflect", "symmetric")])
def test_crop_is_a_window_of_the_padded_image_and_all_windows_occur(mode, pad):
    cropped = Crop(2, mode)({"image": X}, DRAW)["image"]
    seen = set()
    for one, other in zip(cropped, X, strict=True):
        around = np.pad(other, ((2, 2), (2, 2), (0, 0)), pad)
        found = [(i, j) for i in range(5) for j in range(5) if np.array_equal(around[i : i + 8, j : j + 6], one)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 25


@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutout_covers_one_square_anywhere(size):
    covered = Cutout(size, 9.0)({"image": X}, DRAW)["image"]
    hidden = (covered == 9.0).all(-1)
    np.testing.assert_array_equal(covered[~hidden], X[~hidden])
    for one in hidden:
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        assert 1 <= len(rows) <= size
        assert one.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert (hidden.sum((1, 2)) == size**2).mean() > 0.3
    assert hidden.any(0).all()


def test_jitter_is_its_four_steps_one_after_the_other():
    act = Jitter(0.4, 0.5, 0.6, 0.0, high=None)
    factors = {
        name: DRAW.uniform(name, 1 - r, 1 + r)
        for name, r in (("brightness", 0.4), ("contrast", 0.5), ("saturation", 0.6))
    }
    ours = act({"image": X}, DRAW)["image"]
    for b in range(0, 400, 40):
        x = X[b].astype(np.float64) * factors["brightness"][b]
        x = (x @ GREY).mean() + factors["contrast"][b] * (x - (x @ GREY).mean())
        grey = (x @ GREY)[..., None]
        x = grey + factors["saturation"][b] * (x - grey)
        np.testing.assert_allclose(ours[b], x, atol=1e-5)
    whole = act({"image": (X * 255).astype(np.uint8)}, DRAW)["image"]
    assert whole.dtype == np.uint8
    assert np.abs(whole - np.clip(ours * 255, 0, 255)).max() < 3


def test_hue_turns_colours_and_keeps_brightness_and_greys():
    turned = Jitter(hue=0.5, high=None)({"image": X}, DRAW)["image"]
    np.testing.assert_allclose(turned @ GREY, X @ GREY, atol=2e-3)
    greys = np.repeat(X[..., :1], 3, axis=-1)
    np.testing.assert_allclose(Jitter(hue=0.5)({"image": greys}, DRAW)["image"], greys, atol=2e-3)
    # A third of a turn takes red to about green or blue, as it does in HSV.
    red = np.broadcast_to(np.float32([0.6, 0.4, 0.4]), (400, 1, 1, 3))
    hue = DRAW.uniform("hue", -0.5, 0.5)
    for angle, (r, g, b) in zip(hue, Jitter(hue=0.5, high=None)({"image": red}, DRAW)["image"][:, 0, 0], strict=True):
        off = abs((colorsys.rgb_to_hsv(r, g, b)[0] - angle + 0.5) % 1 - 0.5)
        mirrored = abs((colorsys.rgb_to_hsv(r, g, b)[0] + angle + 0.5) % 1 - 0.5)
        assert min(off, mirrored) < 0.09


def test_floats_are_cut_off_where_asked():
    assert (
        Jitter(1.0)({"image": X}, DRAW)["image"].max()
        == 1.0
        < Jitter(1.0, high=None)({"image": X}, DRAW)["image"].max()
    )


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: Flip(2), "p=2"),
        (lambda: Crop(-1), "padding=-1"),
        (lambda: Crop(1, "wrap"), "'wrap'"),
        (lambda: Cutout(0), "size=0"),
        (lambda: Jitter(2), "brightness=2"),
        (lambda: Jitter(hue=0.6), "between 0 and 0.5"),
        (lambda: Jitter(hue=0.1)({"image": X[..., :1]}, DRAW), "1 channels"),
        (lambda: Flip()({"image": X.astype(np.int32)}, DRAW), "int32"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)


def test_pack_keeps_each_square_together():
    packed = Pack(2)({"image": X, "label": DRAW.rows})
    assert packed["label"] is DRAW.rows
    for b, i, j in ((0, 0, 0), (3, 1, 2), (399, 3, 0)):
        square = X[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_array_equal(packed["image"][b, i, j], square.ravel())
    with pytest.raises(UserError, match="side=3 does not divide images of 8 x 6"):
        Pack(3)({"image": X})
