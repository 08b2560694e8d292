"""Rows of the table of `test_lift.py`: plain jnp code."""

import jax
import jax.numpy as jnp
from lift_table import BLOCKS, Case, normal


def plain(fn, *shapes, x=(3, 8)):
    """``fn(x, *weights)`` as a function of a dictionary w0, w1, ..."""
    params = {f"w{i}": normal(*shape) + i for i, shape in enumerate(shapes)}
    inputs = (x if hasattr(x, "dtype") else normal(*x),)
    return (lambda params, x: fn(x, *params.values())), params, inputs


def fused(x, w):
    query, key, value = jnp.split(x @ w, 3, axis=-1)
    return query * key + value


def split_kernel(x, w):
    query, key, value = jnp.split(w, 3, axis=-1)
    return (x @ query) * (x @ key) + x @ value


def numbered(x, w):
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w[i]), x)


def take(axis: int, ids, **options):
    return lambda x, w: jnp.tanh(jnp.take(w, ids, axis=axis, **options)) * x.sum()


def integral(x, w):
    return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


STACKS = jnp.array([[[3, 0], [1, 2]], [[1, 1], [2, 5]], [[0, 4], [4, 4]]])  # three by two, two ids in each
IDS = jnp.array([[3, 0, 1], [1, 1, 2]])
OUTSIDE = jnp.array([3, -1, 99, -99, 0])
NOT_A_PRODUCT = {"*": "neither a product nor a rearrangement"}
MIXED = {"*": "the reshape mixes input and output axes"}
MATRIX = ((-2,), (-1,))

