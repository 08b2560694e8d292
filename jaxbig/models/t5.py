"""T5: an encoder and a decoder whose attention knows relative positions alone.

Legend of the shape suffixes: B batch, S tokens that the encoder reads, T tokens of the decoder, D width, F width of the
hidden layer, V vocabulary, H heads, K width of a head, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxbig.errors import UserError
from jaxbig.models.attention import Where, mask
from jaxbig.models.cache import Cache, Seen, place, seen
from jaxbig.models.decoder import Stack, run
from jaxbig.models.family import LAYERS
from jaxbig.models.relative_positions import relative_buckets
from jaxbig.models.seq2seq import Memory
from jaxbig.models.stack import recomputed, scanned
from jaxbig.models.t5_layer import T5MLP, Scale, T5Attention, T5CrossAttention, T5Layer, T5View

TASKS = ("seq2seq_lm", "features", "encoder")


class Heard(NamedTuple):
    """What a decoder hears of the encoder.

    Attributes:
        states: [B, S, D], or None where there is a memory.
        memory: or None.
        across: bool [B, 1, T, S] or None, see `T5View`.
    """

    states: Any = None
    memory: Memory | None = None
    across: Any = None


# For a call that has none of these.
NOWHERE, ALL_SEEN, NOTHING = Where(None), Seen(None), Heard()


class T5Stack(nn.Module):
    """L layers and a norm; the first part of their scores is one table of biases by relative position.

    Submodules: ``position_bias``, ``layer_0`` ... (scanned: ``layers``), ``norm``.

    Args:
        layer: ``(train, remat) -> name -> module``.
        layers: L.
        table: ``name -> module`` of the biases, [buckets, H].
        norm: ``name -> module``.
        distance: of the buckets, see `relative_buckets`.
        causal: whether it is a decoder.
        dropout: rate on the first and the last states, with ``train=True`` (needs a "dropout" key).
        scan_layers, remat: see `Encoder`.

    Called as ``(x_BTD, at, seen, heard, cache, train)``; without x, only what its layers keep of the encoder's states
    is computed.

    Returns:
        (states [B, T, D], the cache with the tokens in it or None); without x the keys and values of `Memory`.
    """

    layer: Callable[[bool, bool], Callable[[str], Any]]
    layers: int
    table: Callable[..., nn.Embed]
    norm: Callable[..., nn.Module]
    distance: int
    causal: bool = False
    dropout: float = 0.0
    scan_layers: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Any, at: Where = NOWHERE, seen: Seen = ALL_SEEN, heard: Heard = NOTHING,
        cache: Cache | None = None, train: bool = False,
    ) -> tuple[Any, Any]:  # fmt: skip
        if x_BTD is None:
            return self._kept(heard.states)
        table = self.table(name="position_bias")
        keys = at.positions if cache is None else jnp.concatenate([cache.positions, at.positions], axis=1)
        buckets_BTS = relative_buckets(at.positions, keys, table.num_embeddings, self.distance, self.causal)
        memory = None if heard.memory is None else (heard.memory.keys, heard.memory.values)
        view: Any = T5View(seen, jnp.moveaxis(table(buckets_BTS), -1, 1), heard.states, memory, heard.across)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        layer = self.layer(train, self.remat and memory is None)  # what has a memory is no training
        x_BTD, cache = run(Stack(layer, (0,) * self.layers, self.scan_layers), drop(x_BTD), [view], cache, at)
        return drop(self.norm(name="norm")(x_BTD)), cache

    def _kept(self, states_BSD: jax.Array) -> tuple[Any, Any]:
        layer, view = self.layer(False, False), T5View(states=states_BSD)
        if not self.scan_layers:
            each = [layer(f"layer_{number}")(None, view, None, number)[1] for number in range(self.layers)]
            return tuple(keys for keys, _ in each), tuple(values for _, values in each)
        body = lambda module, _, number: module(None, view, None, number)  # noqa: E731
        return scanned(body, self.layers)(layer(LAYERS), None, jnp.arange(self.layers))[1]


class T5(nn.Module):
    """An encoder, and a decoder that attends to its states: T5 1.0, T5 1.1, Flan-T5, ByT5, mT5.

    Submodules and parameters: ``embed``, which both share; ``encoder`` and ``decoder``, each with ``position_bias``,
    ``layer_0`` ... (scanned: ``layers``, see `Encoder`) and ``norm``; ``head`` where it is not tied.

    Args:
        vocabulary, width, layers, heads, head_width, hidden: V, D, the encoder's L, H, K and F.
        decoder_layers: the decoder's L; None: as many.
        buckets, distance: of relative positions, see `relative_buckets`.
        activation, gated: of the hidden layers, see `T5MLP`.
        eps: of the norms.
        tied: the head is the embedding's table.
        scaled: the last states are multiplied with D^-1/2 before the head.
        task: "seq2seq_lm"; "features", the decoder's last states; "encoder", an encoder alone, and its last states.
        start: id of the token that decoders begin with.
        dropout: rate everywhere: on the embedding, the attention's shares, the hidden layers, what each part of a layer
            adds, and the last states; used with ``train=True`` (needs a "dropout" key).
        factor: of the standard deviations of initialised kernels and tables.
        scan_layers, remat: see `Encoder`.
        dtype: of the computation, as in `Llama`.

    Called as ``(tokens_BS, decoder_tokens_BT, segments=None, decoder_segments=None, positions=None,
    decoder_positions=None, train=False)``: `segments` int [B, S], 0 for padding, which no token attends to, neither the
    encoder's nor the decoder's; packed texts are 1, 2, ... in both. `decoder_segments` int [B, T]; None: all are of
    segment 1, which an attention mask's ones are. Positions are 0, 1, ...; only their differences count. Of "encoder"
    there are no arguments of the decoder. Decoder tokens are the text shifted to the right: `start`, then all but its
    last.

    In parts: ``encode(tokens_BS, segments, positions, train)`` gives states [B, S, D], ``memory(states_BSD, segments)``
    a `Memory`, and ``decode(tokens_BT, memory, positions, segments, cache, logits_at)`` what `Llama` returns;
    `jaxbig.models.seq2seq.DecoderOf` holds them together.

    Returns:
        logits [B, T, V], float32 at least; or states [B, T, D] or [B, S, D].

    Raises:
        UserError: an unknown task, an encoder that is given decoder tokens or a decoder that is not, buckets that are
            none, or a cache shorter than T.

    Example:
        >>> model = T5(vocabulary=11, width=8, layers=2, heads=2, head_width=3, hidden=12)
        >>> tokens, decoder_tokens = jnp.array([[5, 6, 7, 1]]), jnp.array([[0, 8, 9]])
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens, decoder_tokens)
        >>> logits.shape, variables["params"]["decoder"]["layer_1"]["cross"]["key"]["kernel"].shape
        ((1, 3, 11), (8, 6))

    Reference:
        Raffel et al. (2019), "Exploring the limits of transfer learning with a unified text-to-text Transformer",
        arXiv:1910.10683; Shazeer (2020), arXiv:2002.05202, for 1.1; Chung et al. (2022), "Scaling instruction-finetuned
        language models", arXiv:2210.11416; Xue et al. (2020), "mT5", arXiv:2010.11934, and (2021), "ByT5",
        arXiv:2105.13626. Deviations from transformers: padding attends to padding, so that states there differ (nobody
        else sees them); nothing is clamped in float16; in 16 bits a norm's result is rounded after its scale.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_width: int
    hidden: int
    decoder_layers: int | None = None
    buckets: int = 32
    distance: int = 128
    activation: str = "relu"
    gated: bool = False
    eps: float = 1e-6
    tied: bool = True
    scaled: bool = True
    task: str = "seq2seq_lm"
    start: int = 0
    dropout: float = 0.0
    factor: float = 1.0
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    def setup(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"t5: task={self.task!r}; use one of {', '.join(TASKS)}")
        init = nn.initializers.normal(self.factor)
        self.embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=init)
        self.encoder = self._stack(self.layers, causal=False)
        if self.task != "encoder":
            self.decoder = self._stack(self.decoder_layers or self.layers, causal=True)
        if self.task == "seq2seq_lm" and not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, kernel_init=init)

    def __call__(
        self, tokens_BS: jax.Array, decoder_tokens_BT: Any = None, segments: Any = None, decoder_segments: Any = None,
        positions: Any = None, decoder_positions: Any = None, train: bool = False,
    ) -> jax.Array:  # fmt: skip
        if (self.task == "encoder") != (decoder_tokens_BT is None):
            told = "has no decoder; leave its tokens out" if self.task == "encoder" else "needs the decoder's tokens"
            raise UserError(f"t5: the task {self.task!r} {told}")
        states_BSD = self.encode(tokens_BS, segments, positions, train)
        if self.task == "encoder":
            return states_BSD
        at = place(decoder_tokens_BT, decoder_positions, decoder_segments, None)
        heard = Heard(states_BSD, None, _across(at, decoder_tokens_BT.shape, segments))
        x_BTD, _ = self.decoder(self.embed(decoder_tokens_BT), at, seen(at, None), heard, train=train)
        return self._told(x_BTD)

    def encode(
        self, tokens_BS: jax.Array, segments: Any = None, positions: Any = None, train: bool = False
    ) -> jax.Array:
        """The encoder's last states, [B, S, D]."""
        at = place(tokens_BS, positions, segments, None)
        among = Seen(None if segments is None else mask(at, at))  # type: ignore[arg-type]
        return self.encoder(self.embed(tokens_BS), at, among, train=train)[0]

    def memory(self, states_BSD: jax.Array, segments: Any = None) -> Memory:
        """What `decode` needs of the encoder's states, computed once."""
        return Memory(*self.decoder(None, heard=Heard(states_BSD)), segments)

    def decode(
        self, tokens_BT: jax.Array, memory: Memory, positions: Any = None, segments: Any = None,
        cache: Cache | None = None, logits_at: Any = None,
    ) -> Any:  # fmt: skip
        """Logits (or states) of the decoder's tokens; with a cache a pair of them and the new cache."""
        at = place(tokens_BT, positions, segments, cache)
        heard = Heard(None, memory, _across(at, tokens_BT.shape, memory.segments))
        x_BTD, new = self.decoder(self.embed(tokens_BT), at, seen(at, cache), heard, cache)
        if logits_at is not None:
            x_BTD = jnp.take_along_axis(x_BTD, jnp.asarray(logits_at)[:, None, None], axis=1)[:, 0]
        return self._told(x_BTD) if cache is None else (self._told(x_BTD), new)

    def _told(self, x_BTD: jax.Array) -> jax.Array:
        if self.task == "features":
            return x_BTD
        if self.scaled:
            x_BTD = x_BTD * jnp.asarray(self.width**-0.5, x_BTD.dtype)
        if self.tied:
            x_BTD, table_VD = promote_dtype(x_BTD, self.embed.embedding, dtype=self.dtype)
            logits = jnp.einsum("...D,VD->...V", x_BTD, table_VD)
        else:
            logits = self.head(x_BTD)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @nn.nowrap
    def _stack(self, layers: int, causal: bool) -> T5Stack:
        init = nn.initializers.normal(self.factor * self.width**-0.5)
        table = partial(nn.Embed, self.buckets, self.heads, dtype=self.dtype, embedding_init=init)
        layer, norm = partial(self._layer, causal), self._norm()
        return T5Stack(layer, layers, table, norm, self.distance, causal, self.dropout, self.scan_layers, self.remat)

    @nn.nowrap
    def _norm(self) -> Callable[..., nn.Module]:
        return partial(nn.RMSNorm, self.eps, dtype=self.dtype)

    @nn.nowrap
    def _layer(self, causal: bool, train: bool, remat: bool) -> Callable[[str], T5Layer]:
        rate = self.dropout if train else 0.0
        scale = Scale(self.factor, self.dtype)
        attention = partial(T5Attention, self.heads, self.head_width, rate, scale)
        cross = partial(T5CrossAttention, self.heads, self.head_width, rate, scale) if causal else None
        mlp = partial(T5MLP, self.hidden, self.activation, self.gated, rate, scale)
        # Inside a scan the loop itself keeps XLA from merging the two forward passes.
        layer = recomputed(T5Layer, remat, self.scan_layers)
        return lambda name: layer(attention, mlp, self._norm(), cross, rate, name=name)


def _across(at: Where, shape: tuple[int, ...], segments: Any) -> jax.Array | None:
    """Which of the encoder's tokens the decoder's see: those of their own segment."""
    if segments is None:
        return None
    mine = jnp.ones(shape, jnp.int32) if at.segments is None else at.segments
    return (mine[:, :, None] == jnp.asarray(segments)[:, None, :])[:, None]
