"""HRA: the inputs reflected by a few trained hyperplanes."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Turned
from jaxbig.transform import Transform, key_for, technique


class Reflected(Turned):
    """``R base`` with ``R = H_r ... H_1``, ``H = I - 2 u u^T / |u|^2``.

    Attributes:
        u: [*stack, I, r], the hyperplanes' normals.
    """

    u: Any = None
    PRIVATE: ClassVar[dict[str, int]] = {"u": 2}

    def turn(self, x, transposed):
        order = range(self.u.shape[-1])
        for i in order if transposed else reversed(order):
            u = self.u[:, i] * jax.lax.rsqrt(jnp.sum(self.u[:, i] ** 2))
            x = x - 2 * (x @ u)[..., None] * u
        return x


@technique
def hra(rank: int = 8, where: Any = None) -> Transform:
    """Trains Householder reflections of a weight's inputs: ``W' = H_r ... H_1 W``.

    Args:
        rank: the number of reflections r, even.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.

    Returns:
        a Transform; ``train[path] = {"u": [*stack, I, r]}``, float32 (float64 over a float64 base).

    Raises:
        UsageError: an odd `rank`, or one below 2; a selected leaf that is neither multiplied nor looked up.

    Init: pairs of equal reflections, which undo each other: W' = W up to rounding (1e-6 of W's largest entry).

    Cost: ``r I`` parameters a layer; ``4 r I`` FLOPs a row; nothing of the size of W is formed.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> hra(rank=2, where="w").init(jax.random.key(0), params, uses).train["w"]["u"].shape
        (4, 2)

    Reference: Yuan et al. 2024, arXiv:2405.17484. Deviations: no orthogonality regulariser and no Gram-Schmidt variant;
    an odd rank is refused, as its model is another one at init.
    """
    if not isinstance(rank, int) or rank < 2 or rank % 2:
        raise UsageError(f"hra: rank={rank!r}; use an even number of reflections, 2 or more")

    def start(key, path, site):
        inputs = site.matrix[0]
        bound = 1 / math.sqrt(inputs)
        half = jax.random.uniform(key_for(key, path), (*site.stack, inputs, rank // 2), site.dtype, -bound, bound)
        return {"u": jnp.repeat(half, 2, axis=-1)}, Reflected(None, site.in_axes, site.out_axes, "in", None)

    return adapter("hra", where, start)
