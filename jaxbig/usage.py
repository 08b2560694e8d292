"""How a function uses its parameters, read from the function itself: `usage` and `calibrate`.

A technique needs to know which axes of a kernel are inputs and which outputs, which leaves are look-up tables, and
which product is the model's head. Names do not tell; the traced program does.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbig.errors import UsageError
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
        groups: of a convolution; 1 elsewhere.
        detail: the primitive, for kind other.
    """

    kind: str
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    head: bool = False
    groups: int = 1
    detail: str = ""


Uses = dict[str, tuple[Use, ...]]


def usage(fn: Callable, params: PyTree, *args: Any, **kwargs: Any) -> Uses:
    """How ``fn(params, *args, **kwargs)`` uses each floating leaf of `params`; traced abstractly, nothing is computed.

    Args:
        fn: the model, e.g. ``lambda p, x: model.apply({"params": p}, x)``.
        params: arrays, shapes, or Weights.
        *args, **kwargs: example inputs; arrays or `jax.ShapeDtypeStruct`.

    Returns:
        path -> its uses, without repetition, in the order of the program; a leaf that is not used has none.

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
    found: dict[str, dict[Use, None]] = {path: {} for path in shapes}
    products: dict[int, tuple[str, Use]] = {}

    def observe(view: View, kind: str, x, details, eqn):
        use = _use(view, kind, details, eqn, *shapes[view.path])
        found[view.path].setdefault(use)
        if kind in ("product", "conv"):
            products[id(eqn)] = (view.path, use)

    jaxprs = []

    def traced(params, args, kwargs):
        result, jaxpr = run(fn, (_watched(params), *args), kwargs, Interpreter(observe=observe))
        jaxprs.append(jaxpr)
        return result

    jax.eval_shape(traced, map_paths(lambda _, leaf: _shape(leaf), params), args, kwargs)
    heads = _last_products(jaxprs[0], products)
    return {
        path: tuple(use._replace(head=(path, use) in heads and use.kind == "product") for use in uses)
        for path, uses in found.items()
    }


def _floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_weight(leaf) else leaf


def _watched(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: Dense(leaf) if _floating(leaf) and not is_weight(leaf) else leaf, params,
                        is_leaf=is_weight)  # fmt: skip


def _use(view: View, kind: str, details, eqn, shape, dtype) -> Use:
    n = len(view.weight.shape)
    if kind == "product":
        axes = range(-n, 0)
        summed = tuple(a for a in axes if details.w[a] in details.x and details.w[a] not in details.out)
        free = tuple(a for a in axes if details.w[a] in details.out and details.w[a] not in details.x)
        return Use(kind, summed, free, shape, dtype)
    if kind == "conv":
        out = tuple(a - n for a in range(n) if details.w[a] == "o")
        return Use(kind, tuple(a for a in range(-n, 0) if a not in out), out, shape, dtype, groups=details.groups)
    if kind == "lookup":
        return Use(kind, (details - n,), tuple(a for a in range(-n, 0) if a != details - n), shape, dtype)
    return Use(kind, (), (), shape, dtype, detail=eqn.primitive.name if eqn is not None else "result")


def _last_products(jaxpr: Any, products: dict[int, Any]) -> set[Any]:
    """The products between which and the function's results there is no other product."""
    found: set[Any] = set()
    for i in range(len(jaxpr.jaxpr.outvars)):
        hits: set[int] = set()
        _walk_back(jaxpr, {i}, products, hits)
        last = {products[hit] for hit in hits}
        if len(last) == 1:  # many products end in a residual stream: such a function has no head
            found |= last
    return found


