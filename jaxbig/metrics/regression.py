"""Metrics of predicted numbers.

Legend of the shape suffixes: N examples, D outputs.
"""

from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.metrics.checks import example_weights, finite_rows


def r2_from_sums(sums: Any, count: float) -> float:
    """R² = mean_d 1 - Σ w (y - ŷ)² / Σ w (y - ȳ)², from sums over any number of batches.

    Args:
        sums: [3, D]: Σ w (y - c), Σ w (y - c)² and Σ w (y - ŷ)², with any constant c.
        count: Σ w.

    Returns:
        R²; nan where targets do not vary, or so little beside their distance from c that float32 sums cannot tell
        (variance below 1e-5 of the mean square).

    Example:
        >>> r2_from_sums([[3.0], [5.0], [0.1]], 2.0)
        0.8
    """
    moved_D, squares_D, errors_D = np.asarray(sums, np.float64)
    spread_D = squares_D - moved_D**2 / count if count else np.zeros_like(moved_D)
    if (spread_D <= 1e-5 * squares_D).any():
        return float("nan")
    return float((1 - errors_D / spread_D).mean())


def regression_report(labels: Any, predictions: Any, weights: Any = None) -> dict[str, float]:
    """Mean squared and absolute error, and R², over a whole set in float64.

    Args:
        labels, predictions: [N] or [N, D].
        weights: how much each example counts, [N]; None: 1 each. Examples with weight 0 are left out.

    Returns:
        ``mse``, its root ``rmse``, ``mae`` and ``r2``, means over the D outputs; ``r2`` is nan where targets do not
        vary, as with a single example. All are nan where nothing counts.

    Raises:
        UserError: shapes differ, or a row is not finite.

    Example:
        >>> regression_report([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])["r2"]
        0.5
    """
    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if labels.shape != predictions.shape or labels.ndim not in (1, 2):
        raise UserError(
            f"regression: labels {labels.shape} and predictions {predictions.shape}; both are [N] or [N, D]"
        )
    weights = example_weights("regression", weights, len(labels))
    columns = [array.reshape(len(labels), -1) for array in (labels, predictions)]
    for name, values in zip(("labels", "predictions"), columns, strict=True):
        finite_rows("regression", name, np.where(weights[:, None] > 0, values, 0))
    labels_ND, predictions_ND = (array[weights > 0] for array in columns)
    weights = weights[weights > 0]
    if not len(weights):
        return dict.fromkeys(("mse", "rmse", "mae", "r2"), float("nan"))
    error_ND = predictions_ND - labels_ND
    mse_D = np.average(error_ND**2, axis=0, weights=weights)
    moved_ND = labels_ND - np.average(labels_ND, axis=0, weights=weights)
    spread_D = np.average(moved_ND**2, axis=0, weights=weights)
    varies = (np.ptp(labels_ND, axis=0) > 0).all()
    return {
        "mse": float(mse_D.mean()),
        "rmse": float(np.sqrt(mse_D.mean())),
        "mae": float(np.average(np.abs(error_ND), axis=0, weights=weights).mean()),
        "r2": float((1 - mse_D / spread_D).mean()) if varies else float("nan"),
    }
