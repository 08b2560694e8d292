"""Arrays in memory -> batches, in an order that is a pure function of (seed, epoch).

A dataset is a dictionary of arrays with the same first axis of length N. A batch is a dictionary of the same names with
a first axis of length B, always: where examples run out the batch is filled up with copies of the first example, and
``mask`` [B] says with 0 that they do not count. So one compiled program serves all batches.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from jaxbig.errors import UserError

Arrays = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]
MASK = "mask"


class Position(NamedTuple):
    """Where in the data a run is: `step` batches of epoch `epoch` are done. Serialise it as ``position._asdict()``."""

    epoch: int = 0
    step: int = 0


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 ... n-1 that depends on seed and epoch only: argsort of n Philox numbers.

    Args:
        n: number of examples.
        seed, epoch: not negative.

    Returns:
        int64 [n].

    Example:
        >>> order(5, seed=0, epoch=1).tolist() == order(5, seed=0, epoch=1).tolist()
        True

    Reference:
        Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3". Raw numbers are sorted because NumPy
        promises that the stream of bits stays the same from version to version, but not what ``permutation`` does.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(bits, kind="stable")


def size_of(arrays: Arrays) -> int:
    """Number of examples N of a dataset.

    Raises:
        UserError: there are no arrays, or their first axes differ.

    Example:
        >>> size_of({"image": np.zeros((3, 8, 8, 1)), "label": np.zeros(3)})
        3
    """
    sizes = {name: len(array) if np.ndim(array) else 0 for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"dataset: arrays need one common number of examples, not {sizes}; cut them to the same length")
    return next(iter(sizes.values()))


def select(arrays: Arrays, index: np.ndarray) -> Batch:
    """The examples at the given positions.

    Example:
        >>> select({"label": np.array([7, 8, 9])}, np.array([2, 0]))["label"].tolist()
        [9, 7]
    """
    return {name: np.asarray(array)[index] for name, array in arrays.items()}


@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches of a dataset, epoch by epoch, from any position on.

    Args:
        arrays: name -> array [N, ...]; not copied.
        batch_size: B.
        seed: with the epoch it fixes the order.
        shuffle: False: the order of the arrays, in every epoch.
        remainder: "drop" leaves out the last examples of an epoch that fill no batch (others in each epoch);
            "pad" fills them up to a batch, and gives every batch a ``mask``.

    Raises:
        UserError: arrays of different lengths, no examples, a name ``mask`` with "pad", a batch larger than the dataset
            with "drop".

    Example:
        >>> loader = Loader({"label": np.arange(5)}, batch_size=2, shuffle=False, remainder="pad")
        >>> [(batch["label"].tolist(), batch["mask"].tolist()) for batch in loader.epoch(0, start=1)]
        [([2, 3], [1.0, 1.0]), ([4, 0], [1.0, 0.0])]
    """

    arrays: Arrays
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    remainder: Literal["drop", "pad"] = "drop"

    def __post_init__(self) -> None:
        n = size_of(self.arrays)
        if self.remainder not in ("drop", "pad"):
            raise UserError(f"Loader: remainder={self.remainder!r}; use 'drop' or 'pad'")
        if self.batch_size < 1 or n < 1:
            raise UserError(f"Loader: batch_size={self.batch_size} of {n} examples; both have to be at least 1")
        if self.remainder == "drop" and self.batch_size > n:
            raise UserError(
                f"Loader: batch_size={self.batch_size} but {n} examples; use remainder='pad' or smaller batches"
            )
        if self.remainder == "pad" and MASK in self.arrays:
            raise UserError(f"Loader: the dataset has an array {MASK!r} already; rename it, or use remainder='drop'")

    @property
    def size(self) -> int:
        """Number of examples N."""
        return size_of(self.arrays)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return self.size // self.batch_size if self.remainder == "drop" else -(-self.size // self.batch_size)

    def index(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Which examples each batch of an epoch holds, for loops that run on the device.

        Args:
            epoch: number of the epoch, from 0.

        Returns:
            positions int64 [steps, B], and a mask float32 [steps, B].

        Example:
            >>> Loader({"x": np.zeros(5)}, 2, shuffle=False, remainder="pad").index(0)[0].tolist()
            [[0, 1], [2, 3], [4, 0]]
        """
        chosen = order(self.size, self.seed, epoch) if self.shuffle else np.arange(self.size)
        chosen = chosen[: self.steps * self.batch_size]
        missing = self.steps * self.batch_size - len(chosen)
        mask = np.concatenate([np.ones(len(chosen), np.float32), np.zeros(missing, np.float32)])
        index = np.concatenate([chosen, np.zeros(missing, chosen.dtype)])
        return index.reshape(self.steps, -1), mask.reshape(self.steps, -1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: number of the epoch, from 0.
            start: number of batches to leave out, as a resumed run does.

        Returns:
            iterator over batches.

        Example:
            >>> [batch["x"].tolist() for batch in Loader({"x": np.arange(4)}, 2, shuffle=False).epoch(0, start=1)]
            [[2, 3]]
        """
        index, mask = self.index(epoch)
        for step in range(start, self.steps):
            batch = select(self.arrays, index[step])
            yield batch if self.remainder == "drop" else batch | {MASK: mask[step]}

    def advance(self, position: Position) -> Position:
        """The position one batch on.

        Example:
            >>> Loader({"x": np.arange(4)}, 2).advance(Position(0, 1))
            Position(epoch=1, step=0)
        """
        last = position.step + 1 >= self.steps
        return Position(position.epoch + 1, 0) if last else Position(position.epoch, position.step + 1)


def k_shot(labels: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """Positions of k examples of each class.

    For one seed the examples of a smaller k are among those of a larger one: a curve over k only ever adds labels.

    Args:
        labels: integers [N].
        k: examples of each class, at least 1.
        seed: not negative.

    Returns:
        int64 [classes * k], ordered by class.

    Raises:
        UserError: a class has fewer than k examples, or k < 1.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 1])
        >>> labels[k_shot(labels, 2)].tolist()
        [0, 0, 1, 1]
    """
    labels = np.asarray(labels)
    if k < 1:
        raise UserError(f"k_shot: k={k}; use 1 or more examples of each class")
    shuffled = order(len(labels), seed, 0)
    chosen = []
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        if len(of_class) < k:
            raise UserError(
                f"k_shot: class {label} has {len(of_class)} examples, k={k} were asked for; use a smaller k"
            )
        chosen.append(of_class[:k])
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def split_fraction(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a stratified split: of each class, ``round(fraction * examples)`` go to the second part.

    Args:
        labels: integers [N].
        fraction: share of the second part, between 0 and 1.
        seed: not negative.

    Returns:
        int64 positions of the first part and of the second part, both ascending; together they are 0 ... N-1.

    Raises:
        UserError: `fraction` is not between 0 and 1.

    Example:
        >>> train, held_out = split_fraction(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25)
        >>> len(train), len(held_out)
        (6, 2)
    """
    labels = np.asarray(labels)
    if not 0 <= fraction <= 1:
        raise UserError(f"split_fraction: fraction={fraction}; use a number between 0 and 1")
    shuffled = order(len(labels), seed, 0)
    second = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        second[of_class[: round(fraction * len(of_class))]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)
