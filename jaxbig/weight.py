"""A `Weight` is an expression that stands for an array of parameters.

Models multiply by weights, look rows up in them and convolve with them. A Weight says how it takes part in each, so a
low-rank update is never added to its base and quantised codes never become a second, dense copy of the model::

    y = x @ W        with  W = base + scale * a @ b        becomes   x @ base + (scale * (x @ a)) @ b

Weights nest (``LowRank(base=Quantized(...), a, b)`` is QLoRA) and are pytrees: jit, grad, vmap, scan and orbax see only
their parts. To write one, subclass `Weight` as a dataclass, and give its `shape`, `dtype`, `axes()` and
`materialise()`; override `product`, `lookup` or `conv` where there is a better way than expanding the weight in place.

Legend: a *part* is an array (or a nested Weight) that a Weight holds. Logical axes are negative numbers, counted from
the right, so that a Weight means the same after a scan has taken its leading (layer) axis away. Labels are letters, as
in `numpy.einsum`.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxbig.contraction import Contraction, Convolution, contract

Array = Any


def static(**kwargs) -> Any:
    """A dataclass field of a Weight that is no array: part of the tree's structure, compared for equality."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


def aligned(part: Any) -> tuple[int, ...]:
    """Axes of a part that lines up with the logical array as NumPy broadcasting does: (-ndim, ..., -1)."""
    return tuple(range(-len(part.shape), 0))


@dataclass_transform(frozen_default=True, field_specifiers=(static,))
class Weight:
    """Base of all weights; see the module's text. Subclasses are frozen dataclasses, made pytrees here."""

    base: Any  # most weights have one: an array or another Weight

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, eq=False)(cls)
        jax.tree_util.register_dataclass(cls)

    # -- what a subclass must say ------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape; by default the base's."""
        return tuple(self.base.shape)

    @property
    def dtype(self):
        """The logical dtype; by default the base's."""
        return self.base.dtype

    def axes(self) -> dict[str, tuple[int | None, ...]]:
        """For each part, the logical axis that each of its axes runs along (None: an axis of its own).

        A part that lacks the leading logical axes is shared by all layers of a stack. A length of 1 broadcasts; a
        length that divides the logical one holds one entry for a block (group-wise scales, packed codes).
        """
        raise TypeError(f"{type(self).__name__} does not say which logical axes its parts run along: define axes()")

    def materialise(self) -> Array:
        """The array this weight stands for."""
        raise TypeError(f"{type(self).__name__} does not say which array it stands for: define materialise()")

    # -- what a subclass may do better -------------------------------------------------------------------------------

    def product(self, x, c: Contraction):
        """``x`` times this weight. By default expands the weight in place, and again for the backward pass: the
        expanded copy is never kept in between. May return NotImplemented: then the weight is materialised, loudly."""
        return recompute(c.equation, x, self)

    def conv(self, x, c: Convolution):
        """``x`` convolved with this weight; as `product`."""
        return recompute(c.equation, x, self)

    def lookup(self, ids, axis: int):
        """Rows `ids` (1-D) along the logical `axis`. By default the parts' rows, expanded: cost in proportion to the
        rows taken. NotImplemented where a part holds blocks along that axis."""
        if self.blocks(axis):
            return NotImplemented
        rows = self.map_axis(axis, lambda part, i: jnp.take(part, ids, axis=i))
        return rows.materialise() if rows.shape[axis] == ids.shape[0] else NotImplemented

    def cast(self, dtype) -> "Weight":
        """The same weight as another floating dtype (mixed precision); by default its floating parts cast."""
        return self.replace(**{name: cast(part, dtype) for name, part, _ in self.placed()})

    def settled(self) -> Any:
        """The same weight with what can never matter (the masked entries of its base) set to zero."""
        base: Any = getattr(self, "base", None)
        return self.replace(base=base.settled()) if is_weight(base) else self

    def kind(self) -> str:
        """A short name for tables, nested kinds in brackets."""
        inner = f"({self.base.kind()})" if is_weight(self.base) else ""
        return type(self).__name__ + inner

    def loses(self) -> str:
        """What of this weight its plain array cannot have, such as dropout of its inputs; "" if nothing."""
        base: Any = getattr(self, "base", None)
        return base.loses() if is_weight(base) else ""

    # -- what follows from axes() ------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def placed(self) -> list[tuple[str, Any, tuple[int | None, ...]]]:
        """(name, part, its logical axes) of each part."""
        return [(name, getattr(self, name), mapping) for name, mapping in self.axes().items()]

    def replace(self, **parts) -> Any:
        """A copy with other parts."""
        return dataclasses.replace(self, **parts)  # type: ignore[type-var]

    def specs(self, base_spec: PartitionSpec) -> "Weight":
        """Partition specs for all parts, given the one that a plain array of this shape would have."""
        entries = tuple(base_spec) + (None,) * (self.ndim - len(base_spec))
        out = {}
        for name, part, mapping in self.placed():
            spec = PartitionSpec(*[
                None if axis is None or size == 1 else entries[axis]
                for axis, size in zip(mapping, part.shape, strict=True)
            ])  # fmt: skip
            out[name] = part.specs(spec) if is_weight(part) else spec
        return self.replace(**out)

    def blocks(self, axis: int) -> bool:
        """Whether some part holds one entry for several positions along the logical `axis`."""
        return any(
            part.shape[mapping.index(axis)] not in (1, self.shape[axis])
            or (is_weight(part) and part.blocks(mapping.index(axis) - len(mapping)))
            for _, part, mapping in self.placed() if axis in mapping
        )  # fmt: skip

    def map_axis(self, axis: int, function: Callable[[Array, int], Array]) -> Any:
        """This weight with ``function(part, its axis)`` applied to each part that runs along the logical `axis`
        (broadcast parts, of length 1 there, stay as they are)."""
        parts = {}
        for name, part, mapping in self.placed():
            if axis not in mapping:
                continue
            i = mapping.index(axis)
            if is_weight(part):
                parts[name] = part.map_axis(i - len(mapping), function)
            elif part.shape[i] != 1 or self.shape[axis] == 1:
                parts[name] = function(part, i)
        return self.replace(**parts)

    def unstack(self) -> tuple[Any, Any]:
        """Splits a stack of weights into (parts with a leading layer axis, parts that all layers share).

        Returns:
            two copies of this weight: in the first the shared parts are None, in the second the stacked ones. A
            broadcast leading axis is dropped, so that the second fits one layer.
        """
        stacked, shared = {}, {}
        for name, part, mapping in self.placed():
            if not mapping or mapping[0] != -self.ndim:
                stacked[name], shared[name] = None, part
            elif is_weight(part):
                stacked[name], shared[name] = part.unstack()
            elif part.shape[0] == 1 != self.shape[0]:
                stacked[name], shared[name] = None, part[0]
            else:
                stacked[name], shared[name] = part, None
        return self.replace(**stacked), self.replace(**shared)


