"""The table of `test_lift.py`: a case is a function of parameters, a kind makes Weights of its leaves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.compress.prune import prune
from jaxbig.compress.quantize import quantize
from jaxbig.lowrank import LowRank
from jaxbig.tree import match, paths, replace
from jaxbig.usage import Use, usage
from jaxbig.weight import Scaled, is_weight, materialise


@dataclass(frozen=True, eq=False)
class Case:
    """One function and what `lift` promises for it.

    Attributes:
        make: no arguments -> (fn, params, args); ``fn(params, *args)`` results in any tree.
        where: the leaves that become Weights.
        loud: kind -> why it is expanded there ("*": every kind). Kinds that are not named are factored.
        line: text of the line that is named where a weight is expanded.
        axes: input and output axes where the function itself does not tell (an `other` use).
        tolerance: of values and gradients, relative to the largest entry.
        forward: derivatives by `jax.jvp`: the function has no reverse mode.
        expands: why the backward pass expands a weight although the forward pass does not.
        zero: why some gradient is truly zero: then errors are measured against the largest entry of all gradients.
        computes: why the function itself computes an array of the weight's full shape.
    """

    name: str
    make: Callable[[], tuple[Callable, Any, tuple]]
    where: Any = r"(.*/)?kernel"
    loud: Mapping[str, str] = field(default_factory=dict)
    line: str = ""
    axes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    tolerance: float = 2e-5
    forward: bool = False
    expands: str = ""
    zero: str = ""
    computes: str = ""

    def reason(self, kind: str) -> str:
        return self.loud.get(kind, self.loud.get("*", ""))


def _low_rank(base, use: Use, key) -> LowRank:
    shape = base.shape
    stack, inner, outer = (
        tuple(shape[i] for i in axes)
        for axes in (
            [i for i in range(-len(shape), 0) if i not in use.in_axes + use.out_axes],
            use.in_axes,
            use.out_axes,
        )
    )
    a = jax.random.normal(key, (*stack, *inner, 2)) / 3
    b = jax.random.normal(jax.random.fold_in(key, 1), (*stack, 2, *outer)) / 3
    return LowRank(base, a, b, jnp.float32(0.7), None, None, use.in_axes, use.out_axes)


def _codes(**options):
    return lambda leaf, use, key: quantize(**options, where="w").init(None, {"w": leaf}, {"w": (use,)}).params["w"]


def _sparse(leaf, use, key):
    return prune(0.5, where="w").init(None, {"w": leaf}, {"w": (use,)}).params["w"]


def _stack(*makers):
    def make(leaf, use, key):
        for maker in makers:
            leaf = maker(leaf, use, key)
        return leaf

    return make


KINDS: dict[str, Callable] = {
    "LowRank": _low_rank,
    "int8": _codes(format="int8"),
    "int8 asymmetric": _codes(format="int8", symmetric=False),
    "int4": _codes(format="int4", per="channel"),
    "int4 asymmetric group": _codes(format="int4", symmetric=False, group=2),
    "nf4 group": _codes(format="nf4", group=2),
    "Sparse": _sparse,
    "Scaled": lambda leaf, use, key: Scaled(leaf, jnp.float32(0.6)),
    "LowRank(nf4)": _stack(_codes(format="nf4", group=2), _low_rank),
    "LowRank(Sparse(int4))": _stack(_codes(format="int4", symmetric=False, group=2), _sparse, _low_rank),
}


LOW_RANK = [kind for kind in KINDS if kind.startswith("LowRank")]


BLOCKS = {kind: "codes or scales are held in blocks along that axis" for kind in KINDS if "4" in kind}


def normal(*shape: int) -> jax.Array:
    """Values of every day; by NumPy, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def uses_of(case: Case, fn, params, args) -> dict[str, Use]:
    """The use that orients each chosen leaf's factors and scales."""
    chosen = match(case.where, paths(params))
    if case.axes is not None:
        leaves = paths(params)
        return {path: Use("product", *case.axes, tuple(leaves[path].shape), leaves[path].dtype) for path in chosen}
    found = usage(fn, params, *args)
    rank = ("lookup", "product", "conv")
    return {path: min((u for u in found[path] if u.kind in rank), key=lambda u: rank.index(u.kind)) for path in chosen}


def with_weights(kind: str, params, uses: Mapping[str, Use]):
    """The tree with each chosen leaf as a Weight of this kind."""
    leaves = paths(params)
    made = {
        path: KINDS[kind](leaves[path], use, jax.random.key(i)) for i, (path, use) in enumerate(sorted(uses.items()))
    }
    return replace(params, made)


def merged(params):
    return jax.tree.map(materialise, params, is_leaf=is_weight)


def floats(tree) -> tuple[list, Callable]:
    """The floating arrays of a tree, and what puts others in their places."""
    leaves, treedef = jax.tree.flatten(tree)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def fill(new):
        rest = iter(new)
        return jax.tree.unflatten(
            treedef, [next(rest) if yes else leaf for yes, leaf in zip(floating, leaves, strict=True)]
        )

    return [leaf for yes, leaf in zip(floating, leaves, strict=True) if yes], fill


def scalar(outputs) -> jax.Array:
    """One number that depends on every entry of every floating output, each with its own weight."""
    total = jnp.float32(0)
    for leaf in jax.tree.leaves(outputs):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            flat = leaf.astype(jnp.float32).reshape(-1)
            total += flat @ jnp.cos(1.0 + jnp.arange(flat.size, dtype=jnp.float32))
    return total
