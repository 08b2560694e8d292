"""Metrics of hard choices, all from the confusion matrix, which can be summed over batches.

Legend of the shape suffixes: N examples, C classes.
"""

from typing import Any, Literal

import numpy as np

from jaxbig.errors import UserError
from jaxbig.metrics.checks import class_labels, example_weights, finite_rows

Average = Literal["macro", "weighted", "micro", "binary"]


def confusion(labels: Any, predictions: Any, num_classes: int, weights: Any = None) -> np.ndarray:
    """The confusion matrix: entry [i, j] counts the examples of class i that were taken for class j.

    Args:
        labels: integers [N].
        predictions: integers [N], or logits [N, C].
        num_classes: C.
        weights: how much each example counts, [N]; a mask is one of 0 and 1. None: 1 each.

    Returns:
        [C, C], int64 without weights, float64 with them.

    Raises:
        UserError: lengths differ, a class is not in 0 ... C-1, or a logit is not finite.

    Example:
        >>> confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
        [[1, 0], [1, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if predictions.ndim == 2:
        predictions = finite_rows("confusion", "logits", predictions).argmax(axis=-1)
    if labels.shape != predictions.shape:
        raise UserError(
            f"confusion: {labels.shape} labels and {predictions.shape} predictions; give one of each an example"
        )
    for name, classes in (("label", labels), ("prediction", predictions)):
        class_labels("confusion", name, classes, num_classes)
    weights = None if weights is None else example_weights("confusion", weights, len(labels))
    counts = np.bincount(labels * num_classes + predictions, weights, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def scores(matrix: Any, average: Average = "macro") -> dict[str, float]:
    """Accuracy, precision, recall, F1 and more, from a confusion matrix M.

    Of class c: true positives M_cc, precision M_cc / Σ_i M_ic, recall M_cc / Σ_j M_cj, F1 = 2 M_cc / (Σ_i M_ic + Σ_j
    M_cj). Each is 0 where its denominator is.

    Args:
        matrix: [C, C], counts or sums of weights, true classes down.
        average: "macro": the mean over the classes that occur among labels or predictions; "weighted": weighted by how
            often they occur among the labels; "micro": of the pooled counts; "binary": of class 1 alone, with C = 2.

    Returns:
        ``accuracy``; ``precision``, ``recall`` and ``f1``, averaged; ``balanced_accuracy``, the mean recall of the
        classes that occur among the labels; ``matthews``, the correlation coefficient (0 where it is undefined); with
        "binary" ``sensitivity`` and ``specificity``, the recall of class 1 and of class 0, too. All are nan where the
        matrix is empty.

    Raises:
        UserError: the matrix is not square, an unknown average, or "binary" with another number of classes than 2.

    Example:
        >>> {name: round(value, 3) for name, value in scores([[5, 1], [2, 2]], "binary").items()}
        {'accuracy': 0.7, 'precision': 0.667, 'recall': 0.5, 'f1': 0.571, 'balanced_accuracy': 0.667,
         'matthews': 0.356, 'sensitivity': 0.5, 'specificity': 0.833}

    Reference:
        Matthews (1975); for more classes Gorodkin (2004), "Comparing two K-category assignments by a K-category
        correlation coefficient".
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UserError(f"scores: a confusion matrix is [C, C], this is {matrix.shape}; true classes down")
    hits_C, true_C, taken_C = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    shares_C = _shares(average, true_C, taken_C)
    accuracy = _ratio(hits_C.sum(), matrix.sum())
    if average == "micro":
        precision = recall = f1 = accuracy
    else:
        precision, recall, f1 = (
            float((shares_C * _ratio(share * hits_C, of)).sum())
            for share, of in ((1, taken_C), (1, true_C), (2, taken_C + true_C))
        )
    result = {"accuracy": float(accuracy), "precision": float(precision), "recall": float(recall), "f1": float(f1)}
    occurs_C = true_C > 0
    result["balanced_accuracy"] = float(_ratio(hits_C, true_C).sum() / max(occurs_C.sum(), 1))
    result["matthews"] = _matthews(hits_C.sum(), true_C, taken_C)
    if average == "binary":
        negative, positive = _ratio(hits_C, true_C)
        result |= {"sensitivity": float(positive), "specificity": float(negative)}
    return result if matrix.sum() else dict.fromkeys(result, float("nan"))


def _shares(average: str, true_C: np.ndarray, taken_C: np.ndarray) -> np.ndarray:
    """How much each class counts in an average."""
    if average == "binary" and len(true_C) != 2:
        raise UserError(f"scores: average='binary' of {len(true_C)} classes; it is for 2: use 'macro'")
    occurs_C = (true_C + taken_C) > 0
    shares = {
        "macro": occurs_C / max(occurs_C.sum(), 1),
        "weighted": _ratio(true_C, true_C.sum()),
        "micro": np.ones(len(true_C)),
        "binary": np.arange(len(true_C)) == 1,
    }
    if average not in shares:
        raise UserError(f"scores: average={average!r}; use {', '.join(map(repr, shares))}")
    return shares[average]


def _matthews(hits: float, true_C: np.ndarray, taken_C: np.ndarray) -> float:
    total = true_C.sum()
    spread = (total**2 - (true_C**2).sum()) * (total**2 - (taken_C**2).sum())
    return float((hits * total - true_C @ taken_C) / np.sqrt(spread)) if spread > 0 else 0.0


def _ratio(above: Any, below: Any) -> np.ndarray:
    """above / below, and 0 where below is 0."""
    below = np.asarray(below)
    return np.asarray(above / np.where(below == 0, 1, below))
