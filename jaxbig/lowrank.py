"""A weight plus the product of two thin matrices, which is never formed; and what its techniques share."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.contraction import contract
from jaxbig.errors import UsageError
from jaxbig.site import Site
from jaxbig.tree import first_match
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
        dtype = wide(self.b.dtype)  # a scale of 2/3 would cost a half's last bits
        return self.b.astype(dtype) * self.scale.astype(dtype)


def factors(key, site: Site, rank: int) -> dict[str, jax.Array]:
    """A uniform in +-1/sqrt(I), B zero; for a look-up A zero, B normal."""
    down, up = (*site.stack, *site.inputs, rank), (*site.stack, rank, *site.outputs)
    if site.use.kind == "lookup":
        return {"a": jnp.zeros(down, site.dtype), "b": jax.random.normal(key, up, site.dtype)}
    bound = 1 / math.sqrt(site.matrix[0])
    return {"a": jax.random.uniform(key, down, site.dtype, -bound, bound), "b": jnp.zeros(up, site.dtype)}


def by_path(name: str, what: str, value: Any, found: Iterable[str]) -> dict[str, Any]:
    """A number for each path: the same for all, or that of the first pattern which matches.

    Args:
        name: of the technique; what: of the number. Both are for errors.
        value: a number (or None), or a mapping where -> number.
        found: the paths that the technique adapts.

    Returns:
        path -> number.

    Raises:
        UsageError: a pattern that matches nothing, or a path that no pattern matches.

    Example:
        >>> by_path("lora", "rank", {"head/.*": 2, ".*": 8}, ["body/kernel", "head/kernel"])
        {'body/kernel': 8, 'head/kernel': 2}
    """
    found = list(found)
    if not isinstance(value, Mapping):
        return dict.fromkeys(found, value)
    numbers = first_match(list(value.items()), found)
    rest = [path for path, number in numbers.items() if number is None]
    if rest:
        raise UsageError(f"{name}: no pattern of {what}={dict(value)} matches {rest[0]}; let the last be '.*'")
    return numbers


def check_rank(name: str, rank: Any) -> None:
    """Raises a UsageError if a rank, or one of a mapping's, is no whole number of at least 1."""
    for one in rank.values() if isinstance(rank, Mapping) else [rank]:
        if not isinstance(one, int | np.integer) or one < 1:
            raise UsageError(f"{name}: rank={one!r}; it is a whole number of at least 1")


def scale_of(rank: int, alpha: Any, stabilised: bool = False) -> Any:
    """``alpha / rank``, or ``alpha / sqrt(rank)`` where it is to be rank-stabilised; alpha None: alpha = rank.

    Example:
        >>> scale_of(4, None), scale_of(4, 2.0), scale_of(4, 2.0, stabilised=True)
        (1.0, 0.5, 1.0)
    """
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if stabilised else rank)
