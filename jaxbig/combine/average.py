"""Soups: the mean of several models."""

from collections.abc import Sequence

from jaxbig.combine.trees import leafwise, matched
from jaxbig.errors import UsageError
from jaxbig.tree import PyTree


def average(trees: Sequence[PyTree], weights: Sequence[float] | None = None) -> PyTree:
    """The weighted mean of several models of one architecture: a soup.

    Args:
        trees: parameter trees with the same paths and shapes; Weights are merged first.
        weights: one number for each tree, normalised to a sum of 1; None: all equal.

    Returns:
        a tree of plain arrays of the first tree's structure; floating leaves are summed in float32 at least and rounded
        once, to the dtype that the trees' dtypes promote to; others are the first tree's.

    Raises:
        UsageError: no trees, other paths or shapes, or weights that do not fit.

    Cost: as many bytes as all the trees hold, for their merged copies; nothing at inference.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxbig.fidelity import fidelity
        >>> first, second = {"w": jnp.eye(2)}, {"w": jnp.eye(2) * 5}
        >>> soup = average([first, second], weights=[1, 3])
        >>> soup["w"].tolist()
        [[4.0, 0.0], [0.0, 4.0]]
        >>> print(fidelity(lambda p, x: x @ p["w"], second, soup, [jnp.eye(2)]))
        KL 0.00474 nats, flips 0 of 2 (0%), error max 1 mean 0.5, bytes 16 -> 16

    Reference: Wortsman et al. 2022 (model soups), arXiv:2203.05482.
    """
    if not trees:
        raise UsageError("average: no trees to average")
    shares = [1.0] * len(trees) if weights is None else list(weights)
    if len(shares) != len(trees) or sum(shares) == 0:
        raise UsageError(
            f"average: {len(trees)} trees but {len(shares)} weights (sum {sum(shares)}); give one for each"
        )
    total = sum(shares)

    def mean(path, *leaves):
        return sum(leaf * (share / total) for leaf, share in zip(leaves, shares, strict=True))

    return leafwise(matched("average", trees), mean)
