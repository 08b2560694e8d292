"""One call for the metrics of a classifier over a whole set."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.metrics.calibration import brier, calibration_error, log_loss
from jaxbig.metrics.checks import classified
from jaxbig.metrics.labels import Average, confusion, scores
from jaxbig.metrics.ranking import auc, average_precision

_OF_LOGITS: dict[str, Callable[[Any, Any, Any], float]] = {
    "auc": auc,
    "average_precision": average_precision,
    "brier": brier,
    "ece": calibration_error,
    "perplexity": lambda labels, logits, weights: float(np.exp(log_loss(labels, logits, weights))),
    "loss": log_loss,
}


def classification_report(
    labels: Any,
    logits: Any,
    weights: Any = None,
    *,
    average: Average = "macro",
    only: Sequence[str] | None = None,
) -> dict[str, float]:
    """Metrics of a classifier over a whole set, by name.

    Give it to `evaluate` for lines with more than loss and accuracy:
    ``report=lambda outputs: classification_report(outputs["label"], outputs["logits"], only=["f1", "auc"])``.

    Args:
        labels: integers [N], or probabilities [N, C]: then the most probable class is the label.
        logits: [N, C]; or one of each example, [N] or [N, 1], of a binary classifier: z stands for [0, z].
        weights: how much each example counts, [N]; a mask is one of 0 and 1. None: 1 each.
        average: of precision, recall and F1 over the classes; see `scores`.
        only: the names that are wanted, in this order; None: all.

    Returns:
        what `scores` returns, and ``auc``, ``average_precision``, ``brier``, ``ece`` (15 bins of equal width),
        ``loss`` (mean negative log-likelihood in nats) and ``perplexity``, its exponential. nan where nothing counts.

    Raises:
        UserError: arguments that do not fit, a logit that is not finite (names the first row), an unknown name, or
            scikit-learn is absent and ``auc`` or ``average_precision`` is wanted.

    Example:
        >>> report = classification_report([0, 1, 1], [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]], only=["accuracy", "auc"])
        >>> round(report["accuracy"], 4), report["auc"]
        (0.6667, 1.0)
    """
    labels, logits, weights = classified("classification_report", labels, logits, weights)
    classes = logits.shape[1]
    of_choices = scores(confusion(labels, logits.argmax(axis=-1), classes, weights), average)
    names = [*of_choices, *_OF_LOGITS] if only is None else list(only)
    unknown = [name for name in names if name not in of_choices and name not in _OF_LOGITS]
    if unknown:
        raise UserError(
            f"classification_report: no metric {unknown[0]!r}; there are {', '.join([*of_choices, *_OF_LOGITS])}"
        )
    return {
        name: of_choices[name] if name in of_choices else _OF_LOGITS[name](labels, logits, weights) for name in names
    }
