"""Multi-layer perceptron.

Legend of the shape suffixes: B batch, D features of a layer, N classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from einops import rearrange

HE_NORMAL = nn.initializers.he_normal()


class MLP(nn.Module):
    """Multi-layer perceptron: h_{i+1} = relu(W_i h_i + b_i), logits = W_head h + b_head.

    Input axes after the first are flattened, so images go in as they are. Submodules: ``dense_0``, ``dense_1``, ...,
    ``head``.

    Args:
        num_classes: width N of the output.
        features: widths of the hidden layers.
        dropout: rate after each hidden layer, used when called with ``train=True`` (needs a "dropout" key).
        dtype: dtype of the computation; None: that of the inputs and parameters. Parameters are float32.

    Returns:
        logits [B, N].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = MLP(num_classes=3, features=(4,))
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> variables["params"]["dense_0"]["kernel"].shape, logits.shape
        ((64, 4), (2, 3))

    Reference:
        He, Zhang, Ren, Sun (2015), "Delving deep into rectifiers", arXiv:1502.01852, for the initialisation
        (normal, variance 2/fan_in, zero biases). Deviation: the head too is initialised so.
    """

    num_classes: int = 10
    features: Sequence[int] = (256, 256)
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x_BD = rearrange(x, "B ... -> B (...)")
        for index, width in enumerate(self.features):
            x_BD = nn.relu(nn.Dense(width, kernel_init=HE_NORMAL, dtype=self.dtype, name=f"dense_{index}")(x_BD))
            x_BD = nn.Dropout(self.dropout, deterministic=not train)(x_BD)
        return nn.Dense(self.num_classes, kernel_init=HE_NORMAL, dtype=self.dtype, name="head")(x_BD)
