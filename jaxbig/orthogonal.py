"""Orthogonal blocks from skew-symmetric ones, which techniques that turn weights train."""

from typing import Any

import jax.numpy as jnp

Array = Any


def cayley(skew: Array, terms: int = 0) -> Array:
    """(I + Q) (I - Q)^-1 of skew-symmetric matrices Q [..., k, k], or with the first terms of the inverse's series.

    Example:
        >>> r = cayley(jnp.array([[0.0, 1.0], [-1.0, 0.0]]), 0)
        >>> jnp.round(r, 6).tolist()
        [[0.0, 1.0], [-1.0, 0.0]]
    """
    identity = jnp.eye(skew.shape[-1], dtype=skew.dtype)
    if not terms:
        return jnp.linalg.solve(identity - skew, identity + skew)  # the two factors commute
    total, power = identity + 2 * skew, skew
    for term in range(2, terms):
        power = power @ skew
        total = total + (2 * power if term < terms - 1 else power)
    return total


def rotations(entries: Array, size: int, terms: int = 0) -> Array:
    """Rotations [..., k, k] from the entries above the diagonal of skew-symmetric matrices.

    Args:
        entries: [..., k (k - 1) / 2], row by row.
        size: k.
        terms: see `cayley`.

    Returns:
        float32 at least.

    Example:
        >>> rotations(jnp.zeros((2, 3)), 3)[1].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rows, columns = jnp.triu_indices(size, 1)
    dtype = jnp.promote_types(entries.dtype, jnp.float32)
    upper = jnp.zeros((*entries.shape[:-1], size, size), dtype).at[..., rows, columns].set(entries.astype(dtype))
    return cayley(upper - upper.mT, terms)
