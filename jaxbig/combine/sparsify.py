"""What a sparse difference keeps: its largest entries, or some at random."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.transform import key_for
from jaxbig.tree import PyTree, map_paths


def trim(vector: PyTree, density: float) -> PyTree:
    """Keeps the ``floor(density * n)`` largest of all n entries; the others become 0.

    Args:
        vector: an array, or a tree of arrays that are ranked together.
        density: the share to keep, in [0, 1].

    Returns:
        a tree of the same structure. Entries as large as the smallest kept one all stay.

    Raises:
        UsageError: a density that is no share.

    Example:
        >>> trim({"a": jnp.array([1.0, -4.0]), "b": jnp.array([3.0, 2.0])}, 0.5)["b"].tolist()
        [3.0, 0.0]
    """
    check(density)
    sizes = jax.tree.map(jnp.abs, vector)
    count = int(density * sum(leaf.size for leaf in jax.tree.leaves(vector)))
    if not count:
        return jax.tree.map(jnp.zeros_like, vector)
    least = _largest(jax.tree.leaves(sizes), count)
    return jax.tree.map(lambda x, size: jnp.where(size >= least, x, jnp.zeros_like(x)), vector, sizes)


def _largest(sizes: list[Any], count: int) -> Any:
    """The `count`-th largest of all entries, none of which is negative.

    Such floats are in the order of their bits, so the answer's bits are found one after the other by counting: nothing
    is sorted, joined, or gathered from where it lies on a mesh.
    """
    total = sum(leaf.size for leaf in sizes)
    if total >= 2**32:
        raise UsageError(f"combine: {total:,} entries are ranked together, and 2^32 can be; trim parts of the tree")
    dtype = jnp.result_type(jnp.float32, *sizes)
    width = 8 * dtype.itemsize
    unsigned = jnp.dtype(f"uint{width}")
    keys = [jax.lax.bitcast_convert_type(leaf.astype(dtype), unsigned) for leaf in sizes]

    def bit(i, least):
        higher = least | jnp.left_shift(jnp.ones((), unsigned), (width - 1 - i).astype(unsigned))
        found = sum(jnp.sum(key >= higher, dtype=jnp.uint32) for key in keys)
        return jnp.where(found >= jnp.uint32(count), higher, least)

    least = jax.lax.fori_loop(0, width, bit, jnp.zeros((), unsigned))
    return jax.lax.bitcast_convert_type(least, dtype)


def drop(key: Any, vector: PyTree, density: float) -> PyTree:
    """Keeps each entry with probability `density`, as ``x / density``, so that the expectation is x.

    Args:
        key: a random key; each leaf draws with one of its own.
        vector: an array or a tree of arrays.
        density: the probability to keep, in (0, 1].

    Returns:
        a tree of the same structure.

    Raises:
        UsageError: no key, or a density that is no share, or 0.

    Example:
        >>> sorted(set(drop(jax.random.key(0), jnp.ones(100), 0.5).tolist()))
        [0.0, 2.0]
    """
    check(density)
    if not density:
        raise UsageError("combine: density=0 keeps nothing that could be scaled up; use a share above 0")

    def thinned(path, leaf):
        kept = mask(key_for(key, path), leaf.shape, density)
        return jnp.where(kept, leaf / density, jnp.zeros_like(leaf))

    return map_paths(thinned, vector)


def mask(key: Any, shape: tuple[int, ...], density: float) -> Any:
    """Which entries stay: True with probability `density`.

    Example:
        >>> bool(mask(jax.random.key(0), (3,), 1.0).all())
        True
    """
    return jax.random.bernoulli(key, density, shape)


def check(density: float) -> None:
    """Refuses what is no share."""
    if not 0 <= density <= 1:
        raise UsageError(f"combine: density={density}; it is the share of entries to keep, from 0 to 1")
