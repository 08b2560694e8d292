"""What becomes of a metric's sum and count, once they are summed over all batches.

A metric is a pair (sum, count), so that padding, uneven batches and several processes never lie. Most are means, sum /
count. Some names say more, because some numbers are no means of examples but functions of sums: the table below.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.metrics.labels import scores
from jaxbig.metrics.regression import r2_from_sums


def _confusion(matrix: np.ndarray, count: float) -> dict[str, float]:
    averaged = scores(matrix)
    return {name: averaged[name] for name in ("precision", "recall", "f1")}


def _perplexity(total: np.ndarray, count: float) -> dict[str, float]:
    with np.errstate(over="ignore"):
        return {"perplexity": float(np.exp(total / count)) if count else float("nan")}


SUMMARIES: dict[str, Callable[[np.ndarray, float], dict[str, float]]] = {
    "confusion": _confusion,
    "perplexity": _perplexity,
    "r2": lambda sums, count: {"r2": r2_from_sums(sums, count)},
}
"""name of a metric -> function (sum, count) -> numbers by name.

``confusion``, [C, C]: ``precision``, ``recall`` and ``f1``, macro averages. ``perplexity``, the sum of the tokens'
negative log-likelihoods in nats: exp(sum / count). ``r2``, [3, D]: see `jaxbig.objective.regress`.
"""


def summary(name: str, total: Any, count: float) -> dict[str, float]:
    """The numbers that a metric's sum and count stand for.

    Args:
        name: the metric's.
        total: its sum, a number or an array.
        count: the sum of weights.

    Returns:
        `SUMMARIES` has the name: what it says. Else {name: sum / count}, nan where nothing was counted.

    Raises:
        UserError: the sum is an array, and the name is not in `SUMMARIES`.

    Example:
        >>> summary("loss", 3.0, 2.0), summary("perplexity", 0.0, 5.0)
        ({'loss': 1.5}, {'perplexity': 1.0})
    """
    total = np.asarray(total, np.float64)
    if name in SUMMARIES:
        return SUMMARIES[name](total, count)
    if total.ndim:
        raise UserError(
            f"metric {name}: its sum is an array {total.shape}, and nothing says which numbers it stands for; "
            f"sum it up to one number, or use one of the names {', '.join(SUMMARIES)}"
        )
    return {name: float(total) / count if count else float("nan")}
