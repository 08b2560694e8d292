"""A decoder's attention to an encoder's states, whose keys and values are computed once for all tokens.

Legend of the shape suffixes: B batch, T tokens, S states of the encoder, D width, H heads, K width of a head.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.models.attention import attention


class KeysValues(NamedTuple):
    """What a layer keeps of the encoder's states; heads lie before states, as in `jaxbig.models.cache`.

    Attributes:
        keys, values: [B, H, S, K].
    """

    keys: jax.Array
    values: jax.Array


class CrossAttention(nn.Module):
    """Attention of tokens to all states of an encoder.

    Args:
        width: D.
        heads: H, of which D is a multiple.
        key_bias: the product that makes keys has one; the other three have.
        dropout: rate on the attention's shares (needs a "dropout" key); 0 outside training.
        std: of the initialised kernels.
        dtype: of the computation.

    Called with x [B, T, D] and `KeysValues`, which ``memory(states_BSD)`` makes.

    Returns:
        array [B, T, D].

    Example:
        >>> module, x, states = CrossAttention(width=4, heads=2), jnp.ones((1, 3, 4)), jnp.ones((1, 5, 4))
        >>> both = lambda module, x, states: module(x, module.memory(states))
        >>> out, variables = jax.eval_shape(nn.init_with_output(both, module), jax.random.key(0), x, states)
        >>> out.shape, sorted(variables["params"]), sorted(variables["params"]["key"])
        ((1, 3, 4), ['key', 'out', 'query', 'value'], ['kernel'])

    Reference:
        Vaswani et al. (2017), "Attention is all you need", arXiv:1706.03762, section 3.2.3.
    """

    width: int
    heads: int
    key_bias: bool = False
    dropout: float = 0.0
    std: float = 0.02
    dtype: Any = None

    def setup(self) -> None:
        init = nn.initializers.normal(self.std)
        dense = partial(nn.Dense, self.width, dtype=self.dtype, kernel_init=init)
        self.query, self.key = dense(), dense(use_bias=self.key_bias)
        self.value, self.out = dense(), dense()
        self.drop = nn.Dropout(self.dropout, deterministic=False) if self.dropout else None

    def memory(self, states_BSD: jax.Array) -> KeysValues:
        keys, values = (
            rearrange(made(states_BSD), "B S (H K) -> B H S K", H=self.heads) for made in (self.key, self.value)
        )
        return KeysValues(keys, values)

    def __call__(self, x_BTD: jax.Array, memory: KeysValues) -> jax.Array:
        q_BTHK = rearrange(self.query(x_BTD), "B T (H K) -> B T H K", H=self.heads)
        return self.out(rearrange(across(q_BTHK, memory, dropout=self.drop), "B T H K -> B T (H K)"))


def across(
    q_BTHK: jax.Array, memory: Any, seen_B1TS: Any = None, scale: float | None = None, dropout: Any = None
) -> jax.Array:
    """``softmax(scale q k^T) v``, of queries to what is kept of an encoder's states.

    Args:
        q_BTHK: queries; one a row reads the memory as it lies, since turned it would be copied at every step.
        memory: keys and values, each [B, H, S, K].
        seen_B1TS: bool, which states a token may attend to; None: all.
        scale: of the scores; None: 1 / sqrt(K).
        dropout: ``p -> p`` on the attention's shares; None: none.

    Returns:
        array [B, T, H, K].

    Example:
        >>> q, kept = jnp.ones((1, 2, 1, 4)), (jnp.ones((1, 1, 3, 4)), jnp.ones((1, 1, 3, 4)))
        >>> bool(jnp.allclose(across(q, kept)[:, :1], across(q[:, :1], kept)))
        True
    """
    keys, values = memory
    scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
    if q_BTHK.shape[1] > 1:
        k_BSHK, v_BSHK = (rearrange(each, "B H S K -> B S H K") for each in memory)
        return attention(q_BTHK, k_BSHK, v_BSHK, seen_B1TS, scale=scale, dropout=dropout)
    q_BTHK = q_BTHK if scale == 1 else q_BTHK * jnp.asarray(scale, q_BTHK.dtype)
    s_BHTS = jnp.einsum("BTHK,BHSK->BHTS", q_BTHK, keys.astype(q_BTHK.dtype))
    s_BHTS = s_BHTS.astype(jnp.promote_types(s_BHTS.dtype, jnp.float32))
    if seen_B1TS is not None:
        s_BHTS = jnp.where(seen_B1TS, s_BHTS, jnp.finfo(s_BHTS.dtype).min)
    p_BHTS = jax.nn.softmax(s_BHTS, axis=-1).astype(values.dtype)
    p_BHTS = p_BHTS if dropout is None else dropout(p_BHTS)
    return jnp.einsum("BHTS,BHSK->BTHK", p_BHTS, values)
