"""Which sign an entry shall have, and the mean of those that agree."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxbig.errors import UsageError

Array = Any


def elect(vectors: Sequence[Array], by: str = "total") -> Array:
    """The sign of each entry that most of the vectors have: +1 or -1; a draw goes to +1.

    Args:
        vectors: arrays of one shape.
        by: "total": the sign of ``sum_t x_t``, so that large entries count more; "frequency": of ``sum_t sgn x_t``.

    Returns:
        an array of +1 and -1.

    Raises:
        UsageError: another `by`.

    Example:
        >>> vectors = [jnp.array([3.0, 1.0]), jnp.array([-1.0, -2.0]), jnp.array([-1.0, 0.0])]
        >>> elect(vectors).tolist(), elect(vectors, "frequency").tolist()
        ([1.0, -1.0], [-1.0, 1.0])
    """
    if by not in ("total", "frequency"):
        raise UsageError(f"combine: signs={by!r}; they are elected by 'total' or by 'frequency'")
    votes = sum(jnp.sign(x) if by == "frequency" else x for x in vectors)
    return jnp.where(votes >= 0, 1, -1).astype(vectors[0].dtype)


def agreed_mean(vectors: Sequence[Array], weights: Sequence[float], sign: Array) -> Array:
    """``sum_{t in A} w_t x_t / |A|`` entry by entry, A the vectors whose entry has the sign; 0 where none has.

    Example:
        >>> agreed_mean([jnp.array([3.0, 1.0]), jnp.array([5.0, -2.0])], [1, 1], jnp.array([1, -1])).tolist()
        [4.0, -2.0]
    """
    agree = [jnp.sign(x) == sign for x in vectors]
    total = sum(jnp.where(a, x * w, jnp.zeros_like(x)) for a, x, w in zip(agree, vectors, weights, strict=True))
    return total / jnp.maximum(sum(a.astype(vectors[0].dtype) for a in agree), 1)
