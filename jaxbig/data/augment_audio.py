"""Sound: speed, shifting and noise for waveforms, masks for spectrograms.

Legend of the shape suffixes: B batch, T samples or frames, F frequencies.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.augment import Draw, array_of
from jaxbig.errors import UserError


@dataclasses.dataclass(frozen=True)
class Shift:
    """Moves each sound in time, ``out[t] = in[t - s]``, with zeros where nothing is left.

    Args:
        share: s is uniform in ± this share of the length T.
        lengths: name in the batch of the number of samples of each sound, integers [B], where they are filled up: it
            moves with them, so silence that comes in front counts. None: there is no such number.
        inputs: name of the waveforms [B, T], or of anything else with time on axis 1.

    Raises:
        UserError: `share` is not between 0 and 1, or a batch without such arrays.

    Example:
        >>> Shift(0.5)({"audio": np.ones((1, 8))}, Draw(0, 0, np.arange(1)))["audio"].shape
        (1, 8)
    """

    share: float = 0.1
    lengths: str | None = None
    inputs: str = "audio"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"Shift: share={self.share}; use a number between 0 and 1")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BT = _sound(batch, self.inputs, "Shift")
        T = x_BT.shape[1]
        most = int(self.share * T)
        by_B = draw.integers("shift", -most, most + 1)
        from_BT = np.arange(T) - by_B[:, None]
        out_BT = x_BT[np.arange(len(x_BT))[:, None], np.clip(from_BT, 0, T - 1)]
        out_BT[(from_BT < 0) | (from_BT >= T)] = 0
        return batch | {self.inputs: out_BT} | lengths_after(batch, self.lengths, lambda n_B: np.clip(n_B + by_B, 0, T))


@dataclasses.dataclass(frozen=True)
class Speed:
    """Plays each sound faster or slower, which moves its pitch and formants too: ``out[t] = in[a t]``.

    Args:
        low, high: log a is uniform between log low and log high.
        lengths: name in the batch of the number of samples of each sound, integers [B], where they are filled up: it is
            divided by a. None: there is no such number.
        inputs: name of the waveforms, floats [B, T].

    Raises:
        UserError: not 0 < low <= high, or a batch without such arrays.

    Example:
        >>> batch = {"audio": np.arange(8.0)[None], "length": np.array([6])}
        >>> fast = Speed(2, 2, lengths="length")(batch, Draw(0, 0, np.arange(1)))
        >>> fast["audio"].tolist(), fast["length"].tolist()
        ([[0.0, 2.0, 4.0, 6.0, 0.0, 0.0, 0.0, 0.0]], [3])

    Reference:
        Ko et al. (2015), "Audio augmentation for speech recognition". Deviations: between samples by straight lines
        without a filter, so what a faster sound moves above half the rate folds back; what a slower one moves behind
        the end is cut off.
    """

    low: float = 0.9
    high: float = 1.1
    lengths: str | None = None
    inputs: str = "audio"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise UserError(f"Speed: from low={self.low} to high={self.high}; give two factors above 0, smaller first")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BT = _sound(batch, self.inputs, "Speed")
        if x_BT.ndim != 2:
            raise UserError(f"Speed: {self.inputs} is {x_BT.shape}; give waveforms [B, T]")
        T = x_BT.shape[1]
        a_B = np.exp(draw.uniform("speed", np.log(self.low), np.log(self.high)))
        from_BT = np.arange(T) * a_B[:, None]
        before_BT = np.minimum(from_BT.astype(np.int64), T - 1)
        after_BT = np.minimum(before_BT + 1, T - 1)
        share_BT = from_BT - before_BT
        row_B1 = np.arange(len(x_BT))[:, None]
        out_BT = (1 - share_BT) * x_BT[row_B1, before_BT] + share_BT * x_BT[row_B1, after_BT]
        out_BT[from_BT > T - 1] = 0

        def divided(n_B: np.ndarray) -> np.ndarray:
            return np.minimum(np.ceil(n_B / a_B), T)

        return batch | {self.inputs: out_BT.astype(x_BT.dtype)} | lengths_after(batch, self.lengths, divided)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Adds white noise: ``out = x + n sqrt(mean x² / mean n² / 10^(snr / 10))``; silence stays silent.

    Args:
        low, high: the ratio of signal to noise is uniform in low ... high, decibels.
        inputs: name of the waveforms, floats [B, T, ...].

    Raises:
        UserError: `low` is above `high`, or a batch without such arrays.

    Example:
        >>> x = np.sin(np.arange(1000.0))[None]
        >>> n = Noise(20, 20)({"audio": x}, Draw(0, 0, np.arange(1)))["audio"] - x
        >>> round(float(10 * np.log10((x**2).mean() / (n**2).mean())), 3)
        20.0
    """

    low: float = 10.0
    high: float = 40.0
    inputs: str = "audio"

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError(f"Noise: from low={self.low} to high={self.high} dB; give the smaller one first")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BT = _sound(batch, self.inputs, "Noise")
        n_BT = draw.normal("noise", x_BT.shape[1:])
        axes = tuple(range(1, x_BT.ndim))
        # In float64, because a square of a quiet float16 is 0.
        power_B = np.square(x_BT, dtype=np.float64).mean(axis=axes, keepdims=True)
        ratio_B = 10 ** (draw.uniform("snr", self.low, self.high).reshape(power_B.shape) / 10)
        n_BT *= np.sqrt(power_B / np.square(n_BT).mean(axis=axes, keepdims=True) / ratio_B)
        return batch | {self.inputs: (x_BT + n_BT).astype(x_BT.dtype)}


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """Masks stretches of frequencies and of time in each spectrogram.

    Args:
        frequency_masks, frequency_width: so many masks, each of a width uniform in 0 ... frequency_width channels.
        time_masks, time_width, time_share: so many, each of a width uniform in 0 ... min(time_width, time_share * T).
        value: of what is masked; 0 is the mean of normalised spectrograms.
        lengths: name in the batch of the number of frames of each example, integers [B], where they are padded: time
            masks are placed among those. None: all T.
        inputs: name of the spectrograms, floats [B, T, F].

    Raises:
        UserError: a number is negative, or a batch without such arrays.

    Example:
        >>> x = SpecAugment(frequency_width=2, time_width=3)({"audio": np.ones((1, 9, 8))}, Draw(0, 0, np.arange(1)))
        >>> x["audio"].shape
        (1, 9, 8)

    Reference:
        Park et al. (2019), "SpecAugment: a simple data augmentation method for automatic speech recognition",
        arXiv:1904.08779; the defaults are its policy LD. Deviations: no time warping, which the paper finds to
        contribute least; a mask may reach the very last frame.
    """

    frequency_masks: int = 2
    frequency_width: int = 27
    time_masks: int = 2
    time_width: int = 100
    time_share: float = 1.0
    value: float = 0.0
    lengths: str | None = None
    inputs: str = "audio"

    def __post_init__(self) -> None:
        for name in ("frequency_masks", "frequency_width", "time_masks", "time_width", "time_share"):
            if getattr(self, name) < 0:
                raise UserError(f"SpecAugment: {name}={getattr(self, name)}; use 0 or more")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BTF = spectrogram_of(batch, self.inputs, "SpecAugment").copy()
        B, T, F = x_BTF.shape
        frames_B = np.full(B, T) if self.lengths is None else array_of(batch, self.lengths).astype(np.int64)
        widest_B = np.minimum(self.time_width, (self.time_share * frames_B).astype(np.int64))
        masks = [(1, f"time{i}", T, frames_B, widest_B) for i in range(self.time_masks)]
        bands_B, widest_band_B = np.full(B, F), np.full(B, min(self.frequency_width, F))
        masks += [(2, f"frequency{i}", F, bands_B, widest_band_B) for i in range(self.frequency_masks)]
        for axis, name, size, available_B, most_B in masks:
            width_B = draw.integers(f"{name}/width", 0, most_B + 1)
            first_B = draw.integers(f"{name}/first", 0, np.maximum(available_B - width_B, 0) + 1)
            places = np.arange(size)
            hidden = (places >= first_B[:, None]) & (places < (first_B + width_B)[:, None])
            np.copyto(x_BTF, self.value, where=hidden[:, :, None] if axis == 1 else hidden[:, None, :])
        return batch | {self.inputs: x_BTF}


def lengths_after(batch: Batch, name: str | None, change: Callable[[np.ndarray], np.ndarray]) -> Batch:
    """The lengths after a change, where there are any, in their own dtype."""
    if name is None:
        return {}
    lengths_B = array_of(batch, name)
    return {name: change(lengths_B).astype(lengths_B.dtype)}


def _sound(batch: Batch, name: str, who: str) -> np.ndarray:
    x = array_of(batch, name)
    if x.ndim < 2 or not np.issubdtype(x.dtype, np.floating):
        raise UserError(f"{who}: {name} is {x.dtype.name} {x.shape}; give floats [B, T] or [B, T, F]")
    return x


def spectrogram_of(batch: Batch, name: str, who: str) -> np.ndarray:
    """The array of that name, or an error of `who` if it is not floats [B, T, F]."""
    x = _sound(batch, name, who)
    if x.ndim != 3:
        raise UserError(f"{who}: {name} is {x.shape}; give spectrograms [B, T, F]")
    return x
