"""LoRA: low-rank adaptation of every kind of weight."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.contraction import contract
from jaxbig.errors import UsageError
from jaxbig.transform import Split, Transform, key_for, selected, technique
from jaxbig.tree import paths, replace
from jaxbig.weight import Weight, aligned, conv, materialise, product, static, wide


class LowRank(Weight):
    """``base + scale * a @ b``, with `a` over the input axes and `b` over the output axes.

    Attributes:
        base: an array or a Weight.
        a: ``[*stack, *in, rank]``; b: ``[*stack, rank, *out]``; scale: a scalar.
        key: None, or the dropout keys of training, ``[*stack]``; rate: the dropout probability, a scalar.
        in_axes, out_axes: logical axes, counted from the right; the rest is the stack of layers (or heads, experts).
        only: "all" uses are adapted, or "lookup" alone.
    """

    base: Any
    a: Any
    b: Any
    scale: Any
    key: Any
    rate: Any
    in_axes: tuple[int, ...] = static()
    out_axes: tuple[int, ...] = static()
    only: str = static(default="all")

    def axes(self):
        stack = tuple(i for i in range(-self.ndim, 0) if i not in self.in_axes + self.out_axes)
        mapping: dict[str, tuple[int | None, ...]] = {
            "base": aligned(self.base),
            "a": (*stack, *self.in_axes, None),
            "b": (*stack, None, *self.out_axes),
            "scale": (),
        }
        return mapping if self.key is None else {**mapping, "key": stack, "rate": ()}

    def kind(self):
        return super().kind() if self.a is None else f"{super().kind()} r={self.a.shape[-1]}"

    def loses(self):
        return super().loses() if self.key is None else "its dropout"

    def materialise(self):
        if self.only != "all":
            raise UsageError(
                "LowRank(only='lookup') stands for two different arrays: it cannot be merged into one leaf"
            )
        base = materialise(self.base)
        letters = "abcdefghijklmnopqrstuvwxy"[: self.ndim]
        mapping = self.axes()
        a, b = ("".join("z" if i is None else letters[i] for i in mapping[name]) for name in ("a", "b"))
        dtype = self.a.dtype if base.dtype.itemsize == 1 else jnp.promote_types(base.dtype, self.a.dtype)
        delta = contract(self.a.astype(dtype) * self.scale.astype(dtype), a, self.b.astype(dtype), b, letters)
        return (base.astype(dtype) + delta).astype(base.dtype)

    def _dropped(self, x):
        if self.key is None:
            return x
        keep = jax.random.bernoulli(self.key.reshape(-1)[0], 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate).astype(x.dtype), jnp.zeros_like(x))

    def product(self, x, c):
        y = product(self.base, x, c)
        if y is NotImplemented or self.only != "all":
            return y
        mapping, rank = self.axes(), c.fresh()
        first = (self.a.astype(x.dtype), c.labels(mapping["a"], rank))
        second = (self._up().astype(x.dtype), c.labels(mapping["b"], rank))
        return y + c.chain(self._dropped(x), first, second).astype(y.dtype)

    def conv(self, x, c):
        channels = tuple(i - self.ndim for i, label in enumerate(c.w) if label == "o")
        if c.groups != 1 or self.out_axes != channels or len(self.in_axes) + 1 != self.ndim:
            return NotImplemented
        y = conv(self.base, x, c)
        if y is NotImplemented:
            return y
        down = jnp.moveaxis(self.a, -1, self.out_axes[0])
        rank = "z"
        h = c.equation(self._dropped(x), down.astype(x.dtype))
        up = contract(h, c.out.replace("o", rank), self._up().astype(h.dtype), rank + "o", c.out)
        return y + up.astype(y.dtype)

    def lookup(self, ids, axis):
        return Weight.lookup(self.replace(only="all"), ids, axis)

    def _up(self):
        return self.b * self.scale.astype(self.b.dtype)


@technique
def lora(rank: int = 8, alpha: float | None = None, where: Any = None, dropout: float = 0.0, uses: str = "all"):
    """Trains a low-rank update of each selected weight: ``W' = W + (alpha / rank) * A @ B``.

    Args:
        rank: the rank r.
        alpha: the numerator of the scale; None: alpha = rank, a scale of 1.
        where: the weights; None: every product and every ungrouped convolution except the model's head and look-up
            tables, as `jaxbig.usage.usage` finds them.
        dropout: probability of dropping an input of A in training (only when `apply` is given a key).
        uses: "all": a tied table is adapted in its look-up and in its product; "lookup": in its look-up alone, which
            is what PEFT does; `where` None then means every table that is looked up.

    Returns:
        a Transform. ``train[path] = {"a": [*stack, *in, r], "b": [*stack, r, *out]}``, float32 (float64 over a float64
        base). `apply` gives a `LowRank` weight in the place of each selected leaf, array or Weight.

    Raises:
        UsageError: a selected leaf is neither multiplied nor looked up, or trained whole by an earlier link.

    Init: A uniform in ``+-1/sqrt(fan_in)``, B zero (for look-up tables A zero, B normal): the model is unchanged, bit
    for bit (one that multiplies its own weights by a number: to rounding), up to the sign of zeros: -0.0 + 0.0 is 0.0.

    Cost: ``r * (in + out)`` parameters a layer; forward ``2 r (in + out)`` FLOPs a row; nothing of the size of W is
    ever formed.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: jnp.tanh(x @ p["w"]), params, x)
        >>> split = lora(rank=2, where="w").init(jax.random.key(0), params, uses)
        >>> jax.tree.map(jnp.shape, split.train)
        {'w': {'a': (4, 2), 'b': (2, 3)}}

    Reference: Hu et al. 2021, arXiv:2106.09685. Deviations: A's init is PEFT's (the paper says Gaussian); kernels with
    several input or output axes and convolutions are factored between all inputs and all outputs; dropout draws one
    mask for each leaf, layer and call of `apply`, so that all uses of a shared weight in a step (a cell's time
    steps, both ends of a tied table) drop alike, where PEFT draws anew; look-ups drop nothing. Where a weight has to be
    expanded to a plain array (grouped convolutions) there is no input to drop: the update is whole, and the warning of
    the expansion says so.
    """
    if uses not in ("all", "lookup"):
        raise UsageError(f"lora: uses={uses!r}; it is 'all' or 'lookup'")
    if not isinstance(rank, int | np.integer) or rank < 1:
        raise UsageError(f"lora: rank={rank!r}; it is a whole number of at least 1")
    if isinstance(dropout, float | int) and not 0 <= dropout < 1:
        raise UsageError(f"lora: dropout={dropout}; it lies in [0, 1)")

    def init(key, params, known):
        train, state = {}, {}
        for path, leaf in selected(
            where, params, lambda path, leaf: _by_default(known.get(path, ()), uses), known
        ).items():
            use = _orientation(path, known)
            if uses == "lookup" and use.kind != "lookup":
                raise UsageError(f"lora: {path} is never looked up; with uses='lookup' nothing would be trained there")
            train[path] = _factors(key_for(key, path), leaf, use, rank)
            state[path] = LowRank(None, None, None, None, None, None, use.in_axes, use.out_axes, uses)
        return Split(params, train, state)

    def apply(split, key=None):
        scale, rate = 1.0 if alpha is None else alpha / rank, None if key is None else jnp.asarray(dropout)

        def adapted(path, leaf):
            low = split.state[path].replace(base=leaf, **split.train[path])
            keys = None if key is None else _stacked_keys(key_for(key, path), low)
            return low.replace(scale=jnp.asarray(scale, low.a.dtype), key=keys, rate=rate)

        bases = paths(split.params)  # a later link that trains the base puts it under the update in its own turn
        return replace(split.params, {path: adapted(path, bases.get(path)) for path in split.train})

    return Transform("lora", init, apply if _may_drop(dropout) else lambda split, key=None: apply(split))


def _may_drop(dropout: Any) -> bool:
    return not isinstance(dropout, float | int) or dropout > 0


def _by_default(uses: tuple, adapted: str) -> bool:
    if adapted == "lookup":
        return any(use.kind == "lookup" for use in uses)
    multiplied = any(use.kind in ("product", "conv") and use.groups == 1 for use in uses)
    return multiplied and not any(use.kind == "lookup" or use.head for use in uses)


def _orientation(path: str, known: Any):
    """The use that says which axes are inputs: the look-up of a table, else the first product."""
    uses = [use for use in known.get(path, ()) if use.kind in ("lookup", "product", "conv")]
    if not uses:
        raise UsageError(
            f"lora: {path} is neither multiplied nor looked up by the model; choose other leaves with where="
        )
    return min(uses, key=lambda use: use.kind != "lookup")


def _factors(key, leaf, use, rank: int) -> dict[str, jax.Array]:
    n, shape = len(leaf.shape), tuple(leaf.shape)
    stack = tuple(shape[i] for i in range(-n, 0) if i not in use.in_axes + use.out_axes)
    inner, outer = tuple(shape[i] for i in use.in_axes), tuple(shape[i] for i in use.out_axes)
    dtype = wide(leaf.dtype)
    if use.kind == "lookup":
        a = jnp.zeros((*stack, *inner, rank), dtype)
        return {"a": a, "b": jax.random.normal(key, (*stack, rank, *outer), dtype)}
    bound = 1 / math.sqrt(math.prod(inner))
    a = jax.random.uniform(key, (*stack, *inner, rank), dtype, -bound, bound)
    return {"a": a, "b": jnp.zeros((*stack, rank, *outer), dtype)}


def _stacked_keys(key, low: LowRank):
    """A dropout key per layer of a stack."""
    stack = low.a.shape[: low.a.ndim - len(low.in_axes) - 1]
    return jax.random.split(key, stack) if stack else key
