"""Weights that act on a kernel as on a matrix: `Delta` adds to it, `Turned` multiplies it.

A kernel of any number of axes is seen as ``[*stack, I, O]``, its input axes and its output axes each flattened, and a
subclass says what it does to one such matrix::

    Delta    W' = W + D         y = x W + x D          forward(x), backward(x), matrix()
    Turned   W' = R W  (or W S)  y = (x R) W  (or (x W) S)   turn(x, transposed)

Neither forms W'. A model that multiplies by the transpose (a tied head) gets ``backward`` or the transposed turn. Other
uses (a convolution, a look-up, axes half summed and half free) expand the weight in place and keep no copy.

Legend: ... rows, of any number of axes, I inputs, O outputs of one layer. Parts have the stack's axes first, then axes
of their own.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxbig.contraction import Contraction
from jaxbig.weight import Weight, aligned, cast, conv, is_weight, materialise, product, static, wide

Array = Any


class Matrix(Weight):
    """What `Delta` and `Turned` share: parts of their own beside a base, and the base seen as a matrix.

    Attributes:
        base: an array or a Weight.
        in_axes, out_axes: its logical axes, counted from the right; the rest is the stack.
        PRIVATE: name of a part that each layer has its own of -> its number of axes beside the stack's.
        SHARED: name of a part that all layers share -> its number of axes.
    """

    base: Any
    in_axes: tuple[int, ...] = static()
    out_axes: tuple[int, ...] = static()
    PRIVATE: ClassVar[dict[str, int]] = {}
    SHARED: ClassVar[dict[str, int]] = {}

    def axes(self):
        stack, none = self.stack_axes(), (None,)
        own = {name: (*stack, *none * count) for name, count in self.PRIVATE.items()}
        return {"base": aligned(self.base), **own, **{name: none * count for name, count in self.SHARED.items()}}

    def stack_axes(self) -> tuple[int, ...]:
        return tuple(i for i in range(-self.ndim, 0) if i not in self.in_axes + self.out_axes)

    def sizes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in axes)

    def parts(self) -> dict[str, Array]:
        """What this weight holds beside its base."""
        return {name: getattr(self, name) for name in (*self.PRIVATE, *self.SHARED)}

    def per_layer(self, function: Callable[..., Array], dtype: Any, *arrays: Array) -> Array:
        """``function(layer, *arrays)`` for each layer of the stack: `layer` has the parts of one layer, as `dtype`, and
        no base; the arrays have the stack's axes first, and so has the result."""
        layer = self.replace(base=None, **{name: cast(part, dtype) for name, part in self.parts().items()})
        mapped = self.replace(base=None, **dict.fromkeys(self.PRIVATE, 0), **dict.fromkeys(self.SHARED))
        for _ in self.stack_axes():
            function = jax.vmap(function, in_axes=(mapped, *[0] * len(arrays)))
        return function(layer, *arrays)

    def direction(self, c: Contraction) -> tuple[str, str] | None:
        """Labels of the axes that a product sums over and of those that it makes: (inputs, outputs) or, transposed,
        (outputs, inputs); None if it is neither."""
        inner, outer, stack = map(c.labels, self._sides())
        both = set(c.x) & set(c.out)
        if set(c.x) - set(c.w) - both or not set(stack) <= both:
            return None
        for summed, made in ((inner, outer), (outer, inner)):
            if set(summed) <= set(c.x) - set(c.out) and set(made) <= set(c.out) - set(c.x):
                return summed, made
        return None

    def on_rows(self, x: Array, labels: str, side: str, function: Callable[..., Array], c: Contraction, made: str):
        """``function(layer, x [..., *]) -> [..., *]`` where x's axes labelled `side` become those labelled `made`.

        Args:
            x, labels: an activation and the labels of its axes.
            side: labels to flatten into the last axis.
            function: for one layer.
            c: the product, for the labels of the weight's axes.
            made: labels of what the function's last axis is, in the weight's sizes.

        Returns:
            the result and the labels of its axes.
        """
        stack = c.labels(self.stack_axes())
        rest = "".join(label for label in labels if label not in stack + side)
        order = [labels.index(label) for label in stack + rest + side]
        sizes = dict(zip(labels, x.shape, strict=True)) | {c.w[i]: self.shape[i] for i in range(-self.ndim, 0)}
        of = lambda names: [sizes[label] for label in names]  # noqa: E731
        # The other axes stay apart: a mesh may split each of them.
        rows = jnp.transpose(x, order).reshape(*of(stack), *of(rest), math.prod(of(side)))
        y = self.per_layer(function, x.dtype, rows)
        return y.reshape(*of(stack + rest + made)), stack + rest + made

    def _sides(self):
        return self.in_axes, self.out_axes, self.stack_axes()

    def finest(self, dtype: Any) -> Any:
        """The dtype to compute W' in, for a base of this one."""
        parts = [getattr(self, name).dtype for name in self.PRIVATE]
        return jnp.result_type(wide(dtype), *(part for part in parts if jnp.issubdtype(part, jnp.floating)))

    def as_matrix(self, array: Array) -> Array:
        """The logical array as [*stack, I, O]."""
        inner, outer, stack = self._sides()
        moved = jnp.transpose(array, [i + self.ndim for i in (*stack, *inner, *outer)])
        return moved.reshape(*self.sizes(stack), math.prod(self.sizes(inner)), math.prod(self.sizes(outer)))

    def from_matrix(self, matrix: Array) -> Array:
        """The inverse of `as_matrix`."""
        inner, outer, stack = self._sides()
        order = (*stack, *inner, *outer)
        array = matrix.reshape(self.sizes(order))
        return jnp.transpose(array, [order.index(i) for i in range(-self.ndim, 0)])


