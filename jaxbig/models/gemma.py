"""The Gemma line of decoders: Gemma 1, 2 and 3 (the text models).

Legend of the shape suffixes: B batch, T tokens, D width, F width of the hidden layer, V vocabulary, H heads, G heads of
keys and values, K width of a head, C classes, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.cache import Cache, place, seen
from jaxbig.models.decoder import Head, Stack, View, run
from jaxbig.models.llama import GatedMLP
from jaxbig.models.rope import Rope, angles
from jaxbig.models.rotary_attention import RotaryAttention
from jaxbig.models.stack import recomputed


class GemmaNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * (1 + w)``, computed in float32 at least and rounded once, at the end.

    Args:
        eps: added to the mean square.
        dtype: of the result; None: what x and w promote to.

    Returns:
        array of x's shape. The parameter ``scale`` is w, as the files hold it: zeros at first.

    Example:
        >>> x = jnp.array([[1.0, -1.0]])
        >>> GemmaNorm(eps=0.0).apply({"params": {"scale": jnp.array([0.0, 1.0])}}, x).tolist()
        [[1.0, -2.0]]
    """

    eps: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        dtype = self.dtype or jnp.result_type(x, scale)
        wide = jnp.promote_types(dtype, jnp.float32)
        normed = nn.RMSNorm(self.eps, dtype=wide, use_scale=False, name="plain")(x)
        return (normed * (1 + scale.astype(wide))).astype(dtype)


class GemmaLayer(nn.Module):
    """x <- x + post(attention(norm(x))); x <- x + post(mlp(norm(x))).

    Args:
        attention, mlp, norm: ``name -> module`` of its three kinds of parts.
        post_norms: there are the two norms `post`, without which they are the identity.

    Returns:
        (x [B, T, D], (keys, values), each [B, T, G, K]).
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    post_norms: bool = True

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, old: Any, number: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        def post(name: str, y_BTD: jax.Array) -> jax.Array:
            return self.norm(name=name)(y_BTD) if self.post_norms else y_BTD

        y_BTD, new = self.attention(name="attention")(self.norm(name="attention_norm")(x_BTD), view, old)
        x_BTD = x_BTD + post("attention_post_norm", y_BTD)
        y_BTD = self.mlp(name="mlp")(self.norm(name="mlp_norm")(x_BTD))
        return x_BTD + post("mlp_post_norm", y_BTD), new


class Gemma(nn.Module):
    """A decoder: embedding, times sqrt(D) -> L rotary layers, normed before and after each half -> norm -> head.

    Submodules and parameters: ``embed``, ``layer_0`` ... (scanned: ``layers``, see `Encoder`), ``norm``, ``head``.

    Args:
        vocabulary, width, layers: V, D and L.
        heads, kv_heads, head_width: H, G (of which H is a multiple) and K.
        hidden: F.
        rope: the rotary frequencies.
        local_rope: those of layers with a window (Gemma 3); None: `rope` too.
        scale: of the attention's scores; None: 1 / sqrt(K).
        attention_softcap: scores s become ``cap * tanh(s / cap)`` (Gemma 2).
        logit_softcap: logits of "causal_lm" likewise (Gemma 2).
        post_norms: each half's output is normed before it is added (Gemma 2 and 3).
        qk_norm: queries and keys are normed by heads (Gemma 3).
        windows: for each layer how many positions back it sees, itself included, or None; empty: all see everything.
        biases: which products have one, of "qkv" and "out".
        activation, eps, tied, task, num_classes, pad, attention_dropout, head_dropout, std: see `Llama`.
        scan_layers, remat: see `Encoder`; layers with and without a window are scanned together.
        dtype: of the computation, see `Llama`; sqrt(D) is rounded to it.

    Called as `Llama` is, and returns what it returns.

    Raises:
        UserError: windows do not say one for each layer, or the cache is shorter than T.

    Example:
        >>> sizes = {"vocabulary": 11, "width": 8, "heads": 2, "kv_heads": 1, "head_width": 4, "hidden": 12}
        >>> model = Gemma(**sizes, layers=2, windows=(4, None), logit_softcap=30.0, scan_layers=True)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        >>> from jaxbig.models.cache import empty_cache
        >>> empty = empty_cache(model, batch=1, length=8)
        >>> logits, cache = jax.jit(model.apply)({"params": params}, tokens, cache=empty)
        >>> logits.shape, int(cache.index)
        ((1, 3, 11), 3)

    Reference:
        Gemma Team (2024), arXiv:2403.08295 and "Gemma 2", arXiv:2408.00118; (2025), "Gemma 3", arXiv:2503.19786.
        Deviations from transformers: padding attends to padding, so that states there differ (nobody else sees them);
        in 16 bits scores and logits are capped in float32, not in 16 bits; sqrt(D) is rounded to the dtype of the
        computation, theirs to that of the parameters.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    rope: Rope = Rope()
    local_rope: Rope | None = None
    scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    post_norms: bool = True
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    biases: tuple[str, ...] = ()
    activation: str = "gelu_pytorch_tanh"
    eps: float = 1e-6
    tied: bool = True
    task: str = "causal_lm"
    num_classes: int = 2
    pad: int | None = None
    attention_dropout: float = 0.0
    head_dropout: float = 0.0
    std: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, positions: Any = None, segments: Any = None, train: bool = False,
        cache: Cache | None = None, logits_at: Any = None,
    ) -> Any:  # fmt: skip
        windows = self.windows or (None,) * self.layers
        if len(windows) != self.layers:
            raise UserError(f"gemma: windows says {len(windows)} layers, the model has {self.layers}")
        init = nn.initializers.normal(self.std)
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=init, name="embed")
        at = place(tokens_BT, positions, segments, cache)
        x_BTD = embed(tokens_BT)
        x_BTD = x_BTD * jnp.asarray(self.width**0.5, x_BTD.dtype)
        ropes = {window: self.rope if window is None else self.local_rope or self.rope for window in windows}
        views = [
            View(seen(at, cache, window), angles(rope, self.head_width, at.positions, x_BTD.dtype))
            for window, rope in ropes.items()
        ]
        stack = Stack(self._layer(train), tuple(map(list(ropes).index, windows)), self.scan_layers)
        x_BTD, cache = run(stack, x_BTD, views, cache, at)
        x_BTD = GemmaNorm(self.eps, self.dtype, name="norm")(x_BTD)
        size = self.vocabulary if self.task == "causal_lm" else self.num_classes
        table = embed if self.tied else None
        head = Head(self.task, size, self.pad, table, self.head_dropout, self.dtype, init, self.logit_softcap)
        found = head(x_BTD, tokens_BT, segments, logits_at, train)
        return found if cache is None else (found, cache)

    def _layer(self, train: bool) -> Callable[[str], Callable[..., tuple[jax.Array, Any]]]:
        made = {"std": self.std, "dtype": self.dtype}
        norm = partial(GemmaNorm, self.eps, self.dtype)
        attention = partial(
            RotaryAttention, self.heads, self.kv_heads, self.head_width, tuple(self.biases),
            norm if self.qk_norm else None, self.scale, self.attention_softcap,
            self.attention_dropout if train else 0.0, **made,
        )  # fmt: skip
        mlp = partial(GatedMLP, self.hidden, self.activation, **made)
        layer = recomputed(GemmaLayer, self.remat, self.scan_layers)
        return lambda name: layer(attention, mlp, norm, self.post_norms, name=name)
