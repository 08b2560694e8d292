"""Pictures of what a model does: confusion matrices, filters, saliency, as pure functions to matplotlib figures.

No global state of pyplot is touched, and every figure can also be saved by itself (`figure.savefig("a.png")`).
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from jaxbig.theme import LIGHT, RC, WIDTH

_PLAIN: dict[Any, Any] = RC | {"axes.grid": False}

# From nothing to opaque, so that an empty cell is the page's own colour in both themes; a single example already shows.
_SHADES = LinearSegmentedColormap.from_list(
    "shades", [(0.0, (0.0, 0.45, 0.7, 0.0)), (0.001, (0.0, 0.45, 0.7, 0.2)), (1.0, (0.0, 0.35, 0.62, 1.0))], N=1024
)


def confusion(matrix: Any, classes: Sequence[str], rates: bool = False) -> Figure:
    """A confusion matrix: the true class down, the predicted one across, counts in the cells.

    Args:
        matrix: (classes, classes) counts; `matrix[i, j]` examples of class i were taken for class j.
        classes: the classes' names.
        rates: in the cells stand percents of the true class in place of counts, and those below a half are left out.

    Returns:
        The figure; a cell's shade is its share of the true class.

    Raises:
        ValueError: the matrix is not square, or not as large as `classes` is long.

    Example:
        >>> confusion([[9, 1], [0, 10]], ["cat", "dog"]).axes[0].get_ylabel()
        'true'
    """
    counts = np.asarray(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion: matrix is {counts.shape}, but there are {len(classes)} classes")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context(_PLAIN):
        size = min(WIDTH, 1.6 + 0.42 * len(classes))
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap=_SHADES, vmin=0, vmax=1, interpolation="none")
        for i, j in np.ndindex(*counts.shape):
            told = f"{100 * share[i, j]:.0f}" if rates else f"{counts[i, j]:,}"
            if counts[i, j] and told != "0":
                colour = "#ffffff" if share[i, j] > 0.5 else LIGHT["ink"]
                axes.text(j, i, told, ha="center", va="center", color=colour)
        axes.set_xticks(range(len(classes)), [str(c) for c in classes])
        axes.set_yticks(range(len(classes)), [str(c) for c in classes])
        edges = np.arange(len(classes) + 1) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", visible=True, axis="both")
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted, % of the true class" if rates else "predicted")
        axes.set_ylabel("true")
    return figure


def filters(kernel_HWIO: Any) -> Figure:
    """A convolution's kernels as small pictures, one an output channel.

    Args:
        kernel_HWIO: (height, width, inputs, outputs). With three inputs the pictures are in colour; with other numbers
            they show the mean over the inputs, blue below zero and red above.

    Returns:
        The figure, all pictures on one scale.

    Raises:
        ValueError: the kernel has not four axes.

    Example:
        >>> import numpy as np
        >>> len(filters(np.ones((3, 3, 1, 8))).axes)
        8
    """
    kernel = np.asarray(kernel_HWIO, dtype=np.float32)
    if kernel.ndim != 4:
        raise ValueError(f"filters: the kernel has the shape {kernel.shape}, not (height, width, inputs, outputs)")
    limit = float(np.abs(kernel).max()) or 1.0
    pictures = [kernel[..., o] for o in range(kernel.shape[-1])]
    if kernel.shape[2] == 3:
        return _gallery([(picture / limit + 1) / 2 for picture in pictures])
    means = [picture.mean(axis=-1) for picture in pictures]
    limit = max(float(np.abs(mean).max()) for mean in means) or 1.0
    return _gallery(means, cmap="RdBu_r", vmin=-limit, vmax=limit)


def saliency(images: Any, maps: Any, labels: Sequence[str]) -> Figure:
    """Images above the maps that say where a model looked.

    Args:
        images: (count, height, width) or (count, height, width, channels), channels 1 or 3.
        maps: (count, height, width); each is scaled by its own largest magnitude.
        labels: a line above each image, such as "3 taken for 8".

    Returns:
        The figure.

    Raises:
        ValueError: the three differ in length.

    Example:
        >>> import numpy as np
        >>> len(saliency(np.ones((2, 8, 8)), np.ones((2, 8, 8)), ["3", "5"]).axes)
        4
    """
    images, maps = np.asarray(images), np.asarray(maps)
    if not len(images) == len(maps) == len(labels):
        raise ValueError(f"saliency: {len(images)} images, {len(maps)} maps and {len(labels)} labels")
    shown = [image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image for image in images]
    strength = [np.abs(m) / (float(np.abs(m).max()) or 1.0) for m in maps]
    with matplotlib.rc_context(_PLAIN):
        cell = min(1.0, WIDTH / len(labels))
        figure = Figure(figsize=(cell * len(labels), 2 * cell + 0.35), layout="constrained")
        for axes, image, label in zip(figure.subplots(2, len(labels), squeeze=False)[0], shown, labels, strict=True):
            axes.imshow(image, cmap="gray", interpolation="none")
            axes.set_title(str(label), loc="center")
        for axes, values in zip(figure.axes[len(labels) :], strength, strict=True):
            axes.imshow(values, cmap="magma", vmin=0, vmax=1, interpolation="none")
        for axes in figure.axes:
            axes.set_axis_off()
    return figure


def png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as the bytes of a PNG file.

    Example:
        >>> png(confusion([[1]], ["a"]))[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _gallery(pictures: Sequence[np.ndarray], **style: Any) -> Figure:
    columns = min(len(pictures), 8)
    rows = math.ceil(len(pictures) / columns)
    with matplotlib.rc_context(_PLAIN):
        cell = WIDTH / 8
        figure = Figure(figsize=(cell * columns, cell * rows), layout="constrained")
        for i, picture in enumerate(pictures):
            axes = figure.add_subplot(rows, columns, i + 1)
            axes.imshow(picture, interpolation="none", **style)
            axes.set_axis_off()
    return figure
