"""Thresholds, against every threshold tried one by one with scikit-learn's rates."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from jaxbig.errors import UserError
from jaxbig.metrics import youden_threshold


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random(40) < 0.7).astype(int)
    scores = np.round(rng.normal(size=40) + labels, 1)
    found = youden_threshold(labels, scores)
    quality = lambda t: balanced_accuracy_score(labels, scores >= t)  # noqa: E731
    assert quality(found) == max(map(quality, np.arange(-5, 5, 0.05)))


def test_where_several_are_best_it_is_one_of_them_and_not_between():
    labels, scores = np.array([0, 0, 1, 1, 0, 1]), np.array([-2.0, -1.0, -0.5, 1.0, 0.5, 2.0])
    assert youden_threshold(labels, scores) in (-0.75, 0.75)
    assert youden_threshold([1, 0], [0.0, 1.0]) in (-1.0, 2.0)


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [([1, 1], [0.0, 1.0], "2 of them 1"), ([0, 2], [0.0, 1.0], "label 2"), ([0, 1], [0.0, np.nan], "row 1")],
)
def test_what_cannot_be_judged(labels, scores, says):
    with pytest.raises(UserError, match=says):
        youden_threshold(labels, scores)
