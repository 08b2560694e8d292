"""Log-mel spectrograms of sound, as a pure function that runs under jit and has a gradient.

Legend of the shape suffixes: B batch, S samples, T frames, W samples of a window, K frequency bins, F mel filters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UserError


def frame_count(samples: Any, window: int = 400, hop: int = 160) -> Any:
    """Number of whole windows in so many samples: max(0, 1 + (samples - window) // hop).

    Args:
        samples: integer, or an array of them (the lengths of a padded batch).
        window, hop: as in `log_mel`.

    Returns:
        as `samples`.

    Example:
        >>> frame_count(560), frame_count(np.array([399, 400, 560])).tolist()
        (2, [0, 1, 2])
    """
    count = 1 + (samples - window) // hop
    return max(count, 0) if isinstance(samples, int) else count * (count > 0)


def mel_filters(rate: float, fft: int, mels: int, low: float = 0.0, high: float | None = None, scale: str = "slaney"):
    """Triangular filters whose corners are equally spaced on a mel scale.

    Filter f rises linearly in Hz from corner f to corner f + 1 and falls to corner f + 2. Mel of a frequency h in Hz::

        slaney   h / (200/3) below 1000 Hz, then 15 + 27 ln(h / 1000) / ln 6.4; filters of area 1, as librosa has them
        htk      2595 log10(1 + h / 700); filters of height 1, as torchaudio has them

    Args:
        rate: samples per second.
        fft: length of the Fourier transform; K = fft // 2 + 1.
        mels: number F of filters.
        low, high: the first and last corner, Hz; high None: rate / 2.
        scale: "slaney" or "htk".

    Returns:
        float64 NumPy array [K, F].

    Raises:
        UserError: an unknown scale, corners out of order or above rate / 2, or a filter without a single bin.

    Example:
        >>> mel_filters(8000, 256, 20).shape
        (129, 20)

    Reference:
        Stevens, Volkmann, Newman (1937) for the scale; Slaney (1998), "Auditory Toolbox"; Young et al., "The HTK book".
    """
    high = rate / 2 if high is None else high
    if scale not in ("slaney", "htk"):
        raise UserError(f"mel_filters: scale={scale!r}; use 'slaney' or 'htk'")
    if not 0 <= low < high <= rate / 2:
        raise UserError(f"mel_filters: low={low} and high={high} Hz; they have to rise and end at {rate / 2} Hz")
    to_mel, to_hertz = (_slaney, _slaney_inverse) if scale == "slaney" else (_htk, _htk_inverse)
    corners = to_hertz(np.linspace(to_mel(low), to_mel(high), mels + 2))
    bins_K1 = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    rise_KF = (bins_K1 - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall_KF = (corners[2:] - bins_K1) / (corners[2:] - corners[1:-1])
    filters_KF = np.maximum(0, np.minimum(rise_KF, fall_KF))
    empty = np.flatnonzero(~filters_KF.any(axis=0)).tolist()
    if empty:
        raise UserError(f"mel_filters: filters {empty} of {mels} lie between two bins; use fewer mels or a larger fft")
    return filters_KF * (2 / (corners[2:] - corners[:-2]) if scale == "slaney" else 1)


def _htk(hertz):
    return 2595 * np.log10(1 + hertz / 700)


def _htk_inverse(mel):
    return 700 * (10 ** (mel / 2595) - 1)


def _slaney(hertz):
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4))


def _slaney_inverse(mel):
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


def log_mel(
    wave_BS: jax.Array,
    rate: float,
    window: int = 400,
    hop: int = 160,
    mels: int = 80,
    fft: int | None = None,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    floor: float = 1e-10,
) -> jax.Array:
    """Logarithm of the power in each mel filter, frame by frame::

        X[t, k] = Σ_n hann[n] x[hop t + n] exp(-2πi k n / fft)      hann[n] = 0.5 - 0.5 cos(2π n / window)
        y[t, f] = ln max(Σ_k |X[t, k]|² filters[k, f], floor)

    Frames hold whole windows of the given samples; nothing is padded around the signal. Where a batch was padded to
    equal length, `frame_count` of the true lengths says which frames are real.

    Args:
        wave_BS: sound, of any number of batch axes.
        rate: samples per second.
        window, hop: length of a window and step to the next, in samples. The defaults are 25 ms and 10 ms at 16 kHz.
        mels, low, high, scale: see `mel_filters`.
        fft: length of the Fourier transform, at least `window`; None: the next power of two.
        floor: least power.

    Returns:
        array [B, T, F], T = frame_count(S, window, hop), in the wave's dtype, float32 at least.

    Raises:
        UserError: the sound is shorter than a window, `fft` than the window, or see `mel_filters`.

    Example:
        >>> log_mel(jnp.ones((2, 1600)), rate=16000, mels=40).shape
        (2, 8, 40)

    Reference:
        Davis and Mermelstein (1980), "Comparison of parametric representations for monosyllabic word recognition".
    """
    length = 2 ** (window - 1).bit_length() if fft is None else fft
    frames = frame_count(wave_BS.shape[-1], window, hop)
    if frames < 1:
        raise UserError(f"log_mel: {wave_BS.shape[-1]} samples are less than a window of {window}; pad them with zeros")
    if length < window:
        raise UserError(f"log_mel: fft={length} is shorter than the window of {window}; use at least that")
    wave_BS = wave_BS.astype(jnp.promote_types(wave_BS.dtype, jnp.float32))
    hann_W = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    starts_TW = np.arange(frames)[:, None] * hop + np.arange(window)
    frames_BTW = wave_BS[..., starts_TW] * jnp.asarray(hann_W, wave_BS.dtype)
    power_BTK = jnp.abs(jnp.fft.rfft(frames_BTW, length)) ** 2
    filters_KF = jnp.asarray(mel_filters(rate, length, mels, low, high, scale), wave_BS.dtype)
    return jnp.log(jnp.maximum(power_BTK @ filters_KF, floor))


def whisper_log_mel(wave_BS: jax.Array, mels: int = 80, seconds: float = 30) -> jax.Array:
    """Log-mel spectrograms as Whisper hears them: of 25 ms each 10 ms, in the loudest 80 dB::

        y = log10 max(power, 1e-10)
        z = (max(y, max y - 8) + 4) / 4

    with power as in `log_mel`, its frames centred on samples 0, 160, 320, ..., the sound mirrored at both ends.

    Args:
        wave_BS: sounds at 16,000 samples a second, -1 ... 1, of any number of batch axes. Shorter ones than `seconds`
            are followed by silence, longer ones cut.
        mels: number F of filters; large-v3 has 128.
        seconds: 30 in all published models.

    Returns:
        array [B, T, F], T = 100 * seconds, in the wave's dtype, float32 at least.

    Raises:
        UserError: `seconds` hold no more than half a window, or see `mel_filters`.

    Example:
        >>> whisper_log_mel(jnp.ones((2, 1600))).shape
        (2, 3000, 80)

    Reference:
        Radford et al. (2022), arXiv:2212.04356. Deviation from transformers: frames before filters, [B, T, F].
    """
    rate, window, hop = 16000, 400, 160
    samples = int(seconds * rate)
    half = window // 2
    if samples <= half:
        raise UserError(f"whisper_log_mel: {samples} samples cannot be mirrored at their ends; use more seconds")
    wave_BS = wave_BS[..., :samples]
    around = [(0, 0)] * (wave_BS.ndim - 1)
    wave_BS = jnp.pad(wave_BS, [*around, (0, samples - wave_BS.shape[-1])])
    wave_BS = jnp.pad(wave_BS, [*around, (half, half)], mode="reflect")
    # The frame around the end of the sound is left out, as Whisper leaves it.
    wave_BS = wave_BS[..., : samples // hop * hop + window - hop]
    y_BTF = log_mel(wave_BS, rate, window, hop, mels, fft=window) / np.log(10)
    return (jnp.maximum(y_BTF, y_BTF.max(axis=(-2, -1), keepdims=True) - 8) + 4) / 4
