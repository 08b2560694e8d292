"""`Quantized`: a weight as codes of 8 or 4 bits and their scales; its products never keep an expanded copy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.usage import Use
from jaxbig.weight import Weight, aligned, recompute, static, wide

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


def layout(
    shape: tuple[int, ...],
    use: Use | None,
    format: str,  # noqa: A002
    per: str | None,
    group: int,
) -> tuple[tuple[int, ...], int | None]:
    """The shape of a leaf's scales, and the axis along which its codes are packed, for `encode`.

    Args:
        shape: the leaf's.
        use: its first look-up, product or convolution; None: all axes but the last are inputs.
        format, per, group: see `jaxbig.compress.quantize.quantize`.

    Example:
        >>> layout((128, 6), None, "int4", None, 64)
        ((2, 6), -2)
    """
    shared = per or ("channel" if format == "int8" else "group")
    return _scales_shape(shape, use, shared, group), _packed_axis(shape, use) if BITS[format] == 4 else None


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
