"""The two halves of a Whisper: an encoder of log-mel spectrograms and a decoder of tokens.

Legend of the shape suffixes: B batch, N frames, F mel filters, S states of the encoder, T tokens, D width, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UserError
from jaxbig.models.activation import activation
from jaxbig.models.cache import Cache, Seen, place, seen
from jaxbig.models.cached_attention import CachedAttention
from jaxbig.models.cross_attention import CrossAttention
from jaxbig.models.decoder import Stack, run
from jaxbig.models.family import LAYERS
from jaxbig.models.feedforward import FeedForward
from jaxbig.models.pre_norm import PreNormLayer
from jaxbig.models.self_attention import SelfAttention
from jaxbig.models.stack import recomputed, run_layers, scanned


class Rates(NamedTuple):
    """Dropout in training: dropout: on the embedding and on what each part of a layer adds; attention: on the
    attention's shares; activation: on the hidden layer."""

    dropout: float = 0.0
    attention: float = 0.0
    activation: float = 0.0


class Sizes(NamedTuple):
    """What the two halves have each its own.

    Attributes:
        layers, heads, hidden: L, number of heads, of which D is a multiple, and width of the hidden layer.
        length: number of positions.
    """

    layers: int
    heads: int
    hidden: int
    length: int


class Kind(NamedTuple):
    """What the two halves have in common.

    Attributes:
        width: D.
        activation: of the hidden layers.
        std: of the initialised kernels and tables.
        rates: of dropout in training.
        scan_layers, remat: see `Encoder`.
        dtype: of the computation.
    """

    width: int
    activation: str = "gelu"
    std: float = 0.02
    rates: Rates = Rates()
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @property
    def norm(self) -> Callable[..., nn.LayerNorm]:
        return partial(nn.LayerNorm, 1e-5, dtype=self.dtype, use_fast_variance=False)

    def rates_in(self, train: bool) -> Rates:
        return self.rates if train else Rates()

    def mlp(self, hidden: int, rate: float) -> Callable[..., FeedForward]:
        return partial(FeedForward, hidden, self.activation, self.std, dtype=self.dtype, dropout=rate)

    def layer(self, kind: type[nn.Module]) -> Any:
        return recomputed(kind, self.remat, self.scan_layers)


def sinusoids(length: int, width: int) -> np.ndarray:
    """``[sin(p / 10000^(i / (D/2 - 1))) for i] + [cos(...) for i]`` of each position p, i = 0 ... D/2 - 1.

    Returns:
        float64 [length, D].

    Raises:
        UserError: D is odd, or less than 4.

    Example:
        >>> sinusoids(2, 4).round(4).tolist()
        [[0.0, 0.0, 1.0, 1.0], [0.8415, 0.0001, 0.5403, 1.0]]

    Reference:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.5; there sines and cosines alternate, and the last
        wavelength is not quite reached.
    """
    if width % 2 or width < 4:
        raise UserError(f"whisper: width {width} has no sines and cosines; give an even one, 4 or more")
    slowness = 10000 ** (np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(length)[:, None] / slowness
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class WhisperEncoder(nn.Module):
    """gelu(convolution), twice, the second of stride 2 -> + fixed positions -> L pre-norm layers -> norm.

    Args:
        sizes: its own.
        kind: both halves'.

    Called with log-mel spectrograms [B, N, F] and ``train``.

    Returns:
        states [B, ceil(N / 2), D].
    """

    sizes: Sizes
    kind: Kind

    @nn.compact
    def __call__(self, x_BNF: jax.Array, train: bool = False) -> jax.Array:
        kind, rates = self.kind, self.kind.rates_in(train)
        for number, stride in enumerate((1, 2)):
            init = nn.initializers.normal(kind.std)
            conv = nn.Conv(kind.width, (3,), stride, ((1, 1),), dtype=kind.dtype, kernel_init=init)
            x_BNF = activation("gelu")(conv.copy(name=f"conv_{number}")(x_BNF))
        table = lambda _, *shape: jnp.asarray(sinusoids(*shape), jnp.float32)  # noqa: E731
        positions_SD = self.param("positions", table, self.sizes.length, kind.width)
        # Published Whispers never train them.
        positions_SD = jax.lax.stop_gradient(positions_SD)[: x_BNF.shape[1]].astype(x_BNF.dtype)
        x_BSD = nn.Dropout(rates.dropout, deterministic=not train)(x_BNF + positions_SD)
        return kind.norm(name="norm")(self._stack(x_BSD, rates))

    def _stack(self, x_BSD: jax.Array, rates: Rates) -> jax.Array:
        sizes, kind = self.sizes, self.kind
        attend = partial(SelfAttention, sizes.heads, True, rates.attention, kind.std, kind.dtype, key_bias=False)
        mlp = kind.mlp(sizes.hidden, rates.activation)
        made = partial(kind.layer(PreNormLayer), attend, mlp, kind.norm, None, rates.dropout)
        return run_layers(made, sizes.layers, kind.scan_layers, x_BSD)


class Sight(NamedTuple):
    """What a layer is told: seen: the causal mask; states: of the encoder, None where memories stand for them."""

    seen: Seen | None
    states: Any = None


class WhisperDecoderLayer(nn.Module):
    """x <- x + attention(norm(x)); x <- x + cross(norm(x), states); x <- x + mlp(norm(x)), dropout on what is added.

    Args:
        attention, cross, mlp, norm: ``name -> module`` of its kinds of parts.
        dropout: rate (needs a "dropout" key); 0 outside training.

    Returns:
        (x [B, T, D], (keys, values), each [B, T, H, K]); of no tokens (None) the
        `KeysValues` of ``sight.states`` alone.
    """

    attention: Callable[..., nn.Module]
    cross: Callable[..., CrossAttention]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD: Any, sight: Sight, old: Any, number: Any, memory: Any = None) -> Any:
        cross = self.cross(name="cross")
        memory = cross.memory(sight.states) if memory is None else memory
        if x_BTD is None:
            return memory
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        y_BTD, new = self.attention(name="attention")(self.norm(name="attention_norm")(x_BTD), sight.seen, old)
        x_BTD = x_BTD + drop(y_BTD)
        x_BTD = x_BTD + drop(cross(self.norm(name="cross_norm")(x_BTD), memory))
        return x_BTD + drop(self.mlp(name="mlp")(self.norm(name="mlp_norm")(x_BTD))), new


