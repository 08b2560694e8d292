"""Scaled dot-product attention with every mask that models here need, by the quickest kernel that computes it.

Legend of the shape suffixes: B batch, T queries, S keys, H heads, G heads of keys and values, K width of a head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError


class Where(NamedTuple):
    """Where tokens stand: what masks are made of.

    Attributes:
        positions: int [B, T]; a causal mask and a window compare them, whatever the order of the tokens.
        segments: int [B, T]: tokens attend to those of their own segment alone. Padding is a segment of its own, so
            that ``segments=attention_mask`` is what others call a padding mask; packed sequences count 1, 2, ...
            None: one segment.
    """

    positions: Any
    segments: Any = None


def mask(query: Where, key: Where, causal: bool = False, window: int | None = None) -> jax.Array:
    """Which keys a query may see.

    Args:
        query, key: of [B, T] and [B, S] tokens.
        causal: only keys at positions up to the query's.
        window: only keys that lie less than so many positions away (Mistral's sliding window where `causal`).

    Returns:
        bool [B, 1, T, S].

    Example:
        >>> at = Where(jnp.arange(3)[None], jnp.array([[1, 1, 2]]))
        >>> mask(at, at, causal=True)[0, 0].astype(int).tolist()
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    q_BT1, k_B1S = query.positions[:, :, None], key.positions[:, None, :]
    seen = jnp.ones(jnp.broadcast_shapes(q_BT1.shape, k_B1S.shape), bool)
    if causal:
        seen &= k_B1S <= q_BT1
    if window is not None:
        seen &= jnp.abs(q_BT1 - k_B1S) < window
    if query.segments is not None and key.segments is not None:
        seen &= query.segments[:, :, None] == key.segments[:, None, :]
    return seen[:, None]


def attention(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, seen_B1TS: Any = None, *, scale: float | None = None,
    bias: Any = None, softcap: float | None = None, dropout: Any = None, kernel: str | None = None,
) -> jax.Array:  # fmt: skip
    """``softmax(scale q k^T + bias) v``, for each head over the keys that it may see.

    Args:
        q_BTHK: queries.
        k_BSGK, v_BSGK: keys and values; G divides H, and H / G heads of queries share one (GQA; MQA where G = 1).
        seen_B1TS: bool, what `mask` gives; a query that may see nothing gives the mean of all values.
        scale: 1 / sqrt(K) by default.
        bias: added to the scores; [B or 1, H or 1, T, S] (T5's relative positions).
        softcap: scores s become ``softcap * tanh(s / softcap)`` (Gemma 2).
        dropout: None, or what is applied to the softmax's shares before they weigh the values, an `nn.Dropout`.
        kernel: "plain"; "fused", what `jax.nn.dot_product_attention` finds for the device; None: "fused" on a GPU
            for 16-bit inputs without `softcap` and `dropout`, where there is one, else "plain".

    Returns:
        [B, T, H, K] in v's dtype. The softmax is computed in float32 at least.

    Raises:
        UserError: shapes do not fit, or the fused kernel is asked for a softcap or dropout.

    Example:
        >>> q, kv = jnp.ones((1, 3, 4, 8)), jnp.ones((1, 5, 2, 8))
        >>> attention(q, kv, kv).shape
        (1, 3, 4, 8)

    Reference:
        Vaswani et al. (2017), arXiv:1706.03762; Ainslie et al. (2023), "GQA", arXiv:2305.13245.
    """
    heads, groups = q_BTHK.shape[2], k_BSGK.shape[2]
    if heads % groups:
        raise UserError(f"attention: {heads} heads of queries are not a multiple of {groups} heads of keys")
    scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
    simple = softcap is None and dropout is None
    if kernel == "fused" or (kernel is None and simple and _has_fused(q_BTHK.dtype)):
        if not simple:
            raise UserError("attention: the fused kernel has no softcap and no dropout; use kernel='plain'")
        return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, bias, seen_B1TS, scale=scale)
    q_BTGHK = rearrange(q_BTHK, "B T (G H) K -> B T G H K", G=groups)
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    s_BGHTS = jnp.einsum("BTGHK,BSGK->BGHTS", q_BTGHK * jnp.asarray(scale, q_BTHK.dtype), k_BSGK).astype(wide)
    if softcap is not None:
        s_BGHTS = softcap * jnp.tanh(s_BGHTS / softcap)
    if bias is not None:
        split = groups if bias.shape[1] > 1 else 1
        s_BGHTS = s_BGHTS + rearrange(bias, "B (G H) T S -> B G H T S", G=split).astype(wide)
    if seen_B1TS is not None:
        s_BGHTS = jnp.where(seen_B1TS[:, :, None], s_BGHTS, jnp.finfo(wide).min)
    p_BGHTS = jax.nn.softmax(s_BGHTS, axis=-1).astype(v_BSGK.dtype)
    p_BGHTS = p_BGHTS if dropout is None else dropout(p_BGHTS)
    return rearrange(jnp.einsum("BGHTS,BSGK->BTGHK", p_BGHTS, v_BSGK), "B T G H K -> B T (G H) K")


def _has_fused(dtype: Any) -> bool:
    return jax.default_backend() == "gpu" and jnp.dtype(dtype).itemsize == 2
