"""What sums become: the numbers of the whole set, however it was cut into batches."""

import math

import numpy as np
import pytest
from sklearn import metrics as theirs

from jaxbig.errors import UserError
from jaxbig.metrics import confusion, summary

RNG = np.random.default_rng(0)


def test_confusion_becomes_macro_averages():
    labels, chosen = RNG.integers(0, 3, (2, 40))
    expected = theirs.precision_recall_fscore_support(labels, chosen, average="macro")[:3]
    found = summary("confusion", confusion(labels, chosen, 3), 40.0)
    assert list(found.items()) == [
        (name, pytest.approx(value)) for name, value in zip(("precision", "recall", "f1"), expected, strict=True)
    ]


def test_perplexity_is_that_of_all_tokens():
    nll = RNG.exponential(size=30)
    assert summary("perplexity", nll.sum(), 30.0)["perplexity"] == pytest.approx(math.exp(nll.mean()))
    assert summary("perplexity", 1e6, 1.0) == {"perplexity": math.inf}
    assert math.isnan(summary("perplexity", 0.0, 0.0)["perplexity"])


def test_an_array_that_nothing_explains_is_an_error():
    with pytest.raises(UserError, match=r"metric histogram: its sum is an array \(4,\)"):
        summary("histogram", np.ones(4), 1.0)
