"""Mixing images and their labels with those of other examples of the batch.

These are the only augmentations that depend on what else is in the batch. Partners are taken from the same stretch of
`block` examples, so processes that share a batch get the bits of one process where `block` divides their shares.
Legend of the shape suffixes: B batch, H height, W width, C channels, N classes.
"""

import dataclasses

import numpy as np
from scipy import special

from jaxbig.data.array import Batch
from jaxbig.data.augment import Draw, array_of, images
from jaxbig.data.augment_image import covers
from jaxbig.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Mix:
    num_classes: int
    alpha: float
    p: float = 1.0
    block: int = 4
    inputs: str = "image"
    labels: str = "label"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.alpha <= 0 or not 0 <= self.p <= 1:
            raise UserError(f"{name}: alpha={self.alpha}, p={self.p}; use alpha above 0 and p between 0 and 1")
        if self.block < 2 or self.num_classes < 2:
            raise UserError(f"{name}: block={self.block}, num_classes={self.num_classes}; both have to be at least 2")

    def _drawn(self, batch: Batch, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """λ float64 [B], and the partner of each example."""
        count = len(draw.rows)
        first = np.arange(count) // self.block * self.block
        size = np.minimum(self.block, count - first)
        step = draw.integers("partner", 1, np.maximum(size, 2))
        partner = first + (np.arange(count) - first + step) % size
        lam = special.betaincinv(self.alpha, self.alpha, draw.uniform("lam"))
        lam = np.where(draw.uniform("chosen") < self.p, lam, 1.0)
        # A padded example must neither count nor leak into one that does.
        mask = batch.get("mask", np.ones(count))
        return np.where((mask > 0) & (mask[partner] > 0), lam, 1.0), partner

    def _soft(self, batch: Batch, lam: np.ndarray, partner: np.ndarray) -> np.ndarray:
        labels = array_of(batch, self.labels)
        soft_BN = labels if labels.ndim == 2 else np.eye(self.num_classes, dtype=np.float32)[self._checked(labels)]
        lam = lam[:, None].astype(np.float32)
        return lam * soft_BN + (1 - lam) * soft_BN[partner]

    def _checked(self, labels: np.ndarray) -> np.ndarray:
        if labels.size and not 0 <= labels.min() <= labels.max() < self.num_classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise UserError(f"{type(self).__name__}: {self.labels} {wrong}, but num_classes={self.num_classes}")
        return labels


@dataclasses.dataclass(frozen=True)
class Mixup(_Mix):
    """``x = λ x_a + (1 - λ) x_b``, ``q = λ onehot(y_a) + (1 - λ) onehot(y_b)``, λ ~ Beta(α, α) for each example.

    Args:
        num_classes: N. The labels become floats [B, N], which `jaxbig.objective.cross_entropy` takes; labels that are
            such already are mixed as they are.
        alpha: α.
        p: share of the examples that are mixed.
        block: the partner is another of the same `block` consecutive examples of the batch.
        inputs, labels: names in the batch.

    Raises:
        UserError: α, p, block or num_classes make no sense, or a label is not in 0 ... N-1.

    Example:
        >>> batch = {"image": np.zeros((2, 4, 4, 1)), "label": np.array([0, 2])}
        >>> Mixup(num_classes=3)(batch, Draw(0, 0, np.arange(2)))["label"].sum(axis=1).tolist()
        [1.0, 1.0]

    Reference:
        Zhang et al. (2017), "mixup: beyond empirical risk minimization", arXiv:1710.09412. Deviation: λ is drawn for
        each example and the partner is near in the batch (whose order is random anyway); the authors' code draws one λ
        and one permutation a batch. Images of uint8 are rounded.
    """

    alpha: float = 0.2

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BHWC = images(batch, self.inputs)
        lam, partner = self._drawn(batch, draw)
        share = lam[:, None, None, None].astype(np.float32)
        mixed = share * x_BHWC + (1 - share) * x_BHWC[partner]
        mixed = (np.rint(mixed) if x_BHWC.dtype == np.uint8 else mixed).astype(x_BHWC.dtype)
        return batch | {self.inputs: mixed, self.labels: self._soft(batch, lam, partner)}


@dataclasses.dataclass(frozen=True)
class CutMix(_Mix):
    """Puts a box of the partner's image into each image; the labels are mixed by the areas.

    The box has sides ``H √(1 - λ)`` and ``W √(1 - λ)``, λ ~ Beta(α, α), and its middle is uniform over the image; what
    lies outside is cut off, and λ becomes the share of pixels that are left of the first image.

    Args:
        num_classes, alpha, p, block, inputs, labels: as for `Mixup`.

    Raises:
        UserError: as for `Mixup`.

    Example:
        >>> batch = {"image": np.arange(2.0).repeat(16).reshape(2, 4, 4, 1), "label": np.array([0, 1])}
        >>> mixed = CutMix(num_classes=2)(batch, Draw(0, 0, np.arange(2)))
        >>> bool(mixed["label"][0, 1] == mixed["image"][0].mean())
        True

    Reference:
        Yun et al. (2019), "CutMix: regularization strategy to train strong classifiers with localizable features",
        arXiv:1905.04899. Deviation: as for `Mixup`.
    """

    alpha: float = 1.0

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        x_BHWC = images(batch, self.inputs)
        _, H, W, _ = x_BHWC.shape
        lam, partner = self._drawn(batch, draw)
        ratio = np.sqrt(1 - lam)
        rows, columns = (
            covers(size, draw.integers(name, 0, size), (size * ratio).astype(np.int64))
            for name, size in (("row", H), ("column", W))
        )
        box = rows[:, :, None] & columns[:, None, :]
        mixed = np.where(box[..., None], x_BHWC[partner], x_BHWC)
        lam = 1 - box.mean(axis=(1, 2))
        return batch | {self.inputs: mixed, self.labels: self._soft(batch, lam, partner)}