class WhisperDecoder(nn.Module):
    """Embedding + learned positions -> L pre-norm layers with cross-attention -> norm.

    Args:
        vocabulary: V.
        sizes: its own.
        kind: both halves'.

    Called as `Whisper.decode` is, but for the head; of no tokens (None) it gives the memory of states.

    Returns:
        (states [B, T, D], the cache or None, the table [V, D]), or what `Whisper.memory` returns.
    """

    vocabulary: int
    sizes: Sizes
    kind: Kind

    @nn.compact
    def __call__(
        self, tokens_BT: Any, source: Any, positions: Any = None, segments: Any = None, cache: Cache | None = None,
        train: bool = False,
    ) -> Any:  # fmt: skip
        sizes, kind, rates = self.sizes, self.kind, self.kind.rates_in(train)
        layer = self._layer(rates)
        if tokens_BT is None:
            return self._memory(layer, source)
        if positions is None and tokens_BT.shape[1] > sizes.length:
            raise UserError(f"whisper: {tokens_BT.shape[1]} tokens, and {sizes.length} positions; use shorter texts")
        table = partial(nn.Embed, features=kind.width, dtype=kind.dtype)
        embed = table(self.vocabulary, embedding_init=nn.initializers.normal(kind.std), name="embed")
        learned = table(sizes.length, embedding_init=nn.initializers.normal(kind.std), name="positions")
        at = place(tokens_BT, positions, segments, cache)
        x_BTD = embed(tokens_BT) + learned(at.positions)
        x_BTD = nn.Dropout(rates.dropout, deterministic=not train)(x_BTD)
        told, beside = (None, source) if isinstance(source, tuple) else (source, None)
        stack = Stack(layer, (0,) * sizes.layers, kind.scan_layers, beside)
        x_BTD, cache = run(stack, x_BTD, [Sight(seen(at, cache), told)], cache, at)
        return kind.norm(name="norm")(x_BTD), cache, embed.embedding

    def _layer(self, rates: Rates) -> Callable[[str], Callable[..., Any]]:
        sizes, kind, key_bias = self.sizes, self.kind, False
        rest = key_bias, rates.attention, kind.std, kind.dtype
        attention = partial(CachedAttention, sizes.heads, *rest)
        cross = partial(CrossAttention, kind.width, sizes.heads, *rest)
        made = kind.layer(WhisperDecoderLayer)
        parts = attention, cross, kind.mlp(sizes.hidden, rates.activation), kind.norm, rates.dropout
        return lambda name: made(*parts, name=name)

    def _memory(self, layer: Callable[[str], Callable[..., Any]], states_BSD: jax.Array) -> Any:
        sight, count = Sight(None, states_BSD), self.sizes.layers
        if not self.kind.scan_layers:
            return tuple(layer(f"layer_{number}")(None, sight, None, number) for number in range(count))
        body = lambda module, none, number: (none, module(None, sight, None, number))  # noqa: E731
        return scanned(body, count)(layer(LAYERS), None, jnp.arange(count))[1]
