"""Weights back to arrays, and soups against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import average, merge
from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.transform import chain
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

random = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(random.normal(size=(4, 6)), jnp.float32), "b": jnp.zeros(6), "steps": jnp.array(4)}


def test_a_nest_becomes_its_arithmetic():
    uses = usage(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), PARAMS, jnp.ones((2, 4)))
    method = chain(prune(0.5, where="w"), quantize("int8", where="w"), lora(rank=2, alpha=6.0, where="w"))
    split = method.init(jax.random.key(0), PARAMS, uses)
    train = jax.tree.map(lambda leaf: leaf + 0.5, split.train)
    params = method.apply(split._replace(train=train))
    low, sparse = params["w"], params["w"].base
    base = np.asarray(sparse.base.codes, np.float32) * np.asarray(sparse.base.scale) * np.asarray(sparse.mask)
    merged = merge(params)
    np.testing.assert_allclose(merged["w"], base + 3.0 * np.asarray(low.a) @ np.asarray(low.b), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert merged["b"] is params["b"]


def test_merging_twice_is_merging_once():
    merged = merge(prune(0.5, where="w").init(None, PARAMS, {}).params)
    jax.tree.map(np.testing.assert_array_equal, merge(merged), merged)


def test_merging_is_differentiable():
    split = prune(0.5, where="w").init(None, PARAMS, {})
    base = split.params["w"]
    grads = jax.grad(lambda base: merge({"w": base})["w"].sum(), allow_int=True)(base)
    np.testing.assert_array_equal(grads.base, base.mask)


@pytest.mark.parametrize("weights", [None, [1, 2, 5], [0.2, 0.0, 0.8]])
def test_average_is_numpy_s(weights):
    trees = [{"w": random.normal(size=(3, 2)).astype(np.float32), "n": np.array([i])} for i in range(3)]
    soup = average([jax.tree.map(jnp.asarray, tree) for tree in trees], weights)
    expected = np.average(np.stack([tree["w"].astype(np.float64) for tree in trees]), axis=0, weights=weights)
    np.testing.assert_allclose(soup["w"], expected, rtol=1e-6, atol=1e-7)
    assert soup["n"].tolist() == [0]


def test_average_rounds_once_and_merges_weights_first():
    values = [1.0, 1.0, 1.0, 1.0 + 2**-6]
    trees = [{"w": jnp.array([value], jnp.bfloat16)} for value in values]
    assert average(trees)["w"].tolist() == [float(jnp.bfloat16(np.mean(values)))]
    pruned = prune(0.5, where="w").init(None, PARAMS, {}).params
    np.testing.assert_allclose(average([pruned, PARAMS])["w"], (merge(pruned)["w"] + PARAMS["w"]) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: average([]), "no trees"),
        (lambda: average([PARAMS], [1, 2]), "1 trees but 2 weights"),
        (lambda: average([PARAMS, PARAMS], [1, -1]), "sum 0"),
        (lambda: average([{"w": jnp.ones(2)}, {"w": jnp.ones(3)}]), "w is (2,) in tree 0 and (3,) in tree 1"),
        (lambda: average([{"w": jnp.ones(2)}, {"v": jnp.ones(2)}]), "w is (2,) in tree 0 and None in tree 1"),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)
