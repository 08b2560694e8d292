"""GPT-2 and models of its shape.

Legend of the shape suffixes: B batch, T tokens, S slots of a cache, D width, F width of the hidden layer, V vocabulary,
H heads, K width of a head, C classes, L layers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxbig.errors import UserError
from jaxbig.models.cache import Cache, attend, place, seen
from jaxbig.models.decoder import Head, Stack, View, head_tensors, run, task_fields
from jaxbig.models.family import Family, Tensor, field, refuse
from jaxbig.models.feedforward import FeedForward
from jaxbig.models.stack import recomputed


class GPT2Attention(nn.Module):
    """Attention whose queries, keys and values come from one product of width 3 D.

    Args:
        heads: H, of which D is a multiple.
        scaled: scores are divided by the root of K.
        by_layer: layer i's are divided by i + 1 (`number` + 1) too.
        dropout: rate on the attention's shares (needs a "dropout" key); 0 outside training.
        std, out_std: of the initialised kernels, and of the one that writes into the residual stream.
        dtype: of the computation.

    Returns:
        ([B, T, D], (keys, values), each [B, T, H, K]).
    """

    heads: int
    scaled: bool = True
    by_layer: bool = False
    dropout: float = 0.0
    std: float = 0.02
    out_std: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, view: View, old: Any, number: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        width = x_BTD.shape[-1]
        init, init_out = nn.initializers.normal(self.std), nn.initializers.normal(self.out_std)
        qkv_BTC = nn.Dense(3 * width, dtype=self.dtype, kernel_init=init, name="qkv")(x_BTD)
        q, k, v = (rearrange(part, "B T (H K) -> B T H K", H=self.heads) for part in jnp.split(qkv_BTC, 3, axis=-1))
        if self.by_layer:
            q = q / jnp.asarray(number + 1, q.dtype)
        dropout = nn.Dropout(self.dropout, deterministic=False) if self.dropout else None
        out_BTHK = attend(q, (k, v), old, view.seen, scale=None if self.scaled else 1.0, dropout=dropout)
        dense = nn.Dense(width, dtype=self.dtype, kernel_init=init_out, name="out")
        return dense(rearrange(out_BTHK, "B T H K -> B T (H K)")), (k, v)


class GPT2Layer(nn.Module):
    """x <- x + attention(norm(x)); x <- x + mlp(norm(x)), with dropout on what is added.

    Args:
        attention, mlp, norm: ``name -> module`` of its three kinds of parts.
        dropout: rate (needs a "dropout" key); 0 outside training.

    Returns:
        (x [B, T, D], (keys, values), each [B, T, H, K]).
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, old: Any, number: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        y_BTD, new = self.attention(name="attention")(self.norm(name="attention_norm")(x_BTD), view, old, number)
        x_BTD = x_BTD + drop(y_BTD)
        return x_BTD + drop(self.mlp(name="mlp")(self.norm(name="mlp_norm")(x_BTD))), new


