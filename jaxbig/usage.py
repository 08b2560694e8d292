"""How a function uses its parameters, read from the function itself: `usage` and `calibrate`.

A technique needs to know which axes of a kernel are inputs and which outputs, which leaves are look-up tables, and
which product is the model's head. Names do not tell; the traced program does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traceback_util import api_boundary

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
    heads = _heads(jaxprs[0], products)
    return {
        path: tuple(use._replace(head=(path, use) in heads and use.kind == "product") for use in uses)
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


def _heads(jaxpr: Any, products: dict[tuple[int, ...], Any]) -> set[Any]:
    """The products that some result depends on through no other product, and that feed no other product."""
    found: set[Any] = set()
    walk = _Walk(products)
    for i in range(len(jaxpr.jaxpr.outvars)):
        walk.last = set()
        walk.back(jaxpr, {(i, False)}, ())
        last = {products[key] for key in walk.last}
        if len(last) == 1:  # many products end in a residual stream: such a function has no head
            found |= last
    return found - {products[key] for key in walk.fed}


class _Walk:
    """From results back to inputs. Places are pairs (index, whether a product of parameters lies in between).

    Attributes:
        products: the equations that are products of parameters, by the ids of the calls around them and their own.
        last: products that were reached first; fed: those that were reached through another.
    """

    def __init__(self, products: dict[tuple[int, ...], Any]):
        self.products, self.last, self.fed = products, set(), set()

    def back(self, jaxpr: Any, wanted: set[tuple[int, bool]], calls: tuple[int, ...]) -> set[tuple[int, bool]]:
        """The inputs of a jaxpr that the wanted outputs depend on."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        needed = {(id(jaxpr.outvars[i]), behind) for i, behind in wanted}
        for eqn in reversed(jaxpr.eqns):
            outs = {(i, b) for i, var in enumerate(eqn.outvars) for b in (False, True) if (id(var), b) in needed}
            if outs:
                reached = self.inputs(eqn, outs, (*calls, id(eqn)))
                needed |= {(id(eqn.invars[i]), behind) for i, behind in reached}
        return {(i, b) for i, var in enumerate(jaxpr.invars) for b in (False, True) if (id(var), b) in needed}

    def inputs(self, eqn: Any, outs: set[tuple[int, bool]], calls: tuple[int, ...]) -> set[tuple[int, bool]]:
        """The inputs of an equation that these outputs depend on."""
        name, p, every = eqn.primitive.name, eqn.params, range(len(eqn.invars))
        if calls in self.products:
            self.last |= {calls for _, behind in outs if not behind}
            self.fed |= {calls for _, behind in outs if behind}
            return {(i, True) for i in every}
        if name == "scan":
            body = getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
            carried = sum(o.aval.ndim == b.aval.ndim for o, b in zip(eqn.outvars, body.outvars, strict=True))
            first = sum(o.aval.ndim == b.aval.ndim for o, b in zip(eqn.invars, body.invars, strict=True)) - carried
            return self.loop(body, outs, first, carried, calls)
        if name == "while":
            reached = self.loop(p["body_jaxpr"], outs, p["body_nconsts"], len(eqn.outvars), calls)
            return {(i + p["cond_nconsts"], behind) for i, behind in reached}
        if name == "cond":
            return {(i + 1, b) for branch in p["branches"] for i, b in self.back(branch, outs, calls)}
        inner = p.get("jaxpr", p.get("call_jaxpr"))
        if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(eqn.invars):
            return self.back(inner, outs, calls)
        return {(i, behind) for i in every for _, behind in outs}

    def loop(self, body: Any, outs, first: int, n_carry: int, calls) -> set[tuple[int, bool]]:
        """As `back`, for a body whose carried inputs were its outputs a round before."""
        wanted = set(outs)
        while True:
            reached = self.back(body, wanted, calls)
            more = wanted | {(i - first, b) for i, b in reached if first <= i < first + n_carry}
            if more == wanted:
                return reached
            wanted = more
