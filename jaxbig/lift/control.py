"""Rules of control flow: weights enter the bodies of calls, loops, branches, remat and shard_map as weights."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Sharding

from jaxbig.errors import UsageError
from jaxbig.lift.interpreter import Interpreter, View, bind, rule
from jaxbig.weight import is_weight, restack


@rule("jit", "pjit", "closed_call", "core_call")
def _jit(interpreter: Interpreter, eqn, inputs):
    outputs = interpreter.evaluate(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")), inputs)
    wanted = eqn.params.get("out_shardings", (None,) * len(outputs))
    return [
        lax.with_sharding_constraint(out, s) if isinstance(s, Sharding) and not isinstance(out, View) else out
        for out, s in zip(outputs, wanted, strict=True)
    ]


@rule("remat2", "checkpoint", "remat")
def _remat(interpreter: Interpreter, eqn, inputs):
    p = eqn.params
    if p["differentiated"] and p["prevent_cse"]:
        inputs = lax.optimization_barrier(inputs)
    body = jax.checkpoint(
        lambda values: interpreter.body(p["jaxpr"], values, eqn), prevent_cse=p["prevent_cse"], policy=p["policy"]
    )
    outputs, taps = body(inputs)
    interpreter.keep(taps)
    return outputs


@rule("custom_vjp_call", "custom_jvp_call")
def _custom(interpreter: Interpreter, eqn, inputs):
    """Forward through the rules; backward by the function's own derivative rule, at weights expanded for it, loudly."""
    if interpreter.observe:
        return interpreter.evaluate(eqn.params["call_jaxpr"], inputs)
    later = replace(interpreter, calls=[*interpreter.calls])  # derivatives are traced when the interpreter has moved on

    def ours(values):
        return interpreter.body(eqn.params["call_jaxpr"], values, eqn)[0]

    def theirs(values):
        return bind(eqn, [later.dense(value, eqn, "in its derivative rule") for value in values])

    def backward(values, cotangents):
        _, pullback = jax.vjp(theirs, values)
        return pullback(cotangents)

    call: Any
    if eqn.primitive.name == "custom_jvp_call":

        def forward(primals, tangents):
            # the checkpoint: transposed, this derivative keeps the weight's parts, not the array
            _, results = jax.jvp(jax.checkpoint(theirs), primals, tangents)
            return call(*primals), results

        call = jax.custom_jvp(ours)
        call.defjvp(forward)
    else:
        call = jax.custom_vjp(ours)
        call.defvjp(lambda values: (call(values), values), backward)
    return call(inputs)


@rule("cond")
def _cond(interpreter: Interpreter, eqn, inputs):
    def branch(jaxpr, zeros):
        def body(values):
            outputs, taps = interpreter.body(jaxpr, values, eqn)
            return outputs, zeros | taps

        return body

    zeros = {}
    for jaxpr in eqn.params["branches"] if interpreter.observe else ():
        taps = jax.eval_shape(branch(jaxpr, {}), inputs[1:])[1]
        zeros |= jax.tree.map(lambda tap: jnp.zeros(tap.shape, tap.dtype), taps)
    branches = [branch(jaxpr, zeros) for jaxpr in eqn.params["branches"]]
    outputs, taps = lax.switch(inputs[0], branches, inputs[1:])
    interpreter.keep(taps)
    return outputs


class _Carry:
    """Loop-carried values. Weights that the body hands on unchanged leave the loop; other weights become arrays."""

    def __init__(self, interpreter: Interpreter, eqn, jaxpr, first: int, values):
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        same = [out is jaxpr.invars[first + i] for i, out in enumerate(jaxpr.outvars[: len(values)])]
        self.fixed = {i: v for i, v in enumerate(values) if isinstance(v, View) and same[i]}
        self.start = [interpreter.dense(v, eqn) for v in self.moving(values)]

    def moving(self, values):
        return [value for i, value in enumerate(values) if i not in self.fixed]

    def full(self, moving):
        rest = iter(moving)
        return [self.fixed[i] if i in self.fixed else next(rest) for i in range(len(self.fixed) + len(moving))]


@rule("while")
def _while(interpreter: Interpreter, eqn, inputs):
    p = eqn.params
    nc, nb = p["cond_nconsts"], p["body_nconsts"]
    cond_consts, body_consts = inputs[:nc], inputs[nc : nc + nb]
    carry = _Carry(interpreter, eqn, p["body_jaxpr"], nb, inputs[nc + nb :])
    # the number of rounds is unknown: what the bodies observe cannot be summed over them, and is dropped
    out = lax.while_loop(
        lambda moving: interpreter.body(p["cond_jaxpr"], [*cond_consts, *carry.full(moving)], eqn)[0][0],
        lambda moving: carry.moving(
            interpreter.body(p["body_jaxpr"], [*body_consts, *carry.full(moving)], eqn, carry.fixed)[0]
        ),
        carry.start,
    )
    return carry.full(out)


