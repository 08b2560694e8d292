"""Metrics in NumPy and scikit-learn: of choices, rankings, probabilities, decisions and numbers, and from sums."""

from jaxbig.metrics.calibration import Reliability, brier, calibration_error, reliability
from jaxbig.metrics.decision import Costs, costs, expected_cost, gini, ks
from jaxbig.metrics.final_number import final_number, same_number
from jaxbig.metrics.labels import confusion, scores
from jaxbig.metrics.ranking import auc, average_precision, pr_curve, roc_curve
from jaxbig.metrics.regression import regression_report
from jaxbig.metrics.report import classification_report
from jaxbig.metrics.sums import summary
from jaxbig.metrics.threshold import youden_threshold

__all__ = [
    "Costs",
    "Reliability",
    "auc",
    "average_precision",
    "brier",
    "calibration_error",
    "classification_report",
    "confusion",
    "costs",
    "expected_cost",
    "final_number",
    "gini",
    "ks",
    "pr_curve",
    "regression_report",
    "reliability",
    "roc_curve",
    "same_number",
    "scores",
    "summary",
    "youden_threshold",
]
