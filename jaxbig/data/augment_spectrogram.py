"""Spectrograms: another tempo and throat, another microphone and stress.

Legend of the shape suffixes: B batch, T frames, F frequencies, K cosines.
"""

import dataclasses

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.augment import Draw, array_of
from jaxbig.data.augment_audio import lengths_after, spectrogram_of
from jaxbig.errors import UserError


@dataclasses.dataclass(frozen=True)
class Warp:
    """Stretches each spectrogram in time and in frequency, ``out[t, f] = in[a t, b f]``: another tempo, another throat.

    Between frames and between channels by straight lines; what lies behind the last of either reads as the last.

    Args:
        time: log a is uniform in ± log time.
        frequency: log b is uniform in ± log frequency.
        lengths: name in the batch of the number of frames of each example, integers [B], where they are padded: it is
            divided by a, and is at most T. None: there is no such number.
        inputs: name of the spectrograms, floats [B, T, F].

    Raises:
        UserError: a factor is below 1, or a batch without such arrays.

    Example:
        >>> x = Warp(1.25, 1.1)({"audio": np.ones((1, 9, 8))}, Draw(0, 0, np.arange(1)))["audio"]
        >>> x.shape, float(x.min())
        ((1, 9, 8), 1.0)

    Reference:
        Jaitly and Hinton (2013), "Vocal tract length perturbation (VTLP) improves speech recognition", which warps
        hertz, piecewise linearly, where we warp the channels of any scale. Deviation: the tempo too, whose pitch stays.
    """

    time: float = 1.1
    frequency: float = 1.1
    lengths: str | None = None
    inputs: str = "audio"

    def __post_init__(self) -> None:
        if min(self.time, self.frequency) < 1:
            raise UserError(f"Warp: time={self.time}, frequency={self.frequency}; use factors of 1 or more")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BTF = spectrogram_of(batch, self.inputs, "Warp")
        _, T, F = x_BTF.shape
        a_B, b_B = (
            np.exp(draw.uniform(name, -np.log(most), np.log(most)))
            for name, most in (("time", self.time), ("frequency", self.frequency))
        )
        out_BTF = _between(x_BTF, np.arange(T) * a_B[:, None])
        out_BTF = _between(out_BTF.transpose(0, 2, 1), np.arange(F) * b_B[:, None]).transpose(0, 2, 1)

        def divided(n_B: np.ndarray) -> np.ndarray:
            return np.minimum(np.ceil(n_B / a_B), T)

        out_BTF = np.ascontiguousarray(out_BTF, x_BTF.dtype)
        return batch | {self.inputs: out_BTF} | lengths_after(batch, self.lengths, divided)


@dataclasses.dataclass(frozen=True)
class Equalizer:
    """Another microphone, another stress: adds gains to each log spectrogram that are smooth over frequency and time::

        out[t, f] = in[t, f] + Σ_k g_k cos(π k (f + 1/2) / F) / sqrt(k) + Σ_k h_k cos(π k (t + 1/2) / T) / sqrt(k)

    with k = 1 ... K, g_k ~ N(0, frequency²) and h_k ~ N(0, time²).

    Args:
        frequency, time: deviations, in the unit of the spectrogram (1 of a natural logarithm of power is 4.3 dB).
        terms: K; the more, the less smooth.
        lengths: name in the batch of the number of frames of each example, integers [B], where they are padded: the T
            of its cosines. None: all T.
        inputs: name of the logarithmic spectrograms, floats [B, T, F].

    Raises:
        UserError: a deviation is negative or `terms` below 1, or a batch without such arrays.

    Example:
        >>> x = Equalizer(0.5)({"audio": np.zeros((1, 9, 8))}, Draw(0, 0, np.arange(1)))["audio"]
        >>> x.shape, float(np.ptp(x, axis=1).max()), bool(abs(x.mean()) < 1e-12)
        ((1, 9, 8), 0.0, True)

    Reference:
        the cosines are those of cepstra (Davis and Mermelstein, 1980): a fixed filter is a sum in the logarithm, which
        cepstral mean normalisation (Atal, 1974) takes away, with what the mean tells of the sounds; this keeps it.
    """

    frequency: float = 0.5
    time: float = 0.0
    terms: int = 4
    lengths: str | None = None
    inputs: str = "audio"

    def __post_init__(self) -> None:
        if min(self.frequency, self.time) < 0 or self.terms < 1:
            raise UserError(
                f"Equalizer: frequency={self.frequency}, time={self.time}, terms={self.terms}; use deviations of 0 or "
                "more, and at least one term"
            )

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BTF = spectrogram_of(batch, self.inputs, "Equalizer")
        B, T, F = x_BTF.shape
        frames_B = np.full(B, T) if self.lengths is None else np.maximum(array_of(batch, self.lengths), 1)
        of_frequency_BF = _smooth(draw.normal("frequency", (self.terms,)), F, np.full(B, F))
        of_time_BT = _smooth(draw.normal("time", (self.terms,)), T, frames_B)
        gains_BTF = self.frequency * of_frequency_BF[:, None] + self.time * of_time_BT[..., None]
        return batch | {self.inputs: x_BTF + gains_BTF.astype(x_BTF.dtype)}


def _between(x_BTF: np.ndarray, places_BT: np.ndarray) -> np.ndarray:
    """x at fractional places of axis 1, by straight lines."""
    last, row_B1 = x_BTF.shape[1] - 1, np.arange(len(x_BTF))[:, None]
    places_BT = np.clip(places_BT, 0, last)
    before_BT = places_BT.astype(np.int64)
    share_BT1 = (places_BT - before_BT)[..., None].astype(x_BTF.dtype)
    return (1 - share_BT1) * x_BTF[row_B1, before_BT] + share_BT1 * x_BTF[row_B1, np.minimum(before_BT + 1, last)]


def _smooth(weights_BK: np.ndarray, size: int, period_B: np.ndarray) -> np.ndarray:
    """Sums of the first cosines of a cosine transform of `period` places, at `size` places."""
    k_K1 = np.arange(1, weights_BK.shape[1] + 1)[:, None]
    cosines_BKT = np.cos(np.pi * k_K1 * ((np.arange(size) + 0.5) / period_B[:, None])[:, None])
    return ((weights_BK / np.sqrt(k_K1[:, 0]))[:, None] @ cosines_BKT)[:, 0]
