"""From Weights back to plain arrays, and from several models to one."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
from jaxbig.tree import PyTree, map_paths, paths
from jaxbig.weight import is_weight, materialise, wide


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
        trees: parameter trees with the same paths and shapes; Weights are merged first.
        weights: one number for each tree, normalised to a sum of 1; None: all equal.

    Returns:
        a tree of plain arrays of the first tree's structure; floating leaves are summed in float32 at least and rounded
        once, to the dtype that the trees' dtypes promote to; others are the first tree's.

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

    def mean(path, first):
        if not jnp.issubdtype(first.dtype, jnp.floating):
            return first
        leaves = [by_path[path] for by_path in leaves_of]
        dtype = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves])
        parts = [leaf.astype(wide(dtype)) * (share / total) for leaf, share in zip(leaves, shares, strict=True)]
        return functools.reduce(jnp.add, parts).astype(dtype)

    leaves_of = [paths(tree) for tree in merged]
    return map_paths(mean, merged[0])
