"""Spectrograms: what is stretched and what is amplified."""

import numpy as np
import pytest

from jaxbig.data import Draw
from jaxbig.data.augment_spectrogram import Equalizer, Warp
from jaxbig.errors import UserError

RNG = np.random.default_rng(0)
DRAW = Draw(0, 0, np.arange(500))


def test_warp_interpolates_along_both_axes_as_numpy_does():
    x = RNG.normal(size=(500, 12, 7))
    frames = np.arange(500) % 12 + 1
    warped = Warp(1.3, 1.2, lengths="frames")({"audio": x, "frames": frames.astype(np.int32)}, DRAW)
    tempo, throat = (np.exp(DRAW.uniform(n, -np.log(m), np.log(m))) for n, m in (("time", 1.3), ("frequency", 1.2)))
    for i in range(0, 500, 17):
        columns = [np.interp(np.arange(12) * tempo[i], np.arange(12), column) for column in x[i].T]
        rows = [np.interp(np.arange(7) * throat[i], np.arange(7), row) for row in np.array(columns).T]
        np.testing.assert_allclose(warped["audio"][i], rows, atol=1e-12)
    np.testing.assert_array_equal(warped["frames"], np.minimum(np.ceil(frames / tempo), 12))
    assert warped["frames"].dtype == np.int32
    np.testing.assert_array_equal(Warp(1, 1)({"audio": x}, DRAW)["audio"], x)


def test_equalizer_adds_gains_that_are_smooth_over_frequency_and_time():
    x, frames = RNG.normal(size=(500, 6, 9)), np.arange(500) % 6 + 1
    batch = {"audio": x, "frames": frames}
    gains = Equalizer(0.5, 0.3, 3, lengths="frames")(batch, DRAW)["audio"] - x
    g, h = DRAW.normal("frequency", (3,)) * 0.5, DRAW.normal("time", (3,)) * 0.3
    for t in range(6):
        for f in range(9):
            of_frequency = sum(g[:, k - 1] * np.cos(np.pi * k * (f + 0.5) / 9) / k**0.5 for k in (1, 2, 3))
            of_time = sum(h[:, k - 1] * np.cos(np.pi * k * (t + 0.5) / frames) / k**0.5 for k in (1, 2, 3))
            np.testing.assert_allclose(gains[:, t, f], of_frequency + of_time, atol=1e-12)
    assert Equalizer()({"audio": x.astype(np.float32)}, DRAW)["audio"].dtype == np.float32


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: Warp(time=0.5), "time=0.5"),
        (lambda: Warp()({"audio": np.zeros((2, 5))}, Draw(0, 0, np.arange(2))), "[B, T, F]"),
        (lambda: Equalizer(-1), "frequency=-1"),
        (lambda: Equalizer(terms=0), "terms=0"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
