"""Prompt tuning and P-tuning: vectors in front of the embedded text."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.matrix import lookup
from jaxbig.site import Site, sites
from jaxbig.transform import Split, Transform, key_for, technique
from jaxbig.tree import paths, replace
from jaxbig.virtual import Virtual
from jaxbig.weight import Weight, aligned, materialise, product, static


class Prompted(Weight):
    """A table whose look-ups give the prompt at the first positions of each sequence, and rows of `base` behind them.

    Attributes:
        base: [V, D], an array or a Weight; prompt: [P, D].
        length: P + T, positions of a sequence.
    """

    base: Any
    prompt: Any
    length: int = static()

    def axes(self):
        return {"base": aligned(self.base), "prompt": (None, -1)}

    def materialise(self):
        raise UsageError(
            "prompt: the model reads the table otherwise than by looking ids up and multiplying by it; virtual tokens "
            "have no place in that"
        )

    def product(self, x, c):
        return product(self.base, x, c)

    def lookup(self, ids, axis):
        rows = lookup(self.base, ids, axis)
        if rows is NotImplemented:
            rows = jnp.take(materialise(self.base), ids, axis=axis)
        if axis != -2 or len(ids) % self.length:
            raise UsageError(f"prompt: {len(ids)} ids are looked up, no whole number of sequences of {self.length}")
        sequences = rows.reshape(-1, self.length, rows.shape[-1])
        prompt = jnp.broadcast_to(self.prompt.astype(rows.dtype), (len(sequences), *self.prompt.shape))
        return jnp.concatenate([prompt, sequences[:, len(self.prompt) :]], axis=1).reshape(rows.shape)


@technique
def prompt(
    tokens: int = 20,
    where: Any = None,
    text: Sequence[int] | None = None,
    hidden: int | None = None,
    ids: str | None = None,
    fill: Mapping[str, float] | None = None,
    lstm: int | None = None,
):
    """Trains P vectors in front of the embedded text: ``x = [prompt; E[ids]]``; the model is frozen.

    With `hidden` the vectors are the output of a small network, P-tuning:
    ``prompt = relu(relu(Z W1 + b1) W2 + b2) W3 + b3``; with `lstm` too, that of the paper:
    ``prompt = relu(H W1 + b1) W2 + b2``, H [P, 2 hidden] the states of a bidirectional LSTM over Z.

    Args:
        tokens: P, the number of virtual tokens.
        where: the table that is looked up; None: of all that are, the one with the most rows.
        text: ids whose embeddings the prompt starts from, repeated or cut to P; None: those of random ids.
        hidden: width of the network; None: the vectors themselves are trained.
        ids, fill: which argument has the ids, and what stands in arrays beside them, see `jaxbig.virtual.Virtual`.
            ``prompt(20, ids="tokens", fill={"mask": 1})`` for batches with a mask of positions; the ids of a model that
            is called with them alone need no telling.
        lstm: layers of the LSTM, each way `hidden` wide; None: there is none.

    Returns:
        a Transform. ``train[path] = {"prompt": [P, D]}``, or the network's ``z`` [P, D], ``w1`` [D, hidden], ``w2``
        [hidden, hidden], ``w3`` [hidden, D] and biases; or ``z`` and as ``encoder`` the parameters of `PromptEncoder`.
        `apply` leaves the tree as it is; `wrap` puts the prompt in: call
        ``lift(transform.wrap(split, fn))(transform.apply(split), ids)``, as the trainer does.

    Raises:
        UsageError: no table is looked up, `where` names more than one, or one without exactly two axes.

    Init: the embeddings of random ids (Lester et al. found sampled vocabulary better than noise), or of `text`; the
    network: Z normal, weights LeCun normal, an LSTM's recurrent ones orthogonal, biases zero.

    Cost: P D parameters; every product sees P more rows a sequence.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"table": jnp.eye(3)}, jnp.array([[0, 1]])
        >>> fn = lambda p, ids: jnp.cumsum(p["table"][ids], axis=1)
        >>> split = prompt(2, text=[2]).init(None, params, usage(fn, params, x))
        >>> prompt(2, text=[2]).wrap(split, fn)(params, x)[0].tolist()
        [[1.0, 0.0, 2.0], [1.0, 1.0, 2.0]]

    Reference: Lester, Al-Rfou and Constant 2021, arXiv:2104.08691; Liu et al. 2021 (P-tuning), arXiv:2103.10385.
    Deviations: PEFT's random start is a standard normal; torch draws its networks otherwise, and its LSTM has two
    biases, of which only the sum counts; there is no dropout between layers.
    """
    if not isinstance(tokens, int | np.integer) or tokens < 1:
        raise UsageError(f"prompt: tokens={tokens!r}; it is a whole number of at least 1")
    if text is not None and not len(text):
        raise UsageError("prompt: text=[]; give at least one id to start from, or None for random ones")
    if text is not None and hidden is not None:
        raise UsageError("prompt: a network (hidden=) starts from no text; give one of them")
    if lstm is not None and (hidden is None or lstm < 1):
        raise UsageError(f"prompt: lstm={lstm} with hidden={hidden}; give at least 1 layer, and the width of each way")
    virtual = Virtual(tokens, ids, fill or {})

    def init(key, params, uses):
        path, site = _table(where, params, uses)
        vocabulary, width = site.leaf.shape
        if hidden is not None:
            own = key_for(key, path)
            if lstm is not None:
                return Split(params, {path: _with_lstm(own, tokens, width, hidden, lstm, site.dtype)}, {})
            return Split(params, {path: _network(own, tokens, width, hidden, site.dtype)}, {})
        if text is None:
            chosen = jax.random.randint(key_for(key, path), (tokens,), 0, vocabulary)
        else:
            chosen = jnp.asarray([text[i % len(text)] for i in range(tokens)])
        rows = lookup(site.leaf, chosen, -2)
        rows = jnp.take(materialise(site.leaf), chosen, axis=-2) if rows is NotImplemented else rows
        return Split(params, {path: {"prompt": jnp.array(rows, site.dtype, copy=True)}}, {})

    def wrap(split, fn):
        def dress(params, length):
            ((path, parts),) = split.train.items()
            vectors = vectors_of(parts)
            return replace(params, {path: Prompted(paths(params)[path], vectors, length)})

        return virtual.around(fn, dress)

    return Transform("prompt", init, lambda split, key=None: split.params, wrap=wrap)


def _table(where: Any, params: Any, uses: Any) -> tuple[str, Site]:
    found = sites("prompt", where, params, uses, lookup=True)
    if where is None:
        path = max(found, key=lambda path: found[path].leaf.shape[0])
        found = {path: found[path]}
    if len(found) > 1:
        raise UsageError(f"prompt: {', '.join(found)}: the vectors stand in front of one table's rows; name one")
    ((path, site),) = found.items()
    if len(site.leaf.shape) != 2 or site.in_axes != (-2,):
        raise UsageError(f"prompt: {path} has the shape {site.leaf.shape}; the table is one of [vocabulary, width]")
    return path, site


def _network(key: Any, tokens: int, width: int, hidden: int, dtype: Any) -> dict[str, Any]:
    keys = jax.random.split(key, 4)
    sizes = {"w1": (width, hidden), "w2": (hidden, hidden), "w3": (hidden, width)}
    weights = {
        name: jax.nn.initializers.lecun_normal()(its, size, dtype)
        for its, (name, size) in zip(keys[1:], sizes.items(), strict=True)
    }
    biases = {f"b{i}": jnp.zeros(size, dtype) for i, size in ((1, hidden), (2, hidden), (3, width))}
    return {"z": jax.random.normal(keys[0], (tokens, width), dtype), **weights, **biases}


class PromptEncoder(nn.Module):
    """P-tuning's encoder: z [P, D] -> prompt [P, D], by a bidirectional LSTM and two layers.

    Args:
        width: D.
        hidden: of the LSTM, each way.
        lstm: its layers.
        dtype: of parameters and computation.

    Example:
        >>> encoder, z = PromptEncoder(width=4, hidden=3, lstm=2), jnp.ones((5, 4))
        >>> encoder.init_with_output(jax.random.key(0), z)[0].shape
        (5, 4)

    Reference: Liu et al. 2021, arXiv:2103.10385, section 3.2.
    """

    width: int
    hidden: int
    lstm: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z_PD: jax.Array) -> jax.Array:
        made: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.dtype}
        h: Any = z_PD[None]
        for i in range(self.lstm):
            forth, back = (
                nn.RNN(nn.OptimizedLSTMCell(self.hidden, **made, name=f"{way}_{i}")) for way in ("forth", "back")
            )
            h = nn.Bidirectional(forth, back)(h)
        h = nn.relu(nn.Dense(2 * self.hidden, **made, name="up")(h[0]))
        return nn.Dense(self.width, **made, name="down")(h)


def _with_lstm(key: Any, tokens: int, width: int, hidden: int, lstm: int, dtype: Any) -> dict[str, Any]:
    own, rest = jax.random.split(key)
    z = jax.random.normal(own, (tokens, width), dtype)
    return {"z": z, "encoder": PromptEncoder(width, hidden, lstm, dtype).init(rest, z)["params"]}


def vectors_of(parts: Mapping[str, Any]) -> Any:
    """The prompt [P, D]: what is trained, or what the network makes of it.

    Args:
        parts: ``split.train[path]``.

    Returns:
        the array.
    """
    if "prompt" in parts:
        return parts["prompt"]
    h = parts["z"]
    if "encoder" in parts:
        encoder = parts["encoder"]
        lstm = sum(name.startswith("forth_") for name in encoder)
        network = PromptEncoder(h.shape[-1], len(encoder["down"]["kernel"]) // 2, lstm, h.dtype)
        return network.apply({"params": encoder}, h)
    for i in (1, 2):
        h = jax.nn.relu(h @ parts[f"w{i}"] + parts[f"b{i}"])
    return h @ parts["w3"] + parts["b3"]
