"""Adapters of matrices where a matrix is a table: looked up, multiplied by its transpose, and by stacked heads."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_trial import jit

from jaxbig.compress.merge import merge
from jaxbig.lift import lift
from jaxbig.registry import REGISTRY
from jaxbig.usage import usage

NAMES = (
    "dora",
    "vera",
    "loha",
    "lokr",
    "fourierft",
    "shira",
    "ia3",
    "oft",
    "boft",
    "hra",
    "pissa",
    "olora",
    "loftq",
    "adalora",
)
IDS = jnp.array([[0, 3, 6], [5, 5, 1]])


def tied(params, ids):
    """A table that is the head too."""
    return jnp.tanh(params["w"][ids]) @ params["w"].T


def heads(params, ids):
    """A product with a batch axis: each head has a matrix of its own."""
    return jnp.einsum(
        "bthi,hio->btho", jax.nn.one_hot(ids, 8)[..., None, :] * jnp.arange(1.0, 4.0)[:, None], params["w"]
    )


def convolution(params, ids):
    image = jax.nn.one_hot(ids, 8)[..., None, :]
    return jax.lax.conv_general_dilated(image, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


SHAPES = {tied: (8, 12), heads: (3, 8, 12), convolution: (1, 2, 8, 12)}
FAST = [("dora", tied), ("oft", tied), ("loha", heads), ("dora", convolution)]


@pytest.mark.parametrize(
    ("fn", "shape", "name"),
    [
        pytest.param(
            fn, SHAPES[fn], name, id=f"{fn.__name__}-{name}", marks=[pytest.mark.slow] * ((name, fn) not in FAST)
        )
        for fn in SHAPES
        for name in NAMES
    ],
)
def test_values_and_gradients_are_those_of_the_merged_weight(name, fn, shape):
    random = np.random.default_rng(0)
    params = {"w": jnp.asarray(random.normal(size=shape), jnp.float32)}
    entry = REGISTRY[name]
    transform = entry.factory(**entry.arguments[0], where="w")
    split = transform.init(jax.random.key(0), params, usage(fn, params, IDS))
    train = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype), split.train)

    def loss(apply):
        return lambda train: (apply(transform.apply(split._replace(train=train)), IDS) ** 2).mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # turned inputs of a look-up are expanded, and it says so
        ours = jit(jax.value_and_grad(loss(lift(fn))))(train)
    theirs = jit(jax.value_and_grad(loss(lambda params, ids: fn(merge(params), ids))))(train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs)
