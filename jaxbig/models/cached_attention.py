"""Causal self-attention of decoders with learned positions, over new tokens and a cache's.

Legend of the shape suffixes: B batch, T tokens, D width, H heads, K width of a head.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
from einops import rearrange

from jaxbig.models.cache import Seen, attend


class CachedAttention(nn.Module):
    """`SelfAttention` with a cache, and with the same parameters.

    Args:
        heads: H, of which D is a multiple.
        key_bias: the product that makes keys has one; the other three have.
        dropout: rate on the attention's shares (needs a "dropout" key); 0 outside training.
        std: of the initialised kernels.
        dtype: of the computation.

    Called with x [B, T, D], the masks, and a layer's slots of the cache or None, see `jaxbig.models.cache.attend`.

    Returns:
        ([B, T, D], (keys, values), each [B, T, H, K]).

    Example:
        >>> from jaxbig.models.attention import Where, mask
        >>> at = Where(jax.numpy.arange(3)[None])
        >>> module, seen = CachedAttention(heads=2), Seen(mask(at, at, causal=True))
        >>> (out, (keys, _)), _ = jax.eval_shape(
        ...     module.init_with_output, jax.random.key(0), jax.numpy.ones((1, 3, 4)), seen, None
        ... )
        >>> out.shape, keys.shape
        ((1, 3, 4), (1, 3, 2, 2))
    """

    heads: int
    key_bias: bool = True
    dropout: float = 0.0
    std: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, seen: Seen, old: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        init = nn.initializers.normal(self.std)
        dense = partial(nn.Dense, x_BTD.shape[-1], dtype=self.dtype, kernel_init=init)
        q, k, v = (
            rearrange(dense(use_bias=bias, name=name)(x_BTD), "B T (H K) -> B T H K", H=self.heads)
            for name, bias in (("query", True), ("key", self.key_bias), ("value", True))
        )
        dropout = nn.Dropout(self.dropout, deterministic=False) if self.dropout else None
        out_BTHK = attend(q, (k, v), old, seen, dropout=dropout)
        return dense(name="out")(rearrange(out_BTHK, "B T H K -> B T (H K)")), (k, v)
