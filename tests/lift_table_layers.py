"""Rows of the table of `test_lift.py`: layers of flax that nobody edited."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from lift_table import LOW_RANK, Case, normal


def of(module: nn.Module, *inputs: Any, **options):
    """The function, parameters and inputs of a module whose other collections are closed over."""
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    shapes = dict(jax.eval_shape(lambda: module.init(keys, *inputs, **options)))
    params = jax.tree.map(lambda leaf: normal(*leaf.shape) / max(leaf.shape) ** 0.5, shapes.pop("params"))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def fn(params, *inputs):
        rngs = {"dropout": jax.random.key(3)}
        return module.apply({"params": params, **variables}, *inputs, rngs=rngs, mutable=list(variables), **options)

    return fn, params, inputs


class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(10, 8)
        return table.attend(nn.tanh(table(ids)))


class ConvNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Conv(6, (3, 3), use_bias=False)(x))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=False)(nn.Dense(6)(x)))


class Block(nn.Module):
    """A residual block in the form that `nn.scan` wants."""

    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(x.shape[-1])(nn.tanh(nn.Dense(6)(x))), None


class Penalised(nn.Module):
    """Squares its kernel, which is no product: the line of this is to be named, under whatever it runs."""

    @nn.compact
    def __call__(self, x, _=None):
        kernel = self.param("kernel", nn.initializers.ones, (8, 8))
        x = x @ kernel
        return x * jnp.sum(kernel**2), None


class Caller(nn.Module):
    """Calls it by way of something that traces it as a body of its own."""

    way: Any

    @nn.compact
    def __call__(self, x):
        return self.way(Penalised)(name="inner")(x, None)[0]


def looped(axis: int, remat: bool = False):
    block: Any = nn.remat(Block, prevent_cse=False) if remat else Block
    return nn.scan(block, variable_axes={"params": axis}, split_rngs={"params": True}, length=3)()


def tables():
    """A table for each of three layers, ids of their own."""
    embed = nn.vmap(nn.Embed, variable_axes={"params": 0}, split_rngs={"params": True})
    return of(embed(10, 8), jnp.array([[1, 9], [0, 0], [3, 4]]))


def mapped(shared: bool):
    axis = None if shared else 0
    return nn.vmap(nn.Dense, variable_axes={"params": axis}, split_rngs={"params": not shared})(6)


def of_nnx():
    model = nnx.Sequential(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 4, rngs=nnx.Rngs(1)))
    graph, state = nnx.split(model)

    def fn(params, x):
        return nnx.merge(graph, params)(x)

    return fn, nnx.to_pure_dict(state), (normal(3, 8),)


APPLIED = "return module.apply("  # the last line of the user's own: the layers are flax's
GROUPS = "each group of channels has a factorisation of its own"
FLIPPED = "the kernel is flipped, and no Weight can be"
INNER = "a scan slices parts along their first axis only"

SQUARED = "a square is no product"
WAYS = {
    "nothing": lambda module: module,
    "remat": nn.remat,
    "jit": nn.jit,
    "scan": lambda module: nn.scan(module, variable_axes={"params": 0}, split_rngs={"params": True}, length=2),
    "scan of remat": lambda module: nn.scan(
        nn.remat(module, prevent_cse=False), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    ),
}

LAYERS = [
    Case("Dense", lambda: of(nn.Dense(6), normal(3, 8))),
    Case("Dense without batch axes", lambda: of(nn.Dense(6), normal(8))),
    Case("Dense in bfloat16", lambda: of(nn.Dense(6, dtype=jnp.bfloat16), normal(3, 8)), tolerance=3e-2),
    Case("DenseGeneral", lambda: of(nn.DenseGeneral((2, 10), axis=(-2, -1)), normal(5, 4, 6))),
    Case("DenseGeneral over distant axes", lambda: of(nn.DenseGeneral((2, 10), axis=(1, -1)), normal(5, 4, 3, 6))),
    Case("DenseGeneral with batch axes", lambda: of(nn.DenseGeneral(6, axis=-1, batch_dims=(0,)), normal(4, 3, 8))),
    Case("Einsum", lambda: of(nn.Einsum((8, 2, 6), "btd,dhk->bthk"), normal(5, 3, 8))),
    Case("Einsum with a batch axis", lambda: of(nn.Einsum((2, 8, 6), "bhd,hdk->hbk", use_bias=False), normal(5, 2, 8))),
    Case("Conv", lambda: of(nn.Conv(6, (3, 3)), normal(2, 5, 5, 4))),
    Case("Conv 1x1", lambda: of(nn.Conv(6, (1, 1)), normal(2, 5, 5, 4))),
    Case("Conv strided", lambda: of(nn.Conv(6, (2, 2), strides=2, padding="VALID"), normal(2, 6, 6, 4))),
    Case("Conv dilated", lambda: of(nn.Conv(6, (3, 3), kernel_dilation=2), normal(2, 7, 7, 4))),
    Case("Conv 1-D", lambda: of(nn.Conv(6, (3,)), normal(2, 7, 4))),
    Case("Conv 3-D", lambda: of(nn.Conv(6, (2, 2, 2)), normal(2, 3, 3, 3, 4))),
    Case(
        "Conv grouped", lambda: of(nn.Conv(6, (3, 3), feature_group_count=2), normal(2, 5, 5, 8)),
        loud=dict.fromkeys(LOW_RANK, GROUPS), line=APPLIED,
    ),
    Case("ConvTranspose", lambda: of(nn.ConvTranspose(6, (2, 2), strides=(2, 2)), normal(2, 3, 3, 4))),
    Case(
        "ConvTranspose of the forward kernel",
        lambda: of(nn.ConvTranspose(6, (2, 2), strides=(2, 2), transpose_kernel=True), normal(2, 3, 3, 4)),
        loud={"*": FLIPPED}, line=APPLIED, axes=((-4, -3, -1), (-2,)),
    ),
    Case("Embed, tied", lambda: of(Tied(), jnp.array([[1, 2, 9], [0, 0, 3]])), where=".*embedding"),
    Case(
        "MultiHeadDotProductAttention with its decode cache",
        lambda: of(nn.MultiHeadDotProductAttention(2, decode=True), normal(3, 1, 8)),
    ),
    Case("OptimizedLSTMCell under RNN", lambda: of(nn.RNN(nn.OptimizedLSTMCell(6)), normal(2, 3, 4))),
    Case("GRUCell under RNN", lambda: of(nn.RNN(nn.GRUCell(6)), normal(2, 3, 4))),
    Case("BatchNorm with mutable statistics", lambda: of(ConvNorm(), normal(3, 5, 5, 4)), tolerance=1e-4,
         zero="it undoes the scale of the kernel before it"),
    Case("Dropout's keys", lambda: of(Dropped(), normal(3, 8))),
    Case("scan over layers", lambda: of(looped(0), normal(3, 8))),
    Case("scan over layers, remat", lambda: of(looped(0, remat=True), normal(3, 8))),
    Case("scan over layers on axis 1", lambda: of(looped(1), normal(3, 8)), loud={"*": INNER}, line=APPLIED,
         axes=((-3,), (-1,))),
    Case("remat", lambda: of(nn.remat(Block)(), normal(3, 8))),
    Case("vmap over stacked layers", lambda: of(mapped(shared=False), normal(3, 5, 8))),
    Case("vmap, one layer shared", lambda: of(mapped(shared=True), normal(3, 5, 8))),
    *[
        Case(f"an expanded weight under {name}", lambda way=way: of(Caller(way), normal(3, 8)), loud={"*": SQUARED},
             line="x * jnp.sum(kernel**2)", tolerance=1e-4)
        for name, way in WAYS.items()
    ],
    Case("vmap over stacked tables", tables, where=".*embedding"),
    Case("nnx behind split and merge", of_nnx),
]  # fmt: skip
