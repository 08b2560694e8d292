"""From Weights back to plain arrays, and from several models to one."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.tree import PyTree, paths
from jaxbig.weight import is_weight, materialise


def merge(params: PyTree) -> PyTree:
    """Every Weight of a tree as the plain array it stands for.

    Args:
        params: what `Transform.apply` gives.

    Returns:
        a tree of the base model's structure, shapes and dtypes; masks stay in it as zeros. Differentiable. It shares no
        array with `params`: either may be donated. Inside jit the copies cost nothing.

    Example:
        >>> from jaxbig.weight import Scaled
        >>> merge({"w": Scaled(jnp.ones(2), jnp.float32(3.0))})["w"].tolist()
        [3.0, 3.0]
    """
    given = {id(array) for array in jax.tree.leaves(params)}

    def own(leaf):
        array = materialise(leaf)
        return array.copy() if id(array) in given and hasattr(array, "copy") else array

    return jax.tree.map(own, params, is_leaf=is_weight)


def average(trees: Sequence[PyTree], weights: Sequence[float] | None = None) -> PyTree:
    """The weighted mean of several models of one architecture: a soup.

    Args:
        trees: parameter trees of one structure; Weights are merged first.
        weights: one number for each tree, normalised to a sum of 1; None: all equal.

    Returns:
        a tree of plain arrays; floating leaves are summed in float32 at least and rounded once; others are the first
        tree's.

    Raises:
        UsageError: no trees, other paths or shapes, or weights that do not fit.

    Example:
        >>> average([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}], weights=[1, 3])["w"].tolist()
        [0.75, 0.75]

    Reference: Wortsman et al. 2022 (model soups), arXiv:2203.05482.
    """
    if not trees:
        raise UsageError("average: no trees to average")
    shares = [1.0] * len(trees) if weights is None else list(weights)
    if len(shares) != len(trees) or sum(shares) == 0:
        raise UsageError(
            f"average: {len(trees)} trees but {len(shares)} weights (sum {sum(shares)}); give one for each"
        )
    merged = [merge(tree) for tree in trees]
    shapes = [{path: leaf.shape for path, leaf in paths(tree).items()} for tree in merged]
    for i, other in enumerate(shapes[1:], 1):
        odd = next((path for path in {**shapes[0], **other} if shapes[0].get(path) != other.get(path)), None)
        if odd is not None:
            raise UsageError(f"average: {odd} is {shapes[0].get(odd)} in tree 0 and {other.get(odd)} in tree {i}")
    total = sum(shares)

    def mean(*leaves):
        if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return leaves[0]
        wide = jnp.promote_types(leaves[0].dtype, jnp.float32)
        parts = [leaf.astype(wide) * (share / total) for leaf, share in zip(leaves, shares, strict=True)]
        return functools.reduce(jnp.add, parts).astype(leaves[0].dtype)

    return jax.tree.map(mean, *merged)
