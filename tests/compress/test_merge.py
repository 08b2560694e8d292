"""Weights back to arrays, and soups against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from jaxbig.compress.merge import average, merge
from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.errors import UsageError
from jaxbig.transform import chain
from jaxbig.tune.bitfit import bitfit
from jaxbig.tune.full import freeze, full
from jaxbig.tune.lora import lora
from jaxbig.usage import usage
from jaxbig.weight import Dense

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
    np.testing.assert_array_equal(merged["b"], params["b"])


def test_averaging_goes_by_path_and_keeps_the_wider_dtype():
    frozen, plain = FrozenDict({"w": jnp.zeros(2), "none": None}), {"w": jnp.ones(2)}
    assert average([frozen, plain])["w"].tolist() == average([plain, frozen])["w"].tolist() == [0.5, 0.5]
    assert isinstance(average([frozen, plain]), FrozenDict)
    third = {"w": jnp.full(2, 1 / 3)}
    for trees in ([third, {"w": jnp.ones(2, jnp.bfloat16)}], [{"w": jnp.ones(2, jnp.bfloat16)}, third]):
        np.testing.assert_allclose(average(trees)["w"], 2 / 3, rtol=1e-6)


def eaten(tree):
    """The arrays of a tree, given away."""
    jax.block_until_ready(jax.jit(lambda leaves: jax.tree.map(lambda a: a + 1, leaves), donate_argnums=0)(tree))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("method", [full(), bitfit(where="b"), lora(rank=2, where="w"), freeze()])
def test_what_is_merged_shares_nothing_with_what_it_was_merged_from(method):
    uses = usage(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), PARAMS, jnp.ones((2, 4)))
    base = jax.tree.map(jnp.array, {**PARAMS, "watched": Dense(jnp.ones(3))})
    split = method.init(jax.random.key(0), base, uses)
    eaten(merge(method.apply(split)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((base, split)))
    merged = merge(method.apply(split))
    if split.train:
        eaten(split.train)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(merged))
    assert isinstance(merge({"n": np.ones(2)})["n"], np.ndarray)


def test_copies_cost_nothing_inside_jit():
    params = {"w": jnp.ones((64, 64)), "b": jnp.ones(64)}
    temp = lambda tree: jax.jit(lambda p, x: x @ tree(p)["w"]).lower(params, jnp.ones((2, 64))).compile()  # noqa: E731
    ours, plain = temp(merge), temp(lambda p: p)
    assert ours.memory_analysis().temp_size_in_bytes == plain.memory_analysis().temp_size_in_bytes
    assert ours.cost_analysis() == plain.cost_analysis()


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
