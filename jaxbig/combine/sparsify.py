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
    sizes = [jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(vector)]
    flat = jnp.concatenate(sizes)
    count = int(density * flat.size)
    if not count:
        return jax.tree.map(jnp.zeros_like, vector)
    least = jnp.sort(flat)[flat.size - count]
    return jax.tree.map(lambda leaf: jnp.where(jnp.abs(leaf) >= least, leaf, jnp.zeros_like(leaf)), vector)


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
