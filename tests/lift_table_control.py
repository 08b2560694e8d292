"""Rows of the table of `test_lift.py`: control flow, derivatives and transformations inside the lifted function."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from lift_table import BLOCKS, LOW_RANK, Case
from lift_table_plain import plain


@jax.custom_vjp
def projected(x, w):
    return jnp.tanh(x @ w)


def _projected_backward(kept, cotangent):
    x, w, y = kept
    inner = cotangent * (1 - y**2)
    return inner @ w.T, x.T @ inner


projected.defvjp(lambda x, w: (y := jnp.tanh(x @ w), (x, w, y)), _projected_backward)


@jax.custom_vjp
def tripled(x, w):
    """A backward rule that is not the derivative: three times it."""
    return x @ w


tripled.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (3 * (g @ kept[1].T), 3 * (kept[0].T @ g)))


@jax.custom_jvp
def squashed(x, w):
    return jnp.tanh(x @ w)


@squashed.defjvp
def _squashed_jvp(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    y = jnp.tanh(x @ w)
    return y, 2 * (1 - y**2) * (dx @ w + x @ dw)


def branches(x, w):
    return lax.cond(x.sum() > 0, lambda x, w: jnp.tanh(x @ w), lambda x, w: x @ w - 1, x, w)


def one_of_three(x, v, w):
    index = (x[0, 0] > 0).astype(jnp.int32) + 1
    return lax.switch(index, [lambda x: x @ v, lambda x: x @ w, lambda x: jnp.tanh(x @ v) + x @ w], x)


def until(x, w):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x))[1]


def until_norm(x, w):
    return lax.while_loop(lambda x: (x @ w).sum() > -1e9, lambda x: x * 0 - 1e10, x) + x @ w


def carried(rounds):
    def fn(x, w):
        return lax.fori_loop(0, rounds(x), lambda _, c: (jnp.tanh(c[0] @ c[1]), c[1]), (x, w))[0]

    return fn


def carried_by_scan(x, w):
    (x, _), every = lax.scan(lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[1]), c[0]), (x, w), None, length=2)
    return x, every


def row_by_row(x, w):
    return lax.scan(lambda y, row: (y + x @ row, None), x[:, 0], w)[0]


def changed_in_loop(x, w):
    return lax.fori_loop(0, 2, lambda _, c: (c[0] @ c[1], c[1] * 0.5), (x, w))[0]


def chosen_weight(x, v, w):
    return x @ lax.cond(x.sum() > 0, lambda: v, lambda: w)


def inner_gradient(x, w):
    return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ w)))(x)


def inner_weight_gradient(x, w):
    return x @ w + jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w).sum()


def inner_jvp(x, w):
    return jax.jvp(lambda x: jnp.tanh(x @ w), (x,), (jnp.cos(x),))


def checkpointed(x, w):
    return jax.checkpoint(lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w))(x, w)


def sharded(w_spec, x_spec=None, reduce=""):
    mesh = Mesh(jax.devices()[:1], ("m",), axis_types=(AxisType.Auto,))

    def local(x, w):
        y = x @ w
        return lax.psum(y, reduce) if reduce else y

    out = P() if reduce else P(None, *w_spec[1:])
    return lambda x, w: jnp.tanh(jax.shard_map(local, mesh=mesh, in_specs=(x_spec or P(), w_spec), out_specs=out)(x, w))


CALLED = "fn(x, *params.values())"
BACKWARD = "the function's own rule is called with the array it was written for"
CHANGES = {"*": "the loop changes the weight: it has to be an array from round to round"}
SQUARE = ((-2,), (-1,))


CONTROL = [
    Case("jit inside", lambda: plain(jax.jit(lambda x, w: jnp.tanh(x @ w)), (8, 6)), where="w0"),
    Case("remat inside", lambda: plain(checkpointed, (8, 8)), where="w0"),
    Case("custom_vjp", lambda: plain(projected, (8, 6)), where="w0", expands=BACKWARD, line=CALLED),
    Case("custom_vjp, another backward", lambda: plain(tripled, (8, 6)), where="w0", expands=BACKWARD,
         line=CALLED),
    Case("custom_jvp", lambda: plain(squashed, (8, 6)), where="w0", expands=BACKWARD, line=CALLED),
    Case("custom_jvp, forward mode", lambda: plain(squashed, (8, 6)), where="w0", forward=True, expands=BACKWARD,
         line=CALLED),
    Case("cond", lambda: plain(branches, (8, 6)), where="w0"),
    Case("switch", lambda: plain(one_of_three, (8, 6), (8, 6)), where="w."),
    Case("a weight chosen by cond", lambda: plain(chosen_weight, (8, 6), (8, 6)), where="w.", axes=SQUARE,
         loud={"*": "a branch results in an array"}, line="return x @ lax.cond("),
    Case("while_loop", lambda: plain(until, (8, 8)), where="w0", forward=True),
    Case("while_loop, weight in the condition", lambda: plain(until_norm, (8, 8)), where="w0", forward=True),
    Case("fori_loop, weights in its state", lambda: plain(carried(lambda x: 3), (8, 8)), where="w0"),
    Case("fori_loop of unknown length, weights in its state",
         lambda: plain(carried(lambda x: 2 + (x[0, 0] > 0).astype(int)), (8, 8)), where="w0", forward=True),
    Case("scan, weights in its state", lambda: plain(carried_by_scan, (8, 8)), where="w0"),
    Case("scan over a table's rows", lambda: plain(row_by_row, (6, 8)), where="w0", axes=SQUARE,
         line="lax.scan(lambda y, row:",
         loud=BLOCKS | dict.fromkeys(LOW_RANK, "its factors share no axis of layers")),
    Case("a loop that changes the weight", lambda: plain(changed_in_loop, (8, 8)), where="w0", axes=SQUARE,
         loud=CHANGES, line="c[1] * 0.5"),
    Case("a gradient inside", lambda: plain(inner_gradient, (8, 6)), where="w0"),
    Case("a gradient of the weight inside", lambda: plain(inner_weight_gradient, (8, 6)), where="w0",
         computes="the gradient that the function asks for has the weight's shape"),
    Case("jvp inside", lambda: plain(inner_jvp, (8, 6)), where="w0"),
    Case("forward mode", lambda: plain(lambda x, w: jnp.tanh(x @ w), (8, 6)), where="w0", forward=True),
    Case("vmap inside", lambda: plain(lambda x, w: jax.vmap(lambda x: x @ w)(x), (8, 6)), where="w0"),
    Case("shard_map, replicated", lambda: plain(sharded(P()), (8, 6)), where="w0"),
    Case("shard_map, columns", lambda: plain(sharded(P(None, "m")), (8, 6)), where="w0"),
    Case("shard_map, rows", lambda: plain(sharded(P("m"), P(None, "m"), "m"), (8, 6)), where="w0"),
]  # fmt: skip
