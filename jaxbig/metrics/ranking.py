"""Metrics of rankings: ROC and precision-recall curves and the areas under them, by scikit-learn.

What ranks an example for class c is its log-odds, z_c - log Σ_{k≠c} exp(z_k): the order of its probability, but without
the ties that probabilities near 1 have.

Legend of the shape suffixes: N examples, C classes.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from jaxbig.errors import UserError
from jaxbig.metrics.checks import classified


class Curve(NamedTuple):
    """A curve over all thresholds.

    Attributes:
        x, y: [T]; false positive rate and true positive rate, or recall and precision.
        area: under the curve: AUC by trapezes, or average precision by steps.
    """

    x: np.ndarray
    y: np.ndarray
    area: float


def log_odds(logits_NC: np.ndarray) -> np.ndarray:
    """log p_c / (1 - p_c) of every class: z_c - log Σ_{k≠c} exp(z_k), without cancellation.

    Args:
        logits_NC: [N, C], C at least 2.

    Returns:
        float64 [N, C].

    Example:
        >>> log_odds(np.array([[0.0, 100.0]])).tolist()
        [[-100.0, 100.0]]
    """
    logits_NC = np.asarray(logits_NC, np.float64)
    columns = range(logits_NC.shape[1])
    return np.stack([logits_NC[:, c] - logsumexp(np.delete(logits_NC, c, axis=1), axis=1) for c in columns], axis=1)


def roc_curve(labels: Any, logits: Any, weights: Any = None, positive: int = 1) -> Curve:
    """The ROC curve of one class against the rest.

    Args:
        labels, logits, weights: as for `classification_report`.
        positive: the class.

    Returns:
        false positive rate, true positive rate and AUC; the corners only that matter.

    Raises:
        UserError: arguments that do not fit, the class or the rest has no example, or scikit-learn is absent.

    Example:
        >>> roc_curve([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]).area
        0.75
    """
    target, score, weights = _one_against_rest("roc_curve", labels, logits, weights, positive)
    metrics = _sklearn()
    x, y, _ = metrics.roc_curve(target, score, sample_weight=weights)
    return Curve(x, y, float(metrics.roc_auc_score(target, score, sample_weight=weights)))


def pr_curve(labels: Any, logits: Any, weights: Any = None, positive: int = 1) -> Curve:
    """The precision-recall curve of one class against the rest.

    Args:
        labels, logits, weights: as for `classification_report`.
        positive: the class.

    Returns:
        recall, precision and average precision Σ_t (recall_t - recall_{t-1}) precision_t.

    Raises:
        UserError: arguments that do not fit, the class or the rest has no example, or scikit-learn is absent.

    Example:
        >>> round(pr_curve([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]).area, 4)
        0.8333
    """
    target, score, weights = _one_against_rest("pr_curve", labels, logits, weights, positive)
    metrics = _sklearn()
    y, x, _ = metrics.precision_recall_curve(target, score, sample_weight=weights)
    return Curve(x[::-1], y[::-1], float(metrics.average_precision_score(target, score, sample_weight=weights)))


def auc(labels: Any, logits: Any, weights: Any = None) -> float:
    """Area under the ROC curve: how probably a positive example ranks above a negative one; ties count one half.

    Args:
        labels, logits, weights: as for `classification_report`.

    Returns:
        of two classes, that of class 1; of more, the mean of one class against the rest over the classes that have both
        positive and negative examples. nan where there is none.

    Raises:
        UserError: arguments that do not fit, or scikit-learn is absent.

    Example:
        >>> auc([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
        0.75
    """
    return _mean_over_classes("auc", "roc_auc_score", labels, logits, weights)


def average_precision(labels: Any, logits: Any, weights: Any = None) -> float:
    """Average precision: Σ_t (recall_t - recall_{t-1}) precision_t.

    Args:
        labels, logits, weights: as for `classification_report`.

    Returns:
        over classes as for `auc`.

    Raises:
        UserError: arguments that do not fit, or scikit-learn is absent.

    Example:
        >>> round(average_precision([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]), 4)
        0.8333
    """
    return _mean_over_classes("average_precision", "average_precision_score", labels, logits, weights)


def _mean_over_classes(who: str, metric: str, labels: Any, logits: Any, weights: Any) -> float:
    labels, logits_NC, weights = classified(who, labels, logits, weights)
    score = getattr(_sklearn(), metric)
    odds_NC = log_odds(logits_NC)
    classes = [1] if logits_NC.shape[1] == 2 else range(logits_NC.shape[1])
    targets = {c: labels == c for c in classes}
    found = [score(t, odds_NC[:, c], sample_weight=weights) for c, t in targets.items() if 0 < t.sum() < len(t)]
    return float(np.mean(found)) if found else float("nan")


def _one_against_rest(who: str, labels: Any, logits: Any, weights: Any, positive: int):
    labels, logits_NC, weights = classified(who, labels, logits, weights)
    classes = logits_NC.shape[1]
    if not 0 <= positive < classes:
        raise UserError(f"{who}: positive={positive} of {classes} classes; use 0 to {classes - 1}")
    target = labels == positive
    if not 0 < target.sum() < len(target):
        raise UserError(f"{who}: {target.sum()} of {len(target)} examples are of class {positive}; it needs both kinds")
    return target, log_odds(logits_NC)[:, positive], weights


def _sklearn() -> ModuleType:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise UserError("rankings: scikit-learn is not installed; run: pip install 'jaxbig[metrics]'") from error
    return metrics
