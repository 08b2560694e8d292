"""`gelu` beside SciPy's normal distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxbig.errors import UserError
from jaxbig.models.activation import activation, gelu

X = np.linspace(-12, 12, 2001)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("float64", 1e-13, 1e-15), ("float32", 3e-7, 7e-7)])
def test_gelu_and_its_derivative(dtype, rtol, atol):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(X, dtype)
        exact = np.asarray(x, np.float64)
        assert gelu(x).dtype == x.dtype
        np.testing.assert_allclose(gelu(x), exact * norm.cdf(exact), rtol, atol)
        slope = norm.cdf(exact) + exact * norm.pdf(exact)
        np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), slope, 10 * rtol, 1e-15 if dtype == "float64" else 1e-6)


def test_small_dtypes_are_rounded_once():
    x = jnp.asarray(X, jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(gelu(x), np.float64), exact * norm.cdf(exact), rtol=2**-8, atol=6e-7)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(UserError, match=r"'gel' is unknown; there are gelu, "):
        activation("gel")
