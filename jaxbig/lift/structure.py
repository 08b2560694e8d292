"""Rules that rearrange a weight: a transpose, reshape, slice, cast or scale of a weight is a weight again."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxbig.lift.interpreter import Interpreter, View, bind, rule
from jaxbig.weight import Concat, Dense, Scaled


@rule("transpose")
def _transpose(interpreter: Interpreter, eqn, inputs):
    view, order = inputs[0], eqn.params["permutation"]
    singles = [view.weight_axis(axis) for axis in order]
    if len(view.shape) != len(view.perm) or None in singles:
        return NotImplemented
    perm = tuple(axis + len(view.perm) for axis in singles)
    return [replace(view, perm=perm, shape=tuple(view.shape[a] for a in order))]


@rule("reshape", "squeeze", "expand_dims")
def _reshape(interpreter: Interpreter, eqn, inputs):
    if eqn.params.get("dimensions") is not None and eqn.primitive.name == "reshape":
        return NotImplemented
    return [replace(inputs[0], shape=tuple(eqn.outvars[0].aval.shape))]


@rule("broadcast_in_dim")
def _broadcast_in_dim(interpreter: Interpreter, eqn, inputs):
    shape = tuple(eqn.outvars[0].aval.shape)
    ordered = list(eqn.params["broadcast_dimensions"]) == sorted(eqn.params["broadcast_dimensions"])
    if math.prod(shape) != math.prod(inputs[0].shape) or not ordered:
        if not isinstance(inputs[0].weight, Dense):  # watched arrays stay watched: a bias is known by its addition
            return NotImplemented
        return [View.of(Dense(bind(eqn, [inputs[0].apply(inputs[0].weight.base)])[0]), inputs[0].path)]
    return [replace(inputs[0], shape=shape)]


@rule("copy", "copy_p", "name", "stop_gradient", "optimization_barrier", "pvary", "pcast", "sharding_constraint")
def _same(interpreter: Interpreter, eqn, inputs):
    sharding = eqn.params.get("sharding")
    if sharding is not None and (not isinstance(sharding, NamedSharding) or not inputs[0].plain or inputs[0].joined):
        return NotImplemented
    return [replace(v, weight=_each_part(eqn, v)) if isinstance(v, View) else bind(eqn, [v])[0] for v in inputs]


def _each_part(eqn, view: View):
    if eqn.primitive.name != "sharding_constraint":
        return jax.tree.map(lambda part: bind(eqn, [part])[0], view.weight)
    sharding = eqn.params["sharding"]
    specs = view.weight.specs(sharding.spec)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(sharding.mesh, spec), specs, is_leaf=lambda s: isinstance(s, PartitionSpec)
    )
    return lax.with_sharding_constraint(view.weight, shardings)


@rule("convert_element_type")
def _convert(interpreter: Interpreter, eqn, inputs):
    dtype = eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return NotImplemented
    return [replace(inputs[0], weight=inputs[0].weight.cast(dtype))]


@rule("neg", "mul", "div")
def _scale(interpreter: Interpreter, eqn, inputs):
    view = inputs[0]
    factor = -1.0 if eqn.primitive.name == "neg" else inputs[1]
    if eqn.primitive.name == "mul" and not isinstance(view, View):
        view, factor = inputs[1], inputs[0]
    if not isinstance(view, View) or isinstance(factor, View) or jnp.ndim(factor) != 0:
        return NotImplemented
    factor = jnp.asarray(factor, view.dtype)
    return [replace(view, weight=Scaled(view.weight, 1 / factor if eqn.primitive.name == "div" else factor))]


@rule("slice")
def _slice(interpreter: Interpreter, eqn, inputs):
    p = eqn.params
    steps = p["strides"] or (1,) * len(p["start_indices"])
    return _cut(inputs[0], eqn.outvars[0], {
        axis: lambda part, i, begin=begin, end=end, step=step: lax.slice_in_dim(part, begin, end, step, axis=i)
        for axis, (begin, end, step) in enumerate(zip(p["start_indices"], p["limit_indices"], steps, strict=True))
    })  # fmt: skip


@rule("dynamic_slice")
def _dynamic_slice(interpreter: Interpreter, eqn, inputs):
    if not isinstance(inputs[0], View) or any(isinstance(start, View) for start in inputs[1:]):
        return NotImplemented
    return _cut(inputs[0], eqn.outvars[0], {
        axis: lambda part, i, start=start, size=size: lax.dynamic_slice_in_dim(part, start, size, axis=i)
        for axis, (start, size) in enumerate(zip(inputs[1:], eqn.params["slice_sizes"], strict=True))
    })  # fmt: skip


@rule("split")
def _split(interpreter: Interpreter, eqn, inputs):
    ends, pieces = list(itertools.accumulate(map(int, eqn.params["sizes"]))), []
    for begin, end, out in zip([0, *ends], ends, eqn.outvars, strict=False):
        cut = {eqn.params["axis"]: lambda part, i, begin=begin, end=end: lax.slice_in_dim(part, begin, end, axis=i)}
        pieces.append(_cut(inputs[0], out, cut))
    return NotImplemented if NotImplemented in pieces else [piece for [piece] in pieces]


def _cut(view: View, out, cuts: dict[int, Callable]):
    """A view whose weight has some axes cut; NotImplemented where a weight's parts hold blocks along such an axis."""
    shape, weight = tuple(out.aval.shape), view.weight
    for axis, cut in cuts.items():
        if shape[axis] == view.shape[axis]:
            continue
        own = view.weight_axis(axis)
        if own is None or weight.blocks(own):
            return NotImplemented
        weight = weight.map_axis(own, cut)
        if weight.shape[own] != shape[axis]:
            return NotImplemented
    return [replace(view, weight=weight, shape=shape)]


@rule("concatenate")
def _concatenate(interpreter: Interpreter, eqn, inputs):
    if not all(view.plain and not view.joined for view in inputs if isinstance(view, View)):
        return NotImplemented
    leaves = tuple(view.weight if isinstance(view, View) else view for view in inputs)
    each = tuple(view.path if isinstance(view, View) else "" for view in inputs)
    joined = View.of(Concat(leaves, eqn.params["dimension"] - len(inputs[0].shape)), " + ".join(filter(None, each)))
    return [replace(joined, joined=each)]
