"""Curves over the number of labels: points that are those of runs done by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbig import full
from jaxbig.curves import Labels, Method, Problem, label_curve
from jaxbig.data import Loader, k_shot
from jaxbig.objective import classify

MODEL = nn.Dense(3)
X = np.asarray(jax.random.normal(jax.random.key(0), (60, 5)))
Y = (X @ np.asarray(jax.random.normal(jax.random.key(1), (5, 3)))).argmax(-1)
TRAIN = {"image": X[:40], "label": Y[:40]}
TEST = {"image": X[40:], "label": Y[40:]}


def apply(params, x):
    return MODEL.apply({"params": params}, x)


@pytest.mark.slow
def test_each_point_is_the_mean_of_its_runs_done_by_hand():
    methods = {
        "all": Method(full(), optax.sgd(0.5), lambda key: MODEL.init(key, X)["params"]),
        "bias": Method(full(where="bias"), optax.sgd(0.5), lambda key: {"kernel": jnp.eye(5, 3), "bias": jnp.zeros(3)}),
    }
    labels = Labels(shots=(2, 4), batch_size=6, steps=3, seeds=2, seed=7)
    points = list(label_curve(methods, labels, Problem(classify(MODEL), apply, {}, TRAIN, TEST)))
    assert [(p["method"], p["labels"], p["trained"]) for p in points] == [
        ("all", 2, 18), ("all", 4, 18), ("bias", 2, 3), ("bias", 4, 3),
    ]  # fmt: skip
    accuracies = []
    for i, key in enumerate(jax.random.split(jax.random.key(7), 2)):
        rows = k_shot(TRAIN["label"], 4, 7 + i)
        params = methods["all"].params_of(jax.random.split(key)[1])
        loader = Loader({"row": rows}, 6, 7 + i)
        for step in range(3):
            epoch, at = divmod(step, loader.steps)
            chosen = rows[loader.index(epoch)[0][at]]

            def loss(params, chosen=chosen):
                return optax.softmax_cross_entropy_with_integer_labels(apply(params, X[chosen]), Y[chosen]).mean()

            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params))
        accuracies.append(np.mean(np.asarray(apply(params, TEST["image"])).argmax(-1) == TEST["label"]))
    np.testing.assert_allclose(points[1]["accuracy"], np.mean(accuracies))
