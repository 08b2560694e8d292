"""What combinations of models share: one architecture, leaf by leaf, in one arithmetic.

Floating leaves are computed in float32 at least (float64 where one is) and rounded once, to the dtype that the trees'
dtypes promote to. Other leaves are the first tree's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxbig.combine.rule import Rule
from jaxbig.compress.merge import merge
from jaxbig.errors import UsageError
from jaxbig.tree import PyTree, map_paths, paths
from jaxbig.weight import wide


def matched(name: str, trees: Sequence[PyTree]) -> list[PyTree]:
    """The trees with their Weights merged.

    Args:
        name: of the function, for its errors.
        trees: parameter trees.

    Returns:
        trees of plain arrays that share nothing with those given.

    Raises:
        UsageError: other paths or shapes in one of them.

    Example:
        >>> from jaxbig.weight import Scaled
        >>> matched("mine", [{"w": Scaled(jnp.ones(2), jnp.float32(3.0))}])[0]["w"].tolist()
        [3.0, 3.0]
    """
    merged = [merge(tree) for tree in trees]
    shapes = [{path: leaf.shape for path, leaf in paths(tree).items()} for tree in merged]
    for i, other in enumerate(shapes[1:], 1):
        odd = next((path for path in {**shapes[0], **other} if shapes[0].get(path) != other.get(path)), None)
        if odd is not None:
            raise UsageError(f"{name}: {odd} is {shapes[0].get(odd)} in tree 0 and {other.get(odd)} in tree {i}")
    return merged


def leafwise(trees: Sequence[PyTree], function: Callable[..., Any]) -> PyTree:
    """``function(path, *leaves)`` of each floating leaf, its leaves widened before and the result rounded after.

    Example:
        >>> trees = [{"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.zeros(2)}]
        >>> leafwise(trees, lambda path, a, b: a + b)["w"].dtype
        dtype('float32')
    """
    by_path = [paths(tree) for tree in trees]

    def one(path, first):
        if not jnp.issubdtype(first.dtype, jnp.floating):
            return first
        leaves = [tree[path] for tree in by_path]
        dtype = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves])
        return function(path, *[leaf.astype(wide(dtype)) for leaf in leaves]).astype(dtype)

    return map_paths(one, trees[0])


def moved(name: str, base: PyTree, trees: Sequence[PyTree], weights: Any, rule: Rule, key: Any = None) -> PyTree:
    """``base + rule(tree_t - base, w_t)``: what task arithmetic, TIES and DARE have in common.

    Args:
        name: of the function, for its errors.
        base: the tree that the others were tuned from.
        trees: the tuned ones.
        weights: one number for each; None: 1.
        rule: how the differences become one.
        key: for a rule that draws.

    Returns:
        a tree of plain arrays of the base's structure.

    Raises:
        UsageError: no trees, other paths or shapes, or weights that do not fit.

    Example:
        >>> base, tuned = {"w": jnp.ones(2)}, {"w": jnp.array([2.0, 1.0])}
        >>> moved("mine", base, [tuned], [-1.0], Rule())["w"].tolist()
        [0.0, 1.0]
    """
    if not trees:
        raise UsageError(f"{name}: no trees to combine; give one at least")
    shares = [1.0] * len(trees) if weights is None else list(weights)
    if len(shares) != len(trees):
        raise UsageError(f"{name}: {len(trees)} trees but {len(shares)} weights; give one for each")
    merged = matched(name, [base, *trees])
    by_path, vectors = [paths(tree) for tree in merged], []
    for other in by_path[1:]:
        pairs = {path: (leaf, other[path]) for path, leaf in by_path[0].items()}
        vectors.append({
            path: new.astype(_wide(old, new)) - old.astype(_wide(old, new))
            for path, (old, new) in pairs.items() if jnp.issubdtype(old.dtype, jnp.floating)
        })  # fmt: skip
    if not vectors[0]:
        return merged[0]
    step = rule(vectors, shares, key)
    return leafwise(merged, lambda path, old, *_: old + step[path])


def _wide(*leaves: Any) -> Any:
    return functools.reduce(jnp.promote_types, [wide(leaf.dtype) for leaf in leaves])
