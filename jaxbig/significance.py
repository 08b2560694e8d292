"""How sure a number is, and whether two numbers differ: intervals and tests, over examples and over seeds.

Over the examples of one test set, resample them: `bootstrap`, `bootstrap_difference`, `permutation_test`, `mcnemar`.
Over the seeds of a run, where there are few: `t_interval`, of the paired differences if two runs share their seeds.
The first asks how the numbers would be on other examples, the second on other seeds; neither speaks for the other.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from jaxbig.errors import UserError

Metric = Callable[..., Any]
# Numbers that one pass over the resamples may hold: 128 MiB in float64.
_AT_ONCE = 1 << 24


class Interval(NamedTuple):
    """A number, and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def t_interval(values: Any, level: float = 0.95, overlap: float = 0.0) -> Interval:
    """Mean and its interval by Student's t: mean ± t_{n-1} s √(1/n + overlap), for values such as those of n seeds.

    Args:
        values: [n]. For two runs that share seeds (and so data and initialisation) give the differences.
        level: coverage, between 0 and 1.
        overlap: 0 for independent values. The n folds of a cross-validation share most of their training data, so
            their values vary less than those of new data would: give test examples / training examples, 1 / (n - 1).

    Returns:
        the mean and the bounds; one value alone has no spread, so its bounds are nan.

    Raises:
        UserError: no value, one that is not finite, `level` or `overlap` out of range.

    Example:
        >>> print(*np.round(t_interval([0.9, 0.92, 0.94]), 4))
        0.92 0.8703 0.9697

    Reference:
        Student (1908), "The probable error of a mean", Biometrika 6; Nadeau and Bengio (2003), "Inference for the
        generalization error", Machine Learning 52, for `overlap`.
    """
    values = _rows("t_interval", [values], level)[0]
    if overlap < 0:
        raise UserError(f"t_interval: overlap={overlap}; use test / training examples of a fold, or 0")
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) * np.sqrt(1 / len(values) + overlap)
    return Interval(mean, mean - float(half), mean + float(half))


def bootstrap(
    metric: Metric,
    *arrays: Any,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    resamples: int = 9999,
    seed: int = 0,
    vectorized: bool = False,
) -> Interval:
    """A metric over a test set, and its interval by resampling the examples.

    Args:
        metric: function of the arrays to a number. With `vectorized`: of arrays [R, N] and ``axis=-1`` to [R], as
            `numpy.mean` is; the arrays then have to be [N].
        arrays: of N examples each, [N, ...]; resampled together.
        level: coverage, between 0 and 1.
        method: "bca", corrected for bias and skew, costs N further evaluations; or "percentile".
        resamples: how many.
        seed: the same numbers give the same interval.
        vectorized: all resamples in few calls.

    Returns:
        the metric and the bounds. Where all resamples agree, both are the metric itself: of N examples without an error
        no resample tells how many there may be; `scipy.stats.binomtest` does.

    Raises:
        UserError: arrays of different lengths, fewer than 2 examples, a metric that is nan on a resample (AUC of a
            class with few examples), or that "bca" cannot correct.

    Example:
        >>> right = np.repeat([1.0, 0.0], [90, 10])
        >>> print(*np.round(bootstrap(np.mean, right, vectorized=True), 2))
        0.9 0.83 0.95

    Reference:
        Efron (1987), "Better bootstrap confidence intervals", JASA 82. By `scipy.stats.bootstrap`.
    """
    rows = _rows("bootstrap", arrays, level, at_least=2)
    return _bootstrap(lambda i, **axis: metric(*(row[i] for row in rows), **axis), len(rows[0]), level, method,
                      resamples, seed, vectorized)  # fmt: skip


def bootstrap_difference(
    metric: Metric,
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    resamples: int = 9999,
    seed: int = 0,
    vectorized: bool = False,
) -> Interval:
    """metric(first) - metric(second) for two models on the same examples, and its interval: the paired bootstrap.

    Args:
        metric, level, method, resamples, seed, vectorized: as for `bootstrap`.
        first, second: the metric's arrays for either model, each [N, ...], example by example in the same order.

    Returns:
        the difference and the bounds; models differ at that level where 0 is outside.

    Raises:
        UserError: as `bootstrap`.

    Example:
        >>> first, second = np.repeat([1.0, 0.0], [90, 10]), np.repeat([1.0, 0.0], [80, 20])
        >>> print(*np.round(bootstrap_difference(np.mean, [first], [second], vectorized=True), 2))
        0.1 0.05 0.17

    Reference:
        Berg-Kirkpatrick, Burkett, Klein (2012), "An empirical investigation of statistical significance in NLP".
    """
    rows = _rows("bootstrap_difference", [*first, *second], level, at_least=2)
    ours, theirs = rows[: len(first)], rows[len(first) :]

    def difference(i, **axis):
        return metric(*(row[i] for row in ours), **axis) - metric(*(row[i] for row in theirs), **axis)

    return _bootstrap(difference, len(rows[0]), level, method, resamples, seed, vectorized)


