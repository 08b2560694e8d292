"""How a function uses its parameters, read from the function itself: `usage` and `calibrate`.

A technique needs to know which axes of a kernel are inputs and which outputs, which leaves are look-up tables, and
which product is the model's head. Names do not tell; the traced program does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traceback_util import api_boundary

from jaxbig.dataflow import heads_and_residuals
from jaxbig.lift import run
from jaxbig.lift.interpreter import Interpreter, View
from jaxbig.tree import PyTree, map_paths, paths
from jaxbig.weight import Dense, is_weight


class Use(NamedTuple):
    """One use of a leaf.

    Attributes:
        kind: product, conv, lookup, or other.
        in_axes: axes that are summed over (product, conv) or looked up along, counted from the right.
        out_axes: axes that appear in the result. All axes that are in neither are stacked: layers, heads, experts.
        shape, dtype: the leaf's own, stacked axes included.
        head: whether the function's result depends on this product through no other product: the output layer.
        residual: whether the result of this product or convolution, but for a bias and dropout, is added to a residual
            stream.
        groups: of a convolution; 1 elsewhere.
        detail: the primitive, for kind other.
        layers: number of leading axes of which it is given one entry at a time, as a scan over layers does.
    """

    kind: str
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    head: bool = False
    groups: int = 1
    detail: str = ""
    layers: int = 0
    residual: bool = False


Uses = dict[str, tuple[Use, ...]]


@api_boundary
def usage(fn: Callable, params: PyTree, *args: Any, **kwargs: Any) -> Uses:
    """How ``fn(params, *args, **kwargs)`` uses each floating leaf of `params`; traced abstractly, nothing is computed.

    Args:
        fn: the model, e.g. ``lambda p, x: model.apply({"params": p}, x)``.
        params: arrays, shapes, or Weights.
        *args, **kwargs: example inputs; arrays or `jax.ShapeDtypeStruct`.

    Returns:
        path -> its uses, without repetition; paths and uses are in the order of the program. A leaf that is not used
        has none, and comes last.

    Example:
        >>> import flax.linen as nn
        >>> model, x = nn.Dense(3), jnp.ones((2, 4))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> uses = usage(lambda p, x: model.apply({"params": p}, x), params, x)
        >>> use, = uses["kernel"]
        >>> use.kind, use.in_axes, use.out_axes, use.head
        ('product', (-2,), (-1,), True)
    """
    shapes = {path: (tuple(leaf.shape), leaf.dtype) for path, leaf in paths(params).items() if _floating(leaf)}
    found: dict[str, dict[Use, None]] = {}
    products: dict[tuple[int, ...], tuple[str, Use]] = {}

    def observe(view: View, kind: str, x, details, eqn):
        use = _use(view, kind, details, eqn, *shapes[view.path])
        found.setdefault(view.path, {}).setdefault(use)
        if kind in ("product", "conv"):
            products[tuple(map(id, interpreter.calls))] = (view.path, use)

    interpreter, jaxprs = Interpreter(observe=observe), []
    leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=is_weight)
    arrays = {i: _shape(leaf) for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

    def traced(params, arrays):
        rest = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]  # flags and names stay what they are
        args, kwargs = jax.tree.unflatten(treedef, rest)
        result, jaxpr = run(fn, (watched_leaves(params), *args), kwargs, interpreter)
        jaxprs.append(jaxpr)
        return result

    jax.eval_shape(traced, map_paths(lambda _, leaf: _shape(leaf), params), arrays)
    last, streams = heads_and_residuals(jaxprs[0], products)
    return {
        path: tuple(
            use._replace(head=(path, use) in last and use.kind == "product", residual=(path, use) in streams)
            for use in uses
        )
        for path, uses in {**found, **{path: {} for path in shapes if path not in found}}.items()
    }


def _floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_weight(leaf) else leaf


def watched_leaves(params: PyTree) -> PyTree:
    """`params` with each floating array as a `Dense` weight, which the interpreter follows."""
    return jax.tree.map(lambda leaf: Dense(leaf) if _floating(leaf) and not is_weight(leaf) else leaf, params,
                        is_leaf=is_weight)  # fmt: skip


def _use(view: View, kind: str, details, eqn, shape, dtype) -> Use:
    n = len(view.weight.shape)
    use = Use(kind, (), (), shape, dtype, layers=len(shape) - n)
    if kind == "product":
        axes = range(-n, 0)
        summed = tuple(a for a in axes if details.w[a] in details.x and details.w[a] not in details.out)
        free = tuple(a for a in axes if details.w[a] in details.out and details.w[a] not in details.x)
        return use._replace(in_axes=summed, out_axes=free)
    if kind == "conv":
        out = tuple(a - n for a in range(n) if details.w[a] == "o")
        rest = tuple(a for a in range(-n, 0) if a not in out)
        return use._replace(in_axes=rest, out_axes=out, groups=details.groups)
    if kind == "lookup":
        axis, stack = details
        out = tuple(a for a in range(-n, 0) if a != axis - n and a + n not in stack)
        return use._replace(in_axes=(axis - n,), out_axes=out)
    return use._replace(detail=eqn.primitive.name if eqn is not None else "result")
