"""The feed-forward half of a Transformer's layer.

Legend of the shape suffixes: B batch, T tokens, D width, F width of the hidden layer.
"""

from typing import Any

import flax.linen as nn
import jax

from jaxbig.models.activation import activation


class FeedForward(nn.Module):
    """``W_down act(W_up x + b_up) + b_down``.

    Args:
        hidden: F.
        activation: a name that `jaxbig.models.activation` knows.
        std, out_std: of the initialised kernels, and of the second where it is another.
        dtype: of the computation.
        dropout: rate on the hidden layer (needs a "dropout" key); 0 outside training.

    Returns:
        array [B, T, D].

    Example:
        >>> module = FeedForward(hidden=8)
        >>> params = jax.eval_shape(module.init, jax.random.key(0), jax.numpy.ones((1, 3, 4)))["params"]
        >>> params["up"]["kernel"].shape, params["down"]["kernel"].shape
        ((4, 8), (8, 4))
    """

    hidden: int
    activation: str = "gelu"
    std: float = 0.02
    out_std: float | None = None
    dtype: Any = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.std)
        init_out = init if self.out_std is None else nn.initializers.normal(self.out_std)
        h_BTF = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name="up")(x_BTD)
        h_BTF = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(activation(self.activation)(h_BTF))
        return nn.Dense(x_BTD.shape[-1], dtype=self.dtype, kernel_init=init_out, name="down")(h_BTF)
