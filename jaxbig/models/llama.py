"""The Llama line of decoders: Llama 2 and 3, SmolLM2, Mistral, Qwen 2, 2.5 and 3.

Legend of the shape suffixes: B batch, T tokens, S slots of a cache, D width, F width of the hidden layer, V vocabulary,
H heads, G heads of keys and values, K width of a head, C classes, L layers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbig.errors import UserError
from jaxbig.models.activation import activation
from jaxbig.models.cache import Cache, place, seen
from jaxbig.models.decoder import Head, Stack, View, head_tensors, run, task_fields
from jaxbig.models.family import Family, Tensor, field, refuse
from jaxbig.models.rope import Rope, angles, rope_of
from jaxbig.models.rotary_attention import RotaryAttention
from jaxbig.models.stack import recomputed


class GatedMLP(nn.Module):
    """``W_down (act(W_gate x) * W_up x)``: SwiGLU where act is SiLU.

    Args:
        hidden: F.
        activation: a name that `jaxbig.models.activation` knows.
        bias: the three products have one.
        std: of the initialised kernels.
        dtype: of the computation.

    Returns:
        array [B, T, D].

    Reference:
        Shazeer (2020), "GLU variants improve Transformer", arXiv:2002.05202.
    """

    hidden: int
    activation: str = "silu"
    bias: bool = False
    std: float = 0.02
    dtype: Any = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        dense = partial(
            nn.Dense, use_bias=self.bias, dtype=self.dtype, kernel_init=nn.initializers.normal(self.std)
        )  # fmt: skip
        gate_BTF = activation(self.activation)(dense(self.hidden, name="gate")(x_BTD))
        return dense(x_BTD.shape[-1], name="down")(gate_BTF * dense(self.hidden, name="up")(x_BTD))


class LlamaLayer(nn.Module):
    """x <- x + attention(norm(x)); x <- x + mlp(norm(x)).

    Args:
        attention, mlp, norm: ``name -> module`` of its three kinds of parts.

    Returns:
        (x [B, T, D], (keys, values), each [B, T, G, K]).
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, old: Any, number: Any) -> tuple[jax.Array, tuple[Any, Any]]:
        y_BTD, new = self.attention(name="attention")(self.norm(name="attention_norm")(x_BTD), view, old)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(name="mlp")(self.norm(name="mlp_norm")(x_BTD)), new


