"""One resampling against scipy.ndimage, Keras's matrices, and its own inverse."""

import numpy as np
import pytest
from scipy import ndimage

from jaxbig.data import Draw
from jaxbig.data.augment_affine import Affine, resample
from jaxbig.errors import UserError

RNG = np.random.default_rng(0)


def by_scipy(x, matrices, offsets, mode, value):
    planes = [
        [ndimage.affine_transform(x[b, ..., c].astype(float), m, o, order=1, mode=mode, cval=value) for c in range(3)]
        for b, (m, o) in enumerate(zip(matrices, offsets, strict=True))
    ]
    return np.moveaxis(np.array(planes), 1, -1)


@pytest.mark.parametrize("mode", ["nearest", "constant", "reflect"])
@pytest.mark.parametrize("shape", [(9, 14), (1, 6), (6, 1), (2, 2)])
def test_resampling_is_scipys(mode, shape):
    x = RNG.random((5, *shape, 3))
    act = Affine(180, 0.7, 40, (0.3, 3.0), mode, 0.25)
    matrices, offsets = act.matrices(Draw(0, 0, np.arange(5)), *shape)
    ours = resample(x.astype(np.float32), matrices, offsets, mode, 0.25)
    theirs = by_scipy(x, matrices, offsets, mode, 0.25)
    # Places are float32 here: an error of 1e-6 of the image's size.
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    whole = resample((x * 255).astype(np.uint8), matrices, offsets, mode, 7)
    assert whole.dtype == np.uint8
    theirs = by_scipy((x * 255).astype(np.uint8), matrices, offsets, mode, 7)
    assert np.abs(whole - theirs).max() < 0.51


def keras_matrix(theta, tx, ty, shear, zx, zy, height, width):
    """Keras's order: rotation, shift, shear, zoom, all about the middle; angles in degrees."""
    theta, shear = np.deg2rad([theta, shear])
    turned = np.array([[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]])
    shifted = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    sheared = np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
    middle = np.array([[1, 0, height / 2 - 0.5], [0, 1, width / 2 - 0.5], [0, 0, 1]])
    return middle @ turned @ shifted @ sheared @ np.diag([zx, zy, 1]) @ np.linalg.inv(middle)


def test_matrices_are_kerass_over_the_ranges_asked_for():
    act, draw = Affine(20, 0.1, 0.2, 0.3), Draw(3, 1, np.arange(2000))
    matrices, offsets = act.matrices(draw, 28, 20)
    theta, shear = draw.uniform("rotate", -20, 20), draw.uniform("shear", -0.2, 0.2)
    zoom, shift = draw.uniform("zoom", 0.7, 1.3, (2,)), draw.uniform("shift", -0.1, 0.1, (2,)) * (28, 20)
    for b in range(0, 2000, 100):
        full = keras_matrix(theta[b], *shift[b], shear[b], *zoom[b], 28, 20)
        np.testing.assert_allclose(matrices[b], full[:2, :2], atol=1e-12)
        np.testing.assert_allclose(offsets[b], full[:2, 2], atol=1e-12)
    # The determinant is the product of the zooms, but for a fifth of a degree of shear.
    areas = np.linalg.det(matrices)
    np.testing.assert_allclose(areas, zoom.prod(1), rtol=1e-5)
    assert areas.min() < 0.6 < 1.5 < areas.max()


@pytest.mark.parametrize("mode", ["nearest", "constant", "reflect"])
def test_nothing_to_do_changes_no_bit(mode):
    for x in (RNG.random((3, 7, 5, 2), np.float32), RNG.integers(0, 256, (3, 7, 5, 2), np.uint8)):
        batch = Affine(mode=mode, value=9)({"image": x}, Draw(0, 0, np.arange(3)))
        np.testing.assert_array_equal(batch["image"], x)


def test_many_images_are_resampled_as_each_alone():
    x = RNG.random((40, 50, 50, 1), np.float32)
    act = Affine(180, 0.7, 40, 0.5)
    matrices, offsets = act.matrices(Draw(0, 0, np.arange(40)), 50, 50)
    whole = resample(x, matrices, offsets)
    for b in (0, 11, 12, 13, 39):
        np.testing.assert_array_equal(resample(x[b : b + 1], matrices[b : b + 1], offsets[b : b + 1])[0], whole[b])


def test_a_quarter_turn_is_exact():
    x = RNG.random((1, 6, 6, 1), np.float32)
    turn = np.array([[[0.0, -1.0], [1.0, 0.0]]])
    ours = resample(x, turn, np.array([[5.0, 0.0]]), "constant", 9)
    np.testing.assert_array_equal(ours[0, ..., 0], np.rot90(x[0, ..., 0], -1))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"zoom": 1.0}, "zoom from 0.0"),
        ({"zoom": (2.0, 1.0)}, "zoom from 2.0"),
        ({"mode": "wrap"}, "'wrap'"),
        ({"rotate": -1}, "use numbers from 0"),
    ],
)
def test_errors_say_what_and_how_to_mend(arguments, word):
    with pytest.raises(UserError, match=word):
        Affine(**arguments)