class GPT2(nn.Module):
    """A decoder: embedding + learned positions -> L pre-norm layers -> norm -> head.

    Submodules and parameters: ``embed``, ``positions``, ``layer_0`` ... (scanned: ``layers``, see `Encoder`), ``norm``,
    ``head``. A layer's query, key and value are one product ``attention/qkv`` with a kernel [D, 3 D], as in the files.

    Args:
        vocabulary, width, layers, heads, hidden: V, D, L, H (of which D is a multiple) and F.
        length: number of learned positions.
        activation: of the hidden layers.
        eps: of the norms.
        scaled, by_layer: see `GPT2Attention`.
        tied: the head of "causal_lm" is the embedding's table.
        task: "causal_lm", "sequence_classification", "token_classification" or "features".
        num_classes: C.
        pad: id of the padding token, see `Head`.
        embed_dropout, attention_dropout, dropout, head_dropout: rates after the embedding, on the attention's shares,
            on what each half of a layer adds, and before the head of "token_classification"; used with ``train=True``
            (need a "dropout" key).
        std: of the initialised kernels and tables; what writes into the residual stream has std / sqrt(2 L).
        scan_layers, remat: see `Encoder`.
        dtype: of the computation, as in `Llama`.

    Called as `Llama` is, and returns what `Llama` returns. Without `positions`, padding on the left is counted too, as
    transformers does unless its ``generate`` counts for it. A position beyond `length` gives NaN.

    Raises:
        UserError: T tokens are more than `length` or than the cache's slots, or heads do not divide the width.

    Example:
        >>> model = GPT2(vocabulary=11, width=8, layers=2, heads=2, hidden=16, length=6)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> params = model.init(jax.random.key(0), tokens)["params"]
        >>> params["layer_1"]["attention"]["qkv"]["kernel"].shape, model.apply({"params": params}, tokens).shape
        ((8, 24), (1, 3, 11))

    Reference:
        Radford et al. (2019), "Language models are unsupervised multitask learners". Deviations from transformers:
        padding attends to padding, so that states there differ (nobody else sees them).
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    hidden: int
    length: int
    activation: str = "gelu_new"
    eps: float = 1e-5
    scaled: bool = True
    by_layer: bool = False
    tied: bool = True
    task: str = "causal_lm"
    num_classes: int = 2
    pad: int | None = None
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    dropout: float = 0.0
    head_dropout: float = 0.0
    std: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, positions: Any = None, segments: Any = None, train: bool = False,
        cache: Cache | None = None, logits_at: Any = None,
    ) -> Any:  # fmt: skip
        if self.width % self.heads:
            raise UserError(f"gpt2: width {self.width} is not a multiple of heads={self.heads}; change one of them")
        if positions is None and tokens_BT.shape[1] > self.length:
            raise UserError(f"gpt2: {tokens_BT.shape[1]} tokens, and {self.length} positions; use shorter texts")
        init = nn.initializers.normal(self.std)
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=init, name="embed")
        learned = nn.Embed(self.length, self.width, dtype=self.dtype, embedding_init=init, name="positions")
        at = place(tokens_BT, positions, segments, cache)
        x_BTD = embed(tokens_BT) + learned(at.positions)
        x_BTD = nn.Dropout(self.embed_dropout, deterministic=not train)(x_BTD)
        stack = Stack(self._layer(train), (0,) * self.layers, self.scan_layers)
        x_BTD, cache = run(stack, x_BTD, [View(seen(at, cache))], cache, at)
        x_BTD = self._norm()(name="norm")(x_BTD)
        size = self.vocabulary if self.task == "causal_lm" else self.num_classes
        head = Head(self.task, size, self.pad, embed if self.tied else None, self.head_dropout, self.dtype, init)
        found = head(x_BTD, tokens_BT, segments, logits_at, train)
        return found if cache is None else (found, cache)

    def _norm(self) -> Callable[..., nn.Module]:
        # Published GPT-2's have entries in the thousands: their squares' mean less their mean's square would lose bits.
        return partial(nn.LayerNorm, self.eps, dtype=self.dtype, use_fast_variance=False)

    def _layer(self, train: bool) -> Callable[[str], Callable[..., tuple[jax.Array, Any]]]:
        made = {"std": self.std, "out_std": self.std / (2 * self.layers) ** 0.5, "dtype": self.dtype}
        rates = (self.attention_dropout, self.dropout) if train else (0.0, 0.0)
        attention = partial(GPT2Attention, self.heads, self.scaled, self.by_layer, rates[0], **made)
        mlp = partial(FeedForward, self.hidden, self.activation, **made)
        layer = recomputed(GPT2Layer, self.remat, self.scan_layers)
        return lambda name: layer(attention, mlp, self._norm(), rates[1], name=name)


def _module(config: Mapping[str, Any], task: str, **options: Any) -> GPT2:
    """The module that a ``config.json`` describes; fields that it leaves out are transformers' defaults."""
    refuse(config, add_cross_attention=(False, None))
    width = field(config, "n_embd")
    return GPT2(
        vocabulary=field(config, "vocab_size"),
        width=width,
        layers=field(config, "n_layer"),
        heads=field(config, "n_head"),
        hidden=config.get("n_inner") or 4 * width,
        length=field(config, "n_positions"),
        activation=config.get("activation_function", "gelu_new"),
        eps=config.get("layer_norm_epsilon", 1e-5),
        scaled=config.get("scale_attn_weights", True),
        by_layer=config.get("scale_attn_by_inverse_layer_idx", False),
        tied=config.get("tie_word_embeddings", True),
        embed_dropout=config.get("embd_pdrop", 0.1),
        attention_dropout=config.get("attn_pdrop", 0.1),
        dropout=config.get("resid_pdrop", 0.1),
        std=config.get("initializer_range", 0.02),
        **task_fields(config, task, options.pop("num_classes", None), "gpt2"),
        **options,
    )


def _tensors(module: GPT2) -> list[Tensor]:
    """Every tensor; transformers stores these products as [I, O], as we do, so none is turned but the head."""
    ours, theirs = "layer_{}/", "transformer.h.{}."
    found = [
        Tensor("embed/embedding", "transformer.wte.weight"),
        Tensor("positions/embedding", "transformer.wpe.weight"),
    ]
    for path, name in [("norm", "transformer.ln_f"), ("attention_norm", "ln_1"), ("mlp_norm", "ln_2")]:
        path, name = (path, name) if path == "norm" else (ours + path, theirs + name)
        found += [Tensor(f"{path}/scale", f"{name}.weight"), Tensor(f"{path}/bias", f"{name}.bias")]
    products = {
        "attention/qkv": "attn.c_attn",
        "attention/out": "attn.c_proj",
        "mlp/up": "mlp.c_fc",
        "mlp/down": "mlp.c_proj",
    }
    for path, name in products.items():
        found += [Tensor(f"{ours}{path}/kernel", f"{theirs}{name}.weight")]
        found += [Tensor(f"{ours}{path}/bias", f"{theirs}{name}.bias")]
    return found + head_tensors(module, "classifier")


def _example(module: GPT2) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, min(8, module.length)), jnp.int32),)


ARCHITECTURES = {
    "GPT2LMHeadModel": "causal_lm",
    "GPT2ForSequenceClassification": "sequence_classification",
    "GPT2ForTokenClassification": "token_classification",
    "GPT2Model": "features",
}
GPT2_FAMILY = Family("gpt2", ARCHITECTURES, _module, _tensors, "transformer", _example)