class Llama(nn.Module):
    """A decoder: embedding -> L rotary layers with RMSNorm and a gated MLP -> norm -> head.

    Submodules and parameters: ``embed``, ``layer_0`` ... (scanned: ``layers``, see `Encoder`), ``norm``, ``head``.

    Args:
        vocabulary, width, layers: V, D and L.
        heads, kv_heads, head_width: H, G (of which H is a multiple) and K.
        hidden: F.
        rope: the rotary frequencies.
        activation: of the MLP's gate.
        eps: of the norms.
        biases: which products have one, of "qkv" (Qwen 2), "out" and "mlp".
        qk_norm: queries and keys are normed by heads (Qwen 3).
        windows: for each layer how many positions back it sees, itself included, or None; empty: all see everything.
        tied: the head of "causal_lm" is the embedding's table.
        task: "causal_lm", "sequence_classification", "token_classification" or "features".
        num_classes: C.
        pad: id of the padding token, see `Head`.
        attention_dropout, head_dropout: rates on the attention's shares and before the head of
            "token_classification"; used with ``train=True`` (need a "dropout" key).
        std: of the initialised kernels and table.
        scan_layers, remat: see `Encoder`; layers with and without a window can be scanned together.
        dtype: of the computation; None: what the parameters' is. Norms and softmax are float32 at least, and so are
            logits. Parameters are float32.

    Called as ``(tokens_BT, positions=None, segments=None, train=False, cache=None, logits_at=None)``: `positions` int
    [B, T], else 0, 1, ... (on from the cache's index); `segments` int [B, T], see `Where`, 0 for padding; `cache` see
    `empty_cache`; `logits_at` int [B]: of "causal_lm" only the logits after this token of each row.

    Returns:
        logits [B, T, V], or [B, V] with `logits_at`; [B, C]; [B, T, C]; or states [B, T, D]. With a cache a pair of
        that and the new cache.

    Raises:
        UserError: windows do not say one for each layer, or the cache is shorter than T.

    Example:
        >>> model = Llama(vocabulary=11, width=8, layers=2, heads=2, kv_heads=1, head_width=4, hidden=12)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> params = model.init(jax.random.key(0), tokens)["params"]
        >>> from jaxbig.models.cache import empty_cache
        >>> logits, cache = model.apply({"params": params}, tokens, cache=empty_cache(model, batch=1, length=8))
        >>> logits.shape, int(cache.index)
        ((1, 3, 11), 3)

    Reference:
        Touvron et al. (2023), arXiv:2302.13971 and arXiv:2307.09288; Llama Team (2024), arXiv:2407.21783; Jiang et al.
        (2023), "Mistral 7B", arXiv:2310.06825; Qwen Team (2024), arXiv:2412.15115, and (2025), arXiv:2505.09388.
        Deviations from transformers: padding attends to padding, so that states there differ (nobody else sees them);
        in 16 bits a norm's result is rounded after its scale, not before.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    rope: Rope = Rope()
    activation: str = "silu"
    eps: float = 1e-6
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    tied: bool = False
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
            raise UserError(f"llama: windows says {len(windows)} layers, the model has {self.layers}")
        init = nn.initializers.normal(self.std)
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, embedding_init=init, name="embed")
        at = place(tokens_BT, positions, segments, cache)
        x_BTD = embed(tokens_BT)
        turns = angles(self.rope, self.head_width, at.positions, x_BTD.dtype)
        known = tuple(dict.fromkeys(windows))
        views = [View(seen(at, cache, window), turns) for window in known]
        stack = Stack(self._layer(train), tuple(map(known.index, windows)), self.scan_layers)
        x_BTD, cache = run(stack, x_BTD, views, cache, at)
        x_BTD = nn.RMSNorm(self.eps, dtype=self.dtype, name="norm")(x_BTD)
        size = self.vocabulary if self.task == "causal_lm" else self.num_classes
        head = Head(self.task, size, self.pad, embed if self.tied else None, self.head_dropout, self.dtype, init)
        found = head(x_BTD, tokens_BT, segments, logits_at, train)
        return found if cache is None else (found, cache)

    def _layer(self, train: bool) -> Callable[[str], Callable[..., tuple[jax.Array, Any]]]:
        made = {"std": self.std, "dtype": self.dtype}
        norm = partial(nn.RMSNorm, self.eps, dtype=self.dtype)
        attention = partial(
            RotaryAttention, self.heads, self.kv_heads, self.head_width, tuple(self.biases),
            norm if self.qk_norm else None, dropout=self.attention_dropout if train else 0.0, **made,
        )  # fmt: skip
        mlp = partial(GatedMLP, self.hidden, self.activation, "mlp" in self.biases, **made)
        layer = recomputed(LlamaLayer, self.remat, self.scan_layers)
        return lambda name: layer(attention, mlp, norm, name=name)


def _module(kind: str, config: Mapping[str, Any], task: str, **options: Any) -> Llama:
    """The module that a ``config.json`` describes; what a family lacks is not in its files."""
    layers, heads = field(config, "num_hidden_layers"), field(config, "num_attention_heads")
    width = field(config, "hidden_size")
    biased = {"qkv", "out"} if config.get("attention_bias") and kind in ("llama", "qwen3") else set()
    biased |= {"qkv"} if kind == "qwen2" else set()
    biased |= {"mlp"} if config.get("mlp_bias") and kind == "llama" else set()
    refuse(config, pretraining_tp=(1, None))
    return Llama(
        vocabulary=field(config, "vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or (128 if kind == "qwen3" else width // heads),
        hidden=field(config, "intermediate_size"),
        rope=rope_of(config),
        activation=config.get("hidden_act", "silu"),
        eps=config.get("rms_norm_eps", 1e-6),
        biases=tuple(sorted(biased)),
        qk_norm=kind == "qwen3",
        windows=_windows(config, kind, layers),
        tied=config.get("tie_word_embeddings", False),
        attention_dropout=config.get("attention_dropout") or 0.0,
        std=config.get("initializer_range", 0.02),
        **task_fields(config, task, options.pop("num_classes", None), kind),
        **options,
    )


def _windows(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int | None, ...]:
    """Each layer's window; files that leave a field out mean transformers' default."""
    if kind == "mistral":
        return (config.get("sliding_window", 4096),) * layers
    if kind == "llama":
        return ()
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    start = config.get("max_window_layers", 28)
    types = config.get("layer_types") or [
        "sliding_attention" if window is not None and i >= start else "full_attention" for i in range(layers)
    ]
    if unknown := set(types) - {"sliding_attention", "full_attention"}:
        raise UserError(f"config.json: layer_types has {sorted(unknown)}; jaxbig's {kind} has no such layers")
    if window is None and "sliding_attention" in types:
        raise UserError("config.json: layer_types has 'sliding_attention', and use_sliding_window is not set")
    return tuple(window if each == "sliding_attention" else None for each in types)


def _tensors(module: Llama) -> list[Tensor]:
    """Every tensor of a module under the names that the whole line shares."""
    ours, theirs = "layer_{}/", "model.layers.{}."
    products = {
        "attention/query": ("self_attn.q_proj", "qkv"),
        "attention/key": ("self_attn.k_proj", "qkv"),
        "attention/value": ("self_attn.v_proj", "qkv"),
        "attention/out": ("self_attn.o_proj", "out"),
        "mlp/gate": ("mlp.gate_proj", "mlp"),
        "mlp/up": ("mlp.up_proj", "mlp"),
        "mlp/down": ("mlp.down_proj", "mlp"),
    }
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if module.qk_norm:
        norms |= {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
    found = [Tensor("embed/embedding", "model.embed_tokens.weight"), Tensor("norm/scale", "model.norm.weight")]
    found += [Tensor(f"{ours}{norm}/scale", f"{theirs}{name}.weight") for norm, name in norms.items()]
    for path, (name, bias) in products.items():
        found.append(Tensor(f"{ours}{path}/kernel", f"{theirs}{name}.weight", "matrix"))
        if bias in module.biases:
            found.append(Tensor(f"{ours}{path}/bias", f"{theirs}{name}.bias"))
    return found + head_tensors(module, "score")


def _example(module: Llama) -> tuple[Any, ...]:
    return (jax.ShapeDtypeStruct((1, 8), jnp.int32),)


def _family(kind: str, name: str) -> Family:
    tasks = {"ForCausalLM": "causal_lm", "ForSequenceClassification": "sequence_classification"}
    tasks |= {"ForTokenClassification": "token_classification", "Model": "features"}
    architectures = {name + suffix: task for suffix, task in tasks.items()}
    return Family(kind, architectures, partial(_module, kind), _tensors, "model", _example)


LLAMA = _family("llama", "Llama")
MISTRAL = _family("mistral", "Mistral")
QWEN2 = _family("qwen2", "Qwen2")
QWEN3 = _family("qwen3", "Qwen3")
