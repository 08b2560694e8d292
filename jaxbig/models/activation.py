"""Activation functions by the names that ``config.json`` files have for them."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError


def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) = x (1 + erf(x / √2)) / 2, computed in float32 at least.

    `jax.nn.gelu` takes erfc, which keeps the relative precision of results that are nearly 0 (x < -4) and evaluates two
    branches on every entry; this one is off by a rounding of x itself, and quicker forward
    on CPUs; with the backward pass too it is about as quick, or slower (benchmarks/LOG.md).

    Example:
        >>> print(gelu(jnp.array([-1.0, 0.0, 1.0])))
        [-0.15865526  0.          0.8413447 ]
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_10": lambda x: jnp.clip(gelu(x), -10, 10),
    "gelu_accurate": partial(nn.gelu, approximate=True),
    "gelu_fast": partial(nn.gelu, approximate=True),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_python": gelu,
    "gelu_python_tanh": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "leaky_relu": partial(nn.leaky_relu, negative_slope=0.01),
    "linear": lambda x: x,
    "mish": lambda x: x * jnp.tanh(nn.softplus(x)),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu2": lambda x: jnp.square(nn.relu(x)),
    "relu6": nn.relu6,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of a name.

    Args:
        name: as a ``config.json`` has it.

    Returns:
        function of an array, entry by entry.

    Raises:
        UserError: an unknown name.

    Example:
        >>> float(activation("relu")(jnp.float32(-2.0)))
        0.0

    Reference:
        Hendrycks and Gimpel (2016), "Gaussian error linear units", arXiv:1606.08415; "gelu_new", "gelu_fast",
        "gelu_accurate" and "gelu_pytorch_tanh" are all its approximation by a tanh, "quick_gelu" the one by a sigmoid.
        "gelu_fast" rounds sqrt(2 / pi) to ten digits in transformers.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"activation: {name!r} is unknown; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
