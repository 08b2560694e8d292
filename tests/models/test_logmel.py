"""Log-mel spectrograms against their equations in NumPy and against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.models import frame_count, log_mel, mel_filters

WAVE = np.random.default_rng(0).normal(size=(2, 900))
OPTIONS = {"rate": 8000, "window": 200, "hop": 80, "mels": 20}


def filters(rate, fft, mels, low, high, scale):
    """One entry at a time, from the definition."""

    def mel(h):
        if scale == "htk":
            return 2595 * np.log10(1 + h / 700)
        return h / (200 / 3) if h < 1000 else 15 + np.log(h / 1000) / (np.log(6.4) / 27)

    frequencies = np.linspace(low, high, 200_001)
    corners = np.interp(np.linspace(mel(low), mel(high), mels + 2), [mel(h) for h in frequencies], frequencies)
    out = np.zeros((fft // 2 + 1, mels))
    for f in range(mels):
        a, b, c = corners[f : f + 3]
        for k in range(fft // 2 + 1):
            h = k * rate / fft
            if a <= h <= b:
                out[k, f] = (h - a) / (b - a)
            elif b < h < c:
                out[k, f] = (c - h) / (c - b)
        if scale == "slaney":
            out[:, f] *= 2 / (c - a)
    return out


def reference(wave, rate, window, hop, mels, fft, low, high, scale):
    """The equations, with the Fourier transform as a sum."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    k, n = np.arange(fft // 2 + 1)[:, None], np.arange(window)
    fourier = np.exp(-2j * np.pi * k * n / fft)
    frames = [wave[start : start + window] for start in range(0, len(wave) - window + 1, hop)]
    power = np.abs(np.stack([fourier @ (hann * frame) for frame in frames])) ** 2
    return np.log(np.maximum(power @ filters(rate, fft, mels, low, high, scale), 1e-10))


@pytest.mark.parametrize(
    ("scale", "fft", "low", "high"),
    [
        ("slaney", None, 0.0, None),
        ("htk", 200, 100.0, 3500.0),
        pytest.param("slaney", 300, 0.0, None, marks=pytest.mark.slow),
    ],
)
def test_log_mel_is_its_equations(scale, fft, low, high):
    with jax.enable_x64(True):
        ours = np.asarray(log_mel(jnp.asarray(WAVE), **OPTIONS, fft=fft, low=low, high=high, scale=scale))
    for wave, spectrogram in zip(WAVE, ours, strict=True):
        expected = reference(wave, 8000, 200, 80, 20, fft or 256, low, high or 4000.0, scale)
        # the corners of the reference are read off a table
        np.testing.assert_allclose(spectrogram, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_log_mel_is_that_of_transformers(scale):
    audio = pytest.importorskip("transformers.audio_utils")
    bank = audio.mel_filter_bank(129, 20, 60.0, 3800.0, 8000, "slaney" if scale == "slaney" else None, scale)
    np.testing.assert_allclose(mel_filters(8000, 256, 20, 60.0, 3800.0, scale), bank, rtol=1e-9, atol=1e-12)
    expected = audio.spectrogram(
        WAVE[0], audio.window_function(200, "hann"), 200, 80, fft_length=256, power=2.0, center=False,
        mel_filters=bank, mel_floor=1e-10, log_mel="log",
    )  # fmt: skip
    with jax.enable_x64(True):
        ours = np.asarray(log_mel(jnp.asarray(WAVE[0]), **OPTIONS, low=60.0, high=3800.0, scale=scale))
    # transformers keeps the spectrum in complex64
    np.testing.assert_allclose(ours, expected.T, rtol=1e-5, atol=1e-5)


def test_silence_has_the_floor_and_a_finite_gradient():
    y, gradient = jax.value_and_grad(lambda wave: log_mel(wave, **OPTIONS).sum())(jnp.zeros(400))
    assert float(y) == pytest.approx(3 * 20 * np.log(1e-10))
    assert np.isfinite(gradient).all()


def test_frames_of_a_padded_sound_are_those_of_the_sound():
    padded = log_mel(jnp.pad(jnp.asarray(WAVE[:1], jnp.float32), ((0, 0), (0, 500))), **OPTIONS)
    alone = log_mel(jnp.asarray(WAVE[:1], jnp.float32), **OPTIONS)
    count = frame_count(900, 200, 80)
    assert alone.shape[1] == count == 9
    np.testing.assert_allclose(padded[:, :count], alone, rtol=1e-5)
    assert frame_count(np.array([900, 199]), 200, 80).tolist() == [9, 0]


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: log_mel(jnp.ones(100), 8000, 200), "100 samples"),
        (lambda: log_mel(jnp.ones(900), **OPTIONS, fft=128), "fft=128"),
        (lambda: mel_filters(8000, 256, 20, scale="bark"), "'htk'"),
        (lambda: mel_filters(8000, 256, 20, high=5000), "4000"),
        (lambda: mel_filters(8000, 256, 200), "fewer mels"),
    ],
)
def test_errors_are_one_line_that_names_what_to_change(act, word):
    with pytest.raises(UserError) as caught:
        act()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
