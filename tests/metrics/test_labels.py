"""Scores of a confusion matrix against scikit-learn: absent classes, masks, weights, a single example."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as theirs

from jaxbig.errors import UserError
from jaxbig.metrics import confusion, scores

RNG = np.random.default_rng(0)
CASES = {
    "four classes": (RNG.integers(0, 4, 60), RNG.integers(0, 4, 60), 4),
    "two classes": (RNG.integers(0, 2, 30), RNG.integers(0, 2, 30), 2),
    "a class that occurs nowhere": (RNG.integers(0, 2, 30) * 2, RNG.integers(0, 2, 30) * 2, 4),
    "a class that is never chosen": (RNG.integers(0, 3, 30), RNG.integers(0, 2, 30), 3),
    "a class that is only chosen": (RNG.integers(0, 2, 30), RNG.integers(0, 3, 30), 3),
    "one class alone": (np.zeros(5, int), np.zeros(5, int), 2),
    "a single example, wrong": (np.array([1]), np.array([0]), 2),
}
each_case = pytest.mark.parametrize(("labels", "chosen", "classes"), CASES.values(), ids=CASES)


def expected(labels, chosen, weights, average):
    options = {"sample_weight": weights}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes that are absent
        precision, recall, f1, _ = theirs.precision_recall_fscore_support(
            labels, chosen, average=average, zero_division=0.0, **options
        )
        return {
            "accuracy": theirs.accuracy_score(labels, chosen, **options),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "balanced_accuracy": theirs.balanced_accuracy_score(labels, chosen, **options),
            "matthews": theirs.matthews_corrcoef(labels, chosen, **options),
        }


@each_case
@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "binary"])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_are_scikit_learns(labels, chosen, classes, average, weighted):
    if average == "binary" and classes != 2:
        return
    weights = np.random.default_rng(1).uniform(0.5, 2, len(labels)) if weighted else None
    found = scores(confusion(labels, chosen, classes, weights), average)
    for name, value in expected(labels, chosen, weights, average).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    if average == "binary":
        for name, positive in (("sensitivity", 1), ("specificity", 0)):
            value = theirs.recall_score(labels, chosen, pos_label=positive, zero_division=0.0, sample_weight=weights)
            assert found[name] == pytest.approx(value, abs=1e-12)


@each_case
def test_confusion_is_scikit_learns(labels, chosen, classes):
    weights = (1 + np.arange(len(labels))) % 3
    np.testing.assert_array_equal(
        confusion(labels, np.eye(classes)[chosen], classes),
        theirs.confusion_matrix(labels, chosen, labels=range(classes)),
    )
    np.testing.assert_array_equal(
        confusion(labels, chosen, classes, weights),
        theirs.confusion_matrix(labels, chosen, labels=range(classes), sample_weight=weights),
    )


def test_an_empty_matrix_says_nothing():
    assert all(np.isnan(value) for value in scores(np.zeros((3, 3))).values())


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: scores(np.ones((2, 3))), r"this is \(2, 3\)"),
        (lambda: scores(np.ones((3, 3)), "binary"), "of 3 classes"),
        (lambda: scores(np.ones((3, 3)), "mean"), "average='mean'"),
        (lambda: confusion([0], [0, 1], 2), "labels and"),
        (lambda: confusion([0], [2], 2), "prediction 2"),
        (lambda: confusion([-1], [0], 2), "label -1"),
        (lambda: confusion([0.5], [0], 2), "whole number"),
        (lambda: confusion([0], [0], 2, [-1.0]), "none below 0"),
        (lambda: confusion([0, 0], [[0, 1], [0, np.nan]], 2), "row 1 of the logits"),
    ],
)
def test_errors_say_how_to_mend(act, words):
    with pytest.raises(UserError, match=words):
        act()
