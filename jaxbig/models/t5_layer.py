"""The parts of T5's layers: attention without scale or bias, attention to an encoder's states, the hidden layer.

Legend of the shape suffixes: B batch, T tokens, S tokens of the encoder or slots of a cache, D width, F width of the
hidden layer, H heads, K width of a head, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from einops import rearrange

from jaxbig.models.activation import activation
from jaxbig.models.cache import Seen, attend
from jaxbig.models.cross_attention import across

KeysValues = tuple[jax.Array, jax.Array]


class T5View(NamedTuple):
    """What every layer of a stack is told beside its input.

    Attributes:
        seen: which tokens and slots may be attended to.
        bias: of the scores, [B or 1, H, T, S], by relative positions; over slots first, then over new tokens.
        states: of the encoder, [B, S, D]; None in the encoder, or where `memory` is there.
        memory: keys and values that layers have made of them before: L arrays [B, H, S, K], or one stacked.
        across: bool [B, 1, T, S], which of them a token may attend to; None: all.
    """

    seen: Any = Seen(None)
    bias: Any = None
    states: Any = None
    memory: Any = None
    across: Any = None


class Scale(NamedTuple):
    """Attributes: factor: of all standard deviations of initialised kernels; dtype: of the computation."""

    factor: float = 1.0
    dtype: Any = None

    def dense(self, width: int, std: float, name: str) -> nn.Dense:
        """A product without a bias, called inside a module's compact method."""
        init = nn.initializers.normal(self.factor * std)
        return nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)


def _dropout(rate: float) -> nn.Dropout | None:
    return nn.Dropout(rate, deterministic=False) if rate else None


class T5Attention(nn.Module):
    """``softmax(q k^T + bias) v``: no scale, no biases, heads as wide as they like.

    Args:
        heads, head_width: H and K.
        dropout: rate on the attention's shares (needs a "dropout" key); 0 outside training.
        scale: of the kernels. Their standard deviations are (D K)^-1/2 for queries, which makes up for the scores'
            missing scale, D^-1/2 for keys and values, (H K)^-1/2 for the last.

    Returns:
        ([B, T, D], (keys, values), each [B, T, H, K]).
    """

    heads: int
    head_width: int
    dropout: float = 0.0
    scale: Scale = Scale()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: T5View, old: Any) -> tuple[jax.Array, KeysValues]:
        width, inner = x_BTD.shape[-1], self.heads * self.head_width
        stds = {"query": (width * self.head_width) ** -0.5, "key": width**-0.5, "value": width**-0.5}
        q, k, v = (
            rearrange(self.scale.dense(inner, std, name)(x_BTD), "B T (H K) -> B T H K", H=self.heads)
            for name, std in stds.items()
        )
        out_BTHK = attend(q, (k, v), old, view.seen, scale=1.0, bias=view.bias, dropout=_dropout(self.dropout))
        dense = self.scale.dense(width, inner**-0.5, "out")
        return dense(rearrange(out_BTHK, "B T H K -> B T (H K)")), (k, v)


class T5CrossAttention(nn.Module):
    """Attention of a decoder's tokens to an encoder's states, whose keys and values can be made once for all tokens.

    Args:
        heads, head_width, dropout, scale: see `T5Attention`.

    Called with x [B, T, D], or None where only keys and values are asked for; with the view, and the layer's number.

    Returns:
        ([B, T, D] or None, (keys, values), each [B, H, S, K]: heads lie before states, as in `jaxbig.models.cache`).
    """

    heads: int
    head_width: int
    dropout: float = 0.0
    scale: Scale = Scale()

    @nn.compact
    def __call__(self, x_BTD: Any, view: T5View, number: Any) -> tuple[Any, KeysValues]:
        memory = self._made(view.states) if view.memory is None else _of_layer(view.memory, number)
        if x_BTD is None:
            return None, memory
        width, inner = x_BTD.shape[-1], self.heads * self.head_width
        q_BTC = self.scale.dense(inner, (width * self.head_width) ** -0.5, "query")(x_BTD)
        q_BTHK = rearrange(q_BTC, "B T (H K) -> B T H K", H=self.heads)
        out_BTHK = across(q_BTHK, memory, view.across, scale=1.0, dropout=_dropout(self.dropout))
        return self.scale.dense(width, inner**-0.5, "out")(rearrange(out_BTHK, "B T H K -> B T (H K)")), memory

    def _made(self, states_BSD: jax.Array) -> KeysValues:
        inner, std = self.heads * self.head_width, states_BSD.shape[-1] ** -0.5
        keys, values = (
            rearrange(self.scale.dense(inner, std, name)(states_BSD), "B S (H K) -> B H S K", H=self.heads)
            for name in ("key", "value")
        )
        return keys, values


class T5MLP(nn.Module):
    """``W_down act(W_up x)``, or gated ``W_down (act(W_gate x) * W_up x)``.

    Args:
        hidden: F.
        activation: a name that `jaxbig.models.activation` knows.
        gated: whether there is a gate (T5 1.1).
        dropout: rate on the hidden layer (needs a "dropout" key); 0 outside training.
        scale: of the kernels, whose standard deviations are D^-1/2 and, for the last, F^-1/2.

    Returns:
        array [B, T, D].

    Reference:
        Shazeer (2020), "GLU variants improve Transformer", arXiv:2002.05202.
    """

    hidden: int
    activation: str = "relu"
    gated: bool = False
    dropout: float = 0.0
    scale: Scale = Scale()

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        width, act = x_BTD.shape[-1], activation(self.activation)
        into = partial(self.scale.dense, self.hidden, width**-0.5)
        h_BTF = act(into("gate")(x_BTD)) * into("up")(x_BTD) if self.gated else act(into("up")(x_BTD))
        h_BTF = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(h_BTF)
        return self.scale.dense(width, self.hidden**-0.5, "down")(h_BTF)


class T5Layer(nn.Module):
    """x <- x + attention(norm(x)); in a decoder x <- x + cross(norm(x), states); x <- x + mlp(norm(x)).

    Args:
        attention, mlp, norm: ``name -> module`` of its parts.
        cross: the same of the attention to an encoder's states; None: there is none.
        dropout: rate on what is added (needs a "dropout" key); 0 outside training.

    Returns:
        (x [B, T, D], (keys, values), each [B, T, H, K]); called without x, (None, what `cross` keeps of the states).
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    cross: Callable[..., nn.Module] | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD: Any, view: T5View, old: Any, number: Any) -> tuple[Any, KeysValues]:
        cross: Any = None if self.cross is None else self.cross(name="cross")
        if x_BTD is None:  # what is asked for is what the cross-attention keeps
            return cross(None, view, number)
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        y_BTD, new = self.attention(name="attention")(self.norm(name="attention_norm")(x_BTD), view, old)
        x_BTD = x_BTD + drop(y_BTD)
        if cross is not None:
            x_BTD = x_BTD + drop(cross(self.norm(name="cross_norm")(x_BTD), view, number)[0])
        return x_BTD + drop(self.mlp(name="mlp")(self.norm(name="mlp_norm")(x_BTD))), new


def _of_layer(memory: Any, number: Any) -> KeysValues:
    """A layer's keys and values: its entry of two tuples, or its part of two stacks."""
    if isinstance(memory[0], tuple):
        return memory[0][number], memory[1][number]
    keys, values = (jax.lax.dynamic_index_in_dim(each, number, keepdims=False) for each in memory)
    return keys, values
