"""What decoders share around their own layers: the stack, unrolled or scanned, with its cache, and the heads of tasks.

Legend of the shape suffixes: B batch, T tokens, D width, V vocabulary, C classes, L layers, R planes of rotation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jaxbig.errors import UserError
from jaxbig.models.attention import Where
from jaxbig.models.cache import Cache, Seen, append, full
from jaxbig.models.family import LAYERS, Tensor
from jaxbig.models.stack import scanned

TASKS = ("causal_lm", "sequence_classification", "token_classification", "features")


class View(NamedTuple):
    """What a layer is told beside its input; layers of one kind are told the same.

    Attributes:
        seen: which tokens and slots may be attended to.
        angles: (cosine, sine), each [B, T, R], or None.
    """

    seen: Seen
    angles: Any = None


class Stack(NamedTuple):
    """How layers follow each other.

    Attributes:
        layer: ``name -> module``, whose call is ``(x_BTD, view, old, number) -> (x_BTD, (keys, values))``: `old` its
            slots of the cache or None, `number` 0 ... L - 1.
        kinds: for each of the L layers the index of its view.
        scan_layers: one module ``layers`` with stacked parameters in place of ``layer_0``, ``layer_1``, ...
        beside: what is another for each layer, its call's last argument: L trees, or a stacked one where layers are
            scanned. None: nothing is, and there is no such argument.
    """

    layer: Callable[[str], Callable[..., tuple[jax.Array, Any]]]
    kinds: Sequence[int]
    scan_layers: bool = False
    beside: Any = None


def run(stack: Stack, x_BTD: jax.Array, views: Sequence[Any], cache: Cache | None, at: Where) -> tuple[jax.Array, Any]:
    """All layers, called inside the model's compact method.

    Args:
        stack: the layers.
        x_BTD: their input.
        views: one for each kind of layer; a scanned stack of several kinds selects among them in each step.
        cache: or None.
        at: where the tokens stand.

    Returns:
        (output [B, T, D], the cache with the tokens in it or None). Where the cache has no room for the tokens the
        output is NaN: a compiled step cannot raise.
    """
    old = None if cache is None else (cache.keys, cache.values)
    if stack.scan_layers:
        x_BTD, new = _scanned(stack, x_BTD, views, old)
    else:
        made = []
        for number, kind in enumerate(stack.kinds):
            mine = None if old is None else (old[0][number], old[1][number])
            more = () if stack.beside is None else (stack.beside[number],)
            x_BTD, its = stack.layer(f"layer_{number}")(x_BTD, views[kind], mine, number, *more)
            made.append(its)
        new = tuple(zip(*made, strict=True))
    if cache is None:
        return x_BTD, None
    x_BTD = jnp.where(full(cache, at.positions.shape[1]), jnp.nan, x_BTD)
    keys, values = new
    return x_BTD, append(cache, keys, values, at, after=x_BTD)


def _scanned(stack: Stack, x_BTD: jax.Array, views: Sequence[Any], old: Any) -> tuple[jax.Array, Any]:
    """The cache's slices only go in: what each layer adds comes out, and is written once, for all layers."""
    count = len(stack.kinds)

    def body(module: Any, x_BTD: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        number, kind, mine, *more = inputs
        view = views[0]
        if len(views) > 1:
            view = jax.tree.map(lambda *each: jax.lax.select_n(kind, *each), *views)
        return module(x_BTD, view, mine, number, *more)

    more = () if stack.beside is None else (stack.beside,)
    inputs = jnp.arange(count), jnp.asarray(stack.kinds, jnp.int32), old, *more
    return scanned(body, count)(stack.layer(LAYERS), x_BTD, inputs)


class Head(NamedTuple):
    """What is made of the last hidden states.

    Attributes:
        task: one of `TASKS`.
        size: number of classes, or of tokens.
        pad: id of the padding token; where no segments are given it says which token of a row is the last.
        table: the embedding, where the head is tied to it.
        dropout: rate before the head of token_classification.
        dtype: of the computation.
        init: of the kernel.
        softcap: logits l of causal_lm become ``softcap * tanh(l / softcap)``; None: they stay.
    """

    task: str
    size: int
    pad: int | None = None
    table: nn.Embed | None = None
    dropout: float = 0.0
    dtype: Any = None
    init: Any = nn.initializers.normal(0.02)
    softcap: float | None = None

    def __call__(
        self, x_BTD: jax.Array, tokens_BT: jax.Array, segments: Any, logits_at: Any = None, train: bool = False
    ) -> jax.Array:
        """What the task wants of states, called inside the model's compact method; see `Llama` for the shapes."""
        if self.task == "features":
            return x_BTD
        if self.task == "sequence_classification":
            logits_at = last_token(tokens_BT, segments, self.pad)
        if logits_at is not None:
            x_BTD = jnp.take_along_axis(x_BTD, jnp.asarray(logits_at)[:, None, None], axis=1)[:, 0]
        if self.task == "token_classification":
            x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        if self.table is not None and self.task == "causal_lm":
            logits = _against(self.table.embedding, x_BTD, self.dtype)
        else:
            bias = self.task == "token_classification"
            logits = nn.Dense(self.size, use_bias=bias, dtype=self.dtype, kernel_init=self.init, name="head")(x_BTD)
        return _wide(logits, self.softcap if self.task == "causal_lm" else None)


def _against(table_VD: Any, x_BTD: jax.Array, dtype: Any) -> jax.Array:
    # `attend` multiplies with a transposed table, for which XLA:CPU has a slower loop at one row.
    x_BTD, table_VD = promote_dtype(x_BTD, table_VD, dtype=dtype)
    return jnp.einsum("...D,VD->...V", x_BTD, table_VD)


def _wide(logits: jax.Array, softcap: float | None) -> jax.Array:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def logits_of(module: Any, params: Any, x_BTD: jax.Array) -> jax.Array:
    """What the head of the task "causal_lm" makes of states, for who wants not all of a text's logits at once.

    Args:
        module: a decoder; its task does not matter.
        params: its parameters, head included.
        x_BTD: states, [..., D], what ``module.clone(task="features")`` gives.

    Returns:
        logits [..., V], float32 at least.

    Example:
        >>> from jaxbig.models.llama import Llama
        >>> model = Llama(vocabulary=11, width=8, layers=1, heads=2, kv_heads=1, head_width=4, hidden=12, tied=True)
        >>> tokens = jnp.array([[1, 2, 3]])
        >>> params = model.init(jax.random.key(0), tokens)["params"]
        >>> states = model.clone(task="features").apply({"params": params}, tokens)
        >>> bool((logits_of(model, params, states) == model.apply({"params": params}, tokens)).all())
        True
    """
    if module.tied:
        logits: Any = _against(params["embed"]["embedding"], x_BTD, module.dtype)
    else:
        head = nn.Dense(module.vocabulary, use_bias=False, dtype=module.dtype)
        logits = head.apply({"params": params["head"]}, x_BTD)
    return _wide(logits, getattr(module, "logit_softcap", None))


def last_token(tokens_BT: jax.Array, segments: Any, pad: int | None) -> jax.Array:
    """Where each row's last token stands: int [B].

    Args:
        tokens_BT: token ids.
        segments: int [B, T] or None; 0 is padding.
        pad: where there are no segments, the id that is padding; None: nothing is.

    Returns:
        the last index that is no padding, 0 where there is none.

    Example:
        >>> last_token(jnp.array([[7, 8, 0], [0, 7, 8]]), None, pad=0).tolist()
        [1, 2]
    """
    if segments is not None:
        counts = jnp.broadcast_to(segments, tokens_BT.shape) != 0
    else:
        counts = jnp.ones(tokens_BT.shape, bool) if pad is None else tokens_BT != pad
    return (jnp.arange(tokens_BT.shape[1]) * counts).argmax(axis=1)


def head_tensors(module: Any, name: str) -> list[Tensor]:
    """The tensors of a decoder's head.

    Args:
        module: with ``task`` and ``tied``.
        name: what transformers calls the head of token_classification; that of the other tasks has one name.
    """
    if module.task == "features" or (module.task == "causal_lm" and module.tied):
        return []
    names = {"causal_lm": "lm_head", "sequence_classification": "score", "token_classification": name}
    found = [Tensor("head/kernel", f"{names[module.task]}.weight", "matrix")]
    return found + [Tensor("head/bias", f"{name}.bias")] * (module.task == "token_classification")


def task_fields(config: Mapping[str, Any], task: str, num_classes: int | None, name: str) -> dict[str, Any]:
    """The fields of a decoder that say its head.

    Args:
        config: the ``config.json``.
        task: one of `TASKS`.
        num_classes: None: as many as the file names, or two.
        name: of the family, for the error.

    Returns:
        task, num_classes, pad, head_dropout.

    Raises:
        UserError: a task that decoders here have no head for.

    Example:
        >>> task_fields({"id2label": {"0": "no", "1": "yes", "2": "?"}}, "token_classification", None, "llama")
        {'task': 'token_classification', 'num_classes': 3, 'pad': None, 'head_dropout': 0.1}
    """
    if task not in TASKS:
        raise UserError(f"{name}: no head for the task {task!r}; there are {', '.join(TASKS)}")
    named = config.get("num_labels") or len(config.get("id2label") or ()) or 2
    rates = [config.get(field) for field in ("classifier_dropout", "hidden_dropout")]
    rate = next((float(each) for each in rates if each is not None), 0.1)
    count = named if num_classes is None else num_classes
    return {"task": task, "num_classes": count, "pad": config.get("pad_token_id"), "head_dropout": rate}
