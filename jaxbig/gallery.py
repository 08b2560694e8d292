"""A batch of data as one picture: images with their labels, recordings with their spectrograms, or rows of a table.

No global state of pyplot is touched.
"""

import functools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D

from jaxbig.theme import LIGHT, RC, WIDTH

_PLAIN: dict[Any, Any] = RC | {"axes.grid": False}
_MONO = FontProperties(family="monospace", size=7)
_LINE = 0.135  # inches from one line of the small print to the next
_CHARACTER = 0.0588  # and from one character to the next
_GAP = 3  # characters between columns
_WINDOW = 256
_DECIBELS = 70


def gallery(
    batch: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]] | None = None, rate: int | None = None
) -> Figure:
    """Draws a batch as what it holds: images, else recordings, else a table of rows.

    Args:
        batch: name -> array [B, ...]. Images are ``image`` or another uint8 array [B, H, W] or [B, H, W, C]; recordings
            are ``audio`` [B, T], with ``length`` [B] where they are filled up.
        classes: name of an array -> names of its codes.
        rate: samples a second of ``audio``.

    Returns:
        The figure.

    Raises:
        ValueError: the batch holds no examples.

    Example:
        >>> figure = gallery({"image": np.zeros((3, 8, 8, 1), np.uint8), "label": np.array([1, 0, 1])}, {"label": "ab"})
        >>> [axes.get_title() for axes in figure.axes]
        ['b', 'a', 'b', '']
    """
    if not batch or not _size(batch):
        raise ValueError("gallery: the batch holds no examples")
    classes = classes or {}
    name = _images_of(batch)
    with matplotlib.rc_context(_PLAIN):
        if name:
            return _images(batch[name], _titles(batch, classes))
        if rate and "audio" in batch:
            return _clips(batch, _titles(batch, classes), rate)
        return _rows(batch, classes)


def _size(batch: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))


def _images_of(batch: Mapping[str, np.ndarray]) -> str | None:
    pictures = [name for name, array in batch.items() if array.ndim in (3, 4) and array.dtype == np.uint8]
    return "image" if "image" in batch else pictures[0] if pictures else None