def permutation_test(
    metric: Metric,
    first: Sequence[Any],
    second: Sequence[Any],
    *,
    resamples: int = 9999,
    seed: int = 0,
    vectorized: bool = False,
) -> float:
    """p-value of metric(first) - metric(second), two-sided, if on every example the models were exchangeable.

    Args:
        metric, first, second, vectorized: as for `bootstrap_difference`.
        resamples: how many random exchanges; where 2^N are no more, all of them are tried and p is exact.
        seed: the same numbers give the same p.

    Returns:
        p, from 1 / (resamples + 1) to 1.

    Raises:
        UserError: arrays of different lengths, or fewer than 2 examples.

    Example:
        >>> permutation_test(np.mean, [[0.9, 0.8, 0.7, 0.9]], [[0.5, 0.6, 0.5, 0.4]], vectorized=True)
        0.125

    Reference:
        Noreen (1989), "Computer-intensive methods for testing hypotheses"; Phipson and Smyth (2010) for the 1 that is
        added. By `scipy.stats.permutation_test`.
    """
    rows = _rows("permutation_test", [*first, *second], at_least=2)
    n = len(rows[0])
    both = [np.concatenate(pair) for pair in zip(rows[: len(first)], rows[len(first) :], strict=True)]

    def difference(i, j, **axis):
        i, j = i.astype(np.int64), j.astype(np.int64)
        return metric(*(row[i] for row in both), **axis) - metric(*(row[j] for row in both), **axis)

    options = {"n_resamples": resamples, "rng": np.random.default_rng(seed), "batch": max(1, _AT_ONCE // n)}
    found = stats.permutation_test(
        (np.arange(n), np.arange(n, 2 * n)), difference, permutation_type="samples", vectorized=vectorized, **options
    )
    return float(found.pvalue)


def mcnemar(first_right: Any, second_right: Any) -> float:
    """McNemar's exact p-value: of the examples on which one model alone is right, are half the first's?

    Args:
        first_right, second_right: whether each model is right on each example, [N] of 0 and 1.

    Returns:
        p, two-sided, of the binomial distribution; 1 where the models are right on the same examples.

    Raises:
        UserError: different lengths, or values that are not 0 or 1.

    Example:
        >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
        0.0625

    Reference:
        McNemar (1947), Psychometrika 12; exact, as Dietterich (1998) advises for few examples.
    """
    first, second = _rows("mcnemar", [first_right, second_right])
    for right in (first, second):
        if right.ndim != 1 or not np.isin(right, (0, 1)).all():
            raise UserError(
                "mcnemar: an array holds other values than 0 and 1; give [N], whether each example is right"
            )
    alone = int((first > second).sum())
    differ = int((first != second).sum())
    return float(stats.binomtest(alone, differ, 0.5).pvalue) if differ else 1.0


def _bootstrap(of_rows, n: int, level: float, method: str, resamples: int, seed: int, vectorized: bool) -> Interval:
    if method not in ("bca", "percentile"):
        raise UserError(f"bootstrap: method={method!r}; use 'bca' or 'percentile'")
    statistic = lambda i, **axis: of_rows(i.astype(np.int64), **axis)  # noqa: E731
    value = float(statistic(np.arange(n)))
    options: dict[str, Any] = {"confidence_level": level, "vectorized": vectorized, "batch": max(1, _AT_ONCE // n)}
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        # What scipy warns of is told below as an error, with what to do.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(n),), statistic, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed),
            **options,
        )  # fmt: skip
        undefined = int(np.isnan(found.bootstrap_distribution).sum())
        if undefined:
            raise UserError(
                f"bootstrap: the metric is nan on {undefined} of {resamples} resamples; give more examples of each "
                "class, or a metric that is defined without them"
            )
        if np.ptp(found.bootstrap_distribution) == 0:
            return Interval(value, value, value)
        if method == "bca":
            found = stats.bootstrap(
                (np.arange(n),), statistic, n_resamples=0, method="BCa", bootstrap_result=found, **options
            )
    low, high = map(float, found.confidence_interval)
    if np.isnan(low) or np.isnan(high):
        raise UserError("bootstrap: BCa cannot correct a metric at the end of its resamples; use method='percentile'")
    return Interval(value, low, high)


def _rows(who: str, arrays: Sequence[Any], level: float = 0.95, at_least: int = 1) -> list[np.ndarray]:
    rows = [np.asarray(array) for array in arrays]
    lengths = {len(row) if row.ndim else 0 for row in rows}
    if len(lengths) != 1:
        raise UserError(f"{who}: arrays {[row.shape for row in rows]}; give one row an example in each")
    if min(lengths) < at_least:
        raise UserError(f"{who}: {min(lengths)} values; give at least {at_least}")
    if not 0 < level < 1:
        raise UserError(f"{who}: level={level}; use a number between 0 and 1, such as 0.95")
    for row in rows:
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            bad = int(np.flatnonzero(~np.isfinite(row).reshape(len(row), -1).all(axis=1))[0])
            raise UserError(f"{who}: row {bad} is not finite: {row[bad]}; look there, or leave it out")
    return rows
