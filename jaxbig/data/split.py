"""Splits for honest estimates: by group, so that no speaker or patient is in both parts, and into k folds."""

from typing import Any

import numpy as np

from jaxbig.data.array import order
from jaxbig.errors import UserError


def split_groups(groups: Any, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a split that keeps the examples of a group together.

    The groups are gone through in a seeded order, and each goes to the second part where that brings the part's share
    of the examples nearer to `fraction`.

    Args:
        groups: [N], what the examples share: speaker, patient, document; numbers or strings.
        fraction: share of the second part, between 0 and 1.
        seed: not negative.

    Returns:
        int64 positions of the first part and of the second part, both ascending; together they are 0 ... N-1.

    Raises:
        UserError: `fraction` is not between 0 and 1; a part is left empty because a group is too large.

    Example:
        >>> train, held_out = split_groups(np.array(["ann", "bob", "ann", "eve"]), 0.25)
        >>> len(train), len(held_out)
        (3, 1)
    """
    groups = _one_axis("split_groups", "groups", groups)
    if not 0 < fraction < 1:
        raise UserError(f"split_groups: fraction={fraction}; use a number between 0 and 1")
    names, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member)
    goal, taken, second = fraction * len(groups), 0, np.zeros(len(names), bool)
    for group in order(len(names), seed, 0):
        if abs(taken + sizes[group] - goal) < abs(taken - goal):
            second[group] = True
            taken += sizes[group]
    if second.all() or not second.any():
        raise UserError(
            f"split_groups: {len(names)} groups of up to {sizes.max()} examples cannot be split at {fraction}; "
            "use another fraction, or smaller groups"
        )
    return np.flatnonzero(~second[member]), np.flatnonzero(second[member])


def k_fold(n: int, k: int, seed: int = 0, labels: Any = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """k splits, in which each example is held out once.

    Args:
        n: number of examples.
        k: number of folds, from 2 to n.
        seed: not negative.
        labels: [n]; where given, each fold holds of each class the same number of examples, up to one.

    Returns:
        k pairs of int64 positions, (the rest, the fold), all ascending. The folds' sizes differ by one at most.

    Raises:
        UserError: k < 2, more folds than examples, `labels` of another length, a class of fewer than k examples.

    Example:
        >>> [fold.tolist() for _, fold in k_fold(5, 2, seed=1)]
        [[1, 2, 3], [0, 4]]

    Reference:
        Kohavi (1995), "A study of cross-validation and bootstrap for accuracy estimation and model selection".
    """
    if not 2 <= k <= n:
        raise UserError(f"k_fold: k={k} folds of {n} examples; use from 2 to {n} folds")
    shuffled = order(n, seed, 0)
    if labels is not None:
        labels = _one_axis("k_fold", "labels", labels)
        if len(labels) != n:
            raise UserError(f"k_fold: {len(labels)} labels for {n} examples; give one for each")
        classes, counts = np.unique(labels, return_counts=True)
        if counts.min() < k:
            raise UserError(
                f"k_fold: class {classes[counts.argmin()]} has {counts.min()} examples for {k} folds; use fewer folds"
            )
        # Classes behind each other, dealt out like cards: both the classes and the folds stay even.
        shuffled = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(n, np.int64)
    fold[shuffled] = np.arange(n) % k
    return _pairs(fold, k)


def group_k_fold(groups: Any, k: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """k splits that keep the examples of a group together; each example is held out once.

    The largest group that is left goes to the fold that is smallest; equal ones in a seeded order.

    Args:
        groups: [N], what the examples share: speaker, patient, document; numbers or strings.
        k: number of folds, from 2 to the number of groups.
        seed: not negative.

    Returns:
        k pairs of int64 positions, (the rest, the fold), all ascending.

    Raises:
        UserError: k < 2, or more folds than groups.

    Example:
        >>> [fold.tolist() for _, fold in group_k_fold(["a", "b", "b", "c"], 2)]
        [[1, 2], [0, 3]]

    Reference:
        Graham (1969), "Bounds on multiprocessing timing anomalies": largest first, as scikit-learn's GroupKFold does.
    """
    names, member = np.unique(_one_axis("group_k_fold", "groups", groups), return_inverse=True)
    if not 2 <= k <= len(names):
        raise UserError(f"group_k_fold: k={k} folds of {len(names)} groups; use from 2 to {len(names)} folds")
    sizes = np.bincount(member)
    shuffled = order(len(names), seed, 0)
    fold_of, filled = np.empty(len(names), np.int64), np.zeros(k, np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return _pairs(fold_of[member], k)


def _pairs(fold: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(k)]


def _one_axis(function: str, name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not len(values):
        raise UserError(f"{function}: {name} are {list(values.shape)}, not [N]; give one for each example")
    return values
