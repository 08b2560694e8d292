"""One call gives what the single metrics give."""

import numpy as np
import pytest

from jaxbig import metrics
from jaxbig.errors import UserError
from jaxbig.metrics import classification_report

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 30)
LOGITS = RNG.normal(size=(30, 3)) + np.eye(3)[LABELS]
WEIGHTS = RNG.integers(0, 3, 30)


def test_it_is_the_metrics_together():
    found = classification_report(LABELS, LOGITS, WEIGHTS, average="weighted")
    alone = metrics.scores(metrics.confusion(LABELS, LOGITS, 3, WEIGHTS), "weighted")
    for name, metric in {"auc": "auc", "average_precision": "average_precision", "brier": "brier", "ece": None}.items():
        alone[name] = getattr(metrics, metric or "calibration_error")(LABELS, LOGITS, WEIGHTS)
    for name, value in alone.items():
        assert found.pop(name) == value, name
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert sorted(found) == ["loss", "perplexity"]


def test_labels_may_be_probabilities_and_logits_binary():
    soft = np.eye(3)[LABELS] * 0.8 + 0.1
    assert classification_report(soft, LOGITS) == classification_report(LABELS, LOGITS)
    z, y = LOGITS[:, 0], LABELS % 2
    assert classification_report(y, z, average="binary") == classification_report(
        y, np.stack([0 * z, z], axis=1), average="binary"
    )


def test_only_what_is_asked_for_in_its_order():
    assert list(classification_report(LABELS, LOGITS, only=["f1", "auc", "accuracy"])) == ["f1", "auc", "accuracy"]
    with pytest.raises(UserError, match="no metric 'f2'; there are accuracy, "):
        classification_report(LABELS, LOGITS, only=["f2"])


def test_a_row_that_is_nan_is_named():
    spoilt = LOGITS.copy()
    spoilt[4, 0] = np.nan
    with pytest.raises(UserError, match=r"^[^\n]*row 4 of the logits is not finite[^\n]*$"):
        classification_report(LABELS, spoilt)
