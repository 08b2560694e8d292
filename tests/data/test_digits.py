"""The digits of scikit-learn."""

import sys

import numpy as np
import pytest

from jaxbig.data import load_digits
from jaxbig.errors import UserError


def test_digits_are_float32_images_between_zero_and_one():
    digits = load_digits()
    assert digits["image"].shape == (1797, 8, 8, 1)
    assert digits["image"].dtype == np.float32
    assert (digits["image"].min(), digits["image"].max()) == (0, 1)
    assert np.bincount(digits["label"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_without_scikit_learn_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'jaxbig\[digits\]'"):
        load_digits()
