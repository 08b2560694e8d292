"""Sound: what is moved, how loud the noise is, where the masks lie."""

import numpy as np
import pytest
from scipy import stats

from jaxbig.data import Draw
from jaxbig.data.augment_audio import Noise, Shift, SpecAugment, Speed
from jaxbig.errors import UserError

RNG = np.random.default_rng(0)
DRAW = Draw(0, 0, np.arange(500))


def test_shift_moves_and_fills_with_silence():
    x = np.arange(1, 21.0)[None].repeat(500, 0)
    moved = Shift(0.25)({"audio": x}, DRAW)["audio"]
    seen = set()
    for one in moved:
        (kept,) = np.nonzero(one)
        by = int(kept[0] + 1 - one[kept[0]])
        expected = np.concatenate([np.zeros(max(by, 0)), x[0], np.zeros(max(-by, 0))])[max(-by, 0) :][:20]
        np.testing.assert_array_equal(one, expected)
        seen.add(by)
    assert seen == set(range(-5, 6))


def test_shifted_lengths_are_where_the_sound_ends():
    lengths = np.arange(500) % 12 + 3
    x = (np.arange(20) < lengths[:, None]).astype(np.float32)
    moved = Shift(0.5, lengths="length")({"audio": x, "length": lengths.astype(np.int32)}, DRAW)
    ends = np.array([one.nonzero()[0][-1] + 1 if one.any() else 0 for one in moved["audio"]])
    np.testing.assert_array_equal(moved["length"], ends)
    assert moved["length"].dtype == np.int32
    assert len(np.unique(moved["length"] - lengths)) > 10


def test_speed_resamples_as_numpy_interpolates_and_moves_the_pitch():
    rate, hertz, lengths = 1000, 50, np.full(500, 600)
    tone = np.where(np.arange(1000) < 600, np.sin(2 * np.pi * hertz * np.arange(1000) / rate), 0)
    played = Speed(0.8, 1.25, lengths="length")({"audio": tone[None].repeat(500, 0), "length": lengths}, DRAW)
    factors = np.exp(DRAW.uniform("speed", np.log(0.8), np.log(1.25)))
    assert stats.kstest(np.log(factors), stats.uniform(np.log(0.8), 2 * np.log(1.25)).cdf).pvalue > 1e-3
    for a, one, length in zip(factors, played["audio"], played["length"], strict=True):
        np.testing.assert_allclose(one, np.interp(np.arange(1000) * a, np.arange(1000), tone, right=0), atol=1e-12)
        assert length == np.ceil(600 / a)
    slowest, fastest = played["audio"][[factors.argmin(), factors.argmax()]]
    peaks = [np.abs(np.fft.rfft(one[:480], 10_000)).argmax() / 10 for one in (slowest, fastest)]
    np.testing.assert_allclose(peaks, [hertz * 0.8, hertz * 1.25], rtol=0.02)


def test_noise_is_normal_white_and_as_loud_as_asked():
    x = RNG.normal(size=(500, 200)) * RNG.uniform(0.01, 10, (500, 1))
    n = Noise(3, 12)({"audio": x}, DRAW)["audio"] - x
    ratio = 10 * np.log10((x**2).mean(1) / (n**2).mean(1))
    np.testing.assert_allclose(ratio, DRAW.uniform("snr", 3, 12), atol=1e-9)
    scaled = (n / n.std(1, keepdims=True)).ravel()
    assert stats.kstest(scaled, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(scaled[:-1], scaled[1:])[0, 1]) < 5 / np.sqrt(len(scaled))
    silence = Noise()({"audio": np.zeros((2, 50), np.float32)}, Draw(0, 0, np.arange(2)))["audio"]
    assert silence.dtype == np.float32
    assert not silence.any()


def test_masks_are_stretches_of_the_widths_asked_for():
    x = np.ones((500, 40, 16), np.float32)
    time = SpecAugment(0, 0, 1, 6, value=-1.0)({"audio": x}, DRAW)["audio"] == -1
    band = SpecAugment(1, 5, 0)({"audio": x}, DRAW)["audio"] == 0
    for hidden, widest, size in ((time.all(2), 6, 40), (band.all(1), 5, 16)):
        widths = hidden.sum(1)
        assert stats.chisquare(np.bincount(widths, minlength=widest + 1)).pvalue > 1e-3
        for one in hidden:
            assert one.sum() in (0, np.ptp(np.flatnonzero(one)) + 1 if one.any() else 0)
        assert hidden.any(0).sum() == size
    assert time.any(2).sum() == time.all(2).sum()
    both = SpecAugment(2, 4, 2, 6)({"audio": x}, DRAW)["audio"] == 0
    assert both.all(2).sum(1).max() > 6
    assert both.all(1).sum(1).max() > 4


def test_time_masks_keep_to_the_frames_that_are_there_and_to_their_share():
    lengths = np.arange(500) % 20 + 10
    batch = {"audio": np.ones((500, 40, 8), np.float32), "frames": lengths}
    hidden = (SpecAugment(0, 0, 1, 100, 0.5, lengths="frames")(batch, DRAW)["audio"] == 0).all(2)
    assert not (hidden & (np.arange(40) >= lengths[:, None])).any()
    assert (hidden.sum(1) <= lengths * 0.5).all()
    assert hidden.sum(1).max() > 10


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: Shift(2), "share=2"),
        (lambda: Noise(5, 4), "low=5"),
        (lambda: Speed(0, 1), "low=0"),
        (lambda: Speed()({"audio": np.zeros((2, 5, 3))}, Draw(0, 0, np.arange(2))), "[B, T]"),
        (lambda: SpecAugment(time_width=-1), "time_width=-1"),
        (lambda: SpecAugment()({"audio": np.zeros((2, 5))}, Draw(0, 0, np.arange(2))), "[B, T, F]"),
        (lambda: Shift()({"audio": np.zeros(5)}, Draw(0, 0, np.arange(5))), "(5,)"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
