"""PiSSA: the largest singular values of a weight are trained, the others are not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.residual import Start, rest, rewriting
from jaxbig.transform import Transform, key_for, technique


@technique
def pissa(
    rank: int | Mapping[str, int] = 8,
    alpha: float | Mapping[str, float] | None = None,
    where: Any = None,
    niter: int | None = None,
) -> Transform:
    """Trains the principal part of each weight: ``W = R + s A B``, ``s A B = U_r S_r V_r^T``, R frozen.

    Args:
        rank: the rank r; or pattern -> rank, of which the first that matches a leaf's path holds for it.
        alpha: likewise; ``s = alpha / rank``; None: a scale of 1.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        niter: None: the whole singular value decomposition; else a randomised one of so many power iterations, which
            for a large weight is far quicker.

    Returns:
        a Transform; ``train[path] = {"a": [*stack, *in, r], "b": [*stack, r, *out]}``, float32 (float64 over a float64
        base); in `params` R lies in W's place, of its dtype. ``chain(pissa(), quantize("nf4"))`` is QPiSSA: the codes
        are R's, whose values are smaller than W's.

    Raises:
        UsageError: a `rank` below 1 or above the smaller side of a matrix; an `alpha` that is not positive, an `niter`
            below 0; a selected leaf that is neither multiplied nor looked up, or no plain array.
        UserError: a selected leaf holds NaN or infinity.

    Init: ``A = U_r sqrt(S_r / s)``, ``B = sqrt(S_r / s) V_r^T``: the model is unchanged up to rounding, 5e-7 of W's
    largest entry over a float32 base; over a bfloat16 base up to the rounding of R to it.

    Cost: LoRA's, and the decomposition in `init`: ``O(I O min(I, O))``, or with `niter` ``O(niter r I O)``.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}, jnp.ones((2, 3))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> split = pissa(rank=2, where="w").init(None, params, uses)
        >>> jnp.abs(split.params["w"]).round(5).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]

    Reference: Meng et al. 2024, arXiv:2404.02948; Halko et al. 2009, arXiv:0909.4061, for `niter`. Deviations: kernels
    of several input or output axes and convolutions are one matrix between all inputs and all outputs; QPiSSA's
    repeated quantisation of R is not made (`jaxbig.loftq` does that for W). Singular vectors have no sign, so A and B
    are PEFT's up to one for each of the r directions, and A B is PEFT's.
    """
    if niter is not None and (not isinstance(niter, int) or niter < 0):
        raise UsageError(f"pissa: niter={niter!r}; it is None, or a whole number of at least 0")

    def begin(start: Start):
        if niter is None:
            u, s, vt = jnp.linalg.svd(start.w, full_matrices=False)
        else:
            u, s, vt = randomised(key_for(start.key, start.path), start.w, start.rank, niter)
        u, s, vt = u[..., : start.rank], s[..., : start.rank], vt[..., : start.rank, :]
        root = jnp.sqrt(s / start.scale)
        a, b = u * root[..., None, :], root[..., None] * vt
        return a, b, rest(start, a, b)

    return rewriting("pissa", where, rank, alpha, begin)


def randomised(key: jax.Array, w: jax.Array, rank: int, niter: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest singular values of [*, I, O] and their vectors, nearly: U [*, I, r], S [*, r], V^T [*, r, O].

    A random subspace of r directions, turned towards W's by `niter` products with W and its transpose.
    """
    tall = w.shape[-2] > w.shape[-1]
    matrix = w if tall else w.mT
    first = jax.random.normal(key, (*w.shape[:-2], matrix.shape[-1], rank), w.dtype)
    q = jnp.linalg.qr(matrix @ first)[0]
    for _ in range(niter):
        q = jnp.linalg.qr(matrix @ jnp.linalg.qr(matrix.mT @ q)[0])[0]
    u, s, vt = jnp.linalg.svd(q.mT @ matrix, full_matrices=False)
    u = q @ u
    return (u, s, vt) if tall else (vt.mT, s, u.mT)
