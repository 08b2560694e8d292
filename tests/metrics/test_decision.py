"""Decisions: against scipy's two-sample statistic, and against every threshold tried one by one."""

import numpy as np
import pytest
from scipy import stats

from jaxbig.errors import UserError
from jaxbig.metrics import costs, expected_cost, gini, ks

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 200)
SCORES = np.round(RNG.normal(size=200) + 0.8 * LABELS - 0.5, 1)
WEIGHTS = RNG.integers(0, 3, 200).astype(float)


def test_ks_is_the_two_sample_statistic_and_gini_is_somers_d():
    assert ks(LABELS, SCORES) == pytest.approx(stats.ks_2samp(SCORES[LABELS == 1], SCORES[LABELS == 0]).statistic)
    assert gini(LABELS, SCORES) == pytest.approx(stats.somersd(LABELS, SCORES).statistic)


def test_costs_are_those_of_each_threshold():
    curve = costs(LABELS, SCORES, WEIGHTS, miss=3, alarm=2)
    thresholds = [np.inf, *np.unique(SCORES[WEIGHTS > 0])[::-1]]
    total = WEIGHTS.sum()
    for threshold, refused, cost in zip(thresholds, curve.refused, curve.cost, strict=True):
        out = threshold <= SCORES
        assert refused == pytest.approx(WEIGHTS[out].sum() / total)
        wrong = 3 * WEIGHTS[(LABELS == 1) & ~out].sum() + 2 * WEIGHTS[(LABELS == 0) & out].sum()
        assert cost == pytest.approx(wrong / total)
    assert curve.least == curve.cost.min()


def test_the_advised_decision_is_bayes():
    # Of true probabilities no threshold is better than the advised one.
    p = np.linspace(0.01, 0.99, 99)
    labels, logits = np.repeat([0, 1], 99), np.tile(np.log(p / (1 - p)), 2)
    weights = np.concatenate([1 - p, p])
    advised = expected_cost(labels, logits, weights, miss=4, alarm=1)
    assert advised == pytest.approx(costs(labels, logits, weights, miss=4, alarm=1).least)
    refused = p > 1 / 5
    assert advised == pytest.approx((4 * p[~refused].sum() + (1 - p[refused]).sum()) / 99)


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: expected_cost(LABELS, SCORES, miss=0), "miss=0"),
        (lambda: costs(LABELS, np.zeros((200, 3))), "3 classes"),
        (lambda: costs(LABELS, SCORES, np.zeros(200)), "nothing counts"),
    ],
)
def test_errors_say_what_and_how_to_mend(act, word):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert word in str(caught.value)
