"""Prefix tuning: keys and values in front of those of the text, in every layer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UsageError
from jaxbig.site import sites
from jaxbig.transform import Split, Transform, key_for, technique
from jaxbig.tree import paths, replace
from jaxbig.virtual import Virtual
from jaxbig.weight import Weight, aligned, product, static

KEYS_AND_VALUES = ".*(key|value|k_proj|v_proj|qkv|c_attn|query_key_value)/(kernel|embedding)"


class Prefixed(Weight):
    """A kernel whose product is the prefix at the first positions of each sequence, and x W behind them.

    Attributes:
        base: an array or a Weight; prefix: ``[*stack, P, *out]``.
        in_axes, out_axes: logical axes, counted from the right. length: P + T, positions of a sequence.
    """

    base: Any
    prefix: Any
    in_axes: tuple[int, ...] = static()
    out_axes: tuple[int, ...] = static()
    length: int = static()

    def axes(self):
        stack = tuple(i for i in range(-self.ndim, 0) if i not in self.in_axes + self.out_axes)
        return {"base": aligned(self.base), "prefix": (*stack, None, *self.out_axes)}

    def materialise(self):
        raise UsageError(
            "prefix: the model does with a kernel of keys or values what is no product of activations with it; name "
            "those of its attention with where="
        )

    def product(self, x, c):
        y = product(self.base, x, c)
        if y is NotImplemented:
            return y
        rows = [label for label in c.x if label in c.out and label not in c.w]
        if not rows or x.shape[c.x.index(rows[-1])] != self.length:
            raise UsageError(
                f"prefix: a kernel of keys or values is multiplied by activations of the shape {x.shape}; their last "
                f"axis before the features has to be that of the {self.length} positions"
            )
        its = c.labels(self.axes()["prefix"], rows[-1])
        order = sorted(range(len(its)), key=lambda i: c.out.index(its[i]))
        prefix, axis = jnp.transpose(self.prefix.astype(y.dtype), order), c.out.index(rows[-1])
        count = self.prefix.shape[its.index(rows[-1])]
        sizes = [count if label == rows[-1] else n for label, n in zip(c.out, y.shape, strict=True)]
        placed = prefix.reshape([n if label in its else 1 for label, n in zip(c.out, sizes, strict=True)])
        rest = jax.lax.slice_in_dim(y, count, None, axis=axis)
        return jnp.concatenate([jnp.broadcast_to(placed, sizes), rest], axis=axis)


@technique
def prefix(
    tokens: int = 20,
    where: Any = KEYS_AND_VALUES,
    hidden: int | None = None,
    ids: str | None = None,
    fill: Mapping[str, float] | None = None,
):
    """Trains P keys and values in front of those of the text, in every layer: ``k = [prefix_k; x W_k]``, v alike.

    With `hidden` they are the outputs of a network with one hidden layer that all kernels share:
    ``prefix_l = tanh(Z W + b) W_l + b_l``.

    Args:
        tokens: P, the number of virtual tokens.
        where: the kernels that make keys and values; one that makes queries along with them (GPT-2's) will do.
        hidden: width of the hidden layer; None: the prefixes themselves are trained.
        ids, fill: which argument has the ids, and what stands in arrays beside them, see `jaxbig.virtual.Virtual`; a
            mask of positions has to let the virtual ones be attended to.

    Returns:
        a Transform. ``train[path] = {"prefix": [*stack, P, *out]}``; with `hidden` ``{"w": [*stack, hidden, *out],
        "b": [*stack, *out]}`` and ``train["shared"] = {"z": [P, hidden], "w", "b"}``. `apply` leaves the tree as it is;
        `wrap` puts the prefixes in.

    Raises:
        UsageError: `where` matches nothing, or a kernel is not multiplied by one activation a position.

    Init: normal with standard deviation 0.02; with `hidden` Z normal, weights LeCun normal, biases zero.

    Cost: P (d_k + d_v) parameters a layer, and P more positions in every product: the virtual positions pass through
    the model, where a cache of keys and values would spare them; what they come to is dropped.

    Example:
        >>> from jaxbig.usage import usage
        >>> params = {"table": jnp.eye(2), "value": {"kernel": jnp.eye(2)}}
        >>> fn = lambda p, ids: jnp.cumsum(p["table"][ids] @ p["value"]["kernel"], axis=1)
        >>> x = jnp.array([[0, 1]])
        >>> split = prefix(1).init(jax.random.key(0), params, usage(fn, params, x))
        >>> split.train["value/kernel"]["prefix"] = jnp.array([[5.0, 7.0]])
        >>> prefix(1).wrap(split, fn)(params, x)[0].tolist()
        [[6.0, 7.0], [6.0, 8.0]]

    Reference: Li and Liang 2021, arXiv:2101.00190. Deviations: a prefix stands in the place of x W, so that the layer's
    bias and what it does to its keys (rotary positions, norms) come on top, where a prefix in a cache is free of them:
    the same family of functions, but for rotary positions; `hidden` is narrower than the paper's 512 unless given.
    """
    if not isinstance(tokens, int | np.integer) or tokens < 1:
        raise UsageError(f"prefix: tokens={tokens!r}; it is a whole number of at least 1")
    virtual = Virtual(tokens, ids, fill or {})

    def init(key, params, uses):
        train, state = {}, {}
        for path, site in sites("prefix", where, params, uses).items():
            mine, out = key_for(key, path), (*site.stack, tokens, *site.outputs)
            if hidden is None:
                train[path] = {"prefix": 0.02 * jax.random.normal(mine, out, site.dtype)}
            else:
                size = (*site.stack, hidden, *site.outputs)
                scale = jnp.asarray(1 / np.sqrt(hidden), site.dtype)
                train[path] = {
                    "w": scale * jax.random.normal(mine, size, site.dtype),
                    "b": jnp.zeros((*site.stack, *site.outputs), site.dtype),
                }
            state[path] = Prefixed(None, None, site.in_axes, site.out_axes, 0)
        if hidden is not None:
            first, second = jax.random.split(key_for(key, "shared"))
            normal = jax.random.normal(second, (hidden, hidden)) / np.sqrt(hidden)
            train["shared"] = {"z": jax.random.normal(first, (tokens, hidden)), "w": normal, "b": jnp.zeros(hidden)}
        return Split(params, train, state)

    def wrap(split, fn):
        def dress(params, length):
            leaves = paths(params)
            return replace(params, {
                path: of.replace(base=leaves[path], prefix=prefix_of(of, split.train, path), length=length)
                for path, of in split.state.items()
            })  # fmt: skip

        return virtual.around(fn, dress)

    return Transform("prefix", init, lambda split, key=None: split.params, wrap=wrap)


def prefix_of(of: Prefixed, train: Mapping[str, Any], path: str) -> Any:
    """The prefix of a kernel, [*stack, P, *out]: what is trained, or what the network makes of it.

    Args:
        of: ``split.state[path]``; train: ``split.train``; path: of the kernel.

    Returns:
        the array.
    """
    parts = train[path]
    if "prefix" in parts:
        return parts["prefix"]
    shared, outputs = train["shared"], len(of.out_axes)
    h = jnp.tanh(shared["z"] @ shared["w"] + shared["b"]).astype(parts["w"].dtype)  # [P, hidden]
    axis = parts["w"].ndim - outputs - 1
    made = jnp.moveaxis(jnp.tensordot(h, parts["w"], axes=(1, axis)), 0, axis)
    return made + jnp.expand_dims(parts["b"], axis)
