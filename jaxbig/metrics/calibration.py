"""Whether probabilities mean what they say: Brier score, expected calibration error, reliability.

Legend of the shape suffixes: N examples, C classes, M bins.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, softmax

from jaxbig.errors import UserError
from jaxbig.metrics.checks import classified


class Reliability(NamedTuple):
    """Confidence against accuracy, bin by bin.

    Attributes:
        edges: [M + 1], the bins' bounds; bin m holds what is above edges[m] and not above edges[m + 1].
        confidence: [M], mean confidence; nan in an empty bin.
        accuracy: [M], how often it was right; nan in an empty bin.
        share: [M], how much of the whole weight is in the bin.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray

    @property
    def error(self) -> float:
        """Σ_m share_m abs(accuracy_m - confidence_m)."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float((self.share * gaps)[self.share > 0].sum()) if self.share.any() else float("nan")


def reliability(
    labels: Any, logits: Any, weights: Any = None, *, bins: int = 15, adaptive: bool = False
) -> Reliability:
    """The reliability curve: accuracy of the chosen class, by how sure the model was of it.

    Args:
        labels, logits, weights: as for `classification_report`.
        bins: M.
        adaptive: bins of equal weight in place of equal width.

    Returns:
        the curve; its `error` is the expected calibration error.

    Raises:
        UserError: arguments that do not fit, or fewer bins than 1.

    Example:
        >>> curve = reliability([0, 1], [[0.0, 0.0], [0.0, np.log(4)]], bins=2)
        >>> curve.confidence.tolist(), curve.accuracy.tolist(), round(curve.error, 3)
        ([0.5, 0.8], [1.0, 1.0], 0.35)

    Reference:
        Guo et al. (2017), "On calibration of modern neural networks", arXiv:1706.04599.
    """
    labels, logits_NC, weights = classified("reliability", labels, logits, weights)
    p_NC = softmax(logits_NC, axis=-1)
    right_N = logits_NC.argmax(axis=-1) == labels
    return _binned(p_NC.max(axis=-1, initial=0.0), right_N, weights, bins, adaptive)


def calibration_error(
    labels: Any,
    logits: Any,
    weights: Any = None,
    *,
    bins: int = 15,
    adaptive: bool = False,
    classwise: bool = False,
) -> float:
    """Expected calibration error: Σ_m share_m abs(accuracy_m - confidence_m).

    Args:
        labels, logits, weights: as for `classification_report`.
        bins: M.
        adaptive: bins of equal weight in place of equal width.
        classwise: the mean over all classes c of the error of p_c as the probability of c, in place of the error of the
            chosen class's.

    Returns:
        from 0 (calibrated) to 1; nan where nothing counts.

    Raises:
        UserError: arguments that do not fit, or fewer bins than 1.

    Example:
        >>> round(calibration_error([0, 1], [[0.0, 0.0], [0.0, np.log(4)]], bins=2), 3)
        0.35

    Reference:
        Guo et al. (2017), arXiv:1706.04599. Bins of equal weight: Nixon et al. (2019), "Measuring calibration in deep
        learning", arXiv:1904.01685. Class by class: Kull et al. (2019), arXiv:1910.12656.
    """
    if not classwise:
        return reliability(labels, logits, weights, bins=bins, adaptive=adaptive).error
    labels, logits_NC, weights = classified("calibration_error", labels, logits, weights)
    p_NC = softmax(logits_NC, axis=-1)
    errors = [_binned(p_N, labels == c, weights, bins, adaptive).error for c, p_N in enumerate(p_NC.T)]
    return float(np.mean(errors))


def brier(labels: Any, logits: Any, weights: Any = None) -> float:
    """Brier score: the mean over examples of Σ_c (p_c - onehot(y)_c)², from 0 to 2.

    Args:
        labels, logits, weights: as for `classification_report`.

    Returns:
        the score; nan where nothing counts.

    Raises:
        UserError: arguments that do not fit.

    Example:
        >>> brier([0], [[0.0, 0.0]])
        0.5

    Reference:
        Brier (1950), with the sum over all classes. Of two classes it is twice the (p_1 - y)² that is named so as well.
    """
    labels, logits_NC, weights = classified("brier", labels, logits, weights)
    squares_NC = (softmax(logits_NC, axis=-1) - np.eye(logits_NC.shape[1])[labels]) ** 2
    return float(np.average(squares_NC.sum(axis=-1), weights=weights)) if len(labels) else float("nan")


def log_loss(labels: Any, logits: Any, weights: Any = None) -> float:
    """Mean negative log-likelihood in nats: -log softmax(z)_y. Its exponential is the perplexity.

    Args:
        labels, logits, weights: as for `classification_report`.

    Returns:
        the mean; nan where nothing counts.

    Raises:
        UserError: arguments that do not fit.

    Example:
        >>> round(log_loss([0], [[0.0, 0.0]]), 4)
        0.6931
    """
    labels, logits_NC, weights = classified("log_loss", labels, logits, weights)
    log_p_N = log_softmax(logits_NC, axis=-1)[np.arange(len(labels)), labels]
    return float(-np.average(log_p_N, weights=weights)) if len(labels) else float("nan")


def _binned(confidence_N: np.ndarray, right_N: np.ndarray, weights_N: np.ndarray, bins: int, adaptive: bool):
    if bins < 1:
        raise UserError(f"reliability: bins={bins}; use 1 or more")
    edges = np.linspace(0, 1, bins + 1)
    if adaptive and len(confidence_N):
        order = np.argsort(confidence_N, kind="stable")
        reached = np.cumsum(weights_N[order])
        inner = np.searchsorted(reached, reached[-1] * edges[1:-1], side="left")
        edges = np.concatenate([[0], confidence_N[order][inner], [1]])
    # Open below and closed above, but 0 itself has to be somewhere. Equal edges make empty bins.
    bin_N = np.maximum(np.searchsorted(edges, confidence_N, side="left") - 1, 0)
    share, sure, right = (
        np.bincount(bin_N, weights_N * values, minlength=bins)[:bins] for values in (1.0, confidence_N, right_N)
    )
    with np.errstate(invalid="ignore"):
        return Reliability(edges, sure / share, right / share, share / (share.sum() or 1))
