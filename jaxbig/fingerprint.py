"""A short name for the bits of a tree of arrays: equal trees have equal names, others do not but for bad luck."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.storage import to_stored
from jaxbig.tree import PyTree

# Odd numbers with many bits set; any would do, but changing one changes every name that was ever saved.
_MULTIPLIERS = (2654435761, 2246822519, 3266489917, 668265263)


def fingerprint(tree: PyTree) -> str:
    """128 bits that depend on every bit of every array, their order and shapes; computed where the arrays lie.

    It guards against mistakes (another base, another seed), not against somebody who wants two trees to agree.

    Args:
        tree: arrays of any dtype; Weights, typed keys and None are fine. Paths do not count.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> a, b = {"w": jnp.zeros(3)}, {"w": jnp.zeros(3).at[1].set(1e-30)}
        >>> fingerprint(a) == fingerprint({"w": jnp.zeros(3)}), fingerprint(a) == fingerprint(b)
        (True, False)
    """
    return "".join(f"{int(lane):08x}" for lane in jax.device_get(_lanes(jax.tree.leaves(tree))))


@jax.jit
def _lanes(leaves: list[Any]) -> jax.Array:
    total = jnp.zeros(len(_MULTIPLIERS), jnp.uint32)
    for leaf in leaves:
        total = total * jnp.uint32(1000003) + _of(leaf)
    return total


def _of(leaf: Any) -> jax.Array:
    bits = jnp.ravel(to_stored(jnp.asarray(leaf)))
    if bits.dtype.itemsize == 8:
        bits = jax.lax.bitcast_convert_type(bits, jnp.uint32).ravel()
    elif jnp.issubdtype(bits.dtype, jnp.complexfloating):
        bits = jnp.stack([bits.real, bits.imag]).ravel()
    if jnp.issubdtype(bits.dtype, jnp.inexact):
        bits = jax.lax.bitcast_convert_type(bits.astype(jnp.float32), jnp.uint32)
    bits = bits.astype(jnp.uint32)
    place = jnp.arange(bits.size, dtype=jnp.uint32)
    lanes = [
        jnp.sum(bits * ((place * jnp.uint32(m)) | 1), dtype=jnp.uint32) + jnp.uint32(bits.size) for m in _MULTIPLIERS
    ]
    return jnp.stack(lanes)