def _titles(batch: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """What stands above each example: its label, and in how far there are more such columns, those too."""
    names = [name for name, array in batch.items() if array.ndim == 1 and (name == "label" or name in classes)]
    return [", ".join(_cell(batch[name][i], classes.get(name)) for name in names) for i in range(_size(batch))]


def _images(images: np.ndarray, titles: list[str]) -> Figure:
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(WIDTH, WIDTH * rows / columns), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    low, high = (0, 255) if images.dtype == np.uint8 else (float(images.min()), float(images.max()))
    most = max(1, int(62 / columns))
    for axes, image, title in zip(grid, images, titles, strict=False):
        picture = (_flat_image(image).astype(np.float32) - low) / ((high - low) or 1)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(
            _drawn(textwrap.shorten(title, most, placeholder="…")), loc="center", fontsize=7, parse_math=False
        )
    for axes in grid:
        axes.axis("off")
    return figure


def _flat_image(image: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3]: of a volume its middle slice, of other numbers of channels their mean."""
    image = image[len(image) // 2] if image.ndim == 4 else image
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image.mean(axis=-1)
    return image


def _clips(batch: Mapping[str, np.ndarray], titles: list[str], rate: int) -> Figure:
    audio = batch["audio"]
    lengths = batch.get("length", np.full(len(audio), audio.shape[1]))
    longest = int(lengths.max())
    figure = Figure(figsize=(WIDTH, 0.5 + 0.95 * len(audio)), layout="constrained")
    grid = figure.subplots(len(audio), 2, sharex=True, squeeze=False)
    for (left, right), clip, length, title in zip(grid, audio, lengths, titles, strict=True):
        clip = clip[: int(length)]
        left.plot(np.arange(len(clip)) / rate, clip, color=LIGHT["c1"], linewidth=0.5)
        peak = float(np.abs(clip).max()) or 1.0
        left.set_ylim(-1.05 * peak, 1.05 * peak)
        left.set_yticks([-peak, 0, peak], [f"{-peak:.2g}", "0", f"{peak:.2g}"])
        left.set_title(_drawn(title), fontsize=8, parse_math=False)
        decibels = spectrogram(clip)
        right.imshow(
            decibels, origin="lower", aspect="auto", cmap="magma", vmin=decibels.max() - _DECIBELS, vmax=decibels.max(),
            extent=(0, len(clip) / rate, 0, rate / 2000),
        )  # fmt: skip
        right.set_ylabel("kHz", fontsize=7)
        left.set_xlim(0, longest / rate)
        for axes in (left, right):
            axes.tick_params(labelsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=8)
    return figure


def spectrogram(clip: np.ndarray, window: int = _WINDOW) -> np.ndarray:
    """Decibels of a recording's frequencies over time: Hann windows that overlap by three quarters.

    Args:
        clip: [T].
        window: samples in a window.

    Returns:
        float32 [window / 2 + 1, frames], 10 log10 of the power; silence is -120.

    Example:
        >>> tone = np.sin(2 * np.pi * 1000 * np.arange(2000) / 8000)
        >>> int(spectrogram(tone).mean(axis=1).argmax()) * 8000 // 256
        1000
    """
    clip = np.pad(np.asarray(clip, np.float32), (0, max(0, window - len(clip))))
    frames = np.lib.stride_tricks.sliding_window_view(clip, window)[:: window // 4]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1)) ** 2
    return (10 * np.log10(np.maximum(power, 1e-12))).T.astype(np.float32)


def _rows(batch: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]]) -> Figure:
    cells = {name: [_cell(value, classes.get(name)) for value in array] for name, array in batch.items()}
    right = [name for name, array in batch.items() if array.dtype.kind in "fiu" and name not in classes]
    widths = _widths(cells)
    rows = [_row({name: name for name in widths}, widths, right)]
    rows += [_row({name: cells[name][i] for name in widths}, widths, right) for i in range(_size(batch))]
    if len(widths) < len(cells):
        rows.append([f"and {len(cells) - len(widths)} more columns"])
    across = sum(widths.values()) + _GAP * (len(widths) - 1)
    width = 0.4 + _CHARACTER * max(across, 60)
    height = 0.3 + _LINE * (sum(map(len, rows)) + 0.5 * len(rows))
    figure = Figure(figsize=(width, height))
    y = 0.2
    for i, row in enumerate(rows):
        soft = i == 0 or i > _size(batch)
        for line in row:
            figure.text(
                0.2 / width, 1 - y / height, _drawn(line), fontproperties=_MONO, va="top", parse_math=False,
                color=LIGHT["soft"] if soft else LIGHT["ink"],
            )  # fmt: skip
            y += _LINE
        if i < len(rows) - 1:
            edges = [0.2 / width, 1 - 0.2 / width]
            rule = 1 - (y + 0.2 * _LINE) / height
            figure.add_artist(Line2D(edges, [rule, rule], color=LIGHT["rule"], linewidth=0.6))
        y += 0.5 * _LINE
    return figure


def _widths(cells: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Characters for each column that has room: what it needs, or for long text an even share of what is left."""
    room, least = 160, {name: min(max(len(name), *map(len, column)), 12) for name, column in cells.items()}
    chosen: dict[str, int] = {}
    for name, width in least.items():
        if sum(chosen.values()) + width + _GAP * (len(chosen) + 1) <= room:
            chosen[name] = width
    need = {name: max(len(name), *map(len, cells[name])) for name in chosen}
    for name in sorted(chosen, key=lambda name: need[name]):
        others = [other for other in chosen if need[other] > need[name] or other == name]
        spare = room - sum(chosen.values()) - _GAP * len(chosen)
        chosen[name] = min(need[name], chosen[name] + spare // max(len(others), 1))
    return chosen


def _row(values: Mapping[str, str], widths: Mapping[str, int], right: Sequence[str], most: int = 3) -> list[str]:
    """The lines of one row: text is wrapped, and after three lines it is cut off."""
    wrapped = {
        name: textwrap.wrap(values[name], width, max_lines=most, placeholder=" …") or [""]
        for name, width in widths.items()
    }
    lines = []
    for i in range(max(map(len, wrapped.values()))):
        cells = ((name, wrapped[name][i] if i < len(wrapped[name]) else "") for name in widths)
        padded = (cell.rjust(widths[name]) if name in right else cell.ljust(widths[name]) for name, cell in cells)
        lines.append((" " * _GAP).join(padded))
    return lines


def _cell(value: Any, names: Sequence[str] | None = None) -> str:
    if names is not None and np.ndim(value) == 0:
        code = int(value)
        return str(names[code]) if 0 <= code < len(names) else "missing" if code == -1 else str(code)
    if isinstance(value, np.ndarray) and value.ndim:
        return f"{value.dtype.name} {list(value.shape)}"
    if isinstance(value, (float, np.floating)):
        return "missing" if np.isnan(value) else f"{value:.6g}"
    return "missing" if value is None else " ".join(str(value).split())


def _drawn(text: str) -> str:
    """Text with a box for each character that the font lacks; matplotlib would warn of each."""
    known = _glyphs()
    return "".join(character if ord(character) in known else "□" for character in text)


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(findfont(_MONO)).get_charmap())
