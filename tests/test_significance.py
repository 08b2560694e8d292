"""Intervals and tests against scipy, enumerations, and what they promise: coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxbig.errors import UserError
from jaxbig.metrics import auc, scores
from jaxbig.metrics.labels import confusion
from jaxbig.significance import bootstrap, bootstrap_difference, mcnemar, permutation_test, t_interval

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 60)
FIRST, SECOND = (RNG.normal(size=60) + shift * LABELS for shift in (1.5, 0.3))


def f1(labels, logits):
    return scores(confusion(labels, (logits > 0).astype(int), 2), "binary")["f1"]


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_t_interval_is_scipys(level):
    values = RNG.normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    found = t_interval(values, level)
    assert found == (pytest.approx(values.mean()), pytest.approx(expected.low), pytest.approx(expected.high))


def test_folds_that_overlap_widen_the_interval():
    values = np.array([0.7, 0.8, 0.75, 0.9, 0.85])
    narrow, wide = t_interval(values), t_interval(values, overlap=1 / 4)
    assert wide.value == narrow.value
    # Nadeau and Bengio: 1/k + n_test/n_train in place of 1/k.
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt((1 / 5 + 1 / 4) / (1 / 5)))
    with pytest.raises(UserError, match="overlap=-1"):
        t_interval(values, overlap=-1)


def test_t_interval_of_differences_is_the_paired_test():
    first, second = RNG.normal(size=(2, 6))
    found = t_interval(first - second)
    level = 1 - stats.ttest_rel(first, second).pvalue
    edge = t_interval(first - second, level)
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-12)
    assert found.low < found.value < found.high


def test_one_value_has_no_bounds():
    value, low, high = t_interval([0.5])
    assert value == 0.5
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_the_bootstrap_is_scipys(method):
    values = RNG.exponential(size=40)
    options = {"n_resamples": 500, "method": {"bca": "BCa"}.get(method, method), "rng": np.random.default_rng(3)}
    expected = stats.bootstrap((values,), np.mean, **options).confidence_interval
    for vectorized in (False, True):
        metric = np.mean if vectorized else lambda x: float(np.mean(x))
        found = bootstrap(metric, values, method=method, resamples=500, seed=3, vectorized=vectorized)
        assert found == (pytest.approx(values.mean()), pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize("metric", [f1, auc])
def test_any_metric_is_resampled_with_its_labels(metric):
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 60, (100, 60))
    distribution = [metric(LABELS[i], FIRST[i]) for i in rows]
    found = bootstrap(metric, LABELS, FIRST, method="percentile", resamples=100, seed=5)
    assert found.value == metric(LABELS, FIRST)
    np.testing.assert_allclose(found[1:], np.percentile(distribution, [2.5, 97.5]))


def test_the_paired_bootstrap_knows_what_the_unpaired_does_not():
    """Two models that differ on few examples: the difference is sure, though each number alone is not."""
    first = np.repeat([1.0, 0.0], [160, 40])
    second = np.where(np.arange(200) < 8, 0.0, first)
    difference = bootstrap_difference(np.mean, [first], [second], resamples=2000, vectorized=True)
    alone = [bootstrap(np.mean, right, resamples=2000, vectorized=True) for right in (first, second)]
    assert difference.value == pytest.approx(0.04)
    assert difference.low > 0
    assert alone[0].low < alone[1].high
    assert bootstrap_difference(f1, [LABELS, FIRST], [LABELS, FIRST], resamples=50) == (0, 0, 0)


def test_seeds_fix_the_numbers():
    again = [bootstrap(f1, LABELS, FIRST, resamples=50, seed=seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    p = [permutation_test(f1, [LABELS, FIRST], [LABELS, SECOND], resamples=50, seed=seed) for seed in (0, 0)]
    assert p[0] == p[1]


def test_the_permutation_test_is_the_enumeration():
    first, second = RNG.normal(size=(2, 8)) + np.array([[0.6], [0.0]])
    means = [np.mean(np.array(signs) * (first - second)) for signs in itertools.product((1, -1), repeat=8)]
    expected = np.mean(np.abs(means) >= abs(np.mean(first - second)) - 1e-12)
    for vectorized in (False, True):
        metric = np.mean if vectorized else lambda x: float(np.mean(x))
        found = permutation_test(metric, [first], [second], resamples=256, vectorized=vectorized)
        assert found == pytest.approx(expected)


def test_the_permutation_test_of_any_metric_exchanges_whole_examples():
    rng, observed, extreme = np.random.default_rng(1), f1(LABELS, FIRST) - f1(LABELS, SECOND), 0
    for _ in range(600):
        swap = rng.uniform(size=60) < 0.5
        ours, theirs = np.where(swap, SECOND, FIRST), np.where(swap, FIRST, SECOND)
        extreme += abs(f1(LABELS, ours) - f1(LABELS, theirs)) >= abs(observed) - 1e-12
    found = permutation_test(f1, [LABELS, FIRST], [LABELS, SECOND], resamples=600)
    # Two estimates of one p, each of standard deviation below 0.02.
    assert found == pytest.approx(extreme / 600, abs=0.08)
    assert 0.01 < found < 0.5
    assert permutation_test(f1, [LABELS, FIRST], [LABELS, FIRST.copy()], resamples=99) == 1.0


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (9, 2), (3, 3), (2, 30)])
def test_mcnemar_is_the_binomial_sum(only_first, only_second):
    n, fewer = only_first + only_second, min(only_first, only_second)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    first = np.repeat([1, 0, 1, 0], [only_first, only_second, 7, 4])
    second = np.repeat([0, 1, 1, 0], [only_first, only_second, 7, 4])
    assert mcnemar(first, second) == pytest.approx(expected)


def covered(interval_of, draw, truth: float, times: int) -> float:
    rng = np.random.default_rng(11)
    intervals = [interval_of(draw(rng)) for _ in range(times)]
    return float(np.mean([low <= truth <= high for _, low, high in intervals]))


def test_intervals_cover_as_often_as_they_say():
    """Fixed seeds: bounds at four standard deviations of the simulation around 95%, a little less for the bootstrap."""
    assert 0.92 <= covered(t_interval, lambda rng: rng.normal(2.0, 3.0, 5), 2.0, 900) <= 0.98
    resampled = lambda x: bootstrap(np.mean, x, resamples=400, vectorized=True)  # noqa: E731
    assert 0.88 <= covered(resampled, lambda rng: rng.exponential(1.0, 60), 1.0, 250) <= 0.99


def test_the_permutation_test_rejects_no_more_than_it_says_without_a_difference():
    rng = np.random.default_rng(2)
    p = [permutation_test(np.mean, [x], [y], resamples=199, vectorized=True) for x, y in rng.normal(size=(300, 2, 12))]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: t_interval([]), "give at least 1"),
        (lambda: t_interval([1.0, np.nan]), "row 1 is not finite"),
        (lambda: t_interval([1.0, 2.0], 95), "level=95"),
        (lambda: bootstrap(np.mean, [1.0]), "give at least 2"),
        (lambda: bootstrap(f1, LABELS, FIRST[:-1]), r"arrays \[\(60,\), \(59,\)\]"),
        (lambda: bootstrap(np.mean, FIRST, method="bias"), "method='bias'"),
        (lambda: bootstrap(auc, [0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], resamples=50), "the metric is nan on"),
        (lambda: bootstrap(lambda x: x.mean() - 9 * (len(set(x)) < 60), FIRST, resamples=50), "method='percentile'"),
        (lambda: mcnemar([0, 2], [0, 1]), "other values than 0 and 1"),
    ],
)
def test_errors_say_how_to_mend(act, words):
    with pytest.raises(UserError, match=words):
        act()
