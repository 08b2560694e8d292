"""Soups against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from jaxbig.combine.average import average
from jaxbig.compress.merge import merge
from jaxbig.compress.prune import prune
from jaxbig.errors import UsageError

random = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(random.normal(size=(4, 6)), jnp.float32), "b": jnp.zeros(6), "steps": jnp.array(4)}


def test_averaging_goes_by_path_and_keeps_the_wider_dtype():
    frozen, plain = FrozenDict({"w": jnp.zeros(2), "none": None}), {"w": jnp.ones(2)}
    assert average([frozen, plain])["w"].tolist() == average([plain, frozen])["w"].tolist() == [0.5, 0.5]
    assert isinstance(average([frozen, plain]), FrozenDict)
    third = {"w": jnp.full(2, 1 / 3)}
    for trees in ([third, {"w": jnp.ones(2, jnp.bfloat16)}], [{"w": jnp.ones(2, jnp.bfloat16)}, third]):
        np.testing.assert_allclose(average(trees)["w"], 2 / 3, rtol=1e-6)


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
