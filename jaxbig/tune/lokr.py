"""LoKr: an update that is a Kronecker product."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Delta
from jaxbig.transform import Transform, key_for, technique


class Kronecker(Delta):
    """``base + scale * (c kron d)``, d whole or as the product ``a b``.

    Attributes:
        c: [*stack, I1, O1]; d: [*stack, I2, O2], or None and a: [*stack, I2, r], b: [*stack, r, O2]; I1 I2 = I, O1 O2 =
            O. scale: a scalar.
    """

    c: Any = None
    d: Any = None
    a: Any = None
    b: Any = None
    scale: Any = None
    SHARED: ClassVar[dict[str, int]] = {"scale": 0}

    @property
    def PRIVATE(self):
        return dict.fromkeys(("c", "a", "b") if self.d is None else ("c", "d"), 2)

    def matrix(self):
        return jnp.kron(self.c, self.a @ self.b if self.d is None else self.d) * self.scale

    def forward(self, x):
        return self._through(x, self.c, [self.a, self.b] if self.d is None else [self.d])

    def backward(self, x):
        return self._through(x, self.c.T, [self.b.T, self.a.T] if self.d is None else [self.d.T])

    def _through(self, x, outer, inner):
        y = x.reshape(*x.shape[:-1], outer.shape[0], inner[0].shape[0])
        for factor in inner:
            y = y @ factor
        return jnp.einsum("...ij,io->...oj", y, outer).reshape(*x.shape[:-1], -1) * self.scale


@technique
def lokr(rank: int = 8, alpha: float = 8.0, factor: int = -1, where: Any = None) -> Transform:
    """Trains a Kronecker update: ``W' = W + (alpha / r) C kron (A B)``, C small, A B of the rest of the size.

    Args:
        rank: r of A B; where it is no less than half of the larger side, the second factor is one whole matrix.
        alpha: numerator of the scale.
        factor: the sides of C: `factor` where it divides the inputs (the outputs), else their largest divisor up to it
            and up to the square root; -1: up to the square root.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.

    Returns:
        a Transform; ``train[path] = {"c": [*stack, I1, O1], "a": [*stack, I2, r], "b": [*stack, r, O2]}``, or "d":
        [*stack, I2, O2] for a and b; float32 (float64 over a float64 base).

    Raises:
        UsageError: a `rank` below 1, a `factor` that is neither -1 nor at least 1; a selected leaf that is neither
            multiplied nor looked up.

    Init: C zero, the others uniform in +-1/sqrt(their fan-in): the model is unchanged, bit for bit (up to the sign of
    zeros).

    Cost: ``I1 O1 + r (I2 + O2)`` parameters a layer; ``2 I1 r (I2 + O2) + 2 I1 O1 O2`` FLOPs a row; nothing of the
    size of W is formed.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((12, 9))}, jnp.ones((2, 12))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> split = lokr(rank=1, where="w").init(jax.random.key(0), params, uses)
        >>> jax.tree.map(jnp.shape, split.train["w"])
        {'a': (4, 1), 'b': (1, 3), 'c': (3, 3)}

    Reference: Yeh et al. 2024 (LyCORIS), arXiv:2309.14859; Edalati et al. 2022 (KronA), arXiv:2212.10650. Deviation: a
    convolution's kernel is factored between all its inputs and its outputs.

    Limit: over a mesh that splits the axis which C and the rest cut in two, activations may be gathered.
    """
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"lokr: rank={rank!r}; it is a whole number of at least 1")
    if not isinstance(factor, int) or (factor < 1 and factor != -1):
        raise UsageError(f"lokr: factor={factor!r}; it is -1 or a whole number of at least 1")

    def start(key, path, site):
        (i1, i2), (o1, o2) = (divided(n, factor) for n in site.matrix)
        keys = jax.random.split(key_for(key, path), 2)

        def draw(key, inputs, outputs):
            bound = 1 / math.sqrt(inputs)
            return jax.random.uniform(key, (*site.stack, inputs, outputs), site.dtype, -bound, bound)

        train = {"c": jnp.zeros((*site.stack, i1, o1), site.dtype)}
        if 2 * rank < max(i2, o2):
            train |= {"a": draw(keys[0], i2, rank), "b": draw(keys[1], rank, o2)}
        else:
            train["d"] = draw(keys[0], i2, o2)
        return train, Kronecker(None, site.in_axes, site.out_axes)

    return adapter("lokr", where, start, lambda state, path: {"scale": jnp.asarray(alpha / rank)})


def divided(n: int, factor: int) -> tuple[int, int]:
    """n as m * (n / m); see `factor` of `lokr`.

    Example:
        >>> divided(12, -1), divided(12, 6), divided(12, 8), divided(7, -1)
        ((3, 4), (6, 2), (3, 4), (1, 7))
    """
    if factor > 0 and n % factor == 0:
        return factor, n // factor
    most = math.isqrt(n) if factor == -1 else min(factor, math.isqrt(n))
    m = max(d for d in range(1, most + 1) if n % d == 0)
    return m, n // m
