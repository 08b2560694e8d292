"""Quantisation of weights to 8 or 4 bits: codes, scales, and products that never keep an expanded copy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbig.errors import UsageError, UserError
from jaxbig.transform import Split, Transform, selected, technique
from jaxbig.tree import replace
from jaxbig.weight import Weight, aligned, innermost, is_weight, rebase, recompute, static, wide

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip  # the 16 levels of arXiv:2305.14314, appendix E
BITS = {"int8": 8, "int4": 4, "nf4": 4}


class Quantized(Weight):
    """``scale * (codes - zero)``, or ``scale * level[codes]`` for nf4.

    Attributes:
        codes: integers of the logical shape (int8, or uint8 if asymmetric or nf4); 4-bit codes lie two to a byte
            along `packed`, the first in the low bits.
        scale: float32, of the logical rank; 1 along an axis broadcasts, a divisor of its length means groups.
        zero: None (symmetric), or the zero points, uint8 of the scale's shape.
        format: int8, int4, nf4. packed: the packed axis, or None. to: the logical dtype.
    """

    codes: Any
    scale: Any
    zero: Any
    format: str = static()
    packed: int | None = static()
    to: Any = static()

    @property
    def shape(self):
        shape = list(self.codes.shape)
        if self.packed is not None:
            shape[self.packed] *= 2
        return tuple(shape)

    @property
    def dtype(self):
        return jnp.dtype(self.to)

    def axes(self):
        parts = {"codes": aligned(self.codes), "scale": aligned(self.scale)}
        return parts if self.zero is None else {**parts, "zero": aligned(self.zero)}

    def blocks(self, axis):
        return axis == self.packed or super().blocks(axis)

    def kind(self):
        groups = [n // s for n, s in zip(self.shape, self.scale.shape, strict=True) if 1 < s < n]
        return f"Quantized {self.format}" + "".join(f" g{size}" for size in groups)

    def cast(self, dtype):
        return self.replace(to=jnp.dtype(dtype).name)

    def integers(self):
        """The codes, unpacked, of the logical shape."""
        if self.packed is None:
            return self.codes
        return unpack(self.codes, self.packed, signed=self.format == "int4" and self.zero is None)

    def materialise(self):
        codes, dtype = self.integers(), wide(self.to)
        if self.format == "nf4":
            values = jnp.asarray(NF4, dtype)[codes]
        else:
            values = codes.astype(dtype)
            if self.zero is not None:
                values = by_group(values, self.zero.astype(dtype), jnp.subtract)
        return by_group(values, self.scale.astype(dtype), jnp.multiply).astype(self.to)

    def product(self, x, c):
        summed = [i for i in range(-self.ndim, 0) if c.w[i] not in c.out]
        free = [i for i in range(-self.ndim, 0) if i not in summed]
        plain = self.format != "nf4" and self.zero is None
        after = all(self.scale.shape[i] == 1 for i in summed) and all(
            self.scale.shape[i] in (1, self.shape[i]) for i in free
        )
        if not (plain and after) or x.dtype == jnp.float16:  # sums of codes leave float16's range
            return recompute(c.equation, x, self)
        y = jax.checkpoint(lambda x, weight: c.equation(x, weight.integers().astype(x.dtype)))(x, self)
        scale = self.scale.reshape([self.scale.shape[i] for i in free])
        order = sorted(range(len(free)), key=lambda k: c.out.index(c.w[free[k]]))
        sizes = {c.w[free[k]]: scale.shape[k] for k in order}
        return y * scale.transpose(order).reshape([sizes.get(label, 1) for label in c.out]).astype(y.dtype)


def by_group(values, parameter, operation):
    """``operation(values, parameter)`` where the parameter has 1 or a divisor of values' length along each axis.

    Example:
        >>> by_group(jnp.ones((4, 1)), jnp.array([[2.0], [3.0]]), jnp.multiply)[:, 0].tolist()
        [2.0, 2.0, 3.0, 3.0]
    """
    split, theirs = [], []
    for n, groups in zip(values.shape, parameter.shape, strict=True):
        split += [groups, n // groups]
        theirs += [groups, 1]
    return operation(values.reshape(split), parameter.reshape(theirs)).reshape(values.shape)


def pack(codes, axis: int):
    """Two 4-bit codes to a byte along `axis` (of even length), the first in the low bits.

    Example:
        >>> pack(jnp.array([1, 2, 15, 0], jnp.uint8), -1).tolist()
        [33, 15]
    """
    nibbles = jnp.moveaxis(codes.astype(jnp.uint8) & 0xF, axis, -1)
    return jnp.moveaxis(nibbles[..., 0::2] | (nibbles[..., 1::2] << 4), -1, axis)


def unpack(packed, axis: int, signed: bool):
    """The inverse of `pack`; `signed` reads the codes as two's complement.

    Example:
        >>> unpack(jnp.array([33, 15], jnp.uint8), -1, signed=True).tolist()
        [1, 2, -1, 0]
    """
    axis = axis % packed.ndim
    pairs = jnp.stack([packed & 0xF, packed >> 4], axis=axis + 1)
    codes = pairs.reshape(*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])
    return ((codes.astype(jnp.int8) ^ 8) - 8) if signed else codes


def encode(
    array,
    format: str,  # noqa: A002
    symmetric: bool,
    shape: tuple[int, ...],
    packed: int | None,
) -> Quantized:
    """Quantises an array, one scale for each block of it.

    Args:
        array: floating, any shape.
        format: int8, int4, nf4; symmetric: see `quantize`.
        shape: the scales' shape; each entry divides the array's.
        packed: the axis to pack 4-bit codes along, or None.
    """
    values = array.astype(wide(array.dtype))
    split, every = [], []
    for n, groups in zip(array.shape, shape, strict=True):
        split += [groups, n // groups]
        every.append(len(split) - 1)
    blocks, zero = values.reshape(split), None
    if format == "nf4" or symmetric:
        top = 1.0 if format == "nf4" else 2 ** (BITS[format] - 1) - 1
        scale = jnp.abs(blocks).max(tuple(every), keepdims=True) / top
    else:
        low, high = (
            jnp.minimum(blocks.min(tuple(every), keepdims=True), 0),
            jnp.maximum(blocks.max(tuple(every), keepdims=True), 0),
        )
        scale, top = (high - low) / (2 ** BITS[format] - 1), 2 ** BITS[format] - 1
        zero = low
    scale = jnp.where(scale == 0, 1.0, scale)
    if format == "nf4":
        levels = np.asarray(NF4)
        codes = jnp.searchsorted(jnp.asarray((levels[1:] + levels[:-1]) / 2, values.dtype), blocks / scale).astype(
            jnp.uint8
        )
    elif zero is None:
        codes = jnp.clip(jnp.round(blocks / scale), -top, top).astype(jnp.int8)
    else:
        zero = jnp.clip(jnp.round(-zero / scale), 0, top)
        codes = jnp.clip(jnp.round(blocks / scale) + zero, 0, top).astype(jnp.uint8)
        zero = zero.reshape(shape).astype(jnp.uint8)
    codes = codes.reshape(array.shape)
    codes = codes if packed is None else pack(codes, packed)
    return Quantized(codes, scale.reshape(shape).astype(jnp.float32), zero, format, packed, array.dtype.name)


@technique
def quantize(
    format: str = "int8",  # noqa: A002  (what the field calls it)
    symmetric: bool = True,
    per: str | None = None,
    group: int = 64,
    where: Any = None,
) -> Transform:
    """Holds weights as 8- or 4-bit codes: ``W ~ scale * codes``.

    Args:
        format: "int8"; "int4", two codes to a byte; "nf4", the 4-bit levels that are equally likely under a normal
            distribution, two to a byte.
        symmetric: codes around zero, ``[-127, 127]`` or ``[-7, 7]``; else the block's range, widened to hold 0, maps
            to ``[0, 255]`` or ``[0, 15]`` by ``scale * (codes - zero)``. nf4 is symmetric.
        per: what shares a scale: "tensor" (one for each layer), "channel" (one for each output channel; for a look-up
            table each row), "group" (runs along the longest input axis). None: channel for int8, group for the others.
        group: the longest run; an axis uses its largest divisor up to that, or one run where that is under a quarter of
            it; runs of under a quarter of `group` go over the other input axes too (3x3 kernels of one channel).
        where: the weights; None: every product and convolution, tables that are only looked up excepted.

    Returns:
        a Transform that trains nothing: the selected leaves of `params` become `Quantized`. A leaf that is a Weight
        already (pruned, say) is quantised at its base.

    Raises:
        UsageError: an unknown format or `per`, nf4 asked to be asymmetric, a group that is no whole number, or a leaf
            that is quantised already.
        UserError: a leaf holds NaN or infinity, which would spread over its block. Only `init` on concrete arrays can
            see that; under jit the block's scale, and all of the block, is what they make of it.

    Error: at most half a step, ``scale / 2`` (int8 per channel: absmax / 254), nf4 at most 0.152 absmax. Cost: a
    product expands the codes of one weight, and again in the backward pass; 1 or 1/2 byte a parameter, and a float32
    a block. Axes of odd length only are not packed: one code a byte.

    Example:
        >>> w = {"w": jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)}
        >>> split = quantize("int8", per="tensor", where="w").init(None, w, {})
        >>> split.params["w"].codes.dtype, split.params["w"].scale.shape
        (dtype('int8'), (1, 1))

    Reference: Dettmers et al. 2023 (QLoRA, nf4), arXiv:2305.14314; Jacob et al. 2018 (affine), arXiv:1712.05877.
    Deviations: nf4's blocks run along the input axis, not over the flattened tensor; its scales are not quantised
    again.
    """
    if format not in BITS:
        raise UsageError(f"quantize: format={format!r}; it is one of {', '.join(BITS)}")
    if per not in (None, "tensor", "channel", "group"):
        raise UsageError(f"quantize: per={per!r}; it is 'tensor', 'channel' or 'group'")
    if format == "nf4" and not symmetric:
        raise UsageError("quantize: nf4 has no asymmetric form; use int4 with symmetric=False")
    if not isinstance(group, int | np.integer) or group < 1:
        raise UsageError(f"quantize: group={group!r}; it is a whole number of at least 1")
    blocks = per or ("channel" if format == "int8" else "group")

    def init(key, params, uses):
        codes = {}
        chosen = selected(
            where, params, lambda path, leaf: any(u.kind in ("product", "conv") for u in uses.get(path, ())), uses
        )
        for path, leaf in chosen.items():
            if not _dense(path, leaf):
                raise UsageError(f"quantize: {path} is no array of floating numbers; choose other leaves with where=")
            use = next((u for u in uses.get(path, ()) if u.kind in ("lookup", "product", "conv")), None)
            shape = _scales_shape(leaf.shape, use, blocks, group)
            packed = _packed_axis(leaf.shape, use) if BITS[format] == 4 else None
            leaf = leaf.settled() if is_weight(leaf) else leaf
            finite = jnp.isfinite(innermost(leaf)).all()
            if not isinstance(finite, Tracer) and not bool(finite):
                raise UserError(f"quantize: {path} holds NaN or infinity; mend it, or exclude it with where=")
            codes[path] = rebase(leaf, lambda array: encode(array, format, symmetric, shape, packed))  # noqa: B023
        return Split(replace(params, codes), {}, {})

    return Transform("quantize", init, lambda split, key=None: split.params)


def _dense(path: str, leaf: Any) -> bool:
    if not leaf.shape:
        raise UsageError(
            f"quantize: {path} is a scalar, which has nothing to share a scale with; exclude it with where="
        )
    bottom = innermost(leaf)
    if isinstance(bottom, Quantized):
        raise UsageError(f"quantize: {path} is quantised already ({bottom.kind()}); quantise once, or merge() it first")
    return not is_weight(bottom) and jnp.issubdtype(bottom.dtype, jnp.floating)


def _axes(shape, use) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output axes; of a leaf whose use is unknown: all but the last, and the last."""
    if use is None:
        return tuple(range(-len(shape), -1)), (-1,)
    return use.in_axes, use.out_axes


