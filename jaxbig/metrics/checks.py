"""What every metric asks of its arguments: a row that cannot be judged is an error that names it."""

from typing import Any

import numpy as np

from jaxbig.errors import UserError


def finite_rows(who: str, what: str, values: Any) -> np.ndarray:
    """The values in float64.

    Raises:
        UserError: a value is nan or infinite; names the first row that holds one.

    Example:
        >>> finite_rows("auc", "logits", [[0.0, 1.0], [float("nan"), 1.0]])
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: auc: row 1 of the logits is not finite: [nan  1.]; look there, or mask it
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=-1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        with np.printoptions(threshold=8, edgeitems=3, linewidth=1000):
            raise UserError(f"{who}: row {row} of the {what} is not finite: {values[row]}; look there, or mask it")
    return values


def class_labels(who: str, what: str, labels: Any, num_classes: int) -> np.ndarray:
    """The labels, [N] integers.

    Raises:
        UserError: they are no integers, or not among the classes.

    Example:
        >>> class_labels("auc", "label", [0, 3], 3)
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: auc: label 3 is not among num_classes=3 classes, 0 to 2
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not (labels.dtype.kind in "iub" or (labels == np.trunc(labels)).all()):
        raise UserError(f"{who}: {what}s {labels.dtype} {labels.shape}; give one whole number an example")
    labels = labels.astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"{who}: {what} {wrong} is not among num_classes={num_classes} classes, 0 to {num_classes - 1}")
    return labels


def example_weights(who: str, weights: Any, examples: int) -> np.ndarray:
    """How much each example counts, float64 [N]; 1 each for None.

    Raises:
        UserError: there is not one weight an example, or one is negative or not finite.

    Example:
        >>> example_weights("auc", None, 2).tolist()
        [1.0, 1.0]
    """
    if weights is None:
        return np.ones(examples)
    weights = finite_rows(who, "weights", weights)
    if weights.shape != (examples,) or (weights < 0).any():
        raise UserError(f"{who}: weights {weights.shape} for {examples} examples; give one each, none below 0")
    return weights


def classified(who: str, labels: Any, logits: Any, weights: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels int64 [N], logits float64 [N, C] and weights float64 [N] of the examples that count.

    One logit an example, [N] or [N, 1], is a binary classifier's: z stands for [0, z]. Labels may be probabilities
    [N, C]; then the most probable class is the label. Examples with weight 0 are left out, whatever they hold.

    Raises:
        UserError: they do not fit each other, or cannot be judged.

    Example:
        >>> labels, logits, weights = classified("auc", [0, 1], [0.5, float("nan")], [1, 0])
        >>> labels.tolist(), logits.tolist(), weights.tolist()
        ([0], [[0.0, 0.5]], [1.0])
    """
    labels, logits = np.asarray(labels), np.asarray(logits, np.float64)
    weights = example_weights(who, weights, len(logits))
    if len(labels) != len(logits) or logits.ndim > 2:
        raise UserError(f"{who}: labels {labels.shape} and logits {logits.shape}; give one of each an example")
    rows = np.flatnonzero(weights)
    counts = (weights > 0).reshape(-1, *[1] * (logits.ndim - 1))
    finite_rows(who, "logits", np.where(counts, logits, 0.0))
    logits = logits[rows, None] if logits.ndim == 1 else logits[rows]
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    labels = labels.argmax(axis=-1) if labels.ndim == 2 else labels
    return class_labels(who, "label", labels[rows], logits.shape[1]), logits, weights[rows]
