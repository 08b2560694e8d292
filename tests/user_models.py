"""Six models written as their authors would, without a thought of jaxbig: ``MODELS[name]() -> fn, params, inputs``."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def filled(shapes):
    """Parameters in the shapes of an init, none of them zero; NumPy compiles nothing."""
    return jax.tree.map(lambda leaf: normal(*leaf.shape) / max(leaf.shape) ** 0.5, shapes)


def of(module: nn.Module, *inputs: Any):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return (lambda params, *inputs: module.apply({"params": params}, *inputs)), filled(shapes["params"]), inputs


class MessagePassing(nn.Module):
    """h_i' = U [h_i, sum over edges j->i of relu(M [h_j, e_ji])]"""

    features: int

    @nn.compact
    def __call__(self, nodes, edges, senders, receivers):
        messages = nn.relu(nn.Dense(self.features)(jnp.concatenate([nodes[senders], edges], -1)))
        inbox = jax.ops.segment_sum(messages, receivers, num_segments=nodes.shape[0])
        degree = jax.ops.segment_sum(jnp.ones_like(receivers, jnp.float32), receivers, nodes.shape[0])
        return nn.Dense(self.features)(jnp.concatenate([nodes, inbox / jnp.maximum(degree, 1)[:, None]], -1))


class Graph(nn.Module):
    @nn.compact
    def __call__(self, nodes, edges, senders, receivers):
        for _ in range(2):
            nodes = nn.tanh(MessagePassing(6)(nodes, edges, senders, receivers))
        return nn.Dense(3)(nodes.mean(0))


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(6)(y)))
        x = x + jnp.swapaxes(y, 1, 2)
        return x + nn.Dense(x.shape[2])(nn.gelu(nn.Dense(10)(nn.LayerNorm()(x))))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (2, 2), strides=2)(images)
        x = x.reshape(x.shape[0], -1, 8)
        x = MixerBlock()(x)
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        skip = nn.relu(nn.Conv(4, (3, 3))(x))
        deep = nn.relu(nn.Conv(6, (3, 3))(nn.avg_pool(skip, (2, 2), (2, 2))))
        up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(deep)
        x = nn.relu(nn.Conv(4, (3, 3))(jnp.concatenate([skip, up], -1)))
        return nn.Conv(2, (1, 1))(x)


class Translator(nn.Module):
    """A GRU encoder, and a GRU decoder that attends to it (additive attention)."""

    @nn.compact
    def __call__(self, source, target):
        memory = nn.RNN(nn.GRUCell(6), name="encoder")(nn.Embed(10, 4)(source))
        keys = nn.Dense(6, use_bias=False, name="keys")(memory)
        states = nn.RNN(nn.GRUCell(6), name="decoder")(nn.Embed(12, 4)(target))
        queries = nn.Dense(6, name="queries")(states)
        scores = nn.Dense(1, use_bias=False, name="score")(nn.tanh(queries[:, :, None] + keys[:, None]))[..., 0]
        context = jnp.einsum("bts,bsd->btd", nn.softmax(scores), memory)
        return nn.Dense(12, name="words")(jnp.concatenate([states, context], -1))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2, decode=True)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, ids):
        table = nn.Embed(12, 8)
        x = table(ids)
        for _ in range(2):
            x = Layer()(x)
        return table.attend(nn.LayerNorm()(x))


def decoding():
    """Three tokens, one at a time, through a key-value cache in a `lax.scan`."""
    model, ids = Decoder(), jnp.array([[1, 5, 2], [0, 11, 5]])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids))

    def fn(params, ids):
        cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["cache"])

        def step(cache, token):
            logits, variables = model.apply({"params": params, "cache": cache}, token[:, None], mutable=["cache"])
            return variables["cache"], logits[:, 0]

        return jax.lax.scan(step, cache, ids.T)[1]

    return fn, filled(shapes["params"]), (ids,)


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(nnx.tanh(self.hidden(x)))


def of_nnx():
    graph, state = nnx.split(nnx.eval_shape(lambda: ConvNet(nnx.Rngs(0))))
    params = filled(nnx.to_pure_dict(state))
    return (lambda params, x: nnx.merge(graph, params)(x)), params, (normal(2, 6, 6, 3),)


EDGES = (jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 2, 0, 0, 3]))
MODELS = {
    "graph network": lambda: of(Graph(), normal(4, 6), normal(5, 2), *EDGES),
    "MLP-mixer": lambda: of(Mixer(), normal(2, 4, 8, 3)),
    "U-Net": lambda: of(UNet(), normal(2, 6, 6, 2)),
    "seq2seq with attention": lambda: of(Translator(), jnp.array([[1, 2, 9]]), jnp.array([[3, 11]])),
    "transformer with a cache": decoding,
    "nnx convnet": of_nnx,
}
