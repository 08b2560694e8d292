"""What is trimmed and what is dropped, against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig.combine.sparsify import drop, trim
from jaxbig.errors import UsageError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.37, 0.999, 1.0])
def test_the_largest_of_the_whole_tree_stay(density, dtype):
    """Of sizes from denormal to huge, of both signs, with zeros."""
    sizes = RANDOM.normal(size=997) * 10.0 ** RANDOM.integers(-40, 38, 997) * (RANDOM.random(997) < 0.9)
    with jax.enable_x64(dtype == jnp.float64):
        flat = jnp.asarray(sizes, dtype)
        found = trim({"a": flat[:100].reshape(4, 25), "b": flat[100:]}, density)
        found = np.concatenate([np.ravel(found["a"]), found["b"]]).astype(np.float64)
        flat = np.asarray(flat, np.float64)
    count = int(density * 997)
    least = np.sort(np.abs(flat))[997 - count] if count else np.inf
    np.testing.assert_array_equal(found, np.where(np.abs(flat) >= least, flat, 0))


def test_equal_sizes_stay_together_and_layers_are_ranked_apart_under_vmap():
    assert trim(jnp.array([1.0, -2.0, 2.0, 3.0]), 0.5).tolist() == [0, -2, 2, 3]
    stack = jnp.array([[1.0, 2.0], [30.0, 20.0]])
    assert jax.vmap(lambda layer: trim(layer, 0.5))(stack).tolist() == [[0, 2], [30, 0]]


def test_what_is_too_large_to_count_is_an_error():
    huge = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    with pytest.raises(UsageError, match="4,294,967,296 entries are ranked together"):
        jax.eval_shape(lambda x: trim(x, 0.5), huge)


def test_dropping_with_density_one_keeps_all_and_a_key_is_needed():
    x = jnp.asarray(RANDOM.normal(size=50), jnp.float32)
    np.testing.assert_array_equal(drop(jax.random.key(0), x, 1.0), x)
    with pytest.raises(UsageError, match="give a key"):
        drop(None, x, 0.5)