def _walk_back(jaxpr: Any, wanted: set[int], products: dict[int, Any], hits: set[int]) -> set[int]:
    """Follows results back to products of parameters; returns the inputs that are reached without meeting any."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    needed = {id(jaxpr.outvars[i]) for i in wanted}
    for eqn in reversed(jaxpr.eqns):
        outs = {i for i, var in enumerate(eqn.outvars) if id(var) in needed}
        if not outs:
            continue
        if id(eqn) in products:
            hits.add(id(eqn))
            continue
        reached = _inputs_behind(eqn, outs, products, hits)
        needed |= {id(var) for i, var in enumerate(eqn.invars) if i in reached}
    return {i for i, var in enumerate(jaxpr.invars) if id(var) in needed}


def _inputs_behind(eqn: Any, outs: set[int], products, hits) -> set[int]:
    name, p = eqn.primitive.name, eqn.params
    if name == "scan":
        body = getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
        carried = [i for i, (o, b) in enumerate(zip(eqn.outvars, body.outvars, strict=True))
                   if o.aval.ndim == b.aval.ndim]  # fmt: skip
        first = sum(o.aval.ndim == b.aval.ndim for o, b in zip(eqn.invars, body.invars, strict=True)) - len(carried)
        return _loop(body, outs, first, len(carried), products, hits)
    if name == "while":
        body = getattr(p["body_jaxpr"], "jaxpr", p["body_jaxpr"])
        reached = _loop(body, outs, p["body_nconsts"], len(eqn.outvars), products, hits)
        return {i + p["cond_nconsts"] for i in reached}
    if name == "cond":
        reached = set()
        for branch in p["branches"]:
            reached |= {i + 1 for i in _walk_back(branch, outs, products, hits)}
        return reached
    inner = p.get("jaxpr", p.get("call_jaxpr"))
    if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(eqn.invars):
        return _walk_back(inner, outs, products, hits)
    return set(range(len(eqn.invars)))


def _loop(body, outs: set[int], first: int, n_carry: int, products, hits) -> set[int]:
    wanted = set(outs)
    while True:
        reached = _walk_back(body, wanted, products, hits)
        more = wanted | {i - first for i in reached if first <= i < first + n_carry}
        if more == wanted:
            return reached
        wanted = more


class Moments(NamedTuple):
    """Sums over all rows x that met a weight's input axes; the uncentred second moment is ``square / count``.

    Attributes:
        count: number of rows; total: ``sum x``; square: ``sum x*x``; gram: ``sum x x^T`` over the flattened input
        axes, or None. Stacked weights have a leading axis per layer.
    """

    count: jax.Array
    total: jax.Array
    square: jax.Array
    gram: jax.Array | None


def calibrate(fn: Callable, params: PyTree, batches: Iterable[tuple], *, gram: bool = False) -> dict[str, Moments]:
    """The input moments of every product, over some batches; what EVA, GPTQ, Wanda and the like start from.

    The program itself returns them as extra results, through scan and remat too; nothing is hooked into the model.

    Args:
        fn: ``fn(params, *batch)``.
        params: arrays or Weights.
        batches: tuples of further arguments; all of the same shapes, or one compilation each.
        gram: also the Gram matrices, ``[..., in, in]``.

    Returns:
        path -> Moments, float32 (float64 where x is). Products inside ``while`` loops are not counted: the number of
        rounds is unknown to the compiler.

    Raises:
        UsageError: no batch was given.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> stats = calibrate(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, [(x,)])
        >>> stats["w"].square.tolist()
        [10.0, 20.0]
    """

    def observe(view, kind, x, c, eqn):
        return _moments(x, c, gram) if kind == "product" else None

    @jax.jit
    def step(params, batch):
        interpreter = Interpreter(observe=observe)
        run(fn, (_watched(params), *batch), {}, interpreter)
        return interpreter.taps

    total = None
    for batch in batches:
        taps = step(params, tuple(batch))
        total = taps if total is None else jax.tree.map(jnp.add, total, taps)
    if total is None:
        raise UsageError("calibrate: no batches; pass at least one tuple of model inputs")
    return total


def _moments(x, c, gram: bool) -> Moments:
    """Moments of x over its rows: axes that are neither contracted nor shared with a stack of weights."""
    batch = [label for label in c.w if label in c.x and label in c.out]
    summed = [label for label in c.w if label in c.x and label not in c.out]
    rows = [label for label in c.x if label not in c.w]
    x = jnp.transpose(x, [c.x.index(label) for label in batch + rows + summed])
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    middle = tuple(range(len(batch), len(batch) + len(rows)))
    rows_met = math.prod(x.shape[i] for i in middle)
    count = jnp.full(x.shape[: len(batch)], rows_met, x.dtype)
    flat = x.reshape(*x.shape[: len(batch)], rows_met, -1)
    matrix = jnp.einsum("...ni,...nj->...ij", flat, flat) if gram else None
    return Moments(count, x.sum(middle), (x * x).sum(middle), matrix)


__all__ = ["Moments", "Use", "Uses", "calibrate", "usage"]
