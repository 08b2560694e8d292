"""Errors of predicted numbers against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as theirs

from jaxbig.errors import UserError
from jaxbig.metrics import regression_report

RNG = np.random.default_rng(0)
Y, GUESS, WEIGHTS = RNG.normal(size=(30, 2)) + 5, RNG.normal(size=(30, 2)) + 5, RNG.uniform(size=30)


@pytest.mark.parametrize("weights", [None, WEIGHTS, np.arange(30) % 3])
@pytest.mark.parametrize("column", [slice(None), 0])
def test_errors_are_scikit_learns(weights, column):
    y, guess = Y[:, column], GUESS[:, column]
    found = regression_report(y, guess, weights)
    assert found["mse"] == pytest.approx(theirs.mean_squared_error(y, guess, sample_weight=weights))
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(y, guess, sample_weight=weights))
    assert found["r2"] == pytest.approx(theirs.r2_score(y, guess, sample_weight=weights))
    assert found["rmse"] == pytest.approx(np.sqrt(found["mse"]))


def test_targets_that_do_not_vary_have_no_r2():
    assert np.isnan(regression_report([1.0], [2.0])["r2"])
    assert np.isnan(regression_report([0.1, 0.1, 0.1], [2.0, 1.0, 0.0])["r2"])
    assert regression_report([1.0], [3.0])["mse"] == 4.0
    assert all(np.isnan(value) for value in regression_report([1.0], [2.0], [0]).values())


def test_errors_say_how_to_mend():
    spoilt = GUESS.copy()
    spoilt[3] = np.nan
    with pytest.raises(UserError, match="row 3 of the predictions"):
        regression_report(Y, spoilt)
    assert regression_report(Y, spoilt, np.arange(30) != 3)["mse"] > 0
    with pytest.raises(UserError, match="labels"):
        regression_report(Y, GUESS[:, 0])
