"""LoftQ: codes and a low-rank update that make up for each other's errors."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbig.codes import BITS, encode, layout
from jaxbig.errors import UsageError
from jaxbig.residual import Start, rewriting
from jaxbig.transform import Transform, technique


@technique
def loftq(
    rank: int | Mapping[str, int] = 8,
    alpha: float | Mapping[str, float] | None = None,
    format: str = "nf4",  # noqa: A002  (what the field calls it)
    group: int = 64,
    iterations: int = 1,
    where: Any = None,
) -> Transform:
    """Holds weights as codes, and trains an update that begins as what they lack: ``W ~ Q + s A B``, Q frozen.

    Args:
        rank: the rank r; or pattern -> rank, of which the first that matches a leaf's path holds for it.
        alpha: likewise; ``s = alpha / rank``; None: a scale of 1.
        format, group: of the codes, as in `jaxbig.quantize`: symmetric, int8 by channel, int4 and nf4 by group.
        iterations: how often codes and update are made, each from what the other leaves of W.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.

    Returns:
        a Transform; ``train[path] = {"a": [*stack, *in, r], "b": [*stack, r, *out]}``, float32 (float64 over a float64
        base); in `params` a `Quantized` lies in W's place.

    Raises:
        UsageError: an unknown format; a `rank` below 1 or above the smaller side of a matrix; an `alpha` that is not
            positive, a `group` or `iterations` below 1; a selected leaf that is neither multiplied nor looked up, or no
            plain array.
        UserError: a selected leaf holds NaN or infinity.

    Init: from ``A B = 0``, `iterations` times ``Q = quantise(W - s A B)``, then ``s A B`` the best approximation of
    ``W - Q`` of rank r, its singular values shared evenly. The model is not unchanged: after one iteration W's error in
    Frobenius norm is the quantiser's without its r largest singular values; more iterations mostly lessen it further.

    Cost: that of ``chain(quantize(...), lora(...))``, and `iterations` singular value decompositions of each weight in
    `init`.

    Example:
        >>> import jax
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jax.random.normal(jax.random.key(0), (8, 6))}, jnp.ones((2, 8))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> split = loftq(rank=2, where="w").init(None, params, uses)
        >>> split.params["w"].kind()
        'Quantized nf4'

    Reference: Li et al. 2023, arXiv:2310.08659, algorithm 1. Deviations: A B is divided by s, so that the update is
    what the codes lack whatever `alpha` is (PEFT's is multiplied by s, and fits where s = 1); the quantisers are those
    of `jaxbig.quantize`, whose blocks run along the inputs; there is no 2-bit format.
    """
    if format not in BITS:
        raise UsageError(f"loftq: format={format!r}; it is one of {', '.join(BITS)}")
    for name, number in (("group", group), ("iterations", iterations)):
        if not isinstance(number, int | np.integer) or number < 1:
            raise UsageError(f"loftq: {name}={number!r}; it is a whole number of at least 1")

    def begin(start: Start):
        scales, packed = layout(start.site.leaf.shape, start.site.use, format, None, group)
        update = jnp.zeros_like(start.w)
        for _ in range(iterations):
            codes = encode(start.seen.from_matrix(start.w - update), format, True, scales, packed)
            u, s, vt = jnp.linalg.svd(start.w - start.seen.as_matrix(codes.materialise()), full_matrices=False)
            root = jnp.sqrt(s[..., : start.rank])
            a, b = u[..., : start.rank] * root[..., None, :], root[..., None] * vt[..., : start.rank, :]
            update = a @ b
        shared = jnp.sqrt(jnp.asarray(start.scale, start.w.dtype))
        return a / shared, b / shared, codes.cast(start.site.leaf.dtype)

    return rewriting("loftq", where, rank, alpha, begin)
