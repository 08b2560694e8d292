"""BOFT: the inputs turned by a butterfly of sparse orthogonal matrices."""

import math
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.matrix import Diagonal, Turned
from jaxbig.orthogonal import rotations
from jaxbig.site import sites
from jaxbig.transform import Split, Transform, technique
from jaxbig.tree import paths, replace
from jaxbig.weight import static


class Butterfly(Turned):
    """``R base`` with ``R = B_m ... B_1``, each B_i orthogonal with k entries a row: blocks between permutations.

    Attributes:
        skew: [*stack, m, blocks, k (k - 1) / 2]: of each block's skew-symmetric matrix the entries above the diagonal.
        size: k.
    """

    skew: Any = None
    size: int = static(default=0)
    PRIVATE: ClassVar[dict[str, int]] = {"skew": 3}

    def turn(self, x, transposed):
        blocks = rotations(self.skew, self.size).astype(x.dtype)
        order = range(len(blocks)) if transposed else reversed(range(len(blocks)))
        equation = "...bk,bjk->...bj" if transposed else "...bk,bkj->...bj"
        for i in order:
            parts = self.gathered(x, i).reshape(*x.shape[:-1], -1, self.size)
            x = self.gathered(jnp.einsum(equation, parts, blocks[i]).reshape(x.shape), i, back=True)
        return x

    def gathered(self, x, i: int, back: bool = False):
        """x with the halves of blocks that B_i joins, which lie 2^i halves apart, side by side; or put back."""
        if not i:
            return x
        there = (2, 2**i, self.size // 2)
        runs = x.reshape(*x.shape[:-1], -1, *((there[1], there[0], there[2]) if back else there))
        return runs.swapaxes(-2, -3).reshape(x.shape)


@technique
def boft(block: int = 8, factors: int = 2, where: Any = None) -> Transform:
    """Trains a butterfly that turns a weight's inputs, and a factor an output: ``W' = B_m ... B_1 W diag(g)``.

    Each ``B_i = P_i diag(R_1, ..., R_b) P_i^T`` with ``R = (I + Q) (I - Q)^-1``, Q skew-symmetric, and P_i fixed: it
    joins halves of blocks that lie ``2^(i - 1)`` halves apart, so that m sparse factors mix ``2^(m - 1)`` blocks.

    Args:
        block: the most sides k of a block.
        factors: the most factors m. A weight takes as many, up to that, as there is an even k for such that
            ``k 2^(m - 1)`` divides its inputs, and the largest such k; for a single factor any divisor will do.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.

    Returns:
        a Transform; ``train[path] = {"skew": [*stack, m, b, k (k - 1) / 2], "gain": [*stack, O]}``, float32 (float64
        over a float64 base).

    Raises:
        UsageError: a `block` below 2, `factors` below 1; a selected leaf whose inputs no such block divides, or that is
            neither multiplied nor looked up.

    Init: Q zero, g one: the model is unchanged, bit for bit.

    Cost: ``m I (k - 1) / 2 + O`` parameters a layer; ``2 m I k`` FLOPs a row, and ``O(m I k^2)`` a call for the blocks;
    nothing of the size of W is formed.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((16, 9))}, jnp.ones((2, 16))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> train = boft(block=4, factors=3, where="w").init(None, params, uses).train["w"]
        >>> train["skew"].shape, train["gain"].shape
        ((3, 4, 6), (9,))

    Reference: Liu et al. 2023, arXiv:2311.06243. Deviations: the factors g are of its code, and of PEFT's, not of its
    equations; m and k give way where the inputs do not divide; no dropout of blocks. The trained entries are Q's own,
    where PEFT trains a whole matrix A with ``Q = (A^T - A) / 2``.
    """
    if not isinstance(block, int) or block < 2:
        raise UsageError(f"boft: block={block!r}; it is a whole number of at least 2")
    if not isinstance(factors, int) or factors < 1:
        raise UsageError(f"boft: factors={factors!r}; it is a whole number of at least 1")

    def init(key, params, uses):
        train, state = {}, {}
        for path, site in sites("boft", where, params, uses).items():
            inputs, outputs = site.matrix
            count, size = _sizes(inputs, block, factors)
            if size == 1:
                raise UsageError(
                    f"boft: {path} has {inputs} inputs, which no block of up to {block} divides; use a larger block"
                )
            skew = jnp.zeros((*site.stack, count, inputs // size, math.comb(size, 2)), site.dtype)
            train[path] = {"skew": skew, "gain": jnp.ones((*site.stack, outputs), site.dtype)}
            state[path] = Butterfly(None, site.in_axes, site.out_axes, "in", None, size)
        return Split(params, train, state)

    def apply(split, key=None):
        bases = paths(split.params)  # a later link that trains the base puts it under the butterfly in its own turn

        def turned(path, parts):
            weight = split.state[path].replace(base=bases.get(path), skew=parts["skew"])
            return Diagonal(weight, weight.in_axes, weight.out_axes, "out", parts["gain"])

        return replace(split.params, {path: turned(path, parts) for path, parts in split.train.items()})

    return Transform("boft", init, apply)


def _sizes(inputs: int, block: int, factors: int) -> tuple[int, int]:
    """How many factors, and the sides of their blocks."""
    for count in range(factors, 1, -1):
        even = [size for size in range(2, block + 1, 2) if inputs % (size * 2 ** (count - 1)) == 0]
        if even:
            return count, max(even)
    return 1, max(size for size in range(1, min(block, inputs) + 1) if inputs % size == 0)
