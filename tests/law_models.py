"""The tiny models that the laws run over. Every width differs from every other, so that a mistaken axis cannot hide.

B batch, T time, D width, H heads, K width of a head, F feed-forward width, V vocabulary, C classes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

B, T, D, H, K, F, V, C, LAYERS = 2, 5, 12, 2, 4, 20, 14, 3, 2


class Block(nn.Module):
    """Attention whose inner width is not the outer one, gelu feed-forward, dropout."""

    @nn.compact
    def __call__(self, x_BTD, train: bool):
        y_BTD = nn.LayerNorm(name="norm1")(x_BTD)
        y_BTD = nn.MultiHeadDotProductAttention(H, qkv_features=H * K, name="attention")(y_BTD)
        x_BTD = x_BTD + nn.Dropout(0.1, deterministic=not train)(y_BTD)
        y_BTF = nn.gelu(nn.Dense(F, name="up")(nn.LayerNorm(name="norm2")(x_BTD)))
        return x_BTD + nn.Dense(D, name="down")(y_BTF), None


class Transformer(nn.Module):
    """Tied embeddings, learnt positions, layers unrolled or scanned, with or without remat."""

    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, ids_BT, train: bool = False):
        embed = nn.Embed(V, D, name="embed")
        position_TD = self.param("position", nn.initializers.normal(0.1), (T + 4, D))[: ids_BT.shape[-1]]
        x_BTD = embed(ids_BT) + position_TD
        block = nn.remat(Block, static_argnums=(2,), prevent_cse=False) if self.remat else Block
        if self.scan:
            layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=LAYERS,
            )
            x_BTD, _ = layers(name="blocks")(x_BTD, train)
        else:
            for i in range(LAYERS):
                x_BTD, _ = block(name=f"block_{i}")(x_BTD, train)
        return embed.attend(nn.LayerNorm(name="norm")(x_BTD))


class CNN(nn.Module):
    """Two convolutions and a head."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv1")(x))
        x = nn.relu(nn.Conv(8, (2, 2), strides=2, name="conv2")(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(C, name="head")(x)


class Case(NamedTuple):
    """A model, its parameters and a batch.

    `apply(params, inputs, key=None)` gives logits; with a key, the model's own dropout is on.
    """

    apply: Callable
    params: Any
    inputs: Any


@functools.cache
def case(name: str, remat: bool = False) -> Case:
    """unrolled, scanned or cnn."""
    model = CNN() if name == "cnn" else Transformer(name == "scanned", remat)
    inputs = (
        jax.random.normal(jax.random.key(1), (B, 6, 4, 2))
        if name == "cnn"
        else jax.random.randint(jax.random.key(1), (B, T), 0, V)
    )
    params = jax.jit(model.init)(jax.random.key(0), inputs)["params"]
    # biases and scales away from 0 and 1: a term that multiplies them must show
    random = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype), params)

    def apply(params, inputs, key=None):
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, inputs, key is not None, rngs=rngs)

    return Case(apply, params, inputs)


def loss_of(logits):
    """A number that depends on every logit in its own way."""
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2) - jnp.mean(logits[..., 1])


def restack(params):
    """The unrolled model's parameters in the scanned model's tree."""
    blocks = [params[f"block_{i}"] for i in range(LAYERS)]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block_")}
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
