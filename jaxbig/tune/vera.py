"""VeRA: random matrices that all layers share, and two trained vectors for each."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Delta
from jaxbig.transform import Transform, key_for, technique
from jaxbig.weight import static


class SharedLowRank(Delta):
    """``base + (down diag(d)) (up diag(b))``.

    Attributes:
        d: [*stack, r]; b: [*stack, O]; down: [I, r] and up: [r, O], of all layers; size: (I, O).
    """

    d: Any = None
    b: Any = None
    down: Any = None
    up: Any = None
    size: tuple[int, int] = static(default=(0, 0))
    PRIVATE: ClassVar[dict[str, int]] = {"d": 1, "b": 1}
    SHARED: ClassVar[dict[str, int]] = {"down": 2, "up": 2}

    def matrix(self):
        return (self.down * self.d) @ (self.up * self.b)

    def forward(self, x):
        return ((x @ self.down) * self.d) @ self.up * self.b

    def backward(self, x):
        return ((x * self.b) @ self.up.T * self.d) @ self.down.T


@technique
def vera(rank: int = 256, d_initial: float = 0.1, where: Any = None, seed: int = 0) -> Transform:
    """Trains two vectors a layer around random matrices: ``W' = W + (A diag(d)) (B diag(b))``.

    A and B are drawn once, for the longest inputs and outputs of all selected leaves; a smaller one uses their first
    rows and columns.

    Args:
        rank: r.
        d_initial: d at first.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        seed: of A and B, which are the same whatever key `init` is given: an adapter can leave them out.

    Returns:
        a Transform; ``train[path] = {"d": [*stack, r], "b": [*stack, O]}``, float32 (float64 over a float64 base);
        ``state["shared"] = {"down": [max I, r], "up": [r, max O]}``.

    Raises:
        UsageError: a `rank` below 1; a selected leaf that is neither multiplied nor looked up.

    Init: b zero: the model is unchanged, bit for bit (up to the sign of zeros). A and B uniform (Kaiming) with
    deviation ``1/sqrt(fan-in)``.

    Cost: ``r + O`` parameters a layer; ``2 r (I + O)`` FLOPs a row; A and B once for the whole model.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> split = vera(rank=2, where="w").init(None, params, uses)
        >>> jax.tree.map(jnp.shape, (split.train["w"], split.state["shared"]))
        ({'b': (3,), 'd': (2,)}, {'down': (4, 2), 'up': (2, 3)})

    Reference: Kopiczko, Blankevoort, Asano 2023, arXiv:2310.11454. Deviation: weights of different sizes share the
    corner of one pair of matrices, as PEFT does (the paper's are of one size).

    Limit: over a mesh, XLA shards the shared pair by itself and gathers activations for it.
    """
    if not isinstance(rank, int) or rank < 1:
        raise UsageError(f"vera: rank={rank!r}; it is a whole number of at least 1")

    def start(key, path, site):
        d = jnp.full((*site.stack, rank), d_initial, site.dtype)
        b = jnp.zeros((*site.stack, site.matrix[1]), site.dtype)
        return {"d": d, "b": b}, SharedLowRank(None, site.in_axes, site.out_axes, size=site.matrix)

    def shared(key, sites):
        inputs, outputs = (max(site.matrix[i] for site in sites.values()) for i in (0, 1))
        dtype = jnp.result_type(*(site.dtype for site in sites.values()))

        def draw(name, shape, fan_in):
            bound = math.sqrt(3 / fan_in)
            return jax.random.uniform(key_for(jax.random.key(seed), name), shape, dtype, -bound, bound)

        return {"down": draw("down", (inputs, rank), inputs), "up": draw("up", (rank, outputs), rank)}

    def more(state, path):
        inputs, outputs = state[path].size
        return {"down": state["shared"]["down"][:inputs], "up": state["shared"]["up"][:, :outputs]}

    return adapter("vera", where, start, more, shared)
