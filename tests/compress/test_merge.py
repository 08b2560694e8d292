"""Weights back to arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.compress.merge import merge
from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
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
