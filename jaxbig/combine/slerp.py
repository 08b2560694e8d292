"""SLERP: between two models along the arc."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.combine.trees import leafwise, matched
from jaxbig.tree import PyTree


def slerp(first: PyTree, second: PyTree, t: float = 0.5, uses: Mapping[str, Any] | None = None) -> PyTree:
    """Spherical interpolation of each leaf: ``(sin((1 - t) a) u + sin(t a) v) / sin a``, a the angle between u and v.

    Args:
        first, second: trees with the same paths and shapes; Weights are merged first.
        t: 0 gives the first, 1 the second.
        uses: None: a leaf is one vector; what `jaxbig.usage.usage` says of the model: each layer of a stack that it
            scans is a vector of its own, as it would be unrolled.

    Returns:
        a tree of plain arrays of the first's structure; floating leaves are computed in float32 at least and rounded
        once, to the dtype that the trees' dtypes promote to; others are the first's. Where u and v are parallel, or
        opposite, or one is zero (sin a below the square root of the dtype's eps), ``(1 - t) u + t v`` in its place: for
        parallel ones that is the arc up to rounding; opposite ones have no arc.

    Raises:
        UsageError: other paths or shapes.

    Cost: three sums over each leaf; as many bytes as both trees hold while it runs; nothing at inference.

    Example:
        >>> from jaxbig.fidelity import fidelity
        >>> first, second = {"w": jnp.array([[1.0, 0.0]])}, {"w": jnp.array([[0.0, 1.0]])}
        >>> half = slerp(first, second)
        >>> print(half["w"].round(3))
        [[0.707 0.707]]
        >>> print(fidelity(lambda p, x: x @ p["w"], first, half, [jnp.ones((1, 1))]))
        KL 0.111 nats, flips 0 of 1 (0%), error max 0.707 mean 0.5, bytes 8 -> 8

    Reference: Shoemake 1985, doi:10.1145/325165.325242. Deviations: of vectors of any length, whose lengths the
    formula mixes as it stands; the angle is ``2 atan2(|u' - v'|, |u' + v'|)`` of the unit vectors u', v', exact where
    the arc cosine of their product is not.
    """

    def between(path, u, v):
        layers = max((use.layers for use in uses.get(path, ())), default=0) if uses else 0
        one = lambda u, v: _arc(u, v, t)  # noqa: E731
        for _ in range(layers):
            one = jax.vmap(one)
        return one(u, v)

    return leafwise(matched("slerp", [first, second]), between)


def _arc(u: Any, v: Any, t: Any) -> Any:
    lengths = jnp.sqrt(jnp.sum(u**2)), jnp.sqrt(jnp.sum(v**2))
    unit = [x / jnp.where(length > 0, length, 1) for x, length in zip((u, v), lengths, strict=True)]
    norm = lambda x: jnp.sqrt(jnp.sum(x**2))  # noqa: E731
    angle = 2 * jnp.arctan2(norm(unit[0] - unit[1]), norm(unit[0] + unit[1]))
    curved = (jnp.sin(angle) > jnp.sqrt(jnp.finfo(u.dtype).eps)) & (lengths[0] > 0) & (lengths[1] > 0)
    safe = jnp.where(curved, angle, 1)
    left, right = jnp.sin((1 - t) * safe) / jnp.sin(safe), jnp.sin(t * safe) / jnp.sin(safe)
    return jnp.where(curved, left, 1 - t) * u + jnp.where(curved, right, t) * v
