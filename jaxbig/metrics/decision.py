"""Metrics of decisions between two classes, as lenders use them: Kolmogorov-Smirnov, Gini, and what errors cost.

Class 1 is what one looks for and refuses: the default, the fraud, the ill.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from jaxbig.errors import UserError
from jaxbig.metrics.checks import classified
from jaxbig.metrics.ranking import auc, log_odds, roc_curve


class Costs(NamedTuple):
    """What it costs to refuse the most suspicious, by how many one refuses.

    Attributes:
        refused: [T], from 0 to 1, the share of all examples that is refused.
        cost: [T], for each example on average.
    """

    refused: np.ndarray
    cost: np.ndarray

    @property
    def least(self) -> float:
        """The least cost that a threshold could have, known afterwards only."""
        return float(self.cost.min())


def ks(labels: Any, logits: Any, weights: Any = None) -> float:
    """Kolmogorov-Smirnov statistic: the largest distance of the two classes' score distributions, max(tpr - fpr).

    Args:
        labels, logits, weights: as for `classification_report`, of two classes.

    Returns:
        from 0 to 1.

    Raises:
        UserError: as `roc_curve`.

    Example:
        >>> ks([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
        0.5
    """
    curve = roc_curve(labels, logits, weights)
    return float((curve.y - curve.x).max())


def gini(labels: Any, logits: Any, weights: Any = None) -> float:
    """Gini coefficient of a score, also called accuracy ratio or Somers' D: 2 AUC - 1.

    Args:
        labels, logits, weights: as for `classification_report`, of two classes.

    Returns:
        from -1 to 1; 0 for guessing, nan where a class has no example.

    Example:
        >>> gini([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
        0.5
    """
    return 2 * auc(labels, logits, weights) - 1


def expected_cost(labels: Any, logits: Any, weights: Any = None, *, miss: float = 5.0, alarm: float = 1.0) -> float:
    """Mean cost of the decisions that the probabilities advise: refuse where p > alarm / (alarm + miss).

    That threshold is the best one if the probabilities are true, so the number tells of ranking and calibration both.

    Args:
        labels, logits, weights: as for `classification_report`, of two classes.
        miss: cost of an accepted example of class 1; the default is the German credit data's.
        alarm: cost of a refused example of class 0.

    Returns:
        the mean; nan where nothing counts.

    Raises:
        UserError: arguments that do not fit, more than two classes, or a cost that is not above 0.

    Example:
        >>> expected_cost([0, 1, 0, 1], [-9.0, -9.0, 0.0, 0.0])
        1.5

    Reference:
        Elkan (2001), "The foundations of cost-sensitive learning", IJCAI, equation 2.
    """
    labels, odds, weights = _two("expected_cost", labels, logits, weights, miss, alarm)
    refused = expit(odds) > alarm / (alarm + miss)
    cost = np.where(labels == 1, miss * ~refused, alarm * refused)
    return float(np.average(cost, weights=weights)) if len(labels) else float("nan")


def costs(labels: Any, logits: Any, weights: Any = None, *, miss: float = 5.0, alarm: float = 1.0) -> Costs:
    """Mean cost over all thresholds, as a curve over the share of examples that each of them refuses.

    Args:
        labels, logits, weights, miss, alarm: as for `expected_cost`.

    Returns:
        the curve; equal scores are refused together.

    Raises:
        UserError: as `expected_cost`; nothing counts.

    Example:
        >>> costs([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]).cost.tolist()
        [2.5, 1.25, 1.5, 0.25, 0.5]
    """
    labels, odds, weights = _two("costs", labels, logits, weights, miss, alarm)
    if not len(labels):
        raise UserError("costs: nothing counts; give examples with a weight above 0")
    order = np.argsort(-odds, kind="stable")
    # Refusing an example of class 1 saves a miss, refusing one of class 0 is an alarm.
    change = np.where(labels == 1, -miss, alarm)[order] * weights[order]
    last = np.append(np.diff(odds[order]) != 0, True)
    total = weights.sum()
    refused = np.append(0.0, np.cumsum(weights[order])[last]) / total
    cost = (miss * weights[labels == 1].sum() + np.append(0.0, np.cumsum(change)[last])) / total
    return Costs(refused, cost)


def _two(who: str, labels: Any, logits: Any, weights: Any, miss: float, alarm: float):
    if min(miss, alarm) <= 0:
        raise UserError(f"{who}: miss={miss}, alarm={alarm}; use costs above 0")
    labels, logits_NC, weights = classified(who, labels, logits, weights)
    if logits_NC.shape[1] != 2:
        raise UserError(f"{who}: {logits_NC.shape[1]} classes; it is for two: accept and refuse")
    return labels, log_odds(logits_NC)[:, 1], weights
