"""What techniques share that take something out of the base, and train that: PiSSA, OLoRA, LoftQ.

``W = base + scale * A B``: the first A and B come from W itself, and what they do not say stays behind, frozen. So
``split.params`` holds another base than the caller's, and A and B mean nothing without it; how they leave as a plain
LoRA over the caller's own W is in `jaxbig.plain`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxbig.errors import UsageError, UserError
from jaxbig.lowrank import LowRank, by_path, check_rank, scale_of
from jaxbig.matrix import Matrix
from jaxbig.site import Site, sites
from jaxbig.transform import Split, Transform
from jaxbig.tree import paths, replace
from jaxbig.weight import is_weight


class Start(NamedTuple):
    """What a technique is asked for the first factors of.

    Attributes:
        key: of `init`, or None; path, site: of the leaf.
        w: the leaf as [*stack, I, O], in the dtype of what is trained.
        rank: r, at most the smaller of I and O; scale: what A B is multiplied by.
        seen: turns an array of the leaf's shape to such a matrix and back.
    """

    key: Any
    path: str
    site: Site
    w: jax.Array
    rank: int
    scale: Any
    seen: Matrix


def rest(start: Start, a: jax.Array, b: jax.Array) -> jax.Array:
    """The base that A [*stack, I, r] and B [*stack, r, O] leave: ``W - scale * A B``, of the leaf's shape and dtype."""
    return start.seen.from_matrix(start.w - start.scale * a @ b).astype(start.site.leaf.dtype)


def rewriting(
    name: str,
    where: Any,
    rank: Any,
    alpha: Any,
    begin: Callable[[Start], tuple[jax.Array, jax.Array, Any]],
) -> Transform:
    """A transform that splits each selected leaf into a frozen base and the product of two trained factors.

    Args:
        name: of the technique.
        where: see `jaxbig.site.sites`.
        rank, alpha: numbers, or pattern -> number, see `jaxbig.lowrank.by_path`.
        begin: gives A [*stack, I, r], B [*stack, r, O] and the base that takes the leaf's place.

    Returns:
        the transform; `apply` gives a `LowRank`.

    Raises:
        UsageError: a `rank` below 1 or, in `init`, above what the matrix has; an `alpha` that is not positive; a
            selected leaf that is no plain array, or neither multiplied nor looked up.
        UserError: a selected leaf holds NaN or infinity (seen on concrete arrays only).
    """
    check_rank(name, rank)

    def init(key, params, uses):
        found, train, state, bases = sites(name, where, params, uses), {}, {}, {}
        ranks, alphas = by_path(name, "rank", rank, found), by_path(name, "alpha", alpha, found)
        for path, site in found.items():
            _check(name, path, site, ranks[path], alphas[path])
            seen = Matrix(site.leaf, site.in_axes, site.out_axes)
            w, scale = seen.as_matrix(site.leaf.astype(site.dtype)), scale_of(ranks[path], alphas[path])
            with jax.default_matmul_precision("highest"):  # what A B says of W and what stays of it have to add up
                a, b, bases[path] = begin(Start(key, path, site, w, ranks[path], scale, seen))
            a = a.reshape(*site.stack, *site.inputs, ranks[path]).astype(site.dtype)
            b = b.reshape(*site.stack, ranks[path], *site.outputs).astype(site.dtype)
            train[path] = {"a": a, "b": b}
            state[path] = LowRank(None, None, None, None, None, None, site.in_axes, site.out_axes)
        return Split(replace(params, bases), train, state)

    def apply(split, key=None):
        alphas, bases = by_path(name, "alpha", alpha, split.train), paths(split.params)

        def adapted(path, parts):
            scale = jnp.asarray(scale_of(parts["a"].shape[-1], alphas[path]), parts["a"].dtype)
            return split.state[path].replace(base=bases.get(path), scale=scale, **parts)

        return replace(split.params, {path: adapted(path, parts) for path, parts in split.train.items()})

    return Transform(name, init, apply)


def _check(name: str, path: str, site: Site, rank: int, alpha: Any) -> None:
    if is_weight(site.leaf):
        raise UsageError(
            f"{name}: {path} is a {site.leaf.kind()}, and {name} starts from a plain array; put it before the link "
            "that makes one of it, or choose other leaves with where="
        )
    if rank > min(site.matrix):
        raise UsageError(
            f"{name}: rank={rank}, but {path} is a matrix of {site.matrix[0]} x {site.matrix[1]}; use at most "
            f"{min(site.matrix)} there, as in rank={{{path!r}: {min(site.matrix)}, '.*': {rank}}}"
        )
    if isinstance(alpha, int | float) and alpha <= 0:
        raise UsageError(f"{name}: alpha={alpha}; it is larger than 0")
    finite = jnp.isfinite(site.leaf).all()
    if not isinstance(finite, Tracer) and not bool(finite):
        raise UserError(f"{name}: {path} holds NaN or infinity; mend it, or exclude it with where=")
