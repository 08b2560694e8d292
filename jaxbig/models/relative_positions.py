"""Relative positions in buckets: near ones each their own, farther ones together, as T5's attention biases know them.

Legend of the shape suffixes: B batch, T queries, S keys.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UserError


@functools.lru_cache(maxsize=64)
def bucket_edges(count: int, distance: int) -> tuple[int, ...]:
    """The distances at which buckets 1, 2, ..., count - 1 begin.

    With ``e = count // 2``, the first e buckets hold one distance each, and bucket ``e + k`` begins at the smallest n
    with ``floor((count - e) log(n / e) / log(distance / e)) >= k``.

    Args:
        count: of buckets, for one direction.
        distance: from which on all are in the last bucket.

    Returns:
        count - 1 whole numbers, rising; equal ones mean an empty bucket.

    Raises:
        UserError: fewer than two buckets, or a distance that the exact ones reach already.

    Example:
        >>> bucket_edges(8, 32)
        (1, 2, 3, 4, 7, 12, 20)
    """
    exact = count // 2
    if exact < 1 or distance <= exact:
        raise UserError(
            f"relative positions: {count} buckets a direction up to distance {distance}; use 2 buckets or more, and a "
            f"distance of more than {exact}"
        )
    edges = list(range(1, exact + 1))
    for k in range(1, count - exact):
        guess = int(exact * (distance / exact) ** (k / (count - exact)))
        near = np.arange(max(exact, guess - 2), guess + 4)  # rounding may move an edge that is a whole number by one
        reached = (np.log(near / exact) / math.log(distance / exact) * (count - exact)).astype(np.int64) >= k
        edges.append(int(near[np.argmax(reached)]))
    return tuple(edges)


def relative_buckets(query_BT: Any, key_BS: Any, count: int, distance: int, causal: bool = False) -> jax.Array:
    """The bucket of each key's position, seen from each query's.

    Args:
        query_BT, key_BS: int positions; B may be 1.
        count: of all buckets. Half of them are for keys that lie ahead of the query, unless `causal`: then keys ahead
            are as far as the query itself.
        distance: from which on all are in the last bucket of their direction.
        causal: see `count`.

    Returns:
        int32 [B, T, S], 0 ... count - 1.

    Raises:
        UserError: see `bucket_edges`.

    Example:
        >>> at = jnp.arange(4)[None]
        >>> relative_buckets(at, at, 8, 16)[0].tolist()
        [[0, 5, 6, 6], [1, 0, 5, 6], [2, 1, 0, 5], [2, 2, 1, 0]]
        >>> relative_buckets(at, at, 8, 16, causal=True)[0, 3].tolist()
        [3, 2, 1, 0]

    Reference:
        Raffel et al. (2019), arXiv:1910.10683, section 2.1. Deviation from transformers, which takes the logarithm in
        float32 on the device: the buckets' edges are found once in float64, so that all devices agree. Of 32 buckets up
        to distance 128, as all published models have them, every distance has the same bucket in both.
    """
    ahead_BTS = jnp.asarray(key_BS)[:, None, :] - jnp.asarray(query_BT)[:, :, None]
    ours = count if causal else count // 2
    far_BTS = jnp.maximum(-ahead_BTS, 0) if causal else jnp.abs(ahead_BTS)
    edges = jnp.asarray(np.minimum(bucket_edges(ours, distance), np.iinfo(np.int32).max), far_BTS.dtype)
    found = jnp.searchsorted(edges, far_BTS, side="right", method="compare_all").astype(jnp.int32)
    return found if causal else found + ours * (ahead_BTS > 0)
