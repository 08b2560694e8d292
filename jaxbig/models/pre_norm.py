"""A Transformer's layer with its norms in front, of parts that the model chooses.

Legend of the shape suffixes: B batch, T tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


class PreNormLayer(nn.Module):
    """x <- x + s_1 attention(norm(x)); x <- x + s_2 mlp(norm(x)).

    Args:
        attention, mlp, norm: ``name -> module`` of its three kinds of parts.
        scale: s_1 and s_2 at initialisation, each a vector of width D; None: there are none.
        dropout: rate on what each half adds (needs a "dropout" key); 0 outside training.

    Called with x [B, T, D] and None or a mask for the attention, bool [B, 1, T, T].

    Returns:
        array [B, T, D].

    Reference:
        Xiong et al. (2020), "On layer normalization in the Transformer architecture", arXiv:2002.04745; Touvron et al.
        (2021), "Going deeper with image Transformers", arXiv:2103.17239, for `scale`.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    scale: float | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD: jax.Array, seen_B1TT: Any = None) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        parts = {"attention": (self.attention, (seen_B1TT,)), "mlp": (self.mlp, ())}
        for name, (part, more) in parts.items():
            y_BTD = part(name=name)(self.norm(name=f"{name}_norm")(x_BTD), *more)
            if self.scale is not None:
                init = nn.initializers.constant(self.scale)
                y_BTD = y_BTD * self.param(f"{name}_scale", init, (x_BTD.shape[-1],)).astype(y_BTD.dtype)
            x_BTD = x_BTD + drop(y_BTD)
        return x_BTD
