"""From which score on to say yes.

Legend of the shape suffix: N examples.
"""

from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.metrics.checks import class_labels, finite_rows


def youden_threshold(labels: Any, scores: Any) -> float:
    """The threshold t with the largest sensitivity + specificity, if ``score >= t`` says yes: max_t P(s >= t | y = 1) +
    P(s < t | y = 0).

    Args:
        labels: [N], 1 for yes and 0 for no.
        scores: [N], such as log-odds; choose them on examples that are neither trained on nor reported.

    Returns:
        halfway between two neighbouring scores, or 1 beyond the last of them; of equally good ones the middle one.

    Raises:
        UserError: lengths that differ, a label that is neither 0 nor 1, or only one of both; a score is not finite.

    Example:
        >>> youden_threshold([0, 0, 1, 1], [-2.0, -1.0, 3.0, 4.0])
        1.0

    Reference:
        Youden (1950), "Index for rating diagnostic tests", Cancer 3.
    """
    scores_N = finite_rows("youden_threshold", "scores", scores)
    labels_N = class_labels("youden_threshold", "label", labels, 2)
    if scores_N.shape != labels_N.shape or len(np.unique(labels_N)) != 2:
        raise UserError(
            f"youden_threshold: labels {labels_N.shape}, {labels_N.sum()} of them 1, and scores {scores_N.shape}; give "
            "one of each an example, and examples of both classes"
        )
    places, at_N = np.unique(scores_N, return_inverse=True)
    yes, no = (np.bincount(at_N[labels_N == label], minlength=len(places)) for label in (1, 0))
    # How many of either class lie below each threshold; integers, so that ties are exact.
    below_yes, below_no = (np.concatenate([[0], np.cumsum(counts)]) for counts in (yes, no))
    gain = below_no * yes.sum() - below_yes * no.sum()
    thresholds = np.concatenate([[places[0] - 1], (places[1:] + places[:-1]) / 2, [places[-1] + 1]])
    best = thresholds[gain == gain.max()]
    return float(best[len(best) // 2])
