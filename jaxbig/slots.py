"""The optimiser's moments in bfloat16 or in 8 bits: the same update, from moments that are stored in less.

At each step the stored moments become float32, the optimiser does its step, and the new moments are stored again. In 8
bits each run of `BLOCK` consecutive numbers (in row-major order) has a scale of its own, the largest magnitude in it,
and each number is the nearest of 256 levels times that scale.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbig.schedule import check_name
from jaxbig.tree import PyTree

BLOCK = 256
SMALLEST = 4096  # a leaf of fewer elements stays as it is
FORMS = ("bfloat16", "int8")
SQUARES = ("nu", "sum_of_squares", "v")  # what optax calls the moments that are never negative


class Coded(NamedTuple):
    """Attributes: codes: uint8, of the shape of what they stand for; scale: float32 [ceil(size / BLOCK)]."""

    codes: jax.Array
    scale: jax.Array


class StoredState(NamedTuple):
    """Attributes: step: int32; inner: the optimiser's state as it is stored."""

    step: jax.Array
    inner: PyTree


def levels(signed: bool) -> np.ndarray:
    """The 256 levels of the dynamic map, ascending float32.

    Decades 10^-6 ... 10^0, each with twice as many levels as the one below it: the middles of 2^i (2^(i + 1) if
    unsigned) equal parts of [0.1, 1], times 10^(i - 6), i = 0 ... 6; with both signs if signed; 0; and 1.

    Example:
        >>> found = levels(signed=True)
        >>> len(found), float(found[0]), float(found[-1]), 0.0 in found
        (256, -0.992968738079071, 1.0, True)
    """
    found = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (i + (not signed)) + 1)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - 6)
        found += [*middles, *(-middles if signed else [])]
    return np.sort(np.asarray(found)).astype(np.float32)


def encode(array: jax.Array, signed: bool) -> Coded:
    """An array in 8 bits, in blocks.

    Args:
        array: floating, any shape.
        signed: whether negative numbers occur. If not, their square roots are coded: moments of squares spread over
            twice as many decades as moments.

    Returns:
        codes and scales: 1 + 4 / BLOCK bytes a number.

    Example:
        >>> coded = encode(jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64), signed=True)
        >>> coded.codes.shape, coded.scale.shape, float(abs(decode(coded, jnp.float32, True)).max())
        ((64, 64), (16,), 1.0)
    """
    table = levels(signed)
    flat = jnp.ravel(array).astype(jnp.float32)
    flat = flat if signed else jnp.sqrt(flat)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    scale = jnp.abs(blocks).max(1)
    shares = blocks / jnp.where(scale == 0, 1, scale)[:, None]
    codes = jnp.searchsorted(jnp.asarray((table[1:] + table[:-1]) / 2), shares).astype(jnp.uint8)
    return Coded(codes.reshape(-1)[: flat.size].reshape(array.shape), scale)


def decode(coded: Coded, dtype: Any, signed: bool) -> jax.Array:
    """The array that codes and scales stand for."""
    values = jnp.asarray(levels(signed))[coded.codes]
    flat = jnp.pad(values.reshape(-1), (0, -values.size % BLOCK)).reshape(-1, BLOCK) * coded.scale[:, None]
    values = flat.reshape(-1)[: values.size].reshape(values.shape)
    return (values if signed else values * values).astype(dtype)


def round_randomly(array: jax.Array, key: jax.Array) -> jax.Array:
    """float32 as bfloat16, up or down at random so that the mean is right: E[result] = array.

    To the nearest, a moment that changes by less than 1/512 of itself a step would never change: with b2 = 0.999 the
    second moment could not fall.

    Example:
        >>> x = jnp.full(1000, 1 + 2**-10)
        >>> sorted(set(round_randomly(x, jax.random.key(0)).astype(jnp.float32).tolist()))
        [1.0, 1.0078125]
    """
    bits = jax.lax.bitcast_convert_type(array.astype(jnp.float32), jnp.uint32)
    bits = bits + jax.random.bits(key, array.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(array), rounded, array.astype(jnp.bfloat16))


def stored(inner: optax.GradientTransformation, how: str) -> optax.GradientTransformation:
    """An optimiser whose large floating state is kept in less than float32.

    Args:
        inner: optax transformation. Those of its moments that are never negative are known by their names, `SQUARES`.
        how: "bfloat16", rounded at random (the noise depends on the step and on the leaf alone); or "int8", `Coded`.

    Returns:
        the transformation. Leaves under `SMALLEST` elements stay as they are.

    Raises:
        UsageError: another `how`.

    Cost: bytes a number of a moment: 2, or 1 + 4 / BLOCK; a pass over the moments each step to decode and encode. Over
    a mesh nothing moves in bfloat16, nor in 8 bits where each device holds whole blocks, as it does where a leaf is
    split along its first axis; split along others in pieces of other lengths, a leaf's moments are gathered in float32.

    Example:
        >>> state = stored(optax.scale_by_adam(), "int8").init({"w": jnp.ones((64, 64))})
        >>> state.inner.mu["w"].codes.dtype, state.inner.nu["w"].scale.shape
        (dtype('uint8'), (16,))

    Reference:
        Dettmers, Lewis, Shleifer and Zettlemoyer (2021), arXiv:2110.02861. Deviations: blocks of 256, not 2,048 (as
        bitsandbytes has since); of the second moment the square root is coded. Embeddings are treated as all else.
    """
    check_name("state", how, FORMS)

    def chosen(keys, leaf) -> str:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.size < SMALLEST or leaf.dtype.itemsize < 4:
            return "as it is"
        names = [key.name for key in keys if isinstance(key, jax.tree_util.GetAttrKey)]
        return "squares" if set(names) & set(SQUARES) else "signed"

    def pack(state, step):
        numbers = iter(range(len(jax.tree.leaves(state))))

        def one(keys, leaf):
            number, kind = next(numbers), chosen(keys, leaf)
            if kind == "as it is":
                return leaf
            if how == "int8":
                return encode(leaf, kind == "signed")
            return round_randomly(leaf, jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), number))

        return jax.tree_util.tree_map_with_path(one, state)

    def unpack(packed, shapes):
        def one(keys, shape, leaf):
            if isinstance(leaf, Coded):
                return decode(leaf, shape.dtype, chosen(keys, shape) == "signed")
            return leaf.astype(shape.dtype)

        return jax.tree_util.tree_map_with_path(one, shapes, packed)

    def init(params):
        step = jnp.zeros((), jnp.int32)
        return StoredState(step, pack(inner.init(params), step))

    def update(updates, state, params=None):
        shapes = jax.eval_shape(inner.init, updates if params is None else params)
        updates, new = inner.update(updates, unpack(state.inner, shapes), params)
        return updates, StoredState(state.step + 1, pack(new, state.step + 1))

    return optax.GradientTransformation(init, update)