class Delta(Matrix):
    """``base + D``; a subclass gives `matrix`, and `forward` and `backward` where there is a cheaper way."""

    def matrix(self) -> Array:
        """D [I, O] of one layer."""
        raise TypeError(f"{type(self).__name__} does not say what it adds: define matrix()")

    def forward(self, x: Array) -> Array:
        """x D: [..., I] -> [..., O], of one layer."""
        return x @ self.matrix()

    def backward(self, x: Array) -> Array:
        """x D^T: [..., O] -> [..., I], of one layer."""
        return x @ self.matrix().T

    def added(self, dtype: Any) -> Array:
        """D for all layers, of the logical shape."""
        return self.from_matrix(self.per_layer(lambda layer: layer.matrix(), dtype))

    def materialise(self):
        base = materialise(self.base)
        dtype = self.finest(base.dtype)
        return (base.astype(dtype) + self.added(dtype)).astype(base.dtype)

    def product(self, x, c):
        sides, y = self.direction(c), product(self.base, x, c)
        if sides is None or y is NotImplemented:
            return super().product(x, c)
        way = type(self).forward if sides[0] == c.labels(self.in_axes) else type(self).backward

        def through(x, parts):
            made, labels = self.replace(**parts).on_rows(x, c.x, sides[0], way, c, sides[1])
            return jnp.transpose(made, [labels.index(label) for label in c.out])

        # What is formed on the way (a Hadamard product, an inverse transform) is formed again in the backward pass.
        return y + jax.checkpoint(through)(x, self.parts()).astype(y.dtype)

    def lookup(self, ids, axis):
        if (axis,) != self.in_axes or self.stack_axes():
            return NotImplemented
        rows = lookup(self.base, ids, axis)
        if rows is NotImplemented:
            return rows
        of = lambda parts: jnp.take(self.replace(**parts).added(rows.dtype), ids, axis=axis)  # noqa: E731
        return rows + jax.checkpoint(of)(self.parts())


class Turned(Matrix):
    """``R base`` or, on the outputs' side, ``base S``: a subclass gives `turn`.

    Attributes:
        side: "in": the matrix acts on the inputs; "out": on the outputs.
    """

    side: str = static(default="in")

    def turn(self, x: Array, transposed: bool) -> Array:
        """x R [..., *] of one layer, or x R^T."""
        raise TypeError(f"{type(self).__name__} does not say how it turns: define turn()")

    def materialise(self):
        base = materialise(self.base)
        dtype = self.finest(base.dtype)
        w = self.as_matrix(base.astype(dtype))
        if self.side == "in":  # R W is the transpose of W^T R^T
            turned = self.per_layer(lambda layer, w: layer.turn(w.T, True).T, dtype, w)
        else:
            turned = self.per_layer(lambda layer, w: layer.turn(w, False), dtype, w)
        return self.from_matrix(turned).astype(base.dtype)

    def product(self, x, c):
        sides = self.direction(c)
        if sides is None:
            return super().product(x, c)
        transposed = sides[0] != c.labels(self.in_axes)
        # The activations at the axes it acts on: those the product sums over, or those that it makes.
        before = (self.side == "in") != transposed
        way = lambda layer, x: layer.turn(x, transposed)  # noqa: E731
        if before:
            turned, labels = self.on_rows(x, c.x, sides[0], way, c, sides[0])
            return product(self.base, jnp.transpose(turned, [labels.index(label) for label in c.x]), c)
        y = product(self.base, x, c)
        if y is NotImplemented:
            return y
        turned, labels = self.on_rows(y, c.out, sides[1], way, c, sides[1])
        return jnp.transpose(turned, [labels.index(label) for label in c.out])

    def conv(self, x, c):
        y = conv(self.base, x, c) if self.side == "out" and self.out_axes == (c.w.index("o") - self.ndim,) else None
        if y is None or y is NotImplemented or self.stack_axes():
            return super().conv(x, c)
        channel = c.out.index("o")
        rows = jnp.moveaxis(y, channel, -1)
        turned = self.per_layer(lambda layer, x: layer.turn(x, False), y.dtype, rows.reshape(-1, rows.shape[-1]))
        return jnp.moveaxis(turned.reshape(rows.shape), -1, channel)

    def lookup(self, ids, axis):
        if self.side == "in" or (axis,) != self.in_axes or self.stack_axes():
            return NotImplemented
        rows = lookup(self.base, ids, axis)
        if rows is NotImplemented:
            return rows
        last = jnp.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
        turned = self.per_layer(lambda layer, x: layer.turn(x, False), rows.dtype, last)
        return jnp.moveaxis(turned.reshape(jnp.moveaxis(rows, axis, 0).shape), 0, axis)


class Diagonal(Turned):
    """``diag(gain) base``, or ``base diag(gain)`` on the outputs' side.

    Attributes:
        gain: [*stack, I], or [*stack, O].
    """

    gain: Any = None
    PRIVATE: ClassVar[dict[str, int]] = {"gain": 1}

    def turn(self, x, transposed):
        return x * self.gain


def lookup(leaf: Any, ids: Array, axis: int) -> Any:
    """Rows of an array or a Weight along a logical axis; NotImplemented where the Weight cannot."""
    return leaf.lookup(ids, axis) if is_weight(leaf) else jnp.take(leaf, ids, axis=axis)


def places(key: Array, stack: tuple[int, ...], n: int, count: int) -> Array:
    """`count` distinct numbers below n, at random and in order, int32 [*stack, count].

    Example:
        >>> places(jax.random.key(0), (2,), 3, 3).tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    score = jax.random.uniform(key, (*stack, n))
    return jnp.sort(jax.lax.top_k(score, count)[1].astype(jnp.int32), axis=-1)
