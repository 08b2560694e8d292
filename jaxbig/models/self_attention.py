"""Self-attention of published encoders.

Legend of the shape suffixes: B batch, T tokens, D width, H heads, K width of a head.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.models.attention import attention


def segment_mask(segments_BT: jax.Array, causal: bool = False) -> jax.Array:
    """Which tokens an encoder's token may see: those of its segment; padding, which nobody sees, all that is none.

    Args:
        segments_BT: int or bool; 0 is padding.
        causal: only what stands before it, and itself.

    Returns:
        bool [B, 1, T, T], as in transformers for an attention mask of zeros and ones.

    Example:
        >>> segment_mask(jnp.array([[1, 1, 0]]))[0, 0].astype(int).tolist()
        [[1, 1, 0], [1, 1, 0], [1, 1, 0]]
    """
    query_BT1, key_B1T = segments_BT[:, :, None], segments_BT[:, None, :]
    seen_BTT = jnp.where(query_BT1 == 0, key_B1T != 0, query_BT1 == key_B1T)
    return (jnp.tril(seen_BTT) if causal else seen_BTT)[:, None]


class SelfAttention(nn.Module):
    """Attention of tokens to each other, with four products of two axes each, as published encoders have them.

    Args:
        heads: H, of which D is a multiple.
        bias: of the products that make queries, keys and values.
        dropout: rate on the attention's shares (needs a "dropout" key); 0 outside training.
        std: of the initialised kernels.
        dtype: of the computation.
        key_bias: of the product that makes keys, where it is another than `bias`.

    Called with x [B, T, D] and None or a mask, bool [B, 1, T, T].

    Returns:
        array [B, T, D].

    Example:
        >>> module = SelfAttention(heads=2)
        >>> params = jax.eval_shape(module.init, jax.random.key(0), jax.numpy.ones((1, 3, 4)))["params"]
        >>> sorted(params), params["query"]["kernel"].shape
        (['key', 'out', 'query', 'value'], (4, 4))
    """

    heads: int
    bias: bool = True
    dropout: float = 0.0
    std: float = 0.02
    dtype: Any = None
    key_bias: bool | None = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, seen_B1TT: jax.Array | None = None) -> jax.Array:
        width = x_BTD.shape[-1]
        dense = partial(nn.Dense, width, dtype=self.dtype, kernel_init=nn.initializers.normal(self.std))
        biases = self.bias, self.bias if self.key_bias is None else self.key_bias, self.bias
        q, k, v = (
            rearrange(dense(use_bias=bias, name=name)(x_BTD), "B T (H K) -> B T H K", H=self.heads)
            for name, bias in zip(("query", "key", "value"), biases, strict=True)
        )
        dropout = nn.Dropout(self.dropout, deterministic=False) if self.dropout else None
        out_BTHK = attention(q, k, v, seen_B1TT, dropout=dropout)
        return dense(name="out")(rearrange(out_BTHK, "B T H K -> B T (H K)"))