def restack(layer: Any, shared: Any) -> Any:
    """One layer's weight from its slice of the stacked parts and the shared parts: the inverse of `Weight.unstack`."""
    return jax.tree.map(lambda a, b: b if a is None else a, layer, shared, is_leaf=lambda part: part is None)


def is_weight(leaf: Any) -> bool:
    """Whether `leaf` is a Weight."""
    return isinstance(leaf, Weight)


def wide(dtype) -> Any:
    """The dtype to compute in: float32 at least. Floats of one byte and less promote to nothing by themselves."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize == 1 else jnp.promote_types(dtype, jnp.float32)


def materialise(leaf: Any) -> Array:
    """The array that a leaf stands for; an array is itself."""
    return leaf.materialise() if is_weight(leaf) else leaf


def cast(leaf: Any, dtype) -> Any:
    """A leaf as another floating dtype; integer arrays (codes, masks, keys) and None stay as they are."""
    if leaf is None or is_weight(leaf):
        return leaf if leaf is None else leaf.cast(dtype)
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def product(weight: Any, x, c: Contraction):
    """``x`` times a leaf, an array or a Weight."""
    return weight.product(x, c) if is_weight(weight) else c.equation(x, weight)


def conv(weight: Any, x, c: Convolution):
    """``x`` convolved with a leaf, an array or a Weight."""
    return weight.conv(x, c) if is_weight(weight) else c.equation(x, weight)


def recompute(equation: Callable[[Array, Array], Array], x, weight: Weight):
    """``equation(x, weight's array)`` whose backward pass expands the weight again instead of keeping the array."""
    return jax.checkpoint(lambda x, weight: equation(x, weight.materialise()))(x, weight)


def innermost(leaf: Any) -> Any:
    """What lies at the bottom of a nest of weights: an array of parameters, or codes that have no dense base."""
    while is_weight(leaf) and getattr(leaf, "base", None) is not None:
        leaf = leaf.base
    return leaf


def is_moved(leaf: Any) -> bool:
    """Whether what is at the bottom of this Weight is trained by a link that left an empty base behind."""
    bottom = innermost(leaf)
    return is_weight(bottom) and hasattr(bottom, "base")


def rebase(leaf: Any, function: Callable[[Any], Any]) -> Any:
    """`leaf` with the dense array at the bottom of its nest replaced by ``function(array)``."""
    if is_weight(leaf) and hasattr(leaf, "base"):
        return leaf.replace(base=rebase(leaf.base, function))
    return function(leaf)


class Dense(Weight):
    """A plain array as a Weight; lifting with it changes nothing. `usage` and `calibrate` watch arrays through it."""

    base: Any

    def axes(self):
        return {"base": aligned(self.base)}

    def materialise(self):
        return self.base

    def product(self, x, c):
        return c.equation(x, self.base)

    def conv(self, x, c):
        return c.equation(x, self.base)


class Scaled(Weight):
    """``scale * base`` for a scalar `scale`, applied to the smaller side of a product: the activation's result."""

    base: Any
    scale: Any

    def axes(self):
        return {"base": aligned(self.base), "scale": ()}

    def materialise(self):
        return (materialise(self.base) * self.scale).astype(self.dtype)

    def product(self, x, c):
        y = product(self.base, x, c)
        return y if y is NotImplemented else (y * self.scale).astype(y.dtype)

    def conv(self, x, c):
        y = conv(self.base, x, c)
        return y if y is NotImplemented else (y * self.scale).astype(y.dtype)


class Concat(Weight):
    """Several leaves joined along one logical axis, as flax's LSTM joins its gates' kernels before multiplying."""

    leaves: tuple[Any, ...]
    axis: int = static()

    def axes(self):
        return {}  # the leaves are cut at different places: no axis can be mapped over all of them

    @property
    def shape(self):
        first = list(self.leaves[0].shape)
        first[self.axis] = sum(leaf.shape[self.axis] for leaf in self.leaves)
        return tuple(first)

    @property
    def dtype(self):
        return self.leaves[0].dtype

    def kind(self):
        return f"Concat({', '.join(leaf.kind() if is_weight(leaf) else 'array' for leaf in self.leaves)})"

    def cast(self, dtype):
        return self.replace(leaves=tuple(cast(leaf, dtype) for leaf in self.leaves))

    def loses(self):
        return " and ".join(dict.fromkeys(filter(None, [leaf.loses() for leaf in self.leaves if is_weight(leaf)])))

    def materialise(self):
        return jnp.concatenate([materialise(leaf) for leaf in self.leaves], axis=self.axis)

    def conv(self, x, c):
        return NotImplemented

    def blocks(self, axis):
        return True  # as above: a slice of rows, columns or layers is no slice of each leaf

    def pieces(self, x, c: Contraction | None) -> list[Any]:
        """What of `x` meets each leaf: all of it, or its share where the joined axis is contracted."""
        if c is None or c.w[self.axis] not in c.x:
            return [x] * len(self.leaves)
        ends = list(itertools.accumulate(leaf.shape[self.axis] for leaf in self.leaves))
        axis = c.x.index(c.w[self.axis])
        return [lax.slice_in_dim(x, start, end, axis=axis) for start, end in zip([0, *ends], ends, strict=False)]

    def product(self, x, c):
        label = c.w[self.axis]
        plain = dataclasses.replace(c, equation=lambda x, w: contract(x, c.x, w, c.w, c.out, c.precision, c.preferred))
        results = [product(leaf, piece, plain) for leaf, piece in zip(self.leaves, self.pieces(x, c), strict=True)]
        if any(result is NotImplemented for result in results):
            return NotImplemented
        if label in c.out:
            return jnp.concatenate(results, axis=c.out.index(label))
        return sum(results[1:], results[0])
