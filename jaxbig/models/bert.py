"""BERT and the encoders of its shape; `jaxbig.models.bert_families` tells which they are.

Legend of the shape suffixes: B batch, T tokens, D width, F width of the hidden layer, V vocabulary, H heads, C
classes, L layers.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.activation import activation
from jaxbig.models.feedforward import FeedForward
from jaxbig.models.self_attention import SelfAttention, segment_mask
from jaxbig.models.stack import recomputed, run_layers

TASKS = ("masked_lm", "sequence_classification", "token_classification", "question_answering", "features")


class BertLayer(nn.Module):
    """x <- norm(x + attention(x)); x <- norm(x + mlp(x)): the norms follow the sums.

    Args:
        heads: H, of which D is a multiple.
        hidden: F.
        activation: a name that `jaxbig.models.activation` knows.
        eps: of the norms.
        attention_dropout, out_dropout, dropout: rates on the attention's shares, on what the attention adds, and on
            what the hidden layer adds (need a "dropout" key); 0 outside training.
        std: of the initialised kernels.
        dtype: of the computation.

    Returns:
        array [B, T, D].
    """

    heads: int
    hidden: int
    activation: str = "gelu"
    eps: float = 1e-12
    attention_dropout: float = 0.0
    out_dropout: float = 0.0
    dropout: float = 0.0
    std: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, seen_B1TT: jax.Array | None) -> jax.Array:
        drop_out, drop = (nn.Dropout(rate, deterministic=rate == 0) for rate in (self.out_dropout, self.dropout))
        norm = partial(nn.LayerNorm, self.eps, dtype=self.dtype, use_fast_variance=False)
        attend = SelfAttention(self.heads, True, self.attention_dropout, self.std, self.dtype, name="attention")
        x_BTD = norm(name="attention_norm")(x_BTD + drop_out(attend(x_BTD, seen_B1TT)))
        mlp = FeedForward(self.hidden, self.activation, self.std, dtype=self.dtype, name="mlp")
        return norm(name="mlp_norm")(x_BTD + drop(mlp(x_BTD)))


class Bert(nn.Module):
    """An encoder: norm(embedding + learned positions + types) -> L post-norm layers -> head.

    Submodules and parameters: ``embed``, ``positions``, ``types``, ``embed_norm``, ``layer_0`` ... (scanned:
    ``layers``, see `Encoder`), and by task: "masked_lm" ``transform``, ``transform_norm``, ``head_bias`` and, where it
    is not tied, ``head``; "sequence_classification" ``pooler``, ``head``; "features" ``pooler`` where it is asked for;
    the others ``head``.

    Args:
        vocabulary, width, layers, heads, hidden: V, D, L, H (of which D is a multiple) and F.
        length: number of learned positions, the first `offset` of which are never used.
        types: number of kinds of tokens (first and second sentence); 0: none.
        offset: the table's row of position 0; where it is not 0 (RoBERTa) it is the padding token's id + 1.
        activation: of the hidden layers.
        head_activation: of "masked_lm"'s transform.
        pool_activation: of the pooler.
        eps: of the norms.
        tied: the head of "masked_lm" is the embedding's table.
        task: one of `TASKS`.
        num_classes: C.
        pooler: "features" gives ``act(W x_0 + b)`` of the first token too.
        attention_dropout, out_dropout, dropout, pool_dropout, head_dropout: rates on the attention's shares, on what
            the attention adds, on what the hidden layer adds and on the embedding, before the pooler, and before the
            head; used with ``train=True`` (need a "dropout" key).
        std: of the initialised kernels and tables.
        scan_layers, remat: see `Encoder`.
        dtype: of the computation; None: that of parameters. Statistics of norms and softmaxes are float32 at least.

    Called as ``apply({"params": params}, tokens_BT, positions=None, segments=None, train=False, types=None)``:
    `positions` int [B, T], 0 for the first token, by default 0 ... T - 1 (where there is an offset the padding is not
    counted, as in transformers); `segments` int [B, T], tokens see those of their own segment alone: an attention mask
    of zeros and ones is one, packed texts are 1, 2, ..., and padding is 0, which nobody sees; `types` int [B, T], by
    default 0.

    Returns:
        logits, float32 at least: [B, T, V] for "masked_lm", [B, C] for "sequence_classification", [B, T, C] for
        "token_classification", two [B, T] (start, end) for "question_answering"; for "features" the last hidden states
        [B, T, D], with `pooler` a pair of them and [B, D].

    Raises:
        UserError: more tokens than positions, heads that do not divide the width, types where there are none, an
            unknown task, or a pooler for another task than "features".

    Example:
        >>> model = Bert(vocabulary=11, width=8, layers=2, heads=2, hidden=16, length=6)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
        >>> variables["params"]["layer_1"]["attention"]["query"]["kernel"].shape, logits.shape
        ((8, 8), (1, 3, 11))

    Reference:
        Devlin et al. (2018), "BERT", arXiv:1810.04805; Liu et al. (2019), "RoBERTa", arXiv:1907.11692; Sanh et al.
        (2019), "DistilBERT", arXiv:1910.01108; Wang et al. (2020), "MiniLM", arXiv:2002.10957. Deviations from
        transformers: positions count from 0 in every family; "features" has a pooler only where `pooler` asks for it.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    length: int
    types: int = 2
    offset: int = 0
    activation: str = "gelu"
    head_activation: str = "gelu"
    pool_activation: str = "tanh"
    eps: float = 1e-12
    tied: bool = True
    task: str = "masked_lm"
    num_classes: int = 2
    pooler: bool = False
    attention_dropout: float = 0.0
    out_dropout: float = 0.0
    dropout: float = 0.0
    pool_dropout: float = 0.0
    head_dropout: float = 0.0
    std: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, positions: Any = None, segments: Any = None, train: bool = False, types: Any = None
    ) -> Any:
        if self.width % self.heads:
            raise UserError(f"bert: width {self.width} is not a multiple of heads={self.heads}; change one of them")
        if self.task not in TASKS:
            raise UserError(f"bert: task={self.task!r}; use one of {', '.join(TASKS)}")
        if self.pooler and self.task != "features":
            raise UserError(f"bert: pooler=True is for the task 'features', and this is {self.task!r}; leave it out")
        if positions is None and tokens_BT.shape[1] > self.length - self.offset:
            room = self.length - self.offset
            raise UserError(f"bert: {tokens_BT.shape[1]} tokens, and {room} positions; use shorter texts")
        embed = self._table(self.vocabulary, "embed")
        x_BTD = self._embedded(embed, tokens_BT, positions, types)
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(self._norm("embed_norm")(x_BTD))
        seen = None if segments is None else segment_mask(jnp.broadcast_to(segments, tokens_BT.shape))
        x_BTD = self._stack(x_BTD, seen, train)
        return self._head(x_BTD, embed, train)

    def _table(self, size: int, name: str) -> nn.Embed:
        init = nn.initializers.normal(self.std)
        return nn.Embed(size, self.width, dtype=self.dtype, embedding_init=init, name=name)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.eps, dtype=self.dtype, use_fast_variance=False, name=name)

    def _dense(self, size: int, name: str) -> nn.Dense:
        return nn.Dense(size, dtype=self.dtype, kernel_init=nn.initializers.normal(self.std), name=name)

    def _embedded(self, embed: nn.Embed, tokens_BT: jax.Array, positions: Any, types: Any) -> jax.Array:
        if positions is not None:
            rows_BT = jnp.broadcast_to(positions, tokens_BT.shape) + self.offset
        elif self.offset:
            pad = self.offset - 1
            there_BT = (tokens_BT != pad).astype(jnp.int32)
            rows_BT = there_BT.cumsum(axis=1) * there_BT + pad
        else:
            rows_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        x_BTD = embed(tokens_BT) + self._table(self.length, "positions")(rows_BT)
        if self.types:
            types_BT = jnp.zeros_like(tokens_BT) if types is None else jnp.broadcast_to(types, tokens_BT.shape)
            return x_BTD + self._table(self.types, "types")(types_BT)
        if types is not None:
            raise UserError("bert: types are given, and this model has none")
        return x_BTD

    def _stack(self, x_BTD: jax.Array, seen: jax.Array | None, train: bool) -> jax.Array:
        rates = (self.attention_dropout, self.out_dropout, self.dropout) if train else (0.0, 0.0, 0.0)
        layer = recomputed(BertLayer, self.remat, self.scan_layers)
        made = partial(layer, self.heads, self.hidden, self.activation, self.eps, *rates, self.std, self.dtype)
        return run_layers(made, self.layers, self.scan_layers, x_BTD, seen)

    def _head(self, x_BTD: jax.Array, embed: nn.Embed, train: bool) -> Any:
        """What the task wants of the last hidden states."""
        if self.task == "features":
            return (x_BTD, self._pooled(x_BTD, train)) if self.pooler else x_BTD
        if self.task == "masked_lm":
            x_BTD = activation(self.head_activation)(self._dense(self.width, "transform")(x_BTD))
            x_BTD = self._norm("transform_norm")(x_BTD)
            bias_V = self.param("head_bias", nn.initializers.zeros, (self.vocabulary,))
            kernel = nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, name="head")
            logits = embed.attend(x_BTD) if self.tied else kernel(x_BTD)
            return _wide(logits + bias_V.astype(logits.dtype))
        x = self._pooled(x_BTD, train) if self.task == "sequence_classification" else x_BTD
        x = nn.Dropout(self.head_dropout, deterministic=not train)(x)
        logits = _wide(self._dense(self.num_classes, "head")(x))
        return (logits[..., 0], logits[..., 1]) if self.task == "question_answering" else logits

    def _pooled(self, x_BTD: jax.Array, train: bool) -> jax.Array:
        x_BD = nn.Dropout(self.pool_dropout, deterministic=not train)(x_BTD[:, 0])
        return activation(self.pool_activation)(self._dense(self.width, "pooler")(x_BD))


def _wide(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
