"""Rotary attention of the decoders whose heads of queries share keys and values: the Llama line and Gemma.

Legend of the shape suffixes: B batch, T tokens, D width, H heads, G heads of keys and values, K width of a head,
C = H K or G K.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from einops import rearrange

from jaxbig.models.cache import attend
from jaxbig.models.decoder import View
from jaxbig.models.rope import rotate


class RotaryAttention(nn.Module):
    """Rotary attention of H heads that share G heads of keys and values.

    Args:
        heads, kv_heads, head_width: H, G and K.
        biases: which products have one, of "qkv" and "out".
        norm: ``name -> module`` that each head's query and key goes through before it is rotated (Qwen 3, Gemma 3);
            None: they go as they are.
        scale: of the scores; None: 1 / sqrt(K).
        softcap: scores s become ``softcap * tanh(s / softcap)`` (Gemma 2); None: they stay.
        dropout: rate on the attention's shares (needs a "dropout" key); 0 outside training.
        std: of the initialised kernels.
        dtype: of the computation.

    Called with x [B, T, D], what the layer is told (`View`), and its slots of the cache or None.

    Returns:
        ([B, T, D], (keys, values), each [B, T, G, K]).
    """

    heads: int
    kv_heads: int
    head_width: int
    biases: tuple[str, ...] = ()
    norm: Callable[..., nn.Module] | None = None
    scale: float | None = None
    softcap: float | None = None
    dropout: float = 0.0
    std: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, old: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.normal(self.std))

        def heads(name: str, count: int) -> jax.Array:
            x_BTC = dense(count * self.head_width, use_bias="qkv" in self.biases, name=name)(x_BTD)
            return rearrange(x_BTC, "B T (H K) -> B T H K", H=count)

        q_BTHK, k_BTGK = heads("query", self.heads), heads("key", self.kv_heads)
        v_BTGK = heads("value", self.kv_heads)
        if self.norm is not None:
            q_BTHK, k_BTGK = self.norm(name="query_norm")(q_BTHK), self.norm(name="key_norm")(k_BTGK)
        q_BTHK, k_BTGK = rotate(q_BTHK, *view.angles), rotate(k_BTGK, *view.angles)
        dropout = nn.Dropout(self.dropout, deterministic=False) if self.dropout else None
        told = {"scale": self.scale, "softcap": self.softcap, "dropout": dropout}
        out_BTHK = attend(q_BTHK, (k_BTGK, v_BTGK), old, view.seen, **told)
        out_BTC = rearrange(out_BTHK, "B T H K -> B T (H K)")
        return dense(x_BTD.shape[-1], use_bias="out" in self.biases, name="out")(out_BTC), (k_BTGK, v_BTGK)
