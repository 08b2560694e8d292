"""Calibration against loops over the bins, scikit-learn's Brier score and log loss."""

import itertools

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from jaxbig.errors import UserError
from jaxbig.metrics import brier, calibration_error, reliability
from jaxbig.metrics.calibration import log_loss

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 80)
LOGITS = RNG.normal(size=(80, 3)) * 2 + np.eye(3)[LABELS]
WEIGHTS = RNG.uniform(0.1, 2, 80)
P = softmax(LOGITS, axis=1)


def by_loop(confidence, right, weights, edges):
    """Σ share |accuracy - confidence|, one example after another."""
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [i for i, p in enumerate(confidence) if low < p <= high or (p == 0 and low == 0)]
        weight = sum(weights[i] for i in inside)
        if weight:
            gap = sum(weights[i] * (float(right[i]) - confidence[i]) for i in inside) / weight
            error += weight / sum(weights) * abs(gap)
    return error


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_calibration_error_is_its_definition(bins, weights):
    w = np.ones(80) if weights is None else weights
    edges = np.linspace(0, 1, bins + 1)
    expected = by_loop(P.max(1), P.argmax(1) == LABELS, w, edges)
    assert calibration_error(LABELS, LOGITS, weights, bins=bins) == pytest.approx(expected)
    expected = np.mean([by_loop(P[:, c], c == LABELS, w, edges) for c in range(3)])
    assert calibration_error(LABELS, LOGITS, weights, bins=bins, classwise=True) == pytest.approx(expected)


def test_the_curve_is_scikit_learns():
    right = P.argmax(1) == LABELS
    accuracy, confidence = calibration_curve(right, P.max(1), n_bins=10)
    curve = reliability(LABELS, LOGITS, bins=10)
    kept = curve.share > 0
    np.testing.assert_allclose(curve.accuracy[kept], accuracy)
    np.testing.assert_allclose(curve.confidence[kept], confidence)
    assert curve.share.sum() == pytest.approx(1)
    assert np.isnan(curve.accuracy[~kept]).all()


def test_adaptive_bins_hold_equal_numbers():
    curve = reliability(LABELS, LOGITS, bins=8, adaptive=True)
    np.testing.assert_allclose(curve.share, 1 / 8)
    order = np.argsort(P.max(1)).reshape(8, 10)
    gaps = [abs((P[rows].argmax(1) == LABELS[rows]).mean() - P[rows].max(1).mean()) for rows in order]
    assert curve.error == pytest.approx(np.mean(gaps))


def test_ties_on_the_bounds_belong_below():
    """Two equal logits are a confidence of exactly 1/2, the bound of two bins."""
    np.testing.assert_array_equal(reliability([0, 1], np.zeros((2, 2)), bins=2).share, [1, 0])
    adaptive = reliability([0, 1, 0], np.zeros((3, 2)), bins=4, adaptive=True)
    assert adaptive.error == pytest.approx(2 / 3 - 1 / 2)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_brier_and_log_loss_are_scikit_learns(weights):
    options = {"sample_weight": weights, "labels": range(3)}
    expected = theirs.brier_score_loss(LABELS, P, scale_by_half=False, **options)
    assert brier(LABELS, LOGITS, weights) == pytest.approx(expected)
    assert log_loss(LABELS, LOGITS, weights) == pytest.approx(theirs.log_loss(LABELS, P, **options))
    absent = LABELS < 2
    p, kept = P[absent], None if weights is None else weights[absent]
    options = {"sample_weight": kept, "labels": range(3)}
    expected = theirs.brier_score_loss(LABELS[absent], p, scale_by_half=False, **options)
    assert brier(LABELS[absent], LOGITS[absent], kept) == pytest.approx(expected)


def test_of_two_classes_brier_is_twice_the_binary_one():
    z, y = LOGITS[:, 0], LABELS % 2
    p = 1 / (1 + np.exp(-z))
    assert brier(y, z) == pytest.approx(2 * theirs.brier_score_loss(y, p))


def test_a_single_example_and_none():
    assert calibration_error([0], [[0.0, 0.0]]) == pytest.approx(0.5)
    for metric in (calibration_error, brier, log_loss):
        assert np.isnan(metric(LABELS, LOGITS, np.zeros(80)))
    assert np.isnan(calibration_error(LABELS, LOGITS, np.zeros(80), adaptive=True, classwise=True))


def test_errors_say_how_to_mend():
    spoilt = LOGITS.copy()
    spoilt[5, 1] = np.inf
    for metric in (calibration_error, brier, log_loss, reliability):
        with pytest.raises(UserError, match="row 5 of the logits"):
            metric(LABELS, spoilt)
    with pytest.raises(UserError, match="bins=0"):
        reliability(LABELS, LOGITS, bins=0)
