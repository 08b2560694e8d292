"""OFT: the inputs turned by a trained orthogonal matrix of blocks."""

import math
from typing import Any, ClassVar

import jax.numpy as jnp

from jaxbig.adapter import adapter
from jaxbig.errors import UsageError
from jaxbig.matrix import Turned
from jaxbig.orthogonal import rotations
from jaxbig.transform import Transform, technique
from jaxbig.weight import static


class BlockOrthogonal(Turned):
    """``R base``, R of orthogonal blocks on its diagonal, each the Cayley transform of a skew-symmetric matrix.

    Attributes:
        skew: [*stack, blocks, k (k - 1) / 2]: each block's entries above the diagonal, row by row.
        size: k; terms: of the Neumann series in place of the inverse; 0: the inverse.
    """

    skew: Any = None
    size: int = static(default=0)
    terms: int = static(default=0)
    PRIVATE: ClassVar[dict[str, int]] = {"skew": 2}

    def turn(self, x, transposed):
        r = rotations(self.skew, self.size, self.terms)
        parts = x.reshape(*x.shape[:-1], len(r), self.size)
        turned = jnp.einsum("...bk,bjk->...bj" if transposed else "...bk,bkj->...bj", parts, r.astype(x.dtype))
        return turned.reshape(x.shape)


@technique
def oft(block: int = 32, where: Any = None, terms: int = 5) -> Transform:
    """Trains an orthogonal matrix that turns a weight's inputs: ``W' = R W``, ``R = diag(R_1, ..., R_b)``.

    Each ``R_i = (I + Q) (I - Q)^-1`` with Q skew-symmetric; angles between the columns of W stay as they are.

    Args:
        block: the most sides k of a block; an input axis uses its largest divisor up to that.
        where: the weights; None: every product and every ungrouped convolution except the model's head and tables.
        terms: of the Neumann series for the inverse, ``I + 2 Q + 2 Q^2 + ... + Q^(terms - 1)``, which is orthogonal
            only for small Q, but quick; 0: the inverse itself.

    Returns:
        a Transform; ``train[path] = {"skew": [*stack, b, k (k - 1) / 2]}``, float32 (float64 over a float64 base).

    Raises:
        UsageError: a `block` below 2, `terms` of 1 or below 0; a selected leaf whose inputs no such block divides, or
            that is neither multiplied nor looked up.

    Init: Q zero: the model is unchanged, bit for bit.

    Cost: ``I (k - 1) / 2`` parameters a layer; ``2 I k`` FLOPs a row, and ``2 I k^2`` a term for R.

    Example:
        >>> from jaxbig.usage import usage
        >>> params, x = {"w": jnp.ones((12, 9))}, jnp.ones((2, 12))
        >>> uses = usage(lambda p, x: x @ p["w"], params, x)
        >>> oft(block=4, where="w").init(None, params, uses).train["w"]["skew"].shape
        (3, 6)

    Reference: Qiu et al. 2023, arXiv:2306.07280; turning the inputs, and the series, Qiu et al. 2025 (OFTv2),
    arXiv:2506.19847. Deviations: no constrained variant (COFT), no blocks that are shared, no dropout of blocks.
    """
    if not isinstance(block, int) or block < 2:
        raise UsageError(f"oft: block={block!r}; it is a whole number of at least 2")
    if not isinstance(terms, int) or terms < 0 or terms == 1:
        raise UsageError(f"oft: terms={terms!r}; it is 0, or a whole number of at least 2")

    def start(key, path, site):
        inputs = site.matrix[0]
        size = max(k for k in range(1, min(block, inputs) + 1) if inputs % k == 0)
        if size == 1:
            raise UsageError(
                f"oft: {path} has {inputs} inputs, which no block of up to {block} divides; use a larger block"
            )
        skew = jnp.zeros((*site.stack, inputs // size, math.comb(size, 2)), site.dtype)
        return {"skew": skew}, BlockOrthogonal(None, site.in_axes, site.out_axes, "in", None, size, terms)

    return adapter("oft", where, start)
