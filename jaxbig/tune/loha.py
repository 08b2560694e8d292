"""LoHa: an update that is the elementwise product of two low-rank ones."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Delta
from jaxbig.transform import Transform, key_for, technique


class Hadamard(Delta):
    """``base + scale * (a1 b1) * (a2 b2)``, the middle product elementwise.

    Attributes:
        a1, a2: [*stack, I, r]; b1, b2: [*stack, r, O]; scale: a scalar.
    """

    a1: Any = None
    b1: Any = None
    a2: Any = None
    b2: Any = None
    scale: Any = None
    PRIVATE: ClassVar[dict[str, int]] = {"a1": 2, "b1": 2, "a2": 2, "b2": 2}
    SHARED: ClassVar[dict[str, int]] = {"scale": 0}

    def matrix(self):
        return (self.a1 @ self.b1) * (self.a2 @ self.b2) * self.scale


@technique
def loha(rank: int = 8, alpha: float = 8.0, where: Any = None) -> Transform:
    """Trains an update of rank up to r^2: ``W' = W + (alpha / r) (A1 B1) * (A2 B2)``, elementwise.

    Args:
        rank: r, of each of the two factors.
        alpha: numerator of the scale.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.

    Returns:
        a Transform; ``train[path] = {"a1", "a2": [*stack, I, r], "b1", "b2": [*stack, r, O]}``, float32 (float64 over a
        float64 base).

    Raises:
        UsageError: a `rank` below 1; a selected leaf that is neither multiplied nor looked up.

    Init: A1 of deviation 0.1, B1 and B2 of deviation 1, A2 zero: the model is unchanged, bit for bit (up to the sign of
    zeros).

    Cost: ``2 r (I + O)`` parameters a layer. The update is formed, for one layer at a time and once more in the
    backward pass: ``4 r I O`` FLOPs, and ``2 I O`` a row.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> split = loha(rank=2, where="w").init(jax.random.key(0), params, uses)
        >>> jax.tree.map(jnp.shape, split.train["w"])
        {'a1': (4, 2), 'a2': (4, 2), 'b1': (2, 3), 'b2': (2, 3)}

    Reference: Hyeon-Woo, Ye-Bin, Oh 2022 (FedPara), arXiv:2108.06098; as an adapter Yeh et al. 2024 (LyCORIS),
    arXiv:2309.14859, whose init this is. Deviation: a convolution's kernel is factored between all its inputs and its
    outputs (not by the tensor form of FedPara).
    """
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"loha: rank={rank!r}; it is a whole number of at least 1")

    def start(key, path, site):
        inputs, outputs = site.matrix
        keys, shape = jax.random.split(key_for(key, path), 3), {"a": (inputs, rank), "b": (rank, outputs)}
        draw = lambda key, side: jax.random.normal(key, (*site.stack, *shape[side]), site.dtype)  # noqa: E731
        a2 = jnp.zeros((*site.stack, inputs, rank), site.dtype)
        train = {"a1": 0.1 * draw(keys[0], "a"), "b1": draw(keys[1], "b"), "a2": a2, "b2": draw(keys[2], "b")}
        return train, Hadamard(None, site.in_axes, site.out_axes)

    return adapter("loha", where, start, lambda state, path: {"scale": jnp.asarray(alpha / rank)})
