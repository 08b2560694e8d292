"""Images: flipping, cropping, cutting out, colours, packing.

For turning and zooming see `augment_affine`, for mixing `augment_mix`. All take images
[B, H, W, C] of uint8 or floats and give back the same dtype, and all but `Pack` the same shape; labels stay.
Legend of the shape suffixes: B batch, H height, W width, C channels.
"""

import dataclasses

import numpy as np
from einops import rearrange

from jaxbig.data.array import Batch
from jaxbig.data.augment import Draw, images
from jaxbig.errors import UserError

_PAD = {"nearest": "edge", "constant": "constant", "reflect": "symmetric"}
_GREY = np.array([0.299, 0.587, 0.114])
# From RGB to brightness and two axes of colour (YIQ, as the NTSC had it).
_YIQ = np.array([_GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors some of the images.

    Args:
        p: share of the images.
        vertical: upside down instead of left and right.
        inputs: name of the images.

    Raises:
        UserError: `p` is no share, or a batch without such images.

    Example:
        >>> Flip(p=1)({"image": np.arange(3.0).reshape(1, 1, 3, 1)}, Draw(0, 0, np.arange(1)))["image"].ravel().tolist()
        [2.0, 1.0, 0.0]
    """

    p: float = 0.5
    vertical: bool = False
    inputs: str = "image"

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"Flip: p={self.p}; use a number between 0 and 1")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BHWC = images(batch, self.inputs).copy()
        chosen = draw.uniform("flip") < self.p
        x_BHWC[chosen] = np.flip(x_BHWC[chosen], axis=1 if self.vertical else 2)
        return batch | {self.inputs: x_BHWC}


@dataclasses.dataclass(frozen=True)
class Crop:
    """A window of the image's own size, somewhere in the padded image.

    Args:
        padding: pixels on each side.
        mode: of the padding, as for `Affine`: "constant" is 0, "nearest", "reflect".
        inputs: name of the images.

    Raises:
        UserError: `padding` is negative or the mode unknown, or a batch without such images.

    Example:
        >>> Crop(2)({"image": np.ones((1, 4, 4, 1))}, Draw(0, 0, np.arange(1)))["image"].shape
        (1, 4, 4, 1)

    Reference:
        He et al. (2015), "Deep residual learning for image recognition", arXiv:1512.03385, section 4.2.
    """

    padding: int = 4
    mode: str = "constant"
    inputs: str = "image"

    def __post_init__(self) -> None:
        if self.padding < 0 or self.mode not in _PAD:
            raise UserError(f"Crop: padding={self.padding}, mode={self.mode!r}; use 0 or more, and {', '.join(_PAD)}")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BHWC = images(batch, self.inputs)
        B, H, W, _ = x_BHWC.shape
        around = (self.padding, self.padding)
        padded = np.pad(x_BHWC, ((0, 0), around, around, (0, 0)), mode=_PAD[self.mode])  # pyright: ignore
        top, left = draw.integers("corner", 0, 2 * self.padding + 1, (2,)).T
        rows, columns = top[:, None] + np.arange(H), left[:, None] + np.arange(W)
        return batch | {self.inputs: padded[np.arange(B)[:, None, None], rows[:, :, None], columns[:, None, :]]}


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Covers one square of each image.

    Args:
        size: side of the square in pixels. Its middle is uniform over the image, so part of it may lie outside.
        value: what it is covered with.
        inputs: name of the images.

    Raises:
        UserError: `size` is below 1, or a batch without such images.

    Example:
        >>> x = Cutout(1)({"image": np.ones((1, 4, 4, 1))}, Draw(0, 0, np.arange(1)))["image"]
        >>> float(x.sum())
        15.0

    Reference:
        DeVries and Taylor (2017), "Improved regularization of convolutional neural networks with cutout",
        arXiv:1708.04552; 16 pixels for CIFAR-10, 8 for CIFAR-100.
    """

    size: int = 16
    value: float = 0.0
    inputs: str = "image"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"Cutout: size={self.size}; use 1 or more pixels")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BHWC = images(batch, self.inputs).copy()
        _, H, W, _ = x_BHWC.shape
        covered = [covers(size, draw.integers(name, 0, size), self.size) for name, size in (("row", H), ("column", W))]
        x_BHWC[covered[0][:, :, None] & covered[1][:, None, :]] = self.value
        return batch | {self.inputs: x_BHWC}


def covers(size: int, middle: np.ndarray, side: int | np.ndarray) -> np.ndarray:
    """Which of 0 ... size - 1 lie in the stretch of length `side` about `middle`: bool [B, size].

    Example:
        >>> covers(5, np.array([1]), 2).astype(int).tolist()
        [[1, 1, 0, 0, 0]]
    """
    first = (middle - side // 2)[:, None]
    places = np.arange(size)
    return (places >= first) & (places < first + np.reshape(side, (-1, 1)))


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Changes brightness, contrast, saturation and hue of each image, in this order, each by a factor of its own.

    All four are affine in a pixel's colour, so they are one product with a matrix [C, C] for each image.

    Args:
        brightness, contrast, saturation: the factor is uniform in 1 ± this; 0 leaves it. Contrast is about the mean
            grey of the image, saturation about the grey of the pixel.
        hue: the angle is uniform in ± this share of a full turn, up to 0.5.
        high: floats are cut off to 0 ... high; None: not at all (normalised images). uint8 is 0 ... 255.
        inputs: name of the images, of 3 channels, or of any number where saturation and hue are 0.

    Raises:
        UserError: a range is not between 0 and 1, colour is asked of grey images, or a batch without images.

    Example:
        >>> x = Jitter(brightness=0.5)({"image": np.full((1, 2, 2, 1), 0.5)}, Draw(0, 0, np.arange(1)))["image"]
        >>> bool(0.25 <= x[0, 0, 0, 0] <= 0.75)
        True

    Reference:
        Krizhevsky et al. (2012), "ImageNet classification with deep convolutional neural networks"; the four factors as
        in torchvision's ColorJitter. Deviations from that: a fixed order, cutting off once at the end, and hue turned
        in the YIQ plane, which keeps the brightness, instead of in HSV.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    high: float | None = 1.0
    inputs: str = "image"

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            value, limit = getattr(self, name), 0.5 if name == "hue" else 1.0
            if not 0 <= value <= limit:
                raise UserError(f"Jitter: {name}={value}; use a number between 0 and {limit}")

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BHWC = images(batch, self.inputs)
        channels = x_BHWC.shape[-1]
        if channels != 3 and (self.saturation or self.hue):
            raise UserError(f"Jitter: {self.inputs} has {channels} channels; saturation and hue need 3")
        factor = {
            name: draw.uniform(name, 1 - getattr(self, name), 1 + getattr(self, name))
            for name in ("brightness", "contrast", "saturation")
        }
        grey = _GREY if channels == 3 else np.full(channels, 1 / channels)
        mean = factor["brightness"] * (x_BHWC.mean(axis=(1, 2), dtype=np.float64) @ grey)
        # Saturation and hue leave greys alone, so the constant that contrast adds passes through them.
        matrix = (factor["brightness"] * factor["contrast"])[:, None, None] * np.eye(channels)
        saturation = factor["saturation"][:, None, None]
        matrix = (saturation * np.eye(channels) + (1 - saturation) * grey) @ matrix
        if self.hue:
            matrix = _turn(draw.uniform("hue", -self.hue, self.hue)) @ matrix
        constant = ((1 - factor["contrast"]) * mean).astype(np.float32)[:, None, None]
        flat = x_BHWC.reshape(len(x_BHWC), -1, channels).astype(np.float32)
        out = (flat @ matrix.transpose(0, 2, 1).astype(np.float32) + constant).reshape(x_BHWC.shape)
        whole = x_BHWC.dtype == np.uint8
        high = 255 if whole else self.high
        out = out if high is None else np.clip(out, 0, high)
        return batch | {self.inputs: (np.rint(out) if whole else out).astype(x_BHWC.dtype)}


@dataclasses.dataclass(frozen=True)
class Pack:
    """Each square of pixels becomes one pixel of more channels: [B, H, W, C] -> [B, H / s, W / s, s s C].

    Nothing is lost, and a convolution over the result costs 1 / s² of one over the image. The last part of an
    augmentation, or without a draw a function for `jaxbig.data.Mapped`; JAX's arrays are fine too.

    Args:
        side: s, which has to divide H and W.
        inputs: name of the images.

    Raises:
        UserError: `side` is below 1, or does not divide the images.

    Example:
        >>> Pack(2)({"image": np.arange(4.0).reshape(1, 2, 2, 1)})["image"].tolist()
        [[[[0.0, 1.0, 2.0, 3.0]]]]

    Reference:
        Shi et al. (2016), "Real-time single image and video super-resolution", arXiv:1609.05158, the other way round.
    """

    side: int = 2
    inputs: str = "image"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"Pack: side={self.side}; use 1 or more pixels")

    def __call__(self, batch: Batch, draw: Draw | None = None) -> Batch:
        x_BHWC, s = batch[self.inputs], self.side
        if x_BHWC.shape[1] % s or x_BHWC.shape[2] % s:
            raise UserError(f"Pack: side={s} does not divide images of {x_BHWC.shape[1]} x {x_BHWC.shape[2]} pixels")
        return batch | {self.inputs: rearrange(x_BHWC, "B (H i) (W j) C -> B H W (i j C)", i=s, j=s)}


def _turn(hue: np.ndarray) -> np.ndarray:
    """Matrices [B, 3, 3] that turn colours about the axis of greys by `hue` turns."""
    angle = 2 * np.pi * hue
    turn = np.zeros((len(hue), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.linalg.inv(_YIQ) @ turn @ _YIQ