def _scales_shape(shape, use, per: str, group: int) -> tuple[int, ...]:
    inner, outer = _axes(shape, use)
    if use is not None and use.kind == "lookup":
        inner, outer = outer, inner
    sizes = list(shape)
    if per == "group":
        axis = max(inner or (-1,), key=lambda i: (shape[i], i))
        size = max(d for d in range(1, min(group, shape[axis]) + 1) if shape[axis] % d == 0)
        size = size if 4 * size >= min(group, shape[axis]) else shape[axis]  # a prime length: one run
        for other in inner if 4 * size < group else ():  # short runs go over the other input axes too
            sizes[other] = 1
        sizes[axis] = shape[axis] // size
        return tuple(sizes)
    for axis in inner if per == "channel" else (*inner, *outer):
        sizes[axis] = 1
    return tuple(sizes)


def _packed_axis(shape, use) -> int | None:
    inner, outer = _axes(shape, use)
    order = [*outer[::-1], *inner[::-1]] if use is not None and use.kind == "lookup" else [*inner[::-1], *outer[::-1]]
    barred = inner if use is not None and use.kind == "lookup" else ()
    return next((axis for axis in order if shape[axis] % 2 == 0 and axis not in barred), None)


__all__ = ["BITS", "NF4", "Quantized", "by_group", "encode", "pack", "quantize", "unpack"]