PLAIN = [
    Case("x @ W", lambda: plain(lambda x, w: x @ w, (8, 6)), where="w0"),
    Case("x @ W.T", lambda: plain(lambda x, w: x @ w.T, (6, 8)), where="w0"),
    Case("W @ x", lambda: plain(lambda x, w: w @ x.T, (6, 8)), where="w0"),
    Case(
        "einsum with batch axes",
        lambda: plain(lambda x, w: jnp.einsum("bhi,hio->bho", x, w), (2, 8, 6), x=(3, 2, 8)), where="w0",
    ),
    Case(
        "einsum in another order",
        lambda: plain(lambda x, w: jnp.einsum("bij,kjhi->hbk", x, w), (6, 8, 2, 4), x=(3, 4, 8)), where="w0",
    ),
    Case(
        "einsum that also sums alone", lambda: plain(lambda x, w: jnp.einsum("bi,ioq->bo", x, w), (8, 6, 2)),
        where="w0", loud={"*": "a sum over the weight itself"}, line="jnp.einsum(", axes=((-3, -1), (-2,)),
    ),
    Case("W[:, :k]", lambda: plain(lambda x, w: x @ w[:, :4], (8, 6)), where="w0"),
    Case("W[:k]", lambda: plain(lambda x, w: x[:, :4] @ w[:4], (8, 6)), where="w0", loud=BLOCKS,
         line="@ w[:4]"),
    Case("W[:, ::2]", lambda: plain(lambda x, w: x @ w[:, ::2], (8, 6)), where="w0"),
    Case("W[::-1]", lambda: plain(lambda x, w: x @ w[::-1], (8, 6)), where="w0", axes=MATRIX, loud=NOT_A_PRODUCT,
         line="@ w[::-1]"),
    Case("split of a result", lambda: plain(fused, (8, 18)), where="w0"),
    Case("split of a fused qkv kernel", lambda: plain(split_kernel, (8, 18)), where="w0"),
    # three layers of tanh amplify float32's rounding; in float64 the difference is 1e-15
    Case("W[i], traced i", lambda: plain(numbered, (3, 8, 8)), where="w0", tolerance=1e-4),
    Case("W[2]", lambda: plain(lambda x, w: x @ w[2], (3, 8, 6)), where="w0"),
    Case("W.reshape of out axes", lambda: plain(lambda x, w: x @ w.reshape(8, 12), (8, 2, 6)), where="w0"),
    Case("W.reshape that splits out", lambda: plain(lambda x, w: jnp.einsum("bi,ihd->bhd", x, w.reshape(8, 2, 6)),
                                                    (8, 12)), where="w0"),
    Case("W.reshape that mixes", lambda: plain(lambda x, w: x @ w.reshape(8, 6), (4, 12)), where="w0", axes=MATRIX,
         loud=MIXED, line="w.reshape(8, 6)"),
    Case("W[None]", lambda: plain(lambda x, w: jnp.einsum("bi,aio->abo", x, w[None]), (8, 6)), where="w0"),
    Case("squeeze", lambda: plain(lambda x, w: x @ jnp.squeeze(w, 1), (8, 1, 6)), where="w0"),
    Case("concatenate", lambda: plain(lambda x, v, w: x @ jnp.concatenate([v, w], -1), (8, 6), (8, 4)), where="w."),
    Case("concatenate of inputs", lambda: plain(lambda x, v, w: x @ jnp.concatenate([v, w]), (4, 6), (4, 6)),
         where="w."),
    Case("concatenate with an array", lambda: plain(lambda x, v, w: x @ jnp.concatenate([v, w], 1), (8, 6), (8, 4)),
         where="w1"),
    Case("take of a concatenation",
         lambda: plain(lambda x, v, w: jnp.take(jnp.concatenate([v, w]), IDS, axis=0) * x.sum(), (2, 6), (4, 6)),
         where="w.", axes=MATRIX, loud={"*": "rows of two tables"}, line="jnp.take(jnp.concatenate"),
    Case("a doubled concatenation",
         lambda: plain(lambda x, v, w: x @ (2 * jnp.concatenate([v, w], 1)), (8, 6), (8, 4)), where="w."),
    Case("W * scalar", lambda: plain(lambda x, w: x @ (w * jnp.tanh(x[0, 0])), (8, 6)), where="w0"),
    Case("W / scalar", lambda: plain(lambda x, w: x @ (w / jnp.sqrt(8.0)), (8, 6)), where="w0"),
    Case("-W", lambda: plain(lambda x, w: x @ -w, (8, 6)), where="w0"),
    Case("W.astype(bfloat16)",
         lambda: plain(lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), (8, 6)), where="w0",
         tolerance=3e-2),
    Case("stop_gradient", lambda: plain(lambda x, w: x @ jax.lax.stop_gradient(w), (8, 6)), where="w0"),
    Case("take along the rows", lambda: plain(take(0, IDS), (10, 8)), where="w0"),
    Case("take along the columns", lambda: plain(take(1, IDS), (6, 8)), where="w0"),
    Case("take, out of range", lambda: plain(take(0, OUTSIDE, mode="fill", fill_value=0.5), (6, 8)), where="w0"),
    Case("take, clipped", lambda: plain(take(0, OUTSIDE, mode="clip"), (6, 8)), where="w0"),
    Case("take, wrapped", lambda: plain(take(0, OUTSIDE, mode="wrap"), (6, 8)), where="w0"),
    Case("W[ids]", lambda: plain(lambda x, w: w[IDS] * x.sum(), (10, 8)), where="w0"),
    Case("W[ids] of a stack of stacks, result in another order",
         lambda: plain(lambda x, w: jax.vmap(jax.vmap(lambda w, i: w[:, i], in_axes=(0, 0), out_axes=2), in_axes=(0, 1),
                                             out_axes=1)(w, STACKS) * x.sum(), (2, 3, 5, 6)), where="w0"),
    Case("integers @ W", lambda: plain(integral, (8, 6), x=jnp.arange(24, dtype=jnp.int8).reshape(3, 8)), where="w0"),
    Case("bytes @ W", lambda: plain(integral, (8, 6), x=jnp.arange(24, dtype=jnp.uint8).reshape(3, 8)), where="w0"),
    Case("W[ids, ids]", lambda: plain(lambda x, w: w[IDS, IDS] * x.sum(), (6, 8)), where="w0", axes=MATRIX,
         loud={"*": "single entries"}, line="w[IDS, IDS]"),
    Case("take of W.T", lambda: plain(lambda x, w: jnp.take(w.T, IDS, axis=0) * x.sum(), (6, 8)), where="w0",
         axes=MATRIX, loud={"*": "rows of a transposed table"}, line="jnp.take(w.T"),
    Case("one_hot @ W", lambda: plain(lambda x, w: jax.nn.one_hot(IDS, 6) @ w, (6, 8)), where="w0"),
    Case("vmap over a weight stack", lambda: plain(lambda x, w: jax.vmap(lambda w: x @ w)(w), (3, 8, 6)), where="w0"),
    Case("vmap over inputs and weights", lambda: plain(jax.vmap(jnp.dot), (3, 8, 6)), where="w0"),
    Case("two weights multiplied", lambda: plain(lambda x, v, w: x @ (v @ w), (8, 6), (6, 4)), where="w.", axes=MATRIX,
         loud={"*": "a product of two weights"}, line="x @ (v @ w)"),
    Case("two weights, one after the other", lambda: plain(lambda x, v, w: x @ v @ w, (8, 6), (6, 4)), where="w."),
    Case("sum of squares", lambda: plain(lambda x, w: x.sum() + (w**2).sum(), (8, 6)), where="w0", axes=MATRIX,
         loud=NOT_A_PRODUCT, line="(w**2).sum()"),
    Case("two weights added", lambda: plain(lambda x, v, w: x @ (v + w), (8, 6), (8, 6)), where="w.", axes=MATRIX,
         loud=NOT_A_PRODUCT, line="x @ (v + w)"),
    Case("a weight returned", lambda: plain(lambda x, w: (x @ w, w), (8, 6)), where="w0", axes=MATRIX,
         loud={"*": "a result is an array"}, line="its return statement"),
]  # fmt: skip
