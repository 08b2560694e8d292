"""Metrics in NumPy and scikit-learn: of hard choices, of rankings, of probabilities, of numbers, and from sums."""

from jaxbig.metrics.calibration import Reliability, brier, calibration_error, reliability
from jaxbig.metrics.labels import confusion, scores
from jaxbig.metrics.ranking import auc, average_precision, pr_curve, roc_curve
from jaxbig.metrics.regression import regression_report
from jaxbig.metrics.report import classification_report
from jaxbig.metrics.sums import summary
from jaxbig.metrics.threshold import youden_threshold

__all__ = [
    "Reliability",
    "auc",
    "average_precision",
    "brier",
    "calibration_error",
    "classification_report",
    "confusion",
    "pr_curve",
    "regression_report",
    "reliability",
    "roc_curve",
    "scores",
    "summary",
    "youden_threshold",
]
