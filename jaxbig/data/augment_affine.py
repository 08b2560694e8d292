"""Rotating, shifting, shearing and zooming images in one resampling.

Legend of the shape suffixes: B batch, H height, W width, C channels.
"""

import dataclasses
from typing import Literal

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.augment import Draw, images
from jaxbig.errors import UserError

Mode = Literal["nearest", "constant", "reflect"]
# So that what is made on the way stays small: in a core's cache, and below the size from which every array is memory
# that the system hands out anew, page by page.
_PIXELS_AT_ONCE = 32_000


@dataclasses.dataclass(frozen=True)
class Affine:
    """Turns, shifts, shears and zooms each image about its middle: ``out[p] = in[M (p - c) + R t + c]``.

    M = R S Z maps places of the result to places of the image, with the conventions of Keras's `ImageDataGenerator`:
    p = (row, column), middle c = ((H - 1) / 2, (W - 1) / 2), rotation R = [[cos θ, -sin θ], [sin θ, cos θ]], shift t,
    shear S = [[1, -sin φ], [0, cos φ]], zoom Z = diag(z_row, z_column). So a zoom above 1 shows more of the
    surroundings, and its two factors are drawn separately.

    Args:
        rotate: θ is uniform in ±rotate, degrees.
        shift: t is uniform in ±shift, a share of the height and of the width.
        shear: φ is uniform in ±shear, **degrees**: Keras's ``shear_range=0.2`` is a fifth of a degree.
        zoom: z is uniform in 1 ± zoom, or in (low, high).
        mode: what lies outside: "nearest" pixel of the edge, "constant" `value`, "reflect" about the edge
            (d c b a | a b c d | d c b a), all three as in `scipy.ndimage`.
        value: for "constant".
        inputs: name of the images [B, H, W, C], uint8 or floats; they are resampled in float32, and rounded if uint8.

    Raises:
        UserError: a range that makes no sense, an unknown mode, or a batch without such images.

    Example:
        >>> batch = {"image": np.arange(16.0).reshape(1, 4, 4, 1), "label": np.array([3])}
        >>> Affine(rotate=20, zoom=0.2)(batch, Draw(0, 0, np.array([7])))["image"].shape
        (1, 4, 4, 1)

    Reference:
        Simard, Steinkraus and Platt (2003), "Best practices for convolutional neural networks applied to visual
        document analysis". Deviation: the random numbers are not those of Keras's generator.
    """

    rotate: float = 0.0
    shift: float = 0.0
    shear: float = 0.0
    zoom: float | tuple[float, float] = 0.0
    mode: Mode = "nearest"
    value: float = 0.0
    inputs: str = "image"

    def __post_init__(self) -> None:
        low, high = self._zooms()
        if self.mode not in ("nearest", "constant", "reflect"):
            raise UserError(f"Affine: mode={self.mode!r}; use 'nearest', 'constant' or 'reflect'")
        if not 0 < low <= high:
            raise UserError(f"Affine: zoom from {low} to {high}; use factors above 0, or a number below 1")
        if min(self.rotate, self.shift, self.shear) < 0:
            raise UserError("Affine: rotate, shift and shear are ranges ±r; use numbers from 0")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BHWC = images(batch, self.inputs)
        matrices, offsets = self.matrices(draw, x_BHWC.shape[1], x_BHWC.shape[2])
        return batch | {self.inputs: resample(x_BHWC, matrices, offsets, self.mode, self.value)}

    def matrices(self, draw: Draw, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """What is drawn: place p of the result shows place ``matrix @ p + offset`` of the image.

        Returns:
            float64 [B, 2, 2] and [B, 2], as `scipy.ndimage.affine_transform` takes them for each image.

        Example:
            >>> matrices, offsets = Affine().matrices(Draw(0, 0, np.arange(1)), 4, 4)
            >>> matrices[0].tolist(), offsets[0].tolist()
            ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
        """
        theta, phi = np.deg2rad(
            [
                draw.uniform("rotate", -self.rotate, self.rotate),
                draw.uniform("shear", -self.shear, self.shear),
            ]
        )
        zoom = draw.uniform("zoom", *self._zooms(), shape=(2,))
        shift = draw.uniform("shift", -self.shift, self.shift, shape=(2,)) * (height, width)
        rotation = _matrix(np.cos(theta), -np.sin(theta), np.sin(theta), np.cos(theta))
        shear = _matrix(np.ones_like(phi), -np.sin(phi), np.zeros_like(phi), np.cos(phi))
        matrices = rotation @ shear * zoom[:, None, :]
        middle = np.array([height - 1, width - 1]) / 2
        offsets = middle - matrices @ middle + np.einsum("bij,bj->bi", rotation, shift)
        return matrices, offsets

    def _zooms(self) -> tuple[float, float]:
        return self.zoom if isinstance(self.zoom, tuple) else (1 - self.zoom, 1 + self.zoom)


def resample(
    x_BHWC: np.ndarray, matrices: np.ndarray, offsets: np.ndarray, mode: Mode = "nearest", value: float = 0.0
) -> np.ndarray:
    """Bilinear resampling: ``out[b, p] = in[b, matrices[b] @ p + offsets[b]]``.

    Args:
        x_BHWC: images, uint8 or floats.
        matrices, offsets: [B, 2, 2] and [B, 2], over (row, column).
        mode, value: see `Affine`.

    Returns:
        array of the shape and dtype of `x_BHWC`.

    Example:
        >>> x = np.arange(3.0).reshape(1, 1, 3, 1)
        >>> resample(x, np.eye(2)[None], np.array([[0, 0.5]])).ravel().tolist()
        [0.5, 1.5, 2.0]
    """
    B, H, W, _ = x_BHWC.shape
    matrices, offsets = matrices.astype(np.float32), offsets.astype(np.float32)
    out_BHWC = np.empty(x_BHWC.shape, x_BHWC.dtype)
    at_once = max(1, _PIXELS_AT_ONCE // (H * W))
    for start in range(0, B, at_once):
        some = slice(start, start + at_once)
        _resample(x_BHWC[some], matrices[some], offsets[some], mode, value, out_BHWC[some])
    return out_BHWC


def _resample(
    x_BHWC: np.ndarray, matrices: np.ndarray, offsets: np.ndarray, mode: Mode, value: float, out_BHWC: np.ndarray
) -> None:
    B, H, W, C = x_BHWC.shape
    rows, columns = np.arange(H, dtype=np.float32)[:, None], np.arange(W, dtype=np.float32)
    places = [
        (matrices[:, axis, :1, None] * rows + offsets[:, axis, None, None]) + matrices[:, axis, 1:, None] * columns
        for axis in (0, 1)
    ]
    outside = None
    if mode == "constant":
        outside = _outside(places[0], H) | _outside(places[1], W)
    elif mode == "reflect":
        places = [_folded(place, size) for place, size in zip(places, (H, W), strict=True)]
    top_BHW, down_BHW = _split(places[0], H)
    left_BHW, right_BHW = _split(places[1], W)
    first = (np.arange(B, dtype=np.int32) * (H * W))[:, None, None]
    index = (top_BHW * np.int32(W) + left_BHW + first).astype(np.intp)
    # One plane at a time: gathering single numbers is much faster than gathering pixels of three.
    for channel in range(C):
        plane = x_BHWC[..., channel].astype(np.float32).ravel()
        mixed = _bilinear(plane, index, W if H > 1 else 0, int(W > 1), down_BHW, right_BHW)
        if outside is not None:
            mixed[outside] = value
        out_BHWC[..., channel] = np.rint(mixed, out=mixed) if x_BHWC.dtype == np.uint8 else mixed


def _bilinear(
    plane: np.ndarray, index: np.ndarray, below: int, beside: int, down: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Of the four pixels at ``index + (0 or below) + (0 or beside)``; written in place, as it is bound by memory."""
    # "clip" never clips here; it only spares numpy a check and a copy.
    a, b, c, d = (plane[start:].take(index, mode="clip") for start in (0, beside, below, below + beside))
    b -= a
    b *= right
    a += b
    d -= c
    d *= right
    c += d
    c -= a
    c *= down
    a += c
    return a


def _split(place: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole part int32, at most size - 2 so that it has a neighbour, and the rest float32 in [0, 1]."""
    place = np.clip(place, 0, size - 1, out=place)
    whole = np.minimum(place.astype(np.int32), max(size - 2, 0))
    place -= whole
    return whole, place


def _outside(place: np.ndarray, size: int) -> np.ndarray:
    return (place < 0) | (place > size - 1)


def _folded(place: np.ndarray, size: int) -> np.ndarray:
    """Into -0.5 ... size - 0.5 by reflection about both ends; `_split` puts the last half pixel on the edge."""
    period = np.float32(2 * size)
    place = place + np.float32(0.5)
    # Not np.mod, which takes ten times as long.
    place -= period * np.floor(place / period)
    return np.minimum(place, period - place) - np.float32(0.5)


def _matrix(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.stack([np.stack([a, b], -1), np.stack([c, d], -1)], -2)
