"""Training everything, or nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.transform import chain
from jaxbig.tune.full import freeze, full

PARAMS = {"w": jnp.arange(8.0).reshape(4, 2) + 1, "step": jnp.array(3), "b": jnp.ones(2)}


def test_every_floating_leaf_moves_and_integers_stay():
    split = full().init(None, PARAMS, {})
    assert set(split.train) == {"w", "b"}
    assert split.params == {"w": None, "step": PARAMS["step"], "b": None}
    jax.tree.map(np.testing.assert_array_equal, full().apply(split), PARAMS)


def test_moved_leaves_are_copies():
    split = full(where="w").init(None, PARAMS, {})
    jax.block_until_ready(jax.jit(lambda train: train["w"] * 2, donate_argnums=0)(split.train))
    assert float(PARAMS["w"].sum()) == 36


def test_training_under_a_mask_leaves_what_was_removed():
    method = chain(prune(0.5, where="w"), full(where="w"))
    split = method.init(None, PARAMS, {})
    assert split.params["w"].base is None

    def loss(train):
        return (method.apply(split._replace(train=train))["w"].materialise() ** 2).sum()

    grads = jax.grad(loss)(split.train)["full"]["w"]
    np.testing.assert_array_equal(grads == 0, ~split.params["w"].mask)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (full(where="step"), "step is an array of int32"),
        (chain(quantize("int8", where="w"), full(where="w")), "w is Quantized int8"),
        (chain(full(), full(where="w")), "matches no parameter; nearest paths: step"),
        (chain(prune(0.5, where="w"), full(where="w"), full(where="w")), "matches no parameter"),
    ],
)
def test_what_gradients_cannot_train_is_an_error(method, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        method.init(None, PARAMS, {})
    assert words in str(caught.value)


def test_freeze_changes_nothing():
    split = freeze().init(None, PARAMS, {})
    assert (split.train, split.state) == ({}, {})
    assert freeze().apply(split) is PARAMS
