"""OLoRA: the factors start as an orthonormal basis of a weight's outputs and what goes along it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxbig.residual import Start, rest, rewriting
from jaxbig.transform import Transform, technique


@technique
def olora(
    rank: int | Mapping[str, int] = 8,
    alpha: float | Mapping[str, float] | None = None,
    where: Any = None,
) -> Transform:
    """Trains a QR factor of each weight: ``W = base + s A B`` with ``W^T = Q R``, ``B = Q_r^T``, ``A = R_r^T``.

    Args:
        rank: the rank r; or pattern -> rank, of which the first that matches a leaf's path holds for it.
        alpha: likewise; ``s = alpha / rank``; None: a scale of 1.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.

    Returns:
        a Transform; ``train[path] = {"a": [*stack, *in, r], "b": [*stack, r, *out]}``, float32 (float64 over a float64
        base); in `params` the base ``W - s A B`` lies in W's place, of its dtype.

    Raises:
        UsageError: a `rank` below 1 or above the smaller side of a matrix; an `alpha` that is not positive; a selected
            leaf that is neither multiplied nor looked up, or no plain array.
        UserError: a selected leaf holds NaN or infinity.

    Init: Q_r the first r columns of Q, R_r the first r rows of R: B's rows are orthonormal, and the model is unchanged
    up to rounding, 5e-7 of W's largest entry over a float32 base; over a bfloat16 base up to the base's rounding to it.

    Cost: LoRA's, and a QR decomposition of each weight in `init`.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.arange(12.0).reshape(4, 3)}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> b = olora(rank=2, where="w").init(None, params, uses).train["w"]["b"]
        >>> jnp.abs(b @ b.T).round(5).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Reference: Büyükakyüz 2024, arXiv:2406.01775. Deviations: as in PEFT, A B is not divided by s at first, so s decides
    how much of W is taken out; kernels of several input or output axes and convolutions are one matrix between all
    inputs and all outputs; codes are not expanded and quantised again, as PEFT does: put `quantize` after it.
    """

    def begin(start: Start):
        q, r = jnp.linalg.qr(start.w.mT)
        a, b = r[..., : start.rank, :].mT, q[..., : start.rank].mT
        return a, b, rest(start, a, b)

    return rewriting("olora", where, rank, alpha, begin)
