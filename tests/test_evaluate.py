"""Evaluation: padding never counts, predictions keep the dataset's order, confusion."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from jaxbig.data import Loader
from jaxbig.errors import UserError
from jaxbig.evaluate import evaluate, predict
from jaxbig.metrics import confusion
from jaxbig.objective import classify

RNG = np.random.default_rng(0)
ARRAYS = {"image": RNG.normal(size=(11, 4)).astype(np.float32), "label": RNG.integers(0, 3, 11)}
PARAMS = {"kernel": jnp.array(RNG.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)}


def apply(params, x):
    return nn.Dense(3).apply({"params": params}, x)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_metrics_do_not_depend_on_the_batch_size(batch_size):
    found = evaluate(classify(nn.Dense(3), train=False), PARAMS, Loader(ARRAYS, batch_size, remainder="pad"))
    logits = ARRAYS["image"] @ np.asarray(PARAMS["kernel"])
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == ARRAYS["label"]).mean())
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found["loss"] == pytest.approx(-log_p[np.arange(11), ARRAYS["label"]].mean(), rel=1e-5)


@pytest.mark.parametrize("shuffle", [False, True])
def test_predictions_come_in_the_order_of_the_dataset(shuffle):
    logits = predict(apply, PARAMS, Loader(ARRAYS, 4, shuffle=shuffle, remainder="pad"))
    np.testing.assert_allclose(logits, ARRAYS["image"] @ np.asarray(PARAMS["kernel"]), rtol=1e-4, atol=1e-6)


def test_one_shape_means_one_trace():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return apply(params, x)

    predict(counted, PARAMS, Loader(ARRAYS, 4, remainder="pad"))
    assert traces == [(4, 4)]


def test_confusion_is_scikit_learns():
    logits = RNG.normal(size=(50, 4))
    labels = RNG.integers(0, 4, 50)
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(4))
    np.testing.assert_array_equal(confusion(labels, logits, 4), expected)
    np.testing.assert_array_equal(confusion(labels, logits.argmax(1), 4), expected)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: evaluate(classify(nn.Dense(3)), PARAMS, Loader(ARRAYS, 4)), "leaves out 3 of 11"),
        (lambda: predict(apply, PARAMS, Loader(ARRAYS, 4)), "remainder='pad'"),
        (lambda: confusion(np.array([0]), np.array([0, 1]), 2), "labels and"),
        (lambda: confusion(np.array([0]), np.array([2]), 2), "prediction 2"),
        (lambda: confusion(np.array([-1]), np.array([0]), 2), "label -1"),
    ],
)
def test_errors_say_how_to_mend(act, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act()
    assert words in str(caught.value)


def test_a_share_of_the_examples_is_not_all_of_them():
    share = Loader({"image": np.zeros((4, 2)), "label": np.zeros(4, int)}, 2, remainder="pad", process_count=2)
    for act in (lambda: predict(lambda params, x: x, {}, share), lambda: evaluate(classify(nn.Dense(2)), {}, share)):
        with pytest.raises(UserError, match="1 of 2 parts; give it process_count=1"):
            act()
