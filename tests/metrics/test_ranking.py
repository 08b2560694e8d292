"""Rankings against scikit-learn: ties, absent classes, weights; curves end where they should."""

import sys

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as theirs

from jaxbig.errors import UserError
from jaxbig.metrics import auc, average_precision, pr_curve, roc_curve

RNG = np.random.default_rng(0)
BINARY = RNG.integers(0, 2, 40)
TIED = np.round(RNG.normal(size=40) + BINARY, 0)
LABELS = RNG.integers(0, 3, 50)
LOGITS = RNG.normal(size=(50, 3)) + np.eye(3)[LABELS]
WEIGHTS = RNG.uniform(0.1, 2, 50)


@pytest.mark.parametrize("scores", [TIED, np.arange(40.0), np.zeros(40)], ids=["ties", "none", "all equal"])
@pytest.mark.parametrize("weights", [None, WEIGHTS[:40]])
def test_two_classes_are_scikit_learns(scores, weights):
    two = np.stack([np.full(40, 0.3), scores], axis=1)
    for logits in (scores, scores[:, None], two):
        assert auc(BINARY, logits, weights) == pytest.approx(
            theirs.roc_auc_score(BINARY, scores, sample_weight=weights)
        )
        assert average_precision(BINARY, logits, weights) == pytest.approx(
            theirs.average_precision_score(BINARY, scores, sample_weight=weights)
        )
    curve = roc_curve(BINARY, two, weights)
    x, y, _ = theirs.roc_curve(BINARY, scores, sample_weight=weights)
    np.testing.assert_allclose(curve.x, x)
    np.testing.assert_allclose(curve.y, y)
    assert curve.area == pytest.approx(theirs.auc(x, y))
    curve = pr_curve(BINARY, two, weights)
    y, x, _ = theirs.precision_recall_curve(BINARY, scores, sample_weight=weights)
    np.testing.assert_allclose((curve.x[::-1], curve.y[::-1]), (x, y))
    assert curve.area == pytest.approx(np.sum(np.diff(curve.x) * curve.y[1:]))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_more_classes_are_scikit_learns(weights):
    p = softmax(LOGITS, axis=1)
    expected = theirs.roc_auc_score(LABELS, p, multi_class="ovr", average="macro", sample_weight=weights)
    assert auc(LABELS, LOGITS, weights) == pytest.approx(expected)
    expected = theirs.average_precision_score(LABELS, p, average="macro", sample_weight=weights)
    assert average_precision(LABELS, LOGITS, weights) == pytest.approx(expected)


def test_a_class_without_examples_is_left_out_and_none_at_all_is_nan():
    some = LABELS < 2
    p = softmax(LOGITS[some], axis=1)
    expected = np.mean([theirs.roc_auc_score(LABELS[some] == c, p[:, c]) for c in (0, 1)])
    assert auc(LABELS[some], LOGITS[some]) == pytest.approx(expected)
    assert np.isnan(auc([1], [[0.0, 1.0]]))
    assert np.isnan(average_precision([1, 1], [0.0, 1.0]))


def test_masked_examples_count_nowhere_whatever_they_hold():
    mask = np.arange(50) % 4 > 0
    spoilt = np.where(mask[:, None], LOGITS, np.nan)
    assert auc(LABELS, spoilt, mask) == auc(LABELS[mask], LOGITS[mask])


def test_confident_logits_still_rank():
    """Where probabilities round to 1, and even log p to 0."""
    assert auc([0, 1, 0, 1], [[0, 60.0], [0, 90.0], [0, 70.0], [0, 80.0]]) == 1.0


def test_a_row_that_is_nan_is_named():
    logits = LOGITS.copy()
    logits[[7, 9]] = np.nan
    for metric in (auc, average_precision, roc_curve, pr_curve):
        with pytest.raises(UserError, match="row 7 of the logits is not finite"):
            metric(LABELS, logits)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: roc_curve([1, 1], [0.0, 1.0]), "2 of 2 examples are of class 1"),
        (lambda: pr_curve(LABELS, LOGITS, positive=3), "positive=3 of 3"),
        (lambda: auc([3], LOGITS[:1]), "label 3 is not among"),
        (lambda: auc([0, 1], LOGITS[:1]), "one of each"),
    ],
)
def test_errors_say_how_to_mend(act, words):
    with pytest.raises(UserError, match=words):
        act()


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'jaxbig\[metrics\]'"):
        auc(BINARY, TIED)