@rule("scan")
def _scan(interpreter: Interpreter, eqn, inputs):
    p = eqn.params
    jaxpr = getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
    # jax 0.10 and 0.11 name the counts differently; ranks tell them in every version
    n_xs = sum(o.aval.ndim > i.aval.ndim for o, i in zip(eqn.invars, jaxpr.invars, strict=True))
    n_carry = sum(o.aval.ndim == i.aval.ndim for o, i in zip(eqn.outvars, jaxpr.outvars, strict=True))
    first = len(inputs) - n_xs
    consts, xs = inputs[: first - n_carry], [_layers(interpreter, eqn, x) for x in inputs[first:]]
    carry = _Carry(interpreter, eqn, jaxpr, first - n_carry, inputs[first - n_carry : first])
    looped = {view.path for _, view in xs if view is not None}

    def step(moving, slices):
        layer = [
            part if view is None else replace(view, weight=restack(part, view.weight))
            for part, (_, view) in zip(slices, xs, strict=True)
        ]
        outputs, taps = interpreter.body(p["jaxpr"], [*consts, *carry.full(moving), *layer], eqn, carry.fixed)
        return carry.moving(outputs[:n_carry]), (outputs[n_carry:], taps)

    parts = [part for part, _ in xs]
    out, (ys, taps) = lax.scan(step, carry.start, parts, p["length"], reverse=p["reverse"], unroll=p["unroll"])
    interpreter.keep(taps, summed=lambda path: path not in looped)
    return [*carry.full(out), *ys]


def _layers(interpreter: Interpreter, eqn, x):
    """What a scan slices of a value, and the view of one layer that wants the slice put back (None for an array)."""
    if not isinstance(x, View):
        return x, None
    if x.weight_axis(0) != -len(x.perm) or x.perm[0] != 0 or x.weight.blocks(-len(x.perm)):
        return interpreter.dense(x, eqn, "its layers are not on its leading axis"), None
    parts = unstacked(x.weight)
    if parts is None:
        return interpreter.dense(x, eqn, "one of its layers is no weight of the same kind"), None
    stacked, shared = parts
    return stacked, replace(x, weight=shared, perm=tuple(axis - 1 for axis in x.perm[1:]), shape=x.shape[1:])


def unstacked(weight) -> tuple[Any, Any] | None:
    """What `Weight.unstack` gives, or None where a layer of the stack is no weight of the same kind."""
    if weight.blocks(-weight.ndim):
        return None
    stacked, shared = weight.unstack()
    layer = jax.eval_shape(lambda parts: restack(jax.tree.map(lambda part: part[0], parts), shared), stacked)
    return (stacked, shared) if _whole(layer) else None


def _whole(weight) -> bool:
    """Whether every part has just the axes that the weight says it has."""
    return all(
        len(part.shape) == len(mapping)
        and all(axis is None or axis >= -weight.ndim for axis in mapping)
        and (not is_weight(part) or _whole(part))
        for _, part, mapping in weight.placed()
    )


@rule("shard_map")
def _shard_map(interpreter: Interpreter, eqn, inputs):
    p = eqn.params
    values = [interpreter.dense(v, eqn) if isinstance(v, View) and (v.joined or not v.plain) else v for v in inputs]
    specs = tuple(
        v.weight.specs(spec) if isinstance(v, View) else spec for v, spec in zip(values, p["in_specs"], strict=True)
    )

    def local(*arrays):
        views = [View.of(a, v.path) if isinstance(v, View) else a for a, v in zip(arrays, values, strict=True)]
        outputs, taps = interpreter.body(p["jaxpr"], views, eqn)
        if taps:
            raise UsageError(
                f"calibrate: {next(iter(taps))} is multiplied inside shard_map, where rows are not counted"
            )
        return tuple(outputs)

    inner = jax.shard_map(
        local, mesh=p["mesh"], in_specs=specs, out_specs=tuple(p["out_specs"]),
        check_vma=p["check_vma"], axis_names=set(p["newly_manual_axes"]),
    )  # fmt: skip
    return list(inner(*[v.weight if isinstance(v, View) else v for v in values]))
