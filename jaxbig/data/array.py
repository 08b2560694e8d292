"""Datasets as arrays in memory: which examples, in which order, a pure function of the seed.

A dataset is a dictionary of arrays with the same first axis of length N.
"""

from collections.abc import Mapping

import numpy as np

from jaxbig.errors import UserError

Arrays = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]


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
